# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How the kernel reads what is written to an attribute (lib/kstrtox.c). Compared with the lab's kernel call by call
(tests/lab/test_sim_lab.py)."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"\+?(?:0[xX](?P<hex>[0-9a-fA-F]+)|(?P<octal>0[0-7]*)|(?P<decimal>[1-9][0-9]*))\n?")


def kstrtou16(text: str) -> int | None:
    """With base 0: decimal, 0x hexadecimal, 0 octal; no blanks, one line end at most; None for what it refuses."""
    found = _NUMBER.fullmatch(text)
    if not found:
        return None
    if found["hex"]:
        number = int(found["hex"], 16)
    elif found["octal"]:
        number = int(found["octal"], 8)
    else:
        number = int(found["decimal"])
    return number if number < 1 << 16 else None


def kstrtobool(text: str) -> bool | None:
    """By the first letter, and the second after an 'o'; None for what it refuses."""
    known = {**dict.fromkeys("yYtT1", True), **dict.fromkeys("nNfF0", False)}
    if text[:1] in ("o", "O"):
        return {"n": True, "f": False}.get(text[1:2].lower())
    return known.get(text[:1])
