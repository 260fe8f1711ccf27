# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""SR-IOV in the firmware of a card: whether it has the capability at all, and for how many VFs. Both hold from the next
boot on, and both are the card's: its ports share them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .. import drivers, mstconfig
from ..errors import EngineError
from ..host import Host
from ..model import AFTER_REBOOT, Action, Function, Plan, Refusal, State
from ..resources import common
from ..resources.common import Target
from .port import Port, bad, is_number

NAME = "firmware"


# --- Reading -------------------------------------------------------------------------------------------------------


def read_more(host: Host, state: State, targets: Sequence[Target]) -> State:
    """One process for each port whose wish, or whose giving back, speaks of its firmware."""
    facts: dict[str, Any] = {}
    for target in targets:
        if _concerned(state, target) and target.function.vendor in drivers.MSTCONFIG:
            facts[target.function.address] = _read(host, target.function.address)
    return state.with_more(NAME, facts) if facts else state


def _concerned(state: State, target: Target) -> bool:
    if not target.absent:
        return bool(wished(target.wish))
    entry = common.stored_entry(state, "sriov", target.function.address)
    return bool(entry and NAME in entry["origin"])


def wished(wish: Mapping[str, Any]) -> dict[str, Any]:
    """What is wished of the firmware; unset keys are not in it."""
    return {key: value for key, value in (wish.get(NAME) or {}).items() if value is not None}


def _read(host: Host, address: str) -> dict[str, Any]:
    try:
        return mstconfig.query(host, address)
    except EngineError as error:
        return {"error": str(error)}


# --- Checking ------------------------------------------------------------------------------------------------------


def staying(state: State, targets: Sequence[Target]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Who has a wish for its firmware once this call is done: address -> where it stands, and the wish."""
    here = {target.function.address for target in targets}
    found = {t.function.address: (t.label, wished(t.wish)) for t in targets if not t.absent}
    for address, entry in _stored(state).items():
        if address not in here:
            found[address] = ("an earlier call (/etc/iovirt/sriov.json)", wished(entry["wish"]))
    return {address: said for address, said in found.items() if said[1]}


def check_targets(state: State, targets: Sequence[Target]) -> list[Refusal]:
    """Ports of one card that wish different things: in this call, or against what an earlier one declared."""
    refusals = []
    wishes = staying(state, targets)
    todo = [target.function.address for target in targets if target.function.address in wishes]
    for number, address in enumerate(todo):
        label, wish = wishes[address]
        for other in sorted(wishes.keys() - set(todo[: number + 1])):
            their_label, theirs = wishes[other]
            unequal = [key for key in wish if key in theirs and wish[key] != theirs[key]]
            if card(other) == card(address) and unequal:
                what = f"firmware.{unequal[0]} {wish[unequal[0]]} and {theirs[unequal[0]]}"
                reason = f"{label} and {their_label} wish {what} for it and {other}, which share their card's firmware."
                refusals.append(bad(address, reason, "Wish the same for all ports of a card."))
    return refusals


def leaders(state: State, targets: Sequence[Target]) -> set[str]:
    """The ports through which a card's firmware is set: the first that wishes something of it, the first that is given
    back."""
    first: dict[tuple[str, bool], str] = {}
    for target in targets:
        if _concerned(state, target):
            first.setdefault((card(target.function.address), target.absent), target.function.address)
    return set(first.values())


def card(address: str) -> str:
    """What the ports of a card have in common: all of the address but the function number."""
    return address.rpartition(".")[0]


def check(port: Port) -> list[Refusal]:
    """Can the firmware be set, and does it go with the number of VFs?"""
    wish = wished(port.wish)
    if not wish:
        return []
    if port.pf.vendor not in drivers.MSTCONFIG:
        reason = f"no open tool is known for the firmware of vendor {port.pf.vendor}; mstconfig is for 15b3 alone."
        return [port.wrong(reason, "Take firmware out, and use the firmware setup or the vendor's tool.")]
    facts = port.state.more.get(NAME, {}).get(port.pf.address, {})
    if "error" in facts:
        return [port.wrong(facts["error"], "")]
    if not is_number(wish.get("vf_count", 0)):
        return [port.wrong(f"firmware.vf_count {wish['vf_count']} is no number from 0.", "0 leaves no VF.")]
    asked = port.count if port.counted else 0
    if wish.get("sriov") is False and asked:
        return [port.wrong(f"firmware.sriov false leaves no VF, but vf_count is {asked}.", "Correct one of the two.")]
    if asked > wish.get("vf_count", asked):
        reason = f"vf_count {asked} is more than firmware.vf_count {wish['vf_count']}."
        return [port.wrong(reason, "Correct one of the two.")]
    return []


def coming(state: State, function: Function, wish: Mapping[str, Any]) -> int | None:
    """How many VFs the device can have from the next boot on; None where nothing is known of it, or it is no more than
    now."""
    facts = state.more.get(NAME, {}).get(function.address, {})
    if "sriov" not in facts:
        return None
    after = {fact: wished(wish).get(fact, facts[fact]["next"]) for fact in mstconfig.PARAMETERS}
    count = int(after["vf_count"]) if after["sriov"] else 0
    return count if count > (function.sriov.total if function.sriov else 0) else None


# --- Planning ------------------------------------------------------------------------------------------------------


def plan(port: Port) -> Plan:
    """The settings for the next boot. They are written now; that they are not in force calls for a reboot where the
    wish needs more than the card has."""
    result = Plan()
    facts = port.state.more.get(NAME, {}).get(port.pf.address, {})
    wish = wished(port.wish)
    if not wish or "sriov" not in facts:
        return result
    changes = {key: value for key, value in wish.items() if facts[key]["next"] != value}
    if changes and port.leads:
        result.actions.append(_set(port.pf, changes, {key: facts[key]["next"] for key in changes}))
    for key, value in wish.items():
        current = _current(port.pf, facts, key)
        if current != value and not (key == "vf_count" and current > value):
            # Fewer VFs than the firmware allows can be had at once; more, or the capability itself, cannot.
            parameter = mstconfig.PARAMETERS[key]
            reason = f"{port.pf.address}: its firmware has {parameter} {current}, and {value} from the next boot on"
            result.reboot_reasons.append(reason)
    return result


def _current(pf: Function, facts: Mapping[str, Any], key: str) -> Any:
    """What is in force. Firmware that does not tell is seen by its PCI capability."""
    current = facts[key]["current"]
    if current is not None:
        return current
    return pf.sriov is not None if key == "sriov" else (pf.sriov.total if pf.sriov else 0)


def _set(pf: Function, to: Mapping[str, Any], before: Mapping[str, Any]) -> Action:
    said = " and ".join(f"{mstconfig.PARAMETERS[key]} from {before[key]} to {value}" for key, value in to.items())
    return Action(
        kind="set_firmware",
        unit=pf.address,
        text=f"set {said} in the firmware of the card, for the next boot",
        args={"address": pf.address, "to": dict(to), "from": dict(before)},
        before={f"firmware {key} (next boot)": value for key, value in before.items()},
        after={f"firmware {key} (next boot)": value for key, value in to.items()},
    )


def waiting(part: Plan, pf: Function, count: int) -> Plan:
    """A plan that can be followed only once the firmware has room for so many VFs."""
    part.actions = [replace(action, certainty=AFTER_REBOOT) for action in part.actions]
    part.reboot_reasons.append(f"{pf.address}: it can have {count} VFs once its firmware's setting is in force")
    return part


# --- Giving back ---------------------------------------------------------------------------------------------------


def origin(port: Port) -> dict[str, Any]:
    """How the firmware was before. A port whose sibling was declared earlier takes over what was recorded there."""
    facts = port.state.more.get(NAME, {}).get(port.pf.address, {})
    if "sriov" not in facts or not wished(port.wish):
        return {}
    known = _of_card(port.state, port.pf.address)
    found = {key: facts[key]["next"] for key in wished(port.wish)}
    for entry in known.values():
        found.update({k: v for k, v in entry["origin"].get(NAME, {}).items() if k in found})
    return {NAME: found}


def given_back(address: str, entry: Mapping[str, Any], staying_ones: Collection[str]) -> dict[str, Any]:
    """The wish that makes the firmware what it was, unless another port of the card goes on wishing something of it."""
    others = [other for other in staying_ones if card(other) == card(address)]
    was = entry["origin"].get(NAME)
    return {NAME: dict(was)} if was and not others else {}


def _of_card(state: State, address: str) -> dict[str, Mapping[str, Any]]:
    """The other ports of a card that were ever declared with a wish for its firmware."""
    return {
        other: entry
        for other, entry in _stored(state).items()
        if other != address and card(other) == card(address) and entry["origin"].get(NAME)
    }


def _stored(state: State) -> Mapping[str, Mapping[str, Any]]:
    return state.stored["sriov"]["devices"] if "sriov" in state.stored else {}
