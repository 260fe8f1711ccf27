# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The power goes in the middle of the change: the host boots, and a run after that converges.

IOVIRT_BOOT_CUTS says how often, all flavours together; the moments are drawn from IOVIRT_BOOT_SEED. A cut costs one boot,
into a target that holds no more than ssh: the run that converges after it is followed by the next cut, of the way back.
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

CUTS = int(os.environ.get("IOVIRT_BOOT_CUTS", "0"))
SEED = int(os.environ.get("IOVIRT_BOOT_SEED", "1"))
WISHES: list[dict[str, Any]] = [{"mode": "passthrough"}, {"state": "absent"}]
ENGINE = Path(__file__).resolve().parents[2] / "plugins" / "module_utils" / "_engine"
PROGRAM = Path(__file__).parent / "cut_on_host.py"
#: Seconds for a run in emulation.
RUN_LIMIT = 180

class Runner:
    """The engine on the host, started without Ansible."""

    def __init__(self, lab: Any) -> None:
        self.lab = lab
        self.start_files: dict[str, str] = {}

    def send(self) -> None:
        """The engine as it is here, and the program that calls it."""
        memory = io.BytesIO()
        with tarfile.open(fileobj=memory, mode="w:gz") as archive:
            archive.add(ENGINE, "_engine", filter=lambda item: None if "__pycache__" in item.name else item)
            archive.add(PROGRAM, PROGRAM.name)
        words = ["ssh", self.lab.name, "--", "mkdir -p /root/cut && tar -xz -C /root/cut && python3 -m compileall -q /root/cut"]
        subprocess.run(self.lab.command(*words), input=memory.getvalue(), check=True, timeout=RUN_LIMIT)

    def begin(self, wish: dict[str, Any]) -> subprocess.Popen[str]:
        """A run that has loaded everything and begins to work."""
        words = self.lab.command("ssh", self.lab.name, "--", f"cd /root/cut && exec python3 cut_on_host.py '{json.dumps(wish)}'")
        child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert child.stdout and child.stdout.readline() == "begun\n", child.communicate()
        return child

    def run(self, wish: dict[str, Any]) -> dict[str, Any]:
        out, err = self.begin(wish).communicate(timeout=RUN_LIMIT)
        result: dict[str, Any] = json.loads(out)
        assert not result["failures"], (result["failures"], err)
        return result

    def settle(self, wish: dict[str, Any]) -> None:
        """A run converges, and a second one finds nothing to do."""
        self.run(wish)
        assert self.run(wish)["actions"] == []

    def cut(self, wish: dict[str, Any], moment: float) -> None:
        """SIGKILL to QEMU, so many seconds after the run began to work."""
        pid = self.lab.pid()
        child = self.begin(wish)
        time.sleep(moment)
        os.kill(pid, signal.SIGKILL)
        child.kill()
        child.communicate()


@pytest.fixture
def runner(lab: Any) -> Runner:
    found = Runner(lab)
    found.start_files = lab.boot_files()
    found.send()
    return found


@pytest.mark.skipif(not CUTS, reason="IOVIRT_BOOT_CUTS is not set")
def test_it_boots_after_every_cut(lab: Any, runner: Runner) -> None:
    draw = random.Random(f"{SEED}-{lab.flavour}")
    lengths = []
    for wish in WISHES:
        began = time.monotonic()
        child = runner.begin(wish)
        first = time.monotonic()
        child.communicate(timeout=RUN_LIMIT)
        lengths.append(time.monotonic() - first)
        print(f"{lab.flavour}: a run takes {time.monotonic() - began:.1f} s, {lengths[-1]:.1f} s of it work ({wish})")
        runner.settle(wish)
    middle = 0
    for number in range(-(-CUTS // lab.flavours)):
        wish, moment = WISHES[number % 2], draw.uniform(0, 1) * lengths[number % 2]
        before = lab.boot_files()
        runner.cut(wish, moment)
        began = time.monotonic()
        lab.up()
        left = lab.boot_files()
        assert "root=" in " ".join(lab.words())
        runner.settle(wish)
        after = lab.boot_files()
        between = left not in (before, after)
        middle += between
        print(
            f"{lab.flavour}: cut {number + 1} after {moment:.1f} s, {'in the middle' if between else 'at an end'}; "
            f"it booted and converged in {time.monotonic() - began:.0f} s ({wish})",
            flush=True,
        )
        if wish == WISHES[1]:
            assert {p: s for p, s in after.items() if ".iovirt-" not in p} == runner.start_files
    assert middle or CUTS < 8
    runner.settle(WISHES[1])
    assert {p: s for p, s in lab.boot_files().items() if ".iovirt-" not in p} == runner.start_files
