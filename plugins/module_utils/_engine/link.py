# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""rtnetlink by way of iproute2: what `ip -j -d link` says of VFs, and one `ip -force -batch` for all that is set.

The attributes of a VF have the names that they have in a wish. Some go to the kernel together, because it takes them in
one message and would reset what is left out (struct ifla_vf_vlan_info, struct ifla_vf_rate in linux/if_link.h).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import sysfs
from .errors import EngineError
from .host import Host
from .plain import dataclass

#: Seconds for a port's link to come (back): autonegotiation, and a driver that restarts its port for new VFs.
LINK_LIMIT = 30.0

#: How often a network device that was renamed meanwhile is looked for.
_ATTEMPTS = 3

VLAN = ("vlan", "qos", "vlan_proto")
RATE = ("min_tx_rate", "max_tx_rate")
#: Set by rtnetlink at the PF.
OF_PF = ("mac", *VLAN, "spoof_check", "trust", "link_state", *RATE, "query_rss", "node_guid", "port_guid")
#: Of the VF's own network device on the host.
OF_NETDEV = ("mtu", "promisc")

NO_MAC = "00:00:00:00:00:00"
#: What a VF of an InfiniBand port has instead of a MAC.
GUIDS = ("node_guid", "port_guid")
#: That nobody set one reads as this.
NO_GUID = "00:00:00:00:00:00:00:00"
#: Letters of a GUID.
GUID_LENGTH = len(NO_GUID)

#: What holds where nobody set anything. What `ip` leaves out is so.
NEUTRAL: Mapping[str, Any] = {
    "mac": NO_MAC,
    "vlan": 0,
    "qos": 0,
    "vlan_proto": "802.1Q",
    "trust": False,
    "link_state": "auto",
    "min_tx_rate": 0,
    "max_tx_rate": 0,
    "query_rss": False,
}

#: Link type -> of how many VFs the kernel can tell. It puts them into one attribute, whose length has 16 bits, and takes 196 bytes for each, with
#: GUIDs 236 (rtnl_fill_vfinfo in net/core/rtnetlink.c, without statistics, for which `ip` does not ask). Of more it shows those that the length
#: happens to hold ("Truncated VF list", print_linkinfo in iproute2's ip/ipaddress.c), or fails with EMSGSIZE.
SHOWN = {"ether": 65531 // 196, "infiniband": 65531 // 236}

Values = Mapping[str, Any]


def vfs(link: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """VF index -> its attributes, from one link of `ip -j -d`. What the driver does not know is not in it
    (print_vfinfo in iproute2's ip/ipaddress.c)."""
    return {item["vf"]: _vf(item) for item in link.get("vfinfo_list") or [] if "vf" in item}


def _vf(item: Mapping[str, Any]) -> dict[str, Any]:
    vlan = (item.get("vlan_list") or [item])[0]
    rate = item.get("rate") or {}
    mac = item.get("address") or item.get("mac") or ""
    found = {
        # The address of InfiniBand is 20 bytes long and nothing that could be set.
        "mac": mac.lower() if len(mac) == len(NO_MAC) else None,
        "vlan": vlan.get("vlan", 0),
        "qos": vlan.get("qos", 0),
        "vlan_proto": vlan.get("protocol", "802.1Q"),
        "min_tx_rate": rate.get("min_tx", 0),
        "max_tx_rate": rate.get("max_tx", item.get("tx_rate", 0)),
        "spoof_check": item.get("spoofchk"),
        "trust": item.get("trust"),
        "link_state": item.get("link_state"),
        "query_rss": item.get("query_rss_en"),
        "node_guid": item.get("node guid"),
        "port_guid": item.get("port guid"),
    }
    return {key: value for key, value in found.items() if value is not None}


# --- Writing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Line:
    """A line of the batch: whose it is, and what it sets, as it will be reported."""

    owner: int
    what: str
    text: str


def _words(key: str, value: Any) -> str:
    if isinstance(value, bool):
        value = "on" if value else "off"
    return f"{_NAMES[key]} {value}"


#: Attribute -> what `ip link set dev PF vf N` calls it.
_NAMES = {
    "mac": "mac",
    "vlan": "vlan",
    "qos": "qos",
    "vlan_proto": "proto",
    "spoof_check": "spoofchk",
    "trust": "trust",
    "link_state": "state",
    "min_tx_rate": "min_tx_rate",
    "max_tx_rate": "max_tx_rate",
    "query_rss": "query_rss",
    "node_guid": "node_guid",
    "port_guid": "port_guid",
    "mtu": "mtu",
    "promisc": "promisc",
}


def _groups(values: Values) -> Iterator[list[str]]:
    """The attributes, those together that go in one message. The VLAN's protocol is left out where it is the usual one:
    the older message, which every kernel takes, has no place for it."""
    for group in (VLAN, RATE):
        here = [key for key in group if key in values]
        if here:
            yield [key for key in here if not (key == "vlan_proto" and values[key] == NEUTRAL[key])]
    for key in values:
        if key not in (*VLAN, *RATE):
            yield [key]


def _lines(owner: int, netdev: str, index: str, values: Values) -> Iterator[_Line]:
    for keys in _groups(values):
        what = f"VF {index}: {', '.join(f'{key} {shown(values[key])}' for key in keys)}"
        words = " ".join(_words(key, values[key]) for key in keys)
        own = keys[0] in OF_NETDEV
        yield _Line(owner, what, f"link set dev {netdev} {words}" if own else f"link set dev {netdev} vf {index} {words}")


def shown(value: Any) -> str:
    """A value as the user would write it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _batch(host: Host, lines: Sequence[_Line]) -> dict[int, str]:
    """Run all lines in one process, the ones after a failure too. Index of a line -> what the kernel answered."""
    if not lines:
        return {}
    code, _out, err = host.run(["ip", "-force", "-batch", "-"], "".join(f"{line.text}\n" for line in lines))
    failed, rest = failures(err)
    if rest or (code and not failed):
        # A word that ip itself does not take ends the batch at once, with -force too (invarg, seen on the lab).
        raise EngineError(f"ip -batch broke off: {rest or code}. Is iproute2 too old for one of the attributes?")
    return failed


def _answers(host: Host, lines: Sequence[_Line], errors: list[Exception | None]) -> dict[int, str]:
    """As _batch. Where one line broke it off, port by port, so that it fails its own port alone; what was set already is
    set again."""
    owners = dict.fromkeys(line.owner for line in lines)
    try:
        return _batch(host, lines)
    except EngineError as error:
        if len(owners) == 1:
            errors[lines[0].owner] = error
            return {}
    found = {}
    for owner in owners:
        numbers = [number for number, line in enumerate(lines) if line.owner == owner]
        answers = _answers(host, [lines[number] for number in numbers], errors)
        found.update({numbers[number]: answer for number, answer in answers.items()})
    return found


def failures(err: str) -> tuple[dict[int, str], str]:
    """Index of the line (from 0) -> the answer, from the standard error of a batch: what `ip` says of a line stands
    before 'Command failed -:N' (do_batch in iproute2's lib/utils.c). And what it said that belongs to no such line."""
    found = {}
    said: list[str] = []
    for line in err.splitlines():
        end = re.fullmatch(r"Command failed -:(\d+)", line.strip())
        if end:
            found[int(end.group(1)) - 1] = "; ".join(said) or "refused without a reason"
            said = []
        elif line.strip():
            said.append(line.strip())
    return found, "; ".join(said)


def read(host: Host) -> dict[str, Mapping[str, Any]]:
    """All links of this network namespace by name, from one process."""
    code, out, err = host.run(["ip", "-j", "-d", "link", "show"])
    try:
        links = json.loads(out) if code == 0 else None
    except ValueError:
        links = None
    if links is None:
        raise EngineError(f"ip -j -d link show: failed: {err.strip() or 'its output is not JSON'}.")
    return {link["ifname"]: link for link in links if link.get("ifname")}


def _netdev(host: Host, args: Mapping[str, Any]) -> str:
    """The PF's network device by its name of now: udev may have renamed it since the plan was made."""
    known: str = args["netdev"]
    here = host.files.names(f"{sysfs.device(args['pf'])}/net")
    if known in here or not here:
        return known
    return here[0]


def netdev_now(host: Host, args: Mapping[str, Any]) -> str:
    """As _netdev; nothing where the port has no network device any more."""
    return _netdev(host, args) if host.files.names(f"{sysfs.device(args['pf'])}/net") else ""


def _own_netdev(host: Host, pf: str, index: str) -> str:
    """The network device of a VF, which its driver may make some time after it took the VF."""
    # Steps on drivers are there, and they need this module.
    from . import actions

    return actions.await_netdev(host, host.files.link(f"{sysfs.device(pf)}/virtfn{index}") or f"VF {index} of {pf}")


# --- Steps -----------------------------------------------------------------------------------------------------------


def set_vf_attributes(host: Host, args: Mapping[str, Any]) -> None:
    """Set attributes of one PF's VFs."""
    failures = [error for error in set_many(host, [args]) if error is not None]
    if failures:
        raise failures[0]


def set_many(host: Host, arguments: Sequence[Mapping[str, Any]]) -> list[Exception | None]:
    """Set attributes of VFs of several PFs by one batch, and read them back by one process more."""
    errors: list[Exception | None] = [None] * len(arguments)
    todo = list(range(len(arguments)))
    for attempt in range(_ATTEMPTS):
        last = attempt == _ATTEMPTS - 1
        todo = _try(host, arguments, todo, errors, last)
        if not todo:
            break
    links = read(host)
    for owner, args in enumerate(arguments):
        errors[owner] = errors[owner] or _differs(host, args, links)
    return errors


def _try(
    host: Host, arguments: Sequence[Mapping[str, Any]], owners: Sequence[int], errors: list[Exception | None], last: bool
) -> list[int]:
    """Write what the owners want. Those whose network device was not there by its name are returned: udev renames it
    some time after it appeared (seen on the lab)."""
    lines: list[_Line] = []
    for owner in owners:
        try:
            lines += _lines_of(host, owner, arguments[owner])
        except EngineError as error:
            errors[owner] = error
    again = []
    for number, answer in sorted(_answers(host, lines, errors).items()):
        owner = lines[number].owner
        if answer.startswith("Cannot find device") and not last:
            again.append(owner)
        else:
            said = f"{lines[number].what}: the kernel answered: {answer}."
            errors[owner] = errors[owner] or EngineError(said)
    return [owner for owner in dict.fromkeys(again) if errors[owner] is None]


def undo_vf_attributes(host: Host, args: Mapping[str, Any]) -> None:
    """What is not as it was is set again. A VF that went with its count needs nothing."""
    there = vfs(read(host).get(_netdev(host, args)) or {})
    lines: list[_Line] = []
    for index, vf in args["vfs"].items():
        was = vf.get("was") or {}
        netdev = _netdev(host, args)
        if args.get("own"):
            names = host.files.names(f"{sysfs.device(args['pf'])}/virtfn{index}/net")
            lines += _lines(0, names[0], index, was) if names else []
        elif int(index) in there:
            lines += _lines(0, netdev, index, _to_do(was, there[int(index)]))
        elif host.files.link(f"{sysfs.device(args['pf'])}/virtfn{index}"):
            # There, but not shown.
            lines += _lines(0, netdev, index, was)
    if lines and args.get("needs_link"):
        _wait_for_link(host, _netdev(host, args))
    failed = _batch_without(host, lines, _own_again(host, args, there))
    if failed:
        number, answer = min(failed.items())
        raise EngineError(f"{lines[number].what}: the kernel answered: {answer}.")


def _own_again(host: Host, args: Mapping[str, Any], there: Mapping[int, Values]) -> list[str]:
    """VFs under a driver of the host that get a MAC of their own again: the driver makes one up when it probes its VF, and
    a MAC that is unset under it leaves the VF with none (igb_ndo_set_vf_mac)."""
    found = []
    for index, vf in args["vfs"].items():
        unset = (vf.get("was") or {}).get("mac") == NO_MAC and there.get(int(index), {}).get("mac") != NO_MAC
        address = host.files.link(f"{sysfs.device(args['pf'])}/virtfn{index}")
        if unset and address and host.files.names(f"{sysfs.device(address)}/net"):
            found.append(address)
    return found


def _batch_without(host: Host, lines: Sequence[_Line], addresses: Sequence[str]) -> dict[int, str]:
    """Run the lines while some VFs are taken from their drivers."""
    # Steps on drivers are there, and they need this module.
    from . import actions

    with actions.without_driver(host, addresses):
        return _batch(host, lines)


def _to_do(wanted: Values, now: Values) -> dict[str, Any]:
    """What of the wanted values is not there, with those that have to be sent along."""
    differing = {key for key, value in wanted.items() if now.get(key, NEUTRAL.get(key)) != value}
    for group in (VLAN, RATE):
        if differing & set(group):
            differing |= set(group) & set(wanted)
    return {key: value for key, value in wanted.items() if key in differing}


def _lines_of(host: Host, owner: int, args: Mapping[str, Any]) -> list[_Line]:
    if args.get("needs_link"):
        _wait_for_link(host, _netdev(host, args))
    lines: list[_Line] = []
    for index, vf in args["vfs"].items():
        netdev = _own_netdev(host, args["pf"], index) if args.get("own") else _netdev(host, args)
        lines += _lines(owner, netdev, index, vf["set"])
    return lines


def _wait_for_link(host: Host, netdev: str) -> None:
    if not host.wait(lambda: host.files.attr(f"/sys/class/net/{netdev}/carrier") == "1", LINK_LIMIT):
        raise EngineError(f"{netdev} has no link after {LINK_LIMIT:g} s, and its driver sets rates only with one.")


def _differs(host: Host, args: Mapping[str, Any], links: Mapping[str, Mapping[str, Any]]) -> EngineError | None:
    """Is what the kernel shows what was set?"""
    there = vfs(links.get(_netdev(host, args)) or {})
    for index, vf in args["vfs"].items():
        now: Values = there.get(int(index), {})
        if args.get("own"):
            own = links.get(_own_netdev(host, args["pf"], index)) or {}
            now = {"mtu": own.get("mtu"), "promisc": "PROMISC" in own.get("flags", [])}
        elif int(index) not in there:
            return EngineError(f"VF {index}: what was set cannot be read back: the kernel does not show its attributes.")
        for key, value in vf["set"].items():
            if now.get(key, NEUTRAL.get(key)) != value:
                said = shown(now[key]) if key in now else "nothing"
                return EngineError(
                    f"VF {index}: {key} {shown(value)} was accepted, but the kernel shows {said}. Look at the kernel log."
                )
    return None


def set_up(host: Host, args: Mapping[str, Any]) -> None:
    """Set a PF's network device up or down."""
    _set_up(host, _netdev(host, args), args["up"])
    netdev = _netdev(host, args)
    if ("UP" in read(host).get(netdev, {}).get("flags", [])) != args["up"]:
        word = "up" if args["up"] else "down"
        raise EngineError(f"{netdev}: {word} was accepted, but the kernel does not show it {word}. Look at the kernel log.")


def undo_up(host: Host, args: Mapping[str, Any]) -> None:
    _set_up(host, _netdev(host, args), args["was"])


def _set_up(host: Host, netdev: str, up: bool) -> None:
    word = "up" if up else "down"
    code, _out, err = host.run(["ip", "link", "set", "dev", netdev, word])
    if code:
        raise EngineError(f"{netdev} does not go {word}: {err.strip() or code}. Look at the kernel log.")
