# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Intel's GPUs by the resource vgpu: VFs of xe and i915 (sim_intel.py), and GVT-g (sim_mdev.py). Synthetic trees; those files name the sources."""

from __future__ import annotations

import errno

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import engine, replay
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

GPU = "0000:00:02.1"
QUOTAS = {"ggtt_quota": 1 << 30, "contexts_quota": 1024, "doorbells_quota": 32}
SHARE = {"exec_quantum_ms": 20, "preempt_timeout_us": 40000}
LAYOUTS = {
    "sriov_admin": ("xe", "sriov_admin", 1), "vram": ("xe", "vram", 1), "debugfs": ("xe", "debugfs", 2), "iov": ("i915", "iov", 2),
}  # fmt: skip
EVERY = pytest.mark.parametrize("layout", LAYOUTS)
BY_HAND = pytest.mark.parametrize("layout", ["debugfs", "iov"])


def host(layout="sriov_admin", iommu=True, **more):
    sim = lab(iommu=iommu)
    driver, kind, gts = LAYOUTS.get(layout, (layout, "none", 1))
    total = more.pop("total", 7)
    sim.intel.add(Pci(GPU, "8086:56c0", "030000", total_vfs=total, offset=1, stride=1, vf_ids="8086:56c0"), driver, kind, gts, **more)
    return sim


def on(count=2, **more):
    return at(GPU, count=count, **({"profile": more} if more else {}))


def absent():
    return at(GPU, state="absent")


def gpu(sim):
    return sim.intel.gpus[0]


def values(sim, key):
    return [gpu(sim).values.get((vf, key), 0) for vf in range(1, len(sim.functions[GPU].vfs) + 1)]


def drivers(sim):
    return [sim.functions[vf].driver for vf in sim.functions[GPU].vfs]


def written(sim):
    """File below the folder of a GPU, and what was written to it."""
    found = [(path, data) for what, path, data in sim.log if what == "write"]
    return [("/".join(path.split("/")[-3:]), data) for path, data in found if "/vf" in path or ".bulk" in path or "auto_prov" in path]


def restart(sim):
    sim.reboot()
    return replay.run(sim.host(environment={}, sources=None), None)


def lasting(snapshot):
    return {**snapshot, "files": {p: t for p, t in snapshot["files"].items() if not p.startswith("/run/")}, "modes": None}


# --- VFs -----------------------------------------------------------------------------------------------------------


@EVERY
def test_vfs_with_a_share_of_time_over_a_reboot_and_back(layout):
    sim = host(layout)
    before = sim.snapshot()
    wishes = [on(2, **SHARE), on(1, exec_quantum_ms=5)]
    converged(sim, vgpu=wishes)
    assert drivers(sim) == ["vfio-pci"] * 3
    assert values(sim, "exec_quantum_ms") == [20, 20, 5] and values(sim, "preempt_timeout_us") == [40000, 40000, 0]
    assert restart(sim)["failures"] == {}
    assert drivers(sim) == ["vfio-pci"] * 3 and values(sim, "exec_quantum_ms") == [20, 20, 5]
    quiet(sim, vgpu=wishes)
    converged(sim, vgpu=[absent()])
    assert lasting(sim.snapshot()) == lasting(before)


@BY_HAND
def test_quotas_over_a_reboot_and_back(layout):
    sim = host(layout)
    before = sim.snapshot()
    wishes = [on(1, **QUOTAS, **SHARE), on(2, **{**QUOTAS, "ggtt_quota": 1 << 28})]
    result = converged(sim, vgpu=wishes)
    assert values(sim, "ggtt_quota") == [1 << 30, 1 << 28, 1 << 28] and values(sim, "contexts_quota") == [1024] * 3
    kinds = [a["action"] for a in result["actions"] if a["device"] == GPU and a["action"] != "declare"]
    assert kinds == [*(["set_auto_provisioning"] if layout == "iov" else []), *["set_vf_profile"] * 3, "set_vf_count", *["set_vf_profile"] * 3, *["bind"] * 3]
    assert restart(sim)["failures"] == {}
    assert values(sim, "ggtt_quota") == [1 << 30, 1 << 28, 1 << 28]
    quiet(sim, vgpu=wishes)
    converged(sim, vgpu=[absent()])
    assert lasting(sim.snapshot()) == lasting(before)


def test_vram_over_a_reboot_and_back():
    """Linux 7.0: a quota of sriov_admin alone leaves the rest to the driver."""
    sim = host("vram")
    before = sim.snapshot()
    converged(sim, vgpu=[on(2, vram_quota=2 << 30)])
    assert values(sim, "vram_quota") == [2 << 30] * 2
    assert restart(sim)["failures"] == {}
    assert values(sim, "vram_quota") == [2 << 30] * 2
    converged(sim, vgpu=[absent()])
    assert lasting(sim.snapshot()) == lasting(before)


def test_a_change_of_one_writes_to_that_vf_alone():
    sim = host()
    converged(sim, vgpu=[on(3, **SHARE)])
    sim.log.clear()
    result = converged(sim, vgpu=[on(2, **SHARE), on(1, **{**SHARE, "exec_quantum_ms": 5})])
    assert written(sim) == [("vf3/profile/exec_quantum_ms", "5")]
    assert [a["certainty"] for a in result["actions"] if a["action"] == "set_vf_profile"] == ["certain"]


def test_both_gts_get_a_value_and_one_that_differs_is_drift():
    sim = host("iov")
    converged(sim, vgpu=[on(1, exec_quantum_ms=20)])
    assert [path for path, _data in written(sim)] == ["vf1/gt0/exec_quantum_ms", "vf1/gt1/exec_quantum_ms"]
    gpu(sim).values[1, "exec_quantum_ms"] = 7
    sim._tree = None
    assert "set_vf_profile" in str(converged(sim, vgpu=[on(1, exec_quantum_ms=20)])["actions"])


def test_the_priority_is_one_for_all():
    sim = host()
    converged(sim, vgpu=[on(2, sched_priority="normal")])
    assert written(sim) == [("sriov_admin/.bulk_profile/sched_priority", "normal")]
    refused(sim, "one for all VFs of a GPU", vgpu=[on(1, sched_priority="normal"), on(1)])
    refused(sim, "cannot have the sched_priority 'high'", "low, normal", vgpu=[on(2, sched_priority="high")])
    converged(sim, vgpu=[absent()])
    assert gpu(sim).priority == "low"


def test_other_quotas_make_vfs_anew():
    sim = host("iov")
    converged(sim, vgpu=[on(2, **QUOTAS)])
    converged(sim, vgpu=[on(2, **{**QUOTAS, "contexts_quota": 2048})])
    assert values(sim, "contexts_quota") == [2048] * 2 and drivers(sim) == ["vfio-pci"] * 2


@pytest.mark.parametrize("home", ["iov", "prelim_iov"])
def test_both_names_of_the_folder(home):
    sim = host("iov", home=home)
    converged(sim, vgpu=[on(1, exec_quantum_ms=20)])
    assert values(sim, "exec_quantum_ms") == [20]


def test_state_lost_by_a_driver_reload_is_drift():
    sim = host()
    converged(sim, vgpu=[on(2, **SHARE)])
    sim.write(f"/sys/bus/pci/devices/{GPU}/sriov_numvfs", "0")
    gpu(sim).boot()
    sim._tree = None
    converged(sim, vgpu=[on(2, **SHARE)])
    assert values(sim, "exec_quantum_ms") == [20, 20]


# --- What is refused -----------------------------------------------------------------------------------------------


def test_bad_wishes():
    sim = host("iov")
    refused(sim, "8 VFs are wished, and it can have 7", vgpu=[on(8)])
    refused(sim, "its count is -1", vgpu=[on(-1)])
    refused(sim, "its count is None", vgpu=[at(GPU, profile=SHARE)])
    refused(sim, "its count is 65536", "up to 65535", vgpu=[on(65536)])
    refused(sim, "it knows no type 'GVTg_V5_4': its vGPUs are VFs", vgpu=[at(GPU, type="GVTg_V5_4", count=1)])
    refused(sim, "it knows no MIG", vgpu=[at(GPU, count=1, mig={"enabled": True})])
    refused(sim, "its driver has no vram_quota of a VF", "exec_quantum_ms", vgpu=[on(1, vram_quota=1)])
    refused(sim, "exec_quantum_ms 4294967296 is not between 0 and 4294967295", vgpu=[on(1, exec_quantum_ms=2**32)])
    refused(sim, "VF 1 would have no ggtt_quota and no contexts_quota", vgpu=[on(1, **QUOTAS), on(1, **SHARE)])
    refused(sim, "VF 0 would have no contexts_quota", vgpu=[on(1, ggtt_quota=4096)])
    refused(sim, "present and absent", vgpu=[on(), absent()])


@pytest.mark.parametrize("driver", ["xe", "i915"])
def test_a_gpu_without_either(driver):
    sim = host(driver, total=None)
    refused(sim, f"its driver {driver} offers neither mediated devices (GVT-g) nor VFs", "i915.enable_guc=3", "kvmgt", vgpu=[on()])


def test_a_driver_without_files_has_vfs_alone():
    """xe before 6.19 without debugfs."""
    sim = host("xe")
    converged(sim, vgpu=[on(2)])
    refused(sim, "its driver has no exec_quantum_ms of a VF. It has nothing", vgpu=[on(2, **SHARE)])


def test_declared_quotas_that_the_driver_has_no_longer_are_a_sentence_at_boot():
    """debugfs is not mounted."""
    sim = host("debugfs")
    converged(sim, vgpu=[on(2, **QUOTAS)])
    gpu(sim).layout = "none"
    failure = restart(sim)["failures"][GPU]
    assert "its driver has no contexts_quota and no doorbells_quota and no ggtt_quota of a VF now, which is declared." in failure
    assert "Mount debugfs, or wish what this kernel has." in failure


def test_without_an_iommu_vfs_are_refused():
    refused(host(iommu=False), GPU, "the IOMMU is off", vgpu=[on()])


def test_an_iommu_that_comes_with_the_reboot_is_waited_for():
    sim = host(iommu=False)
    result = converged(sim, vgpu=[on(2, **SHARE)], assume={"iommu": True})
    assert drivers(sim) == [None, None] and values(sim, "exec_quantum_ms") == [20, 20]
    assert [a["certainty"] for a in result["actions"] if a["action"] == "bind"] == ["after_reboot"] * 2
    assert result["reboot_required"]


def test_a_vf_that_somebody_took_off_vfio_is_drift():
    sim = host()
    converged(sim, vgpu=[on(2)])
    vf = sim.functions[GPU].vfs[1]
    sim.write("/sys/bus/pci/drivers/vfio-pci/unbind", vf)
    converged(sim, vgpu=[on(2)])
    assert drivers(sim) == ["vfio-pci"] * 2


def test_a_vf_on_a_variant_of_vfio_stays_there():
    """xe-vfio-pci (drivers/vfio/pci/xe)."""
    sim = host()
    converged(sim, vgpu=[on(2)])
    vf = sim.functions[GPU].vfs[1]
    sim.add_driver("xe-vfio-pci")
    sim.registered.add("xe-vfio-pci")
    sim._tree = None
    sim.write("/sys/bus/pci/drivers/vfio-pci/unbind", vf)
    sim.write(f"/sys/bus/pci/devices/{vf}/driver_override", "xe-vfio-pci")
    sim.write("/sys/bus/pci/drivers/xe-vfio-pci/bind", vf)
    quiet(sim, vgpu=[on(2)])
    assert drivers(sim) == ["vfio-pci", "xe-vfio-pci"]


def test_a_vf_that_somebody_has_keeps_its_driver():
    sim = host()
    converged(sim, vgpu=[on(2)])
    vf = sim.functions[GPU].vfs[1]
    sim.write("/sys/bus/pci/drivers/vfio-pci/unbind", vf)
    running(sim, vf)
    sim._tree = None
    refused(sim, "VF 1", vf, "router1", vgpu=[on(2)], allow=("in_use",))


def test_without_vfio_pci_vfs_are_refused():
    sim = host()
    sim.missing_modules.add("vfio_pci")
    sim._tree = None
    refused(sim, GPU, "there is no driver vfio-pci", vgpu=[on()])


def test_vfs_of_others_stay():
    sim = host()
    sim.write(f"/sys/bus/pci/devices/{GPU}/sriov_drivers_autoprobe", "0")
    sim.write(f"/sys/bus/pci/devices/{GPU}/sriov_numvfs", "2")
    refused(sim, "3 VFs are wished, and it has 2 that the collection did not make", vgpu=[on(3)])
    converged(sim, vgpu=[on(2, exec_quantum_ms=20)])
    assert drivers(sim) == [None, None]
    converged(sim, vgpu=[absent()])
    assert len(drivers(sim)) == 2 and values(sim, "exec_quantum_ms") == [0, 0]


def running(sim, vf):
    """A guest that has a VF."""
    source = f"<address domain='0x0000' bus='0x{vf[5:7]}' slot='0x{vf[8:10]}' function='0x{vf[-1]}'/>"
    text = guest("x").replace("<address uuid='x'/>", source).replace("mdev", "pci")
    sim.files["/run/libvirt/qemu/router1.xml"] = f"<domstatus state='running' pid=''>{text}</domstatus>"


@pytest.mark.parametrize("how", ["process", "guest"])
def test_one_in_use_is_never_taken_away(how):
    sim = host("vram")
    converged(sim, vgpu=[on(2, vram_quota=2 << 30)])
    vf = sim.functions[GPU].vfs[1]
    if how == "guest":
        running(sim, vf)
    else:
        node = f"/dev/vfio/{sim.functions[vf].group}"
        sim.pids[77], sim.files[node] = ("qemu-system-x86", [node]), ""
    sim._tree = None
    who = "router1" if how == "guest" else "process 77"
    for wishes in ([absent()], [on(1, vram_quota=2 << 30)], [on(2, vram_quota=4 << 30)]):
        refused(sim, "VF 1", vf, who, vgpu=wishes, allow=("in_use",))
    # A share of time changes while it runs.
    converged(sim, vgpu=[on(2, vram_quota=2 << 30, exec_quantum_ms=20)])


def test_two_resources_on_one_gpu():
    sim = host()
    converged(sim, vgpu=[on()])
    refused(sim, GPU, "the resource vgpu holds it", sriov=[at(GPU, vf_count=2)])
    refused(sim, "vgpu rules the VFs of its GPU", vfio=[{"match": {"address": [sim.functions[GPU].vfs[0]], "vf": True}}])


@BY_HAND
def test_what_the_driver_refuses_puts_the_gpu_back(layout):
    sim = host(layout)
    before = sim.snapshot()
    # More than there is, as nobody can tell before.
    result = call(sim, vgpu=[on(3, **{**QUOTAS, "ggtt_quota": 2 << 30})])
    assert "EDQUOT" in result["failures"][GPU]
    assert lasting(sim.snapshot()) == lasting(before)


def test_a_value_that_the_driver_rounds_is_told_and_undone():
    sim = host("iov")
    before = sim.snapshot()
    result = call(sim, vgpu=[on(1, **{**QUOTAS, "contexts_quota": 1000})])
    assert "the driver made 1024 of contexts_quota 1000" in result["failures"][GPU]
    assert lasting(sim.snapshot()) == lasting(before)


def test_a_failed_write_after_the_vfs_were_made_is_undone():
    sim = host()
    before = sim.snapshot()
    sim.faults.append(("*/vf2/profile/preempt_timeout_us", "*", errno.EIO))
    assert "EIO" in call(sim, vgpu=[on(2, **SHARE)])["failures"][GPU]
    sim.faults.clear()
    assert lasting(sim.snapshot()) == lasting(before)


# --- What is told --------------------------------------------------------------------------------------------------


@EVERY
def test_info_is_valid_input(layout):
    sim = host(layout)
    converged(sim, vgpu=[on(2, **SHARE), on(1, exec_quantum_ms=5)])
    found = engine.resource_info(sim.host(), "vgpu", None)
    assert [(d["type"], d["count"], d["profile"]["exec_quantum_ms"]) for d in found["devices"]] == [("VF", 2, 20), ("VF", 1, 5)]
    (facts,) = [f for f in found["facts"] if f["address"] == GPU]
    assert (facts["framework"], facts["types"]) == ("intel_sriov", [{"name": "VF", "most": 7, "free": 4}])
    assert [(v["index"], v["driver"], v["profile"]["exec_quantum_ms"], v["declared"]) for v in facts["vgpus"]] == [
        (0, "vfio-pci", 20, "VF"), (1, "vfio-pci", 20, "VF"), (2, "vfio-pci", 5, "VF"),
    ]  # fmt: skip
    sim.log.clear()
    quietly = call(sim, vgpu=found["devices"])
    assert quietly["failures"] == {} and written(sim) == []


# --- GVT-g ---------------------------------------------------------------------------------------------------------

V4, V8 = "i915-GVTg_V5_4", "i915-GVTg_V5_8"


def gvt(mdevctl=True):
    sim = host("i915", total=None)
    sim.mdev.add_gvt(GPU, sim.functions[GPU].path)
    if mdevctl:
        sim.mdev.install()
    return sim


def types_of(sim):
    return sorted(device.type for device in sim.mdev.devices.values())


@pytest.mark.parametrize("mdevctl", [True, False])
def test_gvt_over_a_reboot_and_back(mdevctl):
    sim = gvt(mdevctl)
    before = sim.snapshot()
    wishes = [at(GPU, type="GVTg_V5_4", count=2), at(GPU, type=V8, count=1)]
    converged(sim, vgpu=wishes)
    assert types_of(sim) == [V4, V4, V8]
    assert restart(sim)["failures"] == {}
    assert types_of(sim) == [V4, V4, V8]
    quiet(sim, vgpu=wishes)
    refused(sim, GPU, "the resource vgpu holds it", mdev=[at(GPU, type=V4, count=1)])
    converged(sim, vgpu=[absent()])
    assert lasting(sim.snapshot()) == lasting(before)


def test_gvt_changes_only_what_differs():
    sim = gvt()
    converged(sim, vgpu=[at(GPU, type=V4, count=3)])
    first = set(sim.mdev.devices)
    converged(sim, vgpu=[at(GPU, type=V4, count=2), at(GPU, type=V8, count=1)])
    assert types_of(sim) == [V4, V4, V8] and set(sim.mdev.devices) == first
    converged(sim, vgpu=[at(GPU, type=V8, count=1)])
    assert types_of(sim) == [V8]


def test_gvt_bad_wishes():
    sim = gvt()
    refused(sim, "it knows no type 'GVTg_V5_3'", f"{V4} (4 free)", vgpu=[at(GPU, type="GVTg_V5_3", count=1)])
    refused(sim, "there is no room for 5 of i915-GVTg_V5_4", vgpu=[at(GPU, type=V4, count=5)])
    refused(sim, "its count is None", vgpu=[at(GPU, type=V4)])
    refused(sim, "its count is 65536", "up to 65535", vgpu=[at(GPU, type=V4, count=65536)])
    refused(sim, "a vGPU of GVT-g has no profile", vgpu=[at(GPU, type=V4, count=1, profile=SHARE)])
    sim.files["/etc/machine-id"] = ""
    sim._tree = None
    refused(sim, "no /etc/machine-id", vgpu=[at(GPU, type=V4, count=1)])


def test_gvt_of_others_counts_and_stays():
    sim = gvt()
    other = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
    sim.mdev.make(other, GPU, V4)
    found = engine.resource_info(sim.host(), "vgpu", None)
    assert [(d["type"], d["count"]) for d in found["devices"]] == [(V4, 1)]
    call(sim, vgpu=found["devices"])
    assert list(sim.mdev.devices) == [other]
    converged(sim, vgpu=[at(GPU, type=V4, count=2)])
    assert len(sim.mdev.devices) == 2
    assert restart(sim)["failures"] == {}
    assert other in sim.mdev.devices
    converged(sim, vgpu=[absent()])
    assert list(sim.mdev.devices) == [other]


def test_gvt_in_use_is_never_removed():
    sim = gvt()
    converged(sim, vgpu=[at(GPU, type=V4, count=1)])
    (uuid,) = sim.mdev.devices
    sim.files["/run/libvirt/qemu/router1.xml"] = f"<domstatus state='running' pid=''>{guest(uuid)}</domstatus>"
    sim._tree = None
    refused(sim, uuid, "router1", vgpu=[absent()], allow=("in_use",))


def test_gvt_that_is_gone_says_what_it_lacks():
    """kvmgt is not loaded."""
    sim = gvt()
    converged(sim, vgpu=[at(GPU, type=V4, count=1)])
    sim.mdev.unregister(GPU)
    refused(sim, "were declared as mediated devices (GVT-g), and i915 offers none now", "Load kvmgt", vgpu=[at(GPU, type=V4, count=1)])
    refused(sim, "Load kvmgt", vgpu=[absent()])
    sim.mdev.register(GPU)
    converged(sim, vgpu=[at(GPU, type=V4, count=1)])
    assert types_of(sim) == [V4]
