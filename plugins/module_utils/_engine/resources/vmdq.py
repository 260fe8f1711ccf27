# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""VMDq: queues of a port, and stations (macvlan, macvtap) to which its driver gives a pool of them in hardware.

Rules of the kernel: drivers/net/macvlan.c. The port's feature has to be on before a station goes up; a station asks for a pool when it goes
up and at no other time; one that gets none is forwarded in software, without a word; and a pool filters for the address that its
station had when it went up. So a station that shall be in hardware is looked up in the port's own tables (vmdq/reading.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .. import guards, link, store
from ..host import Host
from ..model import CERTAIN, PREDICTED, Action, Function, Plan, Refusal, State
from ..vmdq import check, pools, reading
from ..vmdq import port as ports
from ..vmdq.port import Port
from ..vmdq.steps import is_other
from . import common
from .common import Options, Target

NAME = ports.NAME

#: Keys of a wish that say whom it is about.
_NOT_OF_PORT = ("match", "expect", "state")


def needs(wishes: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """Drivers that the wishes name: none."""
    return frozenset()


def read_more(host: Host, state: State, wishes: Sequence[Mapping[str, Any]], options: Options) -> State:
    """What ethtool and bridge say of the ports that the wishes name, as far as each wish needs it."""
    found, _wrong = common.targets(state, NAME, wishes, options)
    return reading.of_ports(host, state, {target.function.address: _parts(state, target) for target in found})


def _parts(state: State, target: Target) -> frozenset[str]:
    entry = common.stored_entry(state, NAME, target.function.address)
    touched = set(entry.get("touched", ())) if entry else set()
    wish = {} if target.absent else target.wish
    asked = {
        "stations": wish.get("stations") or wish.get("offload") is not None or touched - {"queues", "pools"},
        "queues": wish.get("queues") or "queues" in touched,
        "pools": wish.get("pools") is not None or "pools" in touched,
    }
    return frozenset(part for part, needed in asked.items() if needed)


def plan(state: State, wishes: Sequence[Mapping[str, Any]], options: Options) -> Plan:
    """What makes the wishes true on this host."""
    result = Plan()
    found, result.refusals = common.targets(state, NAME, wishes, options)
    taken: list[Port] = []
    parameter: dict[str, int | None] = {}
    given: frozenset[str] = frozenset()
    for target in _givers_first(state, found):
        entry = common.stored_entry(state, NAME, target.function.address)
        if target.absent:
            result.extend(_give_back(state, target, entry, options))
            if entry and "pools" in entry.get("touched", ()):
                parameter[target.function.address] = None
        else:
            result.extend(_take(state, target, entry, options, taken, given))
            if target.wish.get("pools") is not None:
                parameter[target.function.address] = target.wish["pools"]
        given |= _given_up(state, target)
    result.refusals += check.together(taken)
    if parameter and not result.refusals:
        result.extend(pools.plan_parameter(state, parameter))
    return result


def _given_up(state: State, target: Target) -> frozenset[str]:
    """Declared stations that go with this wish."""
    ours = ports.ours(common.stored_entry(state, NAME, target.function.address))
    stay = ours if target.wish.get("stations") is None else [station["name"] for station in target.wish["stations"]]
    return frozenset(ours) - frozenset([] if target.absent else stay)


def _givers_first(state: State, found: Sequence[Target]) -> list[Target]:
    """A station, or its address, goes from one port to another within a call: those that give stations up have their turn first."""
    return sorted(found, key=lambda target: not _given_up(state, target))


# --- Reports ---------------------------------------------------------------------------------------------------------


def info(state: State) -> list[dict[str, Any]]:
    """Ports with stations, and all that the collection owns, in the form of wishes."""
    found = []
    for function in state.functions.values():
        netdev = ports.netdev_of(state, function)
        entry = common.stored_entry(state, NAME, function.address)
        here = ports.stations_on(state, netdev.name) if netdev else {}
        if entry is None and not here:
            continue
        facts = ports.facts_of(state, function.address)
        names = ports.ours(entry) if entry else list(here)
        item: dict[str, Any] = {"match": {"address": [function.address]}}
        if "on" in facts.get("features", {}):
            item["offload"] = facts["features"]["on"]
        if facts.get("queues", {}).get("now"):
            item["queues"] = dict(facts["queues"]["now"])
        item["stations"] = [{"name": name, **ports.as_is(here[name])} for name in names if name in here]
        found.append(item)
    return found


def facts(state: State, function: Function) -> dict[str, Any]:
    """What stands beside a wish and is none."""
    netdev = ports.netdev_of(state, function)
    return {
        "driver": function.driver,
        "declared": common.stored_entry(state, NAME, function.address) is not None,
        "netdev": netdev.name if netdev else None,
        **_of_port(state, function),
        "parameter": pools.as_dict(state, function),
    }


def of_host(state: State, function: Function) -> dict[str, Any] | None:
    """Can VMDq be had on this port, which way, how many pools, and who has them? None for what is no port."""
    if ports.netdev_of(state, function) is None or function.physfn:
        return None
    return {"ways": _ways(state, function), **_of_port(state, function)}


def _ways(state: State, function: Function) -> list[str]:
    facts = ports.facts_of(state, function.address)
    features = facts.get("features", {})
    ways = [reading.FEATURE] if features.get("on") or features.get("fixed") is False else []
    known = [m.known or frozenset(m.running) for m in (facts.get("modules") or {}).values()]
    return ways + ([f"module parameter {reading.PARAMETER}"] if any(reading.PARAMETER in names for names in known) else [])


def _of_port(state: State, function: Function) -> dict[str, Any]:
    netdev = ports.netdev_of(state, function)
    facts, vfs = ports.facts_of(state, function.address), pools.vfs_of(function)
    return {
        "offload": facts.get("features", {}).get("on"),
        "offload_fixed": facts.get("features", {}).get("fixed"),
        "pools": pools.capacity(state, function) if _ways(state, function) else 0,
        "pools_used": facts.get("pools", 0) + vfs,
        "pools_with_vfs": pools.of_driver(function).beside_vfs is not None,
        "holders": (ports.holders(state, function, netdev.name) if netdev else []) + ([f"{vfs} VF{'' if vfs == 1 else 's'}"] if vfs else []),
        "max_queues": dict(facts.get("queues", {}).get("max", {})),
        "stations": _proof(state, function),
    }


def _proof(state: State, function: Function) -> list[dict[str, Any]]:
    netdev = ports.netdev_of(state, function)
    inside = ports.in_hardware(state, function.address, netdev.name) if netdev else {}
    return [{"name": name, "offloaded": yes, **ports.as_is(state.netdevs[name])} for name, yes in inside.items()]


def declared_stations(state: State, function: Function) -> list[dict[str, Any]]:
    """Those that are declared, as they are."""
    names = ports.ours(common.stored_entry(state, NAME, function.address))
    return [station for station in _proof(state, function) if station["name"] in names]


def proof(state: State) -> list[dict[str, Any]]:
    """Of each station of the ports that the call was about: is it in hardware?"""
    about = state.more.get(NAME, {})
    return [
        {"device": address, "name": station["name"], "offloaded": station["offloaded"]}
        for address in about
        for station in _proof(state, state.functions[address])
    ]


def everything(host: Host, state: State) -> State:
    """All that can be read of all ports: for reports only, as it costs processes a port."""
    whole = [f.address for f in state.functions.values() if ports.netdev_of(state, f) and not f.physfn]
    return reading.of_ports(host, state, {address: frozenset(("stations", "queues", "pools")) for address in whole})


# --- Taking ----------------------------------------------------------------------------------------------------------


def _take(
    state: State, target: Target, entry: Mapping[str, Any] | None, options: Options, taken: list[Port], given: frozenset[str]
) -> Plan:
    result = Plan()
    if common.refuse_all(result, common.conflict(state, NAME, target)):
        return result
    netdev = ports.netdev_of(state, target.function)
    if netdev is None:
        result.refusals.append(_no_port(target))
        return result
    wish = {key: value for key, value in target.wish.items() if key not in _NOT_OF_PORT and value is not None}
    if entry and "stations" not in wish and ports.ours(entry):
        # Unset is untouched: what an earlier call, or another role, declared stays, under the terms that it was declared with.
        old = entry["wish"]
        wish.update({"stations": old["stations"], "require_offload": old.get("require_offload")})
        wish = {key: value for key, value in wish.items() if value is not None}
    port = Port(state, target.function, netdev, options, target.label, wish, entry, given)
    if common.refuse_all(result, check.check(port)):
        return result
    taken.append(port)
    stored = _stored(port)
    if common.refuse_all(result, common.outdated(state, NAME, target, stored)):
        return result
    result.warnings += common.overruled(state, NAME, port.pf.address, stored, options)
    steps = _converge(port)
    origin, touched = _origin(port)
    result.actions = common.declare(state, NAME, port.pf, stored, origin, steps.waived, touched)
    result.extend(steps)
    return result


def _no_port(target: Target) -> Refusal:
    reason = f"{target.label}: it has no network device now (driver {target.function.driver or 'none'})."
    return Refusal(target.function.address, reason, "Give it its network driver, or narrow the selector. Nothing was changed.")


def _stored(port: Port) -> dict[str, Any]:
    """The wish as it is recorded: without what is unset."""
    wish = dict(port.wish)
    if "stations" in wish:
        wish["stations"] = [{key: value for key, value in station.items() if value is not None} for station in wish["stations"]]
    if "queues" in wish:
        wish["queues"] = {kind: number for kind, number in wish["queues"].items() if number is not None}
    return wish


def _origin(port: Port) -> tuple[dict[str, Any], list[str]]:
    """How it was before it was first named, and all that was ever named. A station that was not there before us has no origin."""
    old = dict(port.entry["origin"]) if port.entry else {}
    touched = set(port.entry.get("touched", ())) if port.entry else set()
    stations = ports.wished_stations(port)
    here = ports.stations_on(port.state, port.netdev.name)
    if stations:
        touched.add("stations")
    if port.wish.get("offload") is not None or (port.requires and ports.hardware_wished(stations.values())):
        touched.add("offload")
        old.setdefault("offload", bool(port.facts.get("features", {}).get("on")))
    queues = {kind for kind, number in (port.wish.get("queues") or {}).items() if number is not None}
    if queues:
        touched.add("queues")
        now = port.facts["queues"]["now"]
        old["queues"] = {**{kind: now[kind] for kind in sorted(queues) if kind in now}, **(old.get("queues") or {})}
    if port.wish.get("pools") is not None:
        touched.add("pools")
    known, before = set(ports.ours(port.entry)), old.get("stations") or {}
    kept = {name: before[name] for name in stations if name in known and name in before}
    kept.update({name: ports.as_is(here[name]) for name in stations if name not in known and name in here})
    return {**old, "stations": kept}, sorted(touched)


def _converge(port: Port) -> Plan:
    """Stations that go free their pools first; the feature comes before any station goes up; then one station after the other."""
    result = Plan()
    stations = ports.wished_stations(port)
    origin = port.entry["origin"] if port.entry else {}
    for name in ports.ours(port.entry):
        if name not in stations:
            _return_station(result, port, name, (origin.get("stations") or {}).get(name))
    _plan_queues(result, port, {kind: n for kind, n in (port.wish.get("queues") or {}).items() if n is not None})
    on = bool(port.facts.get("features", {}).get("on"))
    needed = port.requires and bool(ports.hardware_wished(stations.values()))
    wanted = port.wish.get("offload", needed or on)
    if wanted and not on:
        result.actions.append(_set_offload(port, True))
    _plan_stations(result, port, stations, bool(wanted))
    if on and not wanted:
        _plan_off(result, port)
    return result


def _plan_queues(result: Plan, port: Port, wanted: Mapping[str, int]) -> None:
    now = port.facts.get("queues", {}).get("now", {})
    todo = {kind: number for kind, number in wanted.items() if now.get(kind) != number}
    if not todo:
        return
    doing = "changing its numbers of queues"
    here = ports.stations_on(port.state, port.netdev.name)
    if common.guarded(result, guards.before_relayout(port.state, port.pf, doing, here), port.options, port.pf.address):
        return
    was = {kind: now[kind] for kind in todo if kind in now}
    said = ", ".join(f"{kind} from {was.get(kind, 'none')} to {number}" for kind, number in todo.items())
    result.actions.append(
        Action(
            kind="set_queues",
            unit=port.pf.address,
            text=f"set the numbers of queues of {port.netdev.name}: {said}",
            args={"pf": port.pf.address, "netdev": port.netdev.name, "to": todo, "from": was},
            before={f"{kind} queues": was.get(kind) for kind in todo},
            after={f"{kind} queues": number for kind, number in todo.items()},
        )
    )


def _set_offload(port: Port, on: bool) -> Action:
    inside = ports.in_hardware(port.state, port.pf.address, port.netdev.name)
    word = "on" if on else "off"
    return Action(
        kind="set_offload",
        unit=port.pf.address,
        text=f"switch {reading.FEATURE} of {port.netdev.name} {word}",
        args={
            "pf": port.pf.address,
            "netdev": port.netdev.name,
            "to": on,
            "from": not on,
            "stations": [name for name, yes in inside.items() if yes],
        },
        before={reading.FEATURE: "off" if on else "on"},
        after={reading.FEATURE: word},
    )


def _plan_off(result: Plan, port: Port) -> None:
    """All that others have in hardware would fall back to software."""
    others = ports.holders(port.state, port.pf, port.netdev.name, [])
    if others:
        result.warnings.append(f"{port.pf.address}: without the feature these are forwarded in software from now on: {', '.join(others)}.")
    doing = f"switching {reading.FEATURE} off"
    used = port.facts.get("pools", 0)
    here = ports.stations_on(port.state, port.netdev.name)
    dangers = guards.before_relayout(port.state, port.pf, doing, here) if used else []
    if not common.guarded(result, dangers, port.options, port.pf.address):
        result.actions.append(_set_offload(port, False))


def _plan_stations(result: Plan, port: Port, stations: Mapping[str, Mapping[str, Any]], offload: bool) -> None:
    inside = ports.in_hardware(port.state, port.pf.address, port.netdev.name)
    on = bool(port.facts.get("features", {}).get("on"))
    here = ports.stations_on(port.state, port.netdev.name)
    going = {name for name in ports.ours(port.entry) if name not in stations}
    # Those that show by themselves; how many are in other network namespaces may change meanwhile.
    claimed = sum(yes for name, yes in inside.items() if name not in going)
    grown = claimed
    for name in ports.in_order(stations):
        wanted = stations[name]
        must = bool(port.requires and offload and ports.hardware_wished([wanted]))
        was = ports.as_is(here[name]) if name in here else None
        place = ports.elsewhere(port.state, port.pf.address, name) if was is None else None
        if place:
            result.warnings.append(f"{port.pf.address}: the station {name} was left alone, as it is in another network namespace: {place}.")
            continue
        again = bool(must and was and was["up"] and not (inside.get(name) and on))
        if must and not inside.get(name):
            claimed += 1
            grown = max(grown, claimed)
        elif inside.get(name) and not must and not wanted["up"]:
            claimed -= 1
        if was == wanted and not again:
            continue
        action = _station(port, name, wanted, again, must, claimed)
        if _guarded(result, port, action):
            return
        result.actions.append(action)
    hidden = port.facts.get("pools", 0) - sum(inside.values())
    _guard_layout(result, port, sum(inside.values()) + hidden, grown + hidden)


def _guard_layout(result: Plan, port: Port, before: int, after: int) -> None:
    """More pools than the present layout has."""
    if not pools.of_driver(port.pf).resets:
        return
    room = [0, *(layout.stations for layout in pools.layouts_of(port.pf, pools.vfs_of(port.pf)))]
    if any(before <= limit < after for limit in room):
        doing = "laying out its queues for stations"
        here = ports.stations_on(port.state, port.netdev.name)
        common.guarded(result, guards.before_relayout(port.state, port.pf, doing, here), port.options, port.pf.address)


def _guarded(result: Plan, port: Port, action: Action) -> bool:
    if not action.args["takes"]:
        return False
    dangers = guards.before_station(port.state, port.pf, action.args["name"])
    return common.guarded(result, dangers, port.options, port.pf.address)


def _station(port: Port, name: str, wanted: Mapping[str, Any] | None, again: bool, must: bool, pools_then: int) -> Action:
    here = ports.stations_on(port.state, port.netdev.name)
    was = ports.as_is(here[name]) if name in here else None
    inside = ports.in_hardware(port.state, port.pf.address, port.netdev.name).get(name, False)
    new = wanted is not None and (was is None or is_other(was, wanted))
    takes = was is not None and (
        wanted is None or new or again or (was["up"] and (wanted["mac"] != was["mac"] or not wanted["up"]))
    )
    known = pools.capacity(port.state, port.pf) is not None
    holders = ports.holders(port.state, port.pf, port.netdev.name, [name])
    return Action(
        kind="set_station",
        unit=port.pf.address,
        text=_said(port, name, was, wanted, again, must),
        certainty=CERTAIN if known or not must else PREDICTED,
        args={
            "pf": port.pf.address,
            "netdev": port.netdev.name,
            "name": name,
            "to": dict(wanted) if wanted else None,
            "was": was,
            "again": again,
            "offload": must,
            "was_offloaded": inside,
            "pools": pools_then,
            "holders": holders,
            "takes": takes,
        },
        before={f"station {name}": {**was, "offloaded": inside} if was else None},
        after={f"station {name}": {**wanted, "offloaded": must or (inside and not again)} if wanted else None},
    )


def _said(port: Port, name: str, was: Mapping[str, Any] | None, wanted: Mapping[str, Any] | None, again: bool, must: bool) -> str:
    if wanted is None:
        return f"take the station {name} away"
    where = ", in hardware" if must else ""
    if was is None:
        up = "up" if wanted["up"] else "down"
        return f"make the station {name} on {port.netdev.name}: {wanted['kind']}, {wanted['mode']}, {wanted['mac']}, mtu {wanted['mtu']}, {up}{where}"
    changes = [f"{key} from {link.shown(was[key])} to {link.shown(value)}" for key, value in wanted.items() if was[key] != value]
    if is_other(was, wanted):
        return f"make the station {name} anew: {', '.join(changes)}{where}"
    changes += ["down and up, so that it gets a pool"] if again else []
    return f"change the station {name}: {', '.join(changes)}"


# --- Giving back -----------------------------------------------------------------------------------------------------


def _return_station(result: Plan, port: Port, name: str, before: Mapping[str, Any] | None) -> None:
    """As it was before the collection touched it: gone, where it made it."""
    here = ports.stations_on(port.state, port.netdev.name)
    was = ports.as_is(here[name]) if name in here else None
    place = ports.elsewhere(port.state, port.pf.address, name) if was is None else None
    if place:
        result.warnings.append(f"{port.pf.address}: the station {name} stays, as it is in another network namespace: {place}.")
    elif was is None and name in port.state.netdevs:
        # An adopted one went, and its name is somebody else's.
        result.warnings.append(f"{port.pf.address}: the station {name} is gone, and something else has its name, which was left alone.")
    elif was != before:
        action = _station(port, name, before, False, False, 0)
        if not _guarded(result, port, action):
            result.actions.append(action)


def _give_back(state: State, target: Target, entry: Mapping[str, Any] | None, options: Options) -> Plan:
    """As it was before the collection touched it. What it never touched, it leaves alone."""
    result = Plan()
    if entry is None:
        return result
    netdev = ports.netdev_of(state, target.function)
    if netdev is not None and store.not_the_same(state, target.function.address, entry["identity"]) is None:
        port = Port(state, target.function, netdev, options, target.label, {}, entry)
        origin = entry["origin"]
        for name in ports.ours(entry):
            _return_station(result, port, name, (origin.get("stations") or {}).get(name))
        if not result.refusals:
            _return_offload(result, port, origin)
            _return_queues(result, port, origin.get("queues") or {})
        if result.refusals:
            return result
    # Without its driver the port has no stations, and the rest is the driver's own at its next start.
    result.actions += common.forget(state, NAME, target.function)
    return result


def _return_queues(result: Plan, port: Port, before: Mapping[str, int]) -> None:
    """After the feature: ixgbe keeps the few queues of its pools until that is off, and where others need it on there is no room."""
    off = any(action.kind == "set_offload" and not action.args["to"] for action in result.actions)
    most = port.facts.get("queues", {}).get("max", {})
    crowded = {kind for kind, number in before.items() if not off and number > most.get(kind, number)}
    for kind in sorted(crowded):
        result.warnings.append(
            f"{port.pf.address}: its {kind} queues stay as they are: {port.netdev.name} has room for {most[kind]} now, "
            f"and had {before[kind]}."
        )
    back = {kind: number for kind, number in before.items() if kind not in crowded}
    others = ports.holders(port.state, port.pf, port.netdev.name, ports.ours(port.entry))
    if others and pools.of_driver(port.pf).forgets and any(port.facts.get("queues", {}).get("now", {}).get(kind) != n for kind, n in back.items()):
        result.warnings.append(
            f"{port.pf.address}: its queues stay as they are: {port.pf.driver} would forget the filters of the stations of others ({', '.join(others)})."
        )
        return
    _plan_queues(result, port, back)


def _return_offload(result: Plan, port: Port, origin: Mapping[str, Any]) -> None:
    on = bool(port.facts.get("features", {}).get("on"))
    if origin.get("offload") in (None, on) or port.facts.get("features", {}).get("fixed"):
        return
    others = ports.holders(port.state, port.pf, port.netdev.name, ports.ours(port.entry))
    if on and others:
        result.warnings.append(f"{port.pf.address}: {reading.FEATURE} stays on: {', '.join(others)} would fall back to software.")
    else:
        result.actions.append(_set_offload(port, origin["offload"]))


def for_guests(entry: Mapping[str, Any]) -> list[str]:
    """The declared stations that nobody on the host configures: a macvtap is a guest's, or some other program's that opens it."""
    return [station["name"] for station in entry["wish"].get("stations") or [] if station.get("kind") == "macvtap"]


# --- Beside VFs ------------------------------------------------------------------------------------------------------


def beside_vfs(state: State, sriov: Mapping[str, Any], vmdq: Mapping[str, Any], planned: Sequence[Action]) -> list[Refusal]:
    """The pools that VFs and stations draw on together, of ports that a call does something to: records as they will be."""
    refusals = []
    for address in {action.unit for action in planned} & set(vmdq):
        function = state.functions.get(address)
        if function is None:
            continue
        count = sriov[address]["wish"].get("vf_count") if address in sriov else None
        vfs = len(function.sriov.vfs) if count is None and function.sriov else count or 0
        wish = vmdq[address]["wish"]
        must = [{"up": True, "mode": "bridge", **station} for station in wish.get("stations") or []]
        stations = len(ports.hardware_wished(must)) if wish.get("require_offload") is not False else 0
        total = stations + _strangers(state, function, wish)
        found = pools.check_shared(state, address, total, vfs)
        found = found or pools.check_layout(state, address, wish.get("layout"), total if vfs else 0, vfs, NAME)
        refusals += found or _under_vfs(state, function, planned)
    return refusals


def _under_vfs(state: State, function: Function, planned: Sequence[Action]) -> list[Refusal]:
    """A number of VFs that the driver does not take, or its stations do not survive, while these are in hardware: VFs come before any station
    goes."""
    netdev = ports.netdev_of(state, function)
    counts = [a.args for a in planned if a.kind == "set_vf_count" and a.unit == function.address]
    # A call that is about VFs alone did not look where its stations are: those that were declared have a pool.
    here = ports.stations_on(state, netdev.name) if netdev else {}
    mine = [name for name in ports.ours(common.stored_entry(state, NAME, function.address)) if name in here and here[name].up]
    held = (ports.holders(state, function, netdev.name) if netdev else []) or [f"{here[name].kind} {name}" for name in mine]
    if not (netdev and counts and held):
        return []
    way_out = "Take stations away first (a call before), or lower vf_count; nothing was changed."
    if pools.of_driver(function).forgets and not (counts[0]["from"] and counts[0]["to"]):
        reason = (
            f"the first VF and the last reset {netdev.name}, and {function.driver} then forgets the filters of its stations ({', '.join(held)}), "
            "which the kernel goes on calling offloaded."
        )
        return [Refusal(function.address, reason, way_out)]
    now = max(ports.others(state, function, netdev.name), len(mine))
    return [replace(each, way_out=way_out) for each in pools.check_shared(state, function.address, now, counts[0]["to"])]


def _strangers(state: State, function: Function, wish: Mapping[str, Any]) -> int:
    """Stations in hardware that others made, as far as they are in this namespace."""
    netdev = ports.netdev_of(state, function)
    named = {station["name"] for station in wish.get("stations") or []}
    named |= set(ports.ours(common.stored_entry(state, NAME, function.address)))
    inside = ports.in_hardware(state, function.address, netdev.name) if netdev else {}
    return sum(yes for name, yes in inside.items() if name not in named)
