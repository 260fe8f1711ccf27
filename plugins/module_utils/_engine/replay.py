# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The boot door: bring declared devices back, as soon as their drivers are ready and within one time budget."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from . import engine, store, sysfs
from .errors import EngineError
from .host import Host
from .model import State
from .read import Needs, read_state
from .resources import common
from .resources.common import Options

#: Seconds for all devices together to show up with their drivers. Past it the host goes on without the missing ones.
BUDGET = 45.0
#: Seconds after which no further device is begun, so that the host is never held off its network for longer.
TOTAL = 120.0

#: Resource, address, stored entry.
Entry = tuple[str, str, Mapping[str, Any]]

#: What the last replay did, for the next run's report. In /run: it is about this boot.
RESULT = "/run/iovirt-replay.json"


def run(host: Host, only: str | None) -> dict[str, Any]:
    """Replay all declared devices, or one. Never raises for a single device: the others come back all the same."""
    deadline = host.clock() + TOTAL
    declared = store.load_all(host.files)
    entries = [item for item in entries_of(declared) if only in (None, item[1])]
    _wait_for_drivers(host, entries)
    state = _read_when_settled(host, deadline)
    wishes, missing = wishes_of(state, entries)
    call = engine.Call(who="boot replay", declare=False, deadline=deadline)
    result = converge(host, wishes, granted(declared), call)
    result["failures"].update(missing)
    if only is None:
        host.files.replace(RESULT, json.dumps(result, indent=2, sort_keys=True) + "\n", mode=0o600)
    return result


def wishes_of(state: State, entries: Collection[Entry]) -> tuple[engine.Wishes, dict[str, str]]:
    """The wishes of those declared devices that are there, and why the others are left alone."""
    wishes: dict[str, list[Mapping[str, Any]]] = {}
    missing = {}
    for name, address, entry in entries:
        wrong = store.not_the_same(state, address, entry["identity"])
        if wrong:
            missing[address] = wrong
        else:
            wishes.setdefault(name, []).append(as_wish(name, address, entry["wish"]))
    return wishes, missing


def entries_of(declared: Mapping[str, Any]) -> list[Entry]:
    """All declared devices: resource, address, entry."""
    return [(name, address, entry) for name in declared for address, entry in declared[name]["devices"].items()]


def converge(host: Host, wishes: engine.Wishes, options: Options, call: engine.Call) -> dict[str, Any]:
    """All at once where that works; where something is refused, device by device, so that one bad device does not keep
    the others from coming back."""
    try:
        return engine.devices(host, wishes, options, call)
    except EngineError:
        pass
    result: dict[str, Any] = {"changed": False, "actions": [], "failures": {}}
    for name, list_ in wishes.items():
        for wish in list_:
            try:
                part = engine.devices(host, {name: [wish]}, options, call)
                result["changed"] |= part["changed"]
                result["actions"] += part["actions"]
                result["failures"].update(part["failures"])
            except EngineError as error:
                result["failures"][wish["match"]["address"][0]] = str(error)
    return result


def granted(declared: Mapping[str, Any]) -> Options:
    """The replay may do what the run that declared a device was allowed by name, and no more."""
    entries = [item for document in declared.values() for item in document["devices"].items()]
    allowed = {address: entry.get("allow", ()) for address, entry in entries}
    return Options(granted=allowed, wait_for_link=False)


def as_wish(name: str, address: str, wish: Mapping[str, Any]) -> dict[str, Any]:
    """A stored entry as a wish of its own."""
    match = {"address": [address], "vf": True}
    if name != "sriov":
        return {"match": match, **wish}
    vfs = [{"range": index, **vf} for index, vf in wish["vfs"].items()]
    return {**wish, "match": match, "vfs": vfs}


def _read_when_settled(host: Host, deadline: float) -> State:
    """At boot a driver may still be in its probe, which holds the device's lock: that is no hanging write, so it is
    waited for, within the time."""
    state = read_state(host, Needs())
    while common.any_hanging(state) and host.clock() < deadline - TOTAL + BUDGET:
        host.sleep(1.0)
        state = read_state(host, Needs())
    return state


def _wait_for_drivers(host: Host, entries: Collection[Entry]) -> None:
    """VFs can be made only once the PF's driver is there. A function for vfio needs but to exist: with the override in
    place its own driver never gets it."""

    def ready() -> bool:
        return all(
            host.files.exists(sysfs.device(address) + ("/driver" if name == "sriov" else ""))
            for name, address, _entry in entries
        )

    host.wait(ready, BUDGET)


def parse(text: str | None) -> dict[str, Any] | None:
    """The result of the last replay of this boot; None when there was none or it was cut off."""
    try:
        result = json.loads(text or "null")
    except ValueError:
        return None
    return result if isinstance(result, dict) else None
