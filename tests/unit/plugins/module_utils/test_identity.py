# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Cards that move: followed where they can be told, left alone where they cannot, and never mistaken for a neighbour."""

from __future__ import annotations

import json

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import boot, engine, identity, replay
from ansible_collections.iovirt.host.plugins.module_utils._engine.errors import EngineError
from ansible_collections.iovirt.host.plugins.module_utils._engine.read import Needs, read_state
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
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import Pci
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim_spaces import Space

PF3, NVME2, EDU2 = "0000:83:00.0", "0000:92:00.0", "0000:00:0a.0"
MACS = {"52:54:00:00:01:00": PF1, "52:54:00:00:01:01": PF2}


def shuffle(sim, places, with_slot=False):
    """Cards at other addresses at the next boot. `with_slot`: they were plugged elsewhere; else their bus was counted
    anew and the slot is the same."""
    slots = {address: f.slot for address, f in sim.functions.items()}
    cards = {new: sim.functions.pop(old) for old, new in places.items()}
    for old, new in places.items():
        card = cards[new]
        card.address = new
        card.ifname = f"enp{int(new[5:7], 16)}s0" if card.ifname else ""
        card.slot = slots.get(new, "") if with_slot else slots[old]
        sim.functions[new] = card
    sim.functions = dict(sorted(sim.functions.items()))
    sim._tree = None
    return sim.reboot()


def again(sim):
    """The boot replay."""
    return replay.run(sim.host(environment={}, sources=None), None)


def of_mac(sim, mac):
    return next(f for f in sim.functions.values() if f.mac == mac)


def document(sim, name="sriov"):
    return json.loads(sim.text(f"/etc/iovirt/{name}.json"))["devices"]


# --- Serial numbers from the configuration space ---------------------------------------------------------------------


def test_a_mac_that_is_made_up_at_each_boot_names_no_card():
    sim = lab()
    sim.functions[PF1].random_mac = True
    wish = at(PF1, vf_count=2, vf_defaults={"mac": "auto"})
    call(sim, sriov=[wish])
    assert document(sim)[PF1]["identity"]["mac"] == ""
    macs = [sim.functions[vf].attributes["mac"] for vf in sim.functions[PF1].vfs]
    sim.reboot()
    sim.functions[PF1].mac = "d2:aa:bb:cc:dd:01"
    sim._tree = None
    assert again(sim)["failures"] == {}
    assert [sim.functions[vf].attributes["mac"] for vf in sim.functions[PF1].vfs] == macs
    quiet(sim, sriov=[wish])


def test_the_device_serial_number_is_read_as_lspci_prints_it():
    sim = lab()
    sim.functions[PF1].dsn = "3c-fd-fe-ff-ff-9c-7a-50"
    state = read_state(sim.host(), Needs())
    assert state.functions[PF1].dsn == "3c-fd-fe-ff-ff-9c-7a-50"
    assert state.functions[EDU].dsn == ""


@pytest.mark.parametrize("dsn", ["00-00-00-00-00-00-00-00", "ff-ff-ff-ff-ff-ff-ff-ff"])
def test_a_serial_number_that_is_none(dsn):
    sim = lab()
    sim.functions[PF1].dsn = dsn
    assert read_state(sim.host(), Needs()).functions[PF1].dsn == ""


def test_a_chain_of_capabilities_that_bites_its_tail():
    sim = lab()
    sim.data = lambda path, offset, size: (0x0001 | 0x100 << 20).to_bytes(4, "little") + bytes(8)
    assert read_state(sim.host(), Needs()).functions[PF1].dsn == ""


def test_what_two_cards_share_names_neither():
    """Some makers write one number into all their cards."""
    sim = lab()
    sim.functions[PF1].dsn = sim.functions[PF2].dsn = "00-00-c9-ff-ff-00-00-00"
    state = read_state(sim.host(), Needs())
    assert identity.of(state, state.functions[PF1])["dsn"] == ""
    assert identity.of(state, state.functions[PF1])["mac"] == "52:54:00:00:01:00"


# --- The replay --------------------------------------------------------------------------------------------------------


def test_the_bus_was_counted_anew():
    """One more card below a bridge, and every address behind it is one further: each port keeps what was its own."""
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=1), at(PF2, vf_count=3, vf_defaults={"driver": "vfio-pci"})], vfio=[at(NVME), at(EDU)])
    shuffle(sim, {PF1: PF2, PF2: PF3, NVME: NVME2})
    result = again(sim)
    assert result["failures"] == {}
    assert len(sim.functions[PF2].vfs) == 1
    assert drivers_of(sim, PF3) == ["vfio-pci"] * 3
    assert sim.functions[NVME2].driver == sim.functions[EDU].driver == "vfio-pci"
    # The rules of udev name where the cards are now, before there is a VF.
    assert f"PCI_SLOT_NAME={PF3}*" in sim.text(boot.RULES)
    assert PF1 not in sim.text(boot.RULES)
    # And where they come back to where they were, so do the rules.
    shuffle(sim, {PF2: PF1, PF3: PF2, NVME2: NVME})
    assert again(sim)["failures"] == {}
    assert (len(sim.functions[PF1].vfs), len(sim.functions[PF2].vfs)) == (1, 3)
    assert PF3 not in sim.text(boot.RULES)


def test_two_identical_cards_changed_places():
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=1), at(PF2, vf_count=3)])
    shuffle(sim, {PF1: PF2, PF2: PF1}, with_slot=True)
    assert again(sim)["failures"] == {}
    assert (len(sim.functions[PF1].vfs), len(sim.functions[PF2].vfs)) == (3, 1)


def test_one_of_two_identical_cards_is_declared_and_they_changed_places():
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=2)])
    shuffle(sim, {PF1: PF2, PF2: PF1}, with_slot=True)
    assert again(sim)["failures"] == {}
    assert sim.functions[PF1].vfs == []
    assert len(sim.functions[PF2].vfs) == 2


def test_a_card_is_gone_and_an_identical_one_stands_elsewhere():
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=2)])
    sim.functions.pop(PF1)
    sim.reboot()
    result = again(sim)
    assert "not there" in result["failures"][PF1]
    assert sim.functions[PF2].vfs == []


def test_a_card_is_gone_and_an_identical_one_took_its_place():
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=2)])
    sim.functions.pop(PF1)
    shuffle(sim, {PF2: PF1}, with_slot=True)
    result = again(sim)
    assert "another device" in result["failures"][PF1]
    assert "52:54:00:00:01:01 instead of 52:54:00:00:01:00" in result["failures"][PF1]
    assert sim.functions[PF1].vfs == []


def nvmes(sim, **more):
    sim.add(Pci(NVME2, "1b36:0010", "010802", serial="LAB1", slot="4", numa_node=1, **more))
    return sim.reboot()


def test_controllers_under_vfio_are_told_by_what_was_recorded():
    """Under vfio-pci there is no serial number to be seen; at the boot its own driver has the controller first."""
    sim = nvmes(lab())
    call(sim, vfio=[at(NVME)])
    assert document(sim, "vfio")[NVME]["identity"]["serial"] == "LAB0"
    quiet(sim, vfio=[at(NVME)])
    shuffle(sim, {NVME: NVME2, NVME2: NVME}, with_slot=True)
    assert again(sim)["failures"] == {}
    assert (sim.functions[NVME].driver, sim.functions[NVME2].driver) == ("nvme", "vfio-pci")


def test_a_controller_without_its_driver_is_told_by_its_device_serial_number():
    sim = nvmes(lab(), dsn="00-00-00-00-00-00-00-02")
    sim.functions[NVME].dsn = "00-00-00-00-00-00-00-01"
    call(sim, vfio=[at(NVME)])
    sim.known_drivers.pop("nvme")
    shuffle(sim, {NVME: NVME2, NVME2: NVME}, with_slot=True)
    assert again(sim)["failures"] == {}
    assert (sim.functions[NVME].driver, sim.functions[NVME2].driver) == (None, "vfio-pci")


def test_the_two_functions_of_a_card_share_its_device_serial_number():
    sim = lab()
    one, other = "0000:95:00.0", "0000:95:00.1"
    for address in (one, other):
        sim.add(Pci(address, "10de:1eb8", "030200", dsn="00-00-00-00-00-00-00-07"))
    sim.reboot()
    call(sim, vfio=[at(other)])
    shuffle(sim, {one: "0000:96:00.0", other: "0000:96:00.1"})
    assert again(sim)["failures"] == {}
    assert (sim.functions["0000:96:00.0"].driver, sim.functions["0000:96:00.1"].driver) == (None, "vfio-pci")


def test_a_controller_that_cannot_be_told_from_its_neighbour_is_left_alone():
    sim = nvmes(lab())
    call(sim, vfio=[at(NVME)])
    sim.known_drivers.pop("nvme")
    shuffle(sim, {NVME: NVME2, NVME2: NVME}, with_slot=True)
    result = again(sim)
    assert "nobody can tell" in result["failures"][NVME]
    assert (sim.functions[NVME].driver, sim.functions[NVME2].driver) == (None, None)
    refused(sim, NVME, "nobody can tell", vfio=[at(NVME)])


def test_a_port_in_a_network_namespace_cannot_be_told_and_the_way_out_is_to_bring_it_back():
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=2)])
    sim.spaces.all.append(Space(name="blue", netdevs={"uplink": ("", 0, PF1)}))
    sim._tree = None
    refused(sim, PF1, "does not show its mac now", "Bring its network device enp129s0 back", sriov=[at(PF1, vf_count=3)])


def test_a_card_that_shows_nothing_is_taken_where_nothing_has_moved():
    sim = lab()
    sim.add(Pci(EDU2, "1234:11e8", "00ff00"))
    sim.reboot()
    call(sim, vfio=[at(EDU2)])
    assert document(sim, "vfio")[EDU2]["identity"]["peers"] == [EDU]
    sim.reboot()
    assert again(sim)["failures"] == {}
    # A third one is no sign of a move.
    sim.add(Pci("0000:00:0b.0", "1234:11e8", "00ff00"))
    sim.reboot()
    assert again(sim)["failures"] == {}
    assert [sim.functions[a].driver for a in (EDU, EDU2, "0000:00:0b.0")] == [None, "vfio-pci", None]


def test_a_card_that_shows_nothing_is_left_alone_where_its_kind_has_moved():
    sim = lab()
    sim.add(Pci(EDU2, "1234:11e8", "00ff00"))
    sim.reboot()
    call(sim, vfio=[at(EDU2)])
    shuffle(sim, {EDU: EDU2, EDU2: "0000:00:0b.0"})
    result = again(sim)
    assert "others of its kind are not where they were" in result["failures"][EDU2]
    assert [sim.functions[a].driver for a in (EDU2, "0000:00:0b.0")] == [None, None]


def test_a_card_that_shows_nothing_is_the_one_in_its_slot():
    sim = lab()
    gpu = "0000:a1:00.0"
    sim.add(Pci(gpu, "10de:1eb8", "030200", slot="7"))
    sim.add(Pci("0000:a2:00.0", "10de:1eb8", "030200", slot="8"))
    sim.reboot()
    call(sim, vfio=[at(gpu)])
    shuffle(sim, {gpu: "0000:a2:00.0", "0000:a2:00.0": "0000:a3:00.0"})
    assert again(sim)["failures"] == {}
    assert [sim.functions[a].driver for a in ("0000:a2:00.0", "0000:a3:00.0")] == ["vfio-pci", None]


def test_slots_tell_apart_what_shows_nothing_and_changed_addresses():
    sim = lab()
    one, other = "0000:a1:00.0", "0000:a2:00.0"
    sim.add(Pci(one, "10de:1eb8", "030200", slot="7"))
    sim.add(Pci(other, "10de:1eb8", "030200", slot="8"))
    sim.reboot()
    call(sim, vfio=[at(one)])
    shuffle(sim, {one: other, other: one})
    assert again(sim)["failures"] == {}
    assert [sim.functions[a].driver for a in (one, other)] == [None, "vfio-pci"]
    # The slot is empty now, and what stands at the address is in another one.
    sim.functions.pop(other)
    sim.reboot()
    shuffle(sim, {one: other})
    assert "nothing to be told by" in again(sim)["failures"][other]
    assert sim.functions[other].driver is None


def test_a_card_that_shows_itself_between_two_readings():
    """The replay has read what it wants to do when the driver comes and shows that another card stands there."""
    sim = lab()
    call(sim, vfio=[at(NVME)])
    sim.functions[NVME].serial = "OTHER"
    sim.reboot()
    sim.functions[NVME].driver = None
    sim._tree = None
    state = read_state(sim.host(), Needs())
    wishes, missing = replay.wishes_of(state)
    assert missing == {} and wishes["vfio"]
    sim.functions[NVME].driver = "nvme"
    sim._tree = None
    with pytest.raises(EngineError) as caught:
        engine.devices(sim.host(environment={}), wishes, replay.granted(state), engine.Call(declare=False))
    assert "not the device that was declared" in str(caught.value)
    assert sim.functions[NVME].driver == "nvme"


def test_a_slot_that_the_kernel_numbered_is_no_place():
    sim = lab()
    gpu = "0000:a1:00.0"
    sim.add(Pci(gpu, "10de:1eb8", "030200", slot="1-2"))
    sim.reboot()
    call(sim, vfio=[at(gpu)])
    shuffle(sim, {gpu: "0000:a2:00.0"})
    assert gpu in again(sim)["failures"]
    assert sim.functions["0000:a2:00.0"].driver is None


def test_a_vf_is_its_pf_and_its_index():
    """VFs that others made, named by vfio itself (vf: true)."""
    sim = lab()
    numvfs = "/sys/bus/pci/devices/{}/sriov_numvfs"
    sim.write(numvfs.format(PF1), "3")
    vf = sim.functions[PF1].vfs[1]
    call(sim, vfio=[{"match": {"address": [vf], "vf": True}}])
    known = document(sim, "vfio")[vf]["identity"]
    assert (known["index"], known["pf"]["mac"]) == (1, "52:54:00:00:01:00")
    shuffle(sim, {PF1: PF2, PF2: PF1}, with_slot=True)
    assert "has no VF 1 now" in again(sim)["failures"][vf]
    for pf in (PF1, PF2):
        sim.write(numvfs.format(pf), "3")
    sim.sleep(20)
    assert again(sim)["failures"] == {}
    assert drivers_of(sim, PF1) == ["igbvf"] * 3
    assert drivers_of(sim, PF2) == ["igbvf", "vfio-pci", "igbvf"]


def test_a_gone_card_costs_no_time():
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=2), at(PF2, vf_count=2)])
    sim.functions.pop(PF1)
    sim.reboot()
    start = sim.now
    assert PF1 in again(sim)["failures"]
    assert sim.now - start < 5
    # While udev is still at work it may come.
    sim.reboot()
    sim.files["/run/udev/queue"] = ""
    sim._tree = None
    start = sim.now
    assert PF1 in again(sim)["failures"]
    assert replay.BUDGET <= sim.now - start < replay.BUDGET + 5


# --- Runs ----------------------------------------------------------------------------------------------------------------


def test_a_run_announces_that_a_record_follows_and_lets_it():
    sim = lab()
    wish = {"match": {"mac": ["52:54:00:00:01:00"]}, "vf_count": 2}
    call(sim, sriov=[wish])
    origin = document(sim)[PF1]["origin"]
    shuffle(sim, {PF1: PF2, PF2: PF3})
    done = converged(sim, sriov=[wish])
    follow = next(action for action in done["actions"] if action["action"] == "follow")
    assert f"{PF1} is at {PF2} now (mac 52:54:00:00:01:00)" in follow["text"]
    assert follow["certainty"] == "certain"
    assert list(document(sim)) == [PF2]
    assert document(sim)[PF2]["declared_at"] == document(sim)[PF2]["identity"]["address"] == PF2
    assert document(sim)[PF2]["origin"] == origin
    converged(sim, sriov=[{**wish, "state": "absent"}])
    assert sim.functions[PF2].vfs == []


def test_records_follow_in_a_run_that_speaks_of_something_else():
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=2), at(PF2, vf_count=1)])
    shuffle(sim, {PF1: PF2, PF2: PF1}, with_slot=True)
    assert "follow" in [action["action"] for action in converged(sim, vfio=[at(EDU)])["actions"]]
    assert {address: entry["wish"]["vf_count"] for address, entry in document(sim).items()} == {PF1: 1, PF2: 2}
    again(sim)
    assert (len(sim.functions[PF1].vfs), len(sim.functions[PF2].vfs)) == (1, 2)


@pytest.mark.parametrize("followed", [False, True])
def test_a_list_of_addresses_that_was_overtaken_is_refused(followed):
    """Two ports changed places, and the inventory still says of each address what was meant for the other card; whether
    or not the replay has let the records follow."""
    sim = lab()
    wishes = [at(PF1, vf_count=2), at(PF2, vf_count=1)]
    call(sim, sriov=wishes)
    shuffle(sim, {PF1: PF2, PF2: PF1}, with_slot=True)
    if followed:
        again(sim)
    refused(sim, PF1, PF2, "names a place", "mac 52:54:00:00:01:00", sriov=wishes)
    converged(sim, sriov=[at(PF1, vf_count=1), at(PF2, vf_count=2)])
    converged(sim, sriov=[at(PF1, vf_count=2), at(PF2, vf_count=1)])


def test_a_place_is_not_given_to_an_identical_neighbour():
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=2)])
    shuffle(sim, {PF1: PF2, PF2: PF1}, with_slot=True)
    again(sim)
    for exclusive in ((), ("sriov",)):
        refused(sim, PF1, PF2, "names a place", sriov=[at(PF1, vf_count=2)], exclusive=exclusive)
    refused(sim, "names a place", sriov=[{"match": {"slot": ["1"]}, "vf_count": 2}])
    # Whoever names the other one too, or names the card, knows what he does.
    converged(sim, sriov=[at(PF1, vf_count=2), at(PF2, state="absent")])
    assert (len(sim.functions[PF1].vfs), len(sim.functions[PF2].vfs)) == (2, 0)


def test_giving_back_by_the_old_address_says_where_the_card_is():
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=2), at(PF2, vf_count=1)])
    shuffle(sim, {PF1: PF2, PF2: PF3})
    again(sim)
    refused(sim, PF1, f"is at {PF2} now", sriov=[at(PF1, state="absent")])
    converged(sim, sriov=[at(PF2, state="absent")])
    assert list(document(sim)) == [PF3]


def test_a_selector_of_a_kind_means_every_card_of_it():
    sim = lab()
    wish = {"match": {"driver": ["igb"]}, "vf_count": 2}
    call(sim, sriov=[wish])
    shuffle(sim, {PF1: PF2, PF2: PF3})
    again(sim)
    converged(sim, sriov=[wish])
    assert list(document(sim)) == [PF2, PF3]


def test_a_new_card_in_the_place_of_one_that_is_gone():
    """A run that names it takes it as it is: the old card's origin is not the new one's."""
    sim = lab()
    sim.write(f"/sys/bus/pci/devices/{PF1}/sriov_numvfs", "1")
    call(sim, sriov=[at(PF1, vf_count=2)])
    sim.functions[PF1].mac = "52:54:00:00:01:99"
    sim.reboot()
    assert "another device" in again(sim)["failures"][PF1]
    done = converged(sim, sriov=[at(PF1, vf_count=2)])
    assert any("in the place of another card (mac 52:54:00:00:01:00)" in action["text"] for action in done["actions"])
    assert document(sim)[PF1]["origin"]["vf_count"] == 0
    converged(sim, sriov=[at(PF1, state="absent")])
    assert sim.functions[PF1].vfs == []


def test_a_moved_card_does_not_wipe_out_the_record_of_one_that_is_gone_for_now():
    """A card that failed to show up shifts the numbers of those behind it. When it is back, all is as before."""
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=1), at(PF2, vf_count=3)])
    absent = sim.functions.pop(PF1)
    shuffle(sim, {PF2: PF1})
    result = again(sim)
    assert list(result["failures"]) == [PF1]
    assert len(sim.functions[PF1].vfs) == 3
    converged(sim, sriov=[{"match": {"mac": ["52:54:00:00:01:01"]}, "vf_count": 4}])
    shuffle(sim, {PF1: PF2})
    sim.functions[PF1] = absent
    sim.reboot()
    assert again(sim)["failures"] == {}
    assert (len(sim.functions[PF1].vfs), len(sim.functions[PF2].vfs)) == (1, 4)


def test_all_is_given_back_after_a_swap():
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=1), at(PF2, vf_count=3)], vfio=[at(NVME)])
    shuffle(sim, {PF1: PF2, PF2: PF1, NVME: NVME2}, with_slot=True)
    again(sim)
    converged(sim, sriov=[], vfio=[], exclusive=("sriov", "vfio"))
    assert sim.functions[PF1].vfs == sim.functions[PF2].vfs == []
    assert sim.functions[NVME2].driver == "nvme"
    assert not sim.exists("/etc/iovirt/sriov.json") and not sim.exists("/etc/iovirt/vfio.json")


def test_a_document_of_the_first_version_is_read():
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=2)])
    old = json.loads(sim.text("/etc/iovirt/sriov.json"))
    old["version"] = 1
    for entry in old["devices"].values():
        entry.pop("declared"), entry.pop("declared_at")
        for key in ("dsn", "peers"):
            entry["identity"].pop(key)
    sim.replace("/etc/iovirt/sriov.json", json.dumps(old), 0o600)
    shuffle(sim, {PF1: PF2, PF2: PF3})
    assert again(sim)["failures"] == {}
    assert len(sim.functions[PF2].vfs) == 2
    converged(sim, sriov=[at(PF2, vf_count=2)])
    assert json.loads(sim.text("/etc/iovirt/sriov.json"))["version"] == 2
