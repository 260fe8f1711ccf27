# Copyright: the iovirt.host authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""QEMU processes: started in the background, found again by their marker, ended and nothing else with them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .common import LabError, wait_for
from .qemu import Machine, Qemu, arguments, marker

TERM_LIMIT = 10.0
GENTLE = (signal.SIGTERM, signal.SIGKILL)


@dataclass
class Found:
    """A running QEMU of this lab."""

    name: str
    pid: int


def marked_name(pid: int) -> str | None:
    """The host that a process runs, or None when it is no QEMU of this lab."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return None
    prefix = "guest=" + marker("")
    for flag, value in zip(words, words[1:]):
        if flag == "-name" and value.startswith(prefix):
            return value[len(prefix) :]
    return None


def running() -> list[Found]:
    """All QEMUs of this lab, whether or not their run folder still exists."""
    result = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            name = marked_name(int(entry))
            if name is not None:
                result.append(Found(name, int(entry)))
    return sorted(result, key=lambda found: (found.name, found.pid))


def cut_off_builders(cache: Path) -> list[int]:
    """Commands of a build whose lab was killed. Each leads a session of its own and names its unfinished folder."""
    result = []
    for entry in os.listdir("/proc"):
        try:
            words = Path("/proc", entry, "cmdline").read_bytes().decode("utf-8", "replace")
            if entry.isdigit() and f"{cache}/" in words and ".part-" in words and os.getsid(int(entry)) == int(entry):
                result.append(int(entry))
        except OSError:
            continue
    return result


def find(name: str) -> Found | None:
    """The QEMU of one host."""
    for found in running():
        if found.name == name:
            return found
    return None


def end(found: Found, signals: Sequence[int] = GENTLE) -> None:
    """End one QEMU. The pid file descriptor keeps a reused number from being hit."""
    try:
        descriptor = os.pidfd_open(found.pid)
    except ProcessLookupError:
        return
    try:
        if marked_name(found.pid) != found.name:
            return
        for signum in signals:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signum)
            if wait_for(lambda: not alive(found.pid), TERM_LIMIT, 0.05):
                return
    except PermissionError:
        raise LabError(
            f"process {found.pid} of host {found.name} belongs to another user", "run this as that user"
        ) from None
    finally:
        os.close(descriptor)
    raise LabError(f"QEMU of host {found.name} (process {found.pid}) does not end")


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in ("Z", "X")


def start(qemu: Qemu, machine: Machine, folder: Path, extra: list[str] | None = None) -> subprocess.Popen[bytes]:
    """Start QEMU in the background, in the folder that its relative file names are meant for."""
    argv = [*qemu.system, *arguments(machine), *(extra or [])]
    with (folder / "qemu.log").open("ab") as log:
        return subprocess.Popen(  # pylint: disable=consider-using-with
            argv,
            cwd=folder,
            env=qemu.environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
