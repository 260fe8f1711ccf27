# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""vGPUs of NVIDIA's older framework by the resource vgpu: mediated devices of a T4, and of the VFs of an A2 (sim_vgpu.py)."""

from __future__ import annotations

import errno
import json

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import engine, replay
from ansible_collections.iovirt.host.plugins.module_utils._engine.host import FileSystem
from ansible_collections.iovirt.host.plugins.module_utils._engine.mdev import facts as mdev
from ansible_collections.iovirt.host.plugins.module_utils._engine.vgpu import facts as reading
from ansible_collections.iovirt.host.plugins.module_utils._engine.vgpu import nvidia_mdev
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

T4, A2 = "0000:3b:00.0", "0000:08:00.0"
CARDS = {"t4": T4, "a2": A2}
TYPES = {"t4": ("GRID T4-4Q", "nvidia-232", "GRID T4-8Q", "nvidia-233"), "a2": ("NVIDIA A2-4Q", "nvidia-746", "NVIDIA A2-8Q", "nvidia-747")}
FOREIGN = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"


def host(card="a2", vfs=True, keeper=True):
    sim = lab()
    more = {"total_vfs": 16, "offset": 4, "stride": 1, "vf_ids": "10de:25b6"} if card == "a2" else {}
    ids = "10de:25b6" if card == "a2" else "10de:1eb8"
    sim.vgpu.add(Pci(CARDS[card], ids, "030200", parent=f"/sys/devices/pci0000:{CARDS[card][5:7]}", **more), card)
    if keeper:
        sim.mdev.install()
    if vfs and card == "a2":
        sim.vgpu.enable(A2)
        sim.sleep(5)
    return sim


def on(card, type_, count=1, **more):
    return at(CARDS[card], type=type_, count=count, **more)


def devices(sim):
    """Type -> number of mediated devices."""
    return sorted(device.type for device in sim.mdev.devices.values())


def written(sim):
    """What was written to mediated devices, and which commands of mdevctl were run."""
    writes = [path for what, path, _data in sim.log if what == "write" and path.endswith(("/create", "/remove"))]
    return writes + [text for what, argv, text in sim.log if what == "run" and argv == "mdevctl"]


def after_a_reboot(sim):
    sim.reboot()
    for pf in sim.vgpu.pfs:
        sim.functions[pf].driver = "nvidia"
    sim._tree = None
    assert replay.run(sim.host(environment={}, sources=None), None)["failures"] == {}


@pytest.mark.parametrize("keeper", [True, False, "with its rule"])
@pytest.mark.parametrize(("card", "vfs"), [("t4", True), ("a2", True), ("a2", False)])
def test_over_a_reboot_and_back(card, vfs, keeper):
    """Where udev's rule of mdevctl works, that is faster than the replay."""
    sim = host(card, vfs, keeper)
    sim.mdev.rule_works = keeper == "with its rule"
    before = sim.snapshot()
    name, id_, *_others = TYPES[card]
    wish = on(card, name, 2)
    converged(sim, vgpu=[wish])
    assert devices(sim) == [id_, id_]
    uuids = set(sim.mdev.devices)
    assert len([p for p in sim.files if p.startswith("/etc/mdevctl.d/")]) == (2 if keeper else 0)
    after_a_reboot(sim)
    assert devices(sim) == [id_, id_]
    # The same UUIDs: guests name their vGPUs by them.
    assert set(sim.mdev.devices) == uuids
    quiet(sim, vgpu=[wish])
    converged(sim, vgpu=[at(CARDS[card], state="absent")])
    assert sim.mdev.devices == {}
    # VFs that were there before the collection stay, also those that the replay made again.
    assert bool(sim.functions[CARDS[card]].vfs) is (card == "a2" and vfs)
    assert {p: text for p, text in sim.files.items() if not p.startswith("/run/")} == {p: t for p, t in before["files"].items() if not p.startswith("/run/")}


def test_the_framework_is_found_by_asking():
    assert [framework_of(card) for card in CARDS] == ["nvidia_mdev", "nvidia_mdev"]
    # Nobody can say of a GPU without VFs.
    sim = host(vfs=False)
    assert engine.resource_info(sim.host(), "vgpu", None)["facts"][0]["framework"] == "nvidia_vfio"


def framework_of(card):
    (facts,) = engine.resource_info(host(card).host(), "vgpu", None)["facts"]
    return facts["framework"]


@pytest.mark.parametrize("card", CARDS)
def test_a_change_of_one_touches_that_one_alone(card):
    sim = host(card, keeper=False)
    sim.vgpu.sizes = "Enabled"
    four, id_four, eight, id_eight = TYPES[card]
    converged(sim, vgpu=[on(card, four, 3)])
    stays = sorted(sim.mdev.devices)
    sim.log.clear()
    result = converged(sim, vgpu=[on(card, four, 2), on(card, eight, 1)])
    assert devices(sim) == [id_four, id_four, id_eight]
    gone, come = written(sim)
    uuid = gone.split("/")[-2]
    assert uuid in stays and gone.endswith("/remove") and come.endswith(f"/{id_eight}/create")
    assert [a["certainty"] for a in result["actions"] if a["action"] == "mdev_start"] == ["predicted"]
    sim.log.clear()
    converged(sim, vgpu=[on(card, eight, 1), on(card, four, 1)])
    assert len(written(sim)) == 1
    sim.log.clear()
    quiet(sim, vgpu=[on(card, four, 1), on(card, eight, 1)])


def test_with_mdevctl_a_change_touches_that_one_alone():
    sim = host("t4")
    converged(sim, vgpu=[on("t4", "GRID T4-4Q", 3)])
    sim.log.clear()
    converged(sim, vgpu=[on("t4", "GRID T4-4Q", 2)])
    first, second = written(sim)
    assert first.endswith("/remove")
    assert second.startswith("undefine") and first.split("/")[-2] in second


def test_what_others_made_counts_and_stays():
    sim = host("t4")
    sim.mdev.make(FOREIGN, T4, "nvidia-232")
    sim.log.clear()
    converged(sim, vgpu=[on("t4", "T4-4Q", 2)])
    assert devices(sim) == ["nvidia-232"] * 2
    assert FOREIGN not in "".join(written(sim))
    # It is declared with that: after a boot it is there again, under its own UUID.
    after_a_reboot(sim)
    assert FOREIGN in sim.mdev.devices
    assert len(sim.mdev.devices) == 2
    converged(sim, vgpu=[], exclusive=("vgpu",))
    assert list(sim.mdev.devices) == [FOREIGN]


def test_what_others_made_and_is_declared_is_not_changed_either():
    sim = host("t4", keeper=False)
    sim.vgpu.sizes = "Enabled"
    sim.mdev.make(FOREIGN, T4, "nvidia-232")
    converged(sim, vgpu=[on("t4", "T4-4Q", 1)])
    converged(sim, vgpu=[on("t4", "T4-8Q", 1)])
    assert devices(sim) == ["nvidia-232", "nvidia-233"]
    assert sim.mdev.devices[FOREIGN].type == "nvidia-232"


@pytest.mark.parametrize("card", CARDS)
def test_what_others_made_and_defined_is_given_back_under_its_own_uuid(card):
    sim = host(card)
    parent = T4 if card == "t4" else sim.functions[A2].vfs[0]
    sim.mdev.make(FOREIGN, parent, TYPES[card][1])
    sim.mdev._save(FOREIGN, parent, {"mdev_type": TYPES[card][1], "start": "manual", "attrs": []})
    before = {p: text for p, text in sim.files.items() if p.startswith("/etc/mdevctl.d/")}
    converged(sim, vgpu=[on(card, TYPES[card][0], 1)])
    converged(sim, vgpu=[on(card, TYPES[card][0], 0)])
    assert {p: text for p, text in sim.files.items() if p.startswith("/etc/mdevctl.d/")} == before
    assert list(sim.mdev.devices) == [FOREIGN]


def test_another_type_of_somebody_else_is_nobodys_to_take():
    sim = host()
    vf = sim.functions[A2].vfs[0]
    sim.mdev.make(FOREIGN, vf, "nvidia-751")
    converged(sim, vgpu=[on("a2", "A2-4Q", 3)])
    assert sim.mdev.devices[FOREIGN].type == "nvidia-751"
    refused(sim, "5 of NVIDIA A2-4Q are more than the 4", vgpu=[on("a2", "A2-4Q", 5)])
    refused(sim, "20480 MiB together, and it has 16384 MiB", vgpu=[on("a2", "A2-4Q", 4)])
    converged(sim, vgpu=[at(A2, state="absent")])
    assert list(sim.mdev.devices) == [FOREIGN]


def test_a_definition_that_was_edited_is_drift():
    sim = host("t4")
    converged(sim, vgpu=[on("t4", "T4-4Q", 1)])
    (path,) = [p for p in sim.files if p.startswith("/etc/mdevctl.d/")]
    sim.files[path] = json.dumps({"mdev_type": "nvidia-233", "start": "manual", "attrs": []})
    sim._tree = None
    result = converged(sim, vgpu=[on("t4", "T4-4Q", 1)])
    assert result["diff"][0]["before"]
    assert json.loads(sim.files[path])["mdev_type"] == "nvidia-232"


@pytest.mark.parametrize("card", CARDS)
def test_state_lost_by_a_driver_reload_is_drift(card):
    sim = host(card, keeper=False)
    name = TYPES[card][0]
    converged(sim, vgpu=[on(card, name, 2)])
    uuids = set(sim.mdev.devices)
    sim.vgpu.reload(CARDS[card])
    assert devices(sim) == []
    converged(sim, vgpu=[on(card, name, 2)])
    assert set(sim.mdev.devices) == uuids


@pytest.mark.parametrize("knob", ["lies", "drops"])
def test_sriov_manage_is_not_believed(knob):
    sim = host(vfs=False)
    setattr(sim.vgpu, knob, 2)
    converged(sim, vgpu=[on("a2", "A2-4Q", 1)])
    sim = host(vfs=False)
    setattr(sim.vgpu, knob, 9)
    result = call(sim, vgpu=[on("a2", "A2-4Q", 1)])
    assert "made no VF" in result["failures"][A2]
    assert sim.functions[A2].driver == "nvidia"


def test_parents_that_never_register():
    sim = host(vfs=False)
    sim.vgpu.delay = 10_000.0
    assert "nvidia-vgpu-mgr" in call(sim, vgpu=[on("a2", "A2-4Q", 1)])["failures"][A2]


def test_a_parent_that_registers_late_is_waited_for():
    """At boot NVIDIA's manager comes after its driver."""
    sim = host("t4", keeper=False)
    converged(sim, vgpu=[on("t4", "T4-4Q", 2)])
    sim.mdev.late[T4] = 4.0
    after_a_reboot(sim)
    assert devices(sim) == ["nvidia-232"] * 2


def test_what_mdevctl_keeps_for_vfs_that_are_gone_goes_too():
    sim = host()
    converged(sim, vgpu=[on("a2", "A2-4Q", 2)])
    sim.vgpu.reload(A2)
    assert [p for p in sim.files if p.startswith("/etc/mdevctl.d/")]
    converged(sim, vgpu=[at(A2, state="absent")])
    assert not [p for p in sim.files if p.startswith(("/etc/mdevctl.d/", "/etc/iovirt/"))]


def definitions(sim):
    """UUID -> type, as mdevctl keeps it."""
    return {p.rpartition("/")[2]: json.loads(text)["mdev_type"] for p, text in sim.files.items() if p.startswith("/etc/mdevctl.d/")}


def test_what_others_had_defined_stays_where_the_vfs_are_gone():
    sim = host()
    vf = sim.functions[A2].vfs[0]
    sim.mdev.make(FOREIGN, vf, "nvidia-746")
    sim.mdev._save(FOREIGN, vf, {"mdev_type": "nvidia-746", "start": "auto", "attrs": []})
    converged(sim, vgpu=[on("a2", "A2-4Q", 2)])
    sim.vgpu.reload(A2)
    assert len(definitions(sim)) == 2
    converged(sim, vgpu=[at(A2, state="absent")])
    assert definitions(sim) == {FOREIGN: "nvidia-746"}


def test_what_the_collection_defined_for_others_goes_where_the_vfs_are_gone():
    sim = host()
    sim.mdev.make(FOREIGN, sim.functions[A2].vfs[0], "nvidia-746")
    converged(sim, vgpu=[on("a2", "A2-4Q", 1)])
    after_a_reboot(sim)
    assert definitions(sim) == {FOREIGN: "nvidia-746"}
    sim.vgpu.reload(A2)
    converged(sim, vgpu=[at(A2, state="absent")])
    assert definitions(sim) == {}


@pytest.mark.parametrize(("type_", "id_"), [("A2-4Q", "nvidia-746"), ("A2-8Q", "nvidia-747")])
def test_what_mdevctl_keeps_of_an_old_wish_goes_before_the_vfs_come(type_, id_):
    """Its rule would start that with the VFs."""
    sim = host()
    converged(sim, vgpu=[on("a2", "A2-4Q", 2)])
    first = next(iter(sim.mdev.devices))
    sim.vgpu.reload(A2)
    sim.mdev.rule_works = True
    sim.log.clear()
    converged(sim, vgpu=[on("a2", type_, 1)])
    assert {uuid: device.type for uuid, device in sim.mdev.devices.items()} == definitions(sim) == {first: id_}
    # What stays as it is keeps its definition.
    assert len([text for text in written(sim) if text.startswith("undefine")]) == (1 if type_ == "A2-4Q" else 2)


def lose_a_vf(sim, index):
    """Somebody made fewer VFs than sriov-manage does."""
    for vf in sim.functions[A2].vfs[index:]:
        sim.mdev.unregister(vf)
        sim.mdev.parents.pop(vf)
        sim._vanish(sim.functions[A2], vf)
    sim._tree = None


@pytest.mark.parametrize("keeper", [True, False])
def test_a_vf_that_is_gone_loses_what_mdevctl_keeps(keeper):
    sim = host(keeper=keeper)
    converged(sim, vgpu=[on("a2", "A2-4Q", 2)])
    first = next(iter(sim.mdev.devices))
    lose_a_vf(sim, 1)
    converged(sim, vgpu=[on("a2", "A2-4Q", 1)])
    assert list(sim.mdev.devices) == [first]
    assert definitions(sim) == ({first: "nvidia-746"} if keeper else {})


def test_a_vf_that_is_gone_is_told_of_by_the_replay():
    sim = host()
    converged(sim, vgpu=[on("a2", "A2-4Q", 2)])
    lose_a_vf(sim, 1)
    failures = replay.run(sim.host(environment={}, sources=None), None)["failures"]
    assert "there is no VF 1" in str(failures)
    assert len(sim.mdev.devices) == 1


# --- What is refused -----------------------------------------------------------------------------------------------


def test_bad_wishes():
    sim = host("t4")
    refused(sim, "it knows no type 'T4-3Q'", "GRID T4-4Q (232; at most 4, 4 free)", vgpu=[on("t4", "T4-3Q")])
    refused(sim, "5 of GRID T4-4Q are more than the 4", vgpu=[on("t4", "T4-4Q", 5)])
    refused(sim, "one size at a time", "GRID T4-4Q (4096 MiB) and GRID T4-8Q (8192 MiB)", vgpu=[on("t4", "T4-4Q"), on("t4", "T4-8Q")])
    sim.vgpu.display = "Yes"
    refused(sim, "a display is attached", vgpu=[on("t4", "T4-4Q")])


def test_a_t4_without_the_host_driver_is_no_parent():
    sim = host("t4")
    sim.mdev.unregister(T4)
    refused(sim, T4, "Host VGPU Mode is Non SR-IOV", "vGPU host driver", vgpu=[on("t4", "T4-4Q")])


def test_less_is_free_than_the_types_say():
    """What the driver keeps for itself: it counts what is free, and nobody else does."""
    sim = host("t4")
    parent = sim.mdev.parents[T4]
    parent.gate = lambda type_: 1
    refused(sim, "2 more of GRID T4-4Q are more than the 1 that it has free", "GRID T4-8Q (233; at most 2, 1 free)", vgpu=[on("t4", "T4-4Q", 2)])


def test_two_frameworks_on_one_card():
    sim = host()
    converged(sim, vgpu=[on("a2", "A2-4Q")])
    vf = sim.functions[A2].vfs[3]
    wish = {"match": {"parent": [vf]}, "type": "nvidia-746", "count": 1}
    refused(sim, "mdev names it, and vgpu rules the vGPUs of its GPU", mdev=[wish])
    sim = host()
    both = {"mdev": [{**wish, "match": {"parent": [sim.functions[A2].vfs[3]]}}], "vgpu": [on("a2", "A2-4Q")]}
    refused(sim, "mdev names it, and vgpu rules the vGPUs of its GPU", **both)
    sim = host("t4")
    converged(sim, mdev=[{"match": {"parent": [T4]}, "type": "nvidia-232", "count": 1}])
    refused(sim, "the resource mdev holds it", vgpu=[on("t4", "T4-4Q")])


def test_a_selector_by_driver_means_the_gpu_and_not_its_vfs():
    sim = host()
    assert {sim.functions[vf].driver for vf in sim.functions[A2].vfs} == {"nvidia"}
    converged(sim, vgpu=[{"match": {"driver": ["nvidia"]}, "expect": 1, "type": "A2-4Q", "count": 1}])
    refused(sim, "it is a VF of", vgpu=[{"match": {"driver": ["nvidia"], "vf": True}, "type": "A2-4Q", "count": 1}])


@pytest.mark.parametrize("how", ["process", "guest"])
@pytest.mark.parametrize("card", CARDS)
def test_one_in_use_is_never_cleared(card, how):
    sim = host(card)
    name = TYPES[card][0]
    converged(sim, vgpu=[on(card, name, 2)])
    last = list(sim.mdev.devices)[-1]
    if how == "guest":
        sim.files["/run/libvirt/qemu/router1.xml"] = f"<domstatus state='running' pid=''>{guest(last)}</domstatus>"
    else:
        node = f"/dev/vfio/{sim.mdev.devices[last].group}"
        sim.pids[77], sim.files[node] = ("qemu-system-x86", [node]), ""
    sim._tree = None
    who = "router1" if how == "guest" else "process 77"
    for wishes in ([at(CARDS[card], state="absent")], [on(card, name, 1)]):
        refused(sim, last if card == "t4" else "VF 1", who, vgpu=wishes, allow=("in_use",))
    quiet(sim, vgpu=[on(card, name, 2)])


def test_a_guest_that_does_not_run_loses_one_by_permission_only():
    sim = host("t4")
    converged(sim, vgpu=[on("t4", "T4-4Q", 2)])
    last = list(sim.mdev.devices)[-1]
    sim.files["/etc/libvirt/qemu/router1.xml"] = guest(last)
    sim._tree = None
    refused(sim, "router1", "allow: [in_use]", vgpu=[on("t4", "T4-4Q", 1)])
    converged(sim, vgpu=[on("t4", "T4-4Q", 1)], allow=("in_use",))


def test_a_device_that_cannot_be_made_puts_the_card_back():
    sim = host(keeper=False)
    converged(sim, vgpu=[on("a2", "A2-4Q", 2)])
    uuids = set(sim.mdev.devices)
    sim.faults.append(("*/nvidia-751/create", "*", errno.EIO))
    result = call(sim, vgpu=[on("a2", "A2-4Q", 1), on("a2", "A2-4A", 1)])
    assert "EIO" in result["failures"][A2]
    assert set(sim.mdev.devices) == uuids
    sim.faults.clear()
    quiet(sim, vgpu=[on("a2", "A2-4Q", 2)])


@pytest.mark.parametrize("keeper", [True, False])
def test_a_second_one_that_fails_takes_the_first_and_the_vfs_back(keeper):
    """The framework shows with the VFs; all of it is undone."""
    sim = host(vfs=False, keeper=keeper)
    create = sim.mdev._create

    def once(parent, type_, uuid):
        return errno.EIO if sim.mdev.devices else create(parent, type_, uuid)

    sim.mdev._create = once
    result = call(sim, vgpu=[on("a2", "A2-4Q", 2)])
    assert A2 in result["failures"] and "could not be undone" not in result["failures"][A2]
    assert (sim.mdev.devices, sim.functions[A2].vfs) == ({}, [])
    assert not [p for p in sim.files if p.startswith(("/etc/mdevctl.d/", "/etc/iovirt/"))]
    sim.mdev._create = create
    converged(sim, vgpu=[on("a2", "A2-4Q", 2)])


def test_a_host_without_a_machine_id():
    sim = host("t4")
    sim._forget("/etc/machine-id")
    refused(sim, "no /etc/machine-id", vgpu=[on("t4", "T4-4Q")])
    # Where it shows with the VFs only, all is undone.
    sim = host(vfs=False)
    sim._forget("/etc/machine-id")
    assert "no /etc/machine-id" in call(sim, vgpu=[on("a2", "A2-4Q")])["failures"][A2]
    assert sim.functions[A2].vfs == []


# --- What is told --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("card", CARDS)
def test_info_is_valid_input(card):
    sim = host(card)
    name = TYPES[card][0]
    converged(sim, vgpu=[on(card, name, 2)])
    found = engine.resource_info(sim.host(), "vgpu", None)
    assert [(d["type"], d["count"]) for d in found["devices"]] == [(name, 2)]
    (facts,) = found["facts"]
    assert {vgpu["uuid"] for vgpu in facts["vgpus"] if vgpu["declared"]} == set(sim.mdev.devices)
    quiet(sim, vgpu=found["devices"])


def test_others_are_exported_as_they_are():
    sim = host("t4", keeper=False)
    sim.mdev.make(FOREIGN, T4, "nvidia-232")
    found = engine.resource_info(sim.host(), "vgpu", None)["devices"]
    sim.log.clear()
    call(sim, vgpu=found)
    assert written(sim) == []
    converged(sim, vgpu=[at(T4, state="absent")])
    assert list(sim.mdev.devices) == [FOREIGN]


@pytest.mark.parametrize("key", ["uuid", "serial"])
def test_a_card_is_named_by_what_its_driver_alone_tells(key):
    sim = host("t4")
    sim.vgpu.add(Pci(A2, "10de:25b6", "030200", parent="/sys/devices/pci0000:08"), "t4", uuid="GPU-0b0c", serial="77")
    card = sim.vgpu.cards[T4]
    wish = {"match": {key: [getattr(card, key).upper() if key == "uuid" else card.serial]}, "type": "T4-4Q", "count": 1}
    converged(sim, vgpu=[wish])
    assert {device.parent for device in sim.mdev.devices.values()} == {T4}
    assert [f["address"] for f in engine.resource_info(sim.host(), "vgpu", wish["match"])["facts"]] == [T4]
    refused(sim, "no device of this host matches", vgpu=[{**wish, "match": {key: ["nobody"]}}])


def test_the_captured_a2(captured):
    """A real VF: its types, and what was free beside a sibling with a 4 GiB type."""
    files = FileSystem(str(captured))
    types: dict = {}
    offers = nvidia_mdev._offers(files, "0000:08:01.7", types)
    assert {number for number, offer in offers.items() if offer["available"]} == {746, 751, 754}
    assert types[746] == {"name": "NVIDIA A2-4Q", "memory": 4096, "most": 4, "mig": False, "profile": None, "per_instance": 1}
    assert reading.parents(files, "0000:08:00.0", {0: "0000:08:01.7"}) == ["0000:08:01.7"]
    assert nvidia_mdev._described("GRID A100-1-5C", "framebuffer=5120M, max_instance=7")["mig"]


@pytest.fixture
def captured(tmp_path):
    """As on the captured host (harvester/pcidevices, pkg/util/gpuhelper/testdata): ids, names, free instances and descriptions of some of its types."""
    rows = [(742, "1B", 0, 1, 16), (746, "4Q", 1, 4, 4), (748, "16Q", 0, 16, 1), (751, "4A", 1, 4, 4), (754, "4C", 1, 4, 4)]
    for number, series, free, size, most in rows:
        folder = tmp_path / mdev.PARENTS.lstrip("/") / "0000:08:01.7" / "mdev_supported_types" / f"nvidia-{number}"
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"NVIDIA A2-{series}\n", encoding="utf-8")
        (folder / "available_instances").write_text(f"{free}\n", encoding="utf-8")
        (folder / "device_api").write_text("vfio-pci\n", encoding="utf-8")
        text = f"num_heads=4, frl_config=60, framebuffer={size * 1024}M, max_resolution=7680x4320, max_instance={most}\n"
        (folder / "description").write_text(text, encoding="utf-8")
    return tmp_path


# --- To the resource mdev ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keeper", [True, False])
@pytest.mark.parametrize("card", CARDS)
def test_mdev_tells_of_them_and_neither_exports_nor_takes_them(card, keeper):
    sim = host(card, keeper=keeper)
    converged(sim, vgpu=[on(card, TYPES[card][0])])
    (uuid,) = sim.mdev.devices
    parent = sim.mdev.devices[uuid].parent
    other = next((vf for vf in sim.functions[A2].vfs if vf != parent), T4) if card == "a2" else T4
    sim.mdev.make(FOREIGN, other, TYPES[card][1])
    told = engine.resource_info(sim.host(), "mdev", None)
    # An export has each once: mdev would refuse what is on this GPU, and vgpu_info tells of all that is.
    assert told["devices"] == []
    assert [wish["count"] for wish in engine.resource_info(sim.host(), "vgpu", None)["devices"]] == [2]
    of = {m["uuid"]: (m["declared"], m["next_boot"]) for facts in told["facts"] for m in facts["mdevs"]}
    assert of == {uuid: (True, True), FOREIGN: (False, False)}
    assert {facts["address"] for facts in told["facts"] if facts["declared"]} == {parent}
    quiet(sim, vgpu=[on(card, TYPES[card][0])])
    before = sim.snapshot()
    refused(sim, parent, "vgpu", mdev=[{"match": {"parent": [parent]}, "type": TYPES[card][1], "uuids": [uuid]}])
    # A VF that has one has no room for another.
    refused(sim, parent, "vgpu" if card == "t4" else "no room", mdev=[{"match": {"parent": [parent]}, "type": TYPES[card][1], "count": 1}])
    # Giving back takes nothing of it.
    quiet(sim, mdev=[{"match": {"parent": [parent]}, "state": "absent"}])
    assert sim.snapshot() == before
