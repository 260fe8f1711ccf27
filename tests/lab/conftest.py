# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lab host with a real kernel, driven from outside: by Ansible as a user would, and by plain shell to see for oneself.

IOVIRT_LAB_HOST names the lab host to use, running or not. Its wishes are those of molecule's lab scenario, whose host these
tests take over in `make test`. A bare host is first made as wished.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
NAME = os.environ.get("IOVIRT_LAB_HOST", "tests")
SCENARIO = ROOT / "molecule" / "lab" / "inventory" / "group_vars" / "all.yml"

sys.path.insert(0, str(ROOT / "lab"))

from iovirt_lab import hosts, ssh  # noqa: E402

#: Prints all that a refused wish must leave as it was.
SNAPSHOT = Path(__file__).parent / "snapshot_on_host.py"

#: The engine's copy on the host, called several times in one process.
CALLS = """python3 -I - <<'END'
import json, os, sys
sys.path.insert(0, "/var/lib/iovirt/engine/current")
from iovirt_engine import engine
from iovirt_engine.errors import EngineError
from iovirt_engine.host import FileSystem, Host, run_command
from iovirt_engine.resources.common import Options

def call(check, wishes, allow=()):
    try:
        host = Host(files=FileSystem("/"), run=run_command, environment=os.environ)
        return engine.devices(host, wishes, Options(allow=frozenset(allow)), engine.Call(check=check))
    except EngineError as error:
        return {"refused": str(error)}

print(json.dumps([call(*words) for words in json.loads(r'''%s''')]))
END"""


class Lab:
    """One lab host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        #: What the replay of the last boot wrote, as it was before any test.
        self.replayed = ""
        self.inventory = folder / "hosts.yml"
        #: One connection for all that the host is asked: on an emulated machine its keys take longer than most answers.
        #: In a short path, as a socket's has to be.
        self.sockets = tempfile.TemporaryDirectory(prefix="iovirt-")
        self.socket = f"{self.sockets.name}/ssh"

    def lab(self, *words: str, limit: float = 600) -> str:
        done = subprocess.run(
            [str(ROOT / "lab" / "lab"), *words], capture_output=True, text=True, timeout=limit, check=False
        )
        if done.returncode:
            raise AssertionError(f"lab {' '.join(words[:2])} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def start(self) -> None:
        self.lab("up", NAME, "--wait", limit=1200)
        self.inventory.write_text(self.lab("inventory", NAME))

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            subprocess.run([*self._ssh(), "-O", "exit"], capture_output=True, check=False)
        self.sockets.cleanup()

    def _ssh(self) -> list[str]:
        host = hosts.need_running(NAME)
        words = ssh.argv(host.port, hosts.key_of(host), hosts.folder_of(NAME) / "known_hosts")
        # The first value of an option counts: before those that forbid a shared connection.
        # A host that was rebooted is missed after half a minute.
        mine = [f"ControlPath={self.socket}", "ServerAliveInterval=5", "ServerAliveCountMax=6"]
        return [words[0], *(word for option in mine for word in ("-o", option)), *words[1:]]

    def shell(self, script: str, limit: float = 120) -> str:
        """What the host itself says. Fails when the last command of the script does."""
        ssh_words = self._ssh()
        if subprocess.run([*ssh_words, "-O", "check"], capture_output=True, check=False).returncode:
            # -f: it goes to the background when it is connected; nobody's pipe stays open with it.
            subprocess.run(
                [ssh_words[0], "-o", "ControlMaster=yes", *ssh_words[1:], "-fN"],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, timeout=limit,
            )  # fmt: skip
        done = subprocess.run([*ssh_words, script], capture_output=True, text=True, timeout=limit, check=False)
        if done.returncode:
            raise AssertionError(f"{script[:200]!r} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    def send(self, path: str, data: bytes) -> None:
        """A file to the host."""
        done = subprocess.run([*self._ssh(), f"cat >{path}"], input=data, capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr

    def module(self, name: str, check: bool = False, **arguments: Any) -> dict[str, Any]:
        """One module, run by Ansible; its result, whether it succeeded or not."""
        tree = self.folder / "tree"
        command = [str(ROOT / "tools" / "in"), "ansible", NAME, "-i", str(self.inventory), "--tree", str(tree)]
        command += ["-m", f"iovirt.host.{name}", *(["-a", json.dumps(arguments)] if arguments else [])] + (["--check"] if check else [])
        (tree / NAME).unlink(missing_ok=True)
        done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False, cwd=self.folder)
        assert (tree / NAME).exists(), done.stdout + done.stderr
        result: dict[str, Any] = json.loads((tree / NAME).read_text())
        result["failed"] = done.returncode != 0
        assert "Traceback" not in json.dumps(result), result
        return result

    def calls(self, *what: tuple[Any, ...]) -> list[dict[str, Any]]:
        """Calls of the engine that is on the host, at the price of one: check mode or not, the wishes, the allowed dangers.
        It carries no copy of itself, so it leaves the boot replay's files alone: `iovirt apply` lets the rules of udev
        follow."""
        answers: list[dict[str, Any]] = json.loads(self.shell(CALLS % json.dumps(what), limit=400))
        return answers

    def apply(self, wishes: dict[str, Any], check: bool = False, allow: tuple[str, ...] = ()) -> dict[str, Any]:
        """One such call, with a result as the module's: for what is about the engine and not about Ansible."""
        (result,) = self.calls((check, wishes, allow))
        said = result.get("refused") or "\n".join(result["failures"].values())
        return {**result, "failed": bool(said), "msg": said}

    def playbook(self, path: str, variables: dict[str, Any], *words: str) -> str:
        given = self.folder / "vars.json"
        given.write_text(json.dumps(variables))
        command = [str(ROOT / "tools" / "in"), "ansible-playbook", path, "-i", str(self.inventory), "-e", f"@{given}", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, cwd=self.folder)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def python(self, *programs: Path, words: str = "", limit: float = 300) -> str:
        """Programs of this folder, sent over; the last one is run."""
        sent = "".join(f"cat >/run/iovirt-lab/{p.name} <<'END_OF_PROGRAM'\n{p.read_text()}END_OF_PROGRAM\n" for p in programs)
        run = f"python3 /run/iovirt-lab/{programs[-1].name} {words}"
        return self.shell(f"mkdir -p /run/iovirt-lab\n{sent}{run}", limit=limit)

    def reboot(self) -> None:
        """Out and in again: the boot id tells one boot from the next."""
        before = self.shell("cat /proc/sys/kernel/random/boot_id")
        self.shell("systemd-run --on-active=1 systemctl reboot")
        port = hosts.need_running(NAME).port
        end = time.monotonic() + 900
        while time.monotonic() < end:
            time.sleep(1)
            # Asked before sshd is there, ssh takes most of a minute to give up.
            if not ssh.greets(port):
                continue
            try:
                if self.shell("cat /proc/sys/kernel/random/boot_id && systemctl is-active multi-user.target").split()[0] != before:
                    return
            except (AssertionError, subprocess.TimeoutExpired):
                continue
        raise AssertionError("the host did not come back within 15 minutes")

    def snapshot(self) -> str:
        return self.python(SNAPSHOT)

    def drivers(self) -> dict[str, str]:
        """VF address -> driver, as lspci says."""
        script = (
            "for l in /sys/bus/pci/devices/*/physfn; do a=$(basename $(dirname $l)); "
            'echo "$a $(lspci -ks $a | sed -n \'s/.*in use: //p\')"; done'
        )
        pairs = [line.partition(" ") for line in self.shell(script).splitlines()]
        return {address: driver for address, _blank, driver in pairs}


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Any:
    host = Lab(tmp_path_factory.mktemp("lab"))
    host.start()
    yield host
    host.stop()
    if "IOVIRT_LAB_HOST" not in os.environ:
        host.lab("down", NAME)


@pytest.fixture(scope="session")
def wishes(lab: Lab) -> dict[str, Any]:
    """What the host is meant to be, as arguments of the module `devices`. On a bare host it is first made so."""
    variables = yaml.safe_load(SCENARIO.read_text())
    # A host with AMD-Vi has its IOMMU on without us: what we have made is told by the replay of a boot.
    if lab.shell("ls /run/iovirt-replay.json 2>/dev/null || true") == "":
        lab.playbook("iovirt.host.site", variables)
    lab.replayed = lab.shell("cat /run/iovirt-replay.json")
    return {"sriov": _listed(variables["sriov_devices"]), "vfio": _listed(variables["vfio_devices"])}


def _listed(wishes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Selectors as the modules hand them to the engine: each key a list."""
    return [
        {**wish, "match": {key: value if isinstance(value, list) else [value] for key, value in wish["match"].items()}}
        for wish in wishes
    ]
