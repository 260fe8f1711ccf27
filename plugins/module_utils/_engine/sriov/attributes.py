# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The attributes of VFs: MAC, VLAN, rates and the rest, most of them set by rtnetlink at the PF.

A VF is born without any of them. So what an operator had set is carried over a change of the count, and the VFs are kept
from their drivers until all is set: a driver takes the MAC over when it probes its VF.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from .. import drivers, guards, link
from ..model import CERTAIN, PREDICTED, Action, Netdev, Plan, Refusal, State
from ..resources import common
from . import eswitch
from .port import Port, is_number

#: Everything that a wish can say of a VF, beside its driver.
KEYS = (*link.OF_PF, *link.OF_NETDEV)

#: What belongs to the holder of a VF that is in use: libvirt sets both from the guest's definition, and puts them back.
_HOLDERS = ("mac", *link.VLAN)

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_GUID = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){7}")
_REPRESENTOR = re.compile(r"(c\d+)?pf\d+(vf|sf)\d+")

#: PCI base class of network controllers.
_NETWORK = "02"

#: Whole numbers: attribute -> smallest and largest.
_RANGES = {
    "vlan": (0, 4094),
    "qos": (0, 7),
    # do_setvfinfo in net/core/rtnetlink.c: struct ifla_vf_rate holds 32 bits.
    "min_tx_rate": (0, 2**32 - 1),
    "max_tx_rate": (0, 2**32 - 1),
    "mtu": (68, 65535),
}


def netdev_of(port: Port) -> Netdev | None:
    """The network device of the PF itself, not one of the representors that may stand beside it."""
    here = [port.state.netdevs[name] for name in port.pf.netdevs if name in port.state.netdevs]
    return next((netdev for netdev in here if not _REPRESENTOR.fullmatch(netdev.port_name)), None)


def wished(port: Port) -> dict[int, dict[str, Any]]:
    """VF index -> the attributes that the wish names, as the kernel would show them."""
    found = {}
    for index, vf in sorted(port.wished.items()):
        values = {key: _plain(port, index, key, vf[key]) for key in KEYS if key in vf}
        if values:
            found[index] = values
    return found


def _plain(port: Port, index: int, key: str, value: Any) -> Any:
    if key == "mac" and str(value).lower() == "auto":
        return auto_mac(port, index)
    return value.lower() if key in ("mac", "node_guid", "port_guid") and isinstance(value, str) else value


def auto_mac(port: Port, index: int) -> str:
    """A locally administered address that is the same on every run: a hash of the host's machine-id and of the port (its
    permanent MAC, or its PCI address where it has none), plus the index of the VF. So no two VFs of a port share one, and two ports of
    the world do with a chance of one in 10^11."""
    netdev = netdev_of(port)
    seed = f"{port.state.machine_id} {netdev.mac if netdev and netdev.mac and not netdev.made_up else port.pf.address}"
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:6], "big") + index
    octets = list((number % 2**48).to_bytes(6, "big"))
    octets[0] = octets[0] & 0xFC | 0x02
    return ":".join(f"{octet:02x}" for octet in octets)


def now(port: Port, index: int) -> Mapping[str, Any]:
    """The attributes of a VF as they are; none of one that is not born yet."""
    return {} if port.born else present(port, index)


def present(port: Port, index: int) -> dict[str, Any]:
    """The attributes of a VF that is there, whatever becomes of it."""
    state, netdev = port.state, netdev_of(port)
    found = dict(netdev.vfs.get(index, {})) if netdev else {}
    vf = state.functions.get(port.sriov.vfs.get(index, ""))
    for name in vf.netdevs[:1] if vf else ():
        if name in state.netdevs:
            found.update(mtu=state.netdevs[name].mtu, promisc=state.netdevs[name].promisc)
    return found


def facts(port: Port, index: int) -> dict[str, Any]:
    """What is, in the form of a wish."""
    found = _as_set(port, index)
    for key, value in list(found.items()):
        # What a driver says of something that it cannot set is no wish: mlx5 says false of all on an InfiniBand port.
        unable = key in link.OF_PF and _can(port, key) is False
        unable |= key in link.RATE and eswitch.legacy_calls_refused(port)
        if unable or value in (link.NO_MAC, link.NO_GUID):
            del found[key]
    if not found.get("vlan"):
        for key in ("qos", "vlan_proto"):
            found.pop(key, None)
    return found


def origin(port: Port) -> dict[str, Any]:
    """What was there before the collection touched it: the attributes of each VF by its index, and whether the port was
    up. A MAC that a VF's driver made up is none of its attributes."""
    netdev = netdev_of(port)
    values = {str(index): _as_set(port, index) for index in port.sriov.vfs}
    return {"attributes": values, "up": netdev.up} if netdev else {}


def _as_set(port: Port, index: int) -> dict[str, Any]:
    found = present(port, index)
    if port.sriov.vfs[index] in port.state.own_macs and "mac" in found:
        found["mac"] = link.NO_MAC
    return found


# --- Checking --------------------------------------------------------------------------------------------------------


def check(port: Port) -> list[Refusal]:
    """What is wrong with the wished attributes of this port."""
    found = [*_check_up(port), *_check_unseen(port)]
    for index, values in wished(port).items():
        found += _check_values(port, index, values) or [
            *_check_port(port, index, values),
            *_check_support(port, index, values),
            *_check_rates(port, index, values),
            *_check_own(port, index, values),
        ]
    return found


def _check_up(port: Port) -> Iterator[Refusal]:
    if "up" in port.wish and netdev_of(port) is None:
        yield port.wrong("it has no network device that could be set up or down.", "Take up out of the wish.")


def _check_values(port: Port, index: int, values: Mapping[str, Any]) -> list[Refusal]:
    return [port.wrong(f"VF {index}: {reason}", way_out) for reason, way_out in _bad_values(values)]


def _bad_values(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    wrong = [key for key, bounds in _RANGES.items() if key in values and not is_number(values[key], *bounds)]
    for key in wrong:
        low, high = _RANGES[key]
        yield f"{key} {values[key]} is not from {low} to {high}.", "Correct the number."
    if "mac" in values:
        yield from _bad_mac(str(values["mac"]))
    for key in link.GUIDS:
        if key in values and (not _GUID.fullmatch(str(values[key])) or not int(values[key].replace(":", ""), 16)):
            yield f"{key} {values[key]} is no GUID.", "Write eight pairs of hexadecimal digits with colons, in quotes."
    if "vlan" not in values and ("qos" in values or "vlan_proto" in values):
        key = "qos" if "qos" in values else "vlan_proto"
        yield f"{key} {values[key]} is wished without a vlan.", "The kernel takes both together: name the vlan as well."
    elif values.get("vlan") == 0 and values.get("qos"):
        yield f"qos {values['qos']} is wished with vlan 0, which means no VLAN.", "Name a vlan, or leave qos out."
    elif values.get("vlan") == 0 and values.get("vlan_proto") == "802.1ad":
        yield "vlan_proto 802.1ad is wished with vlan 0, which means no VLAN.", "Name a vlan, or leave vlan_proto out."
    if not set(wrong) & set(link.RATE) and values.get("max_tx_rate") and values.get("min_tx_rate", 0) > values["max_tx_rate"]:
        yield (
            f"min_tx_rate {values['min_tx_rate']} is above max_tx_rate {values['max_tx_rate']}.",
            "Lower the one or raise the other.",
        )
    for key, choices in (("vlan_proto", ("802.1Q", "802.1ad")), ("link_state", ("auto", "enable", "disable"))):
        if key in values and values[key] not in choices:
            yield f"{key} {values[key]} is none of {', '.join(choices)}.", "Correct it."


def _bad_mac(mac: str) -> Iterator[tuple[str, str]]:
    if not _MAC.fullmatch(mac):
        way_out = "Write six pairs of hexadecimal digits with colons, in quotes: YAML makes a number of some of them."
        yield f"mac {mac} is no MAC address.", way_out
    elif mac == link.NO_MAC:
        yield f"mac {mac} is no address of a device.", "Leave it unset to let it be, or name one, or auto."
    elif int(mac[:2], 16) & 1:
        yield f"mac {mac} is a multicast address.", "The first octet of a device's address is even."


def _check_port(port: Port, index: int, values: Mapping[str, Any]) -> Iterator[Refusal]:
    """Is there a port that could set it?"""
    keys = [key for key in values if key in link.OF_PF]
    if not keys:
        return
    netdev = netdev_of(port)
    if netdev is None:
        reason = f"VF {index}: {keys[0]} is wished, but the PF has no network device (of this network namespace)"
        yield port.wrong(f"{reason}, and only that sets attributes of VFs.", "Take the attributes out of the wish.")
    elif not port.born and index not in netdev.vfs:
        why = f": its answer has room for {_room(netdev)} VFs" if netdev.tells_vfs else ""
        reason = f"VF {index}: {keys[0]} is wished, but the kernel does not show the attributes of this VF{why}."
        yield port.wrong(reason, f"Take the attributes out of the wish; look at 'ip -d link show dev {netdev.name}'.")
    elif port.born and port.count > _room(netdev):
        reason = f"VF {index}: {keys[0]} is wished, but of {port.count} VFs the kernel cannot show the attributes: its answer has room for {_room(netdev)}."
        yield port.wrong(reason, "Lower vf_count, or take the attributes out of the wish: what cannot be read back is not set.")


def _room(netdev: Netdev) -> int:
    return link.SHOWN.get(netdev.link_type, link.SHOWN["ether"])


def _check_unseen(port: Port) -> Iterator[Refusal]:
    """VFs that a change of the count makes anew, with what nobody can see set on them."""
    netdev = netdev_of(port)
    if not (port.born and port.count and netdev and netdev.tells_vfs):
        return
    unseen = [index for index in port.sriov.vfs if index not in netdev.vfs and index < port.count]
    if unseen:
        reason = (
            f"its VFs would be made anew, and what is set on {_vfs(unseen)} cannot be carried over: the kernel does not show it "
            f"(its answer has room for {_room(netdev)} VFs)."
        )
        yield port.wrong(reason, "Set vf_count: 0 first, which gives up what is set on them.")


def _check_support(port: Port, index: int, values: Mapping[str, Any]) -> Iterator[Refusal]:
    for key in values:
        asked = "802.1ad" if values[key] == "802.1ad" else key
        if key not in link.OF_PF or _can(port, asked) is not False or values[key] == link.NEUTRAL.get(key):
            continue
        if _infiniband(port):
            reason = f"VF {index}: {key} is wished, but the port is InfiniBand: its VFs have GUIDs and a link state only."
        elif key in link.GUIDS:
            reason = f"VF {index}: {key} is wished, but the port is no InfiniBand port."
        else:
            what = f"{key} {link.shown(values[key])}"
            reason = f"VF {index}: {what} is wished, but its PF's driver {port.pf.driver} cannot set that."
        yield port.wrong(reason, f"Take {key} out of the wish.")


def _can(port: Port, attribute: str) -> bool | None:
    if attribute == "vlan_proto":
        # The usual one is part of any VLAN.
        attribute = "vlan"
    return drivers.can_set(port.pf.driver, attribute, _infiniband(port))


def _infiniband(port: Port) -> bool:
    netdev = netdev_of(port)
    return netdev.link_type == "infiniband" if netdev else port.pf.class_code.startswith("0207")


def _check_rates(port: Port, index: int, values: Mapping[str, Any]) -> Iterator[Refusal]:
    effective = {key: values.get(key, now(port, index).get(key, 0)) for key in link.RATE}
    if not set(link.RATE) & set(values):
        return
    if eswitch.legacy_calls_refused(port):
        reason = f"VF {index}: rates are wished, and in switchdev mode the kernel refuses them (EOPNOTSUPP)."
        yield port.wrong(reason, "Limit the VF's representor or its devlink port there (devlink port function rate).")
        return
    # What the boot leaves to the unit that waits for the link does not keep the VFs and their drivers from coming back.
    speed = None if port.options.before_link else port.sriov.speed
    for key in link.RATE:
        if key in values and speed and values[key] > speed:
            reason = f"VF {index}: {key} {values[key]} is above the {speed} Mbit/s of the link."
            yield port.wrong(reason, "Lower it, or find out why the link is not faster.")
    if effective["max_tx_rate"] and effective["min_tx_rate"] > effective["max_tx_rate"]:
        reason = f"VF {index}: min_tx_rate {effective['min_tx_rate']} is above max_tx_rate {effective['max_tx_rate']}"
        yield port.wrong(f"{reason} (what is unset stays as it is).", "Name both.")


def _check_own(port: Port, index: int, values: Mapping[str, Any]) -> Iterator[Refusal]:
    """mtu and promisc are the VF's network device's: a VF that a guest has, has none."""
    keys = [key for key in values if key in link.OF_NETDEV]
    if not keys:
        return
    driver = _driver_to_be(port, index)
    netdev = _own_netdev(port, index)
    if not port.has_vf_functions or not (netdev or port.pf.class_code.startswith(_NETWORK)):
        # VFs have their PF's class (PCI Express Base Specification, SR-IOV capability).
        reason = f"VF {index}: {keys[0]} is wished of its network device, but its VFs are no network functions."
        yield port.wrong(reason, f"Take {keys[0]} out of the wish.")
    elif drivers.is_vfio(driver):
        reason = f"VF {index}: {keys[0]} is wished of its network device, but under {driver} it has none."
        yield port.wrong(reason, f"Take {keys[0]} out of the wish: the guest sets it.")
    else:
        yield from _check_mtu(port, index, values.get("mtu", 0), netdev)


def _check_mtu(port: Port, index: int, mtu: int, netdev: Netdev | None) -> Iterator[Refusal]:
    """What is larger than the PF's frames goes nowhere, so its limit stands for a VF that shows none yet."""
    asked = netdev or netdev_of(port)
    if asked and asked.max_mtu and mtu > asked.max_mtu:
        whose = asked.name if netdev else f"its PF's {asked.name}"
        yield port.wrong(f"VF {index}: mtu {mtu} is above {asked.max_mtu}, the largest of {whose}.", "Lower it.")


def _own_netdev(port: Port, index: int) -> Netdev | None:
    """The network device of a VF that is there, where it has one here."""
    vf = port.vf(index)
    return next((port.state.netdevs[name] for name in vf.netdevs if name in port.state.netdevs), None) if vf else None


def _driver_to_be(port: Port, index: int) -> str | None:
    """The driver that a VF will have, where that is known."""
    driver = port.wished.get(index, {}).get("driver")
    vf = port.vf(index)
    if driver == "default":
        return vf.native if vf else None
    return driver or (vf.driver if vf else None)


def check_together(state: State, ports: Sequence[Port], leaving: Collection[str] = ()) -> list[Refusal]:
    """What the wishes of all ports make wrong together: no MAC and no GUID twice in one host. `leaving`: ports that this call
    gives back."""
    # What was let through when it was declared comes back, whoever took the address meanwhile.
    replayed = any(port.options.recorded_only for port in ports)
    asked = {*leaving, *(port.pf.address for port in ports)}
    wishes = [(port, index, values) for port in ports for index, values in wished(port).items()]
    found = []
    for key in ("mac", *link.GUIDS):
        named = [(port, index, values[key]) for port, index, values in wishes if values.get(key) not in (None, link.NO_MAC, link.NO_GUID)]
        if not named:
            continue
        holders = dict(_macs_of_host(state, ports) if key == "mac" else _guids_of_host(state, ports, key))
        if not replayed:
            now = dict(_macs_of_now(state)) if key == "mac" else {}
            holders = {**now, **dict(_declared(state, asked, key)), **holders}
        for port, index, value in named:
            found += _taken(port, index, key, value, holders)
    return found


def _taken(port: Port, index: int, key: str, value: str, holders: dict[str, str]) -> list[Refusal]:
    """Does another one have it, or wish it?"""
    who = f"VF {index} of {port.pf.address}"
    other = holders.setdefault(value, who)
    if other == who:
        return []
    what, way_out = ("MAC", "Give each its own, or mac: auto.") if key == "mac" else (key, "Give each its own.")
    reason = f"{who} ({port.label}) and {other} would both have the {what} {value}."
    return [Refusal(port.pf.address, reason, f"{way_out} Nothing was changed.")]


def _guids_of_host(state: State, ports: Iterable[Port], key: str) -> Iterator[tuple[str, str]]:
    """GUID -> the VF that has it, and keeps it as nobody wishes another one for it."""
    by_pf = {port.pf.address: port for port in ports}
    for function in state.functions.values():
        if function.sriov is None:
            continue
        port = by_pf.get(function.address) or Port(state, function, function.sriov, common.Options(), "")
        wishing = wished(port)
        for index in range(min(port.count, len(function.sriov.vfs))) if port.label else function.sriov.vfs:
            value = present(port, index).get(key, link.NO_GUID)
            if value != link.NO_GUID and key not in wishing.get(index, {}):
                yield value, f"VF {index} of {function.address}"


def _macs_of_host(state: State, ports: Sequence[Port]) -> Iterator[tuple[str, str]]:
    """MAC -> whose it is: of the host's ports, and of the VFs that nobody wishes another one for."""
    wishing = {(port.pf.address, index) for port in ports for index, values in wished(port).items() if "mac" in values}
    by_pf = {port.pf.address: port for port in ports}
    for function in state.functions.values():
        if function.sriov is None and function.physfn is None:
            for name in function.netdevs:
                if name in state.netdevs and state.netdevs[name].mac:
                    yield state.netdevs[name].mac, name
        if function.sriov is None:
            continue
        port = by_pf.get(function.address) or Port(state, function, function.sriov, common.Options(), "")
        netdev = netdev_of(port)
        if netdev is None:
            continue
        if netdev.mac:
            yield netdev.mac, netdev.name
        staying = range(min(port.count, len(function.sriov.vfs))) if port.label else function.sriov.vfs
        for index in staying:
            mac = present(port, index).get("mac")
            if mac not in (None, link.NO_MAC) and (function.address, index) not in wishing:
                yield mac, f"VF {index} of {function.address}"


#: Kinds of network devices that stand in the host's own network: a port has none.
_OF_THE_HOST = ("", "bridge", "openvswitch", "bond", "team")


def _macs_of_now(state: State) -> Iterator[tuple[str, str]]:
    """The addresses that the host's own ports and bridges have now. Of those that rest on a VF it is the VF's."""
    functions = state.functions.values()
    foreign = {name for f in functions for name in (*f.representors, *(f.netdevs if f.physfn else ()))}
    for name, netdev in state.netdevs.items():
        if netdev.address and netdev.kind in _OF_THE_HOST and not _rests_on(state, name, foreign):
            yield netdev.address, name


def _rests_on(state: State, name: str, those: Collection[str]) -> bool:
    below = state.netdevs[name].lowers if name in state.netdevs else ()
    return name in those or any(_rests_on(state, lower, those) for lower in below)


def _declared(state: State, asked: Collection[str], key: str) -> Iterator[tuple[str, str]]:
    """What earlier calls declared for VFs of other ports, whether or not they are there now."""
    for address, entry in state.stored["sriov"]["devices"].items():
        function = state.functions.get(address)
        if function is None or function.sriov is None or address in asked:
            continue
        vfs = {int(index): vf for index, vf in entry["wish"]["vfs"].items()}
        port = Port(state, function, function.sriov, common.Options(), "", wished=vfs)
        for index, values in wished(port).items():
            if key in values:
                yield values[key], f"VF {index} of {address} (as an earlier call declared it)"


# --- Planning --------------------------------------------------------------------------------------------------------


def carried(port: Port) -> dict[int, dict[str, Any]]:
    """What others set on VFs that this plan makes anew: it would be lost with the count."""
    if not port.born:
        return {}
    found = {}
    for index in port.sriov.vfs:
        ours = port.ours.get(index, ())
        values = {k: v for k, v in _as_set(port, index).items() if _was_set(port, k, v) and k not in ours}
        if eswitch.legacy_calls_refused(port):
            # What legacy mode had set the kernel still shows, and will not set again.
            values = {key: value for key, value in values.items() if key not in link.RATE}
        if index < port.count and values:
            found[index] = values
    return found


def _was_set(port: Port, key: str, value: Any) -> bool:
    """Is it other than a new VF has it? The network device's own are whoever's who manages that."""
    if key in link.OF_NETDEV:
        return False
    neutral = port.pf.driver in drivers.CHECKS_SPOOFING if key == "spoof_check" else link.NEUTRAL.get(key)
    if key in link.GUIDS:
        return bool(value != link.NO_GUID)
    return bool(value != neutral)


def given_back(port: Port, index: int, was: Mapping[str, Any], whole: bool) -> dict[str, Any]:
    """What of a VF's origin has to be wished, so that it is as it was: what a wish of ours set, and all of it where the VF
    itself went with a count of ours (`whole`)."""
    found = {key: value for key, value in was.items() if whole and key in link.OF_PF and _was_set(port, key, value)}
    if index in port.sriov.vfs:
        found.update({key: value for key, value in was.items() if key in port.ours.get(index, ())})
        if found.get("vlan") and not present(port, index).get("vlan"):
            # Without a VLAN there was no priority and no protocol to keep: they went with it.
            found.update({key: was[key] for key in link.VLAN if was.get(key, link.NEUTRAL[key]) != link.NEUTRAL[key]})
    if found.get("mac") == link.NO_MAC and (port.born or port.pf.driver not in drivers.UNSETS_MAC):
        del found["mac"]
    return found


def recorded(port: Port) -> dict[str, Any]:
    """VF index -> what is set again should a change of the count be undone."""
    found = {}
    for index in port.sriov.vfs:
        is_now = _as_set(port, index)
        values = {key: value for key, value in is_now.items() if _was_set(port, key, value)}
        if set(link.RATE) & set(values):
            # They go in one message.
            values.update({key: is_now[key] for key in link.RATE if key in is_now})
        if values:
            found[str(index)] = values
    return found


def _to_do(port: Port, keys: Iterable[str]) -> dict[int, dict[str, Any]]:
    """VF index -> what of the keys has to be set, wished or carried over, with what has to be sent along."""
    over, wish = carried(port), wished(port)
    found = {}
    for index in sorted({*over, *wish}):
        wanted = {key: value for key, value in {**over.get(index, {}), **wish.get(index, {})}.items() if key in keys}
        is_now = now(port, index)
        differing = {key for key, value in wanted.items() if _differs(port, key, value, is_now)}
        for group in (link.VLAN, link.RATE):
            if differing & set(group):
                differing |= set(group)
        values = {
            key: wanted[key] if key in wanted else _along(key, wanted, is_now) for key in KEYS if key in differing
        }
        if values:
            found[index] = values
    return found


def _differs(port: Port, key: str, value: Any, is_now: Mapping[str, Any]) -> bool:
    if key in is_now or not port.born:
        return bool(is_now.get(key, link.NEUTRAL.get(key)) != value)
    # On a VF that is not born yet, what is wished is set even where it may be so: not what its driver cannot set.
    return value != link.NEUTRAL.get(key) or _can(port, key) is True


def _along(key: str, wanted: Mapping[str, Any], is_now: Mapping[str, Any]) -> Any:
    """An unset attribute that goes in one message with a wished one: it stays as it is. No VLAN has no priority."""
    if key in ("qos", "vlan_proto") and wanted.get("vlan") == 0:
        return link.NEUTRAL[key]
    return is_now.get(key, link.NEUTRAL[key])


def holds_probing(port: Port) -> bool:
    """Have the new VFs to wait for their attributes before a driver may take them?"""
    return port.born and port.count > 0 and bool(_to_do(port, _before_driver()))


def _before_driver() -> tuple[str, ...]:
    return tuple(key for key in link.OF_PF if key not in link.RATE)


def plan_up(port: Port) -> Plan:
    """The PF's own link: libvirt and some drivers want it up before a VF is used."""
    result = Plan()
    up, netdev = port.wish.get("up"), netdev_of(port)
    if up is None or netdev is None or netdev.up == up:
        return result
    if not up and common.guarded(result, guards.before_down(port.state, port.pf), port.options, port.pf.address):
        return result
    result.actions.append(
        Action(
            kind="set_up",
            unit=port.pf.address,
            text=f"set {netdev.name} {'up' if up else 'down'}",
            args={"pf": port.pf.address, "netdev": netdev.name, "up": up, "was": netdev.up},
            before={"up": netdev.up},
            after={"up": up},
        )
    )
    return result


def plan(port: Port) -> Plan:
    """What has to be set before the VFs get their drivers."""
    result = Plan()
    todo = _without_held(port, _to_do(port, _before_driver()), result)
    if result.refusals:
        return result
    if todo or _to_do(port, link.RATE):
        dangers = guards.before_attributes(port.state, port.pf, {} if port.born else todo)
        if common.guarded(result, dangers, port.options, port.pf.address):
            return result
    reloading = _reloading(port, todo)
    for index in reloading:
        vf = port.vf(index)
        if vf and common.guarded(result, guards.before_unbind(port.state, vf), port.options, port.pf.address):
            return result
    result.actions += [_unbind(port, index) for index in reloading]
    if todo:
        result.actions.append(_action(port, todo, PREDICTED if port.born else CERTAIN))
    result.actions += [_rebind(port, index) for index in reloading]
    return result


def plan_after(port: Port) -> Plan:
    """What has to be set when the VFs have their drivers, and the rates, for which the port needs its link back."""
    result = Plan()
    own = _present_netdevs(port, _to_do(port, link.OF_NETDEV), result)
    if own:
        # A network device may come late, and under a name that udev gives it.
        certain = not port.born and all(vf and vf.netdevs for vf in map(port.vf, own))
        result.actions.append(_action(port, own, CERTAIN if certain else PREDICTED, own=True))
    rates = _to_do(port, link.RATE)
    if rates:
        result.extend(_plan_rates(port, rates))
    return result


def _plan_rates(port: Port, rates: Mapping[int, Mapping[str, Any]]) -> Plan:
    if port.pf.driver in drivers.RATES_WITHOUT_LINK:
        return Plan(actions=[_action(port, rates, PREDICTED if port.born else CERTAIN)])
    # Where there is no link, this is left to the unit that waits for one (after_link.py).
    return Plan(actions=[_action(port, rates, PREDICTED if port.born else CERTAIN, needs_link=True)])


def _without_held(port: Port, todo: dict[int, dict[str, Any]], result: Plan) -> dict[int, dict[str, Any]]:
    """Without the MAC and VLAN of VFs that somebody uses: they are the holder's while he has the VF. What is given back
    would be forgotten with its record: that waits for the holder."""
    found = {}
    for index, values in todo.items():
        vf = port.vf(index)
        known = (port.state.users or {}).get(vf.address if vf else "", ())
        users = [user.who for user in known if not user.idle]
        held = [key for key in values if key in _HOLDERS] if users else []
        if held and vf and port.returning:
            danger = guards.held_attributes(vf, held, users)
            common.guarded(result, [danger], port.options, port.pf.address)
            held = []
        if held and not any(user.rules for user in known):
            result.warnings.append(
                f"{port.pf.address}: {', '.join(held)} of VF {index} left as it is: {', '.join(users)} uses the VF, and "
                "its holder sets them."
            )
        rest = {key: value for key, value in values.items() if key not in held}
        if rest:
            found[index] = rest
    return found


def _present_netdevs(port: Port, todo: dict[int, dict[str, Any]], result: Plan) -> dict[int, dict[str, Any]]:
    """Without the VFs whose network device cannot be reached from here."""
    found = {}
    for index, values in todo.items():
        vf = port.vf(index)
        if vf and vf.driver == _driver_to_be(port, index) and not vf.netdevs:
            result.warnings.append(
                f"{port.pf.address}: {', '.join(values)} of VF {index} left as it is: it has no network device in this "
                "network namespace."
            )
        else:
            found[index] = values
    return found


def _reloading(port: Port, todo: Mapping[int, Mapping[str, Any]]) -> list[int]:
    """The VFs whose driver has to be loaded anew, as it knows the MAC from its probing (igb says in the kernel log:
    "Reload the VF driver to make this change effective"), or the GUIDs (the SR-IOV network operator does so by experience). A guest gets
    it when it starts."""
    found = []
    for index, values in todo.items():
        vf = port.vf(index)
        stays = vf and vf.driver == _driver_to_be(port, index)
        if {"mac", *link.GUIDS} & set(values) and vf and vf.driver and stays and not drivers.is_vfio(vf.driver):
            found.append(index)
    return found


# --- Actions ---------------------------------------------------------------------------------------------------------


def _action(
    port: Port,
    todo: Mapping[int, Mapping[str, Any]],
    certainty: str,
    own: bool = False,
    needs_link: bool = False,
) -> Action:
    netdev = netdev_of(port)
    before = {index: _before(port, index, values) for index, values in todo.items()}
    return Action(
        kind="set_vf_attributes",
        unit=port.pf.address,
        text=_text(port, todo),
        certainty=certainty,
        args={
            "pf": port.pf.address,
            "netdev": netdev.name if netdev else "",
            "own": own,
            "needs_link": needs_link,
            "vfs": {str(index): {"set": dict(values), "was": before[index]} for index, values in todo.items()},
        },
        before={f"vf {index} {key}": value for index, values in before.items() for key, value in values.items()},
        after={f"vf {index} {key}": value for index, values in todo.items() for key, value in values.items()},
    )


def _before(port: Port, index: int, values: Mapping[str, Any]) -> dict[str, Any]:
    """What an undo sets again. A MAC that was the VF's own cannot come back on every driver."""
    if port.born:
        return {}
    was = {**link.NEUTRAL, **_as_set(port, index)}
    found = {key: was[key] for key in values if key in was}
    if found.get("mac") == link.NO_MAC and port.pf.driver not in drivers.UNSETS_MAC:
        del found["mac"]
    return found


def _text(port: Port, todo: Mapping[int, Mapping[str, Any]]) -> str:
    """What is set, those together that get the same."""
    over, wish = carried(port), wished(port)
    groups: dict[tuple[str, str, bool], list[int]] = {}
    lasting = []
    for index, values in todo.items():
        for key, value in values.items():
            if value == now(port, index).get(key, link.NEUTRAL.get(key)) and key not in wish.get(index, {}):
                # Only sent along.
                continue
            kept = key in over.get(index, {}) and key not in wish.get(index, {})
            groups.setdefault((key, link.shown(value), kept), []).append(index)
        if "mac" in values and not port.born and "mac" not in _before(port, index, values):
            lasting.append(index)
    parts = [
        f"{key} {value} on {_vfs(indexes)}{' (as it was before)' if kept else ''}"
        for (key, value, kept), indexes in groups.items()
    ]
    text = f"set {'; '.join(parts)}"
    return f"{text} (the MAC of {_vfs(lasting)} cannot be unset again)" if lasting else text


def _vfs(indexes: Iterable[int]) -> str:
    """'VF 3' or 'VFs 0-3, 6'."""
    numbers = sorted(indexes)
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return f"VF{'s' if len(numbers) > 1 else ''} {shown}"


def _unbind(port: Port, index: int) -> Action:
    vf = port.vf(index)
    driver = vf.driver if vf else None
    what = "GUID" if _infiniband(port) else "MAC"
    return Action(
        kind="unbind",
        unit=port.pf.address,
        text=f"take VF {index} ({port.addresses[index]}) from {driver}, which learns a new {what} only when it is loaded",
        args={
            "pf": port.pf.address,
            "index": index,
            "was_driver": driver,
            "was_override": vf.override if vf else None,
        },
    )


def _rebind(port: Port, index: int) -> Action:
    vf = port.vf(index)
    driver = vf.driver if vf else None
    return Action(
        kind="rebind",
        unit=port.pf.address,
        text=f"give VF {index} ({port.addresses[index]}) back to {driver}",
        args={"pf": port.pf.address, "index": index, "driver": driver},
    )
