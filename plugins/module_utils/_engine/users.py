# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who uses a device: processes, guests that libvirt knows, other network namespaces. Read only before something is
taken away, as it looks into every process of the host.

Nothing here enters a namespace: what is seen of another one is seen through /proc/PID/root, or told by `ip -n`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from . import consoles, keepers, libvirt, sysfs
from .drivers import is_vfio
from .host import Files, Host
from .mdev import facts as mdev
from .model import Function, State, User
from .read import ADDRESS, functions_below

#: Class folder below a PCI function -> where the device files of its entries are. A process that holds one open works
#: with the device: uio is DPDK's, drm and accel are a display's or a computation's, ptp is a clock daemon's, nvme is the
#: controller itself.
_NODES = {"uio": "/dev", "drm": "/dev/dri", "accel": "/dev/accel", "ptp": "/dev", "nvme": "/dev"}

#: Class of what stores data -> what its device files are. A namespace of NVMe has one for each way in (block, and
#: passthrough by io_uring: drivers/nvme/host/core.c, nvme_cdev_add).
_STORES = {"block": "disk", "nvme-generic": "NVMe namespace"}

#: A device that vfio has without an IOMMU goes by names of its own (vfio_group_alloc in drivers/vfio/group.c).
_VFIO_PREFIXES = ("", "noiommu-")

#: A VF with a vGPU of the vendor's framework is a device of vfio under NVIDIA's own driver.
NVIDIA = "nvidia"

#: udev's workers open each disk for a moment and let it go by themselves.
_PASSING = ("(udev-worker)", "systemd-udevd")

#: Kinds of netdev that ride on another one, which a container may have in a namespace of its own.
_RIDING = ("macvlan", "macvtap", "ipvlan", "ipvtap", "vlan")


class _Handle(NamedTuple):
    """An open file: whose, its path in /proc, and the last part of what it is."""

    pid: str
    path: str
    target: str


def look(host: Host, state: State) -> State:
    """The state, with all that guards want to know before something is taken or changed."""
    files = host.files
    handles = _open_files(files)
    hanging = _writing(files, handles)
    functions = {a: replace(f, stuck=True) if a in hanging else f for a, f in state.functions.items()}
    state = replace(state, functions=functions)
    return replace(state, users=read(host, state, handles), keepers=keepers.read(files, state), consoles=consoles.read(files))


def _open_files(files: Files) -> list[_Handle]:
    """All open files of all processes. Every process is looked at, whatever mount namespace it lives in: the link text of a
    descriptor stays."""
    return [
        _Handle(pid, f"/proc/{pid}/fd/{handle}", target)
        for pid in files.names("/proc")
        if pid.isdigit()
        for handle in files.names(f"/proc/{pid}/fd")
        if (target := files.link(f"/proc/{pid}/fd/{handle}"))
    ]


def _writing(files: Files, handles: Iterable[_Handle]) -> set[str]:
    """PFs whose count somebody is writing now. A write that hangs is found by its open file: what else waits for it
    differs from kernel to kernel (docs/kernel-facts.md), and this asks nothing of the device."""
    found = set()
    for handle in handles:
        if handle.target == "sriov_numvfs":
            found.update(ADDRESS.findall(files.resolve(handle.path))[-1:])
    return found


def read(host: Host, state: State, handles: Iterable[_Handle]) -> dict[str, tuple[User, ...]]:
    """PCI address -> who uses the function."""
    found: dict[str, list[User]] = {}
    for part in (_processes(host.files, state, handles), _elsewhere(host, state), libvirt.guests(host.files, state)):
        for address, user in part:
            if user not in found.setdefault(address, []):
                found[address].append(user)
    return {address: tuple(users) for address, users in found.items()}


# --- Processes that hold a device file open ------------------------------------------------------------------------


def _processes(files: Files, state: State, handles: Iterable[_Handle]) -> Iterator[tuple[str, User]]:
    nodes = _device_files(files, state)
    names = {path.rpartition("/")[2] for path in nodes}
    held: dict[str, set[str]] = {}
    for handle in handles:
        if handle.target in names:
            held.setdefault(handle.pid, set()).add(files.resolve(handle.path))
    for pid, paths in held.items():
        yield from _holding(files, pid, {path: nodes[path] for path in sorted(paths) if path in nodes})


def _holding(files: Files, pid: str, held: Mapping[str, tuple[str, list[str]]]) -> Iterator[tuple[str, User]]:
    name = process(files, pid) if held else ""
    for what, addresses in held.values():
        if not (what.startswith("the disk") and files.attr(f"/proc/{pid}/comm") in _PASSING):
            for address in addresses:
                yield address, User(f"{name} ({what} is held open)")


def process(files: Files, pid: str) -> str:
    """A process as a person knows it."""
    return f"process {pid} ({files.attr(f'/proc/{pid}/comm') or '?'})"


def _device_files(files: Files, state: State) -> dict[str, tuple[str, list[str]]]:
    """Path of a device file -> what it is, and the functions that it is of."""
    nodes: dict[str, tuple[str, list[str]]] = {}
    for address, function in state.functions.items():
        own = _is_own(function)
        if (is_vfio(function.driver) or own) and function.group:
            what, members = f"IOMMU group {function.group}", [address] if own else _on_vfio(state, function.group)
            devices = files.names(f"{sysfs.device(address)}/vfio-dev")
            for prefix in _VFIO_PREFIXES:
                # Whoever has the file of the group may have any device of it.
                nodes[f"/dev/vfio/{prefix}{function.group}"] = (what, _of_group(state, function.group))
                # Who opens one device of a group owns the whole group (iommu_device_claim_dma_owner).
                nodes.update({f"/dev/vfio/devices/{prefix}{name}": (what, members) for name in devices})
        for folder, place in _NODES.items():
            for name in files.names(f"{sysfs.device(address)}/{folder}") if function.driver else ():
                nodes.setdefault(f"{place}/{name}", (f"{place}/{name}", [address]))
    nodes.update(_taps(state))
    nodes.update(_mediated(files))
    for name in files.names("/sys/class/infiniband_verbs"):
        addresses = _functions_of_rdma(files, state, files.attr(f"/sys/class/infiniband_verbs/{name}/ibdev") or "")
        nodes[f"/dev/infiniband/{name}"] = (f"/dev/infiniband/{name}, RDMA,", addresses)
    for kind, called in _STORES.items():
        for name in files.names(f"/sys/class/{kind}"):
            below = functions_below(files, files.resolve(f"/sys/class/{kind}/{name}"))
            nodes[f"/dev/{name}"] = (f"the {called} {name}", below)
    return {path: (what, addresses) for path, (what, addresses) in nodes.items() if addresses}


def _taps(state: State) -> dict[str, tuple[str, list[str]]]:
    """A macvtap's device file, which a guest's QEMU holds open: named by the number of its network device (macvtap_device_event)."""
    owners = {name: f.address for f in state.functions.values() for name in f.netdevs}
    found = {}
    for name, netdev in state.netdevs.items():
        addresses = [owners[lower] for lower in netdev.lowers if lower in owners]
        if netdev.kind == "macvtap" and addresses:
            found[f"/dev/tap{netdev.index}"] = (f"/dev/tap{netdev.index} of {name}", addresses)
    return found


def _mediated(files: Files) -> dict[str, tuple[str, list[str]]]:
    """Of a mediated device that is in use its parent is in use as well: what it does goes through the parent's driver."""
    nodes = {}
    for uuid in files.names(mdev.DEVICES):
        path, found = f"{mdev.DEVICES}/{uuid}", mdev.device(files, uuid)
        what, both = f"the mediated device {uuid}", [uuid, found["parent"]]
        nodes[f"/dev/vfio/{found['group']}"] = (what, both)
        nodes.update({f"/dev/vfio/devices/{name}": (what, both) for name in files.names(f"{path}/vfio-dev")})
    return nodes


def _is_own(function: Function) -> bool:
    """A VF that is a device of vfio under the driver of its vendor."""
    return function.driver == NVIDIA and function.physfn is not None


def _of_group(state: State, group: str) -> list[str]:
    return [f.address for f in state.functions.values() if f.group == group and (is_vfio(f.driver) or _is_own(f))]


def _on_vfio(state: State, group: str) -> list[str]:
    return [f.address for f in state.functions.values() if f.group == group and is_vfio(f.driver)]


def _functions_of_rdma(files: Files, state: State, name: str) -> list[str]:
    """An RDMA device is below its function; one in software (rxe, siw) names its network device as parent."""
    if not name:
        return []
    addresses = ADDRESS.findall(files.resolve(f"/sys/class/infiniband/{name}"))
    if addresses:
        return addresses[-1:]
    parent = files.attr(f"/sys/class/infiniband/{name}/parent")
    return [f.address for f in state.functions.values() if parent in f.netdevs]


# --- Other network namespaces --------------------------------------------------------------------------------------


def _elsewhere(host: Host, state: State) -> Iterator[tuple[str, User]]:
    """Network devices of a function, or above one, that live in another network namespace: sysfs shows those of the
    reader's own namespace only (lib/kobject_ns.c)."""
    files = host.files
    hidden = [f for f in state.functions.values() if _hidden(files, f)]
    spaces = _namespaces(files)
    places: dict[str, str] = {}
    for pid in spaces:
        for name in _netdevs_of_process(files, pid):
            device = files.link(f"/proc/{pid}/root/sys/class/net/{name}/device")
            if device:
                places.setdefault(device, f"the network namespace of {process(files, pid)}, as {name}")
        yield from _riding_on(host, state, pid)
    if not all(_place(files, function, places) for function in hidden):
        places = {**_named_namespaces(host), **places}
    for function in hidden:
        place = _place(files, function, places) or "another network namespace"
        yield function.address, User(f"whoever has its network device in {place}", hides=True)


def _place(files: Files, function: Function, places: Mapping[str, str]) -> str | None:
    """By the device that the network device hangs on: the function, or one below it (virtio)."""
    devices = [function.address, *files.names(sysfs.device(function.address))]
    return next((places[device] for device in devices if device in places), None)


def _hidden(files: Files, function: Function) -> bool:
    """The folder net of a device is there as long as it has a network device anywhere, and shows only those of the
    reader's namespace (lab; cleanup_glue_dir in drivers/base/core.c removes one that is empty)."""
    if not function.driver or function.netdevs or not function.class_code.startswith("02"):
        return False
    path = sysfs.device(function.address)
    below = [path, *(f"{path}/{name}" for name in files.names(path) if name.startswith("virtio"))]
    return any("net" in files.names(folder) for folder in below)


def _namespaces(files: Files) -> list[str]:
    """One process of each network namespace other than ours."""
    seen = {files.link("/proc/self/ns/net")}
    found = []
    for pid in files.names("/proc"):
        space = files.link(f"/proc/{pid}/ns/net") if pid.isdigit() else None
        if space and space not in seen:
            seen.add(space)
            found.append(pid)
    return found


def _netdevs_of_process(files: Files, pid: str) -> list[str]:
    """The network devices of its namespace, where it has a sysfs of that namespace: /proc/PID/net always is of its own,
    /proc/PID/root/sys of whoever mounted it."""
    # The process may end meanwhile.
    lines = (files.attr(f"/proc/{pid}/net/dev") or "").splitlines()[2:]
    own = {line.partition(":")[0].strip() for line in lines}
    return [name for name in files.names(f"/proc/{pid}/root/sys/class/net") if name in own and name != "lo"]


def _riding_on(host: Host, state: State, pid: str) -> Iterator[tuple[str, User]]:
    """What a container has of a port of ours: a macvlan and the like, whose lower device is named by its number."""
    files = host.files
    ports = {n.index: (f, n) for f in state.functions.values() for n in _netdevs(state, f) if n.index}
    for name in _netdevs_of_process(files, pid):
        folder = f"/proc/{pid}/root/sys/class/net/{name}"
        lower = files.attr(f"{folder}/iflink") or ""
        if not lower.isdigit() or int(lower) not in ports or lower == files.attr(f"{folder}/ifindex"):
            continue
        # The number alone could be one of a third namespace (a veth pair's other end).
        kind = _kind_there(host, pid, name)
        if kind in _RIDING:
            function, port = ports[int(lower)]
            yield function.address, User(f"{process(files, pid)} (its {kind} {name} rides on {port.name})", rides=name)


def _netdevs(state: State, function: Function) -> Iterable[Any]:
    return [state.netdevs[name] for name in function.netdevs if name in state.netdevs]


def _kind_there(host: Host, pid: str, name: str) -> str:
    links = _links(host, ["nsenter", "--target", pid, "--net", "ip", "-j", "-d", "link", "show", "dev", name])
    return ((links[0].get("linkinfo") or {}).get("info_kind") or "") if links else ""


def _named_namespaces(host: Host) -> dict[str, str]:
    """A namespace without a process is kept by its file (ip-netns(8)); ip tells which devices are in there."""
    found = {}
    for name in host.files.names("/run/netns"):
        for link in _links(host, ["ip", "-n", name, "-j", "-d", "link", "show"]):
            if link.get("parentdev"):
                found[link["parentdev"]] = f"the network namespace {name}, as {link.get('ifname')}"
    return found


def _links(host: Host, argv: list[str]) -> list[dict[str, Any]]:
    code, out, _err = host.run(argv)
    try:
        links = json.loads(out) if code == 0 else []
    except ValueError:
        return []
    return links if isinstance(links, list) else []
