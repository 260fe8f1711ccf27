# Copyright: the iovirt.host authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the lab is made of: suites, packages, sizes, and the names of what is built from them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from .paths import GUEST_FILES

SUITE = "trixie"
BACKPORTS = "trixie-backports"

# Older ones break the mailbox between a VF of igb and its PF: no MAC, no link, no traffic.
QEMU_MINIMUM: tuple[int, int] = (11, 1)
QEMU_PACKAGES = ["qemu-system-x86", "qemu-utils", "seabios"]

HOST_PACKAGES = [
    "dbus",
    "e2fsprogs",
    "ethtool",
    "grub-pc-bin",
    "grub2-common",
    "initramfs-tools",
    "iproute2",
    "iputils-ping",
    "kmod",
    "linux-image-amd64",
    "mdevctl",
    "nvme-cli",
    "openssh-server",
    "pciutils",
    "procps",
    "python3",
    "systemd-sysv",
    "udev",
    "zstd",
]

MODULE_PACKAGES = ["gcc", "linux-headers-amd64", "linux-source", "make", "xz-utils"]

# Room for libvirt, QEMU and a few guests inside the host; the file is sparse.
DISK_MIB = 10 * 1024
BIOS_BOOT_SECTORS = (2048, 2048)
ROOT_START_SECTOR = 4096
ROOT_LABEL = "labroot"

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
    """Name of the built disk image."""
    here = Path(__file__).resolve().parent
    words: list[str] = [SUITE, str(DISK_MIB), ROOT_LABEL, *HOST_PACKAGES, "+", *MODULE_PACKAGES]
    return "image-" + digest(words, [*GUEST_FILES.iterdir(), here / "image.py"])
