# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real guests under a real libvirt, nested in the lab host: every model of device is at work, and all is given back.

The guest is one file, made on the host by lab/tiny/make; it says on its console what it has and whom it reaches. One test,
one life of the guests: starting them is what costs time here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TINY = Path(__file__).resolve().parents[2] / "lab" / "tiny" / "make"
IMAGES = "/var/lib/libvirt/images"
LOG = "/var/log/libvirt/qemu"

#: Which MAC has which address; 'dhcp' is libvirt's own network.
ADDRESSES = {
    "virtio": "10.9.1.2/24",
    "emulated": "dhcp",
    "macvtap": "10.9.3.2/24",
    "sriov": "10.9.4.2/24",
    # It has an address of the other VLAN's too: nothing but the VLAN keeps the other guest from it.
    "tagged": "10.9.5.2/24,10.9.8.2/24",
    "same": "10.9.5.3/24",
    "other": "10.9.8.3/24",
    "again": "10.9.4.9/24",
}
MACS = {key: f"52:54:00:09:00:{number:02x}" for number, key in enumerate(ADDRESSES, 1)}

#: The guest, and a disk that takes SCSI commands.
KIT = """
set -e
sh /run/iovirt-lab/make @IMAGES@/tiny.img
install -m 644 /boot/vmlinuz-$(uname -r) @IMAGES@/tiny-kernel; chmod 644 @IMAGES@/tiny.img
truncate -s 16M @IMAGES@/tiny-sata.raw; truncate -s 24M @IMAGES@/tiny-scsi.raw; truncate -s 32M @IMAGES@/tiny-virtio.raw
truncate -s 8M @IMAGES@/tiny-defined.raw
"""
#: What the first port of igb is joined to by the lab's hub: the second one, in a namespace, without VLAN and with two.
NETWORK = """
set -e
systemctl start virtlogd.socket libvirtd.socket
virsh net-list --name | grep -qx default || virsh net-start default >/dev/null
[ -e /sys/class/net/br-guests ] || ip link add br-guests type bridge
ip addr replace 10.9.1.1/24 dev br-guests; ip link set br-guests up
ip link set @NEAR@ up; ip link set @FAR@ up
ip netns del far 2>/dev/null || true
ip netns add far
ip link add link @FAR@ name far0 type macvlan mode bridge; ip link set far0 netns far
ip -n far addr add 10.9.3.1/24 dev far0; ip -n far addr add 10.9.4.1/24 dev far0; ip -n far link set far0 up
for v in 100/10.9.5.1 200/10.9.8.1; do
    # The kernel takes a namespace apart in its own time, and the VLAN with it.
    for i in $(seq 100); do ip link add link @FAR@ name far.${v%/*} type vlan id ${v%/*} 2>/dev/null && break; sleep 0.2; done
    ip link set far.${v%/*} netns far
    ip -n far addr add ${v#*/}/24 dev far.${v%/*}; ip -n far link set far.${v%/*} up
done
"""
TEAR_DOWN = """
for g in $(virsh list --name); do virsh destroy $g; done
for g in $(virsh list --all --name); do virsh undefine --nvram $g; done
rm -f /etc/iovirt/guests.json @IMAGES@/tiny* @IMAGES@/*-seed.iso @LOG@/every* @LOG@/beside* @LOG@/whole* @LOG@/again*
ip netns del far; ip link del br-guests; virsh net-destroy default
modprobe -r scsi_debug
systemctl disable --quiet libvirtd.service
systemctl disable --quiet virtlogd.socket virtlogd-admin.socket virtlockd.socket virtlockd-admin.socket
systemctl stop libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd.service virtlogd.socket virtlogd-admin.socket virtlogd.service \
    virtlockd.socket virtlockd-admin.socket
sleep 1; true
"""


def of_host(lab: Any, script: str) -> str:
    for word, value in (("@IMAGES@", IMAGES), ("@LOG@", LOG), ("@NEAR@", lab.near), ("@FAR@", lab.far)):
        script = script.replace(word, value)
    text: str = lab.shell(script, limit=240)
    return text


@pytest.fixture(scope="module")
def kit(lab: Any, wishes: dict[str, Any]) -> Iterator[Any]:
    """The host as it is meant to be, with what guests are made of."""
    assert not lab.module("devices", **wishes)["failed"]
    ports = lab.shell("basename -a $(ls -d /sys/bus/pci/drivers/igb/*:*/net/*)").split()
    lab.near, lab.far = ports[:2]
    was = lab.shell(f"cat /sys/class/net/{lab.near}/flags /sys/class/net/{lab.far}/flags").split()
    lab.shell(f"mkdir -p /run/iovirt-lab; cat >/run/iovirt-lab/make <<'END_OF_PROGRAM'\n{TINY.read_text()}END_OF_PROGRAM\n")
    before = lab.drivers()
    try:
        of_host(lab, KIT)
        yield lab
    finally:
        of_host(lab, TEAR_DOWN)
        for port, flags in zip((lab.near, lab.far), was):
            if not int(flags, 0) & 1:
                lab.shell(f"ip link set {port} down")
        result = lab.module("devices", **wishes)
        assert not result["failed"], result
    assert lab.drivers() == before


@pytest.fixture
def far(kit: Any) -> Any:
    """libvirt, a bridge, and somebody at the far end of the cable. Made anew for each test: another one may have rebooted the host or
    given the far port away."""
    of_host(kit, NETWORK)
    return kit


def boot(*pings: str, **addresses: str) -> dict[str, str]:
    words = [f"tiny.{mac}={address}" for mac, address in addresses.items()] + ([f"tiny.ping={','.join(pings)}"] if pings else [])
    cmdline = f"console=ttyS0 quiet panic=-1 no_timer_check {' '.join(words)}"
    return {"kernel": f"{IMAGES}/tiny-kernel", "initrd": f"{IMAGES}/tiny.img", "cmdline": cmdline}


def guest(name: str, *nics: dict[str, Any], ping: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    addresses = {nic["mac"]: ADDRESSES[key] for nic in nics for key in MACS if MACS[key] == nic.get("mac")}
    return {
        "name": name,
        "vcpus": 1,
        "memory": "256M",
        "boot": boot(*ping, **addresses),
        "display": {"model": "none"},
        "console_log": f"{LOG}/{name}-console.log",
        "network": list(nics),
        **more,
    }


def nic(model: str, key: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "mac": MACS[key], "rom": False, **more}


def vf(key: str, **more: Any) -> dict[str, Any]:
    return nic("sriov", key, pool="dataplane", **more)


def every(lab: Any, **more: Any) -> dict[str, Any]:
    """A guest with one of each model of network device that is not a whole function."""
    return guest(
        "every",
        nic("virtio", "virtio", bridge="br-guests", vhost=True, queues=2),
        nic("emulated", "emulated", nat="default"),
        nic("macvtap", "macvtap", parent=lab.near),
        vf("sriov"),
        vf("tagged", vlan=100),
        **{"vcpus_max": 2, **more},
    )


def beside(lun: str) -> dict[str, Any]:
    """One with every kind of disk, in huge pages, and with two VFs: one in the VLAN of the guest above, one in another."""
    disks = [
        {"model": "virtio", "path": f"{IMAGES}/tiny-virtio.raw", "format": "raw", "serial": "of-virtio"},
        {"model": "sata", "path": f"{IMAGES}/tiny-sata.raw", "format": "raw"},
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
        balloon={"free_page_reporting": True},
        cpu={"kvmclock": True, "pv_eoi": True, "pinning": [{"vcpus": "0", "cpus": "1"}]},
        seed={"user_data": "#cloud-config\n", "meta_data": "instance-id: beside\n"},
    )


def defined() -> list[dict[str, Any]]:
    """The rest of the models. They are defined and not started: software emulation within emulation takes minutes."""
    ide = [{"model": "ide", "path": f"{IMAGES}/tiny-defined.raw", "format": "raw"}]
    network = [{"model": "virtio", "nat": "default"}, {"model": "emulated", "bridge": "br-guests", "device": "e1000"}]
    one = {"name": "emulated-machine", "state": "present", "machine": "pc", "memory": "128M", "network": network, "disks": ide}
    return [{**one, "cpu": {"accel": "tcg"}}, {"name": "windows", "state": "present", "memory": "128M", "cpu": {"hyperv": True, "nested": True}}]


def started(lab: Any, name: str, limit: float = 400) -> dict[str, list[str]]:
    """Wait until the guest is up; what it said, by the first word of each line."""
    log = f"{LOG}/{name}-console.log"
    lab.shell(f"for i in $(seq {limit:.0f}); do grep -q 'tiny: up' {log} 2>/dev/null && exit 0; sleep 1; done; tail {log}; exit 1", limit=limit + 200)
    return says(lab, name)


def says(lab: Any, name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in lab.shell(f"tr -d '\\r' <{LOG}/{name}-console.log").splitlines():
        words = line.split()
        if words[:1] == ["tiny:"] and len(words) > 1:
            found.setdefault(words[1], []).append(" ".join(words[2:]))
    return found


def nics(said: dict[str, list[str]]) -> dict[str, str]:
    """MAC -> driver, as the guest says."""
    return {line.split()[0]: line.split()[1] for line in said["nic"]}


def answers(lab: Any, address: str, space: str = "") -> bool:
    inside = f"ip netns exec {space} " if space else ""
    return lab.shell(f"{inside}ping -c 3 -i 0.5 -w 8 {address} >/dev/null && echo yes || echo no") == "yes"


def state_of_vfs(lab: Any) -> str:
    """By lspci, sysfs and ip: driver, override, MAC and VLAN of the VFs of igb that are in the pool. Another one may have a driver of the
    host, which makes up a MAC at each boot."""
    text: str = lab.shell(
        f"for p in {lab.near} {lab.far}; do ip link show $p | grep -o 'vf [01] .*'; "
        "for v in /sys/class/net/$p/device/virtfn*; do a=$(basename $(readlink $v)); "
        "echo $a $(cat $v/driver_override) $(lspci -ks $a | sed -n 's/.*in use: //p'); done; done"
    )
    return text


def succeeded(lab: Any, *guests: dict[str, Any], **more: Any) -> dict[str, Any]:
    result: dict[str, Any] = lab.module("guest", guests=list(guests), **more)
    assert not result["failed"], result
    return result


def quiet(lab: Any, *guests: dict[str, Any]) -> None:
    again = succeeded(lab, *guests)
    assert (again["changed"], again["actions"], again["restart_required"]) == (False, [], False), again


def given_back(lab: Any, before: str, wishes: dict[str, Any]) -> None:
    """Out of the list: the guests go by their power button, and the VFs are as they were."""
    succeeded(lab, exclusive=True, shutdown_timeout=90, power_off=True)
    assert lab.shell("virsh list --all --name") == ""
    assert "guests.json" not in lab.shell("ls /etc/iovirt").split()
    assert state_of_vfs(lab) == before


#: While the module starts the second guest.
KILLER = (
    "systemd-run --quiet --collect --unit=iovirt-lab-killer sh -c "
    "'until [ -e /etc/libvirt/qemu/beside.xml ]; do sleep 0.2; done; sleep 2; systemctl kill -s KILL libvirtd.service'"
)


def test_every_model_in_one_list_is_at_work_and_all_is_given_back(far: Any, wishes: dict[str, Any]) -> None:
    lab = far
    before = state_of_vfs(lab)
    lab.shell("modprobe scsi_debug dev_size_mb=8; echo 136 >/proc/sys/vm/nr_hugepages; udevadm settle")
    lun = "/dev/" + lab.shell("lsblk -SnoNAME,MODEL | awk '$2 == \"scsi_debug\" {print $1}'")
    every_one = [every(lab), beside(lun), *defined()]
    announced = lab.module("guest", check=True, guests=every_one)
    assert not announced["failed"] and announced["changed"] is True, announced
    assert lab.shell("virsh list --all --name") == ""

    # The daemon is killed in the middle. What was done by then is there, and the next run does the rest.
    lab.shell(KILLER)
    done = lab.module("guest", guests=every_one)
    assert done["actions"] == announced["actions"]
    assert set(done["failures"]) <= {"beside"}, done
    lab.shell("! systemctl is-active -q iovirt-lab-killer")
    assert "every" in lab.shell("virsh list --name").split()
    succeeded(lab, *every_one)
    quiet(lab, *every_one)
    assert sorted(lab.shell("virsh list --name").split()) == ["beside", "every"]
    assert sorted(lab.shell("virsh list --all --name").split()) == ["beside", "emulated-machine", "every", "windows"]

    said = started(lab, "every")
    wanted = {"virtio": "virtio_net", "emulated": "e1000e", "macvtap": "virtio_net", "sriov": "igbvf", "tagged": "igbvf"}
    assert nics(said) == {MACS[key]: driver for key, driver in wanted.items()}
    lease = next(line.split()[2].partition("/")[0] for line in said["nic"] if line.startswith(MACS["emulated"]))
    assert answers(lab, "10.9.1.2")
    assert answers(lab, lease)
    assert answers(lab, "10.9.3.2", "far")
    assert answers(lab, "10.9.4.2", "far")
    # The VLAN is put on by the port: the guest does not see it, and without it nobody gets through.
    assert answers(lab, "10.9.5.2", "far")
    lab.shell("ip -n far link set far.100 down; ip -n far addr add 10.9.5.1/24 dev far0")
    assert not answers(lab, "10.9.5.2", "far")
    lab.shell("ip -n far addr del 10.9.5.1/24 dev far0; ip -n far link set far.100 up; ip -n far addr replace 10.9.5.1/24 dev far.100")

    # Two guests in one VLAN reach each other, in two VLANs they do not, and both VFs of the second one work.
    said = started(lab, "beside")
    assert nics(said) == {MACS["same"]: "igbvf", MACS["other"]: "igbvf"}
    sectors = sorted(int(line.split()[1]) // 2048 for line in said["disk"] if line.startswith(("sd", "vd")))
    assert sectors == [8, 16, 24, 32], said["disk"]
    assert any(line.endswith(" of-virtio") for line in said["disk"]), said["disk"]
    assert answers(lab, "10.9.8.3", "far")
    for _round in range(30):
        reached = dict(line.split() for line in says(lab, "beside").get("ping", ()))
        if reached.get("10.9.5.2") == "answered":
            break
        time.sleep(2)
    assert reached == {"10.9.5.2": "answered", "10.9.8.2": "silent"}

    # Nothing is left to do for the ports whose VFs they have.
    assert "vlan 100" in lab.shell(f"ip link show {lab.near} | grep {MACS['tagged']}")
    devices = lab.module("devices", **wishes)
    assert devices["changed"] is False and not devices["failed"], devices

    # No VF is given out twice, and the holders are named.
    late = {"name": "late", "memory": "128M", "network": [{"model": "sriov", "pool": "dataplane"}]}
    result = lab.module("guest", check=True, guests=[*every_one, late])
    assert result["failed"] and "the pool dataplane has no free VF; they are held by" in result["msg"], result
    assert ": every" in result["msg"] and ": beside" in result["msg"], result
    status = lab.shell("iovirt status || true")
    assert "every" in status and "beside" in status and "running" in status, status

    changes_while_it_runs(lab, every(lab))
    given_back(lab, before, wishes)
    assert lab.module("devices", **wishes)["changed"] is False
    lab.shell("echo 0 >/proc/sys/vm/nr_hugepages; modprobe -r scsi_debug")


def changes_while_it_runs(lab: Any, wish: dict[str, Any]) -> None:
    """A processor more, a network device less. What waits for its next start is said, and what a hand has edited is not overwritten."""
    fewer = {**wish, "vcpus": 2, "network": [item for item in wish["network"] if item["model"] != "emulated"]}
    result = succeeded(lab, fewer)
    assert result["restart_required"] is False, result
    assert lab.shell("virsh vcpucount every --live --current") == "2"
    assert MACS["emulated"] not in lab.shell("virsh domiflist every")
    more = {**fewer, "memory": "320M"}
    assert succeeded(lab, more)["restart_reasons"] == {"every": ["memory is 262144 and not 327680"]}

    lab.shell("virsh dumpxml --inactive every | sed 's/<memory .*memory>/<memory>200000<\\/memory>/' >/run/edit.xml; virsh define /run/edit.xml")
    result = lab.module("guest", guests=[more])
    assert result["failed"] and "edited by another hand" in result["msg"] and "memory is 200000 and not 327680" in result["msg"], result
    facts = {item["name"]: item for item in lab.module("guest_info")["facts"]}
    assert "memory is 200000 and not 327680" in facts["every"]["drift"], facts
    succeeded(lab, more, allow=["foreign"])


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
    result = lab.module("guest", check=True, guests=[whole])
    assert result["failed"] and "VFs, which would vanish with its driver" in result["msg"], result
    try:
        lab.shell("ip netns del far")
        bare = [{"match": {"address": [address]}, "state": "absent"} for address in (port, nvme)]
        result = lab.module("sriov", devices=bare)
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
        time.sleep(2)
        assert answers(lab, "10.9.6.2")
        quiet(lab, whole)
        succeeded(lab, {"name": "whole", "state": "absent"}, shutdown_timeout=60, power_off=True)
        lab.shell(f"for i in $(seq 30); do [ -e /sys/bus/pci/devices/{port}/net/{lab.far} ] && exit 0; sleep 1; done; exit 1")
        assert lab.shell(drivers) == before
    finally:
        lab.shell(f"ip addr del 10.9.6.1/24 dev {lab.near}; virsh destroy whole; ip link set {lab.far} up; true")
        result = lab.module("devices", **wishes)
        assert not result["failed"], result


def test_a_guest_comes_up_with_its_vf_after_a_boot(far: Any, wishes: dict[str, Any]) -> None:
    """It was defined and never started: what starts it is libvirt, and by then the replay has made its VF."""
    lab = far
    before = state_of_vfs(lab)
    up = [{**wish, "up": True} if "igb" in wish["match"].get("driver", ()) else wish for wish in wishes["sriov"]]
    result = lab.module("devices", **{**wishes, "sriov": up})
    assert not result["failed"], result
    again = guest("again", vf("again"), state="present", autostart=True)
    succeeded(lab, again)
    lab.shell("systemctl enable --quiet libvirtd.service")
    lab.reboot()
    said = started(lab, "again")
    assert nics(said) == {MACS["again"]: "igbvf"}
    of_host(lab, NETWORK)
    assert answers(lab, "10.9.4.9", "far")
    times = "systemctl show -P {} {}"
    replayed, began = (
        int(lab.shell(times.format(what, unit)))
        for what, unit in (("ExecMainExitTimestampMonotonic", "iovirt-replay.service"), ("ExecMainStartTimestampMonotonic", "libvirtd.service"))
    )
    assert 0 < replayed < began
    quiet(lab, again)
    devices = lab.module("devices", **{**wishes, "sriov": up})
    assert devices["changed"] is False and not devices["failed"], devices
    given_back(lab, before, wishes)
