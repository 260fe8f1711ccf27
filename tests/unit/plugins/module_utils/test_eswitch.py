# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""eswitch, devlink parameters and hw-tc-offload. What netdevsim does is what the lab showed; mlx5 and ice are synthetic."""

from __future__ import annotations

import copy

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import engine, host_info, replay
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import (
    ICE,
    MLX4LX,
    MLX5,
    NSIM,
    PF1,
    at,
    call,
    converged,
    drivers_of,
    quiet,
    refused,
    switches,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import DEVICES, Net

SWITCHDEV = {"mode": "switchdev"}
LEGACY = {"mode": "legacy"}


def instance(sim, address):
    return sim.devlink.instances[f"{'netdevsim' if address == NSIM else 'pci'}/{address}"]


def kinds(result):
    return [action["action"] for action in result["actions"] if action["action"] not in ("declare", "install_replay")]


def texts(result):
    return [action["text"] for action in result["actions"] if action["action"] not in ("declare", "install_replay")]


def asked(sim):
    return [" ".join(argv) for argv in sim.commands if argv[0] in ("devlink", "ethtool")]


# --- A PF that is not of PCI ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("match", [{"address": [NSIM]}, {"ifname": ["eni1*"]}, {"driver": ["netdevsim"]}])
def test_netdevsim_is_selected_and_gets_vfs(match):
    sim = switches()
    result = converged(sim, sriov=[{"match": match, "vf_count": 3}])
    assert sim.devlink.netdevsims[NSIM].vfs == 3
    assert texts(result) == ["set the number of VFs from 0 to 3"]
    item = next(item for item in result["sriov"] if item["match"]["address"] == [NSIM])
    assert item["vf_count"] == 3 and [vf["range"] for vf in item["vfs"]] == ["0", "1", "2"]
    result = converged(sim, sriov=[{"match": match, "vf_count": 1}])
    assert "these vanish and are made anew: VF 0 (netdevsim1/0, no driver)" in texts(result)[0]
    converged(sim, sriov=[{"match": match, "state": "absent"}])
    assert sim.devlink.netdevsims[NSIM].vfs == 0
    assert "/etc/iovirt/sriov.json" not in sim.files


def test_what_only_pci_has_is_refused_elsewhere():
    sim = switches()
    refused(sim, NSIM, "no functions of their own", sriov=[at(NSIM, vf_count=1, vf_defaults={"driver": "vfio-pci"})])
    refused(sim, NSIM, "only PCI functions", vfio=[at(NSIM)])
    refused(sim, NSIM, "sriov_totalvfs is 4", sriov=[at(NSIM, vf_count=5)])
    converged(sim, sriov=[at(NSIM, vf_count=1, vf_defaults={"driver": "default"})])


def test_the_udev_rule_names_the_bus():
    sim = switches()
    call(sim, sriov=[at(NSIM, vf_count=1)])
    rules = sim.files["/etc/udev/rules.d/99-iovirt.rules"]
    assert 'SUBSYSTEM=="netdevsim", KERNEL=="netdevsim1"' in rules


# --- What is asked -------------------------------------------------------------------------------------------------


def test_nobody_is_asked_where_no_wish_speaks_of_it():
    sim = switches()
    call(sim, sriov=[at(MLX5, vf_count=2), at(NSIM, vf_count=2)])
    assert asked(sim) == []


def test_one_question_a_port_and_one_a_host():
    sim = switches()
    wish = {"eswitch": LEGACY, "devlink_params": [{"name": "enable_roce", "value": True, "cmode": "driverinit"}], "hw_tc_offload": False}
    call(sim, check=True, sriov=[at(MLX5, **wish), at(MLX4LX, **wish), at(PF1, vf_count=0)])
    assert sorted(asked(sim)) == sorted([
        "devlink -j dev param show",
        f"devlink -j dev eswitch show pci/{MLX5}",
        f"devlink -j dev eswitch show pci/{MLX4LX}",
        "ethtool -k enp161s0f0np0",
        "ethtool -k enp162s0f0np0",
    ])


# --- The mode ------------------------------------------------------------------------------------------------------


def test_netdevsim_goes_to_switchdev_and_back():
    sim = switches()
    result = converged(sim, sriov=[at(NSIM, vf_count=2, eswitch=SWITCHDEV)])
    assert texts(result) == ["set the number of VFs from 0 to 2", "set the eswitch mode from legacy to switchdev"]
    assert instance(sim, NSIM).mode == "switchdev"
    assert next(i for i in result["sriov"] if i["match"]["address"] == [NSIM])["eswitch"] == SWITCHDEV
    seen = next(f for f in host_info.facts(sim.host())["host"]["functions"] if f["address"] == NSIM)
    assert [n["name"] for n in seen["netdevs"]] == ["eni1np1"]
    assert seen["sriov"]["representors"] == [
        {"netdev": f"eni1npf0vf{i}", "vf": i, "port_name": f"pf0vf{i}", "switch_id": "f4da28f536bb09a1"} for i in (0, 1)
    ]
    # The number changes in legacy mode only.
    result = converged(sim, sriov=[at(NSIM, vf_count=3, eswitch=SWITCHDEV)])
    assert kinds(result) == ["set_eswitch", "set_vf_count", "set_eswitch"]
    assert (instance(sim, NSIM).mode, sim.devlink.netdevsims[NSIM].vfs) == ("switchdev", 3)
    result = converged(sim, sriov=[at(NSIM, state="absent")])
    assert texts(result)[0] == "set the eswitch mode from switchdev to legacy"
    assert (instance(sim, NSIM).mode, sim.devlink.netdevsims[NSIM].vfs) == ("legacy", 0)


def test_what_sriov_info_says_is_valid_input():
    sim = switches()
    wish = at(NSIM, vf_count=2, eswitch=SWITCHDEV, hw_tc_offload=True)
    call(sim, sriov=[wish])
    found = engine.resource_info(sim.host(), "sriov", {"address": [NSIM]})
    assert found["devices"][0]["eswitch"] == SWITCHDEV and found["devices"][0]["hw_tc_offload"] is True
    assert [item["vf"] for item in found["facts"][0]["representors"]] == [0, 1]
    assert call(sim, sriov=found["devices"])["changed"] is False


def test_mlx5_takes_the_vfs_from_their_drivers():
    sim = switches()
    sim.write(f"{DEVICES}/{MLX5}/sriov_numvfs", "2")
    assert drivers_of(sim, MLX5) == ["mlx5_core", "mlx5_core"]
    result = converged(sim, sriov=[at(MLX5, eswitch={**SWITCHDEV, "encap_mode": "basic"})])
    assert texts(result) == [
        "take VF 0, 1 from their drivers while the eswitch mode changes",
        "set the eswitch mode from legacy to switchdev",
        "set the eswitch encap mode from none to basic",
        "give VF 0, 1 their drivers back",
    ]
    assert instance(sim, MLX5).encap == "basic" and instance(sim, MLX5).inline == "none"
    assert drivers_of(sim, MLX5) == ["mlx5_core", "mlx5_core"]
    result = converged(sim, sriov=[at(MLX5, state="absent")])
    assert (instance(sim, MLX5).mode, instance(sim, MLX5).encap) == ("legacy", "none")
    assert drivers_of(sim, MLX5) == ["mlx5_core", "mlx5_core"]


def test_mlx5_vfs_that_are_born_on_the_way():
    sim = switches()
    wish = at(MLX5, vf_count=3, eswitch=SWITCHDEV, vfs=[{"range": "0", "driver": "vfio-pci"}])
    result = converged(sim, sriov=[wish])
    assert kinds(result) == ["set_vf_count", "detach_vfs", "set_eswitch", "attach_vfs", "bind"]
    assert drivers_of(sim, MLX5) == ["vfio-pci", "mlx5_core", "mlx5_core"]
    # Fewer of them: out of switchdev mode, the number, and in again.
    result = converged(sim, sriov=[at(MLX5, vf_count=1, eswitch=SWITCHDEV, vfs=[{"range": "0", "driver": "vfio-pci"}])])
    assert kinds(result) == ["detach_vfs", "set_eswitch", "set_vf_count", "detach_vfs", "set_eswitch", "attach_vfs", "bind"]
    assert drivers_of(sim, MLX5) == ["vfio-pci"]


def test_connectx4_lx_gets_its_inline_mode_unless_another_is_named():
    sim = switches()
    result = converged(sim, sriov=[at(MLX4LX, vf_count=1, eswitch=SWITCHDEV)])
    assert "set the eswitch inline mode from link to transport" in texts(result)
    assert kinds(result) == ["set_vf_count", "detach_vfs", "set_eswitch", "set_eswitch", "attach_vfs"]
    converged(sim, sriov=[at(MLX4LX, state="absent")])
    assert instance(sim, MLX4LX).inline == "link"
    result = converged(sim, sriov=[at(MLX4LX, vf_count=1, eswitch={**SWITCHDEV, "inline_mode": "network"})])
    assert instance(sim, MLX4LX).inline == "network"


def test_ice_wants_no_vfs_for_it():
    sim = switches()
    sim.write(f"{DEVICES}/{ICE}/sriov_numvfs", "2")
    result = converged(sim, sriov=[at(ICE, eswitch=SWITCHDEV)])
    assert kinds(result) == ["set_vf_count", "set_eswitch", "set_vf_count"]
    assert "these vanish and are made anew: VF 0 (0000:b1:00.2, iavf)" in texts(result)[0]
    assert texts(result)[2] == "set the number of VFs from 0 to 2"
    assert drivers_of(sim, ICE) == ["iavf", "iavf"]
    # In switchdev mode the number changes without leaving it.
    assert kinds(converged(sim, sriov=[at(ICE, vf_count=3, eswitch=SWITCHDEV)])) == ["set_vf_count"]
    result = converged(sim, sriov=[at(ICE, state="absent")])
    assert kinds(result)[:3] == ["set_vf_count", "set_eswitch", "set_vf_count"]
    assert (instance(sim, ICE).mode, len(sim.functions[ICE].vfs)) == ("legacy", 2)


def test_vfs_that_others_gave_to_a_driver_keep_it_when_they_are_made_anew():
    sim = switches()
    sim.write(f"{DEVICES}/{ICE}/sriov_numvfs", "2")
    vf = sim.functions[ICE].vfs[1]
    sim.run(["modprobe", "--", "vfio-pci"])
    sim.write(f"{DEVICES}/{vf}/driver_override", "vfio-pci")
    sim.write(f"{DEVICES}/{vf}/driver/unbind", vf)
    sim.write("/sys/bus/pci/drivers_probe", vf)
    assert drivers_of(sim, ICE) == ["iavf", "vfio-pci"]
    converged(sim, sriov=[at(ICE, eswitch=SWITCHDEV)])
    assert drivers_of(sim, ICE) == ["iavf", "vfio-pci"]


def test_the_port_is_brought_up_when_it_was():
    sim = switches()
    sim.nets["enp161s0f0np0"] = Net()
    converged(sim, sriov=[at(MLX5, eswitch=SWITCHDEV)])
    assert sim.nets["enp161s0f0np0"].up
    sim.nets["enp162s0f0np0"] = Net(up=False)
    converged(sim, sriov=[at(MLX4LX, eswitch=SWITCHDEV)])
    assert not sim.nets["enp162s0f0np0"].up


def test_a_port_that_does_not_come_back_is_named_and_undone():
    sim = switches()
    instance(sim, MLX5).own_id = ""
    result = call(sim, sriov=[at(MLX5, eswitch=SWITCHDEV)])
    assert "not there again within 30 s" in result["failures"][MLX5]
    assert instance(sim, MLX5).mode == "legacy"


# --- Refusals ------------------------------------------------------------------------------------------------------


def test_what_a_driver_does_not_have_is_refused():
    sim = switches()
    refused(sim, PF1, "has no eswitch", "No such device", sriov=[at(PF1, eswitch=SWITCHDEV)])
    refused(sim, NSIM, "no inline mode", sriov=[at(NSIM, eswitch={"inline_mode": "transport"})])
    refused(sim, ICE, "no encap mode", sriov=[at(ICE, eswitch={"encap_mode": "basic"})])
    sim.functions[MLX4LX].driver = None
    del sim.devlink.instances[f"pci/{MLX4LX}"]
    sim._tree = None
    refused(sim, MLX4LX, "it has no driver", sriov=[at(MLX4LX, eswitch=SWITCHDEV)])
    instance(sim, NSIM).eswitch = False
    refused(sim, NSIM, "has no eswitch", "Operation not supported", sriov=[at(NSIM, eswitch=SWITCHDEV)])


def test_missing_commands_are_named():
    sim = switches()
    sim.devlink.missing = {"devlink", "ethtool"}
    refused(sim, "devlink is not there (package iproute2)", sriov=[at(NSIM, eswitch=SWITCHDEV)])
    param = {"name": "max_macs", "value": 40, "cmode": "driverinit"}
    refused(sim, "cannot be read", "iproute2", sriov=[at(NSIM, devlink_params=[param])])
    refused(sim, "ethtool is not there (package ethtool)", sriov=[at(NSIM, hw_tc_offload=True)])


def test_vfs_in_use_keep_the_mode_as_it_is():
    sim = switches()
    call(sim, sriov=[at(MLX5, vf_count=1, vf_defaults={"driver": "vfio-pci"})])
    group = sim.functions[sim.functions[MLX5].vfs[0]].group
    sim.pids[4242] = ("qemu-system-x86", [f"/dev/vfio/{group}"])
    sim._tree = None
    refused(sim, "process 4242", "in_use", sriov=[at(MLX5, vf_count=1, vf_defaults={"driver": "vfio-pci"}, eswitch=SWITCHDEV)])


def test_the_management_path_is_guarded():
    sim = switches()
    sim.nets["enp161s0f0np0"] = Net(addresses=["192.0.2.1"])
    refused(sim, MLX5, "changing its eswitch mode takes the running link", "link_flap", "management", sriov=[at(MLX5, eswitch=SWITCHDEV)])
    sim.nets["enp177s0"] = Net(addresses=["192.0.2.2"])
    # ice keeps its network device and the addresses on it.
    said = refused(sim, ICE, "link_flap", sriov=[at(ICE, eswitch=SWITCHDEV)])
    assert "management" not in said


def test_rates_are_of_legacy_mode():
    """Wished ones are refused; those that legacy mode had set are not set again on new VFs (lab: EOPNOTSUPP)."""
    sim = switches()
    rates = {"vf_count": 1, "vf_defaults": {"max_tx_rate": 100}}
    refused(sim, NSIM, "in switchdev mode the kernel refuses them", sriov=[at(NSIM, eswitch=SWITCHDEV, **rates)])


def test_a_mode_that_another_program_rules():
    sim = switches()
    port = sim.functions[MLX5].ifname
    path = "/run/NetworkManager/system-connections/x.nmconnection"
    sim.files[path] = f"[connection]\ntype=ethernet\ninterface-name={port}\n[sriov]\neswitch-mode=1\n"
    sim.modes[path] = 0o600
    sim._tree = None
    refused(sim, MLX5, "NetworkManager rules its eswitch", "allow: [foreign]", sriov=[at(MLX5, eswitch=SWITCHDEV)])
    call(sim, sriov=[at(MLX5, eswitch=SWITCHDEV)], allow=("foreign",))


def test_a_port_in_a_bridge_does_not_leave_switchdev():
    sim = switches()
    call(sim, sriov=[at(MLX5, eswitch=SWITCHDEV)])
    sim.nets["enp161s0f0np0"] = Net()
    sim.nets["br0"] = Net(kind="bridge", lowers=["enp161s0f0np0"])
    sim._tree = None
    allow = ("link_flap", "management")
    refused(sim, "enp161s0f0np0 is in br0", sriov=[at(MLX5, eswitch=LEGACY)], allow=allow)


def test_a_count_change_in_switchdev_wants_the_mode_named():
    sim = switches()
    call(sim, sriov=[at(NSIM, vf_count=2, eswitch=SWITCHDEV)])
    refused(sim, NSIM, "switchdev mode", "eswitch: {mode: switchdev}", sriov=[at(NSIM, vf_count=3)])


# --- Parameters ----------------------------------------------------------------------------------------------------


def param(name, value, cmode):
    return {"name": name, "value": value, "cmode": cmode}


def test_driverinit_takes_a_reload_around_which_everything_comes_back():
    sim = switches()
    wish = at(NSIM, vf_count=2, eswitch=SWITCHDEV, hw_tc_offload=True)
    converged(sim, sriov=[wish])
    more = {**wish, "devlink_params": [param("max_macs", 64, "driverinit"), param("test1", False, "driverinit")]}
    result = converged(sim, sriov=[more])
    assert kinds(result) == ["set_vf_count", "set_eswitch", "devlink_reload", "set_vf_count", "set_eswitch", "set_tc_offload"]
    now = instance(sim, NSIM)
    assert (now.running, now.mode, now.offload, sim.devlink.netdevsims[NSIM].vfs) == ({"max_macs": 64, "test1": False}, "switchdev", True, 2)
    converged(sim, sriov=[at(NSIM, state="absent")])
    assert (now.running, now.mode, now.offload, now.reloads) == ({"max_macs": 32, "test1": True}, "legacy", False, 2)


def test_a_reload_keeps_an_offload_that_nobody_wishes():
    sim = switches()
    instance(sim, NSIM).offload = True
    converged(sim, sriov=[at(NSIM, devlink_params=[param("max_macs", 64, "driverinit")])])
    assert (instance(sim, NSIM).reloads, instance(sim, NSIM).offload) == (1, True)


def test_a_reload_is_guarded_as_it_takes_the_network_device():
    sim = switches()
    sim.nets["enp161s0f0np0"] = Net(addresses=["192.0.2.1"])
    wish = at(MLX5, devlink_params=[param("enable_roce", False, "driverinit")])
    refused(sim, "reloading its driver", "management", "link_flap", sriov=[wish])
    call(sim, sriov=[wish], allow=("management", "link_flap"))
    assert instance(sim, MLX5).running["enable_roce"] is False


def test_flow_steering_changes_in_legacy_mode():
    sim = switches()
    converged(sim, sriov=[at(MLX5, vf_count=1, eswitch=SWITCHDEV)])
    wish = at(MLX5, vf_count=1, eswitch=SWITCHDEV, devlink_params=[param("flow_steering_mode", "smfs", "runtime")])
    result = converged(sim, sriov=[wish])
    assert kinds(result) == ["detach_vfs", "set_eswitch", "set_devlink_param", "detach_vfs", "set_eswitch", "attach_vfs"]
    assert instance(sim, MLX5).params["flow_steering_mode"]["runtime"] == "smfs"
    assert drivers_of(sim, MLX5) == ["mlx5_core"]


def test_permanent_is_for_the_next_boot():
    sim = switches()
    wish = at(MLX5, devlink_params=[param("total_vfs", 16, "permanent")])
    result = call(sim, check=True, sriov=[wish])
    assert result["reboot_required"] and "total_vfs is 16 after the next boot" in result["reboot_reasons"][0]
    result = converged(sim, sriov=[wish])
    assert kinds(result) == ["set_devlink_param"] and "next boot" in texts(result)[0]
    instance(sim, MLX5).params["enable_roce"]["permanent"] = True
    instance(sim, MLX5).params["enable_roce"]["runtime"] = False
    result = call(sim, sriov=[at(MLX5, devlink_params=[param("enable_roce", True, "permanent")])])
    assert kinds(result) == []
    assert result["reboot_required"]
    seen = next(i for i in result["sriov"] if i["match"]["address"] == [MLX5])["devlink_params"]
    assert {(p["cmode"], p["value"]) for p in seen} == {("driverinit", True), ("permanent", True), ("runtime", False)}


@pytest.mark.parametrize(("wished", "words"), [
    ([param("nix", 1, "runtime")], ["no devlink parameter nix", "max_macs, test1"]),
    ([param("max_macs", 40, "permanent")], ["no cmode permanent", "driverinit"]),
    ([param("max_macs", -1, "driverinit")], ["a number from 0"]),
    ([param("max_macs", "many", "driverinit")], ["a number from 0"]),
    ([param("test1", "maybe", "driverinit")], ["true or false"]),
    ([param("test1", None, "driverinit")], ["test1 (driverinit) without a value"]),
    ([param("test1", [], "driverinit")], ["without a value"]),
    ([param("max_macs", {}, "driverinit")], ["without a value"]),
    ([param("max_macs", 40, "driverinit"), param("max_macs", 50, "driverinit")], ["twice"]),
])
def test_impossible_parameters_are_refused(wished, words):
    refused(switches(), NSIM, *words, sriov=[at(NSIM, devlink_params=wished)])


def test_hw_tc_offload():
    sim = switches()
    result = converged(sim, sriov=[at(NSIM, hw_tc_offload=True)])
    assert texts(result) == ["switch hw-tc-offload on"] and instance(sim, NSIM).offload
    converged(sim, sriov=[at(NSIM, state="absent")])
    assert not instance(sim, NSIM).offload
    instance(sim, NSIM).offload_fixed = True
    refused(sim, NSIM, "fixed to off", sriov=[at(NSIM, hw_tc_offload=True)])


# --- Record, replay, undo ------------------------------------------------------------------------------------------


WISHES = [
    at(NSIM, vf_count=2, eswitch=SWITCHDEV, hw_tc_offload=True, devlink_params=[param("max_macs", 64, "driverinit")]),
    at(MLX5, vf_count=2, eswitch={**SWITCHDEV, "encap_mode": "basic"}, devlink_params=[param("flow_steering_mode", "smfs", "runtime")]),
    at(ICE, vf_count=2, eswitch=SWITCHDEV, vf_defaults={"driver": "vfio-pci"}),
]


def test_the_replay_brings_it_back():
    sim = switches()
    converged(sim, sriov=WISHES)
    # The sources of PCI drivers load again at boot; netdevsim's device is made anew by whoever made it.
    sim.reboot()
    assert instance(sim, MLX5).mode == "legacy"
    assert replay.run(sim.host(environment={}, sources=None), None)["failures"] == {}
    sim.sleep(60)
    quiet(sim, sriov=WISHES)


def test_what_is_wished_later_is_recorded_as_it_was_then():
    sim = switches()
    converged(sim, sriov=[at(NSIM, vf_count=1)])
    converged(sim, sriov=[at(NSIM, vf_count=1, eswitch=SWITCHDEV)])
    converged(sim, sriov=[at(NSIM, vf_count=1, eswitch=SWITCHDEV, hw_tc_offload=True)])
    converged(sim, sriov=[at(NSIM, state="absent")])
    now = instance(sim, NSIM)
    assert (now.mode, now.offload, sim.devlink.netdevsims[NSIM].vfs) == ("legacy", False, 0)


def parts(sim, address):
    now = instance(sim, address)
    if address in sim.functions:
        vfs = [(sim.functions[a].driver, sim.functions[a].override) for a in sim.functions[address].vfs]
    else:
        vfs = sim.devlink.netdevsims[address].vfs
    return now.mode, now.inline, now.encap, copy.deepcopy(now.params), copy.deepcopy(now.running), now.offload, vfs


@pytest.mark.parametrize("wish", WISHES, ids=["netdevsim", "mlx5", "ice"])
def test_each_step_that_fails_is_undone(wish):
    address = wish["match"]["address"][0]
    fresh = switches()
    call(fresh, sriov=[at(address, vf_count=1)])
    undone = 0
    for number in range(1, 60):
        sim = copy.deepcopy(fresh)
        before = parts(sim, address)
        sim.fail_at = len(sim.log) + number
        result = call(sim, sriov=[wish])
        if address in result["failures"]:
            undone += 1
            assert parts(sim, address) == before, (number, result["failures"])
    assert undone >= 5
