# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""SR-IOV: how many virtual functions a physical function has, and which driver each of them gets.

Rules of the kernel: Documentation/PCI/pci-iov-howto.rst and drivers/pci/iov.c. A count changes only through zero
(EBUSY otherwise), and with it every VF is born anew: without driver_override and without attributes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .. import drivers, guards, store, sysfs
from ..host import Host
from ..model import Action, Function, Plan, Refusal, Sriov, State
from ..sriov import binding, eswitch, ranges
from ..sriov.port import Port, bad
from . import common
from .common import Options, Target

NAME = "sriov"

#: Keys of a wish that say whom it is about or are taken apart by VF; all others are about the PF itself.
_NOT_OF_PF = ("match", "expect", "state", "vf_count", "vf_defaults", "vfs")

#: Parts with a `read_more(host, state, targets) -> State`.
_READING = (eswitch,)


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
    for target in found:
        result.extend(_give_back(state, target, options) if target.absent else _take(state, target, options))
    return result


def info(state: State) -> list[dict[str, Any]]:
    """The SR-IOV devices of the host as they are, in the form of wishes."""
    return [
        {
            "match": {"address": [function.address]},
            "vf_count": len(function.sriov.vfs),
            **eswitch.info(state, function),
            "vfs": [{"range": str(index), **_vf_facts(state, vf)} for index, vf in function.sriov.vfs.items()],
        }
        for function in state.functions.values()
        if function.sriov and (function.sriov.vfs or not drivers.is_vfio(function.driver))
    ]


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
    return {"driver": (vf.override or held or "default") if vf else "default"}


# --- Checking a wish against its device ----------------------------------------------------------------------------


def _check_pf(state: State, target: Target) -> list[Refusal]:
    """Can this function have VFs at all, and as many?"""
    function, wish = target.function, target.wish
    if function.sriov is None:
        why = "it is itself a VF." if function.physfn else "it has no SR-IOV capability (no sriov_totalvfs in sysfs)."
        return [bad(function.address, f"{target.label}: {why}", "Narrow the selector.")]
    count = wish.get("vf_count")
    if count is None or count == len(function.sriov.vfs):
        return []
    if count < 0:
        return [bad(function.address, f"{target.label}: vf_count {count} is negative.", "0 removes all VFs.")]
    if count > function.sriov.total:
        reason = (
            f"{target.label}: vf_count {count} is more than it can have (sriov_totalvfs is {function.sriov.total})."
        )
        return [bad(function.address, reason, "Lower vf_count, or raise the limit in the device's firmware.")]
    return _check_pf_driver(state, function, target.label)


def _check_pf_driver(state: State, function: Function, label: str) -> list[Refusal]:
    if function.driver is None:
        reason = f"{label}: it has no driver, and only a PF's driver can create VFs (the kernel answers ENOENT)."
        return [
            bad(
                function.address, reason, f"Load its driver{f' ({function.native})' if function.native else ''} first."
            )
        ]
    if function.driver in drivers.NO_SRIOV or (function.driver == "vfio-pci" and not state.vfio_sriov):
        reason = f"{label}: its driver {function.driver} does not do SR-IOV (the kernel answers ENOENT)."
        return [
            bad(function.address, reason, "Give it a driver that does; vfio-pci does with its option enable_sriov=1.")
        ]
    return []


# --- Planning ------------------------------------------------------------------------------------------------------


def _take(state: State, target: Target, options: Options) -> Plan:
    result = Plan()
    refusals = common.conflict(state, NAME, target) + _check_pf(state, target)
    sriov = target.function.sriov
    if common.refuse_all(result, refusals) or sriov is None:
        return result
    wish_count = target.wish.get("vf_count")
    count = len(sriov.vfs) if wish_count is None else wish_count
    wished, refusals = ranges.wished_vfs(target.function.address, target.label, target.wish, count)
    if common.refuse_all(result, refusals):
        return result
    wished = binding.resolved(state, target.function, wished)
    of_pf = {key: value for key, value in _without_unset(target.wish).items() if key not in _NOT_OF_PF}
    port = Port(state, target.function, sriov, options, target.label, of_pf, count, wished)
    if common.refuse_all(result, _check(port)):
        return result
    port = _cleared(port)
    wish = {**of_pf, "vf_count": wish_count, "vfs": {str(index): vf for index, vf in sorted(wished.items())}}
    steps = _converge(port)
    result.actions = common.declare(state, NAME, port.pf, wish, _origin(port), steps.waived)
    result.extend(steps)
    return result


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
    return [*binding.check(port), *eswitch.check(port)]


def _origin(port: Port) -> dict[str, Any]:
    """How it was before the collection touched it."""
    found = {"driver": port.pf.native, "vf_count": len(port.sriov.vfs), "overrides": _overrides(port)}
    of_pf = eswitch.origin(port)
    return {**found, "pf": of_pf} if of_pf else found


def _converge(port: Port) -> Plan:
    """The parts in their order: the switch as far as it is set without VFs, VFs are born, then get what belongs to them, then their drivers."""
    result = eswitch.guard(port)
    if result.refusals:
        return result
    now = len(port.sriov.vfs)
    if port.cleared:
        result.extend(_plan_count(port, now, 0))
        now = 0
    result.extend(eswitch.before_count(port))
    if now != port.count:
        result.extend(_plan_count(port, now, port.count))
    if result.refusals:
        return result
    result.extend(eswitch.after_count(port))
    result.extend(binding.plan(port))
    return result


def _cleared(port: Port) -> Port:
    """With the VFs made anew where the switch needs that. Nobody asked for it, so those without a wish keep the driver that they were given."""
    if not eswitch.clears_vfs(port):
        return port
    kept = {int(index): {"driver": driver} for index, driver in _overrides(port).items() if int(index) < port.count}
    return replace(port, cleared=True, wished={**port.wished, **{i: {**vf, **port.wished.get(i, {})} for i, vf in kept.items()}})


def _plan_count(port: Port, now: int, count: int) -> Plan:
    result = Plan()
    if common.refuse_all(result, _would_hang(port.state, port.pf)):
        return result
    if common.guarded(result, guards.before_recount(port.state, port.pf), port.options, port.pf.address):
        return result
    result.actions.append(_recount(port, now, count))
    return result


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
            "previous": _overrides(port) if now else {},
            "drivers": {str(index): vf.driver for index, vf in vfs.items() if vf},
        },
        before={"vf_count": now},
        after={"vf_count": count},
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


def _give_back(state: State, target: Target, options: Options) -> Plan:
    """As it was before the collection touched it. What it never touched, it leaves alone."""
    result = Plan()
    entry = common.stored_entry(state, NAME, target.function.address)
    sriov = target.function.sriov
    if entry is None:
        return result
    if sriov is None or store.not_the_same(state, target.function.address, entry["identity"]):
        # Gone, or another card stands there now: that one is nobody's to give back.
        result.actions = common.forget(state, NAME, target.function)
        return result
    origin = entry["origin"]
    overrides: Mapping[str, str] = origin.get("overrides", {})
    owned = _owned_indexes(entry["wish"], origin["vf_count"])
    wished = {index: {"driver": overrides.get(str(index), "default")} for index in owned}
    count = len(sriov.vfs) if entry["wish"]["vf_count"] is None else origin["vf_count"]
    wished = {index: vf for index, vf in wished.items() if index < count}
    port = Port(state, target.function, sriov, options, target.label, eswitch.as_before(origin.get("pf", {})), count, wished)
    if common.refuse_all(result, eswitch.check(port)):
        return result
    result.extend(_converge(_cleared(port)))
    result.actions += common.forget(state, NAME, target.function)
    return result


def _owned_indexes(wish: Mapping[str, Any], count: int) -> Iterable[int]:
    named = {int(index) for index, vf in wish["vfs"].items() if vf.get("driver")}
    return sorted(named | set(range(count))) if wish["vf_count"] is not None else sorted(named)
