# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What was ever wished of a PF and its VFs. All of that is given back, also what a later wish no longer named, and each
of it as it was before it was first named.

A record holds it as names: 'vf_count', 'up', 'vf 3 vlan'; and 'vf 3' for a VF that went with a count of ours, with all
that was set on it. What the switch and the firmware had is recorded key by key as it is first named, and needs no names.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from . import attributes, msix, secondary

COUNT, UP = "vf_count", "up"

_NAME = re.compile(r"vf (\d+)(?: (\w+))?")

#: Part of an origin that holds a value a VF -> the keys of a wish that it is about. Attributes are held key by key.
_PARTS = {"overrides": ("driver",), "nvme_vfs": tuple(secondary.KEYS), msix.NAME: (msix.KEY,)}


def of_wish(wish: Mapping[str, Any]) -> frozenset[str]:
    """The names of what a recorded wish speaks of."""
    named = {key for key in (COUNT, UP) if wish.get(key) is not None}
    return frozenset(named | {f"vf {index} {key}" for index, vf in wish["vfs"].items() for key in vf})


def by(entry: Mapping[str, Any]) -> frozenset[str]:
    """The names of a record. Records of older versions have none: then it is what their wish says, and the overrides of
    the VFs that a count of theirs made anew."""
    if "touched" in entry:
        return frozenset(entry["touched"])
    lost = entry["origin"].get("overrides", {}) if entry["wish"].get(COUNT) is not None else {}
    return of_wish(entry["wish"]) | {f"vf {index} driver" for index in lost}


def is_in(names: Collection[str], index: int | str, key: str) -> bool:
    """Was this key of a VF touched, by itself or with the whole VF?"""
    return f"vf {index} {key}" in names or is_whole(names, index)


def is_whole(names: Collection[str], index: int | str) -> bool:
    """Did the VF itself go with a count of ours?"""
    return f"vf {index}" in names


def keys_of(names: Collection[str]) -> dict[int, list[str]]:
    """VF index -> the keys that were named for it."""
    found: dict[int, list[str]] = {}
    for name in sorted(names):
        match = _NAME.fullmatch(name)
        if match and match.group(2):
            found.setdefault(int(match.group(1)), []).append(match.group(2))
    return found


def origin(now: Mapping[str, Any], entry: Mapping[str, Any], names: Collection[str], there: Collection[int]) -> dict[str, Any]:
    """How it was before: the record's, and of what is named for the first time how it is now. `there` are the VFs of now."""
    was, known = entry["origin"], by(entry)
    found = {**now, **was}
    for key in (COUNT, UP):
        if key in names and key not in known and key in now:
            found[key] = now[key]
    for index in there:
        for part, named in _first_named(names, known, index):
            values = dict(found.get(part, {}))
            _take_over(values, now.get(part, {}), str(index), named)
            found[part] = values
    return found


def _first_named(names: Collection[str], known: Collection[str], index: int) -> Iterator[tuple[str, str | None]]:
    """Part of an origin, and the key in it where it has some."""
    parts: list[tuple[str, str | None, tuple[str, ...]]] = [(part, None, keys) for part, keys in _PARTS.items()]
    parts += [("attributes", key, (key,)) for key in attributes.KEYS]
    for part, key, keys in parts:
        if any(is_in(names, index, k) for k in keys) and not any(is_in(known, index, k) for k in keys):
            yield part, key


def _take_over(values: dict[str, Any], now: Mapping[str, Any], index: str, key: str | None) -> None:
    if key is None:
        values.pop(index, None)
        values.update({index: now[index]} if index in now else {})
    elif key in now.get(index, {}):
        values[index] = {**values.get(index, {}), key: now[index][key]}
