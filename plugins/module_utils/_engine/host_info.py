# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a host can do: processor, paging, IOMMU, KVM, and every PCI function with its SR-IOV abilities. Reads only."""

from __future__ import annotations

import re
from typing import Any

from . import platform, replay, security, users
from .host import Files, Host
from .mdev import facts as mediated
from .model import Function, State
from .read import Needs, read_state
from .resources import common, iommu, mdev, vmdq
from .sriov import eswitch

#: CPU flags (arch/x86/include/asm/cpufeatures.h): hardware virtualization, and nested paging below it.
_VIRTUALIZATION = {"vmx": "VT-x", "svm": "AMD-V"}
_PAGING = {"ept": "EPT", "npt": "NPT"}

#: Platform -> the program that makes it, where that has another name.
_HYPERVISORS = {
    platform.QEMU: "kvm",
    platform.POWERKVM: "kvm",
    platform.XEN0: "xen",
    platform.XENU: "xen",
}


def facts(host: Host) -> dict[str, Any]:
    """The facts of a host, in the words of the collection's variables."""
    state = vmdq.everything(host, read_state(host, Needs(variants=True)))
    state = state.with_more(mdev.NAME, mediated.read(host.files))
    if state.more[mdev.NAME]["devices"]:
        state = users.look(host, state)
    last = host.files.text(replay.RESULT)
    return {
        "changed": False,
        "host": {
            "cpu": _cpu(host.files),
            "hypervisor": _hypervisor(host.files),
            "platform": platform.facts(host.files, state),
            "kernel": host.files.attr("/proc/sys/kernel/osrelease"),
            "kvm": _kvm(host.files),
            "iommu": iommu.info(state.iommu),
            **security.facts(host.files),
            "functions": [_function(state, function) for function in state.functions.values()],
            "mdevs": mdev.of_host(state),
        },
        "declared": {name: document["devices"] for name, document in state.stored.items()},
        "last_replay": replay.parse(last),
    }


def _cpu(files: Files) -> dict[str, Any]:
    text = files.text("/proc/cpuinfo") or ""
    flags = platform.flags(text)
    model = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    return {
        "model": model.group(1) if model else None,
        "count": len(re.findall(r"^processor\s*:", text, re.MULTILINE)),
        "virtualization": next((name for flag, name in _VIRTUALIZATION.items() if flag in flags), None),
        "paging": next((name for flag, name in _PAGING.items() if flag in flags), None),
    }


def _hypervisor(files: Files) -> str | None:
    """What this host itself runs under; None on bare metal, a partition of the hardware included."""
    machine = platform.machine_of(files)
    if machine in (platform.BARE, platform.LPAR):
        return None
    return _HYPERVISORS.get(machine, machine)


def _kvm(files: Files) -> dict[str, Any]:
    """/dev/kvm being there proves little: opening it is not enough either (docs/kernel-facts.md)."""
    module = next((m for m in ("kvm_intel", "kvm_amd") if files.exists(f"/sys/module/{m}")), None)
    nested = files.attr(f"/sys/module/{module}/parameters/nested") if module else None
    paging = (
        files.attr(f"/sys/module/{module}/parameters/{'ept' if module == 'kvm_intel' else 'npt'}") if module else None
    )
    return {
        "device": files.exists("/dev/kvm"),
        "module": module,
        "nested": nested in ("Y", "1") if nested else None,
        "paging": paging in ("Y", "1") if paging else None,
    }


def _function(state: State, function: Function) -> dict[str, Any]:
    group = state.iommu.groups.get(function.group or "")
    return {
        "address": function.address,
        "bus": function.bus,
        "vendor": function.vendor,
        "device": function.device,
        "subsystem": function.subsystem,
        "class": function.class_code,
        "driver": function.driver,
        "driver_override": function.override,
        "native_driver": function.native,
        "vfio_driver": common.best_vfio(state, function.address),
        "numa_node": function.numa_node,
        "slot": function.slot,
        "serial": function.serial,
        "physfn": function.physfn,
        "netdevs": [_netdev(state, name) for name in function.netdevs],
        "iommu_group": function.group,
        "iommu_group_type": group.type if group else None,
        "iommu_group_members": list(group.members) if group else [],
        "disks_in_use": list(function.disks_in_use),
        "sriov": _sriov(state, function),
        "vmdq": vmdq.of_host(state, function),
    }


def _netdev(state: State, name: str) -> dict[str, Any]:
    netdev = state.netdevs.get(name)
    return {
        "name": name,
        "mac": netdev.mac if netdev else None,
        "up": netdev.up if netdev else None,
        "carrier": netdev.carrier if netdev else None,
    }


def _sriov(state: State, function: Function) -> dict[str, Any] | None:
    if function.sriov is None:
        return None
    return {
        "total_vfs": function.sriov.total,
        "vf_count": len(function.sriov.vfs),
        "vf_device": function.sriov.vf_device,
        "drivers_autoprobe": function.sriov.autoprobe,
        "representors": eswitch.representors(state, function),
        "vfs": [{"index": index, "address": address} for index, address in function.sriov.vfs.items()],
    }
