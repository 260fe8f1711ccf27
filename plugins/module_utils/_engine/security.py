# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the kernel forbids even to root: lockdown and Secure Boot (kernel_lockdown(7))."""

from __future__ import annotations

import re
from typing import Any

from .host import Files

LOCKDOWN = "/sys/kernel/security/lockdown"
#: Four bytes of attributes, then one of value (Documentation/filesystems/efivarfs.rst, UEFI specification 3.3).
SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"

#: What modprobe prints for EKEYREJECTED, ENOKEY and, under lockdown, EPERM (module_sig_check, kernel/module/signing.c).
_UNSIGNED = ("Key was rejected", "Required key not available", "Operation not permitted", "EKEYREJECTED", "ENOKEY", "EPERM")


def lockdown(files: Files) -> str | None:
    """'none', 'integrity' or 'confidentiality'; None where the kernel has no lockdown or securityfs is not mounted."""
    found = re.search(r"\[(\w+)\]", files.attr(LOCKDOWN) or "")
    return found.group(1) if found else None


def secure_boot(files: Files) -> bool | None:
    """None where the firmware is no UEFI or does not say."""
    text = files.attr(SECURE_BOOT)
    return None if not text else text[-1] == "\x01"


def facts(files: Files) -> dict[str, Any]:
    return {"lockdown": lockdown(files), "secure_boot": secure_boot(files)}


def why_refused(files: Files, answer: str) -> str | None:
    """What lockdown or Secure Boot has to do with an answer of the kernel; None when nothing."""
    mode, booted = lockdown(files), secure_boot(files)
    if not any(word in answer for word in _UNSIGNED) or (mode in (None, "none") and not booted):
        return None
    now = ", ".join(
        text for text in (f"lockdown: {mode}" if mode else "", "Secure Boot is on" if booted else "") if text
    )
    return f"The kernel takes signed modules only ({now}): take the distribution's module, or sign it with an enrolled key."
