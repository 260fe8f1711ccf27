# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A simulated ConnectX card's firmware, and mstconfig in front of it.

Synthetic: no such card was ever seen by this project. The form of the table is that of mstflint's
mlxconfig/mlxcfg_ui.cpp (printConfHeader, printSingleParam, setDevCfg); the errors are those that its issues 416
and 1371 quote, and of a device that is none, seen on the lab host with mstflint 4.31.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

NOT_ITS_DEVICE = "-E- Failed to open the device\n"

_Settings = dict[str, Any]


@dataclass
class Firmware:
    """The settings of one card."""

    current: _Settings = field(default_factory=lambda: {"SRIOV_EN": True, "NUM_OF_VFS": 4})
    next: _Settings = field(default_factory=dict)
    default: _Settings = field(default_factory=lambda: {"SRIOV_EN": False, "NUM_OF_VFS": 0})
    #: Old firmware tells of the next boot alone.
    tells_current: bool = True
    #: What it answers instead.
    error: str = ""
    #: Says yes and keeps nothing.
    forgetful: bool = False

    def __post_init__(self) -> None:
        self.next = self.next or dict(self.current)

    def boot(self) -> None:
        self.current = dict(self.next)

    def run(self, words: list[str]) -> tuple[int, str, str]:
        if self.error:
            return 3, self.error, ""
        if "set" in words:
            return self._set(dict(word.split("=") for word in words[words.index("set") + 1 :]))
        return 0, self._table(words[1], words[words.index("q") + 1 :]), ""

    def _set(self, wanted: dict[str, str]) -> tuple[int, str, str]:
        for name, text in wanted.items():
            if not self.forgetful:
                self.next[name] = text == "True" if name == "SRIOV_EN" else int(text)
        return 0, "\nApplying... Done!\n-I- Please reboot machine to load new configurations.\n", ""

    def _table(self, device: str, names: list[str]) -> str:
        columns = [self.default, self.current, self.next] if self.tells_current else [self.next]
        known = f"{'Default':>36}{'Current':>16}{'Next Boot':>18}" if self.tells_current else f"{'Next Boot':>38}"
        header = f"{'Configurations:':16}{known}"
        lines = ["", "Device #1:", "----------", "", "Device type:    ConnectX5       ", f"Device:         {device}    ", "", header]
        for name in names:
            star = "*" if any(column[name] != self.next[name] for column in columns) else " "
            lines.append(f"{star}        {name:36}" + "".join(f"{_cell(column[name]):16}" for column in columns))
        if not self.tells_current:
            lines.append("Device Firmware does not support reading default and current configurations")
        return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    return f"{value}({int(value)})" if isinstance(value, bool) else str(value)
