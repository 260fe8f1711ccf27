# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""VFs of an InfiniBand port: GUIDs and a link state, and nothing else. On the simulated kernel alone: no emulator has such a card."""

from __future__ import annotations

import errno

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import engine, link, replay, spec
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils import sim_ip
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import (
    IB,
    IB2,
    PF1,
    SSH,
    at,
    call,
    converged,
    drivers_of,
    infiniband,
    quiet,
    refused,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.test_info import fits

GUID = "00:11:22:33:44:55:66:{:02x}"
VFS = [{"range": str(index), "node_guid": GUID.format(index), "port_guid": GUID.format(index).upper()} for index in range(2)]
WISH = at(IB, vf_count=2, vf_defaults={"link_state": "enable"}, vfs=VFS)


def guids(sim):
    vfs = [sim.functions[address].attributes for address in sim.functions[IB].vfs]
    return [(vf["node_guid"], vf["port_guid"], vf["state"]) for vf in vfs]


def export(sim):
    (found,) = engine.resource_info(sim.host(environment=SSH), "sriov", {"address": [IB]})["devices"]
    return found


def forget(sim):
    """As if others had made what is there."""
    del sim.files["/etc/iovirt/sriov.json"]
    sim._tree = None


def own_address(sim):
    """Of the port, as `ip` shows it."""
    return next(item["address"] for item in sim._ip() if item["ifname"] == sim.functions[IB].ifname)


SET = [(GUID.format(index), GUID.format(index), "enable") for index in range(2)]
UNSET = (sim_ip.NO_GUID, sim_ip.NO_GUID, "auto")


def test_guids_are_there_before_a_driver_looks():
    sim = infiniband()
    converged(sim, sriov=[WISH])
    assert guids(sim) == SET
    assert drivers_of(sim, IB) == ["mlx5_core", "mlx5_core"]
    assert [sim.functions[address].mac for address in sim.functions[IB].vfs] == [GUID.format(0), GUID.format(1)]


def test_a_reboot_and_its_replay_bring_them_back_under_another_queue_pair():
    """The first bytes of the port's address are others after each boot: the card is known by its GUID."""
    sim = infiniband()
    call(sim, sriov=[WISH])
    before = own_address(sim)
    sim.reboot()
    assert own_address(sim) != before
    result = replay.run(sim.host(environment={}, sources=None), None)
    assert result["failures"] == {}
    assert guids(sim) == SET
    quiet(sim, sriov=[WISH])


def test_a_selector_takes_the_guid_or_the_whole_address():
    sim = infiniband()
    for mac in (sim.functions[IB].mac, sim.functions[IB].mac.upper(), own_address(sim)):
        converged(sim, sriov=[{"match": {"mac": [mac]}, "expect": 1, "vf_count": 1}])


def test_a_living_vf_learns_a_new_guid_from_its_driver():
    sim = infiniband()
    call(sim, sriov=[at(IB, vf_count=2)])
    done = converged(sim, sriov=[at(IB, vfs=VFS[:1])])
    assert [a["action"] for a in done["actions"] if a["device"] == IB][-3:] == ["unbind", "set_vf_attributes", "rebind"]
    vf = sim.functions[sim.functions[IB].vfs[0]]
    assert (vf.driver, vf.mac) == ("mlx5_core", GUID.format(0))
    # A guest's VF learns it when the guest starts.
    call(sim, sriov=[at(IB, vfs=[{"range": "1", "driver": "vfio-pci"}])])
    done = converged(sim, sriov=[at(IB, vfs=[{**VFS[1], "driver": "vfio-pci"}])])
    assert [a["action"] for a in done["actions"] if a["device"] == IB][-1] == "set_vf_attributes"


def test_what_others_set_survives_a_count_and_all_is_given_back():
    sim = infiniband()
    call(sim, sriov=[at(IB, vf_count=1)])
    forget(sim)
    assert sim.run(["ip", "-force", "-batch", "-"], f"link set dev ibp209s0 vf 0 port_guid {GUID.format(9)}\n") == (0, "", "")
    before = guids(sim)
    converged(sim, sriov=[at(IB, vf_count=2, vfs=VFS[1:])])
    assert guids(sim) == [*before, (*SET[1][:2], "auto")]
    converged(sim, sriov=[at(IB, vf_count=2, vfs=[{"range": "0", **{key: GUID.format(7) for key in ("node_guid", "port_guid")}}])])
    converged(sim, sriov=[at(IB, state="absent")])
    assert guids(sim) == before


def test_what_the_port_refuses_is_named_and_undone():
    sim = infiniband()
    call(sim, sriov=[at(IB, vf_count=2)])
    sim.ip_faults = [("*vf 1 port_guid*", errno.EINVAL)]
    result = call(sim, sriov=[at(IB, vfs=VFS)])
    assert f"VF 1: port_guid {GUID.format(1)}: the kernel answered" in result["failures"][IB] and "It was undone" in result["failures"][IB]
    assert guids(sim) == [UNSET, UNSET]


@pytest.mark.parametrize(
    "key", ["mac", "vlan", "spoof_check", "trust", "query_rss", "min_tx_rate", "max_tx_rate"],
)
def test_it_has_nothing_that_ethernet_has(key):
    value = {"mac": "52:54:00:aa:bb:cc", "vlan": 5, "min_tx_rate": 1, "max_tx_rate": 9}.get(key, True)
    wish = {key: value, **({"max_tx_rate": 9} if key == "min_tx_rate" else {})}
    refused(infiniband(), IB, f"VF 0: {key} is wished, but the port is InfiniBand", sriov=[at(IB, vf_count=1, vf_defaults=wish)])


def test_ethernet_has_no_guids():
    words = "node_guid is wished, but the port is no InfiniBand port"
    refused(infiniband(), PF1, words, sriov=[at(PF1, vf_count=1, vf_defaults={"node_guid": GUID.format(1)})])


@pytest.mark.parametrize("key", ["node_guid", "port_guid"])
def test_no_guid_twice_in_one_host(key):
    sim = infiniband()
    sentence = refused(sim, "would both have the", sriov=[at(IB, vf_count=2, vf_defaults={key: GUID.format(1)})])
    assert f"VF 1 of {IB} (sriov[0]) and VF 0 of {IB} would both have the {key} {GUID.format(1)}." in sentence
    # Set by others, on a VF that no wish names.
    call(sim, sriov=[at(IB, vf_count=2)])
    assert sim.run(["ip", "-force", "-batch", "-"], f"link set dev ibp209s0 vf 1 {key} {GUID.format(1)}\n") == (0, "", "")
    refused(sim, f"VF 1 of {IB} would both have the {key}", sriov=[at(IB, vfs=[{"range": "0", key: GUID.format(1)}])])


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("wish", [at(IB, vf_count=2), WISH], ids=["without GUIDs", "with GUIDs"])
def test_what_sriov_info_says_is_valid_input(declared, wish):
    """Also of VFs without a GUID, which read as all zero, and with what the driver says of things that it cannot set."""
    sim = infiniband()
    call(sim, sriov=[wish])
    if not declared:
        forget(sim)
    item = export(sim)
    fits(spec.MODULES["sriov"]["devices"]["options"], item)
    vfs = [sim.functions[address].attributes.copy() for address in sim.functions[IB].vfs]
    call(sim, sriov=[item])
    assert [sim.functions[address].attributes for address in sim.functions[IB].vfs] == vfs
    quiet(sim, sriov=[item])


def test_as_many_as_an_answer_holds():
    sim = infiniband()
    sim.functions[IB].total_vfs = 1000
    assert link.SHOWN["infiniband"] == 277
    wish = {"vf_defaults": {"link_state": "enable"}}
    converged(sim, sriov=[at(IB, vf_count=277, **wish)])
    refused(sim, "of 278 VFs the kernel cannot show", "room for 277", sriov=[at(IB, vf_count=278, **wish)])


def begun():
    """One VF is there with a GUID of others, under its driver; it gets another one, and more VFs come."""
    sim = infiniband()
    call(sim, sriov=[at(IB, vf_count=1)])
    assert sim.run(["ip", "-force", "-batch", "-"], f"link set dev ibp209s0 vf 0 node_guid {GUID.format(9)}\n") == (0, "", "")
    return sim, len(sim.log)


@pytest.mark.parametrize("count", [None, 2])
def test_each_step_that_fails_is_undone(count):
    wish = at(IB, vf_count=count, vfs=VFS[:count or 1])
    sim, start = begun()
    call(sim, sriov=[wish])
    steps = range(start + 1, len(sim.log) + 1)
    failed = 0
    for number in steps:
        sim, _start = begun()
        before = guids(sim), drivers_of(sim, IB)
        sim.fail_at = number
        result = call(sim, sriov=[wish])
        if IB in result["failures"]:
            failed += 1
            assert "could not be undone" not in result["failures"][IB]
            assert (guids(sim), drivers_of(sim, IB)) == before
    assert failed > 3


def test_no_guid_of_another_port():
    """One that is there, and one that an earlier call declared."""
    sim = infiniband()
    call(sim, sriov=[at(IB2, vf_count=1, vfs=VFS[:1])])
    sentence = refused(sim, f"and VF 0 of {IB2}", f"would both have the node_guid {GUID.format(0)}", sriov=[WISH])
    assert "port_guid" in sentence
    sim.write(f"/sys/bus/pci/devices/{IB2}/sriov_numvfs", "0")
    refused(sim, f"VF 0 of {IB2} (as an earlier call declared it)", sriov=[WISH])
    converged(sim, sriov=[at(IB2, state="absent"), WISH])


def test_two_identical_ports_changed_places():
    """Each is followed by its GUID."""
    sim = infiniband()
    call(sim, sriov=[WISH])
    first, second = sim.functions[IB], sim.functions[IB2]
    first.address, second.address = IB2, IB
    first.parent, second.parent = second.parent, first.parent
    sim.functions[IB], sim.functions[IB2] = second, first
    sim.reboot()
    assert replay.run(sim.host(environment={}, sources=None), None)["failures"] == {}
    assert [len(port.vfs) for port in (first, second)] == [2, 0]
