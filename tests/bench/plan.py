# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast the engine is, on the simulated kernel: ratios, so that they mean the same on every machine.

usage: make bench
"""

from __future__ import annotations

import sys
import time

from ansible_collections.iovirt.host.plugins.module_utils._engine import engine
from ansible_collections.iovirt.host.plugins.module_utils._engine.read import Needs, read_state
from ansible_collections.iovirt.host.plugins.module_utils._engine.resources.common import Options
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import lab
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import Pci, SimKernel

ROUNDS = 5


def host_with(ports: int) -> SimKernel:
    """The lab host with ports of 64 VFs each beside its own."""
    sim = lab()
    for number in range(ports):
        sim.add(Pci(f"0000:{0xA0 + number * 4:02x}:00.0", "8086:10c9", "020000", total_vfs=64, offset=8, stride=1, vf_ids="8086:10ca", ifname=f"big{number}"))
    sim.reboot()
    return sim


def wishes(ports: int) -> dict[str, list[dict[str, object]]]:
    return {
        "sriov": [
            {"match": {"address": [f"0000:{0xA0 + n * 4:02x}:00.0"]}, "vf_count": 64, "vfs": [{"range": "0-31", "driver": "vfio-pci"}]}
            for n in range(ports)
        ]
    }


def plan_time(ports: int) -> float:
    """Seconds of the fastest of some plans for 64 VFs a port."""
    sim = host_with(ports)
    state = read_state(sim.host(), Needs(drivers=frozenset({"vfio-pci"})))
    times = []
    for _round in range(ROUNDS):
        begin = time.perf_counter()
        plan = engine.plan_devices(sim.host(), state, wishes(ports), Options(), declare=True)
        times.append(time.perf_counter() - begin)
        if plan.refusals or len(plan.actions) < ports * 33:
            sys.exit(f"error: the plan is not what is measured: {plan.refusals or plan.actions}")
    return min(times)


def main() -> int:
    base = plan_time(1)
    print("plan, by number of VFs (1.00 = linear from 64 on):")
    for ports in (1, 2, 4, 8):
        seconds = plan_time(ports)
        print(f"  {ports * 64:4d} VFs  {seconds * 1000:7.2f} ms  {seconds / ports / base:5.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
