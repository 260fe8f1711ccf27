# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a host stands on, and which techniques of virtualization can work there. Reads files alone.

The order of the questions is that of systemd-detect-virt(1), whose sources these are: Xen says so itself, s390x in
/proc/sysinfo, POWER and Arm in the device tree, anything else in DMI.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .host import Files
from .model import State

BARE, KVM, QEMU, XEN0, XENU = "bare_metal", "kvm", "qemu", "xen_dom0", "xen_domu"
VMWARE, HYPERV, VIRTUALBOX = "vmware", "hyperv", "virtualbox"
POWERVM, POWERKVM, ZVM, LPAR = "powervm", "powerkvm", "zvm", "lpar"
UNKNOWN, CONTAINER = "unknown", "container"

#: Part of one of _DMI_FILES in DMI -> platform.
_DMI = (
    ("KVM", KVM),
    ("OpenStack", KVM),
    ("KubeVirt", KVM),
    ("Amazon EC2", KVM),
    ("Google Compute Engine", KVM),
    ("QEMU", QEMU),
    ("Bochs", QEMU),
    ("VMware", VMWARE),
    ("VMW", VMWARE),
    ("innotek GmbH", VIRTUALBOX),
    ("VirtualBox", VIRTUALBOX),
    ("Microsoft Corporation Virtual Machine", HYPERV),
    ("Hyper-V", HYPERV),
    ("Xen", XENU),
)
_DMI_FILES = ("sys_vendor", "product_name", "board_vendor", "bios_vendor", "chassis_vendor")

#: /proc/device-tree/hypervisor/compatible -> platform.
_DEVICE_TREE = {"linux,kvm": KVM, "xen": XENU, "vmware": VMWARE}

#: Platform -> how it is called in a sentence.
NAMES: Mapping[str, str] = {
    BARE: "bare metal",
    KVM: "KVM",
    QEMU: "QEMU without KVM",
    XEN0: "the privileged domain of Xen",
    XENU: "Xen",
    VMWARE: "VMware",
    HYPERV: "Hyper-V",
    VIRTUALBOX: "VirtualBox",
    POWERVM: "PowerVM",
    POWERKVM: "KVM on POWER",
    ZVM: "z/VM",
    LPAR: "a logical partition of IBM Z",
    UNKNOWN: "a hypervisor that is not known here",
}

#: Platform -> what its owner has to do so that KVM works within.
_NESTING = {
    KVM: "give it the processor with its flags (libvirt: cpu mode host-passthrough) and switch nested on in the KVM module below",
    QEMU: "start it with -cpu max or with a model that has the flag",
    VMWARE: "switch 'Expose hardware assisted virtualization to the guest OS' on",
    HYPERV: "Set-VMProcessor -ExposeVirtualizationExtensions $true",
    VIRTUALBOX: "switch 'Enable Nested VT-x/AMD-V' on",
    XENU: "nestedhvm=1 in the domain's configuration, for HVM domains; Xen calls it experimental",
    UNKNOWN: "ask its owner for nested virtualization",
}

#: Platform -> how its owner gives the host an IOMMU.
_VIOMMU = {
    KVM: "add one to the guest (libvirt: <iommu>; QEMU: -device intel-iommu, amd-iommu or virtio-iommu-pci)",
    QEMU: "add one (-device intel-iommu, amd-iommu or virtio-iommu-pci)",
    VMWARE: "switch 'Expose IOMMU to the guest OS' on",
    HYPERV: "there is no way: Hyper-V offers none to its guests",
    VIRTUALBOX: "add one (VBoxManage modifyvm --iommu)",
    XENU: "there is no way: Xen offers none to its guests",
    UNKNOWN: "ask its owner for one",
}

#: Flags of a processor for hardware virtualization (arch/x86/include/asm/cpufeatures.h, arch/s390/kernel/processor.c).
_X86, _SIE = {"vmx": "VT-x", "svm": "AMD-V"}, "sie"

#: Modules that run guests -> the file of the parameter that lets guests run guests.
KVM_MODULES = ("kvm_intel", "kvm_amd", "kvm_hv", "kvm_pr", "kvm")

#: Bit 11 of Xen's feature mask: the initial domain (XENFEAT_dom0, include/xen/interface/features.h).
_XENFEAT_DOM0 = 1 << 11


def facts(files: Files, state: State) -> dict[str, Any]:
    """The platform, and each technique with whether it can work and why, in a sentence."""
    text = files.text("/proc/cpuinfo") or ""
    machine, container = _machine(files, text), _container(files)
    return {
        "kind": CONTAINER if container else machine,
        "machine": machine,
        "container": container,
        "techniques": {
            name: dict(zip(("possible", "reason"), answer))
            for name, answer in _techniques(files, state, machine, container, text).items()
        },
    }


def machine_of(files: Files) -> str:
    """What the kernel runs on, whatever container this process is in."""
    return _machine(files, files.text("/proc/cpuinfo") or "")


def _machine(files: Files, cpuinfo: str) -> str:
    if files.attr("/sys/hypervisor/type") == "xen" or files.exists("/proc/xen/capabilities"):
        return XEN0 if _is_dom0(files) else XENU
    said = files.text("/proc/sysinfo")
    if said is not None:
        return _z(said)
    found = _device_tree(files, cpuinfo)
    if found:
        return found
    dmi = " ".join(files.attr(f"/sys/class/dmi/id/{name}") or "" for name in _DMI_FILES)
    known = next((platform for part, platform in _DMI if part in dmi), None)
    if known == QEMU and "kvm-clock" in (files.attr(f"{_CLOCK}/available_clocksource") or ""):
        known = KVM
    # The flag is the hypervisor bit of CPUID: DMI alone may be a board's maker that is called like a hypervisor.
    if known and (_is_virtual(cpuinfo) or not _is_x86(cpuinfo)):
        return known
    return UNKNOWN if _is_virtual(cpuinfo) else BARE


_CLOCK = "/sys/devices/system/clocksource/clocksource0"


def _is_dom0(files: Files) -> bool:
    features = files.attr("/sys/hypervisor/properties/features")
    try:
        return bool(int(features or "", 16) & _XENFEAT_DOM0)
    except ValueError:
        return "control_d" in (files.attr("/proc/xen/capabilities") or "")


def _z(sysinfo: str) -> str:
    """s390x: a line for the control program of the innermost level, none in a partition."""
    found = re.search(r"^VM00 Control Program:\s*(.*?)\s*$", sysinfo, re.MULTILINE)
    if not found:
        return LPAR
    return ZVM if found.group(1).startswith("z/VM") else KVM


def _device_tree(files: Files, cpuinfo: str) -> str | None:
    tree = "/proc/device-tree"
    said = (files.attr(f"{tree}/hypervisor/compatible") or "").strip("\0")
    power = bool(re.search(r"^platform\s*:\s*pSeries", cpuinfo, re.MULTILINE))
    if said:
        known = next((platform for name, platform in _DEVICE_TREE.items() if name in said), UNKNOWN)
        return POWERKVM if power and known == KVM else known
    if files.exists(f"{tree}/ibm,partition-name") and files.exists(f"{tree}/hmc-managed?"):
        # QEMU names a partition as well.
        return QEMU if files.exists(f"{tree}/chosen/qemu,graphic-width") or "emulated by qemu" in cpuinfo else POWERVM
    if power or any("fw-cfg" in name for name in files.names(tree)):
        return QEMU if "emulated by qemu" in cpuinfo or not power else POWERVM
    return None


def _container(files: Files) -> str | None:
    """What systemd, the engines themselves and OpenVZ leave for whoever asks; None outside."""
    for path in ("/run/host/container-manager", "/run/systemd/container"):
        said = files.attr(path)
        if said:
            return said
    if files.exists("/run/.containerenv"):
        return "podman"
    if files.exists("/.dockerenv"):
        return "docker"
    if files.exists("/proc/vz") and not files.exists("/proc/bc"):
        return "openvz"
    found = re.search(r"(?:^|\0)container=([^\0]+)", files.attr("/proc/1/environ") or "")
    return found.group(1) if found else None


def _is_virtual(cpuinfo: str) -> bool:
    return "hypervisor" in flags(cpuinfo)


def _is_x86(cpuinfo: str) -> bool:
    return bool(re.search(r"^flags\s*:", cpuinfo, re.MULTILINE))


def flags(cpuinfo: str) -> set[str]:
    """'flags' on x86, 'Features' on Arm, 'features' on s390x."""
    lines = re.findall(r"^(?:flags|vmx flags|Features|features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    return {flag for line in lines for flag in line.split()}


# --- Techniques ----------------------------------------------------------------------------------------------------

_Answer = tuple[bool, str]


def _techniques(files: Files, state: State, machine: str, container: str | None, cpuinfo: str) -> dict[str, _Answer]:
    if container:
        reason = f"This is a container ({container}): its host's kernel does that, so run the collection there."
        return dict.fromkeys(("kvm", "nested", "iommu", "sriov", "passthrough", "mdev"), (False, reason))
    kvm = _kvm(files, machine, cpuinfo)
    iommu = _iommu(state, machine)
    return {
        "kvm": kvm,
        "nested": _nested(files, kvm),
        "iommu": iommu,
        "sriov": _sriov(state, machine),
        "passthrough": _passthrough(machine, kvm, iommu),
        "mdev": _mdev(files, kvm),
    }


def _kvm(files: Files, machine: str, cpuinfo: str) -> _Answer:
    if machine == XEN0:
        return False, "Xen itself has the processor's virtualization, and runs the guests; KVM cannot beside it."
    here = files.exists("/dev/kvm")
    found = flags(cpuinfo)
    flag = next((name for key, name in _X86.items() if key in found), "SIE" if _SIE in found else None)
    if flag:
        return True, f"The processor has {flag}" + (", and /dev/kvm is there." if here else "; the KVM module is not loaded.")
    if here and not _is_x86(cpuinfo):
        # Arm and POWER have no flag: the kernel makes the file where it was started at the right level.
        return True, "The kernel offers /dev/kvm."
    return False, _no_kvm(machine, cpuinfo, here)


def _no_kvm(machine: str, cpuinfo: str, here: bool) -> str:
    unexplained = " /dev/kvm is there all the same: kvm_info says whether it runs anything." if here else ""
    if machine == ZVM:
        return f"z/VM gives this guest no SIE: it has to offer a level of architecture that includes it.{unexplained}"
    if machine in (POWERVM, POWERKVM):
        return (
            f"{NAMES[machine]} gives this guest no virtualization of its own: it takes a firmware and a partition profile that "
            f"allow KVM, or cap-nested-hv=on below QEMU.{unexplained}"
        )
    if machine == LPAR:
        return f"The partition has no SIE facility.{unexplained}"
    if machine == BARE:
        if _is_x86(cpuinfo):
            return f"The processor shows neither VT-x nor AMD-V: switch it on in the firmware setup, if it has it.{unexplained}"
        return f"There is no /dev/kvm: the kernel has no KVM, or was not started at the level that runs guests (EL2 on Arm).{unexplained}"
    way = _NESTING.get(machine, _NESTING[UNKNOWN])
    return f"This host is a guest of {NAMES[machine]}, which gives it no hardware virtualization: {way}.{unexplained}"


def _nested(files: Files, kvm: _Answer) -> _Answer:
    if not kvm[0]:
        return False, f"No KVM, so no nested KVM. {kvm[1]}"
    for module in KVM_MODULES:
        value = files.attr(f"/sys/module/{module}/parameters/nested")
        if value is not None:
            on = value in ("Y", "1")
            return True, f"{module} has it {'on' if on else 'off; kvm_nested: true switches it on'}."
    if files.exists("/dev/kvm"):
        return False, "The KVM of this kernel has no parameter 'nested'."
    return True, "The KVM module is not loaded; its parameter 'nested' decides."


def _iommu(state: State, machine: str) -> _Answer:
    iommu = state.iommu
    if iommu.active:
        return True, f"It is on, with {len(iommu.groups)} groups."
    if machine == XEN0:
        return False, "Xen itself drives the IOMMU, and shows none to this domain."
    if iommu.tables:
        return True, f"The firmware offers one ({', '.join(iommu.tables)}), and it is off; iommu_state: enabled switches it on."
    if machine in _VIOMMU:
        return False, f"{_a(machine)} shows this host no IOMMU: {_VIOMMU[machine]}."
    if machine in (ZVM, LPAR):
        return False, "On IBM Z each PCI function has its IOMMU, and there is no PCI function here."
    if iommu.hint:
        return False, f"The firmware offers none, though {iommu.hint}: switch it on in the firmware setup."
    return False, "The firmware offers none: switch VT-d, AMD-Vi or the SMMU on in the firmware setup, if the machine has it."


def _a(machine: str) -> str:
    name = NAMES[machine]
    return name[0].upper() + name[1:]


def _sriov(state: State, machine: str) -> _Answer:
    ports = [f for f in state.functions.values() if f.sriov is not None]
    if ports:
        return True, f"{len(ports)} function{'s have' if len(ports) > 1 else ' has'} the capability."
    if machine == BARE:
        return False, "No PCI function has the capability: it may be switched off in the card's or the machine's firmware."
    return False, f"No PCI function has the capability. Below {NAMES[machine]} a host sees it only on a PF that was given to it whole."


def _passthrough(machine: str, kvm: _Answer, iommu: _Answer) -> _Answer:
    if machine == XEN0:
        return False, "Xen gives devices to its guests by xen-pciback; vfio-pci needs IOMMU groups, and Xen shows none."
    for answer, what in ((kvm, "KVM"), (iommu, "an IOMMU")):
        if not answer[0]:
            return False, f"It needs {what}. {answer[1]}"
    return True, f"KVM and the IOMMU are there. {iommu[1]}"


def _mdev(files: Files, kvm: _Answer) -> _Answer:
    if not kvm[0]:
        return False, f"It needs KVM. {kvm[1]}"
    parents = files.names("/sys/class/mdev_bus")
    if parents:
        return True, f"{', '.join(parents)} can have mediated devices."
    return False, "No driver that is loaded offers mediated devices (/sys/class/mdev_bus is empty)."
