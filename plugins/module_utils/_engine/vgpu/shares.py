# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The vGPUs on VFs of the host's GPUs, as guests take them (guests/shares.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..host import Host
from ..model import Action, State
from . import facts


def read(host: Host, state: State, assumed: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """VF -> the vGPU type that it has now (id and name), its GPU, and whether it is declared. Only GPUs are asked that the resource vgpu has declared.
    `assumed`: VFs that get a type, or lose it (None), by an earlier call of the same run."""
    found: dict[str, dict[str, Any]] = {}
    for pf, entry in sorted(state.stored.get("vgpu", {}).get("devices", {}).items()):
        function = state.functions.get(pf)
        vfs = function.sriov.vfs if function and function.sriov else {}
        said = facts.read(host, pf, vfs)
        names = {number: type_["name"] for number, type_ in said["types"].items()}
        declared = entry["wish"].get("vgpus", {})
        for index, vf in said["vfs"].items():
            if vf["current"]:
                number = vf["current"]
                found[vf["address"]] = {"type": str(number), "name": names.get(number, ""), "gpu": pf, "declared": str(index) in declared}
    for address, vgpu in assumed.items():
        found.pop(address, None)
        if vgpu is not None and address in state.functions:
            found[address] = {**vgpu, "declared": True}
    return found


def to_come(state: State, actions: Sequence[Action]) -> dict[str, Any]:
    """VF -> the vGPU that it will have by the steps of a call, None where it loses it. In check mode guests are planned by that. A VF that is not
    there yet goes by its GPU and its index."""
    vgpus: dict[str, Any] = {}
    for action in actions:
        if action.kind != "declare":
            continue
        pf, entry = action.unit, action.args["entry"]
        said = state.more["vgpu"].get(pf) or {"types": {}, "vfs": {}}
        old, new = (one["wish"].get("vgpus", {}) if one else {} for one in (state.stored["vgpu"]["devices"].get(pf), entry))
        numbers = {facts_["name"]: str(number) for number, facts_ in said["types"].items()}
        where = {str(index): vf["address"] for index, vf in said["vfs"].items()}
        vgpus.update({where.get(index, f"{pf} VF {index}"): None for index in old})
        vgpus.update({where.get(index, f"{pf} VF {index}"): {"type": numbers.get(name, name), "name": name, "gpu": pf} for index, name in new.items()})
    return {"vgpus": vgpus} if vgpus else {}
