# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The IOMMU: switched on and off for the next boot, and proved after it."""

from __future__ import annotations

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import engine
from ansible_collections.iovirt.host.plugins.module_utils._engine.errors import EngineError
from ansible_collections.iovirt.host.plugins.module_utils._engine.loaders import grub
from ansible_collections.iovirt.host.plugins.module_utils._engine.resources.iommu import IommuWish
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import EDU, MANAGEMENT, PF1, lab
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import Pci


def iommu(sim, state="enabled", mode=None, prove=False, check=False):
    return engine.host_iommu(sim.host(), IommuWish(state, mode), engine.Call(check=check, who="test"), prove)


def settled(sim, **wish):
    before = sim.snapshot()
    announced = iommu(sim, check=True, **wish)
    assert sim.snapshot() == before
    done = iommu(sim, **wish)
    assert done["failures"] == {}
    assert (done["actions"], done["reboot_reasons"]) == (announced["actions"], announced["reboot_reasons"])
    again = iommu(sim, **wish)
    assert (again["actions"], again["changed"]) == ([], False)
    assert again["reboot_required"] == done["reboot_required"]
    return done


def words_of(sim):
    return list(grub.parse(sim.files[grub.CONFIG])[0].words)


def with_defaults(inherited, acpi=("DMAR",)):
    sim = lab()
    sim.acpi = list(acpi)
    sim.files["/etc/default/grub"] = f'GRUB_CMDLINE_LINUX_DEFAULT="quiet"\nGRUB_CMDLINE_LINUX="{inherited}"\n'
    sim._mkconfig(grub.CONFIG)
    sim.reboot()
    sim.log.clear()
    return sim


@pytest.mark.parametrize("mode", [None, "translated", "passthrough"])
@pytest.mark.parametrize(
    "inherited",
    ["intel_iommu=off", "intel_iommu=off,sm_on", "iommu=off", "iommu=off intel_iommu=off", "iommu=off,merge", "", "intel_iommu=on iommu=off"],
)
def test_on_whatever_stood_against_it(inherited, mode):
    sim = with_defaults(inherited)
    assert not sim.iommu_on
    done = settled(sim, mode=mode)
    assert done["reboot_required"]
    assert done["predicted"] == {"iommu": True}
    sim.reboot()
    assert sim.iommu_on
    assert sim.identity_groups is (mode == "passthrough")
    proved = iommu(sim, mode=mode, prove=True)
    assert (proved["changed"], proved["reboot_required"]) == (False, False)


@pytest.mark.parametrize("inherited", ["intel_iommu=on", "intel_iommu=on,sm_on", "intel_iommu=sm_on,on quiet"])
def test_on_already(inherited):
    sim = with_defaults(inherited)
    assert sim.iommu_on
    done = settled(sim)
    assert done["reboot_required"] is False
    assert sim.log == []


@pytest.mark.parametrize("passthrough", ["iommu=pt", "iommu.passthrough=1"])
def test_from_passthrough_to_translated(passthrough):
    sim = with_defaults(f"intel_iommu=on {passthrough}")
    assert sim.identity_groups
    assert settled(sim, mode="translated")["reboot_required"]
    sim.reboot()
    assert sim.iommu_on and not sim.identity_groups
    iommu(sim, mode="translated", prove=True)


def test_off_and_left_to_itself_again():
    sim = with_defaults("intel_iommu=on")
    before = words_of(sim)
    assert settled(sim, state="disabled")["reboot_required"]
    sim.reboot()
    assert not sim.iommu_on
    assert settled(sim, state="absent")["reboot_required"]
    assert words_of(sim) == before
    assert grub.DROP_IN not in sim.files
    sim.reboot()
    assert sim.iommu_on
    assert settled(sim, state="absent")["reboot_required"] is False


def test_amd_is_on_by_itself():
    assert settled(with_defaults("", ["IVRS"]))["reboot_required"] is False
    sim = with_defaults("amd_iommu=off", ["IVRS"])
    assert settled(sim)["reboot_required"]
    sim.reboot()
    assert sim.iommu_on
    assert "amd_iommu=on" not in words_of(sim)
    assert settled(sim, state="disabled")["reboot_required"]
    sim.reboot()
    assert not sim.iommu_on


def test_firmware_that_offers_none():
    sim = with_defaults("", [])
    for check in (True, False):
        with pytest.raises(EngineError, match="firmware setup; a reboot alone would be for nothing"):
            iommu(sim, check=check)
    assert sim.log == []
    assert iommu(sim, state="disabled")["changed"] is False


def test_a_proof_that_fails_says_what_the_kernel_was_started_with():
    sim = with_defaults("intel_iommu=on")
    for function in sim.functions.values():
        function.group = None
    sim._tree = None
    with pytest.raises(EngineError, match=r"IOMMU: it is off although enabled.*intel_iommu=on.*second reboot"):
        iommu(sim, prove=True)


def test_what_is_in_force_needs_no_boot_for_the_sake_of_a_word():
    """Translated although the command line says passthrough: the kernel decided so."""
    sim = with_defaults("intel_iommu=on iommu=pt")
    sim.identity_groups = False
    sim._tree = None
    done = settled(sim, mode="translated")
    assert done["changed"]
    assert done["reboot_required"] is False


def test_unset_mode_is_untouched():
    sim = with_defaults("intel_iommu=off iommu=pt")
    settled(sim)
    assert "iommu=pt" in words_of(sim)


def test_a_wish_that_this_boot_did_not_fulfil_asks_for_no_other_one():
    """Started with all of it and still off: a reboot at every run would be for nothing."""
    sim = lab(iommu=False)
    sim.files["/proc/cmdline"] = sim.files["/proc/cmdline"].replace("intel_iommu=off", "") + " intel_iommu=on"
    iommu(sim)
    with pytest.raises(EngineError, match=r"it is off although enabled was wished.*intel_iommu=on"):
        iommu(sim)


# --- Finer wishes ----------------------------------------------------------------------------------------------------


def fine(sim, check=False, prove=False, allow=(), **wish):
    return engine.host_iommu(sim.host(), IommuWish(**wish), engine.Call(check=check, who="test"), prove, allow)


def test_scalable_mode_joins_the_word_of_the_switch():
    sim = with_defaults("intel_iommu=off")
    fine(sim, scalable_mode=True)
    assert [w for w in words_of(sim) if w.startswith("intel_iommu")] == ["intel_iommu=on,sm_on"]
    sim.reboot()
    fine(sim, scalable_mode=True, prove=True)
    fine(sim, scalable_mode=False)
    assert [w for w in words_of(sim) if w.startswith("intel_iommu")] == ["intel_iommu=on,sm_off"]


def test_scalable_mode_where_there_is_none():
    with pytest.raises(EngineError, match="VT-d's alone"):
        fine(with_defaults("", ["IVRS"]), scalable_mode=True)
    sim = with_defaults("intel_iommu=on")
    sim.files["/sys/class/iommu/dmar0/intel-iommu/ecap"] = "f00f4a\n"
    sim._tree = None
    with pytest.raises(EngineError, match="bit 43"):
        fine(sim, scalable_mode=True)
    sim.files["/sys/class/iommu/dmar0/intel-iommu/ecap"] = "880000f00f4a\n"
    sim._tree = None
    fine(sim, scalable_mode=True, check=True)


def test_strict_and_lazy():
    sim = with_defaults("intel_iommu=on")
    assert settled(sim)["iommu"]["strict"] is True  # the simulation has no flush queue
    assert fine(sim, strict=True)["actions"] == []
    done = fine(sim, strict=False)
    assert done["reboot_required"]
    assert "iommu.strict=0" in words_of(sim)


def test_interrupt_remapping():
    sim = with_defaults("intel_iommu=on intremap=off")
    sim.files["/proc/interrupts"] = "  24:  0  PCI-MSI  igb\n"
    done = fine(sim, interrupt_remapping=True)
    assert done["reboot_required"]
    assert "intremap=off" not in words_of(sim)
    sim = with_defaults("intel_iommu=on")
    fine(sim, interrupt_remapping=False)
    assert "intremap=off" in words_of(sim)
    fine(sim, state="absent")
    assert "intremap=off" not in words_of(sim)


def test_firmware_that_has_it_switched_off_is_named():
    sim = with_defaults("", [])
    sim.add(Pci("0000:00:00.2", "1022:1481", "080600"))
    with pytest.raises(EngineError, match=r"though the PCI function 0000:00:00.2 is one"):
        fine(sim, check=True)
    assert "firmware setup" in engine.iommu_info(sim.host())["iommu"]["problem"]
    sim.functions.pop("0000:00:00.2")
    sim.files["/proc/cpuinfo"] = "flags\t\t: fpu vmx\n"
    sim._tree = None
    with pytest.raises(EngineError, match="VT-x"):
        fine(sim, check=True)


# --- Which devices can be given away ---------------------------------------------------------------------------------


def by_address(sim):
    return {item["address"]: item for item in engine.iommu_info(sim.host())["devices"]}


def test_each_device_has_its_sentence():
    sim = lab()
    found = by_address(sim)
    assert found[PF1]["assignable"] and "alone in IOMMU group" in found[PF1]["reason"]
    assert not found["0000:80:00.0"]["assignable"] and "bridge" in found["0000:80:00.0"]["reason"]
    assert found[PF1]["members"] == [PF1] and found[PF1]["type"] == "DMA"
    sim.files["/proc/interrupts"] = "  24:  0  PCI-MSI  igb\n"
    sim._tree = None
    assert "not remapped" in by_address(sim)[PF1]["reason"]
    assert by_address(lab(iommu=False))[PF1]["reason"] == "The IOMMU is off."


def test_a_sibling_that_the_host_uses():
    sim = lab()
    sim.shared_groups = {EDU: "x", MANAGEMENT: "x"}
    sim.reboot()
    assert MANAGEMENT in by_address(sim)[EDU]["reason"]
    assert not by_address(sim)[EDU]["assignable"]


def test_memory_that_the_firmware_keeps_mapped():
    sim = lab()
    folder = f"/sys/kernel/iommu_groups/{sim.functions[EDU].group}"
    sim.files[f"{folder}/reserved_regions"] = "0x000000007d000000 0x000000007fffffff direct\n0x00000000fee00000 0x00000000feefffff msi\n"
    sim._tree = None
    found = by_address(sim)[EDU]
    assert not found["assignable"] and "RMRR" in found["reason"]
    assert found["reserved_regions"][1] == {"start": "0x00000000fee00000", "end": "0x00000000feefffff", "type": "msi"}
    sim.files[f"{folder}/reserved_regions"] = "0x000000007d000000 0x000000007fffffff direct-relaxable\n"
    sim._tree = None
    assert by_address(sim)[EDU]["assignable"]


# --- Sealed disks ----------------------------------------------------------------------------------------------------

DUMP = '{"tokens": {"0": {"type": "systemd-tpm2", "keyslots": ["1"], "tpm2-pcrs": [%s], "tpm2-pcr-bank": "sha256"}}}'


def sealed(pcrs, code=0):
    """A LUKS2 volume on vda1, as sysfs shows it; `cryptsetup luksDump --dump-json-metadata` of cryptsetup 2.6."""
    sim = with_defaults("intel_iommu=off")
    sim.files.update({
        "/sys/class/block/dm-0/dm/uuid": "CRYPT-LUKS2-0123-root\n",
        "/sys/class/block/dm-0/dm/name": "root\n",
        "/sys/class/block/dm-0/slaves/vda1/dev": "254:1\n",
    })
    sim.tools["cryptsetup"] = lambda sim, argv: (code, DUMP % pcrs, "")
    sim._tree = None
    return sim


def test_a_key_sealed_to_the_command_line_is_refused_unless_allowed():
    sim = sealed("7, 8")
    before = sim.snapshot()
    for check in (True, False):
        with pytest.raises(EngineError, match=r"the key of root is sealed in the TPM to PCR 8, .*allow: \[sealed_disk\]"):
            fine(sim, check=check)
    assert sim.snapshot() == before
    assert fine(sim, allow=["sealed_disk"])["changed"]


def test_a_key_sealed_to_something_else_is_none():
    assert fine(sealed("7"))["changed"]
    assert fine(sealed(""))["changed"]


def test_nobody_is_asked_when_nothing_changes():
    sim = sealed("8")
    fine(sim, allow=["sealed_disk"])
    sim.commands.clear()
    fine(sim)
    assert sim.commands == []
