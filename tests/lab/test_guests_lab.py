# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real guests under a real libvirt, nested in the lab host: every model of network device carries traffic, and all is given back.

The guest is one file, made on the host by lab/tiny/make; it says on its console what it has.
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
MACS = {key: f"52:54:00:09:00:0{number}" for number, key in enumerate(("virtio", "emulated", "macvtap", "sriov", "tagged"), 1)}
ADDRESSES = {"virtio": "10.9.1.2/24", "emulated": "dhcp", "macvtap": "10.9.3.2/24", "sriov": "10.9.4.2/24", "tagged": "10.9.5.2/24"}

#: What the first port of igb is joined to by the lab's hub: the second one, in a namespace, with and without VLAN 100.
SET_UP = """
set -e
mkdir -p /run/iovirt-lab
systemctl start virtlogd.socket libvirtd.socket
sh /run/iovirt-lab/make @IMAGES@/tiny.img
install -m 644 /boot/vmlinuz-$(uname -r) @IMAGES@/tiny-kernel; chmod 644 @IMAGES@/tiny.img
virsh net-start default >/dev/null
ip link add br-guests type bridge; ip addr add 10.9.1.1/24 dev br-guests; ip link set br-guests up
ip link set @NEAR@ up; ip link set @FAR@ up
ip netns add far
ip link add link @FAR@ name far0 type macvlan mode bridge; ip link set far0 netns far
ip -n far addr add 10.9.3.1/24 dev far0; ip -n far addr add 10.9.4.1/24 dev far0; ip -n far link set far0 up
ip link add link @FAR@ name far.100 type vlan id 100; ip link set far.100 netns far
ip -n far addr add 10.9.5.1/24 dev far.100; ip -n far link set far.100 up
"""
TEAR_DOWN = """
for g in $(virsh list --name); do virsh destroy $g; done
for g in $(virsh list --all --name); do virsh undefine --nvram $g; done
rm -f /etc/iovirt/guests.json @IMAGES@/tiny* @LOG@/every* @LOG@/whole*
ip netns del far; ip link del br-guests; virsh net-destroy default
systemctl stop libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd.service virtlogd.socket virtlogd-admin.socket virtlogd.service
sleep 1; true
"""


def of_host(lab: Any, script: str) -> str:
    for word, value in (("@IMAGES@", IMAGES), ("@LOG@", LOG), ("@NEAR@", lab.near), ("@FAR@", lab.far)):
        script = script.replace(word, value)
    text: str = lab.shell(script, limit=240)
    return text


@pytest.fixture(scope="module")
def kit(lab: Any, wishes: dict[str, Any]) -> Iterator[Any]:
    """The host as it is meant to be, with libvirt, a bridge, and somebody at the far end of the cable."""
    assert not lab.module("devices", **wishes)["failed"]
    ports = lab.shell("basename -a $(ls -d /sys/bus/pci/drivers/igb/*:*/net/*)").split()
    lab.near, lab.far = ports[:2]
    was = lab.shell(f"cat /sys/class/net/{lab.near}/flags /sys/class/net/{lab.far}/flags").split()
    lab.shell(f"mkdir -p /run/iovirt-lab; cat >/run/iovirt-lab/make <<'END_OF_PROGRAM'\n{TINY.read_text()}END_OF_PROGRAM\n")
    before = lab.drivers()
    try:
        of_host(lab, SET_UP)
        yield lab
    finally:
        of_host(lab, TEAR_DOWN)
        for port, flags in zip((lab.near, lab.far), was):
            if not int(flags, 0) & 1:
                lab.shell(f"ip link set {port} down")
        result = lab.module("devices", **wishes)
        assert not result["failed"], result
    assert lab.drivers() == before


def boot(**addresses: str) -> dict[str, str]:
    words = " ".join(f"tiny.{mac}={address}" for mac, address in addresses.items())
    return {"kernel": f"{IMAGES}/tiny-kernel", "initrd": f"{IMAGES}/tiny.img", "cmdline": f"console=ttyS0 quiet panic=-1 no_timer_check {words}"}


NETWORK = [
    {"model": "virtio", "bridge": "br-guests", "mac": MACS["virtio"], "rom": False},
    {"model": "emulated", "nat": "default", "mac": MACS["emulated"], "rom": False},
    {"model": "macvtap", "parent": "@NEAR@", "mac": MACS["macvtap"], "rom": False},
    {"model": "sriov", "pool": "dataplane", "mac": MACS["sriov"], "rom": False},
    {"model": "sriov", "pool": "dataplane", "mac": MACS["tagged"], "vlan": 100, "rom": False},
]


def every(lab: Any, **more: Any) -> dict[str, Any]:
    """A guest with one of each model."""
    network = [{key: lab.near if value == "@NEAR@" else value for key, value in item.items()} for item in NETWORK]
    return {
        "name": "every",
        "vcpus": 1,
        "vcpus_max": 2,
        "memory": "256M",
        "boot": boot(**{MACS[key]: address for key, address in ADDRESSES.items()}),
        "display": {"model": "none"},
        "console_log": f"{LOG}/every-console.log",
        "network": network,
        **more,
    }


def started(lab: Any, name: str, limit: float = 400) -> dict[str, list[str]]:
    """Wait until the guest is up; what it said, by the first word of each line."""
    log = f"{LOG}/{name}-console.log"
    lab.shell(f"for i in $(seq {limit:.0f}); do grep -q 'tiny: up' {log} 2>/dev/null && exit 0; sleep 1; done; tail {log}; exit 1", limit=limit + 200)
    found: dict[str, list[str]] = {}
    for line in lab.shell(f"tr -d '\\r' <{log}").splitlines():
        words = line.split()
        if words[:1] == ["tiny:"]:
            found.setdefault(words[1], []).append(" ".join(words[2:]))
    return found


def answers(lab: Any, address: str, space: str = "") -> bool:
    inside = f"ip netns exec {space} " if space else ""
    return lab.shell(f"{inside}ping -c 3 -i 0.5 -w 8 {address} >/dev/null && echo yes || echo no") == "yes"


def state_of_vfs(lab: Any) -> str:
    """By lspci, sysfs and ip: driver, override, MAC and VLAN of the first port's VFs."""
    text: str = lab.shell(
        f"ip link show {lab.near} | grep -o 'vf .*'; for v in /sys/class/net/{lab.near}/device/virtfn*; do a=$(basename $(readlink $v)); "
        "echo $a $(cat $v/driver_override) $(lspci -ks $a | sed -n 's/.*in use: //p'); done"
    )
    return text


def test_every_model_carries_traffic_and_all_is_given_back(kit: Any, wishes: dict[str, Any]) -> None:
    lab = kit
    before = state_of_vfs(lab)
    announced = lab.module("guest", check=True, guests=[every(lab)])
    assert not announced["failed"] and announced["changed"] is True, announced
    assert lab.shell("virsh list --all --name") == ""
    done = lab.module("guest", guests=[every(lab)])
    assert not done["failed"], done
    assert done["actions"] == announced["actions"]

    said = started(lab, "every")
    drivers = {line.split()[0]: line.split()[1] for line in said["nic"]}
    wanted = {"virtio": "virtio_net", "emulated": "e1000e", "macvtap": "virtio_net", "sriov": "igbvf", "tagged": "igbvf"}
    assert drivers == {MACS[key]: driver for key, driver in wanted.items()}
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

    # Nothing is left to do, neither for the guest nor for the ports whose VFs it has.
    again = lab.module("guest", guests=[every(lab)])
    assert again["changed"] is False and again["actions"] == [] and again["restart_required"] is False, again
    assert "vlan 100" in lab.shell(f"ip link show {lab.near} | grep {MACS['tagged']}")
    devices = lab.module("devices", **wishes)
    assert devices["changed"] is False and not devices["failed"], devices

    # The daemon dies: the guest lives, and the next run finds all as it is.
    lab.shell("systemctl kill -s KILL libvirtd.service; sleep 2")
    again = lab.module("guest", guests=[every(lab)])
    assert again["changed"] is False, again

    # No VF is given out twice, and the holders are named.
    more = [{"name": f"more{n}", "memory": "128M", "network": [{"model": "sriov", "pool": "dataplane"}]} for n in range(3)]
    result = lab.module("guest", check=True, guests=[every(lab), *more])
    assert result["failed"] and "the pool dataplane has no free VF; they are held by" in result["msg"] and ": every" in result["msg"], result

    # While it runs: a processor more, a network device less. What waits for its next start is said.
    fewer = every(lab, vcpus=2)
    fewer["network"] = [item for item in fewer["network"] if item["model"] != "emulated"]
    result = lab.module("guest", guests=[fewer])
    assert not result["failed"] and result["restart_required"] is False, result
    assert lab.shell("virsh vcpucount every --live --current") == "2"
    assert MACS["emulated"] not in lab.shell("virsh domiflist every")
    result = lab.module("guest", guests=[{**fewer, "memory": "320M"}])
    assert result["restart_reasons"] == {"every": ["memory is 262144 and not 327680"]}, result

    # An edit by hand is shown and stays, until it is named.
    lab.shell("virsh dumpxml --inactive every | sed 's/<memory .*memory>/<memory>200000<\\/memory>/' >/run/edit.xml; virsh define /run/edit.xml")
    result = lab.module("guest", guests=[{**fewer, "memory": "320M"}])
    assert result["failed"] and "edited by another hand" in result["msg"] and "memory is 200000 and not 327680" in result["msg"], result
    facts = lab.module("guest_info")["facts"]
    assert "memory is 200000 and not 327680" in facts[0]["drift"], facts
    assert not lab.module("guest", guests=[{**fewer, "memory": "320M"}], allow=["foreign"])["failed"]

    # Out of the list: the guest goes by its power button, and the VFs are as they were.
    result = lab.module("guest", guests=[], exclusive=True, shutdown_timeout=90, power_off=True)
    assert not result["failed"], result
    assert lab.shell("virsh list --all --name") == ""
    assert lab.shell("ls /etc/iovirt").split() == ["sriov.json", "vfio.json"]
    assert state_of_vfs(lab) == before
    assert lab.module("devices", **wishes)["changed"] is False


def test_a_whole_port_in_a_guest(kit: Any, wishes: dict[str, Any]) -> None:
    """The far port's function goes into a guest, and the near one is at the other end."""
    lab = kit
    pf = lab.shell(f"basename $(readlink -f /sys/class/net/{lab.far}/device)")
    mac = lab.shell(f"cat /sys/class/net/{lab.far}/address")
    whole = {
        "name": "whole",
        "memory": "256M",
        "boot": boot(**{mac: "10.9.6.2/24"}),
        "display": {"model": "none"},
        "console_log": f"{LOG}/whole-console.log",
        "network": [{"model": "passthrough", "address": pf, "rom": False}],
    }
    result = lab.module("guest", check=True, guests=[whole])
    assert result["failed"] and "VFs, which would vanish with its driver" in result["msg"], result
    lab.module("sriov", devices=[{"match": {"address": [pf]}, "state": "absent"}])
    try:
        lab.shell(f"ip netns del far; ip link set {lab.far} up; ip addr add 10.9.6.1/24 dev {lab.near}")
        assert not lab.module("guest", guests=[whole])["failed"]
        said = started(lab, "whole")
        assert f"{mac} igb 10.9.6.2/24" in said["nic"], said
        time.sleep(2)
        assert answers(lab, "10.9.6.2")
        result = lab.module("guest", guests=[{"name": "whole", "state": "absent"}], shutdown_timeout=60, power_off=True)
        assert not result["failed"], result
        lab.shell(f"for i in $(seq 30); do [ -e /sys/bus/pci/devices/{pf}/net/{lab.far} ] && exit 0; sleep 1; done; exit 1")
    finally:
        lab.shell(f"ip addr del 10.9.6.1/24 dev {lab.near}; ip netns add far; ip link set {lab.far} up; true")
