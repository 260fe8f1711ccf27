# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The IOMMU: decided from what the firmware offers and what the kernel has made of it, never from a processor's name.

Rules: intel_iommu, amd_iommu, iommu and iommu.passthrough in Documentation/admin-guide/kernel-parameters.txt; group types in
Documentation/ABI/testing/sysfs-kernel-iommu_groups.
"""

from __future__ import annotations

from typing import Any

from .. import cmdline
from ..model import Iommu, Plan, Refusal
from . import kernel_cmdline
from .kernel_cmdline import Parameters, Wish

NAME = "iommu"

#: ACPI table -> parameters that switch translation on and off, and those that stand in its way.
_SWITCH = {
    "DMAR": {"on": ("intel_iommu=on",), "off": ("intel_iommu=off",), "against": ("intel_iommu=off", "iommu=off")},
    # AMD-Vi is on unless switched off: 'amd_iommu=on' is not a documented value, so on is a removal.
    "IVRS": {"on": (), "off": ("amd_iommu=off",), "against": ("amd_iommu=off", "iommu=off")},
    "IORT": {"on": (), "off": (), "against": ("iommu.passthrough=1",)},
}
_KEYS = ("intel_iommu", "amd_iommu", "iommu", "iommu.passthrough")
_PASSTHROUGH = ("iommu=pt", "iommu.passthrough=1", "iommu.passthrough=on", "iommu.passthrough=y")


def plan(iommu: Iommu, parameters: Parameters, state: str, mode: str | None) -> Plan:
    """What makes the IOMMU as wished by the next boot."""
    if state == "absent":
        return kernel_cmdline.plan(parameters, Wish(release=_KEYS))
    if not iommu.tables:
        if in_force(iommu, state, mode):
            # A kind without an ACPI table (device tree, virtio-iommu), or none and none wished.
            return Plan(predicted={"iommu": state == "enabled"})
        return Plan(refusals=[_no_table()])
    if state == "disabled" and not _SWITCH[iommu.tables[0]]["off"]:
        return Plan(refusals=[_no_switch()])
    wish = _wish(iommu, parameters, state, mode)
    result = kernel_cmdline.plan(parameters, wish)
    if in_force(iommu, state, mode):
        # The kernel's default or a richer command line already does it: no reboot for the sake of a word.
        result.reboot_reasons = []
    elif not result.reboot_reasons and not result.refusals and not result.actions:
        # This boot was started with all of it: another one would be for nothing.
        result.refusals.append(Refusal("IOMMU", _not_come_true(iommu, parameters, state, mode), "Nothing was changed."))
    result.predicted = {"iommu": state == "enabled"}
    return result


def _no_table() -> Refusal:
    reason = "the firmware offers none: there is no DMAR, IVRS or IORT table in /sys/firmware/acpi/tables."
    way_out = "Switch VT-d, AMD-Vi or the SMMU on in the firmware setup; a reboot alone would be for nothing. Nothing was changed."
    return Refusal("IOMMU", reason, way_out)


def _no_switch() -> Refusal:
    reason = "no kernel parameter switches an Arm SMMU off."
    return Refusal("IOMMU", reason, "mode: passthrough is the nearest to it. Nothing was changed.")


def _wish(iommu: Iommu, parameters: Parameters, state: str, mode: str | None) -> Wish:
    switch = _SWITCH[iommu.tables[0]]
    if state == "disabled":
        return Wish(present=switch["off"])
    present, absent = list(switch["on"]), [word for word in switch["against"] if not _excluded_by(word, switch["on"])]
    if iommu.active and not _says(parameters.running, switch["on"]):
        # On without being told to: this kernel's default. Only what stands against it must not come.
        present = []
        absent = list(switch["against"])
    if mode == "passthrough":
        # In force by a word of this boot alone (typed in GRUB, say) it must come to the next one as well.
        said = [word for word in _PASSTHROUGH if cmdline.satisfied(parameters.running, word)][:1]
        if current_mode(iommu) != "passthrough":
            said = ["iommu=pt" if iommu.tables[0] != "IORT" else "iommu.passthrough=1"]
        present += said
    if mode == "translated":
        absent += _PASSTHROUGH
    return Wish(present=_joined(present), absent=absent)


def _excluded_by(word: str, words: tuple[str, ...]) -> bool:
    """'intel_iommu=off' goes by itself when 'intel_iommu=on' comes."""
    return any(cmdline.key_of(word) == cmdline.key_of(other) for other in words)


def _joined(words: list[str]) -> list[str]:
    return list(dict.fromkeys(words))


def _says(words: tuple[str, ...], wished: tuple[str, ...]) -> bool:
    return bool(wished) and all(cmdline.satisfied(words, wish) for wish in wished)


def current_mode(iommu: Iommu) -> str | None:
    """How most groups are translated now. Single devices may differ: the kernel decides some by itself."""
    if not iommu.active:
        return None
    identity = sum(group.type == "identity" for group in iommu.groups.values())
    return "passthrough" if identity * 2 > len(iommu.groups) else "translated"


def in_force(iommu: Iommu, state: str, mode: str | None) -> bool:
    """Is it as wished now? Nothing is in force of a wish to leave it to itself (absent)."""
    if state == "absent":
        return False
    if state == "disabled":
        return not iommu.active
    return iommu.active and mode in (None, current_mode(iommu))


def unknown_loader(state: str, error: Exception) -> Plan:
    """The IOMMU is as wished, and nobody here can say what the next boot brings."""
    warning = f"The IOMMU is as wished now, but whether it is after the next boot is not known. {error}"
    return Plan(warnings=[warning], predicted={"iommu": state == "enabled"})


def proof(iommu: Iommu, parameters: Parameters, state: str, mode: str | None) -> str | None:
    """After the reboot: the sentence an operator needs when the wish did not come true, or None."""
    if in_force(iommu, state, mode):
        return None
    return f"IOMMU: {_not_come_true(iommu, parameters, state, mode)}"


def _not_come_true(iommu: Iommu, parameters: Parameters, state: str, mode: str | None) -> str:
    is_now = "off" if not iommu.active else f"on ({current_mode(iommu)})"
    return (
        f"it is {is_now} although {state}{f' ({mode})' if mode else ''} was wished and this boot was to bring it. "
        f"The kernel was started with: {' '.join(parameters.running)}. Look for DMAR, AMD-Vi or SMMU in the kernel log; a second reboot "
        "would change nothing."
    )


def next_boot(iommu: Iommu, parameters: Parameters) -> bool | None:
    """Does the next boot switch translation on? Only said where the command line says it."""
    if not iommu.tables or not parameters.loader.normal:
        return None
    switch = _SWITCH[iommu.tables[0]]
    words = parameters.loader.normal[0].words
    if any(cmdline.satisfied(words, word) for word in switch["against"]):
        return False
    if switch["on"]:
        return _says(words, switch["on"])
    return True


def info(iommu: Iommu) -> dict[str, Any]:
    """The IOMMU as it is."""
    return {
        "tables": list(iommu.tables),
        "units": list(iommu.units),
        "active": iommu.active,
        "mode": current_mode(iommu),
        "interrupt_remapping": iommu.interrupt_remapping,
        "groups": {
            n: {"type": g.type, "devices": list(g.members)} for n, g in sorted(iommu.groups.items(), key=_number)
        },
    }


def _number(item: tuple[str, Any]) -> tuple[int, str]:
    return (int(item[0]) if item[0].isdigit() else 0, item[0])
