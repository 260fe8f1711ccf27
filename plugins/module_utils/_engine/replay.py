# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The boot door: bring declared devices back, as soon as their drivers are ready and within one time budget."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping
from typing import Any

from . import after_link as links
from . import engine, identity, store, sysfs
from .errors import EngineError
from .host import Host
from .mdev import facts as mdev
from .model import HOST, Lost, State
from .read import Needs, read_state
from .resources import common
from .resources.common import Options

#: Seconds for all devices together to show up with their drivers. Past it the host goes on without the missing ones.
BUDGET = 45.0
#: Seconds after which no further device is begun, so that the host is never held off its network for longer.
TOTAL = 120.0

#: There while udev has events to handle (udev_queue_get, libudev): devices may still come.
UDEV_QUEUE = "/run/udev/queue"

#: Resource, address, stored entry.
Entry = tuple[str, str, Mapping[str, Any]]

#: What the last replay did, for the next run's report. In /run: it is about this boot.
RESULT = "/run/iovirt-replay.json"


def run(host: Host, only: str | None, after_link: bool = False) -> dict[str, Any]:
    """Replay all declared devices, or one. Never raises for a single device: the others come back all the same.
    `after_link` is the second phase, which first waits for the link."""
    if after_link and only is not None and not links.wait(host, [only], links.LIMIT):
        return _no_link(only)
    deadline = host.clock() + TOTAL
    _wait_until_settled(host, only, host.clock() + BUDGET)
    call = engine.Call(who="boot replay", declare=False, deadline=deadline, before_link=not after_link)
    result = converge_declared(host, call, only)
    if only is None:
        host.files.replace(RESULT, json.dumps(result, indent=2, sort_keys=True) + "\n", mode=0o600)
    return result


def _no_link(address: str) -> dict[str, Any]:
    sentence = f"{address}: it has had no link for {links.LIMIT:g} s, so what needs one was not done. Run 'iovirt apply' then."
    return {"changed": False, "actions": [], "failures": {address: sentence}}


def converge_declared(host: Host, call: engine.Call, only: str | None = None) -> dict[str, Any]:
    """Bring the declared devices, or one, to what is declared once this door has its turn: a run may have changed that
    while it waited. What was given back meanwhile is nobody's to bring back."""
    with engine.turn(host, call):
        state = read_state(host, Needs())
        wishes, missing = wishes_of(state, only)
        result = converge(host, wishes, granted(state), call)
    result["failures"].update(missing)
    return result


def wishes_of(state: State, only: str | None = None) -> tuple[engine.Wishes, dict[str, str]]:
    """The wishes of the declared devices, or of one, by where they are now; and why the others are left alone."""
    wishes: dict[str, list[Mapping[str, Any]]] = {}
    missing = {}
    for name, address, entry in entries_of(state, only):
        wishes.setdefault(name, []).append(as_wish(name, address, entry["wish"]))
    for lost in state.lost.values():
        missing.update({address: item.reason for address, item in lost.items() if only in (None, address)})
    return wishes, missing


def entries_of(state: State, only: str | None = None) -> list[Entry]:
    """The declared devices that are there: resource, address, entry."""
    return [
        (name, address, entry)
        for name, document in state.stored.items()
        for address, entry in document["devices"].items()
        if only in (None, address)
    ]


def converge(host: Host, wishes: engine.Wishes, options: Options, call: engine.Call) -> dict[str, Any]:
    """All at once where that works; where something is refused, device by device, so that one bad device does not keep
    the others from coming back. An error of our own counts as one that is refused. The caller has the turn."""
    internal = None
    try:
        return engine.devices_in_turn(host, wishes, options, call)
    except EngineError:
        pass
    except Exception as error:
        internal = _our_fault(HOST, error)
    result: dict[str, Any] = {"changed": False, "actions": [], "failures": {}}
    for name, list_ in wishes.items():
        for wish in list_:
            try:
                part = engine.devices_in_turn(host, {name: [wish]}, options, call)
                result["changed"] |= part["changed"]
                result["actions"] += part["actions"]
                result["failures"].update(part["failures"])
            except EngineError as error:
                result["failures"][wish["match"]["address"][0]] = str(error)
            except Exception as error:
                address = wish["match"]["address"][0]
                result["failures"][address] = _our_fault(address, error)
    if internal and not result["failures"]:
        # Each of them came back by itself: what went wrong with all of them is told all the same.
        result["failures"][HOST] = internal
    return result


def _our_fault(what: str, error: Exception) -> str:
    """A sentence where Python would have printed its stack: of that the place alone."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{place.filename.rpartition('/')[2]}, line {place.lineno}"
    return f"{what}: internal: {error!r} ({where}). It is a fault of the collection: report it with the documents in {store.FOLDER}."


def granted(state: State) -> Options:
    """The replay may do what the run that declared a device was allowed by name, and no more."""
    allowed = {address: entry.get("allow", ()) for _name, address, entry in entries_of(state)}
    return Options(granted=allowed, recorded_only=True)


def as_wish(name: str, address: str, wish: Mapping[str, Any]) -> dict[str, Any]:
    """A stored entry as a wish of its own."""
    match: dict[str, Any] = {"address": [address], "vf": True}
    if name != "sriov":
        return {"match": match, **wish}
    vfs = [{"range": index, **vf} for index, vf in wish["vfs"].items()]
    return {**wish, "match": match, "vfs": vfs}


def _wait_until_settled(host: Host, only: str | None, end: float) -> None:
    """Wait until every declared device has what is needed: its driver, and something to be told by. What does not come
    until `end` (by host.clock) is gone on without."""
    while _unsettled(host, read_state(host, Needs()), only) and host.clock() < end:
        host.sleep(1.0)


def _unsettled(host: Host, state: State, only: str | None) -> bool:
    """A probe that is at work holds the device's lock, as a hanging write does: it ends. VFs can be made only once the
    PF's driver is there. A card that does not show yet what it is told by may do so with its driver."""
    if common.any_hanging(state):
        return True
    queued = host.files.exists(UDEV_QUEUE)
    for name, address, entry in entries_of(state, only):
        # A subchannel becomes a parent by the replay itself.
        awaited = name == "mdev" and sysfs.bus_of(address) != sysfs.CSS
        if awaited and queued and not host.files.exists(f"{mdev.PARENTS}/{address}"):
            return True
        driverless = not state.functions[address].driver
        if name == "vmdq" and queued:
            # udev gives a port its name some time after it appeared.
            return True
        if driverless and (name in ("sriov", "vmdq", "vgpu") or (queued and any(entry["identity"].get(key) for key in identity.STRONG))):
            return True
    for lost in state.lost.values():
        for key, item in lost.items():
            if only in (None, key) and (queued or _may_still_show(state, item)):
                return True
    return False


def _may_still_show(state: State, lost: Lost) -> bool:
    """Is there a device of its kind that has no driver yet, and shows nothing to be told by?"""
    wanted = lost.entry["identity"].get("ids")
    return any(identity.ids(f) == wanted and not f.driver and not f.physfn for f in state.functions.values())


def parse(text: str | None) -> dict[str, Any] | None:
    """The result of the last replay of this boot; None when there was none or it was cut off."""
    try:
        result = json.loads(text or "null")
    except ValueError:
        return None
    return result if isinstance(result, dict) else None
