# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: the iovirt.host authors
"""What the scripts in this folder share: where things lie, which Pythons the machine has, what set-up found.

Standard library only, Python 3.9 or newer: these run before anything is installed.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / ".build"
# A link tree under which the checkout itself is found as iovirt.host, for ansible, mypy and pytest.
LIVE = BUILD / "live"
FOUND = BUILD / "setup.json"


class Python(NamedTuple):
    version: tuple[int, int]
    path: str

    @property
    def name(self) -> str:
        return f"{self.version[0]}.{self.version[1]}"


def say(text: str = "") -> None:
    print(text, flush=True)


def die(what: str) -> None:
    sys.exit(f"error: {what}")


def _pyenv_bins() -> list[str]:
    """The real folders of pyenv's Pythons: its shims fail for versions that are not selected."""
    root = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
    # glob and os.path pass over what may not be read (another user's folder, left in the environment by su).
    return sorted(glob.glob(os.path.join(glob.escape(root), "versions", "3.*", "bin")))


def search_path() -> str:
    """PATH for finding Pythons: as it is, without pyenv's shims and virtual environments, then pyenv's own."""
    folders = [f for f in os.environ.get("PATH", os.defpath).split(os.pathsep) if f and not f.endswith("/shims")]
    folders = [f for f in folders if not os.path.exists(os.path.join(os.path.dirname(f), "pyvenv.cfg"))]
    return os.pathsep.join(dict.fromkeys(folders + _pyenv_bins()))


def _probe(path: str) -> Python | None:
    code = "import sys; print(*sys.version_info[:2], sys.version_info.releaselevel)"
    try:
        done = subprocess.run([path, "-I", "-c", code], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    major, minor, level = done.stdout.split()
    # Tools lag behind alpha and beta Pythons.
    return Python((int(major), int(minor)), path) if level == "final" else None


def pythons() -> dict[str, Python]:
    """The Pythons of this machine, oldest first, one a minor version."""
    path = search_path()
    found: dict[str, Python] = {}
    for name in [*(f"python3.{minor}" for minor in range(9, 16)), "python3"]:
        where = shutil.which(name, path=path)
        python = _probe(where) if where else None
        if python and python.name not in found:
            found[python.name] = python
    return dict(sorted(found.items(), key=lambda item: item[1].version))


def newest(found: dict[str, Python], low: tuple[int, int], high: tuple[int, int]) -> Python | None:
    fitting = [python for python in found.values() if low <= python.version <= high]
    return fitting[-1] if fitting else None


def oldest(found: dict[str, Python], low: tuple[int, int], high: tuple[int, int]) -> Python | None:
    fitting = [python for python in found.values() if low <= python.version <= high]
    return fitting[0] if fitting else None


def setup_found() -> dict[str, Any]:
    """What `tools/setup` wrote down: the virtual environments that it made."""
    try:
        found: dict[str, Any] = json.loads(FOUND.read_text())
    except (OSError, ValueError):
        return {"venvs": {}, "missing": {}}
    return found


def pip_settings(python: str) -> dict[str, str]:
    """pip's effective settings (index, certificate, ...), whichever file or variable they come from."""
    done = subprocess.run([python, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    settings: dict[str, str] = {}
    for line in done.stdout.splitlines():
        match = re.fullmatch(r"(?P<where>[^.]+)\.(?P<key>[\w-]+)='(?P<value>.*)'", line)
        # The environment wins over every file, as it does in pip.
        if match and (match["where"] == ":env:" or match["key"] not in settings):
            settings[match["key"]] = match["value"].replace("\\n", "\n")
    return settings


def make_live_link() -> None:
    link = LIVE / "ansible_collections" / "iovirt" / "host"
    link.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(ROOT, link.parent)
    if not link.is_symlink() or os.readlink(link) != target:
        link.unlink(missing_ok=True)
        link.symlink_to(target)
