# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A simulated NVMe controller with secondary controllers, and nvme-cli 2.13 in front of it.

Its answers are those of QEMU 11.1's controller to Debian 13's nvme-cli on the lab host, word by word; what it does is
that of nvme_virt_mngmt() in QEMU's hw/nvme/ctrl.c and of NVM Express Base Specification, Virtualization Enhancements.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

_STATE = (
    "NVMe status: Invalid Secondary Controller State: The requested secondary controller action is invalid based on "
    "the secondary and primary controllers current states(0x4120)\n"
)
_NUMBER = (
    "NVMe status: Invalid Number of Controller Resources: The specified number of Flexible Resources is "
    "invalid(0x4121)\n"
)
_RESOURCE = "NVMe status: Invalid Resource Identifier: At least one of the specified resource identifiers was invalid(0x4122)\n"
_CONTROLLER = "NVMe status: Invalid Controller Identifier: An invalid controller id was specified(0x411f)\n"

QUEUES, INTERRUPTS = 0, 1


@dataclass
class Secondary:
    """A secondary controller; it is there whether or not its VF is."""

    resources: list[int] = field(default_factory=lambda: [0, 0])
    online: bool = False

    def offline(self) -> None:
        """It loses all flexible resources (nvme_virt_set_state)."""
        self.online, self.resources = False, [0, 0]


@dataclass
class Nvme:
    """A primary controller with flexible queues and interrupts."""

    vfs: int = 4
    flexible: tuple[int, int] = (8, 4)
    most: tuple[int, int] = (2, 1)
    #: What the primary keeps, now and from its next function level reset on.
    primary: list[int] = field(default_factory=lambda: [0, 0])
    next_primary: list[int] = field(default_factory=lambda: [0, 0])
    secondaries: dict[int, Secondary] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.secondaries = {index + 1: Secondary() for index in range(self.vfs)}

    def all_offline(self) -> None:
        """With every reset of the primary, and with VF Enable going off."""
        for secondary in self.secondaries.values():
            secondary.offline()

    def function_reset(self) -> None:
        self.all_offline()
        self.primary = list(self.next_primary)

    def free(self, kind: int) -> int:
        used = sum(secondary.resources[kind] for secondary in self.secondaries.values())
        return self.flexible[kind] - self.primary[kind] - used

    def facts(self) -> dict[int, tuple[int, int, bool]]:
        """VF index -> queues, interrupts, online."""
        return {i - 1: (s.resources[0], s.resources[1], s.online) for i, s in self.secondaries.items()}

    # --- nvme-cli --------------------------------------------------------------------------------------------------

    def run(self, command: str, options: dict[str, str], born: int) -> tuple[int, str, str]:
        """`born` is the number of VFs that are there."""
        if command == "list-secondary":
            return 0, self._list(int(options["-c"])), ""
        if command == "primary-ctrl-caps":
            return 0, self._capabilities(), ""
        action, kind, number = int(options["-a"]), int(options["-r"]), int(options["-n"])
        error = self._manage(action, int(options["-c"]), kind, number, born)
        if error:
            return 1, "", error
        done = number if action in (1, 8) else 0
        return 0, f"success, Number of Controller Resources Modified (NRM):{f'{done:#x}' if done else '0'}\n", ""

    def _list(self, first: int) -> str:
        found = [(number, s) for number, s in self.secondaries.items() if number >= first][:127]
        entries: list[dict[str, Any]] = [
            {
                "secondary-controller-identifier": number,
                "primary-controller-identifier": 0,
                "secondary-controller-state": int(s.online),
                "virtual-function-number": number,
                "num-virtual-queues": s.resources[QUEUES],
                "num-virtual-interrupts": s.resources[INTERRUPTS],
            }
            for number, s in found
        ]
        return json.dumps({"num": len(entries), "secondary-controllers": entries}, indent=2)

    def _capabilities(self) -> str:
        used = [sum(s.resources[kind] for s in self.secondaries.values()) for kind in (QUEUES, INTERRUPTS)]
        return json.dumps(
            {
                "cntlid": 0, "portid": 0, "crt": 3,
                "vqfrt": self.flexible[0], "vqrfa": used[0], "vqrfap": self.primary[0], "vqprt": 3,
                "vqfrsm": self.most[0], "vqgran": 1,
                "vifrt": self.flexible[1], "virfa": used[1], "virfap": self.primary[1], "viprt": 5,
                "vifrsm": self.most[1], "vigran": 1,
            },
            indent=2,
        )

    def _manage(self, action: int, number: int, kind: int, amount: int, born: int) -> str:
        if action == 1:
            return self._keep(number, kind, amount)
        secondary = self.secondaries.get(number)
        if secondary is None:
            return _CONTROLLER
        if action == 7:
            secondary.offline()
        elif action == 8:
            if secondary.online:
                return _STATE
            if amount > self.most[kind]:
                return _NUMBER
            if amount - secondary.resources[kind] > self.free(kind):
                return _RESOURCE
            secondary.resources[kind] = amount
        elif action == 9:
            if secondary.resources[QUEUES] < 2 or not secondary.resources[INTERRUPTS] or number > born:
                return _STATE
            secondary.online = True
        return ""

    def _keep(self, number: int, kind: int, amount: int) -> str:
        if number != 0:
            return _CONTROLLER
        if amount > self.flexible[kind]:
            return _NUMBER
        if amount > self.primary[kind] + self.free(kind):
            return _RESOURCE
        self.next_primary[kind] = amount
        return ""
