# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lab hosts with other boot loaders and another IOMMU. Each flavour has a host of its own, one at a time.

IOVIRT_BOOT_FLAVOURS names the flavours to look at (tests/boot/run chooses); IOVIRT_BOOT_KEEP=1 leaves the last host up.
IOVIRT_BOOT_BARE=1 takes machines without the devices that are shared out, and boots into a login alone: for a machine
that is busy with other things. Firmware, boot loader, kernel and tools are the same.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shlex
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: A slice: what shows most in few boots.
QUICK = bool(os.environ.get("IOVIRT_BOOT_QUICK"))
BARE = bool(os.environ.get("IOVIRT_BOOT_BARE"))
#: What `lab up` is told then.
BARE_MACHINE = ("--bare", "--memory", "1G")
#: Flavour -> arguments of `lab up`.
FLAVOURS = {
    "grub-bios": ["--boot", "grub-bios"],
    "grub-uefi": ["--boot", "grub-uefi"],
    "systemd-boot": ["--boot", "systemd-boot"],
    "uki": ["--boot", "uki"],
    "bls": ["--boot", "bls"],
    "amdvi": ["--iommu", "amdvi"],
    "bookworm": ["--suite", "bookworm"],
    "forky": ["--suite", "forky"],
}
CHOSEN = os.environ.get("IOVIRT_BOOT_FLAVOURS", "grub-bios grub-uefi systemd-boot uki amdvi").split()
PREFIX = os.environ.get("IOVIRT_BOOT_PREFIX", "boot")
#: Seconds for a call in emulation.
RUN_LIMIT = 180
ENGINE = ROOT / "plugins" / "module_utils" / "_engine"
PROGRAM = Path(__file__).parent / "engine_on_host.py"
PLAYBOOK = Path(__file__).parent / "iommu.yml"
#: Seconds for a boot in emulation on a busy machine.
BOOT_LIMIT = float(os.environ.get("IOVIRT_BOOT_LIMIT", "600"))


#: Boots end where ssh answers: what comes after that costs a third of the time, and no boot loader has a part in it.
SHORT_BOOT = """set -e
cat >/etc/systemd/system/short.target <<'END'
[Unit]
Requires=basic.target
Wants=ssh.service systemd-networkd.service
After=basic.target
AllowIsolate=yes
END
systemctl set-default short.target"""

#: As little as a login takes once the root file system is there, for what boots thirty times: no generators, no udev, the
#: address of QEMU's user network by hand. Firmware, boot loader, kernel, initramfs, the check of the root file system and
#: systemd are as ever.
BARE_BOOT = """set -e
cat >/root/bare-boot <<'END'
mount -o remount,rw /
mount -a
modprobe virtio_net
for port in /sys/bus/virtio/drivers/virtio_net/virtio*/net/*; do
    ip link set "${port##*/}" up
    ip addr add 10.0.2.15/24 dev "${port##*/}"
done
mkdir -p /run/sshd
exec /usr/sbin/sshd -D
END
cat >/etc/systemd/system/bare.target <<'END'
[Unit]
DefaultDependencies=no
Requires=bare.service
AllowIsolate=yes
END
cat >/etc/systemd/system/bare.service <<'END'
[Unit]
DefaultDependencies=no
[Service]
ExecStart=/bin/sh /root/bare-boot
END
mkdir -p /etc/systemd/system-generators
for path in /usr/lib/systemd/system-generators/*; do ln -s /dev/null "/etc/systemd/system-generators/${path##*/}"; done
systemctl set-default bare.target"""


def _lab_module() -> Any:
    """The class that drives a lab host, from the tests that have one host."""
    spec = importlib.util.spec_from_file_location("iovirt_lab_conftest", ROOT / "tests" / "lab" / "conftest.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


lab_module = _lab_module()


class BootLab(lab_module.Lab):  # type: ignore[misc, name-defined]
    """One lab host of a flavour."""

    #: How many flavours are looked at in this run, and is it a slice?
    flavours = len(CHOSEN)
    quick = QUICK

    def __init__(self, folder: Path, flavour: str, name: str = "", machine: tuple[str, ...] = ()) -> None:
        super().__init__(folder)
        self.flavour = flavour
        self.name = f"{PREFIX}-{name or flavour}"
        #: What its machine has more or less than the usual one: arguments of `lab up`.
        self.machine = machine
        lab_module.NAME = self.name

    def hang_up(self) -> None:
        """The shared connection ends with the boot, and on its own would be missed late."""
        words = ["ssh", "-o", f"ControlPath={self.socket}", "-O", "exit", "root@127.0.0.1"]
        subprocess.run(words, capture_output=True, check=False)
        Path(self.socket).unlink(missing_ok=True)

    def up(self) -> None:
        self.hang_up()
        words = ["up", self.name, "--wait", "--timeout", str(BOOT_LIMIT), *FLAVOURS[self.flavour], *self.machine]
        self.lab(*words, limit=BOOT_LIMIT + 3600)
        self.inventory.write_text(self.lab("inventory", self.name))

    def pid(self) -> int:
        """The QEMU of this host."""
        return next(int(row["pid"]) for row in json.loads(self.lab("list", "--json")) if row["name"] == self.name)

    def down(self) -> None:
        self.hang_up()
        self.lab("down", self.name)

    def boot_id(self) -> str:
        """By a connection of its own: a shared one to a host that goes down hangs."""
        try:
            return self.lab("ssh", self.name, "--", "cat /proc/sys/kernel/random/boot_id", limit=30).strip()
        except (AssertionError, OSError, ValueError):
            return ""
        except Exception as error:  # a limit that was met says so with an exception of its own
            if type(error).__name__ != "TimeoutExpired":
                raise
            return ""

    def reboot(self) -> None:
        """An ordinary reboot, from inside; back when ssh answers from another boot."""
        before = self.boot_id()
        assert before
        try:
            self.lab("ssh", self.name, "--", "systemctl reboot", limit=30)
        except Exception:
            # The connection goes down with the host.
            pass
        self.hang_up()
        end = time.monotonic() + BOOT_LIMIT
        # The banner first: an ssh that QEMU took for a host which is not there yet would wait for long.
        while not self.greets() or self.boot_id() in ("", before):
            assert time.monotonic() < end, f"{self.name} did not come back: {self.lab('console', self.name)[-2000:]}"
            time.sleep(0.5)

    def greets(self) -> bool:
        return bool(lab_module.ssh.greets(lab_module.hosts.need_running(self.name).port))

    def send_engine(self) -> None:
        """The engine as it is here, and the program that calls it, for `begin` and `engine`."""
        memory = io.BytesIO()
        with tarfile.open(fileobj=memory, mode="w:gz") as archive:
            archive.add(ENGINE, "_engine", filter=lambda item: None if "__pycache__" in item.name else item)
            archive.add(PROGRAM, PROGRAM.name)
        words = [*self._ssh(), "mkdir -p /root/sent && tar -xz -C /root/sent && sync"]
        # On the disk, as the power may go next.
        subprocess.run(words, input=memory.getvalue(), check=True, timeout=RUN_LIMIT)

    def begin(self, *calls: tuple[str, dict[str, Any]]) -> subprocess.Popen[str]:
        """Calls of the engine, by a process that has loaded everything and begins to work."""
        program = f"cd /root/sent && exec python3 {PROGRAM.name} {shlex.quote(json.dumps(calls))}"
        child = subprocess.Popen([*self._ssh(), program], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert child.stdout
        said = b""
        # Byte by byte: what a buffer had read ahead, communicate() would not see.
        while not said.endswith(b"\n") and (byte := os.read(child.stdout.fileno(), 1)):
            said += byte
        assert said == b"begun\n", (said, child.communicate())
        return child

    def engine(self, *calls: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """What came of each call."""
        return self.ended(self.begin(*calls), len(calls))[0]

    @staticmethod
    def ended(child: subprocess.Popen[str], calls: int) -> tuple[list[dict[str, Any]], str]:
        """What came of each call that was begun, and what the process said of its writes."""
        out, err = child.communicate(timeout=RUN_LIMIT * calls)
        results: list[dict[str, Any]] = [json.loads(line) for line in out.splitlines()]
        assert len(results) == calls, (out, err)
        return results, err

    def iommu(self, check: bool = False, reboot: bool = False, **wish: Any) -> dict[str, Any]:
        """By a playbook with the role, as a user would, and with `reboot` with the role's own one; in a slice with one of its
        hosts only, as its seconds are the same for each. The result is that of the role's last call of the module."""
        if self.by_engine:
            return self._iommu_by_engine(check, reboot, wish)
        before = self.boot_id()
        result = self.folder / "iommu.json"
        given = {f"iommu_{name}": value for name, value in wish.items()} | {"result_file": str(result)}
        given["iovirt_reboot"] = "when_needed" if reboot else "never"
        self.playbook(str(PLAYBOOK), given, *(["--check"] if check else []))
        if reboot:
            self.hang_up()
            assert self.boot_id() not in ("", before), "the role has not rebooted"
        return dict(json.loads(result.read_text()))

    @property
    def by_engine(self) -> bool:
        return self.quick and self.flavour == "amdvi"

    def _iommu_by_engine(self, check: bool, reboot: bool, wish: dict[str, Any]) -> dict[str, Any]:
        if reboot:
            self.reboot()
        (result,) = self.engine(("iommu", {**wish, "check": check, "prove": reboot}))
        assert not result["failed"], result
        return result

    def words(self) -> list[str]:
        return str(self.shell("cat /proc/cmdline")).split()

    def group_types(self) -> set[str]:
        return set(str(self.shell("cat /sys/kernel/iommu_groups/*/type 2>/dev/null || true")).split())

    def boot_files(self) -> dict[str, str]:
        """Every file that a boot loader reads or its tools write, by its checksum. Boot loaders write some themselves."""
        found = self.shell(
            "find /boot /etc/kernel /etc/default /etc/iovirt -type f ! -name random-seed ! -name grubenv "
            "-exec sha256sum {} + 2>/dev/null; true"
        )
        return {line[66:]: line[:64] for line in str(found).splitlines()}


@pytest.fixture(scope="module", params=CHOSEN)
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BootLab]:
    folder = tmp_path_factory.mktemp("boot")
    if BARE:
        yield from started(BootLab(folder, request.param, machine=BARE_MACHINE), BARE_BOOT)
    else:
        yield from started(BootLab(folder, request.param))


@pytest.fixture(scope="module", params=CHOSEN)
def bare(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BootLab]:
    """For what boots again and again: without the devices that are shared out, which no boot loader has a part in."""
    folder = tmp_path_factory.mktemp("bare")
    yield from started(BootLab(folder, request.param, f"bare-{request.param}", BARE_MACHINE), BARE_BOOT)


def started(host: BootLab, short: str = SHORT_BOOT) -> Iterator[BootLab]:
    host.up()
    host.shell(short)
    host.send_engine()
    yield host
    if not os.environ.get("IOVIRT_BOOT_KEEP"):
        host.down()
