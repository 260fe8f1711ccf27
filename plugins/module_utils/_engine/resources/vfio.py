# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whole functions handed to vfio-pci (or another driver of choice), and given back.

Rules of the kernel: driver_override in Documentation/ABI/testing/sysfs-bus-pci; Documentation/driver-api/vfio.rst.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .. import drivers, guards, initramfs, match, store, sysfs
from ..host import Host
from ..model import AFTER_REBOOT, Action, Function, Plan, Refusal, State
from . import common
from .common import Options, Target

NAME = "vfio"
_DRIVER = re.compile(r"[A-Za-z0-9_.-]+")


def needs(wishes: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """The drivers that the wishes name, so that the reader looks whether they exist."""
    return frozenset(wish.get("driver") or "vfio-pci" for wish in wishes if wish.get("state") != "absent")


def read_more(host: Host, state: State, wishes: Sequence[Mapping[str, Any]], options: Options) -> State:
    """How the kernel can reset GPUs, and what shares a slot with one. Of the sysfs-bus-pci ABI: reset_method."""
    slots = {_slot(f.address) for f in state.functions.values() if f.class_code.startswith("03") and f.physfn is None}
    addresses = [f.address for f in state.functions.values() if _slot(f.address) in slots and f.physfn is None]
    return state.with_more(NAME, {a: host.files.attr(f"{sysfs.device(a)}/reset_method") for a in addresses})


def plan(state: State, wishes: Sequence[Mapping[str, Any]], options: Options) -> Plan:
    """What makes the wishes true on this host."""
    result = Plan()
    found, result.refusals = common.targets(state, NAME, _with_siblings(state, wishes), options)
    for target in found:
        result.extend(_give_back(state, target, options) if target.absent else _take(state, target, options))
    return result


def _with_siblings(state: State, wishes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The wishes, and one more for the other functions in the slots of each that names them: a GPU's audio and USB. Those that a
    wish names itself are as that says."""
    named = [[f.address for f in match.resolve(state, wish, "", store.gone(state, NAME))[0]] for wish in wishes]
    taken = {address for addresses in named for address in addresses}
    more: list[Mapping[str, Any]] = []
    for number, (wish, addresses) in enumerate(zip(wishes, named)):
        slots = {_slot(address) for address in addresses} if wish.get("siblings") else set()
        others = [f.address for f in state.functions.values() if _slot(f.address) in slots and f.address not in taken and _can_go_along(f)]
        taken.update(others)
        if others:
            more.append({**wish, "match": {"address": others}, "expect": None, "label": f"{NAME}[{number}] (siblings)"})
    return [*wishes, *more]


def _slot(address: str) -> str:
    """Domain, bus and device: the functions of one card share them."""
    return address.rpartition(".")[0]


def _can_go_along(function: Function) -> bool:
    return function.bus == sysfs.PCI and function.physfn is None and not function.is_bridge


def _reset_warnings(state: State, function: Function, driver: str) -> list[str]:
    """What a guest should know of a GPU that cannot be reset by itself. Said when it is taken, not again and again."""
    methods = state.more.get(NAME, {}).get(function.address)
    if methods is None or not drivers.is_vfio(driver) or not function.class_code.startswith("03"):
        return []
    if not methods:
        return [f"{function.address}: the kernel knows no way to reset it, so the next guest may find it as the last one left it, or not at all."]
    if set(methods.split()) <= {"bus", "cxl_bus"}:
        return [f"{function.address}: it is reset with its whole bus only, so all functions below that have to be of one guest (siblings: true)."]
    return []


def info(state: State) -> list[dict[str, Any]]:
    """The whole functions that a vfio driver holds, and all that the collection owns, in the form of wishes."""
    return [_as_wish(state, function) for function in state.functions.values() if _is_listed(state, function)]


def _is_listed(state: State, function: Function) -> bool:
    owned = common.stored_entry(state, NAME, function.address) is not None
    return function.driver is not None and (owned or (function.physfn is None and drivers.is_vfio(function.driver)))


def _as_wish(state: State, function: Function) -> dict[str, Any]:
    selector: dict[str, Any] = {"address": [function.address]}
    if function.physfn:
        selector["vf"] = True
    wish = {"match": selector, "driver": function.driver}
    return {**wish, "early": True} if stored_early(state, function.address) else wish


def facts(state: State, function: Function) -> dict[str, Any]:
    """What stands beside a wish: both sides of a reboot, and what else could have the device."""
    entry = common.stored_entry(state, NAME, function.address)
    early = stored_early(state, function.address)
    after = entry["wish"]["driver"] if entry else function.native
    by = "initramfs" if early and initramfs.ready(state.early) else "replay"
    return {
        "driver": function.driver,
        "driver_override": function.override,
        "native_driver": function.native,
        "vfio_driver": common.best_vfio(state, function.address),
        "next_boot": {"driver": after, "bound_by": by if entry else "kernel"},
        "iommu_group": function.group,
        "reset_methods": _reset_methods(state, function.address),
        "declared": entry is not None,
    }


def _reset_methods(state: State, address: str) -> list[str] | None:
    """None: it is no GPU's, or the kernel is older than 5.15 and does not tell."""
    said = state.more.get(NAME, {}).get(address)
    return said.split() if said is not None else None


def stored_early(state: State, address: str) -> bool:
    """Is it declared to be bound early?"""
    entry = common.stored_entry(state, NAME, address)
    return bool(entry and entry["wish"].get("early"))


def _wished_driver(state: State, target: Target) -> str:
    driver = target.wish.get("driver") or "vfio-pci"
    return common.best_vfio(state, target.function.address) if driver == drivers.BEST else driver


def _stored_wish(state: State, target: Target, driver: str) -> dict[str, Any]:
    """Left unset, `early` stays as it was."""
    early = target.wish.get("early")
    if early is None:
        early = stored_early(state, target.function.address)
    return {"driver": driver, "early": True} if early else {"driver": driver}


def check_early(state: State, address: str) -> list[Refusal]:
    """Can the initramfs give this device away at all?"""
    function, tool = state.functions.get(address), state.early.get("tool")
    reason = None
    if tool is None:
        names = ", ".join(t.name for t in initramfs.TOOLS)
        reason = f"it cannot be bound early: no tool for the initramfs that is known here ({names}) is on this host."
    elif not state.early["images"]:
        reason = f"it cannot be bound early: {tool} is here, but /boot holds no initramfs of an installed kernel."
    elif function and function.physfn:
        reason = "it is a VF, and VFs are born after the initramfs has done its work."
    elif function and function.native and drivers.module_of(function.native) in state.early["builtin"]:
        reason = (
            f"it cannot be bound early: its own driver {function.native} is built into the kernel and has it before any "
            "initramfs runs."
        )
    if reason is None:
        return []
    way_out = "Leave `early` out: then the boot replay binds it. Nothing was changed."
    return [Refusal(address, reason, way_out)]


def _check(state: State, target: Target) -> list[Refusal]:
    function, driver = target.function, _wished_driver(state, target)
    if function.bus != sysfs.PCI:
        reason = f"{target.label}: it is on the bus {function.bus}; only PCI functions can be given to a vfio driver."
        return [Refusal(function.address, reason, "Narrow the selector; nothing was changed.")]
    if not _DRIVER.fullmatch(driver) or not common.driver_exists(state, driver):
        return [common.unknown_driver(function.address, driver, state)]
    if function.is_bridge:
        reason = f"{target.label}: it is a bridge; a bridge is never given to a guest."
        return [Refusal(function.address, reason, "Narrow the selector; nothing was changed.")]
    if function.sriov and function.sriov.vfs and function.driver != driver:
        reason = f"{target.label}: it has {len(function.sriov.vfs)} VFs, which would vanish with its driver."
        return [Refusal(function.address, reason, "Set its vf_count to 0 first; nothing was changed.")]
    return _ruled_through_pf(state, target)


def _ruled_through_pf(state: State, target: Target) -> list[Refusal]:
    pf = target.function.physfn
    if pf and common.stored_entry(state, "sriov", pf):
        reason = f"{target.label}: it is a VF of {pf}, whose VFs the resource sriov rules."
        return [Refusal(target.function.address, reason, "Name it there (vfs: range); nothing was changed.")]
    return []


def _take(state: State, target: Target, options: Options) -> Plan:
    result = Plan()
    function, driver = target.function, _wished_driver(state, target)
    if common.refuse_all(result, common.conflict(state, NAME, target) + _check(state, target)):
        return result
    wish = _stored_wish(state, target, driver)
    if common.refuse_all(result, common.outdated(state, NAME, target, wish)):
        return result
    result.warnings += common.overruled(state, NAME, function.address, wish, options)
    has_group = function.group is not None or not drivers.is_vfio(driver)
    certainty = common.iommu_certainty(state, options, has_group)
    if certainty is None:
        result.refusals.append(common.no_group(function.address, state))
        return result
    # `bound` is not always the native driver: vfio-pci.ids= on the command line gives vfio-pci without an override.
    origin = {"driver": function.native, "override": function.override, "bound": function.driver}
    if function.driver == driver:
        result.actions = common.declare(state, NAME, function, wish, origin)
        return result
    dangers = guards.before_unbind(state, function) + guards.before_assignment(state, function, driver)
    if common.guarded(result, dangers, options, function.address):
        return result
    result.actions = common.declare(state, NAME, function, wish, origin, result.waived)
    result.actions.append(_bind(function, driver, certainty))
    result.warnings += _reset_warnings(state, function, driver)
    if certainty == AFTER_REBOOT:
        result.reboot_reasons.append(f"{function.address}: it can be given to {driver} once the IOMMU is on")
    return result


def _bind(function: Function, driver: str, certainty: str) -> Action:
    return Action(
        kind="bind",
        unit=function.address,
        text=f"bind to {driver} (now {function.driver or 'no driver'})",
        certainty=certainty,
        args={
            "address": function.address,
            "driver": driver,
            "was_driver": function.driver,
            "was_override": function.override,
        },
        before={"driver": function.driver},
        after={"driver": driver},
    )


def _give_back(state: State, target: Target, options: Options) -> Plan:
    """As it was before the collection touched it. What it never touched, it leaves alone."""
    result = Plan()
    function = target.function
    entry = common.stored_entry(state, NAME, function.address)
    if entry is None:
        return result
    # Gone, or another card stands there now: that one is nobody's to give back.
    same = store.not_the_same(state, function.address, entry["identity"]) is None
    if same and not _as_before(function, entry["origin"]):
        release = _release(function, entry["origin"])
        dangers = guards.before_unbind(state, function)
        dangers += guards.before_assignment(state, function, release.args["native"])
        if common.guarded(result, dangers, options, function.address):
            return result
        override = entry["origin"].get("override")
        if override and not common.driver_exists(state, override):
            result.refusals.append(common.unknown_driver(function.address, override, state))
            return result
        result.actions.append(release)
    result.actions += common.forget(state, NAME, function)
    return result


def _as_before(function: Function, origin: Mapping[str, Any]) -> bool:
    if function.override != origin.get("override"):
        return False
    return function.driver == origin.get("bound") or not drivers.is_vfio(function.driver)


def _release(function: Function, origin: Mapping[str, Any]) -> Action:
    native = origin.get("override") or origin.get("bound") or origin.get("driver") or function.native
    override = f"with the override {origin['override']}" if origin.get("override") else "without an override"
    # Records of old do not say which driver it had.
    without = origin.get("bound", native) is None
    whom = "the kernel (it had no driver)" if without else native or "the kernel"
    return Action(
        kind="release",
        unit=function.address,
        text=f"give it back to {whom}, {override}",
        args={
            "address": function.address,
            "native": native,
            "without": without,
            "override": origin.get("override"),
            "was_driver": function.driver,
            "was_override": function.override,
        },
        before={"driver": function.driver},
        after={"driver": "default" if without else native or "default"},
    )
