# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A run that is killed: nothing of it goes on, no undo, no `finally`. The next run makes all as wished, and does not take
what the dead one left for the operator's will."""

from __future__ import annotations

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import replay, store
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import (
    EDU,
    PF1,
    PF2,
    at,
    call,
    converged,
    lab,
    quiet,
)

DEVICES = "/sys/bus/pci/devices"


class Killed(BaseException):
    """SIGKILL."""


def kill(sim, number, act):
    """Let something run until its step of this number, and nothing after it. False when it ended before."""
    begin, run, last = sim._begin, sim.run, len(sim.log) + number

    def beginning(what, path, data):
        if len(sim.log) >= last:
            raise Killed
        begin(what, path, data)

    def running(argv):
        if len(sim.log) >= last:
            raise Killed
        return run(argv)

    sim._begin, sim.run = beginning, running
    try:
        act()
    except Killed:
        return True
    finally:
        sim._begin, sim.run = begin, run
    return False


def fresh():
    return lab(igbvf_loaded=True, vfio_loaded=True)


def with_vfs():
    sim = fresh()
    call(sim, sriov=[at(PF1, vf_count=3, vfs=[{"range": "0", "driver": "vfio-pci"}]), at(PF2, vf_count=1)], vfio=[at(EDU)])
    return sim


def rebooted():
    sim = with_vfs()
    return sim.reboot()


WISHES = {
    "sriov": [at(PF1, vf_count=4, vfs=[{"range": "0-1", "driver": "vfio-pci"}]), at(PF2, vf_count=2)],
    "vfio": [at(EDU)],
}


def devices(sim):
    return sim.snapshot()["functions"]


def left(sim):
    return [path for path in sim.files if path.startswith(store.PROBING)]


@pytest.mark.parametrize("start", [fresh, with_vfs], ids=["fresh", "recount"])
def test_a_run_that_is_killed_at_any_step(start):
    well = start()
    call(well, **WISHES)
    for number in range(200):
        sim = start()
        if not kill(sim, number, lambda sim=sim: call(sim, **WISHES)):
            break
        sim.lock_holder = None
        converged(sim, **WISHES)
        assert devices(sim) == devices(well), number
        assert left(sim) == []
    assert number > 20


def test_a_replay_that_is_killed_at_any_step():
    well = with_vfs()
    for number in range(100):
        sim = rebooted()
        if not kill(sim, number, lambda sim=sim: replay.run(sim.host(environment={}, sources=None), None)):
            break
        sim.lock_holder = None
        assert replay.run(sim.host(environment={}, sources=None), None)["failures"] == {}
        assert devices(sim) == devices(well), number
        assert left(sim) == []
    assert number > 10


def test_giving_back_that_is_killed_at_any_step():
    back = {name: [{**wish, "state": "absent"} for wish in list_] for name, list_ in WISHES.items()}
    before = fresh()
    for number in range(200):
        sim = with_vfs()
        if not kill(sim, number, lambda sim=sim: call(sim, **back)):
            break
        sim.lock_holder = None
        converged(sim, **back)
        assert devices(sim) == devices(before), number
        assert [path for path in sim.files if "iovirt" in path] == []
    assert number > 20


def test_what_the_operator_set_stays():
    """sriov_drivers_autoprobe 0 without our mark is his will, also through a run that is killed."""
    well = fresh()
    well.write(f"{DEVICES}/{PF1}/sriov_drivers_autoprobe", "0")
    call(well, **WISHES)
    assert well.functions[PF1].autoprobe is False
    for number in range(5, 40):
        sim = fresh()
        sim.write(f"{DEVICES}/{PF1}/sriov_drivers_autoprobe", "0")
        kill(sim, number, lambda sim=sim: call(sim, **WISHES))
        sim.lock_holder = None
        converged(sim, **WISHES)
        assert devices(sim) == devices(well), number


def test_the_mark_goes_with_the_boot():
    sim = with_vfs()
    sim.replace(store.held_back(PF1), "")
    sim.reboot()
    assert left(sim) == []
    assert replay.run(sim.host(environment={}, sources=None), None)["failures"] == {}
    quiet(sim, vfio=[at(EDU)])
