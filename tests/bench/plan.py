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

ROUNDS = 9
#: Seconds that a plan for 512 VFs may take; and how much dearer a VF among 512 may be than one among 64.
BOUND, BEND = 0.3, 1.6


def host_with(ports: int, each: int) -> SimKernel:
    """The lab host with ports of so many VFs each beside its own."""
    sim = lab()
    for number in range(ports):
        sim.add(Pci(f"0000:{0xA0 + number * 4:02x}:00.0", "8086:10c9", "020000", total_vfs=each, offset=8, stride=1, vf_ids="8086:10ca", ifname=f"big{number}"))
    sim.reboot()
    return sim


def wishes(ports: int, each: int, attributes: bool) -> dict[str, list[dict[str, object]]]:
    """Every VF named for itself, with attributes or without, every second one on vfio-pci."""

    def vf(port: int, index: int) -> dict[str, object]:
        mac = f"02:00:00:{port:02x}:{index >> 8:02x}:{index & 255:02x}"
        told = {"mac": mac, "vlan": 100, "trust": True, "spoof_check": True} if attributes else {}
        return {"range": str(index), "driver": "vfio-pci" if index % 2 else "default", **told}

    return {
        "sriov": [
            {"match": {"address": [f"0000:{0xA0 + n * 4:02x}:00.0"]}, "vf_count": each, "vfs": [vf(n, index) for index in range(each)]}
            for n in range(ports)
        ]
    }


def plan_time(ports: int, each: int, attributes: bool) -> float:
    """Seconds of CPU of the fastest of some plans."""
    sim = host_with(ports, each)
    state = read_state(sim.host(), Needs(drivers=frozenset({"vfio-pci"})))
    times = []
    for _round in range(ROUNDS):
        begin = time.process_time()
        plan = engine.plan_devices(sim.host(), state, wishes(ports, each, attributes), Options(), declare=True)
        times.append(time.process_time() - begin)
        if plan.refusals or len(plan.actions) < ports * (each // 2 + 1):
            sys.exit(f"error: the plan is not what is measured: {(plan.refusals or plan.actions)[:3]}")
    return min(times)


#: Ports, VFs of each, with attributes? One port of 512 has none: the kernel could not show them (link.SHOWN).
CASES = ((1, 64, True), (1, 128, True), (1, 256, True), (2, 256, True), (8, 64, True), (1, 64, False), (1, 512, False))


def main() -> int:
    base = {attributes: plan_time(1, 64, attributes) for attributes in (True, False)}
    bend = share = 0.0
    print("plan, by number of VFs (1.00 = linear from 64 on):")
    for ports, each, attributes in CASES:
        seconds = plan_time(ports, each, attributes)
        vfs = ports * each
        now = seconds / vfs * 64 / base[attributes]
        bend, share = max(bend, now), max(share, seconds / BOUND)
        kind = "drivers and attributes" if attributes else "drivers"
        print(f"  {vfs:4d} VFs on {ports} port{'s' if ports > 1 else ''}, {kind}  {seconds * 1000:7.2f} ms  {now:5.2f}")
    print(f"plan for 512 VFs: ratio {share:.2f} of {BOUND} s (at most 1), a VF's cost {bend:.2f} times that among 64 (at most {BEND})")
    return 0 if share <= 1 and bend <= BEND else 1


if __name__ == "__main__":
    sys.exit(main())
