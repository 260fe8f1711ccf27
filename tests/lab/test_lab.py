# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host as molecule's lab scenario leaves it: all that must hold, and all that must not happen, on a real kernel.

What came true is always asked of lspci, /proc and sysfs, never of our own modules.
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

IGB = {"driver": ["igb"], "class": ["network"]}
EDU: dict[str, Any] = {"match": {"vendor": ["1234"], "device": ["11e8"]}}


def test_the_replay_was_there_before_the_network(wishes: dict[str, Any], lab: Any) -> None:
    """What was there when the tests came, on a host that had just booted, was made by the replay alone."""
    replayed = json.loads(lab.replayed)
    assert replayed["failures"] == {}
    assert len([a for a in replayed["actions"] if a["action"] == "bind"]) == 6
    # In one call systemctl prints them in an order of its own.
    ended = lab.shell("systemctl show -P ExecMainExitTimestampMonotonic iovirt-replay.service")
    network = lab.shell("systemctl show -P ExecMainStartTimestampMonotonic systemd-networkd.service")
    assert 0 < int(ended) < int(network)
    expected_drivers(lab)


def expected_drivers(lab: Any) -> None:
    """VF 0 and 1 of both ports and VF 0 of the NVMe on vfio-pci, VF 2 with its own driver, the NVMe's VF 1 left alone."""
    wanted = {}
    for pf in lab.shell("for d in /sys/bus/pci/drivers/igb/0*; do basename $d; done").splitlines():
        for index, driver in enumerate(("vfio-pci", "vfio-pci", "igbvf")):
            wanted[lab.shell(f"basename $(readlink /sys/bus/pci/devices/{pf}/virtfn{index})")] = driver
    nvme = lab.shell("basename $(echo /sys/bus/pci/drivers/nvme/0*)")
    for index, driver in enumerate(("vfio-pci", "")):
        wanted[lab.shell(f"basename $(readlink /sys/bus/pci/devices/{nvme}/virtfn{index})")] = driver
    assert len(wanted) == 8
    assert lab.drivers() == wanted
    assert "vfio-pci" in lab.shell("lspci -kd 1234:11e8 | grep 'in use'")


def test_vf_netdevs_are_left_alone(wishes: dict[str, Any], lab: Any) -> None:
    """A file that gives DHCP to every port: networkd takes the ports, and leaves their VFs alone."""
    everything = "/etc/systemd/network/99-everything.network"
    lab.shell(f"printf '[Match]\\nDriver=igb igbvf\\n[Network]\\nLinkLocalAddressing=ipv6\\n' > {everything}; networkctl reload")
    try:
        links = lab.shell("for d in /sys/bus/pci/drivers/igbvf/0*; do ls $d/net; done").split()
        ports = lab.shell("for d in /sys/bus/pci/drivers/igb/0*; do ls $d/net; done").split()
        assert len(links) == len(ports) == 2
        taken: dict[str, str] = {}
        for _round in range(20):
            # INDEX LINK TYPE OPERATIONAL SETUP; networkd takes a port in its own time.
            states = lab.shell("networkctl list --no-legend --no-pager").splitlines()
            taken = {line.split()[1]: line.split()[-1] for line in states}
            if not {taken[port] for port in ports} & {"pending", "unmanaged"}:
                break
            time.sleep(2)
        assert {taken[port] for port in ports} <= {"configuring", "configured"}
        assert {taken[link] for link in links} == {"unmanaged"}
        assert "NM_UNMANAGED=1" in lab.shell(f"udevadm info /sys/class/net/{links[0]}")
    finally:
        lab.shell(f"rm {everything}; networkctl reload")


SELECTORS: list[dict[str, Any]] = [
    {"driver": ["igb"]},
    {"class": ["ethernet"], "vendor": ["8086"]},
    {"driver": ["igb"], "numa_node": [0]},
]


def test_selectors_match_the_same_after_it_was_applied(wishes: dict[str, Any], lab: Any) -> None:
    """Three runs after a reboot, each with another selector for the same two ports: nothing to announce, nothing done."""
    ports, nvme = wishes["sriov"]
    for check, match in zip((False, True, False), SELECTORS):
        result = lab.module("devices", check=check, sriov=[{**ports, "match": match}, nvme], vfio=wishes["vfio"])
        assert result["changed"] is False and result["actions"] == [], result
        assert len([item for item in result["sriov"] if item["vf_count"] == 3]) == 2


COUNT_PROCESSES = """python3 -I - <<'END'
import sys
sys.path.insert(0, "/var/lib/iovirt/engine/current")
from iovirt_engine import engine, read, replay
from iovirt_engine.host import FileSystem, Host, run_command

def count():
    return int(next(line for line in open("/proc/stat") if line.startswith("processes")).split()[1])

host = Host(files=FileSystem("/"), run=run_command)
state = read.read_state(host, read.Needs())
wishes, missing = replay.wishes_of(state)
before = count()
result = engine.devices(host, wishes, replay.granted(state), engine.Call(declare=False))
print(len(missing), result["changed"], count() - before)
END"""


def test_a_converged_host_forks_little(wishes: dict[str, Any], lab: Any) -> None:
    """The kernel's own count of new processes around one devices call: `ip`, and the child that reads what may hang.
    Background work of the host may add a few, so the least of three."""
    answers = [lab.shell(COUNT_PROCESSES).split() for _round in range(3)]
    assert [answer[:2] for answer in answers] == [["0", "False"]] * 3
    assert min(int(answer[2]) for answer in answers) <= 3


#: Name -> resource, wish, what the refusal says.
BAD: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "matches nothing": ("sriov", {"match": {"driver": ["ixgbe"]}, "vf_count": 1}, ["driver=ixgbe", "host_info"]),
    "expect not met": ("sriov", {"match": IGB, "expect": 3, "vf_count": 1}, ["expect: 3", "2 devices match"]),
    "more than totalvfs": ("sriov", {"match": IGB, "vf_count": 8}, ["vf_count 8", "sriov_totalvfs is 7"]),
    "no SR-IOV": ("sriov", {"match": {"driver": ["ahci"]}, "vf_count": 1}, ["no SR-IOV capability"]),
    "range beyond the count": ("sriov", {"match": IGB, "vf_count": 4, "vfs": [{"range": "3-4", "driver": "vfio-pci"}]}, ["names VF 4"]),
    "overlapping ranges": ("sriov", {"match": IGB, "vf_count": 4, "vfs": [{"range": "0-2"}, {"range": "2-3"}]}, ["0-2", "2-3", "VF 2"]),
    "no such driver": ("vfio", {**EDU, "driver": "vfio-pcj"}, ["no driver vfio-pcj"]),
    "management port": ("vfio", {"match": {"ifname": ["@management@"]}}, ["the path to the controller", "management"]),
    "mounted disk": ("vfio", {"match": {"address": ["@rootdisk@"]}}, ["mounted on /", "boot_disk"]),
}


@pytest.fixture(scope="module")
def refusals(wishes: dict[str, Any], lab: Any) -> dict[str, list[dict[str, Any]]]:
    """Each bad wish in check mode and in a run, by the engine that is on the host; the host is as it was."""
    places = {
        "@management@": lab.shell("ip -o route show default | sed 's/.* dev \\([^ ]*\\).*/\\1/' | head -1"),
        "@rootdisk@": lab.shell("readlink -f /sys/dev/block/$(mountpoint -d /) | grep -o '0000:[0-9a-f:]*\\.[0-7]' | tail -1"),
    }
    text = json.dumps([(check, {resource: [wish]}) for resource, wish, _said in BAD.values() for check in (True, False)])
    for place, value in places.items():
        text = text.replace(place, value)
    before = lab.snapshot()
    answers = lab.calls(*json.loads(text))
    assert lab.snapshot() == before
    return {name: answers[2 * number : 2 * number + 2] for number, name in enumerate(BAD)}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_and_changes_nothing(refusals: dict[str, list[dict[str, Any]]], name: str) -> None:
    checked, run = refusals[name]
    assert checked == run
    for part in BAD[name][2]:
        assert part in run["refused"]


def test_an_unknown_word_is_refused_by_the_modules(wishes: dict[str, Any], lab: Any) -> None:
    before = lab.snapshot()
    for check in (True, False):
        result = lab.module("sriov", check=check, devices=[{"match": {"colour": ["red"]}, "vf_count": 1}])
        assert result["failed"] is True and "colour" in result["msg"], result
    assert lab.snapshot() == before


def test_a_pf_on_vfio_has_no_vfs_to_give(wishes: dict[str, Any], lab: Any) -> None:
    port = lab.shell("basename $(ls -d /sys/bus/pci/drivers/igb/0* | tail -1)")
    lab.shell(f"echo 0 > /sys/bus/pci/devices/{port}/sriov_numvfs")
    try:
        lab.shell(
            f"cd /sys/bus/pci/devices/{port}; echo vfio-pci > driver_override; echo {port} > driver/unbind; "
            f"echo {port} > /sys/bus/pci/drivers_probe; readlink driver | grep -q vfio-pci"
        )
        result = lab.apply({"sriov": [{"match": {"address": [port]}, "vf_count": 1}]})
        assert result["failed"] is True and "vfio-pci does not do SR-IOV" in result["msg"] and port in result["msg"]
    finally:
        lab.shell(
            f"cd /sys/bus/pci/devices/{port}; echo > driver_override; echo {port} > driver/unbind; "
            f"echo {port} > /sys/bus/pci/drivers_probe; readlink driver | grep -q igb"
        )
        converge(lab, wishes)


def converge(lab: Any, wishes: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = lab.module("devices", **wishes)
    assert not result.get("failed"), result
    expected_drivers(lab)
    return result


def test_a_held_vf_is_not_taken(wishes: dict[str, Any], lab: Any) -> None:
    """A process that holds the VF's IOMMU group open stands for a guest: the kernel itself would not protect it. Devices' own files
    (iommufd) are in the unit tests: Debian 13's kernel is built without CONFIG_IOMMUFD."""
    vf = next(address for address, driver in lab.drivers().items() if driver == "vfio-pci")
    group = lab.shell(f"basename $(readlink /sys/bus/pci/devices/{vf}/iommu_group)")
    holder = f"systemd-run --quiet --unit=holder python3 -c 'import time; f = open(\"/dev/vfio/{group}\", \"r+b\", 0); time.sleep(900)'"
    lab.shell(f"{holder}; sleep 3; systemctl is-active holder")
    pid = lab.shell("systemctl show -P MainPID holder")
    before = lab.snapshot()
    try:
        fewer = {**wishes["sriov"][0], "vf_count": 2, "vfs": []}
        for check in (True, False):
            result = lab.apply({"sriov": [fewer]}, check)
            assert result["failed"] is True, result
            assert vf in result["msg"] and f"process {pid}" in result["msg"] and "in_use" in result["msg"]
        assert lab.snapshot() == before
    finally:
        lab.shell("systemctl stop holder")
    expected_drivers(lab)


def test_a_half_written_state_file_is_named(wishes: dict[str, Any], lab: Any) -> None:
    lab.shell("cp -a /etc/iovirt/sriov.json /root/kept.json; truncate -s 100 /etc/iovirt/sriov.json")
    before = lab.snapshot()
    try:
        for check in (True, False):
            result = lab.apply(wishes, check)
            assert result["failed"] is True and "/etc/iovirt/sriov.json" in result["msg"]
        assert lab.snapshot() == before
    finally:
        lab.shell("mv /root/kept.json /etc/iovirt/sriov.json")


def test_a_run_waits_for_another(wishes: dict[str, Any], lab: Any) -> None:
    """The operator's command waits while somebody holds the lock, and goes on when it is free."""
    lab.shell("systemd-run --quiet --unit=locker flock /run/iovirt.lock sleep 6; sleep 1")
    took = float(lab.shell("s=$(date +%s.%N); iovirt apply >/dev/null; e=$(date +%s.%N); echo $s $e | awk '{print $2 - $1}'"))
    assert took > 4


def test_late_vf_drivers_are_no_race(wishes: dict[str, Any], lab: Any) -> None:
    """igbvf is not loaded: the kernel loads it late, from udev, while the run is at work."""
    lab.shell("modprobe -r igbvf; ! lsmod | grep -q igbvf")
    ports = wishes["sriov"][0]
    more = {**ports, "vf_count": 4, "vfs": [*ports["vfs"], {"range": "2-3", "driver": "default"}]}
    result = lab.apply({"sriov": [more]})
    assert not result["failed"], result
    assert sorted(lab.drivers().values()) == ["", *["igbvf"] * 4, *["vfio-pci"] * 5]
    lab.shell("modprobe -r igbvf")
    result = lab.apply(wishes)
    assert not result["failed"], result
    # VF 2 has no wish: udev gives it its driver in its own time.
    lab.shell("for i in $(seq 30); do [ $(ls -d /sys/bus/pci/drivers/igbvf/0* 2>/dev/null | wc -l) = 2 ] && exit 0; sleep 1; done; exit 1")
    expected_drivers(lab)
    assert lab.apply(wishes)["changed"] is False


def test_a_driver_reload_brings_all_back(wishes: dict[str, Any], lab: Any) -> None:
    lab.shell("modprobe -r igbvf; modprobe -r igb; modprobe igb")
    lab.shell(
        "for i in $(seq 60); do sleep 1; [ $(ls -d /sys/bus/pci/drivers/igbvf/0* 2>/dev/null | wc -l) = 2 ] && "
        "[ -z \"$(systemctl list-units -q --state=activating 'iovirt-replay@*')\" ] && exit 0; done; exit 1"
    )
    expected_drivers(lab)
    assert lab.apply(wishes)["changed"] is False


def test_everything_is_given_back(wishes: dict[str, Any], lab: Any) -> None:
    """`exclusive` with empty lists leaves no trace of us but the kernel command line, and `absent` not even that."""
    try:
        give_everything_back(lab)
    finally:
        again = lab.module("iommu", state="enabled", mode="passthrough")
        assert not again["failed"], again
        converge(lab, wishes)


def give_everything_back(lab: Any) -> None:
    result = lab.module("devices", sriov=[], vfio=[], exclusive=["sriov", "vfio"])
    assert not result.get("failed") and result["changed"] is True, result
    assert lab.drivers() == {}
    assert lab.shell("lspci -kd 1234:11e8 | grep 'in use' || true") == ""
    assert lab.shell("cat /sys/bus/pci/devices/*/driver_override | grep -v null || true").strip() == ""
    assert lab.shell("ls /etc/iovirt /var/lib/iovirt /etc/udev/rules.d/99-iovirt.rules /usr/local/sbin/iovirt 2>/dev/null || true") == ""
    result = lab.module("iommu", state="absent")
    assert result["changed"] is True and result["reboot_required"] is True
    assert "iommu=pt" not in lab.shell("grep -m1 vmlinuz /boot/grub/grub.cfg")
    assert "intel_iommu=off" in lab.shell("grep -m1 vmlinuz /boot/grub/grub.cfg")
    assert lab.shell("ls /etc/default/grub.d/zz-iovirt.cfg 2>/dev/null || true") == ""
