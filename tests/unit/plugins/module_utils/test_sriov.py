# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""SR-IOV: plan, apply, second run, reboot, giving back, and everything that is refused."""

from __future__ import annotations

import errno
import json

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import actions, replay
from ansible_collections.iovirt.host.plugins.module_utils._engine.errors import EngineError
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import (
    EDU,
    NVME,
    PF1,
    PF2,
    at,
    call,
    converged,
    drivers_of,
    lab,
    quiet,
    refused,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import DEVICES, Net

BOTH = {
    "match": {"driver": ["igb"], "numa_node": [0]},
    "expect": 2,
    "vf_count": 7,
    "vfs": [{"range": "0-3", "driver": "vfio-pci"}, {"range": "4-6", "driver": "default"}],
}
MIXED = ["vfio-pci"] * 4 + ["igbvf"] * 3


# --- The way through -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("igbvf_loaded", [True, False])
@pytest.mark.parametrize("vfio_loaded", [True, False])
@pytest.mark.parametrize("udev_delay", [0.0, 0.005, 5.0, 29.0, None])
def test_vfs_get_their_drivers_however_late_udev_is(igbvf_loaded, vfio_loaded, udev_delay):
    sim = lab(igbvf_loaded=igbvf_loaded, vfio_loaded=vfio_loaded)
    sim.udev_delay = udev_delay
    converged(sim, sriov=[BOTH])
    assert drivers_of(sim, PF1) == drivers_of(sim, PF2) == MIXED
    sim.sleep(60)
    assert drivers_of(sim, PF1) == drivers_of(sim, PF2) == MIXED
    quiet(sim, sriov=[BOTH])


def test_cards_at_the_same_time_and_the_functions_of_one_card_one_after_the_other():
    names = ["0000:01:00.0", "0000:01:00.1", "0000:02:00.0", "0000:02:00.1", "0000:02:00.2", "netdevsim1"]
    rounds = actions.rounds(lab().host(), [{"pf": name} for name in names])
    assert [[args["pf"] for args in together] for together in rounds] == [
        ["0000:01:00.0", "0000:02:00.0", "netdevsim1"], ["0000:01:00.1", "0000:02:00.1"], ["0000:02:00.2"],
    ]  # fmt: skip


def test_the_legs_of_a_bond_one_after_the_other():
    legs = [{"pf": PF1}, {"pf": PF2}]
    assert actions.rounds(lab().host(), legs) == [legs]
    sim = lab()
    sim.nets["bond0"] = Net(kind="bond", lowers=["enp129s0", "enp130s0"])
    assert actions.rounds(sim.host(), legs) == [[leg] for leg in legs]


def test_a_count_that_fails_beside_another_is_its_own_cards_matter():
    sim = lab()
    together = []
    write, write_together = sim.write, sim.write_together
    sim.write_together = lambda writes, limit: together.append(dict(writes)) or write_together(writes, limit)

    def no_room(path, data, limit=None):
        if path == f"{DEVICES}/{PF2}/sriov_numvfs":
            raise OSError(errno.ENOMEM, "", path)
        write(path, data, limit)

    sim.write = no_room
    result = call(sim, sriov=[BOTH])
    assert {PF2} == set(result["failures"]) and "pci=realloc" in result["failures"][PF2]
    assert drivers_of(sim, PF1) == MIXED and drivers_of(sim, PF2) == []
    assert {f"{DEVICES}/{PF1}/sriov_numvfs": "7", f"{DEVICES}/{PF2}/sriov_numvfs": "7"} in together


def test_no_vf_ever_shows_up_under_a_driver_it_was_not_meant_for():
    sim = lab(igbvf_loaded=True)
    seen = []
    attach = sim._probe

    def probe(driver, function):
        code = attach(driver, function)
        if function.physfn and not code:
            seen.append(driver.name)
        return code

    sim._probe = probe
    call(sim, sriov=[at(PF1, vf_count=4, vfs=[{"range": "0-3", "driver": "vfio-pci"}])])
    assert set(seen) == {"vfio-pci"}
    assert sim.functions[PF1].autoprobe


@pytest.mark.parametrize("autoprobe", [True, False])
def test_autoprobe_is_left_as_it_was_found(autoprobe):
    sim = lab(igbvf_loaded=True)
    sim.functions[PF1].autoprobe = autoprobe
    converged(sim, sriov=[at(PF1, vf_count=3, vfs=[{"range": "0", "driver": "vfio-pci"}])])
    assert sim.functions[PF1].autoprobe is autoprobe
    assert drivers_of(sim, PF1) == ["vfio-pci", *(["igbvf"] * 2 if autoprobe else [None] * 2)]


def test_without_autoprobe_the_kernels_own_choice_is_no_driver():
    """drivers/pci/pci-driver.c, pci_device_can_probe(): so 'default' is met by a VF without one."""
    sim = lab(igbvf_loaded=True)
    sim.functions[PF1].autoprobe = False
    converged(sim, sriov=[at(PF1, vf_count=2, vf_defaults={"driver": "default"})])
    assert drivers_of(sim, PF1) == [None, None]


def test_unset_means_untouched():
    sim = lab(igbvf_loaded=True)
    sim.write(f"{DEVICES}/{PF1}/sriov_numvfs", "4")
    converged(sim, sriov=[at(PF1, vfs=[{"range": "1", "driver": "vfio-pci"}, {"range": "2", "driver": None}])])
    assert drivers_of(sim, PF1) == ["igbvf", "vfio-pci", "igbvf", "igbvf"]
    converged(sim, sriov=[at(PF1, vf_count=4)])
    assert drivers_of(sim, PF1) == ["igbvf", "vfio-pci", "igbvf", "igbvf"]


def test_defaults_hold_where_a_range_says_nothing():
    sim = lab()
    wish = at(PF1, vf_count=4, vf_defaults={"driver": "vfio-pci"}, vfs=[{"range": "1,3", "driver": "default"}])
    converged(sim, sriov=[wish])
    assert drivers_of(sim, PF1) == ["vfio-pci", "igbvf", "vfio-pci", "igbvf"]


def test_any_device_with_sriov_not_only_nics():
    sim = lab()
    wish = {"match": {"class": ["nvme"]}, "vf_count": 4, "vfs": [{"range": "0-1", "driver": "vfio-pci"}]}
    converged(sim, sriov=[wish])
    assert drivers_of(sim, NVME) == ["vfio-pci", "vfio-pci", None, None]
    converged(sim, sriov=[{**wish, "vf_defaults": {"driver": "default"}}])


def test_a_count_changes_through_zero_and_says_who_vanishes():
    sim = lab(igbvf_loaded=True)
    call(sim, sriov=[at(PF1, vf_count=2)])
    done = converged(sim, sriov=[at(PF1, vf_count=3)])
    written = [data for _what, path, data in sim.log if path.endswith("sriov_numvfs")]
    assert written == ["2", "0", "3"]
    text = next(a["text"] for a in done["actions"] if a["action"] == "set_vf_count")
    assert "VF 0 (0000:82:10.0, igbvf)" in text
    assert "VF 1 (0000:82:10.2, igbvf)" in text


def test_the_predicted_addresses_come_true():
    sim = lab()
    done = converged(sim, sriov=[at(PF2, vf_count=7, vf_defaults={"driver": "vfio-pci"})])
    for index, address in enumerate(sim.functions[PF2].vfs):
        assert f"bind VF {index} ({address}) to vfio-pci" in [action["text"] for action in done["actions"]]
    assert {a["certainty"] for a in done["actions"] if a["action"] == "bind"} == {"predicted"}
    assert {a["certainty"] for a in done["actions"] if a["action"] == "set_vf_count"} == {"certain"}


def test_a_driver_changes_on_living_vfs_without_a_recount():
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=3, vf_defaults={"driver": "vfio-pci"})])
    done = converged(sim, sriov=[at(PF1, vf_count=3, vf_defaults={"driver": "default"})])
    assert [a["action"] for a in done["actions"]].count("set_vf_count") == 0
    assert drivers_of(sim, PF1) == ["igbvf"] * 3
    assert {f.override for f in sim.functions.values()} == {None}


def test_zero_removes_all():
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=3)])
    converged(sim, sriov=[at(PF1, vf_count=0)])
    assert sim.functions[PF1].vfs == []


def test_the_exported_facts_are_valid_wishes():
    sim = lab()
    call(sim, sriov=[BOTH])
    facts = call(sim, sriov=[BOTH])["sriov"]
    again = [wish for wish in facts if wish["match"]["address"] in ([PF1], [PF2])]
    # They name what BOTH left untouched, so the record becomes another one.
    assert {action["action"] for action in call(sim, sriov=again)["actions"]} == {"declare"}
    quiet(sim, sriov=again)


# --- Reboot ----------------------------------------------------------------------------------------------------------


def test_a_reboot_and_its_replay_change_nothing():
    sim = lab()
    converged(sim, sriov=[BOTH])
    stored = sim.text("/etc/iovirt/sriov.json")
    for _boot in range(2):
        sim.reboot()
        assert sim.functions[PF1].vfs == []
        result = replay.run(sim.host(environment={}, sources=None), None)
        assert result["failures"] == {}
        assert drivers_of(sim, PF1) == drivers_of(sim, PF2) == MIXED
        assert sim.text("/etc/iovirt/sriov.json") == stored
        quiet(sim, sriov=[BOTH])


def test_a_driver_reload_and_the_replay_of_that_device():
    sim = lab()
    converged(sim, sriov=[BOTH])
    sim.write(f"{DEVICES}/{PF1}/driver/unbind", PF1)
    sim.write("/sys/bus/pci/drivers/igb/bind", PF1)
    assert sim.functions[PF1].vfs == []
    untouched = sim.of_device(PF2)
    assert replay.run(sim.host(environment={}, sources=None), PF1)["failures"] == {}
    assert drivers_of(sim, PF1) == MIXED
    assert sim.of_device(PF2) == untouched
    quiet(sim, sriov=[BOTH])


def test_without_a_replay_the_next_run_brings_the_vfs_back():
    sim = lab()
    converged(sim, sriov=[BOTH])
    sim.reboot()
    converged(sim, sriov=[BOTH])
    assert drivers_of(sim, PF1) == MIXED


# --- Giving back -----------------------------------------------------------------------------------------------------


def test_absent_gives_back_what_was_there_before():
    sim = lab(igbvf_loaded=True)
    sim.write(f"{DEVICES}/{PF1}/sriov_numvfs", "2")
    sim.write(f"{DEVICES}/{PF1}/virtfn1/driver_override", "vfio-pci")
    call(sim, vfio=[])
    before = sim.of_device(PF1)
    files = dict(sim.files)
    converged(sim, sriov=[at(PF1, vf_count=7, vf_defaults={"driver": "vfio-pci"})])
    converged(sim, sriov=[at(PF1, state="absent")])
    assert drivers_of(sim, PF1) == ["igbvf", "vfio-pci"] or before == sim.of_device(PF1)
    assert [sim.functions[vf].override for vf in sim.functions[PF1].vfs] == [None, "vfio-pci"]
    assert sim.files == files


def test_absent_leaves_alone_what_the_collection_never_touched():
    sim = lab()
    sim.write(f"{DEVICES}/{PF1}/sriov_numvfs", "2")
    sim.sleep(10)
    quiet(sim, sriov=[at(PF1, state="absent")])
    quiet(sim, sriov=[{"match": {"ifname": ["nothing*"]}, "state": "absent"}])
    assert len(sim.functions[PF1].vfs) == 2


def test_absent_of_drivers_alone_keeps_the_count():
    sim = lab(igbvf_loaded=True)
    sim.write(f"{DEVICES}/{PF1}/sriov_numvfs", "3")
    converged(sim, sriov=[at(PF1, vfs=[{"range": "1", "driver": "vfio-pci"}])])
    converged(sim, sriov=[at(PF1, state="absent")])
    assert drivers_of(sim, PF1) == ["igbvf"] * 3


def test_exclusive_gives_back_what_the_list_no_longer_names():
    sim = lab()
    converged(sim, sriov=[BOTH])
    converged(sim, sriov=[at(PF1, vf_count=2)], exclusive=("sriov",))
    assert len(sim.functions[PF1].vfs) == 2
    assert sim.functions[PF2].vfs == []
    converged(sim, sriov=[], exclusive=("sriov",))
    assert sim.functions[PF1].vfs == []
    assert not [path for path in sim.files if "iovirt" in path and not path.startswith("/run/")]


def test_the_first_record_of_the_origin_stays():
    sim = lab()
    for count in (2, 5, 3):
        converged(sim, sriov=[at(PF1, vf_count=count)])
    converged(sim, sriov=[at(PF1, state="absent")])
    assert sim.functions[PF1].vfs == []


# --- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (at(PF1, vf_count=8), [PF1, "vf_count 8", "sriov_totalvfs is 7", "Lower vf_count"]),
        (at(PF1, vf_count=-1), [PF1, "vf_count -1 is no number from 0"]),
        # `yes`, which is 1 to Python
        (at(PF1, vf_count=True), [PF1, "vf_count True is no number from 0"]),
        (at(EDU, vf_count=1), [EDU, "no SR-IOV capability", "Narrow the selector"]),
        (at(PF1, vf_count=2, vfs=[{"range": "0-2"}]), [PF1, "range 0-2", "VFs 0 to 1", "Correct the range"]),
        (at(PF1, vfs=[{"range": "0"}]), [PF1, "no VFs", "Correct the range"]),
        (at(PF1, vf_count=4, vfs=[{"range": "0-2"}, {"range": "2-3"}]), [PF1, "0-2 and 2-3", "VF 2", "one range"]),
        (at(PF1, vf_count=4, vfs=[{"range": "3-1"}]), [PF1, "3-1", "no range"]),
        (at(PF1, vf_count=4, vfs=[{"range": "9" * 5000}]), [PF1, "no range"]),
        (at(PF1, vf_count=4, vfs=[{"range": "a"}]), [PF1, "'a'", "no range"]),
        (at(PF1, vf_count=4, vfs=[{"range": ""}]), [PF1, "no range"]),
        (at(PF1, vf_count=2, vf_defaults={"driver": "vfoi-pci"}), [PF1, "no driver vfoi-pci", "Correct the name"]),
        (at(PF1, vf_count=2, vf_defaults={"driver": "../x"}), [PF1, "no driver ../x"]),
        (at(PF1, vf_count=2, vf_defaults={"driver": "vfio_pci"}), [PF1, "no driver vfio_pci", "vfio-pci"]),
        ({"match": {"drivr": ["igb"]}, "vf_count": 1}, ["sriov[0]", "unknown key drivr", "driver"]),
        ({"match": {}, "vf_count": 1}, ["sriov[0]", "empty match"]),
        ({"match": {"driver": None, "vf": True}, "vf_count": 1}, ["sriov[0]", "empty match"]),
        ({"match": {"driver": ["ixgbe"]}, "vf_count": 1}, ["sriov[0]", "no device", "driver=ixgbe", "host_info"]),
        ({"match": {"driver": ["igb"]}, "expect": 1, "vf_count": 1}, ["expect: 1", "2 devices", PF1, PF2]),
    ],
)
@pytest.mark.parametrize("vfio_loaded", [True, False])
def test_bad_input_is_refused_in_words(wish, words, vfio_loaded):
    refused(lab(vfio_loaded=vfio_loaded), *words, sriov=[wish])


def test_one_bad_wish_stops_the_good_ones():
    refused(lab(), "sriov[1]", sriov=[at(PF1, vf_count=2), {"match": {"driver": ["x"]}}])


def test_two_wishes_for_one_device():
    refused(lab(), PF1, "both sriov[0] and sriov[1]", sriov=[at(PF1, vf_count=2), {"match": {"slot": ["1"]}, "vf_count": 3}])


def test_a_pf_whose_driver_does_no_sriov():
    sim = lab()
    sim.functions[PF1].ids = "8086:10d3"
    sim.functions[PF1].driver = "e1000e"
    sim._tree = None
    refused(sim, PF1, "e1000e does not do SR-IOV", "Give it a driver", sriov=[at(PF1, vf_count=2)])


def test_a_pf_without_a_driver():
    sim = lab()
    sim.write(f"{DEVICES}/{PF1}/driver/unbind", PF1)
    refused(sim, PF1, "it has no driver", "igb", sriov=[at(PF1, vf_count=2)])


def test_a_pf_that_vfio_holds():
    sim = lab()
    call(sim, vfio=[at(PF1)])
    refused(sim, PF1, "the resource vfio holds it", "absent", sriov=[at(PF1, vf_count=2)])
    sim.remove("/etc/iovirt/vfio.json")
    refused(sim, PF1, "vfio-pci does not do SR-IOV", "enable_sriov", sriov=[at(PF1, vf_count=2)])


def test_vfio_needs_an_iommu_that_is_there_or_to_come():
    wish = at(PF1, vf_count=2, vf_defaults={"driver": "vfio-pci"})
    refused(lab(iommu=False), PF1, "the IOMMU is off", "role iommu", sriov=[wish])


@pytest.mark.parametrize("assumed", [True, False])
def test_an_iommu_to_come_makes_it_wait(assumed):
    sim = lab(iommu=False, next_iommu=None if assumed else True)
    wishes = {"sriov": [at(PF1, vf_count=3, vfs=[{"range": "0-1", "driver": "vfio-pci"}])]}
    if assumed:
        wishes["assume"] = {"iommu": True}
    done = converged(sim, **wishes)
    waiting = [a["text"] for a in done["actions"] if a["certainty"] == "after_reboot"]
    assert waiting == ["bind VF 0 (0000:82:10.0) to vfio-pci", "bind VF 1 (0000:82:10.2) to vfio-pci"]
    assert done["reboot_required"]
    assert PF1 in done["reboot_reasons"][0]
    assert drivers_of(sim, PF1)[:2] == [None, None]
    sim.sleep(30)
    assert drivers_of(sim, PF1) == [None, None, "igbvf"]
    sim.files["/etc/default/grub"] = sim.files["/etc/default/grub"].replace("intel_iommu=off", "intel_iommu=on")
    sim.run(["grub-mkconfig", "-o", "/boot/grub/grub.cfg"])
    sim.reboot()
    assert replay.run(sim.host(sources=None), None)["failures"] == {}
    sim.sleep(30)
    assert drivers_of(sim, PF1) == ["vfio-pci", "vfio-pci", "igbvf"]
    wishes.pop("assume", None)
    assert quiet(sim, **wishes)["reboot_required"] is False


def test_a_vf_that_a_guest_holds_stops_a_recount_and_a_rebind():
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=2, vf_defaults={"driver": "vfio-pci"})])
    group = sim.functions[sim.functions[PF1].vfs[1]].group
    sim.pids[4711] = ("qemu-system-x86", ["/dev/null", f"/dev/vfio/{group}"])
    sim._tree = None
    for wish in (at(PF1, vf_count=3), at(PF1, vf_count=0), at(PF1, vf_defaults={"driver": "default"}), at(PF1, state="absent")):
        refused(sim, sim.functions[PF1].vfs[1], "process 4711 (qemu-system-x86)", "allow: [in_use]", sriov=[wish])
    assert call(sim, sriov=[at(PF1, vf_count=3)], allow=("in_use",))["changed"]


def test_a_guest_that_came_by_iommufd_is_seen_as_well():
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=1, vf_defaults={"driver": "vfio-pci"})])
    sim.pids[4711] = ("qemu", ["/dev/vfio/devices/vfio82"])
    sim._tree = None
    refused(sim, "process 4711 (qemu)", sriov=[at(PF1, vf_count=0)])


def test_a_running_link_that_somebody_uses_may_flap_only_where_allowed():
    sim = lab()
    sim.nets["enp129s0"] = Net(addresses=["192.0.2.1"])
    refused(sim, PF1, "enp129s0", "192.0.2.1", "allow: [link_flap]", sriov=[at(PF1, vf_count=2)])
    assert call(sim, sriov=[at(PF1, vf_count=2)], allow=("link_flap",))["changed"]
    sim.nets["enp129s0"].carrier = False
    assert call(sim, sriov=[at(PF1, vf_count=3)])["changed"]


# --- State files and locks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"version": 1, "resource": "sriov", "devi',
        "[]",
        '{"version": 3, "resource": "sriov", "devices": {}}',
        '{"version": 1, "resource": "vfio", "devices": {}}',
        '{"version": 1, "resource": "sriov", "devices": []}',
        '{"version": 1, "resource": "sriov", "devices": {"0000:81:00.0": {}}}',
        '{"version": 1, "resource": "sriov", "devices": {"0000:81:00.0": null}}',
        '{"version": 1, "resource": "sriov", "devices": {"0000:81:00.0": {"identity": {}, "wish": {}, "origin": {}}}}',
        '{"version": 1, "resource": "sriov", "devices": {"0000:81:00.0": {"identity": null, "wish": [], "origin": 1}}}',
        '{"version": 1, "resource": "sriov", "devices": {"0000:81:00.0": {"identity": {"address": "0000:81:00.0"}, '
        '"wish": {"vf_count": 1, "vfs": null}, "origin": {"vf_count": 0}}}}',
    ],
)
@pytest.mark.parametrize("wish", [at(PF1, vf_count=2), at(PF1, state="absent"), {"match": {"mac": ["x"]}, "vf_count": 1}])
def test_a_damaged_state_file_is_named_and_not_guessed_at(text, wish):
    sim = lab()
    sim.replace("/etc/iovirt/sriov.json", text)
    refused(sim, "/etc/iovirt/sriov.json", "nothing was changed", sriov=[wish])


def test_an_unreadable_state_file():
    sim = lab()
    sim.unreadable.add("/etc/iovirt/sriov.json")
    refused(sim, "/etc/iovirt/sriov.json", "EIO", sriov=[at(PF1, vf_count=2)])


def test_a_run_waits_for_the_lock_and_check_mode_does_not_need_it():
    sim = lab()
    sim.lock_holder = "process 1 (boot replay)"
    before = sim.snapshot()
    with pytest.raises(Exception, match="process 1") as caught:
        call(sim, sriov=[at(PF1, vf_count=2)])
    assert "boot replay" in str(caught.value)
    assert sim.now >= 1000 + 120
    assert call(sim, sriov=[at(PF1, vf_count=2)], check=True)["changed"]
    assert sim.snapshot() == before


# --- What the kernel may answer --------------------------------------------------------------------------------------


def failed(sim, **wishes):
    result = call(sim, **wishes)
    assert list(result["failures"]) == [PF1]
    return result["failures"][PF1]


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOMEM, "pci=realloc"), (errno.ENOENT, "no SR-IOV"), (errno.EBUSY, "manages this device"), (errno.EIO, "kernel log")],
)
def test_a_kernel_that_declines_the_count_leaves_the_device_as_it_was(code, words):
    sim = lab()
    before = sim.snapshot()["functions"]
    sim.count_errno = code
    text = failed(sim, sriov=[at(PF1, vf_count=2)])
    assert errno.errorcode[code] in text
    assert words in text
    assert "undone" in text
    assert sim.snapshot()["functions"] == before
    assert not sim.exists("/etc/iovirt/sriov.json")


@pytest.mark.parametrize("word", ["pci=realloc", "pci=nocrs,realloc=on"])
def test_no_room_although_pci_realloc_is_there(word):
    sim = lab()
    sim.files["/proc/cmdline"] = sim.files["/proc/cmdline"].strip() + f" {word}\n"
    sim.count_errno = errno.ENOMEM
    text = failed(sim, sriov=[at(PF1, vf_count=2)])
    assert "is on the kernel command line already" in text
    assert "add pci=realloc" not in text


def test_a_driver_that_lowers_what_it_takes_meanwhile():
    """pci_sriov_set_totalvfs(): the plan saw 7."""
    sim = lab()
    sim.faults.append((f"*/{PF1}/sriov_numvfs", "5", errno.ERANGE))
    assert "It takes 7 at most by now (sriov_totalvfs" in failed(sim, sriov=[at(PF1, vf_count=5)])


def test_the_table_of_aliases_is_not_read_for_each_vf():
    """It has over 10 000 lines; VFs of one kind have one answer."""
    sim = lab(igbvf_loaded=True)
    text, tables = sim.text, []
    sim.text = lambda path: (tables.append(path) if path.endswith("modules.alias") else None) or text(path)

    def reads(count):
        tables.clear()
        call(sim, sriov=[at(PF1, vf_count=count, vf_defaults={"driver": "default"})])
        return len(tables)

    assert reads(2) == reads(7)


def netdev_of_vf(sim):
    call(sim, sriov=[at(PF1, vf_count=1, vf_defaults={"driver": "default"})])
    return sim.functions[PF1].vfs[0]


def test_the_netdev_of_a_vf_is_waited_for():
    sim = lab(igbvf_loaded=True)
    vf = netdev_of_vf(sim)
    now = sim.now
    assert actions.await_netdev(sim.host(), vf) == "enp129s0v0"
    assert sim.now == now


@pytest.mark.parametrize("binds", [1, 2])
def test_a_netdev_that_does_not_come_is_given_one_more_bind(binds):
    sim = lab(igbvf_loaded=True)
    vf = netdev_of_vf(sim)
    sim.netless[vf] = binds - 1
    sim._tree = None
    if binds == 1:
        assert actions.await_netdev(sim.host(), vf) == "enp129s0v0"
    else:
        with pytest.raises(EngineError, match="has no network device"):
            actions.await_netdev(sim.host(), vf)
    assert [path for _what, path, _data in sim.log].count("/sys/bus/pci/drivers/igbvf/bind") == 1
    assert sim.functions[vf].driver == "igbvf"


def test_a_vf_without_a_driver_is_given_no_second_bind():
    sim = lab()
    with pytest.raises(EngineError, match="driver none"):
        actions.await_netdev(sim.host(), PF2.replace(":00.0", ":10.1"))
    assert not [path for _what, path, _data in sim.log if path.endswith("bind")]


def test_fewer_vfs_than_asked():
    sim = lab()
    sim.fewer_vfs = 2
    text = failed(sim, sriov=[at(PF1, vf_count=4)])
    assert "accepted 4 VFs, but 2 are there" in text
    assert sim.functions[PF1].vfs == []


def test_fewer_vfs_than_asked_and_as_many_as_before():
    """The count is back by itself then, but the VFs are new ones: without overrides and drivers."""
    sim = lab(igbvf_loaded=True)
    call(sim, sriov=[at(PF1, vf_count=2, vfs=[{"range": "0", "driver": "vfio-pci"}])])
    before = sim.of_device(PF1)
    sim.fewer_vfs = 2
    assert "accepted 4 VFs" in failed(sim, sriov=[at(PF1, vf_count=4)])
    assert sim.of_device(PF1) == before


def test_links_that_appear_late_are_waited_for():
    sim = lab()
    sim.vf_links_delay = 20.0
    converged(sim, sriov=[at(PF1, vf_count=2, vf_defaults={"driver": "vfio-pci"})])
    assert drivers_of(sim, PF1) == ["vfio-pci"] * 2


def test_links_that_never_appear():
    sim = lab()
    sim.fewer_vfs = 0
    assert "0 are there" in failed(sim, sriov=[at(PF1, vf_count=2)])


def test_a_driver_that_declines_a_vf():
    sim = lab()
    sim.probe_errno["vfio-pci", "0000:82:10.2"] = errno.EINVAL
    done = call(sim, sriov=[BOTH])
    assert list(done["failures"]) == [PF1]
    assert "vfio-pci did not take 0000:82:10.2: EINVAL" in done["failures"][PF1]
    assert sim.functions[PF1].vfs == []
    assert drivers_of(sim, PF2) == MIXED
    assert list(json.loads(sim.text("/etc/iovirt/sriov.json"))["devices"]) == [PF2]
    assert PF2 in sim.text("/etc/iovirt/sriov.json")


def test_a_module_that_cannot_be_loaded():
    sim = lab()
    sim.broken_modules.add("vfio_pci")
    text = failed(sim, sriov=[at(PF1, vf_count=2, vf_defaults={"driver": "vfio-pci"})])
    assert "modprobe vfio-pci failed" in text
    assert sim.functions[PF1].vfs == []


def test_a_count_that_never_returns_is_indeterminate_and_left_alone():
    sim = lab()
    sim.blocking.append(f"*/{PF1}/sriov_numvfs")
    done = call(sim, sriov=[BOTH])
    assert done["indeterminate"] == [PF1]
    assert "indeterminate" in done["failures"][PF1]
    assert drivers_of(sim, PF2) == MIXED
    after = [path for _what, path, _data in sim.log if PF1 in path and path.startswith(DEVICES)]
    stuck = max(number for number, path in enumerate(after) if path.endswith("sriov_numvfs"))
    assert after[stuck + 1 :] in ([], [f"{DEVICES}/{PF1}/sriov_drivers_autoprobe"])


def test_the_next_run_does_not_hang_with_the_device():
    """driver_override_show takes the device's lock: while a count hangs, so does reading the PF and its VFs."""
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=2, vf_defaults={"driver": "vfio-pci"})])
    sim.stuck = {PF1, *sim.functions[PF1].vfs}
    for wish in (at(PF1, vf_count=3), at(PF1, state="absent")):
        refused(sim, PF1, "does not answer", sriov=[wish])
    refused(sim, PF1, "does not answer", sriov=[], exclusive=("sriov",))
    refused(sim, PF2, f"does not answer for {PF1}", sriov=[at(PF2, vf_count=1)])
    assert call(sim, vfio=[at(EDU)])["failures"] == {}
    assert sim.functions[EDU].driver == "vfio-pci"


def test_an_undo_that_hangs_is_not_followed_by_more_writes():
    sim = lab()
    sim.probe_errno["vfio-pci", "0000:82:10.2"] = errno.EINVAL
    sim.blocking.append("*/0000:82:10.0/driver/unbind")
    done = call(sim, sriov=[at(PF1, vf_count=2, vf_defaults={"driver": "vfio-pci"})])
    assert done["indeterminate"] == [PF1]
    after = [path for _what, path, _data in sim.log]
    assert not [path for path in after[after.index(f"{DEVICES}/0000:82:10.0/driver/unbind") + 1 :] if "numvfs" in path]


def test_a_device_that_fails_keeps_the_replay_of_what_it_still_is():
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=2)])
    sim.faults.append(("*/sriov_numvfs", "0", errno.EIO))
    before = sim.snapshot()
    assert failed(sim, sriov=[at(PF1, state="absent")])
    assert sim.snapshot() == before


def test_a_hanging_count_makes_no_later_run_hang():
    """The next run on that device is refused at once, so is a count on another PF; what hangs on nothing is done."""
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=2), at(PF2, vf_count=2)])
    sim.blocking.append(f"*/{PF1}/sriov_numvfs")
    outcome = call(sim, sriov=[at(PF1, vf_count=3)])
    assert outcome["indeterminate"] == [PF1]
    before = sim.snapshot()
    refused(sim, PF1, "the kernel does not answer", "paused guest", sriov=[at(PF1, vf_count=2)])
    refused(sim, PF2, f"while the kernel does not answer for {PF1}", sriov=[at(PF2, vf_count=1)])
    assert sim.snapshot() == before
    vfs = [{"range": "0", "driver": "vfio-pci"}]
    assert call(sim, sriov=[at(PF2, vf_count=2, vfs=vfs)])["failures"] == {}
    assert drivers_of(sim, PF2)[0] == "vfio-pci"
    sim.blocking.clear()
    sim.stuck.clear()
    assert call(sim, sriov=[at(PF1, vf_count=3)])["failures"] == {}


def test_another_card_in_the_place_keeps_its_vfs():
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=2)])
    sim.functions[PF1].ids = "8086:1521"
    sim._tree = None
    done = call(sim, sriov=[at(PF1, state="absent")])
    assert [action["action"] for action in done["actions"]] == ["declare", "remove_replay"]
    assert len(sim.functions[PF1].vfs) == 2
