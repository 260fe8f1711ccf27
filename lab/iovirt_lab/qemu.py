# Copyright: the iovirt.host authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which QEMU runs the lab, and the machine that it emulates."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from .common import LabError, find_tool, output_of
from .paths import cache_dir, state_id
from .recipe import QEMU_MINIMUM, qemu_key

SYSTEM = "qemu-system-x86_64"
IMAGE_TOOL = "qemu-img"
NVME_SLOT = 3


@dataclass
class Qemu:
    """How the programs of one QEMU are started."""

    origin: str
    system: list[str]
    image_tool: list[str]
    env: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """The environment of its processes."""
        return {**os.environ, **self.env}


def version_of(text: str) -> tuple[int, int] | None:
    """The version in what `--version` prints."""
    found = re.search(r"version (\d+)\.(\d+)", text)
    return (int(found.group(1)), int(found.group(2))) if found else None


def installed_qemu() -> Qemu | None:
    """The machine's own QEMU, when it is new enough and complete."""
    system, image_tool = find_tool(SYSTEM), find_tool(IMAGE_TOOL)
    if system is None or image_tool is None:
        return None
    version = version_of(output_of([system, "--version"]))
    if version is None or version < QEMU_MINIMUM:
        return None
    return Qemu(f"installed, {version[0]}.{version[1]}", [system], [image_tool])


def tree_path() -> Path:
    """Where the lab's own QEMU lies."""
    return cache_dir() / qemu_key()


def qemu_in(tree: Path) -> Qemu:
    """QEMU from an unpacked tree, started by the tree's own loader: needs no root and no chroot."""
    libraries = tree / "usr" / "lib" / "x86_64-linux-gnu"
    loader = [str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries)]
    share = tree / "usr" / "share"
    system = [*loader, str(tree / "usr" / "bin" / SYSTEM), "-L", str(share / "qemu"), "-L", str(share / "seabios")]
    # QEMU looks for its modules beside its program, and that is the loader here.
    env = {"QEMU_MODULE_DIR": str(libraries / "qemu")}
    return Qemu("the lab's own tree", system, [*loader, str(tree / "usr" / "bin" / IMAGE_TOOL)], env)


def usable_qemu() -> Qemu | None:
    """A QEMU that can run the lab, if there is one now."""
    found = installed_qemu()
    if found is None and tree_path().is_dir():
        found = qemu_in(tree_path())
    return found


def need_qemu() -> Qemu:
    """Like usable_qemu, but it must be there."""
    found = usable_qemu()
    if found is None:
        raise LabError("there is no QEMU 11.1 or newer", "lab/lab build")
    return found


def marker(name: str) -> str:
    """What the command line of each QEMU carries, so that its process is found again and no other is ended."""
    return f"iovirt-lab:{state_id()}:{name}"


def mac(name: str, number: int) -> str:
    """An address that a device keeps when its host is built anew."""
    first, second = hashlib.sha256(name.encode()).digest()[:2]
    return f"52:54:00:{first:02x}:{second:02x}:{number:02x}"


@dataclass
class Firmware:
    """UEFI instead of BIOS: its code, and the variables that each host gets a copy of."""

    code: Path
    variables: Path


#: Kind of IOMMU -> QEMU's devices. Interrupt remapping needs the split irqchip; caching-mode is what vfio in a nested
#: guest needs. AMD-Vi translates DMA only with dma-remap, which came with QEMU 11; its PCI function would take the first
#: free slot, which is the VGA's.
IOMMUS = {
    "vtd": ["intel-iommu,intremap=on,caching-mode=on"],
    "amdvi": ["AMDVI-PCI,id=amdvi,bus=pcie.0,addr=0xa", "amd-iommu,pci-id=amdvi,intremap=on,xtsup=on,dma-remap=on"],
}


@dataclass
class Machine:
    """One lab host as QEMU has to know it; file names are relative to its run folder."""

    name: str
    accel: str
    memory: str = "3G"
    cpus: int = 2
    port: int = 0
    igb_ports: int = 2
    disk: str = "disk.qcow2"
    disk_format: str = "qcow2"
    nvme_disk: str = "nvme.raw"
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    devices: bool = True
    iommu: str = "vtd"
    #: Flavour -> disk with its EFI system partition and its format: one for a host, all for the build.
    esps: dict[str, tuple[str, str]] = field(default_factory=dict)
    #: Path in the host -> content, written at its boot where it is not there.
    files: dict[str, str] = field(default_factory=dict)
    firmware: Firmware | None = None
    cache: str = "unsafe"


def arguments(machine: Machine) -> list[str]:
    """The command line after the program's name."""
    result = base_arguments(machine)
    if machine.kernel is not None:
        result += ["-kernel", str(machine.kernel), "-initrd", str(machine.initrd), "-append", machine.append]
    if machine.disk:
        # With UEFI the second in order: the firmware connects what it may boot from, and GRUB finds no other disk.
        boot = "" if machine.kernel else f",bootindex={int(machine.firmware is not None)}"
        result += [
            "-drive", f"if=none,id=root,file={machine.disk},format={machine.disk_format},cache={machine.cache},discard=unmap",
            "-device", f"virtio-blk-pci,bus=pcie.0,drive=root,serial=labroot,addr=0x2{boot}",
        ]  # fmt: skip
    for number, (boot, (path, kind)) in enumerate(machine.esps.items()):
        order = ",bootindex=0" if machine.firmware else ""
        result += [
            "-drive", f"if=none,id=esp{number},file={path},format={kind},cache={machine.cache},discard=unmap",
            "-device", f"virtio-blk-pci,bus=pcie.0,drive=esp{number},serial=esp-{boot},addr={5 + number:#x}{order}",
        ]  # fmt: skip
    if machine.firmware:
        result += [
            "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={machine.firmware.code}",
            "-drive", "if=pflash,unit=1,format=raw,file=efivars.fd",
        ]  # fmt: skip
    if machine.port:
        result += [
            "-netdev", f"user,id=mgmt,hostfwd=tcp:127.0.0.1:{machine.port}-:22",
            "-device", f"virtio-net-pci,bus=pcie.0,netdev=mgmt,mac={mac(machine.name, 1)},romfile=,addr=0x3",
        ]  # fmt: skip
    if machine.devices:
        result += sriov_devices(machine)
    return result


def base_arguments(machine: Machine) -> list[str]:
    """The machine without its disks and networks."""
    host_id = uuid.uuid5(uuid.NAMESPACE_OID, marker(machine.name))
    return [
        "-name", f"guest={marker(machine.name)}",
        "-nodefaults", "-no-user-config", "-display", "none",
        "-machine", "q35,kernel-irqchip=split", "-accel", machine.accel,
        # Walking five levels of page tables costs a sixth of the boot in emulation, and nothing here is that large.
        "-cpu", "max,la57=off",
        # Slots as the root ports number them; by ACPI they would be named 0, 0-2, 16 and so on.
        "-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off",
        "-smp", str(machine.cpus), "-m", f"{memory_mib(machine.memory)}M", "-uuid", str(host_id),
        "-smbios", f"type=1,manufacturer=iovirt,product=lab,serial={machine.name},uuid={host_id}",
        "-smbios", "type=11," + ",".join(f"value={value}" for value in credentials(machine)),
        *(word for device in IOMMUS[machine.iommu] for word in ("-device", device)),
        "-device", "VGA,bus=pcie.0,addr=0x1",
        "-device", "virtio-rng-pci,bus=pcie.0,addr=0x4",
        "-chardev", "socket,id=console,path=console.sock,server=on,wait=off,logfile=console.log,logappend=on",
        "-serial", "chardev:console",
        "-qmp", "unix:qmp.sock,server=on,wait=off",
        "-pidfile", "qemu.pid",
    ]  # fmt: skip


def credentials(machine: Machine) -> list[str]:
    """What systemd in the host reads: its name, for the first boot and, as /etc/hostname, for the later ones."""
    files = {"/etc/hostname": f"{machine.name}\n", **machine.files}
    lines = [f"f {path} 0644 root root - {text}".replace("\n", "\\n") for path, text in files.items()]
    tmpfiles = base64.b64encode(("\n".join(lines) + "\n").encode()).decode()
    return [
        f"io.systemd.credential:system.hostname={machine.name}",
        f"io.systemd.credential.binary:tmpfiles.extra={tmpfiles}",
    ]


def root_port(slot: int, bus: str) -> list[str]:
    """A port of its own for a device: on the bus itself its VFs would share one IOMMU group."""
    return ["-device", f"pcie-root-port,id=port{slot},slot={slot},chassis={slot},bus={bus}"]


def numa_nodes(machine: Machine) -> list[str]:
    """Two nodes with half of the memory each, and on each a PCI bus: only so does a device have a numa_node."""
    half = memory_mib(machine.memory) // 2
    result: list[str] = []
    for node, bus in ((0, 0x20), (1, 0x40)):
        cpus = [f",cpus={cpu}" for cpu in range(machine.cpus) if cpu % 2 == node]
        result += [
            "-object", f"memory-backend-ram,id=memory{node},size={half}M",
            "-numa", f"node,nodeid={node},memdev=memory{node}{''.join(cpus)}",
            "-device", f"pxb-pcie,id=node{node},bus=pcie.0,bus_nr={bus},numa_node={node},addr={0x10 + node:#x}",
        ]  # fmt: skip
    return result


def memory_mib(text: str) -> int:
    """The size in MiB of what the user wrote, such as 3G or 2048M."""
    found = re.fullmatch(r"(\d+)([MG])", text)
    size = int(found.group(1)) * {"M": 1, "G": 1024}[found.group(2)] if found else 0
    if size < 1024 or size % 2:
        raise LabError(f"'{text}' is no memory size for a host", "write for example 3G or 2048M; 1G is the least")
    return size


def nvme_serial(machine: Machine) -> str:
    """NVMe has 20 characters for it."""
    return f"LAB{machine.name}"[:20]


def sriov_devices(machine: Machine) -> list[str]:
    """Two igb ports on one hub on node 0, on node 1 an NVMe controller with VFs, and the edu device. More ports than two
    are on node 0 too, in the slots after the controller's."""
    result = numa_nodes(machine)
    for number in range(1, machine.igb_ports + 1):
        slot = number if number < NVME_SLOT else number + 1
        result += root_port(slot, "node0")
        result += [
            "-netdev", f"hubport,id=hub{number},hubid=1",
            "-device", f"igb,bus=port{slot},netdev=hub{number},mac={mac(machine.name, 0x10 * number)},romfile=",
        ]  # fmt: skip
    result += root_port(NVME_SLOT, "node1")
    result += [
        "-device", "nvme-subsys,id=subsys0",
        # Flexible queues and interrupts are what `nvme virt-mgmt` hands to a VF before it can be set online.
        "-device", f"nvme,id=nvme0,bus=port{NVME_SLOT},serial={nvme_serial(machine)},subsys=subsys0,sriov_max_vfs=4,"
        "sriov_vq_flexible=8,sriov_vi_flexible=4,max_ioqpairs=10,msix_qsize=9",
        "-drive", f"if=none,id=nvmedisk,file={machine.nvme_disk},format=raw,cache=unsafe,discard=unmap",
        "-device", "nvme-ns,drive=nvmedisk,bus=nvme0,nsid=1",
        "-device", "edu,bus=pcie.0,addr=0x9",
        # The first one is the host's; this one can be a guest's.
        "-device", "secondary-vga,bus=pcie.0,addr=0xb",
    ]  # fmt: skip
    return result
