# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Making VFs with all that a guest's needs, by the module `devices` and by the best shell script for it.

usage: python tests/bench/vfs.py --lab NAME [--rounds N]

14 VFs on two igb ports, each with MAC, VLAN, trust and spoof check, 8 of them on vfio-pci, the others on igbvf. Both begin
on the same lab host with no VFs, with both drivers loaded and with udev at rest; both are tasks of one play, over one connection. Counted is
the time on the clock of the host from the start of the task's Python to its end. The edu device stays declared, so that
the replay is there before; noting the ports in its files, and the record, is part of what the module does.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from noop import lab_command, play

BOUND = 1.2
EDU: dict[str, Any] = {"match": {"vendor": ["1234"], "device": ["11e8"]}}


def mac(port: int, vf: int) -> str:
    return f"02:00:00:00:{port:02x}:{vf:02x}"


def wishes() -> dict[str, Any]:
    def vf(port: int, index: int) -> dict[str, Any]:
        return {"range": str(index), "driver": "vfio-pci" if index < 4 else "default", "mac": mac(port, index)}

    common = {"vlan": 100, "trust": True, "spoof_check": True}
    return {
        "sriov": [
            {"match": {"slot": [str(port)]}, "vf_count": 7, "vf_defaults": common, "vfs": [vf(port, n) for n in range(7)]}
            for port in (1, 2)
        ],
        "vfio": [EDU],
    }


def script() -> str:
    """Probing off, the counts, one batch for all attributes, overrides, probing on, one probe a VF. No step waits for
    anything that it does not need, and no process is started but one `ip`."""
    macs = " ".join(f"mac_{port}_{index}={mac(port, index)}" for port in (1, 2) for index in range(7))
    return f"""set -e
{macs}
cd /sys/bus/pci/devices
port=0
for pf in $(for slot in 1 2; do read -r at </sys/bus/pci/slots/$slot/address; echo "$at.0"; done); do
  port=$((port + 1))
  echo 0 >$pf/sriov_drivers_autoprobe
  echo 7 >$pf/sriov_numvfs
  set -- $pf/net/*; name=${{1##*/}}
  for vf in 0 1 2 3 4 5 6; do
    declare -n address=mac_${{port}}_$vf
    batch+="link set dev $name vf $vf mac $address vlan 100 trust on spoofchk on"$'\\n'
  done
  pfs+=" $pf"
done
ip -batch - <<<"$batch"
for pf in $pfs; do
  for vf in 0 1 2 3; do echo vfio-pci >$pf/virtfn$vf/driver_override; done
  echo 1 >$pf/sriov_drivers_autoprobe
  for link in $pf/virtfn*; do
    target=$(readlink $link); echo ${{target##*/}} >/sys/bus/pci/drivers_probe
  done
done
"""


def timing(folder: Path) -> str:
    return (
        '#!/bin/bash\nbegin=$EPOCHREALTIME\n/usr/bin/python3 "$@"\ncode=$?\n'
        f'echo "$begin $EPOCHREALTIME" >>{folder}/times\nexit $code\n'
    )


def tasks(folder: Path, rounds: int) -> list[dict[str, Any]]:
    wrapped = {"ansible_python_interpreter": f"{folder}/python"}
    bare = {"iovirt.host.devices": {"sriov": [], "vfio": [EDU], "exclusive": ["sriov"]}, "name": "bare"}
    zero = "for slot in 1 2; do read -r at </sys/bus/pci/slots/$slot/address; echo 0 >/sys/bus/pci/devices/$at.0/sriov_numvfs; done"
    seen = (
        'test "$(ls -d /sys/bus/pci/drivers/vfio-pci/0* | wc -l)" = 9 && test "$(ls -d /sys/bus/pci/drivers/igbvf/0* | wc -l)" = 6'
        ' && test "$(ip link show | grep -c "vlan 100, spoof checking on.*trust on")" = 14'
    )

    def shell(name: str, text: str) -> dict[str, Any]:
        return {"name": name, "ansible.builtin.shell": {"cmd": text, "executable": "/bin/bash"}}

    # What has just gone keeps udev at work for a second and more, in emulation, and whoever comes next would pay for it.
    settled = shell("rest", "udevadm settle; sleep 1")
    result = [
        {"name": "folder", "ansible.builtin.file": {"path": str(folder), "state": "directory", "mode": "0700"}},
        {"name": "wrapper", "ansible.builtin.copy": {"content": timing(folder), "dest": f"{folder}/python", "mode": "0755"}},
        shell("drivers", "modprobe -a igbvf vfio-pci"),
        bare,
    ]
    for _round in range(rounds):
        result += [
            settled, {**shell("script", script()), "vars": wrapped}, shell("is it so", seen), shell("zero", zero),
            settled, {"name": "devices", "iovirt.host.devices": wishes(), "vars": wrapped}, shell("is it so", seen), bare,
        ]  # fmt: skip
    return result


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lab", metavar="NAME", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "hosts.yml").write_text(lab_command("inventory", args.lab))
        play(folder, str(folder / "hosts.yml"), args.lab, tasks(folder, args.rounds))
        times = lab_command("ssh", args.lab, "--", f"cat {folder}/times; rm -r {folder}")
    spans = [float(line.split()[1]) - float(line.split()[0]) for line in times.splitlines()]
    shells, modules = spans[0::2], spans[1::2]
    # A machine that is busy for a moment shows here, and not in a median.
    print("pairs, in seconds: " + ", ".join(f"{a:.2f} and {b:.2f}" for a, b in zip(shells, modules)))
    ratio = statistics.median(b / a for a, b in zip(shells, modules))
    print(
        f"14 VFs with attributes, lab host {args.lab}: shell {statistics.median(shells):.2f} s, devices "
        f"{statistics.median(modules):.2f} s, {len(shells)} pairs: ratio {ratio:.2f} (at most {BOUND})"
    )
    return 0 if ratio <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
