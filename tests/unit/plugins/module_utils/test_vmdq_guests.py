# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Guests on stations in hardware: the pool is there at the start, is proven, and is free at the end."""

from __future__ import annotations

import pytest
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils import sim_vmdq
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.guests_hosts import Host, converged, guest, refused
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import (
    DOUBLE,
    I40E,
    IXGBE,
    at,
    call,
    stations,
)

PORT = "enp195s0"
STATION = {"model": "vmdq", "parent": PORT}


def host(*made):
    sim = stations()
    sim.files["/proc/meminfo"] = "MemTotal:        4000000 kB\n"
    sim._tree = None
    call(sim, vmdq=[at(DOUBLE, offload=True, stations=[{"name": name} for name in made])])
    return Host(sim)


def held(host):
    return sorted(host.sim.vmdq.ports[DOUBLE].held.values())


def test_the_pool_is_taken_at_the_start_and_free_at_the_end():
    it = host()
    converged(it, guest("g1", STATION), guest("g2", {**STATION, "mode": "private"}))
    assert held(it) == ["macvtap0", "macvtap1"]
    xml = it.virt.live["g2"].find("devices/interface")
    assert (xml.get("type"), xml.find("source").attrib) == ("direct", {"dev": PORT, "mode": "private"})
    converged(it, guest("g1", STATION, state="stopped"), guest("g2", state="absent"))
    assert held(it) == []


def test_a_device_more_of_a_guest_that_runs():
    it = host()
    converged(it, guest("g1", STATION))
    converged(it, guest("g1", STATION, STATION))
    assert held(it) == ["macvtap0", "macvtap1"]


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({**STATION, "parent": "enp129s0"}, "l2-fwd-offload of enp129s0 is off [fixed]"),
        ({**STATION, "parent": "enp194s0"}, "l2-fwd-offload of enp194s0 is off, so a station of it would be forwarded in software"),
        ({**STATION, "mode": "passthrough"}, "no filter by destination"),
        ({**STATION, "parent": "eth9"}, "eth9"),
        ({**STATION, "queues": 2}, "queues means nothing for the model vmdq"),
    ],
)
def test_what_is_refused(wish, says):
    refused(host(), guest("g1", wish), says=says)


def test_more_guests_than_pools():
    it = host("mv0", "mv1")
    refused(it, guest("g1", STATION), guest("g2", STATION), says="has no pool left for it: 3 in all, 2 held by macvlan mv0, macvlan mv1")
    converged(it, guest("g1", STATION))
    # One that runs is not asked again; one that is only defined needs none.
    converged(it, guest("g1", STATION), guest("g2", STATION, state="present"))


def on_port(address, **before):
    """The host with the feature on at a port, after what was done before."""
    sim = stations()
    sim.files["/proc/meminfo"] = "MemTotal:        4000000 kB\n"
    sim._tree = None
    call(sim, vmdq=[at(address, offload=True)], **before)
    return Host(sim)


def test_vfs_have_pools_that_guests_cannot_have():
    it = on_port(IXGBE, sriov=[at(IXGBE, vf_count=62)])
    mine = {**STATION, "parent": "enp193s0"}
    refused(it, guest("g1", mine), guest("g2", mine), says="has no pool left for it: 63 in all, 62 held by 62 VFs")
    converged(it, guest("g1", mine))


def test_a_guest_does_not_crash_the_host_by_its_first_station_on_i40e():
    it = on_port(I40E)
    it.sim.vmdq.ports[I40E].card.set_channels(8, 0)
    it.sim._tree = None
    mine = {**STATION, "parent": "enp194s0"}
    refused(it, guest("g1", mine), says="8 combined queues may be fewer than i40e gives to its stations")
    it.sim.vmdq.ports[I40E].card.set_channels(32, 0)
    it.sim._tree = None
    converged(it, guest("g1", mine))


def test_a_pool_that_went_meanwhile_fails_the_start_and_the_guest_does_not_run():
    it = host()
    create = it.virt.create

    def late(name):
        sim_vmdq._set_feature(it.sim, PORT, it.sim.vmdq.ports[DOUBLE], False)
        create(name)

    it.virt.create = late
    result = it.call(guest("g1", STATION))
    assert "forwarded in software" in result["failures"]["g1"] and "g1" not in it.virt.live
