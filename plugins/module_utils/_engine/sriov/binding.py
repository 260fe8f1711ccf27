# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which driver each VF gets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from .. import drivers, guards
from ..model import AFTER_REBOOT, CERTAIN, PREDICTED, Action, Function, Plan, Refusal, State
from ..resources import common
from . import secondary
from .port import Port

_DRIVER = re.compile(r"[A-Za-z0-9_.-]+")


def resolved(state: State, pf: Function, wished: Mapping[int, Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
    """The wishes with the name of a driver where they say vfio-best. VFs of one PF are all alike."""
    best = common.best_vfio(state, f"{pf.address}/vf")
    return {i: {**vf, "driver": best} if vf.get("driver") == drivers.BEST else dict(vf) for i, vf in wished.items()}


def check(port: Port) -> list[Refusal]:
    """Do the wished drivers exist?"""
    named = {vf["driver"] for vf in port.wished.values() if vf.get("driver") not in (None, "default")}
    if named and not port.has_vf_functions:
        reason = f"its VFs are no functions of their own (bus {port.pf.bus}), so none can be given to {min(named)}."
        return [port.wrong(reason, "Leave driver unset for them.")]
    missing = [d for d in sorted(named) if not _DRIVER.fullmatch(d) or not common.driver_exists(port.state, d)]
    return [common.unknown_driver(port.pf.address, driver, port.state) for driver in missing]


def reserved(port: Port) -> dict[str, str]:
    """VF index -> the override that it gets between its birth and its first probing, so that no VF ever shows up under
    a driver it was not meant for."""
    named = {index: vf["driver"] for index, vf in port.wished.items() if vf.get("driver")}
    # Also one that keeps every driver away, as there is none of that name.
    both = {**{index: driver for index, driver in _overrides(port) if index < port.count}, **named}
    return {str(index): driver for index, driver in sorted(both.items()) if driver != "default"}


def _overrides(port: Port) -> Iterator[tuple[int, str]]:
    for index, address in port.sriov.vfs.items():
        vf = port.state.functions.get(address)
        if vf and vf.override:
            yield index, vf.override


def keep(port: Port) -> dict[int, str]:
    """VF index -> the driver that somebody gave it by an override, and that it gets again where it is made anew."""
    found = {}
    for index, driver in _overrides(port):
        vf = port.state.functions[port.sriov.vfs[index]]
        if index < port.count and vf.driver == driver and not port.wished.get(index, {}).get("driver"):
            found[index] = driver
    return found


def lost(port: Port) -> list[str]:
    """What a VF that is made anew does not get again."""
    found = []
    for index, address in port.sriov.vfs.items():
        vf = port.state.functions.get(address)
        named = port.wished.get(index, {}).get("driver")
        if index < port.count and vf and not named and not vf.override and drivers.is_vfio(vf.driver):
            found.append(
                f"{port.pf.address}: VF {index} is on {vf.driver} without an override, and made anew it gets the driver that "
                "takes it by itself."
            )
    return found


def plan(port: Port) -> Plan:
    """Bind and release what differs, VF by VF."""
    result = Plan()
    if not port.has_vf_functions:
        return result
    for index, vf in sorted(port.wished.items()):
        driver = vf.get("driver") or _implied(port, index)
        if driver:
            result.extend(_plan_vf(port, index, driver))
    return result


def _implied(port: Port, index: int) -> str | None:
    """An NVMe VF that is set online is there for a driver: where the wish names none, the one that the kernel gives."""
    vf = port.vf(index)
    return "default" if secondary.goes_online(port, index) and (vf is None or vf.driver is None) else None


def _plan_vf(port: Port, index: int, driver: str) -> Plan:
    state, vf, address = port.state, port.vf(index), port.addresses[index]
    if vf and not port.returning and guards.is_ruled_by_user(state, vf):
        # Its driver is the guest's for as long as that runs, and comes back with its end.
        return Plan()
    if driver == "default":
        return _plan_default(port, index, vf)
    if vf and vf.driver == driver:
        return Plan()
    certainty = PREDICTED if port.born else CERTAIN
    if drivers.is_vfio(driver):
        has_group = state.iommu.active if vf is None else vf.group is not None
        sure = common.iommu_certainty(state, port.options, has_group)
        if sure is None:
            return Plan(refusals=[common.no_group(port.pf.address if vf is None else address, state)])
        if sure == AFTER_REBOOT:
            certainty = AFTER_REBOOT
    return _bind(port, index, driver, certainty)


def _bind(port: Port, index: int, driver: str, certainty: str) -> Plan:
    result = Plan()
    pf, vf = port.pf, port.vf(index)
    if vf:
        dangers = guards.before_unbind(port.state, vf) + guards.before_assignment(port.state, vf, driver)
    else:
        dangers = guards.before_birth(port.state, pf, port.addresses[index])
    if common.guarded(result, dangers, port.options, pf.address):
        return result
    result.actions.append(
        Action(
            kind="bind",
            unit=pf.address,
            text=f"bind VF {index} ({port.addresses[index]}) to {driver}{' (as it was before)' if index in port.kept else ''}",
            certainty=certainty,
            args={"pf": pf.address, "index": index, "driver": driver, **_was(vf)},
            before={f"vf {index} driver": vf.driver if vf else None},
            after={f"vf {index} driver": driver},
        )
    )
    if certainty == AFTER_REBOOT:
        result.reboot_reasons.append(f"{pf.address}: its VFs can be given to {driver} once the IOMMU is on")
    return result


def _plan_default(port: Port, index: int, vf: Function | None) -> Plan:
    """The driver that the kernel gives by itself. A VF that no driver takes for lack of resources is as wished, and so
    is one without a driver below a PF whose VFs are not probed."""
    pf = port.pf
    held = vf is not None and (vf.override is not None or drivers.is_vfio(vf.driver))
    if not port.sriov.autoprobe and not held:
        return Plan()
    online = secondary.goes_online(port, index)
    without = vf is not None and (vf.native in (None, *port.state.blacklisted) or (vf.native in drivers.NEEDS_RESOURCES and not online))
    if vf is not None and not held and (vf.driver or without):
        return Plan()
    native = vf.native if vf else None
    result = Plan()
    dangers = guards.before_unbind(port.state, vf) if vf and vf.driver else []
    dangers += guards.before_assignment(port.state, vf, native) if vf else []
    if common.guarded(result, dangers, port.options, pf.address):
        return result
    result.actions.append(
        Action(
            kind="release",
            unit=pf.address,
            text=f"let VF {index} ({port.addresses[index]}) have its own driver{f' ({native})' if native else ''}",
            certainty=PREDICTED if vf is None else CERTAIN,
            args={"pf": pf.address, "index": index, "native": native, "online": online, **_was(vf)},
            before={f"vf {index} driver": vf.driver if vf else None},
            after={f"vf {index} driver": native or "default"},
        )
    )
    return result


def _was(vf: Function | None) -> Mapping[str, Any]:
    return {"was_driver": vf.driver if vf else None, "was_override": vf.override if vf else None}
