# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One result shape for every door: all of it comes from the plan."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from typing import Any

from .model import AFTER_LINK, AFTER_REBOOT, Outcome, Plan


def result(plan: Plan, outcome: Outcome, facts: Mapping[str, Any]) -> dict[str, Any]:
    """`changed`, `diff` and `actions` are those of the plan in check mode and in a run alike. Devices that failed come
    as `failures`, one sentence each: what the plan said of them was undone."""
    return {
        "changed": plan.changed if not outcome.failures else bool(outcome.done),
        "diff": _diff(plan),
        "actions": [action.as_dict() for action in plan.actions],
        "predicted": plan.predicted,
        "reboot_required": bool(plan.reboot_reasons),
        "reboot_reasons": plan.reboot_reasons,
        "warnings": plan.warnings,
        "failures": dict(outcome.failures),
        "indeterminate": list(outcome.indeterminate),
        **facts,
    }


def _diff(plan: Plan) -> list[dict[str, str]]:
    """A list with a header per device, so that a person can read it."""
    units: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    for action in plan.actions:
        before, after = units.setdefault(action.unit, ({}, {}))
        late = {AFTER_REBOOT: " (after the reboot)", AFTER_LINK: " (once there is a link)"}.get(action.certainty, "")
        before.update({key + late: value for key, value in action.before.items()})
        after.update({key + late: value for key, value in action.after.items()})
    return [
        {"before_header": unit, "after_header": unit, "before": _text(before), "after": _text(after)}
        for unit, (before, after) in units.items()
        if before != after
    ]


def _text(values: Mapping[str, Any]) -> str:
    return "".join(f"{key}: {_value(value)}\n" for key, value in sorted(values.items()) if value is not None)


def _value(value: Any) -> str:
    """A file as its lines, anything else as JSON."""
    if isinstance(value, str) and "\n" in value:
        return "\n" + textwrap.indent(value.rstrip("\n"), "  ")
    return json.dumps(value, sort_keys=True)
