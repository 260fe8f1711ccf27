# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Guests: declarations against what libvirt has. libvirt is the keeper of its guests; the record of ours tells an operator's hand from a
declaration that changed.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

from ..guests import allocate, check, compare, live, seed, shares
from ..guests.allocate import Request
from ..guests.facts import RECORD, Facts
from ..guests.virt import Domain
from ..guests.wish import Wish, check_list, cpus, functions, kib, normal, shares_of, with_macs
from ..guests.xml import Around, Wanted, build
from ..model import AFTER_REBOOT, CERTAIN, PREDICTED, Action, Plan, Refusal
from ..plain import dataclass
from . import common

NAME = "guests"

#: Steps that give a guest something which another one may have.
TAKING = ("define_guest", "start_guest", "attach_device")

#: The name that a processor's maker gives to virtualization.
_NESTED = {"AMD": "svm", "Hygon": "svm"}


@dataclass(frozen=True)
class GuestOptions:
    """What a caller grants beside the declarations. `timeout`: seconds for a guest to shut down. `assume`: what an earlier call of the same run
    makes true, now or by the next boot: `iommu` (it will be on), `pools` (pool -> number of VFs that it will get), `libvirt` (it will answer),
    `mdevs` and `vgpus` (mediated devices by UUID, VFs with a vGPU by address: what they will be; shares.read)."""

    allow: frozenset[str] = frozenset()
    exclusive: bool = False
    restart: bool = False
    timeout: int = 120
    power_off: bool = False
    declared_by: str = ""
    assume: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class GuestPlan(Plan):
    """With the guests that have to be started anew for what was changed, and why."""

    restarts: dict[str, list[str]] = field(default_factory=dict)


def normalized(wishes: Sequence[Wish]) -> list[dict[str, Any]]:
    return [normal(wish) for wish in wishes]


def plan(facts: Facts, wishes: Sequence[Wish], options: GuestOptions) -> GuestPlan:
    """What makes the declarations (normalized) true."""
    result = GuestPlan(refusals=check_list(wishes))
    if result.refusals:
        return result
    present = [with_macs(wish, facts.state.machine_id) for wish in wishes if wish["state"] != "absent"]
    leaving = [str(wish["name"]) for wish in wishes if wish["state"] == "absent"]
    if options.exclusive:
        named = {str(wish["name"]) for wish in wishes}
        leaving += [name for name in sorted(facts.record) if name not in named]
    for name in leaving:
        result.extend(_give_up(facts, name, options))
    held = check.holders(facts, leaving)
    present = _without_waiting(facts, present, options, result)
    present = _with_shares(facts, _allocated(facts, present, held, result), held, result)
    result.refusals += check.macs(facts, present) + check.pinned_memory(facts, present)
    on_stations = [wish for wish in present if any(item["model"] == "vmdq" for item in wish.get("network", ()))]
    if on_stations:
        from ..guests import stations

        result.refusals += stations.check(facts.state, facts.domains, on_stations)
    for wish in present:
        if not common.refuse_all(result, _stands_against(facts, wish, held, options)):
            _take(facts, wish, options, result)
    if on_stations:
        result.actions = stations.with_proof(result.actions, on_stations)
    return result


def _stands_against(facts: Facts, wish: Wish, held: Mapping[str, Sequence[str]], options: GuestOptions) -> list[Refusal]:
    found = check.on_host(facts, wish)
    if wish["name"] not in facts.domains and "memory" not in wish:
        found.append(Refusal(str(wish["name"]), "it is new, and memory is not named.", "Name it, as in memory: 2G. Nothing was changed."))
    found += shares.check(facts.state, wish, facts.domains.get(str(wish["name"])))
    return found + check.assignments(facts, wish, held, options.allow) + check.ports_up(facts, wish)


# --- What waits for the reboot ---------------------------------------------------------------------------------------


def _without_waiting(facts: Facts, wishes: Sequence[Wish], options: GuestOptions, result: Plan) -> list[dict[str, Any]]:
    """The declarations that can be looked at now. The others are announced: that what they need cannot be had yet is no reason to refuse them."""
    staying: list[dict[str, Any]] = []
    for wish in wishes:
        why = _waits(facts, wish, options)
        vgpu = "" if why else shares.waits(facts.state, wish, options.assume)
        if why:
            result.actions.append(_later(wish, why))
            result.reboot_reasons += [] if why in result.reboot_reasons else [why]
        elif vgpu:
            result.actions.append(_later(wish, f"VFs get the vGPU type {vgpu}", PREDICTED))
        else:
            staying.append(dict(wish))
    return staying


def _waits(facts: Facts, wish: Wish, options: GuestOptions) -> str:
    """What the next boot brings that this guest needs; nothing where it can be had now."""
    coming, there = options.assume.get("pools") or {}, allocate.pools(facts.state)
    for item in wish.get("network", ()):
        pool = item.get("pool")
        if pool and coming.get(pool) and not there.get(pool):
            return f"the pool {pool} gets its VFs"
    needs_iommu = functions(wish) or any("pool" in item for item in wish.get("network", ())) or "gpu" in wish
    if options.assume.get("iommu") and not facts.state.iommu.active and needs_iommu:
        return "the IOMMU is switched on"
    return ""


def _later(wish: Wish, why: str, certainty: str = AFTER_REBOOT) -> Action:
    text = f"define it{' and start it' if wish['state'] == 'running' else ''}, once {why}"
    return Action("define_guest", str(wish["name"]), text, certainty, {"name": wish["name"]}, {}, _declared(_as_declared(wish)))


# --- VFs from pools --------------------------------------------------------------------------------------------------


def _allocated(facts: Facts, wishes: Sequence[Wish], held: Mapping[str, Sequence[str]], result: Plan) -> list[dict[str, Any]]:
    """The declarations with the address of each VF that is asked of a pool."""
    asked = [(wish, n, item) for wish in wishes for n, item in enumerate(wish.get("network", ())) if "pool" in item]
    if not asked:
        return [dict(wish) for wish in wishes]
    requests, near = [], {}
    for wish, number, item in asked:
        node, wrong = _node(facts, wish, f"network[{number}]", item)
        result.refusals += wrong
        near[str(wish["name"]), number] = node
        kept = _kept(facts, str(wish["name"]), item["mac"])
        requests.append(Request(str(wish["name"]), number, item["pool"], kept, node, bool(item.get("trust"))))
    taken = {item["address"]: str(w["name"]) for w in wishes for item in w.get("network", ()) if item.get("address")}
    given, refusals = allocate.allocate(allocate.pools(facts.state), requests, held, taken)
    result.refusals += refusals
    return [_with_addresses(wish, given) for wish in wishes if all(_is_given(wish, n, given) for n in range(len(wish.get("network", ()))))]


def _is_given(wish: Wish, number: int, given: Mapping[tuple[str, int], str]) -> bool:
    return "pool" not in wish["network"][number] or (str(wish["name"]), number) in given


def _with_addresses(wish: Wish, given: Mapping[tuple[str, int], str]) -> dict[str, Any]:
    if "network" not in wish:
        return dict(wish)
    name = str(wish["name"])
    items = [{**item, "address": given[name, n]} if (name, n) in given else item for n, item in enumerate(wish["network"])]
    return {**wish, "network": items}


def _node(facts: Facts, wish: Wish, where: str, item: Wish) -> tuple[int | None, list[Refusal]]:
    """The node that a device has to be near to: the guest's memory is there, or its CPUs are."""
    if item.get("numa") != "near":
        return None, []
    if "numa_node" in wish:
        return wish["numa_node"], []
    pinned = [cpus(pin["cpus"]) or frozenset() for pin in wish.get("cpu", {}).get("pinning", ())]
    used = frozenset().union(*pinned)
    nodes = [node for node, its in facts.nodes.items() if used & its]
    if len(nodes) == 1:
        return nodes[0], []
    if len(facts.nodes) < 2:
        return None, []
    reason = f"{where}: numa: near, and nothing says where the guest is."
    return None, [Refusal(str(wish["name"]), reason, "Name numa_node, or pin it to CPUs of one node; nothing was changed.")]


def _kept(facts: Facts, name: str, mac: str) -> str | None:
    """The VF that the guest has under this MAC; that of its next start, where it has another one now."""
    domain = facts.domains.get(name)
    for text in (domain.inactive, domain.live) if domain else ():
        for interface in compare.parse(text).iterfind("devices/interface[@type='hostdev']") if text else ():
            found = interface.find("mac")
            if found is not None and found.get("address", "").lower() == mac:
                return compare.address_of(interface)
    return None


# --- Mediated devices and vGPUs --------------------------------------------------------------------------------------


def _with_shares(facts: Facts, wishes: Sequence[Wish], held: Mapping[str, Sequence[str]], result: Plan) -> list[dict[str, Any]]:
    """The declarations with the device that each of their mediated devices and vGPUs comes to."""
    asked = [(wish, *share) for wish in wishes for share in shares_of(wish)]
    if not asked:
        return [dict(wish) for wish in wishes]
    requests = []
    for wish, key, number, item in asked:
        name = str(wish["name"])
        node, wrong = _node(facts, wish, shares.where(key, number), item)
        result.refusals += wrong
        requests.append(shares.Request(name, key, number, item, shares.guests_devices(facts.domains.get(name)), node))
    # A VF that is named as a function is no vGPU for anybody.
    taken: dict[str, list[str]] = {name: list(who) for name, who in held.items()}
    for wish in wishes:
        for _what, address in functions(wish):
            taken.setdefault(address, []).append(str(wish["name"]))
    given, refusals = shares.allocate(facts.state, requests, taken)
    result.refusals += refusals
    without = {refusal.device for refusal in refusals}
    return [shares.resolved(wish, given) for wish in wishes if wish["name"] not in without]


# --- Planning one guest ----------------------------------------------------------------------------------------------


def wanted_of(facts: Facts, wish: Wish) -> Wanted:
    """The XML that a declaration (complete, with MACs and addresses) comes to on this host."""
    name = str(wish["name"])
    domain = facts.domains.get(name)
    have = compare.flatten(compare.parse(domain.inactive)) if domain else {}
    around = Around(
        arch=facts.arch,
        fresh=domain is None,
        machine=wish.get("machine") or have.get("os/type@machine") or "q35",
        nested=_NESTED.get(facts.vendor, "vmx"),
        seed=seed.path_of(name) if "seed" in wish else "",
        ovs=frozenset(n.name for n in facts.state.netdevs.values() if n.kind == "openvswitch"),
        vcpus=int(have["vcpu@current"]) if "vcpu" in have else None,
        vcpus_max=_vcpus_max(wish, have),
        dropped=_dropped(facts.record.get(name), wish),
    )
    wanted = build(wish, around)
    current = wanted.root.find("currentMemory")
    balloon = have.get("memory") != have.get("currentMemory")
    if current is not None and domain and "target" not in wish.get("balloon", {}) and balloon:
        # Somebody gave it less by the balloon: memory is what it can have at most.
        wanted.root.remove(current)
    return wanted


def _functions(entry: Mapping[str, Any] | None, wish: Wish) -> dict[str, str]:
    """Whole functions and mediated devices -> the key of the declaration that names them, or named them last and is not spoken of any more."""
    kept = {address: key for address, key in (entry or {}).get("functions", {}).items() if key not in wish}
    for key in ("network", "disks", "display"):
        items = [wish[key]] if key == "display" and key in wish else wish.get(key, ())
        kept.update({item["address"]: key for item in items if item["model"] in ("passthrough", "nvme")})
    return {**kept, **{item["device"]: key for key, _number, item in shares_of(wish)}}


def _dropped(entry: Mapping[str, Any] | None, wish: Wish) -> frozenset[str]:
    """The whole functions and mediated devices that the same key named before and does not any more."""
    return frozenset((entry or {}).get("functions", ())) - frozenset(_functions(entry, wish))


def _vcpus_max(wish: Wish, have: Mapping[str, str]) -> int | None:
    """A guest that was made to take more CPUs later stays so."""
    if "vcpus_max" in wish or "vcpu" not in have or have["vcpu"] == have["vcpu@current"]:
        return None
    return int(have["vcpu"]) if int(have["vcpu"]) >= wish.get("vcpus", 1) else None


def _take(facts: Facts, wish: dict[str, Any], options: GuestOptions, result: GuestPlan) -> None:
    name = str(wish["name"])
    domain, entry = facts.domains.get(name), facts.record.get(name)
    wanted = wanted_of(facts, wish)
    have = compare.parse(domain.inactive) if domain else None
    found = compare.differences(compare.flatten(have), wanted) if have is not None else []
    hand = [difference for difference in found if _by_hand(difference, entry)]
    if hand and common.refuse_all(result, _drift(name, hand, entry, options)):
        return
    if domain and domain.saved and found:
        result.refusals.append(_saved(name, "and it would go on from there as it was defined then"))
        return
    actions = _images(facts, wish) + _seed(facts, wish)
    if have is None or found:
        actions.append(_define(name, wish, domain, wanted, entry))
    if "autostart" in wish and wish["autostart"] != (domain.autostart if domain else False):
        actions.append(_autostart(name, wish["autostart"]))
    actions += _record(wish, wanted, entry, options)
    result.actions += actions
    if domain and domain.active:
        _running(wish, domain, _without_gone(wanted, domain, entry), options, result)
    elif wish["state"] == "running":
        result.actions.append(_start(name))


def _running(wish: Wish, domain: Domain, wanted: Wanted, options: GuestOptions, result: GuestPlan) -> None:
    name = domain.name
    if wish["state"] == "stopped":
        result.actions.append(_stop(name, options))
        return
    change = live.change(name, wish, domain, wanted)
    if change.waiting and options.restart:
        result.actions += [_stop(name, options), _start(name)]
        return
    result.actions += change.actions
    if change.waiting:
        result.restarts[name] = change.waiting


def _without_gone(wanted: Wanted, domain: Domain, entry: Mapping[str, Any] | None) -> Wanted:
    """A running guest keeps what an earlier call took out of its definition, until it is started anew."""
    now = {*compare.flatten(compare.parse(domain.inactive)), *compare.flatten(wanted.root)}
    paths = {f"devices/hostdev[{name}]" for name in (entry or {}).get("gone", ())}
    return Wanted(wanted.root, wanted.absent | (paths - now), wanted.whole)


def _by_hand(difference: compare.Difference, entry: Mapping[str, Any] | None) -> bool:
    """Has somebody else made it so? What is as we made it last differs because the declaration has changed; so does what we never spoke of,
    unless it is a device that is there without us."""
    if entry is None:
        return True
    made: Mapping[str, str] = entry["made"]
    if difference.path in made:
        return difference.have is None or not compare.same(difference.path, made[difference.path], difference.have)
    if difference.want is None and difference.path not in entry.get("absent", ()):
        return difference.path.startswith("devices/")
    return difference.want is None


def _drift(name: str, hand: Sequence[compare.Difference], entry: Mapping[str, Any] | None, options: GuestOptions) -> list[Refusal]:
    if "foreign" in options.allow:
        return []
    said = "; ".join(difference.words() for difference in hand[:6]) + (f"; and {len(hand) - 6} more" if len(hand) > 6 else "")
    if entry is None:
        reason = f"libvirt has a guest of this name that the collection did not make, and it is not as declared: {said}."
    else:
        reason = f"it was edited by another hand since it was declared: {said}."
    way_out = "Take it into the declaration; or let the declaration overwrite it, by name: allow: [foreign]. Nothing was changed."
    return [Refusal(name, reason, way_out, "foreign")]


def _give_up(facts: Facts, name: str, options: GuestOptions) -> GuestPlan:
    """Shut down, undefined, forgotten. libvirt gives VF, driver, MAC and VLAN back when the guest ends. Disks stay."""
    result = GuestPlan()
    domain, entry = facts.domains.get(name), facts.record.get(name)
    if domain and domain.saved:
        result.refusals.append(_saved(name, "and that would be lost"))
        return result
    if domain and domain.active:
        result.actions.append(_stop(name, options))
    if domain and domain.persistent:
        result.actions.append(
            Action(
                kind="undefine_guest",
                unit=name,
                text=f"undefine it{_gives_back(domain)}; its disks stay",
                args={"name": name, "was": domain.inactive, "autostart": domain.autostart},
                before={"xml": compare.shown(compare.parse(domain.inactive))},
                after={"xml": None},
            )
        )
    if entry is not None and entry.get("seed"):
        was = _seed_of(entry)
        args = {"path": entry["seed"], "was": was and _text(was)}
        result.actions.append(Action("remove_seed", name, f"remove its seed {entry['seed']}", args=args, before={"seed": entry["seed"]}))
    if entry is not None:
        args = {"name": name, "entry": None, "was": dict(entry)}
        result.actions.append(Action("record_guest", name, f"forget it in {RECORD}", args=args, before={"declared": True}, after={"declared": False}))
    return result


def _saved(name: str, why: str) -> Refusal:
    """virDomainCreate goes on from there, with the definition of then."""
    reason = f"its memory was saved to disk (managedsave), {why}."
    return Refusal(name, reason, f"Start it, or let it go: virsh managedsave-remove {name}. Nothing was changed.")


def _gives_back(domain: Domain) -> str:
    names = sorted(check.functions_of(domain)) + sorted(check.mediated_of(domain))
    return f", which gives back {', '.join(names)}" if names else ""


# --- Actions ---------------------------------------------------------------------------------------------------------


def _images(facts: Facts, wish: Wish) -> list[Action]:
    """Images that are not there yet. One that is there is the guest's, and never written."""
    found = []
    for item in wish.get("disks", ()):
        path = item.get("path", "/dev/")
        if path.startswith("/dev/") or facts.files.get(path) is not None:
            continue
        source, size = item.get("source"), item.get("size")
        kind = item.get("format", "qcow2")
        text = f"make its image {path} ({kind}{f', {size}' if size else ''}{f', from {source}' if source else ', empty'})"
        args = {"path": path, "format": kind, "source": source, "checksum": item.get("checksum"), "size": (kib(size) or 0) * 1024 if size else None}
        certainty = PREDICTED if source else CERTAIN
        what = f"image {path}"
        found.append(Action("create_image", str(wish["name"]), text, certainty, args, {what: None}, {what: kind}))
    return found


def _seed(facts: Facts, wish: Wish) -> list[Action]:
    name = str(wish["name"])
    if "seed" not in wish or name in facts.seeds:
        return []
    path, was = seed.path_of(name), _seed_of(facts.record.get(name))
    args = {"path": path, "data": _text(seed.image(wish)), "was": was and _text(was)}
    return [Action("write_seed", name, f"write its cloud-init seed {path}", args=args, before={"seed": None}, after={"seed": digest(wish["seed"])})]


def _seed_of(entry: Mapping[str, Any] | None) -> bytes | None:
    """The seed that a record came to."""
    return seed.image(entry["wish"]) if entry is not None and "seed" in entry["wish"] else None


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def digest(value: Any) -> str:
    """What a seed holds is nobody's to read in a diff."""
    return f"sha256:{hashlib.sha256(repr(sorted(value.items())).encode()).hexdigest()[:16]}"


def _define(name: str, wish: Wish, domain: Domain | None, wanted: Wanted, entry: Mapping[str, Any] | None) -> Action:
    have = compare.parse(domain.inactive) if domain else None
    new = compare.merged(have, wanted) if have is not None else wanted.root
    before, after = _declared(entry["wish"] if entry else {}), _declared(_as_declared(wish))
    changed = sorted(key for key in {*before, *after} if before.get(key) != after.get(key))
    return Action(
        kind="define_guest",
        unit=name,
        text="change its definition" if domain else "define it",
        args={"name": name, "xml": compare.text_of(new), "was": domain.inactive if domain else None, "made": compare.flatten(wanted.root)},
        before={**{key: before.get(key) for key in changed}, "xml": compare.shown(have) if have is not None else None},
        after={**{key: after.get(key) for key in changed}, "xml": compare.shown(new)},
    )


def _declared(wish: Wish) -> dict[str, Any]:
    """The keys of a declaration for a diff."""
    return {f"declared {key}": digest(value) if key == "seed" else value for key, value in wish.items() if key != "name"}


def _as_declared(wish: Wish) -> dict[str, Any]:
    """Without what the allocators chose."""
    wish = shares.as_declared(wish)
    items = [{k: v for k, v in item.items() if k != "address" or "pool" not in item} for item in wish.get("network", ())]
    return {**wish, "network": items} if "network" in wish else wish


def _autostart(name: str, value: bool) -> Action:
    args = {"name": name, "to": value, "was": not value}
    text = f"switch its autostart {'on' if value else 'off'}"
    return Action("set_guest_autostart", name, text, args=args, before={"autostart": not value}, after={"autostart": value})


def _record(wish: Wish, wanted: Wanted, entry: Mapping[str, Any] | None, options: GuestOptions) -> list[Action]:
    """Only after libvirt has it: a run that is cut off before is told by what libvirt has."""
    name = str(wish["name"])
    made = compare.flatten(wanted.root)
    if entry is not None:
        # What only a new guest is given is ours as well, later.
        made = {**{path: value for path, value in entry["made"].items() if _still(path, wanted)}, **made}
    named = _functions(entry, wish)
    new: dict[str, Any] = {
        "wish": _as_declared(wish),
        "made": made,
        # A function that goes with this run is none that must never be there.
        "absent": sorted(path for path in wanted.absent if compare.kind_of(path) != "devices/hostdev"),
        "functions": named,
        "seed": seed.path_of(name) if "seed" in wish else (entry or {}).get("seed"),
    }
    gone = {*(entry or {}).get("gone", ()), *_dropped(entry, wish)} - set(named)
    if gone:
        new["gone"] = sorted(gone)
    if entry is not None and all(entry.get(key) == value for key, value in new.items()):
        return []
    args = {"name": name, "entry": {**new, "by": options.declared_by}, "was": dict(entry) if entry is not None else None}
    action = Action("record_guest", name, f"record it in {RECORD}", args=args, before={"declared": entry is not None}, after={"declared": True})
    return [action]


def _still(path: str, wanted: Wanted) -> bool:
    """Of kinds that are named in full, those of now are ours, and none that must not be there."""
    owner = compare.owner(path)
    return compare.kind_of(owner) not in wanted.whole and not wanted.absent.intersection((path, owner))


def _start(name: str) -> Action:
    return Action("start_guest", name, "start it", PREDICTED, {"name": name}, {"running": False}, {"running": True})


def _stop(name: str, options: GuestOptions) -> Action:
    then = "then cut its power" if options.power_off else "or fail"
    text = f"shut it down, {options.timeout} s at most, {then}" if options.timeout else "cut its power"
    args = {"name": name, "timeout": options.timeout, "power_off": options.power_off or not options.timeout}
    return Action("stop_guest", name, text, PREDICTED, args, {"running": True}, {"running": False})


# --- Facts -----------------------------------------------------------------------------------------------------------


def info(facts: Facts) -> list[dict[str, Any]]:
    """The guests of the host, those that were declared and others."""
    found = []
    for name in sorted({*facts.domains, *facts.record}):
        domain, entry = facts.domains.get(name), facts.record.get(name)
        found.append({
            "name": name,
            "uuid": domain.uuid if domain else None,
            "state": domain.state if domain else "not defined",
            "autostart": domain.autostart if domain else None,
            "declared": entry is not None,
            "functions": sorted(check.functions_of(domain)) if domain else [],
            "network": _ports(domain) if domain else [],
            "mdevs": shares.of_guest(facts.state, domain) if domain else [],
        })  # fmt: skip
    return found


def facts_of(facts: Facts, names: Sequence[str] | None) -> dict[str, Any]:
    """`guests`: what was declared, as input for the module. `facts`: of all guests, with what is not as it was made."""
    chosen = None if names is None else set(names)
    declared = [dict(entry["wish"]) for _name, entry in sorted(facts.record.items())]
    return {
        "guests": [wish for wish in declared if chosen is None or wish["name"] in chosen],
        "facts": [
            {**item, "drift": drift(facts, item["name"])}
            for item in info(facts)
            if chosen is None or item["name"] in chosen
        ],
    }


def drift(facts: Facts, name: str) -> list[str]:
    """What is not as it was made last."""
    domain, entry = facts.domains.get(name), facts.record.get(name)
    if entry is None:
        return []
    if domain is None:
        return ["it is not defined"]
    have = compare.flatten(compare.parse(domain.inactive))
    found = [compare.Difference(p, have.get(p), v) for p, v in entry["made"].items() if not compare.same(p, v, have.get(p))]
    return [difference.words() for difference in found]


def _ports(domain: Domain) -> list[dict[str, Any]]:
    found = []
    for interface in compare.parse(domain.live or domain.inactive).iterfind("devices/interface"):
        parts: dict[str, Mapping[str, str]] = {child.tag: child.attrib for child in interface}
        source = parts.get("source", {})
        found.append({
            "mac": parts.get("mac", {}).get("address"),
            "type": interface.get("type"),
            "model": parts.get("model", {}).get("type"),
            "source": next((source[key] for key in ("bridge", "network", "dev") if key in source), compare.address_of(interface) or None),
            "port": parts.get("target", {}).get("dev"),
        })  # fmt: skip
    return found
