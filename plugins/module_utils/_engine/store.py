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

from . import sysfs
from .errors import StateFileError
from .host import Files
from .model import Function, State

FOLDER = "/etc/iovirt"
LOCK = "/run/iovirt.lock"
VERSION = 1
RESOURCES = ("sriov", "vfio")


def path_of(resource: str) -> str:
    return f"{FOLDER}/{resource}.json"


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
    if document.get("version") != VERSION or document.get("resource") != resource:
        raise _unusable(path, f"is not a version {VERSION} document of the resource {resource}")
    for address, entry in document["devices"].items():
        if not _complete(resource, entry):
            raise _unusable(path, f"its entry for {address} is incomplete")
    return document


def _complete(resource: str, entry: Any) -> bool:
    """Does an entry hold all that is read of it? What somebody edited by hand need not."""
    if not isinstance(entry, dict):
        return False
    identity, wish, origin = entry.get("identity"), entry.get("wish"), entry.get("origin")
    if not (isinstance(identity, dict) and isinstance(wish, dict) and isinstance(origin, dict)):
        return False
    if resource == "vfio":
        return isinstance(wish.get("driver"), str)
    vfs = wish.get("vfs")
    return (
        isinstance(wish.get("vf_count"), (int, type(None)))
        and isinstance(origin.get("vf_count"), int)
        and isinstance(vfs, dict)
        and all(index.isdigit() and isinstance(vf, dict) for index, vf in vfs.items())
    )


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


def identity(state: State, function: Function) -> dict[str, str]:
    """All that identifies a device, for recognising it when it has moved or was exchanged."""
    mac = next((state.netdevs[name].mac for name in function.netdevs if name in state.netdevs), "")
    if function.physfn or function.bus != sysfs.PCI:
        # A VF and a simulated device may have another random one at each birth.
        mac = ""
    return {
        "address": function.address,
        "ids": ids(function),
        "ifname": function.netdevs[0] if function.netdevs else "",
        "mac": mac,
        "serial": function.serial,
        "slot": function.slot,
    }


def ids(function: Function) -> str:
    return f"{function.vendor}:{function.device} {function.subsystem}"


def not_the_same(state: State, address: str, known: Mapping[str, str]) -> str | None:
    """Why the device at an address is not the one that was declared, or None."""
    function = state.functions.get(address)
    if function is None:
        return (
            f"{address}: the declared device is not there. Run the collection again, or give it back (state: absent)."
        )
    now = identity(state, function)
    differing = [key for key in ("ids", "serial", "mac") if known.get(key) and now[key] and now[key] != known[key]]
    if differing:
        what = ", ".join(f"{key} {now[key]} instead of {known[key]}" for key in differing)
        return f"{address}: another device is there now ({what}), so it was left alone. Run the collection again."
    return None


def gone(state: State, resource: str) -> list[Function]:
    """The devices that are recorded and no longer there, as far as the record knows them."""
    return [
        _remembered(address, entry)
        for address, entry in state.stored[resource]["devices"].items()
        if address not in state.functions
    ]


def _remembered(address: str, entry: Mapping[str, Any]) -> Function:
    identity = entry["identity"]
    numbers, _blank, subsystem = str(identity.get("ids", "")).partition(" ")
    vendor, _colon, device = numbers.partition(":")
    return Function(
        address=address,
        vendor=vendor,
        device=device,
        subsystem=subsystem,
        native=entry["origin"].get("driver"),
        serial=identity.get("serial", ""),
        slot=identity.get("slot", ""),
        bus=sysfs.bus_of(address),
    )


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
