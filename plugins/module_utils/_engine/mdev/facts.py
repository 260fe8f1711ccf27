# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the kernel and mdevctl say of mediated devices. Files only, no process.

Layout: Documentation/driver-api/vfio-mediated-device.rst and Documentation/ABI/testing/sysfs-bus-vfio-mdev. mdevctl keeps
a definition as /etc/mdevctl.d/PARENT/UUID (mdevctl(8)), JSON with mdev_type, start and attrs.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from .. import sysfs
from ..errors import EngineError
from ..host import Files
from ..model import Function
from . import ap, ccw

NAME = "mdev"
PARENTS = "/sys/class/mdev_bus"
DEVICES = "/sys/bus/mdev/devices"
DEFINED = "/etc/mdevctl.d"
#: Debian 13 has it in /usr/bin, others in /usr/sbin.
KEEPERS = ("/usr/sbin/mdevctl", "/usr/bin/mdevctl")


def parents(files: Files, recorded: Collection[str]) -> dict[str, Function]:
    """The parents that are no functions of a bus that is read anyway: mtty, the s390x matrix, a subchannel. A subchannel that is
    recorded is none right after a boot."""
    names = files.names(PARENTS)
    found = {name: Function(address=name, vendor="", device="", bus=sysfs.MDEV) for name in names if sysfs.bus_of(name) == sysfs.MDEV}
    return {**found, **ccw.functions(files, {*names, *recorded})}


def read(files: Files) -> dict[str, Any]:
    """Parents with their types, the devices that are there, the definitions, and is mdevctl there to keep them?"""
    return {
        "keeper": any(files.exists(path) for path in KEEPERS),
        "parents": {name: types(files, name) for name in files.names(PARENTS)},
        "devices": {uuid: device(files, uuid) for uuid in files.names(DEVICES)},
        "defined": {parent: _definitions(files, parent) for parent in files.names(DEFINED)},
        "ap": ap.read(files),
    }


def types(files: Files, parent: str) -> dict[str, dict[str, Any]]:
    """Type -> its name, free instances and the API of its devices."""
    folder = f"{PARENTS}/{parent}/mdev_supported_types"
    return {
        name: {
            "name": files.attr(f"{folder}/{name}/name") or "",
            "available": _number(files.attr(f"{folder}/{name}/available_instances")),
            "device_api": files.attr(f"{folder}/{name}/device_api") or "",
        }
        for name in files.names(folder)
    }


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0


def device(files: Files, uuid: str) -> dict[str, Any]:
    """A device that is there: its parent, its type, its IOMMU group, and of vfio-ap what it was assigned."""
    path, parent = f"{DEVICES}/{uuid}", parent_of(files, uuid)
    return {
        "parent": parent,
        "type": files.link(f"{path}/mdev_type") or "",
        "group": files.link(f"{path}/iommu_group"),
        "matrix": ap.of_device(files, path) if parent == ap.PARENT else None,
    }


def parent_of(files: Files, uuid: str) -> str:
    """A mediated device lies below its parent."""
    return files.resolve(f"{DEVICES}/{uuid}").rpartition("/")[0].rpartition("/")[2]


def _definitions(files: Files, parent: str) -> dict[str, dict[str, Any]]:
    return {name: found for name in files.names(f"{DEFINED}/{parent}") if (found := definition(files, parent, name))}


def definition(files: Files, parent: str, uuid: str) -> dict[str, Any] | None:
    """What mdevctl keeps of a device: type, autostart, attributes. Where that is not what mdevctl reads, `broken`."""
    try:
        text = files.text(f"{DEFINED}/{parent}/{uuid}")
        return None if text is None else _parsed(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, EngineError):
        return {"broken": True}


def _parsed(said: Mapping[str, Any]) -> dict[str, Any]:
    """All text, as mdevctl writes it whatever the attribute is: a number is somebody's own, and the record has no place for one."""
    attributes = [{"name": name, "value": value} for item in said.get("attrs") or [] for name, value in item.items()]
    if not all(isinstance(value, str) for value in (said["mdev_type"], said["start"], *(item["value"] for item in attributes))):
        raise TypeError
    return {"type": said["mdev_type"], "autostart": said["start"] == "auto", "attributes": attributes}
