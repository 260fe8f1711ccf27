# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Macvlans of the simulated kernel, ports that give them pools, and the words of ethtool, bridge and ip that go with it.

Behaviour: drivers/net/macvlan.c (macvlan_open, macvlan_set_mac_address, macvlan_common_newlink, macvlan_change_mtu) and what vmdqsim, the
double of lab/vmdqsim, answered on the lab host ("lab"). What ixgbe, i40e and ice answer is synthetic (sim_vmdq_cards.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import Net, SimKernel
    from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim_vmdq_cards import Card

KINDS = ("macvlan", "macvtap")
#: lab: EINVAL of rtnetlink, as ip prints it.
EINVAL, EBUSY = "RTNETLINK answers: Invalid argument", "RTNETLINK answers: Device or resource busy"


@dataclass
class Port:
    """A port that can have pools: `pools` is how many stations can be in hardware; with a card, that knows."""

    pools: int = 0
    queues: dict[str, int] = field(default_factory=lambda: {"combined": 2})
    max_queues: dict[str, int] = field(default_factory=lambda: {"combined": 4})
    on: bool = False
    fixed: bool = False
    #: Pool -> its station; one of another namespace has a name that is not here.
    held: dict[int, str] = field(default_factory=dict)
    #: Module -> parameter, whose position 0 says the pools with the port's own (vmdqsim).
    by_parameter: str = ""
    #: The driver's own way of giving pools and queues.
    card: Card | None = None

    def start(self) -> None:
        """The driver's probe."""
        self.on, self.queues = False, dict.fromkeys(self.queues, 2)
        self.held.clear()
        if self.card:
            self.card.start()


@dataclass
class Vmdq:
    ports: dict[str, Port] = field(default_factory=dict)
    #: Ports' own lists of addresses: network device -> station -> address (dev_uc_add).
    lists: dict[str, dict[str, str]] = field(default_factory=dict)
    #: How often a station was set down, made or taken away: its counters begin anew or its traffic stopped.
    touched: dict[str, int] = field(default_factory=dict)

    def snapshot(self, sim: SimKernel) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for address, port in self.ports.items():
            name = sim.functions[address].ifname if address in sim.functions else ""
            held = sorted(port.held.values())
            stations = {n: _facts(sim, n) for n, net in sim.nets.items() if net.kind in KINDS and net.lowers == [name]}
            queues = {"combined": port.card.channels(_vfs(sim, address))[1]} if port.card else dict(port.queues)
            found[address] = {"on": port.on, "queues": queues, "held": held, "stations": stations}
        return found


def _facts(sim: SimKernel, name: str) -> tuple[Any, ...]:
    net = sim.nets[name]
    return net.kind, net.mode, net.mac, net.mtu, net.up


def add(sim: SimKernel, address: str, pools: int = 0, **more: Any) -> Port:
    sim.vmdq.ports[address] = port = Port(pools, **more)
    sim._tree = None
    return port


def _port(sim: SimKernel, netdev: str) -> Port | None:
    for address, port in sim.vmdq.ports.items():
        if address in sim.functions and sim.functions[address].ifname == netdev:
            return port
    return None


def _vfs(sim: SimKernel, address: str) -> int:
    return len(sim.functions[address].vfs) if address in sim.functions else 0


def _vfs_of(sim: SimKernel, netdev: str) -> int:
    return next((len(f.vfs) for f in sim.functions.values() if f.ifname == netdev), 0)


def _pool(sim: SimKernel, netdev: str, port: Port) -> int | None:
    """A pool for a station more, if there is one."""
    if port.card:
        return port.card.take(_vfs_of(sim, netdev))
    words = sim.params[port.by_parameter].params["VMDQ"].value.split(",") if port.by_parameter else []
    pools = int(words[0]) - 1 if words and words[0].isdigit() else port.pools
    return next((number for number in range(1, pools + 1) if number not in port.held), None)


def vfs_change(sim: SimKernel, address: str, count: int) -> int:
    """sriov_configure of a port's driver: 0 or an error number."""
    port = sim.vmdq.ports.get(address)
    return port.card.vfs_change(count) if port and port.card else 0


# --- What goes ---------------------------------------------------------------------------------------------------------


def boot(sim: SimKernel) -> None:
    """Stations and features are the kernel's own."""
    for name in [name for name, net in sim.nets.items() if net.kind in KINDS]:
        del sim.nets[name]
    sim.vmdq.lists.clear()
    for port in sim.vmdq.ports.values():
        port.start()


def port_goes(sim: SimKernel, netdev: str) -> None:
    """A driver lets its device go: the stations go with the port (NETDEV_UNREGISTER in macvlan_device_event)."""
    for name in [name for name, net in sim.nets.items() if net.kind in KINDS and net.lowers == [netdev]]:
        _del(sim, name)
    port = _port(sim, netdev)
    if port:
        port.start()


# --- Stations ----------------------------------------------------------------------------------------------------------


def _open(sim: SimKernel, name: str) -> None:
    """macvlan_open(): a pool where the feature is on and the driver has one; else the port's list. passthru asks for nothing; source is asked
    for and refused (EMEDIUMTYPE)."""
    net = sim.nets[name]
    lower = net.lowers[0]
    port = _port(sim, lower)
    net.up = net.carrier = True
    if net.mode == "passthru":
        return
    if port and port.on and net.mode != "source":
        pool = _pool(sim, lower, port)
        if pool is not None:
            port.held[pool] = name
            return
    sim.vmdq.lists.setdefault(lower, {})[name] = net.mac


def _stop(sim: SimKernel, name: str) -> None:
    """macvlan_stop(): the pool is free; nobody who fell back gets it (lab)."""
    net = sim.nets[name]
    net.up = False
    sim.vmdq.touched[name] = sim.vmdq.touched.get(name, 0) + 1
    port = _port(sim, net.lowers[0])
    for number in [number for number, holder in port.held.items() if holder == name] if port else []:
        _give_back(port, number)
    sim.vmdq.lists.get(net.lowers[0], {}).pop(name, None)


def _give_back(port: Port, number: int) -> None:
    del port.held[number]
    if port.card:
        port.card.give_back(number)


def _del(sim: SimKernel, name: str) -> None:
    # `ip link del` takes a bridge away as readily.
    if sim.nets[name].kind in KINDS and sim.nets[name].up:
        _stop(sim, name)
    del sim.nets[name]


def line(sim: SimKernel, words: list[str]) -> str | None:
    """A line of `ip -batch` about a station: what ip says when it fails; None: it is about something else."""
    if words[:2] == ["link", "add"]:
        return _add(sim, dict(zip(words[2::2], words[3::2])))
    name = words[3]
    if words[:3] == ["link", "del", "dev"]:
        if name not in sim.nets:
            return f'Cannot find device "{name}"'
        _del(sim, name)
        return ""
    net = sim.nets.get(name)
    return _change(sim, name, net, words[4:]) if net and net.kind in KINDS else None


def _change(sim: SimKernel, name: str, net: Net, words: list[str]) -> str | None:
    if words == ["up"] and not net.up:
        _open(sim, name)
    elif words == ["down"] and net.up:
        _stop(sim, name)
    elif words[0] == "address":
        # Up, the new one goes to the port's list while the pool goes on filtering for the old one (lab).
        net.mac = words[1]
        if net.up:
            sim.vmdq.lists.setdefault(net.lowers[0], {})[name] = net.mac
    elif words[0] == "mtu":
        if int(words[1]) > _mtu(sim, net.lowers[0]):
            return EINVAL
        net.mtu = int(words[1])
    elif words[0] == "type":
        if "passthru" in (net.mode, words[3]) and net.mode != words[3]:
            return EINVAL
        net.mode = words[3]
    elif words not in (["up"], ["down"]):
        return None
    return ""


def _mtu(sim: SimKernel, netdev: str) -> int:
    return sim.nets[netdev].mtu if netdev in sim.nets else 1500


def _add(sim: SimKernel, given: dict[str, str]) -> str:
    from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import Net

    name, lower = given["name"], given["link"]
    here = sim.netdevs()
    if lower not in here:
        return f'Cannot find device "{lower}"'
    if name in here:
        return "RTNETLINK answers: File exists"
    siblings = [net for net in sim.nets.values() if net.kind in KINDS and net.lowers == [lower]]
    if any(net.mode == "passthru" for net in siblings) or (siblings and given["mode"] == "passthru"):
        return EINVAL
    mac = here[lower][1].mac or here[lower][0].mac if given["mode"] == "passthru" else given["address"]
    if int(given["mtu"]) > _mtu(sim, lower):
        return EINVAL
    sim.nets[name] = Net(kind=given["type"], mode=given["mode"], mac=mac, mtu=int(given["mtu"]), lowers=[lower], up=False, carrier=False)
    return ""


def guest_device(sim: SimKernel, device: Any, there: bool) -> None:
    """libvirt makes a macvtap at a guest's start, and takes it away at its end (lab). Only on ports that can have pools."""
    source, mac = device.find("source"), device.find("mac")
    if device.get("type") != "direct" or _port(sim, source.get("dev")) is None:
        return
    known = [name for name, net in sim.nets.items() if net.kind == "macvtap" and net.mac == mac.get("address")]
    if there and not known:
        name = next(f"macvtap{n}" for n in range(99) if f"macvtap{n}" not in sim.nets)
        _add(sim, {"name": name, "link": source.get("dev"), "type": "macvtap", "mode": source.get("mode"), "address": mac.get("address"), "mtu": "1500"})
        _open(sim, name)
    elif not there:
        for name in known:
            _del(sim, name)
    sim._tree = None


def linkinfo(net: Any) -> dict[str, Any]:
    """As `ip -d` of iproute2 6.15 prints it (lab)."""
    return {"info_kind": net.kind, "info_data": {"mode": net.mode, "macaddr_count": 0}} if net.mode else {"info_kind": net.kind}


def nodes(sim: SimKernel, netdev: str, path: str) -> dict[str, str]:
    """queues/tx-N/traffic_class: '0-P' for a queue of pool P, '0' for one of the port, EINVAL for one of a pool that nobody has
    (traffic_class_show). The double has two queues a pool (lab)."""
    port = _port(sim, netdev)
    if port is None:
        return {}
    held = frozenset(port.held)
    if port.card:
        classes = port.card.classes(_vfs_of(sim, netdev), held)
    else:
        classes = ["0", "0", *(f"0-{pool}" if pool in held else None for pool in range(1, max(held, default=0) + 1) for _queue in range(2))]
    found = {f"{path}/queues/tx-{n}/traffic_class": f"{text}\n" for n, text in enumerate(classes) if text is not None}
    function = next((f for f in sim.functions.values() if f.ifname == netdev), None)
    if port.card and function:
        found.update({f"{function.path}/msi_irqs/{100 + n}": "msix\n" for n in range(port.card.vectors())})
    return found


# --- Commands ------------------------------------------------------------------------------------------------------------


def run(sim: SimKernel, argv: list[str]) -> tuple[int, str, str] | None:
    """None: not ours."""
    if argv == ["bridge", "-j", "fdb", "show"]:
        return 0, json.dumps(_fdb(sim)), ""
    if argv[0] != "ethtool" or "ethtool" in sim.devlink.missing:
        return None
    port = _port(sim, argv[2])
    if argv[1] == "-l":
        return _channels(port, _vfs_of(sim, argv[2]))
    if argv[1] == "-L" and port:
        sim._tree = None
        return _set_channels(port, dict(zip(argv[3::2], map(int, argv[4::2]))), _vfs_of(sim, argv[2]))
    if argv[1] == "-k" and argv[2] in sim.netdevs():
        # Every network device shows it (netdev_features_strings in net/ethtool/common.c), with the others that it has.
        shown = f"l2-fwd-offload: {'on' if port and port.on else 'off'}{'' if port and not port.fixed else ' [fixed]'}\n"
        code, others, _err = sim.devlink.run(argv) or (1, "", "")
        return 0, ("" if code else others) + shown, ""
    if argv[1] == "-K" and port and argv[3] == "l2-fwd-offload":
        return _set_feature(sim, argv[2], port, argv[4] == "on")
    return None


def _fdb(sim: SimKernel) -> list[dict[str, Any]]:
    """`bridge -j fdb show`: a multicast entry that every port has, and those of stations in software (lab)."""
    every = [{"mac": "33:33:00:00:00:01", "ifname": name, "flags": ["self"], "state": "permanent"} for name in sim.netdevs()]
    own = [
        {"mac": mac, "ifname": lower, "flags": ["self"], "state": "permanent"}
        for lower, stations in sim.vmdq.lists.items()
        for mac in stations.values()
    ]
    return every + own


def _channels(port: Port | None, vfs: int) -> tuple[int, str, str]:
    if port is None:
        return 1, "", "netlink error: Operation not supported\n"
    limits, now = port.max_queues, port.queues
    if port.card:
        limits, now = ({"combined": number} for number in port.card.channels(vfs))

    def lines(values: dict[str, int]) -> str:
        names = (("RX", "rx"), ("TX", "tx"), ("Other", "other"), ("Combined", "combined"))
        return "".join(f"{shown}:\t\t{values.get(key, 'n/a')}\n" for shown, key in names)

    return 0, f"Channel parameters:\nPre-set maximums:\n{lines(limits)}Current hardware settings:\n{lines(now)}", ""


def _set_channels(port: Port, wanted: dict[str, int], vfs: int) -> tuple[int, str, str]:
    too_many = 1, "", "netlink error: requested channel count exceeds maximum\n"
    if port.card:
        return (0, "", "") if list(wanted) == ["combined"] and port.card.set_channels(wanted["combined"], vfs) else too_many
    if any(number > port.max_queues.get(kind, 0) for kind, number in wanted.items()):
        return too_many
    port.queues.update(wanted)
    return 0, "", ""


def _set_feature(sim: SimKernel, netdev: str, port: Port, on: bool) -> tuple[int, str, str]:
    if port.fixed:
        return 1, "", "Could not change any device features\n"
    said = port.card.feature(on, _vfs_of(sim, netdev)) if port.card and on != port.on else ""
    if said:
        return 1, "", said
    if not on:
        # All fall back and stay up (lab).
        for name in port.held.values():
            if name in sim.nets:
                sim.vmdq.lists.setdefault(netdev, {})[name] = sim.nets[name].mac
        port.held.clear()
    port.on = on
    sim._tree = None
    return 0, "", ""
