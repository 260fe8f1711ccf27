# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The operator's command on the host, and the command that the boot units run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from . import engine, replay, store
from .errors import EngineError
from .host import FileSystem, Host, run_command
from .read import Needs, read_state
from .resources import sriov, vfio
from .resources.common import Options

USAGE = """usage: iovirt COMMAND [--json]

  status            the devices that the collection owns, as they are now
  plan              what 'apply' would do; exit status 2 when that is anything
  apply             make the declared devices as they were declared
  replay            what the boot unit runs: wait for the drivers, then apply
    --device ADDR   only this device
"""


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 well, 1 something failed, 2 there is something to do (plan) or the call was wrong."""
    host = Host(files=FileSystem("/"), run=run_command, python=sys.executable)
    words = [word for word in arguments if word != "--json"]
    as_json = len(words) != len(arguments)
    if os.geteuid() != 0:
        sys.stderr.write("iovirt: it needs root: a part of what guards look at is hidden from everybody else.\n")
        return 1
    try:
        return _dispatch(host, words, as_json)
    except EngineError as error:
        sys.stderr.write(f"iovirt: {error}\n")
        return 1


def _dispatch(host: Host, words: Sequence[str], as_json: bool) -> int:
    if words == ["status"]:
        return _status(host, as_json)
    if words in (["plan"], ["apply"]):
        return _converge(host, check=words == ["plan"], as_json=as_json)
    if words and words[0] == "replay" and (len(words) == 1 or (len(words) == 3 and words[1] == "--device")):
        return _replay(host, words[2] if len(words) == 3 else None, as_json)
    sys.stderr.write(USAGE)
    return 2


def _status(host: Host, as_json: bool) -> int:
    state = read_state(host, Needs())
    wishes, _missing = replay.wishes_of(state, replay.entries_of(state.stored))
    state = engine.read_more(host, state, wishes, Options())
    status: dict[str, Any] = {}
    for name, resource in (("sriov", sriov), ("vfio", vfio)):
        facts = {item["match"]["address"][0]: item for item in resource.info(state)}
        declared = state.stored[name]["devices"]
        status[name] = {a: {"declared": entry["wish"], "now": facts.get(a)} for a, entry in declared.items()}
    _show(status, as_json, [f"{n} {a}: {json.dumps(e, sort_keys=True)}" for n in status for a, e in status[n].items()])
    return 0


def _converge(host: Host, check: bool, as_json: bool) -> int:
    declared = store.load_all(host.files)
    wishes, missing = replay.wishes_of(read_state(host, Needs()), replay.entries_of(declared))
    call = engine.Call(check=check, who="iovirt apply", declare=False)
    result = replay.converge(host, wishes, replay.granted(declared), call)
    result["failures"].update(missing)
    _show(result, as_json, _lines(result))
    if result["failures"]:
        return 1
    return 2 if check and result["changed"] else 0


def _replay(host: Host, only: str | None, as_json: bool) -> int:
    result = replay.run(host, only)
    _show(result, as_json, _lines(result))
    return 1 if result["failures"] else 0


def _lines(result: Mapping[str, Any]) -> list[str]:
    lines = [f"{action['device']}: {action['text']} ({action['certainty']})" for action in result["actions"]]
    return [*lines, *result["failures"].values()] or ["nothing to do"]


def _show(value: Any, as_json: bool, lines: Sequence[str]) -> None:
    text = json.dumps(value, indent=2, sort_keys=True) if as_json else "\n".join(lines)
    sys.stdout.write(text + "\n")
