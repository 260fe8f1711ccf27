# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""vfio-ccw on s390x: a subchannel is a parent of one mediated device once the driver vfio_ccw has it.

The css bus has driver_override as PCI has, but the driver still has to be one for I/O subchannels
(Documentation/ABI/testing/sysfs-bus-css; Documentation/arch/s390/vfio-ccw.rst). The subchannel's number may be another one after
an IPL; what names the device is its device number (dev_busid).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from .. import sysfs
from ..host import Files
from ..model import Function

DRIVER = "vfio_ccw"
DRIVERS = "/sys/bus/css/drivers"
#: What it offers then (vfio_ccw_sch_probe, drivers/s390/cio/vfio_ccw_drv.c; max_instances in vfio_ccw_ops.c).
TYPES = {f"{DRIVER}-io": {"name": "I/O subchannel (Non-QDIO)", "available": 1, "device_api": "vfio-ccw"}}

_DEVICE = re.compile(r"[0-9a-f]\.[0-9a-f]\.[0-9a-f]{4}")


def functions(files: Files, names: Collection[str]) -> dict[str, Function]:
    """The subchannels of these names that are there. Not all of a host: there may be thousands."""
    there = [name for name in names if sysfs.bus_of(name) == sysfs.CSS and files.exists(sysfs.device(name))]
    return {name: _function(files, name) for name in sorted(there)}


def _function(files: Files, name: str) -> Function:
    path = sysfs.device(name)
    number = files.attr(f"{path}/dev_busid") or _child(files, path) or ""
    return Function(
        address=name,
        vendor="",
        device="",
        driver=files.link(f"{path}/driver"),
        override=_override(files, path),
        serial="" if number == "none" else number,
        bus=sysfs.CSS,
    )


def _override(files: Files, path: str) -> str | None:
    said = files.attr(f"{path}/driver_override")
    return said if said and said != "(null)" else None


def _child(files: Files, path: str) -> str | None:
    """The device on it: io_subchannel makes it, and kernels before 5.14 tell its number by nothing else."""
    return next((name for name in files.names(path) if _DEVICE.fullmatch(name)), None)


def read(files: Files, names: Collection[str]) -> dict[str, dict[str, Any]]:
    """What stands against giving a subchannel to vfio_ccw."""
    found = {}
    for name in names:
        path = sysfs.device(name)
        child = _child(files, path)
        found[name] = {
            "type": files.attr(f"{path}/type"),
            "loaded": files.exists(f"{DRIVERS}/{DRIVER}"),
            "can_override": files.exists(f"{path}/driver_override"),
            "online": child if child and files.attr(f"{path}/{child}/online") == "1" else None,
        }
    return found


def against(said: Mapping[str, Any]) -> tuple[str, str] | None:
    """Why a subchannel cannot be given to vfio_ccw, with the way out."""
    if said["type"] != "0":
        return f"it is a subchannel of type {said['type']}, and {DRIVER} takes those for I/O (type 0) alone.", "Name another one (lscss)."
    if not said["can_override"]:
        return "this kernel has no driver_override for subchannels.", "Use Linux 5.3 or newer."
    if said["online"]:
        reason = f"its device {said['online']} is online: the host uses it."
        return reason, f"Set it offline first ('chzdev --disable {said['online']}')."
    return None
