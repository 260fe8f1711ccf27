# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What can be done only while a port has a link, as the rates of VFs on many drivers (docs/kernel-facts.md).

An action says so by `needs_link: True` among its arguments; its unit is the PF. Without a link it is planned as
`after_link`, and a unit of its own does it once the link is there (boot.py). No event of the kernel tells a carrier to
udev, so that unit looks.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from . import boot, sysfs
from .host import Host
from .model import AFTER_LINK, LATER, PREDICTED, Action, Plan, State

#: Seconds that the unit waits for a link.
LIMIT = 300.0
#: Seconds between two looks: who waits for minutes need not look more often.
PAUSE = 2.0
#: Seconds that a run waits by itself for the link of a port that it brought up.
SOON = 15.0


def has_carrier(host: Host, pf: str) -> bool:
    """Has one of a port's network devices a link? An interface that is down answers EINVAL, which reads as none."""
    names = host.files.names(f"{sysfs.device(pf)}/net")
    return any(host.files.attr(f"{sysfs.device(pf)}/net/{name}/carrier") == "1" for name in names)


def wait(host: Host, pfs: Collection[str], limit: float) -> set[str]:
    """Wait for links; the ports that have one by the end."""
    end = host.clock() + limit
    while True:
        found = {pf for pf in pfs if has_carrier(host, pf)}
        if len(found) == len(set(pfs)) or host.clock() >= end:
            return found
        host.sleep(PAUSE)


def defer(state: State, plan: Plan, always: bool) -> None:
    """Leave what needs a link to its unit: where there is none, or always (the replay's first phase, which does not
    hold the host up for a link)."""
    plan.actions = [_later(action) if _has_to_wait(state, action, always) else action for action in plan.actions]
    for pf in waiting(plan):
        late = [action.text for action in plan.actions if action.unit == pf and action.certainty == AFTER_LINK]
        plan.warnings.append(
            f"{pf}: it has no link now, so this is left to {boot.link_unit(pf)}, which does it once the link is there: "
            f"{'; '.join(late)}."
        )


def waiting(plan: Plan) -> list[str]:
    """The ports for which something waits for a link."""
    return sorted({action.unit for action in plan.actions if action.certainty == AFTER_LINK})


def soon(host: Host, plan: Plan, failed: Collection[str]) -> Plan:
    """What waits for the link of a port that this run has brought up, and that has one by now."""
    brought_up = {action.unit for action in plan.doable if action.kind == "set_up" and action.args["up"]}
    pfs = [pf for pf in waiting(plan) if pf in brought_up and pf not in failed]
    here = wait(host, pfs, SOON) if pfs else set()
    late = [action for action in plan.actions if action.certainty == AFTER_LINK and action.unit in here]
    return Plan(actions=[replace(action, certainty=PREDICTED) for action in late])


def _later(action: Action) -> Action:
    return replace(action, certainty=AFTER_LINK)


def _has_to_wait(state: State, action: Action, always: bool) -> bool:
    if not action.args.get("needs_link") or action.certainty in LATER:
        return False
    function = state.functions.get(action.unit)
    names = function.netdevs if function else ()
    return always or not any(state.netdevs[name].carrier for name in names if name in state.netdevs)


def start_units(host: Host, pfs: Collection[str]) -> None:
    """Start the units that wait for the links. One that waits already goes on doing so."""
    for pf in pfs:
        if host.files.exists("/run/systemd/system"):
            host.run(["systemctl", "start", "--no-block", boot.link_unit(pf)])
