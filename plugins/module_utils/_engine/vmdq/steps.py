# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The steps on a port: its numbers of queues, its feature, one station. Each is read back; what the kernel does not say is asked of
the port's forwarding table and of its queues' files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import link
from ..errors import EngineError
from ..host import Host
from . import reading
from .port import KINDS

Args = Mapping[str, Any]


# --- Queues ----------------------------------------------------------------------------------------------------------


def set_queues(host: Host, args: Args) -> None:
    _set_queues(host, args, args["to"])


def undo_queues(host: Host, args: Args) -> None:
    _set_queues(host, args, args["from"])


def _set_queues(host: Host, args: Args, wanted: Mapping[str, int]) -> None:
    netdev = link.netdev_now(host, args)
    now = reading.queues(host, netdev).get("now", {})
    if all(now.get(kind) == number for kind, number in wanted.items()):
        return
    words = [word for kind, number in wanted.items() for word in (kind, str(number))]
    _do(host, ["ethtool", "-L", netdev, *words])
    now = reading.queues(host, netdev).get("now", {})
    wrong = [f"{kind} {now.get(kind)} instead of {number}" for kind, number in wanted.items() if now.get(kind) != number]
    if wrong:
        raise EngineError(f"ethtool said yes, but {netdev} has {', '.join(wrong)}. Look at the kernel log.")


# --- The feature -----------------------------------------------------------------------------------------------------


def set_offload(host: Host, args: Args) -> None:
    _set_offload(host, args, args["to"])


def undo_offload(host: Host, args: Args) -> None:
    """Stations that were in hardware do not come back by themselves."""
    if _set_offload(host, args, args["from"]) and args["from"]:
        lower = link.netdev_now(host, args)
        for name in args["stations"]:
            if _look(host, name).get("lower") == lower:
                _batch(host, [f"link set dev {name} down", f"link set dev {name} up"])


def _set_offload(host: Host, args: Args, on: bool) -> bool:
    """Was anything to be done?"""
    netdev = link.netdev_now(host, args)
    if reading.features(host, netdev).get("on") == on:
        return False
    _do(host, ["ethtool", "-K", netdev, reading.FEATURE, "on" if on else "off"])
    if reading.features(host, netdev).get("on") != on:
        raise EngineError(f"ethtool said yes, but {reading.FEATURE} of {netdev} is as it was. Look at the kernel log.")
    return True


# --- A station -------------------------------------------------------------------------------------------------------


def set_station(host: Host, args: Args) -> None:
    """Make a station, change it or take it away; none of the others is touched."""
    lower, name, wanted = link.netdev_now(host, args), args["name"], args["to"]
    before = _look(host, name)
    if before and (before["kind"] not in KINDS or before["lower"] != lower):
        # Between the plan and this step: what has the name now is not ours to change, least of all to take away.
        raise EngineError(f"{name} is something else by now{' (a ' + before['kind'] + ')' if before['kind'] else ''}, and was left alone. Run again.")
    _batch(host, lines(lower, name, before, wanted, args["again"]))
    now = _look(host, name)
    if wanted is None:
        if now:
            raise EngineError(f"{name} is still there although it was taken away. Look at the kernel log.")
        return
    wrong = [f"{key} {link.shown(now.get(key))} instead of {link.shown(value)}" for key, value in wanted.items() if now.get(key) != value]
    if wrong:
        raise EngineError(f"the kernel said yes, but {name} has {', '.join(wrong)}. Look at the kernel log.")
    if args["offload"] and not _is_in_hardware(host, lower, wanted["mac"], args["pools"]):
        count = reading.pools(host.files, lower)
        raise EngineError(
            f"{name} is forwarded in software: {lower} gave it no pool. {count} pool{'' if count == 1 else 's'} of it are held by stations "
            f"({', '.join(args['holders']) or 'none of them by others'}). Take another station away, or set require_offload to false."
        )


def undo_station(host: Host, args: Args) -> None:
    """As it was. One that was in hardware is set down and up where it is not any more: only then it asks for a pool."""
    lower, name, was = link.netdev_now(host, args), args["name"], args["was"]
    if not lower:
        # The port is gone, and its stations went with it.
        return
    now = _look(host, name)
    if now and now["lower"] != lower:
        return
    _batch(host, lines(lower, name, now, was, False))
    if was and args["was_offloaded"] and not _is_in_hardware(host, lower, was["mac"], 1):
        _batch(host, lines(lower, name, _look(host, name), was, True))


def lines(lower: str, name: str, now: Mapping[str, Any], wanted: Mapping[str, Any] | None, again: bool) -> list[str]:
    """Lines of `ip -batch` from what a station is ({}: not there) to what it shall be (None: gone). `again`: down and up, as a pool is
    asked for when a station goes up; so is the filter for its address made, which a change while it is up leaves as it was."""
    found: list[str] = []
    if now and (wanted is None or is_other(now, wanted)):
        found, now = [f"link del dev {name}"], {}
    if wanted is None:
        return found
    goes_up = wanted["up"]
    if not now:
        found.append(
            f"link add link {lower} name {name} address {wanted['mac']} mtu {wanted['mtu']} type {wanted['kind']} mode {wanted['mode']}"
        )
    else:
        down = now["up"] and (again or now["mac"] != wanted["mac"] or not wanted["up"])
        found += [f"link set dev {name} down"] if down else []
        found += [f"link set dev {name} address {wanted['mac']}"] if now["mac"] != wanted["mac"] else []
        found += [f"link set dev {name} mtu {wanted['mtu']}"] if now["mtu"] != wanted["mtu"] else []
        found += [f"link set dev {name} type {wanted['kind']} mode {wanted['mode']}"] if now["mode"] != wanted["mode"] else []
        goes_up = wanted["up"] and (down or not now["up"])
    return found + ([f"link set dev {name} up"] if goes_up else [])


def is_other(now: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Has it to be made anew? The kind is for life, and so is passthru (macvlan_changelink)."""
    return now["kind"] != wanted["kind"] or (now["mode"] != wanted["mode"] and "passthru" in (now["mode"], wanted["mode"]))


def _look(host: Host, name: str) -> dict[str, Any]:
    """A station as it is now; {} where there is none of this name."""
    said = link.read(host).get(name)
    return station(said) if said else {}


def station(said: Mapping[str, Any]) -> dict[str, Any]:
    """A station out of one link of `ip -j -d`."""
    info = said.get("linkinfo") or {}
    return {
        "kind": info.get("info_kind", ""),
        "lower": said.get("link", ""),
        "mac": (said.get("address") or "").lower(),
        "mode": (info.get("info_data") or {}).get("mode", ""),
        "mtu": said.get("mtu", 0),
        "up": "UP" in said.get("flags", []),
    }


def _is_in_hardware(host: Host, lower: str, mac: str, pools: int) -> bool:
    """`pools` stations claim a pool by now."""
    return mac not in reading.fdb(host).get(lower, frozenset()) and reading.pools(host.files, lower) >= pools


def _batch(host: Host, todo: Sequence[str]) -> None:
    if not todo:
        return
    code, _out, err = host.run(["ip", "-batch", "-"], "".join(f"{line}\n" for line in todo))
    if code:
        failed, rest = link.failures(err)
        number, said = min(failed.items()) if failed else (0, rest or str(code))
        raise EngineError(f"ip {todo[number]}: {said}. Look at the kernel log.")


def _do(host: Host, argv: list[str]) -> None:
    code, _out, err = host.run(argv)
    if code:
        raise EngineError(f"{' '.join(argv)}: {' '.join(err.split()) or f'exit status {code}'}. Look at the kernel log.")
