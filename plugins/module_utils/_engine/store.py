# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Declared state: one JSON document a resource under /etc/iovirt, written atomically, read by every door.

A document holds, for each device of the resource: what identifies it, what the user wished for it, and how it was
before the collection touched it. It stands there so that the boot replay needs no controller.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from . import record, sysfs
from .errors import StateFileError
from .host import Files
from .model import Function, State

FOLDER = "/etc/iovirt"
LOCK = "/run/iovirt.lock"
#: Ports whose VFs a run keeps from being probed while it makes them. In /run: the kernel forgets it with the boot too.
PROBING = "/run/iovirt-probing"
VERSION = 2
#: What is read as well: entries without `declared_at`, `declared` and what identity.py looks for beyond the MAC address.
READABLE = (1, VERSION)
RESOURCES = ("sriov", "vfio", "vmdq", "mdev", "vgpu")


def path_of(resource: str) -> str:
    return f"{FOLDER}/{resource}.json"


def held_back(pf: str) -> str:
    """The file that is there while a run has sriov_drivers_autoprobe of a port off."""
    return f"{PROBING}/{pf}"


def empty(resource: str) -> dict[str, Any]:
    return {"version": VERSION, "resource": resource, "devices": {}}


def load(files: Files, resource: str) -> dict[str, Any]:
    """The document of a resource; an empty one when nothing was declared."""
    path = path_of(resource)
    text = files.text(path)
    if text is None:
        return empty(resource)
    try:
        document = json.loads(text)
    except ValueError as error:
        raise _unusable(path, f"is not JSON ({error})") from None
    if not isinstance(document, dict) or not isinstance(document.get("devices"), dict):
        raise _unusable(path, "has no list of devices")
    if document.get("version") not in READABLE or document.get("resource") != resource:
        raise _unusable(path, f"is not a version {VERSION} document of the resource {resource}")
    document["version"] = VERSION
    for address, entry in document["devices"].items():
        wrong = record.wrong(resource, entry)
        if wrong:
            raise _unusable(path, f"its entry for {address} is incomplete ({wrong} is missing or of the wrong kind)")
    return document


def _unusable(path: str, why: str) -> StateFileError:
    return StateFileError(
        f"{path}: {why}. It records what this host's devices were before the collection touched them, so it is not "
        "guessed at and nothing was changed. Put a good copy back, or move the file away to start without the record."
    )


def load_all(files: Files) -> dict[str, dict[str, Any]]:
    return {resource: load(files, resource) for resource in RESOURCES}


def dump(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def save(files: Files, resource: str, document: Mapping[str, Any]) -> None:
    """Write the document; remove the file with its last device."""
    if document["devices"]:
        # Readable by root alone: the document names guests' devices and where they are.
        files.replace(path_of(resource), dump(document), mode=0o600)
    else:
        files.remove(path_of(resource))


def not_the_same(state: State, address: str, known: Mapping[str, Any]) -> str | None:
    """Why what is at an address is not the device that was recorded with this identity, or None."""
    for lost in state.lost.values():
        if address in lost and lost[address].entry["identity"] == known:
            return lost[address].reason
    return None


def gone(state: State, resource: str) -> list[Function]:
    """The devices that are recorded and were not found, as far as the record knows them."""
    found = state.stored[resource]["devices"]
    return [
        _remembered(address, lost.entry)
        for address, lost in state.lost.get(resource, {}).items()
        # Where another recorded device is now, the address means that one.
        if address not in found
    ]


def _remembered(address: str, entry: Mapping[str, Any]) -> Function:
    known = entry["identity"]
    numbers, _blank, subsystem = str(known.get("ids", "")).partition(" ")
    vendor, _colon, device = numbers.partition(":")
    return Function(
        address=address,
        vendor=vendor,
        device=device,
        subsystem=subsystem,
        native=entry["origin"].get("driver"),
        serial=known.get("serial", ""),
        slot=known.get("slot", ""),
        bus=sysfs.bus_of(address),
    )


def entry_of(state: State, resource: str, address: str) -> Mapping[str, Any] | None:
    """The record of the device that is at an address, or was recorded there and was not found."""
    document = state.stored.get(resource)
    entry: Mapping[str, Any] | None = document["devices"].get(address) if document else None
    lost = state.lost.get(resource, {}).get(address)
    return entry or (lost.entry if lost else None)


def everything(state: State) -> dict[str, dict[str, Mapping[str, Any]]]:
    """resource -> address -> record, of all that is recorded: what was not found stands where it was."""
    return {
        name: {**{key: lost.entry for key, lost in state.lost.get(name, {}).items()}, **document["devices"]}
        for name, document in state.stored.items()
    }


def move(document: dict[str, Any], moves: Mapping[str, str]) -> None:
    """Let records follow their devices: address of the record -> address of now. All at once, as cards may have changed
    places with each other."""
    entries = document["devices"]
    going = {old: entries.pop(old) for old in moves if old in entries}
    for old, entry in going.items():
        known = {**entry["identity"], "address": moves[old]}
        entries[moves[old]] = {"declared_at": old, **entry, "identity": known}


def same_card(entry: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Are these records of one card, wherever it is?"""
    return all(entry["identity"].get(key) == value for key, value in other["identity"].items() if key != "address")


def recorded_drivers(stored: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """Address and ids -> the driver that the device had before the collection gave it another. With the ids: another
    card in the same place has a driver of its own."""
    found = {}
    for document in stored.values():
        for address, entry in document["devices"].items():
            driver = entry["origin"].get("driver")
            if driver:
                found[address, entry["identity"].get("ids", "")] = driver
    return found


def recorded_overrides(stored: Mapping[str, Any]) -> frozenset[str]:
    """The drivers that giving back would need, as somebody had chosen them before the collection."""
    found = set()
    for document in stored.values():
        for entry in document["devices"].values():
            origin = entry["origin"]
            found |= {driver for driver in (*origin.get("overrides", {}).values(), origin.get("override")) if driver}
    return frozenset(found)
