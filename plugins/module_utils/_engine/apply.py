# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Carry out a plan: in order, reading back, and all or nothing device by device.

The devices take their turns one after the other. A step whose kind is done for many devices at once (Step.many: one
`ip -batch` a host) waits until every device has come to it; then it is done for all of them together.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import field

from .actions import TABLE
from .errors import EngineError, Stuck, explain
from .host import Host
from .model import HOST, Action, Outcome, Plan
from .plain import dataclass

#: A run that has begun ends by itself, whether or not the connection that started it lives.
_IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)


#: Steps of the host that leave something at work beside the steps that come after them.
BESIDE = ("install_replay",)


@dataclass
class _Turn:
    """A device on its way through its steps."""

    unit: str
    todo: list[Action]
    done: list[Action] = field(default_factory=list)

    @property
    def shared(self) -> bool:
        """Is its next step one that is done for many devices at once?"""
        return bool(self.todo) and TABLE[self.todo[0].kind].many is not None


def apply(host: Host, plan: Plan, deadline: float | None = None) -> Outcome:
    """Do what can be done now. A device that fails is put back as it was; the others keep what they have. Past the
    deadline (of host.clock) no further device is begun."""
    outcome = Outcome()
    with _undisturbed():
        for turns in _stages(plan.doable):
            if turns[0].unit == HOST and outcome.failures:
                # What removes the replay comes last, and a device that could not be given back still needs it.
                break
            _stage(host, turns, outcome, deadline)
            if turns[0].unit == HOST and outcome.failures:
                break
        _join(host, outcome)
    return outcome


def _join(host: Host, outcome: Outcome) -> None:
    """What works beside the steps has to have succeeded, whether or not one of them had to wait for it."""
    try:
        host.join()
    except EngineError as error:
        for action in [action for action in outcome.done if action.kind in BESIDE]:
            left, _stuck = _undo(host, [action])
            outcome.failures[HOST] = _failed(HOST, action, error, 0, left)
            outcome.done.remove(action)
        outcome.failures.setdefault(HOST, f"{HOST}: {error}")


def _stages(actions: list[Action]) -> list[list[_Turn]]:
    """The steps of the host before and after the devices are stages of their own; the devices are one."""
    stages: list[dict[str, _Turn]] = []
    for action in actions:
        if not stages or (HOST in stages[-1]) != (action.unit == HOST):
            stages.append({})
        stages[-1].setdefault(action.unit, _Turn(action.unit, [])).todo.append(action)
    return [list(stage.values()) for stage in stages]


def _stage(host: Host, turns: list[_Turn], outcome: Outcome, deadline: float | None) -> None:
    for turn in turns:
        _in_time(host, [turn], outcome, deadline)
        _go_on(host, turn, outcome)
    while any(turn.todo for turn in turns):
        kind = next(turn.todo[0].kind for turn in turns if turn.todo)
        together = [turn for turn in turns if turn.todo and turn.todo[0].kind == kind]
        for several in _rounds(host, together):
            several = _in_time(host, several, outcome, deadline)
            if several:
                _together(host, several, outcome)
        for turn in together:
            _go_on(host, turn, outcome)
    for turn in turns:
        outcome.done += turn.done


def _rounds(host: Host, turns: list[_Turn]) -> list[list[_Turn]]:
    """Those of which the step may be done at the same time. A deadline may pass between two rounds."""
    step = TABLE[turns[0].todo[0].kind]
    if step.rounds is None:
        return [turns]
    by_device = {turn.unit: turn for turn in turns}
    return [[by_device[args["pf"]] for args in several] for several in step.rounds(host, [turn.todo[0].args for turn in turns])]


def _in_time(host: Host, turns: list[_Turn], outcome: Outcome, deadline: float | None) -> list[_Turn]:
    """Those that may go on: past the deadline none that has not begun."""
    late = [turn for turn in turns if turn.todo and not turn.done and deadline is not None and host.clock() > deadline]
    for turn in late:
        outcome.failures[turn.unit] = _too_late(turn.unit)
        turn.todo.clear()
    return [turn for turn in turns if turn not in late]


def _go_on(host: Host, turn: _Turn, outcome: Outcome) -> None:
    """The device's steps up to one that is done for many at once."""
    while turn.todo and not turn.shared:
        action = turn.todo[0]
        try:
            _wait_for_host(host, action)
            TABLE[action.kind].do(host, action.args)
        except (EngineError, OSError) as error:
            _fail(host, turn, error, outcome)
            return
        turn.done.append(turn.todo.pop(0))


def _wait_for_host(host: Host, action: Action) -> None:
    """Neither a record nor VFs that no driver has yet are anything that a rule of udev speaks of; the count waits by itself for what comes then."""
    if action.unit != HOST and action.kind not in ("declare", "set_vf_count"):
        host.join()


def _together(host: Host, turns: list[_Turn], outcome: Outcome) -> None:
    """One step of several devices in one go; each of them succeeds or fails for itself."""
    step = TABLE[turns[0].todo[0].kind]
    try:
        _wait_for_host(host, turns[0].todo[0])
        errors = step.together(host, [turn.todo[0].args for turn in turns])
    except (EngineError, OSError) as error:
        errors = [error] * len(turns)
    for turn, failure in zip(turns, errors):
        if failure:
            _fail(host, turn, failure, outcome)
        else:
            turn.done.append(turn.todo.pop(0))


def _fail(host: Host, turn: _Turn, error: Exception, outcome: Outcome) -> None:
    """Undo what was done on the device; not where a write has not returned: nothing else touches it then."""
    action = turn.todo[0]
    turn.todo.clear()
    if isinstance(error, Stuck):
        outcome.indeterminate.append(turn.unit)
        outcome.failures[turn.unit] = _stuck(turn.unit, action, error)
        return
    left, stuck = _undo(host, [*turn.done, action])
    outcome.indeterminate += [turn.unit] if stuck else []
    outcome.failures[turn.unit] = _failed(turn.unit, action, error, len(turn.done), left)
    turn.done.clear()


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
