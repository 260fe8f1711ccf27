# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which card is which: where a declared device is now, or that nobody can tell.

An address names a place, and places move: one more card below a bridge shifts the bus numbers of all behind it. What
names a card is its serial number, its permanent MAC address and the PCI Device Serial Number. A card that shows one of
them is followed to wherever it is. One that shows none is taken for the declared one only where nothing speaks for a
move; an identical neighbour is never taken in its stead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

from . import drivers, sysfs
from .model import Function, Lost, State
from .plain import dataclass

#: What names a card and no other one of its kind.
STRONG = ("serial", "mac", "dsn")

#: A slot's name that the kernel made unique by a number counts up in the order of finding (make_slot_name,
#: drivers/pci/slot.c), so it does not name a place.
_COUNTED_SLOT = re.compile(r".+-\d+")

_Known = Mapping[str, Any]


@dataclass(frozen=True)
class Places:
    """Where the recorded devices are. `stored` are the documents by the addresses of now, `moved` says for each
    resource which record has to go from which address to which, `keys` where a record stands that cannot go there."""

    stored: dict[str, dict[str, Any]] = field(default_factory=dict)
    lost: dict[str, dict[str, Lost]] = field(default_factory=dict)
    moved: dict[str, dict[str, str]] = field(default_factory=dict)
    keys: dict[str, dict[str, str]] = field(default_factory=dict)


def ids(function: Function) -> str:
    return f"{function.vendor}:{function.device} {function.subsystem}"


def of(state: State, function: Function) -> dict[str, Any]:
    """All that identifies a device. A VF is identified by its PF and its index: what it shows itself may be another at
    each birth."""
    known: dict[str, Any] = {"address": function.address, "ids": ids(function), "slot": function.slot}
    known.update(_shown(state, function))
    known["ifname"] = function.netdevs[0] if function.netdevs else ""
    if function.physfn:
        pf = state.functions.get(function.physfn)
        known.update(mac="", dsn="", peers=[])
        if pf and pf.sriov:
            known["index"] = next((index for index, vf in pf.sriov.vfs.items() if vf == function.address), None)
            known["pf"] = of(state, pf)
        return known
    alike = [other for other in _alike(state, known["ids"]) if other.address != function.address]
    for key in STRONG:
        # What two cards share names neither (firmware of some makers writes the same number into all).
        if any(_equal(key, known, function.address, state, other) for other in alike):
            known[key] = ""
    known["peers"] = sorted(other.address for other in alike)
    return known


def locate(state: State, documents: Mapping[str, Mapping[str, Any]]) -> Places:
    """Find every recorded device. `state` needs its functions and network devices, not yet what is stored."""
    answers = {
        (name, key): _search(state, key, entry["identity"])
        for name, document in documents.items()
        for key, entry in document["devices"].items()
    }
    owners: dict[str, tuple[str, str]] = {}
    # Who is proven comes first: nobody else can be that device.
    for place, answer in sorted(answers.items(), key=lambda item: not item[1].strong):
        if answer.address and owners.setdefault(answer.address, place)[1] != place[1]:
            reason = f"{place[1]}: at {answer.address} there is now what was recorded at {owners[answer.address][1]}."
            answers[place] = _Answer(None, reason=f"{reason} {_WAY_OUT}")
    return _sort(documents, answers)


@dataclass(frozen=True)
class _Answer:
    address: str | None
    strong: bool = False
    reason: str = ""
    #: The device may be the declared one; nobody can tell.
    uncertain: bool = False


_WAY_OUT = "Run the collection again, or give it back (state: absent)."


def _sort(documents: Mapping[str, Mapping[str, Any]], answers: Mapping[tuple[str, str], _Answer]) -> Places:
    places = Places()
    for name, document in documents.items():
        entries = document["devices"]
        found = {key: address for key in entries if (address := answers[name, key].address)}
        lost = {key: entry for key, entry in entries.items() if key not in found}
        places.stored[name] = {**document, "devices": {address: entries[key] for key, address in found.items()}}
        places.lost[name] = {
            key: Lost(entry, answers[name, key].reason, answers[name, key].uncertain) for key, entry in lost.items()
        }
        going = {key: address for key, address in found.items() if key != address}
        # A record that has to stay where it is, as the card that was there may come back.
        places.keys[name] = {address: key for key, address in going.items() if address in lost}
        places.moved[name] = {key: address for key, address in going.items() if address not in lost}
    return places


def _search(state: State, key: str, known: _Known) -> _Answer:
    """Where the device is that was recorded under an address."""
    if known.get("pf"):
        return _search_vf(state, key, known)
    here = state.functions.get(key)
    if sysfs.bus_of(key) != sysfs.PCI:
        if here and _differing(state, known, here):
            # A subchannel: its number may be another one's after an IPL.
            return _Answer(None, reason=_exchanged(state, key, known))
        # A simulated device is its name.
        return _Answer(key) if here else _Answer(None, reason=f"{key}: the declared device is not there. {_WAY_OUT}")
    alike = _alike(state, known.get("ids", ""))
    proven = [f for f in alike if _confirmed(state, known, key, f) and not _differing(state, known, f)]
    if len(proven) == 1:
        return _Answer(proven[0].address, strong=True)
    if here in proven or (here and here.physfn and ids(here) == known.get("ids")):
        # Two share what should name one, and this one is in its place; or a VF that was recorded without its PF.
        return _Answer(key)
    in_slot = _in_slot(key, known, alike)
    if in_slot:
        return _Answer(in_slot.address)
    if here is None:
        return _Answer(None, reason=f"{key}: the declared device is not there. {_WAY_OUT}")
    if ids(here) != known.get("ids") or _differing(state, known, here):
        return _Answer(None, reason=_exchanged(state, key, known))
    return _unproven(known, key, here, alike)


def _search_vf(state: State, key: str, known: _Known) -> _Answer:
    answer = _search(state, known["pf"]["address"], known["pf"])
    pf = state.functions.get(answer.address or "")
    if pf is None:
        return _Answer(None, reason=f"{key}: {answer.reason.partition(': ')[2]}", uncertain=answer.uncertain)
    address = pf.sriov.vfs.get(known.get("index", -1)) if pf.sriov else None
    vf = state.functions.get(address or "")
    if vf is None:
        return _Answer(None, reason=f"{key}: {pf.address} has no VF {known.get('index')} now. {_WAY_OUT}")
    if ids(vf) != known.get("ids"):
        return _Answer(None, reason=_exchanged(state, vf.address, known))
    return _Answer(vf.address, strong=answer.strong)


def _in_slot(key: str, known: _Known, alike: Sequence[Function]) -> Function | None:
    """A card that never showed anything to be told by is the one in its slot."""
    wanted = known.get("slot", "")
    if not wanted or _COUNTED_SLOT.fullmatch(wanted) or any(known.get(name) for name in STRONG):
        return None
    return next((f for f in alike if f.slot == wanted and _devfn(f.address) == _devfn(key)), None)


def _unproven(known: _Known, key: str, here: Function, alike: Sequence[Function]) -> _Answer:
    """The right kind of card in the right place, which shows nothing to be told by."""
    present = {function.address for function in alike}
    elsewhere = known.get("slot") and here.slot and known["slot"] != here.slot and not _COUNTED_SLOT.fullmatch(here.slot)
    if elsewhere or not present.issuperset(known.get("peers", ())):
        reason = (
            f"{key}: a device of the declared kind is there, but others of its kind are not where they were, and it "
            "shows nothing to be told by, so it was left alone. Run the collection again."
        )
        return _Answer(None, reason=reason, uncertain=True)
    hidden = [name for name in STRONG if known.get(name)]
    if hidden and len(present) > 1 and not drivers.is_vfio(here.driver):
        reason = (
            f"{key}: nobody can tell whether it is the declared device: it does not show its {' or '.join(hidden)} now, "
            f"and there are others of its kind. {_way_to_show(known, here)}, then run again."
        )
        return _Answer(None, reason=reason, uncertain=True)
    return _Answer(key)


def _way_to_show(known: _Known, here: Function) -> str:
    if here.driver and known.get("ifname") and not here.netdevs:
        return f"Bring its network device {known['ifname']} back from the network namespace that it is in"
    return "Load its own driver"


def _exchanged(state: State, address: str, known: _Known) -> str:
    function = state.functions[address]
    now = {"ids": ids(function), **_shown(state, function)}
    names = ["ids", *_differing(state, known, function)] if known.get("ids") != now["ids"] else _differing(state, known, function)
    what = ", ".join(f"{name} {now[name]} instead of {known.get(name)}" for name in names)
    return f"{address}: another device is there now ({what}), so it was left alone. Run the collection again."


# --- Evidence ------------------------------------------------------------------------------------------------------


def _alike(state: State, wanted: str) -> list[Function]:
    """All whole functions of a kind."""
    whole = (f for f in state.functions.values() if f.physfn is None and f.bus == sysfs.PCI)
    return [function for function in whole if ids(function) == wanted]


def _shown(state: State, function: Function) -> dict[str, str]:
    mac = next((state.netdevs[name].mac for name in function.netdevs if name in state.netdevs and not state.netdevs[name].made_up), "")
    if function.bus != sysfs.PCI:
        # A simulated device may have another random one at each birth.
        mac = ""
    return {"serial": function.serial, "mac": mac, "dsn": function.dsn}


def _confirmed(state: State, known: _Known, key: str, function: Function) -> bool:
    return any(_equal(name, known, key, state, function) for name in STRONG)


def _equal(name: str, known: _Known, key: str, state: State, function: Function) -> bool:
    if not known.get(name) or _shown(state, function)[name] != known[name]:
        return False
    # The functions of one card share its Device Serial Number (PCI Express Base Specification, 7.9.3).
    return name != "dsn" or _devfn(function.address) == _devfn(key)


def _differing(state: State, known: _Known, function: Function) -> list[str]:
    now = _shown(state, function)
    return [name for name in STRONG if known.get(name) and now[name] and now[name] != known[name]]


def _devfn(address: str) -> str:
    """Device and function number: the card's own, whatever its bus is called."""
    return address.rpartition(":")[2]


def described(entry: Mapping[str, Any]) -> str:
    """What names the card of a record, for a sentence."""
    known = entry["identity"]
    name = next((name for name in (*STRONG, "slot") if known.get(name)), None)
    return f"{name} {known[name]}" if name else f"ids {known.get('ids')}"
