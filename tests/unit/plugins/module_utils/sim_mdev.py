# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Mediated devices: parents, types, devices, and mdevctl, which keeps their definitions.

The core answers as drivers/vfio/mdev/mdev_sysfs.c and mdev_core.c of Linux 6.12 do. mtty and mdpy (samples/vfio-mdev) are as the lab shows
them; GVT-g is synthetic (type names and sharing from drivers/gpu/drm/i915/gvt/vgpu.c); so are the matrix of vfio-ap (sim_ap.py) and the subchannels
of vfio-ccw (sim_css.py). mdevctl does what its source says (src/main.rs, src/mdev.rs, 1.2 to 1.4).
"""

from __future__ import annotations

import errno
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable

from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim_ap import Ap
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim_css import Css

if TYPE_CHECKING:
    from .sim import SimKernel

BUS = "/sys/class/mdev_bus"
DEVICES = "/sys/bus/mdev/devices"
DEFINED = "/etc/mdevctl.d"
RULE = "/usr/lib/udev/rules.d/60-mdevctl.rules"

Answer = "tuple[int, str, str]"


@dataclass
class Type:
    name: str
    #: Units of the parent's room that an instance takes.
    units: int = 1
    device_api: str = "vfio-pci"


@dataclass
class Parent:
    path: str
    types: dict[str, Type]
    room: int
    #: What a probe that finds no room answers: of a driver of its own counting, or of the core (EUSERS).
    full: int = errno.ENOSPC
    #: Attribute of a device -> the values that it takes, as a pattern.
    attributes: dict[str, str] = field(default_factory=dict)
    registered: bool = True
    #: Parents of one card: each takes one device, all of them the same size, and together no more than the card has.
    card: str = ""
    #: What its driver has room for of a type, where it counts across parents.
    gate: Callable[[str], int] | None = None


#: Types of an A2's VF, id and GiB, as /sys/class/mdev_bus/0000:08:01.7 of a real host had them (harvester/pcidevices, pkg/util/gpuhelper/testdata).
A2 = {
    "NVIDIA A2-1B": (742, 1), "NVIDIA A2-2B": (743, 2), "NVIDIA A2-1Q": (744, 1), "NVIDIA A2-2Q": (745, 2), "NVIDIA A2-4Q": (746, 4),
    "NVIDIA A2-8Q": (747, 8), "NVIDIA A2-16Q": (748, 16), "NVIDIA A2-1A": (749, 1), "NVIDIA A2-2A": (750, 2), "NVIDIA A2-4A": (751, 4),
    "NVIDIA A2-8A": (752, 8), "NVIDIA A2-16A": (753, 16), "NVIDIA A2-4C": (754, 4), "NVIDIA A2-8C": (755, 8), "NVIDIA A2-16C": (756, 16),
}  # fmt: skip


@dataclass
class Device:
    parent: str
    type: str
    group: str
    attributes: list[tuple[str, str]] = field(default_factory=list)


class Mdev:
    """The mdev bus of a simulated kernel."""

    def __init__(self, sim: SimKernel) -> None:
        self.sim = sim
        self.parents: dict[str, Parent] = {}
        self.devices: dict[str, Device] = {}
        #: Is mdevctl installed, and does its rule of udev find it? On Debian 13 it does not (lab).
        self.mdevctl = False
        self.rule_works = False
        #: Seconds after the boot at which a parent registers.
        self.late: dict[str, float] = {}
        #: Of a mainframe: its AP bus.
        self.ap: Ap | None = None
        #: And its channel subsystem.
        self.css: Css | None = None

    # --- Building --------------------------------------------------------------------------------------------------

    def add_samples(self) -> None:
        self.parents["mtty"] = Parent(
            "/sys/devices/virtual/mtty/mtty", {"mtty-1": Type("Single port serial", 1), "mtty-2": Type("Dual port serial", 2)}, 24
        )
        types = {f"mdpy-{name}": Type(name) for name in ("vga", "xga", "hd")}
        self.parents["mdpy"] = Parent("/sys/devices/virtual/mdpy/mdpy", types, 4, errno.EUSERS)
        self.sim._tree = None

    def add_gvt(self, address: str, path: str) -> None:
        types = {f"i915-GVTg_V5_{n}": Type(f"GVTg_V5_{n}", 8 // n) for n in (1, 2, 4, 8)}
        self.parents[address] = Parent(path, types, 8)
        self.sim._tree = None

    def add_a2(self, card: str, vfs: list[str]) -> None:
        """On the captured host a sibling had a 4 GiB type: on a VF that was free one more of those was available, and none of another size."""
        for vf in vfs:
            types = {f"nvidia-{number}": Type(name, size) for name, (number, size) in A2.items()}
            self.parents[vf] = Parent(self.sim.functions[vf].path, types, 16, card=card)
        self.sim._tree = None

    def add_matrix(self) -> None:
        types = {"vfio_ap-passthrough": Type("VFIO AP Passthrough Device", 1, "vfio-ap")}
        self.parents["matrix"] = Parent("/sys/devices/vfio_ap/matrix", types, 65536, errno.EUSERS)
        self.ap = Ap(self)
        self.sim._tree = None

    def add_subchannels(self) -> None:
        self.css = Css(self)
        # For depmod's tables; it never comes to the PCI bus (Css.run).
        self.sim.add_driver("vfio_ccw")
        self.sim._tree = None

    def install(self, rule_works: bool = False) -> None:
        self.mdevctl, self.rule_works = True, rule_works
        self.sim._tree = None

    def make(self, uuid: str, parent: str, type_: str) -> None:
        """By somebody else."""
        assert self._create(parent, type_, uuid) == 0

    # --- What it is ------------------------------------------------------------------------------------------------

    def free(self, parent: str) -> int:
        used = [d for d in self.devices.values() if d.parent == parent]
        return self.parents[parent].room - sum(self.parents[parent].types[d.type].units for d in used)

    def available(self, name: str, type_: str) -> int:
        parent = self.parents[name]
        size = parent.types[type_].units
        if parent.gate:
            return parent.gate(type_)
        if not parent.card:
            return self.free(name) // size
        sizes = [self.parents[d.parent].types[d.type].units for d in self.devices.values() if self.parents[d.parent].card == parent.card]
        taken = any(d.parent == name for d in self.devices.values())
        return int(not taken and set(sizes) <= {size} and sum(sizes) + size <= parent.room)

    def snapshot(self) -> dict[str, Any]:
        devices: dict[str, Any] = {uuid: (d.parent, d.type, tuple(d.attributes)) for uuid, d in self.devices.items()}
        return {**devices, **(self.css.snapshot() if self.css else {})}

    def nodes(self) -> dict[str, Any]:
        from .sim import Link

        nodes: dict[str, Any] = {"/usr/bin/mdevctl": ""} if self.mdevctl else {}
        for name, parent in self.parents.items():
            if not parent.registered:
                continue
            nodes[f"{BUS}/{name}"] = Link(parent.path)
            for type_, facts in parent.types.items():
                folder = f"{parent.path}/mdev_supported_types/{type_}"
                nodes[f"{folder}/create"] = ""
                nodes[f"{folder}/name"] = f"{facts.name}\n"
                nodes[f"{folder}/device_api"] = f"{facts.device_api}\n"
                nodes[f"{folder}/available_instances"] = f"{self.available(name, type_)}\n"
        for uuid, device in self.devices.items():
            path = f"{self.parents[device.parent].path}/{uuid}"
            nodes[f"{DEVICES}/{uuid}"] = Link(path)
            nodes[f"{path}/remove"] = ""
            nodes[f"{path}/mdev_type"] = Link(f"{self.parents[device.parent].path}/mdev_supported_types/{device.type}")
            nodes[f"{path}/iommu_group"] = Link(f"/sys/kernel/iommu_groups/{device.group}")
            nodes.update({f"{path}/{name}": "" for name in self.parents[device.parent].attributes})
            if self.ap and device.parent == "matrix":
                nodes.update(self.ap.device_nodes(device, path))
        return {**nodes, **(self.ap.nodes() if self.ap else {}), **(self.css.nodes() if self.css else {})}

    def boot(self) -> None:
        self.devices.clear()
        if self.ap:
            self.ap.boot()
        if self.css:
            self.css.boot()
        for name, parent in self.parents.items():
            parent.registered = name not in self.late
            if name in self.late:
                self.sim.later(self.late[name], lambda name=name: self.register(name))
            else:
                self.register(name)

    def register(self, name: str) -> None:
        """mdev_register_parent() sends MDEV_STATE=registered, for which mdevctl's rule starts what is to start."""
        self.parents[name].registered = True
        self.sim._tree = None
        if self.mdevctl and self.rule_works:
            for path in [p for p in self.sim.files if p.startswith(f"{DEFINED}/{name}/")]:
                if json.loads(self.sim.files[path])["start"] == "auto":
                    self._start(path.rpartition("/")[2], name)

    def unregister(self, name: str) -> None:
        """mdev_unregister_parent() takes its devices along."""
        self.parents[name].registered = False
        self.devices = {uuid: d for uuid, d in self.devices.items() if d.parent != name}
        self.sim._tree = None

    # --- Writes ----------------------------------------------------------------------------------------------------

    def write(self, real: str, data: str) -> int | None:
        others = [bus.write for bus in (self.ap, self.css) if bus]
        code = next((code for write in others if (code := write(real, data)) is not None), None)
        if code is not None:
            return code
        folder, _slash, name = real.rpartition("/")
        for parent, facts in self.parents.items():
            if name == "create" and folder.startswith(f"{facts.path}/mdev_supported_types/"):
                return self._create(parent, folder.rpartition("/")[2], data.strip())
        device = self.devices.get(folder.rpartition("/")[2])
        if device is None:
            return None
        if name == "remove":
            self.devices.pop(folder.rpartition("/")[2])
            return 0
        return self._set(device, name, data)

    def _create(self, parent: str, type_: str, uuid: str) -> int:
        """create_store() and mdev_device_create()."""
        if not re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", uuid):
            return errno.EINVAL
        if uuid in self.devices:
            return errno.EEXIST
        if not self.available(parent, type_):
            return self.parents[parent].full
        taken = {d.group for d in self.devices.values()} | {f.group for f in self.sim.functions.values()}
        self.devices[uuid] = Device(parent, type_, next(str(n) for n in range(50, 9999) if str(n) not in taken))
        self.sim._tree = None
        return 0

    def _set(self, device: Device, name: str, value: str) -> int:
        if self.ap and device.parent == "matrix":
            return self.ap.assign(device, name, value) if name.endswith(("adapter", "domain", "ap_config")) else errno.ENOENT
        pattern = self.parents[device.parent].attributes.get(name)
        if pattern is None:
            return errno.ENOENT
        if not re.fullmatch(pattern, value):
            return errno.EINVAL
        device.attributes.append((name, value))
        return 0

    # --- mdevctl ---------------------------------------------------------------------------------------------------

    def run(self, argv: list[str]) -> tuple[int, str, str] | None:
        if self.css and argv[0] == "modprobe":
            return self.css.run(argv)
        if argv[0] != "mdevctl" or not self.mdevctl:
            return None
        words: dict[str, str] = {}
        rest = list(argv[2:])
        while rest:
            name, equals, value = rest.pop(0).partition("=")
            takes = not equals and name in ("--uuid", "--parent", "--type")
            words[name] = rest.pop(0) if takes else value
        said = getattr(self, f"_do_{argv[1]}")(words["--uuid"], words["--parent"], words)
        return (1, "", f"Error: {said}\n") if said else (0, "", "")

    def _path(self, uuid: str, parent: str) -> str:
        return f"{DEFINED}/{parent}/{uuid}"

    def _load(self, uuid: str, parent: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(self.sim.files[self._path(uuid, parent)])
        except (KeyError, ValueError):
            return None
        return found

    def _save(self, uuid: str, parent: str, held: dict[str, Any]) -> None:
        self.sim.files[self._path(uuid, parent)] = json.dumps(held, indent=2, sort_keys=True)
        self.sim.modes[self._path(uuid, parent)] = 0o644
        self.sim._tree = None

    def _do_define(self, uuid: str, parent: str, words: dict[str, str]) -> str:
        if self._path(uuid, parent) in self.sim.files:
            return f"Device {uuid} on {parent} already defined, try modify?"
        self._save(uuid, parent, {"mdev_type": words["--type"], "start": "auto" if "--auto" in words else "manual", "attrs": []})
        return ""

    def _do_undefine(self, uuid: str, parent: str, words: dict[str, str]) -> str:
        if self._load(uuid, parent) is None:
            return "No match found"
        self.sim._forget(self._path(uuid, parent))
        return ""

    def _do_modify(self, uuid: str, parent: str, words: dict[str, str]) -> str:
        held = self._load(uuid, parent)
        if held is None:
            return "No match found"
        if len({"--auto", "--manual", "--addattr", "--delattr"} & words.keys()) != 1 or "--type" in words:
            # lab (1.4): one of them, and no other.
            return "the argument cannot be used with another one"
        for option in ("auto", "manual"):
            if f"--{option}" in words:
                held["start"] = option
        if "--delattr" in words:
            if not held["attrs"]:
                return "Attribute index must be less than 0"
            held["attrs"].pop()
        if "--addattr" in words:
            held["attrs"].append({words["--addattr"]: words["--value"]})
        self._save(uuid, parent, held)
        return ""

    def _do_start(self, uuid: str, parent: str, words: dict[str, str]) -> str:
        return self._start(uuid, parent)

    def _start(self, uuid: str, parent: str) -> str:
        held = self._load(uuid, parent)
        if held is None:
            return "Device is not defined"
        if uuid in self.devices:
            return "Device already exists"
        type_ = held["mdev_type"]
        facts = self.parents.get(parent)
        if facts is None or not facts.registered:
            return f"Unable to find parent device '{parent}'"
        if type_ not in facts.types:
            return f"Parent {parent} does not support mdev type {type_}"
        if not self.available(parent, type_):
            return f"No available instances of {type_} on {parent}"
        code = self._create(parent, type_, uuid)
        if code:
            return f"Failed to create mdev {uuid}, type {type_} on {parent}"
        for attribute in held["attrs"]:
            for name, value in attribute.items():
                if self._set(self.devices[uuid], name, value):
                    self.devices.pop(uuid)
                    return f"Failed to write {value} to attribute {name}"
        return ""
