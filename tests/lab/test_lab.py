# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a bare host with its IOMMU off to VFs on vfio-pci, and all that must not happen on the way, on a real kernel.

What came true is always asked of lspci, /proc and sysfs, never of our own modules.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

IGB = {"driver": ["igb"], "class": ["network"]}
PORTS: dict[str, Any] = {
    "match": IGB,
    "expect": 2,
    "vf_count": 4,
    "vfs": [{"range": "0-1", "driver": "vfio-pci", "pool": "dataplane"}, {"range": "2-3", "driver": "default"}],
}
NVME: dict[str, Any] = {"match": {"class": ["nvme"]}, "expect": 1, "vf_count": 2, "vfs": [{"range": "0", "driver": "vfio-pci"}]}
EDU: dict[str, Any] = {"match": {"vendor": ["1234"], "device": ["11e8"]}}
WISHES = {"sriov": [PORTS, NVME], "vfio": [EDU]}

VARIABLES = {"iovirt_reboot": "when_needed", "iommu_state": "enabled", "sriov_devices": [PORTS, NVME], "vfio_devices": [EDU]}


def run_site(lab: Any, *words: str) -> dict[str, Any]:
    results = lab.folder / "results.json"
    lab.playbook(str(__file__).replace("test_lab.py", "site-and-results.yml"), {**VARIABLES, "results": str(results)}, *words)
    found: dict[str, Any] = json.loads(results.read_text())
    return found


@pytest.fixture(scope="session")
def story(lab: Any) -> dict[str, Any]:
    """The host before, what check mode announced, what the run then did, and what the boot replay did."""
    before = {
        "cmdline": lab.shell("cat /proc/cmdline"),
        "groups": lab.shell("ls /sys/kernel/iommu_groups | wc -l"),
        "snapshot": lab.snapshot(),
        "boots": lab.shell("cat /proc/sys/kernel/random/boot_id"),
    }
    announced = run_site(lab, "--check", "--diff")
    untouched = lab.snapshot()
    # The first stage by itself, so that it can be compared; the site then reboots and finishes.
    stage = {
        "iommu": lab.module("iommu", state="enabled"),
        "devices": lab.module("devices", **WISHES),
    }
    final = run_site(lab)
    replayed = json.loads(lab.shell("cat /run/iovirt-replay.json"))
    return {
        "before": before, "announced": announced, "untouched": untouched, "stage": stage, "final": final, "replayed": replayed,
        "boots": lab.shell("cat /proc/sys/kernel/random/boot_id"),
    }


def test_the_host_starts_bare(story: dict[str, Any]) -> None:
    assert "intel_iommu=off" in story["before"]["cmdline"]
    assert story["before"]["groups"] == "0"


def test_check_mode_changes_nothing(story: dict[str, Any]) -> None:
    assert story["untouched"] == story["before"]["snapshot"]
    assert story["announced"]["devices"]["reboot_required"] is True
    assert story["announced"]["iommu"]["reboot_required"] is True


def test_what_was_announced_was_done(story: dict[str, Any]) -> None:
    """The same list, to the letter; what waited for the reboot was done by the replay."""
    for part in ("iommu", "devices"):
        assert story["announced"][part]["actions"] == story["stage"][part]["actions"]
        assert story["stage"][part]["changed"] is True
    waiting = {a["text"] for a in story["announced"]["devices"]["actions"] if a["certainty"] == "after_reboot"}
    assert len(waiting) == 6
    done = {a["text"] for a in story["replayed"]["actions"]} | {a["text"] for a in story["final"]["devices"]["actions"]}
    assert waiting <= done
    assert story["replayed"]["failures"] == {}


def test_one_reboot_made_it_true(story: dict[str, Any], lab: Any) -> None:
    assert story["boots"] != story["before"]["boots"]
    assert "intel_iommu=on" in lab.shell("cat /proc/cmdline").split()
    assert "intel_iommu=off" not in lab.shell("cat /proc/cmdline")
    assert int(lab.shell("ls /sys/kernel/iommu_groups | wc -l")) > 5


def expected_drivers(lab: Any) -> None:
    """VF 0 and 1 of both ports and VF 0 of the NVMe on vfio-pci, VF 2 and 3 on igbvf, the NVMe's VF 1 left alone."""
    wanted = {}
    for pf in lab.shell("for d in /sys/bus/pci/drivers/igb/0*; do basename $d; done").splitlines():
        for index, driver in enumerate(("vfio-pci", "vfio-pci", "igbvf", "igbvf")):
            wanted[lab.shell(f"basename $(readlink /sys/bus/pci/devices/{pf}/virtfn{index})")] = driver
    nvme = lab.shell("basename $(echo /sys/bus/pci/drivers/nvme/0*)")
    for index, driver in enumerate(("vfio-pci", "")):
        wanted[lab.shell(f"basename $(readlink /sys/bus/pci/devices/{nvme}/virtfn{index})")] = driver
    assert len(wanted) == 10
    assert lab.drivers() == wanted
    assert "vfio-pci" in lab.shell("lspci -kd 1234:11e8 | grep 'in use'")


def test_lspci_says_so(story: dict[str, Any], lab: Any) -> None:
    expected_drivers(lab)


def test_nothing_is_left_to_announce(story: dict[str, Any], lab: Any) -> None:
    result = run_site(lab, "--check")
    assert result["iommu"]["actions"] == [] and result["iommu"]["changed"] is False
    assert result["devices"]["actions"] == [] and result["devices"]["changed"] is False
    assert result["devices"]["reboot_required"] is False


SELECTORS: list[dict[str, Any]] = [
    {"driver": ["igb"]},
    {"class": ["ethernet"], "vendor": ["8086"]},
    {"driver": ["igb"], "numa_node": [0, 1, -1]},
]


def three_runs(lab: Any) -> None:
    for match in SELECTORS:
        result = lab.module("devices", sriov=[{**PORTS, "match": match}, NVME], vfio=[EDU])
        assert result["changed"] is False, result
        assert len([item for item in result["sriov"] if item["vf_count"] == 4]) == 2


def test_selectors_match_the_same_after_it_was_applied(story: dict[str, Any], lab: Any) -> None:
    three_runs(lab)


def test_a_converged_host_forks_little(story: dict[str, Any], lab: Any) -> None:
    """The kernel's own count of processes, around one call of the installed engine: Python itself and `ip`."""
    script = (
        "count() { awk '/^processes/ {print $2}' /proc/stat; }; "
        "a=$(count); b=$(count); iovirt plan >/dev/null; c=$(count); echo $((c - b - (b - a)))"
    )
    # sh and Python for the command, one fork for ip; background work of the host may add a few, so the least of three.
    assert min(int(lab.shell(script)) for _round in range(3)) <= 4


BAD: list[tuple[str, str, dict[str, Any], list[str]]] = [
    ("unknown selector key", "sriov", {"devices": [{"match": {"colour": ["red"]}, "vf_count": 1}]}, ["colour"]),
    ("matches nothing", "sriov", {"devices": [{"match": {"driver": ["ixgbe"]}, "vf_count": 1}]}, ["driver=ixgbe", "host_info"]),
    ("expect not met", "sriov", {"devices": [{"match": IGB, "expect": 3, "vf_count": 1}]}, ["expect: 3", "2 devices match"]),
    ("more than totalvfs", "sriov", {"devices": [{"match": IGB, "vf_count": 8}]}, ["vf_count 8", "sriov_totalvfs is 7"]),
    ("no SR-IOV", "sriov", {"devices": [{"match": {"driver": ["ahci"]}, "vf_count": 1}]}, ["no SR-IOV capability"]),
    ("PF without a driver that does it", "sriov", {"devices": [{"match": {"address": ["@pf-on-vfio@"]}, "vf_count": 1}]},
     ["vfio-pci does not do SR-IOV"]),
    ("range beyond the count", "sriov", {"devices": [{"match": IGB, "vf_count": 4, "vfs": [{"range": "3-4", "driver": "vfio-pci"}]}]},
     ["names VF 4"]),
    ("overlapping ranges", "sriov",
     {"devices": [{"match": IGB, "vf_count": 4, "vfs": [{"range": "0-2"}, {"range": "2-3"}]}]}, ["0-2", "2-3", "VF 2"]),
    ("no such driver", "vfio", {"devices": [{**EDU, "driver": "vfio-pcj"}]}, ["no driver vfio-pcj"]),
    ("management port", "vfio", {"devices": [{"match": {"ifname": ["@management@"]}}]}, ["the path to the controller", "management"]),
    ("mounted disk", "vfio", {"devices": [{"match": {"address": ["@rootdisk@"]}}]}, ["mounted on /", "boot_disk"]),
]


@pytest.fixture(scope="session")
def places(story: dict[str, Any], lab: Any) -> dict[str, str]:
    """Devices of this host that bad wishes name."""
    return {
        "@management@": lab.shell("ip -o route show default | sed 's/.* dev \\([^ ]*\\).*/\\1/' | head -1"),
        "@rootdisk@": lab.shell("readlink -f /sys/dev/block/$(mountpoint -d /) | grep -o '0000:[0-9a-f:]*\\.[0-7]' | tail -1"),
    }


@pytest.mark.parametrize(("name", "module", "arguments", "said"), BAD, ids=[item[0] for item in BAD])
def test_bad_input_is_refused_and_changes_nothing(
    lab: Any, places: dict[str, str], name: str, module: str, arguments: dict[str, Any], said: list[str]
) -> None:
    text = json.dumps(arguments)
    if "@pf-on-vfio@" in text:
        pytest.skip("has its own test: the PF has to be put on vfio-pci first")
    for place, value in places.items():
        text = text.replace(place, value)
    before = lab.snapshot()
    for check in (True, False):
        result = lab.module(module, check=check, **json.loads(text))
        assert result.get("failed") is True, result
        for part in said:
            assert part in result["msg"]
    assert lab.snapshot() == before


def test_a_pf_on_vfio_has_no_vfs_to_give(story: dict[str, Any], lab: Any) -> None:
    port = lab.shell("basename $(ls -d /sys/bus/pci/drivers/igb/0* | tail -1)")
    lab.shell(f"cp -a /etc/iovirt /root/iovirt-kept; echo 0 > /sys/bus/pci/devices/{port}/sriov_numvfs")
    try:
        lab.shell(
            f"cd /sys/bus/pci/devices/{port}; echo vfio-pci > driver_override; echo {port} > driver/unbind; "
            f"echo {port} > /sys/bus/pci/drivers_probe; readlink driver | grep -q vfio-pci"
        )
        result = lab.module("sriov", devices=[{"match": {"address": [port]}, "vf_count": 1}])
        assert result["failed"] is True and "vfio-pci does not do SR-IOV" in result["msg"] and port in result["msg"]
    finally:
        lab.shell(
            f"cd /sys/bus/pci/devices/{port}; echo > driver_override; echo {port} > driver/unbind; "
            f"echo {port} > /sys/bus/pci/drivers_probe; readlink driver | grep -q igb"
        )
        converge(lab)


def converge(lab: Any) -> dict[str, Any]:
    result: dict[str, Any] = lab.module("devices", **WISHES)
    assert not result.get("failed"), result
    expected_drivers(lab)
    return result


def test_a_held_vf_is_not_taken(story: dict[str, Any], lab: Any) -> None:
    """A process that holds the VF's IOMMU group open stands for a guest: the kernel itself would not protect it."""
    vf = next(address for address, driver in lab.drivers().items() if driver == "vfio-pci")
    group = lab.shell(f"basename $(readlink /sys/bus/pci/devices/{vf}/iommu_group)")
    holder = f"systemd-run --quiet --unit=holder python3 -c 'import time; f = open(\"/dev/vfio/{group}\", \"r+b\", 0); time.sleep(900)'"
    lab.shell(f"{holder}; sleep 3; systemctl is-active holder")
    pid = lab.shell("systemctl show -P MainPID holder")
    before = lab.snapshot()
    try:
        fewer = {**PORTS, "vf_count": 2, "vfs": []}
        for check in (True, False):
            result = lab.module("sriov", check=check, devices=[fewer])
            assert result["failed"] is True, result
            assert vf in result["msg"] and f"process {pid}" in result["msg"] and "in_use" in result["msg"]
        assert lab.snapshot() == before
    finally:
        lab.shell("systemctl stop holder")
    expected_drivers(lab)


def test_a_half_written_state_file_is_named(story: dict[str, Any], lab: Any) -> None:
    lab.shell("cp -a /etc/iovirt/sriov.json /root/kept.json; truncate -s 100 /etc/iovirt/sriov.json")
    before = lab.snapshot()
    try:
        for check in (True, False):
            result = lab.module("devices", check=check, **WISHES)
            assert result["failed"] is True and "/etc/iovirt/sriov.json" in result["msg"]
        assert lab.snapshot() == before
    finally:
        lab.shell("mv /root/kept.json /etc/iovirt/sriov.json")


def test_a_run_waits_for_another(story: dict[str, Any], lab: Any) -> None:
    """The operator's command waits while somebody holds the lock, and goes on when it is free."""
    lab.shell("systemd-run --quiet --unit=locker flock /run/iovirt.lock sleep 6; sleep 1")
    took = float(lab.shell("s=$(date +%s.%N); iovirt apply >/dev/null; e=$(date +%s.%N); echo $s $e | awk '{print $2 - $1}'"))
    assert took > 4


def test_late_vf_drivers_are_no_race(story: dict[str, Any], lab: Any) -> None:
    """igbvf is not loaded: the kernel loads it late, from udev, while the run is at work."""
    lab.shell("modprobe -r igbvf; ! lsmod | grep -q igbvf")
    fewer = {"sriov": [{**PORTS, "vf_count": 3, "vfs": [PORTS["vfs"][0], {"range": "2", "driver": "default"}]}]}
    result = lab.module("devices", **fewer)
    assert not result.get("failed"), result
    assert sorted(lab.drivers().values()) == ["", *["igbvf"] * 2, *["vfio-pci"] * 5]
    lab.shell("modprobe -r igbvf")
    converge(lab)
    assert lab.module("devices", **WISHES)["changed"] is False


def test_a_driver_reload_brings_all_back(story: dict[str, Any], lab: Any) -> None:
    lab.shell("modprobe -r igbvf; modprobe -r igb; modprobe igb")
    lab.shell(
        "for i in $(seq 60); do sleep 1; [ $(ls -d /sys/bus/pci/drivers/igbvf/0* 2>/dev/null | wc -l) = 4 ] && "
        "! systemctl is-active -q 'iovirt-replay@*' && exit 0; done; exit 1"
    )
    expected_drivers(lab)
    assert lab.module("devices", **WISHES)["changed"] is False


def test_a_reboot_changes_nothing(story: dict[str, Any], lab: Any) -> None:
    lab.reboot()
    expected_drivers(lab)
    # The VFs were there before the network was configured.
    order = lab.shell(
        "for u in iovirt-replay.service systemd-networkd.service; do "
        "systemctl show -P ExecMainExitTimestampMonotonic -P ExecMainStartTimestampMonotonic $u; done"
    ).split()
    replay_ended, network_started = int(order[1]), int(order[2])
    assert 0 < replay_ended < network_started
    three_runs(lab)


def test_everything_is_given_back(story: dict[str, Any], lab: Any) -> None:
    """Last: `exclusive` with empty lists leaves no trace of us but the kernel command line."""
    result = lab.module("devices", sriov=[], vfio=[], exclusive=["sriov", "vfio"])
    assert not result.get("failed") and result["changed"] is True, result
    assert lab.drivers() == {}
    assert lab.shell("lspci -kd 1234:11e8 | grep 'in use' || true") == ""
    assert lab.shell("cat /sys/bus/pci/devices/*/driver_override | grep -v null || true").strip() == ""
    assert lab.shell("ls /etc/iovirt /var/lib/iovirt /etc/udev/rules.d/99-iovirt.rules /usr/local/sbin/iovirt 2>/dev/null || true") == ""
    result = lab.module("iommu", state="absent")
    assert result["changed"] is True and result["reboot_required"] is True
    assert "intel_iommu=off" in lab.shell("grep -m1 vmlinuz /boot/grub/grub.cfg")
    assert lab.shell("ls /etc/default/grub.d/zz-iovirt.cfg 2>/dev/null || true") == ""
