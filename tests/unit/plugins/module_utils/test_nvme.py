# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""NVMe secondary controllers: resources and state, so that the VF's own driver, or a guest's, takes it."""

from __future__ import annotations

import copy
import json

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import nvmecli, replay
from ansible_collections.iovirt.host.plugins.module_utils._engine.errors import EngineError
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import (
    NVME,
    PF1,
    at,
    call,
    converged,
    drivers_of,
    examples,
    lab,
    mount,
    quiet,
    refused,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import DEVICES
from hypothesis import given, settings
from hypothesis import strategies as st

READY = {"nvme_queues": 2, "nvme_interrupts": 1, "online": True}
HALF = [{"range": "0", **READY}, {"range": "1", **READY, "driver": "vfio-pci"}]


def controllers(sim):
    return sim.nvme[NVME].facts()


def virt_mgmt(sim):
    return [argv[3:] for argv in sim.commands if argv[:2] == ["nvme", "virt-mgmt"]]


def reading(sim):
    return [argv[1] for argv in sim.commands if argv[0] in ("nvme", "mstconfig") and argv[1] != "virt-mgmt"]


# --- The way through -------------------------------------------------------------------------------------------------


def test_vfs_go_online_before_their_driver_takes_them():
    sim = lab()
    done = converged(sim, sriov=[at(NVME, vf_count=3, vfs=HALF)])
    assert drivers_of(sim, NVME) == ["nvme", "vfio-pci", None]
    assert controllers(sim) == {0: (2, 1, True), 1: (2, 1, True), 2: (0, 0, False), 3: (0, 0, False)}
    assert [a["action"] for a in done["actions"]][-4:] == ["set_vf_count", "set_nvme_secondary", "release", "bind"]
    assert done["actions"][-3]["certainty"] == "predicted"
    assert "set VF 0 (0000:91:00.1) online with 2 queues and 1 interrupts" in done["actions"][-3]["text"]
    assert done["sriov"][-1]["vfs"][0] == {"range": "0", "driver": "default", **READY}


def test_nobody_probes_a_vf_that_has_no_resources_yet():
    sim = lab()
    seen = []
    online = sim._online
    sim._online = lambda vf: seen.append(online(vf)) or seen[-1]
    call(sim, sriov=[at(NVME, vf_count=2, vf_defaults=READY)])
    assert seen == [True, True]


def test_resources_without_online_leave_the_vf_without_a_driver():
    sim = lab()
    converged(sim, sriov=[at(NVME, vf_count=1, vf_defaults={"driver": "default", "nvme_queues": 2})])
    assert controllers(sim)[0] == (2, 0, False)
    assert drivers_of(sim, NVME) == [None]


def test_only_what_differs_is_touched():
    sim = lab()
    call(sim, sriov=[at(NVME, vf_count=2, vf_defaults=READY)])
    sim.commands.clear()
    sim.nvme[NVME].secondaries[2].offline()
    converged(sim, sriov=[at(NVME, vf_count=2, vf_defaults=READY)])
    assert {argv[1] for argv in virt_mgmt(sim)} == {"2"}
    assert drivers_of(sim, NVME) == ["nvme", "nvme"]


def test_a_controller_reset_is_mended_by_the_next_run():
    """It takes the controllers offline under drivers that notice nothing (lab: state live)."""
    sim = lab()
    wish = at(NVME, vf_count=2, vfs=HALF)
    call(sim, sriov=[wish])
    sim.write(f"{DEVICES}/{NVME}/reset", "1")
    assert drivers_of(sim, NVME) == ["nvme", "vfio-pci"]
    done = converged(sim, sriov=[wish])
    assert [a["action"] for a in done["actions"]] == ["set_nvme_secondary"]
    assert controllers(sim)[1] == (2, 1, True)
    assert drivers_of(sim, NVME) == ["nvme", "vfio-pci"]


def test_one_vf_may_take_what_another_gives_up():
    sim = lab()
    sim.nvme[NVME].most = (6, 3)
    big, small = {"nvme_queues": 6, "nvme_interrupts": 1, "online": True}, {"nvme_queues": 2, "nvme_interrupts": 3, "online": True}
    call(sim, sriov=[at(NVME, vf_count=2, vfs=[{"range": "0", **big}, {"range": "1", **small}])])
    converged(sim, sriov=[at(NVME, vf_count=2, vfs=[{"range": "0", **small}, {"range": "1", **big}])])
    assert controllers(sim)[0] == (2, 3, True)
    assert controllers(sim)[1] == (6, 1, True)


def test_setting_it_offline_takes_the_driver_away():
    sim = lab()
    call(sim, sriov=[at(NVME, vf_count=1, vf_defaults=READY)])
    converged(sim, sriov=[at(NVME, vf_count=1, vf_defaults={"online": False})])
    assert drivers_of(sim, NVME) == [None]
    assert controllers(sim)[0] == (2, 1, False)


def test_from_vfio_to_its_own_driver():
    sim = lab()
    call(sim, sriov=[at(NVME, vf_count=1, vf_defaults={"driver": "vfio-pci"})])
    converged(sim, sriov=[at(NVME, vf_count=1, vf_defaults={"driver": "default", **READY})])
    assert drivers_of(sim, NVME) == ["nvme"]


def test_a_driver_that_does_not_come_is_an_error_now():
    sim = lab()
    sim.probe_errno["nvme", "0000:91:00.1"] = 5
    result = call(sim, sriov=[at(NVME, vf_count=1, vf_defaults=READY)])
    assert "no driver took 0000:91:00.1" in result["failures"][NVME]
    assert sim.functions[NVME].vfs == []


# --- What is read ------------------------------------------------------------------------------------------------------


def test_nothing_is_read_where_no_wish_speaks_of_it():
    sim = lab()
    for _round in range(2):
        call(sim, sriov=[at(NVME, vf_count=2), at(PF1, vf_count=1)])
    assert reading(sim) == []


def test_one_process_where_all_is_as_wished():
    sim = lab()
    wish = at(NVME, vf_count=2, vf_defaults=READY)
    call(sim, sriov=[wish])
    sim.commands.clear()
    call(sim, check=True, sriov=[wish])
    assert reading(sim) == ["list-secondary"]


def test_a_list_of_more_than_one_page():
    sim = lab()
    sim.nvme[NVME].vfs = 300
    sim.nvme[NVME].__post_init__()
    assert sorted(nvmecli.secondaries(sim.host(), "/dev/nvme0")) == list(range(300))


# --- What comes back ---------------------------------------------------------------------------------------------------


def test_the_replay_brings_it_back():
    sim = lab()
    call(sim, sriov=[at(NVME, vf_count=2, vfs=HALF)])
    before = sim.nvme[NVME].facts()
    sim.reboot()
    assert controllers(sim)[0] == (0, 0, False)
    result = replay.run(sim.host(), None)
    assert result["failures"] == {}
    assert controllers(sim) == before
    assert drivers_of(sim, NVME) == ["nvme", "vfio-pci"]
    quiet(sim, sriov=[at(NVME, vf_count=2, vfs=HALF)])


def operators(count=1):
    """VFs that somebody made, with resources, the first one online."""
    sim = lab()
    sim.write(f"{DEVICES}/{NVME}/sriov_numvfs", str(count))
    host = sim.host()
    for kind, number in ((0, 2), (1, 1)):
        nvmecli.manage(host, "/dev/nvme0", 1, nvmecli.ASSIGN, kind, number)
    nvmecli.manage(host, "/dev/nvme0", 1, nvmecli.ONLINE)
    sim.write("/sys/bus/pci/drivers_probe", sim.functions[NVME].vfs[0])
    assert drivers_of(sim, NVME)[0] == "nvme"
    sim.log.clear()
    return sim


@pytest.mark.parametrize("wish", [{"vf_count": 3, "vf_defaults": READY}, {"vfs": [{"range": "0", "nvme_queues": 0, "online": False}]}, {"vf_count": 0}])
def test_given_back_as_it_was(wish):
    sim = operators()
    before = sim.snapshot()
    converged(sim, sriov=[at(NVME, **wish)])
    assert controllers(sim) != before["nvme"][NVME][1]
    converged(sim, sriov=[at(NVME, state="absent")])
    assert sim.snapshot() == before


def test_given_back_to_nothing():
    sim = lab()
    before = sim.snapshot()
    call(sim, sriov=[at(NVME, vf_count=3, vfs=HALF, nvme_primary_queues=2)])
    converged(sim, sriov=[at(NVME, state="absent")])
    assert sim.snapshot() == before


# --- What the primary controller keeps -----------------------------------------------------------------------------


def greedy():
    """A controller that keeps all flexible resources for itself, as some are delivered."""
    sim = lab()
    sim.nvme[NVME].primary, sim.nvme[NVME].next_primary = [8, 4], [8, 4]
    return sim


def test_the_primary_gives_up_what_it_keeps():
    sim = greedy()
    wish = at(NVME, vf_count=2, vf_defaults=READY, nvme_primary_queues=0, nvme_primary_interrupts=0)
    done = converged(sim, sriov=[wish])
    assert [a["action"] for a in done["actions"]][-4:-2] == ["set_vf_count", "set_nvme_secondary"]
    assert sim.nvme[NVME].primary == [0, 0]
    sim.reboot()
    replay.run(sim.host(), None)
    quiet(sim, sriov=[wish])
    converged(sim, sriov=[at(NVME, state="absent")])
    assert sim.nvme[NVME].primary == [8, 4]


def test_the_primary_keeps_too_much():
    refused(greedy(), "2 queues are wished", "VF 0: 2", "it has 8 and keeps 8", "nvme_primary_queues: 0",
            sriov=[at(NVME, vf_count=1, vf_defaults=READY)])


def test_no_reset_under_vfs():
    sim = operators()
    refused(sim, "by a reset of the function, and it has VFs", "vf_count: 0", sriov=[at(NVME, nvme_primary_queues=2)])


def test_no_reset_under_a_mounted_disk():
    sim = lab()
    sim.files["/proc/self/mountinfo"] += mount("259:1", "/srv", "/dev/nvme0n1p1")
    wish = at(NVME, nvme_primary_queues=2)
    refused(sim, "mounted on /srv", "boot_disk", sriov=[wish])
    converged(sim, sriov=[wish], allow=("boot_disk",))
    assert sim.nvme[NVME].primary[0] == 2


# --- Refusals ----------------------------------------------------------------------------------------------------------

BAD = [
    ({"vf_defaults": {**READY, "nvme_queues": 3}}, ["nvme_queues 3 of VF 0, 1", "vqfrsm is 2"]),
    ({"vf_defaults": {**READY, "nvme_interrupts": 2}}, ["nvme_interrupts 2", "vifrsm is 1"]),
    ({"vf_defaults": {"online": True}}, ["VF 0 cannot be online with 0 queues", "needs 2"]),
    ({"vf_defaults": {**READY, "nvme_queues": 1}}, ["cannot be online with 1 queues"]),
    ({"vf_defaults": {"nvme_queues": -1}}, ["nvme_queues -1 of VF 0 is no number from 0"]),
    ({"nvme_primary_queues": -1}, ["nvme_primary_queues -1 is no number from 0"]),
    ({"vf_defaults": {"nvme_interrupts": True}}, ["nvme_interrupts True of VF 0 is no number from 0"]),
    ({"nvme_primary_interrupts": True}, ["nvme_primary_interrupts True is no number from 0"]),
    ({"nvme_primary_queues": 6, "vf_defaults": READY}, ["4 queues are wished", "VF 0: 2, VF 1: 2", "keeps 6"]),
    ({"nvme_primary_queues": 9}, ["it has 8 and keeps 9"]),
]


@pytest.mark.parametrize(("wish", "words"), BAD, ids=[words[0] for _wish, words in BAD])
def test_bad_wishes(wish, words):
    refused(lab(), *words, sriov=[at(NVME, vf_count=2, **wish)])


def test_more_than_there_is_names_the_vfs():
    sim = lab()
    sim.nvme[NVME].flexible, sim.nvme[NVME].most = (8, 2), (4, 1)
    text = refused(sim, "3 interrupts are wished", "VF 0: 1, VF 1: 1, VF 2: 1", "it has 2",
                   sriov=[at(NVME, vf_count=3, vf_defaults=READY)])
    assert "queues are wished" not in text


def test_what_vfs_without_a_wish_hold_counts():
    sim = operators(2)
    sim.nvme[NVME].flexible = (3, 4)
    refused(sim, "4 queues are wished", "VF 0: 2, VF 1: 2", sriov=[at(NVME, vfs=[{"range": "1", **READY}])])


def test_not_an_nvme_controller():
    refused(lab(), "and it is none", sriov=[at(PF1, vf_count=1, vf_defaults={"online": True})])


def test_the_controller_is_not_on_nvme():
    sim = lab()
    sim.functions[NVME].driver = None
    refused(sim, "through the nvme driver, and it has none", sriov=[at(NVME, vf_defaults={"online": True}, nvme_primary_queues=1)])


def test_without_nvme_cli():
    sim = lab()
    sim.missing.add("nvme")
    refused(sim, "the command nvme is not there", "package nvme-cli", sriov=[at(NVME, vf_count=1, vf_defaults=READY)])


def test_a_controller_without_secondaries():
    sim = lab()
    sim.nvme[NVME].vfs = 0
    sim.nvme[NVME].__post_init__()
    refused(sim, "no secondary controller for VF 0, 1", sriov=[at(NVME, vf_count=2, vf_defaults=READY)])


def test_a_vf_in_use_keeps_its_driver():
    sim = lab()
    call(sim, sriov=[at(NVME, vf_count=1, vf_defaults={"driver": "vfio-pci"})])
    group = sim.functions[sim.functions[NVME].vfs[0]].group
    sim.pids[77] = ("qemu-system-x86", [f"/dev/vfio/{group}"])
    sim._tree = None
    refused(sim, "qemu-system-x86", "in_use", sriov=[at(NVME, vf_count=1, vf_defaults=READY)])


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ('{"error":"/dev/nvme9: No such file or directory"}', "failed: /dev/nvme9: No such file or directory."),
        ("", "failed: NVMe status: Invalid Field(0x4002)."),
    ],
)
def test_what_nvme_cli_says_is_told(out, words):
    sim = lab()
    host = sim.host()
    host.run = lambda argv: (1, out, "Usage: nvme\nNVMe status: Invalid Field(0x4002)\n")
    with pytest.raises(EngineError) as caught:
        nvmecli.secondaries(host, "/dev/nvme9")
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"secondary-controllers": [{}]}', '{"secondary-controllers": null}'])
def test_another_json_is_a_sentence(text):
    host = lab().host()
    host.run = lambda argv: (0, text, "")
    with pytest.raises(EngineError, match="JSON"):
        nvmecli.secondaries(host, "/dev/nvme0")


# --- Undo ----------------------------------------------------------------------------------------------------------------


def born():
    return lab(), {"sriov": [at(NVME, vf_count=3, vfs=HALF, nvme_primary_queues=2)]}


def changed():
    """An operator's VF goes offline, and another one gets what it had."""
    return operators(2), {"sriov": [at(NVME, vfs=[{"range": "0", "nvme_queues": 0, "nvme_interrupts": 0, "online": False}, {"range": "1", **READY}])]}


def recounted():
    """An operator's VF with resources vanishes with the count."""
    return operators(), {"sriov": [at(NVME, vf_count=2, vfs=HALF)]}


def unnamed():
    """So it does where the wish does not speak of resources."""
    return operators(), {"sriov": [at(NVME, vf_count=2, vf_defaults={"driver": "vfio-pci"})]}


def returned():
    sim = operators()
    call(sim, sriov=[at(NVME, vf_count=2, vf_defaults=READY)])
    return sim, {"sriov": [at(NVME, state="absent")]}


def steps_of(start):
    sim, wishes = start()
    done = len(sim.log)
    converged(sim, **wishes)
    return [entry for entry in sim.log[done:] if not entry[1].startswith("/run/")]


STARTS = (born, changed, recounted, unnamed, returned)
CASES = [(start, number) for start in STARTS for number in range(1, len(steps_of(start)) + 1)]


@pytest.mark.parametrize(("start", "number"), CASES, ids=[f"{start.__name__}-{number}" for start, number in CASES])
def test_a_step_that_fails(start, number):
    sim, wishes = start()
    well = copy.deepcopy(sim)
    call(well, **wishes)

    def all_of(one):
        document = json.loads(one.text("/etc/iovirt/sriov.json") or '{"devices": {}}')
        return one.of_device(NVME), one.snapshot()["nvme"], document["devices"]

    before = all_of(sim)
    sim.fail_at = len(sim.log) + number
    result = call(sim, **wishes)
    path = sim.log[sim.fail_at - 1][1]
    sim.fail_at = None
    if NVME in result["failures"]:
        assert "could not be undone" not in result["failures"][NVME]
        assert all_of(sim) == before
    elif "host" in result["failures"] and start is not returned:
        assert all_of(sim) == before
    elif not path.endswith("/drivers_probe"):
        assert all_of(sim) == all_of(well)
    converged(sim, **wishes)
    if not path.endswith("/drivers_probe"):
        assert all_of(sim) == all_of(well)


# --- Properties ----------------------------------------------------------------------------------------------------------

_VF = st.fixed_dictionaries(
    {},
    optional={
        "nvme_queues": st.integers(0, 5),
        "nvme_interrupts": st.integers(0, 3),
        "online": st.booleans(),
        "driver": st.sampled_from(["default", "vfio-pci"]),
    },
)
_WISH = st.builds(
    lambda count, vfs, primary: at(
        NVME, vf_count=count, vfs=[{"range": str(i), **vf} for i, vf in enumerate(vfs[:count])],
        **({} if primary is None else {"nvme_primary_queues": primary}),
    ),
    st.integers(0, 4),
    st.lists(_VF, max_size=4),
    st.none() | st.integers(0, 3),
)


@settings(max_examples=examples(60), deadline=None, derandomize=True)
@given(st.lists(_WISH, min_size=1, max_size=3))
def test_what_is_not_refused_comes_true_and_stays(wishes):
    """Whatever wish follows whatever other one: it is refused with nothing changed, or done and then at rest; and what
    was before comes back."""
    sim = lab()
    sim.nvme[NVME].most = (4, 2)
    start = sim.snapshot()
    for wish in wishes:
        before = sim.snapshot()
        try:
            call(sim, check=True, sriov=[wish])
        except EngineError:
            with pytest.raises(EngineError):
                call(sim, sriov=[wish])
            assert sim.snapshot() == before
            continue
        converged(sim, sriov=[wish])
        for part in wish["vfs"]:
            queues, interrupts, online = controllers(sim)[int(part["range"])]
            assert part.get("nvme_queues", queues) == queues
            assert part.get("nvme_interrupts", interrupts) == interrupts
            assert part.get("online", online) == online
    call(sim, sriov=[at(NVME, state="absent")])
    assert sim.snapshot() == start
