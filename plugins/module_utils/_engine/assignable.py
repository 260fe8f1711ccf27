# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which functions can be given to a guest, and in one sentence why another cannot."""

from __future__ import annotations

from typing import Any

from . import guards
from .model import Function, Group, Iommu, State


def devices(state: State) -> list[dict[str, Any]]:
    """Every PCI function, with its group and a sentence."""
    return [_device(state, function) for function in state.functions.values() if function.bus == "pci"]


def _device(state: State, function: Function) -> dict[str, Any]:
    group = state.iommu.groups.get(function.group or "")
    reason = _against(state, function, group)
    return {
        "address": function.address,
        "driver": function.driver,
        "group": function.group,
        "type": group.type if group else None,
        "members": list(group.members) if group else [],
        "reserved_regions": [dict(zip(("start", "end", "type"), region)) for region in group.reserved] if group else [],
        "assignable": reason is None,
        "reason": reason or _for(function, group),
    }


def _for(function: Function, group: Group | None) -> str:
    others = [address for address in (group.members if group else ()) if address != function.address]
    if not others:
        return f"It can be assigned: it is alone in IOMMU group {function.group}."
    return (
        f"It can be assigned: nothing that the host uses is with it in IOMMU group {function.group} "
        f"({', '.join(others)}), all of which goes to the same guest or stays unused."
    )


def _against(state: State, function: Function, group: Group | None) -> str | None:
    iommu = state.iommu
    if not iommu.active:
        return off(iommu)
    if function.is_bridge:
        return "It is a bridge; a bridge is never given to a guest."
    if group is None:
        return "The kernel has put it into no IOMMU group, so its memory accesses cannot be fenced in."
    refusal = next(iter(guards.before_assignment(state, function)), None)
    if refusal:
        return refusal.reason[0].upper() + refusal.reason[1:]
    direct = [region for region in group.reserved if region[2] == "direct"]
    if direct:
        # "rejecting configuring the device without a 1:1 mapping", drivers/iommu/iommu.c.
        return (
            f"The firmware keeps the memory {direct[0][0]} to {direct[0][1]} mapped for it (RMRR or unity mapping), and "
            "the kernel gives no such device away. Look for a firmware option, or ask the maker of the machine."
        )
    if not iommu.interrupt_remapping and iommu.tables and iommu.tables[0] in ("DMAR", "IVRS"):
        return "Interrupts are not remapped, so a guest could raise any of the host's: vfio refuses it. Look for intremap=off."
    return None


def off(iommu: Iommu) -> str:
    """Why no device can be assigned."""
    if iommu.tables:
        return "The IOMMU is off."
    if iommu.hint:
        return f"The firmware offers no IOMMU, though {iommu.hint}: switch it on in the firmware setup."
    return "The firmware offers no IOMMU."
