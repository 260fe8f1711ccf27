# Copyright: the iovirt.host authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""KVM or emulation? Decided by a guest that really boots: /dev/kvm may exist, open, and still kill every guest."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

from . import process
from .common import say
from .paths import cache_dir
from .qemu import Machine, Qemu

TCG = "tcg,thread=multi"
PROBE_LIMIT = 25.0
# The shell of the initramfs: kernel and user space both ran.
MARK = "(initramfs)"


def boot_id() -> str:
    """Changes with each boot of this machine; another kernel or module parameter may change the answer."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


def choose(qemu: Qemu, kernel: Path, initrd: Path) -> str:
    """The accelerator to use; says which one and why."""
    named = os.environ.get("IOVIRT_LAB_ACCEL")
    if named:
        say(f"accelerator: {named}, named by IOVIRT_LAB_ACCEL")
        return TCG if named == "tcg" else named
    reason = unusable()
    if reason is None:
        reason = cached_probe(qemu, kernel, initrd)
    if reason:
        say(f"accelerator: {TCG} (emulation, slow), because {reason}")
        return TCG
    say("accelerator: kvm, a guest booted under it")
    return "kvm"


def unusable() -> str | None:
    """Why KVM cannot even be tried."""
    device = Path("/dev/kvm")
    if not device.exists():
        return "there is no /dev/kvm"
    if not os.access(device, os.R_OK | os.W_OK):
        return "this user may not open /dev/kvm"
    return None


def cached_probe(qemu: Qemu, kernel: Path, initrd: Path) -> str:
    """The probe's answer, asked for once in each boot of this machine, by user and QEMU."""
    store = cache_dir() / "accel.json"
    key = f"{boot_id()} {os.getuid()} {' '.join(qemu.system)}"
    try:
        known = json.loads(store.read_text(encoding="utf-8"))
        if known["key"] == key:
            return str(known["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    reason = probe(qemu, kernel, initrd)
    part = store.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps({"key": key, "reason": reason}), encoding="utf-8")
    part.replace(store)
    return reason


def probe(qemu: Qemu, kernel: Path, initrd: Path) -> str:
    """Boot the lab's kernel under KVM for a moment. Empty when it worked, else the reason against KVM."""
    say("trying a guest under KVM ...")
    machine = Machine(
        name="probe",
        accel="kvm",
        memory="1G",
        cpus=1,
        disk="",
        kernel=kernel,
        initrd=initrd,
        append="console=ttyS0 break=top",
        devices=False,
    )
    with tempfile.TemporaryDirectory(prefix="probe-", dir=cache_dir()) as name:
        folder = Path(name)
        child = process.start(qemu, machine, folder, ["-no-reboot"])
        try:
            return watch(folder, child)
        finally:
            child.kill()
            child.wait()


def watch(folder: Path, child: subprocess.Popen[bytes]) -> str:
    """Wait for the guest's mark, for QEMU's complaint, or for the limit."""
    end = time.monotonic() + PROBE_LIMIT
    while time.monotonic() < end:
        if MARK in read(folder / "console.log"):
            return ""
        complaint = read(folder / "qemu.log")
        if "internal error" in complaint or "unhandled exit" in complaint:
            return f"a guest died under it: {complaint.splitlines()[0].strip()}"
        if child.poll() is not None:
            said = complaint.strip().splitlines()
            return f"QEMU ended with status {child.returncode}: {said[-1] if said else 'no message'}"
        time.sleep(0.1)
    return f"a guest under it did not come up within {PROBE_LIMIT:.0f} s"


def read(path: Path) -> str:
    """A log, empty as long as it is not there."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
