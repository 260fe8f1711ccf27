# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Identity, records and replay on a real kernel: cards that are pulled and plugged, a run that is killed, network managers.

Seen with ip, lspci, nmcli, systemctl and cloud-init's own code. Each test leaves the host as molecule's lab scenario has it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "lab"))

PORTS = "for d in /sys/bus/pci/drivers/igb/0*; do basename $d; done"
#: PF, MAC, number of VFs: by lspci and ip, not by us.
CARDS = (
    "for d in /sys/bus/pci/drivers/igb/0*; do echo $(basename $d) $(cat $d/net/*/address) "
    "$(ls $d | grep -c ^virtfn); done 2>/dev/null"
)


def as_wished(lab: Any, wishes: dict[str, Any]) -> None:
    result = lab.module("devices", **wishes, declared_by="tests/lab")
    assert not result["failed"], result


@pytest.fixture(scope="session")
def host(lab: Any, wishes: dict[str, Any]) -> Any:
    """The host as wished."""
    as_wished(lab, wishes)
    return lab


@pytest.fixture
def restored(host: Any, wishes: dict[str, Any]) -> Any:
    """The host, for a test that changes it."""
    yield host
    as_wished(host, wishes)


def until(look: Callable[[], bool], limit: float = 240) -> None:
    end = time.monotonic() + limit
    while not look():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(3)


def cards(lab: Any) -> dict[str, tuple[str, int]]:
    """MAC -> address and number of VFs."""
    lines = [line.split() for line in lab.shell(CARDS).splitlines()]
    return {line[1]: (line[0], int(line[2])) for line in lines if len(line) == 3}


def documents(lab: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lab.shell("cat /etc/iovirt/sriov.json"))
    return found["devices"]


def plug_crosswise(lab: Any) -> None:
    """Pull both igb cards and plug each into the slot of the other one, while the host runs."""
    from iovirt_lab import qmp

    name = os.environ.get("IOVIRT_LAB_HOST", "tests")
    folder = Path(next(item["folder"] for item in json.loads(lab.lab("list", "--json")) if item["name"] == name))
    found = []
    for container in ("/machine/peripheral-anon", "/machine/peripheral"):
        for item in qmp.ask(folder, "qom-list", path=container):
            path = f"{container}/{item['name']}"
            if item["type"] == "child<igb>":
                values = {key: qmp.ask(folder, "qom-get", path=path, property=key) for key in ("mac", "netdev", "parent_bus")}
                found.append((path, values))
    assert len(found) == 2, found
    for path, _values in found:
        qmp.ask(folder, "device_del", id=path)
    until(lambda: lab.shell("ls /sys/bus/pci/drivers/igb | grep -c ^0 || true") == "0")
    # QEMU frees the port of the hub only when the host has let the device go.
    until(lambda: not any(item["type"] == "child<igb>" for item in qmp.ask(folder, "qom-list", path="/machine/peripheral-anon")))
    buses = [values["parent_bus"].rpartition("/")[2] for _path, values in found]
    for (_path, values), bus in zip(found, reversed(buses)):
        qmp.ask(folder, "device_add", driver="igb", bus=bus, netdev=values["netdev"], mac=values["mac"], romfile="")
    until(lambda: len(cards(lab)) == 2)


def test_two_cards_that_are_plugged_crosswise_keep_what_is_theirs(restored: Any, wishes: dict[str, Any]) -> None:
    before = cards(restored)
    first, second = sorted(before, key=lambda mac: before[mac][0])
    different = [{"match": {"mac": [first]}, "vf_count": 3}, {"match": {"mac": [second]}, "vf_count": 1}]
    assert not restored.module("sriov", devices=different)["failed"]
    plug_crosswise(restored)
    try:
        # By the rules of udev alone: nobody calls us.
        until(lambda: cards(restored) == {first: (before[second][0], 3), second: (before[first][0], 1)})
        until(lambda: "active" not in restored.shell("systemctl is-active 'iovirt-replay@*' | grep -v inactive || true"))
        assert {a: entry["identity"]["mac"] for a, entry in documents(restored).items() if entry["identity"]["mac"]} == {
            before[second][0]: first,
            before[first][0]: second,
        }
        result = restored.module("sriov", check=True, devices=different)
        assert not result["failed"] and [a["action"] for a in result["actions"] if a["action"] == "set_vf_count"] == []
        # The inventory that still names the places is refused, with the card that stood there.
        old = [{"match": {"address": [before[first][0]]}, "vf_count": 3}]
        refused = restored.module("sriov", devices=old)
        assert refused["failed"] and "names a place" in refused["msg"] and first in refused["msg"]
    finally:
        plug_crosswise(restored)


def test_a_run_that_is_killed_is_mended(restored: Any) -> None:
    """SIGKILL while the VFs are being made: probing stays off, the mark says by whom, and the next run puts it right."""
    port = restored.shell(PORTS).splitlines()[0]
    probing = f"/sys/bus/pci/devices/{port}/sriov_drivers_autoprobe"
    restored.shell(f"echo 0 > /sys/bus/pci/devices/{port}/sriov_numvfs; modprobe igbvf")
    restored.shell(
        "systemd-run --quiet --unit=victim iovirt apply; "
        f"for i in $(seq 600); do [ -e /run/iovirt-probing/{port} ] && break; sleep 0.1; done; "
        "systemctl kill --signal=KILL victim; sleep 1; systemctl reset-failed victim 2>/dev/null; true"
    )
    assert restored.shell(f"cat {probing}; ls /run/iovirt-probing") == f"0\n{port}"
    # The kernel may still be at work for the dead process.
    until(lambda: restored.shell("iovirt apply > /dev/null 2>&1 && echo well || echo not yet") == "well")
    assert restored.shell(f"cat {probing}; ls /run/iovirt-probing") == "1"
    assert restored.shell(f"ls /sys/bus/pci/devices/{port} | grep -c ^virtfn") == "3"


def states_in_networkmanager(lab: Any) -> dict[str, str]:
    lines = lab.shell("nmcli --terse --fields DEVICE,STATE device").splitlines()
    return dict(line.split(":", 1) for line in lines)


def test_networkmanager_leaves_the_vfs_alone_unless_it_is_told(restored: Any, wishes: dict[str, Any]) -> None:
    """The real NetworkManager, with its own rules; the management port is networkd's and stays so."""
    management = restored.shell("ip -o route show default | sed 's/.* dev \\([^ ]*\\).*/\\1/' | head -1")
    conf = "/run/NetworkManager/conf.d/lab.conf"
    text = f"[main]\\nno-auto-default=*\\n[keyfile]\\nunmanaged-devices=interface-name:{management}\\n"
    restored.shell(f"mkdir -p $(dirname {conf}); printf '{text}' > {conf}; systemctl start NetworkManager")
    try:
        until(lambda: len(states_in_networkmanager(restored)) > 4)
        vfs = restored.shell("for d in /sys/bus/pci/drivers/igbvf/0*; do ls $d/net; done").split()
        ports = restored.shell("for d in /sys/bus/pci/drivers/igb/0*; do ls $d/net; done").split()
        states = states_in_networkmanager(restored)
        assert {states[name] for name in vfs} == {"unmanaged"} and len(vfs) == 2
        assert not {states[name] for name in ports} & {"unmanaged"}
        assert states[management] == "unmanaged"
        managed = {**wishes["sriov"][0], "vf_netdevs": "managed"}
        assert not restored.module("sriov", devices=[managed])["failed"]
        # NetworkManager reads the mark when a network device appears, and never again.
        restored.shell("udevadm settle; sleep 3")
        assert "NM_UNMANAGED" not in restored.shell(f"udevadm info /sys/class/net/{vfs[0]}")
        assert states_in_networkmanager(restored)[vfs[0]] == "unmanaged"
        restored.shell("modprobe -r igbvf; modprobe igbvf")
        until(lambda: not {states_in_networkmanager(restored).get(name, "unmanaged") for name in vfs} & {"unmanaged"}, 120)
    finally:
        restored.shell(f"systemctl stop NetworkManager; rm -f {conf}")


CANDIDATES = """python3 - <<'END'
from cloudinit import net
print(" ".join(net.find_candidate_nics()))
END"""


def test_cloud_init_has_chosen_before_there_are_vfs(host: Any) -> None:
    """cloud-init knows nothing of udev's marks: a VF's network device is as good to it as any. So the order of the boot
    has to keep them apart."""
    vfs = host.shell("for d in /sys/bus/pci/drivers/igbvf/0*; do ls $d/net; done").split()
    assert set(vfs) & set(host.shell(CANDIDATES).split())
    order = host.shell("systemctl show -P After iovirt-replay.service").split()
    assert "cloud-init-local.service" in order
    before = host.shell("systemctl show -P Before cloud-init-local.service").split()
    assert "iovirt-replay.service" in before
    assert host.shell("systemd-analyze verify --man=no /etc/systemd/system/iovirt-replay.service 2>&1 | grep -i cycle || true") == ""


def test_the_link_unit_waits_for_the_link(host: Any) -> None:
    port = host.shell(PORTS).splitlines()[0]
    name = host.shell(f"ls /sys/bus/pci/devices/{port}/net")
    unit = f"iovirt-link@{port}.service"
    host.shell(f"ip link set {name} down; systemctl start --no-block {unit}; sleep 5")
    try:
        assert host.shell(f"systemctl is-active {unit} || true") == "activating"
        host.shell(f"ip link set {name} up")
        until(lambda: host.shell(f"systemctl is-active {unit} || true") == "inactive")
        assert host.shell(f"systemctl show -P Result {unit}") == "success"
    finally:
        host.shell(f"ip link set {name} down; systemctl stop {unit}")


def test_the_operator_sees_a_table(restored: Any) -> None:
    lines = restored.shell("iovirt status").splitlines()
    assert lines[0].split() == ["DEVICE", "RESOURCE", "DECLARED", "NOW", "DIFFERS", "BY", "WHEN"]
    assert len(lines) == 5 and {line.split()[0] for line in lines[1:]} == set(documents(restored)) | {"0000:00:09.0"}
    assert restored.shell("iovirt plan") == "nothing to do"
    port = restored.shell(PORTS).splitlines()[0]
    restored.shell(f"echo 0 > /sys/bus/pci/devices/{port}/sriov_numvfs")
    assert restored.shell("iovirt status; echo $?").splitlines()[-1] == "2"
    assert f"{port}: to do: set the number of VFs from 0 to 3" in restored.shell("iovirt status || true")


# A reload of the driver brings VFs and drivers back: test_lab.py. What a reload has to bring back beyond (VLANs, rates,
# by the second phase) goes here, once there is a wish for it.
