# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one way through: read, match, plan, apply, report. Every door calls these functions and nothing else."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from . import after_link, boot, guards, initramfs, match, read, report, store
from .drivers import is_vfio
from .errors import EngineError, explain
from .host import Host
from .model import DANGERS, HOST, Action, Outcome, Plan, Refusal, State
from .plain import dataclass
from .read import Needs
from .resources import common, sriov, vfio
from .resources.common import Options

# Imports within functions: a devices call that finds nothing to do, as most do, is spared what it does not use
# (docs/dev/benchmarks.md).
if TYPE_CHECKING:
    from .resources import iommu, kernel_cmdline
    from .resources.guest import GuestOptions


class _Late:
    """A resource that is imported when it is asked for: most hosts have none of its devices (docs/dev/benchmarks.md)."""

    def __init__(self, name: str) -> None:
        self.NAME = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(f"{__package__}.resources.{self.NAME}"), name)


def _packed() -> tuple[Any, ...]:
    """Not called: Ansible puts into a module's payload what it sees imported."""
    from .resources import mdev, vgpu, vmdq

    return mdev, vgpu, vmdq


vmdq: Any = _Late("vmdq")
vgpu: Any = _Late("vgpu")
mdev: Any = _Late("mdev")

#: Device resources in the order in which they are planned and applied: VFs are born before anything takes one.
RESOURCES = {sriov.NAME: sriov, vfio.NAME: vfio, vmdq.NAME: vmdq, vgpu.NAME: vgpu, mdev.NAME: mdev}

#: Resources that read more than read_state (read_more), by commands of their own, for the devices whose wish needs it.
_READ_MORE = (sriov.NAME, vfio.NAME, vmdq.NAME, mdev.NAME, vgpu.NAME)

#: Seconds that a run waits for another one to end.
LOCK_LIMIT = 120.0

Wishes = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Call:
    """How a door calls."""

    check: bool = False
    who: str = "iovirt"
    #: Record the wishes and keep the boot replay installed. The replay itself does neither.
    declare: bool = True
    #: By host.clock: past it no further device is begun.
    deadline: float | None = None
    #: Leave what needs a link to its unit, whether or not there is one now (after_link.py).
    before_link: bool = False


def devices(host: Host, wishes: Wishes, options: Options, call: Call) -> dict[str, Any]:
    """Make all device resources as wished, in one reading, one plan and one go."""
    with turn(host, call):
        return devices_in_turn(host, wishes, options, call)


def turn(host: Host, call: Call) -> contextlib.AbstractContextManager[None]:
    """One door at a time. Check mode only looks, and leaves not even a lock file behind."""
    if call.check:
        return contextlib.nullcontext()
    return host.files.lock(store.LOCK, LOCK_LIMIT, call.who)


def devices_in_turn(host: Host, wishes: Wishes, options: Options, call: Call) -> dict[str, Any]:
    """The same for a door that has its turn."""
    options = replace(options, before_link=call.before_link)
    state = _read(host, wishes, options)
    # What the call would take if nothing stood against it: each guard has to know the whole of that.
    plan = plan_devices(host, state, wishes, replace(options, allow=frozenset(DANGERS)), call.declare)
    if plan.refusals or plan.actions:
        state = guards.foreseen(state, plan.actions)
        if not plan.refusals:
            state = _looked_into(host, state, plan)
        plan = plan_devices(host, state, wishes, options, call.declare)
    _raise_refusals(plan.refusals)
    after_link.defer(state, plan, call.before_link)
    outcome = Outcome()
    if not call.check and plan.doable:
        outcome = _apply(host, plan, call.deadline)
        late = after_link.soon(host, plan, outcome.failures) if not call.before_link else Plan()
        if late.actions:
            outcome.add(_apply(host, late, call.deadline))
        if not outcome.indeterminate:
            # A read of a device whose write hangs would hang as well (docs/kernel-facts.md): then the facts are those
            # from before.
            before = state.replay
            try:
                state = _read_again(host, state, outcome, wishes, options)
            except (EngineError, OSError) as error:
                said = [text for text in (outcome.failures.get(HOST), _not_seen_again(outcome, error)) if text]
                outcome.failures[HOST] = "\n".join(said)
            if outcome.failures and call.declare:
                _settle_replay(host, before, state, outcome)
    if not call.check:
        done = {action.unit for action in outcome.done if action.args.get("needs_link")}
        after_link.start_units(host, [pf for pf in after_link.waiting(plan) if pf not in done])
    facts: dict[str, Any] = {name: RESOURCES[name].info(state) for name in wishes}
    if vmdq.NAME in wishes:
        facts["vmdq_stations"] = vmdq.proof(state)
    return report.result(plan, outcome, facts)


def _looked_into(host: Host, state: State, plan: Plan) -> State:
    """The state with what only a plan that touches something is worth looking for: a look into every process of the host."""
    touching = any(_touches_a_device(action) for action in plan.actions)
    if touching or any(_records(action) for action in plan.actions):
        state = replace(state, own_macs=read.own_macs(host.files, state))
    if not touching:
        return state
    from . import users

    return users.look(host, state)


def _touches_a_device(action: Action) -> bool:
    """Recording a wish takes nothing from anybody."""
    return action.unit != HOST and action.kind != "declare"


def _records(action: Action) -> bool:
    """What a record says of before is not what a driver made up."""
    return action.kind == "declare" and action.args["entry"] is not None


def _read(host: Host, wishes: Wishes, options: Options) -> State:
    drivers: frozenset[str] = frozenset().union(*(RESOURCES[name].needs(list_) for name, list_ in wishes.items()))
    # An initramfs holds a copy of what modprobe.d says of a driver.
    early = any(wish.get("early") for wish in wishes.get(vfio.NAME, ()))
    early |= any(wish.get("pools") is not None for wish in wishes.get(vmdq.NAME, ()))
    state = read_more(host, read.read_state(host, Needs(drivers=drivers, early=early)), wishes, options)
    if state.iommu.active or not any(is_vfio(driver) for driver in drivers):
        return state
    return replace(state, iommu=replace(state.iommu, after_reboot=_iommu_after_reboot(host, state)))


def _read_again(host: Host, state: State, outcome: Outcome, wishes: Wishes, options: Options) -> State:
    """The state after the steps. What none of them was about is not looked at again: neither the device, nor one of its
    family or of its IOMMU group. A driver that came may have taken others."""
    if frozenset(host.files.names(read.DRIVERS)) != state.drivers:
        return read_more(host, read.read_state(host, Needs()), wishes, options)
    units = {action.unit for action in outcome.done} | set(outcome.failures)
    concerned = {a for a, f in state.functions.items() if a in units or f.physfn in units}
    groups = {state.functions[address].group for address in concerned} - {None}
    known = {a: f for a, f in state.functions.items() if a not in concerned and f.group not in groups and not f.stuck}
    return read_more(host, read.read_state(host, Needs(), known), wishes, options)


def _not_seen_again(outcome: Outcome, error: EngineError | OSError) -> str:
    """Why the report is of before: what was done is done, whatever cannot be read now."""
    units = ", ".join(dict.fromkeys(action.unit for action in outcome.done))
    done = f"all that was to be done on {units} was done and stays" if units else "nothing is left done"
    why = f"{explain(error)}." if isinstance(error, OSError) else error
    return f"{HOST}: {done}, but the host could not be read again, so what is reported of devices is from before: {why} Run again."


def read_more(host: Host, state: State, wishes: Wishes, options: Options) -> State:
    """What costs a process is read only where a wish needs it: a host whose wishes name none of it pays nothing."""
    for name, wished in wishes.items():
        if name in _READ_MORE:
            state = RESOURCES[name].read_more(host, state, wished, options)
    return state


def _apply(host: Host, plan: Plan, deadline: float | None = None) -> Outcome:
    from .apply import apply

    return apply(host, plan, deadline)


def _iommu_after_reboot(host: Host, state: State) -> bool | None:
    from .resources import iommu, kernel_cmdline

    try:
        return iommu.next_boot(state.iommu, kernel_cmdline.read(host))
    except EngineError:
        # A boot loader that we do not know: then nobody here knows what the next boot brings.
        return None


def plan_devices(host: Host, state: State, wishes: Wishes, options: Options, declare: bool) -> Plan:
    """The plan for all resources. Pure but for the engine's own sources, which it digests for the replay."""
    plan = Plan()
    declared = {name: dict(state.stored[name]["devices"]) for name in store.RESOURCES}
    recorded = store.everything(state)
    for name, resource in RESOURCES.items():
        if name not in wishes:
            continue
        part = resource.plan(state, wishes[name], options)
        part.actions = [_signed(a, options) for a in part.actions if declare or a.kind != "declare"]
        plan.extend(part)
        for action in part.actions:
            if action.kind == "declare":
                _note(declared[name], action.args)
                _note(recorded[name], action.args)
    plan.refusals += _ruled_twice(state, declared)
    if declared[vmdq.NAME]:
        plan.refusals += vmdq.beside_vfs(state, declared[sriov.NAME], declared[vmdq.NAME], plan.actions)
    if any(recorded.values()):
        # The replay does this too: once a card is on vfio-pci it may show nothing that it is told by.
        plan.actions = [*common.follow(state), *plan.actions]
    if declare and state.early:
        _add_early(state, plan, recorded[vfio.NAME])
    _add_replay(host, state, plan, recorded, declare)
    return plan


def _signed(action: Action, options: Options) -> Action:
    """A record says who declared it."""
    return replace(action, args={**action.args, "by": options.declared_by}) if action.kind == "declare" else action


def _add_early(state: State, plan: Plan, declared: Mapping[str, Mapping[str, Any]]) -> None:
    """What the initramfs does is made anew once, after all devices; the replay does not come here."""
    claims = []
    for address, entry in sorted(declared.items()):
        if not entry["wish"].get("early"):
            continue
        wrong = vfio.check_early(state, address)
        if not wrong:
            claims.append(initramfs.claim(address, entry))
        elif vfio.stored_early(state, address):
            # It could be when it was declared: a call about another device is not stopped by that.
            plan.warnings += [refusal.sentence() for refusal in wrong]
        else:
            plan.refusals += wrong
    plan.actions += initramfs.plan(state.early, claims)


def _note(entries: dict[str, Any], args: Mapping[str, Any]) -> None:
    if args["entry"] is None:
        entries.pop(args["address"], None)
    else:
        entries[args["address"]] = args["entry"]


def _ruled_twice(state: State, declared: Mapping[str, Mapping[str, Any]]) -> list[Refusal]:
    refusals = []
    for address in sorted(declared["vfio"]):
        function = state.functions.get(address)
        reason = None
        if address in declared["sriov"] or address in declared["vmdq"]:
            reason = f"both {'sriov' if address in declared['sriov'] else 'vmdq'} and vfio name it."
        elif function and function.physfn in declared[vgpu.NAME]:
            reason = f"vfio names it, and vgpu rules the VFs of its GPU {function.physfn}."
        elif function and function.physfn in declared["sriov"]:
            reason = f"vfio names it, and sriov rules the VFs of its PF {function.physfn}."
        if reason:
            refusals.append(Refusal(address, reason, "Let one of them rule it; nothing was changed."))
    for address in sorted(declared[mdev.NAME]):
        parent = state.functions.get(address)
        if parent and parent.physfn in declared[vgpu.NAME]:
            reason = f"mdev names it, and vgpu rules the vGPUs of its GPU {parent.physfn}."
            refusals.append(Refusal(address, reason, "One card has one framework: let one of them rule it; nothing was changed."))
    for name, others in ((mdev.NAME, ("sriov", "vfio", "vgpu")), (vgpu.NAME, ("sriov", "vfio"))):
        both = [(other, address) for address in sorted(declared[name]) for other in others if address in declared[other]]
        refusals += [Refusal(a, f"both {other} and {name} name it.", "Let one of them rule it; nothing was changed.") for other, a in both]
    return refusals


def _unmanaged(entry: Mapping[str, Any]) -> bool:
    """Are the network devices of this port's VFs kept out of the network managers? As the wish says; else where all
    VFs are of our making, as the host may use those that it had before."""
    wish: Mapping[str, Any] = entry["wish"]
    if wish.get("vf_netdevs"):
        return bool(wish["vf_netdevs"] == "unmanaged")
    return bool(wish.get("vf_count")) and not entry["origin"].get("vf_count")


def _add_replay(host: Host, state: State, plan: Plan, recorded: Mapping[str, Mapping[str, Any]], declare: bool) -> None:
    """Installing goes first, so that a crash in the middle is mended at the next boot; removing goes last. The replay
    itself installs nothing, but the rules of udev follow a card that has moved."""
    declared = {address for entries in recorded.values() for address in entries}
    ours = {address for address, entry in recorded["sriov"].items() if _unmanaged(entry)}
    stations = {name for entry in recorded["vmdq"].values() for name in vmdq.for_guests(entry)}
    if not declare:
        plan.actions = [*boot.follow(state, declared, ours, stations), *plan.actions]
    elif host.sources is not None:
        version = boot.brought(host) if declared else ""
        actions = boot.plan(state, declared, version, host.python, ours, stations)
        plan.actions = [*actions, *plan.actions] if declared else [*plan.actions, *actions]


def _settle_replay(host: Host, before: Mapping[str, Any], state: State, outcome: Outcome) -> None:
    """The replay is installed before the devices: those that failed are not declared, and it is not there for them."""
    if HOST in outcome.failures:
        return
    plan = Plan()
    _add_replay(host, state, plan, store.everything(state), declare=True)
    outcome.add(_apply(host, plan))
    if plan.actions and boot.read(host.files, host.python) == before:
        outcome.done = [action for action in outcome.done if action.kind not in boot.STEPS]


def _raise_refusals(refusals: Sequence[Refusal]) -> None:
    if refusals:
        raise EngineError("\n".join(dict.fromkeys(refusal.sentence() for refusal in refusals)))


def resource_info(host: Host, name: str, selector: Mapping[str, Any] | None) -> dict[str, Any]:
    """The devices of a resource as they are, as valid input for it, and facts beside that. Of a device that the
    collection owns it names what was wished of it, of any other all there is. Reads only."""
    state = read.read_state(host, Needs(variants=True))
    state = replace(state, own_macs=read.own_macs(host.files, state))
    wishes = _owned_wishes(state.stored[name]["devices"]) if name != vgpu.NAME else vgpu.all_of(state)
    wishes = [*wishes, *(sriov.of_others(state) if name == sriov.NAME else ())]
    state = read_more(host, state, {name: wishes}, Options())
    if name == vmdq.NAME:
        state = vmdq.everything(host, state)
    if name == mdev.NAME and state.more[name]["devices"]:
        from . import users

        state = users.look(host, state)
    resource = RESOURCES[name]
    wrong = match.check_selector(selector) if selector else None
    if wrong:
        raise EngineError(f"the match is not usable: {wrong}")
    chosen = {f.address for f in match.select(state, selector)} if selector else set(state.functions)
    devices = [item for item in resource.info(state) if _named(item) in chosen]
    addresses = [_named(item) for item in devices]
    if name in (mdev.NAME, vgpu.NAME):
        # A parent without devices has something to say as well, and its devices are all told of.
        return {
            "changed": False,
            "devices": devices,
            "facts": [{"address": a, **resource.facts(state, state.functions[a])} for a in resource.told_of(state) if a in chosen],
        }
    return {
        "changed": False,
        "devices": [_as_owned(item, state.stored[name]["devices"].get(a)) for a, item in zip(addresses, devices)],
        "facts": [{"address": a, **resource.facts(state, state.functions[a])} for a in addresses],
    }


def _named(item: Mapping[str, Any]) -> str:
    """The device that a wish of a report is about."""
    return str((item["match"].get("address") or item["match"]["parent"])[0])


def _owned_wishes(entries: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What is declared, so that the same is read as when it is planned."""
    return [
        {
            **entry["wish"],
            "match": {"address": [address], "vf": True},
            "expect": None,
            "vfs": [{"range": index, **vf} for index, vf in entry["wish"].get("vfs", {}).items()],
        }
        for address, entry in entries.items()
    ]


def _as_owned(item: Mapping[str, Any], entry: Mapping[str, Any] | None) -> dict[str, Any]:
    """Of what a device is, the keys that the collection rules on it: handed back, they are the wish that is there."""
    if entry is None:
        return dict(item)
    wish = entry["wish"]
    kept = {key: value for key, value in item.items() if key == "match" or wish.get(key) is not None}
    # What the report does not look at (up, vf_netdevs, firmware, ...), as it was wished.
    kept.update({key: value for key, value in wish.items() if key not in item and value is not None})
    if "vfs" in item:
        kept["vfs"] = [
            {
                **{key: value for key, value in vf.items() if key == "range" or key in wish["vfs"][vf["range"]]},
                # Not of the device, but of the wish alone.
                **{key: value for key, value in wish["vfs"][vf["range"]].items() if key not in vf},
            }
            for vf in item["vfs"]
            if vf["range"] in wish["vfs"]
        ]
    return kept


def host_iommu(
    host: Host, wish: iommu.IommuWish, call: Call, prove: bool = False, allow: Collection[str] = ()
) -> dict[str, Any]:
    """Make the IOMMU as wished by the next boot; with `prove`, fail where it should be so by now."""
    from . import cmdline
    from .resources import iommu, kernel_cmdline

    with turn(host, call):
        now = read.read_iommu(host.files)
        try:
            parameters = kernel_cmdline.read(host)
        except EngineError as error:
            running = tuple(cmdline.split(host.files.text("/proc/cmdline") or ""))
            if not iommu.in_force(now, running, wish):
                raise
            return report.result(iommu.unknown_loader(wish.state, error), Outcome(), {"iommu": iommu.info(now)})
        plan = iommu.plan(now, parameters, wish, allow)
        _check_boot_plan(host, parameters, plan, allow)
        failed = iommu.proof(now, parameters, wish) if prove and wish.state != "absent" else None
        if failed:
            raise EngineError(failed)
        outcome = _apply(host, plan) if not call.check and plan.doable else Outcome()
    return report.result(plan, outcome, {"iommu": iommu.info(now)})


def _check_boot_plan(host: Host, parameters: kernel_cmdline.Parameters, plan: Plan, allow: Collection[str]) -> None:
    if plan.actions:
        from . import sealed

        plan.refusals += sealed.refusals(host, parameters.loader.name, allow)
    _raise_refusals(plan.refusals)


def host_cmdline(
    host: Host, wish: kernel_cmdline.Wish, call: Call, allow: Collection[str] = ()
) -> dict[str, Any]:
    """Make the kernel command line of the next boot as wished."""
    from .resources import kernel_cmdline

    with turn(host, call):
        parameters = kernel_cmdline.read(host)
        plan = kernel_cmdline.plan(parameters, wish, allow)
        _check_boot_plan(host, parameters, plan, allow)
        outcome = _apply(host, plan) if not call.check and plan.doable else Outcome()
        after = kernel_cmdline.read(host) if outcome.done else parameters
    return report.result(plan, outcome, {"kernel_cmdline": kernel_cmdline.info(after)})


def host_kvm(
    host: Host, params: Mapping[str, Any], call: Call, allow: Collection[str] = (), coming: bool = False
) -> dict[str, Any]:
    """Make the host as wished for KVM guests. `coming`: an earlier step of the same run installs the packages."""
    from .resources import kvm

    wish, absent = kvm.wish_of(params), params["state"] == "absent"
    with turn(host, call):
        state = kvm.read(host, wish, absent)
        plan = kvm.plan_absent(state, allow) if absent else kvm.plan(state, wish, allow, coming)
        _raise_refusals(plan.refusals)
        if any(action.unit == HOST and action.kind != "write_file" for action in plan.actions):
            from . import sealed
            from .loaders import find

            _raise_refusals(sealed.refusals(host, find.read(host).name, allow))
        prove = params["prove"] and not absent
        if prove:
            kvm.prove(host)
        outcome = _apply(host, plan) if not call.check and plan.doable else Outcome()
        if prove and any(action.unit == kvm.UNIT for action in outcome.done):
            kvm.prove(host)
        if outcome.done:
            state = kvm.read(host, wish, absent)
            if not absent:
                # The kernel had the last word on what of it came now.
                plan.reboot_reasons = kvm.plan(state, wish, allow, coming).reboot_reasons
    return report.result(plan, outcome, {"kvm": kvm.info(state)})


def kvm_info(host: Host) -> dict[str, Any]:
    """What a KVM host is, in the form of wishes, and what guests can have on it."""
    from .resources import kvm

    return {"changed": False, "kvm": {**kvm.info(kvm.read(host, {}, everything=True)), **kvm.more(host)}}


def cmdline_info(host: Host) -> dict[str, Any]:
    """Both sides of the kernel command line, without a wish."""
    from .resources import kernel_cmdline

    parameters = kernel_cmdline.read(host)
    facts = kernel_cmdline.info(parameters)
    return {"changed": False, "kernel_cmdline": facts, "warnings": list(parameters.loader.warnings)}


def iommu_info(host: Host) -> dict[str, Any]:
    """The IOMMU, and every PCI function with whether it can be given to a guest."""
    from . import assignable
    from .resources import iommu

    state = read.read_state(host, Needs())
    state = replace(state, iommu=read.read_iommu(host.files, reserved=True))
    return {"changed": False, "iommu": iommu.info(state.iommu), "devices": assignable.devices(state)}


def guests(host: Host, wishes: Sequence[Mapping[str, Any]], options: GuestOptions, call: Call) -> dict[str, Any]:
    """Make all guests as declared, in one reading, one plan and one go."""
    from .guests import facts, shares
    from .resources import guest

    wishes = guest.normalized(wishes)
    options = replace(options, assume=shares.assumed(options.assume, call.check))
    with turn(host, call):
        found = facts.read(host, _libvirt_or_to_come(host, options, call), read.read_state(host, Needs()), wishes, options.assume)
        if any(item["model"] == "vmdq" for wish in wishes for item in wish.get("network") or ()):
            from .guests import stations

            found = replace(found, state=stations.read(host, found.state, wishes))
        plan = guest.plan(found, wishes, options)
        if any(action.kind in guest.TAKING for action in plan.actions) and not plan.refusals:
            # Only now is it worth looking into every process of the host: somebody else may have a function.
            from . import users

            found = replace(found, state=users.look(host, found.state))
            plan = guest.plan(found, wishes, options)
        _raise_refusals(plan.refusals)
        outcome = _apply(host, plan) if not call.check and plan.doable else Outcome()
        if outcome.done or outcome.failures:
            found = facts.read(host, _libvirt(host), found.state, wishes)
    return {
        **report.result(plan, outcome, {"guests": guest.info(found)}),
        "restart_required": bool(plan.restarts),
        "restart_reasons": plan.restarts,
    }


def guest_info(host: Host, names: Sequence[str] | None) -> dict[str, Any]:
    """The guests of a host: what was declared, as input for the module, and what libvirt says of all of them."""
    from .guests import facts
    from .resources import guest

    found = facts.read(host, _libvirt(host), read.read_state(host, Needs()), [])
    return {"changed": False, **guest.facts_of(found, names)}


def _libvirt_or_to_come(host: Host, options: GuestOptions, call: Call) -> Any:
    """In check mode also a libvirt that an earlier call of the same run would make answer."""
    connection = _libvirt(host)
    if not (call.check and options.assume.get("libvirt")):
        return connection
    from .guests import virt

    try:
        connection.capabilities()
    except EngineError:
        return virt.NotYet()
    return connection


def _libvirt(host: Host) -> Any:
    if host.libvirt is None:
        raise EngineError("internal: no connection to libvirt was handed in.")
    return host.libvirt()
