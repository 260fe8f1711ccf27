# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is wrong with a VMDq wish: said before anything changes, in check mode too."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..link import NO_MAC
from ..model import Refusal
from . import layouts, pools, reading
from . import port as ports
from .port import Port

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
#: dev_valid_name in net/core/dev.c: 15 bytes at most, no blank, no '/', no ':'. 'mv%d' is a pattern there, which another name is made of
#: (dev_get_valid_name); `ip -batch` takes '#' for a comment and quotes for its own (lib/utils.c of iproute2); the rest beyond ASCII is what
#: systemd refuses as well (ifname_valid_full).
_NAME = re.compile(r"""[^\s/:%#'"\\\x00-\x1f\x7f-\U0010ffff]{1,15}""")
#: /proc/sys/net/ipv4/conf has these (sysctl_dev_name_is_allowed in include/net/ip.h).
_RESERVED = (".", "..", "all", "default")
#: What has the one place for who receives from a port, which stations need (netdev_is_rx_handler_busy in macvlan_port_create).
_TAKE_ALL = ("bridge", "bond", "team", "openvswitch", "ipvlan", "ipvtap", "macsec")


def check(port: Port) -> list[Refusal]:
    """All that is wrong with the wish of one port."""
    wrong = [*_queues(port), *_words(port), *pools.check_parameter(port)]
    if wrong:
        return wrong
    stations = ports.wished_stations(port)
    wrong = [*_stations(port, stations), *_macs(port, stations), *_queues_beside(port, stations), *_queues_under(port, stations)]
    return wrong or list(_offload(port, stations))


def together(found: Sequence[Port]) -> list[Refusal]:
    """What two ports of a call would both have: a name, an address."""
    refusals = []
    names: dict[str, str] = {}
    macs: dict[str, str] = {}
    for port in found:
        for name, station in ports.wished_stations(port).items():
            where = f"{name} ({port.label})"
            if names.setdefault(name, port.pf.address) != port.pf.address:
                refusals.append(port.wrong(f"{names[name]} would have a station {name}, too.", "Give each its own name."))
            elif macs.setdefault(station["mac"], where) != where:
                refusals.append(port.wrong(f"{name} and {macs[station['mac']]} would both have the MAC {station['mac']}.", "Give each its own, or mac: auto."))
    return refusals


def _words(port: Port) -> Iterator[Refusal]:
    """What needs no look at the host."""
    layout = port.wish.get("layout")
    known = [each.name for each in pools.layouts_of(port.pf, 0)]
    if layout is not None and layout not in known:
        have = f"it has {', '.join(known)}" if known else f"its driver {port.pf.driver} has none to choose"
        yield port.wrong(f"there is no layout {layout}: {have}.", "Leave layout out, or correct it.")
    seen = set()
    for station in port.wish.get("stations") or []:
        name = station["name"]
        if not _NAME.fullmatch(name) or name in _RESERVED:
            reason = f"{name!r} is no name of a network device."
            way_out = "It has 15 characters of ASCII at most, none of them a blank, a quote or one of / : % # \\, and is not 'all' or 'default'."
            yield port.wrong(reason, way_out)
        if name in seen:
            yield port.wrong(f"the station {name} is named twice.", "Name each station once.")
        seen.add(name)
        yield from _words_of(port, name, station)


def _words_of(port: Port, name: str, station: Mapping[str, Any]) -> Iterator[Refusal]:
    for key, choices in (("kind", ports.KINDS), ("mode", ports.MODES)):
        if station.get(key) is not None and station[key] not in choices:
            yield port.wrong(f"{name}: {key} {station[key]} is none of {', '.join(choices)}.", "Correct it.")
    mac = str(station.get("mac") or "auto").lower()
    if mac != "auto" and not _MAC.fullmatch(mac):
        yield port.wrong(f"{name}: mac {mac} is no MAC address.", "Write six pairs of hexadecimal digits with colons, in quotes, or auto.")
    elif mac == NO_MAC:
        yield port.wrong(f"{name}: mac {mac} is no address of a device.", "Name one, or auto.")
    elif mac != "auto" and int(mac[:2], 16) & 1:
        yield port.wrong(f"{name}: mac {mac} is a multicast address.", "The first octet of a device's address is even.")
    if mac != "auto" and station.get("mode") == "passthru" and mac != port.netdev.address:
        yield port.wrong(f"{name}: in the mode passthru it has the MAC of its port, {port.netdev.address}.", "Leave mac out, or set the port's.")
    mtu = station.get("mtu")
    if mtu is not None and not 68 <= mtu <= port.netdev.mtu:
        # macvlan_change_mtu: not above that of the port.
        yield port.wrong(f"{name}: mtu {mtu} is not between 68 and {port.netdev.mtu}, the MTU of {port.netdev.name}.", "Correct it, or raise the port's first.")


def _queues(port: Port) -> Iterator[Refusal]:
    wished = {kind: number for kind, number in (port.wish.get("queues") or {}).items() if number is not None}
    if not wished:
        return
    facts = port.facts.get("queues", {})
    if "error" in facts:
        yield port.wrong(f"its numbers of queues cannot be read: {facts['error']}.", "Install ethtool, or leave queues out.")
        return
    for kind, number in wished.items():
        limit = facts["max"].get(kind, 0)
        if not limit:
            have = ", ".join(kind for kind, most in facts["max"].items() if most) or "none that can be set"
            yield port.wrong(f"{port.netdev.name} has no {kind} queues (ethtool -l shows: {have}).", "Name a kind that it has.")
        elif isinstance(number, bool) or not 1 <= number <= limit:
            yield port.wrong(f"{number} {kind} queues are not possible: {port.netdev.name} can have 1 to {limit} (ethtool -l).", "Correct the number.")


def _queues_beside(port: Port, stations: Mapping[str, Mapping[str, Any]]) -> Iterator[Refusal]:
    """Numbers that could not stay: the driver takes queues of the port for the pools."""
    number = (port.wish.get("queues") or {}).get("combined")
    wanted = len(ports.hardware_wished(stations.values())) if port.requires else 0
    if number is None or not wanted:
        return
    total = wanted + ports.others(port.state, port.pf, port.netdev.name, {*stations, *ports.ours(port.entry)})
    limit = next((each.queues for each in pools.layouts_of(port.pf, pools.vfs_of(port.pf)) if total <= each.stations), None)
    if limit is not None and number > limit:
        reason = (
            f"{number} combined queues cannot stay beside {total} station{'' if total == 1 else 's'} in hardware: with "
            f"{port.pf.driver} the port then has {limit} at most."
        )
        yield port.wrong(reason, "Correct the number, or name fewer stations.")


def _queues_under(port: Port, stations: Mapping[str, Mapping[str, Any]]) -> Iterator[Refusal]:
    """What the driver does not survive, or its stations do not."""
    wished = {kind: number for kind, number in (port.wish.get("queues") or {}).items() if number is not None}
    now = port.facts.get("queues", {}).get("now", {})
    # One that goes off goes after the stations.
    on = port.facts.get("features", {}).get("on") or port.wish.get("offload", port.requires)
    if on and ports.hardware_wished(stations.values()):
        wrong = pools.too_few_queues(port.state, port.pf, wished.get("combined"))
        if wrong:
            yield port.wrong(wrong[0], f"{wrong[1]} (queues), or switch {reading.FEATURE} off and set require_offload to false.")
    going = set(ports.ours(port.entry)) - set(stations)
    stay = ports.holders(port.state, port.pf, port.netdev.name, going)
    if pools.of_driver(port.pf).forgets and stay and any(now.get(kind) != number for kind, number in wished.items()):
        reason = (
            f"new numbers of queues reset {port.netdev.name}, and {port.pf.driver} then forgets the filters of its stations ({', '.join(stay)}), "
            "which the kernel goes on calling offloaded."
        )
        yield port.wrong(reason, f"Take them away, change the queues, load {port.pf.driver} again, and name them then.")


def _stations(port: Port, stations: Mapping[str, Mapping[str, Any]]) -> Iterator[Refusal]:
    state, lower = port.state, port.netdev.name
    here = ports.stations_on(state, lower)
    for name, station in stations.items():
        other = state.netdevs.get(name)
        if other and name not in here and name not in port.given:
            below = f" on {', '.join(other.lowers)}" if other.kind in ports.KINDS else ""
            what = f"a {other.kind}{below}" if other.kind else "a port of its own"
            yield port.wrong(f"the name {name} is taken: {name} is {what}.", "Give the station another name.")
        if port.requires and station["up"] and station["mode"] in ports.IN_SOFTWARE:
            reason = f"{name}: the mode {station['mode']} has no filter by destination, so the kernel never gives it a pool."
            yield port.wrong(reason, "Choose private, vepa or bridge, or set require_offload to false.")
    busy = next((upper for upper in port.netdev.uppers if upper in state.netdevs and state.netdevs[upper].kind in _TAKE_ALL), None)
    if busy and set(stations) - set(here):
        reason = f"{lower} is a leg of {busy} (a {state.netdevs[busy].kind}), which takes all that it receives (the kernel answers EBUSY)."
        yield port.wrong(reason, "Take it out of there, or choose another port.")
    alone = [name for name, station in stations.items() if station["mode"] == "passthru"]
    going = set(ports.ours(port.entry)) - set(stations)
    if alone and len({*stations, *here} - going) > 1:
        reason = f"{alone[0]}: a station in the mode passthru is the only one of its port (the kernel answers EINVAL)."
        yield port.wrong(reason, "Name it alone, or choose another mode.")


def _macs(port: Port, stations: Mapping[str, Mapping[str, Any]]) -> Iterator[Refusal]:
    """No two in one network may have the same address; the kernel refuses it on one port only (EBUSY, macvlan_addr_busy)."""
    going = set(ports.ours(port.entry)) - set(stations) | port.given
    taken: dict[str, str] = {}
    for netdev in port.state.netdevs.values():
        if netdev.name not in stations and netdev.name not in going and netdev.kind not in ("vlan", "bridge", "bond", "team"):
            taken.setdefault(netdev.address, netdev.name)
        for index, vf in netdev.vfs.items():
            taken.setdefault(str(vf.get("mac", "")), f"VF {index} of {netdev.name}")
    taken = {mac: who for mac, who in taken.items() if mac not in ("", NO_MAC)}
    for name, station in stations.items():
        who = taken.setdefault(station["mac"], name)
        if who != name and station["mode"] != "passthru":
            yield port.wrong(f"{name} and {who} would both have the MAC {station['mac']}.", "Give each its own, or mac: auto.")
    yield from _too_early(port, stations)


def _too_early(port: Port, stations: Mapping[str, Mapping[str, Any]]) -> Iterator[Refusal]:
    """An address that a sibling gives up later in the same call: macvlan_open answers EADDRINUSE until then."""
    here = ports.stations_on(port.state, port.netdev.name)
    later = ports.in_order(stations)
    for name in ports.in_order(stations):
        later = later[1:]
        holder = next((other for other in later if other in here and here[other].up and here[other].address == stations[name]["mac"]), None)
        if holder and stations[name]["up"]:
            reason = f"{name} cannot have the MAC {stations[name]['mac']} yet: {holder} has the MAC {stations[name]['mac']} now, and changes after it."
            yield port.wrong(reason, f"Name {holder} first; for two that exchange theirs, give one of them another address in a call before.")


def _offload(port: Port, stations: Mapping[str, Mapping[str, Any]]) -> Iterator[Refusal]:
    wanted = ports.hardware_wished(stations.values())
    must = bool(port.requires and wanted)
    features = port.facts.get("features", {})
    if must and port.wish.get("offload") is False:
        reason = "offload is false, and require_offload is not: no station can be in hardware so."
        yield port.wrong(reason, "Leave offload out, or set require_offload to false.")
        return
    if not must and port.wish.get("offload") is None:
        return
    if "error" in features:
        yield port.wrong(f"whether it can offload stations cannot be read: {features['error']}.", "Install ethtool, or set require_offload to false.")
        return
    wished_on = must or port.wish["offload"]
    if features["fixed"] and features["on"] != wished_on:
        yield port.wrong(*_fixed(port, features["on"]))
    elif must and "unproven" in port.facts:
        yield port.wrong(f"which of its stations are in hardware cannot be read: {port.facts['unproven']}.", "Mend that, or set require_offload to false.")
    elif must and port.netdev.xdp:
        # ixgbe_fwd_add says so; i40e_fwd_add does not ask, and its channels have no rings for XDP (i40e_fwd_ring_up).
        reason = f"an XDP program is on {port.netdev.name} ({port.netdev.xdp}), and drivers give no pools beside one."
        yield port.wrong(reason, "Take it off (ip link set dev PORT xdp off), or set require_offload to false.")
    elif must:
        named = {*stations, *ports.ours(port.entry)}
        yield from pools.check(port, len(wanted), named)


def _fixed(port: Port, on: bool) -> tuple[str, str]:
    driver = port.pf.driver or "none"
    said = f"{reading.FEATURE} of {port.netdev.name} is {'on' if on else 'off'} [fixed]"
    known = layouts.VMDQ.get(driver)
    if known and known.out_of_tree:
        reason = f"{said}: the {driver} of Linux does not have it, the one that its maker offers apart does."
        return reason, "Install that one, or set require_offload to false."
    if known:
        parameter = pools.running(port.state, port.pf)
        why = f" and its parameter {reading.PARAMETER} gives this port {parameter} pools" if parameter is not None else ""
        return f"{said}: its driver {driver} offers it to other ports or configurations{why}.", "Look at the kernel log, or set require_offload to false."
    have = sorted(name for name, each in layouts.VMDQ.items() if not each.out_of_tree)
    return f"{said}: its driver {driver} does not have it.", f"Drivers that do: {', '.join(have)}. Or set require_offload to false."
