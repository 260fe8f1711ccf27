# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a `devices` call that has nothing to do costs the host, against an empty module that runs `ip` once.

usage: python tests/bench/noop.py [--lab NAME] [--rounds N] [--pipelining]

A host with 4 ports and 28 VFs, half of them on vfio-pci. Without --lab it is the simulated kernel's, written to a folder
as files and read by the real file system code. With --lab it is a lab host that was started with `--igb-ports 4`.

Ansible is as it comes: without pipelining. With it Python reads the module from its standard input, and for a module of one
long line that costs far more than its length (docs/dev/benchmarks.md); --pipelining shows how much, without a bound.

Counted is the user and system time of the module's Python and of all that it starts, from its start on: bash's `times`
around it (getrusage(2), RUSAGE_CHILDREN). Both modules take their turns in one play, over one connection.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BOUND = 1.3
WISHES: dict[str, Any] = {
    "sriov": [{"match": {"driver": ["igb"]}, "expect": 4, "vf_count": 7, "vfs": [{"range": "0-3", "driver": "vfio-pci"}]}],
    "vfio": [],
}


def play(folder: Path, inventory: str, host: str, tasks: list[dict[str, Any]], pipelining: bool = False) -> None:
    """Run the tasks by one play over one connection."""
    book = folder / "play.yml"
    book.write_text(yaml.safe_dump(
        # A variable of the inventory would count for more than the environment.
        [{"hosts": host, "gather_facts": False, "vars": {"ansible_pipelining": pipelining}, "tasks": tasks}], sort_keys=False
    ))
    environment = {**os.environ, "ANSIBLE_LIBRARY": str(HERE / "library"), "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    argv = ["ansible-playbook", "-i", inventory, str(book)]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        sys.exit(f"error: the play failed:\n{done.stdout[-3000:]}{done.stderr[-2000:]}")


def pairs(folder: Path, measured: str, rounds: int) -> list[dict[str, Any]]:
    """Both modules in turn, with what the measured one is called here; before them one run that makes all as wished."""
    wrapped = {"ansible_python_interpreter": f"{folder}/python"}
    tasks: list[dict[str, Any]] = [{"name": "as wished", measured: WISHES, "vars": wrapped}]
    for number in range(rounds + 1):
        tasks.append({"name": f"floor {number}", "iovirt_floor": {}, "vars": wrapped})
        tasks.append({"name": f"devices {number}", measured: WISHES, "vars": wrapped, "register": "said",
                      "failed_when": "said is failed or said is changed"})  # fmt: skip
    return tasks


def wrapper(folder: Path, environment: str = "") -> str:
    """A python3 that notes the CPU time of each of its runs."""
    return f'#!/bin/bash\n{environment}/usr/bin/python3 "$@"\ncode=$?\ntimes >>{folder}/times\nexit $code\n'


def seconds(text: str) -> float:
    """'0m0.123s 0m0.045s' -> 0.168"""
    total = 0.0
    for word in text.split():
        minutes, _m, rest = word.rstrip("s").partition("m")
        total += int(minutes) * 60 + float(rest)
    return total


def report(where: str, text: str) -> float:
    """The ratio, from the times of floor and devices in turn; the run before them makes the host as wished and the first pair warms up."""
    times = [seconds(line) for line in text.splitlines()[1::2]][3:]
    floor, devices = times[0::2], times[1::2]
    ratio = statistics.median(b / a for a, b in zip(floor, devices))
    print(
        f"no-op devices, {where}: floor {statistics.median(floor) * 1000:.0f} ms, devices "
        f"{statistics.median(devices) * 1000:.0f} ms of CPU, {len(floor)} pairs: ratio {ratio:.2f} (bound {BOUND}, without pipelining)"
    )
    return ratio


# --- The simulated host as files -----------------------------------------------------------------------------------


def plant(root: Path) -> list[Any]:
    """The simulated host, as wished, below a folder; what `ip -j -d addr show` prints of it."""
    from ansible_collections.iovirt.host.plugins.module_utils._engine import engine
    from ansible_collections.iovirt.host.plugins.module_utils._engine.resources.common import Options
    from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import lab
    from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import Link, Pci

    sim = lab(igbvf_loaded=True)
    for number in (2, 3):
        sim.add(Pci(f"0000:8{number + 2}:00.0", "8086:10c9", "020000", subsystem="8086:a04c", total_vfs=7, offset=0x180,
                    stride=2, vf_ids="8086:10ca", ifname=f"enp{130 + number}s0", mac=f"52:54:00:00:01:0{number}"))  # fmt: skip
    # Real hosts have functions that no driver claims, and a table of aliases of this length.
    sim.add(Pci("0000:00:00.0", "8086:29c0", "060000"))
    sim.reboot()
    engine.devices(sim.host(), WISHES, Options(), engine.Call())
    # A host without systemd: nothing of this machine is to be reloaded.
    del sim.files["/run/systemd/system/.keep"]
    sim._tree = None
    for path, node in sim._nodes().items():
        real = root / path.lstrip("/")
        real.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(node, Link):
            target = os.path.normpath(os.path.join(os.path.dirname(path), node.target))
            real.symlink_to(node.target if "/" not in node.target else os.path.relpath(target, os.path.dirname(path)))
        else:
            real.write_text(node)
    aliases = next(root.glob("lib/modules/*/modules.alias"))
    more = "".join(f"alias pci:v{n:08X}d{n * 3:08X}sv*sd*bc*sc*i* module{n}\n" for n in range(0xF000, 0xF000 + 15000))
    aliases.write_text(aliases.read_text() + more)
    return sim._ip()


def on_tree(rounds: int, pipelining: bool) -> float:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "links.json").write_text(json.dumps(plant(folder / "root")))
        (folder / "bin").mkdir()
        (folder / "bin" / "ip").write_text(f"#!/bin/sh\nexec cat {folder}/links.json\n")
        (folder / "bin" / "ip").chmod(0o755)
        environment = f"export IOVIRT_BENCH_ROOT={folder}/root PATH={folder}/bin:$PATH\n"
        (folder / "python").write_text(wrapper(folder, environment))
        (folder / "python").chmod(0o755)
        here = {"name": "here", "ansible.builtin.set_fact": {"ansible_connection": "local"}}
        play(folder, "localhost,", "localhost", [here, *pairs(folder, "iovirt_devices_on_tree", rounds)], pipelining)
        return report("tree of files, this machine" + ", pipelining" * pipelining, (folder / "times").read_text())


# --- The lab host --------------------------------------------------------------------------------------------------


def lab_command(*words: str) -> str:
    done = subprocess.run([str(ROOT / "lab" / "lab"), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: lab {' '.join(words[:2])}: {done.stdout}{done.stderr}")
    return done.stdout


def on_lab(host: str, rounds: int, pipelining: bool) -> float:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "hosts.yml").write_text(lab_command("inventory", host))
        prepare = [
            {"name": "same folder there", "ansible.builtin.file": {"path": name, "state": "directory", "mode": "0700"}},
            {"name": "wrapper", "ansible.builtin.copy": {"content": wrapper(folder), "dest": f"{folder}/python", "mode": "0755"}},
        ]
        play(folder, str(folder / "hosts.yml"), host, [*prepare, *pairs(folder, "iovirt.host.devices", rounds)], pipelining)
        times = lab_command("ssh", host, "--", f"cat {folder}/times; rm -r {folder}")
        return report(f"lab host {host}" + ", pipelining" * pipelining, times)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lab", metavar="NAME")
    parser.add_argument("--rounds", type=int, default=14)
    parser.add_argument("--pipelining", action="store_true")
    args = parser.parse_args()
    how = (args.rounds, args.pipelining)
    ratio = on_lab(args.lab, *how) if args.lab else on_tree(*how)
    return 0 if ratio <= BOUND or args.pipelining else 1


if __name__ == "__main__":
    sys.exit(main())
