# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the device resources share: whom a list of wishes speaks of, and the record of it on the host."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import drivers, match, store
from ..model import AFTER_REBOOT, CERTAIN, Action, Function, Plan, Refusal, State

#: Parts of an origin that are recorded key by key, as wishes come to name them.
ORIGIN_BY_KEY = ("firmware", "nvme_primary", "pf")


@dataclass(frozen=True)
class Options:
    """What a caller grants and knows beside the wishes."""

    allow: frozenset[str] = frozenset()
    #: Resources whose list is all there is: what the collection owns and the list no longer names is given back.
    exclusive: frozenset[str] = frozenset()
    #: What an earlier call of the same run would have made true by the next boot.
    assume: Mapping[str, Any] = field(default_factory=dict)
    #: Device -> what was allowed for it by name when it was declared: the replay may do again what a run was allowed.
    granted: Mapping[str, Collection[str]] = field(default_factory=dict)
    #: May a step wait for a link? The boot may not: what needs one is left to the replay's second phase.
    wait_for_link: bool = True

    def allowed(self, address: str) -> frozenset[str]:
        """The dangers that are allowed for a device."""
        return self.allow | frozenset(self.granted.get(address, ()))


@dataclass(frozen=True)
class Target:
    """One device of one wish."""

    label: str
    wish: Mapping[str, Any]
    function: Function

    @property
    def absent(self) -> bool:
        return self.wish.get("state") == "absent"


def targets(
    state: State, resource: str, wishes: Sequence[Mapping[str, Any]], options: Options
) -> tuple[list[Target], list[Refusal]]:
    """All devices that the wishes name, and the wishes that cannot be followed."""
    found: dict[str, Target] = {}
    refusals: list[Refusal] = []
    gone = store.gone(state, resource)
    for number, wish in enumerate(wishes):
        label = f"{resource}[{number}]"
        functions, wrong = match.resolve(state, wish, label, gone)
        refusals += wrong
        for function in functions:
            other = found.get(function.address)
            if other:
                refusals.append(_named_twice(function.address, other.label, label))
            found[function.address] = Target(label, wish, function)
    if resource in options.exclusive:
        _add_forgotten(state, resource, found, gone)
    for target in found.values():
        refusals += _hanging(state, target.function)
    return list(found.values()), refusals


def _hanging(state: State, function: Function) -> list[Refusal]:
    """Nothing is done to a device that the kernel does not answer for, nor to its PF and VFs: it would hang as well."""
    family = [function.address, function.physfn or "", *(function.sriov.vfs.values() if function.sriov else ())]
    stuck = [address for address in family if address in state.functions and state.functions[address].stuck]
    if not stuck:
        return []
    reason = f"the kernel does not answer for {stuck[0]}: a write to it, or to its PF, has not returned."
    way_out = "Find who holds it (a paused guest?) and let it go, then run again; nothing was changed."
    return [Refusal(function.address, reason, way_out)]


def any_hanging(state: State) -> str | None:
    """A function of the host that the kernel does not answer for. While one hangs, every change of a number of VFs
    does (the kernel's one lock for adding and removing PCI devices)."""
    return next((f.address for f in state.functions.values() if f.stuck), None)


def _named_twice(address: str, first: str, second: str) -> Refusal:
    reason = f"both {first} and {second} name it."
    return Refusal(address, reason, "Narrow one of the two selectors, or join the wishes; nothing was changed.")


def _add_forgotten(state: State, resource: str, found: dict[str, Target], gone: Sequence[Function]) -> None:
    """Add what the collection owns and the list no longer names, as wishes to give it back."""
    owned = [state.functions[a] for a in state.stored[resource]["devices"] if a in state.functions]
    for function in [*owned, *gone]:
        found.setdefault(function.address, Target(f"{resource}_exclusive", {"state": "absent"}, function))


def stored_entry(state: State, resource: str, address: str) -> Mapping[str, Any] | None:
    document = state.stored.get(resource)
    return document["devices"].get(address) if document else None


def declare(
    state: State,
    resource: str,
    function: Function,
    wish: Mapping[str, Any],
    origin: Mapping[str, Any],
    waived: Collection[str] = (),
) -> list[Action]:
    """Record the wish for the replay, with how the device was before us: the first record of that stays. The identity
    stays as well while it names the same card: a netdev that is gone for now does not make it another one. So does
    what was allowed on the way here: a run that finds all in place was not asked for it again."""
    old = stored_entry(state, resource, function.address)
    identity: Mapping[str, Any] = store.identity(state, function)
    allowed = set(waived)
    if old and old["identity"].get("ids") == identity["ids"]:
        origin = _first_kept(origin, old["origin"])
        allowed |= set(old.get("allow", ()))
        identity = {key: identity[key] or old["identity"].get(key, "") for key in identity}
    entry = {"identity": identity, "wish": dict(wish), "origin": dict(origin), "allow": sorted(allowed)}
    return [] if entry == old else [_declaration(resource, function.address, old, entry)]


def _first_kept(now: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """How it was before: what was recorded first stays, what a later wish speaks of for the first time is added."""
    both = {key: {**now[key], **old[key]} for key in ORIGIN_BY_KEY if key in now and key in old}
    return {**now, **old, **both}


def forget(state: State, resource: str, function: Function) -> list[Action]:
    """Take the record of a device away: the collection no longer owns it."""
    old = stored_entry(state, resource, function.address)
    return [_declaration(resource, function.address, old, None)] if old else []


def _declaration(resource: str, address: str, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> Action:
    verb = "record" if new else "remove the record of"
    return Action(
        kind="declare",
        unit=address,
        text=f"{verb} the {resource} wish in {store.path_of(resource)}, for the replay at boot",
        args={"resource": resource, "address": address, "entry": new, "previous": old},
        before={f"{resource} declared": old["wish"] if old else None},
        after={f"{resource} declared": new["wish"] if new else None},
    )


def conflict(state: State, resource: str, target: Target) -> list[Refusal]:
    """Another resource already rules this device, by an earlier call or by another list of this one."""
    for other in store.RESOURCES:
        if other != resource and stored_entry(state, other, target.function.address):
            reason = f"{target.label} names it, but the resource {other} holds it ({store.path_of(other)})."
            return [
                Refusal(
                    target.function.address,
                    reason,
                    f"Give it back there first (state: absent in {other}); nothing was changed.",
                )
            ]
    return []


def iommu_certainty(state: State, options: Options, has_group: bool) -> str | None:
    """Can a function be given to vfio now, only after the reboot, or (None) not at all?"""
    if has_group:
        return CERTAIN
    if options.assume.get("iommu") or state.iommu.after_reboot:
        return AFTER_REBOOT
    return None


def no_group(address: str, state: State) -> Refusal:
    if state.iommu.active:
        reason = "it has no IOMMU group although the IOMMU is on, so vfio-pci cannot take it."
        way_out = "It sits behind no IOMMU unit (see iovirt.host.host_info); nothing was changed."
    else:
        reason = "it has no IOMMU group: the IOMMU is off, so vfio-pci cannot take it."
        way_out = "Turn the IOMMU on (role iommu) and reboot, or let iovirt.host.site do both; nothing was changed."
    return Refusal(address, reason, way_out)


def best_vfio(state: State, key: str) -> str:
    """The VFIO driver that is made for a device, else the one for all, as libvirt chooses."""
    return state.variants.get(key, "vfio-pci")


def unknown_driver(address: str, driver: str, state: State) -> Refusal:
    """Why a wished driver cannot be had: the name is wrong, or its module is missing, switched off or gone."""
    if driver in drivers.SPELLED:
        reason = f"there is no driver {driver}: that is its module, the driver is called {drivers.SPELLED[driver]}."
        return Refusal(address, reason, "Correct the name; nothing was changed.")
    reason, way_out = state.lacking.get(driver, (f"there is no driver {driver}.", "Correct the name."))
    return Refusal(address, reason, f"{way_out} Nothing was changed.")


def driver_exists(state: State, driver: str) -> bool:
    """Is it on the bus, or can its module be loaded?"""
    if driver in drivers.SPELLED:
        return False
    return driver in state.drivers or (driver in state.loadable and driver not in state.lacking)


def guarded(plan: Plan, dangers: Sequence[Refusal], options: Options, address: str) -> bool:
    """Weigh what stands against a step on a device: was anything refused? What was allowed by name is noted."""
    allowed = options.allowed(address)
    plan.waived |= {refusal.danger for refusal in dangers if refusal.danger in allowed}
    return refuse_all(plan, [refusal for refusal in dangers if refusal.danger not in allowed])


def refuse_all(plan: Plan, refusals: Sequence[Refusal]) -> bool:
    """Add refusals to a plan; were there any?"""
    plan.refusals += refusals
    return bool(refusals)
