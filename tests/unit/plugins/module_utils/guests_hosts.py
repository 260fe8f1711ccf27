# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A simulated host with libvirt and pools of VFs, and what tests of guests say often."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import engine
from ansible_collections.iovirt.host.plugins.module_utils._engine.errors import EngineError
from ansible_collections.iovirt.host.plugins.module_utils._engine.guests import compare
from ansible_collections.iovirt.host.plugins.module_utils._engine.resources.guest import GuestOptions
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils import hosts
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import Net, SimKernel
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim_domains import SimDomains

#: VFs 0 to 2 of the first igb port of hosts.lab().
VFS = ("0000:82:10.0", "0000:82:10.2", "0000:82:10.4")


class Host:
    """The simulated kernel and libvirt on it."""

    def __init__(self, sim: SimKernel) -> None:
        self.sim = sim
        self.virt = SimDomains(sim)
        self.commands: list[list[str]] = []

    def call(self, *guests: dict[str, Any], check: bool = False, **options: Any) -> dict[str, Any]:
        given = {**options, "allow": frozenset(options.get("allow", ()))}
        host = self.sim.host(environment=hosts.SSH, libvirt=lambda: self.virt)
        wishes = [{"state": "running", **guest} for guest in guests]
        return engine.guests(host, wishes, GuestOptions(**given), engine.Call(check=check, who="test"))

    def info(self) -> dict[str, Any]:
        return engine.guest_info(self.sim.host(libvirt=lambda: self.virt), None)

    def with_images(self) -> None:
        """qemu-img and mv, as far as they are used."""
        files = self.sim.files

        def make(_sim: Any, argv: list[str]) -> tuple[int, str, str]:
            files[argv[-1] if argv[1] == "convert" else argv[-2]] = "image"
            return 0, "", ""

        def move(_sim: Any, argv: list[str]) -> tuple[int, str, str]:
            files[argv[3]] = files.pop(argv[2])
            return 0, "", ""

        self.sim.tools.update({"qemu-img": make, "mv": move})

    def snapshot(self) -> Any:
        virt = self.virt
        documents = {kind: {n: compare.flatten(r) for n, r in table.items()} for kind, table in (("defined", virt.defined), ("live", virt.live))}
        return self.sim.snapshot(), documents, set(virt.started)

    def vf(self, number: int) -> dict[str, Any]:
        vf = self.sim.functions[VFS[number]]
        return {"driver": vf.driver, "override": vf.override, "mac": vf.attributes["mac"], "vlan": vf.attributes["vlan"]}


def host(driver: str = "default", **pool: Any) -> Host:
    """Three VFs in the pool 'dataplane', a bridge br0, two CPUs, 4 GiB."""
    sim = hosts.lab()
    sim.nets["br0"] = Net(kind="bridge", mac="52:54:00:00:00:99")
    sim.files.update({
        "/sys/devices/system/cpu/online": "0-3",
        "/sys/devices/system/node/node0/cpulist": "0-1",
        "/sys/devices/system/node/node1/cpulist": "2-3",
        "/proc/meminfo": "MemTotal:        4000000 kB\nMemFree: 1 kB\n",
        "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "256",
        "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages": "256",
        "/boot/vmlinuz-guest": "kernel",
    })  # fmt: skip
    sim._tree = None
    vfs = [{"range": "0-2", "driver": driver, "pool": "dataplane", **pool}]
    hosts.call(sim, sriov=[hosts.at(hosts.PF1, up=True, vf_count=3, vfs=vfs)])
    return Host(sim)


def guest(name: str = "g1", *network: dict[str, Any], **more: Any) -> dict[str, Any]:
    found = {"name": name, "memory": "256M", "vcpus": 1, **more}
    return {**found, "network": list(network)} if network else found


def vf(pool: str = "dataplane", **more: Any) -> dict[str, Any]:
    return {"model": "sriov", "pool": pool, **more}


def converged(host: Host, *guests: dict[str, Any], **options: Any) -> dict[str, Any]:
    """What check mode announces is what a run does; a second run and a second check find nothing to do."""
    before = host.snapshot()
    announced = host.call(*guests, check=True, **options)
    assert host.snapshot() == before
    done = host.call(*guests, **options)
    assert done["failures"] == {}, done["failures"]
    for key in ("actions", "diff", "changed", "restart_required", "restart_reasons"):
        assert done[key] == announced[key], key
    quiet(host, *guests, **options)
    return done


def quiet(host: Host, *guests: dict[str, Any], **options: Any) -> dict[str, Any]:
    before = host.snapshot()
    for check in (True, False):
        result = host.call(*guests, check=check, **options)
        assert result["actions"] == [], (guests, [(a["text"], a["before"], a["after"]) for a in result["actions"]])
        assert result["changed"] is False
    assert host.snapshot() == before
    return result


def refused(host: Host, *guests: dict[str, Any], says: str, **options: Any) -> str:
    """The same sentence in check mode and in a run, and nothing changed."""
    before = host.snapshot()
    sentences = []
    for check in (True, False):
        with pytest.raises(EngineError) as caught:
            host.call(*guests, check=check, **options)
        sentences.append(str(caught.value))
        assert host.snapshot() == before
    assert sentences[0] == sentences[1]
    assert says in sentences[0], sentences[0]
    return sentences[0]
