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

from .. import guards, store, sysfs
from ..model import AFTER_REBOOT, Action, Function, Plan, Refusal, State
from . import common
from .common import Options, Target

NAME = "vfio"
_DRIVER = re.compile(r"[A-Za-z0-9_.-]+")


def needs(wishes: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """The drivers that the wishes name, so that the reader looks whether they exist."""
    return frozenset(wish.get("driver") or "vfio-pci" for wish in wishes if wish.get("state") != "absent")


def plan(state: State, wishes: Sequence[Mapping[str, Any]], options: Options) -> Plan:
    """What makes the wishes true on this host."""
    result = Plan()
    found, result.refusals = common.targets(state, NAME, wishes, options)
    going = {target.function.address for target in found if not target.absent}
    for target in found:
        result.extend(_give_back(state, target, options) if target.absent else _take(state, target, going, options))
    return result


def info(state: State) -> list[dict[str, Any]]:
    """The whole functions that a vfio driver holds, in the form of wishes."""
    return [
        {"match": {"address": [function.address]}, "driver": function.driver}
        for function in state.functions.values()
        if function.physfn is None and (function.driver or "").startswith("vfio")
    ]


def _check(state: State, target: Target) -> list[Refusal]:
    function, driver = target.function, target.wish.get("driver") or "vfio-pci"
    if function.bus != sysfs.PCI:
        reason = f"{target.label}: it is on the bus {function.bus}; only PCI functions can be given to a vfio driver."
        return [Refusal(function.address, reason, "Narrow the selector; nothing was changed.")]
    if not _DRIVER.fullmatch(driver) or not common.driver_exists(state, driver):
        return [common.unknown_driver(function.address, driver)]
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


def _take(state: State, target: Target, going: set[str], options: Options) -> Plan:
    result = Plan()
    function, driver = target.function, target.wish.get("driver") or "vfio-pci"
    if common.refuse_all(result, common.conflict(state, NAME, target) + _check(state, target)):
        return result
    has_group = function.group is not None or not driver.startswith("vfio")
    certainty = common.iommu_certainty(state, options, has_group)
    if certainty is None:
        result.refusals.append(common.no_group(function.address, state))
        return result
    # `bound` is not always the native driver: vfio-pci.ids= on the command line gives vfio-pci without an override.
    origin = {"driver": function.native, "override": function.override, "bound": function.driver}
    if function.driver == driver:
        result.actions = common.declare(state, NAME, function, {"driver": driver}, origin)
        return result
    dangers = guards.before_unbind(state, function, going) + guards.before_assignment(state, function, going)
    if common.guarded(result, dangers, options, function.address):
        return result
    result.actions = common.declare(state, NAME, function, {"driver": driver}, origin, result.waived)
    result.actions.append(_bind(function, driver, certainty))
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
        if common.guarded(result, guards.before_unbind(state, function), options, function.address):
            return result
        result.actions.append(_release(function, entry["origin"]))
    result.actions += common.forget(state, NAME, function)
    return result


def _as_before(function: Function, origin: Mapping[str, Any]) -> bool:
    if function.override != origin.get("override"):
        return False
    return function.driver == origin.get("bound") or not (function.driver or "").startswith("vfio")


def _release(function: Function, origin: Mapping[str, Any]) -> Action:
    native = origin.get("override") or origin.get("bound") or origin.get("driver") or function.native
    override = f"with the override {origin['override']}" if origin.get("override") else "without an override"
    return Action(
        kind="release",
        unit=function.address,
        text=f"give it back to {native or 'the kernel'}, {override}",
        args={
            "address": function.address,
            "native": native,
            "override": origin.get("override"),
            "was_driver": function.driver,
            "was_override": function.override,
        },
        before={"driver": function.driver},
        after={"driver": native or "default"},
    )
