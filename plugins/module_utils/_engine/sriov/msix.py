# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How many of a PF's MSI-X vectors each VF gets, with a driver that shares them out (mlx5, ice).

The kernel takes a number only while the VF has no driver, and a VF is born with the driver's own number (sriov_vf_msix_count_store in
drivers/pci/iov.c; Documentation/ABI/testing/sysfs-bus-pci).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .. import guards, msix, sysfs
from ..host import Host
from ..model import CERTAIN, PREDICTED, Action, Plan, Refusal, State
from ..read import ANSWER_LIMIT
from ..resources import common
from ..resources.common import Target
from .port import Port, is_number

NAME = "msix"
KEY = "msix_count"


# --- Reading -------------------------------------------------------------------------------------------------------


def read_more(host: Host, state: State, targets: Sequence[Target]) -> State:
    """How many vectors there are to share, and who has how many, of the ports whose wish speaks of it, or whose VFs vanish with what they have."""
    facts = {t.function.address: _read(host, t) for t in targets if _concerned(state, t)}
    return state.with_more(NAME, facts) if facts else state


def _concerned(state: State, target: Target) -> bool:
    function, wish = target.function, target.wish
    if function.bus != sysfs.PCI or function.sriov is None:
        return False
    if target.absent:
        entry = common.stored_entry(state, "sriov", function.address)
        return bool(entry and NAME in entry["origin"])
    parts = [wish.get("vf_defaults") or {}, *(wish.get("vfs") or [])]
    lost = bool(function.sriov.vfs) and wish.get("vf_count") not in (None, len(function.sriov.vfs))
    return lost or any(part.get(KEY) is not None for part in parts)


def _read(host: Host, target: Target) -> dict[str, Any]:
    """Reading the total takes the PF's lock (sriov_vf_total_msix_show), which a write that hangs holds."""
    function = target.function
    path = f"{sysfs.device(function.address)}/sriov_vf_total_msix"
    answers = host.files.attrs_within([path], ANSWER_LIMIT)
    if path not in answers:
        return {"error": "the kernel does not answer for it: a write to it has not returned"}
    total = int(answers[path] or 0)
    vfs = function.sriov.vfs if function.sriov and total else {}
    return {"total": total, "vfs": {index: msix.table_size(host.files, address) for index, address in vfs.items()}}


def _facts(port: Port) -> Mapping[str, Any]:
    facts: Mapping[str, Any] = port.state.more.get(NAME, {}).get(port.pf.address, {})
    return facts


def facts_of(state: State, pf: str, index: int) -> dict[str, Any]:
    """A VF's number of vectors in the form of a wish, where it was read."""
    size = state.more.get(NAME, {}).get(pf, {}).get("vfs", {}).get(index)
    return {KEY: size} if size else {}


# --- Checking ------------------------------------------------------------------------------------------------------


def _wished(port: Port) -> dict[int, int]:
    return {index: vf[KEY] for index, vf in sorted(port.wished.items()) if vf.get(KEY) is not None}


def check(port: Port) -> list[Refusal]:
    """Does the driver share vectors out, and are there as many?"""
    return list(_wrong(port)) if _wished(port) else []


def _wrong(port: Port) -> Iterator[Refusal]:
    facts, wished = _facts(port), _wished(port)
    index = min(wished)
    bad = [i for i, count in wished.items() if not is_number(count, 1, msix.MOST)]
    if bad:
        reason = f"VF {bad[0]}: msix_count {wished[bad[0]]} is not from 1 to {msix.MOST}."
        yield port.wrong(reason, "Correct the number; unset, it stays as it is.")
    elif "error" in facts:
        yield port.wrong(f"VF {index}: msix_count is wished, but {facts['error']}.", "Find who holds the device.")
    elif not facts.get("total"):
        reason = f"VF {index}: msix_count is wished, but its driver {port.pf.driver or '(none)'} does not share out MSI-X vectors"
        yield port.wrong(f"{reason} (sriov_vf_total_msix is 0 or not there).", "Take msix_count out of the wish.")
    elif sum(wished.values()) > facts["total"]:
        reason = f"{sum(wished.values())} MSI-X vectors are wished for its VFs, but it has {facts['total']} for all of them"
        yield port.wrong(f"{reason} (sriov_vf_total_msix).", "Lower msix_count.")
    else:
        without = [] if port.born else [i for i in wished if not facts["vfs"].get(i)]
        if without:
            reason = f"VF {without[0]}: msix_count is wished, but no MSI-X capability can be read in its configuration space."
            yield port.wrong(reason, "Take msix_count out of the wish.")


# --- Planning ------------------------------------------------------------------------------------------------------


def holds_probing(port: Port) -> bool:
    """Have the new VFs to wait for their vectors before a driver may take them?"""
    return port.born and bool(_to_do(port))


def _to_do(port: Port) -> dict[int, int]:
    facts = _facts(port)
    if not facts.get("total"):
        return {}
    return {i: count for i, count in _wished(port).items() if port.born or facts["vfs"].get(i) != count}


def plan(port: Port) -> Plan:
    """Set what differs. A VF that has a driver is taken from it meanwhile."""
    result = Plan()
    todo = _to_do(port)
    had = {i: vf.driver for i in todo if (vf := port.vf(i)) and vf.driver}
    for index in had:
        vf = port.vf(index)
        if vf and common.guarded(result, guards.before_unbind(port.state, vf), port.options, port.pf.address):
            return result
    if not todo:
        return result
    was = {} if port.born else {index: _facts(port)["vfs"].get(index) for index in todo}
    result.actions.append(
        Action(
            kind="set_msix_count",
            unit=port.pf.address,
            text=_text(todo, had),
            certainty=PREDICTED if port.born else CERTAIN,
            args={
                "pf": port.pf.address,
                "vfs": {str(i): {"to": count, "was": was.get(i), "driver": had.get(i)} for i, count in todo.items()},
            },
            before={f"vf {index} {KEY}": was.get(index) for index in todo},
            after={f"vf {index} {KEY}": count for index, count in todo.items()},
        )
    )
    return result


def _text(todo: Mapping[int, int], had: Mapping[int, str | None]) -> str:
    groups: dict[int, list[str]] = {}
    for index, count in todo.items():
        groups.setdefault(count, []).append(str(index))
    said = "; ".join(f"{count} to VF {', '.join(indexes)}" for count, indexes in groups.items())
    away = ", ".join(f"VF {index} is taken from {driver}" for index, driver in had.items())
    return f"give MSI-X vectors: {said}{f' ({away} for it)' if away else ''}"


def vanishing(port: Port) -> dict[str, int]:
    """VF index -> what it has now, for the way back; nothing where it was not read."""
    return {str(index): size for index, size in _facts(port).get("vfs", {}).items() if size}


# --- Giving back ---------------------------------------------------------------------------------------------------


def origin(port: Port) -> dict[str, Any]:
    """How many vectors the VFs had before, where the wish speaks of it."""
    return {NAME: vanishing(port)} if _wished(port) else {}


def given_back_vf(entry: Mapping[str, Any], index: int, ours: bool) -> dict[str, Any]:
    """The wish that gives a VF what it had before, if the collection has changed it or makes it anew."""
    was = entry["origin"].get(NAME, {}).get(str(index))
    return {KEY: was} if was and ours else {}
