# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Read a host once and make a plain value of it. One process is started (ip); everything else is files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from . import aliases, boot, identity, initramfs, link, store, sysfs
from .drivers import BEST, is_vfio
from .errors import EngineError
from .host import Answer, Files, Host
from .mdev import facts as mdev
from .model import Function, Group, Iommu, Netdev, Sriov, State
from .plain import dataclass

DEVICES = f"/sys/bus/{sysfs.PCI}/devices"
DRIVERS = "/sys/bus/pci/drivers"
ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")

#: Seconds that an attribute may take. On a healthy host it takes microseconds.
ANSWER_LIMIT = 3.0

#: How drivers call a port that stands for a VF, a subfunction or a whole PF behind their switch (phys_port_name;
#: __devlink_port_phys_port_name_get in net/devlink/port.c). Drivers before Linux 5.1 gave the number of the VF alone: not told apart from a port.
REPRESENTOR = re.compile(r"(c\d+)?pf\d+((vf|sf)\d+)?")

#: ACPI tables by which the firmware offers an IOMMU: VT-d, AMD-Vi, ARM SMMU.
IOMMU_TABLES = ("DMAR", "IVRS", "IORT")


@dataclass(frozen=True)
class Needs:
    """What is read only when a wish asks for it."""

    drivers: frozenset[str] = frozenset()
    #: Which devices have a VFIO driver of their own kind.
    variants: bool = False
    #: What the initramfs does.
    early: bool = False


def read_state(host: Host, needs: Needs, known: Mapping[str, Function] | None = None) -> State:
    """The state of the host. Raises EngineError when a fact that guards depend on cannot be had. PCI functions that are
    `known` and still there are taken as they were known, but for their network devices."""
    files = host.files
    documents = store.load_all(files)
    # The one process of a reading works while this one reads files.
    answer = host.begin(_ADDRESSES)
    drivers = frozenset(files.names(DRIVERS))
    functions = _read_functions(files, known or {}, documents)
    netdevs = _read_netdevs(host, answer)
    functions = {address: _without_representors(function, netdevs) for address, function in functions.items()}
    netdevs = _with_made_up(files, functions, netdevs)
    found = State(functions=functions, netdevs=netdevs)
    places = identity.locate(found, documents)
    functions = _with_native(host, found.functions, places.stored, drivers)
    variants = _read_variants(files, functions, drivers) if needs.variants or BEST in needs.drivers else {}
    wanted = (_wanted_drivers(needs, variants) | store.recorded_overrides(places.stored)) - drivers
    without = {f.native for f in functions.values() if f.physfn and f.native and not f.driver}
    return State(
        functions=functions,
        netdevs=netdevs,
        iommu=read_iommu(files),
        drivers=drivers,
        loadable=aliases.providable(files, wanted),
        lacking=aliases.lacking(files, wanted),
        blacklisted=aliases.blacklisted(files, without - drivers),
        variants=variants,
        early=_read_early(files, documents, needs),
        control_netdev=_control_netdev(host.environment, netdevs),
        machine_id=(files.text("/etc/machine-id") or "").strip(),
        vfio_sriov=files.attr("/sys/module/vfio_pci/parameters/enable_sriov") == "Y",
        replay=boot.read(files, host.python),
        stored=places.stored,
        lost=places.lost,
        moved=places.moved,
        keys=places.keys,
    )


def _with_made_up(files: Files, functions: Mapping[str, Function], netdevs: Mapping[str, Netdev]) -> dict[str, Netdev]:
    """Of a MAC that the driver made up, or took from another device, `ip` shows no permanent one beside it (1, NET_ADDR_RANDOM; 2,
    NET_ADDR_STOLEN; Documentation/ABI/testing/sysfs-class-net, addr_assign_type). One that was set (3) may be the permanent one: the first
    leg of a bond has it so. Of whole functions alone: a VF is told by its PF."""
    names = [name for f in functions.values() if f.physfn is None for name in f.netdevs if name in netdevs]
    alone = [name for name in names if netdevs[name].mac == netdevs[name].address]
    made_up = [name for name in alone if files.attr(f"/sys/class/net/{name}/addr_assign_type") in ("1", "2")]
    return {**netdevs, **{name: replace(netdevs[name], made_up=True) for name in made_up}}


def own_macs(files: Files, state: State) -> frozenset[str]:
    """VFs whose MAC their driver made up, or udev. One that the PF gave is a permanent one to the VF's driver (0, NET_ADDR_PERM;
    Documentation/ABI/testing/sysfs-class-net, addr_assign_type). One that was set on the PF after the driver had probed the VF is known from
    being another than its network device has."""
    return frozenset(
        function.address
        for function in state.functions.values()
        for name in function.netdevs
        if function.physfn
        and files.attr(f"/sys/class/net/{name}/addr_assign_type") not in ("0", None)
        and _mac_at_pf(state, function) in (None, files.attr(f"/sys/class/net/{name}/address"))
    )


def _mac_at_pf(state: State, vf: Function) -> str | None:
    pf = state.functions.get(vf.physfn or "")
    indexes = [index for index, address in pf.sriov.vfs.items() if address == vf.address] if pf and pf.sriov else []
    for name in pf.netdevs if pf else ():
        for index in indexes:
            mac = state.netdevs[name].vfs.get(index, {}).get("mac") if name in state.netdevs else None
            if mac:
                return str(mac)
    return None


def _wanted_drivers(needs: Needs, variants: Mapping[str, str]) -> frozenset[str]:
    """The drivers that a wish may come to."""
    if BEST not in needs.drivers:
        return needs.drivers
    return (needs.drivers - {BEST}) | {"vfio-pci", *variants.values()}


def _read_variants(files: Files, functions: Mapping[str, Function], drivers: frozenset[str]) -> dict[str, str]:
    modaliases = {}
    for address, function in functions.items():
        if function.bus != sysfs.PCI:
            continue
        modalias = files.attr(f"{DEVICES}/{address}/modalias") or ""
        modaliases[address] = modalias
        if function.sriov and function.sriov.total:
            modaliases[f"{address}/vf"] = _modalias_of_vf(modalias, function.sriov)
    return aliases.variants(files, modaliases, drivers)


def _read_early(files: Files, stored: Mapping[str, Any], needs: Needs) -> Mapping[str, Any]:
    declared = any(entry["wish"].get("early") for entry in stored["vfio"]["devices"].values())
    # A parameter that is given back is to go from the copies of modprobe.d, too.
    declared |= any("pools" in entry.get("touched", ()) for entry in stored["vmdq"]["devices"].values())
    if not (needs.early or declared or files.exists(initramfs.RECORD)):
        return {}
    return {**initramfs.read(files), "builtin": aliases.builtin(files)}


# --- PCI functions -------------------------------------------------------------------------------------------------


def _read_functions(files: Files, known: Mapping[str, Function], documents: Mapping[str, Mapping[str, Any]]) -> dict[str, Function]:
    addresses = [name for name in files.names(DEVICES) if ADDRESS.fullmatch(name)]
    slots = _read_slots(files)
    disks = _disks_in_use(files)
    netdevs = _netdevs_of_functions(files)
    overrides = _read_overrides(files, [address for address in addresses if address not in known])
    functions: dict[str, Function] = {}
    kinds: dict[str, _Kind] = {}
    for address in addresses:
        if address in known:
            functions[address] = replace(known[address], netdevs=tuple(netdevs.get(address, ())))
        else:
            functions[address] = _read_function(files, address, slots, disks, netdevs, overrides, kinds)
    functions.update(_read_other_buses(files, netdevs))
    functions.update(mdev.parents(files, documents[mdev.NAME]["devices"]))
    return functions


def _with_native(
    host: Host, functions: Mapping[str, Function], stored: Mapping[str, Any], drivers: frozenset[str]
) -> dict[str, Function]:
    """The functions with the driver that each has when nothing overrides it."""
    modaliases = {}
    recorded = store.recorded_drivers(stored)
    for address, function in functions.items():
        known = _has_own_driver(function) or (address, identity.ids(function)) in recorded
        if function.bus == sysfs.PCI and not known:
            modaliases[address] = host.files.attr(f"{DEVICES}/{address}/modalias") or ""
    wanted = set(modaliases.values()) - {""}
    if wanted:
        # The table is read anyhow: with the VFs that a call may make, it need not be read again after it.
        wanted |= _modaliases_to_come(host.files, functions)
    native = aliases.natives(host.files, host.natives, wanted, drivers)
    found = {a: _native(function, recorded, native.get(modaliases.get(a, ""))) for a, function in functions.items()}
    return {a: function if function.native == found[a] else replace(function, native=found[a]) for a, function in functions.items()}


def _modaliases_to_come(files: Files, functions: Mapping[str, Function]) -> set[str]:
    ports = [f for f in functions.values() if f.bus == sysfs.PCI and f.sriov and f.sriov.total and not f.sriov.vfs]
    known = [(files.attr(f"{DEVICES}/{f.address}/modalias") or "", f.sriov) for f in ports if f.sriov]
    return {_modalias_of_vf(modalias, its) for modalias, its in known if modalias}


def _modalias_of_vf(modalias: str, its: Sriov) -> str:
    """As the VFs of a PF will have it: the device ID of their own, the rest as the PF's."""
    return modalias[:14] + its.vf_device.upper().zfill(8) + modalias[22:]


def _without_representors(function: Function, known: Mapping[str, Netdev]) -> Function:
    """The network devices below a PF in switchdev mode are its own port and those that stand for its VFs."""
    if not function.netdevs and not function.representors:
        return function
    standing = tuple(n for n in function.netdevs if n in known and REPRESENTOR.fullmatch(known[n].port_name))
    return replace(
        function, netdevs=tuple(n for n in function.netdevs if n not in standing), representors=standing
    )


def _read_other_buses(files: Files, netdevs: Mapping[str, Sequence[str]]) -> dict[str, Function]:
    """Devices of another bus than PCI, with what they have: a driver, network devices and VFs."""
    found = {}
    for bus, name in sysfs.OTHER_BUSES.items():
        for address in files.names(f"/sys/bus/{bus}/devices"):
            if name.fullmatch(address):
                driver = files.link(f"{sysfs.device(address)}/driver")
                found[address] = Function(
                    address=address,
                    vendor="",
                    device="",
                    driver=driver,
                    native=driver,
                    netdevs=tuple(netdevs.get(address, ())),
                    sriov=_read_netdevsim_vfs(files, address),
                    bus=bus,
                )
    return found


def _read_netdevsim_vfs(files: Files, address: str) -> Sriov:
    """Here sriov_numvfs is a number in memory, read without a lock (nsim_bus_dev_numvfs_show), and the VFs are no devices. The limit
    stands in debugfs, where that is mounted; 4 is what a new device has (NSIM_BUS_DEV_MAX_VFS)."""
    count = int(files.attr(f"{sysfs.device(address)}/sriov_numvfs") or 0)
    limit = files.attr(f"/sys/kernel/debug/netdevsim/{address}/max_vfs") or "4"
    vfs = {index: f"{address}/{index}" for index in range(count)}
    return Sriov(total=max(int(limit), count), autoprobe=False, vfs=vfs)


def _has_own_driver(function: Function) -> bool:
    """Is the driver that it has now the one it would have without us?"""
    return function.driver is not None and not function.override and not is_vfio(function.driver)


def _native(function: Function, recorded: Mapping[tuple[str, str], str], by_alias: str | None) -> str | None:
    if _has_own_driver(function):
        return function.driver
    return recorded.get((function.address, identity.ids(function)), by_alias)


def _read_function(
    files: Files,
    address: str,
    slots: Mapping[str, str],
    disks: Mapping[str, list[str]],
    netdevs: Mapping[str, list[str]],
    overrides: Mapping[str, str | None],
    kinds: dict[str, _Kind],
) -> Function:
    """`kinds` has what the VFs of a PF have in common, once one of them is read."""
    path = f"{DEVICES}/{address}"
    here = set(files.names(path))
    override = overrides.get(address)
    physfn = files.link(f"{path}/physfn") if "physfn" in here else None
    kind = kinds.get(physfn or "") or _read_kind(files, path)
    if physfn:
        kinds[physfn] = kind
    return Function(
        address=address,
        vendor=kind.vendor,
        device=kind.device,
        subsystem=kind.subsystem,
        class_code=kind.class_code,
        driver=files.link(f"{path}/driver") if "driver" in here else None,
        # A pointer that was never set reads as "(null)" (drivers/pci/pci-sysfs.c).
        override=override if override and override != "(null)" else None,
        stuck=address not in overrides or _half_removed(here),
        numa_node=int(files.attr(f"{path}/numa_node") or -1),
        slot=slots.get(address.rpartition(".")[0], ""),
        group=files.link(f"{path}/iommu_group") if "iommu_group" in here else None,
        physfn=physfn,
        serial=_nvme_serial(files, path) if "nvme" in here else "",
        # Not of one whose lock is held: while a reset holds it, the kernel lets readers of the configuration wait
        # (pci_dev_lock, drivers/pci/pci.c).
        dsn=_device_serial(files, path, kind.class_code) if "physfn" not in here and address in overrides else "",
        netdevs=tuple(netdevs.get(address, ())),
        disks_in_use=tuple(disks.get(address, ())),
        boot_vga="boot_vga" in here and files.attr(f"{path}/boot_vga") == "1",
        sriov=_read_sriov(files, address, here, netdevs.get(address, ())) if "sriov_totalvfs" in here else None,
    )


class _Kind(NamedTuple):
    """What a function is. The kernel itself reads it of the first VF and takes it for that of all VFs of the PF (pci_read_vf_config_common and
    pci_iov_add_virtfn, drivers/pci/iov.c)."""

    vendor: str
    device: str
    subsystem: str
    class_code: str


def _read_kind(files: Files, path: str) -> _Kind:
    subsystem = _id(files.attr(f"{path}/subsystem_vendor")) + ":" + _id(files.attr(f"{path}/subsystem_device"))
    return _Kind(
        vendor=_id(files.attr(f"{path}/vendor")),
        device=_id(files.attr(f"{path}/device")),
        subsystem=subsystem,
        class_code=(files.attr(f"{path}/class") or "0x")[2:],
    )


def _half_removed(here: Iterable[str]) -> bool:
    """VFs go in the order of their indexes (sriov_del_vfs, drivers/pci/iov.c), and the link of one goes before its driver
    lets it go: a gap at the beginning is a removal that has not returned (lab, a paused guest)."""
    indexes = {int(name[6:]) for name in here if name.startswith("virtfn")}
    return indexes != set(range(len(indexes)))


def _read_overrides(files: Files, addresses: Sequence[str]) -> dict[str, str | None]:
    """driver_override takes the device's lock (driver_override_show), which a hanging write to the device holds: the
    functions that do not answer are not in the result."""
    paths = [f"{DEVICES}/{address}/driver_override" for address in addresses]
    answers = files.attrs_within(paths, ANSWER_LIMIT)
    return {address: answers[path] for address, path in zip(addresses, paths) if path in answers}


def _netdevs_of_functions(files: Files) -> dict[str, list[str]]:
    """Address -> its network devices, also those of a device below it (virtio, where PCI function and network
    device have another bus between them)."""
    found: dict[str, list[str]] = {}
    for name in files.names("/sys/class/net"):
        path = files.resolve(f"/sys/class/net/{name}")
        addresses = ADDRESS.findall(path)
        # The device itself, for a bus of its own: .../netdevsim1/net/eni1np1.
        parent = path.rpartition("/net/")[0].rpartition("/")[2]
        if addresses or sysfs.bus_of(parent) in sysfs.OTHER_BUSES:
            found.setdefault(addresses[-1] if addresses else parent, []).append(name)
    return found


def _id(text: str | None) -> str:
    return (text or "")[2:].lower()


def _nvme_serial(files: Files, path: str) -> str:
    for name in files.names(f"{path}/nvme"):
        return files.attr(f"{path}/nvme/{name}/serial") or ""
    return ""


def _device_serial(files: Files, path: str, class_code: str) -> str:
    """Device Serial Number (PCI Express Base Specification, 7.9.3) from the extended configuration space, which only
    root may read, as lspci prints it. All zeros or ones are none."""
    if class_code.startswith("06") or files.attr(f"{path}/power_state") == "D3cold":
        # Nobody declares a bridge; and reading would wake a card that sleeps (pci_config_pm_runtime_get, drivers/pci/pci.c).
        return ""
    offset, seen = 0x100, set()
    while offset >= 0x100 and offset not in seen:
        seen.add(offset)
        data = files.data(f"{path}/config", offset, 12)
        header = int.from_bytes(data[:4], "little")
        if len(data) < 12 or header in (0, 0xFFFFFFFF):
            return ""
        if header & 0xFFFF == 0x0003:
            number = data[:3:-1]
            return "" if number in (b"\0" * 8, b"\xff" * 8) else "-".join(f"{byte:02x}" for byte in number)
        offset = header >> 20 & 0xFFC
    return ""


def _read_sriov(files: Files, address: str, here: Iterable[str], netdevs: Sequence[str]) -> Sriov:
    path, vfs = f"{DEVICES}/{address}", {}
    interrupted = files.exists(store.held_back(address))
    for name in here:
        if name.startswith("virtfn"):
            target = files.link(f"{path}/{name}")
            if target:
                vfs[int(name[6:])] = target
    return Sriov(
        total=int(files.attr(f"{path}/sriov_totalvfs") or 0),
        autoprobe=interrupted or files.attr(f"{path}/sriov_drivers_autoprobe") != "0",
        interrupted=interrupted,
        offset=int(files.attr(f"{path}/sriov_offset") or 0),
        stride=int(files.attr(f"{path}/sriov_stride") or 0),
        vf_device=files.attr(f"{path}/sriov_vf_device") or "",
        speed=_speed(files, netdevs),
        vfs=dict(sorted(vfs.items())),
    )


def _speed(files: Files, netdevs: Sequence[str]) -> int | None:
    """The attribute gives EINVAL while the port is down, and -1 where the driver does not know."""
    for name in netdevs:
        text = files.attr(f"/sys/class/net/{name}/speed") or ""
        if text.isdigit() and int(text):
            return int(text)
    return None


def _read_slots(files: Files) -> dict[str, str]:
    """'0000:01:00' -> slot name. One slot holds all functions of a device."""
    folder = "/sys/bus/pci/slots"
    return {files.attr(f"{folder}/{name}/address") or "": name for name in files.names(folder)}


# --- Disks ---------------------------------------------------------------------------------------------------------


def _disks_in_use(files: Files) -> dict[str, list[str]]:
    """PCI address -> what on the host uses its disks. Stacks (LVM, RAID, multipath, dm-crypt) are followed down."""
    found: dict[str, list[str]] = {}
    for device, user in sorted(_used_block_devices(files).items()):
        for function in functions_below(files, device):
            found.setdefault(function, []).append(user)
    return found


def _used_block_devices(files: Files) -> dict[str, str]:
    """Path in /sys of a block device -> who uses it."""
    used: dict[str, str] = {}
    for line in (files.text("/proc/self/mountinfo") or "").splitlines():
        fields = line.split()
        source = fields[fields.index("-") + 2] if "-" in fields else ""
        # btrfs and the like mount with an anonymous device number: there the source's name leads to the disk.
        for path in (f"/sys/dev/block/{fields[2]}", f"/sys/class/block/{source.rpartition('/')[2]}"):
            if source.startswith("/dev/") and files.exists(path):
                used.setdefault(files.resolve(path), f"mounted on {fields[4]}")
    for line in (files.text("/proc/swaps") or "").splitlines()[1:]:
        path = f"/sys/class/block/{line.split()[0].rpartition('/')[2]}"
        if files.exists(path):
            used.setdefault(files.resolve(path), "swap")
    for uuid in files.names("/sys/fs/btrfs"):
        # There while it is mounted; mountinfo names one of its devices only.
        for name in files.names(f"/sys/fs/btrfs/{uuid}/devices"):
            used.setdefault(files.resolve(f"/sys/class/block/{name}"), f"part of the mounted btrfs {uuid}")
    pools = files.names("/proc/spl/kstat/zfs")
    for name in files.names("/sys/class/block"):
        if pools and _is_zfs(files, name):
            used.setdefault(files.resolve(f"/sys/class/block/{name}"), "part of a ZFS pool")
        holders = files.names(f"/sys/class/block/{name}/holders")
        if holders:
            used.setdefault(files.resolve(f"/sys/class/block/{name}"), f"part of {', '.join(holders)}")
    return used


def _is_zfs(files: Files, name: str) -> bool:
    """A member of a pool has neither a holder nor a device name in the table of mounts; udev's database knows it."""
    number = files.attr(f"/sys/class/block/{name}/dev")
    return "E:ID_FS_TYPE=zfs_member" in (files.text(f"/run/udev/data/b{number}") or "").splitlines()


def functions_below(files: Files, device: str) -> list[str]:
    """The PCI functions that a block device (its path in /sys) rests on."""
    below = files.names(f"{device}/slaves")
    if below:
        return [f for name in below for f in functions_below(files, files.resolve(f"/sys/class/block/{name}"))]
    addresses = ADDRESS.findall(device)
    if addresses:
        # Also what is above it: behind a VMD controller the disk sits in a PCI domain of its own.
        return list(dict.fromkeys(addresses))
    return _nvme_functions(files, device)


def _nvme_functions(files: Files, device: str) -> list[str]:
    """With native multipath an NVMe namespace hangs below a virtual subsystem whose links are the controllers."""
    match = re.search(r"/nvme-subsystem/(nvme-subsys\d+)/", device + "/")
    if not match:
        return []
    folder = f"/sys/class/nvme-subsystem/{match.group(1)}"
    functions = []
    for name in files.names(folder):
        if re.fullmatch(r"nvme\d+", name):
            functions += ADDRESS.findall(files.resolve(f"{folder}/{name}"))[-1:]
    return functions


# --- Network -------------------------------------------------------------------------------------------------------


_ADDRESSES = ["ip", "-j", "-d", "addr", "show"]


def _read_netdevs(host: Host, answer: Answer) -> dict[str, Netdev]:
    links, err = _links(*answer())
    if links is None and "Message too long" in err:
        # More VFs than one message of the kernel holds (EMSGSIZE, rtnl_fill_vf in net/core/rtnetlink.c): all but those.
        links, _err = _links(*host.run([*_ADDRESSES, "novf"]))
        links = links and [{**link, "vfinfo_list": []} for link in links]
    if links is None:
        raise EngineError(
            f"ip -j -d addr show: failed: {err.strip() or 'its output is not JSON'}. Without it nobody knows which "
            "port the host is managed through; install iproute2 4.19 or newer."
        )
    routed = _default_route_netdevs(host.files)
    return {said["ifname"]: _read_netdev(host.files, said, routed) for said in links if said.get("ifname")}


def _links(code: int, out: str, err: str) -> tuple[list[dict[str, Any]] | None, str]:
    try:
        return (json.loads(out) if code == 0 else None), err
    except ValueError:
        return None, err


def _read_netdev(files: Files, said: Mapping[str, Any], routed: set[str]) -> Netdev:
    name = said["ifname"]
    here = files.names(f"/sys/class/net/{name}")
    flags = said.get("flags", [])
    addresses = [item["local"] for item in said.get("addr_info", []) if item.get("scope") == "global"]
    return Netdev(
        name=name,
        mac=_permanent(said),
        address=(said.get("address") or "").lower(),
        up="UP" in flags,
        carrier="LOWER_UP" in flags,
        addresses=tuple(addresses),
        link_local=tuple(item["local"] for item in said.get("addr_info", []) if item.get("scope") == "link"),
        default_route=name in routed,
        uppers=tuple(entry[6:] for entry in here if entry.startswith("upper_")),
        lowers=tuple(entry[6:] for entry in here if entry.startswith("lower_")),
        kind=(said.get("linkinfo") or {}).get("info_kind", ""),
        mode=((said.get("linkinfo") or {}).get("info_data") or {}).get("mode", "") if _is_macvlan(said) else "",
        link_type=said.get("link_type") or "",
        port_name=said.get("phys_port_name") or "",
        switch_id=said.get("phys_switch_id") or "",
        index=said.get("ifindex", 0),
        # A name stands there only where the other end is in this namespace: else it is link_index and link_netnsid.
        peer=said.get("link", "") if (said.get("linkinfo") or {}).get("info_kind") == "veth" else "",
        xdp=_xdp(said.get("xdp") or {}),
        mtu=said.get("mtu", 0),
        max_mtu=said.get("max_mtu", 0),
        promisc="PROMISC" in flags,
        vfs=link.vfs(said),
        tells_vfs="vfinfo_list" in said,
    )


def _permanent(said: Mapping[str, Any]) -> str:
    """What names a port: its permanent MAC, of InfiniBand its GUID. That is the end of a link-layer address whose first bytes are others
    after each start of the driver, and with another subnet manager (RFC 4391, 9.1.1)."""
    address = (said.get("permaddr") or said.get("address") or "").lower()
    return str(address)[-link.GUID_LENGTH :] if said.get("link_type") == "infiniband" else str(address)


def _is_macvlan(said: Mapping[str, Any]) -> bool:
    return (said.get("linkinfo") or {}).get("info_kind") in ("macvlan", "macvtap")


def _xdp(link: Mapping[str, Any]) -> str:
    """iproute2 prints one program in 'prog', several (one for each way to attach) in 'attached'."""
    programs = [item.get("prog") or {} for item in (link, *link.get("attached", ()))]
    return ", ".join(dict.fromkeys(f"{p.get('name') or 'program'} {p['id']}" for p in programs if "id" in p))


def _default_route_netdevs(files: Files) -> set[str]:
    """From /proc/net/route and /proc/net/ipv6_route (Documentation/networking/proc_net_tcp.rst names the siblings)."""
    found = set()
    for line in (files.text("/proc/net/route") or "").splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and fields[1] == "00000000" and fields[7] == "00000000":
            found.add(fields[0])
    for line in (files.text("/proc/net/ipv6_route") or "").splitlines():
        fields = line.split()
        if len(fields) > 9 and fields[0] == "0" * 32 and fields[1] == "00" and fields[9] != "lo":
            found.add(fields[9])
    return found


def _control_netdev(environment: Mapping[str, str], netdevs: Mapping[str, Netdev]) -> str | None:
    """The network device that carries the address which the controller connected to (sshd sets SSH_CONNECTION)."""
    parts = environment.get("SSH_CONNECTION", "").split()
    if len(parts) != 4:
        return None
    address = parts[2].partition("%")[0]
    return next((name for name, n in netdevs.items() if address in (*n.addresses, *n.link_local)), None)


# --- IOMMU ---------------------------------------------------------------------------------------------------------


def read_iommu(files: Files, reserved: bool = False) -> Iommu:
    """What the firmware offers and what the kernel has made of it. `reserved`: the reserved regions of groups, too."""
    folder = "/sys/kernel/iommu_groups"
    groups = {}
    for number in files.names(folder):
        kind = files.attr(f"{folder}/{number}/type") or "unknown"
        regions = (files.attr(f"{folder}/{number}/reserved_regions") or "") if reserved else ""
        lines = tuple(tuple(line.split()) for line in regions.splitlines() if len(line.split()) == 3)
        groups[number] = Group(number, kind, tuple(files.names(f"{folder}/{number}/devices")), lines)
    interrupts = files.text("/proc/interrupts") or ""
    tables = tuple(name for name in IOMMU_TABLES if files.exists(f"/sys/firmware/acpi/tables/{name}"))
    units = tuple(files.names("/sys/class/iommu"))
    return Iommu(
        tables=tables,
        units=units,
        groups=groups,
        interrupt_remapping=" IR-" in interrupts,
        scalable=_scalable(files, units),
        hint="" if tables or groups else _iommu_hint(files),
    )


def _scalable(files: Files, units: Sequence[str]) -> bool | None:
    """Bit 43 of VT-d's extended capability register (VT-d specification, 11.4.3: SMTS), of all units."""
    texts = [files.attr(f"/sys/class/iommu/{unit}/intel-iommu/ecap") for unit in units]
    values = [int(text, 16) for text in texts if text]
    return all(value >> 43 & 1 for value in values) if values else None


def _iommu_hint(files: Files) -> str:
    """What says that the machine has an IOMMU although the firmware announces none."""
    for address in files.names(DEVICES):
        # AMD's IOMMU is a PCI function, class 0806, and stays one.
        if (files.attr(f"{DEVICES}/{address}/class") or "").startswith("0x0806"):
            return f"the PCI function {address} is one (class 0806)"
    flags = re.search(r"^flags\s*:(.*)$", files.text("/proc/cpuinfo") or "", re.MULTILINE)
    words = flags.group(1).split() if flags else []
    if "hypervisor" in words:
        return ""
    name = next((name for flag, name in (("vmx", "VT-x"), ("svm", "AMD-V")) if flag in words), "")
    return f"its processor has {name} and such machines have one as a rule" if name else ""
