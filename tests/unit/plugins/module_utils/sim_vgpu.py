# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""GPUs of NVIDIA in both frameworks, their driver's files, MIG and NVIDIA's tools.

Real: the files of a VF in the vendor-specific VFIO framework with the L40S's types, and the types of the A2 of the older one (captured:
harvester/pcidevices, pkg/util/gpuhelper/testdata). What the driver answers is synthetic, and so are the T4, the A100 and the H100. Sources:
- NVIDIA vGPU user guide: a creatable list that shrinks as siblings take memory, one size at a time unless in mixed-size mode; what operators tell:
  sriov-manage that says 0 without a VF, and leaves the GPU without its driver; no type of the other kind is available in or out of MIG mode;
- names and ids of the T4 and the A100: vgpuConfig.xml of driver 510.47.03, as published in lists of its types. Ids of the H100 are made up, its names
  and numbers are those of NVIDIA's "vGPU types reference";
- nvidia-smi: its output in public bug reports (-q, with 'Host VGPU Mode' and 'Processes'; vgpu -s -v of driver 580), in the MIG user guide (-lgi,
  -lgip, -cgi, -dci, -dgi, -mig) and in the driver's README (/proc/driver/nvidia/gpus). Where instances lie is by the guide's list of placements.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from .sim_mdev import A2, Parent
from .sim_mdev import Type as MdevType

if TYPE_CHECKING:
    from .sim import Pci, SimKernel


class Type(NamedTuple):
    name: str
    size: int
    #: The GPU instance that it needs.
    profile: str = ""


class Profile(NamedTuple):
    id: int
    #: Slices of memory (of 8) and of computation (of 7), and where it may begin.
    memory: int
    compute: int
    starts: tuple[int, ...]


#: Series -> id of its type of 1 GiB; the others follow by size.
_SIZES = {"Q": (1147, (1, 2, 3, 4, 6, 8, 12, 16, 24, 48)), "A": (1157, (1, 2, 3, 4, 6, 8, 12, 16, 24, 48)), "B": (1145, (1, 2))}
L40S = {first + n: Type(f"NVIDIA L40S-{size}{series}", size) for series, (first, sizes) in _SIZES.items() for n, size in enumerate(sizes)}
L40S[2164] = Type("NVIDIA L40S-3B", 3)
T4 = {230 + n: Type(f"GRID T4-{size}Q", size) for n, size in enumerate((1, 2, 4, 8, 16))}
A100 = {
    468: Type("GRID A100-4C", 4), 469: Type("GRID A100-5C", 5), 470: Type("GRID A100-8C", 8), 471: Type("GRID A100-10C", 10),
    472: Type("GRID A100-20C", 20), 473: Type("GRID A100-40C", 40), 474: Type("GRID A100-1-5C", 5, "1g.5gb"), 475: Type("GRID A100-2-10C", 10, "2g.10gb"),
    476: Type("GRID A100-3-20C", 20, "3g.20gb"), 477: Type("GRID A100-4-20C", 20, "4g.20gb"), 478: Type("GRID A100-7-40C", 40, "7g.40gb"),
}  # fmt: skip
H100 = {
    900: Type("NVIDIA H100-10C", 10), 901: Type("NVIDIA H100-80C", 80), 902: Type("NVIDIA H100-1-10C", 10, "1g.10gb"),
    903: Type("NVIDIA H100-3-40C", 40, "3g.40gb"), 904: Type("NVIDIA H100-7-80C", 80, "7g.80gb"),
}  # fmt: skip


def profiles(unit: int) -> dict[str, Profile]:
    """A100 with 40 GB: 5 a slice; H100 with 80 GB: 10."""
    return {
        f"1g.{unit}gb": Profile(19, 1, 1, (6, 5, 4, 3, 2, 1, 0)),
        f"2g.{2 * unit}gb": Profile(14, 2, 2, (4, 2, 0)),
        f"3g.{4 * unit}gb": Profile(9, 4, 3, (4, 0)),
        f"4g.{4 * unit}gb": Profile(5, 4, 4, (0,)),
        f"7g.{8 * unit}gb": Profile(0, 8, 7, (0,)),
    }


@dataclass
class Instance:
    """A GPU instance. `ci`: it has a compute instance."""

    profile: str
    start: int
    ci: bool = True


@dataclass
class Card:
    product: str
    types: dict[int, Type]
    #: GiB for vGPUs, and the most VFs; none: the GPU itself has the vGPUs.
    memory: int
    vfs: int
    architecture: str
    mdev: bool = False
    profiles: dict[str, Profile] = field(default_factory=dict)
    uuid: str = "GPU-eaf23aa1-4d3d-596c-da66-b86b0e5db584"
    serial: str = "1324523005912"
    #: MIG, now and from the next reset on.
    mig: bool = False
    pending: bool = False
    instances: dict[int, Instance] = field(default_factory=dict)
    #: PID, kind, name, GPU instance.
    processes: list[tuple[int, str, str, int | None]] = field(default_factory=list)


CARDS: dict[str, Any] = {
    "l40s": lambda: Card("NVIDIA L40S", L40S, 48, 32, "Ada Lovelace"),
    "a2": lambda: Card("NVIDIA A2", {number: Type(name, size) for name, (number, size) in A2.items()}, 16, 16, "Ampere", mdev=True),
    "t4": lambda: Card("Tesla T4", T4, 16, 0, "Turing", mdev=True),
    "a100": lambda: Card("NVIDIA A100-PCIE-40GB", A100, 40, 16, "Ampere", mdev=True, profiles=profiles(5)),
    "h100": lambda: Card("NVIDIA H100 PCIe", H100, 80, 16, "Hopper", profiles=profiles(10)),
}


class Vgpu:
    """NVIDIA's driver in a simulated kernel."""

    def __init__(self, sim: SimKernel) -> None:
        self.sim = sim
        self.cards: dict[str, Card] = {}
        self.types: dict[str, int] = {}
        # Knobs.
        self.mode, self.virtualization, self.sizes = "", "Host VGPU", "Disabled"
        #: Drivers of old say 'Display Active', Enabled or Disabled.
        self.display_field, self.display = "Display Attached", "No"
        #: Calls of sriov-manage that say 0 and do nothing; that leave the GPU without a driver.
        self.lies = self.drops = 0
        #: Seconds after which a new VF has its files.
        self.delay = 3.0
        #: Calls of nvidia-smi vgpu that name no type, as long as the manager does not run.
        self.silent = 0
        #: What nvidia-smi answers to a change, in place of doing it.
        self.refuses = ""
        self._ready: set[str] = set()

    def add(self, function: Pci, card: str = "l40s", **more: Any) -> Pci:
        made = CARDS[card]()
        others = self.sim.known_drivers["nvidia"].ids if "nvidia" in self.sim.known_drivers else ()
        self.sim.add_driver("nvidia", *others, function.ids, sriov=True)
        self.sim.add(function)
        for key, value in more.items():
            setattr(made, key, value)
        self.cards[function.address] = made
        self.sim.registered.add("nvidia")
        function.driver, function.group = "nvidia", self.sim._group_of(function)
        if not made.vfs:
            self.sim.mdev.parents[function.address] = self._parent(function.address, function.address)
        self.sim._tree = None
        return function

    @property
    def pfs(self) -> list[str]:
        return list(self.cards)

    def vfs(self) -> list[str]:
        return [vf for pf in self.cards for vf in self.sim.functions[pf].vfs]

    # --- What there is room for ------------------------------------------------------------------------------------

    def used(self, pf: str) -> list[int]:
        """The types of the GPU's vGPUs, in either framework."""
        own = [self.types[vf] for vf in self.sim.functions[pf].vfs if self.types.get(vf)]
        parents = {pf, *self.sim.functions[pf].vfs}
        return own + [int(d.type.partition("-")[2]) for d in self.sim.mdev.devices.values() if d.parent in parents]

    def fits(self, pf: str, number: int) -> bool:
        """One more of a type."""
        card = self.cards[pf]
        _name, size, profile = card.types[number]
        used = [card.types[other] for other in self.used(pf)]
        if card.mig != bool(profile):
            return False
        if profile:
            return sum(1 for one in card.instances.values() if one.profile == profile) > sum(1 for other in used if other.profile == profile)
        mixed = self.sizes == "Enabled" or {other.size for other in used} <= {size}
        return mixed and size <= card.memory - sum(other.size for other in used)

    def creatable(self, vf: str) -> list[int]:
        if self.types.get(vf):
            return []
        pf = self.sim.functions[vf].physfn or ""
        return [number for number in self.cards[pf].types if self.fits(pf, number)]

    def _parent(self, pf: str, parent: str) -> Parent:
        """A parent of mediated devices: a VF takes one."""
        card = self.cards[pf]
        types = {f"nvidia-{number}": MdevType(type_.name, type_.size) for number, type_ in card.types.items()}

        def gate(type_: str) -> int:
            number = int(type_.partition("-")[2])
            if not self.fits(pf, number):
                return 0
            if parent != pf:
                return int(all(d.parent != parent for d in self.sim.mdev.devices.values()))
            return (card.memory - sum(card.types[other].size for other in self.used(pf))) // card.types[number].size

        return Parent(self.sim.functions[parent].path, types, card.memory, gate=gate)

    # --- Over time -------------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        found: dict[str, Any] = {vf: number for vf, number in self.types.items() if number}
        for pf, card in self.cards.items():
            if card.profiles and (card.mig or card.pending or card.instances):
                found[pf] = (card.mig, card.pending, tuple(sorted((one.profile, one.start) for one in card.instances.values())))
        return found

    def boot(self) -> None:
        """Ampere keeps the mode of MIG, Hopper does not; nothing keeps GPU instances, VFs or types."""
        for pf, card in self.cards.items():
            self._lose(pf)
            card.mig = card.pending = card.pending and card.architecture == "Ampere"
            card.processes = []

    def _lose(self, pf: str) -> None:
        for vf in self.sim.functions[pf].vfs:
            self.sim.mdev.parents.pop(vf, None)
            self.types.pop(vf, None)
            self._ready.discard(vf)
        self.cards[pf].instances.clear()

    def reload(self, pf: str) -> None:
        """modprobe -r nvidia; modprobe nvidia."""
        self.sim.mdev.devices = {
            uuid: d for uuid, d in self.sim.mdev.devices.items() if d.parent not in (pf, *self.sim.functions[pf].vfs)
        }
        self._lose(pf)
        card = self.cards[pf]
        card.mig = card.pending = card.mig and card.architecture == "Ampere"
        assert self.sim._set_count(self.sim.functions[pf], "0") == 0
        self.sim._tree = None

    def nodes(self) -> dict[str, Any]:
        nodes: dict[str, Any] = {}
        for pf, card in self.cards.items():
            if self.sim.functions[pf].driver == "nvidia":
                text = f"Model: \t\t {card.product}\nIRQ:   \t\t 77\nGPU UUID: \t {card.uuid}\nBus Location: \t {pf}\n"
                nodes[f"/proc/driver/nvidia/gpus/{pf}/information"] = text
            for vf in self.sim.functions[pf].vfs if not card.mdev else ():
                if vf in self._ready:
                    nodes.update(self._of_vf(card, vf))
        return nodes

    def _of_vf(self, card: Card, vf: str) -> dict[str, str]:
        folder = f"{self.sim.functions[vf].path}/nvidia"
        lines = "".join(f"{number:<6}: {card.types[number].name}\n" for number in self.creatable(vf))
        return {
            f"{folder}/current_vgpu_type": f"{self.types.get(vf, 0)}\n",
            f"{folder}/creatable_vgpu_types": f"ID    : vGPU Name\n{lines}" if lines else "",
            **{f"{folder}/{name}": "" for name in ("vgpu_params", "placement_id", "gpu_instance_id")},
        }

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

    # --- NVIDIA's tools --------------------------------------------------------------------------------------------

    def reads(self, argv: list[str]) -> bool:
        """Does a call of nvidia-smi change nothing?"""
        return not {"-mig", "-cgi", "-dci", "-dgi"} & set(argv)

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
            if vf in self.sim.mdev.parents:
                self.sim.mdev.unregister(vf)
                self.sim.mdev.parents.pop(vf)
        card = self.cards[pf]
        assert self.sim._set_count(self.sim.functions[pf], str(card.vfs if on else 0)) == 0
        vfs = list(self.sim.functions[pf].vfs)
        for vf in vfs:
            self.sim.functions[vf].driver = "nvidia"
        self.sim.later(self.delay, lambda: self._come(pf, vfs))
        self.sim._tree = None

    def _come(self, pf: str, vfs: list[str]) -> None:
        if vfs != self.sim.functions[pf].vfs:
            return
        self._ready.update(vfs)
        for vf in vfs if self.cards[pf].mdev else ():
            self.sim.mdev.parents[vf] = self._parent(pf, vf)
            self.sim.mdev.register(vf)

    def _smi(self, argv: list[str]) -> tuple[int, str, str]:
        if "--query-gpu=pci.bus_id,serial" in argv:
            return 0, "".join(f"{_bus_id(pf)}, {card.serial or '[N/A]'}\n" for pf, card in self.cards.items()), ""
        pf = argv[argv.index("-i") + 1]
        if pf not in self.cards or self.sim.functions[pf].driver != "nvidia":
            return 6, "No devices were found\n", ""
        card, head = self.cards[pf], f"GPU {_bus_id(pf)}\n"
        if argv[1] == "mig":
            return self._mig(card, argv)
        if "-mig" in argv:
            return self._mode(pf, card, argv[-1] == "1")
        if argv[1] == "vgpu" and self.silent:
            self.silent -= 1
            return 0, head, ""
        if argv[1] == "vgpu":
            return 0, head + "".join(_type(card, number) for number in sorted(card.types)), ""
        return 0, f"\n==============NVSMI LOG==============\n\nAttached GPUs                             : 1\n{head}{self._all_of(card)}", ""

    def _all_of(self, card: Card) -> str:
        mode = self.mode or ("SR-IOV" if card.vfs else "Non SR-IOV")
        modes = ["Enabled" if on else "Disabled" for on in (card.mig, card.pending)] if card.profiles else ["N/A", "N/A"]
        text = (
            f"    Product Name                          : {card.product}\n"
            f"    Product Architecture                  : {card.architecture}\n"
            f"    {self.display_field:<38}: {self.display}\n"
            "    MIG Mode\n"
            f"        Current                           : {modes[0]}\n"
            f"        Pending                           : {modes[1]}\n"
            f"    Serial Number                         : {card.serial or 'N/A'}\n"
            f"    GPU UUID                              : {card.uuid}\n"
            "    GPU Operation Mode\n"
            "        Current                           : N/A\n"
            "        Pending                           : N/A\n"
            "    GPU Virtualization Mode\n"
            f"        Virtualization Mode               : {self.virtualization}\n"
            f"        Host VGPU Mode                    : {mode}\n"
            f"        vGPU Heterogeneous Mode           : {self.sizes}\n"
            "    FB Memory Usage\n"
            "        Total                             : 46068 MiB\n"
        )
        if not card.processes:
            return f"{text}    Processes                             : None\n"
        return f"{text}    Processes\n" + "".join(_process(*process) for process in card.processes)

    # --- MIG -------------------------------------------------------------------------------------------------------

    def _mode(self, pf: str, card: Card, on: bool) -> tuple[int, str, str]:
        """Ampere: the mode of now stays until the GPU is reset, which nvidia-smi does not where somebody has it open, as vGPU's manager has."""
        if self.refuses or (card.instances and not on):
            return 1, f"Unable to {'enable' if on else 'disable'} MIG Mode for GPU {_bus_id(pf)}: {self.refuses or 'In use by another client'}\n", ""
        card.pending = on
        if card.architecture == "Ampere" and card.mig != on:
            state = "enable" if on else "disable"
            return 0, f"Warning: MIG mode is in pending {state} state for GPU {_bus_id(pf)}:In use by another client\nAll done.\n", ""
        card.mig = on
        return 0, f"{'Enabled' if on else 'Disabled'} MIG Mode for GPU {_bus_id(pf)}\nAll done.\n", ""

    def _mig(self, card: Card, argv: list[str]) -> tuple[int, str, str]:
        if not card.mig:
            return 6, "No MIG-enabled devices found.\n", ""
        if "-lgip" in argv:
            return 0, _table("profiles", [self._profile_row(card, name) for name in card.profiles]), ""
        if "-lgi" in argv:
            rows = [_instance_row(card, id_) for id_ in sorted(card.instances)]
            return (0, _table("instances", rows), "") if rows else (6, "No GPU instances found: Not Found\n", "")
        if self.refuses:
            return 1, f"Failed: {self.refuses}\n", ""
        if "-cgi" in argv:
            return self._make(card, argv[argv.index("-cgi") + 1].split(","), "-C" in argv)
        id_ = int(argv[argv.index("-gi") + 1])
        return self._unmake(card, id_, "-dgi" in argv)

    def place(self, card: Card, name: str) -> int | None:
        """Where one more instance of a profile finds room; None: nowhere."""
        taken = {one.start + n for one in card.instances.values() for n in range(card.profiles[one.profile].memory)}
        compute = sum(card.profiles[one.profile].compute for one in card.instances.values())
        profile = card.profiles[name]
        if compute + profile.compute > 7:
            return None
        return next((start for start in profile.starts if not taken & set(range(start, start + profile.memory))), None)

    def _make(self, card: Card, names: list[str], with_ci: bool) -> tuple[int, str, str]:
        """One after the other: those that came stay where a later one finds no room."""
        said = ""
        for name in names:
            start = self.place(card, name)
            if start is None:
                return 19, said, "Unable to create a GPU instance on GPU  0 using profile: Insufficient Resources\n"
            id_ = next(n for n in range(1, 99) if n not in card.instances)
            card.instances[id_] = Instance(name, start, with_ci)
            said += f"Successfully created GPU instance ID {id_:2} on GPU  0 using profile MIG {name} (ID {card.profiles[name].id:2})\n"
        return 0, said, ""

    def _unmake(self, card: Card, id_: int, instance: bool) -> tuple[int, str, str]:
        if id_ not in card.instances:
            return 6, "No GPU instances found: Not Found\n", ""
        if not instance:
            card.instances[id_].ci = False
            return 0, f"Successfully destroyed compute instance ID  0 from GPU  0 GPU instance ID {id_:2}\n", ""
        if card.instances[id_].ci:
            return 19, f"Unable to destroy GPU instance ID {id_:2} from GPU  0: In use by another client\n", ""
        del card.instances[id_]
        return 0, f"Successfully destroyed GPU instance ID {id_:2} from GPU  0\n", ""

    def _profile_row(self, card: Card, name: str) -> str:
        profile, free = card.profiles[name], 0
        trial = Card(card.product, {}, 0, 0, "", profiles=card.profiles, instances=dict(card.instances))
        while (start := self.place(trial, name)) is not None:
            free += 1
            trial.instances[100 + free] = Instance(name, start)
        total = min(7 // profile.compute, len(profile.starts))
        first = f"|   0  MIG {name:<14} {profile.id:3}     {free}/{total}        {profile.memory * 4.75:<8}   No     {14 * profile.compute:<3}    0     0   |"
        return f"{first}\n|{'1     0     0':>75}   |"


def _instance_row(card: Card, id_: int) -> str:
    one = card.instances[id_]
    profile = card.profiles[one.profile]
    return f"|   0  MIG {one.profile:<14} {profile.id:3}      {id_:3}          {one.start}:{profile.memory}     |"


def _table(what: str, rows: list[str]) -> str:
    line = f"+{'-' * 54}+"
    return f"{line}\n| GPU {what}: |\n| GPU   Name  Profile  Instance   Placement |\n|{'=' * 54}|\n" + "".join(f"{row}\n{line}\n" for row in rows)


def _bus_id(pf: str) -> str:
    domain, _colon, rest = pf.partition(":")
    return f"{domain.zfill(8)}:{rest.upper()}"


def _process(pid: int, kind: str, name: str, instance: int | None) -> str:
    return (
        f"        GPU instance ID                   : {'N/A' if instance is None else instance}\n"
        f"        Compute instance ID               : {'N/A' if instance is None else 0}\n"
        f"        Process ID                        : {pid}\n"
        f"            Type                          : {kind}\n"
        f"            Name                          : {name}\n"
        "            Used GPU Memory               : 630 MiB\n"
    )


def _type(card: Card, number: int) -> str:
    name, size, profile = card.types[number]
    most = min(7 // card.profiles[profile].compute, len(card.profiles[profile].starts)) if profile else min(card.memory // size, card.vfs or 32)
    return (
        f"    vGPU Type ID                          : {number:#x}\n"
        f"        Name                              : {name}\n"
        "        Class                             : Quadro\n"
        f"        GPU Instance Profile ID           : {card.profiles[profile].id if profile else 'N/A'}\n"
        f"        Max Instances                     : {most}\n"
        "        Max Instances Per VM              : 16\n"
        f"        Max Instances Per GI              : {1 if profile else 'N/A'}\n"
        f"        FB Memory                         : {size * 1024} MiB\n"
    )
