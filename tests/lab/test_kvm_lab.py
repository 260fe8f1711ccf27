# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A KVM host on a real kernel: made, kept over a reboot with a guest that starts with it and has a VF, given back.

What came true is asked of virsh, systemctl, /proc and sysfs. The packages are in the image. Both flavours will do; that with
AMD-Vi has the IOMMU that virt-host-validate expects of its processor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.iovirt.host.tests.lab.guests_on_host import (
    FAR,
    MACS,
    given_back,
    guest,
    kit,
    nics,
    of_host,
    reached,
    started,
    state_of_vfs,
    succeeded,
    vf,
)
from ansible_collections.iovirt.host.tests.lab.guests_on_host import quiet as guest_is_quiet

USER, POOL = "iovirt-lab", "/var/lib/iovirt-lab-pool"
NETWORK = {"name": "iovirt-lab", "mode": "nat", "address": "10.177.0.1/24", "dhcp_start": "10.177.0.10", "dhcp_end": "10.177.0.20"}
WISH = {
    "nested": False,
    "paging": False,
    "hugepages": [{"size": "2M", "count": 16, "numa_node": 1}],
    "ksm": True,
    "daemons": "auto",
    "users": [USER],
    "networks": [NETWORK],
    "pools": [{"name": "iovirt-lab", "path": POOL}],
    "prove": True,
}

#: The same with the processor's own paging.
PAGED = {**WISH, "paging": True}

#: All that the wish may touch, in words. libvirt writes a UUID and a MAC address into a definition that it reads.
STATE = """
cd /sys/module/kvm_amd/parameters && echo nested $(cat nested) npt $(cat npt)
for f in /sys/kernel/mm/hugepages/*/nr_hugepages /sys/kernel/mm/ksm/run; do echo $f $(cat $f); done
for u in libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket virtlogd.socket virtlogd-admin.socket; do
    echo $u $(systemctl is-enabled $u) $(systemctl is-active $u)
done
ls /etc/modprobe.d /etc/tmpfiles.d /etc/iovirt/kvm.json /etc/default/grub.d 2>&1
cat /etc/default/grub.d/zz-iovirt.cfg 2>&1
getent group libvirt
ls /etc/libvirt/qemu/networks /etc/libvirt/qemu/networks/autostart /etc/libvirt/storage /etc/libvirt/storage/autostart /run/libvirt/network 2>&1 | grep xml
grep -o 'linux.*' /boot/grub/grub.cfg
"""


@pytest.fixture(scope="module")
def host(lab: Any) -> Iterator[Any]:
    lab.shell(f"modprobe kvm_amd; id {USER} >/dev/null 2>&1 || useradd {USER}")
    yield lab
    if lab.shell("ls /etc/iovirt/kvm.json 2>/dev/null || true"):
        given = lab.module("kvm", state="absent")
        assert not given["failed"], given
    lab.shell(f"userdel {USER}; rmdir {POOL} 2>/dev/null || true")


def quiet(lab: Any, wish: dict[str, Any]) -> dict[str, Any]:
    again: dict[str, Any] = lab.module("kvm", **wish)
    assert not again["failed"], again
    assert (again["changed"], again["actions"]) == (False, []), again
    return again


def test_what_the_host_says_of_itself_is_what_others_say(host: Any) -> None:
    platform = host.module("host_info")["host"]["platform"]
    assert platform["kind"] == platform["machine"] == host.shell("systemd-detect-virt || true")
    techniques = platform["techniques"]
    assert techniques["kvm"]["possible"] and "AMD-V" in techniques["kvm"]["reason"]
    assert techniques["nested"]["possible"] and techniques["sriov"]["possible"]
    info = host.module("kvm_info")["kvm"]
    assert info["proof"] == {"usable": True, "reason": "/dev/kvm made a VM and ran an instruction in it."}
    said = host.shell("virt-host-validate qemu || true").splitlines()
    assert [line["result"] for line in info["validate"]] == [line.rpartition(" : ")[2].split()[0].lower() for line in said]
    found = {line["check"]: line["result"] for line in info["validate"]}
    assert found["hardware virtualization"] == "pass"
    # It looks for the table of the processor's maker.
    assert (found["device assignment IOMMU support"] == "pass") == ("IVRS" in host.shell("ls /sys/firmware/acpi/tables"))


def test_a_kvm_host_is_made_is_there_after_a_boot_with_its_guest_and_is_given_back(host: Any, wishes: dict[str, Any]) -> None:
    with kit(host, wishes):
        before = host.shell(STATE)
        announced = host.module("kvm", check=True, **WISH)
        assert not announced["failed"], announced
        assert host.shell(STATE) == before
        done = host.module("kvm", **WISH)
        assert not done["failed"], done
        assert done["actions"] == announced["actions"]
        assert done["reboot_required"] is False
        as_wished(host, paging="N")
        # In emulation a guest with shadow paging has not come up after minutes: the boot is with the processor's.
        changed = host.module("kvm", **PAGED)
        assert not changed["failed"] and changed["changed"] is True, changed
        as_wished(host)
        # By the role, with the same variables; the packages are in the image.
        variables = {f"kvm_{name}": value for name, value in PAGED.items()}
        assert "changed=0" in host.playbook("iovirt.host.site", {**variables, "kvm_packages": []})

        vfs = state_of_vfs(host)
        ports = [{**wish, "up": True} if "igb" in wish["match"].get("driver", ()) else wish for wish in wishes["sriov"]]
        assert not host.apply({**wishes, "sriov": ports})["failed"]
        # It was defined and never started: what starts it is libvirt, and by then the replay has made its VF.
        again = guest("again", vf("again"), state="present", autostart=True)
        succeeded(host, again)
        host.reboot()
        as_wished(host)
        assert "hugepagesz=2M hugepages=1:16" in host.shell("cat /proc/cmdline")
        assert began(host, "iovirt-replay.service", "Exit") < began(host, "libvirtd.service", "Start")
        assert nics(started(host, "again")) == {MACS["again"]: "igbvf"}
        of_host(host, FAR)
        assert reached(host, "far/10.9.4.9") == {"far/10.9.4.9"}
        quiet(host, PAGED)
        guest_is_quiet(host, again)
        devices = host.apply({**wishes, "sriov": ports})
        assert devices["changed"] is False and not devices["failed"], devices

        refused = host.module("kvm", check=True, state="absent")
        assert refused["failed"] and "guests run (again)" in refused["msg"], refused
        given_back(host, vfs, wishes)
        given = host.module("kvm", state="absent")
        assert not given["failed"], given
        assert host.shell(STATE) == before


def began(host: Any, unit: str, what: str) -> int:
    """Microseconds after the boot."""
    moment = int(host.shell(f"systemctl show -P ExecMain{what}TimestampMonotonic {unit}"))
    assert moment > 0, (unit, what)
    return moment


def as_wished(host: Any, paging: str = "Y") -> None:
    assert host.shell("cat /sys/module/kvm_amd/parameters/{nested,npt}").split() == ["0", paging]
    assert host.shell("cat /sys/devices/system/node/node[01]/hugepages/hugepages-2048kB/nr_hugepages").split() == ["0", "16"]
    assert host.shell("cat /sys/kernel/mm/ksm/run") == "1"
    assert "libvirt" in host.shell(f"id -nG {USER}").split()
    assert NETWORK["name"] in host.shell("virsh net-list --autostart --name").split()
    assert "<range start='10.177.0.10' end='10.177.0.20'/>" in host.shell(f"virsh net-dumpxml {NETWORK['name']}")
    assert NETWORK["address"] in host.shell("ip -4 -br addr show")
    assert "iovirt-lab" in host.shell("virsh pool-list --autostart --name").split()
    assert f"<path>{POOL}</path>" in host.shell("virsh pool-dumpxml iovirt-lab")
