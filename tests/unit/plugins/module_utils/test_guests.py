# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Guests on the simulated kernel and libvirt: what is announced is done, a second run does nothing, what cannot be is refused."""

from __future__ import annotations

import copy
import json

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import cli
from ansible_collections.iovirt.host.plugins.module_utils._engine.errors import EngineError
from ansible_collections.iovirt.host.plugins.module_utils._engine.guests import seed
from ansible_collections.iovirt.host.plugins.module_utils._engine.guests.facts import RECORD
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils import guests_hosts, hosts
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.guests_hosts import (
    VFS,
    converged,
    guest,
    quiet,
    refused,
    vf,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import Pci

VIRTIO = {"model": "virtio", "bridge": "br0"}


@pytest.fixture
def host():
    return guests_hosts.host()


def texts(result):
    return [action["text"] for action in result["actions"]]


def test_a_guest_is_defined_recorded_and_started(host):
    done = converged(host, guest("g1", VIRTIO, autostart=True))
    assert [action["action"] for action in done["actions"]] == ["define_guest", "set_guest_autostart", "record_guest", "start_guest"]
    assert "g1" in host.virt.live and "g1" in host.virt.started
    (part,) = done["diff"]
    assert part["before_header"] == "g1" and "<domain type=" in part["after"] and 'declared memory: "256M"' in part["after"]
    assert json.loads(host.sim.files[RECORD])["guests"]["g1"]["wish"]["memory"] == "256M"
    assert host.sim.modes[RECORD] == 0o600


def test_a_guest_that_is_only_defined_is_left_as_it_runs(host):
    converged(host, guest("g1", state="present"))
    assert host.virt.live == {}
    host.virt.create("g1")
    quiet(host, guest("g1", state="present"))
    converged(host, guest("g1", state="stopped"))
    assert host.virt.live == {}


def test_the_whole_list_is_one_call(host):
    done = converged(host, *[guest(f"g{n}", VIRTIO, memory="128M") for n in range(5)])
    assert sorted(host.virt.live) == [f"g{n}" for n in range(5)]
    assert {action["device"] for action in done["actions"]} == {f"g{n}" for n in range(5)}


# --- VFs of pools ----------------------------------------------------------------------------------------------------


def test_a_guest_gets_a_vf_of_its_pool_and_keeps_it(host):
    converged(host, guest("a", vf(vlan=100)), guest("b", vf()))
    assert host.vf(0)["driver"] == "vfio-pci" and host.vf(0)["vlan"] == 100
    # b keeps the second one when a is gone, whose VF is as it was.
    converged(host, guest("a", state="absent"), guest("b", vf()))
    assert host.vf(0) == {"driver": "igbvf", "override": None, "mac": host.vf(0)["mac"], "vlan": 0}
    assert host.vf(1)["driver"] == "vfio-pci"
    converged(host, guest("b", vf()), guest("c", vf()))
    assert [host.vf(n)["driver"] for n in range(3)] == ["vfio-pci", "vfio-pci", "igbvf"]


def test_an_exhausted_pool_names_its_holders(host):
    running = [guest(f"g{n}", vf()) for n in range(3)]
    converged(host, *running)
    said = refused(host, *running, guest("late", vf()), says="the pool dataplane has no free VF; they are held by")
    for number in range(3):
        assert said.count(f"{VFS[number]}: g{number}") == 1 and f"g{number}, g{number}" not in said
    # A guest that is defined and does not run holds its VF as well.
    converged(host, *[{**wish, "state": "stopped"} for wish in running])
    refused(host, guest("late", vf()), says=f"{VFS[0]}: g0")


def test_a_pool_that_nobody_declared(host):
    refused(host, guest("g1", vf("other")), says="there is no pool other: the pools of this host are dataplane")


def test_near_means_the_node_of_the_guest(host):
    converged(host, guest("g1", vf(numa="near"), numa_node=0))
    said = refused(host, guest("g2", vf(numa="near"), numa_node=1), says="has no VF near NUMA node 1")
    assert f"{VFS[0]} (node 0, trust off)" in said
    refused(host, guest("g2", vf(numa="near")), says="nothing says where the guest is")
    pinned = {"pinning": [{"vcpus": "0", "cpus": "1"}]}
    converged(host, guest("g1", vf(numa="near"), numa_node=0), guest("g3", vf(numa="near"), cpu=pinned))


def test_trust_is_the_pools(host):
    refused(host, guest("g1", vf(trust=True)), says="has no VF with trust")
    trusting = guests_hosts.host(trust=True)
    converged(trusting, guest("g1", vf(trust=True)))


def test_two_devices_of_one_guest_get_two_vfs(host):
    converged(host, guest("g1", vf(), vf()))
    assert [host.vf(n)["driver"] for n in range(3)] == ["vfio-pci", "vfio-pci", "igbvf"]


def test_a_vf_by_its_address_is_not_given_out(host):
    fixed = {"model": "sriov", "address": VFS[0]}
    converged(host, guest("a", vf()), guest("b", {"model": "sriov", "address": VFS[1]}))
    refused(host, guest("a", vf()), guest("c", fixed), says=f"{VFS[0]} is in use by the guest a")


def test_a_port_that_is_down(host):
    host.sim.nets[host.sim.functions[hosts.PF1].ifname].up = False
    host.sim._tree = None
    refused(host, guest("g1", vf()), says="is down, and libvirt takes only a VF whose PF is up")


# --- The holder of a VF ----------------------------------------------------------------------------------------------


def test_while_a_guest_runs_its_vf_is_no_drift(host):
    wish = hosts.at(hosts.PF1, up=True, vf_count=3, vfs=[{"range": "0-2", "driver": "default", "pool": "dataplane", "mac": "auto", "vlan": 7}])
    hosts.call(host.sim, sriov=[wish])
    converged(host, guest("g1", vf(vlan=100)))
    for check in (True, False):
        result = hosts.call(host.sim, sriov=[wish], check=check)
        assert result["actions"] == [] and result["changed"] is False
    converged(host, guest("g1", state="absent"))
    hosts.quiet(host.sim, sriov=[wish])
    assert host.vf(0)["vlan"] == 7 and host.vf(0)["driver"] == "igbvf"


# --- Changes ---------------------------------------------------------------------------------------------------------


def test_what_qemu_can_change_is_changed_at_once(host):
    converged(host, guest("g1", VIRTIO, vcpus=1, vcpus_max=4))
    done = converged(host, guest("g1", VIRTIO, vf(), vcpus=2, vcpus_max=4))
    assert "give it 2 CPUs instead of 1" in texts(done)
    assert any(text.startswith("give the network device") for text in texts(done))
    assert host.vf(0)["driver"] == "vfio-pci" and done["restart_required"] is False
    done = converged(host, guest("g1", VIRTIO, vcpus=2, vcpus_max=4))
    assert any(text.startswith("take the network device") for text in texts(done))
    assert host.vf(0)["driver"] == "igbvf"


def test_a_function_that_is_no_longer_named_goes(host):
    whole = {"model": "passthrough", "address": hosts.EDU}
    converged(host, guest("g1", VIRTIO, whole, state="present", disks=[]))
    # What the declaration does not speak of stays, also what was ours.
    host.virt.defined["g1"].find("devices").append(copy.deepcopy(host.virt.defined["g1"].find("devices/hostdev")))
    host.virt.defined["g1"].findall("devices/hostdev/source/address")[-1].set("slot", "0x1e")
    converged(host, {"name": "g1", "state": "present", "disks": []})
    done = converged(host, guest("g1", VIRTIO, state="present"))
    assert texts(done)[0] == "change its definition"
    assert [address.get("slot") for address in host.virt.defined["g1"].iterfind("devices/hostdev/source/address")] == ["0x1e"]


def test_a_seed_stays_where_it_is_not_spoken_of(host):
    host.with_images()
    disks = [{"model": "virtio", "path": "/var/a.qcow2", "size": "1G"}]
    converged(host, guest("g1", state="present", disks=disks, seed={}))
    done = converged(host, guest("g1", state="present", disks=disks))
    assert [action["action"] for action in done["actions"]] == ["record_guest"]


def test_another_bridge_is_changed_at_once(host):
    host.sim.nets["br1"] = type(host.sim.nets["br0"])(kind="bridge")
    host.sim._tree = None
    converged(host, guest("g1", VIRTIO))
    done = converged(host, guest("g1", {**VIRTIO, "bridge": "br1"}))
    assert done["restart_required"] is False
    assert host.virt.live["g1"].find("devices/interface/source").get("bridge") == "br1"


def test_what_qemu_cannot_change_waits_for_a_start_and_says_so(host):
    converged(host, guest("g1", VIRTIO))
    done = converged(host, guest("g1", VIRTIO, memory="512M"))
    assert done["restart_required"] is True
    assert done["restart_reasons"] == {"g1": ["memory is 262144 and not 524288"]}
    assert host.virt.calls.count("destroy g1") == host.virt.calls.count("shutdown g1") == 0
    # Nothing is done again, and it is said again.
    assert quiet(host, guest("g1", VIRTIO, memory="512M"))["restart_required"] is True
    done = converged(host, guest("g1", VIRTIO, memory="512M"), restart=True)
    assert [action["action"] for action in done["actions"]] == ["stop_guest", "start_guest"]
    assert done["restart_required"] is False


def test_unset_means_untouched(host):
    converged(host, guest("g1", VIRTIO, vcpus=2, cpu={"kvmclock": False}))
    done = converged(host, {"name": "g1", "memory": None, "cpu": {"kvmclock": None}})
    assert [action["action"] for action in done["actions"]] == ["record_guest"]
    # What was ours is still told from an operator's hand.
    edit(host, "g1", "devices/interface/source", bridge="br9")
    assert host.info()["facts"][0]["drift"] != []


def test_a_guest_that_does_not_shut_down_is_not_cut_off(host):
    converged(host, guest("g1"))
    host.virt.deaf.add("g1")
    result = host.call(guest("g1", state="stopped"), timeout=30)
    assert "it has not shut down within 30 s" in result["failures"]["g1"] and "g1" in host.virt.live
    converged(host, guest("g1", state="stopped"), timeout=30, power_off=True)
    assert host.virt.live == {}


def test_without_a_time_to_shut_down_its_power_is_cut_at_once(host):
    converged(host, guest("g1"))
    assert texts(converged(host, guest("g1", state="absent"), timeout=0))[0] == "cut its power"
    assert "shutdown g1" not in host.virt.calls and host.virt.defined == {}


# --- Other hands -----------------------------------------------------------------------------------------------------


def edit(host, name, path, **attributes):
    element = host.virt.defined[name].find(path)
    for key, value in attributes.items():
        element.set(key, value)
    host.virt._write()


def test_an_edited_guest_is_shown_and_not_overwritten_unless_named(host):
    converged(host, guest("g1", VIRTIO, state="present"))
    edit(host, "g1", "devices/interface/source", bridge="br9")
    said = refused(host, guest("g1", VIRTIO, state="present"), says="it was edited by another hand since it was declared")
    assert "/source@bridge is br9 and not br0" in said and "allow: [foreign]" in said
    assert host.info()["facts"][0]["drift"] == [text for text in host.info()["facts"][0]["drift"] if "br9" in text] != []
    converged(host, guest("g1", VIRTIO, state="present"), allow=["foreign"])
    assert host.virt.defined["g1"].find("devices/interface/source").get("bridge") == "br0"


def test_what_others_added_beside_the_declaration_stays(host):
    converged(host, guest("g1", VIRTIO, state="present"))
    root = host.virt.defined["g1"]
    root.append(root.makeelement("description", {}))
    root.find("description").text = "mine"
    quiet(host, guest("g1", VIRTIO, state="present"))
    converged(host, guest("g1", VIRTIO, state="present", memory="512M"))
    assert host.virt.defined["g1"].findtext("description") == "mine"


def test_a_device_that_others_added_is_drift(host):
    converged(host, guest("g1", VIRTIO, state="present"))
    devices = host.virt.defined["g1"].find("devices")
    other = devices.makeelement("interface", {"type": "bridge"})
    other.append(other.makeelement("mac", {"address": "52:54:00:aa:aa:aa"}))
    devices.append(other)
    refused(host, guest("g1", VIRTIO, state="present"), says="devices/interface[52:54:00:aa:aa:aa] is there")


def test_a_guest_of_others_is_not_taken_over_by_its_name(host):
    host.virt.define("<domain type='kvm'><name>g1</name><memory>100000</memory><vcpu>1</vcpu><os><type>hvm</type></os></domain>")
    refused(host, guest("g1", state="present"), says="libvirt has a guest of this name that the collection did not make")
    # As it is, it can be declared.
    converged(host, {"name": "g1", "memory": "100000K", "state": "present"})


def test_exclusive_gives_up_what_the_list_no_longer_names(host):
    converged(host, guest("a", vf(vlan=5)), guest("b"))
    host.virt.define("<domain type='kvm'><name>other</name><memory>100000</memory><vcpu>1</vcpu><os><type>hvm</type></os></domain>")
    before = host.vf(2)
    done = converged(host, guest("b"), exclusive=True)
    assert f"undefine it, which gives back {VFS[0]}; its disks stay" in texts(done)
    assert sorted(host.virt.defined) == ["b", "other"]
    assert {**host.vf(0), "mac": ""} == {**before, "mac": ""}
    converged(host, exclusive=True)
    assert RECORD not in host.sim.files


def test_the_password_of_a_display_stays_and_is_not_shown(host):
    wish = guest("g1", state="present", display={"model": "emulated"})
    converged(host, wish)
    edit(host, "g1", "devices/graphics", passwd="secret")
    done = converged(host, {**wish, "memory": "512M"})
    assert "secret" not in json.dumps(done) and host.virt.defined["g1"].find("devices/graphics").get("passwd") == "secret"
    assert "secret" not in json.dumps(converged(host, guest("g1", state="absent")))


# --- Files -----------------------------------------------------------------------------------------------------------


def test_a_seed_is_written_once_and_is_not_shown(host):
    wish = guest("g1", seed={"user_data": "#cloud-config\npassword: secret\n"})
    done = converged(host, wish)
    assert "secret" not in json.dumps(done)
    data = host.sim.files[seed.path_of("g1")].encode("latin-1")
    assert data[0x8001:0x8006] == b"CD001" and data[0x8028:0x802E] == b"cidata" and b"password: secret" in data
    changed = converged(host, guest("g1", seed={"user_data": "#cloud-config\n"}))
    assert [action["action"] for action in changed["actions"]] == ["write_seed", "record_guest"]
    converged(host, guest("g1", state="absent"))
    assert seed.path_of("g1") not in host.sim.files


def test_an_image_is_made_once_and_never_written_again(host):
    host.with_images()
    wish = guest("g1", disks=[{"model": "virtio", "path": "/var/lib/a.qcow2", "size": "1G"}])
    done = converged(host, wish)
    assert texts(done)[0] == "make its image /var/lib/a.qcow2 (qcow2, 1G, empty)"
    converged(host, guest("g1", state="absent"))
    assert "/var/lib/a.qcow2" in host.sim.files


def test_a_wrong_checksum_makes_nothing(host):
    host.with_images()
    host.sim.tools["python3"] = lambda sim, argv: (1, "", "its checksum is sha256:11 and not sha256:00")
    disk = {"model": "virtio", "path": "/var/lib/a.qcow2", "source": "https://example.org/a", "checksum": f"sha256:{'0' * 64}"}
    result = host.call(guest("g1", disks=[disk]))
    assert "its checksum is sha256:11" in result["failures"]["g1"]
    assert host.virt.defined == {} and "/var/lib/a.qcow2" not in host.sim.files and RECORD not in host.sim.files


# --- Failures --------------------------------------------------------------------------------------------------------


def test_libvirt_is_down(host):
    host.virt.down = True
    refused(host, guest("g1"), says="libvirt does not answer at qemu:///system")


@pytest.mark.parametrize("call", ["define", "create", "autostart"])
def test_what_fails_is_undone_and_the_next_run_mends_it(host, call):
    before = host.snapshot()
    host.virt.faults[call] = "internal error: it does not want to"
    result = host.call(guest("g1", vf(), autostart=True))
    assert "it does not want to" in result["failures"]["g1"]
    assert host.snapshot() == before
    host.virt.faults.clear()
    converged(host, guest("g1", vf(), autostart=True))


def test_a_guest_that_fails_leaves_the_others(host):
    host.sim.files["/etc/libvirt/qemu/x"] = ""
    real = host.virt.create
    host.virt.create = lambda name: real(name) if name != "bad" else host.virt.faults.update(create="no") or real(name)
    result = host.call(guest("good"), guest("bad"))
    assert list(result["failures"]) == ["bad"] and list(host.virt.live) == ["good"]


def test_a_definition_that_libvirt_takes_otherwise_is_no_success(host):
    real = host.virt.define

    def forgetful(xml):
        real(xml)
        for name in host.virt.defined:
            host.virt.defined[name].find("memory").text = "1"

    host.virt.define = forgetful
    assert "libvirt took the definition and has it otherwise: memory" in host.call(guest("g1"))["failures"]["g1"]
    assert host.virt.defined == {}


def test_a_run_that_was_cut_off_is_gone_on_with(host):
    wish = guest("g1", vf(), autostart=True)
    host.call(wish)
    files = dict(host.sim.files)
    # Defined and started, and never recorded.
    del host.sim.files[RECORD]
    host.sim._tree = None
    done = converged(host, wish)
    assert [action["action"] for action in done["actions"]] == ["record_guest"]
    assert json.loads(host.sim.files[RECORD])["guests"]["g1"]["wish"] == json.loads(files[RECORD])["guests"]["g1"]["wish"]


def test_a_record_that_cannot_be_read_stops_the_run(host):
    host.sim.files[RECORD] = "{"
    host.sim._tree = None
    refused(host, guest("g1"), says="is not a version 1 document of guests")


# --- What waits for the reboot, and what is not there yet --------------------------------------------------------------


def test_a_pool_that_the_reboot_brings_is_waited_for():
    host, wished = guests_hosts.Host(hosts.lab()), [hosts.at(hosts.PF1, up=True, vf_count=2, vfs=[{"range": "0-1", "pool": "dataplane"}])]
    coming = hosts.call(host.sim, check=True, sriov=wished)["predicted"]
    assert coming == {"pools": {"dataplane": 2}}
    before = host.snapshot()
    for check in (True, False):
        result = host.call(guest("g1", vf()), guest("g2"), check=check, assume={**coming, "iommu": True}, allow=())
        texts_of = {action["device"]: (action["text"], action["certainty"]) for action in result["actions"] if action["action"] == "define_guest"}
        assert texts_of["g1"] == ("define it and start it, once the pool dataplane gets its VFs", "after_reboot")
        assert texts_of["g2"][1] == "certain"
        assert (result["reboot_required"], result["reboot_reasons"]) == (True, ["the pool dataplane gets its VFs"])
        assert "g1" not in host.virt.defined
        assert host.snapshot() == before if check else "g2" in host.virt.defined
    # Then it is there, whatever the call still assumes.
    assert "predicted" in hosts.call(host.sim, sriov=wished)
    done = host.call(guest("g1", vf()), assume=coming)
    assert done["reboot_required"] is False and "g1" in host.virt.live
    # What the call before said nothing of is refused, as ever.
    refused(host, guest("g3", vf("other")), says="there is no pool other", assume=coming)


def test_vfs_that_are_there_before_the_iommu_is_on():
    sim = hosts.lab(iommu=False)
    hosts.call(sim, sriov=[hosts.at(hosts.PF1, up=True, vf_count=2, vfs=[{"range": "0-1", "pool": "dataplane"}])])
    host = guests_hosts.Host(sim)
    result = host.call(guest("g1", vf()), check=True, assume={"iommu": True})
    assert result["reboot_reasons"] == ["the IOMMU is switched on"]
    refused(host, guest("g1", vf()), says="has no IOMMU group")


def test_a_libvirt_that_the_run_installs(host):
    host.virt.down = True
    refused(host, guest("g1", {"model": "virtio", "nat": "lan"}), says="libvirt does not answer")
    result = host.call(guest("g1", {"model": "virtio", "nat": "lan"}), check=True, assume={"libvirt": True})
    assert [action["action"] for action in result["actions"]] == ["define_guest", "record_guest", "start_guest"]
    # Done it is only by one that answers.
    with pytest.raises(EngineError, match="libvirt does not answer"):
        host.call(guest("g1"), assume={"libvirt": True})


# --- Refusals --------------------------------------------------------------------------------------------------------

BAD = [
    ({"network": [{"model": "virtio", "bridge": "br7"}]}, "network[0]: there is no bridge br7 on this host"),
    ({"network": [{"model": "virtio", "bridge": "ens3"}]}, "ens3 is no bridge"),
    ({"network": [{"model": "virtio", "nat": "lan"}]}, "libvirt has no network lan (it has default)"),
    ({"network": [{"model": "macvtap", "parent": "eth9"}]}, "there is no port eth9"),
    ({"network": [{"model": "virtio"}]}, "the model virtio needs bridge or nat"),
    ({"network": [{"model": "virtio", "bridge": "br0", "vlan": 5}]}, "vlan means nothing for the model virtio"),
    ({"network": [{"model": "sriov", "address": hosts.PF1}]}, "has 3 VFs, which would vanish"),
    ({"network": [{"model": "passthrough", "address": hosts.MANAGEMENT}]}, "carries the path to the controller"),
    ({"network": [{"model": "passthrough", "address": "0000:ff:00.0"}]}, "there is no 0000:ff:00.0"),
    ({"network": [{"model": "virtio", "bridge": "br0", "mac": "01:00:00:00:00:01"}]}, "is no address of one device"),
    ({"network": [{"model": "virtio", "bridge": "br0", "mac": "52:54:00:00:00:01"}]}, "and the host's port ens3 would both have the MAC"),
    ({"disks": [{"model": "nvme", "address": hosts.NVME}, {"model": "sata"}]}, "disks[1]: the model sata needs path"),
    ({"disks": [{"model": "virtio", "path": "/nowhere.qcow2"}]}, "nothing says what it is made of"),
    ({"disks": [{"model": "virtio", "path": "/a", "source": "https://x/y"}]}, "what comes from a URL needs a checksum"),
    ({"disks": [{"model": "virtio", "path": "/a", "source": "/b"}]}, "there is no /b"),
    ({"disks": [{"model": "lun", "path": "/a.img"}]}, "the model lun passes a SCSI disk"),
    ({"memory": "8G"}, "memory 8G is more than this host has (3906 MiB)"),
    ({"memory": "lots"}, "memory 'lots' is no size"),
    ({"hugepages": "1G"}, "this host has no pages of that size (it has 2M)"),
    ({"memory": "1G", "hugepages": "2M"}, "this host has 256 of 2M, 256 of them free, and the guest needs 512"),
    ({"cpu": {"pinning": [{"vcpus": "0", "cpus": "0,7"}]}}, "this host has no CPU 7 (online: 0-3)"),
    ({"cpu": {"pinning": [{"vcpus": "3", "cpus": "0"}]}}, "names vCPU 3, and there are 1"),
    ({"cpu": {"topology": {"sockets": 1, "cores": 2, "threads": 1}}}, "cpu.topology makes 2 CPUs, and there are 1"),
    ({"cpu": {"accel": "tcg", "hyperv": True}}, "cpu.hyperv is KVM's"),
    ({"numa_node": 7}, "this host has the nodes 0, 1"),
    ({"boot": {"kernel": "/boot/nothing"}}, "there is no /boot/nothing"),
    ({"boot": {"secure_boot": True}}, "boot.secure_boot is UEFI's"),
    ({"display": {"model": "passthrough"}}, "the model passthrough needs address"),
    ({"name": "a/b"}, "libvirt does not take it as a name"),
    ({"name": " "}, "it is empty"),
]


@pytest.mark.parametrize(("wrong", "says"), BAD, ids=[says[:40] for _wrong, says in BAD])
def test_bad_input_is_a_sentence(host, wrong, says):
    refused(host, {**guest("g1"), **wrong}, says=says)


def test_two_guests_with_one_mac(host):
    one = {**VIRTIO, "mac": "52:54:00:aa:bb:cc"}
    refused(host, guest("a", one), guest("b", one), says="network[0] of the guest a would both have the MAC 52:54:00:aa:bb:cc")
    converged(host, guest("a", one))
    refused(host, guest("b", one), says="the guest a would both have the MAC")


def test_one_function_for_two_guests(host):
    whole = {"model": "passthrough", "address": hosts.EDU}
    refused(host, guest("a", whole), guest("b", whole), says=f"network[0] and network[0] of the guest a both name {hosts.EDU}")


def test_a_function_that_another_guest_has(host):
    whole = {"model": "passthrough", "address": hosts.EDU}
    for state in ("running", "stopped"):
        converged(host, guest("a", whole, state=state))
        refused(host, guest("b", whole), says=f"network[0]: {hosts.EDU} is in use by the guest a.")


def test_memory_that_is_pinned_has_to_fit_together(host):
    """3906 MiB: each for itself would fit."""
    wishes = [guest("a", vf(), memory="2G"), guest("b", memory="2G", locked=True)]
    refused(host, *wishes, says="the guests a, b have functions or locked memory, so theirs is pinned: 4096 MiB in all, and this host has 3906")
    converged(host, wishes[0], guest("b", memory="2G"), guest("c", memory="1G", locked=True))


def test_a_group_goes_to_one_guest_or_not_at_all(host):
    """What the guest takes as well is in nobody's way."""
    card = "0000:00:0a.0"
    host.sim.add(Pci(card, "8086:10d3", "020000", ifname="eth7", mac="52:54:00:00:00:77"))
    host.sim.shared_groups = {hosts.EDU: "a", card: "a"}
    host.sim.reboot()
    edu, sibling = ({"model": "passthrough", "address": address} for address in (hosts.EDU, card))
    said = refused(host, guest("g1", edu), says=f"network[0]: {hosts.EDU}: ")
    assert f"{card}, which the host uses (driver e1000e)" in said and "allow: [group]" in said
    converged(host, guest("g1", edu, sibling))


def test_a_disk_that_is_mounted(host):
    disk = host.sim.blocks[-1]
    host.sim.files["/proc/self/mountinfo"] += hosts.mount(disk.number, "/srv", f"/dev/{disk.name}")
    host.sim._tree = None
    said = refused(host, guest("g1", disks=[{"model": "nvme", "address": hosts.NVME}]), says=f"disks[0]: {hosts.NVME}: ")
    assert "/srv" in said and "allow: [boot_disk]" in said


def test_the_card_of_the_console(host):
    cards = ["0000:00:0b.0", "0000:00:0c.0"]
    for address in cards:
        host.sim.add(Pci(address, "1234:1111", "030000", boot_vga=address == cards[0]))
    host.sim.reboot()
    shown, other = ({"model": "passthrough", "address": address} for address in cards)
    assert "allow: [console]" in refused(host, guest("g1", display=shown), says=f"display: {cards[0]}: ")
    converged(host, guest("g1", display=other))


def test_two_declarations_of_one_guest(host):
    refused(host, guest("a"), guest("a"), says="two declarations have this name")


def test_a_new_guest_without_memory(host):
    refused(host, {"name": "g1"}, says="it is new, and memory is not named")


def test_a_saved_guest_is_not_thrown_away(host):
    converged(host, guest("g1", state="stopped"))
    host.virt.saved.add("g1")
    refused(host, guest("g1", state="absent"), says="its memory was saved to disk (managedsave), and that would be lost")
    refused(host, guest("g1", memory="512M"), says="it would go on from there as it was defined then")
    converged(host, guest("g1"))


# --- The operator's command ------------------------------------------------------------------------------------------


def test_status_shows_guests_by_files_alone(host, monkeypatch, capsys):
    """libvirt is not asked: its Python module need not be there."""
    monkeypatch.setattr(cli, "Host", lambda **_given: host.sim.host())
    monkeypatch.setattr(cli.os, "geteuid", lambda: 0)
    converged(host, guest("g1", vf(mac="52:54:00:aa:00:01")), guest("g2", state="stopped"), declared_by="4f2c91")
    assert cli.main(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == [
        "GUEST  STATE     DEVICES       DIFFERS  BY      WHEN",
        f"g1     running   {VFS[0]}  no       4f2c91  2026-01-31T12:00:00Z",
        "g2     shut off  -             no       4f2c91  2026-01-31T12:00:00Z",
    ]
    edited = host.virt.domains()["g2"].inactive.replace("262144", "131072")
    host.virt.define(edited)
    assert cli.main(["status", "--json"]) == 2
    (_g1, g2) = json.loads(capsys.readouterr().out)["guests"]
    assert "memory is 131072 and not 262144" in g2["differs"]
    host.virt.undefine("g2")
    assert cli.main(["status"]) == 2
    assert "g2: not as it was made: it is not defined" in capsys.readouterr().out
