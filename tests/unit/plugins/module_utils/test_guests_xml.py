# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Declarations, the XML that they come to, and the comparison by meaning with what a real libvirt made of it (fixtures/libvirt)."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine.guests import allocate, compare, live, seed, wish, xml
from ansible_collections.iovirt.host.plugins.module_utils._engine.guests.virt import Domain

FIXTURES = Path(__file__).parent / "fixtures" / "libvirt"
IMAGES = "/var/lib/libvirt/images"
BOOT = {"kernel": "/root/vmlinuz", "initrd": "/root/tiny.img"}
IPS = {"01": "10.9.1.2/24", "02": "dhcp", "03": "10.9.3.2/24", "04": "10.9.4.2/24"}

EVERY = {
    "name": "every",
    "vcpus": 1,
    "vcpus_max": 2,
    "memory": "256M",
    "ksm": False,
    "balloon": {"free_page_reporting": True},
    "cpu": {"nested": False, "kvmclock": True, "pv_eoi": True},
    "display": {"model": "none"},
    "console_log": "/var/log/libvirt/qemu/every-console.log",
    "network": [
        {"model": "virtio", "bridge": "br0", "mac": "52:54:00:09:00:01", "rom": False},
        {"model": "emulated", "nat": "default", "mac": "52:54:00:09:00:02", "rom": False},
        {"model": "macvtap", "parent": "ens1", "mac": "52:54:00:09:00:03", "rom": False},
        {"model": "sriov", "address": "0000:21:10.0", "vlan": 0, "mac": "52:54:00:09:00:04"},
        {"model": "sriov", "address": "0000:21:10.2", "vlan": 100, "mac": "52:54:00:09:00:05"},
    ],
}
FULL = {
    "name": "full",
    "vcpus": 2,
    "memory": "512M",
    "hugepages": "2M",
    "locked": True,
    "numa_node": 0,
    "cpu": {
        "hyperv": True,
        "pv_spinlock": True,
        "pinning": [{"vcpus": "0-1", "cpus": "0,1"}],
        "emulator_cpus": "1",
        "topology": {"sockets": 1, "cores": 2, "threads": 1},
        "nested": True,
        "model": "host-model",
        "features": [{"name": "pcid", "policy": "disable"}],
    },
    "boot": {"order": ["cdrom", "disk"]},
    "balloon": {"enabled": False},
    "seed": {},
    "disks": [
        {"model": "virtio", "path": "/root/a.qcow2", "cache": "none", "io": "native", "discard": "unmap", "serial": "A1"},
        {"model": "sata", "path": "/root/b.raw", "format": "raw"},
        {"model": "scsi", "path": "/root/c.qcow2", "readonly": True},
        {"model": "lun", "path": "/dev/sdz"},
        {"model": "nvme", "address": "0000:41:00.1"},
    ],
    "display": {"model": "emulated"},
    "network": [
        {"model": "virtio", "bridge": "br0", "queues": 2, "vhost": True, "mtu": 1400, "mac": "52:54:00:d7:19:3c"},
        {"model": "passthrough", "address": "0000:22:00.0"},
        {"model": "macvtap", "parent": "ens1", "mode": "vepa", "device": "e1000e", "mac": "52:54:00:ee:f0:f9"},
    ],
}
EMULATED = {
    "name": "emulated",
    "memory": "256M",
    "machine": "pc",
    "cpu": {"accel": "tcg", "model": "qemu64"},
    "seed": {},
    "disks": [{"model": "ide", "path": "/root/d.qcow2"}],
    "display": {"model": "emulated", "video": "vga", "listen": "0.0.0.0"},
}


def fixture(name):
    return compare.parse((FIXTURES / f"{name}.xml").read_text())


def wanted(declaration, **around):
    declaration = wish.normal(declaration)
    assert wish.check(declaration) == []
    given = {"nested": "svm", "seed": "/root/seed.iso" if "seed" in declaration else "", "machine": declaration.get("machine", "q35"), **around}
    return xml.build(declaration, xml.Around(**given))


def differences(root, declaration, **around):
    found = compare.differences(compare.flatten(root), wanted(declaration, **around))
    return [difference.words() for difference in found]


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("declaration", [EVERY, FULL, EMULATED], ids=lambda declaration: declaration["name"])
def test_what_libvirt_filled_in_is_no_difference(declaration, fresh):
    declaration = {key: value for key, value in declaration.items() if key != "boot" or "order" in value}
    assert differences(fixture(f"{declaration['name']}-defined"), declaration, fresh=fresh) == []


CHANGES = [
    ({"memory": "1G"}, ["memory is 524288 and not 1048576", "currentMemory is 524288 and not 1048576"]),
    ({"memory": "512MiB"}, []),
    ({"hugepages": "2048K"}, []),
    ({"hugepages": "1G"}, ["memoryBacking/hugepages/page@size is 2048 and not 1048576"]),
    ({"locked": False}, ["memoryBacking/locked is there"]),
    ({"ksm": True}, []),
    ({"vcpus": 1}, ["vcpu is 2 and not 1", "vcpu@current is 2 and not 1"]),
    ({"machine": "q35"}, []),
    ({"machine": "pc"}, ["os/type@machine is pc-q35-10.0 and not pc"]),
    ({"cpu": {"hyperv": False}}, ["clock/timer[hypervclock] is there", "features/hyperv is there"]),
    ({"cpu": {"pinning": [{"vcpus": "0", "cpus": "0-1"}]}}, ["cputune/vcpupin[1] is there"]),
    ({"cpu": {"pinning": [{"vcpus": "1", "cpus": "1"}]}}, ["cputune/vcpupin[1]@cpuset is 0-1 and not 1", "cputune/vcpupin[0] is there"]),
    ({"cpu": {"pinning": []}}, ["cputune/vcpupin[0] is there", "cputune/vcpupin[1] is there"]),
    ({"boot": {"order": ["cdrom", "disk"]}}, []),
    ({"boot": {"order": ["disk"]}}, ["os/boot@dev is cdrom and not hd", "os/boot#2 is there"]),
    ({"boot": {"firmware": "bios", "tpm": False}}, []),
    ({"display": {"model": "none"}}, ["devices/graphics[vnc] is there", "devices/video is there"]),
    ({"network": []}, ["devices/interface[52:54:00:d7:19:3c] is there", "devices/interface[52:54:00:ee:f0:f9] is there"]),
]


@pytest.mark.parametrize(("change", "said"), CHANGES, ids=[str(change) for change, _said in CHANGES])
def test_what_differs_by_meaning(change, said):
    root = fixture("full-defined")
    declaration = {"name": "full", **change}
    assert differences(root, declaration) == said
    merged = compare.merged(root, wanted(declaration))
    assert differences(merged, declaration) == []
    # Nothing else was touched.
    before, after = compare.flatten(root), compare.flatten(merged)
    touched = {path for path in {*before, *after} if before.get(path) != after.get(path)}
    named = tuple(compare.owner(text.split(" is ")[0]) for text in said)
    assert all(path.startswith(named) for path in touched) if said else touched == set()


#: What QEMU wants beside an enlightenment: `dependencies` in kvm_hyperv_properties (target/i386/kvm/kvm.c of QEMU 10.0), by libvirt's names.
HYPERV_NEEDS = {"synic": {"vpindex"}, "stimer": {"synic", "hypervclock"}, "tlbflush": {"vpindex"}, "ipi": {"vpindex"}, "evmcs": {"vapic"}}


def test_enlightenments_have_what_qemu_wants_beside_them():
    """Without, libvirt takes the definition and QEMU does not start."""
    root = wanted({"name": "g", "cpu": {"hyperv": True}}).root
    given = {element.tag for element in root.find("features/hyperv") if element.get("state") == "on"}
    given |= {timer.get("name") for timer in root.iterfind("clock/timer") if timer.get("present") == "yes"}
    assert "stimer" in given
    for name in given & set(HYPERV_NEEDS):
        assert HYPERV_NEEDS[name] <= given, name
    # And they go together.
    merged = compare.merged(root, wanted({"name": "g", "cpu": {"hyperv": False}}))
    assert merged.find("features/hyperv") is None and merged.find("clock/timer[@name='hypervclock']") is None


def test_back_from_uefi():
    root = compare.parse("<domain><name>g</name><os firmware='efi'><type>hvm</type><firmware/><loader>/x</loader><nvram>/y</nvram></os></domain>")
    declaration = {"name": "g", "boot": {"firmware": "bios"}}
    assert len(differences(root, declaration)) == 4
    assert compare.flatten(compare.merged(root, wanted(declaration))) == {"os": "", "os/type": "hvm", "name": "g"}


def test_another_kind_of_device_keeps_its_place_in_the_guest():
    root = fixture("every-defined")
    network = [{**EVERY["network"][0]}, *EVERY["network"][1:]]
    network[0] = {"model": "sriov", "address": "0000:21:10.4", "mac": "52:54:00:09:00:01"}
    merged = compare.flatten(compare.merged(root, wanted({"name": "every", "network": network})))
    path = "devices/interface[52:54:00:09:00:01]"
    assert merged[f"{path}@type"] == "hostdev" and f"{path}/source@bridge" not in merged and f"{path}/model" not in merged
    assert merged[f"{path}/address@bus"] == compare.flatten(root)[f"{path}/address@bus"]


def test_a_spelling_of_an_address_is_no_difference():
    one = "<domain><devices><hostdev><source><address domain='0x0000' bus='0x0a' slot='0x01' function='0x0'/></source></hostdev></devices></domain>"
    other = one.replace("0x0000", "0").replace("0x0a", "10").replace("0x01", "1")
    assert compare.flatten(compare.parse(one)) == compare.flatten(compare.parse(other))


@pytest.mark.parametrize(
    ("text", "kib"),
    [("<memory unit='GiB'>1</memory>", 1048576), ("<memory unit='b'>2097152</memory>", 2048), ("<memory unit='MB'>1</memory>", 976), ("<memory>7</memory>", 7)],
)
def test_units_of_memory(text, kib):
    assert compare.flatten(compare.parse(f"<domain>{text}</domain>"))["memory"] == str(kib)


# --- While it runs ---------------------------------------------------------------------------------------------------


def running(name, **more):
    text = (FIXTURES / f"{name}.xml").read_text()
    return Domain(name, "", text, text, **more)


def test_a_running_guest_as_declared_needs_nothing():
    """The guest of the lab test, as it ran: with names of the host's ends, drivers, aliases."""
    network = [
        {**EVERY["network"][0], "bridge": "br-guests"},
        *EVERY["network"][1:3],
        {"model": "sriov", "address": "0000:21:10.0", "mac": "52:54:00:09:00:04", "rom": False},
        {"model": "sriov", "address": "0000:21:10.2", "vlan": 100, "mac": "52:54:00:09:00:05", "rom": False},
    ]
    declaration = {**{key: EVERY[key] for key in ("name", "vcpus", "vcpus_max", "memory", "display", "console_log")}, "network": network}
    change = live.change("every", declaration, running("every-running"), wanted(declaration))
    assert change.actions == [] and change.waiting == []
    # One thing otherwise is one thing found.
    change = live.change("every", declaration, running("every-running"), wanted({**declaration, "network": network[:4]}))
    assert [action.kind for action in change.actions] == ["detach_device"] and change.waiting == []


def test_what_waits_and_what_does_not():
    network = [EVERY["network"][1], {"model": "virtio", "bridge": "br1", "mac": "52:54:00:09:00:01"}]
    declaration = {"name": "every", "vcpus": 2, "vcpus_max": 2, "memory": "512M", "network": network}
    change = live.change("every", declaration, running("every-defined"), wanted(declaration))
    assert sorted(action.kind for action in change.actions) == ["detach_device"] * 3 + ["set_guest_vcpus", "update_device"]
    assert change.waiting == ["memory is 262144 and not 524288"]


# --- The seed --------------------------------------------------------------------------------------------------------


def test_a_seed_is_the_same_each_time_and_has_its_files_where_it_says():
    declaration = {"name": "g1", "seed": {"user_data": "#cloud-config\n" + "x" * 5000, "network_config": "version: 2\n"}}
    data = seed.image(declaration)
    assert data == seed.image(declaration) and len(data) % 2048 == 0
    # ECMA-119: the root's record in the volume descriptor, then each record in the root.
    root = int.from_bytes(data[0x8000 + 158 : 0x8000 + 162], "little")
    found, at = {}, root * 2048
    while data[at]:
        record = data[at : at + data[at]]
        start, size = (int.from_bytes(record[n : n + 4], "little") for n in (2, 10))
        found[record[33 : 33 + record[32]]] = data[start * 2048 : start * 2048 + size]
        at += data[at]
    assert list(found)[2:] == [b"meta-data;1", b"network-config;1", b"user-data;1"]
    assert found[b"user-data;1"].decode() == declaration["seed"]["user_data"]
    assert found[b"meta-data;1"] == b"instance-id: g1\nlocal-hostname: g1\n"


# --- The allocator ---------------------------------------------------------------------------------------------------

SLOTS = [allocate.Slot(f"0000:21:10.{n}", "0000:21:00.0", n, "p", node=n % 2) for n in range(4)]


def given(requests, holders=None, slots=SLOTS, taken=None):
    found, refusals = allocate.allocate({"p": slots}, requests, holders or {}, taken or {})
    return {guest: address[-1] for (guest, _index), address in found.items()}, [refusal.reason for refusal in refusals]


def test_the_order_of_the_list_does_not_move_a_guest():
    requests = [allocate.Request("a", 0, "p", kept="0000:21:10.2"), allocate.Request("b", 0, "p"), allocate.Request("c", 0, "p", kept="0000:21:10.0")]
    holders = {"0000:21:10.2": ["a"], "0000:21:10.0": ["c"]}
    assert given(requests, holders) == given(requests[::-1], holders) == ({"a": "2", "b": "1", "c": "0"}, [])


def test_no_vf_is_given_out_twice():
    requests = [allocate.Request(f"g{n}", 0, "p") for n in range(5)]
    found, wrong = given(requests)
    assert sorted(found.values()) == ["0", "1", "2", "3"]
    assert wrong == [
        "network[0]: the pool p has no free VF; they are held by 0000:21:10.0: g0; 0000:21:10.1: g1; 0000:21:10.2: g2; 0000:21:10.3: g3."
    ]


def test_any_list_in_any_order():
    """Nothing twice, nobody moves without need, the order of the list moves nobody, nobody is refused while one is free."""
    rng = random.Random(int(os.environ.get("IOVIRT_SEED", "7")))
    for _round in range(300):
        names = [f"g{n}" for n in range(rng.randint(1, 6))]
        had = dict(zip(rng.sample(names, rng.randint(0, min(4, len(names)))), rng.sample([slot.address for slot in SLOTS], 4)))
        strangers = {slot.address: ["process 1"] for slot in SLOTS if rng.random() < 0.2}
        holders = {slot.address: [*strangers.get(slot.address, []), *[g for g, a in had.items() if a == slot.address]] for slot in SLOTS}
        requests = [allocate.Request(name, 0, "p", had.get(name), rng.choice((None, None, 0, 1))) for name in names]
        found, wrong = allocate.allocate({"p": SLOTS}, requests, holders, {})
        assert len(set(found.values())) == len(found) and len(found) + len(wrong) == len(names)
        assert not set(found.values()) & set(strangers)
        for request in requests:
            near = {slot.address for slot in SLOTS if request.node in (None, slot.node)}
            if request.kept in near - set(strangers):
                assert found[request.guest, 0] == request.kept
            if (request.guest, 0) not in found:
                assert near <= {*strangers, *found.values(), *(a for g, a in had.items() if g != request.guest)}


def test_a_holder_is_named_once():
    requests = [allocate.Request("a", 0, "p", kept="0000:21:10.0"), allocate.Request("b", 0, "p")]
    wrong = given(requests, {"0000:21:10.0": ["a"]}, slots=SLOTS[:1])[1]
    assert wrong == ["network[0]: the pool p has no free VF; they are held by 0000:21:10.0: a."]


def test_a_kept_vf_that_somebody_else_has_is_not_kept():
    request = allocate.Request("a", 0, "p", kept="0000:21:10.0")
    assert given([request], {"0000:21:10.0": ["a", "process 7 (qemu)"]}) == ({"a": "1"}, [])
    assert given([request], taken={"0000:21:10.0": "b"}) == ({"a": "1"}, [])


def test_near_and_trust_narrow_the_pool():
    assert given([allocate.Request("a", 0, "p", node=1)]) == ({"a": "1"}, [])
    assert given([allocate.Request("a", 0, "p", kept="0000:21:10.0", node=1)], {"0000:21:10.0": ["a"]}) == ({"a": "1"}, [])
    assert "has no VF near NUMA node 7 and with trust" in given([allocate.Request("a", 0, "p", node=7, trust=True)])[1][0]
    assert "has no VF now" in given([allocate.Request("a", 0, "p")], slots=[])[1][0]
