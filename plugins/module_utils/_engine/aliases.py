# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which module provides a driver, and which driver a device gets by itself: depmod's tables of the running kernel.

Source of the formats: modules.dep(5), modules.builtin in Documentation/kbuild/kbuild.rst, modules.alias as depmod(8)
writes it. Reading these files costs no process; modinfo and modprobe -R would cost one a device.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

from .host import Files


def _folder(files: Files) -> str:
    return f"/lib/modules/{files.attr('/proc/sys/kernel/osrelease') or 'unknown'}"


def _module_name(path: str) -> str:
    """'kernel/drivers/vfio/pci/vfio-pci.ko.xz' -> 'vfio_pci', the way the kernel writes module names."""
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def providable(files: Files, drivers: Iterable[str]) -> frozenset[str]:
    """Those of the drivers for which the running kernel has a module, loadable or built in. Driver and module share a
    name but for '-' and '_' (vfio-pci is vfio_pci)."""
    wanted = {driver.replace("-", "_"): driver for driver in drivers}
    if not wanted:
        return frozenset()
    folder = _folder(files)
    found = set()
    for table in ("modules.dep", "modules.builtin"):
        for line in (files.text(f"{folder}/{table}") or "").splitlines():
            driver = wanted.get(_module_name(line.partition(":")[0]))
            if driver:
                found.add(driver)
    return frozenset(found)


def native_drivers(files: Files, modaliases: Iterable[str], drivers: Iterable[str]) -> dict[str, str]:
    """modalias -> the driver that udev would load for it, for those that have one.

    `drivers` are the names registered on the bus: they tell the driver's own spelling from the module's.
    """
    wanted = set(modaliases)
    if not wanted:
        return {}
    spelling = {driver.replace("-", "_"): driver for driver in drivers}
    found: dict[str, str] = {}
    # One search for all lines that can match at all: the table has over 10 000, and each glob has to be compiled.
    vendors = "|".join({re.escape(alias[5:13]) for alias in wanted})
    devices = "|".join({re.escape(alias[14:22]) for alias in wanted})
    likely = re.compile(rf"^alias (pci:v(?:\*|{vendors})d(?:\*|{devices})\S*) (\S+)$", re.MULTILINE)
    for pattern, module in likely.findall(files.text(f"{_folder(files)}/modules.alias") or ""):
        for modalias in wanted:
            if modalias not in found and fnmatch.fnmatchcase(modalias, pattern):
                found[modalias] = spelling.get(module, module)
    return found
