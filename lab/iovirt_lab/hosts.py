# Copyright: the iovirt.host authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hosts: a copy-on-write disk, a QEMU and a port each."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from . import accel, flavour, process, qmp, ssh
from .common import LabError, is_locked, lock, say, stage, wait_for
from .paths import build_lock, cache_dir, run_dir
from .qemu import Machine, Qemu, memory_mib
from .recipe import SUITE

NAME_PATTERN = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
RESERVED = ("build", "probe")
NVME_MIB = 256
START_LIMIT = 30.0
UP_LIMIT = 300.0
PORT_TRIES = 5
MAX_CPUS = 64
#: The MAC addresses hold the number of a port in four bits.
MAX_IGB_PORTS = 15


@dataclass
class Host:
    """What is remembered of a host, in host.json of its run folder."""

    name: str
    image: str
    memory: str
    cpus: int
    igb_ports: int = 2
    port: int = 0
    started: float = 0.0
    boot: str = flavour.DEFAULT
    iommu: str = "vtd"
    suite: str = SUITE
    #: Without the devices that are shared out, and with one node: for what only boots again and again.
    bare: bool = False

    def save(self) -> None:
        """Write it, whole or not at all."""
        path = folder_of(self.name) / "host.json"
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        part.replace(path)


def folder_of(name: str) -> Path:
    """The run folder of a host."""
    if not NAME_PATTERN.fullmatch(name) or name in RESERVED:
        raise LabError(
            f"'{name}' is no name for a host",
            "use small letters, digits and dashes, 32 at most; " + " and ".join(RESERVED) + " are taken",
        )
    return run_dir() / name


def load(name: str) -> Host:
    """The host as remembered."""
    path = folder_of(name) / "host.json"
    try:
        return Host(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        # A run folder can be lost while QEMU runs: then the host cannot be used, but it can be ended.
        todo = f"lab/lab {'down' if process.find(name) else 'up'} {name}"
        raise LabError(f"there is no host {name}", todo) from None
    except (OSError, ValueError, TypeError) as error:
        raise LabError(f"{path} cannot be read: {error}", f"lab/lab down {name}") from None


def host_lock(name: str) -> contextlib.AbstractContextManager[None]:
    """Two commands must not start or end the same host at once."""
    folder_of(name)
    return lock(run_dir() / f".{name}.lock", f"working on host {name}", 600)


@dataclass
class Flavour:
    """What sets a host apart from the usual one."""

    boot: str = flavour.DEFAULT
    iommu: str = "vtd"
    suite: str = SUITE


def up(
    name: str,
    memory: str,
    cpus: int,
    igb_ports: int,
    wait: bool,
    limit: float,
    kind: Flavour | None = None,
    bare: bool = False,
) -> None:
    """Start a host, unless it runs. One that was killed keeps its flavour; none may be named for it but its own."""
    folder_of(name)
    memory_mib(memory)
    if not 1 <= cpus <= MAX_CPUS:
        raise LabError(f"{cpus} is no number of CPUs for a host", f"1 to {MAX_CPUS}")
    if not 1 <= igb_ports <= MAX_IGB_PORTS:
        raise LabError(f"{igb_ports} is no number of igb ports for a host", f"1 to {MAX_IGB_PORTS}")
    if (folder_of(name) / "host.json").exists():
        known = load(name)
        if kind not in (None, Flavour(known.boot, known.iommu, known.suite)):
            raise LabError(
                f"host {name} is of another flavour ({known.boot}, {known.iommu}, {known.suite})", f"lab/lab down {name}"
            )
        kind = Flavour(known.boot, known.iommu, known.suite)
    kind = kind or Flavour()
    qemu = flavour.ensure(kind.boot, kind.suite)
    with host_lock(name):
        if process.find(name) is not None:
            say(f"host {name} is up already")
            host = load(name)
        else:
            host = prepare(qemu, name, memory, cpus, igb_ports, kind)
            host.bare = bare
            start(qemu, host)
    if wait:
        wait_until_up(host, limit)


def prepare(qemu: Qemu, name: str, memory: str, cpus: int, igb_ports: int, kind: Flavour) -> Host:
    """The disks of a host. Those of a host that was killed are kept: its next start is like power coming back."""
    folder = folder_of(name)
    if (folder / "host.json").exists():
        host = load(name)
        host.memory, host.cpus, host.igb_ports = memory, cpus, igb_ports
        if (cache_dir() / host.image).is_dir():
            say(f"host {name} starts again from its old disk")
            return host
        raise LabError(
            f"the image under the disk of host {name} is gone", f"lab/lab down {name}, then lab/lab up {name}"
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    host = Host(name, flavour.key_of(kind.boot, kind.suite), memory, cpus, igb_ports, **asdict(kind))
    flavour.make_disks(qemu, cache_dir() / host.image, kind.boot, folder)
    firmware = flavour.firmware_of(kind.boot)
    if firmware:
        shutil.copyfile(firmware.variables, folder / "efivars.fd")
    with (folder / "nvme.raw").open("wb") as handle:
        handle.truncate(NVME_MIB * 1024 * 1024)
    host.save()
    return host


def start(qemu: Qemu, host: Host) -> None:
    """Start QEMU on a free port; a port taken between the look and the start means another try."""
    folder = folder_of(host.name)
    built = cache_dir() / host.image
    chosen = accel.choose(qemu, built / "vmlinuz", built / "initrd")
    say(f"starting host {host.name} with QEMU ({qemu.origin})")
    for _ in range(PORT_TRIES):
        host.port = ssh.free_port(host.port)
        host.started = time.time()
        ssh.write_known_hosts(folder / "known_hosts", host.port, built / "host_key.pub")
        host.save()
        status = launch(qemu, machine_of(host, chosen), folder)
        if status is None:
            return
        if "host forwarding rule" not in accel.read(folder / "qemu.log"):
            break
    raise LabError(f"QEMU ended with status {status}", log=folder / "qemu.log")


def machine_of(host: Host, chosen: str) -> Machine:
    """The host as QEMU has to know it."""
    machine = Machine(host.name, chosen, host.memory, host.cpus, host.port, host.igb_ports, iommu=host.iommu)
    machine.devices = not host.bare
    machine.firmware = flavour.firmware_of(host.boot)
    machine.esps = {} if host.boot == flavour.DEFAULT else {host.boot: ("esp.qcow2", "qcow2")}
    machine.files = flavour.extra_files(host.boot)
    return machine


def launch(qemu: Qemu, machine: Machine, folder: Path) -> int | None:
    """Start QEMU and wait until it listens. Returns its exit status when it ended instead."""
    (folder / "qemu.log").unlink(missing_ok=True)
    (folder / "qmp.sock").unlink(missing_ok=True)
    child = process.start(qemu, machine, folder)
    if not wait_for(lambda: child.poll() is not None or answers(folder), START_LIMIT):
        child.kill()
        child.wait()
        raise LabError(f"QEMU was not ready within {START_LIMIT:.0f} s", log=folder / "qemu.log")
    return child.poll()


def answers(folder: Path) -> bool:
    """Whether QEMU answers on its control socket."""
    if not (folder / "qmp.sock").exists():
        return False
    try:
        qmp.ask(folder, "query-status")
    except LabError:
        return False
    return True


def wait_until_up(host: Host, limit: float) -> None:
    """Wait for ssh, with a sign of life now and then."""
    folder = folder_of(host.name)
    with stage(f"waiting for ssh on host {host.name}, port {host.port}"):
        end = time.monotonic() + limit
        while not wait_for(lambda: process.find(host.name) is None or ssh.greets(host.port), 15):
            if time.monotonic() > end:
                raise LabError(
                    f"host {host.name} did not answer within {limit:.0f} s",
                    f"read lab/lab console {host.name}; lab/lab reset {host.name} starts it anew",
                    folder / "console.log",
                )
            last = accel.read(folder / "console.log").rstrip().rpartition("\n")[2].strip()
            say(f"  not yet; its console says: {last[:100]}")
        if process.find(host.name) is None:
            raise LabError(f"QEMU of host {host.name} has ended", log=folder / "qemu.log")


def down(name: str) -> None:
    """End a host and forget it."""
    with host_lock(name):
        end_all_of(name)
        shutil.rmtree(folder_of(name), ignore_errors=True)
    say(f"host {name} is down")


def end_all_of(name: str, *signals: int) -> None:
    """End each QEMU with this host's marker."""
    for found in process.running():
        if found.name == name:
            process.end(found, signals or process.GENTLE)


def down_all() -> None:
    """End everything of this lab, found by the marker: also what a crash left without a run folder."""
    for host in names():
        down(host)
    building = is_locked(build_lock())
    for found in process.running():
        # A build that is going on ends its own guests.
        if not (building and found.name in RESERVED):
            process.end(found)


def names() -> list[str]:
    """All hosts, running or not."""
    known = {path.name for path in run_dir().glob("*") if path.is_dir()}
    known.update(found.name for found in process.running())
    return sorted(name for name in known if name not in RESERVED and NAME_PATTERN.fullmatch(name))


def kill(name: str) -> None:
    """Cut the power: the disk stays as it is at that moment. On SIGTERM QEMU would write out what it holds back."""
    load(name)
    with host_lock(name):
        end_all_of(name, signal.SIGKILL)
    say(f"host {name} is off; its disk is kept for the next 'up'")


def reset(name: str) -> None:
    """Hard reset from outside."""
    need_running(name)
    qmp.ask(folder_of(name), "system_reset")
    say(f"host {name} was reset")


def need_running(name: str) -> Host:
    """The host, if it runs."""
    host = load(name)
    if process.find(name) is None:
        raise LabError(f"host {name} does not run", f"lab/lab up {name}")
    return host


def key_of(host: Host) -> Path:
    """The ssh key of a host."""
    return cache_dir() / host.image / "id_ed25519"
