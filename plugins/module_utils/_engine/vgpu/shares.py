# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The vGPUs of the host's GPUs, as guests take them (guests/shares.py): VFs, or mediated devices, as the framework has them (frameworks.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..host import Host
from ..model import LATER, Action, State
from . import frameworks

RESOURCE = "vgpu"


def read(host: Host, state: State, assumed: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """VF -> the vGPU type that it has now (id and name), its GPU, and whether it is declared. Only GPUs are asked that the resource vgpu has declared.
    Mediated devices are no part of it: the kernel tells of them. `assumed`: VFs that get a type, or lose it (None), by an earlier call of the
    same run."""
    found: dict[str, dict[str, Any]] = {}
    for pf, wish in _recorded(state).items():
        function = state.functions.get(pf)
        said = frameworks.ask(host, state, function) if function else None
        framework = frameworks.named(said["framework"]) if said else None
        shares = frameworks.shares_of(framework) if framework else None
        if said and framework and shares:
            told = state.with_more(RESOURCE, {pf: said})
            declared = shares(told, pf, wish).get("vgpus", {})
            there = shares(told, pf, {**wish, "vgpus": framework.have(said)}).get("vgpus", {})
            # Whoever gave a VF another type than the declared one did not declare that.
            found.update({vf: {**vgpu, "declared": declared.get(vf, {}).get("type") == vgpu["type"]} for vf, vgpu in there.items()})
    for address, vgpu in assumed.items():
        found.pop(address, None)
        if vgpu is not None and address in state.functions:
            found[address] = {**vgpu, "declared": True}
    return found


def _recorded(state: State) -> dict[str, Mapping[str, Any]]:
    """GPU -> its wish."""
    return {pf: entry["wish"] for pf, entry in sorted(state.stored.get(RESOURCE, {}).get("devices", {}).items())}


def mdevs(state: State) -> dict[str, str]:
    """UUID -> GPU, of the mediated devices that vgpu has declared, there or not; by the record alone."""
    return {uuid: pf for pf, wish in _recorded(state).items() for uuid in frameworks.mdevs_of(state.machine_id, wish).values()}


def to_come(state: State, actions: Sequence[Action]) -> dict[str, Any]:
    """What guests can take of the GPUs that change, as it will be by the steps of a call; None for what goes. In check mode guests are planned by that."""
    result: dict[str, dict[str, Any]] = {}
    for pf in dict.fromkeys(action.unit for action in actions):
        said = state.more[RESOURCE].get(pf)
        framework = frameworks.named(said["framework"]) if said else None
        if framework and frameworks.shares_of(framework):
            for kind, name, share in _of_gpu(state, pf, framework, [action for action in actions if action.unit == pf]):
                result.setdefault(kind, {})[name] = share
    return result


def _of_gpu(state: State, pf: str, framework: frameworks.Framework, actions: Sequence[Action]) -> Iterator[tuple[str, str, dict[str, Any] | None]]:
    """(vgpus or mdevs, name, share)."""
    was = _recorded(state).get(pf)
    entry = next((action.args["entry"] for action in actions if action.kind == "declare"), {"wish": was})
    will = entry["wish"] if entry else None
    old, new = _shares(state, pf, framework, was), _shares(state, pf, framework, will)
    if any(action.certainty in LATER for action in actions):
        # Nothing of it is there before the reboot: it has no name yet, so that guests wait.
        names = will["vgpus"].items() if will else ()
        new = {("vgpus", f"{pf} vGPU {key}"): {"type": name, "name": name, "gpu": pf} for key, name in names}
    stopped = {action.args["uuid"] for action in actions if action.kind == "mdev_stop"}
    for (kind, name), share in new.items():
        yield kind, name, share
    for (kind, name), share in old.items():
        if (kind, name) not in new:
            # What was there before the collection stays when it is given back.
            yield kind, name, None if kind == "vgpus" or name in stopped else {**share, "declared": False}


def _shares(state: State, pf: str, framework: frameworks.Framework, wish: Mapping[str, Any] | None) -> dict[tuple[str, str], dict[str, Any]]:
    shares = frameworks.shares_of(framework)
    found = shares(state, pf, wish) if shares and wish else {}
    return {(kind, name): share for kind, all_of in found.items() for name, share in all_of.items()}
