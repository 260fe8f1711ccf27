# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The steps of MIG. nvidia-smi says 'All done.' also where it did nothing but note a wish, so each is read back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from ..errors import EngineError
from ..host import Host
from . import facts

Args = Mapping[str, Any]


def set_mode(host: Host, args: Args) -> None:
    _mode(host, args, args["to"])


def undo_mode(host: Host, args: Args) -> None:
    _mode(host, args, args["from"])


def _mode(host: Host, args: Args, wanted: bool) -> None:
    """It never resets a GPU by itself, but the driver of an Ampere may do that for the mode: so nobody may compute there."""
    _nobody(host, args["pf"], None)
    said = _smi(host, ["nvidia-smi", "-i", args["pf"], "-mig", "1" if wanted else "0"])
    modes = facts.mode(host, args["pf"])
    now, pending = (text == "Enabled" for text in modes)
    if pending != wanted or (args["at_once"] and now != wanted):
        raise EngineError(f"its MIG mode is {modes[0]} and {modes[1]} from the next reset on; nvidia-smi said: {said or 'nothing'}.")


def destroy(host: Host, args: Args) -> None:
    """Compute instances first: an instance that has one is in use."""
    _nobody(host, args["pf"], args["ids"])
    for id_ in args["ids"]:
        _destroy(host, args["pf"], id_)


def _destroy(host: Host, pf: str, id_: int) -> None:
    if id_ not in facts.instances(host, pf):
        return
    # No compute instance there is an error to nvidia-smi, and no reason to stop.
    _smi(host, ["nvidia-smi", "mig", "-dci", "-gi", str(id_), "-i", pf])
    said = _smi(host, ["nvidia-smi", "mig", "-dgi", "-gi", str(id_), "-i", pf])
    if id_ in facts.instances(host, pf):
        raise EngineError(f"its GPU instance {id_} is still there; nvidia-smi said: {said or 'nothing'}.")


def undo_destroy(host: Host, args: Args) -> None:
    """Instances of the same profiles; their numbers may be others."""
    missing: Counter[str] = Counter(args["profiles"])
    missing.subtract(said["profile"] for id_, said in facts.instances(host, args["pf"]).items() if id_ not in args["kept"])
    _create(host, args["pf"], [name for name in args["profiles"] if _taken(missing, name)])


def _taken(missing: Counter[str], name: str) -> bool:
    missing[name] -= 1
    return missing[name] >= 0


def create(host: Host, args: Args) -> None:
    _create(host, args["pf"], args["profiles"])


def _create(host: Host, pf: str, profiles: Collection[str]) -> None:
    if not profiles:
        return
    had = facts.instances(host, pf)
    said = _smi(host, ["nvidia-smi", "mig", "-cgi", ",".join(profiles), "-C", "-i", pf])
    made = Counter(one["profile"] for id_, one in facts.instances(host, pf).items() if id_ not in had)
    if made != Counter(profiles):
        raise EngineError(f"of the GPU instances {', '.join(profiles)} there are {dict(made) or 'none'}; nvidia-smi said: {said or 'nothing'}.")


def undo_create(host: Host, args: Args) -> None:
    """Those that came are those that were not there."""
    for id_ in facts.instances(host, args["pf"]):
        if id_ not in args["kept"]:
            _destroy(host, args["pf"], id_)


def _nobody(host: Host, pf: str, instances: Collection[int] | None) -> None:
    """Since the plan was made somebody may have begun to compute. None: anywhere on the GPU."""
    running = facts.processes(host, pf)
    if running is None:
        raise EngineError(f"nvidia-smi does not tell who uses {pf} now, so nothing was done.")
    for process in running:
        if instances is None or process["instance"] in instances:
            raise EngineError(f"process {process['pid']} ({process['name'] or '?'}) uses it now. Stop it first.")


def _smi(host: Host, argv: list[str]) -> str:
    _code, out, err = host.run(argv)
    return " ".join((err + out).split())
