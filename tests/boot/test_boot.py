# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The IOMMU from off to passthrough, to translated, and to off again, on real boot loaders and with real reboots.

What came true is asked of /proc/cmdline and /sys/kernel/iommu_groups, never of our own modules. The tests of a flavour
build on each other, in this order: a boot takes a minute.
"""

from __future__ import annotations

from typing import Any

LOADERS = {"grub-bios": "grub", "grub-uefi": "grub", "systemd-boot": "systemd-boot", "uki": "uki", "amdvi": "grub"}
#: A kernel that is installed after the change and before the reboot: a copy under a newer name, so that it is booted.
NEW_KERNEL = "99.0-lab"
INSTALL = f"""set -e
v=$(uname -r)
cp /boot/vmlinuz-$v /boot/vmlinuz-{NEW_KERNEL}
cp /boot/initrd.img-$v /boot/initrd.img-{NEW_KERNEL}
if [ -e /boot/efi/EFI/systemd ]; then kernel-install add {NEW_KERNEL} /boot/vmlinuz-{NEW_KERNEL}; else update-grub; fi"""
REMOVE = f"""set -e
if [ -e /boot/efi/EFI/systemd ]; then kernel-install remove {NEW_KERNEL}; fi
rm -rf /boot/vmlinuz-{NEW_KERNEL} /boot/initrd.img-{NEW_KERNEL} /boot/efi/*/{NEW_KERNEL}
[ -e /boot/efi/EFI/systemd ] || update-grub"""


def changed(lab: Any, module: str = "iommu", **wish: Any) -> dict[str, Any]:
    """Announced in check mode, done, and nothing left to do."""
    before = lab.boot_files()
    announced = lab.module(module, check=True, **wish)
    assert not announced["failed"], announced
    assert lab.boot_files() == before
    done: dict[str, Any] = lab.module(module, **wish)
    assert not done["failed"], done
    assert done["actions"] == announced["actions"]
    assert done["changed"] and done["reboot_required"]
    again = lab.module(module, **wish)
    assert (again["changed"], again["actions"]) == (False, []), again
    return done


def test_the_loader_that_booted_is_found(lab: Any) -> None:
    lab.start_files = lab.boot_files()
    lab.start_words = sorted(lab.words())
    found = lab.module("kernel_cmdline_info")
    assert found["kernel_cmdline"]["loader"] == LOADERS[lab.flavour]
    # GRUB for BIOS is installed in every flavour, and its entries stand in /boot/grub/grub.cfg.
    assert any(path.endswith("/grub.cfg") for path in lab.start_files)
    assert [item for item in found["kernel_cmdline"]["differing"] if item["key"] != "root"] == []


def test_off_to_passthrough_also_for_a_kernel_installed_before_the_reboot(lab: Any) -> None:
    if lab.flavour == "amdvi":
        changed(lab, state="disabled")
        lab.reboot()
    assert lab.group_types() == set()
    changed(lab, mode="passthrough")
    lab.shell(INSTALL, limit=300)
    assert lab.module("iommu", mode="passthrough")["changed"] is False
    lab.reboot()
    assert "iommu=pt" in lab.words()
    assert lab.group_types() == {"identity"}
    proof = lab.module("iommu", mode="passthrough", prove=True)
    assert (proof["failed"], proof["changed"], proof["reboot_required"]) == (False, False, False)
    lab.shell(REMOVE, limit=300)
    assert lab.module("iommu", mode="passthrough")["changed"] is False


def test_each_device_is_judged_as_the_kernel_does(lab: Any) -> None:
    """Both igb ports and the NVMe controller are alone in their groups; the chipset's functions share one."""
    found = {item["address"]: item for item in lab.module("iommu_info")["devices"]}
    for address in lab.shell("for d in /sys/bus/pci/drivers/igb/0*; do basename $d; done").split():
        assert found[address]["assignable"], found[address]
        assert found[address]["members"] == lab.shell(f"ls /sys/bus/pci/devices/{address}/iommu_group/devices").split()
    shared = lab.shell("basename $(ls -d /sys/bus/pci/drivers/ahci/0*)")
    assert not found[shared]["assignable"] and "also holds" in found[shared]["reason"]


def test_passthrough_to_translated(lab: Any) -> None:
    changed(lab, mode="translated")
    lab.reboot()
    assert "iommu=pt" not in lab.words()
    assert lab.group_types() <= {"DMA", "DMA-FQ"} and lab.group_types()
    assert not lab.module("iommu", mode="translated", prove=True)["failed"]


BAD = [
    ({"present": ["a\nb"]}, "line break"),
    ({"present": ['a="b']}, "unbalanced quote"),
    ({"present": ["=b"]}, "no key"),
    ({"present": ["quiet=1"]}, "takes none"),
    ({"present": ["a=1"], "absent": ["a"]}, "present and absent at once"),
    ({"present": ["pcie_acs_override=downstream"]}, "allow: [group]"),
]


def test_bad_input_changes_nothing(lab: Any) -> None:
    before = lab.boot_files()
    for wish, said in BAD:
        result = lab.module("kernel_cmdline", **wish)
        assert result["failed"] and said in result["msg"], result
    point = "/boot/efi" if lab.flavour in ("systemd-boot", "uki") else ""
    if point:
        lab.shell(f"mount -o remount,ro {point}")
        try:
            result = lab.module("kernel_cmdline", present=["isolcpus=1"])
        finally:
            lab.shell(f"mount -o remount,rw {point}")
        assert result["failed"] and "read-only" in result["msg"], result
        free = "/boot/efi/filler"
        # To the last cluster: a page that does not fit whole leaves some.
        lab.shell(f"for n in 64k 1k; do dd if=/dev/zero bs=$n 2>/dev/null >>{free}; done; sync; true", limit=300)
        try:
            result = lab.module("kernel_cmdline", present=["isolcpus=1"])
        finally:
            lab.shell(f"rm {free}; sync")
        assert result["failed"], result
    else:
        broken = "/etc/default/grub.d/50-theirs.cfg"
        lab.shell(f"mkdir -p /etc/default/grub.d; echo 'X=\"unterminated' > {broken}")
        try:
            result = lab.module("kernel_cmdline", present=["isolcpus=1"])
        finally:
            lab.shell(f"rm {broken}")
        assert result["failed"] and broken in result["msg"], result
    assert lab.boot_files() == before


def test_and_off_with_the_same_bytes(lab: Any) -> None:
    done = lab.module("iommu", state="absent")
    assert not done["failed"] and done["changed"]
    assert lab.module("iommu", state="absent")["changed"] is False
    assert lab.boot_files() == lab.start_files
    lab.reboot()
    assert sorted(lab.words()) == lab.start_words
    assert bool(lab.group_types()) is (lab.flavour == "amdvi")
