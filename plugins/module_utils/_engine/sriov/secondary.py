# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The secondary controller that an NVMe VF is: its queues, its interrupts, and whether it is online.

A secondary controller starts offline and without flexible resources; a driver takes it only once it is online, which
needs an admin queue, an I/O queue and an interrupt (NVM Express Base Specification, Virtualization Enhancements).
Resources change only while it is offline, and going offline takes all of them away. What the primary controller keeps
for itself changes with its next reset.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .. import drivers, guards, nvmecli
from ..errors import EngineError
from ..host import Host
from ..model import CERTAIN, PREDICTED, Action, Function, Plan, Refusal, State
from ..read import DEVICES
from ..resources import common
from ..resources.common import Target
from . import ranges
from .port import Port, is_number

NAME = "secondary"

#: Wish key of a VF -> fact of its secondary controller.
KEYS = {"nvme_queues": "queues", "nvme_interrupts": "interrupts", "online": "online"}
#: Wish key of a PF -> what its capabilities call the flexible resources that it keeps for itself.
PRIMARY_KEYS = {"nvme_primary_queues": "vqrfap", "nvme_primary_interrupts": "virfap"}

#: Fact, what a person calls it, and in the capabilities: all there are, held by the primary, at most for one VF.
_RESOURCES = (
    ("queues", "vqfrt", "vqrfap", "vqfrsm"),
    ("interrupts", "vifrt", "virfap", "vifrsm"),
)
#: The least that an online controller has: admin and I/O queue, one interrupt.
_LEAST = {"queues": 2, "interrupts": 1}

_NONE: Mapping[str, Any] = {"queues": 0, "interrupts": 0, "online": False}
_NVME_CLASS = "0108"


# --- Reading -------------------------------------------------------------------------------------------------------


def read_more(host: Host, state: State, targets: Sequence[Target]) -> State:
    """What the NVMe controllers say whose wish, or whose giving back, speaks of their secondary controllers."""
    facts = {}
    for target in targets:
        if _concerned(state, target) and target.function.driver == "nvme":
            facts[target.function.address] = _read(host, target)
    return state.with_more(NAME, facts) if facts else state


def _concerned(state: State, target: Target) -> bool:
    if target.absent:
        entry = common.stored_entry(state, "sriov", target.function.address)
        return bool(entry and "nvme_vfs" in entry["origin"])
    sriov, count = target.function.sriov, target.wish.get("vf_count")
    # A count that changes takes what the VFs of now have: the way back has to know it.
    lost = sriov is not None and bool(sriov.vfs) and count not in (None, len(sriov.vfs))
    return _named(target.wish) or (lost and target.function.class_code.startswith(_NVME_CLASS))


def _named(wish: Mapping[str, Any]) -> bool:
    parts = [wish.get("vf_defaults") or {}, *(wish.get("vfs") or [])]
    return any(wish.get(key) is not None for key in PRIMARY_KEYS) or any(
        part.get(key) is not None for part in parts for key in KEYS
    )


def _read(host: Host, target: Target) -> dict[str, Any]:
    """One process where all is as wished, two where something is to change."""
    try:
        device = nvmecli.controller(host, target.function.address)
        found: dict[str, Any] = {"controllers": nvmecli.secondaries(host, device)}
        if not _settled(target, found["controllers"]):
            found["capabilities"] = nvmecli.capabilities(host, device)
    except EngineError as error:
        return {"error": str(error)}
    found["reset"] = host.files.exists(f"{DEVICES}/{target.function.address}/reset")
    return found


def _settled(target: Target, controllers: Mapping[int, Mapping[str, Any]]) -> bool:
    """Are the wished VFs there and as wished, and is nothing wished of the primary controller?"""
    sriov, wish = target.function.sriov, target.wish
    if sriov is None or target.absent or any(wish.get(key) is not None for key in PRIMARY_KEYS):
        return False
    if wish.get("vf_count") not in (None, len(sriov.vfs)):
        return False
    wished, _wrong = ranges.wished_vfs(target.function.address, target.label, wish, len(sriov.vfs))
    return all(not _differing(vf, controllers.get(index, {})) for index, vf in wished.items())


def _differing(wish: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The facts of a secondary controller that are not as wished."""
    return [fact for key, fact in KEYS.items() if wish.get(key) is not None and wish[key] != now.get(fact)]


# --- Checking ------------------------------------------------------------------------------------------------------


def check(port: Port) -> list[Refusal]:
    """Can the wish be followed by this controller?"""
    if not _speaks_of_it(port):
        return []
    facts = port.state.more.get(NAME, {}).get(port.pf.address)
    if not port.pf.class_code.startswith(_NVME_CLASS):
        reason = "queues, interrupts and online are about NVMe controllers, and it is none."
        return [port.wrong(reason, "Take these keys out, or narrow the selector.")]
    if facts is None:
        reason = f"its secondary controllers are ruled through the nvme driver, and it has {port.pf.driver or 'none'}."
        return [port.wrong(reason, "Give the controller itself back to nvme.")]
    if "error" in facts:
        return [port.wrong(facts["error"], "")]
    wrong = list(_missing(port, facts)) or list(_values(port, facts))
    if wrong or "capabilities" not in facts:
        return wrong
    return list(_limits(port, facts)) or list(_overcommitted(port, facts)) + list(_primary_stuck(port, facts))


def _speaks_of_it(port: Port) -> bool:
    return any(key in port.wish for key in PRIMARY_KEYS) or bool(_wished(port))


def _wished(port: Port) -> dict[int, Mapping[str, Any]]:
    """VF index -> its wish, for those whose wish names one of our keys."""
    return {i: vf for i, vf in sorted(port.wished.items()) if any(vf.get(key) is not None for key in KEYS)}


def _missing(port: Port, facts: Mapping[str, Any]) -> Iterator[Refusal]:
    lacking = [index for index in _wished(port) if index not in facts["controllers"]]
    if lacking:
        reason = f"it lists no secondary controller for VF {', '.join(map(str, lacking))} (nvme list-secondary)."
        yield port.wrong(reason, "Take nvme_queues, nvme_interrupts and online out: it has no flexible resources.")


def _values(port: Port, facts: Mapping[str, Any]) -> Iterator[Refusal]:
    for key in PRIMARY_KEYS:
        if not is_number(port.wish.get(key, 0)):
            yield port.wrong(f"{key} {port.wish[key]} is no number from 0.", "Correct it.")
    for index in _wished(port):
        target = _target(port, facts, index)
        for fact, least in _LEAST.items():
            if not is_number(target[fact]):
                yield port.wrong(f"nvme_{fact} {target[fact]} of VF {index} is no number from 0.", "Correct it.")
            elif target["online"] and target[fact] < least:
                reason = f"VF {index} cannot be online with {target[fact]} {fact}: it needs {least} at least."
                yield port.wrong(reason, f"Set nvme_{fact} of this VF, or online: false.")


def _limits(port: Port, facts: Mapping[str, Any]) -> Iterator[Refusal]:
    for fact, _total, _primary, most in _RESOURCES:
        limit = facts["capabilities"][most]
        above = [index for index in _wished(port) if _target(port, facts, index)[fact] > limit]
        if above:
            asked = max(_target(port, facts, index)[fact] for index in above)
            reason = (
                f"nvme_{fact} {asked} of VF {', '.join(map(str, above))} is more than one VF can have "
                f"({most} is {limit})."
            )
            yield port.wrong(reason, "Lower it.")


def _overcommitted(port: Port, facts: Mapping[str, Any]) -> Iterator[Refusal]:
    for fact, total, primary, _most in _RESOURCES:
        there = facts["capabilities"][total]
        kept = port.wish.get(f"nvme_primary_{fact}", facts["capabilities"][primary])
        shares = {i: _after(port, facts, i)[fact] for i in facts["controllers"]}
        asked = sum(shares.values())
        if asked + kept <= there:
            continue
        whom = ", ".join(f"VF {index}: {share}" for index, share in shares.items() if share)
        reason = f"{asked} {fact} are wished for its VFs ({whom}), but it has {there} and keeps {kept} for itself."
        way_out = f"Lower nvme_{fact} of these VFs."
        if kept:
            way_out = f"Lower nvme_{fact} of these VFs, or let it keep fewer: nvme_primary_{fact}: 0."
        yield port.wrong(reason, way_out)


def _primary_stuck(port: Port, facts: Mapping[str, Any]) -> Iterator[Refusal]:
    """What the primary controller keeps changes by a reset of the function, which takes its VFs' controllers away."""
    if not _primary_changes(port, facts):
        return
    if port.sriov.vfs:
        reason = "what the controller keeps for itself changes by a reset of the function, and it has VFs."
        yield port.wrong(reason, "Set vf_count: 0 first, then both together.")
    elif not facts["reset"]:
        reason = "what the controller keeps for itself changes by a reset of the function, which it does not offer."
        yield port.wrong(reason, "Take nvme_primary_queues and nvme_primary_interrupts out.")


def _now(port: Port, facts: Mapping[str, Any], index: int) -> Mapping[str, Any]:
    """A VF that is born has nothing: its controller went offline with the VF before it."""
    now: Mapping[str, Any] = facts["controllers"].get(index, _NONE)
    return {**now, **_NONE} if port.born else now


def _target(port: Port, facts: Mapping[str, Any], index: int) -> dict[str, Any]:
    """How the secondary controller of a VF shall be; what the wish leaves unset stays as it is."""
    wish, now = port.wished.get(index, {}), _now(port, facts, index)
    asked = {fact: wish[key] for key, fact in KEYS.items() if wish.get(key) is not None}
    return {"id": now.get("id"), "queues": now["queues"], "interrupts": now["interrupts"], "online": now["online"], **asked}


def _after(port: Port, facts: Mapping[str, Any], index: int) -> Mapping[str, Any]:
    return _target(port, facts, index) if index in _wished(port) else _now(port, facts, index)


# --- Planning ------------------------------------------------------------------------------------------------------


def plan_primary(port: Port) -> Plan:
    """What the primary controller keeps for itself: before VFs are born, as it needs a reset of the function."""
    result = Plan()
    facts = port.state.more.get(NAME, {}).get(port.pf.address, {})
    changes = _primary_changes(port, facts)
    if not changes or common.guarded(result, guards.before_reset(port.pf), port.options, port.pf.address):
        return result
    caps = facts["capabilities"]
    before = {key: caps[PRIMARY_KEYS[key]] for key in changes}
    said = " and ".join(f"{value} flexible {key.rpartition('_')[2]}" for key, value in changes.items())
    result.actions.append(
        Action(
            kind="set_nvme_primary",
            unit=port.pf.address,
            text=f"let the controller keep {said} for itself, and reset it (its disks stall for a moment)",
            args={
                "pf": port.pf.address,
                "to": {PRIMARY_KEYS[key]: value for key, value in changes.items()},
                "from": {PRIMARY_KEYS[key]: value for key, value in before.items()},
            },
            before=before,
            after=changes,
        )
    )
    return result


def _primary_changes(port: Port, facts: Mapping[str, Any]) -> dict[str, int]:
    caps = facts.get("capabilities") or {}
    wished = {key: port.wish[key] for key in PRIMARY_KEYS if port.wish.get(key) is not None}
    return {key: value for key, value in wished.items() if caps and value != caps[PRIMARY_KEYS[key]]}


def plan(port: Port) -> Plan:
    """Resources and state of the secondary controllers that differ: all of them in one step, as one may need what
    another one gives up."""
    result = Plan()
    facts = port.state.more.get(NAME, {}).get(port.pf.address)
    wished = _wished(port)
    if not facts or not wished:
        return result
    changing = [index for index in wished if _differing(wished[index], _now(port, facts, index))]
    dangers = [d for i in changing if (vf := port.vf(i)) and vf.driver for d in guards.before_unbind(port.state, vf)]
    if not changing or common.guarded(result, dangers, port.options, port.pf.address):
        return result
    before, after = {i: _now(port, facts, i) for i in changing}, {i: _target(port, facts, i) for i in changing}
    result.actions.append(
        Action(
            kind="set_nvme_secondary",
            unit=port.pf.address,
            text="; ".join(_said(port, index, after[index]) for index in changing),
            certainty=PREDICTED if port.born else CERTAIN,
            args={
                "pf": port.pf.address,
                "to": [_step(port, index, after[index]) for index in changing],
                "from": [_step(port, index, before[index]) for index in changing],
            },
            before=_shown(before),
            after=_shown(after),
        )
    )
    return result


def _step(port: Port, index: int, controller: Mapping[str, Any]) -> dict[str, Any]:
    """A secondary controller with the driver that its VF gets back: it is taken away while the controller is offline."""
    vf = port.vf(index)
    return {**controller, "index": index, "driver": vf.driver if vf and _takes(vf, controller) else None}


def _takes(vf: Function, controller: Mapping[str, Any]) -> bool:
    return bool(controller["online"]) or vf.driver not in drivers.NEEDS_RESOURCES


def _said(port: Port, index: int, to: Mapping[str, Any]) -> str:
    state = "online" if to["online"] else "offline"
    return f"set VF {index} ({port.addresses[index]}) {state} with {to['queues']} queues and {to['interrupts']} interrupts"


def _shown(controllers: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"vf {i} {key}": c[fact] for i, c in controllers.items() for key, fact in KEYS.items()}


def goes_online(port: Port, index: int) -> bool:
    """Will the VF's controller be one that its own driver takes?"""
    facts = port.state.more.get(NAME, {}).get(port.pf.address)
    if not facts or "error" in facts or index not in _wished(port):
        return False
    return bool(_target(port, facts, index)["online"])


def vanishing(port: Port) -> list[dict[str, Any]]:
    """The controllers of the VFs that vanish with a count, for the way back; none where it was not read."""
    facts = port.state.more.get(NAME, {}).get(port.pf.address, {})
    found = []
    for index, address in port.sriov.vfs.items():
        controller = facts.get("controllers", {}).get(index)
        vf = port.state.functions.get(address)
        if controller and (controller["queues"] or controller["interrupts"]):
            found.append({**controller, "index": index, "driver": vf.driver if vf and _takes(vf, controller) else None})
    return found


def keep(port: Port) -> dict[int, dict[str, Any]]:
    """VF index -> the wish for what its controller has now and loses with the VF, where nobody wishes otherwise."""
    facts = port.state.more.get(NAME, {}).get(port.pf.address, {})
    found = {}
    for index, controller in facts.get("controllers", {}).items():
        usable = not controller["online"] or all(controller[fact] >= least for fact, least in _LEAST.items())
        if index < port.count and index in port.sriov.vfs and usable and any(controller[fact] for fact in _NONE):
            found[index] = {key: controller[fact] for key, fact in KEYS.items()}
    return found


def held_back(port: Port) -> list[int]:
    """VFs that no driver is to be offered at their birth: it would fail for want of resources."""
    return [index for index in _wished(port) if port.wished[index].get("online")]


# --- Giving back ---------------------------------------------------------------------------------------------------


def origin(port: Port) -> dict[str, Any]:
    """How the controllers were before; nothing where the wish does not speak of them and none of them vanishes."""
    facts = port.state.more.get(NAME, {}).get(port.pf.address)
    if not facts or "error" in facts or not (_speaks_of_it(port) or vanishing(port)):
        return {}
    vfs = {str(i): {k: c[k] for k in _NONE} for i, c in facts["controllers"].items() if i in port.sriov.vfs}
    caps = facts.get("capabilities") or {}
    primary = {key: caps[name] for key, name in PRIMARY_KEYS.items() if key in port.wish and caps}
    return {"nvme_vfs": vfs, **({"nvme_primary": primary} if primary else {})}


def given_back_vf(entry: Mapping[str, Any], index: int, ours: bool) -> dict[str, Any]:
    """The wish that makes a VF's controller what it was, if the collection has changed it or makes it anew."""
    was = entry["origin"].get("nvme_vfs", {}).get(str(index))
    if was is None or not ours:
        return {}
    return {key: was[fact] for key, fact in KEYS.items()}


def given_back_primary(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The wish that makes the primary controller keep what it kept before."""
    return dict(entry["origin"].get("nvme_primary", {}))


def cannot_give_back(port: Port) -> list[str]:
    """The primary controller cannot be reset under the VFs that stay."""
    facts = port.state.more.get(NAME, {}).get(port.pf.address, {})
    changes = _primary_changes(port, facts)
    if not changes:
        return []
    said = ", ".join(f"{key} {value}" for key, value in changes.items())
    return [f"{port.pf.address}: {said} was not given back: that takes a reset of the controller, and it has VFs."]


def facts_of(state: State, pf: str, index: int) -> dict[str, Any]:
    """A VF's controller in the form of a wish, where it was read."""
    controller = state.more.get(NAME, {}).get(pf, {}).get("controllers", {}).get(index)
    return {key: controller[fact] for key, fact in KEYS.items()} if controller else {}
