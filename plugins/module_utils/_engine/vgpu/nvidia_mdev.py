# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""NVIDIA's older framework: vGPUs are mediated devices, of the GPU itself (up to Turing) or one of each of its VFs (Ampere).

The devices are those of the resource mdev and made by its steps: mdevctl keeps them where it is installed. Their UUIDs follow from the host, the GPU
and the number of the vGPU. Layout: Documentation/ABI/testing/sysfs-bus-vfio-mdev; NVIDIA's types are named nvidia-ID.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..host import Files, Host
from ..mdev import facts as mdev
from ..model import PREDICTED, Action, Function, Plan, State
from ..resources import common
from ..resources import mdev as machinery
from ..resources.common import Options, Target
from . import facts as reading
from . import nvidia

NAME = "nvidia_mdev"
DRIVERS = frozenset({nvidia.DRIVER})

Slots = dict[int, dict[str, Any]]


def read(host: Host, state: State, function: Function) -> dict[str, Any] | None:
    """What the driver says of a GPU that is a parent of mediated devices, or whose VFs are."""
    vfs = function.sriov.vfs if function.sriov else {}
    parents = reading.parents(host.files, function.address, vfs) or _awaited(host, function.address, vfs)
    if not parents:
        return None
    said = {**reading.read(host, function.address, vfs), "mediated": True, "mdev": _of_these(mdev.read(host.files), parents)}
    said["beside"] = nvidia.beside(said)
    offers = {parent: _offers(host.files, parent, said["types"]) for parent in parents}
    entry = common.stored_entry(state, nvidia.RESOURCE, function.address)
    ours = reading.mdevs_of(state.machine_id, entry)
    if function.address in parents:
        return {**said, **_of_the_gpu(said, function.address, offers[function.address], ours)}
    slots = {index: _slot(said, vf, offers.get(vf, {}), _on(said, vf), ours.get(index)) for index, vf in vfs.items()}
    return {**said, "slots": slots}


def _awaited(host: Host, pf: str, vfs: Mapping[int, str]) -> list[str]:
    """A GPU whose driver says that it divides it without VFs, and that is no parent yet: its driver may just have been loaded."""
    if vfs or not reading.without_vfs(host, pf):
        return []
    host.wait(lambda: bool(reading.parents(host.files, pf, {})), machinery.REGISTER_LIMIT)
    return reading.parents(host.files, pf, {})


def _of_these(found: dict[str, Any], parents: Sequence[str]) -> dict[str, Any]:
    """Mediated devices of this GPU; definitions of all, as a UUID may be taken."""
    devices = {uuid: device for uuid, device in found["devices"].items() if device["parent"] in parents}
    return {**found, "devices": devices, "parents": {parent: found["parents"].get(parent, {}) for parent in parents}}


def _offers(files: Files, parent: str, types: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Type -> its id and free instances at this parent. Types go by their name; one that nvidia-smi does not know is taken from its description."""
    numbers = {type_["name"]: number for number, type_ in types.items()}
    found = {}
    for id_, said in mdev.types(files, parent).items():
        number = numbers.get(said["name"])
        if number is None and re.fullmatch(r"nvidia-\d+", id_):
            number = int(id_.partition("-")[2])
            types[number] = _described(said["name"], files.attr(f"{mdev.PARENTS}/{parent}/mdev_supported_types/{id_}/description") or "")
        if number is not None:
            found[number] = {"id": id_, "available": said["available"]}
    return found


def _described(name: str, text: str) -> dict[str, Any]:
    """'num_heads=4, frl_config=60, framebuffer=4096M, max_resolution=7680x4320, max_instance=4'."""
    said = {key: int(value) for key, value in re.findall(r"(framebuffer|max_instance)=(\d+)", text)}
    memory, most = said.get("framebuffer", 0), said.get("max_instance", 0)
    # GPU instances stand before the size: 'GRID A100-1-5C'.
    backed = re.search(r"-\d+-\d+[A-Z]", name) is not None
    return {"name": name, "memory": memory, "most": most, "mig": backed, "profile": None, "per_instance": 1}


def _on(said: Mapping[str, Any], parent: str) -> list[str]:
    return sorted(uuid for uuid, device in said["mdev"]["devices"].items() if device["parent"] == parent)


def _of_the_gpu(said: Mapping[str, Any], pf: str, offers: Mapping[int, Mapping[str, Any]], ours: Mapping[int, str]) -> dict[str, Any]:
    """As many slots as it can have vGPUs: ours by their numbers, then those of others."""
    found = _on(said, pf)
    slots: Slots = {index: _slot(said, pf, offers, [uuid] if uuid in found else [], uuid) for index, uuid in ours.items()}
    numbers = (index for index in range(len(ours) + len(found) + _most(said["types"])) if index not in ours)
    for uuid in (uuid for uuid in found if uuid not in ours.values()):
        slots[next(numbers)] = _slot(said, pf, offers, [uuid], None)
    while len(slots) < max(_most(said["types"]), len(found)):
        slots[next(numbers)] = _slot(said, pf, offers, [], None)
    return {"slots": dict(sorted(slots.items())), "free": {number: offer["available"] for number, offer in offers.items()}}


def _most(types: Mapping[int, Mapping[str, Any]]) -> int:
    return max((type_["most"] for type_ in types.values()), default=0)


def _slot(said: Mapping[str, Any], parent: str, offers: Mapping[int, Mapping[str, Any]], found: Sequence[str], ours: str | None) -> dict[str, Any]:
    """`foreign`: somebody else made what is there. `before`: how that is, and how mdevctl has it."""
    uuid = found[0] if found else None
    type_ = said["mdev"]["devices"][uuid]["type"] if uuid else None
    defined = said["mdev"]["defined"].get(parent, {}).get(uuid)
    return {
        "address": parent,
        "ready": True,
        "current": next((number for number, offer in offers.items() if offer["id"] == type_), 0),
        "creatable": [number for number, offer in offers.items() if offer["available"]],
        "ids": {number: offer["id"] for number, offer in offers.items()},
        "uuid": uuid,
        "foreign": uuid is not None and uuid != ours,
        "before": {"active": True, "defined": defined} if uuid and uuid != ours else None,
    }


# --- Plan ----------------------------------------------------------------------------------------------------------


def converge(state: State, targets: Sequence[Target], options: Options) -> Plan:
    """What makes the wishes for one GPU true."""
    if not state.machine_id:
        reason, way_out = "this host has no /etc/machine-id to derive UUIDs from.", "Make one (systemd-machine-id-setup)."
        return Plan(refusals=[nvidia.refusal(targets[0], reason, way_out)])
    result = nvidia.converge(_with_mdevs(state, targets[0].function.address), targets, options, _steps)
    result.refusals += _taken(state, targets[0], result)
    return result


def give_back(state: State, target: Target, options: Options) -> Plan:
    """What puts it back as it was."""
    return nvidia.give_back(_with_mdevs(state, target.function.address), target, options, _steps)


def _with_mdevs(state: State, pf: str) -> State:
    """For the steps of mdev, which look there."""
    return state.with_more(machinery.NAME, state.more[nvidia.RESOURCE][pf]["mdev"])


def _steps(change: nvidia.Change) -> nvidia.Steps:
    """One after the other: what stops, the definitions, what starts; all of them share the fate of the GPU."""
    parents: dict[str, machinery.Steps] = {}
    origins = change.entry["origin"].get("mdevs", {}) if change.entry else {}
    undefined: list[Action] = []
    for index, _number in sorted(change.dropped.items()):
        slot = change.facts["slots"].get(index)
        if slot is None:
            undefined += _undefined(change, _uuid_before(change, index), origins.get(str(index), machinery.NOTHING))
            continue
        steps = parents.setdefault(slot["address"], machinery.Steps(change.state, slot["address"]))
        steps.give_back(_uuid_before(change, index), origins.get(str(index), machinery.NOTHING))
    for index, number in sorted(change.chosen.items()):
        slot = change.facts["slots"].get(index)
        if slot and number in slot["ids"]:
            steps = parents.setdefault(slot["address"], machinery.Steps(change.state, slot["address"]))
            _keep(change, index, number, steps)
    actions = [*undefined, *(replace(action, unit=change.pf) for steps in parents.values() for action in steps.actions())]
    stops = [action for action in actions if action.kind == "mdev_stop"]
    moved = bool(stops) or change.other
    return nvidia.Steps(
        clear=stops,
        fill=[_uncertain(action) if moved and action.kind == "mdev_start" else action for action in actions if action not in stops],
        held={index: action.args["uuid"] for index, slot in change.facts["slots"].items() for action in stops if action.args["uuid"] == slot["uuid"]},
    )


def _uncertain(action: Action) -> Action:
    return replace(action, certainty=PREDICTED)


def _uuid(change: nvidia.Change, index: int) -> str:
    return reading.uuid_of(change.state.machine_id, change.wish, index)


def _uuid_before(change: nvidia.Change, index: int) -> str:
    """As it was recorded: of somebody else's that is no longer wished the new wish has lost the UUID."""
    return reading.uuid_of(change.state.machine_id, change.entry["wish"] if change.entry else change.wish, index)


def _undefined(change: nvidia.Change, uuid: str, before: Mapping[str, Any]) -> list[Action]:
    """What mdevctl keeps for a VF that is gone, it would start once that is there again."""
    found = change.facts["mdev"]
    if not found["keeper"] or before["defined"] is not None:
        return []
    kept = [(parent, devices[uuid]) for parent, devices in found["defined"].items() if uuid in devices]
    return [machinery.undefine(change.pf, parent, uuid, definition) for parent, definition in kept]


def _keep(change: nvidia.Change, index: int, number: int, steps: machinery.Steps) -> None:
    """Somebody else's that was declared as it was keeps the definition that it has, or has none."""
    slot, uuid = change.facts["slots"][index], _uuid(change, index)
    adopted = str(index) in change.wish.get("mdevs", {})
    if adopted and slot["uuid"] == uuid:
        return
    defined = (change.facts["mdev"]["defined"].get(slot["address"], {}).get(uuid) if adopted else None) or {}
    wanted = {"type": slot["ids"][number], "attributes": defined.get("attributes", []), "autostart": defined.get("autostart", True)}
    steps.converge(uuid, wanted, None, False)


def _taken(state: State, target: Target, plan: Plan) -> Iterator[Any]:
    """A UUID of ours that somebody defined elsewhere."""
    defined = state.more[nvidia.RESOURCE][target.function.address]["mdev"]["defined"]
    for action in plan.actions:
        if action.kind == "mdev_start":
            uuid, parent = action.args["uuid"], action.args["parent"]
            others = [other for other, devices in defined.items() if other != parent and uuid in devices]
            for other in others:
                reason = f"the UUID {uuid} is defined on {other} ({mdev.DEFINED}/{other}/{uuid})."
                yield nvidia.refusal(target, reason, "Let mdevctl undefine it there first.")


# --- What is told of them ------------------------------------------------------------------------------------------


def shares(state: State, pf: str, wish: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """A guest takes the mediated device."""
    facts = state.more[nvidia.RESOURCE][pf]
    numbers = {type_["name"]: number for number, type_ in facts["types"].items()}
    found = {}
    for key, uuid in mdevs(state.machine_id, wish).items():
        slot = facts["slots"].get(int(key))
        id_ = slot["ids"].get(numbers.get(wish["vgpus"][key])) if slot else None
        if slot and id_:
            found[uuid] = {"parent": slot["address"], "type": id_, "pool": ""}
    return {"mdevs": found}


def mdevs(machine_id: str, wish: Mapping[str, Any]) -> dict[str, str]:
    """Of a record that does not tell which of NVIDIA's frameworks it is of: in the other one nothing has these UUIDs."""
    if wish.get("framework") != nvidia.RECORD:
        return {}
    return {key: reading.uuid_of(machine_id, wish, int(key)) for key in sorted(wish["vgpus"], key=int)}


def have(facts: Mapping[str, Any]) -> dict[str, str]:
    """By the index of the VF, or the number of the vGPU."""
    return nvidia.have(facts)


def told(state: State, function: Function) -> dict[str, Any]:
    """What stands beside the wishes."""
    return nvidia.told(state, function, NAME)
