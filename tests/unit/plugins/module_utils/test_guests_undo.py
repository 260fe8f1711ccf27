# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every kind of step on guests, failing at each thing that it does: guest, VF and files are as they were before the run."""

from __future__ import annotations

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import actions
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils import guests_hosts, hosts
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.guests_hosts import guest, vf
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import Net
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.test_undo import GUESTS, watched

VIRTIO = {"model": "virtio", "bridge": "br0"}
DISK = {"model": "virtio", "path": "/var/a.qcow2", "size": "1G"}
NEW = guest("g1", VIRTIO, vf(vlan=7), autostart=True, disks=[DISK], seed={"user_data": "#cloud-config\n"}, vcpus_max=4, mdev=[{"type": "mtty-2"}])


def new():
    host = guests_hosts.host()
    host.with_images()
    host.sim.mdev.add_samples()
    hosts.call(host.sim, mdev=[{"match": {"parent": ["mtty"]}, "type": "mtty-2", "count": 1}])
    return host, lambda: host.call(NEW)


def absent():
    host, run = new()
    run()
    return host, lambda: host.call(guest("g1", state="absent"))


def changed():
    """Everything that a running guest takes at once, and another seed."""
    host, run = new()
    host.sim.nets["br1"] = Net(kind="bridge")
    host.sim._tree = None
    run()
    network = [{**VIRTIO, "bridge": "br1"}, {"model": "emulated", "nat": "default", "mac": "52:54:00:01:02:03"}]
    wish = {**NEW, "network": network, "vcpus": 2, "seed": {"user_data": "#cloud-config\n\n"}, "balloon": {"target": "128M"}}
    return host, lambda: host.call(wish)


def stopped():
    host, run = new()
    run()
    return host, lambda: host.call({**NEW, "state": "stopped"})


SCENARIOS = {
    "create_image": new,
    "write_seed": changed,
    "define_guest": changed,
    "set_guest_autostart": new,
    "record_guest": changed,
    "start_guest": new,
    "stop_guest": stopped,
    "undefine_guest": absent,
    "remove_seed": absent,
    "attach_device": changed,
    "detach_device": changed,
    "update_device": changed,
    "set_guest_vcpus": changed,
    "set_guest_memory": changed,
}


def moments(kind):
    host, run = SCENARIOS[kind]()
    with watched(host.sim, kind) as numbers:
        assert run()["failures"] == {}
    return numbers


CASES = [(kind, number) for kind in SCENARIOS for number in moments(kind)]


def test_no_kind_of_step_is_left_out():
    assert set(SCENARIOS) == GUESTS == {kind for kind, _number in CASES}
    assert set(actions.TABLE) >= GUESTS


@pytest.mark.parametrize(("kind", "number"), CASES, ids=[f"{kind}-{number}" for kind, number in CASES])
def test_a_step_that_fails_is_undone(kind, number):
    host, run = SCENARIOS[kind]()
    before = as_it_is(host)
    host.sim.fail_at = number
    with watched(host.sim, kind) as numbers:
        result = run()
    host.sim.fail_at = None
    assert number in numbers
    if kind == "create_image" and not result["failures"]:
        # What was only tidied up.
        return
    assert list(result["failures"]) == ["g1"] and "could not be undone" not in result["failures"]["g1"]
    assert as_it_is(host) == before
    assert run()["failures"] == {}


def as_it_is(host):
    kernel, documents, started = host.snapshot()
    # What libvirt numbers anew each time.
    devices = {kind: {name: plain(flat) for name, flat in table.items()} for kind, table in documents.items()}
    files = {path: text for path, text in kernel["files"].items() if not path.startswith(("/etc/libvirt", "/run/libvirt"))}
    return {**kernel, "files": files}, devices, started


def plain(flat):
    return {path: value for path, value in flat.items() if "/alias" not in path and "]/address" not in path and "/address@" not in path}
