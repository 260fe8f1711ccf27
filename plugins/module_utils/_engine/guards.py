# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What must not be taken away by surprise. The kernel does not protect any of it (docs/safety.md).

Pure: whom a step would hurt stands in the state, read by read.py, users.py, keepers.py and consoles.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Callable

from . import keepers
from .drivers import is_vfio
from .model import Function, Netdev, Refusal, State, User

#: Drivers under which a function may sit in a group that a guest uses (drivers/vfio/vfio_main.c of old, and the
#: no-driver rule of iommu_group_claim_dma_owner, drivers/iommu/iommu.c). Bridges never need a driver change.
HARMLESS_DRIVERS = ("pci-stub", "pcieport")


#: Kinds of netdev whose lower ones stand in for each other. A bridge is none: its other ports are guests.
REDUNDANT = ("bond", "team")
SWITCHES = ("bridge", "openvswitch")


#: Kinds of netdev that are a guest's or a container's end of a bridge; of a veth pair the end that stays here.
PORTS_OF_GUESTS = ("tun", "veth", "macvtap", "ipvtap")


def before_unbind(state: State, function: Function, going: Collection[str] = ()) -> list[Refusal]:
    """What stands against taking the driver away from a function. `going` are the functions that the same call takes
    from the host as well: no leg of a bond can count on them."""
    found = list(_lost_network(state, function, going)) + list(_lost_disks(function))
    # A guest that does not run wants the device on vfio, or its port by macvtap: it loses nothing before that goes.
    on_vfio = is_vfio(function.driver)
    found += _used(state, function, lambda user: not user.idle or user.by_netdev != on_vfio, going)
    found += _console(state, function)
    found += ruled_by_others(state, function, keepers.DRIVER)
    pf = state.functions.get(function.physfn or "")
    return found + (ruled_by_others(state, pf, keepers.VFS, vf=function) if pf else [])


def before_down(state: State, function: Function) -> list[Refusal]:
    """What stands against setting a function's network device down."""
    return list(_lost_network(state, function, ()))


def before_recount(
    state: State, pf: Function, count: int = 0, doing: str = "changing its number of VFs"
) -> list[Refusal]:
    """What stands against changing the number of VFs, or what else takes its VFs away for a moment: all present VFs
    vanish, and the PF's link goes down. `count` is the number that there will be."""
    found = list(_flapping(state, pf, doing))
    vfs = pf.sriov.vfs if pf.sriov else {}
    for index, address in vfs.items():
        vf = state.functions.get(address)
        if vf:
            found += list(_lost_network(state, vf, list(vfs.values()))) + list(_lost_disks(vf))
            # A VF that comes back is all that a guest wants that does not run.
            found += _used(state, vf, _active if index < count else _anyone, list(vfs.values()))
    return found + ruled_by_others(state, pf, keepers.COUNT, *([keepers.VFS] if vfs else []))


def before_attributes(state: State, pf: Function) -> list[Refusal]:
    """What stands against setting what VFs are set to (addresses, VLANs, rates)."""
    return ruled_by_others(state, pf, keepers.ATTRIBUTES)


def held_attributes(vf: Function, keys: Collection[str], users: Collection[str]) -> Refusal:
    """What stands against giving back what the holder of a VF sets himself: he would put ours back when he lets it go."""
    reason = f"{', '.join(keys)} cannot be given back while it is in use by {', '.join(users)}."
    return _refusal(vf, "in_use", reason)


def before_eswitch(state: State, pf: Function) -> list[Refusal]:
    """What stands against another mode of the eswitch, beyond what a change of the number of VFs meets."""
    return ruled_by_others(state, pf, keepers.ESWITCH)


def ruled_by_others(state: State, function: Function, *what: str, vf: Function | None = None) -> list[Refusal]:
    """Other programs that rule this of the function. What stands against a step on a VF is said of the VF."""
    found = []
    for keeper in state.keepers.get(function.address, ()):
        ruled = [keepers.WHAT[name] for name in what if name in keeper.rules]
        if ruled:
            whose = "it as one of the VFs of " + function.address if vf else " and ".join(ruled)
            found.append(_refusal(vf or function, "foreign", f"{keeper.name} rules {whose}: {keeper.reason}."))
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


def before_reset(function: Function) -> list[Refusal]:
    """What stands against resetting a function under its driver: whoever uses its disk waits, or gets an error where
    the driver does not come back."""
    return list(_lost_disks(function))


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
        if current.kind in SWITCHES:
            # Out by another port and through a veth pair: the other end may be an uplink of its own.
            others = [state.netdevs[name] for name in current.lowers if name in state.netdevs]
            todo += [(state.netdevs[o.peer], shared) for o in others if o.peer in state.netdevs]
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
    """Many drivers close and reopen a running port when the count changes (seen: igb). A port that is up and that
    nobody uses may flap; who rides on its VFs is asked about these."""
    users = _names(state, pf, _active)
    for netdev in _netdevs(state, pf):
        used = next((what for reached, _shared in _reach(state, netdev) if (what := _carries(state, reached))), None)
        used = used or (f"a leg of {netdev.uppers[0]}" if netdev.uppers else None)
        used = used or (f"XDP {netdev.xdp}" if netdev.xdp else None) or (f"used by {users[0]}" if users else None)
        if netdev.up and netdev.carrier and used:
            reason = f"{doing} takes the running link of {netdev.name} ({used}) down for a moment."
            yield _refusal(pf, "link_flap", reason)
    hiding = [user.who for user in (state.users or {}).get(pf.address, ()) if user.hides]
    if hiding:
        reason = f"{doing} takes a running link down for a moment, and its link is with {hiding[0]}."
        yield _refusal(pf, "link_flap", reason)


def _lost_disks(function: Function) -> Iterator[Refusal]:
    if function.disks_in_use:
        reason = f"the host uses a disk of it: {', '.join(function.disks_in_use)}."
        yield _refusal(function, "boot_disk", reason)


def _active(user: User) -> bool:
    return not user.idle


def _anyone(_user: User) -> bool:
    return True


def _used(state: State, function: Function, counts: Callable[[User], bool], going: Collection[str]) -> list[Refusal]:
    """Who else loses the function, of those who count."""
    names = _names(state, function, counts)
    found = []
    for netdev in _netdevs(state, function):
        if netdev.xdp:
            names.append(f"XDP on {netdev.name} ({netdev.xdp})")
        for reached, shared in _reach(state, netdev, _leaving(state, {function.address, *going})):
            riders = _riders(state, netdev, reached)
            if riders and shared:
                reason = f"its port {netdev.name} is one leg of what carries {riders}."
                found.append(_refusal(function, "link_flap", reason))
            elif riders:
                names.append(riders)
    if names:
        found.append(_refusal(function, "in_use", f"it is in use by {', '.join(dict.fromkeys(names))}."))
    return found


def _names(state: State, function: Function, counts: Callable[[User], bool]) -> list[str]:
    return [user.who for user in (state.users or {}).get(function.address, ()) if counts(user)]


def _riders(state: State, netdev: Netdev, reached: Netdev) -> str | None:
    """Guests and containers that reach the network through `netdev`, as far as their ends are in this namespace."""
    if reached.kind in ("macvtap", "ipvtap"):
        return f"a guest ({reached.kind} {reached.name})"
    if reached.kind not in SWITCHES:
        return None
    others = [state.netdevs[name] for name in reached.lowers if name in state.netdevs and name != netdev.name]
    ends = [o.name for o in others if o.kind in PORTS_OF_GUESTS and o.carrier and not o.peer]
    return f"guests or containers behind {reached.name} ({', '.join(ends)})" if ends else None


def _console(state: State, function: Function) -> list[Refusal]:
    if function.boot_vga and function.class_code.startswith("03"):
        return [_refusal(function, "console", "it is the GPU that shows the console (boot_vga).")]
    how = state.consoles.get(function.address)
    return [_refusal(function, "console", f"it shows the console: {how}.")] if how else []
