# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which module provides a driver, and which driver a device gets by itself: depmod's tables of the running kernel.

Source of the formats: modules.dep(5), modules.builtin and modules.builtin.modinfo in Documentation/kbuild/kbuild.rst,
modules.alias as depmod(8) writes it, modprobe.d(5). Reading these files costs no process; modinfo and modprobe -R would
cost one a device.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from . import cmdline
from . import drivers as known
from .errors import EngineError
from .host import Files

#: Where modprobe looks for its configuration, the first folder that has a file of a name wins (modprobe.d(5)).
MODPROBE_D = ("/etc/modprobe.d", "/run/modprobe.d", "/usr/local/lib/modprobe.d", "/usr/lib/modprobe.d", "/lib/modprobe.d")

#: Commands of an 'install' line that keep a module from being loaded.
_NOTHING = re.compile(r"(/usr)?(/s?bin/)?(true|false|:)")


class Lack(NamedTuple):
    """Why a driver cannot be had, and the way out of it."""

    reason: str
    way_out: str


def release(files: Files) -> str:
    """The release of the running kernel."""
    return files.attr("/proc/sys/kernel/osrelease") or "unknown"


def _folder(files: Files) -> str:
    return f"/lib/modules/{release(files)}"


def _module_name(path: str) -> str:
    """'kernel/drivers/vfio/pci/vfio-pci.ko.xz' -> 'vfio_pci', the way the kernel writes module names."""
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def _modules(files: Files, table: str) -> frozenset[str]:
    lines = (files.text(f"{_folder(files)}/{table}") or "").splitlines()
    return frozenset(_module_name(line.partition(":")[0]) for line in lines)


def builtin(files: Files) -> frozenset[str]:
    """The modules that are built into the running kernel."""
    return _modules(files, "modules.builtin")


def providable(files: Files, drivers: Iterable[str]) -> frozenset[str]:
    """Those of the drivers for which the running kernel has a module, loadable or built in."""
    wanted = set(drivers)
    if not wanted:
        return frozenset()
    here = _modules(files, "modules.dep") | builtin(files)
    return frozenset(driver for driver in wanted if known.module_of(driver) in here)


def lacking(files: Files, drivers: Iterable[str]) -> dict[str, Lack]:
    """Those drivers, out of some that are not on the PCI bus, that cannot be brought there, each with the reason."""
    wanted = sorted(set(drivers))
    if not wanted:
        return {}
    if not files.exists(f"{_folder(files)}/modules.dep"):
        return {driver: _gone(files, driver) for driver in wanted}
    loadable, inside = _modules(files, "modules.dep"), builtin(files)
    found = {}
    for driver in wanted:
        module = known.module_of(driver)
        if module in inside:
            found[driver] = _built_in(driver)
        elif module not in loadable:
            found[driver] = _missing(files, driver)
        else:
            switched_off = _switched_off(files, driver, module)
            if switched_off:
                found[driver] = switched_off
    return found


def _gone(files: Files, driver: str) -> Lack:
    others = ", ".join(name for name in files.names("/lib/modules") if files.exists(f"/lib/modules/{name}/modules.dep"))
    reason = f"{driver} cannot be loaded: the modules of the running kernel ({_folder(files)}) are gone"
    if others:
        return Lack(f"{reason}, as after an upgrade of the kernel (there are those of {others}).", "Reboot, then run again.")
    return Lack(f"{reason}.", "Install the kernel's package again.")


def _built_in(driver: str) -> Lack:
    reason = f"{driver} is built into the running kernel, yet it is not on the PCI bus: its start failed or was forbidden."
    return Lack(reason, "Look at the kernel log, and for initcall_blacklist= on the kernel command line.")


def _missing(files: Files, driver: str) -> Lack:
    reason = (
        f"there is no driver {driver}: it is not on the PCI bus and the running kernel ({release(files)}) has no module "
        "of that name, neither loadable nor built in."
    )
    way_out = (
        "Correct the name or install the module (some distributions have it in a package of its own, such as "
        "linux-modules-extra or kernel-modules-extra; kernels for clouds leave drivers out)."
    )
    return Lack(reason, way_out)


def _switched_off(files: Files, driver: str, module: str) -> Lack | None:
    """A 'blacklist' line is none: it keeps udev from loading a module, not modprobe by name (modprobe.d(5))."""
    for word in cmdline.split(files.text("/proc/cmdline") or ""):
        key, _equals, value = word.partition("=")
        if cmdline.key_of(key) == "module_blacklist" and module in value.replace("-", "_").split(","):
            reason = f"{driver} is forbidden by module_blacklist= on the running kernel's command line."
            return Lack(reason, "Take it out there and reboot.")
    for path, words in modprobe_lines(files):
        if words[0] == "install" and len(words) > 2 and words[1].replace("-", "_") == module and _NOTHING.fullmatch(words[2]):
            reason = f"{driver} is switched off in {path} ({' '.join(words)})."
            return Lack(reason, "Take that line out.")
    return None


def blacklisted(files: Files, drivers: Iterable[str]) -> frozenset[str]:
    """Those of the drivers that an operator keeps udev from loading for a device: 'blacklist' and 'install' lines
    (modprobe.d(5)), modprobe.blacklist= (modprobe(8)) and module_blacklist= on the running kernel's command line."""
    wanted = {known.module_of(driver): driver for driver in drivers}
    if not wanted:
        return frozenset()
    named = {words[1].replace("-", "_") for _path, words in modprobe_lines(files) if words[0] == "blacklist"}
    for word in cmdline.split(files.text("/proc/cmdline") or ""):
        key, _equals, value = word.partition("=")
        if key == "modprobe.blacklist":
            named |= set(value.replace("-", "_").split(","))
    return frozenset(
        driver for module, driver in wanted.items() if module in named or _switched_off(files, driver, module)
    )


def modprobe_lines(files: Files) -> Iterable[tuple[str, list[str]]]:
    """File and words of each line of modprobe's configuration, in the order in which it is read: by the names of the
    files, whatever their folder. A backslash at its end continues a line."""
    paths: dict[str, str] = {}
    for folder in MODPROBE_D:
        for name in files.names(folder):
            if name.endswith(".conf"):
                paths.setdefault(name, f"{folder}/{name}")
    for _name, path in sorted(paths.items()):
        for line in (files.text(path) or "").replace("\\\n", " ").splitlines():
            words = line.split()
            if len(words) > 1 and not line.startswith("#"):
                yield path, words


def native_drivers(files: Files, modaliases: Iterable[str], drivers: Iterable[str]) -> dict[str, str]:
    """modalias -> the driver that udev would load for it or that is built in, for those that have one.

    `drivers` are the names registered on the bus: they tell the driver's own spelling from the module's.
    """
    wanted = set(modaliases)
    if not wanted:
        return {}
    registered = set(drivers)
    # One search for all lines that can match at all: the table has over 10 000, and each glob has to be compiled.
    vendors = "|".join({re.escape(alias[5:13]) for alias in wanted})
    devices = "|".join({re.escape(alias[14:22]) for alias in wanted})
    globs = rf"(pci:v(?:\*|{vendors})d(?:\*|{devices})[^\s\0]*)"
    found: dict[str, str] = {}
    # Both patterns begin with a plain text, which `re` looks for five times as fast as for anything else. In no line of depmod's does
    # "alias pci:" stand but at its beginning: there is no blank in what comes after.
    lines = re.findall(rf"alias {globs} (\S+)", files.text(f"{_folder(files)}/modules.alias") or "")
    built_in = _modinfo(files)
    for entry in re.finditer(rf"\.alias={globs}", built_in):
        lines.append((entry[1], built_in[built_in.rfind("\0", 0, entry.start()) + 1 : entry.start()]))
    for pattern, module in lines:
        for modalias in wanted:
            if modalias not in found and fits(modalias, pattern):
                found[modalias] = _driver_of(files, module, registered)
    return found


def fits(text: str, pattern: str) -> bool:
    """As fnmatch.fnmatchcase, which compiles each pattern: with twenty of them, more work than all else about the table (docs/dev/benchmarks.md).
    depmod's have stars alone; others are left to it."""
    if "?" in pattern or "[" in pattern:
        return fnmatch.fnmatchcase(text, pattern)
    first, *rest = pattern.split("*")
    if not rest:
        return text == pattern
    *middle, last = rest
    at = len(first)
    for part in middle:
        found = text.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return text.startswith(first) and text.endswith(last) and len(text) - len(last) >= at


def natives(
    files: Files, known_ones: dict[tuple[str, ...], str | None], modaliases: Iterable[str], drivers: Iterable[str]
) -> dict[str, str | None]:
    """As native_drivers, for all that are asked for; what `known_ones` has is not looked up again."""
    registered = tuple(sorted(drivers))
    keys = {modalias: (modalias, *registered) for modalias in modaliases}
    missing = {modalias for modalias, key in keys.items() if key not in known_ones}
    found = native_drivers(files, missing, registered)
    known_ones.update({keys[modalias]: found.get(modalias) for modalias in missing})
    return {modalias: known_ones[key] for modalias, key in keys.items()}


def _modinfo(files: Files) -> str:
    """What modules say of themselves that are built in, NUL between the entries."""
    try:
        return files.text(f"{_folder(files)}/modules.builtin.modinfo") or ""
    except EngineError:
        # An author's name that is not UTF-8 is no reason to stop.
        return ""


def _driver_of(files: Files, module: str, registered: Iterable[str]) -> str:
    """The PCI driver of a module: as the kernel says where it is there (module_add_driver, drivers/base/module.c)."""
    module = module.replace("-", "_")
    for name in files.names(f"/sys/module/{module}/drivers"):
        if name.startswith("pci:"):
            return name[4:]
    spelling = {driver.replace("-", "_"): driver for driver in registered}
    return spelling.get(module) or known.SPELLED.get(module, module)


def variants(files: Files, modaliases: Mapping[str, str], drivers: Iterable[str]) -> dict[str, str]:
    """Key -> the VFIO driver made for this very device, for those keys whose modalias fits one.

    Aliases that begin with vfio_pci: are not for autoloading but for this question
    (include/linux/mod_devicetable.h, PCI_ID_F_VFIO_DRIVER_OVERRIDE). Of several the one with the fewest wildcards
    fits best, as libvirt picks it; vfio-pci's own, all wildcards, is none.
    """
    text = files.text(f"{_folder(files)}/modules.alias") or ""
    lines = re.findall(r"^alias vfio_(pci:\S+) (\S+)$", text, re.MULTILINE)
    lines.sort(key=lambda line: line[0].count("*"))
    registered = set(drivers)
    found: dict[str, str] = {}
    for key, modalias in modaliases.items():
        module = next((m for glob, m in lines if m != "vfio_pci" and fnmatch.fnmatchcase(modalias, glob)), None)
        if module:
            found[key] = _driver_of(files, module, registered)
    return found
