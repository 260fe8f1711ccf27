# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Intel GVT-g: vGPUs are mediated devices of the GPU, whose types i915 with kvmgt offers (intel_gvt_init_vgpu_types, drivers/gpu/drm/i915/gvt/vgpu.c).

The devices are those of the resource mdev and made by its steps: mdevctl keeps them where it is installed. Their UUIDs follow from the host, the GPU
and the number of the vGPU. Those of others that have a wished type count, and stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..host import Host
from ..mdev import facts as mdev
from ..model import Function, Plan, Refusal, State
from ..resources import common
from ..resources import mdev as machinery
from ..resources.common import Options, Target
from . import facts as reading

NAME = "intel_gvt"
DRIVERS = frozenset({"i915"})
RESOURCE = "vgpu"


def read(host: Host, state: State, function: Function) -> dict[str, Any] | None:
    """What the driver says of a GPU that is a parent of mediated devices. Files only."""
    pf = function.address
    if not host.files.exists(f"{mdev.PARENTS}/{pf}"):
        return None
    said = mdev.read(host.files)
    of_gpu = {
        "keeper": said["keeper"],
        "parents": {pf: said["parents"].get(pf, {})},
        "devices": {uuid: device for uuid, device in said["devices"].items() if device["parent"] == pf},
        "defined": said["defined"],
    }
    return {"uuid": "", "serial": "", "beside": {}, "mdev": of_gpu}


def _types(facts: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    (types,) = facts["mdev"]["parents"].values()
    return dict(types)


# --- Plan ----------------------------------------------------------------------------------------------------------


def converge(state: State, targets: Sequence[Target], options: Options) -> Plan:
    """What makes the wishes for one GPU true."""
    result, first = Plan(), targets[0]
    pf, facts = first.function.address, state.more[RESOURCE][first.function.address]
    entry = common.stored_entry(state, RESOURCE, pf)
    if common.refuse_all(result, _not_possible(state, first, entry)):
        return result
    wanted, wrong = _wanted(targets, facts)
    if common.refuse_all(result, wrong):
        return result
    wish = _recorded(state, pf, facts, wanted, entry)
    result.warnings += common.overruled(state, RESOURCE, pf, wish, options)
    state = state.with_more(machinery.NAME, facts["mdev"])
    steps, gone = _steps(state, pf, wish, entry)
    if common.refuse_all(result, steps.no_room(first)) or machinery.in_use(result, state, steps, gone, options):
        return result
    result.actions = common.declare(state, RESOURCE, first.function, wish, _origin(facts, wish, entry), result.waived, whole=True)
    result.actions += steps.actions()
    return result


def _refusal(target: Target, reason: str, way_out: str) -> Refusal:
    return Refusal(target.function.address, f"{target.label}: {reason}", f"{way_out} Nothing was changed.")


def _not_possible(state: State, target: Target, entry: Mapping[str, Any] | None) -> list[Refusal]:
    if entry and entry["wish"]["framework"] != NAME:
        reason = "its vGPUs were declared as VFs, and its driver makes mediated devices of it now (GVT-g)."
        return [_refusal(target, reason, "Give them back first (state: absent).")]
    if not state.machine_id:
        return [_refusal(target, "this host has no /etc/machine-id to derive UUIDs from.", "Make one (systemd-machine-id-setup).")]
    return []


def _wanted(targets: Sequence[Target], facts: Mapping[str, Any]) -> tuple[dict[int, str] | list[str], list[Refusal]]:
    """The types that a GPU shall have: by number, as the record has them, or one for each vGPU."""
    wanted: list[str] = []
    types = _types(facts)
    for target in targets:
        wish = target.wish
        if wish.get("vgpus") is not None:
            return {int(index): type_ for index, type_ in wish["vgpus"].items()}, []
        found = [id_ for id_, said in types.items() if wish.get("type") in (id_, said["name"])]
        if len(found) != 1:
            offered = ", ".join(f"{id_} ({said['available']} free)" for id_, said in types.items())
            return [], [_refusal(target, f"it knows no type {wish.get('type')!r}.", f"It knows {offered or 'none'}.")]
        if wish.get("count") is None or not 0 <= wish["count"] <= common.MOST:
            return [], [_refusal(target, f"its count is {wish.get('count')}.", f"Say how many of the type there shall be, up to {common.MOST}.")]
        for key in ("mig", "profile"):
            if wish.get(key):
                return [], [_refusal(target, f"a vGPU of GVT-g has no {key}.", f"Leave {key} out: its type says what it has.")]
        wanted += found * wish["count"]
    return wanted, []


def _recorded(
    state: State, pf: str, facts: Mapping[str, Any], wanted: dict[int, str] | list[str], entry: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What has its type keeps its number: those that are ours, then those of others; then ours change, and new ones come."""
    old: Mapping[str, Any] = entry["wish"] if entry else {"vgpus": {}, "named_after": pf, "mdevs": {}}
    if isinstance(wanted, dict):
        return dict(old)
    known = {int(index): type_ for index, type_ in old["vgpus"].items()}
    rest, chosen, adopted = Counter(wanted), {}, {}
    for index, type_ in sorted(known.items()):
        if rest[type_] > 0:
            chosen[index], rest[type_] = type_, rest[type_] - 1
    ours = {reading.uuid_of(state.machine_id, old, index) for index in known}
    numbers = iter(range(len(known) + len(facts["mdev"]["devices"]) + len(wanted)))
    for uuid, device in sorted(facts["mdev"]["devices"].items()):
        if uuid not in ours and rest[device["type"]] > 0:
            index = next(number for number in numbers if number not in known)
            chosen[index], rest[device["type"]] = device["type"], rest[device["type"]] - 1
            adopted[index] = uuid
    for type_ in rest.elements():
        changing = [index for index in sorted(known) if index not in chosen and str(index) not in old.get("mdevs", {})]
        chosen[changing[0] if changing else next(number for number in numbers if number not in known)] = type_
    kept = {str(index): uuid for index, uuid in adopted.items()}
    kept.update({key: uuid for key, uuid in old.get("mdevs", {}).items() if int(key) in chosen})
    vgpus = {str(index): type_ for index, type_ in sorted(chosen.items())}
    return {"framework": NAME, "vgpus": vgpus, "named_after": old["named_after"], "mdevs": kept}


def _origin(facts: Mapping[str, Any], wish: Mapping[str, Any], entry: Mapping[str, Any] | None) -> dict[str, Any]:
    """How those of others were that are declared as they were."""
    old = entry["origin"].get("mdevs", {}) if entry else {}
    (pf,) = facts["mdev"]["parents"]
    found = facts["mdev"]["defined"].get(pf, {})
    return {"mdevs": {key: old.get(key) or {"active": True, "defined": found.get(uuid)} for key, uuid in wish["mdevs"].items()}}


def _steps(state: State, pf: str, wish: Mapping[str, Any], entry: Mapping[str, Any] | None) -> tuple[machinery.Steps, list[str]]:
    """And the devices that go for good."""
    steps, gone = machinery.Steps(state, pf), []
    old, origins = (entry["wish"], entry["origin"].get("mdevs", {})) if entry else ({"vgpus": {}}, {})
    for key in (key for key in old["vgpus"] if key not in wish["vgpus"]):
        uuid = reading.uuid_of(state.machine_id, old, int(key))
        steps.give_back(uuid, origins.get(key, machinery.NOTHING))
        gone.append(uuid)
    for key, type_ in wish["vgpus"].items():
        uuid = reading.uuid_of(state.machine_id, wish, int(key))
        if key in wish["mdevs"] and uuid in state.more[machinery.NAME]["devices"]:
            # Somebody else's keeps the definition that it has, or has none.
            continue
        steps.converge(uuid, {"type": type_, "attributes": [], "autostart": True}, None, False)
    return steps, gone


def give_back(state: State, target: Target, options: Options) -> Plan:
    """What puts it back as it was. What it never made, it leaves alone."""
    result, pf = Plan(), target.function.address
    entry = common.stored_entry(state, RESOURCE, pf) or {}
    if entry["wish"]["framework"] != NAME:
        return Plan(refusals=_not_possible(state, target, entry))
    state = state.with_more(machinery.NAME, state.more[RESOURCE][pf]["mdev"])
    steps, gone = _steps(state, pf, {"vgpus": {}, "mdevs": {}}, entry)
    if not machinery.in_use(result, state, steps, gone, options):
        result.actions = [*steps.actions(), *common.forget(state, RESOURCE, target.function)]
    return result


# --- What is told of them ------------------------------------------------------------------------------------------


def shares(state: State, pf: str, wish: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """A guest takes the mediated device."""
    found = mdevs(state.machine_id, wish).items()
    return {"mdevs": {uuid: {"parent": pf, "type": wish["vgpus"][key], "pool": ""} for key, uuid in found}}


def mdevs(machine_id: str, wish: Mapping[str, Any]) -> dict[str, str]:
    """Of a record of GVT-g."""
    if wish.get("framework") != NAME:
        return {}
    return {key: reading.uuid_of(machine_id, wish, int(key)) for key in sorted(wish["vgpus"], key=int)}


def have(facts: Mapping[str, Any]) -> dict[str, str]:
    """By number."""
    return {str(number): device["type"] for number, (_uuid, device) in enumerate(sorted(facts["mdev"]["devices"].items()))}


def told(state: State, function: Function) -> dict[str, Any]:
    """What stands beside the wishes."""
    said, entry = state.more[RESOURCE][function.address], common.stored_entry(state, RESOURCE, function.address)
    wish = entry["wish"] if entry and entry["wish"]["framework"] == NAME else {"vgpus": {}}
    known = {reading.uuid_of(state.machine_id, wish, int(key)): type_ for key, type_ in wish["vgpus"].items()}
    return {
        "framework": NAME,
        "declared": bool(known),
        "types": [{"id": id_, "name": type_["name"], "free": type_["available"]} for id_, type_ in _types(said).items()],
        "vgpus": [
            {"index": number, "address": function.address, "uuid": uuid, "type": device["type"], "declared": known.get(uuid)}
            for number, (uuid, device) in enumerate(sorted(said["mdev"]["devices"].items()))
        ],
    }
