# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The attributes of VFs on a real kernel: igb's, told by `ip` and not by the collection."""

from __future__ import annotations

import json
from typing import Any

import pytest

PORT = "$(basename $(ls -d /sys/bus/pci/drivers/igb/*:*/net/* | head -1))"


def vfs_of(lab: Any, netdev: str) -> list[dict[str, Any]]:
    """What `ip` says of the VFs of a port."""
    link = json.loads(lab.shell(f"ip -j -d link show dev {netdev}"))[0]
    found: list[dict[str, Any]] = link.get("vfinfo_list", [])
    return found


@pytest.fixture
def port(lab: Any, wishes: dict[str, Any]) -> Any:
    """The first igb port and its PCI address; afterwards the host is as it is meant to be again."""
    name = lab.shell(f"echo {PORT}")
    yield name, lab.shell(f"basename $(readlink -f /sys/class/net/{name}/device)")
    lab.apply({"sriov": [{"match": {"ifname": [name]}, "state": "absent"}]})
    assert not lab.apply(wishes)["failed"]


def wish(name: str) -> dict[str, Any]:
    return {
        "match": {"ifname": [name]},
        "up": True,
        "vf_count": 3,
        "vf_defaults": {"trust": True, "spoof_check": False},
        "vfs": [
            {"range": "0", "driver": "vfio-pci", "mac": "auto", "vlan": 100, "qos": 3},
            {"range": "1", "driver": "default", "mac": "02:11:22:33:44:66", "vlan": 7, "max_tx_rate": 100, "mtu": 1400},
            {"range": "2", "driver": "default", "max_tx_rate": 200},
        ],
    }


def assert_set(vfs: list[dict[str, Any]], rates: list[int]) -> None:
    assert [vf["vlan_list"][0] for vf in vfs] == [{"vlan": 100, "qos": 3}, {"vlan": 7}, {}]
    assert [vf["trust"] for vf in vfs] == [True] * 3
    assert [vf["spoofchk"] for vf in vfs] == [False] * 3
    assert vfs[1]["address"] == "02:11:22:33:44:66"
    assert [vf["rate"]["max_tx"] for vf in vfs] == rates


def test_attributes_are_set_kept_and_come_back_with_the_driver(lab: Any, port: tuple[str, str]) -> None:
    name, address = port
    done = lab.apply({"sriov": [wish(name)]})
    assert not done["failed"], done
    vfs = vfs_of(lab, name)
    assert_set(vfs, [0, 100, 200])
    first = f"/sys/bus/pci/devices/{address}/virtfn0"
    assert "vfio-pci" in lab.shell(f"lspci -ks $(basename $(readlink {first}))")
    # The driver took the MAC over when it probed the VF, and its network device has the MTU.
    own = json.loads(lab.shell(f"ip -j link show dev $(ls /sys/bus/pci/devices/{address}/virtfn1/net)"))[0]
    assert (own["address"], own["mtu"]) == ("02:11:22:33:44:66", 1400)
    assert not lab.apply({"sriov": [wish(name)]})["changed"]

    # The driver is loaded anew: all comes back without Ansible, the rates when there is a link.
    lab.shell(
        "rmmod igb; modprobe igb; for i in $(seq 90); do "
        f"ip -d link show dev {name} 2>/dev/null | grep -q 'vf 2 .*trust on' && break; sleep 1; done; "
        "for i in $(seq 60); do [ -z \"$(systemctl list-units -q --state=activating 'iovirt-replay@*')\" ] && break; sleep 1; done",
        limit=300,
    )
    again = vfs_of(lab, name)
    assert_set(again, [vf["rate"]["max_tx"] for vf in again])
    assert again[0]["address"] == vfs[0]["address"]
    # By the unit that waits for the link (iovirt-link@), and nobody's call.
    lab.shell(
        f"for i in $(seq 90); do ip -d link show dev {name} | grep 'vf 2 ' | grep -q 'max_tx_rate 200Mbps' && exit 0; sleep 1; done; "
        f"systemctl status --no-pager iovirt-link@{address}.service; exit 1",
        limit=300,
    )
    assert_set(vfs_of(lab, name), [0, 100, 200])
    drivers = [lab.shell(f"basename $(readlink /sys/bus/pci/devices/{address}/virtfn{index}/driver)") for index in range(3)]
    assert drivers == ["vfio-pci", "igbvf", "igbvf"]
    assert not lab.apply({"sriov": [wish(name)]})["changed"]


def test_what_an_operator_set_survives_a_change_of_the_count(lab: Any, port: tuple[str, str]) -> None:
    name, _address = port
    count = len(vfs_of(lab, name))
    assert not lab.apply({"sriov": [{"match": {"ifname": [name]}, "vf_count": 2}]}, allow=("link_flap",))["failed"]
    lab.shell(f"ip link set dev {name} vf 1 vlan 42 qos 2; ip link set dev {name} vf 1 mac 02:aa:00:00:00:01")
    done = lab.apply({"sriov": [{"match": {"ifname": [name]}, "vf_count": 4}]}, allow=("link_flap",))
    assert not done["failed"], done
    vfs = vfs_of(lab, name)
    assert len(vfs) == 4 != count
    assert vfs[1]["vlan_list"] == [{"vlan": 42, "qos": 2}]
    assert vfs[1]["address"] == "02:aa:00:00:00:01"


def test_a_mac_that_a_driver_made_up_is_not_taken_for_one_that_was_set(lab: Any, port: tuple[str, str]) -> None:
    """The PF keeps it after the driver let the VF go, and forgets it with a reset: the engine makes one."""
    name, address = port
    own = {"range": "0-1", "driver": "default"}
    wish = {"match": {"ifname": [name]}, "up": True, "vf_count": 2}
    assert not lab.apply({"sriov": [{**wish, "vf_count": 0}]}, allow=("link_flap",))["failed"]
    assert not lab.apply({"sriov": [{**wish, "vfs": [own]}]}, allow=("link_flap",))["failed"]
    waiting = f"for i in $(seq 30); do ip -d link show dev {name} | grep -q 'vf .* 00:00:00:00:00:00' || break; sleep 1; done"
    lab.shell(waiting)
    made_up = [vf["address"] for vf in vfs_of(lab, name)]
    assert len(made_up) == 2 and "00:00:00:00:00:00" not in made_up
    taken = [{"range": "0", "driver": "vfio-pci"}, {"range": "1", "driver": "default"}]
    assert not lab.apply({"sriov": [{**wish, "vfs": taken}]})["failed"]
    assert [vf["address"] for vf in vfs_of(lab, name)] == ["00:00:00:00:00:00", made_up[1]]
    # What the engine relies on.
    vf = lab.shell(f"basename $(readlink /sys/bus/pci/devices/{address}/virtfn1)")
    lab.shell(f"echo {vf} > /sys/bus/pci/devices/{vf}/driver/unbind; sleep 1")
    assert vfs_of(lab, name)[1]["address"] == made_up[1]
    lab.shell(f"echo 1 > /sys/bus/pci/devices/{vf}/reset; sleep 1")
    assert vfs_of(lab, name)[1]["address"] == "00:00:00:00:00:00"
    lab.shell(f"echo {vf} > /sys/bus/pci/drivers/igbvf/bind")


def test_what_igb_cannot_do_is_refused_with_nothing_changed(lab: Any, port: tuple[str, str]) -> None:
    name, _address = port
    before = vfs_of(lab, name)
    for vf, word in (({"link_state": "enable"}, "igb cannot set that"), ({"vlan": 4096}, "is not from 0 to 4094")):
        result = lab.apply({"sriov": [{"match": {"ifname": [name]}, "vfs": [{"range": "0", **vf}]}]})
        assert result["failed"]
        assert word in result["msg"]
    # The kernel itself says the same of the first one.
    assert "not supported" in lab.shell(f"ip link set dev {name} vf 0 state enable 2>&1; true")
    assert vfs_of(lab, name) == before
