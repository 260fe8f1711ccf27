# Copyright: the iovirt.host authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the lab keeps things. Everything it writes lies below one folder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

LAB_SOURCE = Path(__file__).resolve().parent.parent
GUEST_FILES = LAB_SOURCE / "guest"
VMDQSIM = LAB_SOURCE / "vmdqsim" / "vmdqsim.c"


def state_dir() -> Path:
    """The folder of the lab's state: IOVIRT_LAB_DIR, else .lab in the repository root."""
    named = os.environ.get("IOVIRT_LAB_DIR")
    return Path(named).resolve() if named else LAB_SOURCE.parent / ".lab"


def cache_dir() -> Path:
    """What was built, one folder for each kind and recipe."""
    return state_dir() / "cache"


def run_dir() -> Path:
    """One folder for each host."""
    return state_dir() / "run"


def build_lock() -> Path:
    """Held while something is built."""
    return state_dir() / "build.lock"


def logs_dir() -> Path:
    """Logs of the build stages; kept when a build fails."""
    return state_dir() / "logs"


def state_id() -> str:
    """Short name of this state folder: two checkouts on one machine must not end each other's hosts."""
    return hashlib.sha256(str(state_dir().resolve()).encode()).hexdigest()[:10]
