# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Debian tree with the real kernel-install, ukify and grub-mkconfig, for the engine to work on; nothing is booted.

    python boot_tree.py ROOT '{"present": ["intel_iommu=on"]}' [N]
        one run of kernel_cmdline on a tree, to be killed in the middle; with N by itself, before its Nth call that changes
        the file system
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from ansible_collections.iovirt.host.plugins.module_utils._engine import engine
from ansible_collections.iovirt.host.plugins.module_utils._engine.host import FileSystem, Host
from ansible_collections.iovirt.host.plugins.module_utils._engine.loaders import grub, pe
from ansible_collections.iovirt.host.plugins.module_utils._engine.resources.kernel_cmdline import Wish

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "lab"))

from iovirt_lab import image, recipe  # noqa: E402
from iovirt_lab.paths import cache_dir  # noqa: E402

PACKAGES = ["grub-common", "grub2-common", "systemd", "systemd-boot-efi", "systemd-boot-tools", "systemd-ukify"]
MACHINE = "0123456789abcdef0123456789abcdef"
VERSION = "6.12.0-tree"
LINE = "root=LABEL=labroot ro console=ttyS0 intel_iommu=off"
KINDS = ("grub", "systemd-boot", "uki", "addon")
#: What the boot loaders and their tools read and write.
WATCHED = ("boot", "etc/kernel", "etc/default", "etc/iovirt", "var/lib/iovirt")


def built() -> Path:
    """The tree that all others are copied from; made from packages once."""
    path = cache_dir() / ("tools-" + recipe.digest([recipe.SUITE, *PACKAGES], []))
    if not path.is_dir():
        with image.new_folder(path) as work:
            words = ["--variant=apt", "--include=" + ",".join(PACKAGES), *recipe.NO_MANUALS, recipe.SUITE]
            image.mmdebstrap(work, "a tree with boot loader tools", [*words, str(work / "root")], image.new_log("tools"))
    return path / "root"


def run_in(root: Path, argv: list[str]) -> tuple[int, str, str]:
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
    done = subprocess.run(
        ["chroot", str(root), *argv], capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL, check=False
    )
    return done.returncode, done.stdout, done.stderr


def host(root: Path) -> Host:
    return Host(files=FileSystem(str(root)), run=lambda argv: run_in(root, argv))


def call(root: Path, check: bool = False, **wish: Any) -> dict[str, Any]:
    return engine.host_cmdline(host(root), Wish(**wish), engine.Call(check=check, who="test"))


def make(root: Path, kind: str) -> None:
    """A host of that kind; proc, sys and the EFI system partition are ordinary folders."""
    # Hard links: only what is written anew takes room, and every tool and the engine write anew.
    subprocess.run(["cp", "-al", f"{built()}/.", str(root)], check=True)
    for name in WATCHED:
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir(parents=True)

    def put(path: str, text: str) -> None:
        _put(root / path, text)

    put("etc/machine-id", MACHINE + "\n")
    put("proc/cmdline", LINE + "\n")
    put("proc/self/mountinfo", "29 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n"
        "40 29 254:17 / /boot/efi rw,relatime shared:2 - vfat /dev/vdb1 rw\n")  # fmt: skip
    shutil.copy(image.image_path() / "vmlinuz", root / f"boot/vmlinuz-{VERSION}")
    shutil.copy(image.image_path() / "initrd", root / f"boot/initrd.img-{VERSION}")
    if kind == "grub":
        # grub-probe finds no disk below the root of a tree; all the rest of GRUB is the real one.
        probe = root / "usr/sbin/grub-probe"
        probe.unlink()
        shutil.copy(ROOT / "molecule" / "container" / "grub-probe", probe)
        put("etc/default/grub", 'GRUB_CMDLINE_LINUX_DEFAULT="quiet"\nGRUB_CMDLINE_LINUX="console=ttyS0 intel_iommu=off"\n')
        (root / "boot/grub").mkdir()
        _must(root, ["grub-mkconfig", "-o", "/boot/grub/grub.cfg"])
        return
    put("sys/firmware/efi/fw_platform_size", "64\n")
    _put(root / "sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f",
         "\x06\0\0\0" + "systemd-boot 257".encode("utf-16-le").decode())  # fmt: skip
    put("boot/efi/EFI/systemd/systemd-bootx64.efi", "")
    put("boot/efi/loader/entries.srel", "type1\n")
    put("etc/kernel/cmdline", LINE + "\n")
    if kind != "systemd-boot":
        put("etc/kernel/install.conf", "layout=uki\nuki_generator=ukify\n")
    install(root, VERSION)
    if kind == "addon":
        (root / "etc/kernel/install.conf").unlink()


def install(root: Path, version: str) -> None:
    """What a kernel's package does for systemd-boot."""
    for name in ("vmlinuz", "initrd.img"):
        if not (root / f"boot/{name}-{version}").exists():
            shutil.copy(root / f"boot/{name}-{VERSION}", root / f"boot/{name}-{version}")
    # BOOT_MNT: here the partition is a folder, and 90-loaderentry would look for its mount point.
    words = ["env", "BOOT_ROOT=/boot/efi", "BOOT_MNT=/boot/efi", "kernel-install", "add", version, f"/boot/vmlinuz-{version}"]
    _must(root, words)


def _must(root: Path, argv: list[str]) -> None:
    code, out, err = run_in(root, argv)
    assert code == 0, out + err


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text)


def files(root: Path) -> dict[str, str]:
    """Every file that counts, by its checksum."""
    found = {}
    for name in WATCHED:
        for path in sorted((root / name).rglob("*")):
            if path.is_file() and not path.is_symlink():
                found[str(path.relative_to(root))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def boots(root: Path) -> list[list[str]]:
    """The command lines of all entries that can be booted as the files are now, whole kernels only."""
    found = []
    config = root / "boot/grub/grub.cfg"
    if config.exists():
        entries = grub.parse(config.read_text())
        return [list(e.words) for e in entries if (root / e.kernel.lstrip("/")).exists() and not e.rescue]
    for path in (root / "boot/efi/loader/entries").glob("*.conf"):
        text = path.read_text()
        kernel = re.search(r"^linux\s+(\S+)$", text, re.MULTILINE)
        options = re.search(r"^options\s+(.*)$", text, re.MULTILINE)
        if kernel and options and text.endswith("\n") and (root / "boot/efi" / kernel.group(1).lstrip("/")).exists():
            found.append(options.group(1).split())
    kernel_size = sum((root / f"boot/{name}-{VERSION}").stat().st_size for name in ("vmlinuz", "initrd.img"))
    for path in (root / "boot/efi/EFI/Linux").glob("*.efi"):
        sections = pe.sections(FileSystem(str(root)), f"/{path.relative_to(root)}")
        if sections and path.stat().st_size > kernel_size:
            found.append(sections.get(".cmdline", "").split())
    return found


def die_before(number: int) -> None:
    """Let this process be gone, without a word, before one of its calls that changes the file system."""
    left = [number]

    def deadly(real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    for name in ("rename", "unlink", "rmdir", "fsync", "makedirs"):
        setattr(os, name, deadly(getattr(os, name)))


if __name__ == "__main__":
    if len(sys.argv) > 3:
        die_before(int(sys.argv[3]))
    answer = call(Path(sys.argv[1]), **json.loads(sys.argv[2]))
    sys.exit(1 if answer["failures"] else 0)
