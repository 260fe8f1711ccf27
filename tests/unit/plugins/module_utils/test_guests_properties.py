# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One declaration after the other, at random: each is announced as it is done, a second run does nothing, and what a declaration
names is so.
"""

from __future__ import annotations

import os
import random

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine.errors import EngineError
from ansible_collections.iovirt.host.plugins.module_utils._engine.guests import check, compare
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils import guests_hosts, hosts
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.guests_hosts import VFS, converged, vf

PORTS = [
    {"model": "virtio", "bridge": "br0"},
    {"model": "virtio", "bridge": "br0", "queues": 2, "mac": "52:54:00:77:00:01"},
    {"model": "emulated", "nat": "default"},
    {"model": "macvtap", "parent": "enp130s0"},
    {"model": "passthrough", "address": hosts.EDU},
    vf(),
    vf(vlan=7, mac="52:54:00:77:00:02"),
    vf(vlan=0, numa="near"),
    {"model": "sriov", "address": VFS[2]},
]
DISKS = [
    {"model": "virtio", "path": "/var/a.qcow2", "size": "1G"},
    {"model": "scsi", "path": "/var/b.qcow2", "size": "1G", "readonly": True},
    {"model": "sata", "path": "/var/c.qcow2", "size": "1G", "readonly": False},
    {"model": "nvme", "address": hosts.EDU},
]
UUIDS = [f"83b8f4f2-509f-382f-3c1e-e6bfe0fa100{n}" for n in (1, 2, 3)]
MDEVS = [
    {"type": "mtty-2"},
    {"type": "Dual port serial", "parent": "mtty", "display": False},
    {"pool": "lines"},
    {"uuid": UUIDS[1]},
    {"type": "mdpy-hd", "numa": "near"},
]
KEYS = {
    "vcpus": [1, 2, 3],
    "vcpus_max": [4],
    "numa_node": [0, 1],
    "cpu": [
        {"hyperv": True}, {"hyperv": False}, {"model": "EPYC"}, {"model": "host-model", "nested": True},
        {"pinning": [{"vcpus": "0", "cpus": "1"}]}, {"pinning": []},
    ],
    "memory": ["128M", "256M"],
    "locked": [True, False],
    "ksm": [True, False],
    "balloon": [{"enabled": False}, {"free_page_reporting": True}, {"target": "64M"}],
    "boot": [{"order": ["disk"]}, {"order": ["network", "disk"]}, {"kernel": "/boot/vmlinuz-guest", "cmdline": "quiet"}, {"tpm": True}, {"tpm": False}],
    "display": [{"model": "none"}, {"model": "emulated"}, {"model": "emulated", "video": "vga"}],
    "seed": [{}, {"user_data": "#cloud-config\n"}],
    "console_log": ["/var/log/a", "/var/log/b"],
    "autostart": [True, False],
    "state": ["running", "present", "stopped", "running", "absent"],
}  # fmt: skip


def declaration(rng, name):
    found = {"name": name, "memory": rng.choice(KEYS["memory"])}
    for key, values in KEYS.items():
        if rng.random() < 0.3:
            found[key] = rng.choice(values)
    if rng.random() < 0.5:
        found["network"] = rng.sample(PORTS, rng.randint(0, 3))
    if rng.random() < 0.4:
        found["disks"] = rng.sample(DISKS, rng.randint(0, 2))
    if rng.random() < 0.5:
        found["mdev"] = rng.sample(MDEVS, rng.randint(0, 2))
    return found


def made():
    host = guests_hosts.host()
    host.with_images()
    host.sim.mdev.add_samples()
    serial = {"match": {"parent": ["mtty"]}, "type": "mtty-2"}
    screen = {"match": {"parent": ["mdpy"]}, "type": "mdpy-hd", "count": 1}
    hosts.call(host.sim, mdev=[{**serial, "uuids": UUIDS[:2]}, {**serial, "uuids": UUIDS[2:], "pool": "lines"}, screen])
    return host


def test_one_after_the_other():
    rng = random.Random(int(os.environ.get("IOVIRT_SEED", "3")))
    done = 0
    for _host in range(4):
        host = made()
        before = [host.vf(number) for number in range(3)]
        for _round in range(10):
            wishes = [declaration(rng, name) for name in ("a", "b")[: rng.randint(1, 2)]]
            options = {"restart": rng.random() < 0.3, "exclusive": rng.random() < 0.2}
            try:
                host.call(*wishes, check=True, **options)
            except EngineError:
                # Two that want the same: refused, which is looked at elsewhere.
                continue
            converged(host, *wishes, **options)
            done += 1
            nothing_twice(host)
        converged(host, exclusive=True)
        assert host.virt.defined == host.virt.live == {}
        assert [host.vf(number) for number in range(3)] == before
    assert done > 15


def nothing_twice(host):
    seen = [name for domain in host.virt.domains().values() for name in check.functions_of(domain) | check.mediated_of(domain)]
    assert len(seen) == len(set(seen))
    for root in host.virt.live.values():
        assert compare.flatten(root)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_refused_changes_nothing(seed):
    rng, host = random.Random(seed), made()
    for _round in range(10):
        wishes = [declaration(rng, name) for name in ("a", "b", "c")]
        before = host.snapshot()
        try:
            host.call(*wishes, check=True)
        except EngineError:
            with pytest.raises(EngineError):
                host.call(*wishes)
            assert host.snapshot() == before
            continue
        host.call(*wishes)
