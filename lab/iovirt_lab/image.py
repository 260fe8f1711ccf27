# Copyright: the iovirt.host authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Building: the lab's own QEMU, the Debian root tree, the modules, the disk that boots by itself."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import accel, process, ssh, suites
from .common import LabError, lock, output_of, remove_tree, run, say, stage, tool, wait_for
from .paths import GUEST_FILES, build_lock, cache_dir, logs_dir
from .qemu import Machine, Qemu, qemu_in, tree_path, usable_qemu
from .recipe import (
    BACKPORTS,
    DISK_MIB,
    FIRST_BOOT_ARGUMENTS,
    QUICK_DPKG,
    ROOT_LABEL,
    ROOT_MIB,
    ROOT_START_SECTOR,
    SUITE,
    partition_table,
    qemu_words,
)

TREE_LIMIT = 900.0
BOOT_LIMIT = 300.0
LOCK_LIMIT = 1800.0
NETWORK_HINT = "check the network and the machine's package sources, then run lab/lab build again"


def image_path(suite: str = SUITE) -> Path:
    """Where the built image lies."""
    return cache_dir() / suites.image_key(suite)


def ensure(suite: str = SUITE) -> Qemu:
    """Build what is missing. Returns the QEMU to use."""
    qemu = usable_qemu()
    if qemu is not None and image_path(suite).is_dir():
        return qemu
    with lock(build_lock(), "building", LOCK_LIMIT):
        remove_leftovers()
        return build_all(suite)


def build_all(suite: str) -> Qemu:
    """Build what is missing, with the lock held; another process may have built it in the meantime."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        qemu_done = pool.submit(ensure_qemu)
        if not image_path(suite).is_dir():
            with stage("the lab's disk image"), new_folder(image_path(suite)) as work:
                build_image(work, qemu_done.result, suite)
        return qemu_done.result()


def remove_leftovers() -> None:
    """What a build that was cut off left behind. Safe: the lock is held."""
    for pid in process.cut_off_builders(cache_dir()):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    for path in cache_dir().glob("*.part-*"):
        remove_tree(path)
    for found in process.running():
        if found.name in ("build", "probe"):
            process.end(found)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears under its name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=path.name + ".part-", dir=path.parent))
    try:
        yield part
        part.chmod(0o755)
        part.rename(path)
    finally:
        remove_tree(part)


def mmdebstrap_env(work: Path) -> dict[str, str]:
    """Where mmdebstrap unpacks: beside the result for root; a user's home is closed to its mapped owners, so /tmp."""
    env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    if os.geteuid() == 0:
        env["TMPDIR"] = str(work)
    # The tool calls programs of /usr/sbin, which a normal user's PATH lacks on Debian.
    env["PATH"] = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    return env


def mmdebstrap(work: Path, what: str, words: list[str], log: Path) -> None:
    """Run mmdebstrap. The mirror is its own default or the machine's: no address is named here."""
    mode = "root" if os.geteuid() == 0 else "unshare"
    argv = [tool("mmdebstrap"), f"--mode={mode}", "--architectures=amd64", *QUICK_DPKG, *words]
    run(argv, what=what, log=log, limit=TREE_LIMIT, env=mmdebstrap_env(work), todo=NETWORK_HINT)


def new_log(name: str) -> Path:
    """An empty log for a stage."""
    logs_dir().mkdir(parents=True, exist_ok=True)
    path = logs_dir() / f"{name}.log"
    path.unlink(missing_ok=True)
    return path


def ensure_qemu() -> Qemu:
    """The machine's own QEMU, or a tree of packages that leaves the machine's package sources alone."""
    found = usable_qemu()
    if found is not None:
        return found
    with stage(f"QEMU from {BACKPORTS}"), new_folder(tree_path()) as work:
        words = [*qemu_words(), SUITE, str(work / "tree.tar")]
        log = new_log("qemu")
        mmdebstrap(work, "unpacking QEMU", words, log)
        unpack = ["tar", "-x", "--no-same-owner", "--exclude=./dev", "-C", str(work)]
        run([*unpack, "-f", str(work / "tree.tar")], what="unpacking QEMU", log=log, limit=120)
        (work / "tree.tar").unlink()
        version = output_of([*qemu_in(work).system, "--version"], env=qemu_in(work).environment())
        if not version:
            raise LabError("the unpacked QEMU does not start", NETWORK_HINT, log)
        say(version.splitlines()[0])
    return qemu_in(tree_path())


def build_image(work: Path, qemu_done: Callable[[], Qemu], suite: str) -> None:
    """Everything from packages to a disk that boots by itself."""
    check_user()
    make_key(work)
    with ThreadPoolExecutor(max_workers=1) as pool:
        # Beside each other: one waits for the network while the other unpacks.
        modules = pool.submit(build_modules, work, suite)
        try:
            build_tree(work, suite)
        finally:
            modules.exception()
        modules.result()
    assemble(work)
    first_boot(work, qemu_done())
    (work / "disk.raw").chmod(0o444)
    shutil.rmtree(work / "modules")


def check_user() -> None:
    """A normal user needs a range of user ids of his own, for the files of root, sshd and the others."""
    if os.geteuid() == 0:
        return
    tool("newuidmap")
    probe = [tool("unshare"), "--user", "--map-root-user", "--map-auto", "--mount", "true"]
    done = subprocess.run(probe, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode != 0:
        raise LabError(
            f"this user cannot make a user namespace with a range of ids: {done.stderr.strip()}",
            "give the user a range in /etc/subuid and /etc/subgid (usermod --add-subuids 100000-165535 "
            "--add-subgids 100000-165535 USER), and allow user namespaces; or build as root",
        )


def make_key(work: Path) -> None:
    """The lab's own ssh key."""
    argv = [tool("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", "iovirt-lab", "-f", str(work / "id_ed25519")]
    run(argv, what="making an ssh key", log=new_log("key"), limit=30)


def build_tree(work: Path, suite: str) -> None:
    """The root tree of a host."""
    with stage(f"root tree of Debian {suite}"):
        words = [*suites.tree_words(suite), suite, str(work / "root.tar")]
        mmdebstrap(work, "installing the root tree", words, new_log("root"))


def build_modules(work: Path, suite: str) -> None:
    """The kernel modules that Debian does not ship, from Debian's own source, in a tree of their own."""
    with stage("modules mtty, mdpy, netdevsim, vmdqsim"):
        (work / "modules").mkdir()
        words = [*suites.module_words(suite, work / "modules"), suite, "/dev/null"]
        mmdebstrap(work, "building the modules", words, new_log("modules"))
        # What is not for the image stays beside it (vmdqsim/make).
        for path in (work / "modules").glob("*.ko"):
            path.rename(work / path.name)


def assemble(work: Path) -> None:
    """From the root tree and the modules to a partitioned disk."""
    with stage("disk"):
        log = new_log("disk")
        disk = work / "disk.raw"
        with disk.open("wb") as handle:
            handle.truncate(DISK_MIB * 1024 * 1024)
        (work / "table").write_text(partition_table(), encoding="ascii")
        run([tool("sfdisk"), "-q", str(disk)], what="partitioning", log=log, limit=60, stdin=work / "table")
        (work / "table").unlink()
        argv = [
            "sh", str(GUEST_FILES / "assemble.sh"), str(work), ROOT_LABEL, str(ROOT_START_SECTOR), str(ROOT_MIB)
        ]  # fmt: skip
        if os.geteuid() != 0:
            argv = [tool("unshare"), "--user", "--map-root-user", "--map-auto", "--mount", *argv]
        run(argv, what="filling the disk", log=log, limit=300, env=mmdebstrap_env(work))


def first_boot(work: Path, qemu: Qemu) -> None:
    """Boot once by QEMU's own loader, to install the real one: it needs the running disk."""
    with stage("first boot, installing GRUB"):
        port = ssh.free_port()
        ssh.write_known_hosts(work / "known_hosts", port, work / "host_key.pub")
        machine = Machine(
            name="build",
            accel=accel.choose(qemu, work / "vmlinuz", work / "initrd"),
            memory="2G",
            port=port,
            disk="disk.raw",
            disk_format="raw",
            kernel=work / "vmlinuz",
            initrd=work / "initrd",
            append=FIRST_BOOT_ARGUMENTS,
            devices=False,
        )
        child = process.start(qemu, machine, work)
        try:
            settle(work, port, child)
        finally:
            child.kill()
            child.wait()
            for name in ("console.log", "qemu.log"):
                with contextlib.suppress(OSError):
                    shutil.move(str(work / name), str(logs_dir() / f"first-boot-{name}"))
            for name in ("console.sock", "qmp.sock", "qemu.pid", "known_hosts"):
                (work / name).unlink(missing_ok=True)


def settle(work: Path, port: int, child: subprocess.Popen[bytes]) -> None:
    """Run the first boot's script over ssh, then power the host off."""
    console = work / "console.log"
    if not wait_for(lambda: child.poll() is not None or ssh.greets(port), BOOT_LIMIT):
        raise LabError(f"the new host did not answer within {BOOT_LIMIT:.0f} s", log=console)
    if child.poll() is not None:
        raise LabError(f"QEMU ended with status {child.returncode}", log=work / "qemu.log")
    say("the new host answers")
    log = new_log("first-boot")
    key, known = work / "id_ed25519", work / "known_hosts"
    words = ssh.argv(port, key, known, ["sh", "-s"])
    ssh.check_reply(ssh.call(words, BOOT_LIMIT, GUEST_FILES / "first-boot.sh", log), "installing GRUB", log)
    # It takes the connection down with it, so its exit status says nothing.
    ssh.call(ssh.argv(port, key, known, ["systemctl", "poweroff"]), 30, log=log)
    if not wait_for(lambda: child.poll() is not None, 120):
        raise LabError("the new host does not power off", log=console)
