# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A simulated kernel: an in-memory file system that answers reads and writes as Linux does, and the few commands the
engine starts.

Where a behaviour comes from is said at the function that has it: a file of the kernel's source (6.12), or "lab" for
what was seen on the lab host. Time is the simulation's own: it passes with each write and with each sleep.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Callable, NamedTuple

from ansible_collections.iovirt.host.plugins.module_utils._engine import cmdline
from ansible_collections.iovirt.host.plugins.module_utils._engine.errors import EngineError, Stuck
from ansible_collections.iovirt.host.plugins.module_utils._engine.host import Host
from ansible_collections.iovirt.host.plugins.module_utils._engine.loaders import grub
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils import (
    sim_ip,
    sim_modules,
    sim_msix,
    sim_params,
    sim_vmdq,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim_devlink import Devlink
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim_firmware import NOT_ITS_DEVICE, Firmware
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim_intel import Intel
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim_mdev import Mdev
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim_nvme import Nvme
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim_spaces import Spaces
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim_text import kstrtobool, kstrtou16
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim_vgpu import Vgpu

DEVICES = "/sys/bus/pci/devices"
DRIVERS = "/sys/bus/pci/drivers"
RELEASE = "6.12.0-sim"
KERNEL = f"/boot/vmlinuz-{RELEASE}"


class Link(NamedTuple):
    target: str


@dataclass
class Driver:
    """A PCI driver. `module` is what modprobe knows; `ids` are the 'vendor:device' pairs or class codes it takes by
    itself (vfio-pci has none: drivers/vfio/pci/vfio_pci.c)."""

    name: str
    ids: frozenset[str] = frozenset()
    module: str = ""
    #: Has the sriov_configure callback.
    sriov: bool = False
    net: bool = False
    #: A VFIO driver made for these 'vendor:device' pairs: it takes them by override alone.
    variant_of: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.module = self.module or self.name.replace("-", "_")


@dataclass
class Pci:
    """A PCI function."""

    address: str
    ids: str
    class_code: str
    parent: str = "/sys/devices/pci0000:00"
    subsystem: str = "1af4:1100"
    numa_node: int = -1
    slot: str = ""
    total_vfs: int | None = None
    #: TotalVFs of the device itself, where its driver allows fewer (pci_sriov_set_totalvfs: igb 7 of 8).
    device_vfs: int = 0
    offset: int = 0
    stride: int = 0
    vf_ids: str = ""
    serial: str = ""
    #: Device Serial Number, as lspci prints it.
    dsn: str = ""
    boot_vga: bool | None = None
    #: Bus below the function in which its netdev lives: 'virtio0' for virtio, nothing for most.
    below: str = ""
    ifname: str = ""
    mac: str = ""
    #: Kernel state, lost at reboot.
    driver: str | None = None
    override: str | None = None
    group: str | None = None
    physfn: str | None = None
    vfs: list[str] = field(default_factory=list)
    autoprobe: bool = True
    #: MSI-X vectors: of a PF those that its driver shares out, of a VF its own (sim_msix.py).
    msix: int = 0
    #: What the PF's driver knows of a VF (sim_ip.py).
    attributes: dict[str, Any] = field(default_factory=dict)
    #: Its driver found no MAC at the PF when it probed (addr_assign_type is 3 then).
    made_up_mac: bool = False
    #: A port without a MAC of its own: its driver makes one up at each boot (addr_assign_type is 1 then).
    random_mac: bool = False
    #: reset_method, from Linux 5.15 on: 'flr bus', nothing where there is none.
    reset_methods: str | None = None

    @property
    def path(self) -> str:
        return f"{self.parent}/{self.address}"

    @property
    def modalias(self) -> str:
        return _modalias(self.ids, self.subsystem, self.class_code)


@cache
def _modalias(ids: str, subsystem: str, class_code: str) -> str:
    vendor, device = (part.upper().rjust(8, "0") for part in ids.split(":"))
    sub_vendor, sub_device = (part.upper().rjust(8, "0") for part in subsystem.split(":"))
    base, sub, interface = class_code[:2], class_code[2:4], class_code[4:6]
    return f"pci:v{vendor}d{device}sv{sub_vendor}sd{sub_device}bc{base}sc{sub}i{interface}"


@dataclass
class Net:
    """A network device that is no PCI function's, or what is configured on one that is."""

    addresses: list[str] = field(default_factory=list)
    default_route: bool = False
    up: bool = True
    carrier: bool = True
    kind: str = ""
    #: Of a macvlan or macvtap.
    mode: str = ""
    lowers: list[str] = field(default_factory=list)
    mac: str = ""
    #: The other end of a veth pair in this namespace.
    peer: str = ""
    #: The number of an XDP program on it.
    xdp: int = 0
    mtu: int = 1500
    promisc: bool = False
    #: Mbit/s, where it has a link.
    speed: int = 1000


@dataclass
class Block:
    """A block device below a PCI function (`path` says where), or a virtual one."""

    name: str
    number: str
    path: str
    function: str = ""
    slaves: list[str] = field(default_factory=list)


class SimKernel:
    """The `Files` protocol and a runner, over a simulated host."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.today = "2026-01-31T12:00:00Z"
        self.functions: dict[str, Pci] = {}
        self.known_drivers: dict[str, Driver] = {}
        self.registered: set[str] = set()
        self.builtin: set[str] = set()
        #: What modules-load.d names: there from the boot on.
        self.modules_load: set[str] = set()
        self.nets: dict[str, Net] = {}
        self.blocks: list[Block] = []
        self.multipath: dict[str, list[str]] = {}
        self.files: dict[str, str] = {"/etc/machine-id": "6b7e0f5ad3c84d0d9d9c2f4d3f0c1a2b\n"}
        self.modes: dict[str, int] = {}
        self.links: dict[str, str] = {}
        self.boots = 0
        self.pids: dict[int, tuple[str, list[str]]] = {}
        #: NVMe controllers with secondary controllers, by PF address; firmware of cards, by address without function.
        self.nvme: dict[str, Nvme] = {}
        self.firmware: dict[str, Firmware] = {}
        #: Commands that are not installed.
        self.missing: set[str] = set()
        self.spaces = Spaces()
        #: Modules with parameters (sim_params.py), by name.
        self.params: dict[str, sim_params.Module] = {}
        self._indexes: dict[str, int] = {}
        self.acpi = ["DMAR"]
        self.iommu_on = False
        self.identity_groups = False
        #: The IOMMU group of functions that share one: address -> a name of the pool.
        self.shared_groups: dict[str, str] = {}
        # Knobs.
        self.udev_delay: float | None = 5.0
        self.fewer_vfs: int | None = None
        self.count_errno: int | None = None
        self.vf_links_delay = 0.0
        self.probe_errno: dict[tuple[str, str], int] = {}
        #: Drivers that say yes to a device and do not keep it.
        self.fickle: set[tuple[str, str]] = set()
        #: VFs whose netdev does not come with so many binds from now on (told by SR-IOV network operators).
        self.netless: dict[str, int] = {}
        self.broken_modules: set[str] = set()
        #: Modules that the kernel has not; and has an upgrade taken the whole folder away?
        self.missing_modules: set[str] = set()
        self.modules_gone = False
        #: What modprobe says when the kernel refuses a module.
        self.module_refusal: dict[str, str] = {}
        #: Files of the initramfs tool that is there; image -> what of the tool's folders it holds; times of last changes.
        self.initramfs_tool: tuple[str, ...] = sim_modules.INITRAMFS_TOOLS
        self.images: dict[str, dict[str, str]] = {f"/boot/initrd.img-{RELEASE}": {}}
        self.changes: dict[str, float] = {}
        #: Files that a boot loader reads, kept while they were replaced by a tool.
        self.kept: list[str] = []
        self.initramfs_breaks = False
        self.blocking: list[str] = []
        #: Functions whose device lock a hanging write holds.
        self.stuck: set[str] = set()
        self.faults: list[tuple[str, str, int]] = []
        #: The change that fails, by its number in the log; and does the same fail again when it is tried again?
        self.fail_at: int | None = None
        self.fail_again = False
        self.unreadable: set[str] = set()
        self.lock_holder: str | None = None
        self.mkconfig_breaks = False
        #: Lines of `ip -batch` that are refused: pattern, error number.
        self.ip_faults: list[tuple[str, int]] = []
        #: Does the kernel answer EMSGSIZE, as more VFs than a message holds make it?
        self.netlink_full = False
        #: Ports that get no link when they go up.
        self.uncabled: set[str] = set()
        #: Bytes that are free below a path; without an entry there is room enough.
        self.room: dict[str, int] = {}
        #: Commands of other boot loaders by name, and what the next boot gives to the kernel (sim_loaders.py).
        self.tools: dict[str, Callable[[SimKernel, list[str]], tuple[int, str, str]]] = {}
        self.next_words: Callable[[SimKernel], str] | None = None
        # Records.
        self.log: list[tuple[str, str, str]] = []
        self.commands: list[list[str]] = []
        self._events: list[tuple[float, Callable[[], None]]] = []
        self._tree: dict[str, Any] | None = None
        #: Of the tree: what is there of itself, and folder -> names, with how many of a path's own kind and below it are there.
        self._paths: set[str] = set()
        self._children: dict[str, set[str]] = {}
        self._held_by: dict[str, int] = {}
        self._resolved: dict[str, str] = {}
        self._macs = 0
        self.devlink = Devlink(self)
        self.vmdq = sim_vmdq.Vmdq()
        self.mdev = Mdev(self)
        self.vgpu = Vgpu(self)
        self.intel = Intel(self)
        #: What makes it a KVM host (sim_libvirt.install).
        self.virt: Any = None

    # --- Building --------------------------------------------------------------------------------------------------

    def add_driver(self, name: str, *ids: str, builtin: bool = False, **more: Any) -> None:
        self.known_drivers[name] = Driver(name, frozenset(ids), **more)
        if builtin:
            self.builtin.add(name)

    def add(self, function: Pci) -> Pci:
        self.functions[function.address] = function
        return function

    def host(self, **more: Any) -> Host:
        more.setdefault("sources", lambda: {"__init__.py": "", "cli.py": "# engine\n"})
        return Host(files=self, run=self.run, sleep=self.sleep, clock=self.clock, utc=lambda: self.today, **more)

    def power_on(self, running: str = "") -> SimKernel:
        """The first boot, with a command line of the test's own or that of grub.cfg."""
        if grub.CONFIG not in self.files and self.next_words is None:
            self._mkconfig(grub.CONFIG)
        self._boot(running or None)
        self.log.clear()
        self.commands.clear()
        return self

    # --- Time ------------------------------------------------------------------------------------------------------

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self._pass(seconds)

    def _pass(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            due = sorted((event for event in self._events if event[0] <= end), key=lambda event: event[0])
            if not due:
                break
            self._events.remove(due[0])
            self.now = max(self.now, due[0][0])
            due[0][1]()
            self._tree = None
        self.now = end

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        self._events.append((self.now + seconds, what))

    # --- Snapshots -------------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """All that a run may change on a device or in a file. Modules loaded meanwhile do not count."""
        return {
            "functions": {
                f.address: (f.driver, f.override, tuple(f.vfs), f.autoprobe) for f in self.functions.values()
            },
            "nvme": {pf: (list(n.primary), n.facts()) for pf, n in self.nvme.items()},
            "firmware": {card: dict(f.next) for card, f in self.firmware.items()},
            "attributes": {f.address: dict(f.attributes) for f in self.functions.values() if f.physfn},
            "msix": {f.address: f.msix for f in self.functions.values() if f.physfn},
            "nets": {name: (net.up, net.mtu, net.promisc) for name, net in self.nets.items()},
            "files": dict(self.files),
            "modes": dict(self.modes),
            "links": dict(self.links),
            "images": {path: dict(held) for path, held in self.images.items()},
            "devlink": self.devlink.snapshot(),
            "params": sim_params.snapshot(self),
            "vmdq": self.vmdq.snapshot(self),
            "mdev": self.mdev.snapshot(),
            "vgpu": self.vgpu.snapshot(),
            "intel": self.intel.snapshot(),
            "virt": self.virt.snapshot() if self.virt else None,
        }

    def of_device(self, address: str) -> dict[str, Any]:
        """The part of the snapshot that is one device with its VFs."""
        function = self.functions[address]
        names = [address, *function.vfs]
        return {name: self.snapshot()["functions"][name] for name in names}

    # --- The driver core -------------------------------------------------------------------------------------------

    def _matches(self, driver: Driver, function: Pci) -> bool:
        """pci_match_device(), drivers/pci/pci-driver.c: with an override its driver alone, whatever the ids."""
        if function.override:
            return function.override == driver.name
        return function.ids in driver.ids or function.class_code in driver.ids

    def _can_probe(self, function: Pci) -> bool:
        """pci_device_can_probe(), drivers/pci/pci-driver.c."""
        if not function.physfn:
            return True
        return self.functions[function.physfn].autoprobe or bool(function.override)

    def _probe(self, driver: Driver, function: Pci) -> int:
        """really_probe(): 0 or an error number."""
        if not self._can_probe(function):
            return errno.ENODEV
        failure = self.probe_errno.get((driver.name, function.address), 0)
        if not failure and "vfio" in driver.name and function.group is None:
            # vfio_pci_core_register_device -> vfio_group_find_or_alloc: no group is EINVAL.
            failure = errno.EINVAL
        if not failure and function.physfn and driver.name == "nvme":
            # lab: a secondary controller that is not online does not answer.
            failure = 0 if self._online(function) else errno.ENODEV
        if not failure and (driver.name, function.address) not in self.fickle:
            function.driver = driver.name
            self.netless[function.address] = self.netless.get(function.address, 0) - 1
            if function.physfn and driver.net:
                sim_ip.probed(self, function)
        self._tree = None
        return failure

    def _online(self, vf: Pci) -> bool:
        controller = self.nvme.get(vf.physfn or "")
        return bool(controller and controller.facts()[self.functions[vf.physfn or ""].vfs.index(vf.address)][2])

    def _attach(self, function: Pci) -> None:
        """device_attach(): the first registered driver that takes it; failures are not told."""
        for name in sorted(self.registered):
            driver = self.known_drivers[name]
            if function.driver is None and self._matches(driver, function):
                self._probe(driver, function)

    def _detach(self, function: Pci) -> None:
        function.driver = None
        sim_vmdq.port_goes(self, function.ifname)
        for address in list(function.vfs):
            # A PF driver's remove() ends SR-IOV (seen: igb).
            self._vanish(function, address)
        self._tree = None

    def _vanish(self, pf: Pci, address: str) -> None:
        if pf.address in self.nvme:
            self.nvme[pf.address].all_offline()
        pf.vfs.remove(address)
        vf = self.functions.pop(address)
        if vf.ifname in self.nets:
            self.nets[vf.ifname].mtu, self.nets[vf.ifname].promisc = 1500, False

    def _register(self, name: str) -> None:
        """driver_register(): from now on it is offered every device that has none."""
        if name in self.registered:
            return
        self.registered.add(name)
        self._tree = None
        for function in list(self.functions.values()):
            if function.driver is None and self._matches(self.known_drivers[name], function):
                self._probe(self.known_drivers[name], function)

    def _module(self, module: str) -> list[Driver]:
        wanted = module.replace("-", "_")
        return [d for d in self.known_drivers.values() if d.module == wanted and wanted not in self.broken_modules]

    def _uevent(self, function: Pci) -> None:
        """udev loads by modalias, some time later. With an override the kernel sends the same modalias, so the module
        is loaded all the same; it just does not get the device."""
        for driver in self.known_drivers.values():
            alone = driver.name not in self.registered and driver.module not in self.broken_modules
            wanted = function.ids in driver.ids or function.class_code in driver.ids
            if alone and wanted and self.udev_delay is not None:
                self.later(self.udev_delay, lambda name=driver.name: self._register(name))

    # --- Writes to sysfs -------------------------------------------------------------------------------------------

    def _sysfs_write(self, real: str, data: str) -> int:
        folder, _slash, name = real.rpartition("/")
        if real == "/sys/bus/pci/drivers_probe":
            return self._drivers_probe(data.strip())
        if folder.startswith(f"{DRIVERS}/") and name in ("bind", "unbind"):
            return self._bind(folder.rpartition("/")[2], name, data.strip())
        gpus = (self.vgpu.write, self.intel.write)
        others = (*([self.virt.write] if self.virt else []), partial(sim_params.write, self), self.devlink.write, self.mdev.write, *gpus)
        other = next((code for write in others if (code := write(real, data)) is not None), None)
        if other is not None:
            return other
        function = self.functions.get(folder.rpartition("/")[2])
        if function and name == "sriov_vf_msix_count":
            return sim_msix.set_count(self, function, data)
        if function and name == "driver_override":
            return self._set_override(function, data)
        if function and function.address in self.nvme and name == "reset":
            # lab: the driver stays, through its reset_prepare and reset_done.
            self.nvme[function.address].function_reset()
            return 0
        if function and function.physfn and name == "reset":
            sim_ip.function_reset(function)
            self._tree = None
            return 0
        if function and function.total_vfs is not None and name == "sriov_numvfs":
            return self._set_count(function, data)
        if function and function.total_vfs is not None and name == "sriov_drivers_autoprobe":
            wanted = kstrtobool(data)
            function.autoprobe = function.autoprobe if wanted is None else wanted
            return errno.EINVAL if wanted is None else 0
        return errno.EACCES

    def _drivers_probe(self, address: str) -> int:
        """drivers_probe_store(), drivers/base/bus.c: says nothing of whether a driver took it (lab: rc 0, no driver)."""
        function = self.functions.get(address)
        if function is None:
            return errno.ENODEV
        self._attach(function)
        return 0

    def _bind(self, name: str, what: str, address: str) -> int:
        """bind_store() and unbind_store(), drivers/base/bus.c; device_driver_attach() says EBUSY."""
        function = self.functions.get(address)
        driver = self.known_drivers[name]
        if what == "unbind":
            if function is None or function.driver != name:
                return errno.ENODEV
            self._detach(function)
            return 0
        if function is None or not self._matches(driver, function):
            return errno.ENODEV
        if function.driver is not None:
            return errno.EBUSY
        return self._probe(driver, function)

    def _set_override(self, function: Pci, data: str) -> int:
        """driver_set_override(), drivers/base/driver.c: an empty line clears it."""
        if len(data) >= 4095:
            return errno.EINVAL
        function.override = data.split("\n")[0] or None
        return 0

    def _total(self, pf: Pci) -> int:
        """pci_sriov_get_totalvfs(): the driver's limit where it sets one, which pci_iov_remove() lifts when it goes."""
        own = pf.driver is not None and self.known_drivers[pf.driver].sriov
        return (pf.total_vfs or 0) if own else max(pf.total_vfs or 0, pf.device_vfs)

    def _set_count(self, pf: Pci, data: str) -> int:
        """sriov_numvfs_store(), drivers/pci/iov.c, in its order: syntax, range, same value, driver, busy."""
        count = kstrtou16(data)
        if count is None:
            return errno.EINVAL
        if count > self._total(pf):
            return errno.ERANGE
        if count == len(pf.vfs):
            return 0
        if pf.driver is None or not self.known_drivers[pf.driver].sriov:
            return errno.ENOENT
        if count == 0:
            for address in list(pf.vfs):
                self._vanish(pf, address)
            return sim_vmdq.vfs_change(self, pf.address, 0)
        if pf.vfs:
            return errno.EBUSY
        if self.count_errno is not None:
            return self.count_errno
        said = sim_vmdq.vfs_change(self, pf.address, count)
        if said:
            return said
        if self.fewer_vfs is not None:
            count = min(count, self.fewer_vfs)
        if self.vf_links_delay:
            self.later(self.vf_links_delay, lambda: self._bear(pf, count))
        else:
            self._bear(pf, count)
        return 0

    def _bear(self, pf: Pci, count: int) -> None:
        """pci_iov_add_virtfn(): no override, a group of its own, probed at once where that is allowed."""
        for index in range(count):
            vf = self.add(
                Pci(
                    address=vf_address(pf, index),
                    ids=pf.vf_ids,
                    class_code=pf.class_code,
                    parent=pf.parent,
                    subsystem=pf.subsystem,
                    numa_node=pf.numa_node,
                    physfn=pf.address,
                    ifname=f"{pf.ifname}v{index}" if pf.ifname else "",
                    attributes=sim_ip.born(pf.driver, sim_ip.is_infiniband(pf)),
                    msix=sim_msix.DEFAULT if pf.msix else 0,
                )
            )
            pf.vfs.append(vf.address)
            vf.group = self._group_of(vf)
            self._attach(vf)
            self._uevent(vf)
        self._tree = None

    def _random_mac(self) -> str:
        self._macs += 1
        return f"0a:00:00:00:{self._macs >> 8:02x}:{self._macs & 255:02x}"

    def _group_of(self, function: Pci) -> str | None:
        if not self.iommu_on:
            return None
        pool = self.shared_groups.get(function.address)
        for other in self.functions.values():
            if pool and other.group is not None and self.shared_groups.get(other.address) == pool:
                return other.group
        taken = {int(f.group) for f in self.functions.values() if f.group is not None}
        return str(next(number for number in range(1000) if number not in taken))

    # --- Boot ------------------------------------------------------------------------------------------------------

    def reboot(self) -> SimKernel:
        """What a reboot loses (lab: numvfs, autoprobe, overrides, modules, /run) is lost; files stay."""
        self._boot(None)
        return self

    def _boot(self, running: str | None) -> None:
        self._events.clear()
        self.pids.clear()
        self.boots += 1
        for controller in self.nvme.values():
            controller.function_reset()
        for card, firmware in self.firmware.items():
            firmware.boot()
            self._carry_out(card, firmware)
        self.spaces.all.clear()
        for address in [f.address for f in self.functions.values() if f.physfn]:
            self.functions.pop(address)
        for path in [path for path in self.files if path.startswith("/run/")]:
            self._forget(path)
        self.files["/run/systemd/system/.keep"] = ""
        words = running if running is not None else self._loaded()
        self.files["/proc/cmdline"] = f"{words}\n" if self.next_words else f"BOOT_IMAGE={KERNEL} {words}\n"
        self.iommu_on = bool(self.acpi) and self._translates(cmdline.split(words))
        self.identity_groups = any(cmdline.satisfied(cmdline.split(words), w) for w in ("iommu=pt", "iommu.passthrough=1"))
        self.files["/proc/interrupts"] = "  24:  0  IR-PCI-MSI  igb\n" if self.iommu_on else "  24:  0  PCI-MSI  igb\n"
        self.registered.clear()
        sim_params.boot(self)
        sim_vmdq.boot(self)
        if self.virt:
            self.virt.boot()
        self.devlink.reboot()
        self.vgpu.boot()
        self.intel.boot()
        self.mdev.boot()
        for function in self.functions.values():
            function.driver = function.override = function.group = None
            function.vfs, function.autoprobe = [], True
        for function in self.functions.values():
            function.group = self._group_of(function)
        for name in sorted(self.builtin | self.modules_load):
            self._register(name)
        sim_modules.boot(self, f"/boot/initrd.img-{RELEASE}")
        for function in self.functions.values():
            for driver in self.known_drivers.values():
                # Coldplug: udev loads what the devices of the boot ask for.
                if function.ids in driver.ids or function.class_code in driver.ids:
                    self._register(driver.name)
        self._tree = None

    def _carry_out(self, card: str, firmware: Firmware) -> None:
        """The SR-IOV capability of the card's ports is as its firmware says."""
        for function in self.functions.values():
            if function.address.rpartition(".")[0] == card:
                function.total_vfs = firmware.current["NUM_OF_VFS"] if firmware.current["SRIOV_EN"] else None

    def _loaded(self) -> str:
        """What the boot loader gives to the kernel."""
        return self.next_words(self) if self.next_words else " ".join(grub.parse(self.files[grub.CONFIG])[0].words)

    def _translates(self, words: list[str]) -> bool:
        """VT-d: off unless asked for, as CONFIG_INTEL_IOMMU_DEFAULT_ON is not set here. AMD-Vi: on unless forbidden."""
        if cmdline.satisfied(words, "iommu=off"):
            return False
        if "DMAR" in self.acpi:
            return cmdline.satisfied(words, "intel_iommu=on")
        return not cmdline.satisfied(words, "amd_iommu=off")

    # --- The tree --------------------------------------------------------------------------------------------------

    def _nodes(self) -> dict[str, Any]:
        if self._tree is None:
            nodes: dict[str, Any] = {}
            divided = (self.mdev.nodes, self.vgpu.nodes, self.intel.nodes)
            for part in (self._pci_nodes, self._net_nodes, self._block_nodes, self._other_nodes, self.devlink.nodes, *divided):
                nodes.update(part())
            nodes.update(self.files)
            nodes.update({path: Link(target) for path, target in self.links.items()})
            self._list({*nodes, *self._empty_folders()})
            self._resolved = {}
            self._tree = nodes
        return self._tree

    def _list(self, paths: set[str]) -> None:
        """Bring the folders up to date. Most of a tree is what it was before the last write."""
        for path in paths - self._paths:
            while path:
                self._held_by[path] = self._held_by.get(path, 0) + 1
                if self._held_by[path] > 1:
                    break
                parent, _slash, name = path.rpartition("/")
                self._children.setdefault(parent, set()).add(name)
                path = parent
        for path in self._paths - paths:
            while path:
                self._held_by[path] -= 1
                if self._held_by[path]:
                    break
                del self._held_by[path]
                parent, _slash, name = path.rpartition("/")
                self._children[parent].remove(name)
                if not self._children[parent]:
                    del self._children[parent]
                path = parent
        self._paths = paths

    def _pci_nodes(self) -> dict[str, Any]:
        nodes: dict[str, Any] = {"/sys/bus/pci/drivers_probe": ""}
        for name in self.registered:
            nodes[f"{DRIVERS}/{name}/bind"] = nodes[f"{DRIVERS}/{name}/unbind"] = ""
        for f in self.functions.values():
            path = f.path
            nodes[f"{DEVICES}/{f.address}"] = Link(path)
            attributes = {
                "vendor": "0x" + f.ids[:4],
                "device": "0x" + f.ids[5:],
                "subsystem_vendor": "0x" + f.subsystem[:4],
                "subsystem_device": "0x" + f.subsystem[5:],
                "class": "0x" + f.class_code,
                "modalias": f.modalias,
                "numa_node": str(f.numa_node),
                "driver_override": f.override or "(null)",
            }
            if f.boot_vga is not None:
                attributes["boot_vga"] = str(int(f.boot_vga))
            if f.total_vfs is not None:
                attributes.update(
                    sriov_totalvfs=str(self._total(f)),
                    sriov_numvfs=str(len(f.vfs)),
                    sriov_drivers_autoprobe=str(int(f.autoprobe)),
                    sriov_offset=str(f.offset),
                    sriov_stride=str(f.stride),
                    sriov_vf_device=f.vf_ids[5:],
                    sriov_vf_total_msix=str(f.msix if f.driver else 0),
                )
            if f.physfn:
                attributes["sriov_vf_msix_count"] = ""
            nodes.update({f"{path}/{name}": text + "\n" for name, text in attributes.items()})
            nodes[f"{path}/subsystem"] = Link("/sys/bus/pci")
            if f.driver:
                nodes[f"{path}/driver"] = Link(f"{DRIVERS}/{f.driver}")
                nodes[f"{DRIVERS}/{f.driver}/{f.address}"] = Link(path)
            if f.group is not None:
                folder = f"/sys/kernel/iommu_groups/{f.group}"
                nodes[f"{path}/iommu_group"] = Link(folder)
                nodes[f"{folder}/type"] = "identity\n" if self.identity_groups else "DMA\n"
                nodes[f"{folder}/devices/{f.address}"] = Link(path)
            if f.physfn:
                nodes[f"{path}/physfn"] = Link(self.functions[f.physfn].path)
            for index, vf in enumerate(f.vfs):
                nodes[f"{path}/virtfn{index}"] = Link(self.functions[vf].path)
            nodes.update(self._nvme_nodes(f))
            if f.driver == "vfio-pci":
                nodes[f"{path}/vfio-dev/vfio{f.address[5:7]}/dev"] = "511:0\n"
            if f.slot:
                nodes[f"/sys/bus/pci/slots/{f.slot}/address"] = f.address.rpartition(".")[0] + "\n"
        return nodes

    def _nvme_nodes(self, f: Pci) -> dict[str, Any]:
        nodes: dict[str, Any] = {f"{f.path}/reset": ""} if f.address in self.nvme or f.physfn else {}
        if f.reset_methods is not None:
            nodes[f"{f.path}/reset_method"] = f"{f.reset_methods}\n"
        if f.driver == "nvme":
            name = f"nvme{sorted(a for a, other in self.functions.items() if other.driver == 'nvme').index(f.address)}"
            nodes[f"{f.path}/nvme/{name}/serial"] = f"{f.serial:20}\n"
            nodes[f"{f.path}/nvme/{name}/state"] = "live\n"
        return nodes

    def _empty_folders(self) -> list[str]:
        """What a network device in another namespace leaves behind (sim_spaces)."""
        functions = [f for address in self.spaces.moved() if (f := self.functions.get(address)) and f.driver]
        return ["/".join(part for part in (f.path, f.below, "net") if part) for f in functions]

    def netdevs(self) -> dict[str, tuple[Pci | None, Net]]:
        """All network devices that are there now: name -> function, configuration."""
        found: dict[str, tuple[Pci | None, Net]] = {}
        for function in self.functions.values():
            driver = self.known_drivers.get(function.driver or "")
            here = function.address not in self.spaces.moved() and self.netless.get(function.address, -1) < 0
            if driver and driver.net and function.ifname and here:
                found[function.ifname] = (function, self.nets.get(function.ifname, Net(up=False, carrier=False)))
        found.update({name: (None, net) for name, net in self.nets.items() if net.kind})
        return found

    def _net_nodes(self) -> dict[str, Any]:
        nodes: dict[str, Any] = {}
        here = self.netdevs()
        for name, (function, net) in here.items():
            if function:
                path = "/".join(part for part in (function.path, function.below, "net", name) if part)
                nodes.update(sim_vmdq.nodes(self, name, path))
            else:
                path = f"/sys/devices/virtual/net/{name}"
            nodes[f"/sys/class/net/{name}"] = Link(path)
            nodes[f"{path}/ifindex"] = "1\n"
            if net.up:
                # Reading them gives EINVAL while the device is down (lab).
                nodes[f"{path}/carrier"] = f"{int(net.carrier)}\n"
                nodes[f"{path}/speed"] = f"{net.speed}\n" if net.carrier else "-1\n"
            if function:
                kind = "1\n" if function.random_mac else "3\n" if function.made_up_mac else "0\n"
                nodes[f"{path}/addr_assign_type"] = kind
            if function and function.physfn:
                nodes[f"{path}/address"] = f"{net.mac or sim_ip.address(self, function)}\n"
            if function:
                attributes = self.devlink.port_attributes(function.address)
                nodes.update({f"{path}/{key}": text + "\n" for key, text in attributes.items()})
            for lower in net.lowers:
                if lower in here:
                    nodes[f"{path}/lower_{lower}"] = Link(f"/sys/class/net/{lower}")
            for upper, (_function, other) in here.items():
                if name in other.lowers:
                    nodes[f"{path}/upper_{upper}"] = Link(f"/sys/class/net/{upper}")
        routes = [name for name, (_f, net) in here.items() if net.default_route]
        nodes["/proc/net/route"] = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n" + "".join(
            f"{name}\t00000000\t0202000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n" for name in routes
        )
        return nodes

    def _block_nodes(self) -> dict[str, Any]:
        nodes: dict[str, Any] = {}
        here = [b for b in self.blocks if not b.function or self._has_disks(b.function)]
        for block in here:
            nodes[f"{block.path}/dev"] = block.number + "\n"
            nodes[f"/sys/class/block/{block.name}"] = Link(block.path)
            nodes[f"/sys/dev/block/{block.number}"] = Link(block.path)
            for slave in block.slaves:
                below = next(b for b in self.blocks if b.name == slave)
                nodes[f"{block.path}/slaves/{slave}"] = Link(below.path)
                nodes[f"{below.path}/holders/{block.name}"] = Link(block.path)
        for subsystem, controllers in self.multipath.items():
            for index, address in enumerate(controllers):
                path = f"{self.functions[address].path}/nvme/nvme{index}"
                nodes[f"/sys/devices/virtual/nvme-subsystem/{subsystem}/nvme{index}"] = Link(path)
                nodes[f"{path}/state"] = "live\n"
            nodes[f"/sys/class/nvme-subsystem/{subsystem}"] = Link(f"/sys/devices/virtual/nvme-subsystem/{subsystem}")
        return nodes

    def _has_disks(self, address: str) -> bool:
        return address in self.functions and self.functions[address].driver in ("nvme", "virtio-pci", "ahci")

    def _other_nodes(self) -> dict[str, Any]:
        folder = f"/lib/modules/{RELEASE}"
        nodes: dict[str, Any] = {
            "/proc/sys/kernel/osrelease": RELEASE + "\n",
            **sim_modules.tables(self, folder),
            **sim_modules.initramfs_nodes(self),
            **sim_params.nodes(self),
            **(self.virt.nodes_of_tree() if self.virt else {}),
            KERNEL: "",
        }
        if self.next_words is None:
            nodes["/usr/sbin/grub-mkconfig"] = "for x in ${sysconfdir}/default/grub.d/*.cfg ; do . $x; done"
        for table in self.acpi:
            nodes[f"/sys/firmware/acpi/tables/{table}"] = ""
        for pid, (name, targets) in self.pids.items():
            nodes[f"/proc/{pid}/comm"] = name + "\n"
            for number, target in enumerate(targets):
                nodes[f"/proc/{pid}/fd/{number}"] = Link(target)
        nodes.update(self.spaces.nodes(list(self.pids), Link))
        return nodes

    def _real(self, path: str, last: bool = True, depth: int = 0) -> str:
        """The path with links followed; the last one only where `last` says so. What is not there stays as written."""
        nodes = self._nodes()
        known = self._resolved.get(path) if last else None
        if known is not None:
            return known
        if depth > 20:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        parent, _slash, name = path.rpartition("/")
        if not name:
            return self._real(parent, last, depth) if parent else ""
        folder = self._real(parent, depth=depth) if parent else ""
        done = f"{folder}/{name}"
        node = nodes.get(done)
        if last and isinstance(node, Link):
            done = self._real(os.path.normpath(os.path.join(folder, node.target)), depth=depth + 1)
        if last:
            self._resolved[path] = done
        return done

    # --- The Files protocol ----------------------------------------------------------------------------------------

    def attr(self, path: str) -> str | None:
        if path.endswith("/sriov_numvfs") and "/pci/" in path:
            raise AssertionError("reading sriov_numvfs hangs while a write to it hangs (lab)")
        if self._held(path):
            raise AssertionError(f"reading {path} hangs: a write that has not returned holds the device's lock")
        node = self._nodes().get(self._real(path))
        return node.strip() if isinstance(node, str) else None

    def attrs_within(self, paths: Sequence[str], limit: float) -> dict[str, str | None]:
        return {path: self.attr(path) for path in paths if not self._held(path)}

    def _pf_family(self, pf: str) -> list[str]:
        links = [name for name in self.names(f"{DEVICES}/{pf}") if name.startswith("virtfn")]
        return [self.link(f"{DEVICES}/{pf}/{name}") or "" for name in links]

    def _held(self, path: str) -> bool:
        """driver_override takes the device's lock; a count write that hangs holds that of the PF and of its VFs."""
        return path.endswith("/driver_override") and path.split("/")[-2] in self.stuck

    def data(self, path: str, offset: int, size: int) -> bytes:
        folder, _slash, name = self._real(path).rpartition("/")
        function = self.functions.get(folder.rpartition("/")[2])
        if function is None or name != "config":
            # Other binary files stand here as text of the same bytes (latin-1).
            node = self._nodes().get(self._real(path))
            return node.encode("latin-1")[offset : offset + size] if isinstance(node, str) else b""
        space = sim_msix.config(function.msix) if function.physfn and function.msix else config_space(function.dsn)
        return space[offset : offset + size]

    def text(self, path: str) -> str | None:
        real = self._real(path)
        if real in self.unreadable:
            raise EngineError(f"{path}: cannot be read: EIO (Input/output error)")
        node = self._nodes().get(real)
        return node if isinstance(node, str) else None

    def size(self, path: str) -> int | None:
        node = self._nodes().get(self._real(path))
        return len(node) if isinstance(node, str) else None

    def free(self, path: str) -> int | None:
        return self.room.get(path, 1 << 40) if self.exists(path) else None

    def names(self, path: str) -> list[str]:
        self._nodes()
        return sorted(self._children.get(self._real(path), ()))

    def exists(self, path: str) -> bool:
        real = self._real(path)
        return real in self._nodes() or real in self._children

    def link(self, path: str) -> str | None:
        node = self._nodes().get(self._real(path, last=False))
        return node.target.rpartition("/")[2] if isinstance(node, Link) else None

    def resolve(self, path: str) -> str:
        return self._real(path)

    def mode(self, path: str) -> int | None:
        real = self._real(path)
        return self.modes.get(real, 0o644) if real in self._nodes() else None

    def changed(self, path: str) -> float | None:
        real = self._real(path)
        return self.changes.get(real, 0.0) if real in self._nodes() else None

    def ask_kvm(self, path: str, limit: float) -> dict[str, Any] | None:
        return self.virt.answer

    def write(self, path: str, data: str, limit: float | None = None) -> None:
        real = self._real(path)
        self._begin("write", path, data)
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in self.blocking):
            if limit is None:
                raise AssertionError(f"the write to {path} would never return, and it has no limit")
            self._pass(limit)
            if path.endswith("/sriov_numvfs"):
                pf = path.split("/")[-2]
                self.stuck |= {pf, *(name for name in self._pf_family(pf))}
            raise Stuck(f"the write of {data!r} to {path} has not returned within {limit:g} s")
        if real not in self._nodes():
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        # kernfs does not ask the attribute about nothing (kernfs_fop_write_iter).
        code = self._sysfs_write(real, data) if data else 0
        self._tree = None
        if code:
            raise OSError(code, os.strerror(code), path)

    def write_together(self, writes: Mapping[str, str], limit: float) -> dict[str, Exception]:
        """One after the other: what they do to each other is the kernel's own lock."""
        failed: dict[str, Exception] = {}
        for path, data in writes.items():
            try:
                self.write(path, data, limit)
            except (OSError, Stuck) as error:
                failed[path] = error
        return failed

    def offer_together(self, path: str, series: Mapping[str, Sequence[str]], limit: float) -> dict[str, Exception]:
        """One after the other, as above."""
        late: dict[str, Exception] = {}
        for key, words in series.items():
            try:
                for word in words:
                    with contextlib.suppress(OSError):
                        self.write(path, word, limit)
            except Stuck as error:
                late[key] = error
        return late

    def replace(self, path: str, text: str, mode: int = 0o644) -> None:
        self._begin("replace", path, text)
        real = self._real(path, last=False)
        self.links.pop(real, None)
        self.files[real], self.modes[real] = text, mode
        self.changes[real] = self.now
        self._tree = None

    def replace_data(self, path: str, data: bytes, mode: int = 0o644) -> None:
        self.replace(path, data.decode("latin-1"), mode)

    def replace_for_loader(self, path: str, text: str, mode: int = 0o644) -> None:
        self.replace(path, text, mode)

    @contextlib.contextmanager
    def kept_for_loader(self, path: str) -> Iterator[None]:
        self.kept.append(path)
        yield

    def put_in_place(self, made: str, path: str) -> None:
        self._begin("put_in_place", path, made)
        if made not in self.images:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), made)
        self.kept.append(path)
        self.images[path], self.changes[path] = self.images.pop(made), self.changes.pop(made)
        self._tree = None

    def copy(self, source: str, path: str, mode: int = 0o644) -> None:
        self.replace(path, self.files[self._real(source)], mode)

    def remove(self, path: str) -> None:
        self._begin("remove", path, "")
        self._forget(self._real(path, last=False))

    def _forget(self, path: str) -> None:
        for table in (self.files, self.modes, self.links, self.images, self.changes):
            table.pop(path, None)  # type: ignore[attr-defined]
        self._tree = None

    def symlink(self, target: str, path: str) -> None:
        self._begin("symlink", path, target)
        self._forget(path)
        self.links[path] = target

    @contextlib.contextmanager
    def lock(self, path: str, limit: float, who: str) -> Iterator[None]:
        if self.lock_holder:
            self._pass(limit)
            raise EngineError(f"{path}: held by {self.lock_holder} for more than {limit:g} s.")
        self.lock_holder = who
        try:
            yield
        finally:
            self.lock_holder = None

    def _begin(self, what: str, path: str, data: str) -> None:
        """Every change is recorded, takes a moment, and can be made to fail."""
        self._pass(0.001)
        self.log.append((what, path, data))
        if self._fails():
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        for pattern, wanted, code in self.faults:
            if fnmatch.fnmatchcase(path, pattern) and fnmatch.fnmatchcase(data, wanted):
                raise OSError(code, os.strerror(code), path)

    def _fails(self) -> bool:
        """Is the change that was recorded last to fail?"""
        if self.fail_at is None or self.fail_at > len(self.log):
            return False
        return self.fail_at == len(self.log) or (self.fail_again and self.log[-1] == self.log[self.fail_at - 1])

    # --- Commands --------------------------------------------------------------------------------------------------

    def run(self, argv: list[str], data: str = "") -> tuple[int, str, str]:
        self.commands.append(argv)
        if argv[0] in self.missing:
            return 127, "", f"{argv[0]}: No such file or directory"
        elsewhere = self.spaces.run(argv)
        if elsewhere:
            return elsewhere
        seen = self._look(argv, data)
        if seen is not None:
            return seen
        self.log.append(("run", argv[0], data or " ".join(argv[1:])))
        if self._fails():
            return 1, "", "simulated failure"
        if argv[0] == "ip" and not self.devlink.has_port(argv):
            return sim_ip.batch(self, data if "-batch" in argv else " ".join(argv[1:]))
        answer = self.virt.run(argv, data) if self.virt else None
        answer = answer or sim_vmdq.run(self, argv) or sim_params.run(self, argv) or sim_modules.run(self, argv)
        answer = answer or self.devlink.run(argv) or self.mdev.run(argv) or self.vgpu.run(argv)
        if answer is not None:
            self._tree = None
            return answer
        if argv[0] == "modprobe":
            return self._modprobe(argv)
        if argv[0].endswith("grub-mkconfig"):
            return self._mkconfig(argv[2])
        if argv[0] in ("systemctl", "udevadm"):
            return 0, "", ""
        return self._tool(argv)

    def _look(self, argv: list[str], data: str) -> tuple[int, str, str] | None:
        """Commands that only read: they are no step."""
        if argv[:2] == ["ip", "-j"]:
            return self._ip_show(argv)
        if argv[:2] in (["nvme", "list-secondary"], ["nvme", "primary-ctrl-caps"]) or argv[3:5] == ["-e", "q"]:
            return self._tool(argv)
        if argv[0] == "nvidia-smi" and self.vgpu.reads(argv):
            return self.vgpu.run(argv)
        if argv[0] in ("bridge", "modinfo") or (argv[0] in ("devlink", "ethtool") and ("show" in argv or argv[1] in ("-k", "-l"))):
            return sim_vmdq.run(self, argv) or sim_params.run(self, argv) or self.devlink.run(argv) or (127, "", f"{argv[0]}: command not found")
        return self.virt.run(argv, data) if self.virt and self.virt.reads(argv) else None

    def _modprobe(self, argv: list[str]) -> tuple[int, str, str]:
        if argv[2] in self.module_refusal:
            return 1, "", self.module_refusal[argv[2]]
        drivers = self._module(argv[2])
        if argv[1] == "--use-blacklist":
            alike = [f for f in self.functions.values() if f.modalias == argv[3]]
            drivers = [d for d in self.known_drivers.values() if any(f.ids in d.ids or f.class_code in d.ids for f in alike)]
            if drivers and all(f"blacklist {d.name}\n" in self.files.get("/etc/modprobe.d/blacklist.conf", "") for d in drivers):
                # modprobe(8), --use-blacklist: nothing is loaded, and that is no failure.
                return 0, "", ""
        for driver in drivers:
            self._register(driver.name)
        return (0, "", "") if drivers else (1, "", f"modprobe: FATAL: Module {argv[-1]} not found")

    def _tool(self, argv: list[str]) -> tuple[int, str, str]:
        tool = self.tools.get(argv[0].rpartition("/")[2])
        if tool is not None:
            result = tool(self, argv)
            self._tree = None
            return result
        if argv[0] == "nvme":
            return self._nvme(argv)
        if argv[0] == "mstconfig":
            return self._mstconfig(argv)
        return 127, "", f"{argv[0]}: command not found"

    def _mstconfig(self, argv: list[str]) -> tuple[int, str, str]:
        card = self.firmware.get(argv[2].rpartition(".")[0])
        return card.run(argv[1:]) if card else (3, NOT_ITS_DEVICE, "")

    def _nvme(self, argv: list[str]) -> tuple[int, str, str]:
        name = argv[2].rpartition("/")[2]
        for address, controller in self.nvme.items():
            function = self.functions[address]
            if name in self.names(f"{function.path}/nvme"):
                return controller.run(argv[1], dict(zip(argv[3::2], argv[4::2])), len(function.vfs))
        return 1, "", f"Failed to open {argv[2]}: No such file or directory\n"

    def _ip_show(self, argv: list[str]) -> tuple[int, str, str]:
        """`novf` is a word of iproute2 6.9 and newer, that asks for no VFs."""
        if not self.netlink_full:
            return 0, json.dumps(self._ip()), ""
        if argv[-1] != "novf":
            return 2, "", "RTNETLINK answers: Message too long\nDump terminated\n"
        return 0, json.dumps([{key: part for key, part in link.items() if key != "vfinfo_list"} for link in self._ip()]), ""

    def _ip(self) -> list[dict[str, Any]]:
        """`ip -j -d addr show` and `link show`, as iproute2 6.1 prints it, as far as the engine reads it."""
        links = [{"ifname": "lo", "flags": ["LOOPBACK", "UP", "LOWER_UP"], "address": "00:00:00:00:00:00",
                  "addr_info": [{"family": "inet", "local": "127.0.0.1", "scope": "host"}]}]
        for name, (function, net) in self.netdevs().items():
            flags = [flag for flag, on in (("UP", net.up), ("LOWER_UP", net.up and net.carrier)) if on]
            own = sim_ip.address(self, function) if function else "02:00:00:00:ff:ff"
            mac = net.mac or own
            link: dict[str, Any] = {"ifname": name, "flags": ["BROADCAST", *flags], "address": mac}
            if function and mac != own:
                link["permaddr"] = own
            link["ifindex"] = self.index(name)
            link.update(link_type="infiniband" if function and sim_ip.is_infiniband(function) else "ether", mtu=net.mtu, max_mtu=9216)
            if net.promisc:
                link["flags"].append("PROMISC")
            if function and function.vfs:
                link["vfinfo_list"] = sim_ip.vfinfo(self, function)
            if net.kind:
                link["linkinfo"] = sim_vmdq.linkinfo(net)
            if net.mode:
                link["link"] = net.lowers[0]
            if net.peer:
                link["link"] = net.peer
            if net.xdp:
                link["xdp"] = {"mode": 1, "prog": {"id": net.xdp, "tag": "3b185187f1855c4c", "jited": 1}}
            link["addr_info"] = [
                {"family": "inet6" if ":" in a else "inet", "local": a, "scope": "link" if a.startswith("fe80") else "global"}
                for a in net.addresses
            ]
            if function:
                link.update(self.devlink.port_attributes(function.address))
            links.append(link)
        for other in self.devlink.links():
            flags = ["UP", "LOWER_UP"] if other["up"] else []
            net = self.nets.get(other["ifname"])
            links.append({"ifname": other["ifname"], "flags": ["BROADCAST", *flags], "address": "2a:49:94:40:48:66",
                          "phys_port_name": other["phys_port_name"], "phys_switch_id": other["phys_switch_id"],
                          "addr_info": [{"family": "inet", "local": a, "scope": "global"} for a in (net.addresses if net else [])]})
        return links

    def index(self, name: str) -> int:
        """The number of a network device."""
        return self._indexes.setdefault(name, len(self._indexes) + 2)

    def _mkconfig(self, path: str) -> tuple[int, str, str]:
        """grub-mkconfig of Debian: the defaults are read by a real sh, under `set -e`, drop-ins in the order of names."""
        if self.mkconfig_breaks:
            return 1, "", "Syntax errors are detected in generated GRUB config file."
        code, words, err = _source(
            self.files.get("/etc/default/grub", ""),
            {p.rpartition("/")[2]: t for p, t in self.files.items() if re.fullmatch(r"/etc/default/grub\.d/[^/]+\.cfg", p)},
        )
        if code:
            return code, "", err
        self.files[path] = grub_config(words["GRUB_CMDLINE_LINUX"], words["GRUB_CMDLINE_LINUX_DEFAULT"]) + self.files.get(
            "/etc/grub.d/output", ""
        )
        self.modes[path] = 0o600
        self._tree = None
        return 0, "", ""


def config_space(dsn: str) -> bytes:
    """Configuration space with an empty header, and two extended capabilities: Advanced Error Reporting (1) and, where
    there is one, Device Serial Number (3; PCI Express Base Specification, 7.9.3). Without one it ends as a
    conventional function's does."""
    if not dsn:
        return bytes(256)
    error = (0x0001 | 1 << 16 | 0x140 << 20).to_bytes(4, "little") + bytes(60)
    serial = (0x0003 | 1 << 16).to_bytes(4, "little") + bytes.fromhex(dsn.replace("-", ""))[::-1]
    return (bytes(256) + error + serial).ljust(4096, b"\0")


def vf_address(pf: Pci, index: int) -> str:
    """Routing ID arithmetic of pci_iov_virtfn_bus() and pci_iov_virtfn_devfn(), drivers/pci/iov.c."""
    domain, bus, rest = pf.address.split(":")
    slot, function = rest.split(".")
    routing = (int(bus, 16) << 8) + (int(slot, 16) << 3) + int(function) + pf.offset + pf.stride * index
    return f"{domain}:{routing >> 8:02x}:{routing >> 3 & 31:02x}.{routing & 7}"


_SOURCED: dict[Any, tuple[int, dict[str, str], str]] = {}
_SCRIPT = r"""set -e
. ./grub
for x in ./grub.d/*.cfg ; do if [ -e "${x}" ]; then . "${x}"; fi; done
printf '%s\n%s\n' "$GRUB_CMDLINE_LINUX" "$GRUB_CMDLINE_LINUX_DEFAULT"
"""


def _source(defaults: str, drop_ins: dict[str, str]) -> tuple[int, dict[str, str], str]:
    """Let a real sh read /etc/default/grub and its drop-ins, as grub-mkconfig does."""
    key = (defaults, tuple(sorted(drop_ins.items())))
    if key not in _SOURCED:
        with tempfile.TemporaryDirectory() as folder:
            os.mkdir(f"{folder}/grub.d")
            for name, text in [("grub", defaults), *((f"grub.d/{n}", t) for n, t in drop_ins.items())]:
                with open(f"{folder}/{name}", "w", encoding="utf-8") as handle:
                    handle.write(text)
            done = subprocess.run(["sh", "-c", _SCRIPT], cwd=folder, capture_output=True, text=True, check=False)
        lines = (done.stdout + "\n\n").split("\n")
        words = {"GRUB_CMDLINE_LINUX": lines[0], "GRUB_CMDLINE_LINUX_DEFAULT": lines[1]}
        _SOURCED[key] = (done.returncode, words, done.stderr)
    return _SOURCED[key]


def grub_config(inherited: str, default: str) -> str:
    """What 10_linux writes: a first entry, and below 'Advanced options' one more and its recovery twin."""
    root = "root=UUID=1d9f ro"

    def entry(title: str, words: str) -> str:
        return (
            f"menuentry '{title}' --class debian {{\n"
            "\tinsmod ext2\n"
            f"\tlinux\t{KERNEL} {root} {words} \n"
            f"\tinitrd\t/boot/initrd.img-{RELEASE}\n}}\n"
        )

    return (
        "### BEGIN /etc/grub.d/10_linux ###\n"
        + entry("Debian GNU/Linux", f"{inherited} {default}".strip())
        + "submenu 'Advanced options for Debian GNU/Linux' {\n"
        + entry(f"Debian GNU/Linux, with Linux {RELEASE}", f"{inherited} {default}".strip())
        + entry(f"Debian GNU/Linux, with Linux {RELEASE} (recovery mode)", f"single {inherited}".strip())
        + "}\n### END /etc/grub.d/10_linux ###\n"
    )
