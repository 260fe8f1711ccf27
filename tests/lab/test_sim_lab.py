# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated kernel answers as the lab's real one, call by call. Where they differ the simulated one is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible_collections.iovirt.host.tests.lab import kernel_calls
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
