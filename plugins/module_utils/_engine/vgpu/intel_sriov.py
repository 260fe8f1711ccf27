# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Intel GPUs with SR-IOV (xe, and i915 with Intel's patches): VFs for guests, each with its share of time and its quotas.

There are no types: a vGPU is a VF, and a wish says how many and how they are (`profile`). VFs are born on a VFIO driver, as the host would take
them for GPUs of its own. Quotas are set before VFs are made, shares of time after that. It is the last that is asked of i915 and xe, so it says why
there can be none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import aliases
from ..drivers import is_vfio
from ..host import Host
from ..model import AFTER_REBOOT, CERTAIN, PREDICTED, Action, Function, Plan, Refusal, State
from ..read import DRIVERS as PCI_DRIVERS
from ..resources import common
from ..resources.common import Options, Target
from . import intel_places as places

NAME = "intel_sriov"
DRIVERS = frozenset({"i915", "xe"})
RESOURCE = "vgpu"
#: What vgpu_info calls the one thing that there is to have.
TYPE = "VF"
VFIO = "vfio-pci"

Profile = Mapping[str, Any]


def read(host: Host, state: State, function: Function) -> dict[str, Any] | None:
    """What there is of VFs, and what each has. Files only."""
    sriov = function.sriov
    keys = places.found(host.files, function.address)
    total = sriov.total if sriov else 0
    profiles = {
        index: {key: places.value(host.files, key, said["paths"], index) for key, said in keys.items()} for index in range(total if keys else 0)
    }
    auto = places.auto(host.files, function.address)
    vfs = dict(sriov.vfs) if sriov else {}
    return {
        "uuid": "",
        "serial": "",
        "beside": {},
        "total": total,
        "vfs": vfs,
        "keys": {key: said["place"] for key, said in keys.items()},
        "priorities": places.choices(host.files, keys["sched_priority"]["paths"]) if "sched_priority" in keys else [],
        "profiles": profiles,
        "auto": auto[1] if auto else None,
        "no_vfio": _no_vfio(host),
        "wishes": _as_wishes(vfs, profiles),
    }


def _no_vfio(host: Host) -> tuple[str, str] | None:
    """Why there is no vfio-pci, with the way out."""
    if host.files.exists(f"{PCI_DRIVERS}/{VFIO}"):
        return None
    lack = aliases.lacking(host.files, [VFIO]).get(VFIO)
    return (lack[0], lack[1]) if lack else None


def _as_wishes(vfs: Mapping[int, str], profiles: Mapping[int, Profile]) -> list[dict[str, Any]]:
    """In the order of the VFs: those beside each other that are alike in one wish."""
    wishes: list[dict[str, Any]] = []
    for index in sorted(vfs):
        profile = _as_profile(profiles.get(index, {}))
        if wishes and wishes[-1].get("profile") == profile.get("profile"):
            wishes[-1]["count"] += 1
        else:
            wishes.append({"type": TYPE, "count": 1, **profile})
    return wishes


def _as_profile(profile: Profile) -> dict[str, Any]:
    told = {key: value for key, value in profile.items() if value is not None}
    return {"profile": told} if told else {}


# --- What can be wished --------------------------------------------------------------------------------------------


def converge(state: State, targets: Sequence[Target], options: Options) -> Plan:
    """What makes the wishes for one GPU true."""
    result, first = Plan(), targets[0]
    pf, facts = first.function.address, state.more[RESOURCE][first.function.address]
    entry = common.stored_entry(state, RESOURCE, pf)
    if common.refuse_all(result, _no_sriov(first, facts, entry)):
        return result
    wanted, wrong = _wanted(targets, facts)
    if common.refuse_all(result, wrong or _not_possible(first, wanted, facts, _before(entry, facts))):
        return result
    wish = {
        "framework": NAME,
        "vgpus": {str(index): TYPE for index in range(len(wanted))},
        "profiles": {str(index): dict(profile) for index, profile in enumerate(wanted) if profile},
    }
    result.warnings += common.overruled(state, RESOURCE, pf, wish, options)
    change = _Change(state, first.function, facts, wanted, _before(entry, facts), options)
    if _in_use(result, change) or common.refuse_all(result, change.refusals()):
        return result
    result.actions = common.declare(state, RESOURCE, first.function, wish, _origin(entry, facts, wanted), result.waived, whole=True)
    result.actions += change.actions()
    if any(action.certainty == AFTER_REBOOT for action in result.actions):
        result.reboot_reasons.append(f"{pf}: its VFs can be given to {VFIO} once the IOMMU is on")
    return result


def _refusal(target: Target, reason: str, way_out: str) -> Refusal:
    return Refusal(target.function.address, f"{target.label}: {reason}", f"{way_out} Nothing was changed.")


def _no_sriov(target: Target, facts: Mapping[str, Any], entry: Mapping[str, Any] | None) -> list[Refusal]:
    driver = target.function.driver
    if entry and entry["wish"]["framework"] != NAME:
        reason = f"its vGPUs were declared as mediated devices (GVT-g), and {driver} offers none now (/sys/class/mdev_bus)."
        return [_refusal(target, reason, "Load kvmgt, with i915.enable_gvt=1 on the kernel command line; or give them back first (state: absent).")]
    if not facts["total"]:
        reason = f"its driver {driver} offers neither mediated devices (GVT-g) nor VFs (sriov_totalvfs)."
        way_out = (
            "VFs need an xe whose max_vfs is not 0 (module parameter), or an i915 with Intel's SR-IOV patches (i915.enable_guc=3 i915.max_vfs=N); "
            "GVT-g needs kvmgt and i915.enable_gvt=1, on the GPUs that have it (Broadwell to Comet Lake)."
        )
        return [_refusal(target, reason, way_out)]
    return []


def _wanted(targets: Sequence[Target], facts: Mapping[str, Any]) -> tuple[list[Profile], list[Refusal]]:
    """The profiles of its VFs, in the order of the wishes."""
    wanted: list[Profile] = []
    for target in targets:
        wish = target.wish
        if wish.get("vgpus") is not None:
            return _of_record(target, facts)
        wrong = _wrong_wish(target, facts)
        if wrong:
            return [], [wrong]
        profile = {key: value for key, value in (wish.get("profile") or {}).items() if value is not None}
        wanted += [profile] * wish["count"]
    return wanted, []


def _of_record(target: Target, facts: Mapping[str, Any]) -> tuple[list[Profile], list[Refusal]]:
    """As it was declared. What the driver had then it need not have now: the files of another kernel, or a debugfs that is not mounted."""
    wish = target.wish
    wanted = [wish.get("profiles", {}).get(str(index), {}) for index in range(len(wish["vgpus"]))]
    lacking = sorted({key for profile in wanted for key, value in profile.items() if value is not None} - set(facts["keys"]))
    if lacking:
        reason = f"its driver has no {' and no '.join(lacking)} of a VF now, which is declared."
        return [], [_refusal(target, reason, "Mount debugfs, or wish what this kernel has.")]
    return wanted, []


def _wrong_wish(target: Target, facts: Mapping[str, Any]) -> Refusal | None:
    wish = target.wish
    if wish.get("type") not in (None, TYPE):
        return _refusal(target, f"it knows no type {wish['type']!r}: its vGPUs are VFs.", "Leave type out, and say how they are by profile.")
    if wish.get("mig"):
        return _refusal(target, "it knows no MIG.", "Leave mig out.")
    if wish.get("count") is None or not 0 <= wish["count"] <= common.MOST:
        return _refusal(target, f"its count is {wish.get('count')}.", f"Say how many VFs there shall be, up to {common.MOST}.")
    for key, value in (wish.get("profile") or {}).items():
        wrong = _wrong_value(key, value, facts) if value is not None else None
        if wrong:
            return _refusal(target, *wrong)
    return None


def _wrong_value(key: str, value: Any, facts: Mapping[str, Any]) -> tuple[str, str] | None:
    if key not in facts["keys"]:
        offered = ", ".join(facts["keys"]) or "nothing"
        return f"its driver has no {key} of a VF.", f"It has {offered}; what there is depends on the driver and its version (docs/vgpu.md)."
    if key == "sched_priority":
        reason = f"its VFs cannot have the sched_priority {value!r}."
        return None if value in facts["priorities"] else (reason, f"They can have {', '.join(facts['priorities'])}.")
    most = places.LIMITS.get(key, 2**64 - 1)
    return None if 0 <= value <= most else (f"{key} {value} is not between 0 and {most}.", "Correct it.")


def _not_possible(target: Target, wanted: Sequence[Profile], facts: Mapping[str, Any], before: int) -> list[Refusal]:
    if len(wanted) > facts["total"]:
        return [_refusal(target, f"{len(wanted)} VFs are wished, and it can have {facts['total']} (sriov_totalvfs).", "Lower the counts.")]
    if before and facts["vfs"] and len(wanted) != len(facts["vfs"]):
        reason = f"{len(wanted)} VFs are wished, and it has {len(facts['vfs'])} that the collection did not make."
        return [_refusal(target, reason, f"Wish {len(facts['vfs'])}, or let their owner take them away first (sriov_numvfs).")]
    if len({profile.get("sched_priority") for profile in wanted}) > 1:
        return [_refusal(target, "sched_priority is one for all VFs of a GPU, and the wishes differ.", "Say the same in each of them.")]
    by_hand = any(key in profile and facts["keys"][key] != places.ADMIN for profile in wanted for key in places.QUOTAS)
    for index, profile in enumerate(wanted):
        missing = [key for key in places.TOGETHER if key not in profile]
        if by_hand and missing:
            reason = f"VF {index} would have no {' and no '.join(missing)}: where quotas are set by hand, the driver shares out nothing by itself."
            return [_refusal(target, reason, f"Say {' and '.join(places.TOGETHER)} for all VFs, or no quota at all.")]
    return []


def _before(entry: Mapping[str, Any] | None, facts: Mapping[str, Any]) -> int:
    """How many VFs it had before the collection."""
    return int(entry["origin"]["vf_count"]) if entry else len(facts["vfs"])


def _origin(entry: Mapping[str, Any] | None, facts: Mapping[str, Any], wanted: Sequence[Profile]) -> dict[str, Any]:
    """How it was: the number of VFs, what those had whose profile is wished, and whether the driver shared out by itself."""
    old = entry["origin"] if entry else {"vf_count": len(facts["vfs"]), "profiles": {}, "auto": facts["auto"]}
    profiles = {index: dict(profile) for index, profile in old["profiles"].items()}
    for index, profile in enumerate(wanted):
        now = facts["profiles"].get(index, {})
        known = {key: now[key] for key in profile if now.get(key) is not None}
        if known:
            profiles[str(index)] = {**known, **profiles.get(str(index), {})}
    return {**old, "profiles": profiles}


# --- The plan of a GPU ---------------------------------------------------------------------------------------------


class _Change:
    """From what a GPU has to what it shall have."""

    def __init__(self, state: State, pf: Function, facts: Mapping[str, Any], wanted: Sequence[Profile], before: int, options: Options) -> None:
        self.state, self.pf, self.facts, self.wanted, self.options = state, pf, facts, wanted, options
        self.now, self.count = len(facts["vfs"]), len(wanted)
        self.foreign = bool(before and self.now)
        # A VF that runs has its quotas in use.
        self.remade = self.count != self.now or any(key in places.QUOTAS for todo in self.todo().values() for key in todo)

    def todo(self) -> dict[int, dict[str, Any]]:
        """VF -> what it has not as it shall."""
        profiles = self.facts["profiles"]
        found = {
            index: {key: value for key, value in profile.items() if profiles.get(index, {}).get(key) != value}
            for index, profile in enumerate(self.wanted)
        }
        return {index: values for index, values in found.items() if values}

    def refusals(self) -> list[Refusal]:
        pf = self.pf.address
        if self.foreign and self.remade:
            reason = "its VFs would have to be made anew for other quotas, and the collection did not make them."
            return [Refusal(pf, reason, "Let their owner take them away first; nothing was changed.")]
        if self._unbound() and self.facts["no_vfio"]:
            return [Refusal(pf, self.facts["no_vfio"][0], f"{self.facts['no_vfio'][1]} Nothing was changed.")]
        return [common.no_group(pf, self.state)] if any(self._sure(vf) is None for vf in self._unbound().values()) else []

    def _unbound(self) -> dict[int, Function | None]:
        """The VFs that no VFIO driver has (a variant is one), or will have by itself. Those that the host had before keep their drivers."""
        if self.foreign:
            return {}
        there = {} if self.remade else {index: self.state.functions.get(address) for index, address in self.facts["vfs"].items()}
        return {index: vf for index in range(self.count) if (vf := there.get(index)) is None or not is_vfio(vf.driver)}

    def touched(self) -> dict[int, str]:
        """The VFs there are that go, or lose the driver that they have."""
        vfs: Mapping[int, str] = self.facts["vfs"]
        return dict(vfs) if self.remade else {index: vf.address for index, vf in self._unbound().items() if vf}

    def _sure(self, vf: Function | None) -> str | None:
        """Can it be given to vfio-pci now, after the reboot, or (None) not at all?"""
        sure = common.iommu_certainty(self.state, self.options, vf.group is not None if vf else self.state.iommu.active)
        return PREDICTED if sure == CERTAIN and vf is None else sure

    def actions(self) -> list[Action]:
        """Quotas while there are no VFs, then the VFs, then the shares of time, then drivers."""
        if not self.remade:
            return self._profiles(self.todo(), CERTAIN) + self._bound()
        quotas = {i: {key: value for key, value in profile.items() if key in places.QUOTAS} for i, profile in enumerate(self.wanted)}
        # The small ones first: what is left may lie in pieces, and a VF that gets less leaves more to the next.
        quotas = dict(sorted(((i, values) for i, values in quotas.items() if values), key=lambda item: sum(item[1].values())))
        first: list[Action] = []
        if quotas:
            first = [_count(self, self.now, 0)] if self.now else []
            first += [_auto(self.pf.address, True, False)] if self.facts["auto"] else []
            first += self._profiles(quotas, PREDICTED)
        time = {i: {k: v for k, v in self.wanted[i].items() if k in places.SCHEDULING} for i in (*quotas, *range(self.count))}
        shares = [_profile(self.pf.address, i, values, self.facts, PREDICTED, quotas.get(i)) for i, values in time.items() if values or i in quotas]
        return [*first, _count(self, 0 if quotas else self.now, self.count), *shares, *self._bound()]

    def _profiles(self, todo: Mapping[int, Profile], certainty: str) -> list[Action]:
        return [_profile(self.pf.address, index, values, self.facts, certainty) for index, values in todo.items()]

    def _bound(self) -> list[Action]:
        return [_bind(self.pf.address, index, vf, self._sure(vf) or CERTAIN) for index, vf in self._unbound().items()]


def _count(change: _Change, now: int, count: int) -> Action:
    pf, vfs = change.pf, {index: change.state.functions.get(address) for index, address in change.facts["vfs"].items()}
    there = {index: vf for index, vf in vfs.items() if vf and now}
    return Action(
        kind="set_vf_count",
        unit=pf.address,
        text=f"change the number of VFs from {now} to {count}" if now else f"make {count} VFs",
        args={
            "pf": pf.address, "from": now, "to": count, "reserved": {str(index): VFIO for index in range(count)},
            "autoprobe": bool(pf.sriov and pf.sriov.autoprobe), "hold": False, "held_back": [],
            "previous": {str(index): vf.driver for index, vf in there.items() if vf.override},
            "drivers": {str(index): vf.driver for index, vf in there.items()},
            "netdev": "", "attributes": {}, "had_link": False, "msix": {}, "controllers": {},
        },
        before={"VFs": now},
        after={"VFs": count},
    )  # fmt: skip


def _profile(pf: str, index: int, values: Profile, facts: Mapping[str, Any], certainty: str, kept: Profile | None = None) -> Action:
    """`kept`: what it was given before it was made."""
    now = facts["profiles"].get(index, {})
    said = ", ".join(f"{key} {value}" for key, value in values.items())
    return Action(
        kind="set_vf_profile",
        unit=pf,
        text=f"give VF {index} {said}" if values else f"see that VF {index} has its quotas",
        certainty=certainty,
        args={"pf": pf, "index": index, "to": dict(values), "from": {key: now.get(key) for key in values}, "kept": dict(kept or {})},
        before={f"VF {index} {key}": now.get(key) for key in values},
        after={f"VF {index} {key}": value for key, value in values.items()},
    )


def _auto(pf: str, now: bool, wanted: bool) -> Action:
    verb = "let the driver share out its resources by itself again" if wanted else "keep the driver from sharing out its resources by itself"
    what = "auto_provisioning"
    return Action("set_auto_provisioning", pf, verb, PREDICTED if wanted else CERTAIN, args={"pf": pf, "to": wanted, "from": now},
                  before={what: now}, after={what: wanted})  # fmt: skip


def _bind(pf: str, index: int, vf: Function | None, certainty: str) -> Action:
    was = {"was_driver": vf.driver if vf else None, "was_override": vf.override if vf else None}
    before = {f"VF {index} driver": vf.driver if vf else None}
    args = {"pf": pf, "index": index, "driver": VFIO, **was}
    return Action("bind", pf, f"bind VF {index} to {VFIO}", certainty, args=args, before=before, after={f"VF {index} driver": VFIO})


def _in_use(result: Plan, change: _Change) -> bool:
    """A VF that somebody has is never taken away, nor its driver, whatever is allowed. A guest that does not run loses one that goes for good."""
    refusals, dangers = [], []
    for index, address in change.touched().items():
        for user in (change.state.users or {}).get(address, ()):
            reason = f"VF {index} ({address}) is of {user.who}."
            if not user.idle:
                refusals.append(Refusal(change.pf.address, reason, "Stop who uses it first; nothing was changed."))
            elif index >= change.count:
                way_out = "Nothing was changed. Where this is meant, allow it by name: allow: [in_use]."
                dangers.append(Refusal(change.pf.address, reason, way_out, "in_use"))
    return common.refuse_all(result, refusals) or common.guarded(result, dangers, change.options, change.pf.address)


def give_back(state: State, target: Target, options: Options) -> Plan:
    """What puts it back as it was: the VFs that it had, with what they had."""
    result, pf = Plan(), target.function.address
    facts, entry = state.more[RESOURCE][pf], common.stored_entry(state, RESOURCE, pf) or {}
    if entry["wish"]["framework"] != NAME:
        return Plan(refusals=_no_sriov(target, facts, entry))
    before = _before(entry, facts)
    change = _Change(state, target.function, facts, [] if not before else [{}] * len(facts["vfs"]), before, options)
    if _in_use(result, change):
        return result
    had = {int(index): profile for index, profile in entry["origin"]["profiles"].items()}
    profiles = {index: values for index, profile in had.items() if (values := _differing(facts["profiles"].get(index, {}), profile))}
    result.actions = [_count(change, change.now, 0)] if change.now and not before else []
    result.actions += [_profile(pf, index, values, facts, PREDICTED if not before else CERTAIN) for index, values in sorted(profiles.items())]
    if entry["origin"]["auto"] and facts["auto"] is False and not before:
        result.actions.append(_auto(pf, False, True))
    result.actions += common.forget(state, RESOURCE, target.function)
    return result


def _differing(now: Profile, had: Profile) -> dict[str, Any]:
    return {key: value for key, value in had.items() if key in now and now[key] != value}


# --- What is told of them ------------------------------------------------------------------------------------------


def have(facts: Mapping[str, Any]) -> dict[str, str]:
    """By the index of the VF."""
    return {str(index): TYPE for index in facts["vfs"]}


def told(state: State, function: Function) -> dict[str, Any]:
    """What stands beside the wishes."""
    said, entry = state.more[RESOURCE][function.address], common.stored_entry(state, RESOURCE, function.address)
    known = entry["wish"]["vgpus"] if entry and entry["wish"]["framework"] == NAME else {}
    return {
        "framework": NAME if said["total"] else None,
        "declared": bool(known),
        "types": [{"name": TYPE, "most": said["total"], "free": said["total"] - len(said["vfs"])}] if said["total"] else [],
        "profile": dict(said["keys"]),
        "vgpus": [
            {
                "index": index,
                "address": address,
                "type": TYPE,
                "driver": state.functions[address].driver if address in state.functions else None,
                "profile": said["profiles"].get(index, {}),
                "declared": TYPE if str(index) in known else None,
            }
            for index, address in said["vfs"].items()
        ],
    }
