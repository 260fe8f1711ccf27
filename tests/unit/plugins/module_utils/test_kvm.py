# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A KVM host: module parameters, huge pages, KSM, libvirt's daemons, users, networks, pools; given back as it was."""

from __future__ import annotations

import json

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import engine, spec
from ansible_collections.iovirt.host.plugins.module_utils._engine.errors import EngineError
from ansible_collections.iovirt.host.plugins.module_utils._engine.kvm import (
    daemons,
    hugepages,
    ksm,
    networks,
    objects,
    record,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils import sim_libvirt
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import lab
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim_libvirt import NETWORKS, POOLS

NAT = {"name": "lab", "mode": "nat", "address": "10.9.0.1/24", "dhcp_start": "10.9.0.2", "dhcp_end": "10.9.0.99"}
POOL = {"name": "images", "path": "/srv/images"}
EVERYTHING = {
    "nested": False,
    "paging": True,
    "hugepages": [{"size": "2M", "count": 64}],
    "ksm": True,
    "daemons": "auto",
    "users": ["alice"],
    "networks": [NAT],
    "pools": [POOL],
}


def filled(options, given):
    """With the defaults, as Ansible fills them in."""
    found = {}
    for name, option in options.items():
        value = given.get(name, option.get("default"))
        if value is not None and option.get("options") and option["type"] == "list":
            value = [filled(option["options"], item) for item in value]
        found[name] = value
    assert set(given) <= set(options)
    return found


def kvm(sim, check=False, allow=(), coming=False, **wish):
    params = filled(spec.MODULES["kvm"], wish)
    return engine.host_kvm(sim.host(), params, engine.Call(check=check, who="test"), allow, coming)


def host(**more):
    sim = lab()
    return sim, sim_libvirt.install(sim, **more)


def works(sim, **wish):
    """What check mode announces is what a run does; a second run finds nothing to do."""
    before = sim.snapshot()
    announced = kvm(sim, check=True, **wish)
    assert sim.snapshot() == before
    done = kvm(sim, **wish)
    assert done["failures"] == {}
    for key in ("actions", "diff", "changed"):
        assert done[key] == announced[key]
    calm(sim, **wish)
    return done


def calm(sim, **wish):
    before = sim.snapshot()
    for check in (True, False):
        again = kvm(sim, check=check, **wish)
        assert [a["text"] for a in again["actions"] if a["certainty"] != "after_reboot"] == []
        assert again["changed"] is False
    assert sim.snapshot() == before
    return again


def refused(sim, *words, **wish):
    before, done, sentences = sim.snapshot(), list(sim.log), []
    for check in (True, False):
        with pytest.raises(EngineError) as caught:
            kvm(sim, check=check, **wish)
        sentences.append(str(caught.value))
    assert sentences[0] == sentences[1]
    assert (sim.snapshot(), sim.log) == (before, done)
    for word in words:
        assert word in sentences[0]


def texts(result):
    return [action["text"] for action in result["actions"]]


# --- All of it -----------------------------------------------------------------------------------------------------


def test_everything_is_made_and_given_back():
    sim, virt = host()
    before, units = sim.snapshot(), virt.snapshot()
    done = works(sim, **EVERYTHING)
    assert done["changed"]
    assert sim.params["kvm_amd"].params["nested"].value == "N"
    assert (virt.pages[2048, 0], virt.ksm) == (64, "1")
    assert "libvirt:x:105:alice" in sim.files["/etc/group"]
    assert sim.files["/run/libvirt/network/lab.xml"]
    assert sim.links[f"{POOLS}/autostart/images.xml"]
    assert sim.modes[record.PATH] == 0o600
    given = works(sim, state="absent")
    assert given["changed"]
    after = sim.snapshot()
    assert virt.snapshot() == units
    assert after["params"] == before["params"]
    gone = {path for path in before["files"] if path not in after["files"]}
    come = {path: text for path, text in after["files"].items() if before["files"].get(path) != text}
    # An empty folder stays, and what grub-mkconfig made says the same as before.
    assert gone == set()
    assert set(come) <= {"/srv/images/.keep", "/boot/grub/grub.cfg"}


def test_what_is_not_named_is_neither_read_nor_touched():
    sim, _virt = host()
    sim.missing |= {"systemctl", "virsh", "timeout"}
    sim.unreadable.add("/etc/group")
    done = kvm(sim)
    assert (done["changed"], done["actions"], done["kvm"]) == (False, [], {})
    done = works(sim, nested=True, hugepages=[{"size": "2M", "count": 4}])
    assert {action["device"] for action in done["actions"]} == {"host", "KVM", "huge pages 2M"}


def test_an_empty_record_is_nothing_to_give_back():
    sim, _virt = host()
    assert calm(sim, state="absent")["actions"] == []


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 7, "origin": {}}', '{"version": 1, "origin": {"ksm": 3}}'])
def test_a_record_that_is_not_understood_stops_everything(text):
    sim, _virt = host()
    sim.files[record.PATH] = text
    refused(sim, record.PATH, "move the file away", ksm=True)


def test_the_record_keeps_what_was_there_first():
    sim, virt = host()
    kvm(sim, hugepages=[{"size": "2M", "count": 8}])
    kvm(sim, hugepages=[{"size": "2M", "count": 16}], ksm=True)
    assert json.loads(sim.files[record.PATH])["origin"] == {"hugepages": {"2048": 0}, "ksm": {"run": "0"}}
    kvm(sim, state="absent")
    assert (virt.pages[2048, 0], virt.ksm) == (0, "0")
    assert record.PATH not in sim.files


def test_guests_that_run_keep_their_host():
    sim, _virt = host()
    kvm(sim, **EVERYTHING)
    sim.files["/run/libvirt/qemu/web.xml"] = "<domstatus state='running' pid='7'/>"
    sim._tree = None
    refused(sim, "guests run (web)", "allow: [in_use]", state="absent")
    assert kvm(sim, state="absent", allow=["in_use"])["changed"]


# --- The KVM module ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("module", "param"), [("kvm_amd", "npt"), ("kvm_intel", "ept")])
def test_parameters_come_at_once_where_no_vm_runs(module, param):
    sim, _virt = host(module=module)
    done = works(sim, nested=False, paging=False)
    assert sim.snapshot()["params"][module] == (True, {"nested": "N", param: "N"})
    assert not done["reboot_required"]
    info = engine.kvm_info(sim.host())["kvm"]
    assert (info["module"], info["nested"], info["paging"], info["nested_next_load"]) == (module, False, False, False)


def test_parameters_wait_while_a_vm_runs():
    sim, virt = host()
    virt.vms = 1
    sim.params["kvm_amd"].users = 1
    done = works(sim, nested=False)
    assert sim.params["kvm_amd"].params["nested"].value == "Y"
    assert "until the module is loaded again" in done["reboot_reasons"][0]
    info = engine.kvm_info(sim.host())["kvm"]
    assert (info["nested"], info["nested_next_load"]) == (True, False)
    virt.vms = sim.params["kvm_amd"].users = 0
    sim.reboot()
    assert calm(sim, nested=False)["reboot_reasons"] == []


def test_given_back_while_a_vm_runs_waits_as_well():
    sim, virt = host()
    kvm(sim, nested=False)
    virt.vms = sim.params["kvm_amd"].users = 1
    sim._tree = None
    done = kvm(sim, state="absent")
    assert sim.params["kvm_amd"].params["nested"].value == "N"
    assert "kvm_amd.nested is N" in done["reboot_reasons"][0]


def test_a_processor_without_kvm_has_no_parameters():
    sim = lab()
    refused(sim, "no KVM module of this processor is known", "Leave kvm_nested unset", nested=True)


# --- Huge pages ----------------------------------------------------------------------------------------------------


def test_huge_pages_are_there_now_and_after_the_boot():
    sim, virt = host()
    done = works(sim, hugepages=[{"size": "2M", "count": 32}, {"size": "1G", "count": 2}])
    assert not done["reboot_required"]
    assert (virt.pages[2048, 0], virt.pages[1048576, 0]) == (32, 2)
    sim.reboot()
    assert "hugepagesz=2M hugepages=32 hugepagesz=1G hugepages=2" in sim.files["/proc/cmdline"]
    assert (virt.pages[2048, 0], virt.pages[1048576, 0]) == (32, 2)
    calm(sim, hugepages=[{"size": "2M", "count": 32}, {"size": "1G", "count": 2}])


def test_where_there_is_no_room_they_come_with_the_boot():
    sim, virt = host()
    virt.taken = virt.memory - 3 * 1024 * 1024
    done = works(sim, hugepages=[{"size": "1G", "count": 4}])
    assert [a["certainty"] for a in done["actions"] if a["action"] == "set_hugepages"] == ["after_reboot"]
    assert done["reboot_reasons"] == ["huge pages 1G: 0 of 4 are there; the others come with the boot"]
    sim.reboot()
    assert virt.pages[1048576, 0] == 4
    assert calm(sim, hugepages=[{"size": "1G", "count": 4}])["reboot_reasons"] == []


def test_memory_that_is_too_scattered_is_put_back_and_comes_with_the_boot():
    sim, virt = host()
    virt.room[1048576] = 1
    wish = [{"size": "1G", "count": 4}]
    announced = kvm(sim, check=True, hugepages=wish)
    done = kvm(sim, hugepages=wish)
    assert done["actions"] == announced["actions"]
    assert (done["failures"], virt.pages[1048576, 0]) == ({}, 0)
    assert done["reboot_required"]
    assert calm(sim, hugepages=wish)["reboot_required"]
    virt.room.clear()
    sim.reboot()
    assert not calm(sim, hugepages=wish)["reboot_required"]


def test_pages_that_somebody_took_since_the_boot_come_back_or_it_fails():
    sim, virt = host()
    wish = [{"size": "1G", "count": 4}]
    kvm(sim, hugepages=wish)
    sim.reboot()
    virt.pages[1048576, 0] = 0
    sim._tree = None
    works(sim, hugepages=wish)
    assert virt.pages[1048576, 0] == 4
    virt.pages[1048576, 0], virt.room[1048576] = 0, 3
    sim._tree = None
    failed = kvm(sim, hugepages=wish)
    assert "the kernel gave 3 of 4" in failed["failures"]["huge pages 1G"]
    assert virt.pages[1048576, 0] == 0


def test_pages_of_one_node():
    sim, virt = host(nodes=2)
    wish = [{"size": "1G", "count": 2, "numa_node": 1}, {"size": "2M", "count": 8}]
    works(sim, hugepages=wish)
    assert [virt.pages[1048576, node] for node in (0, 1)] == [0, 2]
    sim.reboot()
    assert "hugepagesz=1G hugepages=1:2" in sim.files["/proc/cmdline"]
    assert [virt.pages[1048576, node] for node in (0, 1)] == [0, 2]
    info = calm(sim, hugepages=wish)["kvm"]["hugepages"]
    assert {"size": "1G", "count": 2, "numa_node": 1} in info
    assert {"size": "2M", "count": 4, "numa_node": 0} in info


def test_fewer_pages_than_a_guest_has_are_counted_without_the_surplus():
    sim, virt = host()
    kvm(sim, hugepages=[{"size": "2M", "count": 64}])
    virt.pages[2048, 0] = 40
    virt.surplus[2048, 0] = 24
    sim._tree = None
    assert hugepages.read(sim.host(), True).counts[2048, None] == 16


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ([{"size": "4M", "count": 1}], "no pages of that size (it has 2M, 1G)"),
        ([{"size": "many", "count": 1}], "huge pages many"),
        ([{"size": "2M", "count": -1}], "no number of pages"),
        ([{"size": "2M", "count": 1, "numa_node": 7}], "no NUMA node 7 (there are 0)"),
        ([{"size": "2M", "count": 1}, {"size": "2048k", "count": 2}], "wished twice"),
        ([{"size": "2M", "count": 1}, {"size": "2M", "count": 2, "numa_node": 0}], "for all nodes and for one"),
        ([{"size": "1G", "count": 8}], "8192 MiB are wished, and the host has 8192 MiB"),
        ([{"size": "1G", "count": 4}, {"size": "2M", "count": 2048}], "8192 MiB are wished"),
    ],
)
def test_pages_that_cannot_be(wish, words):
    refused(host()[0], words, "nothing was changed", hugepages=wish)


def test_pages_of_a_node_take_a_kernel_that_knows_them_at_boot():
    sim, _virt = host()
    sim.files["/proc/sys/kernel/osrelease"] = "5.10.0-sim\n"
    sim._tree = None
    refused(sim, "5.16 does", hugepages=[{"size": "2M", "count": 1, "numa_node": 0}])


def test_none_of_a_size_that_nobody_speaks_of_needs_no_word():
    sim, _virt = host()
    assert calm(sim, hugepages=[{"size": "1G", "count": 0}])["actions"] == []
    kvm(sim, hugepages=[{"size": "1G", "count": 2}])
    works(sim, hugepages=[{"size": "1G", "count": 0}])
    sim.reboot()
    assert "hugepages=0" in sim.files["/proc/cmdline"]


@pytest.mark.parametrize(("text", "size"), [("2M", 2048), ("1G", 1048576), ("2048kB", 2048), ("64 KiB", 64), ("2", None), ("M", None)])
def test_sizes(text, size):
    assert hugepages.parse(text) == size


# --- KSM -----------------------------------------------------------------------------------------------------------


def test_ksm_comes_back_after_the_boot():
    sim, virt = host()
    works(sim, ksm=True)
    sim.reboot()
    assert virt.ksm == "1"
    calm(sim, ksm=True)


def test_ksm_off_takes_merged_pages_apart():
    sim, virt = host()
    virt.ksm, virt.sharing = "1", 500
    works(sim, ksm=False)
    assert (virt.ksm, virt.sharing) == ("2", 0)


def test_merged_pages_that_were_left_are_not_off():
    sim, virt = host()
    virt.ksm, virt.sharing = "0", 500
    assert "take merged pages apart" in texts(works(sim, ksm=False))[-1]


def test_a_tuner_rules_ksm():
    sim, virt = host()
    virt.units["ksmtuned.service"] = ["loaded", "active", "enabled"]
    refused(sim, "ksmtuned.service rules it", "allow: [foreign]", ksm=True)
    assert kvm(sim, ksm=True, allow=["foreign"])["changed"]


def test_a_kernel_without_ksm():
    sim, virt = host()
    virt.has_ksm = False
    refused(sim, ksm.RUN, ksm=False)


# --- Daemons -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["monolithic", "modular"])
def test_the_daemons_that_are_there_are_started(kind):
    sim, virt = host(kind=kind)
    works(sim, daemons="auto")
    main = "libvirtd" if kind == "monolithic" else "virtqemud"
    assert virt.units[f"{main}.service"][2] == "enabled"
    assert virt.units[f"{main}.socket"][1:] == ["active", "enabled"]
    assert virt.units["virtlogd.socket"][1:] == ["active", "enabled"]


def test_one_kind_takes_the_place_of_the_other():
    sim, virt = host(kind="monolithic")
    for name in ("libvirtd.service", "libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket"):
        virt.up(name, enabled=True)
    for name in daemons.units_of("modular"):
        virt.units[name] = ["loaded", "inactive", "disabled"]
    assert engine.kvm_info(sim.host())["kvm"]["daemons"] == "monolithic"
    units = virt.snapshot()
    works(sim, daemons="modular")
    assert virt.units["libvirtd.service"][1:] == virt.units["libvirtd.socket"][1:] == ["inactive", "disabled"]
    assert virt.units["virtnetworkd.service"][2] == "enabled"
    assert engine.kvm_info(sim.host())["kvm"]["daemons"] == "modular"
    calm(sim, daemons="auto")
    kvm(sim, state="absent")
    after = virt.snapshot()
    # A service comes with its socket.
    assert after["units"].pop("libvirtd.service")[2] == units["units"].pop("libvirtd.service")[2]
    assert after == units


def test_a_socket_whose_service_runs_is_left_alone():
    sim, virt = host()
    virt.up("libvirtd.service")
    works(sim, daemons="auto")
    assert virt.units["libvirtd.socket"][1:] == ["inactive", "enabled"]


def test_a_unit_that_does_not_follow_is_a_failure():
    sim, virt = host()
    before = virt.snapshot()
    virt.stubborn.add("libvirtd.socket")
    failed = kvm(sim, daemons="auto")
    assert "libvirtd.socket did not follow" in failed["failures"][daemons.UNIT]
    assert virt.snapshot() == before


@pytest.mark.parametrize(("kind", "wish"), [(None, "auto"), (None, "modular"), ("monolithic", "modular")])
def test_daemons_that_are_not_installed(kind, wish):
    refused(host(kind=kind)[0], "is not installed", daemons=wish)


def test_what_the_packages_will_bring_is_predicted():
    sim, _virt = host(kind=None)
    wish = {"daemons": "auto", "users": ["alice"], "networks": [NAT], "pools": [POOL]}
    refused(sim, "Install the packages first", **wish)
    announced = kvm(sim, check=True, coming=True, **wish)
    assert {a["certainty"] for a in announced["actions"] if a["action"].startswith(("libvirt_", "set_units"))} == {"predicted"}
    assert announced["changed"]


# --- Users ---------------------------------------------------------------------------------------------------------


def test_users_and_polkit():
    sim, _virt = host()
    works(sim, users=["alice", "dora"])
    assert "libvirt:x:105:alice,dora" in sim.files["/etc/group"]
    refused(sim, "there is no user mallory", users=["alice", "mallory"])


def test_no_users_take_no_group():
    sim, _virt = host(kind=None)
    refused(sim, "there is no group libvirt", users=["alice"])
    assert calm(sim, users=[])["actions"] == []


def test_polkit_gets_a_rule_where_it_has_none():
    sim, _virt = host()
    sim.files.pop("/usr/share/polkit-1/rules.d/60-libvirt.rules")
    sim._tree = None
    works(sim, users=["alice"])
    rule = "/etc/polkit-1/rules.d/60-iovirt-libvirt.rules"
    assert 'isInGroup("libvirt")' in sim.files[rule]
    kvm(sim, state="absent")
    assert rule not in sim.files
    assert "libvirt:x:105:\n" in sim.files["/etc/group"]


def test_a_user_who_was_in_stays_in():
    sim, _virt = host()
    sim.files["/etc/group"] = "libvirt:x:105:alice\n"
    kvm(sim, users=["alice"], ksm=True)
    kvm(sim, state="absent")
    assert sim.files["/etc/group"] == "libvirt:x:105:alice\n"


# --- Networks and pools --------------------------------------------------------------------------------------------


def running(**more):
    sim, virt = host(**more)
    virt.up("libvirtd.socket", enabled=True)
    sim._tree = None
    return sim, virt


def test_a_nat_network():
    sim, _virt = running()
    done = works(sim, networks=[NAT])
    assert texts(done) == [f"record in {record.PATH} how it was before", "define it", "start it", "start it with the host"]
    root = objects.parse(sim.files[f"{NETWORKS}/lab.xml"])
    assert networks.meaning(root) == {
        "mode": "nat", "bridge": "virbr7", "address": "10.9.0.1/24", "dhcp_start": "10.9.0.2", "dhcp_end": "10.9.0.99",
    }
    sim.reboot()
    calm(sim, networks=[NAT])


def test_a_definition_is_compared_by_what_it_means():
    """Debian's default network: <forward/> is nat, a netmask is a prefix."""
    sim, _virt = running()
    same = {"name": "default", "mode": "nat", "bridge": "virbr0", "address": "192.168.122.1/24"}
    done = works(sim, networks=[same])
    assert texts(done)[1:] == ["start it", "start it with the host"]
    assert sim.files[f"{NETWORKS}/default.xml"] == sim_libvirt.DEFAULT


def test_what_a_definition_says_beyond_the_wish_stays():
    sim, _virt = running()
    sim.files[f"{NETWORKS}/default.xml"] = sim_libvirt.DEFAULT.replace("<forward/>", "<forward/><domain name='vm'/><mtu size='9000'/>")
    sim._tree = None
    kvm(sim, networks=[{"name": "default"}])
    done = works(sim, networks=[{"name": "default", "address": "10.7.0.1/16", "dhcp_start": "10.7.0.2", "dhcp_end": "10.7.1.9"}])
    assert texts(done) == ["stop it, for its new definition", "redefine it", "start it"]
    text = sim.files[f"{NETWORKS}/default.xml"]
    assert "9000" in text and "<domain" in text and "192.168" not in text
    assert sim.files["/run/libvirt/network/default.xml"] == text
    kvm(sim, state="absent")
    assert networks.meaning(objects.parse(sim.files[f"{NETWORKS}/default.xml"]))["address"] == "192.168.122.1/24"
    assert "/run/libvirt/network/default.xml" not in sim.files


def test_modes():
    sim, _virt = running()
    sim.files["/sys/class/net/br0/bridge/stp_state"] = "0\n"
    sim._tree = None
    kvm(sim, networks=[{"name": "default"}])
    for mode, more in (("isolated", {}), ("route", {}), ("nat", {}), ("bridge", {"bridge": "br0"})):
        works(sim, networks=[{"name": "default", "mode": mode, **more}])
        assert networks.meaning(objects.parse(sim.files[f"{NETWORKS}/default.xml"]))["mode"] == mode
    assert "<ip" not in sim.files[f"{NETWORKS}/default.xml"]


def test_networks_go_and_come_back():
    sim, _virt = running()
    kvm(sim, networks=[{"name": "default"}])
    done = works(sim, networks=[{"name": "default", "state": "absent"}, {"name": "never", "state": "absent"}])
    assert texts(done) == ["stop it", "undefine it"]
    assert f"{NETWORKS}/default.xml" not in sim.files
    kvm(sim, state="absent")
    assert f"{NETWORKS}/default.xml" in sim.files


def test_a_network_that_guests_are_plugged_into():
    sim, _virt = running()
    kvm(sim, networks=[{"name": "default"}])
    sim.files["/sys/class/net/virbr0/brif/vnet0/port_no"] = "1\n"
    sim._tree = None
    calm(sim, networks=[{"name": "default"}])
    for wish in ({"address": "10.7.0.1/16"}, {"state": "absent"}, {"active": False}):
        refused(sim, "vnet0 of guests are plugged into its bridge virbr0", "allow: [in_use]", networks=[{"name": "default", **wish}])
    assert kvm(sim, allow=["in_use"], networks=[{"name": "default", "state": "absent"}])["changed"]


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"name": "../x"}, "that is no name"),
        ({"name": "new"}, "Say mode"),
        ({"name": "new", "mode": "nat"}, "Say address"),
        ({"name": "new", "mode": "nat", "address": "10.9.0.0/24"}, "no address of the host with its prefix"),
        ({"name": "new", "mode": "nat", "address": "10.9.0.1"}, "no address of the host with its prefix"),
        ({"name": "new", "mode": "nat", "address": "10.9.0.300/24"}, "10.9.0.300"),
        ({**NAT, "dhcp_end": "10.8.0.1"}, "is no range in 10.9.0.0/24"),
        ({**NAT, "dhcp_end": None}, "Say both"),
        ({**NAT, "address": "10.0.2.9/24", "dhcp_start": None, "dhcp_end": None}, "the host reaches 10.0.2.0/24 by ens3"),
        ({"name": "new", "mode": "bridge"}, "Say bridge"),
        ({"name": "new", "mode": "bridge", "bridge": "br9"}, "the host has no bridge br9"),
        ({"name": "new", "mode": "bridge", "bridge": "br9", "address": "10.9.0.1/24"}, "the bridge is the host's"),
    ],
)
def test_networks_that_cannot_be(wish, words):
    sim, _virt = running()
    routes = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\nens3\t0002000A\t0\t1\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
    sim.files["/proc/net/route"] = routes
    sim._tree = None
    refused(sim, words, "nothing was changed", networks=[wish])


def test_no_dnsmasq():
    sim, _virt = running()
    sim.files.pop("/usr/sbin/dnsmasq")
    sim._tree = None
    refused(sim, "no dnsmasq", networks=[NAT])


def test_a_pool():
    sim, _virt = running()
    done = works(sim, pools=[POOL])
    assert "make sure of its folder /srv/images" in texts(done)
    assert sim.exists("/srv/images")
    moved = works(sim, pools=[{"name": "images", "path": "/srv/other/"}])
    assert texts(moved)[:2] == ["stop it, for its new definition", "redefine it"]
    assert engine.kvm_info(sim.host())["kvm"]["pools"] == [{"name": "images", "path": "/srv/other", "active": True, "autostart": True}]
    works(sim, pools=[{"name": "images", "state": "absent"}])
    assert sim.exists("/srv/other")


def test_a_pool_is_active_after_a_boot_without_a_word_of_it():
    """Seen: then no file of libvirt's says so, and it cannot be undefined as if it were not."""
    sim, virt = running()
    kvm(sim, pools=[{**POOL, "autostart": False}])
    sim.reboot()
    assert virt.pools == {"images"}
    calm(sim, pools=[{**POOL, "autostart": False}])
    works(sim, pools=[{**POOL, "autostart": False, "active": False}])
    kvm(sim, state="absent")
    assert f"{POOLS}/images.xml" not in sim.files


def test_no_daemon_listens_and_its_pools_come_up_with_it():
    sim, virt = running()
    kvm(sim, pools=[POOL])
    for unit in virt.units.values():
        unit[1] = "inactive"
    virt.pools.clear()
    sim._tree = None
    works(sim, daemons="auto", pools=[POOL])


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"name": "new"}, "Say path"),
        ({"name": "new", "path": "srv"}, "no absolute path"),
        ({"name": "new", "path": "/srv/images/"}, "is the folder of the pool images"),
        ({"name": "vg", "path": "/srv/vg"}, "of type logical"),
        ({"name": "a b", "path": "/srv/vg"}, "that is no name"),
    ],
)
def test_pools_that_cannot_be(wish, words):
    sim, _virt = running()
    kvm(sim, pools=[POOL])
    sim.files[f"{POOLS}/vg.xml"] = "<pool type='logical'><name>vg</name><target><path>/dev/vg</path></target></pool>"
    sim._tree = None
    refused(sim, words, "nothing was changed", pools=[wish])


def test_libvirt_down_is_a_sentence():
    sim, _virt = host()
    failed = kvm(sim, networks=[NAT])
    assert "Failed to connect socket" in failed["failures"]["network lab"]
    assert "kvm_daemons: auto" in failed["failures"]["network lab"]
    assert f"{NETWORKS}/lab.xml" not in sim.files


@pytest.mark.parametrize("word", ["net-define", "net-start", "net-autostart"])
def test_a_network_that_libvirt_refuses_is_undone_and_the_pool_stays(word):
    sim, virt = running()
    virt.refusals[word] = "internal error: no"
    before = dict(sim.files)
    failed = kvm(sim, networks=[NAT], pools=[POOL])
    assert list(failed["failures"]) == ["network lab"]
    assert "internal error: no" in failed["failures"]["network lab"]
    assert f"{NETWORKS}/lab.xml" not in sim.files
    assert "/run/libvirt/network/lab.xml" not in sim.files
    assert f"{POOLS}/images.xml" in sim.files
    assert {p for p in before if p not in sim.files} == set()


@pytest.mark.parametrize("word", ["pool-define", "pool-start", "pool-autostart", "pool-build"])
def test_success_is_not_believed(word):
    sim, virt = running()
    virt.deaf.add(word)
    assert "virsh said yes, but" in kvm(sim, pools=[POOL])["failures"]["pool images"]


# --- Proof and facts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"api": None, "vm": False, "ran": None, "step": "open", "errno": 13}, "EACCES"),
        ({"api": None, "vm": False, "ran": None, "step": "KVM_GET_API_VERSION", "errno": 25}, "It is not KVM's"),
        ({"api": 11, "vm": False, "ran": None, "step": "KVM_GET_API_VERSION", "errno": None}, "version 11"),
        ({"api": 12, "vm": False, "ran": None, "step": "KVM_CREATE_VM", "errno": 16}, "Another hypervisor"),
        ({"api": 12, "vm": True, "ran": False, "step": "KVM_RUN", "errno": None}, "did not run one instruction"),
        (None, "has not come back"),
    ],
)
def test_kvm_is_proved_by_a_vm(answer, words):
    sim, virt = host()
    assert kvm(sim, prove=True)["changed"] is False
    virt.answer = answer
    refused(sim, "KVM: ", words, prove=True)
    proof = engine.kvm_info(sim.host())["kvm"]["proof"]
    assert proof["usable"] is False
    assert words in proof["reason"]


def test_kvm_info():
    sim, _virt = running()
    kvm(sim, **EVERYTHING)
    sim.files["/usr/share/qemu/firmware/50-edk2-x86_64-secure.json"] = json.dumps({
        "description": "UEFI with Secure Boot", "interface-types": ["uefi"], "features": ["secure-boot", "enrolled-keys"],
        "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
        "mapping": {"device": "flash", "executable": {"filename": "/usr/share/OVMF/OVMF_CODE_4M.ms.fd", "format": "raw"}},
    })
    sim.files["/usr/share/qemu/firmware/90-broken.json"] = "{"
    sim.files["/usr/bin/swtpm"] = ""
    sim._tree = None
    before, log = sim.snapshot(), list(sim.log)
    result = engine.kvm_info(sim.host())
    assert (sim.snapshot(), sim.log, result["changed"]) == (before, log, False)
    info = result["kvm"]
    assert info["proof"] == {"usable": True, "reason": "/dev/kvm made a VM and ran an instruction in it."}
    assert info["validate"][0] == {"driver": "qemu", "check": "hardware virtualization", "result": "pass", "message": None}
    assert info["validate"][2]["result"] == "warn"
    assert info["validate"][2]["message"].startswith("No ACPI IVRS table found")
    assert len(info["validate"]) == 4
    assert [f["description"] for f in info["firmware"]] == ["UEFI with Secure Boot"]
    assert info["firmware"][0]["secure_boot"] and info["firmware"][0]["uefi"]
    assert info["tpm"] == {"emulator": "/usr/bin/swtpm", "host": None}
    assert (info["users"], info["running"], info["ksm"]) == (["alice"], True, True)


def test_kvm_info_of_a_host_that_has_nothing():
    sim = lab()
    sim.missing |= {"systemctl", "virt-host-validate", "timeout"}
    info = engine.kvm_info(sim.host())["kvm"]
    assert (info["module"], info["daemons"], info["running"], info["ksm"], info["networks"]) == (None, None, False, None, [])
    assert info["validate"] is None
    assert "There is no /dev/kvm" in info["proof"]["reason"]
    refused(sim, "not known without systemd", daemons="auto")


def test_what_kvm_info_returns_is_a_wish_for_kvm():
    sim, _virt = running()
    kvm(sim, **EVERYTHING)
    info = engine.kvm_info(sim.host())["kvm"]
    wish = {name: value for name, value in info.items() if name in spec.MODULES["kvm"] and value is not None}
    assert set(wish) == {"nested", "paging", "hugepages", "ksm", "daemons", "users", "networks", "pools"}
    calm(sim, **wish)


# --- Each part alone, and a run that is killed ---------------------------------------------------------------------


@pytest.mark.parametrize("part", [part for part in EVERYTHING if part != "daemons"])
def test_each_part_alone_is_made_and_given_back(part):
    sim, virt = running()
    before, virtual = sim.snapshot(), virt.snapshot()
    works(sim, **{part: EVERYTHING[part]})
    assert set(json.loads(sim.files.get(record.PATH, '{"origin": {}}'))["origin"]) <= {part, "options"}
    works(sim, state="absent")
    assert (virt.snapshot(), sim.snapshot()["params"]) == (virtual, before["params"])
    assert record.PATH not in sim.files


class Killed(BaseException):
    """SIGKILL."""


def kill(sim, number, **wish):
    """Let a run do so many of its steps, and nothing after them. False when it ended before."""
    begin, run, last = sim._begin, sim.run, len(sim.log) + number

    def beginning(what, path, data):
        if len(sim.log) >= last:
            raise Killed
        begin(what, path, data)

    def running_on(argv, data=""):
        if len(sim.log) >= last and not sim.virt.reads(argv):
            raise Killed
        return run(argv, data)

    sim._begin, sim.run = beginning, running_on
    try:
        kvm(sim, **wish)
    except Killed:
        return True
    finally:
        sim._begin, sim.run = begin, run
    return False


@pytest.mark.parametrize("after", [EVERYTHING, {"state": "absent"}], ids=["again", "given back"])
def test_a_run_that_was_killed_is_ended_by_the_next(after):
    number = 0
    while True:
        sim, virt = host()
        before, virtual = sim.snapshot(), virt.snapshot()
        if not kill(sim, number, **EVERYTHING):
            break
        if after is not EVERYTHING:
            done = kvm(sim, **after)
            assert done["failures"] == {}
            assert (virt.snapshot(), sim.snapshot()["params"]) == (virtual, before["params"]), number
        else:
            works(sim, **after)
            assert sim.snapshot()["params"]["kvm_amd"] == (True, {"nested": "N", "npt": "Y"})
        number += 1
    assert number > 15


def test_giving_back_that_was_killed_is_ended_by_the_next():
    number = 0
    while True:
        sim, virt = host()
        virtual = virt.snapshot()
        kvm(sim, **EVERYTHING)
        if not kill(sim, number, state="absent"):
            break
        done = kvm(sim, state="absent")
        assert done["failures"] == {}, number
        assert virt.snapshot() == virtual, number
        assert sim.params["kvm_amd"].loaded
        assert record.PATH not in sim.files
        number += 1
    assert number > 10
