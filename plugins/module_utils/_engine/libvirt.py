# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What libvirt's own files say of devices: guests that name one, networks that hand out VFs.

Formats: https://libvirt.org/formatdomain.html and formatnetwork.html. Files and not virsh: it would start the daemon,
and a daemon that does not answer would hold up a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .errors import EngineError
from .host import Files
from .model import State, User

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

#: Definitions that outlive a boot, and the status of guests that run now.
_DEFINED = "/etc/libvirt/qemu"
_RUNNING = "/run/libvirt/qemu"
_NETWORKS = "/etc/libvirt/qemu/networks"


def guests(files: Files, state: State) -> Iterator[tuple[str, User]]:
    """PCI address -> a guest that has the device, or is defined to have it."""
    running = set()
    for root in _documents(files, _RUNNING):
        domain = root if root.tag == "domain" else root.find("domain")
        if domain is not None and _alive(files, root):
            running.add(_name(domain))
            yield from _users(domain, state, "paused" if root.get("state") == "paused" else "running", idle=False)
    for domain in _documents(files, _DEFINED):
        if domain.tag == "domain" and _name(domain) not in running:
            yield from _users(domain, state, "defined, not running", idle=True)


def domains(files: Files) -> Iterator[tuple[str, str, str]]:
    """Name, XML of the next start, XML of the running one, nothing where there is none: what libvirt itself would say."""
    from xml.etree import ElementTree

    live = {}
    for root in _documents(files, _RUNNING):
        domain = root if root.tag == "domain" else root.find("domain")
        if domain is not None and _alive(files, root):
            live[_name(domain)] = ElementTree.tostring(domain, encoding="unicode")
    defined = {_name(root): ElementTree.tostring(root, encoding="unicode") for root in _documents(files, _DEFINED) if root.tag == "domain"}
    yield from ((name, defined.get(name, live.get(name, "")), live.get(name, "")) for name in sorted({*defined, *live}))


def _users(domain: Element, state: State, how: str, idle: bool) -> Iterator[tuple[str, User]]:
    who = f"the guest {_name(domain)} (libvirt; {how})"
    managed = _functions(domain, "[@managed='yes']") if not idle else []
    yield from ((address, User(who, idle, rules=address in managed)) for address in _functions(domain))
    yield from ((address, User(who, idle, by_netdev=True)) for address in _ports(domain, state))


def pools(files: Files) -> Iterator[tuple[str, list[str], list[str]]]:
    """Networks that hand out VFs (forward mode='hostdev'): name, network devices of PFs, addresses of VFs."""
    for root in _documents(files, _NETWORKS, word="hostdev"):
        forward = root.find("forward")
        if root.tag != "network" or forward is None or forward.get("mode") != "hostdev":
            continue
        ports = [pf.get("dev", "") for pf in forward.findall("pf")]
        yield _name(root), ports, [address for e in forward.findall("address") if (address := _address(e))]


def _documents(files: Files, folder: str, word: str = "") -> Iterator[Element]:
    """The documents of a folder in which a word stands: libvirt writes them itself, and its words plainly."""
    texts = [text for name in files.names(folder) if name.endswith(".xml") and (text := _text(files, f"{folder}/{name}")) and word in text]
    if not texts:
        return
    # Loading the parser takes a hundredth of a second, and most hosts have nothing to parse.
    from xml.etree import ElementTree

    for text in texts:
        try:
            root = ElementTree.fromstring(text)
        except ElementTree.ParseError:
            # libvirt does not load such a file either.
            continue
        yield root


def _text(files: Files, path: str) -> str:
    try:
        return files.text(path) or ""
    except EngineError:
        # libvirt does not load such a file either.
        return ""


def _alive(files: Files, root: Element) -> bool:
    """The status of a guest that ended while no daemon looked is left behind."""
    pid = root.get("pid", "")
    return not pid.isdigit() or files.exists(f"/proc/{pid}")


def _name(root: Element) -> str:
    return (root.findtext("name") or "?").strip()


def _functions(domain: Element, which: str = "") -> list[str]:
    """The functions that a guest's devices name: hostdev, interface (hostdev, or what a network gave it), NVMe disks; and
    the UUIDs of mediated devices."""
    elements = [e for source in domain.iterfind(f"devices/*{which}//source") for e in source.iter("address")]
    return list(dict.fromkeys(address for e in elements if (address := _address(e))))


def _ports(domain: Element, state: State) -> list[str]:
    """The functions whose network devices a guest names (macvtap)."""
    names = {source.get("dev") for source in domain.iterfind("devices/interface[@type='direct']/source")}
    return [function.address for function in state.functions.values() if names.intersection(function.netdevs)]


def _address(element: Element) -> str | None:
    """<address domain='0x0000' bus='0x81' slot='0x10' function='0x2'/>, or <address uuid='...'/> of a mediated device; a
    USB address has another form."""
    if element.get("uuid"):
        return element.get("uuid", "").lower()
    try:
        numbers = [int(element.attrib[key], 0) for key in ("bus", "slot", "function")]
        return "{:04x}:{:02x}:{:02x}.{:x}".format(int(element.get("domain", "0"), 0), *numbers)
    except (KeyError, ValueError):
        return None
