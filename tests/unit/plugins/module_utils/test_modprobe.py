# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Parameters of modules: in force now, at the next load, and what becomes of both."""

from __future__ import annotations

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import modprobe
from ansible_collections.iovirt.host.plugins.module_utils._engine.apply import apply
from ansible_collections.iovirt.host.plugins.module_utils._engine.errors import EngineError
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils import sim_params
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import lab

OURS = "/etc/modprobe.d/zz-iovirt-kvm_intel.conf"


def kvm(**more):
    sim = lab()
    module = sim_params.add(
        sim, "kvm_intel", nested=("bool", "0"), ple_gap=("int", "128", 0o644), hidden=("int", "1", 0), **more
    )
    return sim, module


def planned(sim, wishes, reload=()):
    return modprobe.plan(modprobe.read(sim.host(), wishes), wishes, reload)


def done(sim, wishes, reload=()):
    """A run, after which nothing is left to do."""
    plan = planned(sim, wishes, reload)
    assert not plan.refusals, plan.refusals
    assert apply(sim.host(), plan).failures == {}
    again = planned(sim, wishes, reload)
    assert not again.changed and not again.refusals
    return plan


def refused(sim, *words, **params):
    (refusal,) = planned(sim, {"kvm_intel": params}).refusals
    for word in words:
        assert word in refusal.sentence()


def value(module, name="nested"):
    return module.params[name].value


def test_waits_for_a_load_and_says_so():
    sim, module = kvm()
    plan = done(sim, {"kvm-intel": {"nested": "1"}})
    assert sim.files[OURS].splitlines()[1] == "options kvm_intel nested=1"
    assert plan.reboot_reasons == ["kvm_intel.nested is N until the module is loaded again; then it is 1"]
    assert value(module) == "N" and planned(sim, {"kvm_intel": {"nested": "1"}}).reboot_reasons == plan.reboot_reasons
    sim.reboot()
    assert value(module) == "Y"
    again = planned(sim, {"kvm_intel": {"nested": "1"}})
    assert not again.changed and not again.reboot_reasons


def test_read_costs_no_process():
    sim, _module = kvm()
    sim.commands.clear()
    planned(sim, {"kvm_intel": {"nested": "1", "ple_gap": "7"}})
    assert not sim.commands


def test_loaded_again_where_that_is_allowed():
    sim, module = kvm()
    plan = done(sim, {"kvm_intel": {"nested": "Y"}}, reload=["kvm-intel"])
    assert value(module) == "Y" and not plan.reboot_reasons
    assert plan.actions[0].text == f"write {OURS}; load kvm_intel again"
    assert plan.actions[0].before == {"kvm_intel.nested": {"running": "N", "next load": None}}
    assert plan.actions[0].after == {"kvm_intel.nested": {"running": "Y", "next load": "Y"}}


def test_a_module_in_use_is_left_and_the_file_undone():
    sim, module = kvm()
    module.users = 1
    before = sim.snapshot()
    plan = planned(sim, {"kvm_intel": {"nested": "1", "ple_gap": "0"}}, ["kvm_intel"])
    failures = apply(sim.host(), plan).failures
    assert "Module kvm_intel is in use" in failures["host"] and "It was undone" in failures["host"]
    assert sim.snapshot() == before


def test_written_at_once_where_the_kernel_takes_that():
    sim, module = kvm()
    plan = done(sim, {"kvm_intel": {"ple_gap": "0x10"}})
    assert value(module, "ple_gap") == "16" and not plan.reboot_reasons
    sim.reboot()
    assert value(module, "ple_gap") == "16"


def test_given_back():
    sim, module = kvm()
    sim.files["/etc/modprobe.d/kvm.conf"] = "options kvm-intel ple_gap=5 \\\n  nested=0\n"
    sim.reboot()
    files = dict(sim.files)
    done(sim, {"kvm_intel": {"nested": "1", "ple_gap": "9"}})
    sim.reboot()
    assert (value(module), value(module, "ple_gap")) == ("Y", "9")
    plan = done(sim, {"kvm_intel": {"nested": None, "ple_gap": None}})
    # What somebody else says is known, and holds at once where it can be written.
    assert value(module, "ple_gap") == "5" and len(plan.reboot_reasons) == 1
    assert sim.files == files | {"/proc/cmdline": sim.files["/proc/cmdline"]}
    sim.reboot()
    assert (value(module), value(module, "ple_gap")) == ("N", "5")


def test_what_others_say_already_is_left_to_them():
    sim, _module = kvm()
    sim.files["/usr/lib/modprobe.d/kvm.conf"] = "options kvm_intel nested=Y\n"
    sim.reboot()
    plan = planned(sim, {"kvm_intel": {"nested": "1"}})
    assert not plan.actions and not plan.reboot_reasons


def test_other_parameters_of_ours_stay():
    sim, _module = kvm()
    done(sim, {"kvm_intel": {"nested": "1"}})
    done(sim, {"kvm_intel": {"ple_gap": "3"}})
    assert sim.files[OURS].splitlines()[1] == "options kvm_intel nested=1 ple_gap=3"
    done(sim, {"kvm_intel": {"nested": None}})
    assert sim.files[OURS].splitlines()[1] == "options kvm_intel ple_gap=3"


def test_a_module_that_is_not_loaded():
    sim, module = kvm()
    module.loaded = False
    plan = done(sim, {"kvm_intel": {"nested": "1"}})
    assert not plan.reboot_reasons and len(sim.commands) > 0
    sim.run(["modprobe", "--", "kvm_intel"])
    assert value(module) == "Y"


def test_a_parameter_that_the_kernel_does_not_show():
    sim, _module = kvm()
    plan = done(sim, {"kvm_intel": {"hidden": "2"}})
    assert plan.reboot_reasons == ["kvm_intel.hidden is not shown by the kernel; it is 2 when the module is loaded again"]


def test_refusals():
    sim, module = kvm()
    refused(sim, "has no parameter nesting", "modinfo -p kvm_intel", nesting="1")
    refused(sim, "modprobe would interpret", nested='1 "')
    refused(sim, "modprobe would interpret", nested="1\noptions x y=z")
    sim.replace("/etc/modprobe.d/zzz.conf", "options kvm_intel nested=0\n")
    refused(sim, "kvm_intel.nested=0 is said by /etc/modprobe.d/zzz.conf", "Take it out there", nested="1")
    assert not planned(sim, {"kvm_intel": {"nested": "N"}}).refusals
    sim.remove("/etc/modprobe.d/zzz.conf")
    sim.replace("/proc/cmdline", sim.files["/proc/cmdline"].rstrip() + " kvm-intel.nested=0\n")
    refused(sim, "is said by the kernel command line", nested="1")
    module.builtin, sim._tree = True, None
    refused(sim, "built into the running kernel", "kvm_intel.nested=1 on the kernel command line", nested="1")


def test_no_such_module():
    sim = lab()
    with pytest.raises(EngineError, match="there is no module kvm_intle"):
        modprobe.read(sim.host(), {"kvm_intle": {"nested": "1"}})


def test_the_kernel_does_not_take_the_value():
    """The file goes again: with it the module would not load at all any more."""
    sim, _module = kvm()
    before = sim.snapshot()
    plan = planned(sim, {"kvm_intel": {"ple_gap": "many"}})
    assert "EINVAL" in apply(sim.host(), plan).failures["host"]
    assert sim.snapshot() == before
    plan = planned(sim, {"kvm_intel": {"nested": "maybe"}}, ["kvm_intel"])
    assert "could not insert 'kvm_intel'" in apply(sim.host(), plan).failures["host"]
    assert sim.snapshot() == before


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [("Y", "1", True), ("N", "off", True), ("Y", "0", False), ("16", "0x10", True), ("8", "010", True), ("a", "b", False),
     ("4,4", "4,0x4", True), ("4", "4,4", False), ("Y", "maybe", False), ("N", "maybe", False), (None, "1", False)],
)  # fmt: skip
def test_two_ways_to_write_a_value(one, other, alike):
    assert modprobe.same(one, other) is alike


def test_facts():
    sim, _module = kvm()
    done(sim, {"kvm_intel": {"nested": "1"}})
    facts = modprobe.info(modprobe.read(sim.host(), {"kvm_intel": {"nested": "1"}}))["kvm_intel"]
    assert facts["running"]["nested"] == "N" and facts["next_load"] == {"nested": "1"} and facts["ours"] == {"nested": "1"}
