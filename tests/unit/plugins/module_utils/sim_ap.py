# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The AP bus of s390x and the matrix of vfio_ap. Synthetic: no machine of this kind was seen.

Files, formats and error numbers are those of Documentation/arch/s390/vfio-ap.rst (its example has the cards 5 and 6), of
drivers/s390/crypto/ap_bus.c (apmask_show, apmask_store, ap_bus_revise_bindings) and vfio_ap_ops.c (vfio_ap_mdev_validate_masks,
matrix_show, ap_config_show). A mask that would take a queue from a mediated device is refused with EBUSY.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .sim_mdev import Device, Mdev

BUS = "/sys/bus/ap"
#: vfio_ap takes queues of CEX4 (hwtype 10) and newer cards alone.
OLDEST = 10


@dataclass
class Assigned:
    adapters: set[int] = field(default_factory=set)
    domains: set[int] = field(default_factory=set)
    controls: set[int] = field(default_factory=set)

    def queues(self) -> set[tuple[int, int]]:
        return {(a, d) for a in self.adapters for d in self.domains}


class Ap:
    """Cards 3 to 6 (3 is a CEX3), domains 4, 6, 0x47, 0xab and 0xff. The kernel command line leaves cards 5 and 6 to vfio_ap."""

    def __init__(self, mdev: Mdev) -> None:
        self.mdev = mdev
        self.cards = {3: 9, 4: 11, 5: 11, 6: 11}
        self.domains = [4, 6, 0x47, 0xAB, 0xFF]
        #: What ap.apmask= and ap.aqmask= say.
        self.at_boot = (set(range(256)) - {5, 6}, set(range(256)))
        self.apmask, self.aqmask = (set(part) for part in self.at_boot)

    def boot(self) -> None:
        self.apmask, self.aqmask = (set(part) for part in self.at_boot)

    def driver_of(self, queue: tuple[int, int]) -> str:
        """ap_bus_match and ap_device_probe: a queue that both masks name is for the default drivers."""
        kept = queue[0] in self.apmask and queue[1] in self.aqmask
        return "cex4queue" if kept else "vfio_ap" if self.cards[queue[0]] >= OLDEST else ""

    def nodes(self) -> dict[str, Any]:
        from .sim import Link

        nodes: dict[str, Any] = {
            f"{BUS}/apmask": _mask(self.apmask),
            f"{BUS}/aqmask": _mask(self.aqmask),
            f"{BUS}/ap_max_adapter_id": "63\n",
            f"{BUS}/ap_max_domain_id": "255\n",
        }
        for card, kind in self.cards.items():
            path = f"/sys/devices/ap/card{card:02x}"
            nodes[f"{BUS}/devices/card{card:02x}"] = Link(path)
            nodes[f"{path}/hwtype"] = f"{kind}\n"
            for domain in self.domains:
                name, driver = f"{card:02x}.{domain:04x}", self.driver_of((card, domain))
                nodes[f"{BUS}/devices/{name}"] = Link(f"{path}/{name}")
                nodes[f"{path}/{name}/online"] = "1\n"
                if driver:
                    nodes[f"{path}/{name}/driver"] = Link(f"{BUS}/drivers/{driver}")
        return nodes

    def device_nodes(self, device: Device, path: str) -> dict[str, Any]:
        got = assigned(device)
        lines = [f"{a:02x}.{d:04x}" for a in sorted(got.adapters) for d in sorted(got.domains)]
        lines = lines or [f"{a:02x}." for a in sorted(got.adapters)] + [f".{d:04x}" for d in sorted(got.domains)]
        parts = ("adapter", "domain", "control_domain")
        return {
            **{f"{path}/{verb}assign_{part}": "" for verb in ("", "un") for part in parts},
            f"{path}/matrix": "".join(f"{line}\n" for line in lines),
            f"{path}/control_domains": "".join(f"{d:04x}\n" for d in sorted(got.controls)),
            f"{path}/ap_config": ",".join(_mask(part).strip() for part in (got.adapters, got.domains, got.controls)) + "\n",
        }

    # --- Writes ----------------------------------------------------------------------------------------------------

    def write(self, real: str, data: str) -> int | None:
        """apmask_store and aqmask_store: '-5,+0x47'."""
        if real not in (f"{BUS}/apmask", f"{BUS}/aqmask"):
            return None
        after = {"apmask": set(self.apmask), "aqmask": set(self.aqmask)}
        changed = after[real.rpartition("/")[2]]
        for item in data.strip().split(","):
            (changed.add if item[0] == "+" else changed.discard)(int(item[1:], 0))
        for device in self.mdev.devices.values():
            if device.parent == "matrix" and any(a in after["apmask"] and d in after["aqmask"] for a, d in assigned(device).queues()):
                return errno.EBUSY
        self.apmask, self.aqmask = after["apmask"], after["aqmask"]
        return 0

    def assign(self, device: Device, name: str, value: str) -> int:
        """assign_adapter_store and its kin: all or nothing, each for itself."""
        before, device.attributes = device.attributes, [*device.attributes, (name, value)]
        try:
            got = assigned(device)
        except (ValueError, KeyError):
            device.attributes = before
            return errno.EINVAL
        code = 0
        if max(got.adapters, default=0) > 63 or max(got.domains | got.controls, default=0) > 255:
            code = errno.ENODEV
        elif any(a in self.apmask and d in self.aqmask for a, d in got.queues()):
            code = errno.EADDRNOTAVAIL
        elif any(got.queues() & assigned(d).queues() for d in self.mdev.devices.values() if d is not device and d.parent == "matrix"):
            code = errno.EBUSY
        if code:
            device.attributes = before
        return code


def assigned(device: Device) -> Assigned:
    got = Assigned()
    parts = {"adapter": got.adapters, "domain": got.domains, "control_domain": got.controls}
    for name, value in device.attributes:
        if name == "ap_config":
            for part, text in zip(parts.values(), value.split(",")):
                part.clear()
                part |= {n for n, bit in enumerate(f"{int(text, 16):0{4 * len(text[2:])}b}") if bit == "1"}
            continue
        verb, _line, kind = name.partition("assign_")
        (parts[kind].discard if verb else parts[kind].add)(int(value, 0))
    return got


def _mask(numbers: set[int]) -> str:
    return "0x" + "".join(f"{sum(8 >> n for n in range(4) if 4 * place + n in numbers):x}" for place in range(64)) + "\n"
