# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a host stands on. The trees are synthetic: the files that systemd-detect-virt(1) asks on each platform."""

from __future__ import annotations

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import host_info
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import lab
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import SimKernel

X86 = {"/proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu vmx ept\n"}
GUEST = {"/proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu hypervisor\n"}
POWER = {"/proc/cpuinfo": "processor\t: 0\nplatform\t: pSeries\nmachine\t\t: CHRP IBM,9105-22A\n"}
TREE = "/proc/device-tree"


def dmi(vendor, product=""):
    return {**GUEST, "/sys/class/dmi/id/sys_vendor": f"{vendor}\n", "/sys/class/dmi/id/product_name": f"{product}\n"}


def xen(features):
    return {**GUEST, "/sys/hypervisor/type": "xen\n", "/sys/hypervisor/properties/features": f"{features}\n"}


KVM_CLOCK = {"/sys/devices/system/clocksource/clocksource0/available_clocksource": "kvm-clock tsc acpi_pm\n"}
Z = "Manufacturer:         IBM\nLPAR Number:          5\n"

#: name -> files, platform, hypervisor.
PLATFORMS = {
    "bare": (X86, "bare_metal", None),
    "a board of a maker of that name": ({**X86, "/sys/class/dmi/id/board_vendor": "Xen\n"}, "bare_metal", None),
    "kvm": ({**dmi("QEMU", "Standard PC"), **KVM_CLOCK}, "kvm", "kvm"),
    "tcg": (dmi("QEMU", "Standard PC"), "qemu", "kvm"),
    "a name of its own": ({**dmi("ACME", "machine"), "/sys/class/dmi/id/chassis_vendor": "QEMU\n"}, "qemu", "kvm"),
    "cloud": (dmi("Google", "Google Compute Engine"), "kvm", "kvm"),
    "vmware": (dmi("VMware, Inc.", "VMware20,1"), "vmware", "vmware"),
    "hyperv": (dmi("Microsoft Corporation", "Virtual Machine"), "hyperv", "hyperv"),
    "virtualbox": (dmi("innotek GmbH", "VirtualBox"), "virtualbox", "virtualbox"),
    "nobody knows": (dmi("ACME"), "unknown", "unknown"),
    "dom0": (xen("00002fff"), "xen_dom0", "xen"),
    "domu": (xen("000002a5"), "xen_domu", "xen"),
    "dom0 of old": ({**X86, "/proc/xen/capabilities": "control_d\n"}, "xen_dom0", "xen"),
    "powervm": ({**POWER, f"{TREE}/ibm,partition-name": "lp1\0", f"{TREE}/hmc-managed?": ""}, "powervm", "powervm"),
    "powerkvm": ({**POWER, f"{TREE}/hypervisor/compatible": "linux,kvm\0", f"{TREE}/ibm,partition-name": "g\0"}, "powerkvm", "kvm"),
    "arm below kvm": ({f"{TREE}/hypervisor/compatible": "linux,kvm\0"}, "kvm", "kvm"),
    "powernv": ({"/proc/cpuinfo": "platform\t: PowerNV\n", "/dev/kvm": ""}, "bare_metal", None),
    "zvm": ({"/proc/sysinfo": f"{Z}VM00 Control Program: z/VM    7.3.0\n"}, "zvm", "zvm"),
    "kvm on z": ({"/proc/sysinfo": f"{Z}VM00 Control Program: KVM/Linux\n"}, "kvm", "kvm"),
    "lpar": ({"/proc/sysinfo": Z, "/proc/cpuinfo": "features\t: esan3 zarch sie\n"}, "lpar", None),
}
CONTAINERS = {
    "podman": {"/run/.containerenv": ""},
    "docker": {"/.dockerenv": ""},
    "systemd-nspawn": {"/run/host/container-manager": "systemd-nspawn\n"},
    "lxc": {"/proc/1/environ": "TERM=linux\0container=lxc\0"},
    "openvz": {"/proc/vz/vestat": ""},
}
TECHNIQUES = {"kvm", "nested", "iommu", "sriov", "passthrough", "mdev"}


def facts(files, sim=None):
    if sim is None:
        sim = SimKernel()
        sim.acpi = []
        sim.power_on()
    sim.files.update(files)
    sim._tree = None
    host = host_info.facts(sim.host())["host"]
    answers = host["platform"]["techniques"]
    assert set(answers) == TECHNIQUES
    for answer in answers.values():
        assert answer["reason"].endswith("."), answer
    return host


@pytest.mark.parametrize("name", PLATFORMS)
def test_the_platform(name):
    files, machine, hypervisor = PLATFORMS[name]
    host = facts(files)
    assert host["platform"]["kind"] == host["platform"]["machine"] == machine
    assert host["platform"]["container"] is None
    assert host["hypervisor"] == hypervisor


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container(name):
    platform = facts({**X86, "/dev/kvm": "", **CONTAINERS[name]})["platform"]
    assert (platform["kind"], platform["container"], platform["machine"]) == ("container", name, "bare_metal")
    assert [answer["possible"] for answer in platform["techniques"].values()] == [False] * 6
    assert name in platform["techniques"]["kvm"]["reason"]


def possible(host):
    return {name for name, answer in host["platform"]["techniques"].items() if answer["possible"]}


def reason(host, name):
    return host["platform"]["techniques"][name]["reason"]


def test_all_of_it_on_a_machine_that_has_all():
    sim = lab()
    module = {"/dev/kvm": "", "/sys/module/kvm_intel/parameters/nested": "N\n", "/sys/class/mdev_bus/mtty": ""}
    host = facts({**X86, **module}, sim)
    assert possible(host) == TECHNIQUES
    assert "VT-x" in reason(host, "kvm")
    assert "kvm_intel has it off" in reason(host, "nested")
    assert "mtty" in reason(host, "mdev")
    assert "3 functions" in reason(host, "sriov")


def test_the_iommu_is_off():
    host = facts({**X86, "/dev/kvm": ""}, lab(iommu=False))
    assert {"iommu", "kvm"} <= possible(host)
    assert "it is off" in reason(host, "iommu")
    assert "DMAR" in reason(host, "passthrough")


@pytest.mark.parametrize(
    ("name", "technique", "words"),
    [
        ("bare", "iommu", "switch it on in the firmware setup"),
        ("vmware", "kvm", "Expose hardware assisted virtualization"),
        ("vmware", "iommu", "Expose IOMMU"),
        ("hyperv", "iommu", "there is no way"),
        ("dom0", "kvm", "Xen itself"),
        ("dom0", "passthrough", "xen-pciback"),
        ("domu", "kvm", "nestedhvm"),
        ("zvm", "kvm", "no SIE"),
        ("powervm", "kvm", "partition profile"),
        ("tcg", "kvm", "-cpu max"),
        ("kvm", "passthrough", "It needs KVM."),
        ("nobody knows", "sriov", "given to it whole"),
    ],
)
def test_why_not(name, technique, words):
    host = facts(PLATFORMS[name][0])
    assert technique not in possible(host)
    assert words in reason(host, technique)


def test_what_works_on_a_partition_of_z_and_on_power():
    assert "kvm" in possible(facts(PLATFORMS["lpar"][0]))
    assert "kvm" in possible(facts(PLATFORMS["powernv"][0]))


def test_a_file_that_nothing_explains_is_named():
    host = facts({**PLATFORMS["kvm"][0], "/dev/kvm": ""})
    assert "kvm" not in possible(host)
    assert "/dev/kvm is there all the same" in reason(host, "kvm")
