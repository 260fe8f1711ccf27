# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A declaration as libvirt's domain XML (https://libvirt.org/formatdomain.html): only what the declaration names.

What a new guest needs beside that (DEFAULTS) is added where there is none of this name yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any
from xml.etree.ElementTree import Element, SubElement

from ..plain import dataclass
from .wish import Wish, cpus, kib, shares_of

#: What a new guest has where its declaration does not say: a machine of today, and the host's own processor.
MACHINE = "q35"
CPU = {"kvm": "host-passthrough", "tcg": "maximum"}
#: Words of the declaration that are modes of libvirt's <cpu>; any other is the name of a model.
_CPU_MODES = ("host-passthrough", "host-model", "maximum")

#: Enlightenments that Windows is known to profit from, as libvirt's documentation of <hyperv> and QEMU's
#: docs/system/i386/hyperv.rst have them; stimer needs synic, vpindex and the reference counter (_HYPERV_CLOCK): without it QEMU does not start.
_HYPERV = ("relaxed", "vapic", "spinlocks", "vpindex", "runtime", "synic", "stimer", "frequencies")
_HYPERV_CLOCK = "hypervclock"

_BOOT = {"disk": "hd", "network": "network", "cdrom": "cdrom"}

#: Disk model -> bus and the letters that its names begin with.
_BUS = {"ide": ("ide", "hd"), "sata": ("sata", "sd"), "virtio": ("virtio", "vd"), "scsi": ("scsi", "sd"), "lun": ("scsi", "sd")}
#: The seed is a CD. Its name is fixed, so that disks keep theirs whether or not there is a seed: the last place of ICH9's
#: six ports, and of PIIX's four.
_SEED = {"q35": ("sata", "sdf"), "pc": ("ide", "hdd")}


@dataclass(frozen=True)
class Wanted:
    """What a declaration comes to. `absent`: paths (as compare.flatten has them) that must not be there. `whole`: kinds ('devices/disk') of which
    the declaration names all there are."""

    root: Element
    absent: frozenset[str] = frozenset()
    whole: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Around:
    """What the host adds to a declaration.

    `fresh`: libvirt has no guest of this name. `nested`: the processor's name for virtualization, 'svm' or 'vmx'. `dropped`: whole functions
    and mediated devices that an earlier declaration named and this one does not. `seed`: path of the seed. `ovs`: bridges of Open vSwitch.
    `vcpus`, `vcpus_max`: how many there are and can be, where the declaration does not say."""

    arch: str = "x86_64"
    fresh: bool = False
    machine: str = MACHINE
    nested: str = "vmx"
    dropped: frozenset[str] = frozenset()
    seed: str = ""
    ovs: frozenset[str] = frozenset()
    vcpus: int | None = None
    vcpus_max: int | None = None


@dataclass
class _Made:
    absent: set[str] = field(default_factory=set)
    whole: set[str] = field(default_factory=set)


def build(wish: Wish, around: Around) -> Wanted:
    """The domain that a declaration (wish.normal, wish.with_macs, VFs allocated) describes."""
    made, cpu = _Made(absent={f"devices/hostdev[{address}]" for address in around.dropped}), wish.get("cpu", {})
    accel = cpu.get("accel") or ("kvm" if around.fresh else None)
    root = Element("domain")
    _attributes(root, type={"kvm": "kvm", "tcg": "qemu"}.get(accel or ""))
    _sub(root, "name", wish["name"])
    _add_memory(root, wish, made)
    _add_vcpus(root, wish, around, made)
    _add_numa(root, wish)
    _add_os(root, wish, around, made)
    _add_features(root, wish, around, made)
    _add_cpu(root, wish, around, accel or "kvm")
    _add_clock(root, wish, around, made)
    devices = Element("devices")
    _add_disks(devices, wish, around, made)
    _add_network(devices, wish, around, made)
    _add_display(devices, wish, made)
    _add_shares(devices, wish)
    _add_others(devices, wish, around, made)
    if len(devices):
        root.append(devices)
    return Wanted(root, frozenset(made.absent), frozenset(made.whole))


def _sub(parent: Element, tag: str, text: Any = None, **attributes: Any) -> Element:
    child = SubElement(parent, tag)
    if text is not None:
        child.text = str(text)
    _attributes(child, **attributes)
    return child


def _attributes(element: Element, **attributes: Any) -> None:
    """Those that are None are left out."""
    for key, value in attributes.items():
        if value is not None:
            element.set(key.rstrip("_"), str(value))


def _yes(value: bool | None, yes: str = "yes", no: str = "no") -> str | None:
    return None if value is None else (yes if value else no)


# --- Memory and processors -------------------------------------------------------------------------------------------


def _add_memory(root: Element, wish: Wish, made: _Made) -> None:
    memory, target = wish.get("memory"), wish.get("balloon", {}).get("target")
    if memory:
        _sub(root, "memory", kib(memory), unit="KiB")
    if memory or target:
        _sub(root, "currentMemory", kib(target or memory), unit="KiB")
    backing = Element("memoryBacking")
    if wish.get("hugepages"):
        _sub(_sub(backing, "hugepages"), "page", size=kib(wish["hugepages"]), unit="KiB")
    # An element that says something by being there: gone is the other word.
    for key, tag, there in (("ksm", "nosharepages", False), ("locked", "locked", True)):
        if wish.get(key) is there:
            _sub(backing, tag)
        elif key in wish:
            made.absent.add(f"memoryBacking/{tag}")
    if len(backing):
        root.append(backing)


def _add_vcpus(root: Element, wish: Wish, around: Around, made: _Made) -> None:
    vcpus = wish.get("vcpus") or (1 if around.fresh else None)
    if vcpus is None and "vcpus_max" in wish:
        # Room for more is no wish for more.
        vcpus = min(around.vcpus or wish["vcpus_max"], wish["vcpus_max"])
    most = wish.get("vcpus_max") or around.vcpus_max or vcpus
    if vcpus:
        now = vcpus if vcpus != most else None
        _sub(root, "vcpu", most, placement="static" if around.fresh else None, current=now)
    cpu = wish.get("cpu", {})
    tune = Element("cputune")
    if "pinning" in cpu:
        made.whole.add("cputune/vcpupin")
    for pin in cpu.get("pinning", ()):
        for number in sorted(cpus(pin["vcpus"]) or ()):
            _sub(tune, "vcpupin", vcpu=number, cpuset=pin["cpus"])
    if "emulator_cpus" in cpu:
        _sub(tune, "emulatorpin", cpuset=cpu["emulator_cpus"])
    if len(tune):
        root.append(tune)


def _add_numa(root: Element, wish: Wish) -> None:
    if "numa_node" in wish:
        _sub(_sub(root, "numatune"), "memory", mode="strict", nodeset=wish["numa_node"])


def _add_os(root: Element, wish: Wish, around: Around, made: _Made) -> None:
    boot = wish.get("boot", {})
    uefi = boot.get("firmware") == "uefi"
    os = Element("os")
    # With a choice of firmware libvirt finds the files by their descriptions (docs/interop/firmware.json of QEMU).
    _attributes(os, firmware="efi" if uefi else None)
    if around.fresh or "machine" in wish:
        machine = wish.get("machine") or (MACHINE if around.fresh else None)
        _sub(os, "type", "hvm", arch=around.arch if around.fresh else None, machine=machine)
    if uefi and "secure_boot" in boot:
        features = _sub(os, "firmware")
        for name in ("enrolled-keys", "secure-boot"):
            _sub(features, "feature", enabled=_yes(boot["secure_boot"]), name=name)
    for key, tag in (("kernel", "kernel"), ("initrd", "initrd"), ("cmdline", "cmdline")):
        if key in boot:
            _sub(os, tag, boot[key])
    if boot.get("firmware") == "bios":
        made.absent |= {"os@firmware", "os/firmware", "os/loader", "os/nvram"}
    if "order" in boot:
        made.whole.add("os/boot")
    for word in boot.get("order", ()):
        _sub(os, "boot", dev=_BOOT[word])
    if len(os) or os.attrib:
        root.append(os)


def _add_features(root: Element, wish: Wish, around: Around, made: _Made) -> None:
    cpu = wish.get("cpu", {})
    features = Element("features")
    if around.fresh:
        _sub(features, "acpi")
    if around.fresh or "pv_eoi" in cpu:
        _sub(features, "apic", eoi=_yes(cpu.get("pv_eoi"), "on", "off"))
    if "pv_spinlock" in cpu:
        _sub(features, "pvspinlock", state=_yes(cpu["pv_spinlock"], "on", "off"))
    if cpu.get("hyperv"):
        hyperv = _sub(features, "hyperv", mode="custom")
        for name in _HYPERV:
            _sub(hyperv, name, state="on", retries=8191 if name == "spinlocks" else None)
    elif "hyperv" in cpu:
        made.absent.add("features/hyperv")
    if wish.get("boot", {}).get("secure_boot"):
        # Secure Boot's variables are kept from the guest by system management mode.
        _sub(features, "smm", state="on")
    if len(features):
        root.append(features)


def _add_cpu(root: Element, wish: Wish, around: Around, accel: str) -> None:
    cpu = wish.get("cpu", {})
    model = cpu.get("model") or (CPU[accel] if around.fresh else None)
    element = Element("cpu")
    if model in _CPU_MODES:
        _attributes(element, mode=model)
    elif model:
        _attributes(element, mode="custom", match="exact")
        _sub(element, "model", model)
    if "topology" in cpu:
        _sub(element, "topology", **cpu["topology"])
    if "nested" in cpu:
        _sub(element, "feature", policy="require" if cpu["nested"] else "disable", name=around.nested)
    for feature in cpu.get("features", ()):
        _sub(element, "feature", policy=feature["policy"], name=feature["name"])
    if len(element) or element.attrib:
        root.append(element)


def _add_clock(root: Element, wish: Wish, around: Around, made: _Made) -> None:
    cpu = wish.get("cpu", {})
    timers = {"kvmclock": cpu["kvmclock"]} if "kvmclock" in cpu else {}
    if cpu.get("hyperv"):
        timers[_HYPERV_CLOCK] = True
    elif "hyperv" in cpu:
        made.absent.add(f"clock/timer[{_HYPERV_CLOCK}]")
    if not timers and not around.fresh:
        return
    clock = _sub(root, "clock", offset="utc" if around.fresh else None)
    for name, present in timers.items():
        _sub(clock, "timer", name=name, present=_yes(present))


# --- Disks -----------------------------------------------------------------------------------------------------------


def _add_disks(devices: Element, wish: Wish, around: Around, made: _Made) -> None:
    if around.seed:
        _add_seed(devices, around)
    if "disks" not in wish:
        return
    made.whole |= {"devices/disk"}
    buses = {_BUS[item["model"]][0] for item in wish["disks"] if item["model"] != "nvme"}
    if "scsi" in buses:
        _sub(devices, "controller", type="scsi", index=0, model="virtio-scsi")
    taken = {name for _bus, name in _SEED.values()}
    for item in wish["disks"]:
        if item["model"] == "nvme":
            _add_function(devices, item["address"])
        else:
            _add_disk(devices, item, taken, made)


def _add_disk(devices: Element, item: Wish, taken: set[str], made: _Made) -> None:
    bus, letters = _BUS[item["model"]]
    name = next(n for n in (letters + _letters(i) for i in range(len(taken) + 1)) if n not in taken)
    taken.add(name)
    of_host = item["path"].startswith("/dev/")
    disk = _sub(devices, "disk", type="block" if of_host else "file", device="lun" if item["model"] == "lun" else "disk")
    kind = item.get("format") or ("raw" if of_host else "qcow2")
    _sub(disk, "driver", name="qemu", type=kind, cache=item.get("cache"), io=item.get("io"), discard=item.get("discard"))
    _sub(disk, "source", **{"dev" if of_host else "file": item["path"]})
    _sub(disk, "target", dev=name, bus=bus)
    if item.get("readonly"):
        _sub(disk, "readonly")
    elif "readonly" in item:
        made.absent.add(f"devices/disk[{name}]/readonly")
    if "serial" in item:
        _sub(disk, "serial", item["serial"])


def _letters(number: int) -> str:
    """a, b, ... z, aa, ab, as disks are counted."""
    text = ""
    while number >= 0:
        text = chr(ord("a") + number % 26) + text
        number = number // 26 - 1
    return text


def _add_seed(devices: Element, around: Around) -> None:
    bus, name = _SEED["pc" if around.machine.startswith(("pc-i440fx", "pc")) and "q35" not in around.machine else "q35"]
    disk = _sub(devices, "disk", type="file", device="cdrom")
    _sub(disk, "driver", name="qemu", type="raw")
    _sub(disk, "source", file=around.seed)
    _sub(disk, "target", dev=name, bus=bus)
    _sub(disk, "readonly")


# --- Network ---------------------------------------------------------------------------------------------------------


def _add_network(devices: Element, wish: Wish, around: Around, made: _Made) -> None:
    if "network" not in wish:
        return
    made.whole |= {"devices/interface"}
    for item in wish["network"]:
        _NETWORK[item["model"]](devices, item, around, made)


def _interface(devices: Element, item: Wish, kind: str, **more: Any) -> Element:
    interface = _sub(devices, "interface", type=kind, **more)
    _sub(interface, "mac", address=item["mac"])
    if "rom" in item:
        _sub(interface, "rom", enabled=_yes(item["rom"]))
    if "mtu" in item:
        _sub(interface, "mtu", size=item["mtu"])
    return interface


def _attached(devices: Element, item: Wish, around: Around) -> Element:
    """To a bridge, or to a network of libvirt's."""
    if "nat" in item:
        interface = _interface(devices, item, "network")
        _sub(interface, "source", network=item["nat"])
        return interface
    interface = _interface(devices, item, "bridge")
    _sub(interface, "source", bridge=item["bridge"])
    if item["bridge"] in around.ovs:
        _sub(interface, "virtualport", type="openvswitch")
    return interface


def _emulated(devices: Element, item: Wish, around: Around, _made: _Made) -> None:
    _sub(_attached(devices, item, around), "model", type=item.get("device", "e1000e"))


def _virtio(devices: Element, item: Wish, around: Around, _made: _Made) -> None:
    _add_virtio(_attached(devices, item, around), item, "virtio")


def _add_virtio(interface: Element, item: Wish, model: str) -> None:
    _sub(interface, "model", type=model)
    if "vhost" in item or "queues" in item:
        _sub(interface, "driver", name=_yes(item.get("vhost"), "vhost", "qemu"), queues=item.get("queues"))


def _macvtap(devices: Element, item: Wish, _around: Around, _made: _Made) -> None:
    interface = _interface(devices, item, "direct")
    _sub(interface, "source", dev=item["parent"], mode=item.get("mode", "bridge"))
    _add_virtio(interface, item, item.get("device", "virtio"))


def _sriov(devices: Element, item: Wish, _around: Around, made: _Made) -> None:
    """managed: libvirt takes the VF from its driver, sets MAC and VLAN at the PF, and puts all of it back."""
    interface = _interface(devices, item, "hostdev", managed="yes")
    _sub(_sub(interface, "source"), "address", type="pci", **_pci(item["address"]))
    if item.get("vlan"):
        _sub(_sub(interface, "vlan"), "tag", id=item["vlan"])
    elif "vlan" in item:
        made.absent.add(f"devices/interface[{item['mac']}]/vlan")


def _passthrough(devices: Element, item: Wish, _around: Around, _made: _Made) -> None:
    hostdev = _add_function(devices, item["address"])
    if "rom" in item:
        _sub(hostdev, "rom", enabled=_yes(item["rom"]))


#: Model -> how it is written. To libvirt 'vmdq' is a macvtap: the port makes the difference (guests/stations.py).
_NETWORK = {
    "emulated": _emulated,
    "virtio": _virtio,
    "macvtap": _macvtap,
    "vmdq": _macvtap,
    "sriov": _sriov,
    "passthrough": _passthrough,
}


def _add_function(devices: Element, address: str, managed: str = "yes") -> Element:
    """A whole function, or a VF of which libvirt knows no network."""
    hostdev = _sub(devices, "hostdev", mode="subsystem", type="pci", managed=managed)
    _sub(_sub(hostdev, "source"), "address", **_pci(address))
    return hostdev


def _pci(address: str) -> Mapping[str, str]:
    domain, bus, rest = address.split(":")
    slot, _dot, function = rest.partition(".")
    return {"domain": f"0x{domain}", "bus": f"0x{bus}", "slot": f"0x{slot}", "function": f"0x{function}"}


# --- Display and the rest --------------------------------------------------------------------------------------------


def _add_display(devices: Element, wish: Wish, made: _Made) -> None:
    display = wish.get("display")
    if not display:
        return
    made.whole |= {"devices/graphics", "devices/video"}
    if display["model"] == "emulated":
        _sub(devices, "graphics", type="vnc", port=-1, autoport="yes", listen=display.get("listen", "127.0.0.1"))
        _sub(_sub(devices, "video"), "model", type=display.get("video", "virtio"))
    elif display["model"] == "passthrough":
        _add_function(devices, display["address"])


def _add_shares(devices: Element, wish: Wish) -> None:
    """Mediated devices and vGPUs. A VF with a vGPU stays with the vendor's driver (managed: no), which is what QEMU takes it from."""
    for _key, _index, item in shares_of(wish):
        if not item["device_api"]:
            _add_function(devices, item["device"], managed="no")
            continue
        shown = {key: _yes(item.get(key), "on", "off") for key in ("display", "ramfb")}
        hostdev = _sub(devices, "hostdev", mode="subsystem", type="mdev", model=item["device_api"], **shown)
        _sub(_sub(hostdev, "source"), "address", uuid=item["device"])


def _add_others(devices: Element, wish: Wish, around: Around, made: _Made) -> None:
    balloon = wish.get("balloon", {})
    if "enabled" in balloon or "free_page_reporting" in balloon:
        model = "none" if balloon.get("enabled") is False else "virtio"
        reporting = _yes(balloon.get("free_page_reporting"), "on", "off")
        _sub(devices, "memballoon", model=model, freePageReporting=reporting)
    if wish.get("boot", {}).get("tpm"):
        _sub(_sub(devices, "tpm", model="tpm-crb"), "backend", type="emulator", version="2.0")
    elif "tpm" in wish.get("boot", {}):
        made.absent.add("devices/tpm")
    if around.fresh or "console_log" in wish:
        serial = _sub(devices, "serial", type="pty")
        if "console_log" in wish:
            _sub(serial, "log", file=wish["console_log"], append="off")
        _sub(serial, "target", port=0)
    if around.fresh and wish.get("cpu", {}).get("accel") != "tcg":
        rng = _sub(devices, "rng", model="virtio")
        _sub(rng, "backend", "/dev/urandom", model="random")
