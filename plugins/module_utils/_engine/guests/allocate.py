# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which VF a guest gets that asks for one of a pool. A pool is declared in one place, `pool` on a range of VFs of the resource
sriov; libvirt is given addresses. Pure.

A guest keeps its VF as long as it can: what is given out anew is the first free one by address.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..model import Refusal, State
from ..plain import dataclass


@dataclass(frozen=True)
class Slot:
    """A VF that is in a pool. `trust` as its PF has it now."""

    address: str
    pf: str
    index: int
    pool: str
    node: int = -1
    group: str | None = None
    trust: bool = False


@dataclass(frozen=True)
class Request:
    """A network device that asks for a VF of a pool. `kept`: what it has now. `node`: where it must be near to; None: anywhere."""

    guest: str
    index: int
    pool: str
    kept: str | None = None
    node: int | None = None
    trust: bool = False

    @property
    def where(self) -> str:
        return f"network[{self.index}]"


def pools(state: State) -> dict[str, list[Slot]]:
    """Pool -> its VFs that are there now, by address."""
    found: dict[str, list[Slot]] = {}
    for pf, entry in state.stored.get("sriov", {}).get("devices", {}).items():
        function = state.functions.get(pf)
        vfs = function.sriov.vfs if function and function.sriov else {}
        for index, wish in entry["wish"].get("vfs", {}).items():
            pool = wish.get("pool")
            if pool:
                found.setdefault(pool, [])
            if pool and int(index) in vfs:
                found[pool].append(_slot(state, pf, int(index), vfs[int(index)], pool))
    return {pool: sorted(slots, key=lambda slot: slot.address) for pool, slots in found.items()}


def _slot(state: State, pf: str, index: int, address: str, pool: str) -> Slot:
    vf, port = state.functions.get(address), state.functions[pf]
    node = vf.numa_node if vf and vf.numa_node >= 0 else port.numa_node
    return Slot(address, pf, index, pool, node, vf.group if vf else None, bool(attributes(state, pf, index).get("trust")))


def attributes(state: State, pf: str, index: int) -> Mapping[str, Any]:
    """What the PF says of a VF."""
    ports = [state.netdevs[name] for name in state.functions[pf].netdevs if name in state.netdevs]
    return next((port.vfs[index] for port in ports if index in port.vfs), {})


def allocate(
    known: Mapping[str, Sequence[Slot]], requests: Iterable[Request], holders: Mapping[str, Sequence[str]], taken: Mapping[str, str]
) -> tuple[dict[tuple[str, int], str], list[Refusal]]:
    """(guest, place in its list) -> address. `holders`: address -> who names or uses it, guests by their plain name. `taken`: address ->
    guest of this call that asks for it by address."""
    given: dict[tuple[str, int], str] = {}
    claimed, refusals = dict(taken), []
    # Those that have one come first: a new guest takes nothing from an old one.
    ordered = sorted(requests, key=lambda request: request.kept is None)
    for request in ordered:
        slots = known.get(request.pool)
        if slots is None:
            refusals.append(_no_pool(request, known))
            continue
        fitting = [slot for slot in slots if _fits(slot, request)]
        free = [slot for slot in fitting if not others(slot.address, request.guest, holders, claimed)]
        kept = [slot for slot in free if slot.address == request.kept]
        if not free:
            refusals.append(_exhausted(request, slots, fitting, holders, claimed))
            continue
        chosen = (kept or free)[0]
        given[request.guest, request.index] = chosen.address
        claimed[chosen.address] = request.guest
    return given, refusals


def _fits(slot: Slot, request: Request) -> bool:
    near = request.node is None or slot.node in (-1, request.node)
    return near and (slot.trust or not request.trust)


def others(name: str, guest: str, holders: Mapping[str, Sequence[str]], claimed: Mapping[str, str]) -> list[str]:
    """Who has a VF or a share (shares.py) that is not this guest, and this guest where another of its devices has it."""
    found = [who for who in holders.get(name, ()) if who != guest]
    return list(dict.fromkeys([*found, *([claimed[name]] if name in claimed else [])]))


def _no_pool(request: Request, known: Mapping[str, Sequence[Slot]]) -> Refusal:
    have = f"the pools of this host are {', '.join(sorted(known))}" if known else "this host has none"
    reason = f"{request.where}: there is no pool {request.pool}: {have}."
    return Refusal(request.guest, reason, "Declare it as pool on a range of VFs in sriov_devices; nothing was changed.")


def _exhausted(
    request: Request,
    slots: Sequence[Slot],
    fitting: Sequence[Slot],
    holders: Mapping[str, Sequence[str]],
    claimed: Mapping[str, str],
) -> Refusal:
    asked = _asked(request)
    if not slots:
        reason = f"{request.where}: the pool {request.pool} has no VF now: none of those that it names is there."
        return Refusal(request.guest, reason, "Run the role devices first, or wait for its reboot; nothing was changed.")
    if not fitting:
        have = ", ".join(f"{slot.address} (node {slot.node}, trust {'on' if slot.trust else 'off'})" for slot in slots)
        reason = f"{request.where}: the pool {request.pool} has no VF {asked}: {have}."
        return Refusal(request.guest, reason, "Widen the pool in sriov_devices, or ask for less; nothing was changed.")
    held = "; ".join(f"{slot.address}: {', '.join(others(slot.address, request.guest, holders, claimed))}" for slot in fitting)
    reason = f"{request.where}: the pool {request.pool} has no free VF{f' {asked}' if asked else ''}; they are held by {held}."
    return Refusal(request.guest, reason, "Give one of them back, or widen the pool in sriov_devices; nothing was changed.")


def _asked(request: Request) -> str:
    words = [f"near NUMA node {request.node}"] if request.node is not None else []
    return " and ".join(words + (["with trust"] if request.trust else []))
