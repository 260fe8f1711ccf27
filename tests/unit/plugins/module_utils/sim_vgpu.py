# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A GPU of NVIDIA with the vendor-specific VFIO framework, its driver's files and NVIDIA's tools.

The files of a VF, the types and their ids are those of a real L40S (captured: harvester/pcidevices, pkg/util/gpuhelper/testdata,
/sys/bus/pci/devices/0000:26:00.4/nvidia). What the driver answers is synthetic: NVIDIA's vGPU user guide, and what operators tell (a creatable list that
shrinks as siblings take memory; sriov-manage that says 0 without a VF, and leaves the GPU without its driver).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .sim import Pci, SimKernel

#: Series -> id of its type of 1 GiB; the others follow by size.
_SIZES = {"Q": (1147, (1, 2, 3, 4, 6, 8, 12, 16, 24, 48)), "A": (1157, (1, 2, 3, 4, 6, 8, 12, 16, 24, 48)), "B": (1145, (1, 2))}
TYPES = {first + n: (f"NVIDIA L40S-{size}{series}", size) for series, (first, sizes) in _SIZES.items() for n, size in enumerate(sizes)}
TYPES[2164] = ("NVIDIA L40S-3B", 3)
#: GiB for vGPUs, and the most VFs.
MEMORY, VFS = 48, 32


class Vgpu:
    """NVIDIA's driver in a simulated kernel."""

    def __init__(self, sim: SimKernel) -> None:
        self.sim = sim
        self.pfs: list[str] = []
        self.types: dict[str, int] = {}
        # Knobs.
        self.mode, self.virtualization, self.display = "SR-IOV", "Host VGPU", "No"
        #: Calls of sriov-manage that say 0 and do nothing; that leave the GPU without a driver.
        self.lies = self.drops = 0
        #: Seconds after which a new VF has its files.
        self.delay = 3.0
        self._ready: set[str] = set()

    def add(self, function: Pci) -> Pci:
        self.sim.add_driver("nvidia", "10de:26b9", sriov=True)
        self.sim.add(function)
        self.pfs.append(function.address)
        self.sim.registered.add("nvidia")
        function.driver, function.group = "nvidia", self.sim._group_of(function)
        self.sim._tree = None
        return function

    def vfs(self) -> list[str]:
        return [vf for pf in self.pfs for vf in self.sim.functions[pf].vfs]

    def creatable(self, vf: str) -> list[int]:
        if self.types.get(vf):
            return []
        pf = self.sim.functions[vf].physfn or ""
        used = sum(TYPES[self.types[other]][1] for other in self.sim.functions[pf].vfs if self.types.get(other))
        return [number for number, (_name, size) in TYPES.items() if size <= MEMORY - used]

    def snapshot(self) -> dict[str, int]:
        return {vf: number for vf, number in self.types.items() if number}

    def boot(self) -> None:
        self.types.clear()
        self._ready.clear()

    def nodes(self) -> dict[str, Any]:
        nodes: dict[str, Any] = {}
        for vf in self.vfs():
            if vf not in self._ready:
                self._ready.discard(vf)
                continue
            folder = f"{self.sim.functions[vf].path}/nvidia"
            nodes[f"{folder}/current_vgpu_type"] = f"{self.types.get(vf, 0)}\n"
            lines = "".join(f"{number:<6}: {TYPES[number][0]}\n" for number in self.creatable(vf))
            nodes[f"{folder}/creatable_vgpu_types"] = f"ID    : vGPU Name\n{lines}" if lines else ""
            nodes[f"{folder}/vgpu_params"] = nodes[f"{folder}/placement_id"] = nodes[f"{folder}/gpu_instance_id"] = ""
        return nodes

    def write(self, real: str, data: str) -> int | None:
        if not real.endswith("/nvidia/current_vgpu_type"):
            return None
        vf = real.split("/")[-3]
        number = int(data)
        if number and number not in self.creatable(vf):
            # Another type without 0 between, or no room (synthetic).
            return errno.EINVAL if self.types.get(vf) else errno.ENOSPC
        self.types[vf] = number
        return 0

    def run(self, argv: list[str]) -> tuple[int, str, str] | None:
        if argv[0] == "nvidia-smi":
            return self._smi(argv)
        if not argv[0].endswith("/sriov-manage"):
            return None
        pf = self.sim.functions[argv[2]]
        if self.lies:
            self.lies -= 1
            return 0, "", ""
        if self.drops:
            self.drops -= 1
            self.sim._detach(pf)
            return 1, "", "cannot enable VFs"
        self.enable(pf.address, argv[1] == "-e")
        return 0, "", ""

    def enable(self, pf: str, on: bool = True) -> None:
        for vf in self.sim.functions[pf].vfs:
            self.types.pop(vf, None)
            self._ready.discard(vf)
        assert self.sim._set_count(self.sim.functions[pf], str(VFS if on else 0)) == 0
        vfs = set(self.sim.functions[pf].vfs)
        for vf in vfs:
            self.sim.functions[vf].driver = "nvidia"
        self.sim.later(self.delay, lambda: self._ready.update(vfs))
        self.sim._tree = None

    def _smi(self, argv: list[str]) -> tuple[int, str, str]:
        if argv[-1] not in self.pfs or self.sim.functions[argv[-1]].driver != "nvidia":
            return 6, "No devices were found\n", ""
        domain, _colon, rest = argv[-1].partition(":")
        head = f"GPU {domain.zfill(8)}:{rest.upper()}\n"
        if argv[1] == "vgpu":
            return 0, head + "".join(_type(number) for number in sorted(TYPES)), ""
        return 0, (
            f"\n==============NVSMI LOG==============\n\nAttached GPUs                             : 1\n{head}"
            "    Product Name                          : NVIDIA L40S\n"
            f"    Display Attached                      : {self.display}\n"
            "    GPU Virtualization Mode\n"
            f"        Virtualization Mode               : {self.virtualization}\n"
            f"        Host VGPU Mode                    : {self.mode}\n"
            "        vGPU Heterogeneous Mode           : Disabled\n"
            "    FB Memory Usage\n"
            "        Total                             : 46068 MiB\n"
        ), ""


def _type(number: int) -> str:
    name, size = TYPES[number]
    return (
        f"    vGPU Type ID                          : {number:#x}\n"
        f"        Name                              : {name}\n"
        "        Class                             : Quadro\n"
        "        GPU Instance Profile ID           : N/A\n"
        f"        Max Instances                     : {min(MEMORY // size, VFS)}\n"
        "        Max Instances Per VM              : 16\n"
        f"        FB Memory                         : {size * 1024} MiB\n"
    )
