# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The steps that touch a host. Each kind has a way to do it, which believes nothing it has not read back, and a way to
undo it, which is right also after a step that failed half way."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Callable

from . import aliases, boot, cmdline, devlink, drivers, link, msix, mstconfig, nvmecli, record, security, store, sysfs
from .errors import EngineError, explain
from .host import Host
from .plain import dataclass
from .read import DEVICES, DRIVERS

#: Seconds. A count of 125 VFs was seen to take more than 60 s (docs/kernel-facts.md).
COUNT_LIMIT = 120.0
#: Seconds for a driver to take a VF, of those of a port one after the other.
PROBE_LIMIT = 30.0
#: Seconds for a driver to let a device go. It waits for a probe that is under way, and nvme gives a command that no controller answers
#: 60 s (nvme_core.admin_timeout).
UNBIND_LIMIT = 90.0
#: Seconds for VF links and drivers to show up after the kernel said yes: the driver may come late, from udev.
APPEAR_LIMIT = 30.0

DRIVERS_PROBE = "/sys/bus/pci/drivers_probe"

#: What driver_override reads as where there is none: a pointer that was never set is "(null)" (drivers/pci/pci-sysfs.c).
_NO_OVERRIDE = ("", "(null)", None)

Args = Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """How a kind of action is done and undone. With `many` it is done for all devices that need it at once: one answer
    each, the error or None. With `rounds` only those of one list go at the same time."""

    do: Callable[[Host, Args], None]
    undo: Callable[[Host, Args], None]
    many: Callable[[Host, Sequence[Args]], Sequence[Exception | None]] | None = None
    rounds: Callable[[Host, Sequence[Args]], list[list[Args]]] | None = None

    def together(self, host: Host, arguments: Sequence[Args]) -> Sequence[Exception | None]:
        """Do it for several devices. Raises what concerns all of them."""
        if self.many is not None:
            return self.many(host, arguments)
        for args in arguments:
            self.do(host, args)
        return [None] * len(arguments)


# --- VF count ------------------------------------------------------------------------------------------------------


def _set_vf_count(host: Host, args: Args) -> None:
    _raise_first(_set_vf_counts(host, [args]))


def _set_vf_counts(host: Host, arguments: Sequence[Args]) -> list[Exception | None]:
    """Several cards at the same time (one round), as one may take a minute."""
    errors = _recount_all(host, arguments)
    try:
        # From here on VFs may get drivers and network devices, which the rules of udev speak of.
        host.join()
    except EngineError as error:
        for args in arguments:
            errors.setdefault(args["pf"], error)
    errors.update(_let_probe_all(host, [{**args, "count": args["to"]} for args in arguments if args["pf"] not in errors and not args["hold"]]))
    return [errors.get(args["pf"]) for args in arguments]


def rounds(host: Host, arguments: Sequence[Args]) -> list[list[Args]]:
    """What may be done at the same time. Functions of one card, whose firmware they share, come one after the other, and so
    do the ports of one bond or bridge, which would lose all its links at once."""
    found: list[list[Args]] = []
    taken: list[set[str]] = []
    for args in arguments:
        shared = {args["pf"].rpartition(".")[0] or args["pf"], *_masters(host, args["pf"])}
        number = 1 + max((n for n, others in enumerate(taken) if others & shared), default=-1)
        if number == len(found):
            found.append([])
            taken.append(set())
        found[number].append(args)
        taken[number] |= shared
    return found


def _masters(host: Host, pf: str) -> set[str]:
    """What the port's network device is a part of (upper_*, netdev_adjacent_sysfs_add in net/core/dev.c)."""
    names = host.files.names(f"{sysfs.device(pf)}/net")
    return {entry for name in names for entry in host.files.names(f"/sys/class/net/{name}") if entry.startswith("upper_")}


def _raise_first(errors: Sequence[Exception | None]) -> None:
    for error in errors:
        if error is not None:
            raise error


def _undo_vf_count(host: Host, args: Args) -> None:
    # The same count alone proves nothing: a kernel that made fewer VFs than asked may have made as many as there were.
    if _count(host, args["pf"]) == args["from"] and all(
        _driver(host, _vf_address(host, args["pf"], int(index))) == driver for index, driver in args["drivers"].items()
    ):
        _hold_probing(host, args["pf"], args["autoprobe"], False)
        host.files.remove(store.held_back(args["pf"]))
        return
    _recount(host, args["pf"], args["from"], args["autoprobe"])
    try:
        _restore_attributes(host, args, rates=False)
        _restore_msix_counts(host, args["pf"], args["msix"])
    finally:
        again = {"pf": args["pf"], "count": args["from"], "reserved": args["previous"], "autoprobe": args["autoprobe"], "held_back": ()}
        _raise_first(list(_let_probe_all(host, [again]).values()))
    if args.get("controllers"):
        _set_nvme_secondary(host, {"pf": args["pf"], "to": args["controllers"]})
    for index, driver in args["previous"].items():
        _bind(host, {"pf": args["pf"], "index": int(index), "driver": driver})
    _restore_attributes(host, args, rates=True)


def _restore_attributes(host: Host, args: Args, rates: bool) -> None:
    """What others had set on the VFs that vanished. The rates last: many a driver sets them only with the link back that
    the change of the count took."""
    vfs = {
        index: {"was": was}
        for index, values in args["attributes"].items()
        if (was := {key: value for key, value in values.items() if (key in link.RATE) == rates})
    }
    if vfs:
        wait = rates and args["had_link"]
        link.undo_vf_attributes(host, {"pf": args["pf"], "netdev": args["netdev"], "vfs": vfs, "needs_link": wait})


def _probe_vfs(host: Host, args: Args) -> None:
    """Offer VFs that were held back to their drivers."""
    _raise_first(_probe_all_vfs(host, [args]))


def _probe_all_vfs(host: Host, arguments: Sequence[Args]) -> list[Exception | None]:
    errors = _let_probe_all(host, arguments)
    return [errors.get(args["pf"]) for args in arguments]


def _undo_probe_vfs(host: Host, args: Args) -> None:
    """Nothing: the VFs were made by the step before, whose undo takes them away again with their drivers."""


def _hold_probing(host: Host, pf: str, autoprobe: bool, hold: bool) -> None:
    """`autoprobe` is what it was when the plan was made: a step that failed may have left it off."""
    path = _autoprobe(pf)
    wanted = "0" if hold else "1"
    if autoprobe and host.files.exists(path) and host.files.attr(path) != wanted:
        host.files.write(path, wanted)


def _autoprobe(pf: str) -> str:
    return f"{sysfs.device(pf)}/sriov_drivers_autoprobe"


def _recount(host: Host, pf: str, count: int, autoprobe: bool) -> None:
    _raise_first(list(_recount_all(host, [{"pf": pf, "to": count, "autoprobe": autoprobe}]).values()))


def _recount_all(host: Host, arguments: Sequence[Args]) -> dict[str, Exception]:
    """Zero first, then the count. From then on probing is held back: the VFs wait for what they get before a driver.
    PF -> what went wrong."""
    errors: dict[str, Exception] = {}
    for args in arguments:
        try:
            _hold_back(host, args["pf"], args["autoprobe"])
        except (EngineError, OSError) as error:
            errors[args["pf"]] = error
    begun = [args for args in arguments if args["pf"] not in errors]
    _write_counts(host, {args["pf"]: 0 for args in begun if _count(host, args["pf"])}, errors)
    _write_counts(host, {args["pf"]: args["to"] for args in begun if args["to"] and args["pf"] not in errors}, errors)
    for args in begun:
        if args["pf"] in errors:
            # If this fails too, the undo tries it again and says so.
            with contextlib.suppress(OSError):
                _hold_probing(host, args["pf"], args["autoprobe"], False)
    return errors


def _hold_back(host: Host, pf: str, autoprobe: bool) -> None:
    if autoprobe and host.files.exists(_autoprobe(pf)):
        # Said before it is done: a run that is cut off here leaves it off, and that is not the operator's will.
        host.files.replace(store.held_back(pf), "", mode=0o600)
    _hold_probing(host, pf, autoprobe, True)


def _let_probe_all(host: Host, arguments: Sequence[Args]) -> dict[str, Exception]:
    """Several cards at the same time (one round), as a driver may wait for its card's firmware for each VF. PF -> what went wrong."""
    errors: dict[str, Exception] = {}
    offers: dict[str, list[str]] = {}
    for args in arguments:
        try:
            offers[args["pf"]] = _reserve(host, args)
        except (EngineError, OSError) as error:
            errors[args["pf"]] = error
    errors.update(host.files.offer_together(DRIVERS_PROBE, offers, _probe_limit(offers.values())))
    for args in arguments:
        try:
            if args["autoprobe"] and args["pf"] not in errors:
                host.files.remove(store.held_back(args["pf"]))
        except OSError as error:
            errors[args["pf"]] = error
    return errors


def _reserve(host: Host, args: Args) -> list[str]:
    """The overrides first, so that no VF ever shows up under a driver it was not meant for. Those to be offered: the VFs that are held back
    get their driver in a step of their own."""
    pf, reserved = args["pf"], args["reserved"]
    try:
        for index, driver in reserved.items():
            host.files.write(f"{DEVICES}/{_vf_address(host, pf, int(index))}/driver_override", driver)
    finally:
        _hold_probing(host, pf, args["autoprobe"], False)
    others = [index for index in range(args["count"]) if str(index) not in reserved and index not in args["held_back"]]
    return [_vf_address(host, pf, index) for index in others] if args["autoprobe"] else []


def _resume_probing(host: Host, args: Args) -> None:
    """What a run that was cut off would have done next."""
    host.files.write(_autoprobe(args["pf"]), "1")
    addresses = [_vf_address(host, args["pf"], index) for index in range(_count(host, args["pf"]))]
    free = [a for a in addresses if not _driver(host, a) and host.files.attr(f"{DEVICES}/{a}/driver_override") in _NO_OVERRIDE]
    _offer_vfs(host, args["pf"], free)
    host.files.remove(store.held_back(args["pf"]))


def _undo_resume(host: Host, args: Args) -> None:
    """To leave probing off again would be to do what nobody wished."""


def _write_counts(host: Host, counts: Mapping[str, int], errors: dict[str, Exception]) -> None:
    """Write the counts of several PFs at the same time; what went wrong is noted in errors."""
    paths = {pf: f"{sysfs.device(pf)}/sriov_numvfs" for pf in counts}
    failed = host.files.write_together({paths[pf]: str(count) for pf, count in counts.items()}, COUNT_LIMIT)
    for pf, count in counts.items():
        error = failed.get(paths[pf]) or _fewer(host, pf, count)
        if isinstance(error, OSError):
            error = EngineError(f"the kernel answered {explain(error)} to {count} VFs. {_count_advice(host, pf, error)}")
        if error is not None:
            errors[pf] = error


def _fewer(host: Host, pf: str, count: int) -> EngineError | None:
    if host.wait(lambda: _count(host, pf) == count, APPEAR_LIMIT):
        return None
    return EngineError(
        f"the kernel accepted {count} VFs, but {_count(host, pf)} are there after {APPEAR_LIMIT:g} s. "
        "The driver may allow fewer; look at the kernel log."
    )


def _count_advice(host: Host, pf: str, error: OSError) -> str:
    if error.errno == errno.ENOMEM:
        return _room_advice(host)
    if error.errno == errno.ERANGE:
        total = host.files.attr(f"{sysfs.device(pf)}/sriov_totalvfs")
        return f"It takes {total} at most by now (sriov_totalvfs; a driver may lower it). Lower vf_count."
    return {
        errno.ENOENT: "Its driver has no SR-IOV of this kind; give it one that has.",
        errno.EBUSY: "Something else set a count meanwhile; find out what manages this device, then run again.",
    }.get(error.errno or 0, "Look at the kernel log.")


def _room_advice(host: Host) -> str:
    """sriov_enable() in drivers/pci/iov.c has ENOMEM for two things, and tells them apart in the log alone: no memory
    window for the VFs' BARs, or no bus number for the last VF."""
    text = "The bridge above has no room for the VFs' memory, or no bus number for them; the kernel log says which."
    words = cmdline.split(host.files.text("/proc/cmdline") or "")
    given = [member for word in words if cmdline.key_of(word) == "pci" for member in word[4:].split(",")]
    if not {"realloc", "realloc=on"} & set(given):
        return f"{text} For memory, add pci=realloc to the kernel command line."
    return (
        f"{text} pci=realloc is on the kernel command line already: ask the firmware setup for more (SR-IOV support, "
        "above 4G decoding, MMIO size), or lower vf_count."
    )


def _offer_vfs(host: Host, pf: str, addresses: Sequence[str]) -> None:
    """Offer VFs without a wish to the loaded drivers, as the kernel would have done by itself at their birth. It
    ignores a driver that declines, and so do we: whoever wished a driver for a VF has a step of its own for it."""
    _raise_first(list(host.files.offer_together(DRIVERS_PROBE, {pf: addresses}, _probe_limit([addresses])).values()))


def _probe_limit(series: Iterable[Sequence[str]]) -> float:
    return PROBE_LIMIT * max([1, *map(len, series)])


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
    # Where it had none before, none is loaded and none is waited for: it is offered to those that are there.
    without = args.get("without", False)
    native = None if without else args.get("native") or _native(host, address)
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
    if wanted is None or without or (not override and not args.get("online") and _may_stay_without(host, address, wanted)):
        return
    if not override and _may_be_missing(host, wanted):
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


def _may_be_missing(host: Host, driver: str) -> bool:
    """One that the operator keeps from being loaded."""
    return not host.files.exists(f"{DRIVERS}/{driver}") and bool(aliases.blacklisted(host.files, [driver]))


def _restore(host: Host, address: str, override: str | None, driver: str | None) -> None:
    host.files.write(f"{DEVICES}/{address}/driver_override", override or "\n")
    if _driver(host, address) == driver:
        return
    _unbind(host, address)
    if driver:
        host.files.write(f"{DRIVERS}/{driver}/bind", address)


def _native(host: Host, address: str) -> str | None:
    """The driver of its own: the one that it has, where it has that without an override (read._has_own_driver)."""
    driver = _driver(host, address)
    if driver and not drivers.is_vfio(driver) and host.files.attr(f"{DEVICES}/{address}/driver_override") in _NO_OVERRIDE:
        return driver
    modalias = host.files.attr(f"{DEVICES}/{address}/modalias") or ""
    return aliases.natives(host.files, host.natives, [modalias], host.files.names(DRIVERS))[modalias]


def _unbind(host: Host, address: str) -> None:
    """Take a device from its driver. The PF keeps a MAC that a VF's driver made up, until the VF is reset: without that, nobody could tell it
    from one that an operator set on the PF, and the next driver would take it over (seen: igb). One that was set on the PF outlives the reset."""
    if _driver(host, address) is None:
        return
    made_up = _made_up_its_mac(host, address)
    _let_go(host, address)
    reset = f"{DEVICES}/{address}/reset"
    if made_up and host.files.exists(reset):
        try:
            host.files.write(reset, "1", limit=UNBIND_LIMIT)
        except OSError as error:
            raise EngineError(f"{address} cannot be reset: {explain(error)}. Look at the kernel log.") from None


def _made_up_its_mac(host: Host, address: str) -> bool:
    """Is it a VF whose network device has a MAC that its PF did not give (read.own_macs)?"""
    path = f"{DEVICES}/{address}"
    names = host.files.names(f"{path}/net") if host.files.exists(f"{path}/physfn") else []
    return any(host.files.attr(f"{path}/net/{name}/addr_assign_type") not in ("0", None) for name in names)


def _let_go(host: Host, address: str) -> None:
    try:
        host.files.write(f"{DEVICES}/{address}/driver/unbind", address, limit=UNBIND_LIMIT)
    except FileNotFoundError:
        # The driver let go between the look and the write.
        return
    except OSError as error:
        raise EngineError(f"its driver does not let {address} go: {explain(error)}. Look at the kernel log.") from None


def _offer(host: Host, address: str) -> None:
    try:
        host.files.write(DRIVERS_PROBE, address)
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


def await_netdev(host: Host, address: str, limit: float = APPEAR_LIMIT) -> str:
    """The network device of a VF, for whoever needs it: it comes some time after the driver, from a work queue of it.
    Where it does not come, the VF is given to its driver once more, as SR-IOV network operators do by experience.
    Raises EngineError when it does not come then, either."""
    path = f"{DEVICES}/{address}/net"
    if host.wait(lambda: bool(host.files.names(path)), limit / 2):
        return host.files.names(path)[0]
    # The driver itself may come late, from udev.
    driver = _driver(host, address)
    if driver:
        _unbind(host, address)
        host.files.write(f"{DRIVERS}/{driver}/bind", address)
    if not driver or not host.wait(lambda: bool(host.files.names(path)), limit / 2):
        raise EngineError(f"{address} (driver {driver or 'none'}) has no network device. Look at the kernel log.")
    return host.files.names(path)[0]


# --- NVMe controllers ----------------------------------------------------------------------------------------------


def _set_nvme_secondary(host: Host, args: Args) -> None:
    """Each VF loses its driver while its controller is offline. All give up what they have before any gets more."""
    pf, wanted = args["pf"], args["to"]
    for vf in wanted:
        address = host.files.link(f"{DEVICES}/{pf}/virtfn{vf['index']}")
        if address:
            _unbind(host, address)
    device = nvmecli.controller(host, pf)
    for vf in wanted:
        nvmecli.manage(host, device, vf["id"], nvmecli.OFFLINE)
    for vf in wanted:
        for kind, number in ((nvmecli.INTERRUPTS, vf["interrupts"]), (nvmecli.QUEUES, vf["queues"])):
            if number:
                nvmecli.manage(host, device, vf["id"], nvmecli.ASSIGN, kind, number)
        if vf["online"]:
            nvmecli.manage(host, device, vf["id"], nvmecli.ONLINE)
    _check_secondaries(nvmecli.secondaries(host, device), wanted)
    for vf in wanted:
        if vf["driver"]:
            _rebind(host, _vf_address(host, pf, vf["index"]), vf["driver"])


def _check_secondaries(now: Mapping[int, Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]]) -> None:
    for vf in wanted:
        found = now.get(vf["index"], {})
        wrong = [key for key in ("queues", "interrupts", "online") if found.get(key) != vf[key]]
        if wrong:
            said = ", ".join(f"{key} {found.get(key)} instead of {vf[key]}" for key in wrong)
            raise EngineError(f"the controller answered success, but VF {vf['index']} has {said}.")


def _rebind(host: Host, address: str, driver: str) -> None:
    try:
        host.files.write(f"{DRIVERS}/{driver}/bind", address)
    except OSError as error:
        if _driver(host, address) != driver:
            raise EngineError(f"{driver} did not take {address} again: {explain(error)}. Look at the kernel log.") from None


def _undo_nvme_secondary(host: Host, args: Args) -> None:
    _set_nvme_secondary(host, {"pf": args["pf"], "to": args["from"]})


def _set_nvme_primary(host: Host, args: Args) -> None:
    """What the primary controller keeps holds from its next reset on, other than by its own enable bit: a function
    level reset, through which the nvme driver stays (reset_prepare and reset_done in drivers/nvme/host/pci.c)."""
    pf, wanted = args["pf"], args["to"]
    device = nvmecli.controller(host, pf)
    caps = nvmecli.capabilities(host, device)
    for key, kind in (("vqrfap", nvmecli.QUEUES), ("virfap", nvmecli.INTERRUPTS)):
        if key in wanted:
            nvmecli.manage(host, device, caps["cntlid"], nvmecli.PRIMARY_FLEXIBLE, kind, wanted[key])
    host.files.write(f"{DEVICES}/{pf}/reset", "1", limit=UNBIND_LIMIT)
    host.wait(lambda: _live(host, pf), APPEAR_LIMIT)
    caps = nvmecli.capabilities(host, nvmecli.controller(host, pf))
    wrong = [f"{key} {caps[key]} instead of {value}" for key, value in wanted.items() if caps[key] != value]
    if wrong:
        raise EngineError(f"the controller was reset, but it has {', '.join(wrong)}. Look at the kernel log.")


def _live(host: Host, pf: str) -> bool:
    names = host.files.names(f"{DEVICES}/{pf}/nvme")
    return bool(names) and host.files.attr(f"{DEVICES}/{pf}/nvme/{names[0]}/state") == "live"


def _undo_nvme_primary(host: Host, args: Args) -> None:
    _set_nvme_primary(host, {"pf": args["pf"], "to": args["from"]})


@contextlib.contextmanager
def without_driver(host: Host, addresses: Sequence[str]) -> Iterator[None]:
    """Take functions from their drivers for a while."""
    had = {address: driver for address in addresses if (driver := _driver(host, address))}
    try:
        for address in had:
            _unbind(host, address)
        yield
    finally:
        for address, driver in had.items():
            if _driver(host, address) is None:
                _rebind(host, address, driver)


def _unbind_vf(host: Host, args: Args) -> None:
    _unbind(host, _address(host, args))


def _rebind_vf(host: Host, args: Args) -> None:
    """Give a VF back to the driver that had it, whatever its override says."""
    address = _address(host, args)
    if _driver(host, address) != args["driver"]:
        _rebind(host, address, args["driver"])


def _undo_rebind(host: Host, args: Args) -> None:
    _unbind(host, _address(host, args))


def _detach_vfs(host: Host, args: Args) -> None:
    """Take all VFs of a PF from their drivers, whichever they have."""
    for index in range(_count(host, args["pf"])):
        _unbind(host, _vf_address(host, args["pf"], index))


def _attach_vfs(host: Host, args: Args) -> None:
    """Give the VFs their drivers again: those that they had; VFs that are born by this very plan are offered to the
    drivers that take them by themselves."""
    if args["offered"]:
        others = [index for index in range(_count(host, args["pf"])) if str(index) not in args["reserved"]]
        _offer_vfs(host, args["pf"], [_vf_address(host, args["pf"], index) for index in others])
    for index, driver in args["drivers"].items():
        address = _vf_address(host, args["pf"], int(index))
        if _driver(host, address) is None:
            host.files.write(f"{DRIVERS}/{driver}/bind", address)
        if _driver(host, address) != driver:
            raise EngineError(f"{driver} did not take VF {index} ({address}) again. Look at the kernel log.")


# --- MSI-X vectors of VFs ------------------------------------------------------------------------------------------


def _set_msix_counts(host: Host, args: Args) -> None:
    """The kernel takes a number only while the VF has no driver."""
    for index, vf in args["vfs"].items():
        address = _vf_address(host, args["pf"], int(index))
        _unbind(host, address)
        _write_msix_count(host, address, vf["to"])
        if vf["driver"]:
            _rebind(host, address, vf["driver"])


def _undo_msix_counts(host: Host, args: Args) -> None:
    """A VF that was born by this very plan goes with its count."""
    for index, vf in args["vfs"].items():
        address = host.files.link(f"{DEVICES}/{args['pf']}/virtfn{index}")
        if not address or not vf["was"]:
            continue
        if msix.table_size(host.files, address) != vf["was"]:
            _unbind(host, address)
            _write_msix_count(host, address, vf["was"])
        if vf["driver"] and _driver(host, address) != vf["driver"]:
            _rebind(host, address, vf["driver"])


def _restore_msix_counts(host: Host, pf: str, counts: Mapping[str, int]) -> None:
    for index, count in counts.items():
        address = _vf_address(host, pf, int(index))
        if msix.table_size(host.files, address) != count:
            _write_msix_count(host, address, count)


def _write_msix_count(host: Host, address: str, count: int) -> None:
    try:
        host.files.write(f"{DEVICES}/{address}/sriov_vf_msix_count", str(count), limit=UNBIND_LIMIT)
    except OSError as error:
        advice = _MSIX_ADVICE.get(error.errno or 0, "Look at the kernel log.")
        raise EngineError(f"the kernel answered {explain(error)} to {count} MSI-X vectors for {address}. {advice}") from None
    now = msix.table_size(host.files, address)
    if now != count:
        raise EngineError(
            f"the kernel accepted {count} MSI-X vectors for {address}, but its MSI-X capability shows {now or 'none'}. "
            "The driver may count otherwise; look at the kernel log."
        )


#: What sriov_vf_msix_count_store (drivers/pci/iov.c), mlx5_set_msix_vec_count and ice_sriov_set_msix_vec_count answer.
_MSIX_ADVICE = {
    errno.EBUSY: "A driver took the VF meanwhile; find out what binds it, then run again.",
    errno.EOPNOTSUPP: "The PF's driver does not share out MSI-X vectors.",
    errno.EOVERFLOW: "That is more than one VF can have. Lower msix_count.",
    errno.EINVAL: "That is fewer than a VF needs, or more than it has queues for. Correct msix_count.",
    errno.ENOSPC: "The other VFs have the rest. Lower theirs as well.",
}


# --- Files ---------------------------------------------------------------------------------------------------------


def _declare(host: Host, args: Args) -> None:
    entry = args["entry"]
    if entry is not None:
        entry = {**entry, "declared": {"by": args.get("by", ""), "at": host.utc()}}
        # As it will be read: JSON makes text of keys, and lists of tuples.
        wrong = record.wrong(args["resource"], json.loads(json.dumps(entry)))
        if wrong is not None:
            # One such entry keeps the whole document from being read.
            raise EngineError(
                f"internal: what would be recorded of it could not be read again ({wrong}). Nothing was recorded."
                " It is a fault of the collection: report it."
            )
    _set_entry(host, args, entry)


def _undo_declare(host: Host, args: Args) -> None:
    _set_entry(host, args, args["previous"])


def _set_entry(host: Host, args: Args, entry: Mapping[str, Any] | None) -> None:
    document = store.load(host.files, args["resource"])
    if entry is None:
        # Where no record is left nothing follows its device any more.
        for key in (args["key"], args["was"]):
            found = document["devices"].get(key)
            if found and (args["previous"] is None or store.same_card(found, args["previous"])):
                document["devices"].pop(key)
    else:
        document["devices"][args["key"]] = entry
    store.save(host.files, args["resource"], document)


def _follow(host: Host, args: Args) -> None:
    _move(host, args, args["moves"])


def _undo_follow(host: Host, args: Args) -> None:
    """Only where they did: of two that changed places, going back looks like going."""
    now = store.load(host.files, args["resource"])["devices"]
    if all(now.get(address) == entry for address, entry in args["moved"].items()):
        _move(host, args, {new: old for old, new in args["moves"].items()})


def _move(host: Host, args: Args, moves: Mapping[str, str]) -> None:
    document = store.load(host.files, args["resource"])
    store.move(document, moves)
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


def _later(module: str, do: str, undo: str) -> Step:
    """A step of a module that is imported when the step is taken: a run pays for what it does (docs/dev/benchmarks.md)."""

    def named(name: str) -> Callable[[Host, Args], None]:
        def call(host: Host, args: Args) -> None:
            getattr(importlib.import_module(f"{__package__}.{module}"), name)(host, args)

        return call

    return Step(named(do), named(undo))


def _packed() -> tuple[Any, ...]:
    """Not called: Ansible puts into a module's payload what it sees imported."""
    from . import initramfs, modprobe
    from .guests import steps
    from .kvm import daemons, hugepages, ksm, objects, users
    from .loaders import bls, edited, grub, ostree, proxmox, uki
    from .mdev import steps as mdev_steps
    from .vgpu import intel_steps, mig_steps, nvidia_steps
    from .vmdq import steps as of_vmdq

    kvm_host = (daemons, hugepages, ksm, objects, users)
    vgpus = (intel_steps, mig_steps, nvidia_steps)
    return (initramfs, modprobe, steps, *kvm_host, bls, edited, grub, ostree, proxmox, uki, of_vmdq, mdev_steps, *vgpus)


TABLE: Mapping[str, Step] = {
    "set_vf_count": Step(_set_vf_count, _undo_vf_count, _set_vf_counts, rounds),
    "resume_probing": Step(_resume_probing, _undo_resume),
    "probe_vfs": Step(_probe_vfs, _undo_probe_vfs, _probe_all_vfs, rounds),
    "set_vf_attributes": Step(link.set_vf_attributes, link.undo_vf_attributes, link.set_many),
    "set_up": Step(link.set_up, link.undo_up),
    "unbind": Step(_unbind_vf, _undo_bind),
    "rebind": Step(_rebind_vf, _undo_rebind),
    "bind": Step(_bind, _undo_bind),
    "release": Step(_release, _undo_bind),
    "set_msix_count": Step(_set_msix_counts, _undo_msix_counts),
    "set_nvme_primary": Step(_set_nvme_primary, _undo_nvme_primary),
    "set_nvme_secondary": Step(_set_nvme_secondary, _undo_nvme_secondary),
    "set_firmware": Step(mstconfig.set_next, mstconfig.undo_next),
    "detach_vfs": Step(_detach_vfs, _attach_vfs),
    "attach_vfs": Step(_attach_vfs, _detach_vfs),
    "set_eswitch": Step(devlink.set_eswitch, devlink.undo_eswitch),
    "set_devlink_param": Step(devlink.set_param, devlink.undo_param),
    "devlink_reload": Step(devlink.reload, devlink.undo_reload),
    "set_tc_offload": Step(devlink.set_offload, devlink.undo_offload),
    "declare": Step(_declare, _undo_declare),
    "follow": Step(_follow, _undo_follow),
    "set_hugepages": _later("kvm.hugepages", "set_count", "undo_count"),
    "set_ksm": _later("kvm.ksm", "set_run", "undo_run"),
    "set_units": _later("kvm.daemons", "set_units", "undo_units"),
    "set_member": _later("kvm.users", "set_member", "undo_member"),
    "libvirt_define": _later("kvm.objects", "define", "undo_define"),
    "libvirt_active": _later("kvm.objects", "set_active", "undo_active"),
    "libvirt_autostart": _later("kvm.objects", "set_autostart", "undo_autostart"),
    "libvirt_build": _later("kvm.objects", "build", "undo_build"),
    "write_file": Step(_write_file, _undo_write_file),
    "grub_mkconfig": _later("loaders.grub", "make_config", "undo_config"),
    "refresh_initramfs": _later("initramfs", "refresh", "undo"),
    "boot_record": _later("loaders.edited", "put_record", "undo_record"),
    "write_boot_file": _later("loaders.edited", "write", "undo_write"),
    "grubby_check": _later("loaders.bls", "check", "undo_check"),
    "build_uki": _later("loaders.uki", "build", "undo_build"),
    "clean_uki": _later("loaders.uki", "clean", "undo_clean"),
    "finish_swap": _later("loaders.uki", "finish", "undo_finish"),
    "uki_addon": _later("loaders.uki", "write_addon", "undo_addon"),
    "proxmox_refresh": _later("loaders.proxmox", "refresh", "undo_refresh"),
    "ostree_kargs": _later("loaders.ostree", "set_kargs", "undo_kargs"),
    "set_module_options": _later("modprobe", "set_options", "undo_options"),
    "set_queues": _later("vmdq.steps", "set_queues", "undo_queues"),
    "set_offload": _later("vmdq.steps", "set_offload", "undo_offload"),
    "set_station": _later("vmdq.steps", "set_station", "undo_station"),
    "create_image": _later("guests.steps", "create_image", "undo_create_image"),
    "write_seed": _later("guests.steps", "write_seed", "undo_write_seed"),
    "remove_seed": _later("guests.steps", "remove_seed", "undo_write_seed"),
    "define_guest": _later("guests.steps", "define", "undo_define"),
    "undefine_guest": _later("guests.steps", "undefine", "undo_undefine"),
    "set_guest_autostart": _later("guests.steps", "set_autostart", "undo_autostart"),
    "record_guest": _later("guests.steps", "record", "undo_record"),
    "start_guest": _later("guests.steps", "start", "undo_start"),
    "stop_guest": _later("guests.steps", "stop", "undo_stop"),
    "attach_device": _later("guests.steps", "attach", "undo_attach"),
    "detach_device": _later("guests.steps", "detach", "undo_detach"),
    "update_device": _later("guests.steps", "update", "undo_update"),
    "set_guest_vcpus": _later("guests.steps", "set_vcpus", "undo_vcpus"),
    "set_guest_memory": _later("guests.steps", "set_memory", "undo_memory"),
    "mdev_define": _later("mdev.steps", "define", "undo_define"),
    "mdev_start": _later("mdev.steps", "start", "undo_start"),
    "mdev_stop": _later("mdev.steps", "stop", "undo_stop"),
    "give_subchannel": _later("mdev.steps", "give_subchannel", "undo_give_subchannel"),
    "enable_vgpu_vfs": _later("vgpu.nvidia_steps", "enable", "disable"),
    "disable_vgpu_vfs": _later("vgpu.nvidia_steps", "disable", "enable"),
    "set_vgpu_type": _later("vgpu.nvidia_steps", "set_type", "undo_type"),
    "set_vf_profile": _later("vgpu.intel_steps", "set_profile", "undo_profile"),
    "set_auto_provisioning": _later("vgpu.intel_steps", "set_auto", "undo_auto"),
    "set_mig_mode": _later("vgpu.mig_steps", "set_mode", "undo_mode"),
    "destroy_mig_instances": _later("vgpu.mig_steps", "destroy", "undo_destroy"),
    "create_mig_instances": _later("vgpu.mig_steps", "create", "undo_create"),
    "install_replay": Step(boot.install, boot.undo_install),
    "write_rules": Step(boot.write_rules, boot.undo_rules),
    "remove_replay": Step(boot.remove, boot.undo_remove),
}
