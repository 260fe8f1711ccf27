# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Guests on stations in hardware (the model vmdq): libvirt makes a macvtap at the guest's start and takes it away at its end, and the port
gives it a pool if it has one left. Where it has none, the kernel forwards it in software without a word (vmdq/port.py)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import EngineError
from ..host import Host
from ..model import Action, Refusal, State
from ..vmdq import pools, reading
from ..vmdq import port as ports
from .virt import Domain
from .wish import Wish

MODEL = "vmdq"


def read(host: Host, state: State, wishes: Sequence[Wish]) -> State:
    """The state with what ethtool and bridge say of the ports that such devices are on."""
    parents = {item["parent"] for wish in wishes for item in _items(wish) if "parent" in item}
    owners = [f.address for f in state.functions.values() if parents.intersection(f.netdevs)]
    return reading.of_ports(host, state, {address: frozenset(("stations",)) for address in owners})


def _items(wish: Wish) -> list[Mapping[str, Any]]:
    return [item for item in wish.get("network", ()) if item["model"] == MODEL] if wish.get("state") != "absent" else []


def check(state: State, domains: Mapping[str, Domain], wishes: Sequence[Wish]) -> list[Refusal]:
    """Has each port the feature on, and a pool for each device that comes to it?"""
    refusals: list[Refusal] = []
    coming: dict[str, int] = {}
    for wish in wishes:
        domain = domains.get(str(wish["name"]))
        running = domain is not None and domain.active
        for number, item in enumerate(wish.get("network", ())):
            if item["model"] != MODEL:
                continue
            address, wrong = _port(state, item)
            if wrong is None and wish["state"] == "running" and not (running and domain and item["mac"] in domain.live.lower()):
                coming[address] = coming.get(address, 0) + 1
                wrong = _full(state, address, item["parent"], coming[address])
            if wrong:
                refusals.append(Refusal(str(wish["name"]), f"network[{number}]: {wrong[0]}", f"{wrong[1]} Nothing was changed."))
    return refusals


def _port(state: State, item: Mapping[str, Any]) -> tuple[str, tuple[str, str] | None]:
    parent = item["parent"]
    address = next((f.address for f in state.functions.values() if parent in f.netdevs), "")
    if item.get("mode") == "passthrough":
        return address, ("the mode passthrough has no filter by destination, so the kernel never gives it a pool.", "Take another mode, or the model macvtap.")
    if not address:
        return address, (f"{parent} is no port of a card on this host.", "Name one, or take the model macvtap.")
    features = ports.facts_of(state, address).get("features", {})
    if "error" in features:
        return address, (f"whether {parent} can offload stations cannot be read: {features['error']}.", "Install ethtool, or take the model macvtap.")
    if not features.get("on"):
        said = "off [fixed]" if features.get("fixed") else "off"
        reason = f"{reading.FEATURE} of {parent} is {said}, so a station of it would be forwarded in software."
        return address, (reason, "Switch it on (offload: true in vmdq_devices), or take the model macvtap.")
    return address, None


def _full(state: State, address: str, parent: str, coming: int) -> tuple[str, str] | None:
    function = state.functions[address]
    wrong = pools.too_few_queues(state, function)
    if wrong:
        return wrong[0], f"{wrong[1]} (queues in vmdq_devices), or take the model macvtap."
    vfs = pools.vfs_of(function)
    limit, held = pools.capacity(state, function), ports.others(state, function, parent) + vfs
    if limit is None or held + coming <= limit:
        return None
    who = ", ".join([*ports.holders(state, function, parent), *([f"{vfs} VFs"] if vfs else [])]) or "nobody"
    return f"{parent} has no pool left for it: {limit} in all, {held} held by {who}.", "Take another station away, or take the model macvtap."


def with_proof(actions: Iterable[Action], wishes: Sequence[Wish]) -> list[Action]:
    """The steps by which such a device comes to life look afterwards whether it has its pool."""
    devices = {str(wish["name"]): {item["mac"]: item["parent"] for item in _items(wish)} for wish in wishes}
    found = []
    for action in actions:
        mine = devices.get(action.unit, {})
        if action.kind == "attach_device":
            mine = {mac: parent for mac, parent in mine.items() if mac in action.args["xml"].lower()}
        if mine and action.kind in ("start_guest", "attach_device"):
            action = replace(action, args={**action.args, "stations": mine})
        found.append(action)
    return found


def prove(host: Host, stations: Mapping[str, str]) -> None:
    """MAC -> port: each has a pool. Raises EngineError for one that has none."""
    table = reading.fdb(host) if stations else {}
    for mac, parent in stations.items():
        if mac in table.get(parent, ()) or not reading.pools(host.files, parent):
            held = reading.pools(host.files, parent)
            raise EngineError(
                f"its station {mac} on {parent} is forwarded in software: the port gave it no pool ({held} are held). Take another station away, or "
                "take the model macvtap."
            )
