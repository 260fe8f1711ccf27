# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Intel GPUs with SR-IOV. Synthetic: no such GPU was seen.

The files and what they answer are those of the sources that vgpu/intel_places.py names: sriov_admin (xe_sriov_pf_sysfs.c, Linux 6.19 and 7.0), debugfs
(xe_gt_sriov_pf_debugfs.c, 6.12), iov (i915_sriov_sysfs.c, intel_iov_sysfs.c and intel_iov_provisioning.c of i915-sriov-dkms): a driver
that shares out by itself gives each new VF an equal part; one in whose sharing out somebody took a hand gives it none, and does not make VFs of which
one has a part of what it needs (ENOKEY). xe of 6.12 shares out anew whenever VFs are made, whatever was set (xe_gt_sriov_pf_config_set_fair), and takes
all back when they go; a VRAM quota of 7.0 keeps it from sharing out VRAM. Quotas are taken from what is left (ENOSPC for contexts, EDQUOT for GGTT)
and rounded up: contexts to 128, GGTT to 4 KiB, VRAM to 2 MiB.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .sim import Pci, SimKernel

#: What there is, and the unit of each.
POOL = {"ggtt_quota": (4 << 30, 4096), "contexts_quota": (65408, 128), "doorbells_quota": (256, 1), "vram_quota": (16 << 30, 2 << 20)}
TIME = ("exec_quantum_ms", "preempt_timeout_us")


class Gpu:
    """A PF with one or two GTs."""

    def __init__(self, sim: SimKernel, function: Pci, layout: str, gts: int, home: str) -> None:
        self.sim, self.function, self.layout, self.gts, self.home = sim, function, layout, gts, home
        for path, (_vf, key) in self.paths().items():
            # Only shown: the quota of the other GT, and a priority of a VF alone.
            if key == "sched_priority" or (layout == "iov" and key == "ggtt_quota" and "/gt1/" in path):
                sim.modes[path] = 0o444
        self.boot()

    def boot(self) -> None:
        self.auto, self.priority = True, "low"
        self.values: dict[tuple[int, str], int] = {}
        self.had = 0

    @property
    def keys(self) -> tuple[str, ...]:
        quotas = ("ggtt_quota", "contexts_quota", "doorbells_quota")
        return {"sriov_admin": (*TIME, "sched_priority"), "vram": (*TIME, "sched_priority", "vram_quota"), "iov": (*TIME, *quotas),
                "debugfs": (*TIME, *quotas, "vram_quota"), "none": ()}[self.layout]

    def paths(self) -> dict[str, tuple[int, str]]:
        """File -> VF and key."""
        path, found = self.function.path, {}
        for vf in range(1, (self.function.total_vfs or 0) + 1):
            for key in self.keys:
                if self.layout in ("sriov_admin", "vram"):
                    found[f"{path}/sriov_admin/vf{vf}/profile/{key}"] = (vf, key)
                for gt in range(self.gts):
                    if self.layout == "iov":
                        found[f"{path}/drm/card1/{self.home}/vf{vf}/gt{gt}/{key}"] = (vf, key)
                    # The media GT has no GGTT and no VRAM of its own.
                    if self.layout == "debugfs" and not (gt and key in ("ggtt_quota", "vram_quota")):
                        found[f"/sys/kernel/debug/dri/1/gt{gt}/vf{vf}/{key.replace('vram', 'lmem')}"] = (vf, key)
        return found

    def nodes(self) -> dict[str, Any]:
        path = self.function.path
        if self.function.driver is None or self.layout == "none":
            return {}
        self._follow()
        nodes: dict[str, Any] = {f"{path}/drm/card1/dev": "226:1\n"}
        for name, (vf, key) in self.paths().items():
            nodes[name] = f"{self.values.get((vf, key), 0)}\n"
            if key == "sched_priority":
                nodes[name] = " ".join(f"[{word}]" if word == self.priority else word for word in ("low", "normal")) + "\n"
                nodes[f"{path}/sriov_admin/.bulk_profile/{key}"] = ""
        if self.layout == "iov":
            nodes[f"{path}/drm/card1/{self.home}/pf/auto_provisioning"] = f"{int(self.auto)}\n"
        return nodes

    def _follow(self) -> None:
        """VFs came or went."""
        now = len(self.function.vfs)
        if now == self.had:
            return
        if self.auto:
            for key in (key for key in self.keys if key in POOL):
                size, unit = POOL[key]
                if now and self.layout == "vram" and any(self.values.get((vf, key)) for vf in range(1, now + 1)):
                    continue
                for vf in range(1, (self.function.total_vfs or 0) + 1):
                    self.values[vf, key] = size // now // unit * unit if now and vf <= now else 0
        if not now or not self.auto:
            for vf in range(1, (self.function.total_vfs or 0) + 1):
                self.values.update({(vf, key): 0 for key in TIME if not now})
        self.had = now

    def may_be_made(self, count: int) -> int:
        """intel_iov_provisioning_verify()."""
        if self.auto or self.layout == "vram":
            return 0
        parts = [[bool(self.values.get((vf, key))) for key in ("ggtt_quota", "contexts_quota")] for vf in range(1, count + 1)]
        return errno.ENOKEY if any(any(part) and not all(part) for part in parts) else 0

    def write(self, real: str, data: str) -> int | None:
        if real.endswith("/.bulk_profile/sched_priority") and real.startswith(self.function.path):
            if data not in ("low", "normal"):
                return errno.EINVAL
            self.priority = data
            return 0
        if real.endswith("/pf/auto_provisioning") and real.startswith(self.function.path):
            if data == "1" and any(value for (_vf, key), value in self.values.items() if key in POOL):
                return errno.ESTALE
            self.auto = data == "1"
            return 0
        found = self.paths().get(real)
        if found is None:
            return None
        vf, key = found
        if self.sim.modes.get(real) == 0o444:
            return errno.EACCES
        if key in POOL:
            size, unit = POOL[key]
            wanted = -(-int(data) // unit) * unit
            used = sum(value for (other, name), value in self.values.items() if name == key and other != vf)
            if used + wanted > size:
                return errno.EDQUOT if key == "ggtt_quota" else errno.ENOSPC
            self.auto = self.layout != "iov"
            self.values[vf, key] = wanted
            return 0
        self.values[vf, key] = int(data)
        return 0


class Intel:
    def __init__(self, sim: SimKernel) -> None:
        self.sim = sim
        self.gpus: list[Gpu] = []

    def add(self, function: Pci, driver: str, layout: str, gts: int = 1, home: str = "prelim_iov") -> Gpu:
        self.sim.add_driver(driver, function.ids, sriov=True)
        self.sim.add(function)
        self.sim.registered.add(driver)
        function.driver, function.group = driver, self.sim._group_of(function)
        self.gpus.append(Gpu(self.sim, function, layout, gts, home))
        self.sim._tree = None
        return self.gpus[-1]

    def boot(self) -> None:
        for gpu in self.gpus:
            gpu.boot()

    def snapshot(self) -> dict[str, Any]:
        return {g.function.address: (g.auto, g.priority, {k: v for k, v in g.values.items() if v}) for g in self.gpus}

    def nodes(self) -> dict[str, Any]:
        return {path: node for gpu in self.gpus for path, node in gpu.nodes().items()}

    def write(self, real: str, data: str) -> int | None:
        for gpu in self.gpus:
            if real == f"{gpu.function.path}/sriov_numvfs" and data != "0":
                # None: it is the PCI core's from here.
                return gpu.may_be_made(int(data)) or None
        return next((code for gpu in self.gpus if (code := gpu.write(real, data)) is not None), None)
