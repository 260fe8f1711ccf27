# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A KVM host: the module's parameters, huge pages, KSM, libvirt's daemons, users, networks and pools. One wish a host.

What is not named is neither read nor touched. Each part has a module of its own in kvm/ with `read`, `plan`, `restore` and
`info`; here they are put together, with the record of how the host was before.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ..errors import EngineError
from ..host import Host
from ..kvm import daemons, facts, hugepages, ksm, networks, objects, options, pools, record, users
from ..model import Plan, Refusal
from ..plain import dataclass

NAME = "kvm"
#: The unit of the steps that load the KVM module again.
UNIT = options.UNIT
#: What of a wish speaks of which part.
OPTIONS = ("nested", "paging")
_PARTS = ("options", "hugepages", "ksm", "daemons", "users", "networks", "pools")
_LIBVIRT = ("/usr/sbin/libvirtd", "/usr/sbin/virtqemud", "/usr/bin/libvirtd", "/usr/bin/virtqemud")
#: The status of guests that run (libvirt.py).
_RUNNING = "/run/libvirt/qemu"

Wish = Mapping[str, Any]


@dataclass(frozen=True)
class Facts:
    """Part -> what it read, for the parts that were asked for."""

    parts: Mapping[str, Any]
    origin: record.Origin
    #: The record as it stands.
    recorded: str | None
    #: Is a daemon of libvirt installed?
    libvirt: bool
    #: Guests that run, by name.
    guests: tuple[str, ...] = ()


def wish_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """The module's parameters by part, those that are named alone."""
    found: dict[str, Any] = {name: params[name] for name in _PARTS if params.get(name) is not None}
    chosen = {name: params[name] for name in OPTIONS if params.get(name) is not None}
    return {**found, **({"options": chosen} if chosen else {})}


def read(host: Host, wish: Wish, absent: bool = False, everything: bool = False) -> Facts:
    """What the wish names, what the record names where all is given back, or everything."""
    recorded = host.files.text(record.PATH)
    origin = record.parse(recorded)
    named = set(_PARTS) if everything else set(origin) if absent else set(wish)
    parts: dict[str, Any] = {}
    if "options" in named:
        parts["options"] = options.read(host)
    if "hugepages" in named:
        parts["hugepages"] = hugepages.read(host, wished=not everything)
    if named & {"daemons", "ksm"}:
        parts["daemons"] = _daemons(host, lenient=everything)
        parts["ksm"] = ksm.read(host, [name for name in ksm.TUNERS if parts["daemons"][name].up])
    if "users" in named:
        parts["users"] = users.read(host, wish.get("users") or ())
    if "networks" in named:
        parts["networks"] = networks.read(host)
    if "pools" in named:
        parts["pools"] = pools.read(host)
    running = [name[:-4] for name in host.files.names(_RUNNING) if name.endswith(".xml")]
    return Facts(parts, origin, recorded, any(host.files.exists(path) for path in _LIBVIRT), tuple(running))


def _daemons(host: Host, lenient: bool) -> daemons.Facts:
    """Who only asks is told of a host without systemd as well: it has none of the units."""
    try:
        return daemons.read(host, ksm.TUNERS)
    except EngineError:
        if not lenient:
            raise
        return daemons.parse("", [*daemons.everything(), *ksm.TUNERS])


def plan(state: Facts, wish: Wish, allow: Collection[str], coming: bool) -> Plan:
    """`coming`: the packages are yet to be installed, by an earlier step of the same run."""
    coming = coming and not state.libvirt
    parts = state.parts
    result = Plan(refusals=_no_libvirt(state, wish, coming))
    if "hugepages" in wish:
        result.extend(hugepages.plan(parts["hugepages"], wish["hugepages"], list(allow)))
    if "options" in wish:
        result.extend(options.plan(parts["options"], wish["options"]))
    if "ksm" in wish:
        result.extend(ksm.plan(parts["ksm"], wish["ksm"], allow))
    if "daemons" in wish:
        result.extend(daemons.plan(parts["daemons"], wish["daemons"], coming))
    if "users" in wish:
        result.extend(users.plan(parts["users"], wish["users"], coming))
    if "networks" in wish and not result.refusals:
        result.extend(networks.plan(parts["networks"], wish["networks"], allow, coming))
    if "pools" in wish and not result.refusals:
        result.extend(pools.plan(parts["pools"], wish["pools"], coming))
    if not result.refusals:
        _record(state, result, _origin(parts, wish))
    return result


def _no_libvirt(state: Facts, wish: Wish, coming: bool) -> list[Refusal]:
    named = [name for name in ("networks", "pools") if wish.get(name)]
    if state.libvirt or coming or not named:
        return []
    reason = f"its daemon is not installed, and {' and '.join(named)} are wished."
    return [Refusal("libvirt", reason, "Install the packages first (the role kvm does); nothing was changed.")]


def _origin(parts: Mapping[str, Any], wish: Wish) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    if "options" in wish:
        found["options"] = options.origin(parts["options"], wish["options"])
    if "hugepages" in wish:
        found["hugepages"] = hugepages.origin(parts["hugepages"], wish["hugepages"])
    if "ksm" in wish:
        found["ksm"] = ksm.origin(parts["ksm"])
    if "daemons" in wish:
        found["daemons"] = daemons.origin(parts["daemons"])
    if "users" in wish:
        found["users"] = users.origin(parts["users"], wish["users"])
    if "networks" in wish:
        found["networks"] = objects.origin(parts["networks"].networks, wish["networks"])
    if "pools" in wish:
        found["pools"] = objects.origin(parts["pools"], wish["pools"])
    return found


def _record(state: Facts, result: Plan, origin: record.Origin) -> None:
    """First of all, so that a run that was cut off can still be given back. What was found as wished is recorded as soon
    as anything else is changed, so that a run that would change nothing changes nothing."""
    touched = {_part_of(action.unit) for action in result.actions}
    fresh = {name: part for name, part in origin.items() if name in touched or name in state.origin}
    action = record.write(state.recorded, record.merged(state.origin, fresh)) if touched else None
    result.actions = [*([action] if action else []), *result.actions]


_UNITS = (
    (options.UNIT, "options"),
    ("huge pages", "hugepages"),
    (ksm.UNIT, "ksm"),
    (daemons.UNIT, "daemons"),
    (users.UNIT, "users"),
    ("network ", "networks"),
    ("pool ", "pools"),
    # The kernel command line is there for huge pages alone.
    ("host", "hugepages"),
)


def _part_of(unit: str) -> str:
    return next(part for start, part in _UNITS if unit.startswith(start))


def plan_absent(state: Facts, allow: Collection[str]) -> Plan:
    """Everything as it was before the collection touched it; what it never touched, it leaves alone."""
    if state.guests and state.origin and "in_use" not in allow:
        reason = f"guests run ({', '.join(state.guests)}), and would lose their networks and who keeps their logs."
        way = "End them first, or allow it by name: allow: [in_use]. Nothing was changed."
        return Plan(refusals=[Refusal("libvirt", reason, way, "in_use")])
    parts, origin, result = state.parts, state.origin, Plan()
    # In the other order: networks and pools need the daemons, which may have been off before.
    if "pools" in origin:
        result.extend(objects.restored(objects.POOL, parts["pools"], origin["pools"], pools.meaning))
    if "networks" in origin:
        now = parts["networks"].networks
        result.extend(objects.restored(objects.NETWORK, now, origin["networks"], networks.meaning))
    for name, part in (("users", users), ("daemons", daemons), ("ksm", ksm), ("options", options), ("hugepages", hugepages)):
        if name in origin:
            result.extend(part.restore(parts[name], origin[name]))
    gone = record.write(state.recorded, {})
    result.actions += [gone] if gone else []
    return result


def info(state: Facts) -> dict[str, Any]:
    """What was read, in the form of wishes as far as it has one."""
    parts = state.parts
    found: dict[str, Any] = options.info(parts["options"]) if "options" in parts else {}
    if "hugepages" in parts:
        found["hugepages"] = hugepages.info(parts["hugepages"])
    if "daemons" in parts:
        found.update(daemons.info(parts["daemons"]), ksm=ksm.info(parts["ksm"]))
    if "users" in parts:
        found["users"] = users.info(parts["users"])
    if "networks" in parts:
        found["networks"] = networks.info(parts["networks"])
    if "pools" in parts:
        found["pools"] = pools.info(parts["pools"])
    return found


def prove(host: Host) -> None:
    """Raises EngineError where no VM can be made."""
    answer = facts.proof(host)
    if not answer["usable"]:
        raise EngineError(f"KVM: {answer['reason']}")


def more(host: Host) -> dict[str, Any]:
    """What kvm_info tells beyond it."""
    return {
        "proof": facts.proof(host),
        "validate": facts.validate(host),
        "firmware": facts.firmware(host.files),
        "tpm": facts.tpm(host.files),
    }
