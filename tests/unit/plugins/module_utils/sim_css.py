# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The css bus of s390x with its subchannels, and vfio_ccw. Synthetic: no machine of this kind was seen.

Files by Documentation/ABI/testing/sysfs-bus-css and drivers/s390/cio/css.c (type, dev_busid, driver_override, css_bus_match), names and
numbers as in QEMU's docs/system/s390x/vfio-ccw.rst (subchannel 0.0.0313 with the DASD 0.0.2b09). vfio_ccw refuses QDIO subchannels with
ENODEV and registers one parent of one instance (vfio_ccw_sch_probe, vfio_ccw_ops.c); its removal takes the mediated device along.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .sim_mdev import Mdev

BUS = "/sys/bus/css"


@dataclass
class Subchannel:
    #: The number of its device.
    device: str
    kind: str = "0"
    qdio: bool = False
    online: bool = False
    driver: str | None = "io_subchannel"
    override: str | None = None


class Css:
    def __init__(self, mdev: Mdev) -> None:
        self.mdev = mdev
        self.subchannels = {
            "0.0.0313": Subchannel("0.0.2b09"),
            "0.0.0314": Subchannel("0.0.2b0a", online=True),
            "0.0.0010": Subchannel("0.0.f5f0", qdio=True),
            "0.0.0020": Subchannel("none", kind="1", driver=None),
        }
        self.loaded = False

    def boot(self) -> None:
        self.loaded = False
        for name, subchannel in self.subchannels.items():
            self._register(name, False)
            subchannel.override, subchannel.driver = None, "io_subchannel" if subchannel.kind == "0" else None

    def snapshot(self) -> dict[str, Any]:
        return {name: (s.driver, s.override) for name, s in self.subchannels.items()}

    def path(self, name: str) -> str:
        return f"/sys/devices/css0/{name}"

    def nodes(self) -> dict[str, Any]:
        from .sim import Link

        nodes: dict[str, Any] = {}
        for driver in ("io_subchannel", *(["vfio_ccw"] if self.loaded else [])):
            nodes.update({f"{BUS}/drivers/{driver}/{what}": "" for what in ("bind", "unbind")})
        for name, s in self.subchannels.items():
            path = self.path(name)
            nodes[f"{BUS}/devices/{name}"] = Link(path)
            nodes[f"{path}/type"] = f"{s.kind}\n"
            nodes[f"{path}/modalias"] = f"css:t{s.kind}\n"
            nodes[f"{path}/dev_busid"] = f"{s.device}\n"
            nodes[f"{path}/driver_override"] = f"{s.override or '(null)'}\n"
            if s.driver:
                nodes[f"{path}/driver"] = Link(f"{BUS}/drivers/{s.driver}")
            if s.driver == "io_subchannel":
                nodes[f"{path}/{s.device}/online"] = f"{int(s.online)}\n"
        return nodes

    def write(self, real: str, data: str) -> int | None:
        folder, _slash, what = real.rpartition("/")
        name = folder.rpartition("/")[2]
        if what == "driver_override" and name in self.subchannels:
            self.subchannels[name].override = data.strip() or None
            return 0
        if folder.startswith(f"{BUS}/drivers/"):
            subchannel = self.subchannels.get(data.strip())
            if subchannel is None or (what == "unbind" and subchannel.driver != name):
                return errno.ENODEV
            return self._unbind(data.strip()) if what == "unbind" else self._bind(data.strip(), subchannel, name)
        return None

    def _bind(self, name: str, subchannel: Subchannel, driver: str) -> int:
        """css_bus_match(): the override first, then the type all the same."""
        if (subchannel.override and subchannel.override != driver) or subchannel.kind != "0":
            return errno.ENODEV
        if subchannel.driver:
            return errno.EBUSY
        if driver == "vfio_ccw" and subchannel.qdio:
            return errno.ENODEV
        subchannel.driver = driver
        self._register(name, driver == "vfio_ccw")
        return 0

    def _unbind(self, name: str) -> int:
        self.subchannels[name].driver = None
        self._register(name, False)
        return 0

    def _register(self, name: str, on: bool) -> None:
        from .sim_mdev import Parent, Type

        if on:
            types = {"vfio_ccw-io": Type("I/O subchannel (Non-QDIO)", 1, "vfio-ccw")}
            self.mdev.parents[name] = Parent(self.path(name), types, 1, errno.EUSERS)
            self.mdev.register(name)
        elif name in self.mdev.parents:
            self.mdev.unregister(name)
            self.mdev.parents.pop(name)

    def run(self, argv: list[str]) -> tuple[int, str, str] | None:
        if argv != ["modprobe", "--", "vfio_ccw"]:
            return None
        self.loaded = True
        return 0, "", ""
