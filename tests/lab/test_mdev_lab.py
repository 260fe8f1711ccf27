# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mediated devices of mtty and mdpy (samples/vfio-mdev) on a real kernel, over a real reboot.

What came true is asked of sysfs, mdevctl and virsh, and of a guest that has two of them. Each test begins with the same devices, whatever was before it; the
parents are given back at the end.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TINY = Path(__file__).resolve().parents[2] / "lab" / "tiny" / "make"
IMAGES = "/var/lib/libvirt/images"
CONSOLE = "/var/log/libvirt/qemu/shares-console.log"
#: What libvirt needs to be asked by its sockets.
SOCKETS = "virtlogd.socket libvirtd.socket"

A, B, C, FOREIGN = (f"83b8f4f2-509f-382f-3c1e-e6bfe0fa100{n}" for n in (1, 2, 3, 9))
LOAD = "/etc/modules-load.d/iovirt-lab-mdev.conf"
NOTHING = [{"match": {"parent": [name]}, "state": "absent"} for name in ("mtty", "mdpy")]

#: Opens a device as QEMU does, and says so: container, group, device (Documentation/driver-api/vfio.rst).
HOLDER = r"""
import fcntl, os, sys, time
VFIO_GROUP_SET_CONTAINER, VFIO_SET_IOMMU, VFIO_GROUP_GET_DEVICE_FD = 0x3B68, 0x3B66, 0x3B6A
uuid = sys.argv[1]
number = os.path.basename(os.readlink(f"/sys/bus/mdev/devices/{uuid}/iommu_group"))
container, group = os.open("/dev/vfio/vfio", os.O_RDWR), os.open(f"/dev/vfio/{number}", os.O_RDWR)
fcntl.ioctl(group, VFIO_GROUP_SET_CONTAINER, container.to_bytes(4, "little"))
fcntl.ioctl(container, VFIO_SET_IOMMU, 1)
device = fcntl.ioctl(group, VFIO_GROUP_GET_DEVICE_FD, uuid.encode() + b"\0")
open("/run/iovirt-lab-held", "w").write(str(os.getpid()))
time.sleep(600)
"""


@pytest.fixture(scope="module")
def parents(lab: Any) -> Iterator[Any]:
    """A host with both parents, with libvirt, and bare again at the end."""
    lab.shell(f"printf 'mtty\\nmdpy\\nvfio_iommu_type1\\n' >{LOAD}; modprobe -a mtty mdpy vfio_iommu_type1")
    was = lab.shell(f"systemctl is-active {SOCKETS} || true")
    lab.shell(f"systemctl start {SOCKETS}")
    yield lab
    lab.shell("virsh destroy shares; virsh undefine shares; rm -f /etc/iovirt/guests.json; true")
    done = lab.module("mdev", devices=NOTHING)
    assert not done["failed"], done
    assert there(lab) == {}
    assert lab.shell("ls /etc/mdevctl.d/mtty /etc/mdevctl.d/mdpy 2>/dev/null | grep -v : || true") == ""
    lab.shell(f"rm -f {LOAD} {IMAGES}/tiny* {CONSOLE}; modprobe -r mtty mdpy")
    if "inactive" in was:
        lab.shell(f"systemctl stop {SOCKETS} libvirtd.service virtlogd.service libvirtd-ro.socket libvirtd-admin.socket virtlogd-admin.socket")


def on(parent: str = "mtty", type_: str = "mtty-2", **wish: Any) -> dict[str, Any]:
    return {"match": {"parent": [parent]}, "type": type_, **wish}


#: What each test begins with.
WISHES = [on(uuids=[A, B]), on("mdpy", "mdpy-hd", count=1)]


@pytest.fixture
def host(parents: Any) -> Any:
    """The host with the three devices, by the engine that is on it; where there is none, by Ansible."""
    # One of the tests reboots it.
    there_is_one = parents.shell(f"systemctl start {SOCKETS}; [ -e /var/lib/iovirt/engine/current ] && echo yes || true")
    done = parents.apply({"mdev": WISHES}) if there_is_one else parents.module("mdev", devices=WISHES)
    assert not done["failed"], done
    assert set(there(parents)) >= {A, B} and len(there(parents)) == 3
    return parents


def there(lab: Any) -> dict[str, str]:
    """UUID -> 'parent type', as sysfs has it."""
    script = (
        "for d in /sys/bus/mdev/devices/*; do [ -e $d ] && "
        'echo "$(basename $d) $(basename $(dirname $(readlink -f $d))) $(basename $(readlink $d/mdev_type))"; done; true'
    )
    lines = [line.split(" ", 1) for line in lab.shell(script).splitlines()]
    return dict(lines)


def by_mdevctl(lab: Any, *words: str) -> dict[str, str]:
    """The same as mdevctl has it."""
    said = json.loads(lab.shell(f"mdevctl list {' '.join(words)} --dumpjson") or "[]")
    return {
        uuid: f"{parent} {facts['mdev_type']}" for item in said for parent, list_ in item.items() for one in list_ for uuid, facts in one.items()
    }


def by_libvirt(lab: Any) -> set[str]:
    """The UUIDs of active devices, from names such as mdev_83b8f4f2_509f_..._mtty."""
    lines = lab.shell("virsh -q nodedev-list --cap mdev").split()
    return {"-".join(name.split("_")[1:6]) for name in lines if name.startswith("mdev_")}


def holding(lab: Any, uuid: str) -> str:
    """A process that has the device open; its number."""
    lab.shell(f"rm -f /run/iovirt-lab-held; cat >/run/iovirt-lab-holder.py <<'END'\n{HOLDER}END")
    lab.shell(f"systemd-run --unit iovirt-lab-holder python3 /run/iovirt-lab-holder.py {uuid}")
    return str(lab.shell("for i in $(seq 100); do [ -s /run/iovirt-lab-held ] && cat /run/iovirt-lab-held && exit; sleep 0.2; done; exit 1"))


def test_made_quiet_and_the_same_for_everybody(host: Any) -> None:
    assert not host.apply({"mdev": NOTHING})["failed"] and there(host) == {}
    announced = host.module("mdev", check=True, devices=WISHES)
    assert there(host) == {}
    done = host.module("mdev", devices=WISHES)
    assert not done["failed"], done
    assert done["actions"] == announced["actions"]
    found = there(host)
    (counted,) = set(found) - {A, B}
    assert found == {A: "mtty mtty-2", B: "mtty mtty-2", counted: "mdpy mdpy-hd"}
    again = host.module("mdev", devices=WISHES)
    assert again["changed"] is False and again["actions"] == []
    said = host.module("mdev_info")
    told = {m["uuid"]: f"{f['address']} {m['type']}" for f in said["facts"] for m in f["mdevs"] if m["active"]}
    assert told == found == by_mdevctl(host) == by_mdevctl(host, "--defined")
    assert by_libvirt(host) == set(found)
    free = {t["type"]: t["available"] for f in said["facts"] for t in f["types"]}
    types = json.loads(host.shell("mdevctl types --dumpjson"))
    assert free == {
        name: facts["available_instances"] for item in types for list_ in item.values() for one in list_ for name, facts in one.items()
    }
    assert free["mtty-1"] == 20 and free["mtty-2"] == 10 and free["mdpy-hd"] == 3


def test_exhaustion_is_refused_before_anything_is_made(host: Any) -> None:
    before = there(host)
    said = host.apply({"mdev": [on(uuids=[A, B]), on(count=10), on(type_="mtty-1", count=1)]})
    assert "there is no room for 10 of mtty-2, 1 of mtty-1 more" in said["msg"] and "(20 free)" in said["msg"]
    said = host.apply({"mdev": [on(type_="mtty-9", count=1)]})
    assert "it offers no type 'mtty-9'" in said["msg"] and "(10 free)" in said["msg"]
    said = host.apply({"mdev": [on("mdpy", "mdpy-vga", uuids=[A])]})
    assert f"the UUID {A} is of a mtty-2 on mtty" in said["msg"]
    assert there(host) == before
    # To the last: 24 ports, of which four are taken.
    full = host.apply({"mdev": [on(uuids=[A, B]), on(count=9), on(type_="mtty-1", uuids=[C]), on(type_="mtty-1", count=1)]})
    assert not full["failed"], full
    assert host.shell("cat /sys/class/mdev_bus/mtty/mdev_supported_types/mtty-1/available_instances") == "0"
    back = host.apply({"mdev": [on(uuids=[A, B])]})
    assert not back["failed"], back
    assert there(host) == before


def test_one_in_use_is_refused_and_its_neighbour_goes(host: Any) -> None:
    pid = holding(host, A)
    try:
        for wishes in ([*NOTHING[:1]], [on(uuids=[B])], [on(type_="mtty-1", uuids=[A]), on(uuids=[B])]):
            said = host.apply({"mdev": wishes}, allow=("in_use",))
            assert f"process {pid} (python3)" in said["msg"] and A in said["msg"], said
        assert set(there(host)) >= {A, B}
        # The other one can go.
        assert not host.apply({"mdev": [on(uuids=[A])]})["failed"]
        assert B not in there(host)
    finally:
        host.shell("systemctl stop iovirt-lab-holder")
    back = host.apply({"mdev": [on(uuids=[A, B])]})
    assert not back["failed"] and there(host)[B] == "mtty mtty-2"


def test_foreign_devices_stay_and_a_definition_edited_by_hand_is_put_right(host: Any) -> None:
    host.shell(f"mdevctl define -u {FOREIGN} -p mtty -t mtty-1 && mdevctl start -u {FOREIGN}")
    host.shell(f"mdevctl modify -u {A} --manual && mdevctl modify -u {A} --addattr=x --value=1")
    wishes = {"mdev": [on(uuids=[A, B])]}
    announced = host.apply(wishes, check=True)
    done = host.apply(wishes)
    assert [a["action"] for a in done["actions"]] == ["mdev_define"] == [a["action"] for a in announced["actions"]]
    shown = next(d for d in done["diff"] if d["before_header"] == "mtty")
    assert '"autostart": false' in shown["before"] and '"autostart": true' in shown["after"]
    assert json.loads(host.shell(f"cat /etc/mdevctl.d/mtty/{A}")) == {"mdev_type": "mtty-2", "start": "auto", "attrs": []}
    assert there(host)[FOREIGN] == "mtty mtty-1"
    said = host.apply({"mdev": [on(uuids=[FOREIGN, A, B])]})
    assert "which the collection did not make" in said["msg"]
    assert not host.apply({"mdev": NOTHING[:1]})["failed"]
    assert by_mdevctl(host, "--defined")[FOREIGN] == there(host)[FOREIGN] == "mtty mtty-1"
    host.shell(f"mdevctl stop -u {FOREIGN} && mdevctl undefine -u {FOREIGN}")


def test_a_driver_that_registers_again_finds_its_devices(host: Any) -> None:
    # The rules of udev follow what was declared by the engine's copy.
    host.shell("iovirt apply")
    counted = {uuid: what for uuid, what in there(host).items() if what.startswith("mdpy")}
    assert len(counted) == 1
    host.shell("modprobe -r mdpy && modprobe mdpy")
    for _round in range(60):
        if counted.items() <= there(host).items():
            break
        time.sleep(1)
    assert counted.items() <= there(host).items(), host.shell("journalctl -b -u 'iovirt-replay@*' -n 30 --no-pager")


def test_they_are_there_after_a_reboot(host: Any) -> None:
    before = there(host)
    host.reboot()
    assert there(host) == before, host.shell("journalctl -b -u 'iovirt-replay*' -n 40 --no-pager")
    assert by_mdevctl(host) == before
    assert json.loads(host.shell("cat /run/iovirt-replay.json"))["failures"] == {}
    assert host.shell("/usr/local/sbin/iovirt status >/dev/null; echo $?") == "0"
    result = host.module("mdev", devices=WISHES)
    assert result["changed"] is False and result["actions"] == []


def test_given_back_nothing_is_left(host: Any) -> None:
    done = host.module("mdev", devices=NOTHING)
    assert not done["failed"], done
    assert there(host) == by_mdevctl(host) == by_mdevctl(host, "--defined") == {}


# --- A guest that has them -------------------------------------------------------------------------------------------


def a_guest(*mdev: dict[str, Any], **more: Any) -> dict[str, Any]:
    boot = {"kernel": f"{IMAGES}/tiny-kernel", "initrd": f"{IMAGES}/tiny.img", "cmdline": "console=ttyS0 quiet panic=-1 no_timer_check"}
    one = {"name": "shares", "memory": "256M", "boot": boot, "network": [], "console_log": CONSOLE, "display": {"model": "emulated"}}
    return {**one, "mdev": list(mdev), **more}


def cards(lab: Any) -> set[str]:
    """Vendor and device of what the guest has, once it says that it is up."""
    lab.shell(f"for i in $(seq 400); do grep -q 'tiny: up' {CONSOLE} 2>/dev/null && exit; sleep 1; done; tail {CONSOLE}; exit 1", limit=600)
    return set(lab.shell(f"tr -d '\\r' <{CONSOLE} | sed -n 's/^tiny: pci [^ ]* //p'").split())


def test_a_guest_has_a_serial_card_and_a_display(host: Any) -> None:
    lab = host
    (shown,) = set(there(lab)) - {A, B}
    lab.shell(f"mkdir -p /run/iovirt-lab; cat >/run/iovirt-lab/make <<'END_OF_PROGRAM'\n{TINY.read_text()}END_OF_PROGRAM\n")
    lab.shell(f"cd {IMAGES}; sh /run/iovirt-lab/make tiny.img; install -m 644 /boot/vmlinuz-$(uname -r) tiny-kernel; chmod 644 tiny.img", limit=240)
    wish = a_guest({"type": "mtty-2"}, {"type": "mdpy-hd", "display": True})
    announced = lab.module("guest", check=True, guests=[wish])
    done = lab.module("guest", guests=[wish])
    assert not done["failed"], done
    assert done["actions"] == announced["actions"]
    # mtty's card (Netmos' ids) and mdpy's, as the guest sees them (samples/vfio-mdev).
    assert cards(lab) >= {"4348:3253", "1b36:000f"}
    assert f"uuid='{A}'" in lab.shell("virsh dumpxml shares") and "display='on'" in lab.shell("virsh dumpxml shares")
    again = lab.module("guest", guests=[wish])
    assert again["changed"] is False and again["actions"] == [], again
    (facts,) = [item for item in again["guests"] if item["name"] == "shares"]
    assert {m["uuid"]: f"{m['parent']} {m['type']}" for m in facts["mdevs"]} == {A: "mtty mtty-2", shown: "mdpy mdpy-hd"}

    # All see the same, and who has it.
    told = {m["uuid"]: m for fact in lab.module("mdev_info")["facts"] for m in fact["mdevs"]}
    assert set(told) == set(there(lab)) == set(by_mdevctl(lab)) == by_libvirt(lab)
    assert told[B]["holders"] == []
    for uuid in (A, shown):
        assert "the guest shares (libvirt; running)" in told[uuid]["holders"], told[uuid]

    # What it has is not taken, and nothing waits for it; what it has not can go.
    for wishes in (NOTHING[:1], NOTHING[1:], [on(uuids=[B])], [on(type_="mtty-1", uuids=[A]), on(uuids=[B])]):
        said = lab.apply({"mdev": wishes}, allow=("in_use",))
        assert "is in use by the guest shares" in said["msg"], said
    assert lab.shell("ps -eo state,args | grep -c '^D.*mdev' || true") == "0"
    assert not lab.apply({"mdev": [on(uuids=[A]), WISHES[1]]})["failed"]
    assert set(there(lab)) == {A, shown}
    said = lab.module("guest", check=True, guests=[wish, a_guest({"type": "mtty-2"}, name="late", console_log=None)])
    assert f"late: mdev[0]: there is no free mediated device of the type 'mtty-2'; they are held by {A}: shares. mtty has room for 11 more" in said["msg"], said

    gone = lab.module("guest", guests=[{"name": "shares", "state": "absent"}], shutdown_timeout=60, power_off=True)
    assert not gone["failed"] and lab.shell("virsh list --all --name") == "", gone
    assert not lab.apply({"mdev": NOTHING})["failed"]
    assert there(lab) == by_mdevctl(lab, "--defined") == {}
