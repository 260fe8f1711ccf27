# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Kernel samepage merging (Documentation/admin-guide/mm/ksm.rst): now in sysfs, at boot by systemd-tmpfiles."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ..errors import EngineError, explain
from ..host import Host
from ..model import Action, Plan, Refusal
from ..plain import dataclass

RUN = "/sys/kernel/mm/ksm/run"
PATH = "/etc/tmpfiles.d/iovirt-ksm.conf"
UNIT = "KSM"
#: Units that write the same file all the time (qemu-kvm and ksmtuned of the distributions).
TUNERS = ("ksmtuned.service", "ksm.service")
#: What of `run` means what: 2 stops it and takes merged pages apart.
OFF, ON, APART = "0", "1", "2"
#: Seconds: taking pages apart copies each of them.
LIMIT = 120.0


@dataclass(frozen=True)
class Facts:
    #: None: the kernel has no KSM.
    run: str | None
    #: Pages that are kept once instead of several times.
    sharing: int = 0
    text: str | None = None
    #: Tuners that run.
    tuners: tuple[str, ...] = ()


def read(host: Host, tuners: Collection[str] = ()) -> Facts:
    sharing = host.files.attr("/sys/kernel/mm/ksm/pages_sharing") or "0"
    return Facts(host.files.attr(RUN), int(sharing), host.files.text(PATH), tuple(tuners))


def plan(facts: Facts, on: bool, allow: Collection[str]) -> Plan:
    refusals = []
    if facts.run is None:
        refusals.append(Refusal(UNIT, f"this kernel has none (there is no {RUN}).", "Leave kvm_ksm unset. Nothing was changed."))
    elif facts.tuners and "foreign" not in allow:
        reason = f"{', '.join(facts.tuners)} rules it, and would change it again."
        refusals.append(Refusal(UNIT, reason, "Stop and disable that unit, or allow it by name: allow: [foreign].", "foreign"))
    if refusals:
        return Plan(refusals=refusals)
    return Plan(actions=_file(facts, _text(on)) + _switch(facts, on))


def _text(on: bool) -> str:
    return f"# Written by iovirt.host.\nw {RUN} - - - - {ON if on else OFF}\n"


def _file(facts: Facts, text: str | None) -> list[Action]:
    if facts.text == text:
        return []
    what = f"write {PATH}, for the boot" if text else f"remove {PATH}"
    args = {"path": PATH, "text": text, "previous": facts.text}
    return [Action("write_file", UNIT, what, args=args, before={PATH: facts.text}, after={PATH: text})]


def _switch(facts: Facts, on: bool) -> list[Action]:
    met = facts.run == ON if on else facts.run != ON and not facts.sharing
    return [] if met else [_set(facts, ON if on else APART)]


def _set(facts: Facts, value: str) -> Action:
    words = {OFF: "stop it", ON: "let it merge", APART: "stop it and take merged pages apart"}
    return Action(
        kind="set_ksm",
        unit=UNIT,
        text=words[value],
        args={"to": value, "from": facts.run},
        before={"run": facts.run},
        after={"run": value},
    )


def origin(facts: Facts) -> dict[str, str]:
    return {} if facts.run is None else {"run": facts.run}


def restore(facts: Facts, before: Mapping[str, str]) -> Plan:
    back = [] if facts.run in (None, before["run"]) else [_set(facts, before["run"])]
    return Plan(actions=_file(facts, None) + back)


def info(facts: Facts) -> bool | None:
    return None if facts.run is None else facts.run == ON


def set_run(host: Host, args: Mapping[str, Any]) -> None:
    _write(host, args["to"])


def undo_run(host: Host, args: Mapping[str, Any]) -> None:
    _write(host, args["from"])


def _write(host: Host, value: str) -> None:
    try:
        host.files.write(RUN, value, limit=LIMIT)
    except OSError as error:
        raise EngineError(f"the kernel answered {explain(error)} to {value} in {RUN}. Is there memory enough?") from None
    if host.files.attr(RUN) != value:
        raise EngineError(f"{RUN} reads {host.files.attr(RUN)} after {value} was written. Look for who writes it too.")
