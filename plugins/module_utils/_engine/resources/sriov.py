# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""SR-IOV: how many virtual functions a physical function has, and which driver each of them gets.

Rules of the kernel: Documentation/PCI/pci-iov-howto.rst and drivers/pci/iov.c. A count changes only through zero
(EBUSY otherwise), and with it every VF is born anew: without driver_override and without attributes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .. import drivers, guards, store, sysfs
from ..host import Host
from ..model import PREDICTED, Action, Function, Plan, Refusal, Sriov, State
from ..sriov import attributes, binding, eswitch, firmware, msix, ranges, secondary, touched
from ..sriov.port import Port, bad, is_number
from . import common
from .common import Options, Target

NAME = "sriov"

#: Keys of a wish that say whom it is about or are taken apart by VF; all others are about the PF itself.
_NOT_OF_PF = ("match", "expect", "state", "vf_count", "vf_defaults", "vfs")

#: Parts with a `read_more(host, state, targets) -> State`.
_READING = (eswitch, secondary, firmware, msix)


def needs(wishes: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """The drivers that the wishes name, so that the reader looks whether they exist."""
    named = set()
    for wish in wishes:
        for part in [wish.get("vf_defaults") or {}, *(wish.get("vfs") or [])]:
            if part.get("driver") not in (None, "default"):
                named.add(part["driver"])
    return frozenset(named)


def read_more(host: Host, state: State, wishes: Sequence[Mapping[str, Any]], options: Options) -> State:
    """What the parts read by commands of their own, each for the devices whose wish needs it."""
    found, _wrong = common.targets(state, NAME, wishes, options)
    for part in _READING:
        state = part.read_more(host, state, found)
    return state


def plan(state: State, wishes: Sequence[Mapping[str, Any]], options: Options) -> Plan:
    """What makes the wishes true on this host."""
    result = Plan()
    found, result.refusals = common.targets(state, NAME, wishes, options)
    result.refusals += firmware.check_targets(state, found)
    staying, leaders = firmware.staying(state, found), firmware.leaders(state, found)
    ports: list[Port] = []
    for target in found:
        leads = target.function.address in leaders
        if target.absent:
            result.extend(_give_back(state, target, options, staying, leads))
        else:
            result.extend(_take(state, target, options, leads, ports))
    result.refusals += attributes.check_together(state, ports, [t.function.address for t in found if t.absent])
    result.predicted = _pools_to_come(ports)
    return result


def _pools_to_come(ports: Iterable[Port]) -> dict[str, Any]:
    """Pool -> how many VFs that are not there yet this call brings it, now or by the next boot."""
    pools = Counter(vf["pool"] for port in ports if port.born for vf in port.wished.values() if vf.get("pool"))
    return {"pools": dict(sorted(pools.items()))} if pools else {}


def info(state: State) -> list[dict[str, Any]]:
    """The SR-IOV devices of the host as they are, in the form of wishes."""
    return [
        {
            "match": {"address": [function.address]},
            "vf_count": len(function.sriov.vfs),
            **eswitch.info(state, function),
            "vfs": [
                {
                    "range": str(index),
                    **_vf_facts(state, vf),
                    **_attributes(state, function, index),
                    **secondary.facts_of(state, function.address, index),
                    **msix.facts_of(state, function.address, index),
                }
                for index, vf in function.sriov.vfs.items()
            ],
        }
        for function in state.functions.values()
        if function.sriov and (function.sriov.vfs or not drivers.is_vfio(function.driver))
    ]


def of_others(state: State) -> list[dict[str, Any]]:
    """What has to be read of VFs that nobody declared, so that all there is can be told of them, in the form of wishes: the mode of a switch that has
    representors, and what secondary controllers have."""
    found: list[dict[str, Any]] = []
    for function in state.functions.values():
        if function.sriov is None or not function.sriov.vfs or common.stored_entry(state, NAME, function.address):
            continue
        match = {"address": [function.address]}
        if function.representors:
            found.append({"match": match, "eswitch": {"mode": eswitch.SWITCHDEV}})
        elif function.driver in drivers.NEEDS_RESOURCES:
            found.append({"match": match, "vf_defaults": {"online": True}})
    return found


def facts(state: State, function: Function) -> dict[str, Any]:
    """What stands beside a wish and is none."""
    sriov = function.sriov or Sriov(0)
    return {
        "driver": function.driver,
        "native_driver": function.native,
        "total_vfs": sriov.total,
        "drivers_autoprobe": sriov.autoprobe,
        "vfio_driver": common.best_vfio(state, f"{function.address}/vf"),
        "declared": common.stored_entry(state, NAME, function.address) is not None,
        "representors": eswitch.representors(state, function),
        "vfs": [_vf_beside(state, index, address) for index, address in sriov.vfs.items()],
    }


def _vf_beside(state: State, index: int, address: str) -> dict[str, Any]:
    vf = state.functions.get(address)
    return {
        "index": index,
        "address": address,
        "driver": vf.driver if vf else None,
        "iommu_group": vf.group if vf else None,
        "netdevs": list(vf.netdevs) if vf else [],
    }


def _vf_facts(state: State, address: str) -> dict[str, Any]:
    vf = state.functions.get(address)
    if sysfs.is_name_of_ours(address):
        return {}
    held = vf.driver if vf and drivers.is_vfio(vf.driver) else None
    if vf and not vf.driver and not vf.override:
        # Nothing has it: `default` would load its own driver.
        return {}
    return {"driver": (vf.override or held or "default") if vf else "default"}


def _attributes(state: State, pf: Function, index: int) -> dict[str, Any]:
    sriov = pf.sriov or Sriov(0)
    return attributes.facts(Port(state, pf, sriov, Options(), NAME, count=len(sriov.vfs)), index)


# --- Checking a wish against its device ----------------------------------------------------------------------------


def _check_pf(state: State, target: Target) -> list[Refusal]:
    """Can this function have VFs at all, and as many?"""
    function, wish = target.function, target.wish
    coming = firmware.coming(state, function, wish)
    if function.physfn or (function.sriov is None and not firmware.wished(wish)):
        why = "it is itself a VF." if function.physfn else "it has no SR-IOV capability (no sriov_totalvfs in sysfs)."
        return [bad(function.address, f"{target.label}: {why}", "Narrow the selector.")]
    sriov, count = function.sriov or Sriov(total=0), wish.get("vf_count")
    if count is not None and not is_number(count):
        return [bad(function.address, f"{target.label}: vf_count {count} is no number from 0.", "0 removes all VFs.")]
    if count is None or count == len(sriov.vfs):
        return []
    if count > max(sriov.total, coming or 0):
        return [_too_many(target, sriov, coming)]
    if count > sriov.total:
        # It waits for the firmware's next boot, and which driver there is then nobody knows now.
        return []
    return _check_pf_driver(state, function, target.label)


def _too_many(target: Target, sriov: Sriov, coming: int | None) -> Refusal:
    limit = f"sriov_totalvfs is {sriov.total}" + (f", from the next boot on {coming}" if coming is not None else "")
    reason = f"{target.label}: vf_count {target.wish['vf_count']} is more than it can have ({limit})."
    way_out = "Lower vf_count, or raise the limit in the device's firmware."
    if target.function.vendor in drivers.MSTCONFIG:
        way_out = "Lower vf_count, or raise firmware.vf_count."
    return bad(target.function.address, reason, way_out)


def _check_vf_netdevs(target: Target) -> list[Refusal]:
    word = target.wish.get("vf_netdevs")
    if word in (None, "unmanaged", "managed"):
        return []
    reason = f"{target.label}: vf_netdevs {word!r} is neither unmanaged nor managed."
    return [bad(target.function.address, reason, "Write one of the two, or leave it out.")]


def _check_pf_driver(state: State, function: Function, label: str) -> list[Refusal]:
    if function.driver is None:
        reason = f"{label}: it has no driver, and only a PF's driver can create VFs (the kernel answers ENOENT)."
        return [
            bad(
                function.address, reason, f"Load its driver{f' ({function.native})' if function.native else ''} first."
            )
        ]
    if function.driver in drivers.OWN_VF_TOOL:
        tool = drivers.OWN_VF_TOOL[function.driver]
        reason = f"{label}: VFs of the driver {function.driver} are made by its vendor's tool {tool}, never by a raw count."
        return [bad(function.address, reason, f"Use {tool}, and leave vf_count out.")]
    if function.driver in drivers.NO_SRIOV or (function.driver == "vfio-pci" and not state.vfio_sriov):
        reason = f"{label}: its driver {function.driver} does not do SR-IOV (the kernel answers ENOENT)."
        return [
            bad(function.address, reason, "Give it a driver that does; vfio-pci does with its option enable_sriov=1.")
        ]
    return []


# --- Planning ------------------------------------------------------------------------------------------------------


def _take(state: State, target: Target, options: Options, leads: bool, ports: list[Port]) -> Plan:
    result = Plan()
    refusals = common.conflict(state, NAME, target) + _check_pf(state, target) + _check_vf_netdevs(target)
    if common.refuse_all(result, refusals):
        return result
    # Without the capability it got here only because the wish speaks of its firmware, which may bring it.
    sriov = target.function.sriov or Sriov(total=0)
    wish_count = target.wish.get("vf_count")
    count = len(sriov.vfs) if wish_count is None else wish_count
    wished, refusals = ranges.wished_vfs(target.function.address, target.label, target.wish, count)
    if common.refuse_all(result, refusals):
        return result
    wished = binding.resolved(state, target.function, wished)
    of_pf = {key: value for key, value in _without_unset(target.wish).items() if key not in _NOT_OF_PF}
    coming = firmware.coming(state, target.function, target.wish) if count > sriov.total else None
    port = Port(
        state=state,
        pf=target.function,
        sriov=sriov,
        options=options,
        label=target.label,
        wish=of_pf,
        count=count,
        counted=wish_count is not None,
        leads=leads,
        coming=coming,
        wished=wished,
    )
    port = _kept(port)
    ports.append(port)
    if common.refuse_all(result, _check(port)):
        return result
    port = _cleared(port)
    wish = {**of_pf, "vf_count": _stored_count(port, wished), "vfs": {str(index): vf for index, vf in sorted(wished.items())}}
    if common.refuse_all(result, common.outdated(state, NAME, target, wish)):
        return result
    result.warnings += common.overruled(state, NAME, port.pf.address, wish, options)
    steps = _converge(port)
    names, origin = _recorded(port, wish)
    result.actions = common.declare(state, NAME, port.pf, wish, origin, steps.waived, names)
    result.extend(steps)
    return result


def _stored_count(port: Port, wished: Collection[int]) -> int | None:
    """The number of VFs that the replay makes: the wished one. Where the wish no longer names one, that of an earlier
    wish, if it is enough: the VFs that we made have to come back for what is wished of them."""
    old = port.state.stored[NAME]["devices"].get(port.pf.address)
    earlier: int | None = old["wish"].get("vf_count") if old else None
    if port.counted or earlier is None:
        return port.count if port.counted else None
    return earlier if all(index < earlier for index in wished) else port.count


def _recorded(port: Port, wish: Mapping[str, Any]) -> tuple[frozenset[str], dict[str, Any]]:
    """What was ever touched of the port, and how that was before it was first named."""
    old = port.state.stored[NAME]["devices"].get(port.pf.address)
    now, names = _origin(port), touched.of_wish(wish)
    if old is None:
        gone = _going(port, now)
        return names | gone, now
    before = {**now, **old["origin"]} if touched.COUNT in touched.by(old) else now
    names |= _going(port, before)
    origin = common.first_kept(now, touched.origin(now, old, names, port.sriov.vfs))
    return names | touched.by(old), origin


def _going(port: Port, origin: Mapping[str, Any]) -> frozenset[str]:
    """The VFs that were there before us and go with this count, with all that is set on them."""
    return frozenset(f"vf {index}" for index in port.sriov.vfs if port.count <= index < origin["vf_count"])


def _without_unset(value: Any) -> Any:
    """Without what is null, at any depth, and without what is empty for it: unset means untouched."""
    if isinstance(value, Mapping):
        kept = {key: _without_unset(part) for key, part in value.items() if part is not None}
        return {key: part for key, part in kept.items() if part not in ({}, [])}
    if isinstance(value, list):
        return [_without_unset(part) for part in value]
    return value


def _check(port: Port) -> list[Refusal]:
    """What is wrong with the wish, as each part sees it."""
    parts = (binding, attributes, eswitch, secondary, firmware, msix)
    return [refusal for part in parts for refusal in part.check(port)]


def _origin(port: Port) -> dict[str, Any]:
    """How it was before the collection touched it."""
    mine = {"driver": port.pf.native, "vf_count": len(port.sriov.vfs), "overrides": _overrides(port)}
    of_pf = eswitch.origin(port)
    found = {**mine, **attributes.origin(port), **secondary.origin(port), **firmware.origin(port), **msix.origin(port)}
    return {**found, "pf": of_pf} if of_pf else found


def _converge(port: Port) -> Plan:
    """The parts in their order: the switch as far as it is set without VFs, VFs are born, then get what belongs to
    them, then their drivers."""
    result = eswitch.guard(port)
    result.extend(firmware.plan(port))
    if result.refusals:
        return result
    now = len(port.sriov.vfs)
    if port.coming is not None:
        later = Plan(actions=[_recount(port, now, port.count)])
        later.extend(binding.plan(port))
        result.extend(firmware.waiting(later, port.pf, port.coming))
        return result
    result.extend(secondary.plan_primary(port))
    if port.cleared:
        result.extend(_plan_count(port, now, 0))
        now = 0
    result.extend(eswitch.before_count(port))
    if now != port.count:
        result.extend(_plan_count(port, now, port.count))
    elif port.sriov.interrupted:
        result.actions.append(_resume(port.pf))
    if result.refusals:
        return result
    # Rates need the link: it comes before them and goes after them.
    up = attributes.plan_up(port)
    goes_down = port.wish.get("up") is False
    if not goes_down:
        result.extend(up)
    result.extend(attributes.plan(port))
    result.extend(msix.plan(port))
    result.extend(eswitch.after_count(port))
    if _holds_probing(port):
        result.actions.append(_probe(port))
    result.extend(secondary.plan(port))
    result.extend(binding.plan(port))
    result.extend(attributes.plan_after(port))
    if goes_down:
        result.extend(up)
    return result


def _cleared(port: Port) -> Port:
    """With the VFs made anew where the switch needs that."""
    return _kept(replace(port, cleared=True)) if eswitch.clears_vfs(port) else port


def _kept(port: Port) -> Port:
    """With what the VFs of now were given and lose where they are made anew: unset means untouched."""
    if not port.born or port.coming is not None:
        return port
    drivers_of = binding.keep(port)
    wished = {index: dict(vf) for index, vf in port.wished.items()}
    for index, vf in secondary.keep(port).items():
        wished[index] = {**vf, **wished.get(index, {})}
    for index, driver in drivers_of.items():
        wished[index] = {**wished.get(index, {}), "driver": driver}
    return replace(port, wished=dict(sorted(wished.items())), kept=(*port.kept, *drivers_of))


def _plan_count(port: Port, now: int, count: int) -> Plan:
    result = Plan()
    if common.refuse_all(result, _would_hang(port.state, port.pf)):
        return result
    if common.guarded(result, guards.before_recount(port.state, port.pf, port.count), port.options, port.pf.address):
        return result
    result.actions.append(_recount(port, now, count))
    result.warnings += binding.lost(port) if now else []
    return result


def _resume(pf: Function) -> Action:
    return Action(
        kind="resume_probing",
        unit=pf.address,
        text="offer its VFs to their drivers again, which a run that was cut off had held back",
        args={"pf": pf.address},
        before={"probing of VFs": "held back by a run that was cut off"},
        after={"probing of VFs": "on"},
    )


def _would_hang(state: State, pf: Function) -> list[Refusal]:
    stuck = common.any_hanging(state)
    if not stuck:
        return []
    reason = f"its number of VFs cannot change while the kernel does not answer for {stuck}: that write would hang too."
    way_out = "Find who holds that device (a paused guest?) and let it go, then run again; nothing was changed."
    return [Refusal(pf.address, reason, way_out)]


def _recount(port: Port, now: int, count: int) -> Action:
    """From `now` VFs to `count`. Where the present ones go first, for a reason of the switch, this is planned twice."""
    pf, present = port.pf, port.sriov.vfs if now else {}
    vanishing = [_vf_name(port.state, index, address) for index, address in present.items()]
    text = f"set the number of VFs from {now} to {count}"
    if vanishing:
        text += f"; these vanish{' and are made anew' if count or port.count else ''}: {', '.join(vanishing)}"
    vfs = {index: port.state.functions.get(address) for index, address in present.items()}
    netdev = attributes.netdev_of(port)
    return Action(
        kind="set_vf_count",
        unit=pf.address,
        text=text,
        args={
            "pf": pf.address,
            "from": now,
            "to": count,
            "reserved": binding.reserved(port) if count else {},
            "autoprobe": port.sriov.autoprobe,
            "hold": _holds_probing(port) and bool(count),
            "previous": _overrides(port) if now else {},
            "netdev": netdev.name if netdev else "",
            "attributes": attributes.recorded(port) if now else {},
            "had_link": bool(netdev and netdev.carrier) and pf.driver not in drivers.RATES_WITHOUT_LINK,
            "msix": msix.vanishing(port) if now else {},
            "drivers": {str(index): vf.driver for index, vf in vfs.items() if vf},
            "held_back": secondary.held_back(port),
            "controllers": secondary.vanishing(port) if now else {},
        },
        before={"vf_count": now},
        after={"vf_count": count},
    )


def _holds_probing(port: Port) -> bool:
    """Have the new VFs to wait for something before a driver may take them?"""
    return attributes.holds_probing(port) or msix.holds_probing(port)


def _probe(port: Port) -> Action:
    return Action(
        kind="probe_vfs",
        unit=port.pf.address,
        text="let drivers take the new VFs",
        certainty=PREDICTED,
        args={
            "pf": port.pf.address,
            "count": port.count,
            "reserved": binding.reserved(port),
            "autoprobe": port.sriov.autoprobe,
            "held_back": secondary.held_back(port),
        },
    )


def _overrides(port: Port) -> dict[str, str]:
    found = {}
    for index, address in port.sriov.vfs.items():
        vf = port.state.functions.get(address)
        if vf and vf.override:
            found[str(index)] = vf.override
    return found


def _vf_name(state: State, index: int, address: str) -> str:
    vf = state.functions.get(address)
    return f"VF {index} ({address}, {(vf.driver if vf else None) or 'no driver'})"


def _give_back(state: State, target: Target, options: Options, staying: Collection[str], leads: bool) -> Plan:
    """As it was before the collection touched it. What it never touched, it leaves alone."""
    result = Plan()
    entry = common.stored_entry(state, NAME, target.function.address)
    if entry is None:
        return result
    if store.not_the_same(state, target.function.address, entry["identity"]):
        # Gone, or another card stands there now: that one is nobody's to give back.
        result.actions = common.forget(state, NAME, target.function)
        return result
    sriov = target.function.sriov or Sriov(total=0)
    origin = entry["origin"]
    names = touched.by(entry)
    count = min(origin["vf_count"], sriov.total) if touched.COUNT in names else len(sriov.vfs)
    switch, result.warnings = eswitch.still_there(state, target.function, eswitch.as_before(origin.get("pf", {})))
    of_pf = {
        **switch,
        **firmware.given_back(target.function.address, entry, staying),
        **({touched.UP: origin[touched.UP]} if touched.UP in names and touched.UP in origin else {}),
    }
    ours = touched.keys_of(names)
    port = Port(state, target.function, sriov, options, target.label, of_pf, count, leads=leads, ours=ours, returning=True)
    port = _kept(replace(port, wished=_given_back_vfs(port, entry)))
    recounted = _check_pf_driver(state, port.pf, port.label) if count != len(sriov.vfs) else []
    if common.refuse_all(result, eswitch.check(port) + binding.check(port) + recounted):
        return result
    port = _cleared(port)
    primary = replace(port, wish=secondary.given_back_primary(entry))
    if count == 0:
        result.extend(_converge(port))
        # What it keeps for itself changes by a reset: once the VFs are gone.
        result.extend(secondary.plan_primary(primary))
    else:
        result.warnings += secondary.cannot_give_back(primary)
        result.extend(_converge(port))
    result.actions += common.forget(state, NAME, target.function)
    return result


def _given_back_vfs(port: Port, entry: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    origin, names = entry["origin"], touched.by(entry)
    overrides: Mapping[str, str] = origin.get("overrides", {})
    wished: dict[int, dict[str, Any]] = {}
    for index in range(port.count):
        lost = touched.is_whole(names, index) or index not in port.sriov.vfs
        found: dict[str, Any] = {}
        if "driver" in port.ours.get(index, ()) or (lost and str(index) in overrides):
            found["driver"] = overrides.get(str(index), "default")
        found.update(secondary.given_back_vf(entry, index, port.born or _any_in(names, index, secondary.KEYS)))
        found.update(msix.given_back_vf(entry, index, port.born or _any_in(names, index, (msix.KEY,))))
        found.update(attributes.given_back(port, index, origin.get("attributes", {}).get(str(index), {}), lost))
        if found:
            wished[index] = found
    return wished


def _any_in(names: Collection[str], index: int, keys: Iterable[str]) -> bool:
    return any(touched.is_in(names, index, key) for key in keys)
