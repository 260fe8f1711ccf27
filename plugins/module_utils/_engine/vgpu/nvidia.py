# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What NVIDIA's two frameworks share: which vGPU of a GPU gets which type, and what stands against it.

A slot is what takes one vGPU: a VF, or a number where the GPU itself has them (up to Turing). A framework says what its slots have and could have
(facts["slots"]), and has the steps that give and take a type. How a GPU comes by VFs, and MIG (mig.py), are the same in both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import field
from typing import Any, Callable

from ..model import PREDICTED, Action, Function, Plan, Refusal, State
from ..plain import dataclass
from ..resources import common
from ..resources.common import Options, Target
from . import mig

RESOURCE = "vgpu"
DRIVER = "nvidia"
#: What a record says in the place of a framework: a GPU without VFs does not tell which of the two it will have.
RECORD = "nvidia"
#: What 'Display Attached' says, or of older drivers 'Display Active'.
_DISPLAY = ("Yes", "Enabled")
_HOST_DRIVER = "Load NVIDIA's vGPU host driver (not the one for passthrough or desktops)."


@dataclass
class Steps:
    """What clears slots, what fills them, and for each slot that is cleared whom the users are listed under (users.py)."""

    clear: list[Action] = field(default_factory=list)
    fill: list[Action] = field(default_factory=list)
    held: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """A GPU as it shall be: slot -> type, for those that are wished, and for those that are given back. `wish` is what will be recorded, or what was;
    `other`: room or MIG changes before the slots are filled."""

    state: State
    pf: str
    facts: Mapping[str, Any]
    wish: Mapping[str, Any]
    entry: Mapping[str, Any] | None
    chosen: Mapping[int, int]
    dropped: Mapping[int, int]
    other: bool = False

    @property
    def todo(self) -> dict[int, int]:
        """The slots that do not have what they shall have. Nothing can be given back to one that is gone, where others are there."""
        slots = self.facts["slots"]
        wanted = {index: number for index, number in {**self.dropped, **self.chosen}.items() if index in slots or not slots}
        return {index: number for index, number in sorted(wanted.items()) if now(self.facts).get(index, 0) != number}


Stepping = Callable[[Change], Steps]


def now(facts: Mapping[str, Any]) -> dict[int, int]:
    """Slot -> the type that it has."""
    return {index: slot["current"] for index, slot in facts["slots"].items()}


def name_of(facts: Mapping[str, Any], number: int) -> str | None:
    return (facts["types"].get(number, {}).get("name") or str(number)) if number else None


# --- What can be wished --------------------------------------------------------------------------------------------


def _check_card(targets: Sequence[Target], facts: Mapping[str, Any], known: Mapping[int, str]) -> list[Refusal]:
    """Is it a GPU under NVIDIA's host driver, in a mode that has vGPUs, without a display? MIG alone needs no host driver."""
    target = targets[0]
    if facts["error"]:
        return [refusal(target, f"nvidia-smi does not tell of it: {facts['error']}.", _HOST_DRIVER)]
    if target.function.boot_vga or facts["display"] in _DISPLAY:
        return [refusal(target, "a display is attached to it.", "Use another GPU, or let the display go.")]
    # By equality: 'Non SR-IOV' is another mode, which a GPU has whose driver makes mediated devices of it.
    if (known or any(_names_types(t.wish) for t in targets)) and not facts["mediated"] and facts["mode"] != "SR-IOV":
        reason = f"its Host VGPU Mode is {facts['mode'] or 'unknown'} (Virtualization Mode {facts['virtualization'] or 'unknown'}), not SR-IOV."
        return [refusal(target, reason, _HOST_DRIVER)]
    return []


def _names_types(wish: Mapping[str, Any]) -> bool:
    return wish.get("vgpus") is not None or wish.get("type") is not None or wish.get("count") is not None


def refusal(target: Target, reason: str, way_out: str) -> Refusal:
    return Refusal(target.function.address, f"{target.label}: {reason}", f"{way_out} Nothing was changed.")


def _wanted(targets: Sequence[Target], facts: Mapping[str, Any]) -> tuple[dict[int, str] | list[int] | None, list[Refusal]]:
    """The types that a GPU shall have: by slot, as the record has them, or one for each slot that is to be chosen. None: no wish names any."""
    wanted: list[int] | None = None
    refusals: list[Refusal] = []
    for target in targets:
        types, wish = facts["types"], target.wish
        if wish.get("vgpus") is not None:
            return {int(index): type_ for index, type_ in wish["vgpus"].items()}, []
        if not _names_types(wish):
            refusals += [] if wish.get("mig") else [_nothing_wished(target)]
            continue
        numbers = [n for n, type_ in types.items() if str(wish.get("type")) in _names(n, type_["name"])]
        if len(numbers) != 1:
            refusals.append(_no_type(target, facts))
        elif wish.get("count") is None or not 0 <= wish["count"] <= common.MOST:
            refusals.append(refusal(target, f"its count is {wish.get('count')}.", f"Say how many of the type there shall be, up to {common.MOST}."))
        else:
            wanted = (wanted or []) + numbers * wish["count"]
    return wanted, refusals


def _nothing_wished(target: Target) -> Refusal:
    return refusal(target, "it names neither a type nor mig.", "Say which vGPUs it shall have (type and count), or how MIG shall be.")


def _names(number: int, name: str) -> set[str]:
    """'1155', 'NVIDIA L40S-24Q', 'L40S-24Q'."""
    return {str(number), name, name.partition(" ")[2]}


def _no_type(target: Target, facts: Mapping[str, Any]) -> Refusal:
    """Of the types those that its mode of MIG has: the others it names, and never offers."""
    on = facts["mig"]["current"] == "Enabled"
    said = ", ".join(_offered(facts, n) for n, type_ in facts["types"].items() if type_["mig"] == on)
    return refusal(target, f"it knows no type {target.wish.get('type')!r}.", f"It knows {said or 'none'}.")


def _offered(facts: Mapping[str, Any], number: int) -> str:
    type_ = facts["types"][number]
    free = f", {_free(facts, number)} free" if facts["slots"] else ""
    return f"{type_['name']} ({number}; at most {type_['most']}{free})"


def _free(facts: Mapping[str, Any], number: int) -> int:
    """How many more of a type there can be now."""
    slots = sum(1 for slot in facts["slots"].values() if not slot["current"] and number in slot["creatable"])
    left = facts["free"].get(number, slots) if "free" in facts else slots
    memory = facts["types"][number]["memory"]
    return min(slots, left, (_room(facts) - _used(facts, Counter(now(facts).values()))) // memory if memory else slots)


# --- The plan of a GPU ---------------------------------------------------------------------------------------------


def converge(state: State, targets: Sequence[Target], options: Options, stepping: Stepping) -> Plan:
    """All types and all of MIG before one is cleared."""
    result, first = Plan(), targets[0]
    pf, facts = first.function.address, state.more[RESOURCE][first.function.address]
    entry = common.stored_entry(state, RESOURCE, pf)
    known = known_of(entry)
    if common.refuse_all(result, _check_card(targets, facts, known)):
        return result
    layout, wrong = mig.wanted(targets, facts, entry)
    wanted, wrong_types = _wanted(targets, facts)
    if common.refuse_all(result, wrong + wrong_types):
        return result
    # Left unset, they stay as they were declared.
    wanted = known if wanted is None else wanted
    if isinstance(wanted, dict) and common.refuse_all(result, _forgotten(first, wanted, facts)):
        return result
    mine = {index: name for index, name in known.items() if not facts["slots"].get(index, {}).get("foreign")}
    chosen = _by_name(facts, wanted) if isinstance(wanted, dict) else _choose(first.function, wanted, mine, _theirs(facts, entry), facts)
    if chosen is None:
        return _too_many(result, first, len(wanted))
    dropped = {index: types_before(entry).get(index, 0) for index in mine if index not in chosen}
    division = mig.plan(pf, layout, facts, _staying(facts, chosen, dropped))
    result.warnings += division.warnings
    if common.refuse_all(result, division.refusals + _not_possible(first, chosen, mine, facts, division)):
        return result
    wish = _recorded(state, pf, facts, chosen, layout, entry)
    result.warnings += _undeclared_instances(pf, facts, chosen, layout) + common.overruled(state, RESOURCE, pf, wish, options)
    change = Change(state, pf, facts, wish, entry, chosen, dropped, bool(division.steps) or division.waits)
    steps = stepping(change)
    if _in_use(result, change, steps, options, division):
        return result
    origin = _origin(change, mine, layout)
    result.actions = common.declare(state, RESOURCE, first.function, wish, origin, result.waived, whole=True)
    result.reboot_reasons += division.reboot_reasons
    result.actions += [*steps.clear, *division.steps, *_born(pf, facts, chosen, division), *_later(steps.fill, division)]
    return result


def _born(pf: str, facts: Mapping[str, Any], chosen: Mapping[int, int], division: mig.Division) -> list[Action]:
    """Its VFs, where it has none: NVIDIA has MIG set before they are made."""
    return _later([_enable(pf)], division) if chosen and not facts["slots"] else []


def _later(actions: Sequence[Action], division: mig.Division) -> list[Action]:
    """What waits for the mode of MIG, as that waits for a reboot."""
    return [mig.postponed(action) for action in actions] if division.waits else list(actions)


def known_of(entry: Mapping[str, Any] | None) -> dict[int, str]:
    return {int(index): name for index, name in entry["wish"]["vgpus"].items()} if entry else {}


def types_before(entry: Mapping[str, Any] | None) -> dict[int, int]:
    """The types that slots of ours had before the collection: they get them back."""
    return {int(index): number for index, number in entry["origin"]["types"].items()} if entry else {}


def _forgotten(target: Target, wanted: Mapping[int, str], facts: Mapping[str, Any]) -> list[Refusal]:
    """Types that are declared and that the driver does not name: another driver, or one whose manager does not answer."""
    unknown = sorted(set(wanted.values()) - {type_["name"] for type_ in facts["types"].values()})
    if not unknown:
        return []
    reason = f"its driver does not know the declared type {' or '.join(unknown)} now."
    return [refusal(target, reason, "Does nvidia-vgpu-mgr run, and nvidia-smi vgpu -s tell? With another driver wish types that it knows.")]


def _by_name(facts: Mapping[str, Any], wanted: Mapping[int, str]) -> dict[int, int]:
    """Where each was declared. A name that the driver no longer knows stays out."""
    numbers = {type_["name"]: number for number, type_ in facts["types"].items()}
    return {index: numbers[name] for index, name in wanted.items() if name in numbers}


def _theirs(facts: Mapping[str, Any], entry: Mapping[str, Any] | None) -> frozenset[int]:
    """Slots that are declared as somebody else had them, and have that still."""
    current = now(facts)
    return frozenset(index for index, number in types_before(entry).items() if number and current.get(index) == number)


def _choose(
    function: Function, wanted: Sequence[int], known: Mapping[int, str], theirs: Collection[int], facts: Mapping[str, Any]
) -> dict[int, int] | None:
    """A slot for each type: those that have it already (ours, then others', which are declared with that), those that were
    declared to, those that change, those that are free. A slot with another type of somebody else is nobody's to take, also when it was
    declared with that. None: there are not enough slots."""
    rest, chosen, current = Counter(wanted), {}, now(facts)
    declared = _by_name(facts, known)
    total = function.sriov.total if function.sriov else 0
    indexes = list(current) or list(range(total))
    for has in (lambda i: current.get(i) if i in known else None, lambda i: current.get(i) if i not in known else None, declared.get):
        for index in indexes:
            type_ = has(index)
            if type_ and index not in chosen and rest[type_] > 0:
                chosen[index] = type_
                rest[type_] -= 1
    free = [i for i in indexes if i not in chosen and i in known and i not in theirs]
    free += [i for i in indexes if i not in chosen and i not in known and not current.get(i)]
    left = list(rest.elements())
    return {**chosen, **dict(zip(free, left))} if len(left) <= len(free) else None


def _too_many(result: Plan, target: Target, number: int) -> Plan:
    reason = f"{number} vGPUs are wished, and it has not so many {'VFs' if target.function.sriov else 'places'} that are free."
    result.refusals.append(refusal(target, reason, "Lower the counts; those with a type that the collection did not set are left alone."))
    return result


def _recorded(
    state: State, pf: str, facts: Mapping[str, Any], chosen: Mapping[int, int], layout: mig.Layout | None, entry: Mapping[str, Any] | None
) -> dict[str, Any]:
    """`named_after` and `mdevs` are what the UUIDs of mediated devices follow from (facts.uuid_of)."""
    old = entry["wish"] if entry else {}
    wish: dict[str, Any] = {
        "framework": RECORD,
        "vgpus": {str(index): name_of(facts, number) for index, number in sorted(chosen.items())},
        "named_after": old.get("named_after", pf),
    }
    adopted = {
        str(index): facts["slots"][index]["uuid"]
        for index, number in chosen.items()
        if facts["slots"].get(index, {}).get("foreign") and facts["slots"][index]["current"] == number
    }
    adopted.update({key: uuid for key, uuid in old.get("mdevs", {}).items() if key in wish["vgpus"]})
    return {**wish, **({"mdevs": adopted} if adopted else {}), **({"mig": layout.recorded()} if layout else {})}


def _origin(change: Change, mine: Mapping[int, str], layout: mig.Layout | None) -> dict[str, Any]:
    """How it was: were there VFs, which type had each slot, what was each mediated device that is not ours, and how was MIG?"""
    entry, facts = change.entry, change.facts
    old = entry["origin"] if entry else {}
    had = types_before(entry)
    origin: dict[str, Any] = {
        "vfs": bool(old["vfs"] if old else facts["vfs"]),
        "types": {str(i): had.get(i, 0) if i in mine else now(facts).get(i, 0) for i in sorted(change.chosen)},
    }
    before = {key: value for key, value in old.get("mdevs", {}).items() if key in origin["types"]}
    before.update({str(i): facts["slots"][i]["before"] for i in change.chosen if i not in mine and facts["slots"].get(i, {}).get("before")})
    divided = old.get("mig") or (mig.before(facts) if layout else None)
    return {**origin, **({"mdevs": before} if before else {}), **({"mig": divided} if divided else {})}


# --- What stands against it ----------------------------------------------------------------------------------------


def _not_possible(
    target: Target, chosen: Mapping[int, int], known: Mapping[int, str], facts: Mapping[str, Any], division: mig.Division
) -> list[Refusal]:
    """All types before one is cleared: whether its mode of MIG has them, the number of one type and the size that the driver names, the memory of
    all, and, where nothing goes before, what each slot can have now."""
    types, current = facts["types"], now(facts)
    after = Counter(n for n in {**{i: n for i, n in current.items() if i not in known}, **chosen}.values() if n in types)
    checks = (_no_slot, _others_type, _wrong_mode, _above_most, _sizes_differ, _no_memory, _no_instances)
    for check in checks:
        wrong = check(target, chosen, after, facts, division)
        if wrong:
            return wrong
    if division.steps or division.waits or any(current.get(index) and chosen.get(index) != current[index] for index in known):
        return []
    return _no_room_now(target, chosen, facts)


def _no_slot(target: Target, chosen: Mapping[int, int], _after: Any, facts: Mapping[str, Any], _division: Any) -> list[Refusal]:
    """What is recorded of a VF that is gone, while others are there."""
    gone = [where(facts, index) for index in chosen if facts["slots"] and index not in facts["slots"]]
    if not gone:
        return []
    way_out = "Let sriov-manage make its VFs anew, or declare its vGPUs anew (type and count)."
    return [refusal(target, f"there is no {gone[0]}, for which a vGPU is declared.", way_out)]


def _others_type(target: Target, chosen: Mapping[int, int], _after: Any, facts: Mapping[str, Any], _division: Any) -> list[Refusal]:
    """What others put where the record has a vGPU of ours."""
    for index, number in chosen.items():
        slot = facts["slots"].get(index, {})
        if slot.get("foreign") and slot["current"] != number:
            reason = f"{where(facts, index)} has a {name_of(facts, slot['current'])} that the collection did not make."
            return [refusal(target, reason, "Let its owner remove it first.")]
    return []


def _wrong_mode(target: Target, _chosen: Any, after: Mapping[int, int], facts: Mapping[str, Any], division: mig.Division) -> list[Refusal]:
    for number in after:
        type_ = facts["types"][number]
        if type_["mig"] and not division.enabled:
            reason = f"{type_['name']} is a type for a GPU instance of MIG, and its MIG mode is {facts['mig']['current'] or 'not there'}."
            return [refusal(target, reason, "Wish mig as well (enabled, and instances), or a time-sliced type.")]
        if not type_["mig"] and division.enabled:
            reason = f"{type_['name']} is a time-sliced type, and in MIG mode there are vGPUs on GPU instances only."
            return [refusal(target, reason, "Wish a MIG-backed type, or mig with enabled: false.")]
    return []


def _above_most(target: Target, _chosen: Any, after: Mapping[int, int], facts: Mapping[str, Any], _division: Any) -> list[Refusal]:
    for number, count in after.items():
        type_ = facts["types"][number]
        if type_["most"] and count > type_["most"]:
            reason = f"{count} of {type_['name']} are more than the {type_['most']} that it can have."
            return [refusal(target, reason, "Lower the count.")]
    return []


def _sizes_differ(target: Target, _chosen: Any, after: Mapping[int, int], facts: Mapping[str, Any], _division: Any) -> list[Refusal]:
    """Time-sliced vGPUs of one GPU have one size of framebuffer, unless the GPU is in mixed-size mode (user guide, "vGPUs with Different Amounts of
    Frame Buffer on the Same Physical GPU")."""
    types = facts["types"]
    sliced = [number for number in after if not types[number]["mig"]]
    if facts["sizes"] == "Enabled" or len({types[number]["memory"] for number in sliced}) < 2:
        return []
    names = " and ".join(f"{types[number]['name']} ({types[number]['memory']} MiB)" for number in sorted(sliced))
    reason = f"it takes vGPUs of one size at a time (vGPU Heterogeneous Mode {facts['sizes'] or 'N/A'}), and {names} differ."
    return [refusal(target, reason, "Wish types of one size, or let its mixed-size mode be enabled (nvidia-smi vgpu -shm 1) where it has one.")]


def _room(facts: Mapping[str, Any]) -> int:
    """MiB for vGPUs. Not what nvidia-smi calls its memory: with ECC that is less than its largest type has."""
    return max((type_["most"] * type_["memory"] for type_ in facts["types"].values()), default=0)


def _used(facts: Mapping[str, Any], after: Mapping[int, int]) -> int:
    return sum(facts["types"][number]["memory"] * count for number, count in after.items() if number in facts["types"])


def _no_memory(target: Target, _chosen: Any, after: Mapping[int, int], facts: Mapping[str, Any], _division: Any) -> list[Refusal]:
    if _used(facts, after) <= _room(facts):
        return []
    reason = f"the vGPUs would have {_used(facts, after)} MiB together, and it has {_room(facts)} MiB for them."
    return [refusal(target, reason, "Lower the counts, or wish smaller types.")]


def _no_instances(target: Target, _chosen: Any, after: Mapping[int, int], facts: Mapping[str, Any], division: mig.Division) -> list[Refusal]:
    """More MIG-backed vGPUs than there will be GPU instances of their profile."""
    profiles = {said["id"]: name for name, said in facts["mig"]["profiles"].items()}
    needed: Counter[str] = Counter()
    for number, count in after.items():
        name = profiles.get(facts["types"][number]["profile"])
        if name:
            needed[name] += -(-count // facts["types"][number]["per_instance"])
    for name, count in needed.items():
        if count > division.instances[name]:
            reason = f"its vGPUs need {count} GPU instances {name}, and there will be {division.instances[name]}."
            return [refusal(target, reason, "Wish them with mig (instances), or lower the counts.")]
    return []


def _undeclared_instances(pf: str, facts: Mapping[str, Any], chosen: Mapping[int, int], layout: mig.Layout | None) -> list[str]:
    """No GPU instance outlives a boot, and the replay makes those that are recorded."""
    if (layout and layout.instances is not None) or not any(facts["types"][number]["mig"] for number in chosen.values()):
        return []
    reason = "its GPU instances are lost with the next boot, and nothing declares them"
    return [f"{pf}: {reason}: wish mig with instances, or its vGPUs stay away then."]


def _no_room_now(target: Target, chosen: Mapping[int, int], facts: Mapping[str, Any]) -> list[Refusal]:
    new = {index: number for index, number in chosen.items() if now(facts).get(index, 0) != number}
    for number, count in Counter(new.values()).items():
        if count > facts.get("free", {}).get(number, count):
            reason = f"{count} more of {name_of(facts, number)} are more than the {facts['free'][number]} that it has free."
            return [refusal(target, reason, _can_have(facts, [n for n, free in facts["free"].items() if free]))]
    for index, number in new.items():
        slot = facts["slots"].get(index)
        if slot and slot["ready"] and number not in slot["creatable"]:
            reason = f"{where(facts, index)} cannot have {name_of(facts, number)} beside what its siblings have."
            return [refusal(target, reason, _can_have(facts, slot["creatable"]))]
    return []


def _can_have(facts: Mapping[str, Any], numbers: Collection[int]) -> str:
    return f"It can have {', '.join(_offered(facts, n) if n in facts['types'] else str(n) for n in numbers) or 'none'}."


def where(facts: Mapping[str, Any], index: int) -> str:
    """A slot as a person knows it."""
    slot = facts["slots"].get(index)
    if slot is None or index in facts["vfs"]:
        return f"VF {index}" + (f" ({slot['address']})" if slot else "")
    return f"vGPU {index}" + (f" ({slot['uuid']})" if slot.get("uuid") else "")


def _in_use(result: Plan, change: Change, steps: Steps, options: Options, division: mig.Division | None = None) -> bool:
    """A vGPU that somebody has is never cleared, whatever is allowed, nor is the mode of MIG changed below it. A guest that does not run loses one
    that goes for good."""
    refusals, dangers = [], []
    held = {**(_all_held(change.facts) if division and division.resets else {}), **steps.held}
    for index, name in sorted(held.items()):
        reason = f"the vGPU of {where(change.facts, index)} is of"
        for user in (change.state.users or {}).get(name, ()):
            if not user.idle:
                refusals.append(Refusal(change.pf, f"{reason} {user.who}.", "Stop who uses it first; nothing was changed."))
            elif index in steps.held and index not in change.chosen:
                way_out = "Nothing was changed. Where this is meant, allow it by name: allow: [in_use]."
                dangers.append(Refusal(change.pf, f"{reason} {user.who}.", way_out, "in_use"))
    return common.refuse_all(result, refusals) or common.guarded(result, dangers, options, change.pf)


def _all_held(facts: Mapping[str, Any]) -> dict[int, str]:
    return {index: slot.get("uuid") or slot["address"] for index, slot in facts["slots"].items() if slot["current"]}


def _staying(facts: Mapping[str, Any], chosen: Mapping[int, int], dropped: Mapping[int, int]) -> frozenset[int]:
    """The GPU instances of vGPUs that are not touched."""
    wanted = {**now(facts), **dropped, **chosen}
    slots = facts["slots"].items()
    return frozenset(s["instance"] for i, s in slots if s["current"] and wanted[i] == s["current"] and s.get("instance") is not None)


# --- VFs -----------------------------------------------------------------------------------------------------------


def _enable(pf: str) -> Action:
    text = "let NVIDIA's sriov-manage make its VFs"
    return Action("enable_vgpu_vfs", pf, text, PREDICTED, args={"pf": pf}, before={"VFs": False}, after={"VFs": True})


def _disable(pf: str) -> Action:
    text = "let NVIDIA's sriov-manage take its VFs away"
    return Action("disable_vgpu_vfs", pf, text, args={"pf": pf}, before={"VFs": True}, after={"VFs": False})


# --- Giving back ---------------------------------------------------------------------------------------------------


def give_back(state: State, target: Target, options: Options, stepping: Stepping) -> Plan:
    """As it was before the collection touched it. Types that it did not set stay."""
    result, pf = Plan(), target.function.address
    facts, entry = state.more[RESOURCE][pf], common.stored_entry(state, RESOURCE, pf) or {}
    had = types_before(entry)
    mine = [i for i in known_of(entry) if i in facts["slots"] and not facts["slots"][i].get("foreign")]
    dropped = {index: had.get(index, 0) for index in mine}
    layout = mig.given_back(entry)
    division = mig.plan(pf, layout, facts, _staying(facts, {}, dropped))
    change = Change(state, pf, facts, entry["wish"], entry, {}, dropped, bool(division.steps))
    steps = stepping(change)
    if common.refuse_all(result, division.refusals) or _in_use(result, change, steps, options, division):
        return result
    others = any(had.values()) or any(number for index, number in now(facts).items() if index not in mine)
    gone = [_disable(pf)] if facts["vfs"] and not entry["origin"]["vfs"] and not others else []
    result.reboot_reasons += division.reboot_reasons
    result.actions = [*steps.clear, *gone, *division.steps, *steps.fill, *common.forget(state, RESOURCE, target.function)]
    return result


# --- What is told of them ------------------------------------------------------------------------------------------


def beside(facts: Mapping[str, Any]) -> dict[str, Any]:
    """MIG as it is, where it is on."""
    wish = mig.as_wish(facts)
    return {"mig": wish} if wish else {}


def have(facts: Mapping[str, Any]) -> dict[str, str]:
    """By slot."""
    return {str(index): str(name_of(facts, number)) for index, number in now(facts).items() if number}


def told(state: State, function: Function, framework: str | None) -> dict[str, Any]:
    """What stands beside the wishes."""
    said = state.more[RESOURCE][function.address]
    known = known_of(common.stored_entry(state, RESOURCE, function.address))
    return {
        "framework": framework,
        "uuid": said["uuid"] or None,
        "serial": said["serial"] or None,
        "host_vgpu_mode": said["mode"],
        "virtualization_mode": said["virtualization"],
        "error": said["error"],
        "declared": bool(known),
        "mig": mig.told(said),
        "types": [{"id": number, **type_} for number, type_ in said["types"].items()],
        "vgpus": [
            {
                "index": index,
                "address": slot["address"],
                "uuid": slot.get("uuid"),
                "type": name_of(said, slot["current"]),
                "creatable": [name_of(said, number) for number in slot["creatable"]],
                "declared": known.get(index),
            }
            for index, slot in said["slots"].items()
        ],
    }
