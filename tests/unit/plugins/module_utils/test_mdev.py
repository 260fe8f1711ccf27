# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Mediated devices, with mdevctl and without, on the simulated kernel."""

from __future__ import annotations

import errno
import json

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import engine, replay
from ansible_collections.iovirt.host.plugins.module_utils._engine.mdev import facts as reading
from ansible_collections.iovirt.host.plugins.module_utils._engine.mdev import room
from ansible_collections.iovirt.host.plugins.module_utils._engine.resources import mdev
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import (
    EDU,
    MANAGEMENT,
    at,
    call,
    converged,
    lab,
    quiet,
    refused,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import Pci
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim_mdev import DEFINED, DEVICES

A, B, C = (f"83b8f4f2-509f-382f-3c1e-e6bfe0fa100{n}" for n in (1, 2, 3))
GPU = "0000:00:0a.0"


def host(mdevctl=True, rule_works=False):
    sim = lab()
    sim.mdev.add_samples()
    if mdevctl:
        sim.mdev.install(rule_works)
    return sim


def on(parent="mtty", type_="mtty-2", **wish):
    return {"match": {"parent": [parent]}, "type": type_, **wish}


def absent(parent="mtty"):
    return {"match": {"parent": [parent]}, "state": "absent"}


def types_of(sim):
    return {uuid: device.type for uuid, device in sim.mdev.devices.items()}


def defined(sim, uuid, parent="mtty"):
    return json.loads(sim.files[f"{DEFINED}/{parent}/{uuid}"])


def restart(sim):
    sim.reboot()
    return replay.run(sim.host(environment={}, sources=None), None)


def kinds(result):
    return [a["action"] for a in result["actions"] if a["action"].startswith("mdev")]


BOTH = pytest.mark.parametrize("mdevctl", [True, False])


# --- The way there and back ----------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("rule_works", [True, False])
def test_over_a_reboot_and_back(mdevctl, rule_works):
    sim = host(mdevctl, rule_works)
    before = sim.snapshot()
    wish = on(uuids=[A, B.upper()])
    converged(sim, mdev=[wish])
    assert types_of(sim) == {A: "mtty-2", B: "mtty-2"}
    if mdevctl:
        assert defined(sim, A) == {"mdev_type": "mtty-2", "start": "auto", "attrs": []}
    else:
        assert not [p for p in sim.files if p.startswith(DEFINED)]
    assert restart(sim)["failures"] == {}
    assert types_of(sim) == {A: "mtty-2", B: "mtty-2"}
    quiet(sim, mdev=[wish])
    converged(sim, mdev=[absent()])
    after = sim.snapshot()
    for part in ("files", "modes"):
        for snapshot in (before, after):
            snapshot[part] = {p: t for p, t in snapshot[part].items() if not p.startswith("/run/")}
    assert after == before


@BOTH
def test_counted_devices_have_the_same_uuids_in_each_run_and_others_on_another_host(mdevctl):
    sim = host(mdevctl)
    converged(sim, mdev=[on(count=2)])
    first = list(types_of(sim))
    assert first == [mdev.derived("6b7e0f5ad3c84d0d9d9c2f4d3f0c1a2b", "mtty", index) for index in (0, 1)]
    converged(sim, mdev=[on(count=3)])
    assert list(types_of(sim))[:2] == first
    converged(sim, mdev=[on(count=1)])
    assert list(types_of(sim)) == first[:1]
    converged(sim, mdev=[on(count=0)])
    assert types_of(sim) == {}
    other = host(mdevctl)
    other.files["/etc/machine-id"] = "0" * 32 + "\n"
    call(other, mdev=[on(count=2)])
    assert not set(first) & set(types_of(other))


def test_a_type_by_its_name_and_two_types_on_one_parent():
    sim = host()
    converged(sim, mdev=[on(type_="Single port serial", uuids=[A]), on(count=1)])
    assert sorted(types_of(sim).values()) == ["mtty-1", "mtty-2"]
    assert types_of(sim)[A] == "mtty-1"


@BOTH
def test_only_what_differs_is_touched(mdevctl):
    sim = host(mdevctl)
    converged(sim, mdev=[on(uuids=[A]), on(type_="mtty-1", uuids=[B])])
    sim.log.clear()
    result = converged(sim, mdev=[on(uuids=[A]), on(uuids=[B])])
    assert kinds(result) == ["mdev_stop", *(["mdev_define"] if mdevctl else []), "mdev_start"]
    assert types_of(sim) == {A: "mtty-2", B: "mtty-2"}
    assert not [entry for entry in sim.log if A in " ".join(entry) and "/etc/iovirt/" not in entry[1]]


def test_a_parent_by_the_function_behind_it():
    sim = host()
    sim.add_driver("i915", "8086:3e92")
    gpu = sim.add(Pci(GPU, "8086:3e92", "030000", driver="i915"))
    sim.registered.add("i915")
    sim.mdev.add_gvt(GPU, gpu.path)
    wish = {"match": {"vendor": ["8086"], "class": ["display"]}, "expect": 1, "type": "GVTg_V5_4", "count": 2}
    converged(sim, mdev=[wish])
    assert set(types_of(sim).values()) == {"i915-GVTg_V5_4"}
    assert restart(sim)["failures"] == {}
    assert len(types_of(sim)) == 2
    refused(sim, GPU, "resource mdev holds it", vfio=[at(GPU)])


def a2(mdevctl=True):
    """An A2 whose VFs are parents, as captured; its driver and the rest are synthetic."""
    sim = host(mdevctl)
    sim.add_driver("nvidia", "10de:25b6", sriov=True)
    pf = sim.add(Pci("0000:08:00.0", "10de:25b6", "030200", driver="nvidia", total_vfs=4, offset=4, stride=1, vf_ids="10de:25b6"))
    sim.registered.add("nvidia")

    def vfs():
        sim.write(f"/sys/bus/pci/devices/{pf.address}/sriov_numvfs", "4")
        sim.mdev.add_a2(pf.address, pf.vfs)

    vfs()
    return sim, pf, vfs


@BOTH
def test_vfs_of_a_gpu_as_parents(mdevctl):
    """Captured tree of an A2 with the framework of mediated devices: read, plan, apply, refusal, reboot."""
    sim, pf, vfs = a2(mdevctl)
    said = info(sim, parent=[pf.vfs[1]])["facts"][0]
    assert {t["name"]: t["available"] for t in said["types"]}["NVIDIA A2-16C"] == 1
    converged(sim, mdev=[on(pf.vfs[0], "NVIDIA A2-4Q", count=1), on(pf.vfs[1], "NVIDIA A2-4C", uuids=[A])])
    # What the captured VF says: one more of 4 GiB.
    free = {t["name"] for t in info(sim, parent=[pf.vfs[3]])["facts"][0]["types"] if t["available"]}
    assert free == {"NVIDIA A2-4Q", "NVIDIA A2-4A", "NVIDIA A2-4C"}
    refused(sim, "there is no room for 1 of nvidia-747", "nvidia-746 'NVIDIA A2-4Q' (1 free)", mdev=[on(pf.vfs[3], "NVIDIA A2-8Q", count=1)])
    refused(sim, "it offers no type 'NVIDIA A2-3Q'", mdev=[on(pf.vfs[3], "NVIDIA A2-3Q", count=1)])
    # A change of one is a write to that one.
    sim.log.clear()
    converged(sim, mdev=[on(pf.vfs[1], "NVIDIA A2-4A", uuids=[A])])
    assert not [entry for entry in sim.log if pf.vfs[0] in entry[1] and "/sys/" in entry[1]]
    before = types_of(sim)
    sim.mdev.parents = {name: p for name, p in sim.mdev.parents.items() if p.card == ""}
    sim.reboot()
    vfs()
    assert replay.run(sim.host(environment={}, sources=None), None)["failures"] == {}
    assert types_of(sim) == before


def test_two_sizes_on_a_card_that_allows_one():
    """Nobody can tell before one of them is made: the other parent is put back as it was, with what the driver said."""
    sim, pf, _vfs = a2()
    result = call(sim, mdev=[on(pf.vfs[0], "NVIDIA A2-4Q", uuids=[A]), on(pf.vfs[1], "NVIDIA A2-8Q", uuids=[B])])
    assert list(result["failures"]) == [pf.vfs[1]]
    assert "No available instances" in result["failures"][pf.vfs[1]]
    assert list(types_of(sim)) == [A]
    assert f"{DEFINED}/{pf.vfs[1]}/{B}" not in sim.files


@BOTH
def test_attributes_are_written_in_their_order(mdevctl):
    sim = host(mdevctl)
    sim.mdev.add_matrix()
    attributes = [{"name": "assign_adapter", "value": "0x05"}, {"name": "assign_domain", "value": "0x04"}]
    wish = on("matrix", "vfio_ap-passthrough", uuids=[A], attributes=attributes)
    converged(sim, mdev=[wish])
    assert sim.mdev.devices[A].attributes == [("assign_adapter", "0x05"), ("assign_domain", "0x04")]
    attributes = [*attributes, {"name": "assign_domain", "value": "0x06"}]
    result = converged(sim, mdev=[{**wish, "attributes": attributes}])
    assert kinds(result) == ["mdev_stop", *(["mdev_define"] if mdevctl else []), "mdev_start"]
    assert sim.mdev.devices[A].attributes[2:] == [("assign_domain", "0x06")]
    assert restart(sim)["failures"] == {}
    assert len(sim.mdev.devices[A].attributes) == 3
    # Left unset they stay.
    quiet(sim, mdev=[on("matrix", "vfio_ap-passthrough", uuids=[A])])


@BOTH
@pytest.mark.parametrize("attribute", [("assign_adapter", "0x05"), ("assign_nothing", "1")])
def test_attributes_that_a_type_refuses_leave_nothing_behind(mdevctl, attribute):
    sim = host(mdevctl)
    sim.mdev.add_matrix()
    sim.mdev.ap.assign = lambda device, name, value: errno.EBUSY
    before = sim.snapshot()
    bad = {"name": attribute[0], "value": attribute[1]}
    result = call(sim, mdev=[on("matrix", "vfio_ap-passthrough", uuids=[A], attributes=[bad])])
    assert attribute[0] in result["failures"]["matrix"]
    assert sim.snapshot()["mdev"] == before["mdev"]
    assert not [p for p in sim.files if p.startswith((DEFINED, "/etc/iovirt"))]


def test_without_autostart_a_reboot_leaves_it_away():
    sim = host()
    converged(sim, mdev=[on(uuids=[A], autostart=False), on(uuids=[B])])
    assert defined(sim, A)["start"] == "manual"
    assert restart(sim)["failures"] == {}
    assert set(types_of(sim)) == {B}
    converged(sim, mdev=[on(uuids=[A, B])])
    assert set(types_of(sim)) == {A, B}
    assert defined(sim, A)["start"] == "manual"


def test_a_parent_that_registers_late():
    sim = host()
    converged(sim, mdev=[on(uuids=[A])])
    sim.mdev.late["mtty"] = 60.0
    assert "mtty" in restart(sim)["failures"]
    # Its event starts the unit of the device.
    assert 'KERNEL=="mtty", ENV{MDEV_STATE}=="registered"' in sim.files["/etc/udev/rules.d/99-iovirt.rules"]
    sim.sleep(60)
    assert replay.run(sim.host(environment={}, sources=None), "mtty")["failures"] == {}
    assert set(types_of(sim)) == {A}


def test_a_driver_that_was_just_loaded_is_waited_for():
    sim = host()
    sim.mdev.unregister("mtty")
    sim.later(4.0, lambda: sim.mdev.register("mtty"))
    call(sim, mdev=[on(uuids=[A])])
    assert set(types_of(sim)) == {A}
    sim.mdev.unregister("mtty")
    refused(sim, "no device of this host matches (parent=mtty)", mdev=[on(uuids=[A])])


def test_what_a_driver_reload_took_is_drift():
    sim = host()
    converged(sim, mdev=[on(uuids=[A])])
    sim.mdev.unregister("mtty")
    sim.mdev.register("mtty")
    assert kinds(converged(sim, mdev=[on(uuids=[A])])) == ["mdev_start"]


def test_exclusive_gives_back_the_parents_that_are_not_named():
    sim = host()
    converged(sim, mdev=[on(uuids=[A]), on("mdpy", "mdpy-hd", uuids=[B])])
    converged(sim, mdev=[on(uuids=[A])], exclusive=("mdev",))
    assert set(types_of(sim)) == {A}


# --- Whose they are ------------------------------------------------------------------------------------------------


@BOTH
def test_foreign_devices_are_left_alone(mdevctl):
    sim = host(mdevctl)
    sim.mdev.make(A, "mtty", "mtty-1")
    sim.mdev._save(B, "mtty", {"mdev_type": "mtty-1", "start": "auto", "attrs": []})
    before = dict(sim.files)
    converged(sim, mdev=[on(uuids=[C])], exclusive=("mdev",))
    converged(sim, mdev=[on(count=0)], exclusive=("mdev",))
    converged(sim, mdev=[absent()])
    assert types_of(sim) == {A: "mtty-1"}
    assert sim.files[f"{DEFINED}/mtty/{B}"] == before[f"{DEFINED}/mtty/{B}"]


@BOTH
def test_one_that_was_there_is_declared_and_stays_when_it_is_given_back(mdevctl):
    sim = host(mdevctl)
    sim.mdev.make(A, "mtty", "mtty-1")
    result = converged(sim, mdev=[on(type_="mtty-1", uuids=[A])])
    assert kinds(result) == (["mdev_define"] if mdevctl else [])
    assert restart(sim)["failures"] == {}
    assert types_of(sim) == {A: "mtty-1"}
    converged(sim, mdev=[absent()])
    assert types_of(sim) == {A: "mtty-1"}
    assert f"{DEFINED}/mtty/{A}" not in sim.files


@BOTH
def test_one_that_was_there_is_not_made_anew(mdevctl):
    sim = host(mdevctl)
    sim.mdev.make(A, "mtty", "mtty-1")
    converged(sim, mdev=[on(type_="mtty-1", uuids=[A])])
    refused(sim, f"the UUID {A} is of a mtty-1 that was there before the collection.", "let its owner remove", mdev=[on(uuids=[A])])
    attributes = [{"name": "speed", "value": "1"}]
    refused(sim, f"the UUID {A} is of a device that was there before the collection, with other", mdev=[on(type_="mtty-1", uuids=[A], attributes=attributes)])
    # Left unset they are not touched.
    quiet(sim, mdev=[on(type_="mtty-1", uuids=[A])])
    # Its owner removes it.
    sim.write(f"{DEVICES}/{A}/remove", "1")
    converged(sim, mdev=[on(uuids=[A])])
    assert types_of(sim) == {A: "mtty-2"}


def test_one_that_was_defined_and_not_there_can_be_made_of_another_type():
    sim = host()
    sim.mdev._save(A, "mtty", {"mdev_type": "mtty-1", "start": "manual", "attrs": []})
    converged(sim, mdev=[on(type_="mtty-1", uuids=[A])])
    converged(sim, mdev=[on(uuids=[A])])
    assert types_of(sim) == {A: "mtty-2"}


def test_one_that_was_defined_gets_its_definition_back():
    sim = host()
    sim.mdev._save(A, "mtty", {"mdev_type": "mtty-1", "start": "manual", "attrs": []})
    converged(sim, mdev=[on(type_="mtty-1", uuids=[A], autostart=True)])
    assert types_of(sim) == {A: "mtty-1"}
    converged(sim, mdev=[absent()])
    assert types_of(sim) == {}
    assert defined(sim, A)["start"] == "manual"


def test_a_definition_that_was_edited_by_hand_is_shown_and_put_right():
    sim = host()
    converged(sim, mdev=[on(uuids=[A])])
    sim.mdev._save(A, "mtty", {"mdev_type": "mtty-1", "start": "manual", "attrs": [{"x": "1"}]})
    result = converged(sim, mdev=[on(uuids=[A])])
    assert kinds(result) == ["mdev_define"]
    (shown,) = [d for d in result["diff"] if d["before_header"] == "mtty"]
    assert '"mtty-1"' in shown["before"] and '"mtty-2"' in shown["after"]
    assert defined(sim, A) == {"mdev_type": "mtty-2", "start": "auto", "attrs": []}
    sim.files[f"{DEFINED}/mtty/{A}"] = "{"
    sim._tree = None
    assert kinds(converged(sim, mdev=[on(uuids=[A])])) == ["mdev_define"]
    assert defined(sim, A)["start"] == "auto"


def test_a_definition_with_numbers_is_no_definition_of_mdevctl_and_leaves_the_record_readable():
    """Of somebody else's device, written by hand."""
    sim = host()
    sim.mdev.make(A, "mtty", "mtty-1")
    sim.mdev._save(A, "mtty", {"mdev_type": "mtty-1", "start": "auto", "attrs": [{"frame_rate_limiter": 0}]})
    refused(sim, "has a definition that mdevctl would not have written", f"{DEFINED}/mtty/{A}", mdev=[on(type_="mtty-1", uuids=[A])])
    assert reading.definition(sim, "mtty", A) == {"broken": True}
    sim.mdev._save(A, "mtty", {"mdev_type": 1, "start": "auto", "attrs": []})
    assert reading.definition(sim, "mtty", A) == {"broken": True}


# --- What is refused -----------------------------------------------------------------------------------------------


def test_bad_wishes_are_refused():
    sim = host()
    sim.mdev.make(A, "mdpy", "mdpy-hd")
    sim.mdev._save(B, "mdpy", {"mdev_type": "mdpy-hd", "start": "auto", "attrs": []})
    offer = ("mtty-1 'Single port serial' (24 free)", "mtty-2 'Dual port serial' (12 free)")
    refused(sim, "mtty: mdev[0]: it offers no type 'mtty-3'", *offer, mdev=[on(type_="mtty-3", count=1)])
    refused(sim, "there is no room for 13 of mtty-2 more", *offer, mdev=[on(count=13)])
    refused(sim, "is no UUID", "12345", mdev=[on(uuids=["12345"])])
    refused(sim, f"the UUID {A} is of a mdpy-hd on mdpy", mdev=[on(uuids=[A])])
    refused(sim, f"the UUID {B} is defined on mdpy", mdev=[on(uuids=[B])])
    refused(sim, "named twice", mdev=[on(uuids=[C, C])])
    refused(sim, "wished on", mdev=[on(uuids=[C]), on("mdpy", "mdpy-hd", uuids=[C])])
    refused(sim, "neither count nor uuids, or both", mdev=[on()])
    refused(sim, "neither count nor uuids, or both", mdev=[on(count=1, uuids=[C])])
    refused(sim, "count -1 is below 0", mdev=[on(count=-1)])
    refused(sim, "count 65536 is above 65535", mdev=[on(count=65536)])
    refused(sim, "'../remove' is no attribute", mdev=[on(count=1, attributes=[{"name": "../remove", "value": "1"}])])
    refused(sim, "present and absent", mdev=[on(count=1), absent()])
    refused(sim, EDU, "no parent of mediated devices", "mdpy, mtty", mdev=[at(EDU, type="mtty-1", count=1)])
    refused(sim, "no device of this host matches", mdev=[on("mtt", count=1)])
    sim.mdev.make(C, "mtty", "mtty-1")
    refused(sim, f"the UUID {C} is of a mtty-1, which the collection did not make", mdev=[on(uuids=[C])])


def test_a_pattern_for_addresses_finds_no_parents():
    sim = host()
    refused(sim, "mdev[0]", "no device of this host matches", mdev=[at("m*", type="mtty-1", count=1)])
    assert "mtty" not in refused(sim, MANAGEMENT, vfio=[at("*")])


def test_a_selector_by_driver_whose_vfs_have_the_same_driver():
    """The PF of a GPU is no parent once its VFs are."""
    sim = host()
    sim.add_driver("nvidia", "10de:25b6", sriov=True)
    pf = sim.add(Pci("0000:c1:00.0", "10de:25b6", "030200", driver="nvidia", total_vfs=2, offset=4, stride=1, vf_ids="10de:25b6"))
    sim.registered.add("nvidia")
    sim.write(f"/sys/bus/pci/devices/{pf.address}/sriov_numvfs", "2")
    for vf in pf.vfs:
        sim.mdev.add_gvt(vf, sim.functions[vf].path)
    match = {"driver": ["nvidia"]}
    said = refused(sim, f"{pf.address}: mdev[0]: it is no parent", mdev=[{"match": match, "type": "GVTg_V5_4", "count": 1}])
    assert pf.vfs[0] in said
    refused(sim, f"{pf.address}: mdev[0]: it is no parent", mdev=[{"match": {**match, "vf": True}, "type": "GVTg_V5_4", "count": 1}])
    converged(sim, mdev=[on(pf.vfs[0], "GVTg_V5_4", count=1)])


def test_exhaustion_counts_types_that_share_room():
    sim = host()
    refused(sim, "there is no room for 12 of mtty-2, 1 of mtty-1 more", "its types share", mdev=[on(count=12), on(type_="mtty-1", count=1)])
    converged(sim, mdev=[on(count=11), on(type_="mtty-1", count=2)])
    assert sim.mdev.free("mtty") == 0
    refused(sim, "there is no room", mdev=[on(count=11), on(type_="mtty-1", count=3)])
    # One for another: nobody can tell before, and the kernel has the room.
    result = converged(sim, mdev=[on(count=10), on(type_="mtty-1", count=4)])
    assert {a["certainty"] for a in result["actions"] if a["action"] == "mdev_start"} == {"predicted"}


@pytest.mark.parametrize(
    ("free", "new", "gone", "answer"),
    [
        ({"a": 24, "b": 12}, {"b": 12}, {}, room.ENOUGH),
        ({"a": 24, "b": 12}, {"b": 13}, {}, room.TOO_MANY),
        ({"a": 24, "b": 12}, {"a": 1, "b": 12}, {}, room.TOO_MANY),
        ({"a": 24, "b": 12}, {"a": 2, "b": 11}, {}, room.ENOUGH),
        ({"a": 5, "b": 2}, {"a": 1, "b": 2}, {}, room.OPEN),
        ({"a": 0, "b": 0}, {"a": 1}, {"a": 1}, room.ENOUGH),
        ({"a": 0, "b": 0}, {"a": 2}, {"b": 1}, room.OPEN),
        ({"a": 0, "b": 0}, {"a": 2}, {"a": 1}, room.TOO_MANY),
        ({"a": 4, "b": 4}, {"a": 2, "b": 3}, {}, room.TOO_MANY),
    ],
)
def test_room(free, new, gone, answer):
    assert room.judge({name: {"available": number} for name, number in free.items()}, new, gone) == answer


# --- Who uses them -------------------------------------------------------------------------------------------------


def guest(uuid):
    return (
        "<domain><name>router1</name><devices><hostdev mode='subsystem' type='mdev' model='vfio-pci'><source>"
        f"<address uuid='{uuid}'/></source></hostdev></devices></domain>"
    )


@pytest.mark.parametrize("node", ["/dev/vfio/{group}", "guest"])
def test_one_in_use_is_never_removed(node):
    sim = host()
    converged(sim, mdev=[on(uuids=[A, B])])
    if node == "guest":
        sim.files["/run/libvirt/qemu/router1.xml"] = f"<domstatus state='running' pid=''>{guest(A)}</domstatus>"
    else:
        sim.pids[77] = ("qemu-system-x86", [node.format(group=sim.mdev.devices[A].group)])
        sim.files[node.format(group=sim.mdev.devices[A].group)] = ""
    sim._tree = None
    for wishes in ([absent()], [on(uuids=[B])], [on(type_="mtty-1", uuids=[A]), on(uuids=[B])]):
        refused(sim, "mtty", A, "router1" if node == "guest" else "process 77 (qemu-system-x86)", "unkillably", mdev=wishes, allow=("in_use",))
    # The other one can go.
    converged(sim, mdev=[on(uuids=[A])])


def test_a_guest_that_does_not_run_is_named():
    sim = host()
    converged(sim, mdev=[on(uuids=[A])])
    sim.files["/etc/libvirt/qemu/router1.xml"] = guest(A)
    sim._tree = None
    refused(sim, "router1", "allow: [in_use]", mdev=[absent()])
    # It is there again when it starts.
    converged(sim, mdev=[on(type_="mtty-1", uuids=[A])])
    converged(sim, mdev=[absent()], allow=("in_use",))


def test_a_removal_that_hangs_is_indeterminate():
    sim = host()
    converged(sim, mdev=[on(uuids=[A])])
    sim.blocking.append(f"{DEVICES}/{A}/remove")
    result = call(sim, mdev=[absent()])
    assert result["indeterminate"] == ["mtty"]
    assert "has not returned" in result["failures"]["mtty"]
    assert A in types_of(sim)
    assert "mtty" in sim.files["/etc/iovirt/mdev.json"]


@BOTH
def test_a_kernel_that_has_no_room_after_all(mdevctl):
    sim = host(mdevctl)
    before = sim.snapshot()
    sim.faults.append(("*/create", "*", errno.ENOSPC))
    sim.mdev._start = lambda uuid, parent: "No available instances"
    result = call(sim, mdev=[on(uuids=[A])])
    assert "start the mediated device" in result["failures"]["mtty"]
    assert sim.snapshot() == before


# --- What is told --------------------------------------------------------------------------------------------------


def info(sim, **match):
    return engine.resource_info(sim.host(), "mdev", match or None)


def test_info_is_valid_input_and_names_what_is_free():
    sim = host()
    converged(sim, mdev=[on(uuids=[A, B]), on("mdpy", "mdpy-hd", count=1)])
    sim.mdev.make(C, "mtty", "mtty-1")
    found = info(sim, parent=["mtty"])
    assert found["devices"] == [
        {"match": {"parent": ["mtty"]}, "type": "mtty-2", "attributes": [], "autostart": True, "uuids": [A, B]},
        {"match": {"parent": ["mtty"]}, "type": "mtty-1", "uuids": [C]},
    ]
    (facts,) = found["facts"]
    assert {t["type"]: t["available"] for t in facts["types"]} == {"mtty-1": 19, "mtty-2": 9}
    assert [(m["uuid"], m["active"], m["declared"], m["next_boot"]) for m in facts["mdevs"]] == [
        (A, True, True, True), (B, True, True, True), (C, True, False, False),
    ]
    everything = info(sim)
    assert {f["address"] for f in everything["facts"]} == {"mtty", "mdpy"}
    ours = [wish for wish in everything["devices"] if C not in wish["uuids"]]
    quiet(sim, mdev=ours)
    converged(sim, mdev=everything["devices"])
