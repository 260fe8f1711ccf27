# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which VF gets what: defaults, ranges and single VFs of a wish, put together by index."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..model import Refusal
from .port import bad

_RANGE = re.compile(r"[0-9]{1,5}(-[0-9]{1,5})?")


def parse_range(text: str) -> list[int] | None:
    """'0-3' or '5' or '0-3,6' -> the VF indexes; None when it is none of these."""
    indexes: list[int] = []
    for part in text.split(","):
        if not _RANGE.fullmatch(part.strip()):
            return None
        first, _dash, last = part.strip().partition("-")
        if int(last or first) < int(first) or int(last or first) > 65535:
            return None
        indexes += range(int(first), int(last or first) + 1)
    return indexes


def wished_vfs(
    address: str, label: str, wish: Mapping[str, Any], count: int
) -> tuple[dict[int, dict[str, Any]], list[Refusal]]:
    """VF index -> what is wished for it, and what is wrong with the ranges."""
    defaults = {k: v for k, v in (wish.get("vf_defaults") or {}).items() if v is not None}
    wished: dict[int, dict[str, Any]] = {index: dict(defaults) for index in range(count)} if defaults else {}
    holder: dict[int, str] = {}
    refusals: list[Refusal] = []
    for part in wish.get("vfs") or []:
        indexes, wrong = _indexes(address, label, part, count, holder)
        refusals += wrong
        for index in indexes:
            holder[index] = str(part["range"])
            own = {k: v for k, v in part.items() if k != "range" and v is not None}
            wished.setdefault(index, {}).update(own)
    return wished, refusals


def _indexes(
    address: str, label: str, part: Mapping[str, Any], count: int, holder: Mapping[int, str]
) -> tuple[list[int], list[Refusal]]:
    indexes = parse_range(str(part["range"]))
    if indexes is None:
        return [], [bad(address, f"{label}: {part['range']!r} is no range of VFs.", 'Write "0-3", "5" or "0-3,6".')]
    beyond = [index for index in indexes if index >= count]
    if beyond:
        reason = f"{label}: the range {part['range']} names VF {beyond[-1]}, but it has VFs 0 to {count - 1}."
        return [], [bad(address, reason if count else f"{label}: it has no VFs.", "Correct the range or vf_count.")]
    taken = [index for index in indexes if index in holder]
    if taken:
        reason = f"{label}: the ranges {holder[taken[0]]} and {part['range']} both name VF {taken[0]}."
        return indexes, [bad(address, reason, "Let each VF stand in one range.")]
    return indexes, []
