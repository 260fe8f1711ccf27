# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""vfio-ap on s390x: the queues of a mediated device, against those that the host keeps for itself and those of its siblings.

A queue is an adapter and a domain of it ('05.0004'); a device has all queues of its adapters and its domains crossed. Those
that /sys/bus/ap/apmask and aqmask both name are for the host's own drivers (Documentation/arch/s390/vfio-ap.rst).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..host import Files
from ..plain import dataclass

BUS = "/sys/bus/ap"
#: The one parent of vfio-ap, and its driver on the AP bus.
PARENT, DRIVER = "matrix", "vfio_ap"

#: Attribute -> the part of the matrix that it is about. All three at once, as masks: ap_config (ap_config_store,
#: drivers/s390/crypto/vfio_ap_ops.c).
_PARTS = {"adapter": "adapters", "domain": "domains", "control_domain": "controls"}
_AT_ONCE = "ap_config"
#: Bits of a mask (AP_DEVICES and AP_DOMAINS).
_BITS = 256


@dataclass(frozen=True)
class Matrix:
    """What a device has."""

    adapters: frozenset[int] = frozenset()
    domains: frozenset[int] = frozenset()
    controls: frozenset[int] = frozenset()

    @property
    def queues(self) -> frozenset[tuple[int, int]]:
        return frozenset((adapter, domain) for adapter in self.adapters for domain in self.domains)


# --- Reading -------------------------------------------------------------------------------------------------------


def read(files: Files) -> dict[str, Any]:
    """The masks, the highest numbers and the queues with their drivers; nothing where the host has no AP bus."""
    adapters, domains = files.attr(f"{BUS}/apmask"), files.attr(f"{BUS}/aqmask")
    if adapters is None or domains is None:
        return {}
    queues = [name for name in files.names(f"{BUS}/devices") if "." in name]
    return {
        "apmask": bits(adapters),
        "aqmask": bits(domains),
        "most": {"adapters": _limit(files, "ap_max_adapter_id"), "domains": _limit(files, "ap_max_domain_id")},
        "queues": {name: files.link(f"{BUS}/devices/{name}/driver") for name in queues},
    }


def _limit(files: Files, name: str) -> int:
    text = files.attr(f"{BUS}/{name}")
    return int(text) if text and text.isdigit() else _BITS - 1


def bits(mask: str) -> frozenset[int]:
    """The numbers that a mask names: its first bit, from the left, is 0."""
    digits = mask.strip().lower()
    digits = digits[2:] if digits.startswith("0x") else digits
    return frozenset(4 * place + bit for place, digit in enumerate(digits) for bit in range(4) if int(digit, 16) & 8 >> bit)


def mask(numbers: frozenset[int]) -> str:
    """The mask that names these numbers, as the kernel prints it."""
    return f"0x{sum(1 << _BITS - 1 - number for number in numbers):0{_BITS // 4}x}"


def of_device(files: Files, path: str) -> Matrix:
    """What a device that is there has: '05.0004' for each queue, '05.' or '.0004' while it has only one of both."""
    lines = [line.partition(".") for line in (files.attr(f"{path}/matrix") or "").split()]
    return Matrix(
        adapters=frozenset(int(adapter, 16) for adapter, _dot, _domain in lines if adapter),
        domains=frozenset(int(domain, 16) for _adapter, _dot, domain in lines if domain),
        controls=frozenset(int(line, 16) for line in (files.attr(f"{path}/control_domains") or "").split()),
    )


def names(matrix: Matrix) -> list[str]:
    return [_name(queue) for queue in sorted(matrix.queues)]


def _name(queue: tuple[int, int]) -> str:
    return f"{queue[0]:02x}.{queue[1]:04x}"


# --- A wish --------------------------------------------------------------------------------------------------------


def wanted(attributes: Sequence[Mapping[str, str]]) -> Matrix:
    """The matrix that attributes come to, in their order. ValueError names the one that is wrong."""
    parts: dict[str, set[int]] = {part: set() for part in _PARTS.values()}
    for attribute in attributes:
        name, value = attribute["name"], attribute["value"]
        verb, _line, kind = name.partition("assign_")
        try:
            if name == _AT_ONCE:
                parts = dict(zip(parts, (set(bits(text)) for text in _three(value))))
            elif verb in ("", "un") and kind in _PARTS:
                change = parts[_PARTS[kind]].discard if verb else parts[_PARTS[kind]].add
                change(_number(value))
        except ValueError:
            raise ValueError(f"{name} {value!r}") from None
    return Matrix(*(frozenset(numbers) for numbers in parts.values()))


def _three(value: str) -> list[str]:
    masks = value.split(",")
    if len(masks) != 3 or any(len(text.strip()) > 2 + _BITS // 4 for text in masks):
        raise ValueError
    return masks


def _number(text: str) -> int:
    """As kstrtoul() takes it: hexadecimal with 0x, octal with 0 in front."""
    text = text.strip()
    octal = len(text) > 1 and text.startswith("0") and text.isdigit()
    number = int(text, 8 if octal else 0)
    if number < 0:
        raise ValueError
    return number


def attributes(matrix: Matrix) -> list[dict[str, str]]:
    """Attributes that come to a matrix."""
    return [
        {"name": f"assign_{kind}", "value": f"{number:#04x}"}
        for kind, part in _PARTS.items()
        for number in sorted(getattr(matrix, part))
    ]


def against(bus: Mapping[str, Any], matrix: Matrix, others: Mapping[str, Matrix]) -> tuple[str, str] | None:
    """Why a device cannot have a matrix, with the way out: as vfio_ap_mdev_validate_masks() judges it."""
    for part, limit in (("adapters", "adapters"), ("domains", "domains"), ("controls", "domains")):
        high = max(getattr(matrix, part), default=-1)
        if high > bus["most"][limit]:
            return f"it is to have {_called(part)} {high:#04x}, and the highest of this machine is {bus['most'][limit]:#04x}.", "Correct its attributes."
    for uuid, other in others.items():
        shared = sorted(matrix.queues & other.queues)
        if shared:
            reason = f"its queue {_name(shared[0])} is of the mediated device {uuid}, and no two can have one."
            return reason, "Take an adapter or a domain from one of them."
    kept = sorted(queue for queue in matrix.queues if queue[0] in bus["apmask"] and queue[1] in bus["aqmask"])
    return (_is_kept(kept[0], bus)) if kept else None


def _called(part: str) -> str:
    return {"adapters": "adapter", "domains": "domain"}.get(part, "control domain")


def _is_kept(queue: tuple[int, int], bus: Mapping[str, Any]) -> tuple[str, str]:
    adapter, domain = queue
    without = mask(bus["apmask"] - {adapter})
    reason = f"its queue {_name(queue)} is kept for the host: {BUS}/apmask names adapter {adapter:#04x}, and {BUS}/aqmask domain {domain:#06x}."
    way_out = (
        f"Give it to {DRIVER} first: '-{adapter:#04x}' written to apmask takes the adapter from the host with all its domains, '-{domain:#04x}' "
        f"written to aqmask the domain with all adapters. For each boot: ap.apmask={without} or ap.aqmask= on the kernel command line (kernel_cmdline)."
    )
    return reason, way_out


def missing(bus: Mapping[str, Any], matrix: Matrix) -> dict[str, list[str]]:
    """Adapter -> its queues that the driver does not have: a guest gets nothing of such an adapter (the kernel filters it
    as a whole). An older card, or hardware that is yet to come."""
    found: dict[str, list[str]] = {}
    for queue in sorted(matrix.queues):
        if bus["queues"].get(_name(queue)) != DRIVER:
            found.setdefault(f"{queue[0]:#04x}", []).append(_name(queue))
    return found
