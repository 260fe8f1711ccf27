# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What must not be taken away by surprise. The kernel does not protect any of it (docs/safety.md).

Pure: whom a step would hurt stands in the state, read by read.py, users.py, keepers.py and consoles.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Callable

from . import keepers
from .drivers import ESWITCH, ESWITCH_UNKNOWN, is_vfio
from .link import VLAN
from .model import Action, Function, Netdev, Refusal, State, User

#: Drivers under which a function may sit in a group that a guest uses (drivers/vfio/vfio_main.c of old, and the
#: no-driver rule of iommu_group_claim_dma_owner, drivers/iommu/iommu.c). Bridges never need a driver change.
HARMLESS_DRIVERS = ("pci-stub", "pcieport")


#: Kinds of netdev whose lower ones stand in for each other. A bridge is none: its other ports are guests.
REDUNDANT = ("bond", "team")
SWITCHES = ("bridge", "openvswitch")


#: Kinds of netdev that are a guest's or a container's end of a bridge; of a veth pair the end that stays here.
PORTS_OF_GUESTS = ("tun", "veth", "macvtap", "ipvtap")


def foreseen(state: State, actions: Iterable[Action]) -> State:
    """The state with what the steps of a call take together, whatever stands against each: no leg of a bond can count on
    one that goes as well, nor a guest on a sibling in its group that the host gets back."""
    going: set[str] = set()
    becoming: dict[str, str | None] = {}
    for action in actions:
        function = state.functions.get(action.unit)
        if function:
            going.update(_goes(state, function, action))
            becoming.update(_becomes(function, action))
    return replace(state, going=frozenset(going), becoming=becoming)


def _goes(state: State, function: Function, action: Action) -> list[str]:
    """The network devices that a step takes away, sets down, cuts off or makes anew without what was set on them."""
    kind, args = action.kind, action.args
    going: list[str] = []
    if kind == "set_up" and not args["up"]:
        going = [args["netdev"]]
    elif kind == "set_station" and args["takes"]:
        going = [args["name"]]
    elif kind == "set_vf_count":
        going = list(function.representors)
    elif kind == "devlink_reload" or (kind == "set_eswitch" and args["key"] == "mode"):
        keeps = kind == "set_eswitch" and ESWITCH.get(function.driver or "", ESWITCH_UNKNOWN).keeps_netdev
        going = [*function.representors, *(() if keeps else function.netdevs)]
    elif kind in ("bind", "release") and "index" not in args:
        going = list(function.netdevs)
    vfs = [state.functions.get(_vfs(function).get(int(index), "")) for index in _vfs_cut_off(function, action)]
    return going + [name for vf in vfs if vf for name in vf.netdevs]


def _vfs_cut_off(function: Function, action: Action) -> Iterable[Any]:
    """The indexes of the VFs whose network devices a step takes away or cuts off."""
    kind, args = action.kind, action.args
    if kind == "set_vf_count" or (kind == "set_up" and not args["up"]):
        # Many a VF has its link from its PF.
        return _vfs(function)
    if kind == "detach_vfs":
        return list(args["drivers"])
    if kind == "set_msix_count":
        return [index for index, vf in args["vfs"].items() if vf["driver"]]
    if kind == "set_vf_attributes":
        return [index for index, vf in args["vfs"].items() if _cuts_off(vf["set"])]
    return [args["index"]] if kind in ("bind", "release", "unbind") and "index" in args else []


def _becomes(function: Function, action: Action) -> dict[str, str | None]:
    """Device -> the driver that a step gives it."""
    args = action.args
    if action.kind == "set_vf_count":
        return {address: None for index, address in _vfs(function).items() if index >= args["to"]}
    if action.kind not in ("bind", "release"):
        return {}
    address = _vfs(function).get(args["index"]) if "index" in args else function.address
    return {address: args["driver"] if action.kind == "bind" else args["native"]} if address else {}


def _vfs(function: Function) -> Mapping[int, str]:
    return function.sriov.vfs if function.sriov else {}


def before_unbind(state: State, function: Function) -> list[Refusal]:
    """What stands against taking the driver away from a function."""
    found = list(_lost_network(state, function)) + list(_lost_disks(function))
    # A guest that does not run wants the device on vfio, or its port by macvtap: it loses nothing before that goes.
    on_vfio = is_vfio(function.driver)
    found += _used(state, function, lambda user: not user.idle or user.by_netdev != on_vfio)
    found += _console(state, function)
    found += ruled_by_others(state, function, keepers.DRIVER)
    pf = state.functions.get(function.physfn or "")
    return found + (ruled_by_others(state, pf, keepers.VFS, keepers.VF_DRIVERS, vf=function) if pf else [])


def before_birth(state: State, pf: Function, address: str) -> list[Refusal]:
    """What stands against a driver for a VF that will be born at this address: nobody has it yet, but somebody may rule
    it."""
    vf = state.functions.get(address) or Function(address=address, vendor="", device="")
    return ruled_by_others(state, vf, keepers.DRIVER) + ruled_by_others(state, pf, keepers.VF_DRIVERS, vf=vf)


def before_down(state: State, function: Function) -> list[Refusal]:
    """What stands against setting a PF's network device down: many a VF has its link from its PF."""
    vfs = [state.functions[address] for address in _vfs(function).values() if address in state.functions]
    return [refusal for f in (function, *vfs) for refusal in (*_lost_network(state, f), *_used(state, f, _active))]


def before_station(state: State, pf: Function, name: str) -> list[Refusal]:
    """What stands against taking a macvlan of a port away, or down for a moment. Its siblings stay."""
    standing = replace(pf, netdevs=(name,), representors=())
    found = list(_lost_network(state, standing))
    users = (state.users or {}).get(pf.address, ())
    names = [user.who for user in users if user.rides == name or f" of {name} is held open" in user.who]
    for reached, _shared in _reach(state, state.netdevs[name], _leaving(state, standing)) if name in state.netdevs else ():
        riders = _riders(state, state.netdevs[name], reached) if reached.name != name else None
        names += [riders] if riders else []
    if names:
        found.append(_refusal(pf, "in_use", f"its station {name} is in use by {', '.join(dict.fromkeys(names))}."))
    return found


def before_relayout(state: State, pf: Function, doing: str, stations: Collection[str]) -> list[Refusal]:
    """What stands against laying the queues of a port out anew, which closes and opens it: whoever has it, but for `stations`, which
    are what it is done for."""
    return list(_flapping(state, pf, doing, stations))


def before_recount(
    state: State, pf: Function, count: int = 0, doing: str = "changing its number of VFs"
) -> list[Refusal]:
    """What stands against changing the number of VFs, or what else takes its VFs away for a moment: all present VFs
    vanish, and the PF's link goes down. `count` is the number that there will be."""
    found = list(_flapping(state, pf, doing))
    vfs = _vfs(pf)
    for index, address in vfs.items():
        vf = state.functions.get(address)
        if vf:
            found += list(_lost_network(state, vf)) + list(_lost_disks(vf))
            # A VF that comes back is all that a guest wants that does not run.
            found += _used(state, vf, _active if index < count else _anyone)
    found += _lost_representors(state, pf)
    return found + ruled_by_others(state, pf, keepers.COUNT, *([keepers.VFS] if vfs else []))


def before_attributes(state: State, pf: Function, todo: Mapping[int, Mapping[str, Any]]) -> list[Refusal]:
    """What stands against setting what VFs are set to (addresses, VLANs, rates): `todo` by the index of a VF that is
    there."""
    found = ruled_by_others(state, pf, keepers.ATTRIBUTES)
    for index, values in todo.items():
        vf = state.functions.get(_vfs(pf).get(index, ""))
        if vf and _cuts_off(values):
            found += [*_lost_network(state, vf), *_used(state, vf, _active)]
    return found


def _cuts_off(values: Mapping[str, Any]) -> bool:
    """Does setting this leave a VF without the network that it had?"""
    return values.get("link_state") == "disable" or any(key in values for key in VLAN)


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


def is_ruled_by_user(state: State, function: Function) -> bool:
    """Has a guest the function whose keeper puts driver, MAC and VLAN back when it ends?"""
    return any(user.rules and not user.idle for user in (state.users or {}).get(function.address, ()))


def before_assignment(state: State, function: Function, driver: str | None = "vfio-pci") -> list[Refusal]:
    """What stands against giving a function to a guest, or (with a driver of the host) back to the host: siblings in its
    IOMMU group that are on the other side, and stay there."""
    for address, other in _siblings(state, function):
        reason = None
        if is_vfio(driver) and _of_host(other):
            reason = f"which the host uses (driver {other}): no guest can take one without the other."
        elif _of_host(driver) and is_vfio(other):
            reason = f"which is for a guest (driver {other}): no guest can have it while the host uses this one (driver {driver})."
        if reason:
            return [_refusal(function, "group", f"its IOMMU group {function.group} also holds {address}, {reason}")]
    return []


def _siblings(state: State, function: Function) -> Iterator[tuple[str, str | None]]:
    """The others in a function's IOMMU group, each with the driver that it will have after this call."""
    group = state.iommu.groups.get(function.group or "")
    for address in group.members if group else ():
        sibling = state.functions.get(address)
        if sibling and address != function.address and not sibling.is_bridge:
            yield address, state.becoming.get(address, sibling.driver)


def _of_host(driver: str | None) -> bool:
    return driver is not None and not is_vfio(driver) and driver not in HARMLESS_DRIVERS


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
        # What is also reached without a second way down is lost.
        todo.sort(key=lambda item: not item[1])
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


def _leaving(state: State, function: Function) -> set[str]:
    """The netdevs that go with a function or in the same call, and those above that rest on nothing else."""
    gone = {*function.netdevs, *state.going}
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


def _lost_network(state: State, function: Function) -> Iterator[Refusal]:
    leaving = _leaving(state, function)
    for netdev in _netdevs(state, function):
        for reached, shared in _reach(state, netdev, leaving):
            what = _carries(state, reached)
            if not what:
                continue
            through = "" if reached.name == netdev.name else f" through {reached.name}"
            if shared:
                reason = f"its {_called(function, netdev)} is one leg of {reached.name}, which carries {what}."
                yield _refusal(function, "link_flap", reason)
            else:
                reason = f"its {_called(function, netdev)} carries {what}{through}."
                yield _refusal(function, "management", reason)


def before_new_netdev(state: State, pf: Function) -> list[Refusal]:
    """What stands against a step after which the PF's port has another network device, without addresses and masters,
    and another RDMA device."""
    return list(_lost_network(state, pf)) + _used(state, pf, _active)


def _called(function: Function, netdev: Netdev) -> str:
    if netdev.kind in ("macvlan", "macvtap"):
        return f"station {netdev.name}"
    return f"{'representor' if netdev.name in function.representors else 'port'} {netdev.name}"


def _lost_representors(state: State, pf: Function) -> list[Refusal]:
    """What is lost with the representors of VFs, which go with them. One in a switch beside the PF's own port is there
    for the user of its VF, who is asked about that; any other one may be what the host or a guest lives on."""
    switches = {r.name for n in _netdevs(state, pf) for r, _shared in _reach(state, n) if r.kind in SWITCHES}
    alone = tuple(
        name
        for name in pf.representors
        if name in state.netdevs and not switches & {r.name for r, _shared in _reach(state, state.netdevs[name])}
    )
    standing = replace(pf, netdevs=alone)
    return list(_lost_network(state, standing)) + _used(state, standing, _nobody)


def _flapping(state: State, pf: Function, doing: str, ours: Collection[str] = ()) -> Iterator[Refusal]:
    """Many drivers close and reopen a running port when the count changes (seen: igb). A port that is up and that
    nobody uses may flap; who rides on its VFs is asked about these."""
    users = _names(state, pf, _active)
    for netdev in _netdevs(state, pf):
        used = next((what for reached, _shared in _reach(state, netdev) if (what := _carries(state, reached))), None)
        uppers = [name for name in netdev.uppers if name not in ours]
        used = used or (f"a leg of {uppers[0]}" if uppers else None)
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


def _nobody(_user: User) -> bool:
    return False


def _used(state: State, function: Function, counts: Callable[[User], bool]) -> list[Refusal]:
    """Who else loses the function, of those who count."""
    names = _names(state, function, counts)
    found = []
    for netdev in _netdevs(state, function):
        if netdev.xdp:
            names.append(f"XDP on {netdev.name} ({netdev.xdp})")
        for reached, shared in _reach(state, netdev, _leaving(state, function)):
            riders = _riders(state, netdev, reached)
            if riders and shared:
                reason = f"its {_called(function, netdev)} is one leg of what carries {riders}."
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
