# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every kind of step, failing at each thing that it does: what it belongs to is as it was before the run.

A kind of step that is new needs a line in SCENARIOS: a host and a call in which a step of that kind is done.
"""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import actions, boot, engine, grub
from ansible_collections.iovirt.host.plugins.module_utils._engine.resources.kernel_cmdline import Wish
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils import sim_modules
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import EDU, PF1, PF2, at, call, lab
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import DEVICES

VFIO = [{"range": "0-1", "driver": "vfio-pci"}]


def devices(sim, **wishes):
    return sim, lambda: call(sim, **wishes)


def with_vfs():
    """An operator's three VFs, one of them on vfio-pci, become two others."""
    sim = lab(igbvf_loaded=True, vfio_loaded=True)
    sim.write(f"{DEVICES}/{PF1}/sriov_numvfs", "3")
    vf = sim.functions[PF1].vfs[2]
    sim.write(f"{DEVICES}/{vf}/driver_override", "vfio-pci")
    sim.write(f"{DEVICES}/{vf}/driver/unbind", vf)
    sim.write("/sys/bus/pci/drivers_probe", vf)
    return devices(sim, sriov=[at(PF1, vf_count=2, vfs=VFIO), at(PF2, vf_count=1)])


def living_vfs():
    """Drivers change, the VFs stay."""
    sim = lab(igbvf_loaded=True)
    call(sim, sriov=[at(PF1, vf_count=3, vf_defaults={"driver": "default"})])
    return devices(sim, sriov=[at(PF1, vf_count=3, vfs=VFIO)])


def back_to_own_drivers():
    sim = lab(igbvf_loaded=True)
    call(sim, sriov=[at(PF1, vf_count=2, vfs=VFIO)], vfio=[at(EDU)])
    return devices(sim, sriov=[at(PF1, vf_count=2, vf_defaults={"driver": "default"})], vfio=[at(EDU)])


def all_given_back():
    sim = lab(igbvf_loaded=True)
    call(sim, vfio=[at(EDU)])
    return devices(sim, vfio=[at(EDU, state="absent")])


def first_device():
    return devices(lab(), vfio=[at(EDU)])


def command_line():
    sim = lab()
    return sim, lambda: engine.host_cmdline(sim.host(), Wish(present=["hugepages=8"]), engine.Call(who="test"))


def claimed_early():
    sim = lab()
    sim.initramfs_tool = sim_modules.INITRAMFS_TOOLS
    return devices(sim, vfio=[at(EDU, early=True)])


SCENARIOS = {
    "set_vf_count": with_vfs,
    "bind": living_vfs,
    "release": back_to_own_drivers,
    "declare": first_device,
    "write_file": command_line,
    "grub_mkconfig": command_line,
    "refresh_initramfs": claimed_early,
    "install_replay": first_device,
    "remove_replay": all_given_back,
}

#: Kinds that are not put back, and why.
NOT_PUT_BACK = {
    "remove_replay": "a half-removed replay is worse than none; the next run ends it (boot.undo_remove)",
    "refresh_initramfs": "the record says from then on that an image may hold anything; the next run makes it anew (initramfs.undo)",
}

#: What a step may do in vain without failing: an offer to drivers, what only makes later runs faster, the operator's
#: command on a read-only /usr, what is left beside grub.cfg.
UNHEARD = ("/drivers_probe", "-m compileall", boot.COMMAND, f"remove {grub.NEW}")


#: Kinds that are not walked here yet; each is to become a line in SCENARIOS.
TO_COME = {"follow", "write_rules", "resume_probing", "devlink_reload", "set_devlink_param", "set_tc_offload", "detach_vfs", "attach_vfs", "set_eswitch", "set_nvme_primary", "set_nvme_secondary", "set_firmware", "unbind", "rebind", "set_up", "set_vf_attributes", "probe_vfs"}


def test_no_kind_of_step_is_left_out():
    assert set(SCENARIOS) | TO_COME == set(actions.TABLE)
    assert not set(SCENARIOS) & TO_COME


@contextlib.contextmanager
def watched(sim, kind):
    """Where in the simulated kernel's log the steps of a kind are at work."""
    step, numbers = actions.TABLE[kind], []

    def within(do):
        def doing(host, args):
            first = len(sim.log)
            try:
                return do(host, args)
            finally:
                numbers.extend(range(first + 1, len(sim.log) + 1))

        return doing

    replaced = dataclasses.replace(step, do=within(step.do), many=within(step.many) if step.many else None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(actions.TABLE, kind, replaced)
        yield numbers


def moments(kind):
    sim, run = SCENARIOS[kind]()
    with watched(sim, kind) as numbers:
        assert run()["failures"] == {}
    return [number for number in numbers if not any(what in " ".join(sim.log[number - 1]) for what in UNHEARD)]


CASES = [(kind, number) for kind in SCENARIOS for number in moments(kind)]


def test_each_kind_does_something_that_can_fail():
    assert {kind for kind, _number in CASES} == set(SCENARIOS)


@pytest.mark.parametrize(("kind", "number"), CASES, ids=[f"{kind}-{number}" for kind, number in CASES])
def test_a_step_that_fails_is_undone(kind, number):
    sim, run = SCENARIOS[kind]()
    before = sim.snapshot()
    sim.fail_at = number
    with watched(sim, kind) as numbers:
        result = run()
    sim.fail_at = None
    assert number in numbers
    assert len(result["failures"]) == 1
    assert "could not be undone" not in " ".join(result["failures"].values())
    failed = next(iter(result["failures"]))
    now = sim.snapshot()
    if kind not in NOT_PUT_BACK:
        for address in sim.functions if failed == "host" else [failed, *before_vfs(before, failed)]:
            assert now["functions"][address] == before["functions"][address]
    if failed == "host" and kind not in NOT_PUT_BACK:
        assert now == before
    assert run()["failures"] == {}


def before_vfs(snapshot, address):
    return snapshot["functions"][address][2]
