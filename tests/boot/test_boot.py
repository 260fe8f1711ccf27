# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The IOMMU from off to passthrough, to translated, and to off again, on real boot loaders and with real reboots.

What came true is asked of /proc/cmdline and /sys/kernel/iommu_groups, never of our own modules. The tests of a flavour
build on each other, in this order: a boot takes a minute.
"""

from __future__ import annotations

from typing import Any

import pytest

LOADERS = {
    "grub-bios": "grub",
    "grub-uefi": "grub",
    "systemd-boot": "systemd-boot",
    "uki": "uki",
    "bls": "grub-bls",
    "amdvi": "grub",
    "bookworm": "grub",
    "forky": "grub",
}
#: A kernel that is installed after the change and before the reboot: a copy under a newer name, so that it is booted.
NEW_KERNEL = "99.0-lab"
_COPY = f"""set -e
v=$(uname -r)
cp /boot/vmlinuz-$v /boot/vmlinuz-{NEW_KERNEL}
cp /boot/initrd.img-$v /boot/initrd.img-{NEW_KERNEL}
"""
_DELETE = f"set -e\nrm -rf /boot/vmlinuz-{NEW_KERNEL} /boot/initrd.img-{NEW_KERNEL} /boot/efi/*/{NEW_KERNEL}\n"
#: Loader -> how a kernel comes and goes, and what tells which one was booted.
KERNELS = {
    "grub": (f"{_COPY}update-grub", f"{_DELETE}update-grub", "cat /proc/cmdline"),
    "systemd-boot": (
        f"{_COPY}kernel-install add {NEW_KERNEL} /boot/vmlinuz-{NEW_KERNEL}",
        f"kernel-install remove {NEW_KERNEL}\n{_DELETE}",
        "tr -d '\\0' </sys/firmware/efi/efivars/LoaderEntrySelected-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f",
    ),
    # As Fedora's package of a kernel does it where grubby is asked: the default entry is copied.
    "grub-bls": (
        f"{_COPY}grubby --add-kernel=/boot/vmlinuz-{NEW_KERNEL} --initrd=/boot/initrd.img-{NEW_KERNEL} --copy-default --title=new",
        f"grubby --remove-kernel=/boot/vmlinuz-{NEW_KERNEL}\n{_DELETE}",
        "cat /proc/cmdline",
    ),
}
KERNELS["uki"] = KERNELS["systemd-boot"]


def changed(lab: Any, **wish: Any) -> None:
    """Announced in check mode, done, and nothing left to do."""
    before = lab.boot_files()
    announced = lab.iommu(check=True, **wish)
    assert lab.boot_files() == before
    done: dict[str, Any] = lab.iommu(**wish)
    assert done["actions"] == announced["actions"]
    assert done["changed"] and done["reboot_required"]
    nothing_left(lab, "iommu", **wish)


def booted_and_proven(lab: Any, **wish: Any) -> None:
    """A second run: it changes nothing, reboots, and proves that all came true. A third one does not boot again."""
    proof = lab.iommu(reboot=True, **wish)
    assert (proof["changed"], proof["actions"], proof["reboot_required"]) == (False, [], False), proof
    again = lab.iommu(**wish)
    assert (again["changed"], again["reboot_required"]) == (False, False), again


def nothing_left(lab: Any, module: str, **wish: Any) -> dict[str, Any]:
    (again,) = lab.engine((module, wish))
    assert (again["failed"], again["changed"], again["actions"]) == (False, False, []), again
    return dict(again)


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
    install, remove, booted = KERNELS[LOADERS[lab.flavour]]
    another = not (lab.quick and lab.flavour == "amdvi")
    if another:
        lab.shell(install, limit=300)
        nothing_left(lab, "iommu", mode="passthrough")
    booted_and_proven(lab, mode="passthrough")
    assert "iommu=pt" in lab.words()
    assert lab.group_types() == {"identity"}
    if another:
        assert NEW_KERNEL in lab.shell(booted)
        lab.shell(remove, limit=300)
        nothing_left(lab, "iommu", mode="passthrough")


def test_each_device_is_judged_as_the_kernel_does(lab: Any) -> None:
    """Both igb ports and the NVMe controller are alone in their groups; the chipset's functions share one."""
    if lab.machine:
        pytest.skip("this machine has none of them (IOVIRT_BOOT_BARE)")
    found = {item["address"]: item for item in lab.module("iommu_info")["devices"]}
    for address in lab.shell("for d in /sys/bus/pci/drivers/igb/0*; do basename $d; done").split():
        assert found[address]["assignable"], found[address]
        assert found[address]["members"] == lab.shell(f"ls /sys/bus/pci/devices/{address}/iommu_group/devices").split()
    shared = lab.shell("basename $(ls -d /sys/bus/pci/drivers/ahci/0*)")
    assert not found[shared]["assignable"] and "also holds" in found[shared]["reason"]


def test_passthrough_to_translated(lab: Any) -> None:
    if lab.quick:
        pytest.skip("not in a slice")
    changed(lab, mode="translated")
    # On the way, a parameter with blanks: it has to come through every tool and loader in one piece.
    (done,) = lab.engine(("kernel_cmdline", {"present": [QUOTED]}))
    assert done["changed"] and done["reboot_required"], done
    booted_and_proven(lab, mode="translated")
    assert "iommu=pt" not in lab.words()
    running = lab.shell("cat /proc/cmdline")
    assert any(form in running for form in FORMS)
    assert "drivers/pci/pci.c" in lab.shell("grep '=p' /proc/dynamic_debug/control || true")
    assert not nothing_left(lab, "kernel_cmdline", present=[QUOTED])["reboot_required"]
    assert not lab.engine(("kernel_cmdline", {"release": ["dyndbg"]}))[0]["failed"]
    assert lab.group_types() <= {"DMA", "DMA-FQ"} and lab.group_types()


QUOTED = 'dyndbg="file drivers/pci/pci.c +p; file drivers/pci/probe.c +p"'
#: As it was written, and as GRUB hands it on.
FORMS = (QUOTED, f'"{QUOTED.replace(chr(34), "")}"')

BAD = [
    ({"present": ["a\nb"]}, "line break"),
    ({"present": ['a="b']}, "unbalanced quote"),
    ({"present": ["=b"]}, "no key"),
    ({"present": ["quiet=1"]}, "takes none"),
    ({"present": ["a=1"], "absent": ["a"]}, "present and absent at once"),
    ({"present": ["pcie_acs_override=downstream"]}, "allow: [group]"),
]


#: Loader -> what is made wrong on the host, how it is put right again, and what the error says.
READ_ONLY = ("mount --bind {0} {0}; mount -o remount,bind,ro {0}", "umount {0}", "read-only")
NIXOS = ("touch /etc/NIXOS", "rm /etc/NIXOS", "NixOS writes them from its own configuration")
#: To the last cluster: a page that does not fit whole leaves some.
FULL = ("for n in 64k 1k; do dd if=/dev/zero bs=$n 2>/dev/null >>{0}/filler; done; sync; true", "rm {0}/filler; sync", "")
FULL_ESP = tuple(word.format("/boot/efi") for word in FULL)
THEIRS = "/etc/default/grub.d/50-theirs.cfg"
SCRIPT = "/etc/grub.d/11_theirs"
WRONG = {
    "grub": [
        [word.format("/boot") for word in READ_ONLY],
        (f"mkdir -p /etc/default/grub.d; echo 'X=\"unterminated' > {THEIRS}", f"rm {THEIRS}", THEIRS),
        (f"printf '#!/bin/sh\\necho broken >&2\\nexit 1\\n' >{SCRIPT}; chmod 755 {SCRIPT}", f"rm {SCRIPT}", "failed: broken"),
        # No entry that starts a kernel is left.
        ("mv /boot/grub/grub.cfg /root; echo >/boot/grub/grub.cfg", "mv /root/grub.cfg /boot/grub", "no entry that starts a kernel"),
    ],
    "grub-bls": [
        [word.format("/boot") for word in READ_ONLY],
        ("mv /usr/sbin/grubby /root; ln -s /bin/false /usr/sbin/grubby", "mv /root/grubby /usr/sbin", "grubby --info=ALL failed"),
    ],
    "systemd-boot": [[word.format("/boot/efi") for word in READ_ONLY], FULL_ESP],
}
WRONG["uki"] = WRONG["systemd-boot"]


def next_words(lab: Any) -> list[str]:
    """Those of the running kernel, but for the quoted parameter: it is released already, and goes with the next boot."""
    text = str(lab.shell("cat /proc/cmdline"))
    for form in FORMS:
        text = text.replace(form, "")
    return text.split()


def test_bad_input_changes_nothing_and_it_boots_with_what_it_had(lab: Any) -> None:
    before, words = lab.boot_files(), next_words(lab)
    for (wish, said), result in zip(BAD, lab.engine(*(("kernel_cmdline", wish) for wish, _said in BAD))):
        assert result["failed"] and said in result["msg"], (wish, result)
    for wrong, right, said in [*WRONG[LOADERS[lab.flavour]], NIXOS]:
        lab.shell(wrong, limit=300)
        try:
            (result,) = lab.engine(("kernel_cmdline", {"present": ["isolcpus=1"]}))
        finally:
            lab.shell(right)
        assert result["failed"] and said in result["msg"], (wrong, result)
        assert lab.boot_files() == before, wrong
    if not lab.quick:
        full = FULL_ESP if FULL_ESP in WRONG[LOADERS[lab.flavour]] else ("true", "true", "")
        lab.shell(full[0], limit=300)
        lab.reboot()
        assert lab.words() == words
        lab.shell(full[1])


def test_a_tool_that_only_complains_is_no_failure(lab: Any) -> None:
    if LOADERS[lab.flavour] != "grub":
        pytest.skip("it is about grub-mkconfig")
    lab.shell(f"mkdir -p /etc/default/grub.d; echo 'echo deprecated >&2' > {THEIRS}")
    try:
        assert not lab.engine(("kernel_cmdline", {"present": [QUOTED]}))[0]["failed"]
    finally:
        lab.shell(f"rm {THEIRS}")
    assert QUOTED in lab.shell("cat /boot/grub/grub.cfg")
    assert not lab.engine(("kernel_cmdline", {"release": ["dyndbg"]}))[0]["failed"]


def test_and_off_with_the_same_bytes(lab: Any) -> None:
    assert lab.iommu(state="absent")["changed"]
    again = lab.iommu(state="absent")
    assert (again["changed"], again["actions"]) == (False, []), again
    assert lab.boot_files() == lab.start_files
    lab.reboot()
    assert sorted(lab.words()) == lab.start_words
    assert bool(lab.group_types()) is (lab.flavour == "amdvi")
