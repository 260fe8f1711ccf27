# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""NVIDIA's vendor-specific VFIO framework: the type of each VF of a GPU (kernel 6.8 and newer).

One VF at a time: what is as wished is not written to. It speaks for each GPU under NVIDIA's driver that is no parent of mediated devices now: also
for one without VFs, which may turn out to be one, and for one that has no vGPUs, to say why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..host import Host
from ..mdev import facts as mdev
from ..model import CERTAIN, PREDICTED, Action, Function, Plan, State
from ..resources import common
from ..resources import mdev as machinery
from ..resources.common import Options, Target
from . import facts as reading
from . import nvidia

NAME = "nvidia_vfio"
DRIVERS = frozenset({nvidia.DRIVER})


def read(host: Host, state: State, function: Function) -> dict[str, Any] | None:
    """What the driver says of a GPU."""
    said = reading.read(host, function.address, function.sriov.vfs if function.sriov else {})
    keeper = any(host.files.exists(path) for path in mdev.KEEPERS)
    said["left"] = [] if said["vfs"] else _left(host, state, function.address)
    return {**said, "slots": said["vfs"], "mediated": False, "keeper": keeper, "beside": nvidia.beside(said)}


def _left(host: Host, state: State, pf: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Parent, UUID and definition of what mdevctl keeps of ours for VFs that are not there now."""
    entry = common.stored_entry(state, nvidia.RESOURCE, pf)
    ours = reading.mdevs_of(state.machine_id, entry).values()
    kept = [(parent, uuid, mdev.definition(host.files, parent, uuid)) for parent in host.files.names(mdev.DEFINED) for uuid in ours]
    return [(parent, uuid, found) for parent, uuid, found in kept if found]


def converge(state: State, targets: Sequence[Target], options: Options) -> Plan:
    """What makes the wishes for one GPU true."""
    return nvidia.converge(state, targets, options, _steps)


def give_back(state: State, target: Target, options: Options) -> Plan:
    """What puts it back as it was."""
    return nvidia.give_back(state, target, options, _steps)


def _steps(change: nvidia.Change) -> nvidia.Steps:
    """First what is cleared, so that its room is there for what comes; a VF goes from type to type by way of none."""
    todo, current = change.todo, nvidia.now(change.facts)
    cleared = [index for index in todo if current.get(index)]
    certainty = CERTAIN if change.facts["vfs"] and not cleared and not change.other else PREDICTED
    return nvidia.Steps(
        clear=[*_undefined(change), *(_set(change, index, 0, CERTAIN) for index in cleared)],
        fill=[_set(change, index, number, certainty) for index, number in todo.items() if number],
        held={index: change.facts["vfs"][index]["address"] for index in cleared},
    )


def _undefined(change: nvidia.Change) -> list[Action]:
    """mdevctl would start what it keeps once the VFs are there again: what is wished no longer, or with another type, goes before."""
    keys = {uuid: index for index, uuid in reading.mdevs_of(change.state.machine_id, change.entry).items()}
    left = change.facts["left"] if change.facts["keeper"] else []
    return [machinery.undefine(change.pf, parent, uuid, found) for parent, uuid, found in left if not _stays(change, keys[uuid], found)]


def _stays(change: nvidia.Change, index: int, defined: Mapping[str, Any]) -> bool:
    """That of somebody else's that was declared as it was stays, unless it had none before."""
    recorded: Mapping[str, Any] = change.entry or {"wish": {}, "origin": {}}
    if str(index) in recorded["wish"].get("mdevs", {}):
        before = recorded["origin"].get("mdevs", {}).get(str(index), {"defined": defined})
        return index in change.chosen or before["defined"] is not None
    # The name of its type tells nothing before the VFs are there; NVIDIA has its id in it.
    return index in change.chosen and defined.get("type") == f"nvidia-{change.chosen[index]}"


def _set(change: nvidia.Change, index: int, number: int, certainty: str) -> Action:
    facts, pf = change.facts, change.pf
    was = 0 if number else nvidia.now(facts)[index]
    name = nvidia.name_of(facts, number)
    return Action(
        kind="set_vgpu_type",
        unit=pf,
        text=f"give VF {index} the vGPU type {name}" if number else f"take the vGPU type {nvidia.name_of(facts, was)} from VF {index}",
        certainty=certainty,
        args={"pf": pf, "index": index, "to": number, "from": was, **({} if facts["vfs"] else _unborn(change, index, name))},
        before={f"VF {index} vGPU": nvidia.name_of(facts, was)} if was or not number else {},
        after={f"VF {index} vGPU": name},
    )


def _unborn(change: nvidia.Change, index: int, name: str | None) -> dict[str, Any]:
    """Nobody knows which framework the VFs will have: what the step needs where it is that of mediated devices."""
    uuid = reading.uuid_of(change.state.machine_id, change.wish, index) if change.state.machine_id else ""
    return {"name": name, "uuid": uuid, "keeper": change.facts["keeper"]}


# --- What is told of them ------------------------------------------------------------------------------------------


def shares(state: State, pf: str, wish: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """A guest takes the VF, which stays with NVIDIA's driver."""
    facts = state.more[nvidia.RESOURCE][pf]
    numbers = {type_["name"]: str(number) for number, type_ in facts["types"].items()}
    where = {str(index): slot["address"] for index, slot in facts["slots"].items()}
    vgpus = wish["vgpus"].items()
    return {"vgpus": {where.get(key, f"{pf} VF {key}"): {"type": numbers.get(name, name), "name": name, "gpu": pf} for key, name in vgpus}}


def have(facts: Mapping[str, Any]) -> dict[str, str]:
    """By the index of the VF."""
    return nvidia.have(facts)


def told(state: State, function: Function) -> dict[str, Any]:
    """What stands beside the wishes."""
    offered = state.more[nvidia.RESOURCE][function.address]["mode"] == "SR-IOV"
    return nvidia.told(state, function, NAME if offered else None)
