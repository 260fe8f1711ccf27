# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests of real guests on the lab host have in common: the guest, who is at the far end of the cable, and how it is asked.

The guest is one file, made on the host by lab/tiny/make; it says on its console what it has and whom it reaches.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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

#: Sixteen-bit code that sends each byte behind it to the first serial port, up to a zero, and halts; then what it says, and the mark of a
#: boot sector.
_CODE = bytes.fromhex("fafc31c08ed8be177cbaf803ac84c07403eeebf8f4ebfd")
BOOT_SECTOR = (_CODE + b"tiny: up\r\n").ljust(510, b"\0") + b"\x55\xaa"

#: The guest, its disks, and an image that is had from a URL.
KIT = """
set -e
sh /run/iovirt-lab/make @IMAGES@/tiny.img
install -m 644 /boot/vmlinuz-$(uname -r) @IMAGES@/tiny-kernel; chmod 644 @IMAGES@/tiny.img
truncate -s 24M @IMAGES@/tiny-scsi.raw; printf '@BOOT_SECTOR@' >@IMAGES@/tiny-ide.raw; truncate -s 8M @IMAGES@/tiny-ide.raw
mkdir -p /run/iovirt-lab/web; cd /run/iovirt-lab/web; echo "an image" >tiny.raw; truncate -s 32M tiny.raw; sha256sum tiny.raw >sums
systemctl is-active -q iovirt-lab-web || systemd-run --quiet --collect --unit=iovirt-lab-web python3 -m http.server --bind 127.0.0.1 -d /run/iovirt-lab/web 8099
"""
#: libvirt with its own network, and a bridge.
NEAR = """
set -e
systemctl start virtlogd.socket libvirtd.socket
virsh net-list --name | grep -qx default || virsh net-start default >/dev/null
[ -e /sys/class/net/br-guests ] || ip link add br-guests type bridge
ip addr replace 10.9.1.1/24 dev br-guests; ip link set br-guests up
"""
#: What the first port of igb is joined to by the lab's hub: the second one, in a namespace, without VLAN and with two.
FAR = """
set -e
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
rm -rf /run/iovirt-lab/web; systemctl stop iovirt-lab-web
rm -f /etc/iovirt/guests.json @IMAGES@/tiny* @IMAGES@/*-seed.iso @LOG@/every* @LOG@/beside* @LOG@/software* @LOG@/whole* @LOG@/again*
ip netns del far; ip link del br-guests; virsh net-destroy default
modprobe -r scsi_debug
systemctl disable --quiet libvirtd.service
systemctl disable --quiet virtlogd.socket virtlogd-admin.socket virtlockd.socket virtlockd-admin.socket
systemctl stop libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd.service virtlogd.socket virtlogd-admin.socket virtlogd.service \
    virtlockd.socket virtlockd-admin.socket
sleep 1; true
"""


def of_host(lab: Any, script: str) -> str:
    sector = "".join(f"\\{byte:03o}" for byte in BOOT_SECTOR)
    for word, value in (("@IMAGES@", IMAGES), ("@LOG@", LOG), ("@NEAR@", lab.near), ("@FAR@", lab.far), ("@BOOT_SECTOR@", sector)):
        script = script.replace(word, value)
    text: str = lab.shell(script, limit=240)
    return text


@contextlib.contextmanager
def kit(lab: Any, wishes: dict[str, Any]) -> Iterator[Any]:
    """The host as it is meant to be, with what guests are made of."""
    assert not lab.apply(wishes)["failed"]
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
        result = lab.apply(wishes)
        assert not result["failed"], result
    assert lab.drivers() == before


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


#: The engine's copy on the host, called several times in one process with one connection to libvirt.
CALLS = """python3 -I - <<'END'
import json, os, sys
import libvirt
sys.path.insert(0, "/var/lib/iovirt/engine/current")
from iovirt_engine import engine
from iovirt_engine.errors import EngineError
from iovirt_engine.guests.virt import Libvirt
from iovirt_engine.host import FileSystem, Host, run_command
from iovirt_engine.resources.guest import GuestOptions

connection = Libvirt(libvirt)
host = Host(files=FileSystem("/"), run=run_command, environment=os.environ, libvirt=lambda: connection)

def call(check, guests, allow=()):
    try:
        wishes = [{"state": "running", **guest} for guest in guests]
        return engine.guests(host, wishes, GuestOptions(allow=frozenset(allow)), engine.Call(check=check))
    except EngineError as error:
        return {"refused": str(error)}

print(json.dumps([call(*words) if words else engine.guest_info(host, None) for words in json.loads(sys.argv[1])]))
END"""


def calls(lab: Any, *what: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Calls about guests at the price of one: check mode or not, the declarations, the allowed dangers; or nothing, for what guest_info
    returns."""
    program = CALLS.replace("python3 -I -", f"python3 -I - {shlex.quote(json.dumps(what))}")
    answers: list[dict[str, Any]] = json.loads(lab.shell(program, limit=400))
    return answers


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


def reached(lab: Any, *targets: str) -> set[str]:
    """Those who answer, all asked at the same time. `far/ADDRESS`: from the far end of the cable."""
    asked = []
    for target in targets:
        space, _slash, address = target.rpartition("/")
        inside = f"ip netns exec {space} " if space else ""
        asked.append(f"{{ {inside}ping -c 3 -i 0.5 -w 8 {address} >/dev/null && echo {target}; }} &")
    return set(lab.shell("\n".join([*asked, "wait"])).split())


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
