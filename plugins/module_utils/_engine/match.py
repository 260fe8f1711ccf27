# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Selectors: which functions of this host a wish speaks of."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Any

from . import identity, sysfs
from .link import GUID_LENGTH
from .model import Function, Refusal, State

#: Name -> PCI class code prefix (PCI Code and ID Assignment Specification; include/linux/pci_ids.h).
CLASSES = {
    "storage": "01",
    "scsi": "0100",
    "sata": "0106",
    "nvme": "010802",
    "network": "02",
    "ethernet": "0200",
    "infiniband": "0207",
    "display": "03",
    "multimedia": "04",
    "audio": "0403",
    "usb": "0c03",
    "fibre_channel": "0c04",
    "encryption": "10",
    "accelerator": "12",
}

KEYS = ("address", "vendor", "device", "subsystem", "driver", "ifname", "mac", "serial", "class", "numa_node", "slot")
#: Of mediated devices alone.
PARENT = "parent"
#: Of GPUs alone.
UUID = "uuid"

#: State.more: GPU -> by what its driver alone names it. Read where a wish names one so.
GPUS = "gpus"
BY_DRIVER = (UUID, "serial")

_HEX4 = re.compile(r"(0x)?[0-9a-f]{4}")


def check_selector(match: Mapping[str, Any]) -> str | None:
    """What is wrong with a selector, or None. `vf` alone selects nothing: it only widens."""
    named = {key: value for key, value in match.items() if value is not None and value != [] and key != "vf"}
    if not named:
        return "an empty match would mean every device of the host; name at least one key."
    unknown = sorted(set(named) - {*KEYS, PARENT, UUID})
    if unknown:
        return f"unknown key {', '.join(unknown)}; a selector knows {', '.join(KEYS)} and vf."
    empty = [key for key, values in named.items() if any(not str(value).strip() for value in values)]
    if empty:
        return f"{', '.join(empty)} holds an empty value; it would mean every device that has none."
    for key in ("vendor", "device"):
        for value in named.get(key, []):
            if not isinstance(value, str):
                return f'{key} {value!r} is a number, and YAML may have changed it; write it in quotes, as in "8086".'
            if not _HEX4.fullmatch(value.lower()):
                return f'{key} {value!r} is not four hexadecimal digits; write it in quotes, as in "8086".'
    for value in named.get("subsystem", []):
        if not re.fullmatch(r"[0-9a-f]{4}:[0-9a-f]{4}", value.lower()):
            return f'subsystem {value!r} is not vendor:device in hexadecimal digits, as in "8086:a04c".'
    for value in named.get("class", []):
        if value not in CLASSES and not re.fullmatch(r"0x[0-9a-f]{2}([0-9a-f]{2}){0,2}", value.lower()):
            return f'class {value!r} is unknown; names are {", ".join(CLASSES)}, or a code as in "0x0200".'
    return None


def select(state: State, match: Mapping[str, Any], gone: Sequence[Function] = ()) -> list[Function]:
    """The functions that a checked selector names, by address. Keys are ANDed, a list in a key is ORed."""
    wide = bool(match.get("vf") or match.get(PARENT))
    # A recorded device that was not found is meant by the address of its record, whatever is there now.
    candidates = {**state.functions, **{function.address: function for function in gone}}
    return [f for f in candidates.values() if (wide or f.physfn is None) and _is_meant(f, match) and _matches(state, f, match)]


def _is_meant(function: Function, match: Mapping[str, Any]) -> bool:
    """A parent that is no function of PCI is found by its name alone, not by a pattern that was meant for addresses."""
    return function.bus not in sysfs.BY_NAME or bool(match.get(PARENT)) or function.address in (match.get("address") or ())


def _matches(state: State, function: Function, match: Mapping[str, Any]) -> bool:
    return all(
        any(_key_matches(state, function, key, value) for value in match[key])
        for key in (*KEYS, PARENT, UUID)
        if match.get(key) not in (None, [])
    )


def _key_matches(state: State, function: Function, key: str, value: Any) -> bool:
    if key == PARENT:
        return bool(function.address == value)
    if key == "address":
        return fnmatch.fnmatchcase(function.address, value.lower())
    if key == "class":
        return function.class_code.startswith(CLASSES.get(value, value.lower()[2:]))
    if key == "driver":
        return bool(function.native == value)
    if key == "ifname":
        return any(fnmatch.fnmatchcase(name, value) for name in _known_names(state, function))
    if key == "mac":
        # Of InfiniBand's long addresses the end counts: the port's GUID (read._permanent).
        return value.lower()[-GUID_LENGTH:] in _known_macs(state, function)
    if key == "numa_node":
        return bool(function.numa_node == int(value))
    if key in ("vendor", "device"):
        return bool(str(value).lower().rpartition("0x")[2] == getattr(function, key))
    # An NVMe controller shows its serial number only under its own driver; that of a GPU only its driver tells.
    told = state.more.get(GPUS, {}).get(function.address, {}).get(key)
    known = told or getattr(function, key, "") or _identity(state, function).get(key, "")
    return str(known).lower() == str(value).lower()


def _identity(state: State, function: Function) -> Mapping[str, Any]:
    """What an earlier call remembered of a device whose netdev is gone now, so that it still matches. Of this very
    card: another one in its place is not it."""
    for name, document in state.stored.items():
        lost = state.lost.get(name, {}).get(function.address)
        # A device that was not found is asked for by what is remembered of it alone (store.gone).
        entry = document["devices"].get(function.address) or (lost.entry if lost and _stands_for(function) else None)
        if entry and entry["identity"].get("ids") == identity.ids(function):
            known: Mapping[str, Any] = entry["identity"]
            return known
    return {}


def _stands_for(function: Function) -> bool:
    """Is this a device as a record remembers it, and none that was read?"""
    return not function.class_code


def _known_names(state: State, function: Function) -> Sequence[str]:
    remembered = _identity(state, function).get("ifname", "")
    return function.netdevs or ((remembered,) if remembered else ())


def _known_macs(state: State, function: Function) -> list[str]:
    macs = [state.netdevs[name].mac for name in function.netdevs if name in state.netdevs]
    return macs or [_identity(state, function).get("mac", "")]


def describe(match: Mapping[str, Any]) -> str:
    """A selector as a person would say it: 'driver=igb, numa_node=0'."""
    named = {k: v for k, v in match.items() if v not in (None, [], False)}
    return ", ".join(f"{k}={'|'.join(map(str, v)) if isinstance(v, list) else v}" for k, v in named.items())


def resolve(
    state: State, wish: Mapping[str, Any], label: str, gone: Sequence[Function] = ()
) -> tuple[list[Function], list[Refusal]]:
    """The devices of one wish, or the reason why it has none. `label` says where the wish stands: 'sriov[0]'. `gone`
    are devices that are recorded and no longer there: they can still be given up."""
    match = wish.get("match") or {}
    wrong = check_selector(match)
    if wrong:
        return [], [Refusal(label, f"the match is not usable: {wrong}", "Nothing was changed.")]
    found = select(state, match, gone if wish.get("state") == "absent" else ())
    expect = wish.get("expect")
    if expect is not None and len(found) != expect:
        names = ", ".join(f.address for f in found) or "none"
        return [], [
            Refusal(
                label,
                f"expect: {expect}, but {len(found)} devices match ({describe(match)}): {names}.",
                "Correct the selector or the number; nothing was changed.",
            )
        ]
    if not found and expect is None and wish.get("state", "present") == "present":
        return [], [
            Refusal(
                label,
                f"no device of this host matches ({describe(match)}).",
                "iovirt.host.host_info lists them with all that a selector can name; nothing was changed.",
            )
        ]
    return found, []
