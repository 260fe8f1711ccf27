# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated kernel answers as the lab's real one, call by call. Where they differ the simulated one is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible_collections.iovirt.host.tests.lab import ip_calls, kernel_calls
from ansible_collections.iovirt.host.tests.lab.test_lab import converge
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils import hosts


def test_the_simulated_kernel_answers_as_the_real_one(wishes: dict[str, Any], lab: Any) -> None:
    script = Path(kernel_calls.__file__).read_text()
    places = lab.shell(
        "echo $(basename $(ls -d /sys/bus/pci/drivers/igb/0* | tail -1)) "
        "$(lspci -Dnd 1234:11e8 | cut -d' ' -f1) $(basename $(echo /sys/bus/pci/drivers/nvme/0*))"
    ).split()
    # The replay would put back what the list takes away.
    lab.shell("mv /etc/udev/rules.d/99-iovirt.rules /root/kept.rules; udevadm control --reload; modprobe -a igbvf vfio-pci")
    try:
        lab.shell(BARE % tuple(places))
        told = json.loads(lab.shell(f"python3 - {' '.join(places)} <<'END'\n{script}\nEND", limit=300))
    finally:
        lab.shell("mv /root/kept.rules /etc/udev/rules.d/99-iovirt.rules; udevadm control --reload")
        converge(lab, wishes)
    assert compared(told) == []


BARE = """pf=%s edu=%s nvme=%s; cd /sys/bus/pci/devices
echo 0 >$pf/sriov_numvfs; echo 0 >$nvme/sriov_numvfs; echo >$edu/driver_override; echo $edu >$edu/driver/unbind"""


def compared(told: list[Any]) -> list[str]:
    """The calls that the two kernels answer otherwise."""
    sim = hosts.lab(igbvf_loaded=True, vfio_loaded=True)
    places = {"@PF@": hosts.PF2, "@EDU@": hosts.EDU, "@NVME@": hosts.NVME}
    simulated = json.loads(json.dumps(kernel_calls.answers(sim, places)))
    assert len(told) == len(simulated) == len(kernel_calls.CALLS)
    return [
        f"{number}: {data[:20]!r} to {path}: the real kernel {real}, the simulated one {sim_}"
        for number, ((path, data), real, sim_) in enumerate(zip(kernel_calls.CALLS, told, simulated))
        if real != sim_
    ]


def test_the_simulated_ip_answers_as_the_real_one(wishes: dict[str, Any], lab: Any) -> None:
    """The attributes of igb's VFs, line by line of a batch."""
    script = Path(ip_calls.__file__).read_text()
    port, name = lab.shell("p=$(ls -d /sys/bus/pci/drivers/igb/0* | tail -1); echo $(basename $p) $(ls $p/net)").split()
    lab.shell("mv /etc/udev/rules.d/99-iovirt.rules /root/kept.rules; udevadm control --reload")
    try:
        lab.shell(TWO_VFS % (port, name))
        told = json.loads(lab.shell(f"python3 - {name} <<'END'\n{script}\nEND", limit=300))
    finally:
        back = f"echo 0 >/sys/bus/pci/devices/{port}/sriov_numvfs; echo 1 >/sys/bus/pci/devices/{port}/sriov_drivers_autoprobe"
        lab.shell(f"{back}; mv /root/kept.rules /etc/udev/rules.d/99-iovirt.rules; udevadm control --reload")
        converge(lab, wishes)
    assert compared_ip(told) == []


TWO_VFS = """cd /sys/bus/pci/devices/%s; echo 0 >sriov_numvfs; echo 0 >sriov_drivers_autoprobe; echo 2 >sriov_numvfs; ip link set %s down"""


def compared_ip(told: list[Any]) -> list[str]:
    """The lines that the two answer otherwise."""
    sim = hosts.lab()
    sim.write(f"{kernel_calls.DEVICES}/{hosts.PF2}/sriov_drivers_autoprobe", "0")
    sim.write(f"{kernel_calls.DEVICES}/{hosts.PF2}/sriov_numvfs", "2")
    simulated = json.loads(json.dumps(ip_calls.answers(sim.run, "enp130s0")))
    assert len(told) == len(simulated) == len(ip_calls.LINES)
    return [f"{line}: the real ip {real}, the simulated one {sim_}" for line, real, sim_ in zip(ip_calls.LINES, told, simulated) if real != sim_]
