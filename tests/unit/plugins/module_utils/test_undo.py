# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every kind of step, failing at each thing that it does: what it belongs to is as it was before the run.

A kind of step that is new needs a line in SCENARIOS: a host and a call in which a step of that kind is done.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import (
    actions,
    boot,
    engine,
    modprobe,
    replay,
    report,
    store,
)
from ansible_collections.iovirt.host.plugins.module_utils._engine.apply import BESIDE, apply
from ansible_collections.iovirt.host.plugins.module_utils._engine.kvm import daemons
from ansible_collections.iovirt.host.plugins.module_utils._engine.loaders import grub, uki
from ansible_collections.iovirt.host.plugins.module_utils._engine.resources.kernel_cmdline import Wish
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils import (
    sim_libvirt,
    sim_loaders,
    sim_modules,
    sim_params,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import (
    DOUBLE,
    EDU,
    MLX4LX,
    MLX5,
    NSIM,
    NVME,
    PF1,
    PF2,
    at,
    call,
    lab,
    stations,
    switches,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import DEVICES, Pci
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim_firmware import Firmware
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim_mdev import DEFINED, Type
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.test_identity import shuffle
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.test_kvm import kvm

GUESTS = {
    "create_image", "write_seed", "remove_seed", "define_guest", "undefine_guest", "set_guest_autostart", "record_guest", "start_guest",
    "stop_guest", "attach_device", "detach_device", "update_device", "set_guest_vcpus", "set_guest_memory",
}  # fmt: skip
VFIO = [{"range": "0-1", "driver": "vfio-pci"}]


def devices(sim, **wishes):
    return sim, lambda: call(sim, **wishes)


def with_vfs():
    """An operator's three VFs, one of them on vfio-pci, become two others."""
    sim = lab(igbvf_loaded=True, vfio_loaded=True)
    sim.write(f"{DEVICES}/{PF1}/sriov_numvfs", "3")
    vf = sim.functions[PF1].vfs[2]
    sim.write(f"{DEVICES}/{vf}/driver_override", "vfio-pci")
    sim.write(f"{DEVICES}/{vf}/driver/unbind", vf)
    # A guest's start resets it (vfio_pci_core_enable). Without that, its driver's MAC could not be told from one that was set.
    sim.write(f"{DEVICES}/{vf}/reset", "1")
    sim.write("/sys/bus/pci/drivers_probe", vf)
    return devices(sim, sriov=[at(PF1, vf_count=2, vfs=VFIO), at(PF2, vf_count=1)])


def living_vfs():
    """Drivers change, the VFs stay."""
    sim = lab(igbvf_loaded=True)
    call(sim, sriov=[at(PF1, vf_count=3, vf_defaults={"driver": "default"})])
    return devices(sim, sriov=[at(PF1, vf_count=3, vfs=VFIO)])


def back_to_own_drivers():
    sim = lab(igbvf_loaded=True)
    call(sim, sriov=[at(PF1, vf_count=2, vfs=VFIO)], vfio=[at(EDU)])
    return devices(sim, sriov=[at(PF1, vf_count=2, vf_defaults={"driver": "default"})], vfio=[at(EDU)])


def all_given_back():
    sim = lab(igbvf_loaded=True)
    call(sim, vfio=[at(EDU)])
    return devices(sim, vfio=[at(EDU, state="absent")])


def first_device():
    return devices(lab(), vfio=[at(EDU)])


def command_line():
    sim = lab()
    return sim, lambda: engine.host_cmdline(sim.host(), Wish(present=["hugepages=8"]), engine.Call(who="test"))


def on_loader(sim):
    return sim, lambda: engine.host_cmdline(sim.host(), Wish(present=["intel_iommu=on"]), engine.Call(who="test"))


def systemd_boot():
    return on_loader(sim_loaders.systemd_boot())


def images():
    return on_loader(sim_loaders.systemd_boot("uki"))


def images_from_elsewhere():
    return on_loader(sim_loaders.systemd_boot("vendor"))


def entries_of_grub():
    return on_loader(sim_loaders.grub_bls())


def partitions_of_proxmox():
    return on_loader(sim_loaders.proxmox())


def deployments():
    return on_loader(sim_loaders.ostree())


def cut_off_swap():
    sim = sim_loaders.systemd_boot()
    for path in [p for p in sim.files if p.startswith("/boot/efi/loader/entries/")]:
        folder, _slash, name = path.rpartition("/")
        sim.files[f"{folder}/iovirt-{name}"] = sim.files[path]
    sim._tree = None
    return on_loader(sim)


def claimed_early():
    sim = lab()
    sim.initramfs_tool = sim_modules.INITRAMFS_TOOLS
    return devices(sim, vfio=[at(EDU, early=True)])


ATTRIBUTES = {"mac": "52:54:00:cc:00:01", "vlan": 100, "qos": 3, "trust": True, "spoof_check": False}


def told_vfs():
    """VFs whose driver knows their MAC get another one and more, and lose what others had set."""
    sim = lab(igbvf_loaded=True)
    call(sim, sriov=[at(PF1, up=True, vf_count=2)])
    text = "link set dev enp129s0 vf 0 mac 52:54:00:cc:00:09\nlink set dev enp129s0 vf 0 vlan 9\n"
    assert sim.run(["ip", "-force", "-batch", "-"], text)[0] == 0
    vfs = [{"range": "0", **ATTRIBUTES, "max_tx_rate": 100, "mtu": 9000}, {"range": "1", "trust": True}]
    return devices(sim, sriov=[at(PF1, vfs=vfs)])


def born_with_attributes():
    """Other VFs, which wait for their attributes before a driver may take them."""
    sim = lab(igbvf_loaded=True, vfio_loaded=True)
    call(sim, sriov=[at(PF1, vf_count=1, vf_defaults={"driver": "vfio-pci", "vlan": 7})])
    vfs = [{"range": "0", **ATTRIBUTES}, {"range": "1", "driver": "vfio-pci", "vlan": 5}]
    return devices(sim, sriov=[at(PF1, vf_count=3, vfs=vfs)])


def port_goes_up():
    return devices(lab(), sriov=[at(PF1, up=True), at(PF2, up=True)])


def vectors():
    """Of living VFs, one with a driver that stays, one that gets another driver."""
    sim = switches()
    call(sim, sriov=[at(MLX5, vf_count=3)])
    return devices(sim, sriov=[at(MLX5, vf_defaults={"msix_count": 6}, vfs=[{"range": "1", "driver": "vfio-pci", "msix_count": 8}])])


READY = {"nvme_queues": 2, "nvme_interrupts": 1, "online": True}


def nvme_controllers():
    """One VF goes offline, two that were offline go online; one of them has resources already."""
    sim = lab(vfio_loaded=True)
    vfs = [{"range": "0", **READY, "driver": "vfio-pci"}, {"range": "1", "nvme_queues": 1}]
    call(sim, sriov=[at(NVME, vf_count=3, vfs=vfs)])
    return devices(sim, sriov=[at(NVME, vfs=[{"range": "0", "online": False}, {"range": "1-2", **READY}])])


def nvme_primary():
    sim = lab()
    call(sim, sriov=[at(NVME, nvme_primary_queues=2)])
    return devices(sim, sriov=[at(NVME, nvme_primary_queues=4, nvme_primary_interrupts=1)])


def card():
    """A ConnectX-5 (synthetic) that gets SR-IOV by its firmware."""
    sim = lab()
    sim.add_driver("mlx5_core", "15b3:1019", sriov=True, net=True)
    sim.add(Pci("0000:a1:00.0", "15b3:1019", "020000", parent="/sys/devices/pci0000:a0", ifname="enp161s0"))
    sim.firmware["0000:a1:00"] = Firmware(current={"SRIOV_EN": False, "NUM_OF_VFS": 0})
    sim.power_on("root=UUID=1d9f ro console=ttyS0 intel_iommu=on quiet")
    return devices(sim, sriov=[at("0000:a1:00.0", firmware={"sriov": True, "vf_count": 8})])


def switch():
    """Living VFs, one of them a guest's to be, while the mode of the switch changes."""
    sim = switches()
    vfs = [{"range": "0", "driver": "vfio-pci"}]
    call(sim, sriov=[at(MLX4LX, vf_count=2, vfs=vfs)])
    return devices(sim, sriov=[at(MLX4LX, eswitch={"mode": "switchdev", "encap_mode": "basic"}, hw_tc_offload=True)])


def switch_by_legacy():
    """Out of switchdev mode and in again, for a parameter that changes in legacy mode alone."""
    sim = switches()
    call(sim, sriov=[at(MLX5, vf_count=2, eswitch={"mode": "switchdev"})])
    return devices(sim, sriov=[at(MLX5, eswitch={"mode": "switchdev"}, devlink_params=[
        {"name": "flow_steering_mode", "value": "smfs", "cmode": "runtime"},
        {"name": "total_vfs", "value": 16, "cmode": "permanent"},
    ])])


def reloaded():
    sim = switches()
    call(sim, sriov=[at(NSIM, vf_count=2)])
    return devices(sim, sriov=[at(NSIM, vf_count=2, devlink_params=[{"name": "max_macs", "value": 64, "cmode": "driverinit"}])])


def shuffled():
    """Two declared ports, of which the second boot finds each at the other's place."""
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=2), at(PF2, vf_count=1)], vfio=[at(EDU)])
    return shuffle(sim, {PF1: PF2, PF2: PF1}, with_slot=True)


def records_follow():
    sim = shuffled()
    return devices(sim, sriov=[at(PF1, vf_count=1), at(PF2, vf_count=2)])


def rules_follow():
    """Only a replay installs nothing, so only there the rules have a step of their own."""
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=2)])
    sim = shuffle(sim, {PF1: PF2, PF2: PF1}, with_slot=True)
    return sim, lambda: replay.run(sim.host(environment={}, sources=None), None)


def cut_off():
    """A run that was killed while the probing of its VFs was held back."""
    sim = lab(igbvf_loaded=True)
    call(sim, sriov=[at(PF1, vf_count=2)])
    for vf in sim.functions[PF1].vfs:
        sim.write(f"{DEVICES}/{vf}/driver/unbind", vf)
    sim.write(f"{DEVICES}/{PF1}/sriov_drivers_autoprobe", "0")
    sim.replace(store.held_back(PF1), "")
    return devices(sim, sriov=[at(PF1, vf_count=2)])


def stations_change():
    """One goes, one changes, one is made, and the port gets the feature and other queues."""
    sim = stations()
    old = [{"name": "mv0"}, {"name": "mv1"}, {"name": "mv2", "up": False}]
    call(sim, vmdq=[at(DOUBLE, stations=old)])
    new = [{"name": "mv1", "mac": "52:54:00:cc:00:09"}, {"name": "mv2", "kind": "macvtap"}, {"name": "mv3"}]
    return devices(sim, vmdq=[at(DOUBLE, queues={"combined": 4}, stations=new)])


def stations_lose_their_feature():
    sim = stations()
    call(sim, vmdq=[at(DOUBLE, stations=[{"name": "mv0"}, {"name": "mv1"}])])
    return devices(sim, vmdq=[at(DOUBLE, offload=False, require_offload=False, stations=[{"name": "mv0"}, {"name": "mv1", "up": False}])])


def module_options():
    """One that is written at once, and one for which the module is loaded again."""
    sim = lab()
    sim_params.add(sim, "kvm_intel", nested=("bool", "0"), ple_gap=("int", "128", 0o644))
    wishes = {"kvm_intel": {"nested": "1", "ple_gap": "0"}}

    def run():
        host = sim.host()
        plan = modprobe.plan(modprobe.read(host, wishes), wishes, reload=["kvm_intel"])
        return report.result(plan, apply(host, plan), {})

    return sim, run


def kvm_host(prepare=(), **wish):
    """A host with libvirt running, first as `prepare` wishes it."""
    sim = lab()
    virt = sim_libvirt.install(sim)
    virt.up("libvirtd.socket", enabled=True)
    virt._give_uuid(f"{sim_libvirt.NETWORKS}/default.xml")
    for more in prepare:
        kvm(sim, **more)
    return sim, lambda: kvm(sim, **wish)


def pages():
    return kvm_host(hugepages=[{"size": "2M", "count": 64}])


def merging():
    return kvm_host(ksm=True)


def daemons_change():
    sim, run = kvm_host(daemons="modular")
    for name in sim.virt.units.copy():
        sim.virt.up(name, enabled=True) if name.endswith(".socket") else None
    sim.virt.units.update({name: ["loaded", "inactive", "disabled"] for name in daemons.units_of("modular")})
    return sim, run


def member():
    return kvm_host(users=["alice"])


def network_changes():
    other = {"name": "default", "address": "10.7.0.1/16", "dhcp_start": "10.7.0.2", "dhcp_end": "10.7.0.9", "autostart": False}
    return kvm_host([{"networks": [{"name": "default"}]}], networks=[other])


def pool_is_made():
    return kvm_host(pools=[{"name": "images", "path": "/srv/images"}])


def mediated():
    """One goes, one becomes another type, one gets other attributes, one comes; another's definition was edited by hand."""
    sim = lab()
    sim.mdev.add_matrix()
    sim.mdev.parents["matrix"].types["other"] = Type("Other")
    sim.mdev.install()
    uuids = [f"83b8f4f2-509f-382f-3c1e-e6bfe0fa100{n}" for n in range(5)]

    def wish(number, type_="vfio_ap-passthrough", *adapters):
        attributes = [{"name": "assign_adapter", "value": adapter} for adapter in adapters]
        return {"match": {"parent": ["matrix"]}, "type": type_, "uuids": [uuids[number]], "attributes": attributes}

    call(sim, mdev=[wish(0), wish(1), wish(2, "other", "0x04"), wish(3)])
    sim.mdev._save(uuids[3], "matrix", {"mdev_type": "other", "start": "manual", "attrs": []})
    return devices(sim, mdev=[wish(1, "other"), wish(2, "other", "0x05", "0x06"), wish(3), wish(4)])


def intel():
    """VFs with quotas, which i915 then leaves to whoever set one."""
    sim = lab()
    function = Pci("0000:00:02.1", "8086:56c0", "030000", total_vfs=7, offset=1, stride=1, vf_ids="8086:56c0")
    sim.intel.add(function, "i915", "iov", 2)
    share = {"exec_quantum_ms": 20, "ggtt_quota": 1 << 28, "contexts_quota": 1024}
    return devices(sim, vgpu=[{"match": {"address": [function.address]}, "count": 2, "profile": share}])


def subchannel():
    sim = lab()
    sim.mdev.add_subchannels()
    return devices(sim, mdev=[{"match": {"parent": ["0.0.0313"]}, "type": "vfio_ccw-io", "count": 1}])


def gpu(vfs=True):
    sim = lab()
    sim.vgpu.add(Pci(L40S, "10de:26b9", "030200", parent="/sys/devices/pci0000:20", total_vfs=32, offset=4, stride=1, vf_ids="10de:26b9"))
    if vfs:
        sim.vgpu.enable(L40S)
        sim.sleep(5)
    return sim


def vgpus_change():
    """One stays, one gets another type, one goes."""
    sim = gpu()
    call(sim, vgpu=[at(L40S, type="L40S-12Q", count=3)])
    return devices(sim, vgpu=[at(L40S, type="L40S-12Q", count=1), at(L40S, type="L40S-12A", count=1)])


def first_vgpus():
    return devices(gpu(vfs=False), vgpu=[at(L40S, type="L40S-12Q", count=2)])


def vgpus_given_back():
    sim = gpu(vfs=False)
    call(sim, vgpu=[at(L40S, type="L40S-12Q", count=2)])
    return devices(sim, vgpu=[at(L40S, state="absent")])


L40S, H100 = "0000:26:00.0", "0000:65:00.0"


def divided(instances, on=True):
    """An H100 with seven small GPU instances, or with its MIG mode off."""
    sim = lab()
    sim.vgpu.add(Pci(H100, "10de:2331", "030200", parent="/sys/devices/pci0000:65", total_vfs=16, offset=4, stride=1, vf_ids="10de:2331"), "h100")

    def wish(**profiles):
        return at(H100, mig={"enabled": True, "instances": [{"profile": name, "count": count} for name, count in profiles.items()]})

    if on:
        call(sim, vgpu=[wish(**{"1g.10gb": 7})])
    return devices(sim, vgpu=[wish(**instances)])


def geometry_changes():
    return divided({"1g.10gb": 3, "3g.40gb": 1})


def first_mig():
    return divided({"1g.10gb": 2}, on=False)


SCENARIOS = {
    "set_mig_mode": first_mig,
    "create_mig_instances": geometry_changes,
    "destroy_mig_instances": geometry_changes,
    "set_vgpu_type": vgpus_change,
    "enable_vgpu_vfs": first_vgpus,
    "disable_vgpu_vfs": vgpus_given_back,
    "mdev_define": mediated,
    "mdev_start": mediated,
    "mdev_stop": mediated,
    "give_subchannel": subchannel,
    "set_vf_profile": intel,
    "set_auto_provisioning": intel,
    "set_hugepages": pages,
    "set_ksm": merging,
    "set_units": daemons_change,
    "set_member": member,
    "libvirt_define": network_changes,
    "libvirt_active": network_changes,
    "libvirt_autostart": network_changes,
    "libvirt_build": pool_is_made,
    "set_module_options": module_options,
    "set_queues": stations_change,
    "set_station": stations_change,
    "set_offload": stations_lose_their_feature,
    "follow": records_follow,
    "write_rules": rules_follow,
    "resume_probing": cut_off,
    "set_vf_count": with_vfs,
    "probe_vfs": born_with_attributes,
    "set_vf_attributes": told_vfs,
    "unbind": told_vfs,
    "rebind": told_vfs,
    "set_up": port_goes_up,
    "set_msix_count": vectors,
    "set_nvme_primary": nvme_primary,
    "set_nvme_secondary": nvme_controllers,
    "set_firmware": card,
    "detach_vfs": switch,
    "attach_vfs": switch,
    "set_eswitch": switch,
    "set_tc_offload": switch,
    "set_devlink_param": switch_by_legacy,
    "devlink_reload": reloaded,
    "bind": living_vfs,
    "release": back_to_own_drivers,
    "declare": first_device,
    "write_file": command_line,
    "grub_mkconfig": command_line,
    "boot_record": systemd_boot,
    "write_boot_file": systemd_boot,
    "build_uki": images,
    "uki_addon": images_from_elsewhere,
    "grubby_check": entries_of_grub,
    "clean_uki": images,
    "proxmox_refresh": partitions_of_proxmox,
    "ostree_kargs": deployments,
    "finish_swap": cut_off_swap,
    "refresh_initramfs": claimed_early,
    "install_replay": first_device,
    "remove_replay": all_given_back,
}

#: Kinds that are not put back, and why.
NOT_PUT_BACK = {
    "resume_probing": "to leave probing off again would be to do what nobody wished; the next run ends it (actions._undo_resume)",
    "finish_swap": "what it ended stays ended: both names hold the same (uki.undo_finish)",
    "ostree_kargs": "its words come back, at the end (rpm-ostree kargs --append)",
    "remove_replay": "a half-removed replay is worse than none; the next run ends it (boot.undo_remove)",
    "refresh_initramfs": "the record says from then on that an image may hold anything; the next run makes it anew (initramfs.undo)",
}

#: What a step may do in vain without failing: an offer to drivers, what only makes later runs faster, the operator's
#: command on a read-only /usr, what is left beside grub.cfg.
UNHEARD = ("/drivers_probe", "-m compileall", boot.COMMAND, f"remove {grub.new_name(grub.CONFIG)}", uki.STAGE)


#: Tried again until a limit, as udev may rename a new network device at any moment, and NVIDIA's manager may not be ready: it has to fail each time.
TRIED_AGAIN = {"set_tc_offload", "enable_vgpu_vfs"}

#: Tried again likewise, and what is done once more by the undo as well: that one failure is none.
OVERCOME = {"set_eswitch": "ip link set", "devlink_reload": "ip link set"}

#: Cleaning up: what is left does no harm and goes with the next run.
CANNOT_FAIL = {"clean_uki"}


def test_no_kind_of_step_is_left_out():
    # Guests are no devices of the kernel: test_guests_undo.py.
    assert {*SCENARIOS, *GUESTS} == set(actions.TABLE)


@contextlib.contextmanager
def watched(sim, kind):
    """Where in the simulated kernel's log the steps of a kind are at work."""
    step, numbers = actions.TABLE[kind], []

    def within(do):
        def doing(host, args):
            first = len(sim.log)
            try:
                return do(host, args)
            finally:
                numbers.extend(range(first + 1, len(sim.log) + 1))

        return doing

    replaced = dataclasses.replace(step, do=within(step.do), many=within(step.many) if step.many else None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(actions.TABLE, kind, replaced)
        yield numbers


def moments(kind):
    sim, run = SCENARIOS[kind]()
    with watched(sim, kind) as numbers:
        assert run()["failures"] == {}
    return [number for number in numbers if not any(what in " ".join(sim.log[number - 1]) for what in UNHEARD)]


CASES = [(kind, number) for kind in SCENARIOS for number in moments(kind)]


def test_what_a_step_imports_when_it_is_taken_is_in_the_payload():
    """Ansible packs what it sees imported; a name in a text it does not see."""
    tree = ast.parse(inspect.getsource(actions))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_later"]
    named = {f"{actions.__package__}.{ast.literal_eval(call_.args[0])}" for call_ in calls}
    assert len(named) > 5 and named <= {module.__name__ for module in actions._packed()}


def test_each_kind_does_something_that_can_fail():
    assert {kind for kind, _number in CASES} == set(SCENARIOS) - CANNOT_FAIL


@pytest.mark.parametrize(("kind", "number"), CASES, ids=[f"{kind}-{number}" for kind, number in CASES])
def test_a_step_that_fails_is_undone(kind, number):
    sim, run = SCENARIOS[kind]()
    before = sim.snapshot()
    sim.fail_at, sim.fail_again = number, kind in TRIED_AGAIN
    with watched(sim, kind) as numbers:
        result = run()
    sim.fail_at = None
    assert number in numbers
    if kind in OVERCOME and OVERCOME[kind] in " ".join(sim.log[number - 1]):
        assert result["failures"] == {}
        return
    # A step of the host whose end is waited for later fails with those that waited for it.
    assert len(result["failures"]) == 1 or (kind in BESIDE and "host" in result["failures"])
    assert "could not be undone" not in " ".join(result["failures"].values())
    failed = "host" if "host" in result["failures"] else next(iter(result["failures"]))
    # What the replay says of itself.
    sim.files.pop(replay.RESULT, None)
    sim.modes.pop(replay.RESULT, None)
    now = sim.snapshot()
    if kind not in NOT_PUT_BACK:
        for address in sim.functions if failed == "host" else [failed]:
            assert of(now, address) == of(before, address)
    if failed == "host" and kind not in NOT_PUT_BACK:
        assert lasting(now) == lasting(before)
    assert run()["failures"] == {}


def lasting(snapshot):
    """Without what the replay writes down of itself."""
    return {
        **snapshot, **{part: {p: v for p, v in snapshot[part].items() if p != replay.RESULT} for part in ("files", "modes")}
    }


def of(snapshot, address):
    """All that a snapshot holds of one device with its VFs, but for a MAC that a VF's driver made up: it makes up another one."""
    functions = {name: snapshot["functions"].get(name) for name in (address, *before_vfs(snapshot, address))}
    attributes = {name: dict(snapshot["attributes"][name]) for name in functions if name in snapshot["attributes"]}
    for values in attributes.values():
        values["mac"] = values["mac"] if values["by_pf"] else None
    devlink = [snapshot["devlink"].get(name) for name in (address, f"pci/{address}", f"netdevsim/{address}")]
    ours = PORTS.get(address, address)
    # One that nobody has touched is not in the snapshot.
    nets = {name: net for name, net in snapshot["nets"].items() if name.startswith(ours) and net != (False, 1500, False)}
    card = snapshot["firmware"].get(address.rpartition(".")[0])
    vectors = {name: snapshot["msix"].get(name) for name in functions}
    mdev = snapshot["mdev"], snapshot["vgpu"], snapshot["intel"], {path: text for path, text in snapshot["files"].items() if path.startswith(DEFINED)}
    return functions, attributes, devlink, nets, card, snapshot["nvme"].get(address), vectors, of_kvm(snapshot), snapshot["vmdq"].get(address), mdev


def of_kvm(snapshot):
    """All that a part of a KVM host may change; its record stays, and what the next boot brings."""
    files = {path: text for path, text in snapshot["files"].items() if "libvirt" in path or path == "/etc/group"}
    links = {path: target for path, target in snapshot["links"].items() if "libvirt" in path}
    return snapshot["virt"], files, links


#: Port -> its network device; those of its VFs have names that begin alike.
PORTS = {PF1: "enp129s0", PF2: "enp130s0", MLX5: "enp161", MLX4LX: "enp162", "0000:a1:00.0": "enp161"}


def before_vfs(snapshot, address):
    return snapshot["functions"].get(address, (None, None, ()))[2]
