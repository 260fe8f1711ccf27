# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""GPUs that are divided into vGPUs, by intent: the driver is asked how it does that (vgpu/frameworks.py), and never the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .. import match
from ..host import Host
from ..model import Function, Plan, Refusal, State
from ..vgpu import facts as nvidia
from ..vgpu import frameworks, shares
from . import common
from .common import Options, Target

NAME = "vgpu"
#: The driver that names its GPUs by UUID and serial number.
DRIVER = "nvidia"


def needs(wishes: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """Drivers that the wishes name: none."""
    return frozenset()


def read_more(host: Host, state: State, wishes: Sequence[Mapping[str, Any]], options: Options) -> State:
    """What the drivers say of the GPUs that are named."""
    state = _identified(host, state, wishes)
    found, _wrong = common.targets(state, NAME, wishes, options, several=True)
    named = {t.function.address: t.function for t in found if t.function.address in state.functions}
    answers = {a: frameworks.ask(host, state, f) for a, f in named.items() if not f.physfn}
    told = {address: facts for address, facts in answers.items() if facts is not None}
    named_by = {address: {key: facts[key] for key in match.BY_DRIVER if facts.get(key)} for address, facts in told.items()}
    known = state.more.get(match.GPUS, {})
    return state.with_more(NAME, told).with_more(match.GPUS, {a: {**known.get(a, {}), **named} for a, named in named_by.items()})


def _identified(host: Host, state: State, wishes: Sequence[Mapping[str, Any]]) -> State:
    """What a GPU is named by that its driver alone tells, where a wish names one so: a file for the UUID, a process for the serial number."""
    asked = {key for wish in wishes for key in match.BY_DRIVER if (wish.get("match") or {}).get(key)}
    found: dict[str, dict[str, str]] = {}
    if "uuid" in asked:
        found = {address: {"uuid": uuid} for address, uuid in nvidia.uuids(host.files).items()}
    if "serial" in asked and any(f.driver == DRIVER for f in state.functions.values()):
        for address, serial in nvidia.serials(host).items():
            found.setdefault(address, {})["serial"] = serial
    return state.with_more(match.GPUS, found) if found else state


def plan(state: State, wishes: Sequence[Mapping[str, Any]], options: Options) -> Plan:
    """What makes the wishes true on this host. Several wishes may speak of one GPU."""
    result = Plan()
    found, result.refusals = common.targets(state, NAME, wishes, options, several=True)
    for targets in common.by_device(found).values():
        if common.refuse_all(result, common.present_and_absent(targets)):
            continue
        result.extend(_give_back(state, targets[0], options) if targets[0].absent else _converge(state, targets, options))
    result.predicted = shares.to_come(state, result.actions)
    return result


def _converge(state: State, targets: Sequence[Target], options: Options) -> Plan:
    result, first = Plan(), targets[0]
    framework = _framework(state, first.function.address)
    if common.refuse_all(result, common.conflict(state, NAME, first)):
        return result
    if framework is None:
        result.refusals.append(_nobody_divides(first))
        return result
    return framework.converge(state, targets, options)


def _give_back(state: State, target: Target, options: Options) -> Plan:
    """What the collection never made, it leaves alone. A GPU that was pulled, or that nobody divides now, loses its record."""
    framework = _framework(state, target.function.address)
    if framework is None:
        return Plan(actions=common.forget(state, NAME, target.function))
    return framework.give_back(state, target, options) if common.stored_entry(state, NAME, target.function.address) else Plan()


def _framework(state: State, address: str) -> frameworks.Framework | None:
    said = state.more.get(NAME, {}).get(address)
    return frameworks.named(said["framework"]) if said else None


def _nobody_divides(target: Target) -> Refusal:
    function = target.function
    if function.physfn:
        reason = f"{target.label}: it is a VF of {function.physfn}."
        return Refusal(function.address, reason, "Name the GPU; its VFs are chosen by count. Nothing was changed.")
    asked = ", ".join(sorted(frameworks.drivers()))
    reason = f"{target.label}: its driver is {function.driver or 'none'}, and those that divide a GPU are {asked}."
    return Refusal(function.address, reason, "Load the vendor's driver for hosts of vGPUs. Nothing was changed.")


# --- What is told of them ------------------------------------------------------------------------------------------


def info(state: State) -> list[dict[str, Any]]:
    """The vGPUs of the GPUs that were looked at, in the form of wishes: one for each type. What a GPU is beyond that stands in the first."""
    wishes: list[dict[str, Any]] = []
    for pf, said in state.more.get(NAME, {}).items():
        if "wishes" in said:
            wishes += [{"match": {"address": [pf]}, **wish} for wish in said["wishes"]]
            continue
        types = sorted(Counter(_have(state, pf).values()).items())
        found: list[dict[str, Any]] = [{"match": {"address": [pf]}, "type": type_, "count": count} for type_, count in types]
        if said.get("beside"):
            found = [{**(found[0] if found else {"match": {"address": [pf]}}), **said["beside"]}, *found[1:]]
        wishes += found
    return wishes


def _have(state: State, address: str) -> dict[str, str]:
    framework = _framework(state, address)
    return framework.have(state.more[NAME][address]) if framework else {}


def told_of(state: State) -> list[str]:
    """All GPUs whose driver may divide them."""
    asked = frameworks.drivers()
    return [f.address for f in state.functions.values() if f.driver in asked and not f.physfn and f.class_code.startswith("03")]


def all_of(state: State) -> list[dict[str, Any]]:
    """A wish that names them all, so that they are read."""
    addresses = told_of(state)
    return [{"match": {"address": addresses}}] if addresses else []


def facts(state: State, function: Function) -> dict[str, Any]:
    """What stands beside the wishes."""
    framework = _framework(state, function.address)
    return {"driver": function.driver, **(framework.told(state, function) if framework else {"framework": None})}


def now(state: State, address: str) -> dict[str, Any]:
    """What the operator's command shows of a GPU."""
    return {"vgpus": _have(state, address), **(state.more.get(NAME, {}).get(address, {}).get("beside") or {})}


def in_short(wish: Mapping[str, Any]) -> str:
    """'2 NVIDIA L40S-24Q', 'MIG: 7 1g.5gb'."""
    parts = [f"{count} {name}" for name, count in sorted(Counter(wish["vgpus"].values()).items())] or ["no vGPU"]
    return ", ".join(parts + ([_mig_in_short(wish["mig"])] if wish.get("mig") else []))


def _mig_in_short(said: Mapping[str, Any]) -> str:
    """Of a record, or as it is."""
    instances = said.get("instances") or {}
    counts = instances if isinstance(instances, Mapping) else {item["profile"]: item["count"] for item in instances}
    words = " and ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    return "MIG: " + (words or ("on" if said["enabled"] else "off"))
