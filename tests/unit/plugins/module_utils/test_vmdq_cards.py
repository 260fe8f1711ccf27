# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Stations on ports of ixgbe, i40e and ice: SYNTHETIC cards, made from their drivers' source (sim_vmdq_cards.py)."""

from __future__ import annotations

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import host_info, replay
from ansible_collections.iovirt.host.plugins.module_utils._engine.vmdq import layouts
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils import sim_params
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import (
    E810,
    I40E,
    IXGBE,
    SSH,
    at,
    call,
    converged,
    quiet,
    refused,
    stations,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim_vmdq_cards import Crash, I40e, Ixgbe
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.test_vmdq import feature, foreign, held, kinds

IX, I4, E8 = "enp193s0", "enp194s0", "enp197s0"


def some(count, prefix="x"):
    return [{"name": f"{prefix}{number}"} for number in range(count)]


def facts(sim, address):
    found = {f["address"]: f["vmdq"] for f in host_info.facts(sim.host(environment=SSH))["host"]["functions"]}
    return found[address]


def intel_ice(**more):
    """E810 with Intel's own driver, which has the feature."""
    sim = stations()
    sim.vmdq.ports[E810].fixed = False
    for key, value in more.items():
        setattr(sim.vmdq.ports[E810].card, key, value)
    return sim


def with_vfs(count):
    sim = stations()
    if count:
        call(sim, sriov=[at(IXGBE, vf_count=count)])
    return sim


# --- The reckoning against the driver, step by step --------------------------------------------------------------------


@pytest.mark.parametrize("vfs", range(64))
def test_layouts_of_ixgbe_are_those_that_the_driver_comes_to(vfs):
    card = Ixgbe(cpus=64)
    seen = []
    count = 0
    while card.take(vfs) is not None:
        count += 1
        room, queues, _mask = card._laid_out(vfs)
        if not seen or seen[-1] != (room - 1, queues):
            # The driver has just laid its queues out anew: not a station earlier, not a station later.
            assert count == (seen[-1][0] if seen else 0) + 1
            seen.append((room - 1, queues))
    assert [(each.stations, each.queues) for each in layouts.VMDQ["ixgbe"].beside_vfs(vfs)] == seen
    assert count == 63 - vfs


def test_layouts_have_the_names_that_intel_gives_them():
    assert [each.name for each in layouts.VMDQ["ixgbe"].beside_vfs(0)] == ["15x4", "31x2", "63x1"]


@pytest.mark.parametrize("cpus", [1, 2, 4, 8, 9, 16, 17, 32, 33, 48, 64, 65, 100])
def test_pools_of_i40e_are_those_that_the_driver_gives(cpus):
    card = I40e(cpus)
    count = 0
    while card.take(0) is not None:
        count += 1
    assert card.lan == cpus and layouts.VMDQ["i40e"].of_vectors(cpus).stations == count


@pytest.mark.parametrize("in_card", [9, 33, 65, 129])
@pytest.mark.parametrize("cpus", [4, 8, 16, 24, 32, 64, 96, 128])
def test_no_number_of_queues_that_is_allowed_crashes_the_kernel(cpus, in_card):
    """Whatever the card has, and whatever somebody set its queues to before."""
    allowed = 0
    for queues in range(1, cpus + 1):
        card = I40e(cpus, in_card)
        most = min(card.most, cpus, card.vectors() - 1)
        if not card.set_channels(queues, 0):
            continue
        if not layouts.too_few(layouts.VMDQ["i40e"], queues, most):
            allowed += 1
            card.take(0)
    assert allowed or in_card == 9


def test_the_numbers_that_do_crash_it():
    """The example of the report to netdev: 32 vectors, 8 queues. And the last one that does."""
    for queues in (8, 16):
        card = I40e(cpus=32)
        card.set_channels(queues, 0)
        with pytest.raises(Crash):
            card.take(0)
        assert layouts.too_few(layouts.VMDQ["i40e"], queues, 32)
    assert not layouts.too_few(layouts.VMDQ["i40e"], 17, 32)


# --- ixgbe -------------------------------------------------------------------------------------------------------------


def test_ixgbe_read_planned_applied_and_replayed():
    sim = stations()
    before = sim.snapshot()
    seen = facts(sim, IXGBE)
    assert (seen["ways"], seen["pools"], seen["pools_used"], seen["holders"]) == (["l2-fwd-offload"], 63, 0, [])
    assert (seen["offload"], seen["offload_fixed"], sim.snapshot()) == (False, False, before)
    done = converged(sim, vmdq=[at(IXGBE, queues={"combined": 4}, stations=some(15))])
    assert kinds(done) == ["set_queues", "set_offload", *["set_station"] * 15]
    assert {a["certainty"] for a in done["actions"]} == {"certain"}
    assert len(held(sim, IXGBE)) == 15 and sim.vmdq.ports[IXGBE].card.channels(0) == (4, 4)
    seen = facts(sim, IXGBE)
    assert seen["pools_used"] == 15 and len(seen["holders"]) == 15
    sim.reboot()
    assert held(sim, IXGBE) == []
    assert replay.run(sim.host(environment={}, sources=None), None)["failures"] == {}
    assert len(held(sim, IXGBE)) == 15
    quiet(sim, vmdq=[at(IXGBE, queues={"combined": 4}, stations=some(15))])
    converged(sim, vmdq=[at(IXGBE, state="absent")])
    assert held(sim, IXGBE) == [] and not sim.vmdq.ports[IXGBE].on


@pytest.mark.parametrize("number", [15, 16, 31, 32, 63])
def test_ixgbe_has_all_its_pools(number):
    sim = stations()
    done = converged(sim, vmdq=[at(IXGBE, stations=some(number))])
    assert len(held(sim, IXGBE)) == number and all(station["offloaded"] for station in done["vmdq_stations"])


def test_ixgbe_has_no_64th():
    said = refused(stations(), IXGBE, vmdq=[at(IXGBE, stations=some(64))])
    assert "64 stations are more than enp193s0 has pools for (63)" in said


@pytest.mark.parametrize(
    ("vfs", "layout", "most"),
    [(0, "15x4", 15), (0, "31x2", 31), (0, "63x1", 63), (16, "15x4", 15), (20, "15x4", 11), (20, "31x2", 31), (20, "63x1", 43), (40, "31x2", 23)],
)
def test_a_wished_layout_has_less_room_beside_vfs(vfs, layout, most):
    sim = with_vfs(vfs)
    said = refused(sim, IXGBE, vmdq=[at(IXGBE, layout=layout, stations=some(most + 1))])
    assert f"{most + 1} stations are more than the layout {layout} has{f' beside {vfs} VFs' if vfs else ''} ({most})" in said
    converged(sim, vmdq=[at(IXGBE, layout=layout, stations=some(most))])
    queues = sim.vmdq.ports[IXGBE].card._laid_out(vfs)[1]
    assert len(held(sim, IXGBE)) == most and queues >= int(layout.partition("x")[2])


def test_a_layout_that_vfs_leave_no_room_for():
    sim = with_vfs(40)
    said = refused(sim, IXGBE, vmdq=[at(IXGBE, layout="15x4", stations=some(1))])
    assert "the layout 15x4 has beside 40 VFs (0)" in said


def test_vfs_and_a_layout_of_one_call_are_reckoned_together():
    sim = stations()
    said = refused(sim, IXGBE, sriov=[at(IXGBE, vf_count=20)], vmdq=[at(IXGBE, layout="15x4", stations=some(12))])
    assert "12 stations are more than the layout 15x4 has beside 20 VFs (11)" in said
    converged(sim, sriov=[at(IXGBE, vf_count=20)], vmdq=[at(IXGBE, layout="15x4", stations=some(11))])


def test_vfs_are_among_those_that_have_the_pools():
    sim = with_vfs(8)
    call(sim, vmdq=[at(IXGBE, stations=some(2))])
    seen = facts(sim, IXGBE)
    assert (seen["pools"], seen["pools_used"], seen["pools_with_vfs"]) == (63, 10, True)
    assert seen["holders"] == ["macvlan x0", "macvlan x1", "8 VFs"]


def test_the_last_pool_of_ixgbe_goes_to_a_vf_or_to_a_station():
    sim = with_vfs(62)
    converged(sim, vmdq=[at(IXGBE, stations=some(1))])
    assert held(sim, IXGBE) == ["x0"]
    refused(sim, IXGBE, "62 VFs and 2 stations", "63 pools", vmdq=[at(IXGBE, stations=some(2))])
    refused(sim, IXGBE, "63 VFs and 1 station in hardware", "63 pools", sriov=[at(IXGBE, vf_count=63)])


def test_vfs_that_go_and_stations_that_come_are_one_call():
    sim = with_vfs(60)
    converged(sim, sriov=[at(IXGBE, vf_count=10)], vmdq=[at(IXGBE, stations=some(20))])
    converged(sim, sriov=[at(IXGBE, vf_count=0)], vmdq=[at(IXGBE, stations=some(63))])


def test_stations_that_go_and_vfs_that_come_are_two():
    """The driver answers EPERM to more VFs than its stations of the moment leave pools for (ixgbe_pci_sriov_enable)."""
    sim = with_vfs(10)
    call(sim, vmdq=[at(IXGBE, stations=some(20))])
    both = {"sriov": [at(IXGBE, vf_count=50)], "vmdq": [at(IXGBE, stations=some(5))]}
    said = refused(sim, IXGBE, "50 VFs and 20 stations", "63 pools", **both)
    assert "Take stations away first" in said
    converged(sim, vmdq=[at(IXGBE, stations=some(5))])
    converged(sim, **both)


def test_ixgbe_says_when_its_queues_are_laid_out_anew():
    """Under 20 VFs that is for the 12th station, not the 16th."""
    sim = with_vfs(20)
    call(sim, vmdq=[at(IXGBE, stations=some(11))])
    sim.nets[IX] = sim.netdevs()[IX][1]
    sim.nets[IX].addresses.append("192.0.2.8")
    sim.nets[IX].up = sim.nets[IX].carrier = True
    sim._tree = None
    refused(sim, IXGBE, "allow: [link_flap]", vmdq=[at(IXGBE, stations=some(12))])
    assert call(sim, vmdq=[at(IXGBE, stations=some(12))], allow=("link_flap",))["failures"] == {}
    converged(sim, vmdq=[at(IXGBE, stations=some(16))])


@pytest.mark.parametrize(("vfs", "count", "most"), [(0, 15, 4), (0, 16, 2), (0, 32, 1), (20, 11, 4), (20, 12, 2), (33, 1, 2)])
def test_queues_of_ixgbe_beside_stations_and_vfs(vfs, count, most):
    sim = with_vfs(vfs)
    if sim.vmdq.ports[IXGBE].card.channels(vfs)[0] > most:
        refused(sim, IXGBE, f"{most + 1} combined queues cannot stay beside {count} station", f"{most} at most",
                vmdq=[at(IXGBE, queues={"combined": most + 1}, stations=some(count))])
    converged(sim, vmdq=[at(IXGBE, queues={"combined": most}, stations=some(count))])
    assert sim.vmdq.ports[IXGBE].card.channels(vfs)[1] == most


def test_a_pool_of_ixgbe_that_a_stranger_took_meanwhile():
    """The last one goes between the plan and the step: the station is undone, and those before it on this port."""
    sim = stations()
    call(sim, vmdq=[at(IXGBE, stations=some(60))])
    before = sim.snapshot()["vmdq"]
    seen, taken = sim.run, []

    def late(argv, *rest):
        if argv[:2] == ["ip", "-batch"] and rest and "name x62" in rest[0] and not taken:
            taken.append(foreign(sim, "theirs", lower=IX))
            before[IXGBE]["stations"].update({"theirs": ("macvlan", "bridge", "52:54:00:0f:00:01", 1500, True)})
            before[IXGBE]["held"] = sorted([*before[IXGBE]["held"], "theirs"])
        return seen(argv, *rest)

    sim.run = late
    said = call(sim, vmdq=[at(IXGBE, stations=some(63))])["failures"][IXGBE]
    assert "x62 is forwarded in software" in said and "63 pools of it are held" in said
    assert sim.snapshot()["vmdq"] == before


# --- i40e --------------------------------------------------------------------------------------------------------------


def test_i40e_read_planned_applied_and_replayed():
    sim = stations()
    seen = facts(sim, I40E)
    assert (seen["ways"], seen["pools"], seen["pools_with_vfs"]) == (["l2-fwd-offload"], 16, False)
    done = converged(sim, vmdq=[at(I40E, stations=some(16))])
    assert {a["certainty"] for a in done["actions"]} == {"certain"}
    assert len(held(sim, I40E)) == 16
    sim.reboot()
    assert replay.run(sim.host(environment={}, sources=None), None)["failures"] == {}
    assert len(held(sim, I40E)) == 16
    quiet(sim, vmdq=[at(I40E, stations=some(16))])
    converged(sim, vmdq=[at(I40E, state="absent")])
    assert held(sim, I40E) == []
    # The channels that the driver made stay until it is loaded again, and serve the next ones.
    converged(sim, vmdq=[at(I40E, stations=some(3))])


def test_i40e_is_refused_in_check_mode_when_its_pools_are_used_up():
    sim = stations()
    feature(sim, "on", I4)
    foreign(sim, "theirs", lower=I4)
    said = refused(sim, I40E, vmdq=[at(I40E, stations=some(16))])
    assert "16 stations and 1 of others (macvlan theirs) are more than enp194s0 has pools for (16)" in said
    converged(sim, vmdq=[at(I40E, stations=some(15))])


@pytest.mark.parametrize("queues", [1, 8, 16])
def test_i40e_with_fewer_queues_than_it_gives_away_would_crash_the_kernel(queues):
    """Wished in the same call, or set by somebody before; also where the kernel's choice would be taken, or the feature goes after them."""
    sim = stations()
    words = f"{queues} combined queues may be fewer", "crashes", "17 or more"
    refused(sim, I40E, *words, vmdq=[at(I40E, queues={"combined": queues}, stations=some(1))])
    sim.vmdq.ports[I40E].card.set_channels(queues, 0)
    sim._tree = None
    refused(sim, I40E, *words, vmdq=[at(I40E, stations=some(1))])
    feature(sim, "on", I4)
    refused(sim, I40E, *words, vmdq=[at(I40E, require_offload=False, stations=some(1))])
    refused(sim, I40E, *words, vmdq=[at(I40E, offload=False, require_offload=False, stations=some(1))])
    feature(sim, "off", I4)
    converged(sim, vmdq=[at(I40E, offload=False, require_offload=False, stations=some(1))])
    assert held(sim, I40E) == []
    converged(sim, vmdq=[at(I40E, queues={"combined": 20}, stations=some(2))])
    assert held(sim, I40E) == ["x0", "x1"]


def test_i40e_forgets_its_stations_when_it_is_reset():
    """No step of ours lets a station go deaf while the kernel's files call it offloaded."""
    sim = stations()
    card = sim.vmdq.ports[I40E].card
    call(sim, vmdq=[at(I40E, stations=some(2))])
    said = refused(sim, I40E, "forgets the filters", "macvlan x0, macvlan x1", vmdq=[at(I40E, queues={"combined": 24})])
    assert "load i40e again" in said
    refused(sim, I40E, "the first VF and the last reset enp194s0", "macvlan x0, macvlan x1", sriov=[at(I40E, vf_count=4)])
    assert card.deaf == set()
    # What the driver does to the next ones, and that it is seen.
    call(sim, vmdq=[at(I40E, stations=[])])
    call(sim, vmdq=[at(I40E, queues={"combined": 24})])
    assert "is forwarded in software" in call(sim, vmdq=[at(I40E, stations=some(1))])["failures"][I40E]
    sim.reboot()
    converged(sim, vmdq=[at(I40E, queues={"combined": 24}, stations=some(1))])


def test_queues_of_i40e_are_not_given_back_under_the_stations_of_others():
    sim = stations()
    call(sim, vmdq=[at(I40E, queues={"combined": 24}, stations=some(1))])
    foreign(sim, "theirs", lower=I4)
    result = call(sim, vmdq=[at(I40E, state="absent")])
    assert "would forget the filters of the stations of others (macvlan theirs)" in " ".join(result["warnings"])
    assert held(sim, I40E) == ["theirs"] and sim.vmdq.ports[I40E].card.deaf == set() and result["failures"] == {}


def test_vfs_and_stations_of_i40e_in_one_call():
    """The VFs come first, so the reset does, too; a number in between resets nothing."""
    sim = stations()
    converged(sim, sriov=[at(I40E, vf_count=4)], vmdq=[at(I40E, stations=some(16))])
    assert len(held(sim, I40E)) == 16 and sim.vmdq.ports[I40E].card.deaf == set()
    converged(sim, sriov=[at(I40E, vf_count=6)])
    refused(sim, I40E, "the first VF and the last reset", sriov=[at(I40E, state="absent")])
    result = call(sim, sriov=[at(I40E, state="absent")], vmdq=[at(I40E, state="absent")])
    assert result["failures"] == {} and held(sim, I40E) == []


# --- ice ---------------------------------------------------------------------------------------------------------------


def test_the_ice_of_linux_does_not_have_it():
    sim = stations()
    seen = facts(sim, E810)
    assert (seen["ways"], seen["pools"], seen["offload_fixed"]) == ([], 0, True)
    said = refused(sim, E810, "off [fixed]", "the ice of Linux does not have it", vmdq=[at(E810, stations=some(1))])
    assert "Install that one, or set require_offload to false" in said
    converged(sim, vmdq=[at(E810, require_offload=False, stations=some(1))])


def test_the_ice_of_its_maker_read_planned_applied_and_replayed():
    sim = intel_ice()
    seen = facts(sim, E810)
    assert (seen["ways"], seen["pools"], seen["offload_fixed"]) == (["l2-fwd-offload"], None, False)
    done = converged(sim, vmdq=[at(E810, stations=some(64))])
    assert {a["certainty"] for a in done["actions"] if a["action"] == "set_station"} == {"predicted"}
    assert len(held(sim, E810)) == 64
    sim.reboot()
    assert replay.run(sim.host(environment={}, sources=None), None)["failures"] == {}
    assert len(held(sim, E810)) == 64
    refused(sim, E810, "65 stations are more than enp197s0 has pools for (64)", vmdq=[at(E810, stations=some(65))])
    converged(sim, vmdq=[at(E810, state="absent")])
    assert held(sim, E810) == [] and not sim.vmdq.ports[E810].on


def test_ice_with_few_queues_left_fails_and_is_undone():
    sim = intel_ice(queues=3)
    before = sim.snapshot()["vmdq"]
    said = call(sim, vmdq=[at(E810, stations=some(4))])["failures"][E810]
    assert "x3 is forwarded in software: enp197s0 gave it no pool. 3 pools" in said
    assert sim.snapshot()["vmdq"] == before
    converged(sim, vmdq=[at(E810, stations=some(3))])


def test_ice_in_switchdev_mode_says_no():
    sim = intel_ice(switchdev=True)
    before = sim.snapshot()["vmdq"]
    said = call(sim, vmdq=[at(E810, stations=some(1))])["failures"][E810]
    assert "ethtool -K enp197s0 l2-fwd-offload on" in said and "Operation not supported" in said
    assert sim.snapshot()["vmdq"] == before


# --- The parameter of Intel's own drivers ------------------------------------------------------------------------------


@pytest.mark.parametrize(("driver", "address", "most"), [("ixgbe", IXGBE, 16), ("igb", "0000:81:00.0", 8)])
def test_the_parameter_of_intels_own_drivers(driver, address, most):
    """IXGBE_PARAM(VMDQ) and IGB_PARAM(VMDQ): an array of numbers, one a port, which sysfs does not show (module_param_array_named, 0)."""
    sim = stations()
    sim_params.add(sim, driver, VMDQ=("charp", "", 0))
    done = converged(sim, vmdq=[at(address, pools=most)])
    path = f"/etc/modprobe.d/zz-iovirt-{driver}.conf"
    assert f"options {driver} VMDQ={most}\n" in sim.files[path]
    assert done["reboot_required"] and "is not shown by the kernel" in done["reboot_reasons"][0]
    assert "module parameter VMDQ" in facts(sim, address)["ways"]
    sim.reboot()
    assert sim.params[driver].params["VMDQ"].value == str(most)
    quiet(sim, vmdq=[at(address, pools=most)])
    refused(sim, address, f"pools {most + 1} is no number from 0 to {most}", vmdq=[at(address, pools=most + 1)])
    converged(sim, vmdq=[at(address, state="absent")])
    assert path not in sim.files


@pytest.mark.parametrize(("driver", "address"), [("ixgbe", IXGBE), ("igb", "0000:81:00.0")])
def test_the_drivers_of_linux_have_no_such_parameter(driver, address):
    sim = stations()
    sim_params.add(sim, driver, max_vfs=("int", "0"))
    refused(sim, address, f"the module {driver} has no parameter VMDQ", "modinfo", vmdq=[at(address, pools=4)])
    assert "module parameter VMDQ" not in facts(sim, address)["ways"]
