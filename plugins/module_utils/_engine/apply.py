# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Carry out a plan: in order, reading back, and all or nothing device by device."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field

from .actions import TABLE
from .errors import EngineError, Stuck, explain
from .host import Host
from .model import HOST, Action, Plan

#: A run that has begun ends by itself, whether or not the connection that started it lives.
_IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)


@dataclass
class Outcome:
    """What was done, and for each device that failed a sentence."""

    done: list[Action] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    indeterminate: list[str] = field(default_factory=list)


def apply(host: Host, plan: Plan, deadline: float | None = None) -> Outcome:
    """Do what can be done now. A device that fails is put back as it was; the others keep what they have. Past the
    deadline (of host.clock) no further device is begun."""
    outcome = Outcome()
    with _undisturbed():
        for unit, actions in _by_unit(plan.doable).items():
            if unit == HOST and outcome.failures:
                # What removes the replay comes last, and a device that could not be given back still needs it.
                break
            if deadline is not None and host.clock() > deadline:
                outcome.failures[unit] = _too_late(unit)
                continue
            _apply_unit(host, unit, actions, outcome)
            if unit == HOST and outcome.failures:
                break
    return outcome


def _by_unit(actions: list[Action]) -> dict[str, list[Action]]:
    units: dict[str, list[Action]] = {}
    for action in actions:
        units.setdefault(action.unit, []).append(action)
    return units


def _apply_unit(host: Host, unit: str, actions: list[Action], outcome: Outcome) -> None:
    done: list[Action] = []
    for action in actions:
        try:
            TABLE[action.kind].do(host, action.args)
        except Stuck as error:
            outcome.indeterminate.append(unit)
            outcome.failures[unit] = _stuck(unit, action, error)
            outcome.done += done
            return
        except (EngineError, OSError) as error:
            left, stuck = _undo(host, [*done, action])
            outcome.indeterminate += [unit] if stuck else []
            outcome.failures[unit] = _failed(unit, action, error, len(done), left)
            return
        done.append(action)
    outcome.done += done


def _undo(host: Host, actions: list[Action]) -> tuple[list[str], bool]:
    """Undo in reverse order. What could not be undone, in words; and did a write not return? Then nothing else is
    done to the device: it would hang as well."""
    left = []
    for number, action in enumerate(reversed(actions)):
        try:
            TABLE[action.kind].undo(host, action.args)
        except Stuck as error:
            left.append(f"'{action.text}' ({_said(error)})")
            left += [f"'{other.text}' (not tried)" for other in actions[: len(actions) - number - 1]]
            return left, True
        except (EngineError, OSError) as error:
            left.append(f"'{action.text}' ({_said(error)})")
    return left, False


def _said(error: Exception) -> str:
    return explain(error) if isinstance(error, OSError) else str(error)


def _failed(unit: str, action: Action, error: Exception, count: int, left: list[str]) -> str:
    text = f"{unit}: the step '{action.text}' failed: {_said(error)}"
    if left:
        return (
            f"{text} These steps could not be undone: {'; '.join(left)}. Put the device right by hand, then run again."
        )
    return f"{text} It was undone{', and so were the steps before it on this device' if count else ''}."


def _too_late(unit: str) -> str:
    return f"{unit}: it was not begun: the time that a boot may be held up is used. Run 'iovirt apply' on the host."


def _stuck(unit: str, action: Action, error: Stuck) -> str:
    return (
        f"{unit}: the step '{action.text}' is indeterminate: {error}. It may still happen, so nothing was undone and "
        "nothing else was done to this device. Find who holds it (a paused guest?), let it go, then run again."
    )


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _IGNORED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
