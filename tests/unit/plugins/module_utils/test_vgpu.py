# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""vGPUs of NVIDIA's vendor-specific VFIO framework, on the files of a captured L40S (sim_vgpu.py)."""

from __future__ import annotations

import errno

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import cli, engine, replay
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import (
    at,
    call,
    converged,
    lab,
    quiet,
    refused,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import Pci
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.test_mdev import guest

GPU = "0000:26:00.0"
Q12, Q24, Q48, A12 = "NVIDIA L40S-12Q", "NVIDIA L40S-24Q", "NVIDIA L40S-48Q", "NVIDIA L40S-12A"
MODES = {"Non SR-IOV": "Host VGPU", "N/A": "Pass-Through"}


def host(vfs=True):
    sim = lab()
    sim.vgpu.add(Pci(GPU, "10de:26b9", "030200", parent="/sys/devices/pci0000:20", total_vfs=32, offset=4, stride=1, vf_ids="10de:26b9"))
    if vfs:
        sim.vgpu.enable(GPU)
        sim.sleep(5)
    return sim


def on(type_=Q12, count=1, **more):
    return at(GPU, type=type_, count=count, **more)


def types_of(sim):
    vfs = sim.functions[GPU].vfs
    return {vfs.index(vf): number for vf, number in sim.vgpu.snapshot().items()}


def written(sim):
    """VF index and id of each write of a type."""
    vfs = sim.functions[GPU].vfs
    return [(vfs.index(path.split("/")[-3]), data) for what, path, data in sim.log if what == "write" and path.endswith("/current_vgpu_type")]


@pytest.mark.parametrize("vfs", [True, False])
def test_over_a_reboot_and_back(vfs):
    sim = host(vfs)
    before = sim.snapshot()
    wish = on(Q12, 2)
    converged(sim, vgpu=[wish])
    assert types_of(sim) == {0: 1153, 1: 1153}
    sim.reboot()
    sim.functions[GPU].driver = "nvidia"
    sim._tree = None
    assert sim.functions[GPU].vfs == []
    assert replay.run(sim.host(environment={}, sources=None), None)["failures"] == {}
    assert types_of(sim) == {0: 1153, 1: 1153}
    quiet(sim, vgpu=[wish])
    converged(sim, vgpu=[on(state="absent")])
    assert types_of(sim) == {}
    assert bool(sim.functions[GPU].vfs) is vfs
    assert not [p for p in sim.files if "iovirt" in p and not p.startswith("/run/")]
    assert before["vgpu"] == {}


def test_a_type_by_id_or_by_its_short_name():
    sim = host()
    converged(sim, vgpu=[on("1153")])
    quiet(sim, vgpu=[on("L40S-12Q")])
    quiet(sim, vgpu=[on(Q12)])


def test_a_change_of_one_writes_to_that_vf_alone():
    sim = host()
    converged(sim, vgpu=[on(Q12, 3)])
    sim.log.clear()
    result = converged(sim, vgpu=[on(Q12, 2), on(A12, 1)])
    assert written(sim) == [(2, "0"), (2, "1163")]
    assert [a["certainty"] for a in result["actions"] if a["action"] == "set_vgpu_type"] == ["certain", "predicted"]
    sim.log.clear()
    converged(sim, vgpu=[on(Q12, 1), on(A12, 1)])
    assert written(sim) == [(1, "0")]
    # The order of the wishes is nothing to the VFs.
    sim.log.clear()
    quiet(sim, vgpu=[on(A12, 1), on(Q12, 1)])


def test_a_vf_that_is_gone():
    """Somebody made fewer VFs than sriov-manage does. It had its type before the collection, and nobody can give it that back."""
    sim = host()
    sim.write(f"/sys/bus/pci/devices/{sim.functions[GPU].vfs[1]}/nvidia/current_vgpu_type", "1153")
    converged(sim, vgpu=[on(Q12, 2)])
    for vf in sim.functions[GPU].vfs[1:]:
        sim.vgpu.types.pop(vf, None)
        sim._vanish(sim.functions[GPU], vf)
    sim._tree = None
    assert "there is no VF 1" in str(replay.run(sim.host(environment={}, sources=None), None)["failures"])
    converged(sim, vgpu=[on(Q12, 1)])
    assert types_of(sim) == {0: 1153}


def test_what_others_set_counts_and_is_never_cleared():
    sim = host()
    for index, number in ((0, "1153"), (1, "1163")):
        sim.write(f"/sys/bus/pci/devices/{sim.functions[GPU].vfs[index]}/nvidia/current_vgpu_type", number)
    sim.log.clear()
    converged(sim, vgpu=[on(Q12, 2)])
    assert written(sim) == [(2, "1153")]
    converged(sim, vgpu=[on(Q12, 0)])
    assert types_of(sim) == {0: 1153, 1: 1163}
    converged(sim, vgpu=[on(A12, 3)])
    assert types_of(sim) == {0: 1153, 1: 1163, 2: 1163, 3: 1163}
    converged(sim, vgpu=[on(Q12, 2)])
    converged(sim, vgpu=[], exclusive=("vgpu",))
    assert types_of(sim) == {0: 1153, 1: 1163}
    # Handed back, what there is is declared and stays.
    sim.log.clear()
    call(sim, vgpu=engine.resource_info(sim.host(), "vgpu", None)["devices"])
    assert written(sim) == []
    converged(sim, vgpu=[on(state="absent")])
    assert types_of(sim) == {0: 1153, 1: 1163}


def test_state_lost_by_a_driver_reload_is_drift():
    sim = host()
    converged(sim, vgpu=[on(Q12, 2)])
    sim.vgpu.types.clear()
    sim._tree = None
    sim.log.clear()
    converged(sim, vgpu=[on(Q12, 2)])
    assert written(sim) == [(0, "1153"), (1, "1153")]


@pytest.mark.parametrize("knob", ["lies", "drops"])
def test_sriov_manage_is_not_believed(knob):
    sim = host(vfs=False)
    setattr(sim.vgpu, knob, 2)
    converged(sim, vgpu=[on(Q12, 1)])
    assert sim.functions[GPU].driver == "nvidia"
    assert len(sim.functions[GPU].vfs) == 32
    sim = host(vfs=False)
    setattr(sim.vgpu, knob, 9)
    result = call(sim, vgpu=[on(Q12, 1)])
    assert "made no VF" in result["failures"][GPU]
    assert sim.functions[GPU].driver == "nvidia"
    assert "/etc/iovirt/vgpu.json" not in sim.files


def test_vfs_whose_files_never_come():
    sim = host(vfs=False)
    sim.vgpu.delay = 10_000.0
    result = call(sim, vgpu=[on(Q12, 1)])
    assert "nvidia-vgpu-mgr" in result["failures"][GPU]


def test_types_that_the_driver_does_not_name_yet_are_waited_for():
    sim = host()
    converged(sim, vgpu=[on(Q12, 2)])
    sim.vgpu.silent = 3
    quiet(sim, vgpu=[on(Q12, 2)])
    # What is declared is not taken for nothing where the driver is silent: neither cleared, nor forgotten.
    sim.vgpu.silent = 10_000
    host_ = sim.host(environment={}, sources=None)
    assert "does not know the declared type" in replay.run(host_, None)["failures"][GPU]
    assert types_of(sim) == {0: 1153, 1: 1153}
    assert Q12 in sim.files["/etc/iovirt/vgpu.json"]


def test_a_selector_by_driver_means_the_gpu_and_not_its_vfs():
    sim = host()
    assert {sim.functions[vf].driver for vf in sim.functions[GPU].vfs} == {"nvidia"}
    converged(sim, vgpu=[{"match": {"driver": ["nvidia"]}, "expect": 1, "type": Q12, "count": 1}])


def test_the_operators_command_tells_of_it(capsys):
    sim = host()
    converged(sim, vgpu=[on(Q12, 2)])
    cli._status(sim.host(environment={}, sources=None), False)
    assert f"2 {Q12}" in capsys.readouterr().out
    sim.vgpu.types.clear()
    sim._tree = None
    cli._status(sim.host(environment={}, sources=None), False)
    assert "no vGPU" in capsys.readouterr().out


# --- What is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_card_that_is_not_under_the_host_driver(mode):
    sim = host()
    sim.vgpu.mode, sim.vgpu.virtualization = mode, MODES[mode]
    refused(sim, GPU, f"Host VGPU Mode is {mode} (Virtualization Mode {MODES[mode]}), not SR-IOV", "vGPU host driver", vgpu=[on()])


def test_bad_wishes():
    sim = host()
    refused(sim, "knows no type 'L40S-5Q'", f"{Q48} (1156; at most 1, 1 free)", vgpu=[on("L40S-5Q")])
    refused(sim, f"5 of {Q12} are more than the 4", vgpu=[on(Q12, 5)])
    refused(sim, "one size at a time (vGPU Heterogeneous Mode Disabled)", f"{Q12} (12288 MiB) and {Q24} (24576 MiB)", vgpu=[on(Q12, 1), on(Q24, 1)])
    sim.vgpu.sizes = "Enabled"
    refused(sim, "61440 MiB together, and it has 49152 MiB", vgpu=[on(Q12, 3), on(Q24, 1)])
    refused(sim, "33 vGPUs are wished", "not so many VFs", vgpu=[on("1147", 33)])
    refused(sim, "count is -1", vgpu=[on(Q12, -1)])
    refused(sim, "present and absent", vgpu=[on(), on(state="absent")])
    vf = sim.functions[GPU].vfs[0]
    refused(sim, "it is a VF of", vgpu=[{"match": {"address": [vf], "vf": True}, "type": Q12, "count": 1}])
    refused(sim, "its driver is igb, and those that divide a GPU are i915, nvidia, xe", vgpu=[at("0000:81:00.0", type=Q12, count=1)])
    sim.vgpu.display = "Yes"
    refused(sim, "a display is attached", vgpu=[on()])
    sim.vgpu.display_field, sim.vgpu.display = "Display Active", "Enabled"
    refused(sim, "a display is attached", vgpu=[on()])
    sim.vgpu.display = "Disabled"
    refused(sim, "it names neither a type nor mig", vgpu=[{"match": {"address": [GPU]}}])
    refused(sim, "it knows no MIG", vgpu=[on(mig={"enabled": True})])


def test_two_resources_on_one_card():
    sim = host()
    converged(sim, vgpu=[on()])
    refused(sim, GPU, "the resource vgpu holds it", sriov=[at(GPU, vf_count=2)])
    vf = sim.functions[GPU].vfs[0]
    sim.run(["modprobe", "--", "vfio-pci"])
    refused(sim, "vgpu rules the VFs of its GPU", vfio=[{"match": {"address": [vf], "vf": True}}])


def test_more_than_a_sibling_of_others_leaves():
    sim = host()
    foreign = sim.functions[GPU].vfs[0]
    sim.write(f"/sys/bus/pci/devices/{foreign}/nvidia/current_vgpu_type", "1155")
    refused(sim, "one size at a time", Q48, Q24, vgpu=[on(Q48, 1)])
    sim.vgpu.sizes = "Enabled"
    refused(sim, "73728 MiB together", vgpu=[on(Q48, 1)])
    converged(sim, vgpu=[on(Q24, 1)])


@pytest.mark.parametrize("how", ["process", "guest"])
def test_one_in_use_is_never_cleared(how):
    sim = host()
    converged(sim, vgpu=[on(Q12, 2)])
    vf = sim.functions[GPU].vfs[1]
    if how == "guest":
        source = f"<address domain='0x0000' bus='0x{vf[5:7]}' slot='0x{vf[8:10]}' function='0x{vf[-1]}'/>"
        text = guest("x").replace("<address uuid='x'/>", source).replace("mdev", "pci")
        sim.files["/run/libvirt/qemu/router1.xml"] = f"<domstatus state='running' pid=''>{text}</domstatus>"
    else:
        node = f"/dev/vfio/{sim.functions[vf].group}"
        sim.pids[77], sim.files[node] = ("qemu-system-x86", [node]), ""
    sim._tree = None
    who = "router1" if how == "guest" else "process 77"
    for wishes in ([on(state="absent")], [on(Q12, 1)], [on(Q12, 1), on(A12, 1)]):
        refused(sim, "VF 1", vf, who, vgpu=wishes, allow=("in_use",))
    quiet(sim, vgpu=[on(Q12, 2)])


def test_a_count_that_no_gpu_can_have_is_refused_before_it_is_counted_out():
    sim = host()
    refused(sim, "its count is 65536", "up to 65535", vgpu=[on(Q12, 65536)])
    refused(sim, "its count is -1", vgpu=[on(Q12, -1)])


def test_who_has_the_group_of_several_vfs_may_have_any_of_them():
    """A platform without ACS."""
    sim = host()
    converged(sim, vgpu=[on(Q12, 2)])
    vfs = sim.functions[GPU].vfs[:2]
    for vf in vfs:
        sim.functions[vf].group = "99"
    sim.pids[77], sim.files["/dev/vfio/99"] = ("qemu-system-x86", ["/dev/vfio/99"]), ""
    sim._tree = None
    refused(sim, "VF 0", "VF 1", *vfs, "process 77", vgpu=[on(state="absent")], allow=("in_use",))


def test_a_driver_that_refuses_puts_the_card_back():
    sim = host()
    converged(sim, vgpu=[on(Q12, 2)])
    sim.faults.append(("*/current_vgpu_type", "1163", errno.EIO))
    result = call(sim, vgpu=[on(Q12, 1), on(A12, 1)])
    assert "EIO" in result["failures"][GPU]
    assert types_of(sim) == {0: 1153, 1: 1153}
    sim.faults.clear()
    quiet(sim, vgpu=[on(Q12, 2)])


def test_info_is_valid_input():
    sim = host()
    converged(sim, vgpu=[on(Q12, 2), on(A12, 1)])
    found = engine.resource_info(sim.host(), "vgpu", None)
    assert sorted((d["type"], d["count"]) for d in found["devices"]) == [(A12, 1), (Q12, 2)]
    (facts,) = found["facts"]
    assert (facts["framework"], facts["host_vgpu_mode"]) == ("nvidia_vfio", "SR-IOV")
    assert facts["vgpus"][0]["type"] == facts["vgpus"][0]["declared"] == Q12
    assert Q24 not in facts["vgpus"][5]["creatable"] and Q12 in facts["vgpus"][5]["creatable"]
    quiet(sim, vgpu=found["devices"])
