# Copyright: the iovirt.host authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the lab is made of: suites, packages, sizes, and the names of what is built from them."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterable
from pathlib import Path

from .paths import GUEST_FILES, VMDQSIM

SUITE = "trixie"
BACKPORTS = "trixie-backports"

# Older ones break the mailbox between a VF of igb and its PF: no MAC, no link, no traffic.
QEMU_MINIMUM: tuple[int, int] = (11, 1)
QEMU_PACKAGES = ["qemu-system-x86", "qemu-utils", "seabios"]

HOST_PACKAGES = [
    "busybox-static",
    "cloud-init",
    "dbus",
    "dnsmasq-base",
    "driverctl",
    "e2fsprogs",
    "ethtool",
    "grub-pc-bin",
    "grub2-common",
    "initramfs-tools",
    "iproute2",
    "iputils-ping",
    "kmod",
    "libvirt-clients",
    "libvirt-daemon-system",
    "linux-image-amd64",
    "mdevctl",
    "mstflint",
    "network-manager",
    "nvme-cli",
    "openssh-server",
    "openvswitch-switch",
    "pciutils",
    "procps",
    "python3",
    "python3-libvirt",
    "qemu-system-x86",
    "qemu-utils",
    "systemd-sysv",
    "udev",
    "zstd",
]

MODULE_PACKAGES = ["gcc", "linux-headers-amd64", "linux-source", "make", "xz-utils"]

# Room for libvirt, QEMU and a few guests inside the host; the file is sparse.
DISK_MIB = 10 * 1024
BIOS_BOOT_SECTORS = (2048, 2048)
BIOS_BOOT_TYPE = "21686148-6449-6E6F-744E-656564454649"
ROOT_START_SECTOR = 4096
ROOT_MIB = DISK_MIB - 4
ROOT_LABEL = "labroot"
FIRST_BOOT_ARGUMENTS = f"root=LABEL={ROOT_LABEL} ro console=ttyS0,115200 no_timer_check intel_iommu=off"

# Nothing here has to survive a power cut: a build that was cut off is thrown away.
QUICK_DPKG = ["--dpkgopt=force-unsafe-io"]
NO_MANUALS = [
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
]

# The programs that this machine needs, by Debian package; a program that is there is enough, whoever installed it.
MACHINE_PROGRAMS = [
    ("mmdebstrap", "mmdebstrap"),
    ("e2fsprogs", "mke2fs"),
    ("fdisk", "sfdisk"),
    ("openssh-client", "ssh"),
    ("tar", "tar"),
    ("util-linux", "unshare"),
]
USER_PROGRAMS = [("uidmap", "newuidmap")]
KEYRING = ("debian-archive-keyring", Path("/usr/share/keyrings/debian-archive-keyring.gpg"))


def digest(words: Iterable[str], files: Iterable[Path]) -> str:
    """Short name of a recipe: another recipe never finds what this one built."""
    total = hashlib.sha256()
    for word in words:
        total.update(word.encode() + b"\0")
    for path in sorted(files):
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:12]


def qemu_key() -> str:
    """Name of the QEMU tree."""
    return "qemu-" + digest([SUITE, BACKPORTS, str(QEMU_MINIMUM), *QEMU_PACKAGES], [])


def image_key() -> str:
    """Name of the built disk image: everything that shapes it is in this file or in the guest's files."""
    return "image-" + digest([], [*GUEST_FILES.iterdir(), Path(__file__)])


def qemu_words() -> list[str]:
    """Arguments of mmdebstrap for the QEMU tree."""
    # The sources of the tree get a second line for the backports, made from the first one.
    sources = f'sed -n "s/ {SUITE} main/ {BACKPORTS} main/p" "$1/etc/apt/sources.list" >"$1/etc/apt/backports"'
    sources += ' && cat "$1/etc/apt/backports" >>"$1/etc/apt/sources.list" && rm "$1/etc/apt/backports"'
    # By the code name: the suite of the backports is called stable-backports, and a=trixie-backports matches nothing.
    pin = f'printf "Package: *\\nPin: release n={BACKPORTS}\\nPin-Priority: 600\\n" >"$1/etc/apt/preferences.d/lab"'
    words = ["--variant=extract", "--include=" + ",".join(QEMU_PACKAGES), *NO_MANUALS]
    return [*words, f"--setup-hook={sources}", f"--setup-hook={pin}"]


def tree_words() -> list[str]:
    """Arguments of mmdebstrap for the root tree of a host."""
    words = ["--variant=apt", "--include=" + ",".join(HOST_PACKAGES), *NO_MANUALS]
    # Before initramfs-tools is installed, so that the initramfs is made once and the right way. A list instead of
    # most modules: making it anew inside an emulated host takes 17 s instead of 78 s, and GRUB loads it faster.
    hook = shlex.quote(str(GUEST_FILES / "initramfs-hook"))
    settings = "MODULES=list\\nCOMPRESS=zstd\\nCOMPRESSLEVEL=1\\n"
    words += [
        '--essential-hook=mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/etc/initramfs-tools/hooks"',
        f"--essential-hook=copy-in {hook} /etc/initramfs-tools/hooks",
        f'--essential-hook=printf "{settings}" >"$1/etc/initramfs-tools/conf.d/lab"',
    ]
    return [*words, *script_hooks("customize.sh")]


def module_words(out: Path) -> list[str]:
    """Arguments of mmdebstrap for a tree that builds the modules, hands them out and is gone."""
    words = ["--variant=apt", "--include=" + ",".join(MODULE_PACKAGES), *NO_MANUALS, "--format=null"]
    words += [f"--customize-hook=copy-in {shlex.quote(str(VMDQSIM))} /tmp"]
    return [*words, *script_hooks("build-modules.sh"), f"--customize-hook=sync-out /out {shlex.quote(str(out))}"]


def script_hooks(name: str) -> list[str]:
    """Hooks that run one of our scripts inside the tree."""
    # copy-in goes through mmdebstrap's own process: the mapped root of a user's build cannot read the user's files.
    return [
        f"--customize-hook=copy-in {shlex.quote(str(GUEST_FILES / name))} /tmp",
        f'--customize-hook=chroot "$1" sh /tmp/{name}',
        f'--customize-hook=rm "$1/tmp/{name}"',
    ]


def partition_table() -> str:
    """Input of sfdisk: room for GRUB, and the root file system."""
    start, size = BIOS_BOOT_SECTORS
    table = f"label: gpt\nstart={start}, size={size}, type={BIOS_BOOT_TYPE}\n"
    return table + f"start={ROOT_START_SECTOR}, size={ROOT_MIB * 2048}, type=linux\n"
