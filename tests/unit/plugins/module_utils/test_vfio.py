# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whole functions to vfio-pci and back."""

from __future__ import annotations

import errno

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import replay
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import (
    DISK,
    EDU,
    MANAGEMENT,
    NVME,
    PF1,
    PF2,
    at,
    call,
    converged,
    drivers_of,
    lab,
    quiet,
    refused,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import DEVICES


def state_of(sim, address):
    function = sim.functions[address]
    return function.driver, function.override


@pytest.mark.parametrize("vfio_loaded", [True, False])
@pytest.mark.parametrize("address", [EDU, NVME, PF1])
def test_to_vfio_over_a_reboot_and_back(address, vfio_loaded):
    sim = lab(vfio_loaded=vfio_loaded)
    before, files = sim.of_device(address), dict(sim.files)
    wish = {"vfio": [at(address)]}
    converged(sim, **wish)
    assert state_of(sim, address) == ("vfio-pci", "vfio-pci")
    sim.reboot()
    assert state_of(sim, address)[1] is None
    assert replay.run(sim.host(environment={}, sources=None), None)["failures"] == {}
    assert state_of(sim, address) == ("vfio-pci", "vfio-pci")
    quiet(sim, **wish)
    converged(sim, vfio=[at(address, state="absent")])
    assert sim.of_device(address) == before
    assert {p: t for p, t in sim.files.items() if not p.startswith("/run/")} == {
        p: t for p, t in files.items() if not p.startswith("/run/")
    }


@pytest.mark.parametrize(
    "match",
    [
        {"driver": ["nvme"]},
        {"class": ["nvme"]},
        {"serial": ["LAB0"]},
        {"slot": ["3"]},
        {"numa_node": [1], "class": ["storage"]},
        {"vendor": ["1b36"], "device": ["0010"]},
    ],
)
def test_a_selector_matches_the_same_before_and_after(match):
    sim = lab()
    converged(sim, vfio=[{"match": match, "expect": 1}])
    assert state_of(sim, NVME)[0] == "vfio-pci"
    sim.reboot()
    converged(sim, vfio=[{"match": match, "expect": 1}])
    assert state_of(sim, NVME)[0] == "vfio-pci"
    converged(sim, vfio=[{"match": match, "state": "absent"}])
    assert state_of(sim, NVME) == ("nvme", None)


@pytest.mark.parametrize("match", [{"ifname": ["enp129s*"]}, {"mac": ["52:54:00:00:01:00"]}, {"driver": ["igb"], "slot": ["1"]}])
def test_a_port_is_found_again_although_its_netdev_is_gone(match):
    sim = lab()
    converged(sim, vfio=[{"match": match, "expect": 1}])
    assert state_of(sim, PF1)[0] == "vfio-pci"
    converged(sim, vfio=[{"match": match, "expect": 1, "state": "absent"}])
    assert state_of(sim, PF1) == ("igb", None)


def test_an_operators_own_override_comes_back():
    sim = lab()
    sim.run(["modprobe", "--", "vfio-pci"])
    sim.write(f"{DEVICES}/{EDU}/driver_override", "vfio-pci")
    sim.write("/sys/bus/pci/drivers_probe", EDU)
    before = sim.of_device(EDU)
    converged(sim, vfio=[at(EDU)])
    converged(sim, vfio=[at(EDU, state="absent")])
    assert sim.of_device(EDU) == before


def test_a_device_that_vfio_had_by_its_ids_stays_with_it():
    """vfio-pci.ids= on the command line: no override, and the device was with vfio-pci before we came."""
    sim = lab(vfio_loaded=True)
    sim.known_drivers["vfio-pci"].ids = frozenset({"1b36:0010"})
    sim.functions[NVME].driver = "vfio-pci"
    sim._tree = None
    before = sim.of_device(NVME)
    converged(sim, vfio=[at(NVME)])
    converged(sim, vfio=[at(NVME, state="absent")])
    assert sim.of_device(NVME) == before


def test_absent_leaves_alone_what_was_never_ours():
    sim = lab(vfio_loaded=True)
    sim.write(f"{DEVICES}/{EDU}/driver_override", "vfio-pci")
    sim.write("/sys/bus/pci/drivers_probe", EDU)
    quiet(sim, vfio=[at(EDU, state="absent")])
    assert state_of(sim, EDU) == ("vfio-pci", "vfio-pci")


def test_another_driver_than_vfio_needs_no_iommu():
    sim = lab(iommu=False)
    sim.add_driver("uio_pci_generic")
    converged(sim, vfio=[at(EDU, driver="uio_pci_generic")])
    assert state_of(sim, EDU)[0] == "uio_pci_generic"


def test_a_vf_by_its_own_selector():
    sim = lab(igbvf_loaded=True)
    sim.write(f"{DEVICES}/{PF1}/sriov_numvfs", "2")
    vf = sim.functions[PF1].vfs[0]
    refused(sim, "no device", vfio=[at(vf)])
    converged(sim, vfio=[{"match": {"address": [vf], "vf": True}}])
    assert drivers_of(sim, PF1) == ["vfio-pci", "igbvf"]


def test_the_replay_knows_a_vf_with_another_random_mac():
    """igbvf without a MAC from its PF makes one up at each birth."""
    sim = lab(igbvf_loaded=True)
    sim.write(f"{DEVICES}/{PF1}/sriov_numvfs", "1")
    vf = sim.functions[PF1].vfs[0]
    converged(sim, vfio=[{"match": {"address": [vf], "vf": True}}])
    sim.reboot()
    sim.write(f"{DEVICES}/{PF1}/sriov_numvfs", "1")
    assert replay.run(sim.host(environment={}, sources=None), None)["failures"] == {}
    assert drivers_of(sim, PF1) == ["vfio-pci"]


# --- Refusals --------------------------------------------------------------------------------------------------------


def test_the_management_port():
    text = refused(lab(), MANAGEMENT, "ens3", "path to the controller", "allow: [management]", vfio=[at(MANAGEMENT)])
    assert text.startswith(f"{MANAGEMENT}: ")
    sim = lab()
    assert call(sim, vfio=[at(MANAGEMENT)], allow=("management",))["changed"]


@pytest.mark.parametrize("environment", [{}, {"SSH_CONNECTION": "odd"}])
def test_without_a_connection_the_route_and_the_address_still_count(environment):
    sim = lab()
    refused(sim, MANAGEMENT, "default route", vfio=[at(MANAGEMENT)], environment=environment)
    sim.nets["ens3"].default_route = False
    sim._tree = None
    refused(sim, MANAGEMENT, "10.0.2.15", vfio=[at(MANAGEMENT)], environment=environment)


def test_a_mounted_disk():
    refused(lab(), DISK, "mounted on /", "allow: [boot_disk]", vfio=[at(DISK)])


def test_no_iommu_group():
    refused(lab(iommu=False), EDU, "the IOMMU is off", "role iommu", vfio=[at(EDU)])
    sim = lab()
    sim.functions[EDU].group = None
    sim._tree = None
    refused(sim, EDU, "although the IOMMU is on", vfio=[at(EDU)])


def test_an_iommu_to_come():
    sim = lab(iommu=False, next_iommu=True)
    done = converged(sim, vfio=[at(EDU)])
    assert [a["certainty"] for a in done["actions"] if a["action"] == "bind"] == ["after_reboot"]
    assert done["reboot_required"] and EDU in done["reboot_reasons"][0]
    assert state_of(sim, EDU) == (None, None)
    sim.reboot()
    assert replay.run(sim.host(sources=None), None)["failures"] == {}
    assert state_of(sim, EDU)[0] == "vfio-pci"
    assert quiet(sim, vfio=[at(EDU)])["reboot_required"] is False


def test_assume_speaks_for_a_boot_loader_that_nobody_knows():
    sim = lab(iommu=False)
    sim.remove("/boot/grub/grub.cfg")
    refused(sim, "the IOMMU is off", vfio=[at(EDU)])
    assert call(sim, vfio=[at(EDU)], assume={"iommu": True}, check=True)["reboot_required"]


@pytest.mark.parametrize("driver", ["nothing", "vfio_pci", "..", "a b"])
def test_a_driver_that_does_not_exist(driver):
    refused(lab(), EDU, f"no driver {driver}", "Correct the name", vfio=[at(EDU, driver=driver)])


def test_a_bridge():
    refused(lab(), "0000:80:00.0", "bridge", vfio=[at("0000:80:00.0")])


def test_a_pf_with_vfs():
    sim = lab()
    sim.write(f"{DEVICES}/{PF1}/sriov_numvfs", "2")
    refused(sim, PF1, "2 VFs", "vf_count to 0", vfio=[at(PF1)])


def test_two_resources_for_one_device():
    refused(lab(), PF1, "sriov and vfio", sriov=[at(PF1, vf_count=2)], vfio=[at(PF1)])
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=0)])
    refused(sim, PF1, "the resource sriov holds it", vfio=[at(PF1)])


def test_a_vf_is_ruled_by_one_resource():
    """In one call, and when either came first."""
    vf_wish = {"match": {"address": ["0000:82:10.*"], "vf": True}}
    sim = lab()
    sim.write(f"{DEVICES}/{PF1}/sriov_numvfs", "2")
    refused(sim, "0000:82:10.0", PF1, sriov=[at(PF1, vf_count=2)], vfio=[vf_wish])
    call(sim, vfio=[vf_wish])
    refused(sim, PF1, "0000:82:10.0", sriov=[at(PF1, vf_count=3)])
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=2)])
    refused(sim, "0000:82:10.0", "sriov rules", vfio=[vf_wish])


def test_group_siblings():
    sim = lab()
    sim.shared_groups = {EDU: "a", NVME: "a", "0000:90:00.0": "a"}
    sim.reboot()
    refused(sim, EDU, NVME, "allow: [group]", vfio=[at(EDU)])
    converged(sim, vfio=[at(EDU), at(NVME)])
    sim = lab()
    sim.shared_groups = {EDU: "a", NVME: "a"}
    sim.reboot()
    assert call(sim, vfio=[at(EDU)], allow=("group",))["changed"]


# --- Failures --------------------------------------------------------------------------------------------------------


def test_a_driver_that_declines_leaves_the_old_one():
    sim = lab()
    before = sim.of_device(NVME)
    sim.probe_errno["vfio-pci", NVME] = errno.EINVAL
    done = call(sim, vfio=[at(NVME), at(EDU)])
    assert "vfio-pci did not take" in done["failures"][NVME]
    assert "undone" in done["failures"][NVME]
    assert sim.of_device(NVME) == before
    assert state_of(sim, EDU)[0] == "vfio-pci"
    assert done["changed"]


def test_a_driver_that_says_yes_and_lets_go_is_not_believed():
    sim = lab()
    before = sim.of_device(NVME)
    sim.fickle.add(("vfio-pci", NVME))
    assert "vfio-pci did not keep" in call(sim, vfio=[at(NVME)])["failures"][NVME]
    assert sim.of_device(NVME) == before


def test_an_unbind_that_hangs():
    sim = lab()
    sim.blocking.append(f"*/{NVME}/driver/unbind")
    done = call(sim, vfio=[at(NVME)])
    assert done["indeterminate"] == [NVME]
    assert sim.log[-1][1].endswith("/driver/unbind")


def test_the_native_driver_declines_to_come_back():
    sim = lab()
    call(sim, vfio=[at(NVME)])
    before = sim.snapshot()
    sim.probe_errno["nvme", NVME] = errno.EIO
    sim.log.clear()
    assert "no driver took" in call(sim, vfio=[at(NVME, state="absent")])["failures"][NVME]
    assert sim.snapshot() == before


# --- The replay and who is there -------------------------------------------------------------------------------------


def test_the_replay_leaves_another_card_alone():
    sim = lab()
    call(sim, vfio=[at(NVME), at(EDU)])
    sim.functions[NVME].serial = "OTHER"
    sim.reboot()
    failures = replay.run(sim.host(sources=None), None)["failures"]
    assert list(failures) == [NVME]
    assert "another device" in failures[NVME] and "OTHER" in failures[NVME]
    assert state_of(sim, NVME) == ("nvme", None)
    assert state_of(sim, EDU)[0] == "vfio-pci"


def test_the_replay_tells_of_a_device_that_is_gone_and_ends_in_time():
    sim = lab()
    call(sim, vfio=[at(NVME), at(EDU)])
    sim.functions.pop(NVME)
    sim.reboot()
    start = sim.now
    failures = replay.run(sim.host(sources=None), None)["failures"]
    assert list(failures) == [NVME]
    assert sim.now - start < 60
    assert state_of(sim, EDU)[0] == "vfio-pci"
    assert replay.parse(sim.text(replay.RESULT))["failures"] == failures


def test_a_device_that_is_gone_for_good_can_be_given_up():
    """What the replay's sentence advises has to work."""
    sim = lab()
    call(sim, vfio=[at(NVME)])
    sim.functions.pop(NVME)
    sim.reboot()
    done = converged(sim, vfio=[at(NVME, state="absent")])
    assert done["changed"]
    assert not sim.exists("/etc/iovirt/vfio.json")


def test_exclusive_forgets_a_device_that_is_gone():
    sim = lab()
    call(sim, vfio=[at(NVME), at(EDU)])
    sim.functions.pop(NVME)
    sim.reboot()
    converged(sim, vfio=[at(EDU)], exclusive=("vfio",))
    assert NVME not in sim.text("/etc/iovirt/vfio.json")


def test_a_new_card_in_the_slot_starts_a_new_record():
    sim = lab()
    call(sim, vfio=[at(PF1)])
    sim.reboot()
    card = sim.functions[PF1]
    card.ids, card.mac, card.ifname, card.driver, card.slot = "8086:10d3", "52:54:00:00:09:09", "enp129s0", None, "1"
    sim.reboot()
    assert card.driver == "e1000e"
    converged(sim, vfio=[at(PF1)])
    converged(sim, vfio=[at(PF1, state="absent")])
    assert state_of(sim, PF1) == ("e1000e", None)


def test_what_was_allowed_is_allowed_at_boot_too():
    """A danger that the operator accepted for a declared device does not keep it from coming back."""
    sim = lab()
    sim.shared_groups = {EDU: "a", PF2: "a"}
    sim.reboot()
    call(sim, vfio=[at(EDU)], allow=("group",))
    sim.reboot()
    assert replay.run(sim.host(environment={}, sources=None), None)["failures"] == {}
    assert state_of(sim, EDU)[0] == "vfio-pci"


def test_another_card_in_the_place_is_not_given_back():
    """The record goes; the card that stands there now keeps the driver that somebody gave it."""
    sim = lab()
    call(sim, vfio=[at(NVME)])
    sim.functions[NVME].serial = "OTHER"
    sim.functions[NVME].ids = "1b36:0011"
    sim._tree = None
    done = call(sim, vfio=[at(NVME, state="absent")])
    assert done["failures"] == {}
    assert [action["action"] for action in done["actions"]] == ["declare", "remove_replay"]
    assert state_of(sim, NVME) == ("vfio-pci", "vfio-pci")
