# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What sriov_info and vfio_info return is input for the modules that they belong to."""

from __future__ import annotations

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import engine, spec
from ansible_collections.iovirt.host.plugins.module_utils._engine.errors import EngineError
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import (
    EDU,
    ICE,
    MLX5,
    NSIM,
    NVME,
    PF1,
    PF2,
    SSH,
    at,
    call,
    converged,
    drivers_of,
    lab,
    quiet,
    switches,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import DEVICES


def info(sim, name, match=None):
    before, log = sim.snapshot(), list(sim.log)
    result = engine.resource_info(sim.host(environment=SSH), name, match)
    assert (sim.snapshot(), sim.log) == (before, log)
    assert result["changed"] is False
    assert [item["match"]["address"][0] for item in result["devices"]] == [item["address"] for item in result["facts"]]
    return {**result, "facts": {item["address"]: item for item in result["facts"]}}


def fits(options, value):
    """Every key is an option of the specification, at every depth."""
    assert set(value) <= set(options)
    for key, item in value.items():
        for part in item if isinstance(item, list) else [item]:
            if "options" in options[key]:
                fits(options[key]["options"], part)


def wished():
    return {
        "sriov": [
            at(PF1, vf_count=4, vf_defaults={"driver": "vfio-pci"}, vfs=[{"range": "2-3", "driver": "default", "pool": "dataplane"}]),
            at(PF2, vfs=[]),
            at(NVME, vf_count=2, vfs=[{"range": "0", "driver": "vfio-pci"}]),
        ],
        "vfio": [at(EDU, early=True)],
    }


@pytest.mark.parametrize("rebooted", [False, True])
def test_what_we_made_is_exported_and_handed_back_unchanged(rebooted):
    sim = lab()
    call(sim, **wished())
    if rebooted:
        sim.reboot()
        call(sim, **wished())
    export = {name: info(sim, name)["devices"] for name in ("sriov", "vfio")}
    for name, devices in export.items():
        for item in devices:
            fits(spec.MODULES[name]["devices"]["options"], item)
    quiet(sim, **export)
    assert {item["match"]["address"][0] for item in export["sriov"]} == {PF1, PF2, NVME}
    assert export["vfio"] == [{"match": {"address": [EDU]}, "driver": "vfio-pci", "early": True}]
    one = next(item for item in export["sriov"] if item["match"]["address"] == [PF1])
    assert one["vfs"][3] == {"range": "3", "driver": "default", "pool": "dataplane"}


def test_what_the_report_does_not_look_at_is_as_it_was_wished():
    sim = lab()
    wishes = {
        PF1: {"vf_count": 2, "up": True, "vf_netdevs": "managed"},
        NVME: {"vf_count": 1, "nvme_primary_queues": 0, "nvme_primary_interrupts": 0},
    }
    call(sim, sriov=[at(address, **wish) for address, wish in wishes.items()])
    devices = info(sim, "sriov")["devices"]
    own = {item["match"]["address"][0]: item for item in devices if item["match"]["address"][0] in wishes}
    for address, wish in wishes.items():
        fits(spec.MODULES["sriov"]["devices"]["options"], own[address])
        assert {key: own[address].get(key) for key in wish} == wish
    quiet(sim, sriov=list(own.values()))


@pytest.mark.parametrize("address", [MLX5, ICE, NSIM])
def test_a_port_in_switchdev_mode_that_nobody_declared_can_be_handed_back(address):
    """Its VFs' rates are set through their representors then, and are no part of the wish."""
    sim = switches()
    call(sim, sriov=[at(address, vf_count=2, eswitch={"mode": "switchdev"})])
    sim.files.pop("/etc/iovirt/sriov.json")
    sim._tree = None
    (item,) = [item for item in info(sim, "sriov")["devices"] if item["match"]["address"] == [address]]
    assert not any(key.endswith("_tx_rate") for vf in item["vfs"] for key in vf)
    log = len(sim.log)
    assert call(sim, sriov=[item])["failures"] == {}
    assert [entry for entry in sim.log[log:] if "/sys/" in str(entry[1]) or entry[1] == "ip"] == []
    quiet(sim, sriov=[item])


def instance(sim, address):
    """All that the simulated devlink knows of a port."""
    return [value for handle, value in sim.devlink.snapshot().items() if handle.endswith(address)]


@pytest.mark.parametrize("address", [MLX5, ICE, NSIM])
def test_the_switch_of_a_port_that_nobody_declared_is_exported_with_its_vfs(address):
    """Applied to the host after it has lost all of it, it is as it was."""
    sim = switches()
    call(sim, sriov=[at(address, vf_count=2, eswitch={"mode": "switchdev"})])
    devlink, functions = instance(sim, address), {name: (f.driver, list(f.vfs)) for name, f in sim.functions.items()}
    sim.files.pop("/etc/iovirt/sriov.json")
    sim._tree = None
    export = info(sim, "sriov")["devices"]
    (item,) = [item for item in export if item["match"]["address"] == [address]]
    assert item["eswitch"]["mode"] == "switchdev"
    fits(spec.MODULES["sriov"]["devices"]["options"], item)
    sim.reboot()
    assert instance(sim, address) != devlink
    assert call(sim, sriov=export)["failures"] == {}
    sim.sleep(60)
    assert instance(sim, address) == devlink
    assert {name: (f.driver, list(f.vfs)) for name, f in sim.functions.items()} == functions


def test_secondary_controllers_that_nobody_declared_are_exported():
    sim = lab()
    vfs = [{"range": "0", "driver": "vfio-pci", "nvme_queues": 2, "nvme_interrupts": 1, "online": True}]
    call(sim, sriov=[at(NVME, vf_count=2, vfs=vfs)])
    before = sim.nvme[NVME].facts()
    sim.files.pop("/etc/iovirt/sriov.json")
    sim._tree = None
    export = info(sim, "sriov")["devices"]
    (item,) = [item for item in export if item["match"]["address"] == [NVME]]
    # What has no driver is left without one.
    assert item["vfs"] == [vfs[0], {"range": "1", "nvme_queues": 0, "nvme_interrupts": 0, "online": False}]
    log = len(sim.log)
    call(sim, sriov=export)
    assert not [entry for entry in sim.log[log:] if "virtfn" in entry[1] or "virt-mgmt" in str(entry)]
    quiet(sim, sriov=export)
    sim.reboot()
    assert sim.nvme[NVME].facts() != before
    call(sim, sriov=export)
    assert sim.nvme[NVME].facts() == before
    # Where nvme-cli is not there, the rest is told of all the same.
    sim = lab()
    sim.write(f"{DEVICES}/{NVME}/sriov_numvfs", "1")
    real = sim.run
    sim.run = lambda argv, data="": (127, "", "nvme: No such file or directory") if argv[0] == "nvme" else real(argv, data)
    (item,) = [item for item in engine.resource_info(sim.host(environment=SSH), "sriov", None)["devices"] if item["match"]["address"] == [NVME]]
    assert item["vfs"] == [{"range": "0"}] and call(sim, check=True, sriov=[item])["failures"] == {}


def made_by_hand():
    sim = lab(igbvf_loaded=True)
    sim.write(f"{DEVICES}/{PF1}/sriov_numvfs", "3")
    sim.run(["modprobe", "--", "vfio-pci"])
    for address in (sim.functions[PF1].vfs[1], EDU):
        sim.write(f"{DEVICES}/{address}/driver_override", "vfio-pci")
        if sim.functions[address].driver:
            sim.write(f"{DEVICES}/{address}/driver/unbind", address)
        sim.write("/sys/bus/pci/drivers_probe", address)
    return sim


def test_what_others_made_is_adopted_without_touching_a_device():
    sim = made_by_hand()
    export = {name: info(sim, name)["devices"] for name in ("sriov", "vfio")}
    functions = sim.snapshot()["functions"]
    done = converged(sim, **export)
    assert {action["action"] for action in done["actions"]} <= {"declare", "install_replay"}
    assert sim.snapshot()["functions"] == functions
    again = {name: info(sim, name)["devices"] for name in ("sriov", "vfio")}
    quiet(sim, **again)


def test_a_vf_that_vfio_has_by_its_ids_stays_with_it():
    """new_id or ids= on the command line: no override, and still nothing that a hand-back would release."""
    sim = made_by_hand()
    vf = sim.functions[PF1].vfs[1]
    sim.functions[vf].override = None
    sim._tree = None
    converged(sim, sriov=info(sim, "sriov")["devices"])
    assert sim.functions[vf].driver == "vfio-pci"


def test_a_port_on_vfio_is_in_one_list_only():
    sim = lab()
    call(sim, vfio=[at(PF1)])
    assert PF1 not in info(sim, "sriov")["facts"]
    quiet(sim, vfio=info(sim, "vfio")["devices"])


def test_a_vf_of_its_own_is_found_again():
    sim = lab(igbvf_loaded=True)
    sim.write(f"{DEVICES}/{PF1}/sriov_numvfs", "2")
    vf = sim.functions[PF1].vfs[0]
    call(sim, vfio=[{"match": {"address": [vf], "vf": True}}])
    quiet(sim, vfio=info(sim, "vfio")["devices"])


def test_a_match_narrows():
    sim = lab()
    assert list(info(sim, "sriov", {"driver": ["igb"]})["facts"]) == [PF1, PF2]
    assert info(sim, "sriov", {"driver": ["ixgbe"]})["devices"] == []
    for match, words in (({"colour": ["red"]}, "colour"), ({}, None)):
        if words:
            with pytest.raises(EngineError, match=words):
                info(sim, "sriov", match)
        else:
            assert len(info(sim, "sriov", match)["devices"]) == 3


def test_the_facts():
    sim = lab()
    call(sim, vfio=[at(EDU, early=True), at(NVME)])
    facts = info(sim, "vfio")["facts"]
    assert facts[EDU]["next_boot"] == {"driver": "vfio-pci", "bound_by": "initramfs"}
    assert facts[NVME] == {
        "address": NVME,
        "driver": "vfio-pci", "driver_override": "vfio-pci", "native_driver": "nvme", "vfio_driver": "vfio-pci",
        "next_boot": {"driver": "vfio-pci", "bound_by": "replay"}, "iommu_group": sim.functions[NVME].group, "reset_methods": None,
        "declared": True,
    }
    sim.changes[next(iter(sim.images))] = 1.0
    assert info(sim, "vfio")["facts"][EDU]["next_boot"]["bound_by"] == "replay"
    ports = info(sim, "sriov")["facts"]
    assert ports[PF1]["total_vfs"] == 7 and ports[PF1]["vfs"] == []


def test_a_vf_that_nothing_has_is_exported_without_a_driver():
    """Its module is not loaded, and `default` would load it."""
    sim = lab()
    sim.udev_delay = None
    sim.write(f"{DEVICES}/{PF1}/sriov_numvfs", "1")
    assert drivers_of(sim, PF1) == [None]
    export = info(sim, "sriov", match={"address": [PF1]})["devices"]
    assert "driver" not in export[0]["vfs"][0]
    call(sim, sriov=export)
    assert drivers_of(sim, PF1) == [None] and "igbvf" not in sim.registered
