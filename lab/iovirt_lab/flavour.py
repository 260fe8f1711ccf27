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

from . import accel, image, process, ssh, suites
from .common import LabError, lock, run, stage, tool, wait_for
from .paths import LAB_SOURCE, build_lock, cache_dir
from .qemu import Firmware, Machine, Qemu
from .recipe import NO_MANUALS, ROOT_LABEL, SUITE, digest, image_key
from .suites import OLD_LISTS

SCRIPTS = LAB_SOURCE / "flavours"
DEFAULT = "grub-bios"
EFI = ("grub-uefi", "systemd-boot", "uki")
BLS = "bls"
BOOTS = (DEFAULT, *EFI, BLS)

FIRMWARE_PACKAGES = ["ovmf"]
CODE, VARIABLES = "OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"
ESP_MIB = 256
BOOT_LIMIT = 900.0
SCRIPT_LIMIT = 1500.0


#: GRUB with the command blscfg is newer than the suite; its programs run with their own loader and libraries.
GRUB_SUITE = "sid"
GRUB_PACKAGES = ["grub-common", "grub-efi-amd64-bin", "dosfstools", "mtools"]
GRUB_MODULES = [
    "part_gpt", "ext2", "fat", "normal", "configfile", "search", "search_label", "search_fs_uuid", "linux", "blsuki",
    "loadenv", "serial", "terminal", "echo", "test", "gzio", "boot", "chain",
]  # fmt: skip
#: What GRUB does first: it finds the root file system by its label and goes on there.
GRUB_START = f"search --label --set=root {ROOT_LABEL}\nset prefix=($root)/boot/grub2\nconfigfile /boot/grub2/grub.cfg\n"


def firmware_key() -> str:
    """Name of the tree that holds the UEFI firmware."""
    return "ovmf-" + digest([SUITE, *FIRMWARE_PACKAGES], [])


def layer_key() -> str:
    """Name of the layer with all loaders for UEFI: by the image below it and by its own script."""
    return "efi-" + digest([image_key(), str(ESP_MIB), *EFI], [SCRIPTS / "efi.sh"])


def grub_key() -> str:
    """Name of the tree that holds the newer GRUB."""
    return "grub-" + digest([GRUB_SUITE, *GRUB_PACKAGES], [])


def bls_key() -> str:
    """Name of the layer with Boot Loader Specification entries under GRUB."""
    return "bls-" + digest([image_key(), grub_key(), str(ESP_MIB), *GRUB_MODULES, GRUB_START], [SCRIPTS / "bls.sh", grubby()])


def grubby() -> Path:
    """The script grubby of Fedora and RHEL. It is in no package of Debian's and not ours to ship."""
    named = os.environ.get("IOVIRT_LAB_GRUBBY", "")
    if not named or not Path(named).is_file():
        raise LabError(
            "--boot bls needs the script grubby, which Debian has not",
            "IOVIRT_LAB_GRUBBY=FILE: /usr/sbin/grubby of a Fedora or RHEL, or grubby-bls of their package's source",
        )
    return Path(named)


def key_of(boot: str, suite: str = SUITE) -> str:
    """Name of the folder that a flavour's disks come from."""
    return suites.image_key(suite) if boot == DEFAULT else bls_key() if boot == BLS else layer_key()


def extra_files(boot: str) -> dict[str, str]:
    """What a flavour has on its root file system that the others have not."""
    return {"/etc/kernel/install.conf": "layout=uki\nuki_generator=ukify\n"} if boot == "uki" else {}


def firmware_of(boot: str) -> Firmware | None:
    """The firmware that a flavour is started by; None for the BIOS that QEMU brings along."""
    if boot == DEFAULT:
        return None
    folder = cache_dir() / firmware_key() / "usr" / "share" / "OVMF"
    return Firmware(folder / CODE, folder / VARIABLES)


def ensure(boot: str, suite: str = SUITE) -> Qemu:
    """Build what is missing for a flavour. Returns the QEMU to use."""
    if suite != SUITE and boot != DEFAULT:
        raise LabError(f"--boot {boot} is made for Debian {SUITE} only", f"--suite {suite} goes with --boot {DEFAULT}")
    qemu = image.ensure(suite)
    if boot == DEFAULT or (cache_dir() / key_of(boot)).is_dir():
        return qemu
    with lock(build_lock(), "building", image.LOCK_LIMIT):
        if not (cache_dir() / firmware_key()).is_dir():
            build_firmware()
        if not (cache_dir() / key_of(boot)).is_dir():
            if boot == BLS and not (cache_dir() / grub_key()).is_dir():
                build_grub()
            name = "Boot Loader Specification entries" if boot == BLS else "boot loaders for UEFI"
            with stage(name), image.new_folder(cache_dir() / key_of(boot)) as work:
                build(work, qemu, (BLS,) if boot == BLS else EFI, SCRIPTS / ("bls.sh" if boot == BLS else "efi.sh"))
    return qemu


def build_grub() -> None:
    """The newer GRUB and what makes its partition, unpacked from packages; nothing of it is installed here."""
    with stage(f"GRUB of {GRUB_SUITE}"), image.new_folder(cache_dir() / grub_key()) as work:
        log = image.new_log("grub")
        words = ["--variant=extract", "--include=" + ",".join(GRUB_PACKAGES), OLD_LISTS, *NO_MANUALS]
        image.mmdebstrap(work, "unpacking GRUB", [*words, GRUB_SUITE, str(work / "tree.tar")], log)
        unpack = ["tar", "-x", "--no-same-owner", "--exclude=./dev", "-C", str(work), "-f", str(work / "tree.tar")]
        run(unpack, what="unpacking GRUB", log=log, limit=60)
        (work / "tree.tar").unlink()


def in_grub_tree(program: str, *words: str) -> list[str]:
    """A program of the newer GRUB's tree, started by the tree's own loader."""
    tree = cache_dir() / grub_key()
    libraries = tree / "usr" / "lib" / "x86_64-linux-gnu"
    found = next(path for path in (tree / "usr/bin" / program, tree / "usr/sbin" / program) if path.exists())
    return [str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries), str(found), *words]


def fill_bls_esp(work: Path, log: Path) -> None:
    """GRUB as the program that UEFI starts, in the EFI system partition of the flavour; nothing else is in there."""
    start, program, esp = work / "start.cfg", work / "BOOTX64.EFI", f"{work / 'esp-bls.raw'}"
    start.write_text(GRUB_START, encoding="ascii")
    modules = cache_dir() / grub_key() / "usr/lib/grub/x86_64-efi"
    words = ["-d", str(modules), "-O", "x86_64-efi", "-o", str(program), "-c", str(start), "-p", "/boot/grub2", *GRUB_MODULES]
    env = {**os.environ, "MTOOLS_SKIP_CHECK": "1"}
    at = f"{esp}@@{2048 * 512}"
    for argv in (
        in_grub_tree("grub-mkimage", *words),
        in_grub_tree("mkfs.vfat", "-F", "32", "-s", "2", "-n", "LABESP", "--offset=2048", esp, str(ESP_MIB * 1024)),
        in_grub_tree("mmd", "-i", at, "::EFI", "::EFI/BOOT"),
        in_grub_tree("mcopy", "-i", at, str(program), "::EFI/BOOT/BOOTX64.EFI"),
    ):
        run(argv, what="filling the EFI system partition", log=log, limit=60, env=env)
    start.unlink()
    program.unlink()


def build_firmware() -> None:
    """The UEFI firmware, unpacked from its package; nothing of it is installed here."""
    with stage("UEFI firmware"), image.new_folder(cache_dir() / firmware_key()) as work:
        log = image.new_log("firmware")
        words = ["--variant=extract", "--include=" + ",".join(FIRMWARE_PACKAGES), *NO_MANUALS]
        image.mmdebstrap(work, "unpacking the firmware", [*words, SUITE, str(work / "tree.tar")], log)
        unpack = ["tar", "-x", "--no-same-owner", "-C", str(work), "-f", str(work / "tree.tar"), "./usr/share/OVMF"]
        run(unpack, what="unpacking the firmware", log=log, limit=60)
        (work / "tree.tar").unlink()


def build(work: Path, qemu: Qemu, boots: tuple[str, ...], script: Path) -> None:
    """Start the image once with the flavours' EFI system partitions beside it, and let a script do the rest."""
    base = image.image_path()
    for name in ("id_ed25519", "id_ed25519.pub", "host_key.pub", "vmlinuz", "initrd"):
        shutil.copy2(base / name, work / name)
    log = image.new_log(script.stem)
    # A relative name, right before and after the folder gets its own name: it stays where it is.
    words = ["create", "-q", "-f", "qcow2", "-b", f"../{base.name}/disk.raw", "-F", "raw", str(work / "disk.qcow2")]
    run([*qemu.image_tool, *words], what="making the disk", log=log, limit=30, env=qemu.environment())
    for boot in boots:
        make_esp(work, boot, log)
    if BLS in boots:
        fill_bls_esp(work, log)
    port = ssh.free_port()
    ssh.write_known_hosts(work / "known_hosts", port, work / "host_key.pub")
    machine = Machine(name="build", accel=accel.choose(qemu, work / "vmlinuz", work / "initrd"), memory="2G", port=port)
    machine.devices = False
    machine.esps = {boot: (f"esp-{boot}.raw", "raw") for boot in boots}
    child = process.start(qemu, machine, work)
    try:
        settle(work, port, child, script, log)
    finally:
        child.kill()
        child.wait()
        for name in ("console.log", "qemu.log"):
            with contextlib.suppress(OSError):
                shutil.move(str(work / name), str(log.parent / f"{script.stem}-{name}"))
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


def settle(work: Path, port: int, child: subprocess.Popen[bytes], script: Path, log: Path) -> None:
    """Run the script over ssh, then power the host off."""
    if not wait_for(lambda: child.poll() is not None or ssh.greets(port), BOOT_LIMIT):
        raise LabError(f"the host did not answer within {BOOT_LIMIT:.0f} s", log=work / "console.log")
    if child.poll() is not None:
        raise LabError(f"QEMU ended with status {child.returncode}", log=work / "qemu.log")
    key, known = work / "id_ed25519", work / "known_hosts"
    if script.stem == BLS:
        put = ssh.argv(port, key, known, ["install -m 0755 /dev/stdin /usr/sbin/grubby"])
        ssh.check_reply(ssh.call(put, 60, grubby(), log), "sending grubby", log)
    words = ssh.argv(port, key, known, ["sh", "-s"])
    ssh.check_reply(ssh.call(words, SCRIPT_LIMIT, script, log), "installing the boot loaders", log)
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
