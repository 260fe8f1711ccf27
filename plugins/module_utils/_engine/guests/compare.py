# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Domain XML compared by meaning: what is wanted has to be in what libvirt has, whatever else libvirt filled in (addresses,
aliases, defaults) or an operator added. Pure.

A document is laid out flat, path -> value: 'vcpu', 'cpu@mode', 'devices/interface[52:54:00:00:00:01]/source@bridge'. Devices are
known by what makes them the same device for a guest, not by their place.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any, Callable, NamedTuple
from xml.etree.ElementTree import Element, fromstring, indent, tostring

from .wish import cpus, kib
from .xml import Wanted

Flat = Mapping[str, str]

_LABEL = re.compile(r"(?:\[[^\]]*\])?(?:#\d+)?$")
_DEVICE = re.compile(r"devices/[^/@\[]+(?:\[[^\]]*\])?(?:#\d+)?")


class Difference(NamedTuple):
    """One thing that is not as wanted; None: it is not there, or shall not be."""

    path: str
    have: str | None
    want: str | None

    def words(self) -> str:
        """For a sentence: 'vcpu is 2 and not 4'."""
        if self.want is None:
            return f"{self.path} is there"
        if self.have is None:
            return f"{self.path} is not there"
        return f"{self.path} is {self.have or 'there'} and not {self.want or 'there'}"


def parse(text: str) -> Element:
    return fromstring(text)


def text_of(root: Element) -> str:
    """For libvirt."""
    root = copy.deepcopy(root)
    indent(root)
    return tostring(root, encoding="unicode") + "\n"


def shown(root: Element) -> str:
    """For a diff, without the passwords of displays."""
    root = copy.deepcopy(root)
    for graphics in root.iter("graphics"):
        if "passwd" in graphics.attrib:
            graphics.set("passwd", "...")
    return text_of(root)


# --- Laid out flat ---------------------------------------------------------------------------------------------------


def _of(element: Element, below: str, name: str) -> str | None:
    """An attribute of the element below."""
    child = element.find(below)
    return None if child is None else child.get(name)


def _mac(element: Element) -> str:
    return (_of(element, "mac", "address") or "").lower()


def address_of(element: Element | None) -> str:
    """The PCI address, or the UUID, that the source of a device names."""
    address = element.find("source/address") if element is not None else None
    if address is None:
        return ""
    if address.get("uuid"):
        return address.get("uuid", "").lower()
    try:
        numbers = [int(address.get(key, "0"), 0) for key in ("domain", "bus", "slot", "function")]
    except ValueError:
        return ""
    return "{:04x}:{:02x}:{:02x}.{:x}".format(*numbers)


def _attribute(name: str) -> Callable[[Element], str]:
    return lambda element: element.get(name, "")


#: Tag -> what tells one from another of the same kind.
_KEYS: Mapping[str, Callable[[Element], str]] = {
    "interface": _mac,
    "hostdev": address_of,
    "disk": lambda element: _of(element, "target", "dev") or "",
    "controller": lambda element: f"{element.get('type')} {element.get('index', '')}",
    "graphics": _attribute("type"),
    "feature": _attribute("name"),
    "timer": _attribute("name"),
    "vcpupin": _attribute("vcpu"),
    "page": _attribute("nodeset"),
}

#: Whose text is a size in the unit of its attribute.
_SIZES = ("memory", "currentMemory")
_CPUSETS = ("cpuset", "nodeset")
_HEX = ("domain", "bus", "slot", "function")


def labelled(element: Element) -> Iterator[tuple[str, Element]]:
    """The children, each with a label that no other one of them has."""
    seen: dict[str, int] = {}
    for child in element:
        if not isinstance(child.tag, str):
            # A comment.
            continue
        key = _KEYS.get(child.tag)
        label = f"{child.tag}[{key(child)}]" if key and key(child) else child.tag
        number = seen[label] = seen.get(label, 0) + 1
        yield (label if number == 1 else f"{label}#{number}"), child


def flatten(root: Element) -> dict[str, str]:
    """Path -> value, values in one form."""
    found: dict[str, str] = {}
    _flatten(root, "", found)
    return found


def _flatten(element: Element, path: str, found: dict[str, str]) -> None:
    values = _values(element)
    if path:
        found[path] = values.pop("", "")
    for name, value in values.items():
        if name:
            found[f"{path}@{name}"] = value
    for label, child in labelled(element):
        _flatten(child, f"{path}/{label}" if path else label, found)


def _values(element: Element) -> dict[str, str]:
    """Attributes by name, and the text by the empty name."""
    text = (element.text or "").strip()
    values = {"": text, **{name: _value(element.tag, name, value) for name, value in element.attrib.items()}}
    if element.tag in _SIZES and text.isdigit():
        values[""] = str(_in_kib(text, values.pop("unit", "KiB")))
    if element.tag == "page" and "size" in values:
        values["size"] = str(_in_kib(values["size"], values.pop("unit", "KiB")))
    if element.tag == "vcpu":
        # Without the attribute all there can be are there.
        values.setdefault("current", text)
    return values


def _in_kib(number: str, unit: str) -> int:
    """https://libvirt.org/formatdomain.html#memory-allocation: 'b' or 'bytes', 'KB' for 1000, 'k' or 'KiB' for 1024, ..."""
    if unit in ("b", "bytes"):
        return int(number) // 1024
    if unit.upper() in ("KB", "MB", "GB", "TB"):
        return int(number) * int(1000 ** ("KMGT".index(unit[0].upper()) + 1)) // 1024
    return int(number) * (kib(f"1{unit[0]}") or 1)


def _value(tag: Any, name: str, value: str) -> str:
    if name in _CPUSETS:
        return spelled(cpus(value)) or value
    if tag == "address" and name in _HEX:
        return f"{int(value, 0):#x}" if _is_number(value) else value
    return value.lower() if tag == "mac" else value


def _is_number(text: str) -> bool:
    try:
        int(text, 0)
    except ValueError:
        return False
    return True


def spelled(numbers: Any) -> str:
    """CPUs as libvirt writes them: '0-3,8'."""
    runs: list[list[int]] = []
    for number in sorted(numbers or ()):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


# --- Compared --------------------------------------------------------------------------------------------------------


def differences(have: Flat, wanted: Wanted) -> list[Difference]:
    """What is not as wanted."""
    want = flatten(wanted.root)
    found = [Difference(path, have.get(path), value) for path, value in want.items() if not same(path, value, have.get(path))]
    found += [Difference(path, have[path], None) for path in sorted(wanted.absent) if path in have]
    return found + [Difference(path, have[path], None) for path in _too_many(have, want, wanted.whole)]


def same(path: str, want: str, have: str | None) -> bool:
    if have is None:
        return False
    if path == "os/type@machine":
        # libvirt makes the versioned name of an alias: 'q35' -> 'pc-q35-10.0', 'pc' -> 'pc-i440fx-10.0'.
        return have == want or have.startswith({"q35": "pc-q35-", "pc": "pc-i440fx-"}.get(want, "\0"))
    if path.endswith("]@port") and path.startswith("devices/graphics") and want == "-1":
        # A port that libvirt chooses is a number while the guest runs.
        return True
    return have == want


def kind_of(path: str) -> str:
    """'devices/interface' for 'devices/interface[52:54:00:00:00:01]'."""
    return _LABEL.sub("", path)


def _too_many(have: Flat, want: Flat, whole: frozenset[str]) -> list[str]:
    """What there is of the kinds that the declaration names in full, and that it does not name."""
    found = []
    for path in have:
        if "@" in path or kind_of(path) not in whole or path in want:
            continue
        # A CD is put in by whoever does; that there is no video libvirt says by a device.
        if have.get(f"{path}@device") in ("cdrom", "floppy") or have.get(f"{path}/model@type") == "none":
            continue
        found.append(path)
    return found


def owner(path: str) -> str:
    """The device that a path is of ('devices/interface[52:54:00:00:00:01]'), or the path itself."""
    found = _DEVICE.match(path)
    return found.group(0) if found else path


# --- Changed ---------------------------------------------------------------------------------------------------------

def merged(have: Element, wanted: Wanted) -> Element:
    """What libvirt has, with all that is wanted: nothing else is touched, so addresses and what others added stay."""
    result = copy.deepcopy(have)
    _merge(result, wanted.root, "")
    gone = {*wanted.absent, *_too_many(flatten(result), flatten(wanted.root), wanted.whole)}
    _remove(result, "", gone)
    return result


def _merge(have: Element, want: Element, path: str) -> None:
    here, wish = _values(have), _values(want)
    for name, value in wish.items():
        if name and name in want.attrib and not same(f"{path}@{name}", value, here.get(name)):
            have.set(name, want.attrib[name])
    if wish[""] and not same(path, wish[""], here[""]):
        have.text = want.text
        if "unit" in want.attrib:
            have.set("unit", want.attrib["unit"])
    if want.tag == "vcpu" and wish["current"] == wish[""]:
        have.attrib.pop("current", None)
    elif want.tag == "vcpu":
        have.set("current", wish["current"])
    present = dict(labelled(have))
    for label, child in labelled(want):
        below = f"{path}/{label}" if path else label
        if label not in present:
            have.append(copy.deepcopy(child))
        elif _other_kind(present[label], child):
            _exchange(have, present[label], child)
        else:
            _merge(present[label], child, below)


def _other_kind(have: Element, want: Element) -> bool:
    """Is it another kind of thing under the same name, of which nothing of the old one has a meaning?"""
    return any(new not in (None, old) for old, new in zip(_kind(have), _kind(want)))


def _kind(element: Element) -> tuple[str | None, ...]:
    if element.tag == "cpu":
        return element.get("mode"), element.findtext("model")
    if element.tag == "interface":
        return element.get("type"), _of(element, "model", "type")
    if element.tag == "disk":
        return element.get("type"), element.get("device"), _of(element, "target", "bus")
    return (_of(element, "model", "type"),) if element.tag == "video" else ()


def _exchange(parent: Element, old: Element, new: Element) -> None:
    """In the same place, and with the PCI address, by which a guest names its network devices."""
    new = copy.deepcopy(new)
    address = old.find("address")
    if old.tag == "interface" and address is not None:
        new.append(copy.deepcopy(address))
    number = list(parent).index(old)
    parent.remove(old)
    parent.insert(number, new)


def _remove(element: Element, path: str, gone: set[str]) -> None:
    for name in [name for name in element.attrib if f"{path}@{name}" in gone]:
        del element.attrib[name]
    for label, child in list(labelled(element)):
        below = f"{path}/{label}" if path else label
        if below in gone:
            element.remove(child)
        else:
            _remove(child, below, gone)
