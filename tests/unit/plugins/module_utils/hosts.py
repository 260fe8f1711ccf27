# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Ready-made simulated hosts, and what the tests say often."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import engine
from ansible_collections.iovirt.host.plugins.module_utils._engine.errors import EngineError
from ansible_collections.iovirt.host.plugins.module_utils._engine.resources.common import Options
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils import sim_params, sim_vmdq
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import Block, Net, Pci, SimKernel
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim_nvme import Nvme
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim_vmdq_cards import I40e, Ice, Ixgbe

PF1, PF2, NVME, EDU = "0000:81:00.0", "0000:82:00.0", "0000:91:00.0", "0000:00:09.0"
DISK, MANAGEMENT = "0000:00:02.0", "0000:00:03.0"
SSH = {"SSH_CONNECTION": "10.0.2.2 50000 10.0.2.15 22"}


def lab(
    iommu: bool = True,
    next_iommu: bool | None = None,
    igbvf_loaded: bool = False,
    vfio_loaded: bool = False,
) -> SimKernel:
    """The lab host: two igb ports, an NVMe controller with VFs, the edu device, virtio disk and management port."""
    sim = SimKernel()
    sim.add_driver("virtio-pci", "1af4:1041", "1af4:1042", builtin=True, net=True)
    sim.add_driver("pcieport", "060400", builtin=True)
    sim.add_driver("igb", "8086:10c9", sriov=True, net=True)
    sim.add_driver("igbvf", "8086:10ca", net=True)
    sim.add_driver("nvme", "010802", sriov=True)
    sim.add_driver("vfio-pci")
    sim.add_driver("e1000e", "8086:10d3", net=True)
    sim.modules_load = {name for name, wanted in (("igbvf", igbvf_loaded), ("vfio-pci", vfio_loaded)) if wanted}
    sim.add(Pci(DISK, "1af4:1042", "010000", below="virtio0"))
    sim.add(Pci(MANAGEMENT, "1af4:1041", "020000", below="virtio1", ifname="ens3", mac="52:54:00:00:00:01"))
    for number, (address, port) in enumerate(((PF1, "0000:80:00.0"), (PF2, "0000:80:01.0"))):
        bridge = sim.add(Pci(port, "1b36:000c", "060400", parent="/sys/devices/pci0000:80", numa_node=0))
        sim.add(
            Pci(address, "8086:10c9", "020000", parent=bridge.path, subsystem="8086:a04c", numa_node=0,
                slot=str(number + 1), total_vfs=7, device_vfs=8, offset=0x180, stride=2, vf_ids="8086:10ca",
                ifname=f"enp{129 + number}s0", mac=f"52:54:00:00:01:0{number}")
        )
    port = sim.add(Pci("0000:90:00.0", "1b36:000c", "060400", parent="/sys/devices/pci0000:90", numa_node=1))
    sim.add(
        Pci(NVME, "1b36:0010", "010802", parent=port.path, numa_node=1, slot="3", total_vfs=4, offset=1, stride=1,
            vf_ids="1b36:0010", serial="LAB0")
    )
    sim.nvme[NVME] = Nvme()
    sim.add(Pci(EDU, "1234:11e8", "00ff00"))
    sim.nets["ens3"] = Net(addresses=["10.0.2.15", "fe80::1"], default_route=True)
    disk = sim.functions[DISK].path + "/virtio0/block/vda"
    sim.blocks += [Block("vda", "254:0", disk, DISK), Block("vda1", "254:1", f"{disk}/vda1", DISK)]
    nvme = sim.functions[NVME].path + "/nvme/nvme0/nvme0n1"
    sim.blocks += [Block("nvme0n1", "259:0", nvme, NVME), Block("nvme0n1p1", "259:1", f"{nvme}/nvme0n1p1", NVME)]
    sim.files["/proc/self/mountinfo"] = mount("254:1", "/", "/dev/vda1")
    sim.files["/proc/swaps"] = "Filename\t\t\t\tType\t\tSize\tUsed\tPriority\n"
    now = "intel_iommu=on" if iommu else "intel_iommu=off"
    wanted = now if next_iommu is None else ("intel_iommu=on" if next_iommu else "intel_iommu=off")
    sim.files["/etc/default/grub"] = (
        f'GRUB_DEFAULT=0\nGRUB_CMDLINE_LINUX_DEFAULT="quiet"\nGRUB_CMDLINE_LINUX="console=ttyS0 {wanted}"\n'
    )
    return sim.power_on(f"root=UUID=1d9f ro console=ttyS0 {now} quiet")


MLX5, MLX4LX, ICE, NSIM = "0000:a1:00.0", "0000:a2:00.0", "0000:b1:00.0", "netdevsim1"


def switches() -> SimKernel:
    """The lab host with ports that have an eswitch. netdevsim is as the lab showed it. ConnectX-5, ConnectX-4 Lx and E810 are synthetic: ids from
    pci.ids, parameters from Documentation/networking/devlink/mlx5.rst and ice.rst, behaviour from the drivers' source (sim_devlink.PROFILES)."""
    sim = lab()
    sim.add_driver("mlx5_core", "15b3:1017", "15b3:1018", "15b3:1015", "15b3:1016", sriov=True, net=True)
    sim.add_driver("ice", "8086:1592", sriov=True, net=True)
    sim.add_driver("iavf", "8086:1889", net=True)
    for number, (address, ids, vf_ids, ifname) in enumerate((
        (MLX5, "15b3:1017", "15b3:1018", "enp161s0f0np0"),
        (MLX4LX, "15b3:1015", "15b3:1016", "enp162s0f0np0"),
        (ICE, "8086:1592", "8086:1889", "enp177s0"),
    )):
        sim.add(Pci(address, ids, "020000", parent=f"/sys/devices/pci0000:{address[5:7]}", subsystem="15b3:0016", numa_node=0, total_vfs=8,
                    offset=2, stride=1, vf_ids=vf_ids, ifname=ifname, mac=f"52:54:00:00:0a:0{number}"))
    steering = {"flow_steering_mode": {"runtime": "dmfs"}, "enable_roce": {"driverinit": True}, "total_vfs": {"permanent": 8}}
    for address in (MLX5, MLX4LX):
        sim.devlink.add(f"pci/{address}", "mlx5_core", inline="link" if address == MLX4LX else "none",
                        params={name: dict(cmodes) for name, cmodes in steering.items()})
    sim.devlink.add(f"pci/{ICE}", "ice", params={"enable_roce": {"runtime": False}, "tx_scheduling_layers": {"permanent": 9}})
    sim.devlink.add_netdevsim(1)
    sim.registered |= {"mlx5_core", "ice", "iavf"}
    sim.functions[MLX5].msix = 40
    for address in (MLX5, MLX4LX, ICE):
        sim.functions[address].driver = "ice" if address == ICE else "mlx5_core"
        sim.functions[address].group = sim._group_of(sim.functions[address])
    sim._tree = None
    return sim


IB, IB2 = "0000:d1:00.0", "0000:e1:00.0"


def infiniband() -> SimKernel:
    """The lab host with two InfiniBand ports of ConnectX-6. Synthetic: ids from pci.ids, behaviour from the source of ipoib and mlx5_ib (sim_ip.py)."""
    sim = lab()
    sim.add_driver("mlx5_core", "15b3:101b", "15b3:101c", sriov=True, net=True)
    for number, address in ((209, IB), (225, IB2)):
        sim.add(Pci(address, "15b3:101b", "020700", parent=f"/sys/devices/pci0000:{address[5:7]}", subsystem="15b3:0006", numa_node=0, total_vfs=8,
                    offset=1, stride=1, vf_ids="15b3:101c", ifname=f"ibp{number}s0", mac=f"b8:59:9f:03:00:d5:ab:{number:02x}"))
    return sim.power_on("root=UUID=1d9f ro console=ttyS0 intel_iommu=on quiet")


IXGBE, I40E, DOUBLE, E810 = "0000:c1:00.0", "0000:c2:00.0", "0000:c3:00.0", "0000:c5:00.0"


def stations(cpus: int = 32) -> SimKernel:
    """The lab host with ports that give macvlans pools. The double (lab/vmdqsim, on QEMU's edu device) is as the lab showed it. X540, X710 and
    E810 are synthetic: ids from pci.ids, pools and queues from the drivers' source (sim_vmdq_cards.py). `cpus`: processors that are online,
    of which the drivers make their numbers of queues."""
    sim = lab()
    sim.files["/sys/devices/system/cpu/online"] = f"0-{cpus - 1}\n"
    sim.add_driver("ixgbe", "8086:1528", sriov=True, net=True)
    sim.add_driver("i40e", "8086:1572", sriov=True, net=True)
    sim.add_driver("ice", "8086:1592", sriov=True, net=True)
    sim.add_driver("vmdqsim", "1234:1111", net=True)
    sim_params.add(sim, "vmdqsim", VMDQ=("charp", "4"))
    for number, (address, ids, ifname, vfs, vf_ids) in enumerate((
        (IXGBE, "8086:1528", "enp193s0", 63, "8086:1515"), (I40E, "8086:1572", "enp194s0", 64, "8086:154c"),
        (DOUBLE, "1234:1111", "enp195s0", None, ""), (E810, "8086:1592", "enp197s0", 64, "8086:1889"),
    )):
        sim.add(Pci(address, ids, "020000", parent=f"/sys/devices/pci0000:{address[5:7]}", numa_node=0, total_vfs=vfs, offset=128, stride=2,
                    vf_ids=vf_ids, ifname=ifname, mac=f"52:54:00:00:0b:0{number}"))
    sim_vmdq.add(sim, IXGBE, card=Ixgbe(cpus))
    sim_vmdq.add(sim, I40E, card=I40e(cpus))
    sim_vmdq.add(sim, DOUBLE, 3, by_parameter="vmdqsim")
    # The ice of Linux: no ndo_dfwd_add_station in ice_netdev_ops, no such feature in ice_set_netdev_features (ice/ice_main.c, 6.12.118).
    sim_vmdq.add(sim, E810, card=Ice(cpus), fixed=True)
    return sim.power_on("root=UUID=1d9f ro console=ttyS0 intel_iommu=on quiet")


def mount(number: str, where: str, source: str, kind: str = "ext4") -> str:
    return f"29 1 {number} / {where} rw,relatime shared:1 - {kind} {source} rw\n"


def call(
    sim: SimKernel,
    sriov: list[dict[str, Any]] | None = None,
    vfio: list[dict[str, Any]] | None = None,
    vmdq: list[dict[str, Any]] | None = None,
    mdev: list[dict[str, Any]] | None = None,
    vgpu: list[dict[str, Any]] | None = None,
    check: bool = False,
    allow: tuple[str, ...] = (),
    exclusive: tuple[str, ...] = (),
    assume: dict[str, Any] | None = None,
    **host: Any,
) -> dict[str, Any]:
    """The devices call, as the modules make it."""
    wishes = {name: list_ for name, list_ in (("sriov", sriov), ("vfio", vfio), ("vmdq", vmdq), ("mdev", mdev), ("vgpu", vgpu)) if list_ is not None}
    options = Options(frozenset(allow), frozenset(exclusive), assume or {})
    host.setdefault("environment", SSH)
    return engine.devices(sim.host(**host), wishes, options, engine.Call(check=check, who="test"))


def at(address: str, **wish: Any) -> dict[str, Any]:
    """A wish for one device by its address."""
    return {"match": {"address": [address]}, **wish}


def refused(sim: SimKernel, *words: str, **wishes: Any) -> str:
    """The call is refused in check mode and in a run with the same sentence, which holds all the words; and nothing
    was changed."""
    before = sim.snapshot()
    drivers = set(sim.registered)
    done = list(sim.log)
    sentences = []
    for check in (True, False):
        with pytest.raises(EngineError) as caught:
            call(sim, check=check, **wishes)
        sentences.append(str(caught.value))
        assert sim.snapshot() == before
        assert sim.registered == drivers
    assert sim.log == done
    assert sentences[0] == sentences[1]
    for word in words:
        assert word in sentences[0]
    return sentences[0]


@contextlib.contextmanager
def _read_whole() -> Iterator[None]:
    """What is read after the steps is a part only, and has to be what a whole reading gives."""
    partly = engine._read_again

    def compared(host: Any, state: Any, outcome: Any, wishes: Any, options: Any) -> Any:
        found = partly(host, state, outcome, wishes, options)
        whole = engine.read_more(host, engine.read.read_state(host, engine.Needs()), wishes, options)
        assert found == whole
        return found

    engine._read_again = compared
    try:
        yield
    finally:
        engine._read_again = partly


def converged(sim: SimKernel, **wishes: Any) -> dict[str, Any]:
    """What check mode announces is what a run does; a second run and a second check find nothing to do."""
    before = sim.snapshot()
    announced = call(sim, check=True, **wishes)
    assert sim.snapshot() == before
    with _read_whole():
        done = call(sim, **wishes)
    assert done["failures"] == {}
    assert done["actions"] == announced["actions"]
    assert done["diff"] == announced["diff"]
    assert done["changed"] == announced["changed"]
    quiet(sim, **wishes)
    return done


def quiet(sim: SimKernel, **wishes: Any) -> dict[str, Any]:
    """Nothing is left to do now, in check mode and in a run; what waits for a reboot may go on waiting."""
    before = sim.snapshot()
    for check in (True, False):
        result = call(sim, check=check, **wishes)
        assert [a["text"] for a in result["actions"] if a["certainty"] not in ("after_reboot", "after_link")] == []
        assert result["changed"] is False
    assert sim.snapshot() == before
    return result


def drivers_of(sim: SimKernel, pf: str) -> list[str | None]:
    """The drivers of a PF's VFs, in their order."""
    return [sim.functions[address].driver for address in sim.functions[pf].vfs]


def examples(number: int) -> int:
    """How many wishes hypothesis thinks of. All of them where they differ: in one run with the newest hypothesis, and on Python 3.9, whose
    older one thinks of others. ansible-test's runs would repeat those of the first, and take a quarter."""
    return number if os.environ.get("IOVIRT_EXAMPLES") == "all" else number // 4
