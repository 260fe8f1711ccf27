# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is asked of mstconfig (package mstflint): the SR-IOV settings of a card's firmware, now and from the next boot on.

Its table has one column for each of Default, Current and Next Boot, of which firmware that cannot tell the first two
shows the last alone; its widths differ between versions, and errors come on standard output (mlxconfig/mlxcfg_ui.cpp,
MlxCfg::printConfHeader, printSingleParam and err).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .errors import EngineError
from .host import Host

#: Fact -> parameter of the firmware.
PARAMETERS = {"sriov": "SRIOV_EN", "vf_count": "NUM_OF_VFS"}

_COLUMNS = re.compile(r"Default|Current|Next Boot")
_SWITCH = {"True(1)": True, "False(0)": False}


def query(host: Host, address: str) -> dict[str, dict[str, Any]]:
    """Fact -> {'current': value or None where the firmware does not tell, 'next': value}. Raises EngineError with what
    mstconfig said."""
    code, out, err = host.run(["mstconfig", "-d", address, "-e", "q", *PARAMETERS.values()])
    if code == 127:
        raise EngineError("the command mstconfig is not there. Install the package mstflint.")
    if code:
        raise EngineError(_failure(host, out, err))
    return parse(out)


def parse(text: str) -> dict[str, dict[str, Any]]:
    """The table of `mstconfig -e q SRIOV_EN NUM_OF_VFS`."""
    header = re.search(r"^Configurations:.*$", text, re.MULTILINE)
    columns = _COLUMNS.findall(header.group()) if header else []
    found = {}
    for fact, parameter in PARAMETERS.items():
        row = re.search(rf"^\*?\s*{parameter}\s+(\S.*)$", text, re.MULTILINE)
        values = row.group(1).split() if row else []
        if not columns or len(values) != len(columns):
            raise EngineError(f"mstconfig shows no {parameter} in a form that is known here.")
        cells = dict(zip(columns, values))
        found[fact] = {"current": _value(cells.get("Current", "N/A")), "next": _value(cells["Next Boot"])}
        if found[fact]["next"] is None:
            raise EngineError(f"mstconfig shows no value of {parameter} for the next boot.")
    return found


def _value(cell: str) -> bool | int | None:
    """'True(1)', 'False(0)', '8', or 'N/A' where it could not be read."""
    if cell in _SWITCH:
        return _SWITCH[cell]
    return int(cell) if cell.isdigit() else None


def _failure(host: Host, out: str, err: str) -> str:
    errors = re.findall(r"^-E-\s*(.*)$", out + "\n" + err, re.MULTILINE)
    text = f"mstconfig failed: {' '.join(errors) or ' '.join((err or out).split()) or 'without a word'}."
    lockdown = host.files.attr("/sys/kernel/security/lockdown") or ""
    mode = re.search(r"\[(\w+)\]", lockdown)
    if mode and mode.group(1) != "none":
        text += (
            f" The kernel is locked down ({mode.group(1)}), which forbids raw access to PCI devices; with Secure Boot on, "
            "set the firmware in the firmware setup, or once with Secure Boot off."
        )
    return text


def set_next(host: Host, args: Mapping[str, Any]) -> None:
    """Step: write what shall hold from the next boot on."""
    _set(host, args["address"], args["to"])


def undo_next(host: Host, args: Mapping[str, Any]) -> None:
    """Step back: what held for the next boot before."""
    _set(host, args["address"], args["from"])


def _set(host: Host, address: str, wanted: Mapping[str, Any]) -> None:
    words = [f"{PARAMETERS[fact]}={value}" for fact, value in wanted.items()]
    code, out, err = host.run(["mstconfig", "-d", address, "-y", "set", *words])
    if code:
        raise EngineError(_failure(host, out, err))
    now = query(host, address)
    wrong = [f"{PARAMETERS[f]} {now[f]['next']} instead of {v}" for f, v in wanted.items() if now[f]["next"] != v]
    if wrong:
        raise EngineError(f"mstconfig answered success, but the next boot has {', '.join(wrong)}.")
