# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""vGPUs of NVIDIA's vendor-specific VFIO framework: the type of each VF of a GPU (kernel 6.8 and newer, Ada and later).

One VF at a time: what is as wished is not written to. A card whose driver makes mediated devices is declared by `mdev`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..host import Host
from ..model import CERTAIN, PREDICTED, Action, Function, Plan, Refusal, State
from ..vgpu import facts as reading
from ..vgpu import shares
from . import common
from .common import Options, Target

NAME = "vgpu"
DRIVER = "nvidia"


def needs(wishes: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """Drivers that the wishes name: none."""
    return frozenset()


def read_more(host: Host, state: State, wishes: Sequence[Mapping[str, Any]], options: Options) -> State:
    """What the driver says of the GPUs that are named."""
    found, _wrong = common.targets(state, NAME, wishes, options, several=True)
    named = {t.function.address: t.function for t in found if t.function.address in state.functions}
    asked = {a: f for a, f in named.items() if f.driver == DRIVER and not f.physfn}
    return state.with_more(NAME, {a: reading.read(host, a, _vfs(f)) for a, f in asked.items()})


def _vfs(function: Function) -> Mapping[int, str]:
    return function.sriov.vfs if function.sriov else {}


def plan(state: State, wishes: Sequence[Mapping[str, Any]], options: Options) -> Plan:
    """What makes the wishes true on this host. Several wishes may speak of one GPU."""
    result = Plan()
    found, result.refusals = common.targets(state, NAME, wishes, options, several=True)
    for targets in common.by_device(found).values():
        if common.refuse_all(result, common.present_and_absent(targets)):
            continue
        give_back = targets[0].absent
        result.extend(_give_back(state, targets[0], options) if give_back else _converge(state, targets, options))
    result.predicted = shares.to_come(state, result.actions)
    return result


# --- What can be wished --------------------------------------------------------------------------------------------


def _check_card(state: State, target: Target) -> list[Refusal]:
    """Is it a GPU under NVIDIA's host driver, in the mode that has VFs, without a display?"""
    function, facts = target.function, state.more[NAME].get(target.function.address)
    way_out = "Load NVIDIA's vGPU host driver (not the one for passthrough or desktops)."
    if function.physfn:
        return [_refusal(target, f"it is a VF of {function.physfn}.", "Name the GPU; its VFs are chosen by count.")]
    if function.driver != DRIVER or facts is None:
        return [_refusal(target, f"its driver is {function.driver or 'none'}, not {DRIVER}.", way_out)]
    if facts["error"]:
        return [_refusal(target, f"nvidia-smi does not tell of it: {facts['error']}.", way_out)]
    if facts["mediated"]:
        reason = "its driver divides it into mediated devices (/sys/class/mdev_bus), the older of NVIDIA's two frameworks."
        return [_refusal(target, reason, "Declare its vGPUs as mdev; one card has one framework.")]
    # By equality: 'Non SR-IOV' is another mode.
    if facts["mode"] != "SR-IOV":
        reason = f"its Host VGPU Mode is {facts['mode'] or 'unknown'} (Virtualization Mode {facts['virtualization'] or 'unknown'}), not SR-IOV."
        return [_refusal(target, reason, way_out)]
    if function.boot_vga or facts["display"] == "Yes":
        return [_refusal(target, "a display is attached to it.", "Use another GPU, or let the display go.")]
    return []


def _refusal(target: Target, reason: str, way_out: str) -> Refusal:
    return Refusal(target.function.address, f"{target.label}: {reason}", f"{way_out} Nothing was changed.")


def _wanted(state: State, targets: Sequence[Target]) -> tuple[dict[int, str] | list[int], list[Refusal]]:
    """The types that a GPU's VFs shall have: by VF, as the record has them, or one for each VF that is to be chosen."""
    wanted: list[int] = []
    refusals: list[Refusal] = []
    for target in targets:
        types, wish = state.more[NAME][target.function.address]["types"], target.wish
        if wish.get("vgpus") is not None:
            return {int(index): type_ for index, type_ in wish["vgpus"].items()}, []
        numbers = [n for n, facts in types.items() if str(wish.get("type")) in _names(n, facts["name"])]
        if len(numbers) != 1 or wish.get("count") is None or wish["count"] < 0:
            refusals.append(_no_type(target, types) if len(numbers) != 1 else _no_count(target))
        elif types[numbers[0]]["mig"]:
            reason = f"{types[numbers[0]]['name']} is a type for a GPU instance of MIG, which is not supported here."
            refusals.append(_refusal(target, reason, "Wish a time-sliced type."))
        else:
            wanted += numbers * wish["count"]
    return wanted, refusals


def _names(number: int, name: str) -> set[str]:
    """'1155', 'NVIDIA L40S-24Q', 'L40S-24Q'."""
    return {str(number), name, name.partition(" ")[2]}


def _no_type(target: Target, types: Mapping[int, Mapping[str, Any]]) -> Refusal:
    said = ", ".join(f"{facts['name']} ({number}; at most {facts['most']})" for number, facts in types.items() if not facts["mig"])
    return _refusal(target, f"it knows no type {target.wish.get('type')!r}.", f"It knows {said or 'none'}.")


def _no_count(target: Target) -> Refusal:
    return _refusal(target, f"its count is {target.wish.get('count')}.", "Say how many of the type there shall be.")


# --- The plan of a GPU ---------------------------------------------------------------------------------------------


def _converge(state: State, targets: Sequence[Target], options: Options) -> Plan:
    result, first = Plan(), targets[0]
    pf = first.function.address
    if common.refuse_all(result, common.conflict(state, NAME, first) + _check_card(state, first)):
        return result
    wanted, wrong = _wanted(state, targets)
    if common.refuse_all(result, wrong):
        return result
    facts, entry = state.more[NAME][pf], common.stored_entry(state, NAME, pf)
    known = _known(entry)
    current = {index: vf["current"] for index, vf in facts["vfs"].items()}
    chosen = _by_name(facts, wanted) if isinstance(wanted, dict) else _choose(first.function, wanted, known, current, facts)
    if chosen is None or common.refuse_all(result, _no_room(first, chosen, known, current, facts)):
        return result if chosen is not None else _too_many(result, first, len(wanted))
    wish = {"vgpus": {str(index): facts["types"].get(n, {}).get("name") or str(n) for index, n in sorted(chosen.items())}}
    result.warnings += common.overruled(state, NAME, pf, wish, options)
    had = _types_before(entry)
    steps = _steps(pf, chosen, {index: had.get(index, 0) for index in known if index not in chosen}, current, facts)
    if _in_use(result, state, pf, steps, chosen, options):
        return result
    types = {str(index): had.get(index, 0) if index in known else current.get(index, 0) for index in sorted(chosen)}
    origin = {"vfs": _vfs_before(entry, facts), "types": types}
    result.actions = common.declare(state, NAME, first.function, wish, origin, result.waived, whole=True)
    if not facts["vfs"] and chosen:
        result.actions.append(_enable(pf))
    result.actions += steps
    return result


def _known(entry: Mapping[str, Any] | None) -> dict[int, str]:
    return {int(index): name for index, name in entry["wish"]["vgpus"].items()} if entry else {}


def _vfs_before(entry: Mapping[str, Any] | None, facts: Mapping[str, Any]) -> bool:
    """Had the GPU VFs before the collection? Then they stay."""
    return bool(entry["origin"]["vfs"] if entry else facts["vfs"])


def _types_before(entry: Mapping[str, Any] | None) -> dict[int, int]:
    """The types that VFs of ours had before the collection: they get them back."""
    return {int(index): number for index, number in entry["origin"]["types"].items()} if entry else {}


def _by_name(facts: Mapping[str, Any], wanted: Mapping[int, str]) -> dict[int, int]:
    """A name that the driver no longer knows stays out: then the VF is left alone (and the next run of the module says so)."""
    numbers = {facts_["name"]: number for number, facts_ in facts["types"].items()}
    return {index: numbers[name] for index, name in wanted.items() if name in numbers}


def _choose(
    function: Function, wanted: Sequence[int], known: Mapping[int, str], current: Mapping[int, int], facts: Mapping[str, Any]
) -> dict[int, int] | None:
    """A VF for each type: those that have it already (ours, then others', which are declared with that), those that were
    declared to, those that change, those that are free. A VF with another type of somebody else is nobody's to take. None:
    there are not enough VFs."""
    rest, chosen = Counter(wanted), {}
    declared = _by_name(facts, known)
    total = function.sriov.total if function.sriov else 0
    indexes = list(current) or list(range(total))
    for has in (lambda i: current.get(i) if i in known else None, lambda i: current.get(i) if i not in known else None, declared.get):
        for index in indexes:
            type_ = has(index)
            if type_ and index not in chosen and rest[type_] > 0:
                chosen[index] = type_
                rest[type_] -= 1
    free = [i for i in indexes if i not in chosen and i in known]
    free += [i for i in indexes if i not in chosen and i not in known and not current.get(i)]
    left = list(rest.elements())
    return {**chosen, **dict(zip(free, left))} if len(left) <= len(free) else None


def _too_many(result: Plan, target: Target, number: int) -> Plan:
    reason = f"{number} vGPUs are wished, and it has not so many VFs that are free."
    result.refusals.append(_refusal(target, reason, "Lower the counts; VFs with a type that the collection did not set are left alone."))
    return result


def _no_room(
    target: Target, chosen: Mapping[int, int], known: Mapping[int, str], current: Mapping[int, int], facts: Mapping[str, Any]
) -> list[Refusal]:
    """All types before one is cleared: by the number of one type that the driver names, by the memory of all, and, where
    nothing goes before, by what each VF can have now."""
    types = facts["types"]
    after = Counter(n for n in {**{i: n for i, n in current.items() if i not in known}, **chosen}.values() if n in types)
    for number, count in after.items():
        if types[number]["most"] and count > types[number]["most"]:
            reason = f"{count} of {types[number]['name']} are more than the {types[number]['most']} that it can have."
            return [_refusal(target, reason, "Lower the count.")]
    # Not what nvidia-smi calls its memory: with ECC that is less than its largest type has.
    room = max((type_["most"] * type_["memory"] for type_ in types.values()), default=0)
    used = sum(types[number]["memory"] * count for number, count in after.items())
    if used > room:
        reason = f"the vGPUs would have {used} MiB together, and it has {room} MiB for them."
        return [_refusal(target, reason, "Lower the counts, or wish smaller types.")]
    if any(current.get(index) and chosen.get(index) != current[index] for index in known):
        return []
    for index, number in chosen.items():
        vf = facts["vfs"].get(index)
        if vf and vf["ready"] and vf["current"] != number and number not in vf["creatable"]:
            can = ", ".join(facts["types"].get(n, {}).get("name", str(n)) for n in vf["creatable"]) or "none"
            reason = f"VF {index} ({vf['address']}) cannot have {facts['types'][number]['name']} beside what its siblings have."
            return [_refusal(target, reason, f"It can have {can}.")]
    return []


def _steps(
    pf: str, chosen: Mapping[int, int], dropped: Mapping[int, int], current: Mapping[int, int], facts: Mapping[str, Any]
) -> list[Action]:
    """First what is cleared, so that its room is there for what comes; a VF goes from type to type by way of none."""
    wanted = {**dropped, **chosen}
    todo = {index: number for index, number in sorted(wanted.items()) if current.get(index, 0) != number}
    cleared = [index for index in todo if current.get(index)]
    certainty = CERTAIN if facts["vfs"] and not cleared else PREDICTED
    actions = [_set(pf, index, current[index], 0, facts, CERTAIN) for index in cleared]
    return actions + [_set(pf, index, 0, number, facts, certainty) for index, number in todo.items() if number]


def _set(pf: str, index: int, was: int, number: int, facts: Mapping[str, Any], certainty: str) -> Action:
    name = _type_name(facts, number)
    return Action(
        kind="set_vgpu_type",
        unit=pf,
        text=f"give VF {index} the vGPU type {name}" if number else f"take the vGPU type {_type_name(facts, was)} from VF {index}",
        certainty=certainty,
        args={"pf": pf, "index": index, "to": number, "from": was},
        before={f"VF {index} vGPU": _type_name(facts, was)} if was or not number else {},
        after={f"VF {index} vGPU": name},
    )


def _type_name(facts: Mapping[str, Any], number: int) -> str | None:
    return (facts["types"].get(number, {}).get("name") or str(number)) if number else None


def _enable(pf: str) -> Action:
    return Action("enable_vgpu_vfs", pf, "let NVIDIA's sriov-manage make its VFs", args={"pf": pf}, before={"VFs": False}, after={"VFs": True})


def _disable(pf: str) -> Action:
    return Action("disable_vgpu_vfs", pf, "let NVIDIA's sriov-manage take its VFs away", args={"pf": pf}, before={"VFs": True}, after={"VFs": False})


def _in_use(result: Plan, state: State, pf: str, steps: Sequence[Action], stays: Collection[int], options: Options) -> bool:
    """A vGPU that somebody has is never cleared, whatever is allowed. A guest that does not run loses one that goes for good."""
    refusals, dangers, vfs = [], [], state.more[NAME][pf]["vfs"]
    for action in (action for action in steps if action.args["from"]):
        index = action.args["index"]
        for user in (state.users or {}).get(vfs[index]["address"], ()):
            reason = f"the vGPU of VF {index} ({vfs[index]['address']}) is of {user.who}."
            if not user.idle:
                refusals.append(Refusal(pf, reason, "Stop who uses it first; nothing was changed."))
            elif index not in stays:
                way_out = "Nothing was changed. Where this is meant, allow it by name: allow: [in_use]."
                dangers.append(Refusal(pf, reason, way_out, "in_use"))
    return common.refuse_all(result, refusals) or common.guarded(result, dangers, options, pf)


def _give_back(state: State, target: Target, options: Options) -> Plan:
    """As it was before the collection touched it. Types that it did not set stay."""
    result, pf = Plan(), target.function.address
    entry, facts = common.stored_entry(state, NAME, pf), state.more[NAME].get(pf)
    if entry is None:
        return result
    if facts and facts["vfs"]:
        current = {index: vf["current"] for index, vf in facts["vfs"].items()}
        had = _types_before(entry)
        steps = _steps(pf, {}, {index: had.get(index, 0) for index in _known(entry) if index in current}, current, facts)
        if _in_use(result, state, pf, steps, (), options):
            return result
        others = any(had.values()) or any(number for index, number in current.items() if index not in _known(entry))
        result.actions = steps + ([_disable(pf)] if not entry["origin"]["vfs"] and not others else [])
    result.actions += common.forget(state, NAME, target.function)
    return result


# --- What is told of them ------------------------------------------------------------------------------------------


def info(state: State) -> list[dict[str, Any]]:
    """The vGPUs of the GPUs that were looked at, in the form of wishes: one for each type."""
    return [
        {"match": {"address": [pf]}, "type": _type_name(facts, number), "count": count}
        for pf, facts in state.more.get(NAME, {}).items()
        for number, count in sorted(Counter(vf["current"] for vf in facts["vfs"].values()).items())
        if number
    ]


def told_of(state: State) -> list[str]:
    """All GPUs that NVIDIA's driver has."""
    return [f.address for f in state.functions.values() if f.driver == DRIVER and not f.physfn and f.class_code.startswith("03")]


def all_of(state: State) -> list[dict[str, Any]]:
    """A wish that names them all, so that they are read."""
    addresses = told_of(state)
    return [{"match": {"address": addresses}}] if addresses else []


def facts(state: State, function: Function) -> dict[str, Any]:
    """What stands beside the wishes."""
    pf, said = function.address, state.more[NAME][function.address]
    known = _known(common.stored_entry(state, NAME, pf))
    return {
        "driver": function.driver,
        "framework": "mdev" if said["mediated"] else "vendor" if said["mode"] == "SR-IOV" else None,
        "host_vgpu_mode": said["mode"],
        "virtualization_mode": said["virtualization"],
        "error": said["error"],
        "declared": bool(known),
        "types": [{"id": number, **type_} for number, type_ in said["types"].items()],
        "vfs": [
            {
                "index": index,
                "address": vf["address"],
                "type": _type_name(said, vf["current"]),
                "creatable": [_type_name(said, number) for number in vf["creatable"]],
                "declared": known.get(index),
            }
            for index, vf in said["vfs"].items()
        ],
    }


def now(state: State, address: str) -> dict[str, Any]:
    """What the operator's command shows of a GPU."""
    said = state.more.get(NAME, {}).get(address)
    if said is None:
        return {"vgpus": {}}
    return {"vgpus": {str(index): _type_name(said, vf["current"]) for index, vf in said["vfs"].items() if vf["current"]}}


def in_short(wish: Mapping[str, Any]) -> str:
    """'2 NVIDIA L40S-24Q'."""
    return ", ".join(f"{count} {name}" for name, count in sorted(Counter(wish["vgpus"].values()).items())) or "no vGPU"
