# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What ethtool, bridge and the queues' files say of a port.

Costs, for ports that a wish names alone: `ethtool -k` and, where numbers of queues are wished, `ethtool -l` for each port (the feature is
in no file of sysfs), and one `bridge fdb show` a call. Where the number of pools follows from that of queues (i40e), `ethtool -l` as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from .. import drivers, modprobe
from ..errors import EngineError
from ..host import Files, Host
from ..model import Function, State
from . import layouts, port

FEATURE = "l2-fwd-offload"
QUEUES = ("combined", "rx", "tx")
#: The parameter by which drivers of old take the number of pools of each port.
PARAMETER = "VMDQ"


def features(host: Host, netdev: str) -> dict[str, Any]:
    """The feature of a network device: 'on', 'fixed'; or {'error': what was said}."""
    code, out, err = host.run(["ethtool", "-k", netdev])
    if code == 127:
        return {"error": "the command ethtool is not there (package ethtool)"}
    line = re.search(rf"^{FEATURE}: (on|off)(.*)$", out, re.MULTILINE)
    if code or not line:
        return {"error": f"ethtool -k {netdev}: {' '.join(err.split()) or f'it shows no {FEATURE}'}"}
    return {"on": line.group(1) == "on", "fixed": "fixed" in line.group(2)}


def queues(host: Host, netdev: str) -> dict[str, Any]:
    """Kind of queue -> number now, and the largest; what the driver has none of is not there. Or {'error': what was said}."""
    code, out, err = host.run(["ethtool", "-l", netdev])
    if code == 127:
        return {"error": "the command ethtool is not there (package ethtool)"}
    limits, _heading, current = out.partition("Current hardware settings:")
    if code or not current:
        return {"error": f"ethtool -l {netdev}: {' '.join(err.split()) or f'exit status {code}'}"}
    return {"max": _counts(limits), "now": _counts(current)}


def _counts(text: str) -> dict[str, int]:
    """'n/a' and, of older ethtools, 0 where there is none of a kind."""
    found = {kind.lower(): int(number) for kind, number in re.findall(r"^(RX|TX|Combined):\s*(\d+)$", text, re.MULTILINE)}
    return {kind: found[kind] for kind in QUEUES if kind in found}


def fdb(host: Host) -> dict[str, frozenset[str]]:
    """Port -> the addresses that it listens to for others in software: those of stations without a pool are among them. EngineError where nobody
    can say: without it a station in software looks like one in hardware."""
    code, out, err = host.run(["bridge", "-j", "fdb", "show"])
    try:
        entries = json.loads(out) if code == 0 else None
    except ValueError:
        entries = None
    if entries is None:
        raise EngineError(f"bridge -j fdb show: {' '.join(err.split()) or f'exit status {code}'}")
    found: dict[str, set[str]] = {}
    for entry in entries:
        if "self" in entry.get("flags", ()) and entry.get("state") == "permanent":
            found.setdefault(entry.get("ifname", ""), set()).add(str(entry.get("mac", "")).lower())
    return {name: frozenset(macs) for name, macs in found.items()}


def pools(files: Files, netdev: str) -> int:
    """Pools that stations hold, whatever namespace they are in: a queue of such a pool has the pool's number behind its traffic class
    ('0-1'; traffic_class_show in net/core/net-sysfs.c). EINVAL for one that belongs to nobody."""
    folder = f"/sys/class/net/{netdev}/queues"
    classes = [files.attr(f"{folder}/{name}/traffic_class") or "" for name in files.names(folder) if name.startswith("tx-")]
    return len({text.partition("-")[2] for text in classes if "-" in text})


def most_vectors(files: Files, address: str, numbers: Mapping[str, Any]) -> int | None:
    """Interrupt vectors that a port's own queues have at most: not more than processors, and one is for everything else (i40e_init_msix)."""
    most = numbers.get("max", {}).get("combined")
    processors = _count(files.attr("/sys/devices/system/cpu/online") or "")
    vectors = len(files.names(f"/sys/bus/pci/devices/{address}/msi_irqs"))
    found = [number for number in (most, processors, vectors - 1) if number and number > 0]
    return min(found) if most and processors else None


def _count(ranges: str) -> int:
    """How many '0-3,8' are."""
    pairs = [part.partition("-") for part in ranges.split(",") if part]
    return sum(int(last or first) - int(first) + 1 for first, _dash, last in pairs)


def of_ports(host: Host, state: State, wanted: Mapping[str, frozenset[str]]) -> State:
    """The state with what was asked of ports: address -> 'stations', 'queues', 'pools'."""
    found: dict[str, dict[str, Any]] = {}
    table: dict[str, frozenset[str]] | None = None
    for address, parts in wanted.items():
        netdev = port.netdev_of(state, state.functions[address]) if address in state.functions else None
        if netdev is None:
            if "pools" in parts and address in state.functions:
                # The parameter is a file's, whether or not the driver is there.
                found[address] = parameter(host, state.functions[address])
            continue
        module = drivers.module_of(state.functions[address].driver or "")
        facts: dict[str, Any] = {"parameter": host.files.attr(f"{modprobe.SYS}/{module}/parameters/{PARAMETER}")}
        if "stations" in parts:
            facts["features"] = features(host, netdev.name)
            facts["pools"] = pools(host.files, netdev.name)
            if facts["pools"] or port.stations_on(state, netdev.name):
                try:
                    table = fdb(host) if table is None else table
                    facts["fdb"] = table.get(netdev.name, frozenset())
                except EngineError as error:
                    facts["unproven"] = str(error)
        by_vectors = layouts.of_driver(state.functions[address].driver).of_vectors is not None and "stations" in parts
        if "queues" in parts or by_vectors:
            facts["queues"] = queues(host, netdev.name)
        if by_vectors:
            facts["vectors"] = most_vectors(host.files, address, facts["queues"])
        if "pools" in parts:
            facts.update(parameter(host, state.functions[address]))
        found[address] = facts
    return state.with_more(port.NAME, found) if found else state


def parameter(host: Host, function: Function) -> dict[str, Any]:
    """The module of a port's driver, with what its parameter is now and at the next load; or why nobody knows."""
    name = drivers.module_of(function.driver or function.native or "")
    try:
        return {"modules": modprobe.read(host, {name: {PARAMETER: "1"}}) if name else {}}
    except EngineError as error:
        return {"modules": {}, "no_module": str(error)}
