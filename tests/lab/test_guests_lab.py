# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real guests under a real libvirt, nested in the lab host: every model of device is at work, and all is given back.

One test, one life of the guests: starting them is what costs time here. A guest that is there after a boot of the host is
in test_kvm_lab.py, which reboots.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.iovirt.host.tests.lab import guests_on_host
from ansible_collections.iovirt.host.tests.lab.guests_on_host import (
    FAR,
    IMAGES,
    LOG,
    MACS,
    NEAR,
    boot,
    calls,
    given_back,
    guest,
    nic,
    nics,
    of_host,
    quiet,
    reached,
    says,
    started,
    state_of_vfs,
    succeeded,
    vf,
)


@pytest.fixture(scope="module")
def kit(lab: Any, wishes: dict[str, Any]) -> Iterator[Any]:
    with guests_on_host.kit(lab, wishes) as host:
        yield host


@pytest.fixture
def far(kit: Any) -> Any:
    """libvirt, a bridge, and somebody at the far end of the cable. Made anew for each test: another one may have given the far port away."""
    of_host(kit, NEAR + FAR)
    return kit


TOPOLOGY = {"sockets": 1, "cores": 2, "threads": 1}


def every(lab: Any, **more: Any) -> dict[str, Any]:
    """A guest with one of each model of network device that is not a whole function, on the ports' NUMA node."""
    return guest(
        "every",
        nic("virtio", "virtio", bridge="br-guests", vhost=True, queues=2),
        nic("emulated", "emulated", nat="default"),
        nic("macvtap", "macvtap", parent=lab.near),
        vf("sriov", numa="near"),
        vf("tagged", vlan=100),
        **{"vcpus_max": 2, "numa_node": 0, "ksm": False, "cpu": {"hyperv": True, "nested": True, "topology": TOPOLOGY}, **more},
    )


#: An image that is made of another one, in another format.
URL = "http://127.0.0.1:8099/tiny.raw"


def beside(lun: str, digest: str) -> dict[str, Any]:
    """One with every kind of disk, from a URL, empty, and as it is there; in huge pages, and with two VFs: one in the VLAN of the guest above,
    one in another."""
    disks = [
        {"model": "virtio", "path": f"{IMAGES}/tiny-virtio.qcow2", "source": URL, "checksum": f"sha256:{digest}", "serial": "of-virtio"},
        {"model": "sata", "path": f"{IMAGES}/tiny-sata.qcow2", "size": "16M"},
        {"model": "scsi", "path": f"{IMAGES}/tiny-scsi.raw", "format": "raw"},
        {"model": "lun", "path": lun},
    ]
    return guest(
        "beside",
        vf("same", vlan=100),
        vf("other", vlan=200),
        ping=("10.9.5.2", "10.9.8.2"),
        disks=disks,
        display={"model": "emulated"},
        hugepages="2M",
        locked=True,
        balloon={"free_page_reporting": True},
        cpu={"kvmclock": True, "pv_eoi": True, "pinning": [{"vcpus": "0", "cpus": "1"}]},
        seed={"user_data": "#cloud-config\n", "meta_data": "instance-id: beside\n"},
    )


def in_software() -> dict[str, Any]:
    """Emulation within emulation: all that it runs is the boot sector of its disk (guests_on_host.BOOT_SECTOR), which says that it is up."""
    return {
        "name": "software",
        "machine": "pc",
        "memory": "64M",
        "cpu": {"accel": "tcg"},
        "display": {"model": "none"},
        "console_log": f"{LOG}/software-console.log",
        "network": [{"model": "emulated", "bridge": "br-guests", "device": "e1000", "rom": False}, {"model": "virtio", "nat": "default", "rom": False}],
        "disks": [{"model": "ide", "path": f"{IMAGES}/tiny-ide.raw", "format": "raw"}],
    }


#: While the module starts the second guest.
KILLER = (
    "systemd-run --quiet --collect --unit=iovirt-lab-killer sh -c "
    "'until [ -e /etc/libvirt/qemu/beside.xml ]; do sleep 0.2; done; sleep 2; systemctl kill -s KILL libvirtd.service'"
)


def test_every_model_in_one_list_is_at_work_and_all_is_given_back(far: Any, wishes: dict[str, Any]) -> None:
    lab = far
    before = state_of_vfs(lab)
    lab.shell("modprobe scsi_debug dev_size_mb=8; echo 136 >/proc/sys/vm/nr_hugepages; udevadm settle")
    lun, digest = lab.shell("lsblk -SnoNAME,MODEL | awk '$2 == \"scsi_debug\" {print $1}'; cut -d' ' -f1 /run/iovirt-lab/web/sums").split()
    every_one = [every(lab), beside(f"/dev/{lun}", digest), in_software()]
    announced = lab.module("guest", check=True, guests=[*every_one, wrong_image()])
    assert not announced["failed"] and announced["changed"] is True, announced
    assert lab.shell("virsh list --all --name") == ""

    # The daemon is killed in the middle. What was done by then is there, and the next run does the rest.
    lab.shell(KILLER)
    done = lab.module("guest", guests=[*every_one, wrong_image()])
    assert done["actions"] == announced["actions"]
    assert {"wrong"} <= set(done["failures"]) <= {"beside", "software", "wrong"}, done
    assert f"its checksum is sha256:{digest}" in done["failures"]["wrong"]
    lab.shell("! systemctl is-active -q iovirt-lab-killer")
    assert "every" in lab.shell("virsh list --name").split()
    succeeded(lab, *every_one)
    quiet(lab, *every_one)
    for which in ("", "--all"):
        assert sorted(lab.shell(f"virsh list {which} --name").split()) == ["beside", "every", "software"]
    images(lab)

    said = started(lab, "every")
    wanted = {"virtio": "virtio_net", "emulated": "e1000e", "macvtap": "virtio_net", "sriov": "igbvf", "tagged": "igbvf"}
    assert nics(said) == {MACS[key]: driver for key, driver in wanted.items()}
    # It has the words for Windows, and the kernel of this guest takes KVM's own.
    assert said["cpu"] == ["KVM, svm"], said
    assert lab.shell("tr ',' '\\n' </proc/$(cat /run/libvirt/qemu/every.pid)/cmdline | grep -c -e ^hv-stimer=on -e ^hv-time=on") == "2"
    lease = next(line.split()[2].partition("/")[0] for line in said["nic"] if line.startswith(MACS["emulated"]))
    # The VLAN is put on by the port: the guest does not see it, and without it nobody gets through.
    everybody = {"10.9.1.2", lease, "far/10.9.3.2", "far/10.9.4.2", "far/10.9.5.2"}
    assert reached(lab, *everybody) == everybody
    lab.shell("ip -n far link set far.100 down; ip -n far addr add 10.9.5.1/24 dev far0")
    assert reached(lab, "far/10.9.5.2") == set()
    lab.shell("ip -n far addr del 10.9.5.1/24 dev far0; ip -n far link set far.100 up; ip -n far addr replace 10.9.5.1/24 dev far.100")

    started(lab, "software")
    # Two guests in one VLAN reach each other, in two VLANs they do not, and both VFs of the second one work.
    said = started(lab, "beside")
    assert nics(said) == {MACS["same"]: "igbvf", MACS["other"]: "igbvf"}
    sectors = sorted(int(line.split()[1]) // 2048 for line in said["disk"] if line.startswith(("sd", "vd")))
    assert sectors == [8, 16, 24, 32], said["disk"]
    assert any(line.endswith(" of-virtio") for line in said["disk"]), said["disk"]
    assert reached(lab, "far/10.9.8.3") == {"far/10.9.8.3"}
    for _round in range(60):
        answers = dict(line.split() for line in says(lab, "beside").get("ping", ()))
        # The one that does not answer is waited for in the guest.
        if answers.get("10.9.5.2") == "answered" and len(answers) == 2:
            break
        time.sleep(1)
    assert answers == {"10.9.5.2": "answered", "10.9.8.2": "silent"}

    # Nothing is left to do for the ports whose VFs they have.
    assert "vlan 100" in lab.shell(f"ip link show {lab.near} | grep {MACS['tagged']}")
    devices = lab.apply(wishes)
    assert devices["changed"] is False and not devices["failed"], devices
    status = lab.shell("iovirt status || true")
    assert "every" in status and "beside" in status and "running" in status, status

    vf_of_every = next(word.strip(",") for line in status.splitlines() if line.startswith("every ") for word in line.split() if word.startswith("0000:"))
    what_this_host_cannot_give(lab, every_one, vf_of_every)
    changes_while_it_runs(lab, every(lab))
    given_back(lab, before, wishes)
    assert lab.apply(wishes)["changed"] is False
    lab.shell("echo 0 >/proc/sys/vm/nr_hugepages; modprobe -r scsi_debug")
    lab.shell("systemctl stop libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd.service")
    (down,) = calls(lab, (False, [every(lab)]))
    assert "libvirt does not answer at qemu:///system" in down["refused"] and "nothing was changed" in down["refused"], down


def wrong_image() -> dict[str, Any]:
    disk = {"model": "virtio", "path": f"{IMAGES}/tiny-wrong.qcow2", "source": URL, "checksum": f"sha256:{'0' * 64}"}
    return {"name": "wrong", "state": "present", "memory": "128M", "disks": [disk]}


def images(lab: Any) -> None:
    """Each is as it was declared, nothing is left of the wrong one, and a kernel can read the seed."""
    lab.shell(f"cd {IMAGES}; qemu-img compare -q -U -f raw -F qcow2 /run/iovirt-lab/web/tiny.raw tiny-virtio.qcow2")
    assert '"virtual-size": 16777216' in lab.shell(f"qemu-img info -U --output=json {IMAGES}/tiny-sata.qcow2")
    assert lab.shell(f"ls {IMAGES} | grep -e wrong -e iovirt- || true") == ""
    seed = f"{IMAGES}/beside-seed.iso"
    said = lab.shell(f"blkid -o value -s LABEL {seed}; mount -o loop,ro {seed} /mnt; cat /mnt/user-data /mnt/meta-data; umount /mnt").splitlines()
    assert said == ["cidata", "#cloud-config", "instance-id: beside"]


def what_this_host_cannot_give(lab: Any, every_one: list[dict[str, Any]], vf_of_every: str) -> None:
    """Refused in one go, each with its reason; nothing is changed."""
    management = lab.shell("basename $(readlink -f /sys/class/net/enp0s3/device/..)")
    wrong: dict[str, tuple[dict[str, Any], str]] = {
        "no-bridge": ({"network": [{"model": "virtio", "bridge": "br-none"}]}, "there is no bridge br-none on this host"),
        "too-big": ({"memory": "64G"}, "memory 64G is more than this host has"),
        "no-pages": ({"memory": "1G", "hugepages": "2M"}, "this host has 136 of 2M, 8 of them free, and the guest needs 512"),
        "no-cpu": ({"cpu": {"pinning": [{"vcpus": "0", "cpus": "0,7"}]}}, "this host has no CPU 7 (online: 0-1)"),
        "way-in": ({"network": [{"model": "passthrough", "address": management}]}, "carries the path to the controller"),
        "one-mac": ({"network": [{"model": "virtio", "bridge": "br-guests", "mac": MACS["virtio"]}]}, "the guest every would both have the MAC"),
        "taken": ({"network": [{"model": "sriov", "address": vf_of_every}]}, f"{vf_of_every} is in use by the guest every"),
        "late": ({"network": [{"model": "sriov", "pool": "dataplane"}]}, "the pool dataplane has no free VF; they are held by"),
    }
    guests = [{"name": name, "memory": "128M", **wish} for name, (wish, _says) in wrong.items()]
    (refused,) = calls(lab, (False, [*every_one, *guests]))
    sentences = refused["refused"].splitlines()
    for name, (_wish, says_so) in wrong.items():
        assert any(line.startswith(f"{name}: ") and says_so in line for line in sentences), (name, sentences)
    late = next(line for line in sentences if line.startswith("late: "))
    assert ": every" in late and ": beside" in late, late
    assert len(lab.shell("virsh list --all --name").split()) == 3


def changes_while_it_runs(lab: Any, wish: dict[str, Any]) -> None:
    """A processor more and a network device less, at once; memory waits for its next start, and that is said. What a hand has edited is not
    overwritten."""
    network = [item for item in wish["network"] if item["model"] != "emulated"]
    changed = {**wish, "vcpus": 2, "network": network, "memory": "320M"}
    # Nobody in there obeys its power button, so that its power is cut at once.
    gone = {"name": "software", "state": "absent"}
    done = succeeded(lab, changed, gone, shutdown_timeout=0, power_off=True)
    assert done["restart_reasons"] == {"every": ["memory is 262144 and not 327680"]}
    assert "software" not in lab.shell("virsh list --all --name")
    assert lab.shell("virsh vcpucount every --live --current") == "2"
    assert MACS["emulated"] not in lab.shell("virsh domiflist every")

    lab.shell("virsh dumpxml --inactive every | sed 's/<memory .*memory>/<memory>200000<\\/memory>/' >/run/edit.xml; virsh define /run/edit.xml")
    refused, info, mended = calls(lab, (False, [changed]), (), (False, [changed], ["foreign"]))
    assert "edited by another hand" in refused["refused"] and "memory is 200000 and not 327680" in refused["refused"], refused
    facts = {item["name"]: item for item in info["facts"]}
    assert "memory is 200000 and not 327680" in facts["every"]["drift"], facts
    assert mended["failures"] == {} and mended["changed"] is True, mended


def test_whole_functions_in_a_guest(far: Any, wishes: dict[str, Any]) -> None:
    """A port of igb with the near one at its other end, the NVMe controller, and the second graphics card."""
    lab = far
    port = lab.shell(f"basename $(readlink -f /sys/class/net/{lab.far}/device)")
    nvme = lab.shell("basename $(dirname $(ls -d /sys/bus/pci/drivers/nvme/0*/sriov_totalvfs | head -1))")
    card = lab.shell("lspci -Dn | awk '$2 == \"0380:\" {print $1}'")
    mac = lab.shell(f"cat /sys/class/net/{lab.far}/address")
    serial = lab.shell(f"cat /sys/bus/pci/devices/{nvme}/nvme/nvme*/serial | tr -d ' '")
    drivers = f"for d in {port} {nvme} {card}; do echo $d $(lspci -ks $d | sed -n 's/.*in use: //p') $(cat /sys/bus/pci/devices/$d/driver_override); done"
    whole = guest(
        "whole",
        {"model": "passthrough", "address": port, "rom": False},
        boot=boot(**{mac: "10.9.6.2/24"}),
        disks=[{"model": "nvme", "address": nvme}],
        display={"model": "passthrough", "address": card},
    )
    (refused,) = calls(lab, (False, [whole]))
    assert "VFs, which would vanish with its driver" in refused["refused"], refused
    try:
        lab.shell("ip netns del far")
        bare = [{"match": {"address": [address]}, "state": "absent"} for address in (port, nvme)]
        result = lab.apply({"sriov": bare})
        assert not result["failed"], result
        before = lab.shell(drivers)
        lab.shell(f"ip addr add 10.9.6.1/24 dev {lab.near}")
        succeeded(lab, whole)
        said = started(lab, "whole")
        assert f"{mac} igb 10.9.6.2/24" in said["nic"], said
        assert any(line.endswith("1234:1111") for line in said["pci"]), said
        # A controller of a subsystem has a second, hidden disk for the path (nvme0c0n1).
        disk = next(line for line in said["disk"] if line.startswith("nvme0n1 "))
        assert disk.split()[1] == "524288", said
        assert disk.split()[2] == serial, said
        assert reached(lab, "10.9.6.2") == {"10.9.6.2"}
        (again,) = calls(lab, (False, [whole]))
        assert again["actions"] == [] and again["changed"] is False, again
        succeeded(lab, {"name": "whole", "state": "absent"}, shutdown_timeout=60, power_off=True)
        lab.shell(f"for i in $(seq 30); do [ -e /sys/bus/pci/devices/{port}/net/{lab.far} ] && exit 0; sleep 1; done; exit 1")
        assert lab.shell(drivers) == before
    finally:
        lab.shell(f"ip addr del 10.9.6.1/24 dev {lab.near}; virsh destroy whole; ip link set {lab.far} up; true")
        result = lab.apply(wishes)
        assert not result["failed"], result
