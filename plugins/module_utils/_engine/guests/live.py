# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What of a change a running guest can get at once, and what waits for its next start. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any
from xml.etree.ElementTree import Element

from ..model import PREDICTED, Action
from ..plain import dataclass
from . import compare
from .compare import Difference
from .virt import Domain
from .wish import Wish
from .xml import Wanted

#: Disks that PCI or SCSI hotplug takes. IDE and SATA ports of QEMU do not.
_HOT_BUSES = ("virtio", "scsi")
#: What of a network device libvirt changes under a running guest (qemuDomainChangeNet).
_UPDATABLE = ("source@bridge", "source@network")


@dataclass
class Change:
    """Steps on the running guest, and what waits for its next start."""

    actions: list[Action] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)


def change(name: str, wish: Wish, domain: Domain, wanted: Wanted) -> Change:
    """From what runs to what is wanted."""
    result = Change()
    root = compare.parse(domain.live)
    have = compare.flatten(root)
    groups: dict[str, list[Difference]] = {}
    for difference in compare.differences(have, wanted):
        if not _is_noise(difference, wish, wanted):
            groups.setdefault(compare.owner(difference.path), []).append(difference)
    for path, found in groups.items():
        action = _live(name, path, found, have, root, wanted)
        if action:
            result.actions.append(action)
        else:
            result.waiting += [difference.words() for difference in found[:3]]
    # What goes first may be what comes: a VF under another MAC.
    result.actions.sort(key=lambda action: action.kind != "detach_device")
    return result


def _is_noise(difference: Difference, wish: Wish, wanted: Wanted) -> bool:
    """What a running guest shows otherwise although it is the same."""
    path = difference.path
    if path == "currentMemory":
        # The balloon of now. Unless a target is wished, it is whoever's who set it.
        return "target" not in wish.get("balloon", {})
    # libvirt writes out what host-model came to.
    return path.startswith("cpu") and not path.startswith("cputune") and compare.flatten(wanted.root).get("cpu@mode") == "host-model"


def _live(
    name: str, path: str, found: list[Difference], have: Mapping[str, str], root: Element, wanted: Wanted
) -> Action | None:
    if path in ("vcpu@current", "currentMemory"):
        return _number(name, found[0], have)
    kind = path.removeprefix("devices/").partition("[")[0]
    if kind not in ("interface", "disk") or not path.startswith("devices/"):
        return None
    old, new = _device(root, path), _device(wanted.root, path)
    if new is None and old is not None and _is_hot(old):
        text = compare.text_of(old)
        return _action("detach_device", name, f"take {_called(old)} from it", path, text, text, old=text)
    if old is None and new is not None and _is_hot(new):
        text = compare.text_of(new)
        return _action("attach_device", name, f"give {_called(new)} to it", path, text, "", new=text)
    if old is not None and kind == "interface" and all(d.path.removeprefix(f"{path}/") in _UPDATABLE for d in found):
        merged = _device(compare.merged(root, wanted), path)
        if merged is not None:
            before, after = compare.text_of(old), compare.text_of(merged)
            return _action("update_device", name, f"change {_called(old)} of it", path, after, before, before, after)
    return None


def _number(name: str, difference: Difference, have: Mapping[str, str]) -> Action | None:
    was, to = int(difference.have or 0), int(difference.want or 0)
    if difference.path == "vcpu@current":
        # A guest need not let one go, so fewer wait for the next start.
        if not was < to <= int(have.get("vcpu", "0")):
            return None
        kind, text = "set_guest_vcpus", f"give it {to} CPUs instead of {was}"
    else:
        if to > int(have.get("memory", "0")):
            return None
        kind, text = "set_guest_memory", f"set its balloon from {was // 1024} to {to // 1024} MiB"
    args = {"name": name, "to": to, "was": was}
    return Action(kind, name, text, PREDICTED, args, {f"running {difference.path}": was}, {f"running {difference.path}": to})


def _device(root: Element, path: str) -> Element | None:
    devices = root.find("devices")
    label = path.removeprefix("devices/")
    return dict(compare.labelled(devices)).get(label) if devices is not None else None


def _is_hot(device: Element) -> bool:
    target = device.find("target")
    return device.tag == "interface" or (target is not None and target.get("bus") in _HOT_BUSES)


def _called(device: Element) -> str:
    """'the disk vda', 'the network device 52:54:00:00:00:01 (hostdev)'."""
    mac, target = device.find("mac"), device.find("target")
    if device.tag == "interface":
        return f"the network device {mac.get('address') if mac is not None else '?'} ({device.get('type')})"
    return f"the disk {target.get('dev') if target is not None else '?'}"


def _action(kind: str, name: str, text: str, path: str, xml: str, was: str, old: Any = None, new: Any = None) -> Action:
    args = {"name": name, "path": path, "xml": xml, "was": was}
    return Action(kind, name, f"{text} while it runs", PREDICTED, args, {f"running {path}": old}, {f"running {path}": new})
