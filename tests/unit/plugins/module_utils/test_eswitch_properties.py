# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What holds for every wish of an eswitch that hypothesis can think of."""

from __future__ import annotations

import copy

import pytest

pytest.importorskip("hypothesis", reason="hypothesis is not installed; tests/unit/requirements.txt names it")

from ansible_collections.iovirt.host.plugins.module_utils._engine.errors import EngineError
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import (
    ICE,
    MLX4LX,
    MLX5,
    NSIM,
    at,
    call,
    converged,
    examples,
    switches,
)
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as some

#: The same examples in each run: a check that fails by chance is no check.
quick = settings(max_examples=examples(25), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

#: Made once, as building a host takes longer than a copy of it.
HOST = switches()
FIRST = {"match": {"address": ["0000:a1:00.0"]}}

PARAMS = {
    NSIM: [("max_macs", "driverinit", some.sampled_from([32, 64])), ("test1", "driverinit", some.booleans())],
    MLX5: [
        ("flow_steering_mode", "runtime", some.sampled_from(["dmfs", "smfs"])),
        ("enable_roce", "driverinit", some.booleans()),
        ("total_vfs", "permanent", some.sampled_from([8, 16])),
    ],
    ICE: [("enable_roce", "runtime", some.booleans())],
}
PARAMS[MLX4LX] = PARAMS[MLX5]


@some.composite
def wishes(draw, address, counts):
    wish = {"vf_count": draw(some.sampled_from(counts))}
    if draw(some.booleans()):
        wish["eswitch"] = {"mode": draw(some.sampled_from(["legacy", "switchdev", None]))}
        if address in (MLX5, MLX4LX):
            wish["eswitch"]["inline_mode"] = draw(some.sampled_from(["none", "network", None]))
            wish["eswitch"]["encap_mode"] = draw(some.sampled_from(["none", "basic", None]))
    chosen = draw(some.lists(some.sampled_from(PARAMS[address]), unique_by=lambda item: item[0], max_size=2))
    wish["devlink_params"] = [{"name": name, "cmode": cmode, "value": draw(values)} for name, cmode, values in chosen]
    wish["hw_tc_offload"] = draw(some.sampled_from([None, True, False]))
    if address != NSIM:
        wish["vf_defaults"] = {"driver": draw(some.sampled_from([None, "default", "vfio-pci"]))}
    return at(address, **wish)


@some.composite
def ways(draw):
    """A port and two wishes, one after the other. Whether a number of VFs is named stays: giving back looks at the last wish for that."""
    address = draw(some.sampled_from(sorted(PARAMS)))
    counts = draw(some.sampled_from([(None,), (0, 1, 3)]))
    return address, draw(wishes(address, counts)), draw(wishes(address, counts))


def accepted(sim, wish):
    try:
        call(copy.deepcopy(sim), check=True, sriov=[wish])
    except EngineError:
        return False
    return True


def parts(sim, address):
    """All that the collection may change on a port, and with its VFs how each of them is."""
    instance = next(i for i in sim.devlink.instances.values() if i.address == address)
    function = sim.functions.get(address)
    vfs = sim.devlink.netdevsims[address].vfs if function is None else [
        (sim.functions[vf].driver, sim.functions[vf].override) for vf in function.vfs
    ]
    return instance.mode, instance.inline, instance.encap, instance.params, instance.running, instance.offload, vfs


@quick
@given(ways())
def test_check_is_run_a_second_run_is_empty_and_absent_gives_all_back(way):
    address, first, second = way
    sim = copy.deepcopy(HOST)
    before = copy.deepcopy(parts(sim, address))
    for wish in (first, second):
        assume(accepted(sim, wish))
        converged(sim, sriov=[wish])
    converged(sim, sriov=[at(address, state="absent")])
    assert parts(sim, address) == before


@quick
@given(ways(), some.integers(1, 40))
def test_an_undo_restores(way, number):
    address, first, second = way
    sim = copy.deepcopy(HOST)
    assume(accepted(sim, first))
    call(sim, sriov=[first])
    assume(accepted(sim, second))
    before = copy.deepcopy(parts(sim, address))
    sim.fail_at = len(sim.log) + number
    result = call(sim, sriov=[second])
    if address in result["failures"] or "host" in result["failures"]:
        assert parts(sim, address) == before, result["failures"]


def test_the_undo_of_a_reload_puts_an_offload_back_that_nobody_wishes_now():
    """The reload makes the port's network device anew, without it."""
    first = {**FIRST, "vf_count": 1, "hw_tc_offload": True}
    second = {**FIRST, "vf_count": 0, "devlink_params": [{"name": "enable_roce", "cmode": "driverinit", "value": False}]}
    failed = 0
    for number in range(1, 30):
        sim = copy.deepcopy(HOST)
        call(sim, sriov=[first])
        before = copy.deepcopy(parts(sim, FIRST["match"]["address"][0]))
        sim.fail_at = len(sim.log) + number
        result = call(sim, sriov=[second])
        if result["failures"]:
            failed += 1
            assert parts(sim, FIRST["match"]["address"][0]) == before, result["failures"]
    assert failed > 5
