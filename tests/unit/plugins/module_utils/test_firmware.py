# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""SR-IOV in a card's firmware: what holds now, what holds from the next boot on, and who waits for it.

Synthetic: mstconfig's answers are made after its source (sim_firmware.py); no such card was seen.
"""

from __future__ import annotations

import copy
import json

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import mstconfig, replay
from ansible_collections.iovirt.host.plugins.module_utils._engine.errors import EngineError
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import (
    PF1,
    at,
    call,
    converged,
    drivers_of,
    lab,
    quiet,
    refused,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import DEVICES, Pci
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim_firmware import Firmware

P0, P1, CARD = "0000:a1:00.0", "0000:a1:00.1", "0000:a1:00"


def mlx(sriov=True, vfs=4, **more):
    """The lab host with a dual-port ConnectX-5 (synthetic)."""
    sim = lab()
    sim.add_driver("mlx5_core", "15b3:1019", "15b3:101a", sriov=True, net=True)
    port = sim.add(Pci("0000:a0:00.0", "1b36:000c", "060400", parent="/sys/devices/pci0000:a0", numa_node=1))
    for number, address in enumerate((P0, P1)):
        sim.add(
            Pci(address, "15b3:1019", "020000", parent=port.path, offset=2 + number * 8, stride=1, vf_ids="15b3:101a",
                ifname=f"enp161s0f{number}np{number}", mac=f"0c:42:a1:00:00:0{number}")
        )
    sim.firmware[CARD] = Firmware(current={"SRIOV_EN": sriov, "NUM_OF_VFS": vfs}, **more)
    return sim.power_on("root=UUID=1d9f ro console=ttyS0 intel_iommu=on quiet")


def of(sim):
    return sim.firmware[CARD].next


def said(result):
    return " ".join(result["reboot_reasons"])


# --- The way through -----------------------------------------------------------------------------------------------------


def test_more_vfs_than_now_wait_for_the_boot():
    sim = mlx(vfs=4)
    wish = at(P0, vf_count=8, firmware={"vf_count": 8}, vf_defaults={"driver": "vfio-pci"})
    done = converged(sim, sriov=[wish])
    assert of(sim) == {"SRIOV_EN": True, "NUM_OF_VFS": 8}
    assert sim.functions[P0].vfs == []
    by_kind = {a["action"]: a["certainty"] for a in done["actions"]}
    assert by_kind["set_firmware"] == "certain"
    assert by_kind["set_vf_count"] == by_kind["bind"] == "after_reboot"
    assert done["reboot_required"]
    assert "NUM_OF_VFS 4, and 8 from the next boot on" in said(done)
    # Until then nothing changes any more, and the reboot goes on being asked for.
    assert quiet(sim, sriov=[wish])["reboot_required"]
    sim.reboot()
    assert replay.run(sim.host(), None)["failures"] == {}
    assert drivers_of(sim, P0) == ["vfio-pci"] * 8
    assert not quiet(sim, sriov=[wish])["reboot_required"]


def test_a_card_without_sriov_gets_it():
    sim = mlx(sriov=False, vfs=0)
    wish = at(P0, vf_count=2, firmware={"sriov": True, "vf_count": 8}, vf_defaults={"driver": "vfio-pci"})
    done = converged(sim, sriov=[wish])
    assert "bind VF 1 (address not known yet) to vfio-pci" in [a["text"] for a in done["actions"]]
    assert "set SRIOV_EN from False to True and NUM_OF_VFS from 0 to 8" in " ".join(a["text"] for a in done["actions"])
    assert "SRIOV_EN False, and True from the next boot on" in said(done)
    sim.reboot()
    replay.run(sim.host(), None)
    assert len(sim.functions[P0].vfs) == 2
    quiet(sim, sriov=[wish])


def test_what_was_set_by_others_for_the_next_boot_is_waited_for():
    sim = mlx(vfs=4)
    sim.firmware[CARD].next["NUM_OF_VFS"] = 16
    done = converged(sim, sriov=[at(P0, vf_count=8, firmware={"sriov": True})])
    assert [a["certainty"] for a in done["actions"] if a["action"] == "set_vf_count"] == ["after_reboot"]
    assert "it can have 16 VFs" in said(done)


def test_vfs_that_are_there_stay_until_the_boot():
    sim = mlx(vfs=4)
    call(sim, sriov=[at(P0, vf_count=4)])
    before = list(sim.functions[P0].vfs)
    converged(sim, sriov=[at(P0, vf_count=8, firmware={"vf_count": 8})])
    assert sim.functions[P0].vfs == before


def test_fewer_need_no_reboot():
    sim = mlx(vfs=8)
    done = converged(sim, sriov=[at(P0, vf_count=4, firmware={"vf_count": 4})])
    assert not done["reboot_required"]
    assert len(sim.functions[P0].vfs) == 4
    assert of(sim)["NUM_OF_VFS"] == 4


def test_switching_it_off_waits_for_the_boot():
    sim = mlx()
    done = converged(sim, sriov=[at(P0, firmware={"sriov": False})])
    assert "SRIOV_EN True, and False" in said(done)
    sim.reboot()
    assert not quiet(sim, sriov=[at(P0, firmware={"sriov": False})])["reboot_required"]


def test_firmware_that_tells_of_the_next_boot_alone():
    sim = mlx(vfs=4, tells_current=False)
    wish = at(P0, firmware={"sriov": True, "vf_count": 8})
    done = converged(sim, sriov=[wish])
    assert "NUM_OF_VFS 4, and 8" in said(done)
    assert "SRIOV_EN" not in said(done)
    sim.reboot()
    assert not quiet(sim, sriov=[wish])["reboot_required"]


def test_unset_is_untouched():
    sim = mlx()
    call(sim, sriov=[at(P0, vf_count=2), at(P1, firmware=None), at(PF1, firmware={"sriov": None})])
    assert [argv for argv in sim.commands if argv[0] == "mstconfig"] == []


# --- Two ports, one card -------------------------------------------------------------------------------------------------


def test_both_ports_set_it_once():
    sim = mlx(vfs=4)
    done = converged(sim, sriov=[at(P0, firmware={"vf_count": 8}), at(P1, firmware={"vf_count": 8})])
    assert [a["device"] for a in done["actions"] if a["action"] == "set_firmware"] == [P0]
    assert len([argv for argv in sim.commands if "set" in argv]) == 1


def test_the_second_port_alone_sets_it():
    sim = mlx(vfs=4)
    converged(sim, sriov=[at(P0, vf_count=1), at(P1, firmware={"vf_count": 8})])
    assert of(sim)["NUM_OF_VFS"] == 8


def test_one_port_given_back_while_the_other_begins():
    sim = mlx(vfs=4)
    before = sim.snapshot()
    call(sim, sriov=[at(P0, firmware={"vf_count": 8})])
    converged(sim, sriov=[at(P0, state="absent"), at(P1, firmware={"vf_count": 12})])
    assert of(sim)["NUM_OF_VFS"] == 12
    converged(sim, sriov=[at(P1, state="absent")])
    assert sim.snapshot() == before


def test_ports_that_disagree():
    sim = mlx()
    refused(sim, "sriov[0] and sriov[1] wish firmware.vf_count 8 and 6", P0, P1,
            sriov=[at(P0, firmware={"vf_count": 8}), at(P1, firmware={"vf_count": 6})])
    call(sim, sriov=[at(P0, firmware={"vf_count": 8})])
    refused(sim, "an earlier call", "firmware.vf_count 6 and 8", P0, P1, sriov=[at(P1, firmware={"vf_count": 6})])


def test_given_back_with_the_last_port():
    sim = mlx(vfs=4)
    before = sim.snapshot()
    call(sim, sriov=[at(P0, firmware={"vf_count": 8})])
    call(sim, sriov=[at(P0, firmware={"vf_count": 8}), at(P1, firmware={"vf_count": 8, "sriov": True})])
    converged(sim, sriov=[at(P0, state="absent")])
    assert of(sim)["NUM_OF_VFS"] == 8
    converged(sim, sriov=[at(P1, state="absent")])
    assert sim.snapshot() == before


def test_both_ports_given_back_at_once():
    sim = mlx(vfs=4)
    before = sim.snapshot()
    call(sim, sriov=[at(P0, firmware={"vf_count": 8}, vf_count=2), at(P1, firmware={"vf_count": 8})])
    converged(sim, sriov=[at(P0, state="absent"), at(P1, state="absent")])
    assert sim.snapshot() == before


def test_what_was_first_stays_the_origin():
    sim = mlx(sriov=True, vfs=4)
    before = sim.snapshot()
    call(sim, sriov=[at(P0, firmware={"vf_count": 8})])
    call(sim, sriov=[at(P0, firmware={"vf_count": 12})])
    call(sim, sriov=[at(P0, firmware={"vf_count": 12, "sriov": False})])
    converged(sim, sriov=[at(P0, state="absent")])
    assert sim.snapshot() == before


# --- Refusals --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"firmware": {"vf_count": 4}, "vf_count": 8}, ["vf_count 8 is more than it can have", "raise firmware.vf_count"]),
        ({"firmware": {"vf_count": 2}, "vf_count": 4}, ["vf_count 4 is more than firmware.vf_count 2"]),
        ({"firmware": {"vf_count": 8}, "vf_count": 9}, ["sriov_totalvfs is 4, from the next boot on 8"]),
        ({"firmware": {"sriov": False}, "vf_count": 2}, ["firmware.sriov false leaves no VF"]),
        ({"firmware": {"vf_count": -1}}, ["firmware.vf_count -1 is no number from 0"]),
        ({"firmware": {"vf_count": True}}, ["firmware.vf_count True is no number from 0"]),
        ({"vf_count": 5}, ["sriov_totalvfs is 4", "raise firmware.vf_count"]),
    ],
)
def test_bad_wishes(wish, words):
    refused(mlx(), *words, sriov=[at(P0, **wish)])


def test_another_vendor():
    refused(lab(), "no open tool is known for the firmware of vendor 8086", sriov=[at(PF1, firmware={"vf_count": 7})])


def test_without_mstconfig():
    sim = mlx()
    sim.missing.add("mstconfig")
    refused(sim, "the command mstconfig is not there", "package mstflint", sriov=[at(P0, firmware={"vf_count": 8})])


@pytest.mark.parametrize(
    ("error", "lockdown", "words"),
    [
        # Mellanox/mstflint issue 416, mstflint 4.15 under lockdown.
        ("write counter to semaphore: Permission denied\n-E- Failed to open the device\n", "none [integrity] confidentiality",
         ["Failed to open the device", "locked down (integrity)"]),
        # Mellanox/mstflint issue 1371, mstflint 4.33 under lockdown.
        ("-E- Failed to identify the device\n", "none integrity [confidentiality]", ["Failed to identify", "(confidentiality)"]),
        # Lab: mstflint 4.31 asked for an NVMe controller.
        ("-E- Failed to open the device\n", "[none] integrity confidentiality", ["Failed to open the device."]),
    ],
)
def test_a_device_that_cannot_be_opened(error, lockdown, words):
    sim = mlx()
    sim.firmware[CARD].error = error
    sim.files["/sys/kernel/security/lockdown"] = lockdown + "\n"
    text = refused(sim, *words, sriov=[at(P0, firmware={"vf_count": 8})])
    assert ("locked down" in text) == ("[none]" not in lockdown)


def test_a_setting_that_is_not_kept():
    sim = mlx()
    sim.firmware[CARD].forgetful = True
    result = call(sim, sriov=[at(P0, firmware={"vf_count": 8})])
    assert "the next boot has NUM_OF_VFS 4 instead of 8" in result["failures"][P0]


# --- The forms of the table ----------------------------------------------------------------------------------------------

#: Column widths of mstflint 4.2x (issue 968 of the SR-IOV network operator quotes such lines).
WIDE = """
Device #1:
----------

Device type:        ConnectX6LX
Name:               MCX631102AN-ADA_Ax
Description:        ConnectX-6 Lx EN adapter card; 25GbE ; Dual-port SFP28; PCIe 4.0 x8; No Crypto
Device:             0000:3b:00.0

Configurations:                                     Default              Current              Next Boot
*       SRIOV_EN                                    False(0)             False(0)             True(1)
        NUM_OF_VFS                                  0                    8                    8
The '*' shows parameters with next value different from default/current value.
"""
NEXT_ALONE = """
Configurations:                                          Next Boot
        SRIOV_EN                                    True(1)
        NUM_OF_VFS                                  16
"""


def test_wide_columns():
    found = mstconfig.parse(WIDE)
    assert found == {"sriov": {"current": False, "next": True}, "vf_count": {"current": 8, "next": 8}}


def test_next_boot_alone():
    found = mstconfig.parse(NEXT_ALONE)
    assert found == {"sriov": {"current": None, "next": True}, "vf_count": {"current": None, "next": 16}}


def test_a_value_that_could_not_be_read():
    found = mstconfig.parse(WIDE.replace("False(0)             False(0) ", "False(0)             N/A      "))
    assert found["sriov"] == {"current": None, "next": True}


@pytest.mark.parametrize("text", ["", "Configurations:  Next Boot\n", WIDE.replace("NUM_OF_VFS", "NUM_OF_PF"), WIDE.replace("8\n", "N/A\n")])
def test_another_table_is_a_sentence(text):
    with pytest.raises(EngineError, match="mstconfig shows no"):
        mstconfig.parse(text)


# --- Undo ------------------------------------------------------------------------------------------------------------------


def setting():
    return mlx(vfs=8), {"sriov": [at(P0, vf_count=2, firmware={"vf_count": 4, "sriov": True}), at(P1, vf_count=1)]}


def returning():
    sim, wishes = setting()
    call(sim, **wishes)
    return sim, {"sriov": [at(P0, state="absent"), at(P1, state="absent")]}


def steps_of(start):
    sim, wishes = start()
    done = len(sim.log)
    converged(sim, **wishes)
    return [entry for entry in sim.log[done:] if not entry[1].startswith("/run/")]


CASES = [(start, number) for start in (setting, returning) for number in range(1, len(steps_of(start)) + 1)]


@pytest.mark.parametrize(("start", "number"), CASES, ids=[f"{start.__name__}-{number}" for start, number in CASES])
def test_a_step_that_fails(start, number):
    sim, wishes = start()
    well = copy.deepcopy(sim)
    call(well, **wishes)

    def all_of(one):
        document = json.loads(one.text("/etc/iovirt/sriov.json") or '{"devices": {}}')
        return one.of_device(P0), dict(of(one)), document["devices"].get(P0)

    before = all_of(sim)
    sim.fail_at = len(sim.log) + number
    result = call(sim, **wishes)
    path = sim.log[sim.fail_at - 1][1]
    sim.fail_at = None
    if P0 in result["failures"] or ("host" in result["failures"] and start is setting):
        assert all_of(sim) == before
    elif not path.endswith("/drivers_probe"):
        assert all_of(sim) == all_of(well)
    converged(sim, **wishes)
    assert dict(of(sim)) == dict(of(well))


# --- Counts ----------------------------------------------------------------------------------------------------------------


def test_a_raw_count_is_never_written_to_nvidia():
    sim = lab()
    sim.add_driver("nvidia", "10de:2235", sriov=True)
    sim.add(Pci("0000:c1:00.0", "10de:2235", "030200", parent="/sys/devices/pci0000:c0", total_vfs=32))
    sim.functions["0000:c1:00.0"].driver = "nvidia"
    sim.registered.add("nvidia")
    refused(sim, "sriov-manage", "never by a raw count", sriov=[at("0000:c1:00.0", vf_count=4)])
    assert f"{DEVICES}/0000:c1:00.0/sriov_numvfs" not in [path for _what, path, _data in sim.log]
