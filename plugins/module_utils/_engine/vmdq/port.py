# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A port whose VMDq wish is planned, its stations, and what the kernel says of them.

A station is a macvlan or macvtap on the port. It is in hardware when the driver gave it a pool of queues: macvlan_open() asks for
one when the station goes up and the port's feature l2-fwd-offload is on; where it gets none it puts the station's address
into the port's own list, without a word (drivers/net/macvlan.c). So the port's forwarding table tells which station is in software.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import field
from typing import Any

from ..model import Function, Netdev, Refusal, State
from ..plain import dataclass
from ..resources.common import Options

NAME = "vmdq"
KINDS = ("macvlan", "macvtap")
MODES = ("private", "vepa", "bridge", "passthru", "source")
#: These have no filter by destination, so no driver takes them (macvlan_supports_dest_filter in include/linux/if_macvlan.h);
#: for passthru macvlan_open() does not even ask.
IN_SOFTWARE = ("passthru", "source")

_DEFAULTS: Mapping[str, Any] = {"kind": "macvlan", "mode": "bridge", "up": True}


@dataclass(frozen=True)
class Port:
    """What is wished of a port, beside what it is."""

    state: State
    pf: Function
    netdev: Netdev
    options: Options
    #: Where the wish stands ('vmdq[0]').
    label: str
    wish: Mapping[str, Any] = field(default_factory=dict)
    #: What an earlier call declared; None: nothing.
    entry: Mapping[str, Any] | None = None
    #: Stations that other ports of the same call give up before this one has its turn.
    given: frozenset[str] = frozenset()

    @property
    def facts(self) -> Mapping[str, Any]:
        """What was read of the port by commands (reading.py)."""
        return facts_of(self.state, self.pf.address)

    @property
    def requires(self) -> bool:
        """Must the stations that are up be in hardware?"""
        return self.wish.get("require_offload") is not False

    def wrong(self, reason: str, way_out: str) -> Refusal:
        """A refusal that names the port and the wish."""
        return Refusal(self.pf.address, f"{self.label}: {reason}", f"{way_out} Nothing was changed.")


def facts_of(state: State, address: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = state.more.get(NAME, {}).get(address, {})
    return found


def netdev_of(state: State, function: Function) -> Netdev | None:
    """The port's own network device."""
    return next((state.netdevs[name] for name in function.netdevs if name in state.netdevs), None)


def is_station(netdev: Netdev, lower: str) -> bool:
    return netdev.kind in KINDS and lower in netdev.lowers


def stations_on(state: State, lower: str) -> dict[str, Netdev]:
    """The stations of a port that are in this network namespace."""
    return {name: n for name, n in state.netdevs.items() if is_station(n, lower)}


def as_is(netdev: Netdev) -> dict[str, Any]:
    """A station as it is, in the form of a wish."""
    return {"kind": netdev.kind, "mac": netdev.address, "mode": netdev.mode, "mtu": netdev.mtu, "up": netdev.up}


def in_hardware(state: State, address: str, lower: str) -> dict[str, bool]:
    """Station -> is it in hardware? Both signs of the kernel have to say so: its address is not in the port's forwarding table, and
    the port's queues belong to at least as many pools as stations claim one."""
    facts = facts_of(state, address)
    stations = stations_on(state, lower)
    on = bool(facts.get("features", {}).get("on")) and "unproven" not in facts
    claim = {name for name, n in stations.items() if on and n.up and n.mode not in IN_SOFTWARE and n.address not in facts.get("fdb", ())}
    proven = len(claim) <= facts.get("pools", 0)
    return {name: proven and name in claim for name in stations}


def wished_stations(port: Port) -> dict[str, dict[str, Any]]:
    """Station -> all that is wished of it. One that is made anew gets an address by the rule of `auto` where the wish names none:
    the kernel's would be a random one, which udev exchanges some time later (MACAddressPolicy in systemd.link(5)), and then the pool
    would filter for the old one."""
    here = stations_on(port.state, port.netdev.name)
    found = {}
    for station in port.wish.get("stations") or []:
        name = station["name"]
        values = {**_DEFAULTS, **{key: value for key, value in station.items() if key != "name" and value is not None}}
        if name in here:
            values = {**as_is(here[name]), **values}
        if values.get("mac") is None or str(values["mac"]).lower() == "auto":
            values["mac"] = auto_mac(port.state, port.pf, name)
        values["mac"] = str(values["mac"]).lower()
        if values["mode"] == "passthru":
            # It has its port's (macvlan_common_newlink).
            values["mac"] = port.netdev.address
        values.setdefault("mtu", port.netdev.mtu)
        found[name] = values
    return found


def auto_mac(state: State, pf: Function, name: str) -> str:
    """A locally administered address that is the same on every run, by the rule for VFs (sriov/attributes.py): a hash of the host's
    machine-id, the port's permanent MAC and, in the place of a VF's index, the station's name."""
    netdev = netdev_of(state, pf)
    port = netdev.mac if netdev and netdev.mac and not netdev.made_up else pf.address
    octets = list(hashlib.sha256(f"{state.machine_id} {port} {name}".encode()).digest()[:6])
    octets[0] = octets[0] & 0xFC | 0x02
    return ":".join(f"{octet:02x}" for octet in octets)


def in_order(stations: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The order of their steps: those that give a pool back come before those that need one."""
    return sorted(stations, key=lambda name: bool(stations[name]["up"]))


def hardware_wished(stations: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that are to have a pool."""
    return [station for station in stations if station["up"] and station["mode"] not in IN_SOFTWARE]


def ours(entry: Mapping[str, Any] | None) -> list[str]:
    """The stations that an earlier call declared."""
    return [station["name"] for station in (entry["wish"].get("stations") or [])] if entry else []


def holders(state: State, pf: Function, lower: str, but: Collection[str] = (), stale: int = 0) -> list[str]:
    """Who else holds pools of a port, in words. Those that are in another network namespace show by their queues alone."""
    inside = in_hardware(state, pf.address, lower)
    found = [f"{state.netdevs[name].kind} {name}" for name, yes in inside.items() if yes and name not in but]
    hidden = max(facts_of(state, pf.address).get("pools", 0) - sum(inside.values()) - stale, 0)
    return found + ([f"{hidden} in other network namespaces"] if hidden else [])


def others(state: State, pf: Function, lower: str, but: Collection[str] = (), stale: int = 0) -> int:
    """How many pools others hold."""
    inside = in_hardware(state, pf.address, lower)
    named = sum(yes for name, yes in inside.items() if name in but)
    held: int = facts_of(state, pf.address).get("pools", 0) - stale
    return max(held, sum(inside.values())) - named


def elsewhere(state: State, address: str, name: str) -> str | None:
    """Who has a station of this name in a network namespace of his own."""
    return next((user.who for user in (state.users or {}).get(address, ()) if user.rides == name), None)


def away(port: Port, stations: Mapping[str, Mapping[str, Any]]) -> int:
    """How many pools that show by their queues alone may be those of stations that were declared and went into another namespace. Who is
    there is looked for only where a call has something to do (users.py); until then each of them may be."""
    here = stations_on(port.state, port.netdev.name)
    gone = [name for name in ours(port.entry) if name in stations and name not in here]
    if port.state.users is not None:
        gone = [name for name in gone if elsewhere(port.state, port.pf.address, name)]
    hidden: int = port.facts.get("pools", 0) - sum(in_hardware(port.state, port.pf.address, port.netdev.name).values())
    return min(len(gone), max(hidden, 0))


def stale(port: Port, stations: Mapping[str, Mapping[str, Any]]) -> int:
    """Stations whose address somebody changed while they were up: they show as in software and hold a pool all the same, which filters
    for the old address."""
    here = stations_on(port.state, port.netdev.name)
    now = [here[name] for name, wanted in stations.items() if name in here and here[name].address != wanted["mac"]]
    return sum(n.up and n.mode not in IN_SOFTWARE and n.address in port.facts.get("fdb", ()) for n in now)
