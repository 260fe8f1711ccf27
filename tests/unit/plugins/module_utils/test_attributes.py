# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The attributes of VFs: set before a driver looks, kept over a change of the count, undone, refused."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import drivers, link, replay
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils import sim_ip
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import (
    MLX5,
    NSIM,
    NVME,
    PF1,
    PF2,
    at,
    call,
    converged,
    drivers_of,
    lab,
    quiet,
    refused,
    switches,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import DEVICES, Net

MAC = "52:54:00:aa:bb:cc"
ALL = at(
    PF1,
    up=True,
    vf_count=4,
    vf_defaults={"trust": True, "mac": "auto"},
    vfs=[
        {"range": "0-1", "driver": "vfio-pci", "vlan": 100, "qos": 3},
        {"range": "2", "mac": MAC, "spoof_check": False, "mtu": 9000, "promisc": True},
        {"range": "3", "max_tx_rate": 100},
    ],
)


def attributes(sim, pf=PF1):
    return [sim.functions[address].attributes for address in sim.functions[pf].vfs]


def with_vfs(count=2, igbvf_loaded=True):
    sim = lab(igbvf_loaded=igbvf_loaded)
    sim.write(f"{DEVICES}/{PF1}/sriov_numvfs", str(count))
    sim.sleep(10)
    return sim


def ip(sim, line):
    assert sim.run(["ip", "-force", "-batch", "-"], f"link set dev enp129s0 {line}\n") == (0, "", "")


def batches(sim):
    return [data.splitlines() for what, name, data in sim.log if (what, name) == ("run", "ip")]


# --- The way through -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("udev_delay", [0.0, 5.0, None])
def test_all_is_set_and_a_second_run_is_quiet(udev_delay):
    sim = lab(igbvf_loaded=udev_delay is None)
    sim.udev_delay = udev_delay
    converged(sim, sriov=[ALL])
    vfs = attributes(sim)
    assert [vf["vlan"] for vf in vfs] == [100, 100, 0, 0]
    assert [vf["qos"] for vf in vfs] == [3, 3, 0, 0]
    assert [vf["trust"] for vf in vfs] == [True] * 4
    assert [vf["spoofchk"] for vf in vfs] == [True, True, False, True]
    assert [vf["max_tx_rate"] for vf in vfs] == [0, 0, 0, 100]
    assert vfs[2]["mac"] == MAC
    assert (sim.nets["enp129s0v2"].mtu, sim.nets["enp129s0v2"].promisc) == (9000, True)
    assert drivers_of(sim, PF1) == ["vfio-pci", "vfio-pci", "igbvf", "igbvf"]
    assert sim.functions[PF1].autoprobe


def test_a_driver_finds_the_mac_at_its_first_probing():
    sim = lab()
    converged(sim, sriov=[at(PF1, vf_count=2, vf_defaults={"mac": "auto"})])
    sim.sleep(60)
    for address in sim.functions[PF1].vfs:
        vf = sim.functions[address]
        assert (vf.driver, vf.mac) == ("igbvf", vf.attributes["mac"])
        assert vf.attributes["by_pf"]


def test_one_batch_a_host_for_all_ports():
    sim = lab()
    wish = {"vf_count": 7, "vf_defaults": {"mac": "auto", "vlan": 5, "trust": True, "spoof_check": False}}
    converged(sim, sriov=[at(PF1, **wish), at(PF2, **wish)])
    assert [len(lines) for lines in batches(sim)] == [2 * 7 * 4]


def test_only_what_differs_is_written_vf_by_vf():
    sim = lab()
    wish = at(PF1, vf_count=3, vf_defaults={"trust": True, "vlan": 5})
    call(sim, sriov=[wish])
    ip(sim, "vf 1 trust off")
    sim.log.clear()
    done = converged(sim, sriov=[wish])
    assert batches(sim) == [["link set dev enp129s0 vf 1 trust on"]]
    assert [a["text"] for a in done["actions"]] == ["set trust true on VF 1"]


def test_unset_means_untouched():
    sim = with_vfs()
    ip(sim, "vf 0 vlan 9 qos 2")
    ip(sim, "vf 0 trust on")
    converged(sim, sriov=[at(PF1, vf_count=2, vf_defaults={"spoof_check": False, "vlan": None, "mac": None})])
    assert (attributes(sim)[0]["vlan"], attributes(sim)[0]["qos"], attributes(sim)[0]["trust"]) == (9, 2, True)
    assert not any("vlan" in line for lines in batches(sim)[2:] for line in lines)


def test_what_is_sent_along_with_a_vlan_stays():
    sim = with_vfs()
    ip(sim, "vf 0 vlan 9 qos 2")
    converged(sim, sriov=[at(PF1, vfs=[{"range": "0", "vlan": 10}])])
    assert (attributes(sim)[0]["vlan"], attributes(sim)[0]["qos"]) == (10, 2)
    converged(sim, sriov=[at(PF1, vfs=[{"range": "0", "vlan": 0}])])
    assert (attributes(sim)[0]["vlan"], attributes(sim)[0]["qos"]) == (0, 0)


def test_auto_macs_are_stable_local_and_all_different():
    macs = []
    for _host in range(2):
        sim = lab()
        wish = {"vf_count": 7, "vf_defaults": {"mac": "auto"}}
        converged(sim, sriov=[at(PF1, **wish), at(PF2, **wish)])
        macs.append([vf["mac"] for pf in (PF1, PF2) for vf in attributes(sim, pf)])
    assert macs[0] == macs[1]
    assert len(set(macs[0])) == 14
    assert {int(mac[:2], 16) & 3 for mac in macs[0]} == {2}
    other = lab()
    other.files["/etc/machine-id"] = "another\n"
    call(other, sriov=[at(PF1, vf_count=1, vf_defaults={"mac": "auto"})])
    assert attributes(other)[0]["mac"] not in macs[0]


def test_a_new_mac_reloads_the_driver_of_a_vf_that_has_one():
    sim = with_vfs()
    before = sim.functions[sim.functions[PF1].vfs[0]].mac
    done = converged(sim, sriov=[at(PF1, vfs=[{"range": "0", "mac": MAC}])])
    vf = sim.functions[sim.functions[PF1].vfs[0]]
    assert (vf.mac, vf.driver) == (MAC, "igbvf")
    assert before != MAC
    assert [a["action"] for a in done["actions"]][-3:] == ["unbind", "set_vf_attributes", "rebind"]


def test_a_new_mac_does_not_take_a_vf_from_a_vfio_driver():
    sim = lab()
    wish = {"range": "0", "driver": "vfio-pci"}
    call(sim, sriov=[at(PF1, vf_count=1, vfs=[wish])])
    done = converged(sim, sriov=[at(PF1, vf_count=1, vfs=[{**wish, "mac": MAC}])])
    assert [a["action"] for a in done["actions"]][-1] == "set_vf_attributes"


def test_reloading_is_guarded():
    sim = with_vfs()
    sim.nets["enp129s0v0"] = Net(addresses=["192.0.2.7"])
    refused(sim, "192.0.2.7", "allow: [management]", sriov=[at(PF1, vfs=[{"range": "0", "mac": MAC}])])


# --- Keeping ---------------------------------------------------------------------------------------------------------


def test_what_others_set_is_carried_over_a_change_of_the_count():
    sim = with_vfs()
    ip(sim, "vf 1 vlan 9 qos 2")
    ip(sim, "vf 1 trust on")
    ip(sim, f"vf 0 mac {MAC}")
    ip(sim, "vf 0 spoofchk off")
    for vf in sim.functions[PF1].vfs:
        sim.write("/sys/bus/pci/drivers/igbvf/unbind", vf)
    done = converged(sim, sriov=[at(PF1, vf_count=5)])
    vfs = attributes(sim)
    assert (vfs[1]["vlan"], vfs[1]["qos"], vfs[1]["trust"]) == (9, 2, True)
    assert (vfs[0]["mac"], vfs[0]["spoofchk"]) == (MAC, False)
    text = next(a["text"] for a in done["actions"] if a["action"] == "set_vf_attributes")
    assert f"mac {MAC} on VF 0 (as it was before)" in text
    assert "vlan 9 on VF 1 (as it was before)" in text


def test_a_mac_that_a_driver_made_up_is_not_carried_over():
    sim = with_vfs()
    assert attributes(sim)[0]["mac"] != link.NO_MAC
    done = converged(sim, sriov=[at(PF1, vf_count=3)])
    assert not any("mac" in a["text"] for a in done["actions"])
    assert not any(vf["by_pf"] for vf in attributes(sim))


def test_the_pf_keeps_a_mac_that_a_driver_made_up_until_the_vf_is_reset():
    """As the lab has it (docs/kernel-facts.md)."""
    sim = with_vfs()
    vf = sim.functions[sim.functions[PF1].vfs[0]]
    made_up = vf.attributes["mac"]
    for name in ("unbind", "bind"):
        sim.write(f"/sys/bus/pci/drivers/igbvf/{name}", vf.address)
        assert vf.attributes["mac"] == made_up != link.NO_MAC
    sim.write("/sys/bus/pci/drivers/igbvf/unbind", vf.address)
    sim.write(f"{DEVICES}/{vf.address}/reset", "1")
    assert vf.attributes["mac"] == link.NO_MAC


def test_a_mac_that_a_driver_made_up_goes_when_the_vf_is_taken_from_it():
    sim = with_vfs()
    ip(sim, f"vf 1 mac {MAC}")
    converged(sim, sriov=[at(PF1, vfs=[{"range": "0-1", "driver": "vfio-pci"}])])
    assert [vf["mac"] for vf in attributes(sim)] == [link.NO_MAC, MAC]
    converged(sim, sriov=[at(PF1, vf_count=3, vfs=[{"range": "0-1", "driver": "vfio-pci"}])])
    assert [vf["mac"] for vf in attributes(sim)][:2] == [link.NO_MAC, MAC]
    converged(sim, sriov=[at(PF1, state="absent")])
    assert [vf["by_pf"] for vf in attributes(sim)] == [False, True]


def test_a_mac_that_was_set_after_the_driver_came_is_carried_over():
    sim = with_vfs()
    ip(sim, f"vf 0 mac {MAC}")
    assert sim.functions[sim.functions[PF1].vfs[0]].mac != MAC
    converged(sim, sriov=[at(PF1, vf_count=3)])
    assert attributes(sim)[0]["mac"] == MAC


def test_wished_attributes_come_again_with_the_count():
    sim = lab()
    converged(sim, sriov=[ALL])
    converged(sim, sriov=[{**ALL, "vf_count": 6}], allow=("link_flap",))
    assert [vf["vlan"] for vf in attributes(sim)] == [100, 100, 0, 0, 0, 0]
    assert attributes(sim)[3]["max_tx_rate"] == 100


def test_a_reboot_and_its_replay_bring_all_back_but_rates_wait_for_the_link():
    sim = lab()
    converged(sim, sriov=[ALL])
    before = [dict(vf) for vf in attributes(sim)]
    sim.nets.clear()
    sim.nets["ens3"] = Net(addresses=["10.0.2.15", "fe80::1"], default_route=True)
    sim.reboot()
    result = replay.run(sim.host(environment={}, sources=None), None)
    assert result["failures"] == {}
    assert any("left to iovirt-link@0000:81:00.0.service" in warning for warning in result["warnings"])
    assert ["systemctl", "start", "--no-block", "iovirt-link@0000:81:00.0.service"] in sim.commands
    assert attributes(sim) == [*before[:3], {**before[3], "max_tx_rate": 0}]
    sim.sleep(60)
    replay.run(sim.host(environment={}, sources=None), PF1, after_link=True)
    assert attributes(sim) == before
    quiet(sim, sriov=[ALL])


def test_absent_gives_attributes_back_as_they_were():
    sim = with_vfs()
    ip(sim, "vf 0 vlan 9 qos 2")
    ip(sim, "vf 1 trust on")
    before, files = sim.snapshot()["attributes"], dict(sim.files)
    call(sim, sriov=[at(PF1, vf_defaults={"vlan": 5, "spoof_check": False, "trust": False})])
    ip(sim, "vf 1 spoofchk on")
    converged(sim, sriov=[at(PF1, state="absent")])
    assert sim.snapshot()["attributes"] == before
    assert sim.files == files


def test_absent_gives_attributes_back_through_a_change_of_the_count():
    sim = with_vfs()
    for vf in sim.functions[PF1].vfs:
        sim.write("/sys/bus/pci/drivers/igbvf/unbind", vf)
    ip(sim, f"vf 1 mac {MAC}")
    ip(sim, "vf 1 vlan 9")
    call(sim, sriov=[at(PF1, vf_count=1, vf_defaults={"vlan": 5, "trust": True, "driver": "default"})])
    converged(sim, sriov=[at(PF1, state="absent")])
    vfs = attributes(sim)
    assert [(vf["vlan"], vf["trust"]) for vf in vfs] == [(0, False), (9, False)]
    assert vfs[1]["mac"] == MAC


def test_absent_unsets_a_mac_where_the_driver_can():
    sim = with_vfs()
    call(sim, sriov=[at(PF1, vfs=[{"range": "0", "mac": MAC}])])
    converged(sim, sriov=[at(PF1, state="absent")])
    assert attributes(sim)[0]["by_pf"] is False


def test_a_port_is_set_up_and_given_back():
    sim = lab()
    converged(sim, sriov=[at(PF1, up=True)])
    assert sim.nets["enp129s0"].up
    converged(sim, sriov=[at(PF1, state="absent")])
    assert not sim.nets["enp129s0"].up


def test_a_port_that_carries_the_host_is_not_set_down():
    sim = lab()
    sim.nets["enp129s0"] = Net(addresses=["192.0.2.7"])
    refused(sim, "192.0.2.7", "management", sriov=[at(PF1, up=False)])


# --- Holders ---------------------------------------------------------------------------------------------------------


def test_mac_and_vlan_of_a_vf_in_use_are_its_holders():
    sim = lab()
    wish = at(PF1, vf_count=2, vf_defaults={"driver": "vfio-pci", "mac": "auto", "vlan": 5, "trust": True})
    call(sim, sriov=[wish])
    vf = sim.functions[sim.functions[PF1].vfs[0]]
    ip(sim, f"vf 0 mac {MAC}")
    ip(sim, "vf 0 vlan 77")
    sim.pids[4711] = ("qemu-system-x86", [f"/dev/vfio/{vf.group}"])
    result = quiet(sim, sriov=[wish])
    assert "mac, vlan, qos, vlan_proto of VF 0 left as it is: process 4711" in result["warnings"][0]
    ip(sim, "vf 0 trust off")
    call(sim, sriov=[wish])
    assert (vf.attributes["mac"], vf.attributes["vlan"], vf.attributes["trust"]) == (MAC, 77, True)
    del sim.pids[4711]
    sim._tree = None
    converged(sim, sriov=[wish])
    assert vf.attributes["vlan"] == 5


# --- Failing ---------------------------------------------------------------------------------------------------------


def test_a_refused_attribute_is_named_and_undone_and_other_ports_keep_theirs():
    sim = with_vfs()
    ip(sim, "vf 0 vlan 9")
    before = sim.snapshot()["attributes"]
    sim.ip_faults = [("*enp129s0 vf 1 trust*", errno.EOPNOTSUPP)]
    wish = {"vf_defaults": {"trust": True, "vlan": 5}}
    result = call(sim, sriov=[at(PF1, **wish), at(PF2, vf_count=2, **wish)])
    assert list(result["failures"]) == [PF1]
    assert "VF 1: trust true: the kernel answered: RTNETLINK answers: Operation not supported." in result["failures"][PF1]
    assert "It was undone" in result["failures"][PF1]
    assert {a: v for a, v in sim.snapshot()["attributes"].items() if a in before} == before
    assert [vf["vlan"] for vf in attributes(sim, PF2)] == [5, 5]


def test_an_unknown_driver_is_tried_and_what_it_refuses_is_reported():
    sim = with_vfs()
    assert drivers.can_set("igb", "trust") is True
    assert drivers.can_set("newnic", "trust") is None
    sim.add_driver("newnic", "8086:10c9", sriov=True, net=True)
    sim.run(["modprobe", "--", "newnic"])
    sim.functions[PF1].driver = "newnic"
    sim._tree = None
    sim.ip_faults = [("*query_rss*", errno.EOPNOTSUPP)]
    result = call(sim, sriov=[at(PF1, vf_defaults={"query_rss": True, "trust": True})])
    assert "VF 0: query_rss true: the kernel answered" in result["failures"][PF1]
    assert not any(vf["trust"] for vf in attributes(sim))


def test_a_count_that_fails_later_brings_the_attributes_of_others_back():
    sim = with_vfs()
    for vf in sim.functions[PF1].vfs:
        sim.write("/sys/bus/pci/drivers/igbvf/unbind", vf)
    ip(sim, f"vf 0 mac {MAC}")
    ip(sim, "vf 1 vlan 9")
    before = [dict(vf) for vf in attributes(sim)]
    sim.ip_faults = [("*vf 3 trust*", errno.EINVAL)]
    result = call(sim, sriov=[at(PF1, vf_count=4, vf_defaults={"trust": True})])
    assert "VF 3: trust true" in result["failures"][PF1]
    after = attributes(sim)
    assert len(after) == 2
    assert after[0] == before[0]
    assert after[1]["vlan"] == 9
    assert sim.functions[PF1].autoprobe


def test_an_accepted_value_that_is_not_there_is_a_failure():
    sim = with_vfs()
    sim.ip_faults = [("*trust*", 0)]
    result = call(sim, sriov=[at(PF1, vf_defaults={"trust": True})])
    assert "trust true was accepted, but the kernel shows false" in result["failures"][PF1]


def test_a_link_that_does_not_come_is_left_to_its_unit():
    sim = lab()
    sim.uncabled.add("enp129s0")
    result = call(sim, sriov=[at(PF1, up=True, vf_count=1, vf_defaults={"max_tx_rate": 100})])
    assert result["failures"] == {}
    assert sim.nets["enp129s0"].up
    assert attributes(sim)[0]["max_tx_rate"] == 0
    assert ["systemctl", "start", "--no-block", "iovirt-link@0000:81:00.0.service"] in sim.commands


def test_rates_wait_for_a_link_with_a_warning():
    sim = lab()
    wish = at(PF1, vf_count=2, vf_defaults={"max_tx_rate": 100})
    done = converged(sim, sriov=[wish])
    assert "left to iovirt-link@0000:81:00.0.service" in done["warnings"][0]
    assert "set max_tx_rate 100 on VFs 0-1" in done["warnings"][0]
    sim.nets["enp129s0"] = Net()
    assert converged(sim, sriov=[wish])["warnings"] == []
    assert [vf["max_tx_rate"] for vf in attributes(sim)] == [100, 100]


def test_a_batch_that_breaks_off_fails_all_of_it():
    assert link.failures("a\nb\nCommand failed -:3\nCannot find device \"x\"\nCommand failed -:5\n") == (
        {2: "a; b", 4: 'Cannot find device "x"'},
        "",
    )
    assert link.failures('Error: argument "5000" is wrong: Invalid "vlan" value\n\n')[1].startswith("Error: argument")


def test_a_network_device_that_is_renamed_meanwhile_is_found_again():
    sim = with_vfs()
    vf = sim.functions[sim.functions[PF1].vfs[0]]
    read = sim.names

    def names(path):
        found = read(path)
        if path.endswith(f"{vf.address}/net") and vf.ifname == "enp129s0v0":
            vf.ifname, sim._tree = "renamed0", None
        return found

    sim.names = names
    result = call(sim, sriov=[at(PF1, vfs=[{"range": "0", "mtu": 1400}])])
    assert result["failures"] == {}
    assert sim.nets["renamed0"].mtu == 1400


# --- Bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vf", "words"),
    [
        ({"vlan": 4095}, ("vlan 4095 is not from 0 to 4094",)),
        ({"vlan": 4096}, ("vlan 4096 is not from 0 to 4094",)),
        ({"vlan": -1}, ("vlan -1",)),
        ({"vlan": 5, "qos": 8}, ("qos 8 is not from 0 to 7",)),
        ({"qos": 3}, ("qos 3 is wished without a vlan",)),
        ({"vlan": 0, "qos": 3}, ("qos 3 is wished with vlan 0",)),
        ({"vlan": 5, "vlan_proto": "802.1ad"}, ("vlan_proto 802.1ad is wished", "igb cannot set that")),
        ({"mac": "01:00:5e:00:00:01"}, ("is a multicast address",)),
        ({"mac": "00:00:00:00:00:00"}, ("is no address of a device",)),
        ({"mac": "52:54:00:aa:bb"}, ("is no MAC address", "in quotes")),
        ({"mac": "8041230"}, ("is no MAC address",)),
        ({"link_state": "enable"}, ("link_state enable is wished, but its PF's driver igb cannot set that",)),
        ({"query_rss": True}, ("query_rss true is wished",)),
        ({"min_tx_rate": 10, "max_tx_rate": 100}, ("min_tx_rate 10 is wished",)),
        ({"min_tx_rate": 200, "max_tx_rate": 100}, ("min_tx_rate 200 is above max_tx_rate 100",)),
        ({"max_tx_rate": -1}, ("max_tx_rate -1 is not from 0 to 4294967295",)),
        ({"max_tx_rate": 5000}, ("max_tx_rate 5000 is above the 1000 Mbit/s of the link",)),
        ({"node_guid": "00:11:22:33:44:55:66:77"}, ("node_guid is wished, but the port is no InfiniBand port",)),
        ({"port_guid": "00:11"}, ("port_guid 00:11 is no GUID",)),
        ({"vlan": 0, "vlan_proto": "802.1ad"}, ("vlan_proto 802.1ad is wished with vlan 0",)),
        ({"mtu": 9217}, ("mtu 9217 is above 9216, the largest of its PF's enp129s0",)),
        ({"mtu": 10}, ("mtu 10 is not from 68 to 65535",)),
        ({"mtu": 9000, "driver": "vfio-pci"}, ("mtu is wished of its network device, but under vfio-pci it has none",)),
    ],
)
def test_bad_attributes_are_refused(vf, words):
    sim = lab()
    sim.nets["enp129s0"] = Net()
    refused(sim, PF1, "VF 0", *words, sriov=[at(PF1, vf_count=2, vfs=[{"range": "0", **vf}])])


def test_off_is_no_wish_for_something_a_driver_cannot_do():
    sim = lab()
    wish = {"link_state": "auto", "query_rss": False, "min_tx_rate": 0}
    converged(sim, sriov=[at(PF1, vf_count=2, vf_defaults=wish)])
    assert batches(sim) == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"vfs": [{"range": "0-1", "mac": MAC}]}, {}),
        ({"vfs": [{"range": "0", "mac": MAC}]}, {"vfs": [{"range": "1", "mac": MAC.upper()}]}),
        ({"vfs": [{"range": "0", "mac": "52:54:00:00:01:01"}]}, {}),
        ({"vfs": [{"range": "0", "mac": "52:54:00:00:00:01"}]}, {}),
    ],
)
def test_no_mac_twice_in_one_host(first, second):
    sim = lab()
    refused(sim, "would both have the MAC", sriov=[at(PF1, vf_count=2, **first), at(PF2, vf_count=2, **second)])


def test_no_address_that_the_host_has_now():
    """A port or a bridge with another address than the card's own."""
    sim = lab()
    sim.nets["enp130s0"] = Net(mac="52:54:00:ee:ee:ee")
    sim.nets["br0"] = Net(kind="bridge", mac="52:54:00:dd:dd:dd")
    for mac, who in (("52:54:00:ee:ee:ee", "enp130s0"), ("52:54:00:dd:dd:dd", "br0"), ("52:54:00:00:01:01", "enp130s0")):
        refused(sim, f"and {who} would both have the MAC", sriov=[at(PF1, vf_count=1, vf_defaults={"mac": mac})])


def test_what_rests_on_a_vf_has_its_address():
    """A bridge takes the address of a port; that is no second device."""
    sim = with_vfs()
    wish = [at(PF1, vfs=[{"range": "0", "mac": MAC}])]
    call(sim, sriov=wish)
    own = sim.functions[sim.functions[PF1].vfs[0]].ifname
    sim.nets["br0"] = Net(kind="bridge", mac=MAC, lowers=[own])
    sim._tree = None
    quiet(sim, sriov=wish)


def test_a_mac_that_an_earlier_call_declared_is_taken():
    sim = lab()
    wish = {"vf_count": 1, "vf_defaults": {"mac": MAC}}
    call(sim, sriov=[at(PF1, **wish)])
    sim.write(f"/sys/bus/pci/devices/{PF1}/sriov_numvfs", "0")
    sim.sleep(20)
    sentence = refused(sim, "would both have the MAC", sriov=[at(PF2, **wish)])
    assert f"VF 0 of {PF1} (as an earlier call declared it)" in sentence
    # Given back in the same call, it is free.
    converged(sim, sriov=[at(PF1, state="absent"), at(PF2, **wish)])


def test_a_boot_brings_back_what_was_let_through():
    """Whoever has the address now: the record is older."""
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=1, vf_defaults={"mac": MAC})])
    sim.reboot()
    sim.nets["br0"] = Net(kind="bridge", mac=MAC)
    sim._tree = None
    assert replay.run(sim.host(environment={}, sources=None), None)["failures"] == {}
    assert attributes(sim)[0]["mac"] == MAC


@pytest.mark.parametrize("address", [NVME, NSIM])
@pytest.mark.parametrize("wish", [{"mtu": 1500}, {"promisc": False}])
def test_vfs_that_are_no_network_functions_have_no_network_device(address, wish):
    refused(switches(), f"{next(iter(wish))} is wished", "no network functions", sriov=[at(address, vf_count=1, vf_defaults=wish)])


def test_a_vfio_driver_by_any_name_leaves_no_network_device():
    """mlx5_vfio_pci and its like, which do not begin with the word."""
    sim = switches()
    sim.add_driver("mlx5_vfio_pci", variant_of=frozenset({"15b3:1018"}))
    sim.registered |= {"mlx5_vfio_pci"}
    wish = {"driver": "mlx5_vfio_pci", "mtu": 9000}
    refused(sim, "under mlx5_vfio_pci it has none", sriov=[at(MLX5, vf_count=1, vf_defaults=wish)])
    call(sim, sriov=[at(MLX5, vf_count=1, vf_defaults={"driver": "mlx5_vfio_pci"})])
    done = call(sim, sriov=[at(MLX5, vf_count=1, vf_defaults={"driver": "mlx5_vfio_pci", "mac": MAC})])
    # The guest's driver learns the MAC when the guest starts: nobody takes the VF from its driver for it.
    assert [a["action"] for a in done["actions"] if a["device"] == MLX5] == ["declare", "set_vf_attributes"]


def test_a_vf_shows_itself_how_large_its_frames_can_be():
    sim = with_vfs()
    own = sim.functions[sim.functions[PF1].vfs[0]].ifname
    refused(sim, f"mtu 60000 is above 9216, the largest of {own}", sriov=[at(PF1, vfs=[{"range": "0", "mtu": 60000}])])


@pytest.mark.parametrize("up", [True, False])
def test_up_is_believed_only_when_it_is_seen(up, monkeypatch):
    sim = lab()
    sim.nets["enp129s0"] = Net(up=not up)
    sim._tree = None
    real = sim.run
    monkeypatch.setattr(sim, "run", lambda argv, data="": (0, "", "") if argv[:3] == ["ip", "link", "set"] else real(argv, data))
    result = call(sim, sriov=[at(PF1, up=up)], allow=("link_flap",))
    assert f"{'up' if up else 'down'} was accepted, but the kernel does not show it" in result["failures"][PF1]


@pytest.mark.parametrize("bad", [PF1, PF2])
def test_a_word_that_ip_does_not_take_fails_its_own_port_alone(bad, monkeypatch):
    """An older iproute2 ends the batch there (lab)."""
    sim, good = lab(), PF2 if bad == PF1 else PF1
    real = sim_ip.line_of
    monkeypatch.setattr(sim_ip, "line_of", lambda s, line: 'Error: argument "trust" is wrong' if " trust " in line else real(s, line))
    result = call(sim, sriov=[at(bad, vf_count=1, vf_defaults={"trust": True}), at(good, vf_count=2, vf_defaults={"vlan": 5})])
    assert list(result["failures"]) == [bad]
    assert "Is iproute2 too old" in result["failures"][bad]
    assert [vf["vlan"] for vf in attributes(sim, good)] == [5, 5]
    assert sim.functions[bad].vfs == []


def test_a_mac_of_a_vf_that_no_wish_names_counts_as_well():
    sim = with_vfs()
    ip(sim, f"vf 1 mac {MAC}")
    sentence = refused(sim, "would both have the MAC", sriov=[at(PF2, vf_count=1, vf_defaults={"mac": MAC})])
    assert f"VF 1 of {PF1}" in sentence
    converged(sim, sriov=[at(PF1, vfs=[{"range": "1", "mac": "auto"}, {"range": "0", "mac": MAC}])])


def test_a_pf_without_a_network_device_sets_no_attributes():
    sim = lab()
    refused(sim, NVME, "has no network device", sriov=[at(NVME, vf_count=1, vf_defaults={"mac": "auto"})])
    refused(sim, NVME, "has no network device", sriov=[at(NVME, up=True)])


def test_infiniband_has_guids_and_no_macs():
    assert drivers.can_set("mlx5_core", "mac", infiniband=True) is False
    assert drivers.can_set("mlx5_core", "node_guid", infiniband=True) is True
    assert drivers.can_set("mlx5_core", "node_guid") is False


def test_what_iproute2_prints_for_infiniband_is_understood():
    """Synthetic, by print_vfinfo of iproute2's ip/ipaddress.c."""
    said = {"vf": 0, "link_type": "infiniband", "address": ":".join(["00"] * 20), "node guid": "00:11:22:33:44:55:66:77",
            "port guid": "00:11:22:33:44:55:66:78", "link_state": "enable"}
    found = link.vfs({"vfinfo_list": [said]})[0]
    assert (found["node_guid"], found["port_guid"]) == ("00:11:22:33:44:55:66:77", "00:11:22:33:44:55:66:78")
    assert "mac" not in found


def test_the_facts_are_wishes_that_change_nothing():
    sim = lab()
    converged(sim, sriov=[ALL])
    facts = [wish for wish in call(sim, sriov=[ALL])["sriov"] if wish["match"]["address"] == [PF1]]
    call(sim, sriov=[{**facts[0], "up": True}])
    quiet(sim, sriov=[{**facts[0], "up": True}])
    assert [vf["vlan"] for vf in attributes(sim)] == [100, 100, 0, 0]


def test_the_table_of_drivers_in_the_documentation_is_the_engines():
    keys = ["mac", "vlan", "qos", "802.1ad", "spoof_check", "trust", "link_state", "min_tx_rate", "max_tx_rate", "query_rss"]
    shown = {True: "yes", False: "no", None: ""}
    page = (Path(__file__).resolve().parents[4] / "docs" / "sriov.md").read_text(encoding="utf-8")
    for driver in drivers._ETHERNET:
        cells = [shown[drivers.can_set(driver, key)] for key in keys]
        cells.append("yes" if driver in drivers.RATES_WITHOUT_LINK else "-")
        assert f"| {driver} | {' | '.join(cells)} |" in page


#: Attribute -> a wish for it that is none for nothing.
WISHES = {
    "mac": {"mac": MAC},
    "vlan": {"vlan": 5},
    "qos": {"vlan": 5, "qos": 3},
    "802.1ad": {"vlan": 5, "vlan_proto": "802.1ad"},
    "spoof_check": {"spoof_check": True},
    "trust": {"trust": True},
    "link_state": {"link_state": "enable"},
    "min_tx_rate": {"min_tx_rate": 10, "max_tx_rate": 100},
    "max_tx_rate": {"max_tx_rate": 100},
    "query_rss": {"query_rss": True},
}
TABLE = [(driver, key) for driver in (*sorted(drivers._ETHERNET), "newnic") for key in WISHES]


def port_of(driver):
    """The lab's first port under another driver (synthetic), with a VF that has none, so that any value differs."""
    sim = lab()
    sim.add_driver(driver, sriov=True, net=True)
    sim.registered.add(driver)
    sim.functions[PF1].driver = driver
    sim.nets["enp129s0"] = Net()
    sim._tree = None
    sim.write(f"{DEVICES}/{PF1}/sriov_numvfs", "1")
    sim.functions[sim.functions[PF1].vfs[0]].attributes["spoofchk"] = False
    return sim


@pytest.mark.parametrize(("driver", "key"), TABLE, ids=[f"{driver}-{key}" for driver, key in TABLE])
def test_what_a_driver_cannot_do_is_refused_and_what_nobody_knows_is_tried(driver, key):
    """The whole table: a no names attribute and driver, in check mode too; anything else is planned, and what the kernel refuses then is named
    with its VF and undone."""
    sim, option = port_of(driver), "vlan_proto" if key == "802.1ad" else key
    wish = at(PF1, vfs=[{"range": "0", **WISHES[key]}])
    known = [drivers.can_set(driver, name) for name in (key, *(name for name in WISHES[key] if name != "vlan_proto"))]
    if False in known:
        refused(sim, PF1, "VF 0", "is wished", f"its PF's driver {driver} cannot set that", *([f"{option} "] if known[0] is False else []), sriov=[wish])
        return
    before = sim.snapshot()["attributes"]
    sim.ip_faults = [("*vf 0*", errno.EOPNOTSUPP)]
    assert call(sim, sriov=[wish], check=True)["changed"] is True
    failure = call(sim, sriov=[wish])["failures"][PF1]
    assert f"{option} {link.shown(WISHES[key].get(option))}" in failure.partition("the kernel answered")[0].replace("'", " ")
    assert "VF 0: " in failure and "Operation not supported" in failure and "undone" in failure
    assert sim.snapshot()["attributes"] == before


EVERYTHING = {
    "mac": MAC, "vlan": 100, "qos": 3, "vlan_proto": "802.1ad", "spoof_check": True, "trust": True, "link_state": "disable",
    "min_tx_rate": 10, "max_tx_rate": 100, "query_rss": True,
}  # fmt: skip
TOLD = {
    "mac": MAC, "vlan": 100, "qos": 3, "proto": "802.1ad", "spoofchk": True, "trust": True, "state": "disable", "min_tx_rate": 10,
    "max_tx_rate": 100, "query_rss": True,
}  # fmt: skip


def test_every_attribute_is_set_survives_a_count_and_is_given_back():
    """Under a driver that has them all; on the real netdevsim it is a test of the lab's."""
    sim = port_of("netdevsim")
    before = [dict(vf) for vf in attributes(sim)]
    converged(sim, sriov=[at(PF1, vfs=[{"range": "0", **EVERYTHING}])], allow=("link_flap",))
    assert {key: attributes(sim)[0][key] for key in TOLD} == TOLD
    converged(sim, sriov=[at(PF1, vf_count=3, vfs=[{"range": "0", "trust": True}])], allow=("link_flap",))
    assert {key: attributes(sim)[0][key] for key in TOLD} == TOLD
    item = next(wish for wish in call(sim, sriov=[])["sriov"] if wish["match"]["address"] == [PF1])
    assert {key: item["vfs"][0][key] for key in EVERYTHING} == EVERYTHING
    converged(sim, sriov=[at(PF1, state="absent")], allow=("link_flap",))
    assert [{**vf, "by_pf": False} for vf in attributes(sim)] == before


def test_rates_go_in_one_message_and_the_one_that_is_not_named_stays():
    """struct ifla_vf_rate: what is left out would be 0."""
    sim = switches()
    call(sim, sriov=[at(MLX5, vf_count=1, vf_defaults={"min_tx_rate": 10, "max_tx_rate": 100})])
    sim.log.clear()
    converged(sim, sriov=[at(MLX5, vfs=[{"range": "0", "max_tx_rate": 200}])])
    (batch,) = batches(sim)
    assert batch == ["link set dev enp161s0f0np0 vf 0 min_tx_rate 10 max_tx_rate 200"]
    converged(sim, sriov=[at(MLX5, vfs=[{"range": "0", "min_tx_rate": 20}])])
    (vf,) = attributes(sim, MLX5)
    assert (vf["min_tx_rate"], vf["max_tx_rate"]) == (20, 200)
    refused(sim, MLX5, "min_tx_rate 300 is above max_tx_rate 200 (what is unset stays as it is)", sriov=[at(MLX5, vfs=[{"range": "0", "min_tx_rate": 300}])])


# --- More VFs than an answer holds ---------------------------------------------------------------------------------------


def crowded(count):
    """A port with many VFs (synthetic: igb has 7), the last but one of them in a VLAN of an operator."""
    sim = lab()
    sim.functions[PF1].total_vfs = 1000
    sim._tree = None
    sim.write(f"{DEVICES}/{PF1}/sriov_numvfs", str(count))
    ip(sim, f"vf {count - 2} vlan 77")
    return sim


def test_as_many_vfs_as_an_answer_holds_are_set():
    sim = lab()
    sim.functions[PF1].total_vfs = 1000
    sim._tree = None
    assert link.SHOWN["ether"] == 334
    call(sim, sriov=[at(PF1, vf_count=334, vf_defaults={"vlan": 5})])
    assert {vf["vlan"] for vf in attributes(sim)} == {5}
    refused(sim, "of 335 VFs the kernel cannot show", "room for 334", sriov=[at(PF1, vf_count=335, vf_defaults={"vlan": 5})])


@pytest.mark.parametrize("full", [False, True])
def test_what_is_not_shown_is_not_taken_for_nothing(full):
    sim = crowded(400)
    sim.netlink_full = full
    refused(sim, "VF 398", "does not show", "room for 334", sriov=[at(PF1, vfs=[{"range": "398", "vlan": 5}])])
    refused(sim, "cannot be carried over", "VFs", "vf_count: 0", sriov=[at(PF1, vf_count=399)])
    assert attributes(sim)[398]["vlan"] == 77
    # What speaks of no attribute goes on.
    converged(sim, sriov=[at(PF1, vfs=[{"range": "0", "driver": "vfio-pci"}])])
    converged(sim, sriov=[at(PF1, vf_count=0)])


def test_a_vf_that_cannot_be_read_back_is_a_failure_and_set_as_it_was():
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=2)])
    seen = []

    def vfinfo(sim, pf, real=sim_ip._all):
        seen.append(True)
        return real(sim, pf)[: 2 if len(seen) < 2 else 1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sim_ip, "vfinfo", vfinfo)
        result = call(sim, sriov=[at(PF1, vfs=[{"range": "1", "vlan": 5}])])
    assert "VF 1: what was set cannot be read back" in result["failures"][PF1]
    assert attributes(sim)[1]["vlan"] == 0


def test_a_port_that_goes_down_has_its_rates_set_before():
    """igb sets rates only with a link. Others made the VFs; the port was down, and is given back so."""
    sim = lab(igbvf_loaded=True)
    sim.write(f"{DEVICES}/{PF1}/sriov_numvfs", "2")
    before = (sim.snapshot()["attributes"], sim.snapshot()["files"])
    wish = {"up": True, "vf_defaults": {"max_tx_rate": 50}}
    call(sim, sriov=[at(PF1, **wish)])
    sim.sleep(60)
    done = converged(sim, sriov=[at(PF1, state="absent", **wish)])
    assert [a["text"] for a in done["actions"]][:2] == ["set max_tx_rate 0 on VFs 0-1", "set enp129s0 down"]
    assert (sim.snapshot()["attributes"], sim.snapshot()["files"]) == before and not sim.nets["enp129s0"].up
    # And so where a wish takes it down.
    call(sim, sriov=[at(PF1, **wish)])
    sim.sleep(60)
    converged(sim, sriov=[at(PF1, up=False, vf_defaults={"max_tx_rate": 70})])


def test_a_vlan_of_an_operator_comes_back_with_its_priority():
    sim = lab(igbvf_loaded=True)
    sim.write(f"{DEVICES}/{PF1}/sriov_numvfs", "2")
    assert sim.run(["ip", "-force", "-batch", "-"], "link set dev enp129s0 vf 0 vlan 7 qos 2\n") == (0, "", "")
    before = sim.snapshot()["attributes"]
    call(sim, sriov=[at(PF1, vf_defaults={"vlan": 0})])
    assert attributes(sim)[0]["vlan"] == 0 and attributes(sim)[0]["qos"] == 0
    converged(sim, sriov=[at(PF1, state="absent")])
    assert sim.snapshot()["attributes"] == before
