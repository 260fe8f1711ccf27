# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The operator's command on the host, and the command that the boot units run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Callable

from . import engine, replay
from .errors import EngineError
from .host import FileSystem, Host, begin_command, run_command, session
from .model import Lost, State
from .read import Needs, read_state
from .resources import mdev, vgpu
from .resources.common import Options
from .sriov import eswitch

USAGE = """usage: iovirt COMMAND [--json]

  status            the devices and guests that the collection owns: as declared, as they are, and whether they differ
  plan              what 'apply' would do
  apply             make the declared devices as they were declared
  replay            what the boot unit runs: wait for the drivers, then apply
    --device ADDR   only this device
    --after-link    wait for its link first, then do what needs one

exit status: 0 all is as declared, or was made so; 1 something failed; 2 there is something to do (status, plan), or
the call was wrong
"""


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 well, 1 something failed, 2 there is something to do (status, plan) or the call was wrong."""
    files = FileSystem("/")
    # Nobody has come in by ssh at boot; somebody may have who calls the command.
    environment = session(files, os.environ, os.getppid())
    host = Host(files=files, run=run_command, start=begin_command, python=sys.executable, environment=environment)
    words = [word for word in arguments if word != "--json"]
    as_json = len(words) != len(arguments)
    command = _command(words)
    if command is None:
        sys.stderr.write(USAGE)
        return 2
    if os.geteuid() != 0:
        sys.stderr.write("iovirt: it needs root: a part of what guards look at is hidden from everybody else.\n")
        return 1
    try:
        return command(host, as_json)
    except EngineError as error:
        sys.stderr.write(f"iovirt: {error}\n")
        return 1


def _command(words: Sequence[str]) -> Callable[[Host, bool], int] | None:
    if words == ["status"]:
        return _status
    if words in (["plan"], ["apply"]):
        return lambda host, as_json: _converge(host, words == ["plan"], as_json)
    options = [word for word in words[1:] if word != "--after-link"]
    if words[:1] == ["replay"] and (not options or (len(options) == 2 and options[0] == "--device")):
        only, after_link = (options[1] if options else None), len(options) < len(words) - 1
        # Each port waits for a link of its own.
        if only or not after_link:
            return lambda host, as_json: _replay(host, only, after_link, as_json)
    return None


# --- What is owned -------------------------------------------------------------------------------------------------


def _status(host: Host, as_json: bool) -> int:
    state = read_state(host, Needs())
    wishes, _missing_ones = replay.wishes_of(state)
    state = engine.read_more(host, state, wishes, Options())
    result = _plan(host, state)
    devices = [_found(state, result, *entry) for entry in replay.entries_of(state)]
    devices += [_missing(name, key, lost) for name, items in state.lost.items() for key, lost in items.items()]
    guests = _guests(host)
    lines = _table(devices) if devices or not guests else []
    _show({"devices": devices, "guests": guests}, as_json, lines + _guest_table(guests))
    if any(device["failure"] for device in devices):
        return 1
    return 2 if any(owned["differs"] for owned in [*devices, *guests]) else 0


def _plan(host: Host, state: State) -> dict[str, Any]:
    wishes, _missing = replay.wishes_of(state)
    return replay.converge(host, wishes, replay.granted(state), engine.Call(check=True, who="iovirt", declare=False))


def _found(state: State, result: Mapping[str, Any], name: str, address: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    actions = [action for action in result["actions"] if action["device"] == address]
    return {
        "resource": name,
        "device": address,
        "declared": entry["wish"],
        "declared_at": entry.get("declared_at", address),
        "by": entry.get("declared", {}).get("by", ""),
        "at": entry.get("declared", {}).get("at", ""),
        "now": _now(state, name, address),
        "differs": [action["text"] for action in actions],
        "failure": result["failures"].get(address, ""),
    }


def _now(state: State, name: str, address: str) -> Mapping[str, Any]:
    function = state.functions[address]
    if name == mdev.NAME:
        return mdev.now(state, address)
    if name == vgpu.NAME:
        return vgpu.now(state, address)
    if name == "vfio":
        return {"driver": function.driver}
    if name == "vmdq":
        return {"stations": engine.vmdq.declared_stations(state, function)}
    vfs = function.sriov.vfs if function.sriov else {}
    drivers = {index: state.functions[vf].driver for index, vf in vfs.items() if vf in state.functions}
    return {"vf_count": len(vfs), **eswitch.info(state, function), "vfs": {str(index): {"driver": driver} for index, driver in drivers.items()}}


def _missing(name: str, key: str, lost: Lost) -> dict[str, Any]:
    declared = lost.entry.get("declared", {})
    return {
        "resource": name,
        "device": key,
        "declared": lost.entry["wish"],
        "declared_at": lost.entry.get("declared_at", key),
        "by": declared.get("by", ""),
        "at": declared.get("at", ""),
        "now": None,
        "differs": [],
        "failure": lost.reason,
    }


def _guests(host: Host) -> list[dict[str, Any]]:
    """By libvirt's own files: it need not answer, and its Python module need not be there."""
    from .guests import facts

    record = facts.load(host.files)
    if not record:
        return []
    from . import libvirt
    from .guests import check
    from .guests.virt import Domain
    from .resources import guest

    domains = {name: Domain(name, "", inactive, live) for name, inactive, live in libvirt.domains(host.files)}
    found = facts.Facts(domains=domains, record=record)
    return [
        {
            "guest": name,
            "state": "not defined" if name not in domains else "running" if domains[name].active else "shut off",
            "functions": sorted(check.functions_of(domains[name])) if name in domains else [],
            "mdevs": sorted(check.mediated_of(domains[name])) if name in domains else [],
            "declared": entry["wish"],
            "by": entry.get("by", ""),
            "at": entry.get("at", ""),
            "differs": guest.drift(found, name),
        }
        for name, entry in sorted(record.items())
    ]


def _guest_table(guests: Sequence[Mapping[str, Any]]) -> list[str]:
    if not guests:
        return []
    rows = [("GUEST", "STATE", "DEVICES", "DIFFERS", "BY", "WHEN")]
    for item in guests:
        differs = "yes" if item["differs"] else "no"
        devices = ", ".join([*item["functions"], *item["mdevs"]]) or "-"
        rows.append((item["guest"], item["state"], devices, differs, item["by"] or "-", item["at"] or "-"))
    return _columns(rows) + [f"{item['guest']}: not as it was made: {text}" for item in guests for text in item["differs"]]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows]


def _table(devices: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line a device, then what is to be said of those that differ."""
    if not devices:
        return ["nothing is declared"]
    rows = [("DEVICE", "RESOURCE", "DECLARED", "NOW", "DIFFERS", "BY", "WHEN")]
    for device in devices:
        differs = "yes" if device["differs"] else "?" if device["failure"] else "no"
        now = "not there" if device["now"] is None else _in_short(device["now"])
        rows.append(
            (device["device"], device["resource"], _in_short(device["declared"]), now, differs, device["by"] or "-", device["at"] or "-")
        )
    lines = _columns(rows)
    for device in devices:
        if device["device"] != device["declared_at"]:
            lines.append(f"{device['device']}: it was declared at {device['declared_at']} and has moved since.")
        lines += [f"{device['device']}: to do: {text}" for text in device["differs"]]
        lines += [device["failure"]] if device["failure"] else []
    return lines


def _in_short(wish: Mapping[str, Any]) -> str:
    """'4 VFs: 0-1 vfio-pci, 2 igbvf', '2 stations' or 'vfio-pci'."""
    if "devices" in wish or "mdevs" in wish:
        return mdev.in_short(wish)
    if "vgpus" in wish:
        return vgpu.in_short(wish)
    if "driver" not in wish and "vfs" not in wish:
        stations = wish.get("stations") or []
        inside = [station for station in stations if station.get("offloaded")]
        number = f"{len(stations)} station{'' if len(stations) == 1 else 's'}"
        return f"{number}, {len(inside)} in hardware" if any("offloaded" in station for station in stations) else number
    if "vfs" not in wish:
        return str(wish.get("driver") or "no driver")
    count = wish.get("vf_count")
    runs: list[tuple[str, list[int]]] = []
    for index, vf in sorted((int(index), vf) for index, vf in wish["vfs"].items()):
        text = str(vf.get("driver") or "-")
        if runs and runs[-1][0] == text and runs[-1][1][-1] == index - 1:
            runs[-1][1].append(index)
        else:
            runs.append((text, [index]))
    parts = [f"{held[0]}{f'-{held[-1]}' if len(held) > 1 else ''} {text}" for text, held in runs]
    number = "VFs as found" if count is None else f"{count} VF{'' if count == 1 else 's'}"
    return f"{number}{': ' if parts else ''}{', '.join(parts)}"


# --- What is done ----------------------------------------------------------------------------------------------------


def _converge(host: Host, check: bool, as_json: bool) -> int:
    call = engine.Call(check=check, who="iovirt apply", declare=False)
    result = replay.converge_declared(host, call)
    _show(result, as_json, _lines(result))
    if result["failures"]:
        return 1
    return 2 if check and result["changed"] else 0


def _replay(host: Host, only: str | None, after_link: bool, as_json: bool) -> int:
    result = replay.run(host, only, after_link)
    _show(result, as_json, _lines(result))
    return 1 if result["failures"] else 0


def _lines(result: Mapping[str, Any]) -> list[str]:
    lines = [f"{action['device']}: {action['text']} ({action['certainty']})" for action in result["actions"]]
    return [*lines, *result["failures"].values()] or ["nothing to do"]


def _show(value: Any, as_json: bool, lines: Sequence[str]) -> None:
    text = json.dumps(value, indent=2, sort_keys=True) if as_json else "\n".join(lines)
    sys.stdout.write(text + "\n")
