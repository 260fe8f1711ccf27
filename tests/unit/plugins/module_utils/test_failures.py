# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every step fails once: the device is as it was, the others have what was wished, and what is declared is true."""

from __future__ import annotations

import copy
import json

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import boot
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import (
    EDU,
    NVME,
    PF1,
    PF2,
    at,
    call,
    converged,
    lab,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import DEVICES

VFS = [{"range": "0", "driver": "vfio-pci"}, {"range": "1", "driver": "default"}]


def fresh():
    """Nothing was declared yet."""
    return lab(igbvf_loaded=True), {"sriov": [at(PF1, vf_count=2, vfs=VFS), at(PF2, vf_count=1)], "vfio": [at(NVME)]}


def recount():
    """VFs of an operator, one of them already overridden, are made anew."""
    sim = lab(igbvf_loaded=True, vfio_loaded=True)
    sim.write(f"{DEVICES}/{PF1}/sriov_numvfs", "3")
    vf = sim.functions[PF1].vfs[2]
    sim.write(f"{DEVICES}/{vf}/driver_override", "vfio-pci")
    sim.write(f"{DEVICES}/{vf}/driver/unbind", vf)
    sim.write("/sys/bus/pci/drivers_probe", vf)
    return sim, {"sriov": [at(PF1, vf_count=2, vfs=VFS), at(PF2, vf_count=1)], "vfio": [at(EDU)]}


def give_back():
    """All that was declared goes."""
    sim, wishes = recount()
    call(sim, **wishes)
    return sim, {"sriov": [at(PF1, state="absent"), at(PF2, state="absent")], "vfio": [at(EDU, state="absent")]}


def rebind():
    """Drivers change on living VFs."""
    sim = lab(igbvf_loaded=True)
    call(sim, sriov=[at(PF1, vf_count=3, vf_defaults={"driver": "default"})])
    return sim, {"sriov": [at(PF1, vf_count=3, vfs=[{"range": "0-2", "driver": "vfio-pci"}])]}


def steps_of(start):
    sim, wishes = start()
    done = len(sim.log)
    converged(sim, **wishes)
    return [entry for entry in sim.log[done:] if not entry[1].startswith("/run/")]


CASES = [(start, number) for start in (fresh, recount, give_back, rebind) for number in range(1, len(steps_of(start)) + 1)]


def recorded(sim):
    return {
        resource: json.loads(sim.text(f"/etc/iovirt/{resource}.json") or '{"devices": {}}')["devices"]
        for resource in ("sriov", "vfio")
    }


def of(sim, address):
    """All that is one device's: driver, override, VFs, and its records."""
    return sim.of_device(address), {name: entries.get(address) for name, entries in recorded(sim).items()}


@pytest.mark.parametrize(("start", "number"), CASES, ids=[f"{start.__name__}-{number}" for start, number in CASES])
def test_a_step_that_fails(start, number):
    sim, wishes = start()
    well = copy.deepcopy(sim)
    call(well, **wishes)
    addresses = [wish["match"]["address"][0] for list_ in wishes.values() for wish in list_]
    before = {address: of(sim, address) for address in addresses}
    sim.fail_at = len(sim.log) + number
    result = call(sim, **wishes)
    failed_path = sim.log[sim.fail_at - 1][1]
    sim.fail_at = None
    assert not result["indeterminate"]
    # Installing the replay comes before all devices, removing it after them.
    lost = set(addresses) if "host" in result["failures"] and start is not give_back else set(result["failures"])
    for address in addresses:
        if address in lost:
            assert of(sim, address) == before[address]
        elif not failed_path.endswith("/drivers_probe"):
            # Offering a VF without a wish to the drivers may fail unheard, as at a VF's birth.
            assert of(sim, address) == of(well, address)
    for unit, text in result["failures"].items():
        assert text.startswith(f"{unit}: the step '")
        assert "undone" in text
        assert "could not be undone" not in text
    declared = {address for entries in recorded(sim).values() for address in entries}
    replay_is_there = sim.link(boot.CURRENT) is not None
    assert replay_is_there or not declared or "host" in result["failures"]
    # What failed once is done by the next run, and then nothing is left.
    converged(sim, **wishes)
    if not failed_path.endswith("/drivers_probe"):
        assert {a: of(sim, a) for a in addresses} == {a: of(well, a) for a in addresses}


def test_a_failure_is_a_failure_of_its_device_alone():
    sim, wishes = fresh()
    sim.faults.append((f"*/{PF1}/sriov_numvfs", "*", 5))
    result = call(sim, **wishes)
    assert list(result["failures"]) == [PF1]
    assert result["changed"]
    assert len(sim.functions[PF2].vfs) == 1
    assert sim.functions[NVME].driver == "vfio-pci"


def test_what_cannot_be_undone_is_said():
    sim, wishes = recount()
    sim.faults.append((f"*/{PF1}/sriov_numvfs", "[123]", 5))
    text = call(sim, **wishes)["failures"][PF1]
    assert "could not be undone" in text
    assert "set the number of VFs from 3 to 2" in text
    assert "by hand" in text


def test_a_disk_that_is_full_changes_no_device():
    sim, wishes = fresh()
    before = sim.snapshot()["functions"]
    sim.faults.append(("/etc/*", "*", 28))
    result = call(sim, **wishes)
    assert "ENOSPC" in " ".join(result["failures"].values())
    assert sim.snapshot()["functions"] == before
    assert result["changed"] is False


def ip_that_fails(sim, when):
    """`ip -j -d addr show` fails once `when` says so, as where somebody takes it away, or the kernel's answer is cut off."""
    real = sim.run
    sim.run = lambda argv, data="": (1, "", "Dump terminated\n") if argv[-2:] == ["addr", "show"] and when() else real(argv, data)


def test_a_reading_that_fails_after_the_steps_does_not_hide_that_they_are_done():
    sim, wishes = fresh()
    well = copy.deepcopy(sim)
    call(well, **wishes)
    ip_that_fails(sim, lambda: bool(sim.functions[PF2].vfs))
    result = call(sim, **wishes)
    assert list(result["failures"]) == ["host"] and result["changed"] is True
    said = result["failures"]["host"]
    assert f"all that was to be done on host, {PF1}, {PF2}, {NVME} was done and stays" in said, said
    assert "could not be read again" in said and "Dump terminated" in said
    assert {action["device"] for action in result["actions"]} == {"host", PF1, PF2, NVME}
    del sim.run
    addresses = (PF1, PF2, NVME)
    assert {address: of(sim, address) for address in addresses} == {address: of(well, address) for address in addresses}
    assert call(sim, **wishes)["changed"] is False


def test_a_reading_that_fails_beside_a_device_that_failed():
    sim, wishes = fresh()
    sim.faults.append((f"*/{PF1}/sriov_numvfs", "*", 5))
    ip_that_fails(sim, lambda: bool(sim.functions[PF2].vfs))
    result = call(sim, **wishes)
    assert set(result["failures"]) == {"host", PF1}
    assert PF1 not in result["failures"]["host"].partition("was done")[0]
