# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Other programs that rule a device, by the files they keep. Two keepers of one setting undo each other.

Each entry of READERS reads one program's files and says which functions they are about and what they rule. What a file
leaves open (a match that only that program can judge) counts as a match: the guard asks once too often rather than
once too seldom. docs/safety.md says what is not seen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Callable

from . import libvirt
from .errors import EngineError
from .host import Files
from .model import Function, Keeper, Netdev, State

COUNT, ATTRIBUTES, ESWITCH, DRIVER, VFS = "vf_count", "vf_attributes", "eswitch", "driver", "vfs"
VF_DRIVERS = "vf_drivers"

#: What a keeper may rule, in the words of a refusal.
WHAT: Mapping[str, str] = {
    COUNT: "its number of VFs",
    ATTRIBUTES: "what its VFs are set to",
    ESWITCH: "its eswitch",
    DRIVER: "its driver",
    VFS: "its VFs",
    VF_DRIVERS: "the drivers of its VFs",
}

Found = Iterator[tuple[str, Keeper]]

#: Sections of a key file: (name, its lines as key and value). Names and keys may come several times.
Sections = list[tuple[str, list[tuple[str, str]]]]


def read(files: Files, state: State) -> dict[str, tuple[Keeper, ...]]:
    """PCI address -> the programs that rule the function, or the one that may be born there."""
    found: dict[str, list[Keeper]] = {}
    for reader in READERS:
        for address, keeper in reader(files, state):
            found.setdefault(address, []).append(keeper)
    return {address: tuple(keepers) for address, keepers in found.items()}


def _text(files: Files, path: str) -> str:
    """What cannot be read as text rules nothing."""
    try:
        return files.text(path) or ""
    except EngineError:
        return ""


def _ports(state: State) -> list[tuple[Function, list[Netdev]]]:
    """The functions that can have VFs, with their network devices."""
    return [
        (f, [state.netdevs[name] for name in f.netdevs if name in state.netdevs])
        for f in state.functions.values()
        if f.sriov
    ]


def sections(text: str) -> Sections:
    """A key file as GLib and systemd write them: [Section], key=value, comments by # and ;."""
    found: Sections = []
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("[") and line.endswith("]"):
            found.append((line[1:-1], []))
        elif found and "=" in line and line[0] not in "#;":
            key, _equals, value = line.partition("=")
            found[-1][1].append((key.strip(), value.strip()))
    return found


def _values(parts: Sections, section: str, key: str) -> list[str]:
    return [value for name, lines in parts if name == section for k, value in lines if k == key]


# --- NetworkManager ------------------------------------------------------------------------------------------------

_NM_FOLDERS = (
    "/etc/NetworkManager/system-connections",
    "/run/NetworkManager/system-connections",
    "/usr/lib/NetworkManager/system-connections",
)


def _network_manager(files: Files, state: State) -> Found:
    """A profile with an [sriov] section enforces it when it is activated, also a count of 0 (nm-settings-keyfile(5))."""
    for folder in _NM_FOLDERS:
        for name in files.names(folder):
            parts = sections(_text(files, f"{folder}/{name}"))
            rules = _nm_rules(parts)
            for function, netdevs in _ports(state) if rules else ():
                if _nm_matches(parts, function, netdevs):
                    profile = (_values(parts, "connection", "id") or [name])[0]
                    reason = f"the profile {profile} ({folder}/{name}) has a section [sriov]"
                    yield function.address, Keeper("NetworkManager", reason, rules)


def _nm_rules(parts: Sections) -> frozenset[str]:
    keys = {key for name, lines in parts if name == "sriov" for key, _value in lines}
    rules = {COUNT, ATTRIBUTES} if any(name == "sriov" for name, _lines in parts) else set()
    return frozenset(rules | ({ESWITCH} if any(key.startswith("eswitch-") for key in keys) else set()))


def _nm_matches(parts: Sections, function: Function, netdevs: Sequence[Netdev]) -> bool:
    """By name, permanent MAC address, and [match]; what a profile leaves open is every port."""
    names, macs = [n.name for n in netdevs], [n.mac for n in netdevs]
    wanted = _values(parts, "connection", "interface-name")
    if wanted and wanted[0] and wanted[0] not in names:
        return False
    mac = [
        v for section in ("ethernet", "802-3-ethernet", "infiniband") for v in _values(parts, section, "mac-address")
    ]
    if mac and mac[0] and mac[0].lower() not in macs:
        return False
    return (
        _nm_any(_values(parts, "match", "interface-name"), names)
        and _nm_any(_values(parts, "match", "driver"), [function.driver or ""])
        and _nm_any(_values(parts, "match", "path"), [f"pci-{function.address}"])
    )


def _nm_any(given: Sequence[str], values: Sequence[str]) -> bool:
    """A list of patterns; '!' excludes, '|' and '&' say how it is joined (nm-settings(5)): here each is an alternative."""
    patterns = [p.strip() for text in given for p in re.split(r"[;,]", text) if p.strip()]
    if any(fnmatchcase(value, p[1:]) for p in patterns if p[0] == "!" for value in values):
        return False
    positive = [p.lstrip("|&") for p in patterns if p[0] != "!"]
    return not positive or any(fnmatchcase(value, p) for p in positive for value in values)


# --- systemd -------------------------------------------------------------------------------------------------------

_LINK_FOLDERS = (
    "/etc/systemd/network",
    "/run/systemd/network",
    "/usr/local/lib/systemd/network",
    "/usr/lib/systemd/network",
)


def _systemd_link(files: Files, state: State) -> Found:
    """The first .link file that matches a port, in the order of names, is the one that counts (systemd.link(5))."""
    links = list(_link_files(files))
    for function, netdevs in _ports(state):
        for netdev in netdevs:
            for path, parts in links:
                rules = _link_rules(parts)
                if not _link_matches(parts, function, netdev, unsure=bool(rules)):
                    continue
                if rules:
                    reason = f"{path} sets SR-IOV for {netdev.name}"
                    yield function.address, Keeper("systemd (.link)", reason, rules)
                break


def _link_files(files: Files) -> Iterator[tuple[str, Sections]]:
    """Path and content with drop-ins: a name in an earlier folder hides the same in a later one."""
    places: dict[str, str] = {}
    for folder in _LINK_FOLDERS:
        for name in files.names(folder):
            if name.endswith(".link"):
                places.setdefault(name, f"{folder}/{name}")
    for name, path in sorted(places.items()):
        text = _text(files, path)
        drop_ins: dict[str, str] = {}
        for folder in _LINK_FOLDERS:
            for part in files.names(f"{folder}/{name}.d"):
                if part.endswith(".conf"):
                    drop_ins.setdefault(part, f"{folder}/{name}.d/{part}")
        parts = sections(text)
        for _part, drop_in in sorted(drop_ins.items()):
            parts += sections(_text(files, drop_in))
        if parts:
            yield path, parts


def _link_rules(parts: Sections) -> frozenset[str]:
    rules = {COUNT} if any(_values(parts, "Link", "SR-IOVVirtualFunctions")) else set()
    return frozenset(rules | ({ATTRIBUTES} if any(name == "SR-IOV" for name, _lines in parts) else set()))


def _link_matches(parts: Sections, function: Function, netdev: Netdev, unsure: bool) -> bool:
    """`unsure` is the answer for what only udev knows: properties, the host, the name before it was renamed."""
    known: dict[str, list[str]] = {
        "MACAddress": [netdev.mac],
        "PermanentMACAddress": [netdev.mac],
        "Driver": [function.driver or ""],
        "Path": [f"pci-{function.address}"],
        "Type": ["ether"],
        "Kind": [netdev.kind],
    }
    for key, value in (item for name, lines in parts if name == "Match" for item in lines):
        words = value.lower().split() if key.endswith("MACAddress") else value.split()
        if key == "OriginalName" and "*" in words:
            continue
        if key in known:
            if not _link_any(words, known[key]):
                return False
        elif not unsure:
            return False
    return True


def _link_any(words: Sequence[str], values: Sequence[str]) -> bool:
    """A list of patterns, as a whole turned round by '!' at its beginning."""
    turned = bool(words) and words[0].startswith("!")
    patterns = [words[0][1:], *words[1:]] if turned else list(words)
    # A MAC address may be written with dashes or dots too.
    patterns += [p.replace("-", ":") for p in patterns if re.fullmatch(r"(..-){5}..", p)]
    return turned != any(fnmatchcase(value, p) for p in patterns for value in values)


# --- netplan -------------------------------------------------------------------------------------------------------

_NETPLAN_FOLDERS = ("/etc/netplan", "/run/netplan", "/usr/lib/netplan")

#: Key of a port in netplan's YAML -> what it rules. 'link' stands at a VF, with the id of its PF.
_NETPLAN_KEYS = {"virtual-function-count": COUNT, "embedded-switch-mode": ESWITCH, "link": COUNT}


def _netplan(files: Files, state: State) -> Found:
    """Python's standard library has no YAML: lines are read by their indentation, as netplan's own files are written.
    In a file that sets SR-IOV in another style, each port whose name or MAC address stands in it counts as ruled."""
    for folder in _NETPLAN_FOLDERS:
        for name in files.names(folder):
            path = f"{folder}/{name}"
            text = _text(files, path) if name.endswith(".yaml") else ""
            if not re.search(r"virtual-function-count|embedded-switch-mode|\blink\s*[\"']?:", text):
                continue
            for function, netdevs in _ports(state):
                rules = _netplan_rules(text, function, netdevs)
                if rules:
                    yield function.address, Keeper("netplan", f"{path} sets SR-IOV for it", frozenset(rules))


def _netplan_rules(text: str, function: Function, netdevs: Sequence[Netdev]) -> set[str]:
    lines = list(_yaml_lines(text))
    if "{" in text:
        words = {word for netdev in netdevs for word in (netdev.name, netdev.mac)}
        return {COUNT, ESWITCH} if any(_stands_in(word, text) for word in words) else set()
    rules = set()
    for path, value in lines:
        if len(path) != 4 or path[1] != "ethernets" or path[3] not in _NETPLAN_KEYS:
            continue
        port = value if path[3] == "link" else path[2]
        if _netplan_is(lines, port, function, netdevs):
            rules.add(_NETPLAN_KEYS[path[3]])
    return rules


def _stands_in(word: str, text: str) -> bool:
    return re.search(rf"(?<![\w.:-]){re.escape(word)}(?![\w.:-]*\w)", text, re.IGNORECASE) is not None


def _netplan_is(
    lines: Iterable[tuple[list[str], str]], port: str, function: Function, netdevs: Sequence[Netdev]
) -> bool:
    """Is this the port of that id? With `match` the id is only a name inside the file."""
    match = {path[4]: value for path, value in lines if path[1:4] == ["ethernets", port, "match"] and len(path) > 4}
    if not match:
        return any(netdev.name == port for netdev in netdevs)
    known = {
        "name": [n.name for n in netdevs],
        "macaddress": [n.mac for n in netdevs],
        "driver": [function.driver or ""],
    }
    return all(
        not value or any(fnmatchcase(other, value.lower()) for other in known[key])
        for key, value in match.items()
        if key in known
    )


def _yaml_lines(text: str) -> Iterator[tuple[list[str], str]]:
    """Each 'key: value' of block-style YAML, with the keys above it by indentation."""
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        found = re.match(r"( *)(?:- +)?[\"']?([\w./:*-]+?)[\"']?\s*:(?:\s+(.*))?$", line.split(" #")[0].rstrip())
        if not found:
            continue
        depth, key, value = len(found.group(1)), found.group(2), (found.group(3) or "").strip()
        above = [item for item in above if item[0] < depth] + [(depth, key)]
        yield [item[1] for item in above], value.strip("\"'")


# --- driverctl, libvirt, operators ---------------------------------------------------------------------------------


def _driverctl(files: Files, state: State) -> Found:
    """driverctl(8) keeps an override in a file that its udev rule applies when the device appears: a VF that is not born
    yet can have one."""
    for name in files.names("/etc/driverctl.d"):
        bus, _dash, address = name.partition("-")
        if bus == "pci":
            path = f"/etc/driverctl.d/{name}"
            reason = f"{path} sets {_text(files, path).strip() or 'none'}"
            yield address, Keeper("driverctl", reason, frozenset({DRIVER}))


def _libvirt(files: Files, state: State) -> Found:
    """A network that hands out the VFs of a port: making VFs is left to us, those that are there are libvirt's."""
    for name, ports, addresses in libvirt.pools(files):
        for function in state.functions.values():
            vfs = function.sriov.vfs.values() if function.sriov else ()
            if any(port in function.netdevs for port in ports) or any(address in vfs for address in addresses):
                yield function.address, Keeper("libvirt", f"its network {name} hands them out", frozenset({VFS}))


def _network_operator(files: Files, state: State) -> Found:
    """The SR-IOV network operator keeps what it applied to a port, by address (pkg/consts/constants.go)."""
    folder = "/etc/sriov-operator/pci"
    for name in files.names(folder):
        if name not in state.functions:
            continue
        try:
            applied = json.loads(_text(files, f"{folder}/{name}"))
        except ValueError:
            applied = {}
        # "externallyManaged": the operator configures VFs that somebody else makes.
        external = isinstance(applied, dict) and bool(applied.get("externallyManaged"))
        rules = frozenset({ATTRIBUTES, DRIVER, VF_DRIVERS} | (set() if external else {COUNT, ESWITCH}))
        yield name, Keeper("the SR-IOV network operator", f"{folder}/{name} holds what it applied", rules)


def _os_net_config(files: Files, state: State) -> Found:
    """os-net-config replays its list of PFs and VFs at each boot; a port is named by 'name'."""
    path = "/var/lib/os-net-config/sriov_config.yaml"
    text = _text(files, path)
    for function, netdevs in _ports(state) if text else ():
        if any(re.search(rf"^[\s-]*name:\s*[\"']?{re.escape(n.name)}[\"']?\s*$", text, re.MULTILINE) for n in netdevs):
            rules = frozenset({COUNT, ATTRIBUTES, ESWITCH})
            yield function.address, Keeper("os-net-config", f"{path} names it", rules)


READERS: Sequence[Callable[[Files, State], Found]] = (
    _network_manager,
    _systemd_link,
    _netplan,
    _driverctl,
    _libvirt,
    _network_operator,
    _os_net_config,
)
