# Copyright: the iovirt.host authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Flavours: the same host with another boot loader, made from the built image and kept as a layer over it.

None of this is part of the image's recipe (recipe.py), so that a new flavour never makes the image be built anew.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

from . import accel, image, process, ssh
from .common import LabError, lock, run, stage, tool, wait_for
from .paths import LAB_SOURCE, build_lock, cache_dir
from .qemu import Firmware, Machine, Qemu
from .recipe import NO_MANUALS, SUITE, digest, image_key

SCRIPTS = LAB_SOURCE / "flavours"
DEFAULT = "grub-bios"
EFI = ("grub-uefi", "systemd-boot", "uki")
BOOTS = (DEFAULT, *EFI)

FIRMWARE_PACKAGES = ["ovmf"]
CODE, VARIABLES = "OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"
ESP_MIB = 256
BOOT_LIMIT = 900.0
SCRIPT_LIMIT = 1500.0


def firmware_key() -> str:
    """Name of the tree that holds the UEFI firmware."""
    return "ovmf-" + digest([SUITE, *FIRMWARE_PACKAGES], [])


def layer_key() -> str:
    """Name of the layer with all loaders for UEFI: by the image below it and by its own script."""
    return "efi-" + digest([image_key(), str(ESP_MIB), *EFI], [SCRIPTS / "efi.sh"])


def key_of(boot: str) -> str:
    """Name of the folder that a flavour's disks come from."""
    return image_key() if boot == DEFAULT else layer_key()


def extra_files(boot: str) -> dict[str, str]:
    """What a flavour has on its root file system that the others have not."""
    return {"/etc/kernel/install.conf": "layout=uki\nuki_generator=ukify\n"} if boot == "uki" else {}


def firmware_of(boot: str) -> Firmware | None:
    """The firmware that a flavour is started by; None for the BIOS that QEMU brings along."""
    if boot == DEFAULT:
        return None
    folder = cache_dir() / firmware_key() / "usr" / "share" / "OVMF"
    return Firmware(folder / CODE, folder / VARIABLES)


def ensure(boot: str) -> Qemu:
    """Build what is missing for a flavour. Returns the QEMU to use."""
    qemu = image.ensure()
    if boot == DEFAULT or (cache_dir() / key_of(boot)).is_dir():
        return qemu
    with lock(build_lock(), "building", image.LOCK_LIMIT):
        if not (cache_dir() / firmware_key()).is_dir():
            build_firmware()
        if not (cache_dir() / key_of(boot)).is_dir():
            with stage("boot loaders for UEFI"), image.new_folder(cache_dir() / key_of(boot)) as work:
                build(work, qemu)
    return qemu


def build_firmware() -> None:
    """The UEFI firmware, unpacked from its package; nothing of it is installed here."""
    with stage("UEFI firmware"), image.new_folder(cache_dir() / firmware_key()) as work:
        log = image.new_log("firmware")
        words = ["--variant=extract", "--include=" + ",".join(FIRMWARE_PACKAGES), *NO_MANUALS]
        image.mmdebstrap(work, "unpacking the firmware", [*words, SUITE, str(work / "tree.tar")], log)
        unpack = ["tar", "-x", "--no-same-owner", "-C", str(work), "-f", str(work / "tree.tar"), "./usr/share/OVMF"]
        run(unpack, what="unpacking the firmware", log=log, limit=60)
        (work / "tree.tar").unlink()


def build(work: Path, qemu: Qemu) -> None:
    """Start the image once with empty EFI system partitions beside it, and let the script fill them."""
    base = image.image_path()
    for name in ("id_ed25519", "id_ed25519.pub", "host_key.pub", "vmlinuz", "initrd"):
        shutil.copy2(base / name, work / name)
    log = image.new_log("efi")
    # A relative name, right before and after the folder gets its own name: it stays where it is.
    words = ["create", "-q", "-f", "qcow2", "-b", f"../{base.name}/disk.raw", "-F", "raw", str(work / "disk.qcow2")]
    run([*qemu.image_tool, *words], what="making the disk", log=log, limit=30, env=qemu.environment())
    for boot in EFI:
        make_esp(work, boot, log)
    port = ssh.free_port()
    ssh.write_known_hosts(work / "known_hosts", port, work / "host_key.pub")
    machine = Machine(name="build", accel=accel.choose(qemu, work / "vmlinuz", work / "initrd"), memory="2G", port=port)
    machine.devices = False
    machine.esps = {boot: (f"esp-{boot}.raw", "raw") for boot in EFI}
    child = process.start(qemu, machine, work)
    try:
        settle(work, port, child, log)
    finally:
        child.kill()
        child.wait()
        for name in ("console.log", "qemu.log"):
            with contextlib.suppress(OSError):
                shutil.move(str(work / name), str(log.parent / f"efi-{name}"))
        for name in ("console.sock", "qmp.sock", "qemu.pid", "known_hosts"):
            (work / name).unlink(missing_ok=True)
    for path in (work / "disk.qcow2", *work.glob("esp-*.raw")):
        path.chmod(0o444)


def make_esp(work: Path, boot: str, log: Path) -> None:
    """A disk with one empty EFI system partition."""
    path = work / f"esp-{boot}.raw"
    with path.open("wb") as handle:
        handle.truncate((ESP_MIB + 2) * 1024 * 1024)
    (work / "table").write_text(f"label: gpt\nstart=2048, size={ESP_MIB * 2048}, type=uefi\n", encoding="ascii")
    run([tool("sfdisk"), "-q", str(path)], what="partitioning", log=log, limit=60, stdin=work / "table")
    (work / "table").unlink()


def settle(work: Path, port: int, child: subprocess.Popen[bytes], log: Path) -> None:
    """Run the script over ssh, then power the host off."""
    if not wait_for(lambda: child.poll() is not None or ssh.greets(port), BOOT_LIMIT):
        raise LabError(f"the host did not answer within {BOOT_LIMIT:.0f} s", log=work / "console.log")
    if child.poll() is not None:
        raise LabError(f"QEMU ended with status {child.returncode}", log=work / "qemu.log")
    key, known = work / "id_ed25519", work / "known_hosts"
    words = ssh.argv(port, key, known, ["sh", "-s"])
    ssh.check_reply(ssh.call(words, SCRIPT_LIMIT, SCRIPTS / "efi.sh", log), "installing the boot loaders", log)
    # It takes the connection down with it, so its exit status says nothing.
    ssh.call(ssh.argv(port, key, known, ["systemctl", "poweroff"]), 30, log=log)
    if not wait_for(lambda: child.poll() is not None, 300):
        raise LabError("the host does not power off", log=work / "console.log")


def make_disks(qemu: Qemu, built: Path, boot: str, folder: Path) -> None:
    """The disks of a host: layers over those of its image, by relative names, as the whole folder may be moved."""
    disk = next(path for path in (built / "disk.qcow2", built / "disk.raw") if path.exists())
    bases = {"disk": disk} if boot == DEFAULT else {"disk": disk, "esp": built / f"esp-{boot}.raw"}
    for name, base in bases.items():
        words = ["create", "-q", "-f", "qcow2", "-b", os.path.relpath(base, folder), "-F", base.suffix[1:]]
        argv = [*qemu.image_tool, *words, str(folder / f"{name}.qcow2")]
        run(argv, what="making the disk", log=folder / "qemu-img.log", limit=30, env=qemu.environment())
