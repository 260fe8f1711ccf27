# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What must not be taken away by surprise. The kernel does not protect any of it (docs/safety.md)."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from .drivers import is_vfio
from .model import Function, Netdev, Refusal, State

#: Drivers under which a function may sit in a group that a guest uses (drivers/vfio/vfio_main.c of old, and the
#: no-driver rule of iommu_group_claim_dma_owner, drivers/iommu/iommu.c). Bridges never need a driver change.
HARMLESS_DRIVERS = ("pci-stub", "pcieport")


#: Kinds of netdev whose lower ones stand in for each other. A bridge is none: its other ports are guests.
REDUNDANT = ("bond", "team")


def before_unbind(state: State, function: Function, going: Collection[str] = ()) -> list[Refusal]:
    """What stands against taking the driver away from a function. `going` are the functions that the same call takes
    from the host as well: no leg of a bond can count on them."""
    found = list(_lost_network(state, function, going)) + list(_lost_disks(function)) + list(_users(state, function))
    if function.boot_vga and function.class_code.startswith("03"):
        found.append(_refusal(function, "console", "it is the GPU that shows the console (boot_vga)."))
    return found


def before_recount(state: State, pf: Function, doing: str = "changing its number of VFs") -> list[Refusal]:
    """What stands against changing the number of VFs, or what else takes its VFs away for a moment: the PF's link goes down as well."""
    found = list(_flapping(state, pf, doing))
    vfs = list((pf.sriov.vfs if pf.sriov else {}).values())
    for address in vfs:
        vf = state.functions.get(address)
        if vf:
            found += list(_lost_network(state, vf, vfs)) + list(_lost_disks(vf)) + list(_users(state, vf))
    return found


def before_assignment(state: State, function: Function, going: Collection[str]) -> list[Refusal]:
    """What stands against giving a function to a guest: siblings in its IOMMU group that the host goes on using.
    `going` are the functions that the same call takes from the host as well."""
    group = state.iommu.groups.get(function.group or "")
    for address in group.members if group else ():
        sibling = state.functions.get(address)
        if sibling is None or address == function.address or address in going or sibling.is_bridge:
            continue
        if sibling.driver and not is_vfio(sibling.driver) and sibling.driver not in HARMLESS_DRIVERS:
            reason = (
                f"its IOMMU group {function.group} also holds {address}, which the host uses (driver {sibling.driver}): "
                "no guest can take one without the other."
            )
            return [_refusal(function, "group", reason)]
    return []


def _refusal(function: Function, danger: str, reason: str) -> Refusal:
    way_out = f"Nothing was changed. Where this is meant, allow it by name: allow: [{danger}]."
    return Refusal(function.address, reason, way_out, danger)


def _netdevs(state: State, function: Function) -> list[Netdev]:
    return [state.netdevs[name] for name in function.netdevs if name in state.netdevs]


def _reach(state: State, netdev: Netdev, leaving: Collection[str] = ()) -> Iterator[tuple[Netdev, bool]]:
    """The netdev and all above it (bond, bridge, VLAN, macvlan), each with: is this one of several ways down, of which
    another one stays?"""
    todo = [(netdev, False)]
    seen = set()
    while todo:
        current, shared = todo.pop()
        if current.name in seen:
            continue
        seen.add(current.name)
        yield current, shared
        if current.kind == "openvswitch":
            # Its bridges and internal ports hang on the datapath inside the switch: sysfs shows no link between them.
            todo += [(netdev, shared) for netdev in state.netdevs.values() if netdev.kind == "openvswitch"]
        for name in current.uppers:
            upper = state.netdevs.get(name)
            if upper:
                others = [state.netdevs[n] for n in upper.lowers if n in state.netdevs and n not in leaving]
                stays = any(other.carrier for other in others if other.name != current.name)
                todo.append((upper, shared or (upper.kind in REDUNDANT and stays)))


def _leaving(state: State, addresses: Collection[str]) -> set[str]:
    """The netdevs of functions that go, and those above that rest on nothing else."""
    gone = {name for address in addresses if address in state.functions for name in state.functions[address].netdevs}
    while True:
        more = {n.name for n in state.netdevs.values() if n.lowers and gone.issuperset(n.lowers)} - gone
        if not more:
            return gone
        gone |= more


def _carries(state: State, netdev: Netdev) -> str | None:
    """What would be lost with a netdev."""
    if netdev.name == state.control_netdev:
        return "the path to the controller"
    if netdev.default_route:
        return "the default route"
    if netdev.addresses:
        return f"the address {netdev.addresses[0]}"
    return None


def _lost_network(state: State, function: Function, going: Collection[str]) -> Iterator[Refusal]:
    leaving = _leaving(state, {function.address, *going})
    for netdev in _netdevs(state, function):
        for reached, shared in _reach(state, netdev, leaving):
            what = _carries(state, reached)
            if not what:
                continue
            through = "" if reached.name == netdev.name else f" through {reached.name}"
            if shared:
                reason = f"its port {netdev.name} is one leg of {reached.name}, which carries {what}."
                yield _refusal(function, "link_flap", reason)
            else:
                reason = f"its port {netdev.name} carries {what}{through}."
                yield _refusal(function, "management", reason)
            break


def before_new_netdev(state: State, pf: Function) -> list[Refusal]:
    """What stands against a step after which the PF's port has another network device, without addresses and masters."""
    return list(_lost_network(state, pf, ()))


def _flapping(state: State, pf: Function, doing: str) -> Iterator[Refusal]:
    """Many drivers close and reopen a running port when the count changes (seen: igb)."""
    for netdev in _netdevs(state, pf):
        used = next((what for reached, _shared in _reach(state, netdev) if (what := _carries(state, reached))), None)
        used = used or (f"a leg of {netdev.uppers[0]}" if netdev.uppers else None)
        if netdev.up and netdev.carrier and used:
            reason = f"{doing} takes the running link of {netdev.name} ({used}) down for a moment."
            yield _refusal(pf, "link_flap", reason)


def _lost_disks(function: Function) -> Iterator[Refusal]:
    if function.disks_in_use:
        reason = f"the host uses a disk of it: {', '.join(function.disks_in_use)}."
        yield _refusal(function, "boot_disk", reason)


def _users(state: State, function: Function) -> Iterator[Refusal]:
    users = (state.users or {}).get(function.group or "")
    if users:
        reason = f"it is in use by {', '.join(users)} (IOMMU group {function.group} is held open)."
        yield _refusal(function, "in_use", reason)
