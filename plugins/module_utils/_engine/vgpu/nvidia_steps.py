# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The steps on a GPU: its VFs by the vendor's tool, and the type of each VF."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import sysfs
from ..errors import EngineError, explain
from ..host import Host
from ..mdev import facts as mdev
from ..mdev import steps as mdev_steps
from . import facts

MANAGE = "/usr/lib/nvidia/sriov-manage"
#: Seconds for the driver to make or take a vGPU.
LIMIT = 60.0
#: Seconds for all VFs of a GPU to have their files: those come some time after the VFs.
READY_LIMIT = 60.0
#: The tool fails while NVIDIA's vGPU manager starts.
TRIES, PAUSE = 3, 10.0

Args = Mapping[str, Any]


def enable(host: Host, args: Args) -> None:
    """All VFs of the GPU. Neither success nor failure of the tool is believed: it was told to say 0 without a VF, and to
    leave the GPU without its driver."""
    said = ""
    for number in range(TRIES):
        if number:
            host.sleep(PAUSE)
        if not _vfs(host, args["pf"]):
            _code, out, err = host.run([MANAGE, "-e", args["pf"]])
            said = (err or out).strip()
        _bind_again(host, args["pf"])
        if host.wait(lambda: _ready(host, args["pf"]), READY_LIMIT if _vfs(host, args["pf"]) else 0.0):
            return
    if _vfs(host, args["pf"]):
        raise EngineError(f"its VFs are there, but not their vGPU files after {READY_LIMIT:g} s. Does nvidia-vgpu-mgr run?")
    raise EngineError(f"{MANAGE} made no VF{f': {said}' if said else '.'} Look at the kernel log and at nvidia-vgpu-mgr.")


def disable(host: Host, args: Args) -> None:
    if _vfs(host, args["pf"]):
        _code, out, err = host.run([MANAGE, "-d", args["pf"]])
        _bind_again(host, args["pf"])
        if _vfs(host, args["pf"]):
            raise EngineError(f"{MANAGE} left VFs behind: {(err or out).strip() or 'it said nothing'}.")


def _vfs(host: Host, pf: str) -> dict[int, str]:
    folder = sysfs.device(pf)
    links = {name: host.files.link(f"{folder}/{name}") for name in host.files.names(folder) if name.startswith("virtfn")}
    return {int(name[6:]): address for name, address in links.items() if address}


def _ready(host: Host, pf: str) -> bool:
    vfs = _vfs(host, pf)
    return bool(vfs) and all(facts.vf(host.files, address)["ready"] or _mediated(host, address) for address in vfs.values())


def _mediated(host: Host, address: str) -> bool:
    return host.files.exists(f"{mdev.PARENTS}/{address}")


def _bind_again(host: Host, pf: str) -> None:
    if host.files.link(f"{sysfs.device(pf)}/driver") is None:
        try:
            host.files.write("/sys/bus/pci/drivers/nvidia/bind", pf, limit=LIMIT)
        except OSError as error:
            raise EngineError(f"{MANAGE} left {pf} without its driver, and nvidia does not take it: {explain(error)}.") from None


def set_type(host: Host, args: Args) -> None:
    address = _vf(host, args)
    if "uuid" in args and _mediated(host, address):
        _start(host, args, address)
    else:
        _set(host, args, address, args["to"])


def undo_type(host: Host, args: Args) -> None:
    """A VF that went with all others has no type to give back."""
    if args["index"] not in _vfs(host, args["pf"]):
        return
    address = _vf(host, args)
    if args.get("uuid") and _mediated(host, address):
        device = {"parent": address, "uuid": args["uuid"]}
        mdev_steps.undo_start(host, device)
        if args["keeper"]:
            mdev_steps.undo_define(host, {**device, "to": None, "from": None})
    elif not _mediated(host, address):
        _set(host, args, address, args["from"])


def _vf(host: Host, args: Args) -> str:
    address = _vfs(host, args["pf"]).get(args["index"])
    if address is None:
        raise EngineError(f"there is no VF {args['index']} of {args['pf']}.")
    return address


def _start(host: Host, args: Args, address: str) -> None:
    """The VF turned out to be a parent of mediated devices: of the type of that name, if it can have it now."""
    if not args["uuid"]:
        raise EngineError("its vGPUs are mediated devices, and this host has no /etc/machine-id to derive UUIDs from.")
    types = mdev.types(host.files, address)
    chosen = next((id_ for id_, said in types.items() if said["name"] == args["name"]), None)
    device = {"parent": address, "uuid": args["uuid"], "type": chosen, "attributes": [], "keeper": args["keeper"]}
    if chosen is None or not (types[chosen]["available"] or host.files.exists(f"{mdev.DEVICES}/{args['uuid']}")):
        offered = ", ".join(said["name"] for said in types.values() if said["available"])
        raise EngineError(f"VF {args['index']} ({address}) cannot have {args['name']} now; it can have {offered or 'none'}.")
    if args["keeper"]:
        mdev_steps.define(host, {**device, "to": {"type": chosen, "autostart": True, "attributes": []}, "from": None})
    mdev_steps.start(host, device)


def _set(host: Host, args: Args, address: str, wanted: int) -> None:
    now = facts.vf(host.files, address)
    if now["current"] == wanted:
        return
    if wanted and wanted not in now["creatable"]:
        # Siblings have taken room since the plan was made.
        raise EngineError(f"VF {args['index']} ({address}) cannot have type {wanted} now; it can have {now['creatable'] or 'none'}.")
    try:
        host.files.write(f"{sysfs.device(address)}/nvidia/current_vgpu_type", str(wanted), limit=LIMIT)
    except OSError as error:
        raise EngineError(f"the driver answered {explain(error)} to type {wanted} for {address}. Look at the kernel log.") from None
    now = facts.vf(host.files, address)
    if now["current"] != wanted:
        raise EngineError(f"the driver said yes, but {address} has type {now['current']}. Look at the kernel log.")
