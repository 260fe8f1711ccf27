# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The plain values of the engine: what a host is, what shall be done, what must not be done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Any

from .plain import dataclass

#: How sure an announced action is.
CERTAIN = "certain"
PREDICTED = "predicted"
AFTER_REBOOT = "after_reboot"
AFTER_LINK = "after_link"

#: What is not done now.
LATER = (AFTER_REBOOT, AFTER_LINK)

#: Every danger that can be allowed by its own name (docs/safety.md).
DANGERS = ("management", "link_flap", "in_use", "boot_disk", "console", "group", "foreign", "sealed_disk")

#: The group of actions that belong to no single device; they run first and everything depends on them.
HOST = "host"


@dataclass(frozen=True)
class Netdev:
    """A network device. `addresses` holds the global ones only: a link-local address counts only where the controller came in
    by it."""

    name: str
    #: The permanent MAC, and the one of now. Where nobody tells of a permanent one, both are that of now.
    mac: str = ""
    address: str = ""
    #: It has no permanent one: it is another one at each boot.
    made_up: bool = False
    up: bool = False
    carrier: bool = False
    addresses: tuple[str, ...] = ()
    link_local: tuple[str, ...] = ()
    default_route: bool = False
    uppers: tuple[str, ...] = ()
    lowers: tuple[str, ...] = ()
    #: What it is by rtnetlink: 'bond', 'bridge', 'vlan', ...; nothing for a port.
    kind: str = ""
    #: Of a macvlan or macvtap: 'bridge', 'vepa', 'private', 'passthru', 'source'.
    mode: str = ""
    #: 'ether', 'infiniband', ...
    link_type: str = ""
    #: What the driver calls the port ('p0', 'pf0vf1') and the switch that it belongs to; nothing where it says neither.
    port_name: str = ""
    switch_id: str = ""
    #: Its number in this namespace; 0: not known.
    index: int = 0
    #: The other end of a veth pair, where that is in this namespace too.
    peer: str = ""
    #: Programs attached to its receive path (XDP), as a person names them.
    xdp: str = ""
    mtu: int = 0
    #: The largest that its driver takes; 0 where nobody says.
    max_mtu: int = 0
    promisc: bool = False
    #: VF index -> its attributes as they are, by the names that they have in a wish.
    vfs: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    #: Does its driver tell of VFs at all? Then a VF that is not in `vfs` found no room in the answer (link.SHOWN).
    tells_vfs: bool = False


@dataclass(frozen=True)
class Sriov:
    """The SR-IOV capability of a physical function. `vfs` maps VF index to PCI address, read from the virtfnN links:
    reading sriov_numvfs can hang (docs/kernel-facts.md). VFs that are no functions of their own (netdevsim) have names of ours: 'netdevsim1/0'."""

    total: int
    autoprobe: bool = True
    #: A run was cut off while it had probing off; `autoprobe` is what it was before.
    interrupted: bool = False
    offset: int = 0
    stride: int = 0
    vf_device: str = ""
    #: Mbit/s of its port now; None without a link, or where the driver does not say.
    speed: int | None = None
    vfs: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Function:
    """A function as sysfs shows it: of PCI, or of another bus whose devices have VFs. What only PCI has (ids, class, group, override, slot) is empty
    there."""

    address: str
    vendor: str
    device: str
    subsystem: str = ""
    class_code: str = ""
    driver: str | None = None
    override: str | None = None
    #: The kernel does not answer for it: somebody's write to it, or to its PF, has not returned.
    stuck: bool = False
    #: The driver that it has when nothing overrides it.
    native: str | None = None
    numa_node: int = -1
    slot: str = ""
    group: str | None = None
    physfn: str | None = None
    serial: str = ""
    #: Device Serial Number of the PCI Express extended capability, as lspci prints it; nothing where it has none.
    dsn: str = ""
    netdevs: tuple[str, ...] = ()
    #: Block devices of this function that something on the host uses, with the user: '/boot', 'swap', 'dm-0'.
    disks_in_use: tuple[str, ...] = ()
    boot_vga: bool = False
    sriov: Sriov | None = None
    bus: str = "pci"
    #: Network devices below this PF that stand for VFs inside the host (Documentation/networking/representors.rst).
    representors: tuple[str, ...] = ()

    @property
    def is_bridge(self) -> bool:
        return self.class_code.startswith("06")


@dataclass(frozen=True)
class User:
    """Somebody who uses a device."""

    who: str
    #: A guest that is defined and does not run: it needs the device to be there, no more.
    idle: bool = False
    #: Works with the function's network device (macvtap), not with the function.
    by_netdev: bool = False
    #: Has the function's network device in another namespace, so that nobody here knows what is done with it.
    hides: bool = False
    #: The network device on the function's own by which it uses it, by its name in the user's network namespace.
    rides: str = ""
    #: Sets the function's driver, MAC and VLAN for as long as it has it, and puts them back: libvirt with a managed device.
    rules: bool = False


@dataclass(frozen=True)
class Keeper:
    """Another program that rules something of a device: `rules` are names of keepers.WHAT."""

    name: str
    reason: str
    rules: frozenset[str]


@dataclass(frozen=True)
class Group:
    """An IOMMU group."""

    number: str
    type: str
    members: tuple[str, ...]
    #: Start, end and type of regions that no guest's memory may take (reserved_regions); read for iommu_info only.
    reserved: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Iommu:
    """The IOMMU now (units, groups) and what the next boot will make of it, where that was asked."""

    tables: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    groups: Mapping[str, Group] = field(default_factory=dict)
    interrupt_remapping: bool = False
    #: Does a VT-d unit offer scalable mode (ECAP.SMTS)? None: no unit that says so is driven.
    scalable: bool | None = None
    #: Without a table: what says that the machine has an IOMMU all the same, in words.
    hint: str = ""
    #: Does the next boot switch translation on? None: not asked, or nobody knows.
    after_reboot: bool | None = None

    @property
    def active(self) -> bool:
        return bool(self.groups)

    @property
    def lazy(self) -> bool:
        """Does invalidation wait (DMA-FQ: a flush queue)? Single groups may differ."""
        return any(group.type == "DMA-FQ" for group in self.groups.values())


@dataclass(frozen=True)
class Lost:
    """A recorded device that was not found: its record and why. `uncertain`: it may be there, nobody can tell."""

    entry: Mapping[str, Any]
    reason: str
    uncertain: bool = False


@dataclass(frozen=True)
class State:
    """What a host is. A plain value: nothing is read after it is made."""

    functions: Mapping[str, Function] = field(default_factory=dict)
    netdevs: Mapping[str, Netdev] = field(default_factory=dict)
    iommu: Iommu = field(default_factory=Iommu)
    #: Drivers registered on the PCI bus.
    drivers: frozenset[str] = frozenset()
    #: Of the drivers that were asked for: those that a module of the running kernel provides.
    loadable: frozenset[str] = frozenset()
    #: Driver that was asked for -> why it cannot be had, and the way out.
    lacking: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    #: Drivers of VFs without one that the operator keeps from being loaded.
    blacklisted: frozenset[str] = frozenset()
    #: Address -> the VFIO driver made for this very device. A PF's address with '/vf' behind it: for its VFs. Read only
    #: where a wish or a report asks for it.
    variants: Mapping[str, str] = field(default_factory=dict)
    #: The initramfs tool, our files for it and the images (initramfs.py), and the modules that are built in. Read only
    #: where a device is bound early, or was.
    early: Mapping[str, Any] = field(default_factory=dict)
    #: PCI address -> who uses it (users.py). None: not read (only needed before something is taken away).
    users: Mapping[str, tuple[User, ...]] | None = None
    #: PCI address -> other programs that rule it (keepers.py), and how it is known to be the console (consoles.py);
    #: read with the users.
    keepers: Mapping[str, tuple[Keeper, ...]] = field(default_factory=dict)
    consoles: Mapping[str, str] = field(default_factory=dict)
    #: VFs whose MAC is of their own choice and not their PF's. Read with the users, and before anything is recorded.
    own_macs: frozenset[str] = frozenset()
    #: /etc/machine-id.
    machine_id: str = ""
    #: Network device through which the controller is connected.
    control_netdev: str | None = None
    #: vfio-pci loaded with enable_sriov: then, and only then, does it create VFs.
    vfio_sriov: bool = False
    #: The boot replay as installed (boot.py).
    replay: Mapping[str, Any] = field(default_factory=dict)
    #: resource -> what an earlier call declared (store.py), by where each device is now.
    stored: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: resource -> address of the record -> the declared devices that were not found (identity.py).
    lost: Mapping[str, Mapping[str, Lost]] = field(default_factory=dict)
    #: resource -> address of the record -> address of now, for what has moved.
    moved: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    #: resource -> address of now -> address of the record, where the record cannot follow.
    keys: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    #: What the call takes (guards.foreseen): network devices that go or are cut off, and device -> the driver that it
    #: will have.
    going: frozenset[str] = frozenset()
    becoming: Mapping[str, str | None] = field(default_factory=dict)
    #: Part of a resource -> device -> what that part alone wants to know, read only for devices whose wish needs it.
    more: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def with_more(self, part: str, facts: Mapping[str, Any]) -> State:
        """The state with what a part has read (device -> facts)."""
        return replace(self, more={**self.more, part: {**self.more.get(part, {}), **facts}})


@dataclass(frozen=True)
class Action:
    """One step on the host. `unit` is the device that shares its fate: when a step fails, the steps before it on
    that device are undone. `before` and `after` feed the diff."""

    kind: str
    unit: str
    text: str
    certainty: str = CERTAIN
    args: Mapping[str, Any] = field(default_factory=dict)
    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {
            "device": self.unit,
            "action": self.kind,
            "text": self.text,
            "certainty": self.certainty,
            "before": dict(self.before),
            "after": dict(self.after),
        }


@dataclass(frozen=True)
class Refusal:
    """Something that will not be done. With a danger it can be allowed by that name."""

    device: str
    reason: str
    way_out: str
    danger: str | None = None

    def sentence(self) -> str:
        return f"{self.device}: {self.reason} {self.way_out}"


@dataclass
class Plan:
    """What would be done, what will not, and what follows from it."""

    actions: list[Action] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    reboot_reasons: list[str] = field(default_factory=list)
    predicted: dict[str, Any] = field(default_factory=dict)
    #: Dangers that stood against a step and were allowed by name.
    waived: set[str] = field(default_factory=set)
    #: Facts of the devices that were named, as they will be, keyed by address.
    devices: dict[str, Any] = field(default_factory=dict)

    @property
    def doable(self) -> list[Action]:
        return [action for action in self.actions if action.certainty not in LATER]

    @property
    def waiting(self) -> list[Action]:
        return [action for action in self.actions if action.certainty in LATER]

    @property
    def changed(self) -> bool:
        return bool(self.doable)

    def extend(self, other: Plan) -> None:
        self.actions += other.actions
        self.refusals += other.refusals
        self.warnings += other.warnings
        self.reboot_reasons += [reason for reason in other.reboot_reasons if reason not in self.reboot_reasons]
        # Several resources may predict of one kind: mdev and vgpu of mediated devices.
        for key, value in other.predicted.items():
            known = self.predicted.get(key)
            self.predicted[key] = {**known, **value} if isinstance(known, dict) and isinstance(value, dict) else value
        self.waived |= other.waived
        self.devices.update(other.devices)


@dataclass
class Outcome:
    """What was done, and for each device that failed a sentence."""

    done: list[Action] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    indeterminate: list[str] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        """What was done later in the same run."""
        self.done += other.done
        self.failures.update(other.failures)
        self.indeterminate += other.indeterminate
