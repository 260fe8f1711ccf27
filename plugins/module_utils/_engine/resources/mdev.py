# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Mediated devices: the declared set of a parent, one device at a time (Documentation/driver-api/vfio-mediated-device.rst).

mdevctl keeps the definitions where it is installed; the boot replay starts what it does not. Devices that the collection
did not make are left alone.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .. import sysfs
from ..host import Host
from ..mdev import ap, ccw, room
from ..mdev import facts as reading
from ..model import CERTAIN, PREDICTED, Action, Function, Plan, Refusal, State, User
from ..plain import dataclass
from . import common
from .common import Options, Target

NAME = "mdev"
#: Seconds that a parent which a wish names may take to register: its driver may just have been loaded.
REGISTER_LIMIT = 10.0

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: An attribute is a file of the device, or of a folder of it ('nvidia/vgpu_params').
_ATTRIBUTE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)?")


@dataclass(frozen=True)
class _Wanted:
    """One device as it shall be. None: not said."""

    type: str
    attributes: list[dict[str, str]] | None = None
    autostart: bool | None = None
    #: Where guests find it (guests/shares.py).
    pool: str | None = None


def needs(wishes: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """Drivers that the wishes come to: that of subchannels."""
    return frozenset({ccw.DRIVER}) if _subchannels_of(wishes) else frozenset()


def _subchannels_of(wishes: Sequence[Mapping[str, Any]]) -> set[str]:
    """The subchannels that wishes name."""
    matches = [wish.get("match") or {} for wish in wishes]
    return {name for match in matches for key in ("parent", "address") for name in match.get(key) or [] if sysfs.bus_of(str(name)) == sysfs.CSS}


def read_more(host: Host, state: State, wishes: Sequence[Mapping[str, Any]], options: Options) -> State:
    """Parents, types, devices and definitions. A parent that a wish names and that is not there yet is waited for."""
    named = {name for wish in wishes if wish.get("state") != "absent" for name in (wish.get("match") or {}).get("parent") or []}
    # A subchannel is one once it is given to vfio_ccw, and that is for the plan.
    paths = [f"{reading.PARENTS}/{name}" for name in sorted(named) if "/" not in name and sysfs.bus_of(name) != sysfs.CSS]
    host.wait(lambda: all(host.files.exists(path) for path in paths), REGISTER_LIMIT)
    parents = reading.parents(host.files, {*_subchannels_of(wishes), *state.stored[NAME]["devices"]})
    state = replace(state, functions={**state.functions, **parents})
    subchannels = [name for name, function in parents.items() if function.bus == sysfs.CSS]
    return state.with_more(NAME, {**reading.read(host.files), "subchannels": ccw.read(host.files, subchannels)})


def plan(state: State, wishes: Sequence[Mapping[str, Any]], options: Options) -> Plan:
    """What makes the wishes true on this host. Several wishes may speak of one parent."""
    result = Plan()
    found, result.refusals = common.targets(state, NAME, wishes, options, several=True)
    for targets in common.by_device(found).values():
        if common.refuse_all(result, common.present_and_absent(targets)):
            continue
        if targets[0].absent:
            result.extend(_give_back(state, targets[0].function, options))
        else:
            result.extend(_converge(state, targets, options))
    result.refusals += _promised_twice(result)
    result.predicted = _to_come(state, result.actions)
    return result


def _to_come(state: State, actions: Sequence[Action]) -> dict[str, Any]:
    """UUID -> what a device of a parent that changes will be, None for one that goes. In check mode guests are planned by that."""
    mdevs: dict[str, Any] = {}
    for parent in dict.fromkeys(action.unit for action in actions):
        old = common.stored_entry(state, NAME, parent)
        new = next((action.args["entry"] for action in actions if action.unit == parent and action.kind == "declare"), old)
        gone = {action.args["uuid"] for action in actions if action.unit == parent and action.kind == "mdev_stop"}
        mdevs.update({name: _share(parent, device) for name, device in _known(new).items()})
        left = {name: device for name, device in _known(old).items() if name not in mdevs}
        mdevs.update({name: None if name in gone else {**_share(parent, device), "declared": False} for name, device in left.items()})
    return {"mdevs": mdevs} if mdevs else {}


def _share(parent: str, device: Mapping[str, Any]) -> dict[str, Any]:
    return {"parent": parent, "type": device["type"], "pool": device.get("pool") or ""}


# --- The wishes ----------------------------------------------------------------------------------------------------


def _wanted(state: State, targets: Sequence[Target]) -> tuple[dict[str, _Wanted], list[Refusal]]:
    """UUID -> device, of all wishes that speak of a parent."""
    wanted: dict[str, _Wanted] = {}
    refusals: list[Refusal] = []
    counted = 0
    for target in targets:
        wish = target.wish
        if wish.get("devices") is not None:
            # As the record has them.
            wanted.update({d["uuid"]: _Wanted(d["type"], d["attributes"], d["autostart"], d.get("pool")) for d in wish["devices"]})
            continue
        type_, wrong = _type(state, target)
        wrong += _check_numbers(state, target) + _check_attributes(target)
        refusals += wrong
        if wrong:
            continue
        names, counted = _names(state, target, counted)
        for name in names:
            if name in wanted:
                refusals.append(_refusal(target, f"the UUID {name} is named twice.", "Name each device once."))
            wanted[name] = _Wanted(type_, wish.get("attributes"), wish.get("autostart"), wish.get("pool"))
    return wanted, refusals


def _type(state: State, target: Target) -> tuple[str, list[Refusal]]:
    """By its id, or by its name where one type alone has it."""
    types, said = _types(state, target.function.address), str(target.wish.get("type") or "")
    if said in types:
        return said, []
    named = [type_ for type_, facts in types.items() if said and facts["name"] == said]
    if len(named) == 1:
        return named[0], []
    reason = f"it offers no type {said!r}." if not named else f"several of its types are called {said!r}: {', '.join(named)}."
    return "", [_refusal(target, reason, f"It offers {_offered(types)}.")]


def _offered(types: Mapping[str, Mapping[str, Any]]) -> str:
    said = [f"{id_}{_called(facts)} ({facts['available']} free)" for id_, facts in types.items()]
    return ", ".join(said) or "nothing"


def _called(facts: Mapping[str, Any]) -> str:
    return f" {facts['name']!r}" if facts["name"] else ""


def _check_numbers(state: State, target: Target) -> list[Refusal]:
    count, given = target.wish.get("count"), target.wish.get("uuids")
    if (count is None) == (given is None):
        return [_refusal(target, "it says neither count nor uuids, or both.", "Say one of them.")]
    if count is not None:
        if count < 0:
            return [_refusal(target, f"count {count} is below 0.", "Correct it.")]
        if count > common.MOST:
            return [_refusal(target, f"count {count} is above {common.MOST}.", "Correct it.")]
        return [] if state.machine_id else [_refusal(target, "this host has no /etc/machine-id to derive UUIDs from.", "Give uuids.")]
    wrong = [text for text in given or () if not _UUID.fullmatch(str(text).lower())]
    if wrong:
        return [_refusal(target, f"{wrong[0]!r} is no UUID.", "A UUID is 8-4-4-4-12 hexadecimal digits, as uuidgen prints it.")]
    return []


def _check_attributes(target: Target) -> list[Refusal]:
    for attribute in target.wish.get("attributes") or []:
        if not _ATTRIBUTE.fullmatch(attribute["name"]) or attribute["name"] in ("remove", "mdev_type", "driver"):
            return [_refusal(target, f"{attribute['name']!r} is no attribute of a mediated device.", "Correct its name.")]
    return []


def _names(state: State, target: Target, counted: int) -> tuple[list[str], int]:
    """The UUIDs of a wish, and how many of the parent's were derived so far."""
    if target.wish.get("uuids") is not None:
        return [text.lower() for text in target.wish["uuids"]], counted
    last = counted + target.wish["count"]
    base = _named_after(state, target.function.address)
    return [derived(state.machine_id, base, index) for index in range(counted, last)], last


def derived(machine_id: str, parent: str, index: int) -> str:
    """The UUID of a counted device: the same in each run, another one on each host (by a name: RFC 9562, 5.5)."""
    # Not at the top: most calls derive none (docs/dev/benchmarks.md).
    from uuid import NAMESPACE_URL, uuid5

    return str(uuid5(NAMESPACE_URL, f"https://github.com/iovirt/host/mdev {machine_id} {parent} {index}"))


def _named_after(state: State, address: str) -> str:
    """The name that the UUIDs are derived from stays when the card moves to another address."""
    entry = common.stored_entry(state, NAME, address)
    return str(entry["wish"].get("named_after") or address) if entry else address


def _refusal(target: Target, reason: str, way_out: str) -> Refusal:
    return Refusal(target.function.address, f"{target.label}: {reason}", f"{way_out} Nothing was changed.")


def _promised_twice(plan: Plan) -> list[Refusal]:
    """A UUID is of one device on the whole host (mdev_device_create, drivers/vfio/mdev/mdev_core.c)."""
    first: dict[str, str] = {}
    refusals = []
    for action in plan.actions:
        if action.kind == "mdev_start" and first.setdefault(action.args["uuid"], action.unit) != action.unit:
            reason = f"the UUID {action.args['uuid']} is wished on {first[action.args['uuid']]} as well."
            refusals.append(Refusal(action.unit, reason, "Give each parent UUIDs of its own; nothing was changed."))
    return refusals


# --- The plan of a parent ------------------------------------------------------------------------------------------


def _converge(state: State, targets: Sequence[Target], options: Options) -> Plan:
    result, first = Plan(), targets[0]
    parent = first.function.address
    if common.refuse_all(result, common.conflict(state, NAME, first) + _no_parent(state, first)):
        return result
    wanted, wrong = _wanted(state, targets)
    if common.refuse_all(result, wrong):
        return result
    entry = common.stored_entry(state, NAME, parent)
    known = _known(entry)
    whole = {name: _filled(state, parent, name, device, known) for name, device in wanted.items()}
    if common.refuse_all(result, _wrong_queues(state, first, whole, known) or _taken(state, first, whole, known)):
        return result
    result.warnings += _missing_queues(state, parent, whole)
    wish = {"devices": [{"uuid": name, **device} for name, device in whole.items()], "named_after": _named_after(state, parent)}
    result.warnings += common.overruled(state, NAME, parent, wish, options)
    origins = _origins(entry)
    dropped = [name for name in known if name not in whole]
    steps = Steps(state, parent)
    if whole and not _registered(state, parent):
        steps.given = _change_driver(first.function, ccw.DRIVER, ccw.DRIVER)
    for name in dropped:
        steps.give_back(name, origins.get(name, NOTHING))
    for name, device in whole.items():
        steps.converge(name, device, known.get(name), options.recorded_only)
    if common.refuse_all(result, steps.no_room(first)) or in_use(result, state, steps, dropped, options):
        return result
    origin = {"mdevs": {name: origins.get(name) or _as_found(state, parent, name) for name in whole}, **_driver_before(first.function, entry)}
    result.actions = common.declare(state, NAME, first.function, wish, origin, result.waived, whole=True)
    result.actions += steps.actions()
    return result


def _give_back(state: State, function: Function, options: Options) -> Plan:
    """As it was before the collection touched it. What it never made, it leaves alone."""
    result = Plan()
    entry = common.stored_entry(state, NAME, function.address)
    if entry is None:
        return result
    steps = Steps(state, function.address)
    for name in _known(entry):
        steps.give_back(name, _origins(entry).get(name, NOTHING))
    if not in_use(result, state, steps, list(_known(entry)), options):
        result.actions = [*steps.actions(), *_take_back(state, function, entry), *common.forget(state, NAME, function)]
    return result


def _registered(state: State, parent: str) -> bool:
    return parent in state.more[NAME]["parents"]


def _no_parent(state: State, target: Target) -> list[Refusal]:
    if _registered(state, target.function.address):
        return []
    if target.function.bus == sysfs.CSS:
        wrong = _no_driver(state, target.function.address) or ccw.against(state.more[NAME]["subchannels"][target.function.address])
        return [_refusal(target, *wrong)] if wrong else []
    others = ", ".join(state.more[NAME]["parents"]) or "none"
    reason = "it is no parent of mediated devices now: its driver has registered none (/sys/class/mdev_bus)."
    way_out = f"Load the driver that makes them, as the vendor's host driver; parents of this host: {others}."
    return [_refusal(target, reason, way_out)]


def _known(entry: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    """What is recorded of a parent: UUID -> device."""
    return {device["uuid"]: device for device in entry["wish"]["devices"]} if entry else {}


#: How a device was before the collection: not there, not defined.
NOTHING: Mapping[str, Any] = {"active": False, "defined": None}


def _origins(entry: Mapping[str, Any] | None) -> Mapping[str, Mapping[str, Any]]:
    found: Mapping[str, Mapping[str, Any]] = entry["origin"].get("mdevs", {}) if entry else {}
    return found


def _as_found(state: State, parent: str, name: str) -> dict[str, Any]:
    return {"active": name in state.more[NAME]["devices"], "defined": _definition(state, parent, name)}


def _definition(state: State, parent: str, name: str) -> dict[str, Any] | None:
    found: dict[str, Any] | None = state.more[NAME]["defined"].get(parent, {}).get(name)
    return found


def _no_driver(state: State, subchannel: str) -> tuple[str, str] | None:
    if state.more[NAME]["subchannels"][subchannel]["loaded"] or common.driver_exists(state, ccw.DRIVER):
        return None
    if ccw.DRIVER in state.loadable:
        return state.lacking[ccw.DRIVER]
    return f"the running kernel has no driver {ccw.DRIVER}, which subchannels need.", "Install the module (CONFIG_VFIO_CCW)."


def _types(state: State, parent: str) -> Mapping[str, Mapping[str, Any]]:
    found: Mapping[str, Mapping[str, Any]] = state.more[NAME]["parents"].get(parent, {})
    return found or (ccw.TYPES if parent in state.more[NAME].get("subchannels", {}) else {})


# --- The driver of a subchannel ------------------------------------------------------------------------------------


def _driver_before(function: Function, entry: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a subchannel had before the collection."""
    if function.bus != sysfs.CSS:
        return {}
    before = entry["origin"] if entry else {"driver": function.driver, "override": function.override}
    return {key: before.get(key) for key in ("driver", "override")}


def _take_back(state: State, function: Function, entry: Mapping[str, Any]) -> list[Action]:
    """Where it had vfio_ccw before the collection, or has another driver by now, it keeps that."""
    before = _driver_before(function, entry)
    driver = before.get("driver")
    ours = function.bus == sysfs.CSS and (function.driver == ccw.DRIVER or function.override == ccw.DRIVER)
    if not ours or driver == ccw.DRIVER:
        return []
    return [_change_driver(function, driver, before["override"])]


def _change_driver(function: Function, driver: str | None, override: str | None) -> Action:
    name = function.address
    device = f" (device {function.serial})" if function.serial else ""
    return Action(
        kind="give_subchannel",
        unit=name,
        text=f"give the subchannel {name}{device} to {driver or 'no driver'}" + (f", by driver_override {override}" if override else ""),
        args={"subchannel": name, "to": driver, "override": override, "from": function.driver, "from_override": function.override},
        before={"driver": function.driver, "driver_override": function.override},
        after={"driver": driver, "driver_override": override},
    )


def _filled(state: State, parent: str, name: str, wanted: _Wanted, known: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A device with all that it has: what was not said stays as it is declared, else as it is defined."""
    defined = _definition(state, parent, name) or {}
    had = known.get(name) or {"attributes": defined.get("attributes", []), "autostart": defined.get("autostart", True)}
    said = {"attributes": wanted.attributes, "autostart": wanted.autostart}
    pool = had.get("pool") if wanted.pool is None else wanted.pool
    found = {"type": wanted.type, **{key: had[key] if value is None else value for key, value in said.items()}}
    return {**found, "pool": pool} if pool else found


def _taken(state: State, target: Target, whole: Mapping[str, Any], known: Mapping[str, Any]) -> list[Refusal]:
    """What others have under a UUID that is wished."""
    return [
        _refusal(target, f"the UUID {name} {reason}", "Choose another UUID, or let its owner remove that device first.")
        for name, device in whole.items()
        if (reason := _taken_by(state, target.function.address, name, device, name in known))
    ]


def _taken_by(state: State, parent: str, name: str, wanted: Mapping[str, Any], ours: bool) -> str | None:
    found, defined = state.more[NAME]["devices"].get(name), _definition(state, parent, name)
    if found and found["parent"] != parent:
        return f"is of a {found['type']} on {found['parent']}."
    elsewhere = [other for other, devices in state.more[NAME]["defined"].items() if other != parent and name in devices]
    if elsewhere:
        return f"is defined on {elsewhere[0]} ({reading.DEFINED}/{elsewhere[0]}/{name})."
    if ours:
        return _was_there(state, parent, name, wanted) if found else None
    if found and found["type"] != wanted["type"]:
        return f"is of a {found['type']}, which the collection did not make."
    if found and _other_attributes(found, wanted["attributes"], (defined or {}).get("attributes", [])):
        return "is of a device that the collection did not make, with other attributes or some that nobody knows."
    if defined and defined.get("broken"):
        return f"has a definition that mdevctl would not have written ({reading.DEFINED}/{parent}/{name}), and neither did the collection."
    if defined and defined.get("type") != wanted["type"]:
        return f"is defined with the type {defined.get('type')}, and the collection did not do that."
    return None


def _was_there(state: State, parent: str, name: str, wanted: Mapping[str, Any]) -> str | None:
    """What was declared as somebody else had it is not made anew for another wish."""
    entry, found = common.stored_entry(state, NAME, parent), state.more[NAME]["devices"][name]
    if not _origins(entry).get(name, NOTHING)["active"]:
        return None
    if found["type"] != wanted["type"]:
        return f"is of a {found['type']} that was there before the collection."
    if _other_attributes(found, wanted["attributes"], _known(entry)[name]["attributes"]):
        return "is of a device that was there before the collection, with other attributes."
    return None


def _other_attributes(found: Mapping[str, Any], wanted: Sequence[Mapping[str, str]], known: Sequence[Mapping[str, str]]) -> bool:
    """Has a device that is there others than are wished? vfio-ap alone tells of its own; else those count that are known of it."""
    if found["matrix"] is not None:
        return bool(found["matrix"] != ap.wanted(wanted))
    return known != wanted


def _wrong_queues(state: State, target: Target, whole: Mapping[str, Any], known: Mapping[str, Any]) -> list[Refusal]:
    """Queues that the host keeps, or that a sibling has (vfio-ap)."""
    bus, parent = state.more[NAME]["ap"], target.function.address
    if parent != ap.PARENT or not bus:
        return []
    there = state.more[NAME]["devices"].items()
    # What a call gives back, or gives another matrix, it stops before it starts anything.
    taken = {name: found["matrix"] for name, found in there if found["matrix"] is not None and name not in whole and name not in known}
    for name, device in whole.items():
        try:
            matrix = ap.wanted(device["attributes"])
        except ValueError as error:
            return [_refusal(target, f"the kernel would not take the attribute {error}.", "Write numbers, as in '0x05' or '5'.")]
        wrong = ap.against(bus, matrix, taken)
        if wrong:
            return [_refusal(target, f"the mediated device {name}: {wrong[0]}", wrong[1])]
        taken[name] = matrix
    return []


def _missing_queues(state: State, parent: str, whole: Mapping[str, Any]) -> list[str]:
    """Queues that vfio_ap has not: a device may have them all the same, for when they come."""
    bus = state.more[NAME]["ap"]
    if parent != ap.PARENT or not bus:
        return []
    return [
        f"{parent}: the mediated device {name} is to have {', '.join(queues)}, which the driver {ap.DRIVER} does not have: until it has, "
        f"a guest gets nothing of adapter {adapter} (cards older than CEX4 it never takes)."
        for name, device in whole.items()
        for adapter, queues in ap.missing(bus, ap.wanted(device["attributes"])).items()
    ]


def in_use(result: Plan, state: State, steps: Steps, for_good: Sequence[str], options: Options) -> bool:
    """Whoever has a device open keeps the kernel from removing it, and the kernel lets the caller wait: nobody can allow
    that. A guest that does not run loses its device."""
    refusals, dangers = [], []
    for name in steps.stopped:
        for user in (state.users or {}).get(name, ()):
            if not user.idle:
                refusals.append(_held(steps.parent, name, user))
            elif name in for_good:
                reason = f"the mediated device {name} is of {user.who}."
                way_out = "Nothing was changed. Where this is meant, allow it by name: allow: [in_use]."
                dangers.append(Refusal(steps.parent, reason, way_out, "in_use"))
    return common.refuse_all(result, refusals) or common.guarded(result, dangers, options, steps.parent)


def _held(parent: str, name: str, user: User) -> Refusal:
    reason = f"the mediated device {name} is in use by {user.who}, and the kernel would let its removal wait for that, unkillably."
    return Refusal(parent, reason, "Stop who uses it first; nothing was changed.")


def _moved(found: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> bool:
    return bool(found and found["matrix"] is not None and found["matrix"] != ap.wanted(wanted["attributes"]))


class Steps:
    """The steps on one parent: first what goes, then the definitions, then what comes."""

    def __init__(self, state: State, parent: str) -> None:
        self.state, self.parent = state, parent
        self.keeper: bool = state.more[NAME]["keeper"]
        self.stopped: dict[str, Action] = {}
        #: What makes the parent one.
        self.given: Action | None = None
        self._defined: list[Action] = []
        self._started: list[tuple[str, Mapping[str, Any]]] = []

    def converge(self, name: str, wanted: Mapping[str, Any], known: Mapping[str, Any] | None, recorded_only: bool) -> None:
        found = self.state.more[NAME]["devices"].get(name)
        if self.keeper:
            self._define(name, {key: value for key, value in wanted.items() if key != "pool"})
        # Attributes are written when a device starts. What somebody took from a running one, or gave it, only vfio-ap shows.
        other = known is not None and (known["attributes"] != wanted["attributes"] or _moved(found, wanted))
        if found and (found["type"] != wanted["type"] or other):
            self._stop(name, known or wanted)
            self._started.append((name, wanted))
        elif not found and (wanted["autostart"] or not recorded_only):
            self._started.append((name, wanted))

    def give_back(self, name: str, origin: Mapping[str, Any]) -> None:
        found = self.state.more[NAME]["devices"].get(name)
        if found and found["parent"] == self.parent and not origin["active"]:
            self._stop(name, {"attributes": []})
        if self.keeper:
            self._define(name, origin["defined"])

    def _stop(self, name: str, had: Mapping[str, Any]) -> None:
        found = self.state.more[NAME]["devices"][name]
        attributes = _known(common.stored_entry(self.state, NAME, self.parent)).get(name, had)["attributes"]
        args = {"parent": self.parent, "uuid": name, "type": found["type"], "attributes": attributes, "keeper": self.keeper}
        self.stopped[name] = Action(
            kind="mdev_stop",
            unit=self.parent,
            text=f"remove the mediated device {name} ({found['type']})",
            args=args,
            before={f"mdev {name}": found["type"]},
            after={f"mdev {name}": None},
        )

    def _define(self, name: str, wanted: dict[str, Any] | None) -> None:
        now = _definition(self.state, self.parent, name)
        if now == wanted or (wanted or {}).get("broken"):
            return
        verb = "define" if now is None else "undefine" if wanted is None else "modify the definition of"
        text = f"let mdevctl {verb} the mediated device {name}{_described(wanted)}"
        self._defined.append(_definition_step(self.parent, self.parent, name, text, wanted, now))

    def no_room(self, target: Target) -> list[Refusal]:
        types = _types(self.state, self.parent)
        if self._room() != room.TOO_MANY:
            return []
        wished = ", ".join(f"{number} of {name}" for name, number in self._new().items())
        reason = f"there is no room for {wished} more: its types share what it has."
        return [_refusal(target, reason, f"It has {_offered(types)}.")]

    def _new(self) -> Counter[str]:
        return Counter(wanted["type"] for _name, wanted in self._started)

    def _room(self) -> str:
        gone = Counter(action.args["type"] for action in self.stopped.values())
        known = {name: number for name, number in self._new().items() if name in _types(self.state, self.parent)}
        return room.judge(_types(self.state, self.parent), known, gone)

    def actions(self) -> list[Action]:
        certainty = CERTAIN if self._room() == room.ENOUGH and not self.given else PREDICTED
        starts = [self._start(name, wanted, certainty) for name, wanted in self._started]
        return [*([self.given] if self.given else []), *self.stopped.values(), *self._defined, *starts]

    def _start(self, name: str, wanted: Mapping[str, Any], certainty: str) -> Action:
        stopped = self.stopped.get(name)
        return Action(
            kind="mdev_start",
            unit=self.parent,
            text=f"start the mediated device {name} ({wanted['type']})",
            certainty=certainty,
            args={
                "parent": self.parent,
                "uuid": name,
                "type": wanted["type"],
                "attributes": wanted["attributes"],
                "keeper": self.keeper,
            },
            before={f"mdev {name}": stopped.args["type"] if stopped else None},
            after={f"mdev {name}": wanted["type"]},
        )


def _definition_step(unit: str, parent: str, name: str, text: str, to: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> Action:
    path = f"{reading.DEFINED}/{parent}/{name}"
    args = {"parent": parent, "uuid": name, "to": to, "from": now}
    return Action("mdev_define", unit, text, args=args, before={path: now}, after={path: to})


def undefine(unit: str, parent: str, name: str, now: Mapping[str, Any]) -> Action:
    """Of a parent that is not there."""
    return _definition_step(unit, parent, name, f"let mdevctl undefine the mediated device {name}", None, now)


def _described(wanted: Mapping[str, Any] | None) -> str:
    if wanted is None:
        return ""
    attributes = "".join(f", {a['name']}={a['value']}" for a in wanted["attributes"])
    return f" ({wanted['type']}, {'auto' if wanted['autostart'] else 'manual'}{attributes})"


# --- What is told of them ------------------------------------------------------------------------------------------


def info(state: State) -> list[dict[str, Any]]:
    """All mediated devices that are there or defined, in the form of wishes: those that are alike in one wish. Those of a GPU that
    vgpu rules, vgpu_info tells: mdev would refuse them."""
    wishes: dict[str, dict[str, Any]] = {}
    ruled = state.stored.get("vgpu", {}).get("devices", {})
    for parent, name, facts in _all(state):
        function = state.functions.get(parent)
        if parent in ruled or (function and function.physfn in ruled):
            continue
        wish = {"match": {"parent": [parent]}, **facts}
        wishes.setdefault(json.dumps(wish, sort_keys=True), {**wish, "uuids": []})["uuids"].append(name)
    return list(wishes.values())


def _all(state: State) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Parent, UUID and what a wish says of it. Attributes are as declared or defined: from a device only those of vfio-ap can be read."""
    more = state.more[NAME]
    pairs = {(found["parent"], name) for name, found in more["devices"].items()}
    pairs |= {(parent, name) for parent, devices in more["defined"].items() for name in devices if parent in more["parents"]}
    for parent, name in sorted(pairs):
        known = _known(common.stored_entry(state, NAME, parent)).get(name) or _definition(state, parent, name) or {}
        found = more["devices"].get(name, {})
        if found.get("matrix") is not None and "attributes" not in known:
            known = {**known, "attributes": ap.attributes(found["matrix"])}
        if not found and known.get("type") is None:
            continue
        facts = {"type": found.get("type") or known["type"]}
        yield parent, name, {**facts, **{key: known[key] for key in ("attributes", "autostart", "pool") if key in known}}


def _of_vgpu(state: State) -> Mapping[str, str]:
    """UUID -> GPU, of those that the resource vgpu has declared."""
    if not state.stored.get("vgpu", {}).get("devices"):
        return {}
    from ..vgpu import shares

    return shares.mdevs(state)


def told_of(state: State) -> list[str]:
    """All parents of the host."""
    return [name for name in state.more[NAME]["parents"] if name in state.functions]


def facts(state: State, function: Function) -> dict[str, Any]:
    """What stands beside the wishes: what a parent offers, and each of its devices on both sides of a reboot."""
    parent, more = function.address, state.more[NAME]
    entry = common.stored_entry(state, NAME, parent)
    types = [{"type": id_, **said} for id_, said in _types(state, parent).items()]
    mdevs = [_device_facts(state, parent, name, _known(entry), _of_vgpu(state)) for p, name, _wish in _all(state) if p == parent]
    return {
        "driver": function.driver,
        "mdevctl": more["keeper"],
        "declared": entry is not None or any(device["declared"] for device in mdevs),
        "types": types,
        "mdevs": mdevs,
    }


def _device_facts(state: State, parent: str, name: str, known: Mapping[str, Mapping[str, Any]], of_vgpu: Mapping[str, str]) -> dict[str, Any]:
    found, defined = state.more[NAME]["devices"].get(name), _definition(state, parent, name)
    return {
        "uuid": name,
        "active": found is not None,
        "type": found["type"] if found else (known.get(name) or defined or {}).get("type"),
        "iommu_group": found["group"] if found else None,
        "queues": ap.names(found["matrix"]) if found and found["matrix"] is not None else None,
        "defined": defined is not None,
        "declared": name in known or name in of_vgpu,
        # vgpu has all of its own made again by the replay.
        "next_boot": name in of_vgpu or bool((known.get(name) or defined or {}).get("autostart")),
        "pool": known.get(name, {}).get("pool"),
        "holders": holders(state, name),
    }


def holders(state: State, uuid: str) -> list[str]:
    """Guests that have a device or name it, and processes that hold it open."""
    return [user.who for user in (state.users or {}).get(uuid, ())]


def of_host(state: State) -> list[dict[str, Any]]:
    """The mediated devices that are there, and whose they are."""
    found = state.more[NAME]["devices"]
    return [{"uuid": uuid, "parent": device["parent"], "type": device["type"], "holders": holders(state, uuid)} for uuid, device in sorted(found.items())]


def now(state: State, address: str) -> dict[str, Any]:
    """What the operator's command shows of a parent."""
    found = state.more.get(NAME, {}).get("devices", {})
    return {"mdevs": {name: device["type"] for name, device in sorted(found.items()) if device["parent"] == address}}


def in_short(wish: Mapping[str, Any]) -> str:
    """'2 mtty-2, 1 mtty-1'."""
    kinds = Counter(wish["mdevs"].values() if "mdevs" in wish else (device["type"] for device in wish["devices"]))
    return ", ".join(f"{number} {name}" for name, number in sorted(kinds.items())) or "no mdev"
