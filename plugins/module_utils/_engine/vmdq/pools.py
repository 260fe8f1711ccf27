# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How many pools a port has, who holds them, and the module parameter by which some drivers take the number.

No file and no command of the kernel tells how many pools a port has: it is in the driver's source (layouts.py), or in the
driver's own parameter where that is shown.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from .. import drivers, modprobe
from ..model import Function, Plan, Refusal, State
from . import layouts
from . import port as ports
from .port import Port
from .reading import PARAMETER

#: A position of the parameter that says nothing: the driver takes its own number (OPTION_UNSET in Intel's igb_param.c and ixgbe_param.c).
UNSAID = "-1"


def of_driver(function: Function) -> layouts.Vmdq:
    return layouts.of_driver(function.driver or function.native)


def layouts_of(function: Function, vfs: int) -> tuple[layouts.Layout, ...]:
    """The layouts of a port that has this many VFs; () where nobody knows them."""
    beside = of_driver(function).beside_vfs
    return beside(vfs) if beside else ()


def vfs_of(function: Function) -> int:
    """How many pools its VFs have."""
    return len(function.sriov.vfs) if function.sriov and of_driver(function).beside_vfs else 0


def running(state: State, function: Function) -> int | None:
    """What the parameter says of a port now; None where the kernel does not show it. Pool 0 is the port itself."""
    text = ports.facts_of(state, function.address).get("parameter") or ""
    words, place = text.split(","), position(state, function)
    return int(words[place]) if place < len(words) and words[place].isdigit() else None


def capacity(state: State, function: Function) -> int | None:
    """How many stations can be in hardware, VFs left aside; None: nobody knows before the driver is asked."""
    pools = running(state, function)
    if pools is not None:
        return max(pools - 1, 0)
    driver, alone = of_driver(function), layouts_of(function, 0)
    if alone:
        return alone[-1].stations
    vectors = _vectors(state, function)
    return driver.of_vectors(vectors).stations if driver.of_vectors and vectors is not None else None


def _vectors(state: State, function: Function) -> int | None:
    """The interrupt vectors of a port's own queues. Nobody changed its queues where it has one for each vector that it can have."""
    facts = ports.facts_of(state, function.address)
    now = facts.get("queues", {}).get("now", {}).get("combined")
    return now if now is not None and now == facts.get("vectors") else None


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
    others = ports.others(state, pf, lower, named, stale)
    wrong = check_layout(state, pf.address, port.wish.get("layout"), wanted + others, vfs_of(pf), port.label)
    if wrong:
        return wrong
    limit = capacity(state, pf)
    limit = of_driver(pf).at_most if limit is None else limit
    if limit is None or wanted + others <= limit:
        return []
    reason = (
        f"{wanted} stations{_beside(port, others, named)} are more than {lower} has pools for ({limit}): the kernel would "
        "forward the rest in software without a word."
    )
    return [port.wrong(reason, "Name fewer stations, or set require_offload to false.")]


def check_layout(state: State, address: str, name: str | None, stations: int, vfs: int, label: str) -> list[Refusal]:
    """A wished layout is as many queues for each station as its name says: VFs leave room for fewer stations with so many."""
    if name is None or address not in state.functions:
        return []
    queues = int(name.partition("x")[2])
    room = max((layout.stations for layout in layouts_of(state.functions[address], vfs) if layout.queues >= queues), default=0)
    if stations <= room:
        return []
    beside = f" beside {vfs} VFs" if vfs else ""
    reason = f"{label}: {stations} stations are more than the layout {name} has{beside} ({room})."
    return [Refusal(address, reason, "Name fewer stations, or a layout with more. Nothing was changed.")]


def _beside(port: Port, others: int, named: Collection[str]) -> str:
    held = ", ".join(ports.holders(port.state, port.pf, port.netdev.name, named))
    return f" and {others} of others ({held})" if others else ""


def check_shared(state: State, address: str, stations: int, vfs: int) -> list[Refusal]:
    """Where VFs and stations draw on one number of pools, both are counted, whichever of the two a call is about."""
    function = state.functions.get(address)
    alone = layouts_of(function, 0) if function else ()
    if function is None or not alone or not (stations and vfs) or stations + vfs <= alone[-1].stations:
        return []
    reason = (
        f"{vfs} VF{'' if vfs == 1 else 's'} and {stations} station{'' if stations == 1 else 's'} in hardware are more than its {alone[-1].stations} "
        f"pools: with {function.driver} they draw on the same ones."
    )
    return [Refusal(address, reason, "Lower vf_count or name fewer stations; nothing was changed.")]


def too_few_queues(state: State, function: Function, queues: int | None = None) -> tuple[str, str] | None:
    """Why a first station would be dangerous with the numbers of queues of a port (`queues`: those that it is about to get), and the way out."""
    facts = ports.facts_of(state, function.address)
    queues = facts.get("queues", {}).get("now", {}).get("combined") if queues is None else queues
    driver, most = of_driver(function), facts.get("vectors")
    if queues is None or most is None or facts.get("pools") or not layouts.too_few(driver, queues, most):
        return None
    enough = next(n for n in range(queues, most + 1) if not layouts.too_few(driver, n, most))
    reason = (
        f"{queues} combined queues may be fewer than {function.driver} gives to its stations: it reckons with those that it started with "
        f"({most} at most), and the kernel then crashes."
    )
    return reason, f"Set its combined queues to {enough} or more"


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
    least, most = of_driver(port.pf).parameter
    if number is None or (isinstance(number, int) and not isinstance(number, bool) and least <= number <= most):
        return []
    # The driver would take its own number instead, and say so in the kernel log alone (ixgbe_validate_option, igb_validate_option).
    return [port.wrong(f"pools {number} is no number from {least} to {most}.", "It is what the driver's parameter VMDQ says of this port.")]


def as_dict(state: State, function: Function) -> dict[str, Any]:
    """Both sides of the parameter, for facts."""
    return {"running": running(state, function), "next_load": next_load(state, function)}
