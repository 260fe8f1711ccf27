# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the device resources share: whom a list of wishes speaks of, and the record of it on the host."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import field
from typing import Any

from .. import drivers, identity, match, store
from ..model import AFTER_REBOOT, CERTAIN, HOST, Action, Function, Plan, Refusal, State
from ..plain import dataclass

#: Parts of an origin that are recorded key by key, as wishes come to name them.
ORIGIN_BY_KEY = ("firmware", "nvme_primary", "pf")
#: No device has more parts: the number of VFs has 16 bits (TotalVFs, PCI Express Base Specification). A count above it is a slip, and is refused
#: before anything is made as often as it says.
MOST = 65535


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
    #: Only devices that are recorded: the replay never takes a new one.
    recorded_only: bool = False
    #: What needs a link is left to its unit (engine.Call): how fast the link is then nobody knows now.
    before_link: bool = False
    #: Who declares: the revision of the inventory, or whatever the caller calls it.
    declared_by: str = ""

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
    state: State, resource: str, wishes: Sequence[Mapping[str, Any]], options: Options, several: bool = False
) -> tuple[list[Target], list[Refusal]]:
    """All devices that the wishes name, and the wishes that cannot be followed. With `several` more than one wish may
    speak of a device: then it is in the list once for each."""
    found: dict[str, Target] = {}
    refusals: list[Refusal] = []
    gone = store.gone(state, resource)
    for number, wish in enumerate(wishes):
        label = wish.get("label") or f"{resource}[{number}]"
        functions, wrong = match.resolve(state, wish, label, gone)
        refusals += wrong + ([] if functions else _moved_from(state, resource, wish, label))
        for function in functions:
            key = f"{function.address} {label}" if several else function.address
            other = found.get(key)
            if other:
                refusals.append(_named_twice(function.address, other.label, label))
            found[key] = Target(label, wish, function)
    named = frozenset(target.function.address for target in found.values())
    if resource in options.exclusive:
        _add_forgotten(state, resource, found, named, gone)
    for target in found.values():
        refusals += _hanging(state, target.function) + _uncertain(state, resource, target)
    refusals += _exchanged(state, resource, found, named)
    if options.recorded_only:
        addresses = dict.fromkeys(target.function.address for target in found.values())
        refusals += [_not_recorded(address) for address in addresses if address not in state.stored[resource]["devices"]]
    return list(found.values()), refusals


def by_device(found: Sequence[Target]) -> dict[str, list[Target]]:
    """The targets of a resource of which several wishes may speak of one device, by that."""
    by_address: dict[str, list[Target]] = {}
    for target in found:
        by_address.setdefault(target.function.address, []).append(target)
    return by_address


def present_and_absent(targets: Sequence[Target]) -> list[Refusal]:
    """Some of the wishes for a device give it back, and others do not."""
    if len({target.absent for target in targets}) == 1:
        return []
    reason = f"{targets[0].label} and {targets[-1].label} wish it present and absent."
    return [Refusal(targets[0].function.address, reason, "Drop one of them; nothing was changed.")]


def _not_recorded(address: str) -> Refusal:
    """Between two readings a driver came, and the card showed that it is another one."""
    return Refusal(address, "it is not the device that was declared.", "It was left alone.")


def _uncertain(state: State, resource: str, target: Target) -> list[Refusal]:
    """Nothing is done to what may be the declared device or an identical neighbour."""
    lost = state.lost.get(resource, {}).get(target.function.address)
    if target.absent or lost is None or not lost.uncertain:
        return []
    return [Refusal(target.function.address, f"{target.label}: {lost.reason.partition(': ')[2]}", "Nothing was changed.")]


#: Keys of a selector that name a place, and those that name a card.
_PLACES = ("address", "slot", "ifname")
_CARDS = ("mac", "serial")


def _exchanged(state: State, resource: str, found: Mapping[str, Target], named: Collection[str]) -> list[Refusal]:
    """A wish that names a place was meant for the card that it was declared for. Where that card is elsewhere now and
    the call does not speak of it there, its place is not given to another one."""
    refusals = []
    for target in found.values():
        address, selector = target.function.address, target.wish.get("match") or {}
        by_place = any(selector.get(key) for key in _PLACES) and not any(selector.get(key) for key in _CARDS)
        own = state.stored[resource]["devices"].get(address)
        before = _declared_at(state, resource, address)
        if by_place and not target.absent and own is None and before and before not in named:
            refusals.append(_moved_away(state, resource, target, before))
    return refusals


def _moved_from(state: State, resource: str, wish: Mapping[str, Any], label: str) -> list[Refusal]:
    """A wish to give back what was declared at an address where there is nothing now."""
    refusals = []
    for address in (wish.get("match") or {}).get("address") or [] if wish.get("state") == "absent" else []:
        now = _declared_at(state, resource, str(address).lower())
        if now:
            reason = f"{label}: the card that was declared there is at {now} now."
            refusals.append(Refusal(str(address), reason, f"Name {now}, or the card by mac or serial; nothing was changed."))
    return refusals


def _declared_at(state: State, resource: str, address: str) -> str | None:
    """Where the device is now that was declared at an address, if it is elsewhere."""
    entries: Mapping[str, Mapping[str, Any]] = state.stored[resource]["devices"]
    for now, entry in entries.items():
        if now != address and entry.get("declared_at", entry["identity"].get("address")) == address:
            return now
    return None


def _moved_away(state: State, resource: str, target: Target, now: str) -> Refusal:
    card = identity.described(state.stored[resource]["devices"][now])
    reason = f"{target.label} names a place: the card that was declared there ({card}) is at {now} now, and this is another one."
    way_out = f"Name cards by mac or serial, or name {now} as well (state: absent gives it back); nothing was changed."
    return Refusal(target.function.address, reason, way_out)


def outdated(state: State, resource: str, target: Target, wish: Mapping[str, Any]) -> list[Refusal]:
    """Two recorded cards have changed places, and the list still says of this place what was declared for the other."""
    address = target.function.address
    own = state.stored[resource]["devices"].get(address)
    before = _declared_at(state, resource, address)
    if own is None or before is None or any(target.wish["match"].get(key) for key in _CARDS):
        return []
    other = state.stored[resource]["devices"][before]
    if wish == own["wish"] or wish != other["wish"]:
        return []
    return [_moved_away(state, resource, target, before)]


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


def _add_forgotten(
    state: State, resource: str, found: dict[str, Target], named: Collection[str], gone: Sequence[Function]
) -> None:
    """Add what the collection owns and the list no longer names, as wishes to give it back."""
    owned = [state.functions[address] for address in state.stored[resource]["devices"]]
    for function in (f for f in [*owned, *gone] if f.address not in named):
        found.setdefault(function.address, Target(f"{resource}_exclusive", {"state": "absent"}, function))


def stored_entry(state: State, resource: str, address: str) -> Mapping[str, Any] | None:
    return store.entry_of(state, resource, address)


def follow(state: State) -> list[Action]:
    """Let the records of devices that have moved follow them: all at once, and before anything else."""
    return [_follow(state, name, moves) for name, moves in state.moved.items() if moves]


def _follow(state: State, resource: str, moves: Mapping[str, str]) -> Action:
    entries = state.stored[resource]["devices"]
    names = [f"{old} is at {new} now ({identity.described(entries[new])})" for old, new in sorted(moves.items())]
    return Action(
        kind="follow",
        unit=HOST,
        text=f"let the records in {store.path_of(resource)} follow their devices: {', '.join(names)}",
        args={"resource": resource, "moves": dict(moves), "moved": {new: entries[new] for new in moves.values()}},
        before={f"{resource} declared at": sorted(moves)},
        after={f"{resource} declared at": sorted(moves.values())},
    )


def declare(
    state: State,
    resource: str,
    function: Function,
    wish: Mapping[str, Any],
    origin: Mapping[str, Any],
    waived: Collection[str] = (),
    touched: Collection[str] = (),
    whole: bool = False,
) -> list[Action]:
    """Record the wish for the replay, with how the device was before us: the first record of that stays. With `touched`
    (sriov/touched.py), or where the origin is `whole`, the caller has seen to that. The identity
    stays as well while it names the same card: a netdev that is gone for now does not make it another one. So does
    what was allowed on the way here: a run that finds all in place was not asked for it again."""
    known: Mapping[str, Any] = identity.of(state, function)
    allowed = set(waived)
    old = state.stored[resource]["devices"].get(function.address)
    if old:
        origin = origin if touched or whole else first_kept(origin, old["origin"])
        allowed |= set(old.get("allow", ()))
        # A card that is on another driver shows less than it did.
        known = {key: old["identity"].get(key, "") if value in ("", None) else value for key, value in known.items()}
    entry = {
        "identity": known,
        "wish": dict(wish),
        "origin": dict(origin),
        "allow": sorted(allowed),
        "declared_at": function.address,
        **({"touched": sorted(touched)} if touched else {}),
    }
    if old and entry == {key: value for key, value in old.items() if key != "declared"}:
        return []
    return [_declaration(state, resource, function.address, entry)]


def first_kept(now: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """How it was before: what was recorded first stays, what a later wish speaks of for the first time is added."""
    both = {key: {**now[key], **old[key]} for key in ORIGIN_BY_KEY if key in now and key in old}
    return {**now, **old, **both}


def overruled(state: State, resource: str, address: str, wish: Mapping[str, Any], options: Options) -> list[str]:
    """A warning where a wish says something else than the one in its place, and another one declared that. Two roles, or
    two revisions of one inventory: `declared_by` is free text, and nobody here can tell."""
    old = state.stored[resource]["devices"].get(address)
    by = old.get("declared", {}).get("by") if old else None
    if not (old and by and options.declared_by) or by == options.declared_by:
        return []
    differing = _contradictions(old["wish"], wish)
    if not differing:
        return []
    said = "; ".join(differing[:3]) + (f" and {len(differing) - 3} things more" if len(differing) > 3 else "")
    return [
        f"{address}: {options.declared_by!r} wishes {said}, which {by!r} declared at "
        f"{old['declared'].get('at') or 'a time unknown'}. The newer wish takes its place. If these are two roles or "
        "playbooks, and not two revisions of one, let one of them declare it: else each run takes back what the other did."
    ]


def _contradictions(old: Mapping[str, Any], new: Mapping[str, Any], of: str = "") -> list[str]:
    """The keys that both name, with another value."""
    found = []
    for key, value in new.items():
        before = old.get(key)
        if key == "vfs":
            for index in value:
                found += _contradictions(before.get(index, {}), value[index], f"VF {index}: ") if before else []
        elif value is not None and before is not None and value != before:
            found.append(f"{of}{key} {value} instead of {before}")
    return found


def forget(state: State, resource: str, function: Function) -> list[Action]:
    """Take the record of a device away: the collection no longer owns it."""
    old = stored_entry(state, resource, function.address)
    return [_declaration(state, resource, function.address, None)] if old else []


def _declaration(state: State, resource: str, address: str, new: Mapping[str, Any] | None) -> Action:
    old = stored_entry(state, resource, address)
    lost = state.lost.get(resource, {}).get(address)
    verb = "record" if new else "remove the record of"
    instead = f", in the place of another card ({identity.described(lost.entry)})" if new and lost and old is lost.entry else ""
    return Action(
        kind="declare",
        unit=address,
        text=f"{verb} the {resource} wish in {store.path_of(resource)}, for the replay at boot{instead}",
        args={
            "resource": resource,
            "address": address,
            # Where the record stands, if it could not follow its device.
            "key": state.keys.get(resource, {}).get(address, address),
            "was": next((old for old, new in state.moved.get(resource, {}).items() if new == address), address),
            "entry": new,
            "previous": old,
        },
        before={f"{resource} declared": old["wish"] if old else None},
        after={f"{resource} declared": new["wish"] if new else None},
    )


#: Resources that may both have a port: VFs and stations live beside each other.
_SIDE_BY_SIDE = ({"sriov", "vmdq"},)


def conflict(state: State, resource: str, target: Target) -> list[Refusal]:
    """Another resource already rules this device, by an earlier call or by another list of this one."""
    for other in store.RESOURCES:
        if other != resource and {other, resource} not in _SIDE_BY_SIDE and stored_entry(state, other, target.function.address):
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
