# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Giving back: all that was ever touched, as it was before it was first named."""

from __future__ import annotations

import json

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import engine, replay, store
from ansible_collections.iovirt.host.plugins.module_utils._engine.link import NO_MAC
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils import sim_ip
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import (
    MLX5,
    NVME,
    PF1,
    at,
    call,
    converged,
    drivers_of,
    lab,
    quiet,
    refused,
    switches,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import DEVICES, Net, Pci, SimKernel

IFNAME = "enp129s0"


def adopted(count: int = 2) -> SimKernel:
    """A host whose operator has made VFs."""
    sim = lab(vfio_loaded=True, igbvf_loaded=True)
    sim.nets[IFNAME] = Net()
    sim.write(f"{DEVICES}/{PF1}/sriov_numvfs", str(count))
    return sim


def operator(sim: SimKernel, *lines: str) -> None:
    """What somebody sets at the PF by ip link."""
    sim_ip.batch(sim, "".join(f"link set dev {IFNAME} {line}\n" for line in lines))


def overridden(sim: SimKernel, index: int, driver: str) -> Pci:
    """Somebody gives a VF to a driver."""
    vf = sim.functions[sim.functions[PF1].vfs[index]]
    sim.write(f"{DEVICES}/{vf.address}/driver_override", driver)
    sim.write(f"{DEVICES}/{vf.address}/driver/unbind", vf.address)
    sim.write(f"/sys/bus/pci/drivers/{driver}/bind", vf.address)
    return vf


def of_vfs(sim: SimKernel, *keys: str) -> list[tuple]:
    return [tuple(sim.functions[vf].attributes[key] for key in keys) for vf in sim.functions[PF1].vfs]


def entry(sim: SimKernel) -> dict:
    return json.loads(sim.files[store.path_of("sriov")])["devices"][PF1]


# --- What a later wish no longer names ---------------------------------------------------------------------------------


def test_what_a_later_wish_no_longer_names_is_given_back_as_well():
    sim = adopted()
    before = of_vfs(sim, "vlan", "trust", "spoofchk")
    converged(sim, sriov=[at(PF1, vfs=[{"range": "0", "driver": "vfio-pci", "vlan": 100, "trust": True}])])
    converged(sim, sriov=[at(PF1, vfs=[{"range": "1", "spoof_check": False}])])
    assert drivers_of(sim, PF1) == ["vfio-pci", "igbvf"]
    assert of_vfs(sim, "vlan") == [(100,), (0,)]
    converged(sim, sriov=[at(PF1, state="absent")])
    assert drivers_of(sim, PF1) == ["igbvf", "igbvf"]
    assert of_vfs(sim, "vlan", "trust", "spoofchk") == before


def test_a_count_that_a_later_wish_no_longer_names_comes_back_at_boot_and_is_given_back():
    sim = lab()
    converged(sim, sriov=[at(PF1, vf_count=4)])
    converged(sim, sriov=[at(PF1, vfs=[{"range": "3", "vlan": 5}])])
    assert len(sim.functions[PF1].vfs) == 4
    sim.reboot()
    assert replay.run(sim.host(), None)["failures"] == {}
    assert of_vfs(sim, "vlan") == [(0,), (0,), (0,), (5,)]
    converged(sim, sriov=[at(PF1, state="absent")])
    assert sim.functions[PF1].vfs == []


def test_a_count_of_an_earlier_wish_gives_way_to_one_that_the_named_vfs_need():
    sim = lab()
    converged(sim, sriov=[at(PF1, vf_count=2)])
    sim.write(f"{DEVICES}/{PF1}/sriov_numvfs", "0")
    sim.write(f"{DEVICES}/{PF1}/sriov_numvfs", "4")
    converged(sim, sriov=[at(PF1, vfs=[{"range": "3", "vlan": 5}])])
    assert entry(sim)["wish"]["vf_count"] == 4


def test_a_port_that_a_later_wish_no_longer_names_up_goes_down_again():
    sim = lab()
    sim.nets[IFNAME] = Net(up=False)
    converged(sim, sriov=[at(PF1, vf_count=1, up=True)])
    converged(sim, sriov=[at(PF1, vf_count=1)])
    converged(sim, sriov=[at(PF1, state="absent")])
    assert sim.nets[IFNAME].up is False


def test_records_of_older_versions_are_given_back_by_their_wish():
    sim = adopted()
    converged(sim, sriov=[at(PF1, vf_count=3, vfs=[{"range": "0", "driver": "vfio-pci", "vlan": 100}])])
    document = json.loads(sim.files[store.path_of("sriov")])
    del document["devices"][PF1]["touched"]
    sim.files[store.path_of("sriov")] = json.dumps(document)
    sim._tree = None
    converged(sim, sriov=[at(PF1, vfs=[{"range": "1", "trust": True}])])
    assert "vf 0 vlan" in entry(sim)["touched"]
    converged(sim, sriov=[at(PF1, state="absent")])
    assert drivers_of(sim, PF1) == ["igbvf", "igbvf"]
    assert of_vfs(sim, "vlan", "trust") == [(0, False), (0, False)]


@pytest.mark.parametrize(("key", "value"), [("overrides", None), ("overrides", {"0": 5}), ("attributes", []), ("attributes", {"0": "x"})])
def test_a_record_that_somebody_spoiled_is_said_to_be_incomplete(key, value):
    sim = adopted()
    converged(sim, sriov=[at(PF1, vf_count=2)])
    document = json.loads(sim.files[store.path_of("sriov")])
    document["devices"][PF1]["origin"][key] = value
    sim.files[store.path_of("sriov")] = json.dumps(document)
    sim._tree = None
    refused(sim, f"its entry for {PF1} is incomplete", sriov=[at(PF1, state="absent")])


# --- How it was when it was first named --------------------------------------------------------------------------------


def test_an_attribute_goes_back_to_what_it_was_when_it_was_first_named():
    sim = adopted()
    converged(sim, sriov=[at(PF1, vfs=[{"range": "0", "spoof_check": False}])])
    operator(sim, "vf 1 vlan 9", "vf 1 trust on")
    converged(sim, sriov=[at(PF1, vfs=[{"range": "0", "spoof_check": False}, {"range": "1", "vlan": 5}])])
    converged(sim, sriov=[at(PF1, vfs=[{"range": "1", "vlan": 6}])])
    converged(sim, sriov=[at(PF1, state="absent")])
    assert of_vfs(sim, "vlan", "trust", "spoofchk") == [(0, False, True), (9, True, True)]


def test_the_count_goes_back_to_what_it_was_when_it_was_first_named():
    sim = adopted()
    converged(sim, sriov=[at(PF1, vfs=[{"range": "0", "spoof_check": False}])])
    sim.write(f"{DEVICES}/{PF1}/sriov_numvfs", "0")
    sim.write(f"{DEVICES}/{PF1}/sriov_numvfs", "4")
    converged(sim, sriov=[at(PF1, vf_count=6)])
    converged(sim, sriov=[at(PF1, state="absent")])
    assert len(sim.functions[PF1].vfs) == 4


def test_a_vf_that_went_with_a_count_and_came_again_gets_back_what_was_set_on_it():
    sim = adopted(3)
    operator(sim, "vf 2 vlan 9")
    converged(sim, sriov=[at(PF1, vf_count=1)])
    converged(sim, sriov=[at(PF1, vf_count=3)])
    assert of_vfs(sim, "vlan") == [(0,), (0,), (0,)]
    converged(sim, sriov=[at(PF1, state="absent")])
    assert of_vfs(sim, "vlan") == [(0,), (0,), (9,)]


@pytest.mark.parametrize("later", [{"vf_count": 1}, {"vf_count": 2, "vfs": [{"range": "0", "mac": "52:54:00:99:99:99"}]}])
def test_a_mac_that_a_driver_made_up_is_none_of_what_was_before(later):
    sim = adopted()
    converged(sim, sriov=[at(PF1, vf_count=2)])
    assert entry(sim)["origin"]["attributes"]["1"]["mac"] == NO_MAC
    converged(sim, sriov=[at(PF1, **later)])
    converged(sim, sriov=[at(PF1, state="absent")])
    assert of_vfs(sim, "by_pf") == [(False,), (False,)]


def test_a_mac_that_a_driver_made_up_is_no_wish():
    sim = adopted()
    operator(sim, "vf 1 mac 52:54:00:99:99:99")
    (device,) = engine.resource_info(sim.host(), "sriov", {"address": [PF1]})["devices"]
    assert ["mac" in vf for vf in device["vfs"]] == [False, True]


def test_a_run_that_names_nothing_new_changes_no_record():
    sim = adopted()
    wish = [at(PF1, vfs=[{"range": "0", "vlan": 7}])]
    converged(sim, sriov=wish)
    operator(sim, "vf 1 vlan 9")
    quiet(sim, sriov=wish)


# --- Holders -----------------------------------------------------------------------------------------------------------


def test_what_a_guest_holds_is_not_forgotten():
    """libvirt would put our values back when the guest lets go of the VF."""
    sim = adopted()
    vf = overridden(sim, 0, "vfio-pci")
    before = of_vfs(sim, "vlan", "mac")
    converged(sim, sriov=[at(PF1, vfs=[{"range": "0", "vlan": 100, "mac": "52:54:00:01:02:03"}])])
    sim.pids[77] = ("qemu-system-x86", [f"/dev/vfio/{vf.group}"])
    sim._tree = None
    refused(sim, vf.address, "mac, vlan", "in use by process 77", "allow: [in_use]", sriov=[at(PF1, state="absent")])
    sim.pids.clear()
    sim._tree = None
    converged(sim, sriov=[at(PF1, state="absent")])
    assert of_vfs(sim, "vlan", "mac") == before


# --- VFs that are made anew --------------------------------------------------------------------------------------------


def test_a_new_count_leaves_vfs_with_the_drivers_that_they_were_given():
    sim = adopted()
    overridden(sim, 0, "vfio-pci")
    done = converged(sim, sriov=[at(PF1, vf_count=3)])
    assert drivers_of(sim, PF1) == ["vfio-pci", "igbvf", "igbvf"]
    assert "bind VF 0 (0000:82:10.0) to vfio-pci (as it was before)" in [action["text"] for action in done["actions"]]
    assert entry(sim)["wish"]["vfs"] == {}
    converged(sim, sriov=[at(PF1, vf_count=1, vfs=[{"range": "0", "driver": "default"}])])
    assert drivers_of(sim, PF1) == ["igbvf"]
    converged(sim, sriov=[at(PF1, state="absent")])
    assert drivers_of(sim, PF1) == ["vfio-pci", "igbvf"]


def test_a_new_count_leaves_vfs_with_what_an_earlier_wish_gave_them():
    sim = adopted()
    converged(sim, sriov=[at(PF1, vf_count=2, vfs=[{"range": "0", "driver": "vfio-pci", "vlan": 7}])])
    converged(sim, sriov=[at(PF1, vf_count=4)])
    assert drivers_of(sim, PF1) == ["vfio-pci", "igbvf", "igbvf", "igbvf"]
    assert of_vfs(sim, "vlan")[0] == (7,)


def test_an_override_that_keeps_every_driver_away_survives_a_new_count():
    sim = adopted()
    vf = sim.functions[sim.functions[PF1].vfs[1]]
    sim.write(f"{DEVICES}/{vf.address}/driver_override", "none")
    sim.write(f"{DEVICES}/{vf.address}/driver/unbind", vf.address)
    converged(sim, sriov=[at(PF1, vf_count=3)])
    assert drivers_of(sim, PF1) == ["igbvf", None, "igbvf"]


def test_a_driver_that_was_given_without_an_override_is_said_to_be_lost():
    sim = adopted()
    vf = overridden(sim, 0, "vfio-pci")
    sim.write(f"{DEVICES}/{vf.address}/driver_override", "\n")
    result = call(sim, sriov=[at(PF1, vf_count=3)], check=True)
    assert "VF 0 is on vfio-pci without an override" in result["warnings"][0]


def test_secondary_controllers_survive_a_new_count():
    sim = lab(vfio_loaded=True)
    vf = {"range": "0", "nvme_queues": 2, "nvme_interrupts": 1, "online": True, "driver": "vfio-pci"}
    converged(sim, sriov=[at(NVME, vf_count=2, vfs=[vf])])
    converged(sim, sriov=[at(NVME, vf_count=3)])
    assert sim.nvme[NVME].facts()[0] == (2, 1, True)
    assert drivers_of(sim, NVME)[0] == "vfio-pci"


# --- What cannot be as it was --------------------------------------------------------------------------------------------


def blacklisted(sim: SimKernel, *drivers: str) -> SimKernel:
    sim.files["/etc/modprobe.d/blacklist.conf"] = "".join(f"blacklist {driver}\n" for driver in drivers)
    sim.registered -= set(drivers)
    sim.udev_delay = None
    sim._tree = None
    return sim


def test_a_function_that_had_no_driver_is_given_back_without_one():
    gpu = "0000:00:0b.0"
    sim = lab(vfio_loaded=True)
    sim.add_driver("nouveau", "10de:1b80")
    blacklisted(sim, "nouveau")
    function = sim.add(Pci(gpu, "10de:1b80", "030000"))
    function.group = sim._group_of(function)
    sim._tree = None
    converged(sim, vfio=[at(gpu)])
    converged(sim, vfio=[at(gpu, state="absent")])
    assert (function.driver, function.override) == (None, None)


def test_vfs_whose_driver_is_blacklisted_are_given_back_without_one():
    sim = blacklisted(lab(vfio_loaded=True), "igbvf")
    sim.write(f"{DEVICES}/{PF1}/sriov_numvfs", "2")
    converged(sim, sriov=[at(PF1, vfs=[{"range": "0", "driver": "vfio-pci"}])])
    converged(sim, sriov=[at(PF1, vfs=[{"range": "0-1", "driver": "default"}])])
    assert drivers_of(sim, PF1) == [None, None]
    converged(sim, sriov=[at(PF1, vfs=[{"range": "0", "driver": "vfio-pci"}])])
    converged(sim, sriov=[at(PF1, state="absent")])
    assert drivers_of(sim, PF1) == [None, None]


def test_a_count_is_given_back_by_a_pf_with_a_driver_only():
    sim = lab()
    sim.write(f"{DEVICES}/{NVME}/sriov_numvfs", "2")
    converged(sim, sriov=[at(NVME, vf_count=4)])
    sim.write(f"{DEVICES}/{NVME}/driver/unbind", NVME)
    refused(sim, NVME, "it has no driver", "Load its driver (nvme)", sriov=[at(NVME, state="absent")])


def test_an_override_whose_driver_is_gone_is_refused_in_words():
    sim = adopted()
    overridden(sim, 0, "vfio-pci")
    converged(sim, sriov=[at(PF1, vfs=[{"range": "0", "driver": "igbvf"}])])
    sim.registered.discard("vfio-pci")
    sim.missing_modules.add("vfio_pci")
    sim._tree = None
    refused(sim, "there is no driver vfio-pci", "install the module", sriov=[at(PF1, state="absent")])
    sim.missing_modules.clear()
    sim._tree = None
    converged(sim, sriov=[at(PF1, state="absent")])
    assert drivers_of(sim, PF1) == ["vfio-pci", "igbvf"]


def test_a_parameter_that_the_kernel_no_longer_has_is_left_out():
    sim = switches()
    converged(sim, sriov=[at(MLX5, devlink_params=[{"name": "flow_steering_mode", "value": "smfs", "cmode": "runtime"}])])
    del sim.devlink.instances[f"pci/{MLX5}"].params["flow_steering_mode"]
    sim._tree = None
    result = converged(sim, sriov=[at(MLX5, state="absent")])
    assert "flow_steering_mode (runtime) was dmfs and is not given back" in result["warnings"][0]


# --- Undo --------------------------------------------------------------------------------------------------------------


def test_an_undone_mac_leaves_a_vf_of_the_host_with_one_of_its_own():
    sim = adopted()
    sim.ip_faults = [("*vf 1 trust on*", 95)]
    wish = [{"range": "0", "driver": "vfio-pci", "mac": "52:54:00:11:22:33"}, {"range": "1", "trust": True}]
    assert call(sim, sriov=[at(PF1, vfs=wish)])["failures"]
    assert drivers_of(sim, PF1) == ["igbvf", "igbvf"]
    vf = sim.functions[sim.functions[PF1].vfs[0]]
    assert vf.attributes["mac"] == vf.mac != NO_MAC
    assert vf.attributes["by_pf"] is False


def test_rates_come_back_with_the_link_that_a_count_took(monkeypatch):
    """igb closes and opens its port for new VFs, and sets rates with a link only (lab, docs/kernel-facts.md)."""
    sim = adopted()
    operator(sim, "vf 0 max_tx_rate 300 min_tx_rate 0")
    make = sim._set_count

    def flapping(pf, data):
        code = make(pf, data)
        net = sim.nets[IFNAME]
        net.carrier = False
        sim.later(3.0, lambda: setattr(net, "carrier", sim.now > 0))
        sim._tree = None
        return code

    monkeypatch.setattr(sim, "_set_count", flapping)
    sim.probe_errno["vfio-pci", "0000:82:10.4"] = 22
    result = call(sim, sriov=[at(PF1, vf_count=3, vfs=[{"range": "2", "driver": "vfio-pci"}])])
    assert "It was undone, and so were the steps before" in result["failures"][PF1]
    assert of_vfs(sim, "max_tx_rate") == [(300,), (0,)]
    sent = [data for what, name, data in sim.log if (what, name) == ("run", "ip")]
    assert sent[-1].endswith("vf 0 min_tx_rate 0 max_tx_rate 300\n")


@pytest.mark.parametrize("wish", [
    {"devlink_params": [{"name": "enable_roce", "value": False, "cmode": "driverinit"}]},
    {"eswitch": {"mode": "switchdev"}},
])
def test_a_port_that_a_half_done_step_left_down_is_brought_up_again(wish):
    sim = switches()
    name = sim.functions[MLX5].ifname
    sim.nets[name] = Net(up=True)
    sim._tree = None
    real, seen = sim.run, []

    def run(argv, data=""):
        if argv[:3] == ["devlink", "dev", "reload"] or argv[:4] == ["devlink", "dev", "eswitch", "set"]:
            seen.append(argv)
            if len(seen) == 1:
                real(["devlink", "dev", "reload", f"pci/{MLX5}"], data)
                return 1, "", "devlink answers: Input/output error"
        return real(argv, data)

    sim.run = run
    failure = call(sim, sriov=[at(MLX5, **wish)])["failures"][MLX5]
    assert "It was undone" in failure
    assert sim.netdevs()[name][1].up is True
