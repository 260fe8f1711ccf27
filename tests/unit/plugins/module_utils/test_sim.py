# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The simulated kernel answers as the lab's real one did (table in the lab facts, 'Races and errors')."""

from __future__ import annotations

import errno

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine.errors import Stuck
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import EDU, NVME, PF1, drivers_of, lab
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import DEVICES, DRIVERS

COUNT = f"{DEVICES}/{PF1}/sriov_numvfs"


def code_of(sim, path, data):
    try:
        sim.write(path, data)
    except OSError as error:
        return error.errno
    return 0


@pytest.mark.parametrize(
    ("there", "written", "answer"),
    [
        (0, "0", 0),
        (2, "2", 0),
        (2, "3", errno.EBUSY),
        (2, "8", errno.ERANGE),
        (0, "8", errno.ERANGE),
        (0, "-1", errno.EINVAL),
        (0, "65536", errno.EINVAL),
        (0, "0x8", errno.ERANGE),
        (0, "two", errno.EINVAL),
        (2, "0", 0),
        (0, "7", 0),
    ],
)
def test_counts_are_answered_as_in_the_lab(there, written, answer):
    sim = lab()
    sim.write(COUNT, str(there))
    assert code_of(sim, COUNT, written) == answer
    assert len(sim.functions[PF1].vfs) == (int(written) if not answer else there)


def test_without_a_driver_that_can_there_is_no_such_entry():
    sim = lab()
    sim.write(f"{DEVICES}/{PF1}/driver/unbind", PF1)
    assert code_of(sim, COUNT, "2") == errno.ENOENT
    # The limit of 7 is the driver's; the device has 8.
    assert code_of(sim, COUNT, "8") == errno.ENOENT
    assert code_of(sim, COUNT, "9") == errno.ERANGE
    assert code_of(sim, COUNT, "0") == 0


def test_probing_is_switched_by_any_word_of_the_kernel():
    sim = lab()
    autoprobe = f"{DEVICES}/{PF1}/sriov_drivers_autoprobe"
    for word, now in (("no", "0"), ("yes", "1"), ("off", "0"), ("on\n", "1"), ("", "1")):
        assert code_of(sim, autoprobe, word) == 0
        assert sim.attr(autoprobe) == now
    for word in ("2", " 0", "o", "x"):
        assert code_of(sim, autoprobe, word) == errno.EINVAL


def test_vf_addresses_are_those_of_the_lab():
    sim = lab()
    sim.write(COUNT, "3")
    assert sim.functions[PF1].vfs == ["0000:82:10.0", "0000:82:10.2", "0000:82:10.4"]


def test_udev_brings_the_vf_driver_late():
    sim = lab()
    sim.write(COUNT, "2")
    assert drivers_of(sim, PF1) == [None, None]
    sim.sleep(4)
    assert drivers_of(sim, PF1) == [None, None]
    sim.sleep(2)
    assert drivers_of(sim, PF1) == ["igbvf", "igbvf"]
    assert "enp129s0v0" in sim.names("/sys/class/net")


def test_without_autoprobe_a_vf_is_probed_only_by_its_override():
    sim = lab(igbvf_loaded=True)
    sim.write(f"{DEVICES}/{PF1}/sriov_drivers_autoprobe", "0")
    sim.write(COUNT, "1")
    vf = sim.functions[PF1].vfs[0]
    assert code_of(sim, "/sys/bus/pci/drivers_probe", vf) == 0
    assert code_of(sim, f"{DRIVERS}/igbvf/bind", vf) == errno.ENODEV
    assert drivers_of(sim, PF1) == [None]
    sim.write(f"{DEVICES}/{vf}/driver_override", "igbvf")
    assert code_of(sim, "/sys/bus/pci/drivers_probe", vf) == 0
    assert drivers_of(sim, PF1) == ["igbvf"]


def test_an_override_goes_with_its_vf():
    sim = lab()
    sim.write(COUNT, "1")
    vf = f"{DEVICES}/{sim.functions[PF1].vfs[0]}"
    assert sim.attr(f"{vf}/driver_override") == "(null)"
    sim.write(f"{vf}/driver_override", "vfio-pci\n")
    assert sim.attr(f"{vf}/driver_override") == "vfio-pci"
    sim.write(COUNT, "0")
    sim.write(COUNT, "1")
    assert sim.attr(f"{vf}/driver_override") == "(null)"
    sim.write(f"{vf}/driver_override", "vfio-pci")
    sim.write(f"{vf}/driver_override", "\n")
    assert sim.attr(f"{vf}/driver_override") == "(null)"


def test_binding_says_why_not():
    sim = lab(vfio_loaded=True)
    assert code_of(sim, f"{DRIVERS}/vfio-pci/bind", EDU) == errno.ENODEV
    sim.write(f"{DEVICES}/{EDU}/driver_override", "vfio-pci")
    assert code_of(sim, f"{DRIVERS}/vfio-pci/bind", EDU) == 0
    assert code_of(sim, f"{DRIVERS}/vfio-pci/bind", EDU) == errno.EBUSY
    bare = lab(iommu=False, vfio_loaded=True)
    bare.write(f"{DEVICES}/{EDU}/driver_override", "vfio-pci")
    assert code_of(bare, f"{DRIVERS}/vfio-pci/bind", EDU) == errno.EINVAL


def test_a_reboot_loses_what_the_kernel_held_and_keeps_files():
    sim = lab(iommu=False, next_iommu=True)
    sim.replace("/etc/iovirt/x", "kept")
    sim.replace("/run/x", "lost")
    sim.write(COUNT, "2")
    sim.write(f"{DEVICES}/{EDU}/driver_override", "vfio-pci")
    assert not sim.iommu_on
    sim.reboot()
    assert sim.iommu_on
    assert sim.functions[PF1].vfs == []
    assert sim.functions[EDU].override is None
    assert (sim.text("/etc/iovirt/x"), sim.text("/run/x")) == ("kept", None)
    assert "intel_iommu=on" in sim.text("/proc/cmdline")


def test_a_write_that_blocks_passes_its_limit():
    sim = lab()
    sim.blocking.append(COUNT)
    with pytest.raises(Stuck):
        sim.write(COUNT, "2", limit=60.0)
    assert sim.functions[PF1].vfs == []


def test_nvme_vfs_without_resources_have_no_driver():
    sim = lab()
    sim.write(f"{DEVICES}/{NVME}/sriov_numvfs", "4")
    assert drivers_of(sim, NVME) == [None] * 4
