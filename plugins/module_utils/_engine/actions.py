# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The steps that touch a host. Each kind has a way to do it, which believes nothing it has not read back, and a way to
undo it, which is right also after a step that failed half way."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable

from . import aliases, boot, devlink, drivers, grub, initramfs, security, store, sysfs
from .errors import EngineError, explain
from .host import Host
from .read import DEVICES, DRIVERS

#: Seconds. A count of 125 VFs was seen to take more than 60 s (docs/kernel-facts.md).
COUNT_LIMIT = 120.0
#: Seconds for a driver to let a device go.
UNBIND_LIMIT = 60.0
#: Seconds for VF links and drivers to show up after the kernel said yes: the driver may come late, from udev.
APPEAR_LIMIT = 30.0

Args = Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """How a kind of action is done and undone. With `many` it is done for all devices that need it at once: one answer
    each, the error or None."""

    do: Callable[[Host, Args], None]
    undo: Callable[[Host, Args], None]
    many: Callable[[Host, Sequence[Args]], Sequence[Exception | None]] | None = None

    def together(self, host: Host, arguments: Sequence[Args]) -> Sequence[Exception | None]:
        """Do it for several devices. Raises what concerns all of them."""
        if self.many is not None:
            return self.many(host, arguments)
        for args in arguments:
            self.do(host, args)
        return [None] * len(arguments)


# --- VF count ------------------------------------------------------------------------------------------------------


def _set_vf_count(host: Host, args: Args) -> None:
    _recount(host, args["pf"], args["to"], args["reserved"], args["autoprobe"])


def _undo_vf_count(host: Host, args: Args) -> None:
    # The same count alone proves nothing: a kernel that made fewer VFs than asked may have made as many as there were.
    if _count(host, args["pf"]) == args["from"] and all(
        _driver(host, _vf_address(host, args["pf"], int(index))) == driver for index, driver in args["drivers"].items()
    ):
        if args["autoprobe"] and host.files.attr(_autoprobe(args["pf"])) == "0":
            host.files.write(_autoprobe(args["pf"]), "1")
        return
    _recount(host, args["pf"], args["from"], args["previous"], args["autoprobe"])
    for index, driver in args["previous"].items():
        _bind(host, {"pf": args["pf"], "index": int(index), "driver": driver})


def _autoprobe(pf: str) -> str:
    return f"{sysfs.device(pf)}/sriov_drivers_autoprobe"


def _recount(host: Host, pf: str, count: int, reserved: Mapping[str, str], probing: bool) -> None:
    """Zero first, then the count, with probing held back until every VF carries its override. `probing` is what it was
    when the plan was made: a step that failed may have left it off."""
    holding = probing and host.files.exists(_autoprobe(pf))
    if holding:
        host.files.write(_autoprobe(pf), "0")
    try:
        if _count(host, pf):
            _write_count(host, pf, 0)
        if count:
            _write_count(host, pf, count)
        for index, driver in reserved.items():
            host.files.write(f"{DEVICES}/{_vf_address(host, pf, int(index))}/driver_override", driver)
    finally:
        if holding:
            host.files.write(_autoprobe(pf), "1")
    if probing:
        _probe_others(host, pf, count, reserved)


def _write_count(host: Host, pf: str, count: int) -> None:
    try:
        host.files.write(f"{sysfs.device(pf)}/sriov_numvfs", str(count), limit=COUNT_LIMIT)
    except OSError as error:
        raise EngineError(f"the kernel answered {explain(error)} to {count} VFs. {_count_advice(error)}") from None
    if not host.wait(lambda: _count(host, pf) == count, APPEAR_LIMIT):
        raise EngineError(
            f"the kernel accepted {count} VFs, but {_count(host, pf)} are there after {APPEAR_LIMIT:g} s. "
            "The driver may allow fewer; look at the kernel log."
        )


def _count_advice(error: OSError) -> str:
    return {
        errno.ENOENT: "Its driver has no SR-IOV of this kind; give it one that has.",
        errno.EBUSY: "Something else set a count meanwhile; find out what manages this device, then run again.",
        errno.ENOMEM: "The bridge above has no room for the VFs' memory: add pci=realloc to the kernel command line.",
        errno.ERANGE: "Lower vf_count.",
    }.get(error.errno or 0, "Look at the kernel log.")


def _probe_others(host: Host, pf: str, count: int, reserved: Mapping[str, str]) -> None:
    """Offer the VFs without a wish to the loaded drivers, as the kernel would have done by itself at their birth. It
    ignores a driver that declines, and so do we: whoever wished a driver for a VF has a step of its own for it."""
    for index in range(count):
        if str(index) not in reserved:
            try:
                host.files.write("/sys/bus/pci/drivers_probe", _vf_address(host, pf, index))
            except OSError:
                continue


def _count(host: Host, pf: str) -> int:
    """By the links: on PCI, reading sriov_numvfs hangs while a write to it hangs (docs/kernel-facts.md). Elsewhere there are no links, and it does
    not (read._read_netdevsim_vfs)."""
    if sysfs.bus_of(pf) != sysfs.PCI:
        return int(host.files.attr(f"{sysfs.device(pf)}/sriov_numvfs") or 0)
    return sum(name.startswith("virtfn") for name in host.files.names(f"{DEVICES}/{pf}"))


def _vf_address(host: Host, pf: str, index: int) -> str:
    address = host.files.link(f"{DEVICES}/{pf}/virtfn{index}")
    if address is None:
        raise EngineError(f"VF {index} is not there (no virtfn{index}). Look at the kernel log, then run again.")
    return address


# --- Drivers -------------------------------------------------------------------------------------------------------


def _address(host: Host, args: Args) -> str:
    if "pf" in args:
        return _vf_address(host, args["pf"], args["index"])
    address: str = args["address"]
    return address


def _driver(host: Host, address: str) -> str | None:
    return host.files.link(f"{DEVICES}/{address}/driver")


def _bind(host: Host, args: Args) -> None:
    """The override first: from then on no driver that udev loads late can take the device."""
    address, driver = _address(host, args), args["driver"]
    _load(host, driver)
    host.files.write(f"{DEVICES}/{address}/driver_override", driver)
    if _driver(host, address) == driver:
        return
    _unbind(host, address)
    try:
        # Not drivers_probe: that one answers success also when the driver declined.
        host.files.write(f"{DRIVERS}/{driver}/bind", address)
    except OSError as error:
        # The module's own registration may have bound it since.
        if _driver(host, address) != driver:
            raise EngineError(f"{driver} did not take {address}: {explain(error)}. {_bind_advice(driver)}") from None
    if _driver(host, address) != driver:
        raise EngineError(f"{driver} did not keep {address}. {_bind_advice(driver)}")


def _bind_advice(driver: str) -> str:
    if drivers.is_vfio(driver):
        return "A vfio driver needs a usable IOMMU group: see iovirt.host.host_info and the kernel log."
    return "Look at the kernel log for what the driver said."


def _undo_bind(host: Host, args: Args) -> None:
    address = host.files.link(f"{DEVICES}/{args['pf']}/virtfn{args['index']}") if "pf" in args else args["address"]
    if not address:
        # The VF went with its count.
        return
    _restore(host, address, args.get("was_override"), args.get("was_driver"))


def _release(host: Host, args: Args) -> None:
    """No override of ours left behind: it would keep the device from its own driver."""
    address = _address(host, args)
    native = args.get("native") or _native(host, address)
    override = args.get("override")
    host.files.write(f"{DEVICES}/{address}/driver_override", override or "\n")
    wanted = override or native
    if wanted and _driver(host, address) == wanted:
        return
    _unbind(host, address)
    if override:
        _load(host, override)
    elif native:
        _load_as_udev_would(host, address, native)
    _offer(host, address)
    _not_taken_again(host, address, wanted)
    if wanted is None or (not override and _may_stay_without(host, address, wanted)):
        return
    if not host.wait(lambda: _driver(host, address) is not None, APPEAR_LIMIT):
        raise EngineError(
            f"no driver took {address} within {APPEAR_LIMIT:g} s; its own would be {wanted}. Look at the kernel log."
        )


def _not_taken_again(host: Host, address: str, wanted: str | None) -> None:
    """Without an override vfio-pci still takes what its ids= or new_id name."""
    taken = _driver(host, address)
    if drivers.is_vfio(taken) and not drivers.is_vfio(wanted):
        raise EngineError(
            f"{taken} took {address} again by its IDs. Take them out of vfio-pci's ids= (kernel command line, modprobe.d) "
            "and reboot; an ID given through new_id goes with remove_id."
        )


def _may_stay_without(host: Host, address: str, native: str) -> bool:
    """A VF that its driver takes only with resources, or whose PF has probing off (pci_device_can_probe in
    drivers/pci/pci-driver.c)."""
    if not host.files.link(f"{DEVICES}/{address}/physfn"):
        return False
    probing = host.files.attr(f"{DEVICES}/{address}/physfn/sriov_drivers_autoprobe")
    return native in drivers.NEEDS_RESOURCES or probing == "0"


def _restore(host: Host, address: str, override: str | None, driver: str | None) -> None:
    host.files.write(f"{DEVICES}/{address}/driver_override", override or "\n")
    if _driver(host, address) == driver:
        return
    _unbind(host, address)
    if driver:
        host.files.write(f"{DRIVERS}/{driver}/bind", address)


def _native(host: Host, address: str) -> str | None:
    modalias = host.files.attr(f"{DEVICES}/{address}/modalias") or ""
    return aliases.native_drivers(host.files, [modalias], host.files.names(DRIVERS)).get(modalias)


def _unbind(host: Host, address: str) -> None:
    if _driver(host, address) is None:
        return
    try:
        host.files.write(f"{DEVICES}/{address}/driver/unbind", address, limit=UNBIND_LIMIT)
    except FileNotFoundError:
        # The driver let go between the look and the write.
        return
    except OSError as error:
        raise EngineError(f"its driver does not let {address} go: {explain(error)}. Look at the kernel log.") from None


def _offer(host: Host, address: str) -> None:
    try:
        host.files.write("/sys/bus/pci/drivers_probe", address)
    except OSError as error:
        raise EngineError(
            f"no driver could be asked to take {address}: {explain(error)}. Look at the kernel log."
        ) from None


def _load(host: Host, driver: str) -> None:
    if host.files.exists(f"{DRIVERS}/{driver}"):
        return
    module = drivers.module_of(driver)
    # By the driver's name where that is the module's too: '-' and '_' are one to modprobe.
    name = driver if driver.replace("-", "_") == module else module
    code, _out, err = host.run(["modprobe", "--", name])
    if code:
        why = security.why_refused(host.files, err) or "Install or repair the module."
        raise EngineError(f"modprobe {name} failed: {err.strip() or code}. {why}")
    if not host.wait(lambda: host.files.exists(f"{DRIVERS}/{driver}"), APPEAR_LIMIT):
        others = [n[4:] for n in host.files.names(f"/sys/module/{module}/drivers") if n.startswith("pci:")]
        hint = f" The module's driver is called {', '.join(others)}: name that one." if others else ""
        raise EngineError(f"modprobe {name} succeeded, but there is no driver {driver} on the PCI bus.{hint}")


def _load_as_udev_would(host: Host, address: str, native: str) -> None:
    """By modalias: a module may be called otherwise than its driver (xhci_hcd is in xhci_pci), it may be built in, and
    an operator may have blacklisted it. Whether a driver came is seen by whether it takes the device."""
    modalias = host.files.attr(f"{DEVICES}/{address}/modalias")
    if modalias and not host.files.exists(f"{DRIVERS}/{native}"):
        host.run(["modprobe", "--use-blacklist", "--", modalias])


def _detach_vfs(host: Host, args: Args) -> None:
    """Take all VFs of a PF from their drivers, whichever they have."""
    for index in range(_count(host, args["pf"])):
        _unbind(host, _vf_address(host, args["pf"], index))


def _attach_vfs(host: Host, args: Args) -> None:
    """Give the VFs their drivers again: those that they had; VFs that are born by this very plan are offered to the drivers that take them by themselves."""
    if args["offered"]:
        _probe_others(host, args["pf"], _count(host, args["pf"]), args["reserved"])
    for index, driver in args["drivers"].items():
        address = _vf_address(host, args["pf"], int(index))
        if _driver(host, address) is None:
            host.files.write(f"{DRIVERS}/{driver}/bind", address)
        if _driver(host, address) != driver:
            raise EngineError(f"{driver} did not take VF {index} ({address}) again. Look at the kernel log.")


# --- Files ---------------------------------------------------------------------------------------------------------


def _declare(host: Host, args: Args) -> None:
    _set_entry(host, args, args["entry"])


def _undo_declare(host: Host, args: Args) -> None:
    _set_entry(host, args, args["previous"])


def _set_entry(host: Host, args: Args, entry: Mapping[str, Any] | None) -> None:
    document = store.load(host.files, args["resource"])
    if entry is None:
        document["devices"].pop(args["address"], None)
    else:
        document["devices"][args["address"]] = entry
    store.save(host.files, args["resource"], document)


def _write_file(host: Host, args: Args) -> None:
    _set_file(host, args, args["text"])


def _undo_write_file(host: Host, args: Args) -> None:
    _set_file(host, args, args["previous"])


def _set_file(host: Host, args: Args, text: str | None) -> None:
    try:
        if text is None:
            host.files.remove(args["path"])
        else:
            host.files.replace(args["path"], text, args.get("mode", 0o644))
    except OSError as error:
        raise EngineError(f"{args['path']} cannot be written: {explain(error)}.") from None


#: Kind of action -> how it is done and undone.
TABLE: Mapping[str, Step] = {
    "set_vf_count": Step(_set_vf_count, _undo_vf_count),
    "bind": Step(_bind, _undo_bind),
    "release": Step(_release, _undo_bind),
    "detach_vfs": Step(_detach_vfs, _attach_vfs),
    "attach_vfs": Step(_attach_vfs, _detach_vfs),
    "set_eswitch": Step(devlink.set_eswitch, devlink.undo_eswitch),
    "set_devlink_param": Step(devlink.set_param, devlink.undo_param),
    "devlink_reload": Step(devlink.reload, devlink.undo_reload),
    "set_tc_offload": Step(devlink.set_offload, devlink.undo_offload),
    "declare": Step(_declare, _undo_declare),
    "write_file": Step(_write_file, _undo_write_file),
    "grub_mkconfig": Step(grub.make_config, grub.undo_config),
    "refresh_initramfs": Step(initramfs.refresh, initramfs.undo),
    "install_replay": Step(boot.install, boot.undo_install),
    "remove_replay": Step(boot.remove, boot.undo_remove),
}
