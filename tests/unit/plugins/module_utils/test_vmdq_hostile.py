# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Stations in hardware: what odd input, others on the host and half-done steps must not bring about."""

from __future__ import annotations

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import replay, users
from ansible_collections.iovirt.host.plugins.module_utils._engine.model import User
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils import sim_vmdq
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import (
    DOUBLE,
    I40E,
    IXGBE,
    PF1,
    at,
    call,
    converged,
    quiet,
    refused,
    stations,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import DEVICES, Net
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.test_vmdq import (
    PORT,
    TWO,
    feature,
    foreign,
    held,
    ip,
    kinds,
)


def in_a_container(monkeypatch, *names):
    """What users.py says of stations that are in another network namespace."""
    found = tuple(User(f"process 77 (containerd) (its macvlan {name} rides on it)", rides=name) for name in names)
    monkeypatch.setattr(users, "read", lambda host, state, handles: {DOUBLE: found})


# --- Names and other odd input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mv%d", "mv%", "ä" * 8, "mv#0", "'mv0'", '"mv0', "mv\\", "mv\x01", "all", "default", "", "a/b", ".."])
def test_a_name_that_the_kernel_or_ip_takes_for_something_else(name):
    sim = stations()
    refused(sim, DOUBLE, "no name of a network device", vmdq=[at(DOUBLE, stations=[{"name": name}])])


def test_the_mac_of_a_passthru_station_cannot_be_chosen():
    sim = stations()
    wish = [{"name": "pt0", "mode": "passthru", "mac": "52:54:00:0c:00:05"}]
    refused(sim, PF1, "pt0", "the MAC of its port", vmdq=[at(PF1, require_offload=False, stations=wish)])


def test_stations_that_exchange_their_addresses():
    sim = stations()
    one, two = "52:54:00:0c:00:01", "52:54:00:0c:00:02"
    call(sim, vmdq=[at(DOUBLE, stations=[{"name": "a", "mac": one}, {"name": "b", "mac": two}])])
    refused(sim, DOUBLE, f"b has the MAC {two} now", vmdq=[at(DOUBLE, stations=[{"name": "a", "mac": two}, {"name": "b", "mac": one}])])


def test_a_port_that_is_in_a_bridge_can_have_no_station():
    sim = stations()
    sim.nets["br0"] = Net(kind="bridge", mac="52:54:00:0f:00:02", lowers=[PORT])
    sim._tree = None
    refused(sim, DOUBLE, f"{PORT} is a leg of br0", "EBUSY", vmdq=[at(DOUBLE, stations=TWO)])


# --- What is not ours -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wish", [{"state": "absent"}, {"stations": [{"name": "mv0"}]}])
def test_a_name_that_somebody_took_meanwhile_is_left_alone(wish):
    """An adopted station went, and something else has its name: giving it back does not take that away."""
    sim = stations()
    foreign(sim, "adopted")
    call(sim, vmdq=[at(DOUBLE, stations=[{"name": "adopted", "mode": "vepa"}, {"name": "mv0"}])])
    ip(sim, "link del dev adopted")
    sim.nets["adopted"] = Net(kind="bridge", mac="52:54:00:0f:00:09")
    sim._tree = None
    result = call(sim, vmdq=[at(DOUBLE, **wish)])
    assert sim.nets["adopted"].kind == "bridge"
    assert result["failures"] == {} and "adopted" in " ".join(result["warnings"])


def test_a_name_that_is_taken_between_the_plan_and_the_step():
    sim = stations()
    call(sim, vmdq=[at(DOUBLE, stations=TWO)])
    seen = sim.run

    def late(argv, *rest):
        if argv[:3] == ["ethtool", "-k", PORT] and "mv0" in sim.nets and sim.nets["mv0"].kind == "macvlan":
            ip_del = "link del dev mv0\n"
            seen(["ip", "-batch", "-"], ip_del)
            sim.nets["mv0"] = Net(kind="bridge", mac="52:54:00:0f:00:09")
            sim._tree = None
        return seen(argv, *rest)

    sim.run = late
    result = call(sim, vmdq=[at(DOUBLE, stations=[{**TWO[0], "mac": "52:54:00:0c:00:09"}, TWO[1]])])
    assert sim.nets["mv0"].kind == "bridge" and sim.nets["mv0"].mac == "52:54:00:0f:00:09"
    assert "mv0" in result["failures"][DOUBLE]


def test_the_feature_of_others_stays_where_it_was_never_asked_for():
    """Stations that may be in software do not need the feature: what somebody switched on since stays on."""
    sim = stations()
    call(sim, vmdq=[at(DOUBLE, require_offload=False, stations=[{"name": "sv0"}])])
    feature(sim, "on")
    converged(sim, vmdq=[at(DOUBLE, state="absent")])
    assert sim.vmdq.ports[DOUBLE].on and "sv0" not in sim.nets


# --- Unset is untouched -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("later", [{"queues": {"combined": 4}}, {"offload": True}, {"queues": {"combined": 4}, "stations": None}])
def test_a_wish_without_stations_leaves_them_alone(later):
    """Two roles: one declares the stations, one the queues."""
    sim = stations()
    call(sim, vmdq=[at(DOUBLE, stations=TWO)])
    sim.vmdq.touched.clear()
    converged(sim, vmdq=[at(DOUBLE, **later)])
    assert held(sim) == ["mv0", "mv1"] and sim.vmdq.touched == {}
    converged(sim, vmdq=[at(DOUBLE, state="absent")])
    assert "mv0" not in sim.nets and "mv1" not in sim.nets


def test_an_empty_list_takes_them_away():
    sim = stations()
    call(sim, vmdq=[at(DOUBLE, stations=TWO)])
    converged(sim, vmdq=[at(DOUBLE, stations=[])])
    assert "mv0" not in sim.nets and held(sim) == []


def test_stations_in_software_stay_under_a_wish_without_stations():
    sim = stations()
    call(sim, vmdq=[at(DOUBLE, require_offload=False, stations=[{"name": "sv0", "mode": "source"}])])
    converged(sim, vmdq=[at(DOUBLE, require_offload=True, queues={"combined": 4})])
    assert "sv0" in sim.nets and not sim.vmdq.ports[DOUBLE].on


# --- Stations in other network namespaces -----------------------------------------------------------------------------


def test_one_of_ours_in_a_container_is_not_counted_twice(monkeypatch):
    """All three pools are ours; one of the stations went into a container, where it holds its pool."""
    sim = stations()
    three = [{"name": "mv0"}, {"name": "mv1"}, {"name": "mv2"}]
    call(sim, vmdq=[at(DOUBLE, stations=three)])
    sim.nets.pop("mv0")
    sim._tree = None
    in_a_container(monkeypatch, "mv0")
    for check in (True, False):
        result = call(sim, check=check, vmdq=[at(DOUBLE, stations=three)])
        assert kinds(result) == [] and not result["changed"]
    assert held(sim) == ["mv0", "mv1", "mv2"]


def test_pools_of_strangers_in_containers_are_still_counted():
    sim = stations()
    three = [{"name": "mv0"}, {"name": "mv1"}, {"name": "mv2"}]
    call(sim, vmdq=[at(DOUBLE, stations=three)])
    ip(sim, "link del dev mv0")
    sim.vmdq.ports[DOUBLE].held[9] = "in-a-container"
    refused(sim, DOUBLE, "1 in other network namespaces", vmdq=[at(DOUBLE, stations=three)])


def test_one_that_is_down_in_a_container_is_no_claim_to_a_pool(monkeypatch):
    sim = stations()
    call(sim, vmdq=[at(DOUBLE, stations=TWO)])
    port = sim.vmdq.ports[DOUBLE]
    port.held = {number: name for number, name in port.held.items() if name != "mv0"}
    sim.nets.pop("mv0")
    sim._tree = None
    in_a_container(monkeypatch, "mv0")
    result = call(sim, vmdq=[at(DOUBLE, stations=[*TWO, {"name": "mv2"}])])
    assert result["failures"] == {} and held(sim) == ["mv1", "mv2"]


# --- The proof --------------------------------------------------------------------------------------------------------


def test_without_the_forwarding_table_nothing_is_proven(monkeypatch):
    """A station in software and a stranger's pool: by the numbers alone it would look as if it was in hardware."""
    sim = stations()
    foreign(sim, "mv0")
    feature(sim, "on")
    sim.vmdq.ports[DOUBLE].held[1] = "in-a-container"
    seen = sim_vmdq.run
    monkeypatch.setattr(sim_vmdq, "run", lambda sim, argv: (255, "", "bridge: cannot dump") if argv[0] == "bridge" else seen(sim, argv))
    refused(sim, DOUBLE, "bridge -j fdb show", "cannot dump", vmdq=[at(DOUBLE, stations=[{"name": "mv0"}])])
    result = call(sim, vmdq=[at(DOUBLE, require_offload=False, stations=[{"name": "mv0"}])])
    assert [s["offloaded"] for s in result["vmdq_stations"]] == [False]


def test_a_new_station_that_cannot_be_proven_is_undone(monkeypatch):
    sim = stations()
    before = sim.snapshot()["vmdq"]
    seen = sim_vmdq.run
    monkeypatch.setattr(sim_vmdq, "run", lambda sim, argv: (255, "", "bridge: cannot dump") if argv[0] == "bridge" else seen(sim, argv))
    result = call(sim, vmdq=[at(DOUBLE, stations=TWO)])
    assert "cannot dump" in result["failures"][DOUBLE] and "forwarded in software" not in result["failures"][DOUBLE]
    assert sim.snapshot()["vmdq"] == before


# --- Pools and queues of ixgbe ----------------------------------------------------------------------------------------


def test_stations_of_others_are_counted_beside_vfs():
    sim = stations()
    feature(sim, "on", "enp193s0")
    for number in range(50):
        foreign(sim, f"f{number}", lower="enp193s0", mac=f"52:54:00:0f:02:{number:02x}")
    call(sim, sriov=[at(IXGBE, vf_count=10)])
    refused(sim, IXGBE, "10 VFs", "63 pools", vmdq=[at(IXGBE, stations=[{"name": f"x{n}"} for n in range(5)])])


def test_queues_that_the_layout_of_stations_leaves_no_room_for():
    """ixgbe_max_channels() with pools: those of one pool, 4 at most. A wish for more could never be true together with stations."""
    sim = stations()
    wish = at(IXGBE, queues={"combined": 16}, stations=[{"name": "x0"}])
    refused(sim, IXGBE, "16 combined queues", "4 at most", vmdq=[wish])
    refused(sim, IXGBE, "3 combined queues", "2 at most", vmdq=[at(IXGBE, queues={"combined": 3}, stations=[{"name": f"x{n}"} for n in range(16)])])
    converged(sim, vmdq=[at(IXGBE, queues={"combined": 4}, stations=[{"name": "x0"}])])


def test_queues_are_given_back_after_the_feature():
    """ixgbe keeps the layout of its pools until the feature is off, and has no room for the queues of before so long."""
    sim = stations()
    before = sim.snapshot()["vmdq"]
    call(sim, vmdq=[at(IXGBE, queues={"combined": 2}, stations=[{"name": "x0"}])])
    assert kinds(converged(sim, vmdq=[at(IXGBE, state="absent")])) == ["set_station", "set_offload", "set_queues"]
    assert sim.snapshot()["vmdq"] == before


def test_queues_that_have_no_room_beside_the_stations_of_others_stay():
    sim = stations()
    call(sim, vmdq=[at(IXGBE, queues={"combined": 2}, stations=[{"name": "x0"}])])
    foreign(sim, "theirs", lower="enp193s0")
    result = converged(sim, vmdq=[at(IXGBE, state="absent")])
    assert held(sim, IXGBE) == ["theirs"] and "x0" not in sim.nets
    assert "queues stay as they are: enp193s0 has room for 4 now, and had 32" in " ".join(result["warnings"])


# --- Giving back ------------------------------------------------------------------------------------------------------


def test_the_parameter_is_given_back_when_the_driver_is_gone():
    sim = stations()
    call(sim, vmdq=[at(DOUBLE, pools=8)])
    path = "/etc/modprobe.d/zz-iovirt-vmdqsim.conf"
    assert path in sim.files
    sim.write(f"{DEVICES}/{DOUBLE}/driver/unbind", DOUBLE)
    result = call(sim, vmdq=[at(DOUBLE, state="absent")])
    assert result["failures"] == {} and sim.files.get("/etc/iovirt/vmdq.json") is None
    assert path not in sim.files


def test_exclusive_with_an_empty_list_gives_all_back():
    sim = stations()
    before = sim.snapshot()["vmdq"]
    call(sim, vmdq=[at(DOUBLE, queues={"combined": 4}, stations=TWO, pools=6), at(I40E, offload=True)])
    result = converged(sim, vmdq=[], exclusive=("vmdq",))
    assert result["changed"] and sim.snapshot()["vmdq"] == before
    assert sim.files.get("/etc/iovirt/vmdq.json") is None and "/etc/modprobe.d/zz-iovirt-vmdqsim.conf" not in sim.files
    quiet(sim, vmdq=[], exclusive=("vmdq",))


# --- Network managers -------------------------------------------------------------------------------------------------


def rules(sim):
    return sim.files.get("/etc/udev/rules.d/99-iovirt.rules", "")


def test_network_managers_are_kept_off_macvtaps_alone():
    """A macvlan is for the host or a container, and has who configures it; a macvtap is a guest's."""
    sim = stations()
    mark = 'SUBSYSTEM=="net", ACTION!="remove", KERNEL=="mv1", ENV{ID_NET_MANAGED_BY}="iovirt.host", ENV{NM_UNMANAGED}="1"\n'
    done = converged(sim, vmdq=[at(DOUBLE, stations=TWO)])
    assert mark in rules(sim) and "mv0" not in rules(sim)
    # Before the station is there.
    assert [a["action"] for a in done["actions"]].index("install_replay") < [a["action"] for a in done["actions"]].index("set_station")
    assert done["diff"] and not any("mv1" in str(part) and "devices" in str(part) for part in done["actions"][0].get("after", {}).values())
    converged(sim, vmdq=[at(DOUBLE, stations=TWO[:1])])
    assert "mv1" not in rules(sim)
    converged(sim, vmdq=[at(DOUBLE, stations=[{"name": "a*[b]", "kind": "macvtap"}])])
    assert 'KERNEL=="a[*][[]b[]]"' in rules(sim)


def test_a_station_that_changes_its_kind_changes_hands():
    sim = stations()
    call(sim, vmdq=[at(DOUBLE, stations=TWO)])
    converged(sim, vmdq=[at(DOUBLE, stations=[{"name": "mv0", "kind": "macvtap"}, {**TWO[1], "kind": "macvlan"}])])
    assert 'KERNEL=="mv0"' in rules(sim) and "mv1" not in rules(sim)
    sim.reboot()
    result = replay.run(sim.host(environment={}, sources=None), None)
    assert result["failures"] == {} and 'KERNEL=="mv0"' in rules(sim)


# --- From one port to another -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("giver_first", [True, False])
@pytest.mark.parametrize("leave", [{"stations": []}, {"state": "absent"}, {"stations": [{"name": "mv1"}]}])
def test_a_station_changes_its_port_in_one_call(giver_first, leave):
    sim = stations()
    mac = "52:54:00:0c:00:01"
    call(sim, vmdq=[at(DOUBLE, stations=[{"name": "mv0", "mac": mac}, {"name": "mv1"}])])
    wishes = [at(DOUBLE, **leave), at(I40E, stations=[{"name": "mv0", "mac": mac}])]
    converged(sim, vmdq=wishes if giver_first else wishes[::-1])
    assert sim.nets["mv0"].lowers == ["enp194s0"] and held(sim, I40E) == ["mv0"]
    assert held(sim) == (["mv1"] if leave.get("stations") else [])


def test_an_address_changes_its_port_in_one_call():
    sim = stations()
    mac = "52:54:00:0c:00:01"
    call(sim, vmdq=[at(DOUBLE, stations=[{"name": "mv0", "mac": mac}])])
    converged(sim, vmdq=[at(I40E, stations=[{"name": "i0", "mac": mac}]), at(DOUBLE, stations=[{"name": "mv1"}])])
    assert "mv0" not in sim.nets and sim.nets["i0"].mac == mac


def test_two_ports_that_exchange_their_stations_need_a_call_more():
    sim = stations()
    call(sim, vmdq=[at(DOUBLE, stations=[{"name": "a"}]), at(I40E, stations=[{"name": "b"}])])
    refused(sim, "is taken", vmdq=[at(DOUBLE, stations=[{"name": "b"}]), at(I40E, stations=[{"name": "a"}])])


def test_a_port_that_cannot_give_its_station_up_keeps_it():
    sim = stations()
    call(sim, vmdq=[at(DOUBLE, stations=[{"name": "mv0"}])])
    seen = sim.run

    def late(argv, *rest):
        if argv[:2] == ["ip", "-batch"] and rest and rest[0].startswith("link del dev mv0"):
            return 1, "", "RTNETLINK answers: Device or resource busy\nCommand failed -:1\n"
        return seen(argv, *rest)

    sim.run = late
    before = sim.snapshot()["vmdq"]
    result = call(sim, vmdq=[at(DOUBLE, stations=[]), at(I40E, stations=[{"name": "mv0"}])])
    assert set(result["failures"]) == {DOUBLE, I40E} and "something else by now" in result["failures"][I40E]
    assert sim.snapshot()["vmdq"] == before


def test_the_initramfs_forgets_the_parameter_that_is_given_back():
    """It holds a copy of modprobe.d, and loads the drivers of network cards."""
    sim = stations()
    before = len(sim.commands)
    done = converged(sim, vmdq=[at(DOUBLE, pools=8)])
    assert any(command[0] == "update-initramfs" for command in sim.commands[before:]) and "make the initramfs anew" in str(done["actions"])
    before = len(sim.commands)
    done = converged(sim, vmdq=[at(DOUBLE, state="absent")])
    assert any(command[0] == "update-initramfs" for command in sim.commands[before:]) and "make the initramfs anew" in str(done["actions"])
