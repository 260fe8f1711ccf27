# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""libvirt's networks (https://libvirt.org/formatnetwork.html), compared by what they mean."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..host import Files, Host
from ..model import Plan, Refusal
from ..plain import dataclass
from . import objects
from .objects import NETWORK, Object

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

#: Modes in which libvirt makes the bridge itself, with an address of the host on it.
OWN = ("nat", "route", "isolated")
_MEANT = ("mode", "bridge", "address", "dhcp_start", "dhcp_end")


@dataclass(frozen=True)
class Facts:
    networks: Mapping[str, Object]
    #: Bridge -> what is plugged into it.
    bridges: Mapping[str, tuple[str, ...]]
    #: Route of the host -> network device.
    routes: Mapping[str, str]
    #: Without it libvirt starts no network of its own.
    dnsmasq: bool = True


def read(host: Host) -> Facts:
    files = host.files
    return Facts(
        networks=objects.read(host, NETWORK, meaning),
        bridges={
            name: tuple(files.names(f"/sys/class/net/{name}/brif"))
            for name in files.names("/sys/class/net")
            if files.exists(f"/sys/class/net/{name}/bridge")
        },
        routes=_routes(files),
        dnsmasq=any(files.exists(f"{folder}/dnsmasq") for folder in ("/usr/sbin", "/usr/bin", "/sbin")),
    )


def _routes(files: Files) -> dict[str, str]:
    """/proc/net/route: little-endian hexadecimal numbers. The default route overlaps with all and says nothing."""
    found = {}
    for line in (files.text("/proc/net/route") or "").splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and fields[7] != "00000000":
            address, mask = (ipaddress.IPv4Address(int.from_bytes(bytes.fromhex(fields[n]), "little")) for n in (1, 7))
            found[f"{address}/{mask}"] = fields[0]
    return found


def meaning(root: Element) -> dict[str, Any]:
    """In the words of a wish. A <forward/> without a mode is nat; without it nobody forwards."""
    forward, bridge, ip = root.find("forward"), root.find("bridge"), _ipv4(root)
    span = ip.find("dhcp/range") if ip is not None else None
    return {
        "mode": "isolated" if forward is None else forward.get("mode", "nat"),
        "bridge": bridge.get("name") if bridge is not None else None,
        "address": _address(ip),
        "dhcp_start": span.get("start") if span is not None else None,
        "dhcp_end": span.get("end") if span is not None else None,
    }


def _ipv4(root: Element) -> Element | None:
    return next((ip for ip in root.findall("ip") if ip.get("family", "ipv4") == "ipv4"), None)


def _address(ip: Element | None) -> str | None:
    if ip is None or not ip.get("address"):
        return None
    try:
        return str(ipaddress.IPv4Interface(f"{ip.get('address')}/{ip.get('netmask') or ip.get('prefix') or '32'}"))
    except ValueError:
        return None


# --- The plan ------------------------------------------------------------------------------------------------------


def plan(facts: Facts, wishes: Sequence[Mapping[str, Any]], allow: Collection[str], coming: bool) -> Plan:
    result = Plan(refusals=objects.bad_names(NETWORK, wishes))
    for wish in wishes if not result.refusals else ():
        now = facts.networks.get(wish["name"])
        if wish["state"] == "absent":
            result.refusals += _in_use(facts, now, allow) if now else []
            result.actions += objects.remove(NETWORK, now) if now else []
            continue
        wrong = _refusals(facts, now, wish, coming)
        xml = None if wrong or (now and _meets(now.meaning, wish)) else rendered(now.xml if now else None, wish)
        root = objects.parse(xml) if xml else None
        if now and now.active and (xml or not wish["active"]):
            wrong += _in_use(facts, now, allow)
        result.refusals += wrong
        if not wrong:
            result.actions += objects.converge(NETWORK, now, wish, xml, meaning(root) if root is not None else {})
    return objects.predicted(result) if coming else result


def _meets(now: Mapping[str, Any], wish: Mapping[str, Any]) -> bool:
    return all(now[key] == _plain(key, wish[key]) for key in _MEANT if wish.get(key) is not None)


def _plain(key: str, value: str) -> str:
    return str(ipaddress.IPv4Interface(value)) if key == "address" else value


def _refusals(facts: Facts, now: Object | None, wish: Mapping[str, Any], coming: bool) -> list[Refusal]:
    reasons = _wrong_in_itself(now, wish)
    mode = wish.get("mode") or (now.meaning["mode"] if now else "nat")
    if not reasons and mode == "bridge" and wish.get("bridge") not in (None, *facts.bridges):
        reasons.append(f"the host has no bridge {wish['bridge']} (it has {', '.join(facts.bridges) or 'none'}). Make it first")
    if not reasons and mode in OWN and not facts.dnsmasq and not coming:
        reasons.append("there is no dnsmasq, without which libvirt starts none. Install it (the role kvm does)")
    if not reasons and mode in OWN and wish.get("address"):
        reasons += _overlapping(facts, now, wish)
    return [Refusal(NETWORK.unit(wish["name"]), f"{reason};", "nothing was changed.") for reason in reasons]


def _wrong_in_itself(now: Object | None, wish: Mapping[str, Any]) -> list[str]:
    mode = wish.get("mode") or (now.meaning["mode"] if now else None)
    if mode is None:
        return ["it is not there, and mode says not what to make. Say mode"]
    if mode == "bridge":
        named = [key for key in ("address", "dhcp_start", "dhcp_end") if wish.get(key)]
        if named:
            return [f"mode bridge has no {', '.join(named)}: the bridge is the host's. Leave that out"]
        if not wish.get("bridge") and not (now and now.meaning["bridge"]):
            return ["mode bridge needs the name of the bridge. Say bridge"]
    if mode in ("nat", "route") and not wish.get("address") and not (now and now.meaning["address"]):
        return [f"mode {mode} needs an address of the host. Say address"]
    return _bad_addresses(now, wish)


def _bad_addresses(now: Object | None, wish: Mapping[str, Any]) -> list[str]:
    text = wish.get("address") or (now.meaning["address"] if now else None)
    try:
        whole = ipaddress.IPv4Interface(text) if text else None
        ends = [ipaddress.IPv4Address(wish[key]) for key in ("dhcp_start", "dhcp_end") if wish.get(key)]
    except ValueError as error:
        return [f"{error}. Correct it"]
    if wish.get("address") and (whole is None or "/" not in wish["address"] or whole.ip == whole.network.network_address):
        return [f"{wish['address']} is no address of the host with its prefix, as in 192.168.122.1/24. Correct it"]
    if bool(wish.get("dhcp_start")) != bool(wish.get("dhcp_end")):
        return ["dhcp_start and dhcp_end go together. Say both"]
    if ends and (whole is None or any(end not in whole.network for end in ends) or ends[0] > ends[1]):
        return [f"{ends[0]} to {ends[1]} is no range in {whole.network if whole else 'a network without an address'}. Correct it"]
    return []


def _overlapping(facts: Facts, now: Object | None, wish: Mapping[str, Any]) -> list[str]:
    """libvirt itself refuses to start it: "Network is already in use by interface"."""
    wanted = ipaddress.IPv4Interface(wish["address"]).network
    own = {wish.get("bridge"), now.meaning["bridge"] if now else None}
    return [
        f"{wanted} is in use: the host reaches {ipaddress.IPv4Network(route)} by {device}. Take another network"
        for route, device in facts.routes.items()
        if device not in own and ipaddress.IPv4Network(route).overlaps(wanted)
    ]


def _in_use(facts: Facts, now: Object, allow: Collection[str]) -> list[Refusal]:
    """A guest whose network is started anew stays unplugged until it is started again."""
    bridge = now.meaning["bridge"]
    plugged = [n for n in facts.bridges.get(bridge or "", ()) if n != f"{bridge}-nic"] if now.meaning["mode"] in OWN else []
    if not plugged or not now.active or "in_use" in allow:
        return []
    reason = f"{', '.join(plugged)} of guests are plugged into its bridge {bridge}, and would be cut off until these guests are started again."
    way = "End these guests first, or allow it by name: allow: [in_use]. Nothing was changed."
    return [Refusal(NETWORK.unit(now.name), reason, way, "in_use")]


def rendered(xml: str | None, wish: Mapping[str, Any]) -> str:
    """The definition with what is wished; whatever else is in it stays. A bridge of the host takes nothing of the rest along."""
    from xml.etree import ElementTree

    old = ElementTree.fromstring(xml) if xml else ElementTree.Element("network")
    root = old
    if wish.get("mode") == "bridge" and meaning(old)["mode"] != "bridge":
        root = ElementTree.Element("network")
        root.extend([element for element in old if element.tag == "uuid"])
    _child(root, "name").text = wish["name"]
    _set_mode(root, wish.get("mode"))
    if wish.get("bridge"):
        _child(root, "bridge").set("name", wish["bridge"])
    if wish.get("address"):
        _set_address(root, wish["address"])
    ip = _ipv4(root)
    if wish.get("dhcp_start") and ip is not None:
        span = _child(_child(ip, "dhcp"), "range")
        span.attrib.update(start=wish["dhcp_start"], end=wish["dhcp_end"])
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _set_mode(root: Element, mode: str | None) -> None:
    if mode is None or meaning(root)["mode"] == mode:
        return
    forward = root.find("forward")
    if mode == "isolated" and forward is not None:
        root.remove(forward)
    elif mode != "isolated":
        _child(root, "forward").set("mode", mode)


def _set_address(root: Element, address: str) -> None:
    interface = ipaddress.IPv4Interface(address)
    ip = _ipv4(root)
    if ip is None:
        ip = _child(root, "ip", new=True)
    ip.attrib.pop("prefix", None)
    ip.attrib.update(address=str(interface.ip), netmask=str(interface.netmask))


def _child(element: Element, tag: str, new: bool = False) -> Element:
    from xml.etree import ElementTree

    found = None if new else element.find(tag)
    return found if found is not None else ElementTree.SubElement(element, tag)


def info(facts: Facts) -> list[dict[str, Any]]:
    """In the form of wishes, those that have that form."""
    return [
        {"name": n.name, **{k: v for k, v in n.meaning.items() if v is not None}, "active": n.active, "autostart": n.autostart}
        for n in facts.networks.values()
        if n.meaning["mode"] in (*OWN, "bridge") and (n.meaning["mode"] != "bridge" or n.meaning["bridge"])
    ]
