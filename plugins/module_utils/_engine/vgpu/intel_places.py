# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where Intel's drivers have what a VF of a GPU gets: its share of time, and its quotas.

Nobody has one place for all of it. VFs are counted from 1 there, and virtfnN from 0:

sriov_admin  xe since Linux 6.19, of the function: sriov_admin/vfN/profile (Documentation/ABI/testing/sysfs-driver-intel-xe-sriov;
             vram_quota since 7.0). The priority of a VF alone can be read there, not set: that goes for all functions at once
             (.bulk_profile; sched_priority_change_allowed in drivers/gpu/drm/xe/xe_sriov_pf_sysfs.c).
iov          i915 with Intel's SR-IOV patches, which no mainline kernel has: drm/cardN/{prelim_,}iov/vfN/gtM (i915_sriov_sysfs.c and
             gt/iov/intel_iov_sysfs.c of intel/linux-intel-lts, and of i915-sriov-dkms, which was made of it).
debugfs      xe: dri/MINOR/gtM/vfN (drivers/gpu/drm/xe/xe_gt_sriov_pf_debugfs.c, 6.12). It is no interface that is promised to stay.

Where there are several GTs a value is one of each.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Callable, Union

from .. import sysfs
from ..host import Files

#: Time.
SCHEDULING = ("exec_quantum_ms", "preempt_timeout_us", "sched_priority")
#: Resources. They are set while there are no VFs: one that runs has them in use.
QUOTAS = ("vram_quota", "ggtt_quota", "contexts_quota", "doorbells_quota")
#: Without these an i915 or xe in whose sharing out somebody took a hand gives a VF nothing (pf_validate_config, intel_iov_provisioning.c).
TOGETHER = ("ggtt_quota", "contexts_quota")
#: The largest value: 32 bits; bytes are 64 bits (kstrtou32 and kstrtou64).
LIMITS = dict.fromkeys(("exec_quantum_ms", "preempt_timeout_us", "contexts_quota", "doorbells_quota"), 2**32 - 1)

ADMIN, IOV, DEBUGFS = "sriov_admin", "iov", "debugfs"
_DEBUG = "/sys/kernel/debug/dri"

Value = Union[int, str, None]


def _admin(files: Files, pf: str) -> Iterator[str]:
    yield f"{sysfs.device(pf)}/sriov_admin/vf%d/profile"


def _iov(files: Files, pf: str) -> Iterator[str]:
    for card in _cards(files, pf):
        for home in ("iov", "prelim_iov"):
            folder = f"{sysfs.device(pf)}/drm/{card}/{home}"
            for gt in _gts(files, f"{folder}/vf1"):
                yield f"{folder}/vf%d/{gt}"


def _debugfs(files: Files, pf: str) -> Iterator[str]:
    for card in _cards(files, pf):
        folder = f"{_DEBUG}/{card[4:]}"
        for gt in _gts(files, folder):
            yield f"{folder}/{gt}/vf%d"


def _cards(files: Files, pf: str) -> list[str]:
    return [name for name in files.names(f"{sysfs.device(pf)}/drm") if re.fullmatch(r"card\d+", name)]


def _gts(files: Files, folder: str) -> list[str]:
    return [name for name in files.names(folder) if re.fullmatch(r"gt\d+", name)]


_OF_GT = {key: key for key in ("exec_quantum_ms", "preempt_timeout_us", "ggtt_quota", "contexts_quota", "doorbells_quota")}
#: Place -> where its folders are, and key -> file; the first place that has a key is asked for it.
_PLACES: Mapping[str, tuple[Callable[[Files, str], Iterator[str]], Mapping[str, str]]] = {
    ADMIN: (_admin, {key: key for key in (*SCHEDULING, "vram_quota")}),
    IOV: (_iov, _OF_GT),
    DEBUGFS: (_debugfs, {**_OF_GT, "vram_quota": "lmem_quota"}),
}


def found(files: Files, pf: str) -> dict[str, dict[str, Any]]:
    """Key -> its place, and the files of a VF with a gap for its number. What is only shown (the quota of another GT) is none."""
    keys: dict[str, dict[str, Any]] = {}
    for place, (folders, names) in _PLACES.items():
        patterns = list(folders(files, pf))
        for key, name in names.items():
            paths = [f"{pattern}/{name}" for pattern in patterns if _can_be_set(files, key, f"{pattern % 1}/{name}")]
            if paths and key not in keys:
                keys[key] = {"place": place, "paths": paths}
    return keys


def _can_be_set(files: Files, key: str, path: str) -> bool:
    return files.exists(written(files, key, path)) and bool((files.mode(written(files, key, path)) or 0) & 0o200)


def value(files: Files, key: str, paths: list[str], index: int) -> Value:
    """What a VF has of a key: None where it is not the same in all GTs."""
    texts = {files.attr(path % (index + 1)) for path in paths}
    text = texts.pop() if len(texts) == 1 else None
    if text is None or key != "sched_priority":
        return int(text) if text and text.isdigit() else None
    chosen = re.search(r"\[(\w+)\]", text)
    return chosen.group(1) if chosen else None


def choices(files: Files, paths: list[str]) -> list[str]:
    """The priorities that a VF can have: '[low] normal'."""
    return re.findall(r"\w+", files.attr(paths[0] % 1) or "")


def written(files: Files, key: str, path: str) -> str:
    """The file that a value is written to."""
    if key == "sched_priority" and not (files.mode(path) or 0) & 0o200:
        folder = path.rpartition("/vf")[0]
        return f"{folder}/.bulk_profile/sched_priority"
    return path


def auto(files: Files, pf: str) -> tuple[str, bool] | None:
    """i915 says whether it shares out what is left by itself, and where: it stops doing so once somebody has set a quota."""
    for card in _cards(files, pf):
        for home in ("iov", "prelim_iov"):
            path = f"{sysfs.device(pf)}/drm/{card}/{home}/pf/auto_provisioning"
            text = files.attr(path)
            if text is not None:
                return path, text == "1"
    return None
