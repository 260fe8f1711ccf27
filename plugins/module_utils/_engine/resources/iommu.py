# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The IOMMU: decided from what the firmware offers and what the kernel has made of it, never from a processor's name.

Rules: intel_iommu, amd_iommu, iommu and iommu.passthrough in Documentation/admin-guide/kernel-parameters.txt; group types in
Documentation/ABI/testing/sysfs-kernel-iommu_groups.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from .. import assignable, cmdline
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
_KEYS = ("intel_iommu", "amd_iommu", "iommu", "iommu.passthrough", "iommu.strict", "intremap")
_PASSTHROUGH = ("iommu=pt", "iommu.passthrough=1", "iommu.passthrough=on", "iommu.passthrough=y")


@dataclass(frozen=True)
class IommuWish:
    """How the IOMMU shall be; what is None stays as it is."""

    state: str = "enabled"
    mode: str | None = None
    #: Flush the IOMMU's cache at once when a mapping goes (strict) or later (lazy).
    strict: bool | None = None
    scalable_mode: bool | None = None
    interrupt_remapping: bool | None = None

    @property
    def words(self) -> str:
        """The wish beyond its state, for a sentence."""
        flags = {name: getattr(self, name) for name in ("strict", "scalable_mode", "interrupt_remapping")}
        said = [self.mode] if self.mode else []
        return ", ".join(said + [f"{name}: {str(value).lower()}" for name, value in flags.items() if value is not None])


def plan(iommu: Iommu, parameters: Parameters, wish: IommuWish, allow: Collection[str] = ()) -> Plan:
    """What makes the IOMMU as wished by the next boot."""
    if wish.state == "absent":
        return kernel_cmdline.plan(parameters, Wish(release=_KEYS), allow)
    words = parameters.running
    if not iommu.tables:
        if in_force(iommu, words, wish):
            # A kind without an ACPI table (POWER, s390x, device tree, virtio-iommu), or none and none wished.
            return Plan(predicted={"iommu": wish.state == "enabled"})
        return Plan(refusals=[_no_table(iommu)])
    refusals = _impossible(iommu, wish)
    if refusals:
        return Plan(refusals=refusals)
    result = kernel_cmdline.plan(parameters, _wish(iommu, parameters, wish), allow)
    if in_force(iommu, words, wish):
        # The kernel's default or a richer command line already does it: no reboot for the sake of a word.
        result.reboot_reasons = []
    elif not result.reboot_reasons and not result.refusals and not result.actions:
        # This boot was started with all of it: another one would be for nothing.
        result.refusals.append(Refusal("IOMMU", _not_come_true(iommu, parameters, wish), "Nothing was changed."))
    result.predicted = {"iommu": wish.state == "enabled"}
    return result


def _impossible(iommu: Iommu, wish: IommuWish) -> list[Refusal]:
    """What no kernel parameter of this machine's IOMMU does."""
    found = []
    if wish.state == "disabled" and not _SWITCH[iommu.tables[0]]["off"]:
        found.append(_no_switch())
    if wish.scalable_mode is not None and iommu.tables[0] != "DMAR":
        reason = "scalable mode is VT-d's alone, and this is none."
        found.append(Refusal("IOMMU", reason, "Leave scalable_mode unset. Nothing was changed."))
    if wish.scalable_mode and iommu.scalable is False:
        reason = "a VT-d unit of this machine does not offer scalable mode (bit 43 of its ecap)."
        found.append(Refusal("IOMMU", reason, "Leave scalable_mode unset. Nothing was changed."))
    if wish.interrupt_remapping is not None and iommu.tables[0] == "IORT":
        reason = "on Arm the interrupt controller does it, and no parameter changes it."
        found.append(Refusal("IOMMU", reason, "Leave interrupt_remapping unset. Nothing was changed."))
    return found


def _no_table(iommu: Iommu) -> Refusal:
    reason = "the firmware offers none: there is no DMAR, IVRS or IORT table in /sys/firmware/acpi/tables"
    reason += f", though {iommu.hint}." if iommu.hint else "."
    way_out = "Switch VT-d, AMD-Vi or the SMMU on in the firmware setup; a reboot alone would be for nothing. Nothing was changed."
    return Refusal("IOMMU", reason, way_out)


def _no_switch() -> Refusal:
    reason = "no kernel parameter switches an Arm SMMU off."
    return Refusal("IOMMU", reason, "mode: passthrough is the nearest to it. Nothing was changed.")


def _wish(iommu: Iommu, parameters: Parameters, wish: IommuWish) -> Wish:
    switch = _SWITCH[iommu.tables[0]]
    mode = wish.mode
    if wish.state == "disabled":
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
    more, less = _details(iommu, parameters, wish)
    return Wish(present=_as_sets(_joined(present + more)), absent=absent + less)


def _details(iommu: Iommu, parameters: Parameters, wish: IommuWish) -> tuple[list[str], list[str]]:
    """Parameters for strictness, scalable mode and interrupt remapping. What the kernel does by itself is not said,
    unless somebody speaks of it."""
    present, absent = [], []
    named = any(_named(words, "iommu.strict") for words in (parameters.running, *parameters.loader.lines))
    by_itself = iommu.active and iommu.lazy is not wish.strict and not named
    if wish.strict is not None and not by_itself:
        present.append(f"iommu.strict={int(wish.strict)}")
    if wish.strict is False:
        absent.append("intel_iommu=strict")
    if wish.scalable_mode is not None:
        present.append(f"intel_iommu=sm_{'on' if wish.scalable_mode else 'off'}")
    if wish.interrupt_remapping is False:
        present.append("intremap=off")
    if wish.interrupt_remapping:
        absent.append("intremap=off")
    return present, absent


def _named(words: Sequence[str], key: str) -> bool:
    return any(cmdline.key_of(word) == key for word in words)


def _as_sets(words: list[str]) -> list[str]:
    """'intel_iommu=on' and 'intel_iommu=sm_on' are one word: 'intel_iommu=on,sm_on'."""
    result: dict[str, str] = {}
    for word in words:
        key, _equals, value = word.partition("=")
        joined = key in cmdline.SETS and key in result
        result[key if key in cmdline.SETS else word] = f"{result[key]},{value}" if joined else word
    return list(result.values())


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


def in_force(iommu: Iommu, running: tuple[str, ...], wish: IommuWish) -> bool:
    """Is it as wished now? Nothing is in force of a wish to leave it to itself (absent)."""
    if wish.state == "absent":
        return False
    if wish.state == "disabled":
        return not iommu.active
    if not iommu.active or wish.mode not in (None, current_mode(iommu)):
        return False
    if wish.interrupt_remapping not in (None, iommu.interrupt_remapping):
        return False
    if wish.scalable_mode is not None:
        # sysfs does not tell; the word does.
        word = f"intel_iommu=sm_{'on' if wish.scalable_mode else 'off'}"
        if not cmdline.satisfied(running, word):
            return False
    # Identity groups have no cache to flush.
    return wish.strict is None or current_mode(iommu) == "passthrough" or iommu.lazy is not wish.strict


def unknown_loader(state: str, error: Exception) -> Plan:
    """The IOMMU is as wished, and nobody here can say what the next boot brings."""
    warning = f"The IOMMU is as wished now, but whether it is after the next boot is not known. {error}"
    return Plan(warnings=[warning], predicted={"iommu": state == "enabled"})


def proof(iommu: Iommu, parameters: Parameters, wish: IommuWish) -> str | None:
    """After the reboot: the sentence an operator needs when the wish did not come true, or None."""
    if in_force(iommu, parameters.running, wish):
        return None
    return f"IOMMU: {_not_come_true(iommu, parameters, wish)}"


def _not_come_true(iommu: Iommu, parameters: Parameters, wish: IommuWish) -> str:
    is_now = "off" if not iommu.active else f"on ({_how(iommu)})"
    return (
        f"it is {is_now} although {wish.state}{f' ({wish.words})' if wish.words else ''} was wished and this boot was to "
        f"bring it. The kernel was started with: {' '.join(parameters.running)}. Look for DMAR, AMD-Vi or SMMU in the "
        "kernel log; a second reboot would change nothing."
    )


def _how(iommu: Iommu) -> str:
    words = [current_mode(iommu) or ""]
    if current_mode(iommu) == "translated":
        words.append("lazy" if iommu.lazy else "strict")
    return ", ".join([*words, "interrupts remapped" if iommu.interrupt_remapping else "interrupts not remapped"])


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
        "strict": not iommu.lazy if current_mode(iommu) == "translated" else None,
        "scalable_mode_offered": iommu.scalable,
        "interrupt_remapping": iommu.interrupt_remapping,
        "problem": None if iommu.active else assignable.off(iommu),
        "groups": {
            n: {"type": g.type, "devices": list(g.members)} for n, g in sorted(iommu.groups.items(), key=_number)
        },
    }


def _number(item: tuple[str, Any]) -> tuple[int, str]:
    return (int(item[0]) if item[0].isdigit() else 0, item[0])
