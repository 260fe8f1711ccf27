# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Early binding over a real reboot, modules that cannot be had, and export, on a real kernel.

What came true is asked of lspci, the kernel log, lsinitramfs and sysfs, never of our own modules alone.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

EDU: dict[str, Any] = {"match": {"vendor": ["1234"], "device": ["11e8"]}}
SCRIPT = "scripts/init-top/00-iovirt-vfio"


def held_by(lab: Any, address: str) -> str:
    return lab.shell(f"lspci -ks {address} | sed -n 's/.*in use: //p'")


def in_image(lab: Any) -> bool:
    return SCRIPT in lab.shell("lsinitramfs /boot/initrd.img-$(uname -r)", limit=600)


def declared_by(lab: Any, resource: str) -> dict[str, Any]:
    """Address -> what the host's own record holds of it."""
    devices: dict[str, Any] = json.loads(lab.shell(f"cat /etc/iovirt/{resource}.json || echo '{{}}'")).get("devices", {})
    return devices


@pytest.fixture
def ports(lab: Any) -> Any:
    """Two igb ports of the same ids, neither of them ours while the test runs."""
    addresses = lab.shell("for d in /sys/bus/pci/drivers/igb/0*; do basename $d; done").split()
    assert len(addresses) == 2
    declared = declared_by(lab, "sriov")
    yielded = addresses[1]
    if yielded in declared:
        gave = lab.module("sriov", devices=[{"match": {"address": [yielded]}, "state": "absent"}])
        assert not gave["failed"], gave
    yield addresses[0], yielded
    if yielded in declared_by(lab, "vfio"):
        # The test was cut off before it gave the port back.
        back = lab.module("vfio", devices=[{"match": {"address": [yielded]}, "state": "absent"}])
        assert not back["failed"], back
    assert held_by(lab, yielded) == "igb"
    if yielded in declared:
        wish = declared[yielded]["wish"]
        vfs = [{"range": index, **vf} for index, vf in wish["vfs"].items()]
        again = {"match": {"address": [yielded]}, "vf_count": wish["vf_count"], "vfs": vfs}
        assert not lab.module("sriov", devices=[again])["failed"]


def test_a_port_is_claimed_before_its_own_driver_and_its_twin_is_not(wishes: Any, lab: Any, ports: Any) -> None:
    """Two of the same ids: one goes early, which ids= of vfio-pci could not tell apart."""
    twin, port = ports
    wish = {"match": {"address": [port]}, "early": True}
    done = lab.module("vfio", devices=[wish])
    assert not done["failed"], done
    assert [a["action"] for a in done["actions"]].count("refresh_initramfs") == 1
    # Unpacked once: the script is there, and its turn comes before udev's. In memory, and gone again.
    found = lab.shell(
        "d=$(mktemp -d -p /run); cd $d && unmkinitramfs /boot/initrd.img-$(uname -r) . && "
        f"find . -path '*/{SCRIPT}' | grep . && "
        "grep -h -o 'init-top/[a-z0-9_-]*' $(find . -path '*init-top/ORDER') | uniq; e=$?; rm -rf $d; exit $e",
        limit=600,
    ).split()
    order = [word for word in found if word.startswith("init-top/")]
    assert found[0].endswith(SCRIPT), found
    assert order.index("init-top/00-iovirt-vfio") < order.index("init-top/udev")
    made = lab.shell("stat -c %Y /boot/initrd.img-$(uname -r)")
    again = lab.module("vfio", devices=[wish])
    assert again["changed"] is False and again["actions"] == [], again
    assert lab.shell("stat -c %Y /boot/initrd.img-$(uname -r)") == made
    lab.reboot()
    assert held_by(lab, port) == "vfio-pci"
    assert held_by(lab, twin) == "igb"
    log = lab.shell("journalctl -k -b -o short-monotonic --no-pager | grep -E ' igb [0-9a-f:.]+: ' || true")
    assert f"igb {twin}" in log and f"igb {port}" not in log, log
    assert json.loads(lab.shell("cat /run/iovirt-replay.json"))["failures"] == {}
    replayed = json.loads(lab.shell("cat /run/iovirt-replay.json"))["actions"]
    assert [a for a in replayed if a["device"] == port] == [], "the replay had to do what the initramfs should have done"
    facts = next(f for f in lab.module("vfio_info")["facts"] if f["address"] == port)
    assert facts["next_boot"] == {"driver": "vfio-pci", "bound_by": "initramfs"}
    quiet = lab.module("vfio", devices=[wish])
    assert quiet["changed"] is False and quiet["reboot_required"] is False, quiet
    back = lab.module("vfio", devices=[{"match": {"address": [port]}, "state": "absent"}])
    assert not back["failed"], back
    assert held_by(lab, port) == "igb" and lab.shell(f"cat /sys/bus/pci/devices/{port}/driver_override") == "(null)"
    assert not in_image(lab)
    assert lab.shell("find /etc/initramfs-tools /var/lib/iovirt -name '*iovirt-vfio*' -o -name early") == ""


def test_what_modprobe_would_not_load_is_said_before(wishes: Any, lab: Any) -> None:
    """A line that many hardening guides give; the refusal names it, and nothing has been tried."""
    path = "/etc/modprobe.d/zz-test.conf"
    wish = {**EDU, "driver": "uio_pci_generic"}
    lab.shell(f"modprobe -r uio_pci_generic; echo 'install uio_pci_generic /bin/false' > {path}")
    try:
        result = lab.module("vfio", check=True, devices=[wish])
        assert result["failed"] and path in result["msg"] and "install uio_pci_generic /bin/false" in result["msg"], result
        assert lab.shell("modprobe uio_pci_generic; echo $?").endswith("1")
    finally:
        lab.shell(f"rm {path}")
    result = lab.module("vfio", check=True, devices=[{**EDU, "driver": "no_such_driver"}])
    assert result["failed"] and lab.shell("uname -r") in result["msg"] and "neither loadable nor built in" in result["msg"]


def test_lockdown_and_secure_boot_are_told(wishes: Any, lab: Any) -> None:
    host = lab.module("host_info")["host"]
    assert f"[{host['lockdown']}]" in lab.shell("cat /sys/kernel/security/lockdown")
    assert (host["secure_boot"] is None) == (lab.shell("ls -d /sys/firmware/efi 2>/dev/null || true") == "")


def test_an_export_changes_nothing_when_it_is_applied(wishes: Any, lab: Any) -> None:
    assert not lab.module("devices", sriov=wishes["sriov"], vfio=wishes["vfio"])["failed"]
    export = {name: lab.module(f"{name}_info") for name in ("sriov", "vfio")}
    assert all(result["changed"] is False and not result["failed"] for result in export.values()), export
    assert {item["match"]["address"][0] for item in export["sriov"]["devices"]} >= set(
        lab.shell("for d in /sys/bus/pci/drivers/igb/0*; do basename $d; done").split()
    )
    before = lab.snapshot()
    result = lab.module("devices", sriov=export["sriov"]["devices"], vfio=export["vfio"]["devices"])
    assert result["changed"] is False and result["actions"] == [], result
    assert lab.snapshot() == before
