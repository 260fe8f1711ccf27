# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Dangers on a real kernel: each dangerous thing is tried, refused in check mode and in a run with a sentence that names
the user, and leaves the host as it was. And a real guest that is paused while it holds a VF.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent

#: Scene of dangers_on_host.py -> the device, the danger (none: nothing can allow it), and what the sentence must hold besides.
REFUSED: dict[str, tuple[str, str, list[str]]] = {
    "an address": ("VF1", "management", ["its port {A} carries the address 192.0.2.10"]),
    "a default route": ("VF1", "management", ["the default route"]),
    "one leg of a bond": ("VF1", "link_flap", ["its port {A} is one leg of bond9, which carries the address 192.0.2.10"]),
    "the last leg of a bond": ("VF1", "management", ["its port {A} carries the address 192.0.2.10 through bond9"]),
    "a bridge over a vlan": ("VF1", "management", ["192.0.2.10 through br9"]),
    "a macvlan": ("VF1", "management", ["192.0.2.10 through mv9"]),
    "a veth pair behind a bridge": ("VF1", "management", ["192.0.2.10 through vf9"]),
    "open vswitch": ("VF1", "management", ["192.0.2.10 through brex9"]),
    "a named network namespace": ("VF1", "in_use", ["the network namespace iovirt9, as {A}"]),
    "a process in a network namespace": ("VF1", "in_use", ["the network namespace of process ", "(sleep), as {A}"]),
    # Ours, and it shows no MAC address now: it is not even known for the declared one.
    "a port in a network namespace": ("PF1", "", ["nobody can tell", "Bring its network device {P1} back from the network namespace"]),
    "a macvlan of a container": ("VF1", "in_use", ["(sleep) (its macvlan mv9 rides on {A})"]),
    "a macvtap": ("VF1", "in_use", ["a guest (macvtap mt9)"]),
    "a guest on a bridge": ("VF1", "in_use", ["guests or containers behind br9 (tap9)"]),
    "an xdp program": ("VF1", "in_use", ["XDP on {A} (program "]),
    "an rdma process": ("VF1", "in_use", ["process {PID} (python3) (/dev/infiniband/uverbs0, RDMA, is held open)"]),
    "a clock daemon on a running port": ("PF1", "link_flap", ["takes the running link of {P1} (used by process {PID} (python3)"]),
    "a bridge that has the port": ("PF1", "link_flap", ["takes the running link of {P1} (a leg of br9)"]),
    "a process with uio": ("0000:00:09.0", "in_use", ["process {PID} (python3) (/dev/uio0 is held open)"]),
    "the console": ("0000:00:01.0", "console", ["boot_vga"]),
    "a group": ("0000:00:1f.2", "group", ["which the host uses"]),
    "a networkmanager profile": ("PF2", "foreign", ["NetworkManager rules its number of VFs: the profile uplink"]),
    "a link file": ("PF2", "foreign", ["systemd (.link) rules its number of VFs: /etc/systemd/network/10-iovirt9.link"]),
    "netplan": ("PF2", "foreign", ["netplan rules its number of VFs: /etc/netplan/90-iovirt9.yaml"]),
    "driverctl": ("VF1", "foreign", ["driverctl rules its driver: /etc/driverctl.d/pci-{VF1} sets igbvf"]),
}

#: What the guard says of the NVMe controller with this above its disk.
DISKS = {
    "swap": ["the host uses a disk of it: swap.", "allow: [boot_disk]"],
    "a mount over a mapped device": ["mounted on /mnt", "part of dm-0", "allow: [boot_disk]"],
    "a process with the disk": ["(python3) (the disk nvme", "n1 is held open)", "allow: [in_use]"],
}


@pytest.fixture(scope="module")
def tried(wishes: dict[str, Any], lab: Any) -> dict[str, tuple[list[str], list[str]]]:
    """Scene -> answers, differences."""
    result = lab.module("devices", **wishes)
    assert not result["failed"], result
    out = lab.python(HERE / "snapshot_on_host.py", HERE / "dangers_on_host.py", limit=1500)
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("[")]
    return {name: (answers, differing) for name, answers, differing in lines}


@pytest.mark.parametrize("scene", REFUSED)
def test_a_danger_is_refused_and_changes_nothing(tried: dict[str, Any], scene: str) -> None:
    names = json.loads(tried["names"][0][0])
    device, danger, words = REFUSED[scene]
    (checked, run), differing = tried[scene]
    assert checked == run
    assert f"{names.get(device, device)}: " in run, run
    assert f"allow: [{danger}]" in run if danger else "allow" not in run, run
    for word in words:
        assert word.format(**names) in run, run
    assert differing == []


@pytest.mark.parametrize("scene", DISKS)
def test_a_disk_in_use_is_known(tried: dict[str, Any], scene: str) -> None:
    text = "\n".join(tried[scene][0])
    for word in DISKS[scene]:
        assert word in text


def test_what_is_no_danger(tried: dict[str, Any]) -> None:
    assert tried["nothing on the disk"][0] == []
    assert tried["frame buffer"][0] == ["the console is drawn on its frame buffer fb0"]
    assert tried["left behind"][1] == [], "\n".join(tried["left behind"][1])


# --- libvirt's own files ---------------------------------------------------------------------------------------------

DOMAIN = """<domain type='qemu'><name>iovirt9</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64'>hvm</type></os><devices>
<interface type='hostdev' managed='yes'><source><address type='pci' domain='0x0000' bus='0x{bus}' slot='0x{slot}' function='0x{function}'/></source></interface>
</devices></domain>"""
POOL = "<network><name>iovirt9</name><forward mode='hostdev' managed='yes'><pf dev='{port}'/></forward></network>"


def test_a_guest_and_a_network_that_libvirt_defined(wishes: dict[str, Any], lab: Any) -> None:
    """libvirt itself writes the files; its daemon is not needed to read them."""
    first, second = lab.shell("for d in /sys/bus/pci/drivers/igb/0*; do basename $d; done").splitlines()
    vf = lab.shell(f"basename $(readlink /sys/bus/pci/devices/{first}/virtfn1)")
    _domain, bus, rest = vf.split(":")
    slot, function = rest.split(".")
    port = lab.shell(f"ls /sys/bus/pci/devices/{second}/net")
    define = (
        f"cat >/root/d.xml <<'X'\n{DOMAIN.format(bus=bus, slot=slot, function=function)}\nX\n"
        f"cat >/root/n.xml <<'X'\n{POOL.format(port=port)}\nX\n"
        "systemctl start libvirtd && virsh -q define /root/d.xml && virsh -q net-define /root/n.xml"
    )
    stop = "systemctl stop libvirtd libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket virtlogd.socket 2>/dev/null; true"
    try:
        lab.shell(define, limit=300)
        lab.shell(stop, limit=120)
        before = lab.snapshot()
        fewer = [{"match": {"address": [first]}, "vf_count": 1}, {"match": {"address": [second]}, "vf_count": 2}]
        for check in (True, False):
            result = lab.apply({"sriov": fewer}, check)
            assert result["failed"] is True, result
            assert f"{vf}: it is in use by the guest iovirt9 (libvirt; defined, not running)" in result["msg"]
            assert f"{second}: libvirt rules its VFs: its network iovirt9 hands them out" in result["msg"]
        assert lab.snapshot() == before
    finally:
        undo = "systemctl start libvirtd; virsh -q undefine iovirt9; virsh -q net-undefine iovirt9; rm -f /root/[dn].xml; "
        lab.shell(undo + stop, limit=300)
