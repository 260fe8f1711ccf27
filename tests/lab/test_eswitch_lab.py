# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""eswitch, representors, devlink parameters and hw-tc-offload on netdevsim, a device of the real kernel that is not of PCI.

What came true is asked of devlink, ip, ethtool and debugfs. The device is made and taken away here, and nothing else of the host is touched.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

#: A number that nobody else takes.
DEVICE = "netdevsim71"
HANDLE = f"netdevsim/{DEVICE}"
PORT = "eni71np1"
MATCH = {"address": [DEVICE]}

#: Prints the records' files that name the device; the host has records of other devices, too.
DECLARED = "grep -l netdevsim71 /etc/iovirt/*.json 2>/dev/null || true"


#: A new one: what tests before have left in the driver (its mode, attributes of VFs that went) is no longer there.
NEW = f"echo '71 1' > /sys/bus/netdevsim/new_device; for i in $(seq 50); do [ -e /sys/class/net/{PORT} ] && exit 0; sleep 0.1; done; exit 1"


@pytest.fixture(scope="module")
def declared(lab: Any, wishes: dict[str, Any]) -> Iterator[Any]:
    """The device, declared and given back through Ansible; what is between goes to the engine that this put on the host."""
    lab.shell(f"modprobe psample; modprobe netdevsim; {NEW}")
    declared = lab.module("sriov", devices=[{"match": {"ifname": [PORT]}, "vf_count": 1}])
    yield lab
    # From whatever mode the last test has left it in, so that Ansible has something to give back.
    given_back(lab)
    made(lab, vf_count=1)
    result = lab.module("sriov", devices=[{"match": MATCH, "state": "absent"}])
    left = count(lab)
    lab.shell("echo 71 > /sys/bus/netdevsim/del_device")
    assert not declared["failed"] and declared["changed"], declared
    assert not result["failed"] and result["changed"] and left == 0, result
    assert lab.shell(DECLARED) == ""


@pytest.fixture
def netdevsim(declared: Any) -> Any:
    """The device as new, and nobody's, whatever the order of the tests. `iovirt apply` lets the rules of udev follow: else the replay, which
    the new device starts, would be at work beside the test."""
    given_back(declared)
    declared.shell(
        "r='grep -q netdevsim71 /etc/udev/rules.d/99-iovirt.rules'; if $r; then iovirt apply; ! $r || exit 4; fi; "
        f"echo 71 > /sys/bus/netdevsim/del_device; {NEW}"
    )
    return declared


def calls(lab: Any, *what: tuple[bool, dict[str, Any]]) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = lab.calls(*((check, {"sriov": [{"match": MATCH, **wish}]}) for check, wish in what))
    return answers


def given_back(lab: Any) -> None:
    (result,) = calls(lab, (False, {"state": "absent"}))
    assert result.get("failures") == {}, result


def eswitch(lab: Any) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(lab.shell(f"devlink -j dev eswitch show {HANDLE}"))["dev"][HANDLE]
    return answer


def params(lab: Any) -> dict[str, Any]:
    listed = json.loads(lab.shell(f"devlink -j dev param show {HANDLE}"))["param"][HANDLE]
    return {param["name"]: param["values"][0]["value"] for param in listed}


def count(lab: Any) -> int:
    return int(lab.shell(f"cat /sys/bus/netdevsim/devices/{DEVICE}/sriov_numvfs"))


def representors(lab: Any) -> list[str]:
    ports = json.loads(lab.shell("devlink -j port show"))["port"]
    return sorted(
        f"pf{port['pfnum']}vf{port['vfnum']}" for name, port in ports.items() if name.startswith(HANDLE) and port["flavour"] == "pcivf"
    )


def made(lab: Any, **wish: Any) -> dict[str, Any]:
    """Check mode announces what the run does, and a second run finds nothing to do."""
    announced, done, again = calls(lab, (True, wish), (False, wish), (False, wish))
    assert done.get("failures") == {}, done
    assert (done["actions"], done["diff"], done["changed"]) == (announced["actions"], announced["diff"], announced["changed"])
    assert again["changed"] is False and again["actions"] == [], again
    return done


def kinds(result: dict[str, Any]) -> list[str]:
    return [action["action"] for action in result["actions"] if action["action"] not in ("declare", "install_replay")]


def test_switchdev_and_back(netdevsim: Any) -> None:
    lab = netdevsim
    made(lab, vf_count=2, eswitch={"mode": "switchdev"}, hw_tc_offload=True)
    assert eswitch(lab)["mode"] == "switchdev" and count(lab) == 2
    assert representors(lab) == ["pf0vf0", "pf0vf1"]
    assert lab.shell(f"ip -d link show {PORT} | grep -c 'switchid'") == "1"
    assert "hw-tc-offload: on" in lab.shell(f"ethtool -k {PORT}")
    facts = next(f for f in lab.module("host_info")["host"]["functions"] if f["address"] == DEVICE)
    assert facts["bus"] == "netdevsim" and facts["driver"] == "netdevsim"
    assert [(r["vf"], r["port_name"]) for r in facts["sriov"]["representors"]] == [(0, "pf0vf0"), (1, "pf0vf1")]
    names = lab.shell("ls /sys/class/net").split()
    assert {r["netdev"] for r in facts["sriov"]["representors"]} <= set(names)
    # The number changes by way of legacy mode.
    result = made(lab, vf_count=3, eswitch={"mode": "switchdev"}, hw_tc_offload=True)
    assert kinds(result) == ["set_eswitch", "set_vf_count", "set_eswitch"]
    assert eswitch(lab)["mode"] == "switchdev" and count(lab) == 3 and len(representors(lab)) == 3
    given_back(lab)
    assert eswitch(lab)["mode"] == "legacy" and count(lab) == 0 and representors(lab) == []
    assert "hw-tc-offload: off" in lab.shell(f"ethtool -k {PORT}")


def test_driverinit_parameters_and_a_reload(netdevsim: Any) -> None:
    lab = netdevsim
    made(lab, vf_count=1, eswitch={"mode": "switchdev"})
    wished = [{"name": "max_macs", "value": 64, "cmode": "driverinit"}, {"name": "test1", "value": False, "cmode": "driverinit"}]
    result = made(lab, vf_count=1, eswitch={"mode": "switchdev"}, devlink_params=wished)
    assert kinds(result) == ["set_vf_count", "set_eswitch", "devlink_reload", "set_vf_count", "set_eswitch"]
    # What the driver runs with, and not only what devlink was told.
    assert lab.shell(f"cat /sys/kernel/debug/netdevsim/{DEVICE}/max_macs") == "64"
    assert params(lab) == {"max_macs": 64, "test1": False}
    assert eswitch(lab)["mode"] == "switchdev" and count(lab) == 1
    given_back(lab)
    assert params(lab) == {"max_macs": 32, "test1": True} and count(lab) == 0
    assert lab.shell(f"cat /sys/kernel/debug/netdevsim/{DEVICE}/max_macs") == "32"


def test_a_reload_that_fails_is_undone(netdevsim: Any) -> None:
    """The driver refuses the reload (a knob of netdevsim): values, VFs and mode are as they were."""
    lab = netdevsim
    made(lab, vf_count=2, eswitch={"mode": "switchdev"})
    lab.shell(f"echo Y > /sys/kernel/debug/netdevsim/{DEVICE}/dont_allow_reload")
    wish = {"vf_count": 2, "eswitch": {"mode": "switchdev"}, "devlink_params": [{"name": "max_macs", "value": 64, "cmode": "driverinit"}]}
    (result,) = calls(lab, (False, wish))
    lab.shell(f"echo N > /sys/kernel/debug/netdevsim/{DEVICE}/dont_allow_reload")
    assert "devlink dev reload" in result["failures"][DEVICE] and "undone" in result["failures"][DEVICE], result
    assert params(lab)["max_macs"] == 32
    assert eswitch(lab)["mode"] == "switchdev" and count(lab) == 2 and len(representors(lab)) == 2


#: What netdevsim can and igb cannot is in it.
EVERYTHING: dict[str, Any] = {
    "mac": "52:54:00:aa:bb:cc", "vlan": 100, "qos": 3, "vlan_proto": "802.1ad", "spoof_check": True, "trust": True, "link_state": "disable",
    "min_tx_rate": 10, "max_tx_rate": 100, "query_rss": True,
}  # fmt: skip


def vf_of(lab: Any, index: int) -> dict[str, Any]:
    """What `ip` says of a VF of the port, in the words of a wish."""
    link = json.loads(lab.shell(f"ip -j -d link show dev {PORT}"))[0]
    vf = next(item for item in link["vfinfo_list"] if item["vf"] == index)
    vlan = vf["vlan_list"][0]
    return {
        "mac": vf["address"], "vlan": vlan.get("vlan", 0), "qos": vlan.get("qos", 0), "vlan_proto": vlan.get("protocol", "802.1Q"),
        "spoof_check": vf["spoofchk"], "trust": vf["trust"], "link_state": vf["link_state"], "min_tx_rate": vf["rate"]["min_tx"],
        "max_tx_rate": vf["rate"]["max_tx"], "query_rss": vf["query_rss_en"],
    }  # fmt: skip


def test_every_attribute_of_a_vf(netdevsim: Any) -> None:
    """Set, the same after another count, one rate changed with the other kept, handed back as it was exported, given back. What a VF had before
    cannot be seen again: netdevsim keeps a VF's attributes while there are no VFs (vfconfigs in drivers/net/netdevsim/dev.c)."""
    lab = netdevsim
    made(lab, vf_count=2)
    before = [vf_of(lab, index) for index in range(2)]
    wish: dict[str, Any] = {"vfs": [{"range": "0", **EVERYTHING}]}
    result = made(lab, vf_count=2, **wish)
    assert set(kinds(result)) == {"set_vf_attributes"}
    assert vf_of(lab, 0) == EVERYTHING and vf_of(lab, 1) == before[1]
    made(lab, vf_count=3, **wish)
    assert vf_of(lab, 0) == EVERYTHING
    made(lab, vf_count=3, vfs=[{"range": "0", "max_tx_rate": 200}])
    assert vf_of(lab, 0) == {**EVERYTHING, "max_tx_rate": 200}
    export = lab.module("sriov_info", match=MATCH)["devices"]
    handed = lab.calls((False, {"sriov": export}))[0]
    assert handed.get("changed") is False and handed["actions"] == [], handed
    made(lab, vf_count=2, **wish)
    given_back(lab)


REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    ({"eswitch": {"inline_mode": "transport"}}, [DEVICE, "no inline mode"]),
    ({"devlink_params": [{"name": "max_macs", "value": 5, "cmode": "permanent"}]}, [DEVICE, "no cmode permanent"]),
    ({"devlink_params": [{"name": "nix", "value": 5, "cmode": "runtime"}]}, [DEVICE, "no devlink parameter nix"]),
    ({"vf_count": 5}, [DEVICE, "sriov_totalvfs is 4"]),
    ({"vf_count": 1, "vf_defaults": {"driver": "vfio-pci"}}, [DEVICE, "no functions of their own"]),
]


def test_refusals_change_nothing(netdevsim: Any) -> None:
    lab = netdevsim
    port = lab.shell("basename $(ls -d /sys/bus/pci/drivers/igb/0* | tail -1)")
    cases = [*REFUSED, ({"match": {"address": [port]}, "eswitch": {"mode": "switchdev"}}, [port, "has no eswitch"])]
    before = lab.snapshot()
    for check in (True, False):
        for answer, (_wish, said) in zip(calls(lab, *((check, wish) for wish, _said in cases)), cases):
            for part in said:
                assert part in answer["refused"], answer
    assert lab.snapshot() == before


def test_the_legacy_rate_call_is_refused_in_switchdev_mode(netdevsim: Any) -> None:
    """A fact that eswitch.legacy_calls_refused relies on."""
    lab = netdevsim
    made(lab, vf_count=1, eswitch={"mode": "legacy"})
    lab.shell(f"ip link set {PORT} vf 0 max_tx_rate 100 min_tx_rate 0")
    made(lab, vf_count=1, eswitch={"mode": "switchdev"})
    assert "not supported" in lab.shell(f"ip link set {PORT} vf 0 max_tx_rate 200 min_tx_rate 0 2>&1 || true")


def test_the_replay_follows_a_reload_by_an_operator(netdevsim: Any) -> None:
    """`devlink dev reload` binds nothing anew: udev starts the replay by the network device that the driver makes anew."""
    lab = netdevsim
    made(lab, vf_count=2, eswitch={"mode": "switchdev"})
    lab.shell("iovirt apply; grep -q netdevsim71 /etc/udev/rules.d/99-iovirt.rules")
    index = lab.shell(f"cat /sys/class/net/{PORT}/ifindex")
    lab.shell(
        # The mode is there before the count. A unit at work is 'activating', which is-active does not take for active.
        f"devlink dev reload {HANDLE} && for i in $(seq 60); do sleep 1; devlink dev eswitch show {HANDLE} | grep -q switchdev"
        " && [ $(cat /sys/bus/netdevsim/devices/netdevsim71/sriov_numvfs) = 2 ]"
        " && [ $(systemctl show -P ActiveState iovirt-replay@netdevsim71.service) = inactive ]"
        " && exit 0; done; systemctl status 'iovirt-replay@*'; exit 1"
    )
    assert lab.shell(f"cat /sys/class/net/{PORT}/ifindex") != index
    assert count(lab) == 2 and len(representors(lab)) == 2
    (again,) = calls(lab, (False, {"vf_count": 2, "eswitch": {"mode": "switchdev"}}))
    assert again["changed"] is False, again


def test_the_replay_does_it_again(netdevsim: Any) -> None:
    """The device goes and comes back, as a driver reload has it; udev starts the replay of this device by its bind event."""
    lab = netdevsim
    made(lab, vf_count=2, eswitch={"mode": "switchdev"}, hw_tc_offload=True)
    # `made` carries no engine to install, so it leaves the rules of udev alone: the operator's command lets them follow.
    lab.shell("iovirt apply; grep -q netdevsim71 /etc/udev/rules.d/99-iovirt.rules")
    lab.shell("echo 71 > /sys/bus/netdevsim/del_device; echo '71 1' > /sys/bus/netdevsim/new_device")
    lab.shell(
        f"for i in $(seq 60); do sleep 1; devlink dev eswitch show {HANDLE} | grep -q switchdev && ethtool -k {PORT} | grep -q 'hw-tc-offload: on'"
        " && [ $(systemctl show -P ActiveState iovirt-replay@netdevsim71.service) = inactive ]"
        " && exit 0; done; systemctl status 'iovirt-replay@*'; exit 1"
    )
    assert count(lab) == 2 and len(representors(lab)) == 2
    (again,) = calls(lab, (False, {"vf_count": 2, "eswitch": {"mode": "switchdev"}, "hw_tc_offload": True}))
    assert again["changed"] is False, again
