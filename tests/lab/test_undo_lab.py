# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Steps that a real kernel and a real file system refuse in the middle of a run: the device is as it was before."""

from __future__ import annotations

import re
from typing import Any

import pytest
from ansible_collections.iovirt.host.tests.lab.test_lab import expected_drivers


@pytest.fixture
def port(wishes: dict[str, Any], lab: Any) -> str:
    """The address of a port with three VFs: two on vfio-pci, one on igbvf."""
    return str(lab.shell("basename $(ls -d /sys/bus/pci/drivers/igb/0* | head -1)"))


def snapshot(lab: Any) -> str:
    """The host, and what the records say."""
    return f"{lab.snapshot()}\n{lab.shell('cat /etc/iovirt/*.json')}"


def settings(snapshot: str) -> list[str]:
    """All but what comes by itself: the MAC that a VF's driver makes up where it finds none, which a port that is up shows
    from then on (on the list of what cannot be undone), the number of a vfio device, the lowest that is free, and the DMA
    mask, which the last driver that had the device has left (dma_set_mask). The record was written and put back: its inode and time."""
    made_up = re.sub(r"(\bvf \d+ +link/ether) [0-9a-f:]+", r"\1 MAC", snapshot)
    made_up = re.sub(r"(dma_mask_bits = )\d+", r"\1N", made_up)
    made_up = re.sub(r"^(/etc/iovirt/\S+) \d+ (\d+ \d+) \d+$", r"\1 \2", made_up, flags=re.MULTILINE)
    return re.sub(r"/vfio-dev/vfio\d+(/dev = \d+:\d+)?", "/vfio-dev/vfioN", made_up).splitlines()


def but_for_new_vfs(snapshot: str, vfs: str) -> list[str]:
    """All but what is another one for each VF that is made: its IOMMU group, its interrupt, and the number and MAC of its
    network device. Drivers, overrides, counts and files count."""
    new = re.compile(rf"/({vfs})/(iommu_group -> |irq = |net/\w+/(ifindex|iflink|address|addr_assign_type) = )|ip -[46]: \d+: \w+v\d+[:@]")
    return [line for line in settings(snapshot) if not new.search(line)]


def test_a_driver_that_refuses_living_vfs(lab: Any, port: str) -> None:
    """ahci wants a sixth memory region that an igb VF has not. By then VF 0 has left vfio-pci."""
    before = snapshot(lab)
    vfs = [{"range": "0", "driver": "igbvf"}, {"range": "1", "driver": "ahci"}]
    result = lab.apply({"sriov": [{"match": {"address": [port]}, "vf_count": 3, "vfs": vfs}]})
    assert result["failed"] is True and list(result["failures"]) == [port], result
    assert "ahci did not take" in result["msg"] and "undone, and so were the steps before it" in result["msg"]
    assert settings(snapshot(lab)) == settings(before)
    expected_drivers(lab)


def test_a_driver_that_refuses_after_a_count(lab: Any, port: str) -> None:
    """The count went from 3 to 5; the fifth VF is refused, and there are the three again with the drivers that they had."""
    before = snapshot(lab)
    addresses = "|".join(lab.shell(f"cd /sys/bus/pci/devices/{port}; for v in virtfn*; do basename $(readlink $v); done").split())
    vfs = [{"range": "0-1", "driver": "vfio-pci"}, {"range": "4", "driver": "ahci"}]
    result = lab.apply({"sriov": [{"match": {"address": [port]}, "vf_count": 5, "vfs": vfs}]})
    assert result["failed"] is True and list(result["failures"]) == [port], result
    assert "ahci did not take" in result["msg"] and "undone" in result["msg"]
    assert but_for_new_vfs(snapshot(lab), addresses) == but_for_new_vfs(before, addresses)
    expected_drivers(lab)


def test_a_record_that_cannot_be_written(lab: Any, port: str) -> None:
    """What cannot be recorded is not left done: the replay would not bring it back."""
    before = snapshot(lab)
    lab.shell("mount --bind /etc/iovirt /etc/iovirt && mount -o remount,ro,bind /etc/iovirt")
    try:
        vfs = [{"range": "0", "driver": "igbvf"}, {"range": "1", "driver": "vfio-pci"}]
        result = lab.apply({"sriov": [{"match": {"address": [port]}, "vf_count": 3, "vfs": vfs}]})
    finally:
        lab.shell("umount /etc/iovirt")
    assert result["failed"] is True and list(result["failures"]) == [port], result
    assert "EROFS" in result["msg"]
    assert settings(snapshot(lab)) == settings(before)
    expected_drivers(lab)
