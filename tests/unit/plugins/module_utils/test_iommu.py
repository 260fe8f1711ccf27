# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The IOMMU: switched on and off for the next boot, and proved after it."""

from __future__ import annotations

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import engine, grub
from ansible_collections.iovirt.host.plugins.module_utils._engine.errors import EngineError
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import lab


def iommu(sim, state="enabled", mode=None, prove=False, check=False):
    return engine.host_iommu(sim.host(), state, mode, prove, engine.Call(check=check, who="test"))


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
