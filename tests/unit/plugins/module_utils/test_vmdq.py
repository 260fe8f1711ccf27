# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Stations in hardware: the plan, the proof, what is refused, and what is given back."""

from __future__ import annotations

import json

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import cli, engine, host_info, replay
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils import sim_params, sim_vmdq
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import (
    DOUBLE,
    I40E,
    IXGBE,
    PF1,
    SSH,
    at,
    call,
    converged,
    quiet,
    refused,
    stations,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import DEVICES, Net

PORT, IX, I4 = "enp195s0", "enp193s0", "enp194s0"
TWO = [{"name": "mv0", "mac": "auto"}, {"name": "mv1", "kind": "macvtap", "mac": "52:54:00:0c:00:01"}]


def ip(sim, *lines):
    assert sim.run(["ip", "-batch", "-"], "".join(f"{line}\n" for line in lines))[0] == 0


def foreign(sim, name, lower=PORT, mode="bridge", mac="52:54:00:0f:00:01", up=True):
    """A station that somebody made who is not the collection."""
    ip(sim, f"link add link {lower} name {name} address {mac} mtu 1500 type macvlan mode {mode}", *([f"link set dev {name} up"] if up else []))


def feature(sim, word, port=PORT):
    assert sim.run(["ethtool", "-K", port, "l2-fwd-offload", word])[0] == 0


def held(sim, address=DOUBLE):
    return sorted(sim.vmdq.ports[address].held.values())


def kinds(result):
    return [a["action"] for a in result["actions"] if a["action"] not in ("declare", "install_replay", "remove_replay")]


def offloaded(result):
    return {station["name"]: station["offloaded"] for station in result["vmdq_stations"]}


# --- Making -----------------------------------------------------------------------------------------------------------


def test_stations_appear_in_hardware():
    sim = stations()
    done = converged(sim, vmdq=[at(DOUBLE, queues={"combined": 4}, stations=TWO)])
    assert kinds(done) == ["set_queues", "set_offload", "set_station", "set_station"]
    assert held(sim) == ["mv0", "mv1"] and sim.vmdq.ports[DOUBLE].queues == {"combined": 4}
    assert offloaded(done) == {"mv0": True, "mv1": True}
    assert sim.nets["mv1"].mac == "52:54:00:0c:00:01"
    assert int(sim.nets["mv0"].mac[:2], 16) & 3 == 2
    assert sim.nets["mv0"].kind == "macvlan" and sim.nets["mv1"].kind == "macvtap" and sim.nets["mv1"].mode == "bridge"


def test_the_mac_of_auto_is_that_of_the_name_and_not_of_the_place():
    sim = stations()
    call(sim, vmdq=[at(DOUBLE, stations=TWO)])
    mac = sim.nets["mv0"].mac
    converged(sim, vmdq=[at(DOUBLE, stations=[TWO[1], {"name": "mv2"}, TWO[0]])])
    assert sim.nets["mv0"].mac == mac != sim.nets["mv2"].mac


def test_queues_alone_ask_for_nothing_else():
    sim = stations()
    done = converged(sim, vmdq=[at(IXGBE, queues={"combined": 8})])
    assert kinds(done) == ["set_queues"]
    assert not any(command[:2] == ["ethtool", "-k"] or command[0] == "bridge" for command in sim.commands)


def test_the_feature_alone():
    sim = stations()
    assert kinds(converged(sim, vmdq=[at(I40E, offload=True)])) == ["set_offload"]
    assert kinds(converged(sim, vmdq=[at(I40E, offload=False)])) == ["set_offload"]


def test_a_call_with_nothing_to_do_starts_two_processes_beside_ip():
    sim = stations()
    wishes = [at(DOUBLE, stations=TWO), at(IXGBE, stations=[{"name": "ix0"}])]
    call(sim, vmdq=wishes)
    sim.commands.clear()
    quiet(sim, vmdq=wishes)
    once = sim.commands[: len(sim.commands) // 2]
    assert sorted(command[0] for command in once) == ["bridge", "ethtool", "ethtool", "ip"]


def test_in_software_where_that_is_wished():
    sim = stations()
    wish = [{"name": "sv0", "mode": "source"}, {"name": "sv1"}]
    done = converged(sim, vmdq=[at(PF1, require_offload=False, stations=wish)])
    assert offloaded(done) == {"sv0": False, "sv1": False}
    assert kinds(done) == ["set_station", "set_station"]


def test_passthru_alone_has_the_ports_address():
    sim = stations()
    converged(sim, vmdq=[at(PF1, require_offload=False, stations=[{"name": "pt0", "mode": "passthru", "mac": "auto"}])])
    assert sim.nets["pt0"].mac == sim.functions[PF1].mac


# --- Changing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "taken_down"),
    [
        ({"mac": "52:54:00:0c:00:09"}, True),
        ({"mode": "private"}, False),
        ({"mtu": 1400}, False),
        ({"kind": "macvtap"}, True),
        ({"up": False}, True),
    ],
)
def test_one_changes_and_its_sibling_does_not(change, taken_down):
    sim = stations()
    call(sim, vmdq=[at(DOUBLE, stations=TWO)])
    sim.vmdq.touched.clear()
    done = converged(sim, vmdq=[at(DOUBLE, stations=[{**TWO[0], **change}, TWO[1]])])
    assert kinds(done) == ["set_station"]
    assert sim.vmdq.touched == ({"mv0": 1} if taken_down else {})
    assert held(sim) == (["mv1"] if change == {"up": False} else ["mv0", "mv1"])


def test_one_more_and_one_less():
    sim = stations()
    call(sim, vmdq=[at(DOUBLE, stations=TWO)])
    sim.vmdq.touched.clear()
    # All three pools are in use while the list changes: the one that goes has to go first.
    call(sim, vmdq=[at(DOUBLE, stations=[*TWO, {"name": "mv2"}])])
    converged(sim, vmdq=[at(DOUBLE, stations=[{"name": "mv3"}, TWO[0], TWO[1]])])
    assert held(sim) == ["mv0", "mv1", "mv3"] and "mv2" not in sim.nets
    assert sim.vmdq.touched == {"mv2": 1}


def test_a_station_that_fell_back_gets_its_pool_when_it_goes_down_and_up():
    sim = stations()
    foreign(sim, "mv0")
    done = converged(sim, vmdq=[at(DOUBLE, stations=[{"name": "mv0"}])])
    assert "down and up" in done["actions"][-1]["text"]
    assert held(sim) == ["mv0"] and sim.vmdq.touched == {"mv0": 1}


def test_a_stale_filter_is_seen_and_mended():
    """Somebody changed the address of a station that is up: its pool filters for the old one."""
    sim = stations()
    call(sim, vmdq=[at(DOUBLE, stations=TWO)])
    ip(sim, "link set dev mv1 address 52:54:00:0c:00:77")
    done = converged(sim, vmdq=[at(DOUBLE, stations=TWO)])
    assert kinds(done) == ["set_station"] and held(sim) == ["mv0", "mv1"]


def test_the_feature_that_somebody_switched_off_comes_back_with_all_pools():
    sim = stations()
    call(sim, vmdq=[at(DOUBLE, stations=TWO)])
    feature(sim, "off")
    done = converged(sim, vmdq=[at(DOUBLE, stations=TWO)])
    assert kinds(done) == ["set_offload", "set_station", "set_station"]
    assert offloaded(done) == {"mv0": True, "mv1": True}


def test_a_station_in_another_namespace_is_not_made_again():
    sim = stations()
    call(sim, vmdq=[at(DOUBLE, stations=TWO)])
    net = sim.nets.pop("mv0")
    sim.pids[77] = ("containerd", [])
    space = sim.spaces
    assert net and space
    # What users.py says of it there.
    from ansible_collections.iovirt.host.plugins.module_utils._engine import users
    from ansible_collections.iovirt.host.plugins.module_utils._engine.model import User

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(users, "read", lambda host, state, handles: {DOUBLE: (User("process 77 (containerd) (its macvlan mv0 rides on it)", rides="mv0"),)})
        for check in (True, False):
            result = call(sim, check=check, vmdq=[at(DOUBLE, stations=TWO)])
            assert kinds(result) == [] and not result["changed"]
            assert "mv0 was left alone" in " ".join(result["warnings"])
        result = call(sim, vmdq=[at(DOUBLE, state="absent")])
        assert result["failures"] == {} and "mv0 stays" in " ".join(result["warnings"])


# --- Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "wish", "words"),
    [
        (DOUBLE, {"stations": [{"name": f"mv{n}"} for n in range(4)]}, ["4 stations", "pools for (3)"]),
        (DOUBLE, {"stations": [{"name": "mv0", "mode": "passthru"}]}, ["mode passthru", "no filter by destination"]),
        (DOUBLE, {"stations": [{"name": "mv0", "mode": "source"}]}, ["mode source", "require_offload"]),
        (DOUBLE, {"stations": [{"name": "a", "mac": "52:54:00:0c:00:01"}, {"name": "b", "mac": "52:54:00:0C:00:01"}]}, ["b and a", "MAC"]),
        (DOUBLE, {"stations": [{"name": "a", "mac": "52:54:00:00:00:01"}]}, ["a and ens3", "MAC"]),
        (DOUBLE, {"stations": [{"name": "a", "mac": "01:00:5e:00:00:01"}]}, ["multicast"]),
        (DOUBLE, {"stations": [{"name": "a", "mac": "00:00:00:00:00:00"}]}, ["no address of a device"]),
        (DOUBLE, {"stations": [{"name": "a", "mac": "5254"}]}, ["no MAC address"]),
        (DOUBLE, {"stations": [{"name": "ens3"}]}, ["ens3 is taken", "port of its own"]),
        (DOUBLE, {"stations": [{"name": "taken"}]}, ["taken is taken", "a bridge", "another name"]),
        (DOUBLE, {"stations": [{"name": "elsewhere"}]}, ["elsewhere is taken", f"a macvlan on {I4}"]),
        (DOUBLE, {"stations": [{"name": "a b"}]}, ["no name of a network device"]),
        (DOUBLE, {"stations": [{"name": "sixteen-letters-"}]}, ["15 characters"]),
        (DOUBLE, {"stations": [{"name": "a"}, {"name": "a"}]}, ["named twice"]),
        (DOUBLE, {"stations": [{"name": "a", "mtu": 9000}]}, ["mtu 9000", "1500"]),
        (DOUBLE, {"stations": [{"name": "a", "kind": "ipvlan"}]}, ["kind ipvlan"]),
        (DOUBLE, {"stations": [{"name": "a", "mode": "bride"}]}, ["mode bride"]),
        (DOUBLE, {"require_offload": False, "stations": [{"name": "a", "mode": "passthru"}, {"name": "b"}]}, ["only one of its port"]),
        (DOUBLE, {"offload": False, "stations": [{"name": "a"}]}, ["offload is false"]),
        (DOUBLE, {"queues": {"combined": 5}}, ["5 combined", "1 to 4"]),
        (DOUBLE, {"queues": {"combined": 0}}, ["0 combined", "1 to 4"]),
        (DOUBLE, {"queues": {"rx": 2}}, ["no rx queues", "combined"]),
        (PF1, {"queues": {"combined": 2}}, ["cannot be read", "ethtool -l"]),
        (PF1, {"stations": [{"name": "a"}]}, ["off [fixed]", "igb", "ixgbe"]),
        (PF1, {"offload": True}, ["off [fixed]"]),
        (DOUBLE, {"layout": "15x4"}, ["no layout 15x4", "vmdqsim"]),
        (IXGBE, {"layout": "16x4"}, ["no layout 16x4", "15x4, 31x2, 63x1"]),
        (IXGBE, {"layout": "15x4", "stations": [{"name": f"x{n}"} for n in range(16)]}, ["16 stations", "layout 15x4", "(15)"]),
        (IXGBE, {"stations": [{"name": f"x{n}"} for n in range(64)]}, ["64 stations", "(63)"]),
        (IXGBE, {"pools": 4}, ["no parameter VMDQ", "modinfo"]),
        (DOUBLE, {"pools": 65}, ["no number from 0 to 64"]),
        ("0000:00:09.0", {"stations": [{"name": "a"}]}, ["no network device"]),
    ],
)
def test_what_is_refused(address, wish, words):
    sim = stations()
    sim_params.add(sim, "ixgbe", allow_unsupported_sfp=("bool", "0"))
    sim.nets["taken"] = Net(kind="bridge", mac="52:54:00:0f:00:02")
    foreign(sim, "elsewhere", lower=I4)
    refused(sim, address, *words, vmdq=[at(address, **wish)])


def test_a_feature_that_is_fixed_off_though_its_driver_has_it():
    sim = stations()
    sim.params["vmdqsim"].params["VMDQ"].value = "0"
    sim.vmdq.ports[DOUBLE].fixed = True
    refused(sim, DOUBLE, "off [fixed]", "vmdqsim", "parameter VMDQ gives this port 0 pools", vmdq=[at(DOUBLE, stations=TWO)])


def test_beside_an_xdp_program_there_are_no_pools():
    sim = stations()
    sim.nets[PORT] = Net(up=False, carrier=False, xdp=7)
    refused(sim, DOUBLE, "XDP", PORT, vmdq=[at(DOUBLE, stations=TWO)])


def test_pools_that_others_hold_are_counted_and_named():
    sim = stations()
    feature(sim, "on")
    foreign(sim, "theirs")
    sim.vmdq.ports[DOUBLE].held[2] = "in-a-container"
    said = refused(sim, DOUBLE, vmdq=[at(DOUBLE, stations=TWO)])
    assert "2 stations and 2 of others (macvlan theirs, 1 in other network namespaces) are more than enp195s0 has pools for (3)" in said
    converged(sim, vmdq=[at(DOUBLE, stations=TWO[:1])])


def test_two_ports_cannot_have_a_station_of_one_name_or_address():
    sim = stations()
    refused(sim, "a station mv0, too", vmdq=[at(DOUBLE, stations=[{"name": "mv0"}]), at(I40E, stations=[{"name": "mv0"}])])
    mac = "52:54:00:0c:00:01"
    wishes = [at(DOUBLE, stations=[{"name": "a", "mac": mac}]), at(I40E, stations=[{"name": "b", "mac": mac}])]
    refused(sim, "would both have the MAC", vmdq=wishes)


@pytest.mark.parametrize("first", ["vfs", "stations"])
def test_vfs_and_stations_draw_on_the_same_pools(first):
    """ixgbe: 64 pools, of which one is the port's. Whichever comes second is refused."""
    sim = stations()
    many = [at(IXGBE, stations=[{"name": f"x{n}"} for n in range(10)])]
    vfs = [at(IXGBE, vf_count=54)]
    call(sim, **({"sriov": vfs} if first == "vfs" else {"vmdq": many}))
    refused(sim, IXGBE, "54 VFs and 10 stations", "63 pools", **({"vmdq": many} if first == "vfs" else {"sriov": vfs}))
    other = stations()
    refused(other, IXGBE, "54 VFs and 10 stations", sriov=vfs, vmdq=many)
    converged(other, sriov=[at(IXGBE, vf_count=53)], vmdq=many)


def test_without_the_commands_it_says_so():
    sim = stations()
    sim.missing |= {"ethtool"}
    refused(sim, DOUBLE, "ethtool is not there", vmdq=[at(DOUBLE, stations=TWO)])
    refused(sim, DOUBLE, "ethtool is not there", vmdq=[at(DOUBLE, queues={"combined": 4})])


def test_a_pool_that_nobody_foresaw_to_be_missing_fails_and_is_undone():
    """i40e with more processors than its card has vectors for: how many it got it does not say. One station too many is refused by the step
    itself, and all of it is undone."""
    sim = stations(cpus=128)
    assert (sim.vmdq.ports[I40E].card.lan - 32) // 4 == 21
    wishes = [at(I40E, stations=[{"name": f"i{n}"} for n in range(22)])]
    announced = call(sim, check=True, vmdq=wishes)
    assert {a["certainty"] for a in announced["actions"] if a["action"] == "set_station"} == {"predicted"}
    before = sim.snapshot()["vmdq"]
    result = call(sim, vmdq=wishes)
    said = result["failures"][I40E]
    assert "i21 is forwarded in software: enp194s0 gave it no pool. 21 pools" in said and "undone" in said
    assert sim.snapshot()["vmdq"] == before


# --- Guards -----------------------------------------------------------------------------------------------------------


def test_a_station_with_an_address_of_the_host_is_not_taken():
    sim = stations()
    call(sim, vmdq=[at(DOUBLE, stations=TWO)])
    sim.nets["mv0"].addresses.append("192.0.2.7")
    sim._tree = None
    for wish in (at(DOUBLE, stations=TWO[1:]), at(DOUBLE, state="absent"), at(DOUBLE, stations=[{**TWO[0], "mac": "52:54:00:0c:00:09"}, TWO[1]])):
        refused(sim, DOUBLE, "station mv0 carries the address 192.0.2.7", "allow: [management]", vmdq=[wish])
    # Its sibling may go.
    converged(sim, vmdq=[at(DOUBLE, stations=TWO[:1])])
    assert call(sim, vmdq=[at(DOUBLE, state="absent")], allow=("management",))["failures"] == {}
    assert "mv0" not in sim.nets


def test_a_macvtap_that_a_guest_has_open_is_not_taken():
    sim = stations()
    call(sim, vmdq=[at(DOUBLE, stations=TWO)])
    sim.pids[4242] = ("qemu-system-x86", [f"/dev/tap{sim.index('mv1')}"])
    sim._tree = None
    refused(sim, DOUBLE, "mv1 is in use by process 4242 (qemu-system-x86)", "allow: [in_use]", vmdq=[at(DOUBLE, stations=TWO[:1])])
    converged(sim, vmdq=[at(DOUBLE, stations=TWO[1:])])


def test_new_queues_of_a_port_in_use_take_its_link_down():
    sim = stations()
    sim.nets[IX] = Net(addresses=["192.0.2.8"])
    for wish in (at(IXGBE, queues={"combined": 8}), at(IXGBE, stations=[{"name": "x0"}])):
        refused(sim, IXGBE, "takes the running link of enp193s0 (the address 192.0.2.8) down", "allow: [link_flap]", vmdq=[wish])
    result = call(sim, vmdq=[at(IXGBE, stations=[{"name": "x0"}])], allow=("link_flap",))
    assert result["failures"] == {}
    # One more is in the same layout.
    converged(sim, vmdq=[at(IXGBE, stations=[{"name": "x0"}, {"name": "x1"}])])


def test_a_port_that_vfio_has_is_not_for_stations():
    sim = stations()
    call(sim, vmdq=[at(DOUBLE, stations=TWO)])
    refused(sim, DOUBLE, "vfio", vfio=[at(DOUBLE)])


# --- Giving back ------------------------------------------------------------------------------------------------------


def test_absent_leaves_it_as_it_was():
    sim = stations()
    before = sim.snapshot()
    call(sim, vmdq=[at(DOUBLE, queues={"combined": 4}, stations=TWO, pools=4)])
    call(sim, vmdq=[at(DOUBLE, stations=[{"name": "mv2"}])])
    done = converged(sim, vmdq=[at(DOUBLE, state="absent")])
    assert kinds(done) == ["set_station", "set_offload", "set_queues", "set_module_options"]
    assert sim.snapshot()["vmdq"] == before["vmdq"] and sim.files.get("/etc/iovirt/vmdq.json") is None


def test_what_others_made_stays_as_it_was():
    sim = stations()
    feature(sim, "on")
    foreign(sim, "theirs")
    foreign(sim, "adopted", mac="52:54:00:0f:00:03", mode="vepa")
    before = sim.snapshot()["vmdq"]
    call(sim, vmdq=[at(DOUBLE, stations=[{"name": "adopted", "mode": "private", "mac": "52:54:00:0f:00:04"}, {"name": "mv0"}])])
    assert sim.nets["adopted"].mode == "private" and sim.nets["theirs"].mode == "bridge"
    converged(sim, vmdq=[at(DOUBLE, stations=[{"name": "mv0"}])])
    assert sim.nets["adopted"].mode == "vepa" and sim.nets["adopted"].mac == "52:54:00:0f:00:03"
    converged(sim, vmdq=[at(DOUBLE, state="absent")])
    # It was set down and up for its address, so it is in hardware again or not as pools are free.
    after = sim.snapshot()["vmdq"][DOUBLE]
    assert (after["on"], after["stations"]) == (before[DOUBLE]["on"], before[DOUBLE]["stations"])


def test_the_feature_stays_on_for_whom_it_serves():
    sim = stations()
    call(sim, vmdq=[at(DOUBLE, stations=TWO)])
    foreign(sim, "theirs")
    result = call(sim, vmdq=[at(DOUBLE, state="absent")])
    assert "stays on: macvlan theirs" in " ".join(result["warnings"])
    assert held(sim) == ["theirs"] and sim.vmdq.ports[DOUBLE].on


def test_exclusive_gives_back_what_is_not_named():
    sim = stations()
    call(sim, vmdq=[at(DOUBLE, stations=TWO), at(I40E, stations=[{"name": "i0"}])])
    converged(sim, vmdq=[at(I40E, stations=[{"name": "i0"}])], exclusive=("vmdq",))
    assert held(sim) == [] and "mv0" not in sim.nets and held(sim, I40E) == ["i0"]


def test_what_was_never_touched_is_left_alone():
    sim = stations()
    foreign(sim, "theirs")
    quiet(sim, vmdq=[at(DOUBLE, state="absent")])


# --- The parameter ----------------------------------------------------------------------------------------------------


def test_the_parameter_waits_for_the_next_load():
    sim = stations()
    done = converged(sim, vmdq=[at(DOUBLE, pools=8)])
    assert done["reboot_required"] and "VMDQ is 4 until the module is loaded again" in done["reboot_reasons"][0]
    assert "options vmdqsim VMDQ=8\n" in sim.files["/etc/modprobe.d/zz-iovirt-vmdqsim.conf"]
    assert engine.resource_info(sim.host(environment=SSH), "vmdq", None)["facts"][0]["parameter"] == {"running": 4, "next_load": 8}
    sim.reboot()
    assert sim.params["vmdqsim"].params["VMDQ"].value == "8"
    converged(sim, vmdq=[at(DOUBLE, pools=8, stations=[{"name": f"mv{n}"} for n in range(7)])])
    converged(sim, vmdq=[at(DOUBLE, state="absent")])
    assert "/etc/modprobe.d/zz-iovirt-vmdqsim.conf" not in sim.files


def test_each_port_has_its_place_in_the_parameter():
    sim = stations()
    second = "0000:c4:00.0"
    from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import Pci

    sim.add(Pci(second, "1234:1111", "020000", parent="/sys/devices/pci0000:c4", ifname="enp196s0", mac="52:54:00:00:0b:09"))
    sim.power_on("root=UUID=1d9f ro console=ttyS0 intel_iommu=on quiet")
    path = "/etc/modprobe.d/zz-iovirt-vmdqsim.conf"
    converged(sim, vmdq=[at(second, pools=6)])
    assert "VMDQ=-1,6\n" in sim.files[path]
    converged(sim, vmdq=[at(DOUBLE, pools=3)])
    assert "VMDQ=3,6\n" in sim.files[path]
    converged(sim, vmdq=[at(second, state="absent")])
    assert "VMDQ=3\n" in sim.files[path]


# --- Reboot and reports -----------------------------------------------------------------------------------------------


def test_the_boot_replay_brings_all_back():
    sim = stations()
    call(sim, vmdq=[at(DOUBLE, queues={"combined": 4}, stations=TWO), at(I40E, offload=True)])
    mac = sim.nets["mv0"].mac
    sim.reboot()
    assert "mv0" not in sim.nets and not sim.vmdq.ports[DOUBLE].on
    result = replay.run(sim.host(environment={}, sources=None), None)
    assert result["failures"] == {}
    assert held(sim) == ["mv0", "mv1"] and sim.nets["mv0"].mac == mac and sim.vmdq.ports[I40E].on
    assert replay.run(sim.host(environment={}, sources=None), None)["changed"] is False


def test_so_does_the_replay_of_one_port_when_its_driver_comes_back():
    sim = stations()
    call(sim, vmdq=[at(DOUBLE, stations=TWO)])
    sim.write(f"{DEVICES}/{DOUBLE}/driver/unbind", DOUBLE)
    assert "mv0" not in sim.nets
    sim.write("/sys/bus/pci/drivers_probe", DOUBLE)
    assert f'KERNEL=="{DOUBLE}", ENV{{DRIVER}}!="*vfio*"' in sim.files["/etc/udev/rules.d/99-iovirt.rules"]
    assert replay.run(sim.host(environment={}, sources=None), DOUBLE)["failures"] == {}
    assert held(sim) == ["mv0", "mv1"]


def test_the_report_of_a_host():
    sim = stations()
    call(sim, vmdq=[at(DOUBLE, stations=TWO)])
    before = sim.snapshot()
    found = {f["address"]: f["vmdq"] for f in host_info.facts(sim.host(environment=SSH))["host"]["functions"]}
    assert sim.snapshot() == before
    assert found[DOUBLE]["ways"] == ["l2-fwd-offload", "module parameter VMDQ"]
    assert (found[DOUBLE]["pools"], found[DOUBLE]["pools_used"]) == (3, 2)
    assert found[DOUBLE]["holders"] == ["macvlan mv0", "macvtap mv1"]
    assert (found[IXGBE]["pools"], found[IXGBE]["pools_with_vfs"], found[I40E]["pools"]) == (63, True, 16)
    assert found[PF1]["ways"] == [] and found[PF1]["pools"] == 0
    assert found["0000:00:09.0"] is None


def test_what_is_reported_is_input(capsys):
    sim = stations()
    feature(sim, "on")
    foreign(sim, "theirs")
    call(sim, vmdq=[at(I40E, stations=[{"name": "i0"}])])
    export = engine.resource_info(sim.host(environment=SSH), "vmdq", None)
    quiet_devices = export["devices"]
    assert {d["match"]["address"][0] for d in quiet_devices} == {I40E, DOUBLE}
    result = call(sim, vmdq=quiet_devices)
    assert kinds(result) == []
    quiet(sim, vmdq=quiet_devices)
    status = cli._found  # the table of `iovirt status`
    assert status
    state = engine.read.read_state(sim.host(environment=SSH), engine.Needs())
    assert cli._in_short(state.stored["vmdq"]["devices"][I40E]["wish"]) == "1 station"
    assert cli._in_short({"stations": [{"name": "i0", "offloaded": True}]}) == "1 station, 1 in hardware"
    assert json.dumps(export)


def test_the_simulated_port_behaves_as_the_lab_did():
    """Facts that the plan relies on (docs/kernel-facts.md)."""
    sim = stations()
    foreign(sim, "early")
    feature(sim, "on")
    assert held(sim) == []
    for number in range(4):
        foreign(sim, f"s{number}", mac=f"52:54:00:0f:01:0{number}")
    # The fourth found none, and says nothing of it.
    assert held(sim) == ["s0", "s1", "s2"] and sim.nets["s3"].up
    ip(sim, "link set dev s0 down")
    assert held(sim) == ["s1", "s2"]
    macs = {entry["mac"] for entry in sim_vmdq._fdb(sim) if entry["ifname"] == PORT}
    assert {"52:54:00:0f:00:01", "52:54:00:0f:01:03"} <= macs and "52:54:00:0f:01:01" not in macs
