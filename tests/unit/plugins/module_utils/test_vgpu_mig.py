# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""MIG of an A100 (Ampere, mediated devices) and of an H100 (Hopper, VFIO), and MIG-backed vGPUs (sim_vgpu.py)."""

from __future__ import annotations

from collections import Counter

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import cli, engine, replay
from ansible_collections.iovirt.host.plugins.module_utils._engine.vgpu import facts as reading
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import (
    at,
    call,
    converged,
    lab,
    quiet,
    refused,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import Pci
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim_vgpu import Instance

A100, H100 = "0000:17:00.0", "0000:65:00.0"
CARDS = {"a100": A100, "h100": H100}
SMALL = {"a100": "1g.5gb", "h100": "1g.10gb"}
LARGE = {"a100": "3g.20gb", "h100": "3g.40gb"}
BACKED = {"a100": "GRID A100-1-5C", "h100": "NVIDIA H100-1-10C"}
SLICED = {"a100": "GRID A100-10C", "h100": "NVIDIA H100-10C"}


def host(card="h100", mig=False, vfs=True):
    sim = lab()
    ids = {"a100": "10de:20f1", "h100": "10de:2331"}[card]
    where = f"/sys/devices/pci0000:{CARDS[card][5:7]}"
    sim.vgpu.add(Pci(CARDS[card], ids, "030200", parent=where, total_vfs=16, offset=4, stride=1, vf_ids=ids), card, mig=mig, pending=mig)
    if vfs:
        sim.vgpu.enable(CARDS[card])
        sim.sleep(5)
    return sim


def mig(card, instances=None, enabled=True, **more):
    said = {"enabled": enabled, **({} if instances is None else {"instances": [{"profile": p, "count": n} for p, n in instances.items()]})}
    return at(CARDS[card], mig=said, **more)


def on(card, type_, count, **more):
    return at(CARDS[card], type=type_, count=count, **more)


def geometry(sim, card):
    return Counter(one.profile for one in sim.vgpu.cards[CARDS[card]].instances.values())


def vgpus(sim, card):
    return Counter(sim.vgpu.cards[CARDS[card]].types[number].name for number in sim.vgpu.used(CARDS[card]))


def changes(sim):
    """The calls of nvidia-smi that change something."""
    return [text for what, argv, text in sim.log if what == "run" and argv == "nvidia-smi"]


def replayed(sim):
    sim.reboot()
    for pf in sim.vgpu.pfs:
        sim.functions[pf].driver = "nvidia"
    sim._tree = None
    assert replay.run(sim.host(environment={}, sources=None), None)["failures"] == {}


# --- The mode ------------------------------------------------------------------------------------------------------


def test_hopper_changes_at_once_and_loses_it_with_the_boot():
    sim = host("h100", vfs=False)
    wishes = [mig("h100", {"1g.10gb": 2, "3g.40gb": 1}), on("h100", BACKED["h100"], 2)]
    result = converged(sim, vgpu=wishes)
    assert not result["reboot_required"]
    # MIG before VFs, VFs before types; large instances before small ones.
    kinds = [a["action"] for a in result["actions"] if a["device"] == H100]
    assert kinds == ["declare", "set_mig_mode", "create_mig_instances", "enable_vgpu_vfs", "set_vgpu_type", "set_vgpu_type"]
    assert changes(sim)[1].startswith("mig -cgi 3g.40gb,1g.10gb,1g.10gb -C")
    assert geometry(sim, "h100") == {"1g.10gb": 2, "3g.40gb": 1}
    assert vgpus(sim, "h100") == {BACKED["h100"]: 2}
    replayed(sim)
    assert geometry(sim, "h100") == {"1g.10gb": 2, "3g.40gb": 1}
    assert vgpus(sim, "h100") == {BACKED["h100"]: 2}
    quiet(sim, vgpu=wishes)
    converged(sim, vgpu=[at(H100, state="absent")])
    assert sim.vgpu.snapshot() == {}
    assert sim.functions[H100].vfs == []


@pytest.mark.parametrize("card", CARDS)
def test_instances_that_nothing_declares_are_warned_of(card):
    """Somebody made them by hand: a boot takes them, and the replay makes none."""
    sim = host(card, mig=True)
    sim.vgpu.cards[CARDS[card]].instances[1] = Instance(SMALL[card], 0)
    says = f"{CARDS[card]}: its GPU instances are lost with the next boot, and nothing declares them: wish mig with instances, or its vGPUs stay away then."
    for wishes in ([on(card, BACKED[card], 1)], [on(card, BACKED[card], 1), mig(card)]):
        assert says in converged(sim, vgpu=wishes)["warnings"] and says in quiet(sim, vgpu=wishes)["warnings"]
    declared = [on(card, BACKED[card], 1), mig(card, {SMALL[card]: 1})]
    assert says not in converged(sim, vgpu=declared)["warnings"]
    # Declared once, it stays declared.
    assert says not in call(sim, vgpu=[on(card, BACKED[card], 1)])["warnings"]
    assert says not in call(host(card), vgpu=[on(card, SLICED[card], 1)])["warnings"]


def test_ampere_waits_for_the_boot_and_says_so():
    sim = host("a100", vfs=False)
    wishes = [mig("a100", {"1g.5gb": 3}), on("a100", BACKED["a100"], 3)]
    result = converged(sim, vgpu=wishes)
    assert result["reboot_required"]
    assert "MIG mode changes with a reset of the GPU, or the next boot" in result["reboot_reasons"][0]
    assert {a["action"]: a["certainty"] for a in result["actions"] if a["device"] == A100} == {
        "declare": "certain", "set_mig_mode": "certain", "create_mig_instances": "after_reboot", "enable_vgpu_vfs": "after_reboot",
        "set_vgpu_type": "after_reboot",
    }  # fmt: skip
    card = sim.vgpu.cards[A100]
    assert (card.mig, card.pending, card.instances, sim.functions[A100].vfs) == (False, True, {}, [])
    assert quiet(sim, vgpu=wishes)["reboot_required"]
    replayed(sim)
    assert card.mig
    assert geometry(sim, "a100") == {"1g.5gb": 3}
    assert vgpus(sim, "a100") == {BACKED["a100"]: 3}
    assert not quiet(sim, vgpu=wishes)["reboot_required"]


@pytest.mark.parametrize("card", CARDS)
def test_off_again(card):
    sim = host(card, mig=True)
    converged(sim, vgpu=[mig(card, {SMALL[card]: 2}), on(card, BACKED[card], 2)])
    result = converged(sim, vgpu=[mig(card, enabled=False), on(card, SLICED[card], 1)])
    assert geometry(sim, card) == {}
    assert sim.vgpu.cards[CARDS[card]].pending is False
    assert result["reboot_required"] is (card == "a100")
    if card == "a100":
        replayed(sim)
    assert vgpus(sim, card) == {SLICED[card]: 1}
    converged(sim, vgpu=[at(CARDS[card], state="absent")])
    # It was on, without instances, before the collection.
    assert sim.vgpu.cards[CARDS[card]].pending is True


def test_a_mode_that_somebody_asked_for_is_taken_back():
    sim = host("a100")
    sim.vgpu.cards[A100].pending = True
    result = converged(sim, vgpu=[mig("a100", enabled=False)])
    assert not result["reboot_required"]
    assert sim.vgpu.cards[A100].pending is False


def test_unset_is_untouched():
    sim = host("h100", mig=True)
    sim.vgpu.cards[H100].instances[7] = Instance("1g.10gb", 6)
    converged(sim, vgpu=[on("h100", BACKED["h100"], 1)])
    assert changes(sim) == []
    # What is declared stays declared where the next call does not speak of it.
    converged(sim, vgpu=[mig("h100", {"1g.10gb": 2})])
    assert vgpus(sim, "h100") == {BACKED["h100"]: 1}
    converged(sim, vgpu=[on("h100", BACKED["h100"], 2)])
    assert geometry(sim, "h100") == {"1g.10gb": 2}


# --- The geometry --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("card", CARDS)
def test_only_what_differs_goes_and_comes(card):
    sim = host(card, mig=True)
    converged(sim, vgpu=[mig(card, {SMALL[card]: 7})])
    sim.log.clear()
    converged(sim, vgpu=[mig(card, {SMALL[card]: 3, LARGE[card]: 1})])
    # Those that lie highest stay, so that the large one finds its place.
    assert [one.start for one in sim.vgpu.cards[CARDS[card]].instances.values() if one.profile == SMALL[card]] == [6, 5, 4]
    assert [text.partition(" -i")[0] for text in changes(sim)][-1] == f"mig -cgi {LARGE[card]} -C"
    assert len(changes(sim)) == 2 * 4 + 1
    sim.log.clear()
    quiet(sim, vgpu=[mig(card, {LARGE[card]: 1, f"MIG {SMALL[card]}": 3})])
    assert changes(sim) == []
    converged(sim, vgpu=[mig(card, {})])
    assert geometry(sim, card) == {}


def test_what_computes_is_never_ended():
    sim = host("h100", mig=True)
    converged(sim, vgpu=[mig("h100", {"1g.10gb": 3})])
    card = sim.vgpu.cards[H100]
    busy = min(card.instances)
    card.processes = [(4559, "C", "/tmp/loadgen", busy)]
    # It stays, whichever others go.
    converged(sim, vgpu=[mig("h100", {"1g.10gb": 1})])
    assert list(card.instances) == [busy]
    for wish in (mig("h100", {}), mig("h100", {"3g.40gb": 1}), mig("h100", enabled=False), at(H100, state="absent")):
        refused(sim, "process 4559 (/tmp/loadgen)", "Stop who uses it first", vgpu=[wish], allow=("in_use",))


def test_a_process_elsewhere_keeps_the_mode():
    sim = host("h100")
    sim.vgpu.cards[H100].processes = [(4559, "C", "/tmp/loadgen", None)]
    refused(sim, "process 4559 (/tmp/loadgen) uses it, and its MIG mode cannot change below that", vgpu=[mig("h100")])


def test_who_begins_to_compute_meanwhile_is_not_ended_either():
    sim = host("h100", mig=True)
    converged(sim, vgpu=[mig("h100", {"1g.10gb": 1})])
    card, run = sim.vgpu.cards[H100], sim.run

    def later(argv, data=""):
        if argv[:2] == ["nvidia-smi", "-q"] and sim.log:
            card.processes = [(4559, "C", "/tmp/loadgen", min(card.instances))]
        return run(argv, data)

    sim.log.clear()
    host_ = sim.host()
    host_.run = later
    result = engine.devices(host_, {"vgpu": [mig("h100", {})]}, engine.Options(), engine.Call(who="test"))
    assert "process 4559 (/tmp/loadgen) uses it now" in result["failures"][H100]
    assert geometry(sim, "h100") == {"1g.10gb": 1}


def test_lost_with_the_driver_is_drift():
    sim = host("h100")
    wishes = [mig("h100", {"1g.10gb": 2}), on("h100", BACKED["h100"], 1)]
    converged(sim, vgpu=wishes)
    sim.vgpu.reload(H100)
    converged(sim, vgpu=wishes)
    assert geometry(sim, "h100") == {"1g.10gb": 2}


# --- When it fails -------------------------------------------------------------------------------------------------


def test_what_finds_no_room_is_undone():
    """The first two fit, the third does not: what came goes, and what had gone comes back."""
    sim = host("h100", mig=True)
    converged(sim, vgpu=[mig("h100", {"1g.10gb": 1})])
    result = call(sim, vgpu=[mig("h100", {"4g.40gb": 1, "3g.40gb": 2})])
    assert "Insufficient Resources" in result["failures"][H100]
    assert geometry(sim, "h100") == {"1g.10gb": 1}
    quiet(sim, vgpu=[mig("h100", {"1g.10gb": 1})])


def test_a_mode_that_does_not_come_is_said():
    sim = host("h100")
    sim.vgpu.refuses = "Not Supported"
    result = call(sim, vgpu=[mig("h100", {"1g.10gb": 1})])
    assert "Not Supported" in result["failures"][H100]
    assert "/etc/iovirt/vgpu.json" not in sim.files


@pytest.mark.parametrize("card", CARDS)
def test_bad_wishes(card):
    sim = host(card, mig=True)
    small, large = SMALL[card], LARGE[card]
    refused(sim, "no GPU instance profile '5g.1gb'", f"{small} (7 of 7 free)", vgpu=[mig(card, {"5g.1gb": 1})])
    refused(sim, f"8 GPU instances {small} are wished; an empty GPU has room for 7", vgpu=[mig(card, {small: 8})])
    refused(sim, "-1 GPU instances", vgpu=[mig(card, {small: -1})])
    refused(sim, "GPU instances are wished, and MIG is wished off", vgpu=[mig(card, {small: 1}, enabled=False)])
    refused(sim, "another one than that of vgpu[0]", vgpu=[mig(card, {small: 1}), mig(card, {large: 1})])
    refused(sim, f"need 2 GPU instances {small}, and there will be 1", vgpu=[mig(card, {small: 1}), on(card, BACKED[card], 2)])
    refused(sim, f"need 1 GPU instances {small}, and there will be 0", vgpu=[on(card, BACKED[card], 1)])
    refused(sim, f"{SLICED[card]} is a time-sliced type, and in MIG mode", vgpu=[on(card, SLICED[card], 1)])
    said = refused(sim, "knows no type 'X'", BACKED[card], vgpu=[on(card, "X", 1)])
    assert SLICED[card] not in said
    sim = host(card)
    said = refused(sim, "knows no type 'X'", SLICED[card], vgpu=[on(card, "X", 1)])
    assert BACKED[card] not in said
    refused(sim, f"{BACKED[card]} is a type for a GPU instance of MIG, and its MIG mode is Disabled", vgpu=[on(card, BACKED[card], 1)])


def test_a_vgpu_in_use_keeps_the_mode():
    sim = host("h100", mig=True)
    converged(sim, vgpu=[mig("h100", {"1g.10gb": 1}), on("h100", BACKED["h100"], 1)])
    vf = sim.functions[H100].vfs[0]
    node = f"/dev/vfio/{sim.functions[vf].group}"
    sim.pids[77], sim.files[node] = ("qemu-system-x86", [node]), ""
    sim._tree = None
    for wishes in ([mig("h100", enabled=False), on("h100", SLICED["h100"], 0)], [at(H100, state="absent")]):
        refused(sim, "VF 0", "process 77", vgpu=wishes, allow=("in_use",))


def test_without_the_host_driver_mig_is_there_all_the_same():
    """A GPU of the host's own: MIG needs no driver for vGPUs."""
    sim = host("h100", vfs=False)
    sim.vgpu.mode, sim.vgpu.virtualization = "N/A", "None"
    converged(sim, vgpu=[mig("h100", {"1g.10gb": 7})])
    refused(sim, "Host VGPU Mode is N/A", vgpu=[on("h100", BACKED["h100"], 1)])
    converged(sim, vgpu=[at(H100, state="absent")])
    assert sim.vgpu.snapshot() == {}


def test_the_operators_command_tells_of_it(capsys):
    sim = host("h100", mig=True)
    converged(sim, vgpu=[mig("h100", {"1g.10gb": 2})])
    cli._status(sim.host(environment={}, sources=None), False)
    assert capsys.readouterr().out.count("MIG: 2 1g.10gb") == 2


def test_info_is_valid_input():
    sim = host("h100", mig=True)
    converged(sim, vgpu=[mig("h100", {"1g.10gb": 2, "3g.40gb": 1}), on("h100", BACKED["h100"], 1)])
    found = engine.resource_info(sim.host(), "vgpu", None)
    assert found["devices"] == [
        {"match": {"address": [H100]}, "type": BACKED["h100"], "count": 1,
         "mig": {"enabled": True, "instances": [{"profile": "1g.10gb", "count": 2}, {"profile": "3g.40gb", "count": 1}]}}
    ]  # fmt: skip
    (facts,) = found["facts"]
    assert facts["mig"]["enabled"] and len(facts["mig"]["instances"]) == 3
    assert {p["name"]: p["free"] for p in facts["mig"]["profiles"]}["1g.10gb"] == 2
    quiet(sim, vgpu=found["devices"])


# --- What nvidia-smi prints ----------------------------------------------------------------------------------------

#: As in NVIDIA's MIG user guide, "Instance Geometry", with the columns as the tool draws them.
LGI = """\
+----------------------------------------------------+
| GPU instances:                                     |
| GPU   Name          Profile  Instance   Placement  |
|                       ID       ID       Start:Size |
|====================================================|
|   0  MIG 1g.5gb+me    20       13          6:1     |
+----------------------------------------------------+
|   0  MIG 4g.20gb       5        1          0:4     |
+----------------------------------------------------+
"""
LGIP = """\
+-----------------------------------------------------------------------------+
| GPU instance profiles:                                                      |
| GPU   Name             ID    Instances   Memory     P2P    SM    DEC   ENC  |
|                              Free/Total   GiB              CE    JPEG  OFA  |
|=============================================================================|
|   0  MIG 1g.6gb+me     21     1/1        5.81       No     14     1     0   |
|                                                             1     1     1   |
+-----------------------------------------------------------------------------+
|   0  MIG 4g.24gb        0     0/1        23.50      No     56     4     0   |
|                                                             4     1     1   |
+-----------------------------------------------------------------------------+
"""


class Answers:
    def __init__(self, text):
        self.text = text

    def run(self, argv, data=""):
        return 0, self.text, ""


def test_tables_of_nvidia_smi():
    assert reading.instances(Answers(LGI), "") == {
        13: {"profile": "1g.5gb+me", "start": 6, "size": 1}, 1: {"profile": "4g.20gb", "start": 0, "size": 4}
    }  # fmt: skip
    assert reading._profiles(Answers(LGIP), "") == {"1g.6gb+me": {"id": 21, "free": 1, "total": 1}, "4g.24gb": {"id": 0, "free": 0, "total": 1}}


#: vgpu -s -v of driver 580 on an RTX PRO 6000 Blackwell, as in a public test of another project.
TYPES = """\
GPU 00000000:8C:00.0
    vGPU Type ID                          : 0x5f1
        Name                              : NVIDIA RTX Pro 6000 Blackwell DC-4Q
        Class                             : Quadro
        GPU Instance Profile ID           : N/A
        Max Instances                     : 24
        Max Instances Per VM              : 16
        Max Instances Per GI              : N/A
        FB Memory                         : 4096 MiB
    vGPU Type ID                          : 0x60a
        Name                              : NVIDIA RTX Pro 6000 Blackwell DC-1-2Q
        Class                             : Quadro
        GPU Instance Profile ID           : 19
        Max Instances                     : 48
        Max Instances Per VM              : 1
        Max Instances Per GI              : 12
        FB Memory                         : 2048 MiB
"""


def test_types_of_nvidia_smi():
    assert reading._parsed_types(TYPES) == {
        0x5F1: {"name": "NVIDIA RTX Pro 6000 Blackwell DC-4Q", "memory": 4096, "most": 24, "mig": False, "profile": None, "per_instance": 1},
        0x60A: {"name": "NVIDIA RTX Pro 6000 Blackwell DC-1-2Q", "memory": 2048, "most": 48, "mig": True, "profile": 19, "per_instance": 12},
    }


@pytest.mark.parametrize(
    ("said", "number"), [("0x5F1", 0x5F1), ("1155", 1155), ("0011", 11), ("1155 (0x483)", 1155), ("N/A", None), ("", None), ("12ab", None)]
)
def test_a_type_id_in_other_words(said, number):
    """One that is no number is left out; the others stay."""
    found = reading._parsed_types(TYPES.replace("0x5f1", said))
    assert set(found) == ({0x60A} if number is None else {number, 0x60A})


@pytest.mark.parametrize("name", ["1g.5gb", "1g.5gb+me", "1g.24gb-me", "1g.24gb+me.all"])
def test_a_profile_is_known_before_the_gpu_names_its_own(name):
    """With MIG off nvidia-smi lists none."""
    assert call(host(), check=True, vgpu=[mig("h100", {name: 1})])["changed"]


#: nvidia-smi -q as in public bug reports (driver 535 and 570), shortened.
ALL = """\
GPU 00000000:01:00.0
    Product Name                          : NVIDIA H100 NVL
    Product Architecture                  : Hopper
    MIG Mode
        Current                           : Enabled
        Pending                           : Disabled
    Serial Number                         : [N/A]
    GPU UUID                              : GPU-0b0c
    GPU Operation Mode
        Current                           : N/A
        Pending                           : N/A
    Processes
        GPU instance ID                   : N/A
        Compute instance ID               : N/A
        Process ID                        : 1607
            Type                          : G
            Name                          : /usr/lib/xorg/Xorg
            Used GPU Memory               : 245 MiB
        GPU instance ID                   : 3
        Compute instance ID               : 0
        Process ID                        : 5347
            Type                          : C
            Name                          : /usr/bin/python3
            Used GPU Memory               : 245 MiB
    Capabilities
        EGM                               : disabled
"""


def test_all_that_nvidia_smi_says_of_a_gpu():
    said = reading.read(Answers(ALL), "0000:01:00.0", {})
    assert (said["uuid"], said["serial"], said["architecture"]) == ("GPU-0b0c", "", "Hopper")
    assert (said["mig"]["current"], said["mig"]["pending"]) == ("Enabled", "Disabled")
    assert said["processes"] == [
        {"pid": "1607", "type": "G", "name": "/usr/lib/xorg/Xorg", "instance": None},
        {"pid": "5347", "type": "C", "name": "/usr/bin/python3", "instance": 3},
    ]
    assert reading.address_of("00000001:C8:00.0") == "0001:c8:00.0"
