# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""SR-IOV: how many virtual functions a physical function has, and which driver each of them gets.

Rules of the kernel: Documentation/PCI/pci-iov-howto.rst and drivers/pci/iov.c. A count changes only through zero
(EBUSY otherwise), and with it every VF is born anew: without driver_override and without attributes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .. import drivers, guards, store
from ..model import AFTER_REBOOT, CERTAIN, PREDICTED, Action, Function, Plan, Refusal, Sriov, State
from . import common
from .common import Options, Target

NAME = "sriov"
_DRIVER = re.compile(r"[A-Za-z0-9_.-]+")
_RANGE = re.compile(r"\d+(-\d+)?")


def needs(wishes: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """The drivers that the wishes name, so that the reader looks whether they exist."""
    named = set()
    for wish in wishes:
        for part in [wish.get("vf_defaults") or {}, *(wish.get("vfs") or [])]:
            if part.get("driver") not in (None, "default"):
                named.add(part["driver"])
    return frozenset(named)


def plan(state: State, wishes: Sequence[Mapping[str, Any]], options: Options) -> Plan:
    """What makes the wishes true on this host."""
    result = Plan()
    found, result.refusals = common.targets(state, NAME, wishes, options)
    for target in found:
        result.extend(_give_back(state, target, options) if target.absent else _plan_pf(state, target, options))
    return result


def info(state: State) -> list[dict[str, Any]]:
    """The SR-IOV devices of the host as they are, in the form of wishes."""
    return [
        {
            "match": {"address": [function.address]},
            "vf_count": len(function.sriov.vfs),
            "vfs": [{"range": str(index), **_vf_facts(state, vf)} for index, vf in function.sriov.vfs.items()],
        }
        for function in state.functions.values()
        if function.sriov
    ]


def _vf_facts(state: State, address: str) -> dict[str, Any]:
    vf = state.functions.get(address)
    return {"driver": (vf.override or "default") if vf else "default"}


# --- Checking a wish against its device ----------------------------------------------------------------------------


def parse_range(text: str) -> list[int] | None:
    """'0-3' or '5' or '0-3,6' -> the VF indexes; None when it is none of these."""
    indexes: list[int] = []
    for part in text.split(","):
        if not _RANGE.fullmatch(part.strip()):
            return None
        first, _dash, last = part.strip().partition("-")
        if int(last or first) < int(first) or int(last or first) > 65535:
            return None
        indexes += range(int(first), int(last or first) + 1)
    return indexes


def _wished_vfs(target: Target, count: int) -> tuple[dict[int, dict[str, Any]], list[Refusal]]:
    """VF index -> what is wished for it, and what is wrong with the ranges."""
    address, label = target.function.address, target.label
    defaults = {k: v for k, v in (target.wish.get("vf_defaults") or {}).items() if v is not None}
    wished: dict[int, dict[str, Any]] = {index: dict(defaults) for index in range(count)} if defaults else {}
    holder: dict[int, str] = {}
    refusals = []
    for part in target.wish.get("vfs") or []:
        indexes = parse_range(str(part["range"]))
        if indexes is None:
            refusals.append(
                _bad(address, f"{label}: {part['range']!r} is no range of VFs.", 'Write "0-3", "5" or "0-3,6".')
            )
            continue
        beyond = [index for index in indexes if index >= count]
        if beyond:
            reason = f"{label}: the range {part['range']} names VF {beyond[-1]}, but it has VFs 0 to {count - 1}."
            refusals.append(
                _bad(address, reason if count else f"{label}: it has no VFs.", "Correct the range or vf_count.")
            )
            continue
        taken = [index for index in indexes if index in holder]
        if taken:
            reason = f"{label}: the ranges {holder[taken[0]]} and {part['range']} both name VF {taken[0]}."
            refusals.append(_bad(address, reason, "Let each VF stand in one range."))
        for index in indexes:
            holder[index] = str(part["range"])
            own = {k: v for k, v in part.items() if k != "range" and v is not None}
            wished.setdefault(index, {}).update(own)
    return wished, refusals


def _bad(address: str, reason: str, way_out: str) -> Refusal:
    return Refusal(address, reason, f"{way_out} Nothing was changed.")


def _check_pf(state: State, target: Target) -> list[Refusal]:
    """Can this function have VFs at all, and as many?"""
    function, wish = target.function, target.wish
    if function.sriov is None:
        why = "it is itself a VF." if function.physfn else "it has no SR-IOV capability (no sriov_totalvfs in sysfs)."
        return [_bad(function.address, f"{target.label}: {why}", "Narrow the selector.")]
    count = wish.get("vf_count")
    if count is None or count == len(function.sriov.vfs):
        return []
    if count < 0:
        return [_bad(function.address, f"{target.label}: vf_count {count} is negative.", "0 removes all VFs.")]
    if count > function.sriov.total:
        reason = (
            f"{target.label}: vf_count {count} is more than it can have (sriov_totalvfs is {function.sriov.total})."
        )
        return [_bad(function.address, reason, "Lower vf_count, or raise the limit in the device's firmware.")]
    return _check_pf_driver(state, function, target.label)


def _check_pf_driver(state: State, function: Function, label: str) -> list[Refusal]:
    if function.driver is None:
        reason = f"{label}: it has no driver, and only a PF's driver can create VFs (the kernel answers ENOENT)."
        return [
            _bad(
                function.address, reason, f"Load its driver{f' ({function.native})' if function.native else ''} first."
            )
        ]
    if function.driver in drivers.NO_SRIOV or (function.driver == "vfio-pci" and not state.vfio_sriov):
        reason = f"{label}: its driver {function.driver} does not do SR-IOV (the kernel answers ENOENT)."
        return [
            _bad(function.address, reason, "Give it a driver that does; vfio-pci does with its option enable_sriov=1.")
        ]
    return []


def _check_drivers(state: State, target: Target, wished: Mapping[int, Mapping[str, Any]]) -> list[Refusal]:
    named = {vf["driver"] for vf in wished.values() if vf.get("driver") not in (None, "default")}
    missing = [d for d in sorted(named) if not _DRIVER.fullmatch(d) or not common.driver_exists(state, d)]
    return [common.unknown_driver(target.function.address, driver) for driver in missing]


# --- Planning ------------------------------------------------------------------------------------------------------


def _plan_pf(state: State, target: Target, options: Options) -> Plan:
    result = Plan()
    refusals = common.conflict(state, NAME, target) + _check_pf(state, target)
    sriov = target.function.sriov
    if common.refuse_all(result, refusals) or sriov is None:
        return result
    wish_count = target.wish.get("vf_count")
    count = len(sriov.vfs) if wish_count is None else wish_count
    wished, refusals = _wished_vfs(target, count)
    if common.refuse_all(result, refusals + _check_drivers(state, target, wished)):
        return result
    wish = {"vf_count": wish_count, "vfs": {str(index): vf for index, vf in sorted(wished.items())}}
    steps = _converge(state, target.function, sriov, count, wished, options)
    result.actions = common.declare(state, NAME, target.function, wish, _origin(state, target.function), steps.waived)
    result.extend(steps)
    return result


def _origin(state: State, function: Function) -> dict[str, Any]:
    sriov = function.sriov or Sriov(0)
    overrides = {
        str(index): vf.override
        for index, address in sriov.vfs.items()
        if (vf := state.functions.get(address)) and vf.override
    }
    return {"driver": function.native, "vf_count": len(sriov.vfs), "overrides": overrides}


class _Port(NamedTuple):
    """A PF whose VFs are being planned. `going` are the VFs that this call gives to guests."""

    state: State
    pf: Function
    options: Options
    going: frozenset[str]


def _converge(
    state: State, pf: Function, sriov: Sriov, count: int, wished: Mapping[int, Mapping[str, Any]], options: Options
) -> Plan:
    result = Plan()
    if count != len(sriov.vfs):
        if common.refuse_all(result, _would_hang(state, pf)):
            return result
        if common.guarded(result, guards.before_recount(state, pf), options, pf.address):
            return result
        result.actions.append(_recount(state, pf, sriov, count, wished))
        addresses = {index: predict_address(pf, sriov, index) for index in range(count)}
        born = True
    else:
        addresses, born = dict(sriov.vfs), False
    going = frozenset(addresses[i] for i, vf in wished.items() if (vf.get("driver") or "").startswith("vfio"))
    port = _Port(state, pf, options, going)
    for index, vf in sorted(wished.items()):
        if vf.get("driver"):
            result.extend(_plan_vf(port, index, addresses[index], vf["driver"], born))
    return result


def _would_hang(state: State, pf: Function) -> list[Refusal]:
    stuck = common.any_hanging(state)
    if not stuck:
        return []
    reason = f"its number of VFs cannot change while the kernel does not answer for {stuck}: that write would hang too."
    way_out = "Find who holds that device (a paused guest?) and let it go, then run again; nothing was changed."
    return [Refusal(pf.address, reason, way_out)]


def _recount(state: State, pf: Function, sriov: Sriov, count: int, wished: Mapping[int, Mapping[str, Any]]) -> Action:
    now = len(sriov.vfs)
    # Overrides are set between birth and probing, so no VF ever shows up under a driver it was not meant for.
    reserved = {str(i): vf["driver"] for i, vf in sorted(wished.items()) if vf.get("driver") not in (None, "default")}
    vanishing = [_vf_name(state, index, address) for index, address in sriov.vfs.items()]
    text = f"set the number of VFs from {now} to {count}"
    if vanishing:
        text += f"; these vanish{' and are made anew' if count else ''}: {', '.join(vanishing)}"
    return Action(
        kind="set_vf_count",
        unit=pf.address,
        text=text,
        args={
            "pf": pf.address,
            "from": now,
            "to": count,
            "reserved": reserved,
            "autoprobe": sriov.autoprobe,
            "previous": _overrides(state, sriov),
            "drivers": {str(i): vf.driver for i, address in sriov.vfs.items() if (vf := state.functions.get(address))},
        },
        before={"vf_count": now},
        after={"vf_count": count},
    )


def _overrides(state: State, sriov: Sriov) -> dict[str, str]:
    found = {}
    for index, address in sriov.vfs.items():
        vf = state.functions.get(address)
        if vf and vf.override:
            found[str(index)] = vf.override
    return found


def _vf_name(state: State, index: int, address: str) -> str:
    vf = state.functions.get(address)
    return f"VF {index} ({address}, {(vf.driver if vf else None) or 'no driver'})"


def predict_address(pf: Function, sriov: Sriov, index: int) -> str:
    """The address of a VF that is not born yet: routing ID of the PF plus First VF Offset plus index times VF Stride
    (PCI Express Base Specification, SR-IOV capability). The device may change both when the count changes."""
    domain, bus, rest = pf.address.split(":")
    slot, function = rest.split(".")
    routing = (int(bus, 16) << 8 | int(slot, 16) << 3 | int(function)) + sriov.offset + index * sriov.stride
    return f"{domain}:{routing >> 8 & 0xFF:02x}:{routing >> 3 & 0x1F:02x}.{routing & 7}"


def _plan_vf(port: _Port, index: int, address: str, driver: str, born: bool) -> Plan:
    state = port.state
    vf = None if born else state.functions.get(address)
    if driver == "default":
        return _plan_default(port, index, address, vf)
    if vf and vf.driver == driver:
        return Plan()
    certainty = PREDICTED if born else CERTAIN
    if driver.startswith("vfio"):
        has_group = state.iommu.active if vf is None else vf.group is not None
        sure = common.iommu_certainty(state, port.options, has_group)
        if sure is None:
            return Plan(refusals=[common.no_group(port.pf.address if vf is None else address, state)])
        if sure == AFTER_REBOOT:
            certainty = AFTER_REBOOT
    return _bind_vf(port, index, address, vf, driver, certainty)


def _bind_vf(port: _Port, index: int, address: str, vf: Function | None, driver: str, certainty: str) -> Plan:
    result = Plan()
    pf = port.pf
    dangers = guards.before_unbind(port.state, vf) if vf else []
    if vf and driver.startswith("vfio"):
        dangers += guards.before_assignment(port.state, vf, port.going)
    if common.guarded(result, dangers, port.options, pf.address):
        return result
    result.actions.append(
        Action(
            kind="bind",
            unit=pf.address,
            text=f"bind VF {index} ({address}) to {driver}",
            certainty=certainty,
            args={"pf": pf.address, "index": index, "driver": driver, **_was(vf)},
            before={f"vf {index} driver": vf.driver if vf else None},
            after={f"vf {index} driver": driver},
        )
    )
    if certainty == AFTER_REBOOT:
        result.reboot_reasons.append(f"{pf.address}: its VFs can be given to {driver} once the IOMMU is on")
    return result


def _plan_default(port: _Port, index: int, address: str, vf: Function | None) -> Plan:
    """The driver that the kernel gives by itself. A VF that no driver takes for lack of resources is as wished, and so
    is one without a driver below a PF whose VFs are not probed."""
    pf = port.pf
    held = vf is not None and (vf.override is not None or (vf.driver or "").startswith("vfio"))
    if pf.sriov and not pf.sriov.autoprobe and not held:
        return Plan()
    if vf is None:
        native = None
    elif vf.override is None and not (vf.driver or "").startswith("vfio"):
        if vf.driver or vf.native is None or vf.native in drivers.NEEDS_RESOURCES:
            return Plan()
        native = vf.native
    else:
        native = vf.native
    result = Plan()
    if vf and vf.driver and common.guarded(result, guards.before_unbind(port.state, vf), port.options, pf.address):
        return result
    result.actions.append(
        Action(
            kind="release",
            unit=pf.address,
            text=f"let VF {index} ({address}) have its own driver{f' ({native})' if native else ''}",
            certainty=PREDICTED if vf is None else CERTAIN,
            args={"pf": pf.address, "index": index, "native": native, **_was(vf)},
            before={f"vf {index} driver": vf.driver if vf else None},
            after={f"vf {index} driver": native or "default"},
        )
    )
    return result


def _was(vf: Function | None) -> dict[str, Any]:
    return {"was_driver": vf.driver if vf else None, "was_override": vf.override if vf else None}


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
    result.extend(_converge(state, target.function, sriov, count, wished, options))
    result.actions += common.forget(state, NAME, target.function)
    return result


def _owned_indexes(wish: Mapping[str, Any], count: int) -> Iterable[int]:
    named = {int(index) for index, vf in wish["vfs"].items() if vf.get("driver")}
    return sorted(named | set(range(count))) if wish["vf_count"] is not None else sorted(named)
