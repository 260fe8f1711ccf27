# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""MIG (Multi-Instance GPU): the mode of a GPU and its GPU instances, as `nvidia-smi mig` makes them.

Rules: NVIDIA Multi-Instance GPU User Guide, "Getting Started with MIG". On Ampere the mode is kept by the card and changes with its reset; from Hopper
on it changes at once and is lost with the driver. GPU instances are lost with either. Instances have no owner: a wish for them speaks of all.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import field, replace
from typing import Any

from ..model import AFTER_REBOOT, CERTAIN, PREDICTED, Action, Refusal
from ..plain import dataclass
from ..resources.common import Target

#: Architectures, as nvidia-smi calls them, on which the mode waits for a reset of the GPU.
RESETS = ("Ampere",)

_PROFILE = re.compile(r"\d+g\.\d+gb([+-][a-z0-9.]+)?")


@dataclass(frozen=True)
class Layout:
    """How MIG shall be. `instances`: profile -> number; None: as they are."""

    enabled: bool
    instances: Mapping[str, int] | None = None

    def recorded(self) -> dict[str, Any]:
        return {"enabled": self.enabled, **({} if self.instances is None else {"instances": dict(self.instances)})}


@dataclass
class Division:
    """What a layout needs. `enabled` and `instances` are how it will be; `waits`: the mode comes with a reboot, and so does all that needs it;
    `resets`: the mode changes, which no vGPU and no process outlives."""

    enabled: bool
    instances: Counter[str]
    steps: list[Action] = field(default_factory=list)
    waits: bool = False
    resets: bool = False
    refusals: list[Refusal] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    reboot_reasons: list[str] = field(default_factory=list)


# --- What can be wished --------------------------------------------------------------------------------------------


def wanted(targets: Sequence[Target], facts: Mapping[str, Any], entry: Mapping[str, Any] | None) -> tuple[Layout | None, list[Refusal]]:
    """The one layout that the wishes for a GPU name, or the one that is declared. None: nobody ever said."""
    named = [target for target in targets if target.wish.get("mig")]
    if not named:
        return _of_record((entry["wish"] if entry else {}).get("mig")), []
    layouts = [_layout(target.wish["mig"]) for target in named]
    refusals = [wrong for target, layout in zip(named, layouts) for wrong in _check(target, layout, facts)]
    if any(layout != layouts[0] for layout in layouts):
        refusals.append(_refusal(named[-1], f"its mig is another one than that of {named[0].label}.", "Say it once for a GPU."))
    return layouts[0], refusals


def given_back(entry: Mapping[str, Any]) -> Layout | None:
    """As it was before the collection."""
    return _of_record(entry["origin"].get("mig"))


def before(facts: Mapping[str, Any]) -> dict[str, Any]:
    """How it is, for the record."""
    on = facts["mig"]["current"] == "Enabled"
    return Layout(on, _counted(facts) if on else None).recorded()


def _counted(facts: Mapping[str, Any]) -> Counter[str]:
    return Counter(said["profile"] for said in facts["mig"]["instances"].values())


def _of_record(said: Mapping[str, Any] | None) -> Layout | None:
    return Layout(said["enabled"], said.get("instances")) if said else None


def _layout(wish: Mapping[str, Any]) -> Layout:
    """From a wish, or as the record has it. 'MIG 1g.5gb' is 1g.5gb."""
    instances = wish.get("instances")
    if not isinstance(instances, list):
        return Layout(bool(wish["enabled"]), instances)
    counted: Counter[str] = Counter()
    for item in instances:
        counted[str(item["profile"]).rpartition("MIG ")[2]] += item["count"]
    return Layout(bool(wish["enabled"]), dict(counted))


def _check(target: Target, layout: Layout, facts: Mapping[str, Any]) -> list[Refusal]:
    wished, profiles = layout.instances or {}, facts["mig"]["profiles"]
    if not facts["mig"]["current"]:
        return [_refusal(target, "it knows no MIG (nvidia-smi says N/A for its mode).", "Leave mig out.")]
    if wished and not layout.enabled:
        return [_refusal(target, "GPU instances are wished, and MIG is wished off.", "Drop one of them.")]
    for name, count in wished.items():
        known = name in profiles if profiles else _PROFILE.fullmatch(name)
        if not known:
            return [_refusal(target, f"it knows no GPU instance profile {name!r}.", f"It knows {_offered(profiles) or 'names like 1g.5gb'}.")]
        if count < 0 or (profiles and count > profiles[name]["total"]):
            most = f"; an empty GPU has room for {profiles[name]['total']}" if profiles else ""
            return [_refusal(target, f"{count} GPU instances {name} are wished{most}.", "Correct the count.")]
    return []


def _offered(profiles: Mapping[str, Mapping[str, int]]) -> str:
    return ", ".join(f"{name} ({said['free']} of {said['total']} free)" for name, said in profiles.items())


def _refusal(target: Target, reason: str, way_out: str) -> Refusal:
    return Refusal(target.function.address, f"{target.label}: {reason}", f"{way_out} Nothing was changed.")


# --- Plan ----------------------------------------------------------------------------------------------------------


def plan(pf: str, layout: Layout | None, facts: Mapping[str, Any], staying: Collection[int]) -> Division:
    """The steps to a layout. `staying`: GPU instances of vGPUs that are not touched."""
    on = facts["mig"]["current"] == "Enabled"
    if layout is None or not facts["mig"]["current"]:
        return Division(on, _counted(facts))
    result = Division(layout.enabled, Counter(layout.instances or {}) if layout.instances is not None else _counted(facts))
    pending = (facts["mig"]["pending"] or facts["mig"]["current"]) == "Enabled"
    mode = [_set_mode(pf, layout.enabled, pending, on, facts)] if pending != layout.enabled else []
    if on == layout.enabled:
        # Where somebody asked for the other mode, that is taken back.
        result.steps = mode + (_geometry(pf, layout, facts, staying, result) if on else [])
        return result
    result.resets = bool(mode)
    result.waits = not mode or facts["architecture"] in RESETS
    result.refusals += _computing(pf, facts) if mode else []
    if result.waits:
        result.reboot_reasons.append(f"{pf}: its MIG mode changes with a reset of the GPU, or the next boot")
    if layout.enabled:
        made = [_create(pf, _in_order(Counter(layout.instances or {})), (), PREDICTED)] if layout.instances else []
        result.steps = mode + ([postponed(action) for action in made] if result.waits else made)
    else:
        result.instances = Counter()
        result.steps = _geometry(pf, Layout(True, {}), facts, staying, result) + mode
    return result


def postponed(action: Action) -> Action:
    """Not before the next boot."""
    return replace(action, certainty=AFTER_REBOOT)


def _set_mode(pf: str, to: bool, pending: bool, on: bool, facts: Mapping[str, Any]) -> Action:
    at_once = facts["architecture"] not in RESETS
    mode = {True: "Enabled", False: "Disabled"}
    return Action(
        kind="set_mig_mode",
        unit=pf,
        text=f"{'enable' if to else 'disable'} its MIG mode" + ("" if at_once or on == to else ", from its next reset on"),
        certainty=CERTAIN,
        args={"pf": pf, "to": to, "from": pending, "at_once": at_once},
        before={"MIG mode": mode[pending]},
        after={"MIG mode": mode[to]},
    )


def _computing(pf: str, facts: Mapping[str, Any]) -> list[Refusal]:
    """A reset ends whoever computes on it; nobody can allow that."""
    return [
        Refusal(pf, f"{_who(process)} uses it, and its MIG mode cannot change below that.", "Stop who uses it first; nothing was changed.")
        for process in facts["processes"]
    ]


def _who(process: Mapping[str, Any]) -> str:
    return f"process {process['pid']} ({process['name'] or '?'})"


def _geometry(pf: str, layout: Layout, facts: Mapping[str, Any], staying: Collection[int], result: Division) -> list[Action]:
    """Only what differs goes and comes. Of instances that are alike those stay that are in use, then those that lie highest: so the low ones come
    free together, where the large ones have to begin."""
    if layout.instances is None:
        return []
    users = {process["instance"]: _who(process) for process in facts["processes"] if process["instance"] is not None}
    users.update(dict.fromkeys(staying, "a vGPU that stays"))
    there = facts["mig"]["instances"]
    missing, gone = Counter(layout.instances), []
    for id_ in sorted(there, key=lambda i: (i not in users, -there[i]["start"], i)):
        name = there[id_]["profile"]
        if missing[name] > 0:
            missing[name] -= 1
        else:
            gone.append(id_)
    result.refusals += [
        Refusal(pf, f"its GPU instance {i} ({there[i]['profile']}) is of {users[i]}.", "Stop who uses it first; nothing was changed.")
        for i in gone
        if i in users
    ]
    kept = tuple(sorted(i for i in there if i not in gone))
    new = _in_order(+missing)
    return ([_destroy(pf, gone, there)] if gone else []) + ([_create(pf, new, kept, PREDICTED)] if new else [])


def _in_order(profiles: Counter[str]) -> list[str]:
    """Large ones first: a 3g. that comes behind small ones may find no place (MIG user guide, "Instance Geometry")."""
    return sorted(profiles.elements(), key=lambda name: (-int(name.partition("g")[0]), name))


def _destroy(pf: str, gone: Sequence[int], there: Mapping[int, Mapping[str, Any]]) -> Action:
    names = Counter(there[i]["profile"] for i in gone)
    return Action(
        kind="destroy_mig_instances",
        unit=pf,
        text=f"destroy its GPU instances {', '.join(_called(i, there) for i in gone)}",
        args={"pf": pf, "ids": list(gone), "profiles": _in_order(names), "kept": sorted(i for i in there if i not in gone)},
        before={"GPU instances": _in_words(Counter(said["profile"] for said in there.values()))},
        after={"GPU instances": _in_words(Counter(said["profile"] for i, said in there.items() if i not in gone))},
    )


def _called(id_: int, there: Mapping[int, Mapping[str, Any]]) -> str:
    return f"{id_} ({there[id_]['profile']})"


def _create(pf: str, new: Sequence[str], kept: Sequence[int], certainty: str) -> Action:
    return Action(
        kind="create_mig_instances",
        unit=pf,
        text=f"create the GPU instances {', '.join(new)}, each with a compute instance",
        certainty=certainty,
        args={"pf": pf, "profiles": list(new), "kept": list(kept)},
        before={},
        after={"new GPU instances": _in_words(Counter(new))},
    )


def _in_words(profiles: Counter[str]) -> str | None:
    return ", ".join(f"{count} {name}" for name, count in sorted(profiles.items())) or None


# --- What is told of it --------------------------------------------------------------------------------------------


def told(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """None where the GPU knows no MIG."""
    said = facts["mig"]
    if not said["current"]:
        return None
    return {
        "enabled": said["current"] == "Enabled",
        "pending": said["pending"] == "Enabled",
        "instances": [{"id": id_, "profile": one["profile"]} for id_, one in sorted(said["instances"].items())],
        "profiles": [{"name": name, "free": one["free"], "total": one["total"]} for name, one in said["profiles"].items()],
    }


def as_wish(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """How it is, as a wish. What is off is not named: off is what nobody asked for."""
    if facts["mig"]["current"] != "Enabled":
        return None
    return {"enabled": True, "instances": [{"profile": name, "count": count} for name, count in sorted(_counted(facts).items())]}
