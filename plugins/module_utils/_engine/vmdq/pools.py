# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How many pools a port has, who holds them, and the module parameter by which some drivers take the number.

No file and no command of the kernel tells how many pools a port has: it is in the driver's source (drivers.VMDQ), or in the
driver's own parameter where that is shown.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from .. import drivers, modprobe
from ..model import Function, Plan, Refusal, State
from . import port as ports
from .port import Port
from .reading import PARAMETER

#: A position of the parameter that says nothing: the driver takes its own number (OPTION_UNSET in Intel's igb_param.c and ixgbe_param.c).
UNSAID = "-1"


def of_driver(function: Function) -> drivers.Vmdq:
    return drivers.VMDQ.get(function.driver or "", drivers.VMDQ_UNKNOWN)


def running(state: State, function: Function) -> int | None:
    """What the parameter says of a port now; None where the kernel does not show it. Pool 0 is the port itself."""
    text = ports.facts_of(state, function.address).get("parameter") or ""
    words, place = text.split(","), position(state, function)
    return int(words[place]) if place < len(words) and words[place].isdigit() else None


def capacity(state: State, function: Function) -> int | None:
    """How many stations can be in hardware, VFs left aside; None: nobody knows before the driver is asked."""
    pools = running(state, function)
    return max(pools - 1, 0) if pools is not None else of_driver(function).stations


def position(state: State, function: Function) -> int:
    """Which of the driver's ports it is: in the order in which they are found, which is that of the bus."""
    mine = function.driver or function.native
    alike = sorted(f.address for f in state.functions.values() if mine in (f.driver, f.native) and f.physfn is None)
    return alike.index(function.address) if function.address in alike else 0


# --- Enough pools? ---------------------------------------------------------------------------------------------------


def check(port: Port, wanted: int, named: Collection[str]) -> list[Refusal]:
    """Are there pools for this many stations, beside those of others on the port? `named` are the wish's own stations, and those that go."""
    state, pf, lower = port.state, port.pf, port.netdev.name
    stations = ports.wished_stations(port)
    # Pools that are of the wish's own stations, and do not show as that.
    stale = ports.stale(port, stations) + ports.away(port, stations)
    limit, others = capacity(state, pf), ports.others(state, pf, lower, named, stale)
    layout = of_driver(pf).layouts.get(port.wish.get("layout") or "")
    if layout is not None and wanted + others > layout:
        reason = f"{wanted} stations{_beside(port, others, named)} are more than the layout {port.wish['layout']} has ({layout})."
        return [port.wrong(reason, "Name fewer stations, or a layout with more.")]
    if limit is None or wanted + others <= limit:
        return []
    reason = (
        f"{wanted} stations{_beside(port, others, named)} are more than {lower} has pools for ({limit}): the kernel would "
        "forward the rest in software without a word."
    )
    return [port.wrong(reason, "Name fewer stations, or set require_offload to false.")]


def _beside(port: Port, others: int, named: Collection[str]) -> str:
    held = ", ".join(ports.holders(port.state, port.pf, port.netdev.name, named))
    return f" and {others} of others ({held})" if others else ""


def check_shared(state: State, address: str, stations: int, vfs: int) -> list[Refusal]:
    """Where VFs and stations draw on one number of pools, both are counted, whichever of the two a call is about."""
    function = state.functions.get(address)
    limit = of_driver(function).stations if function else None
    if function is None or limit is None or not of_driver(function).with_vfs or stations + vfs <= limit or not (stations and vfs):
        return []
    reason = f"{vfs} VFs and {stations} stations in hardware are more than its {limit} pools: with {function.driver} they draw on the same ones."
    return [Refusal(address, reason, "Lower vf_count or name fewer stations; nothing was changed.")]


# --- The parameter ---------------------------------------------------------------------------------------------------


def plan_parameter(state: State, wished: Mapping[str, int | None]) -> Plan:
    """Address -> the number of pools that the parameter shall say (None: given back). One action a driver, which is the first port's."""
    result = Plan()
    by_driver: dict[str, list[str]] = {}
    for address in wished:
        function = state.functions.get(address)
        name = drivers.module_of((function.driver or function.native or "") if function else "")
        if name and ports.facts_of(state, address).get("modules"):
            by_driver.setdefault(name, []).append(address)
    for name, addresses in by_driver.items():
        module = ports.facts_of(state, addresses[0])["modules"][name]
        if all(wished[address] is None for address in addresses) and PARAMETER not in module.ours:
            continue
        text = _text(state, module, {a: wished[a] for a in addresses})
        result.extend(modprobe.plan({name: module}, {name: {PARAMETER: text}}, device=addresses[0], early=state.early or None))
    return result


def _text(state: State, module: modprobe.Module, wished: Mapping[str, int | None]) -> str | None:
    """The whole parameter: what is said of other ports stays."""
    words = _said(module)
    for address, number in wished.items():
        place = position(state, state.functions[address])
        words += [UNSAID] * (place + 1 - len(words))
        words[place] = UNSAID if number is None else str(number)
    while words and words[-1] == UNSAID:
        words.pop()
    return ",".join(words) or None


def _said(module: modprobe.Module) -> list[str]:
    text, _where = module.next_load.get(PARAMETER, ("", ""))
    return text.split(",") if text else []


def next_load(state: State, function: Function) -> int | None:
    """What the parameter will say of a port when the module is loaded again; None: nobody says."""
    modules = ports.facts_of(state, function.address).get("modules") or {}
    for module in modules.values():
        words, place = _said(module), position(state, function)
        if place < len(words) and words[place].isdigit():
            return int(words[place])
    return None


def check_parameter(port: Port) -> list[Refusal]:
    """The rest is said by modprobe.plan: a module that has no such parameter, that is built in, or that somebody else rules."""
    number = port.wish.get("pools")
    if number is not None and port.facts.get("no_module"):
        return [port.wrong(f"the module of its driver is not known: {port.facts['no_module']}", "Leave pools out.")]
    if number is None or (isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= 64):
        return []
    return [port.wrong(f"pools {number} is no number from 0 to 64.", "It is what the driver's parameter VMDQ says of this port.")]


def as_dict(state: State, function: Function) -> dict[str, Any]:
    """Both sides of the parameter, for facts."""
    return {"running": running(state, function), "next_load": next_load(state, function)}
