# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What can go wrong, in words an operator can act on."""

from __future__ import annotations

import errno
import os


class EngineError(Exception):
    """A sentence for the operator: the device, the reason, the way out. Never a traceback."""


class StateFileError(EngineError):
    """A state file of ours cannot be read or understood."""


class Stuck(EngineError):
    """A write to the kernel has not returned within its limit. The device is indeterminate."""


def explain(error: OSError) -> str:
    """What the kernel said, by its name, as in 'EBUSY (Device or resource busy)'."""
    if error.errno is None:
        return str(error)
    name = errno.errorcode.get(error.errno, str(error.errno))
    return f"{name} ({os.strerror(error.errno)})"
