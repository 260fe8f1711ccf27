# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""devlink and ethtool as the engine uses them: what they say, and the steps that they do (devlink-dev(8), ethtool(8))."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from . import sysfs
from .errors import EngineError
from .host import Host
from .read import REPRESENTOR

#: Attributes of an eswitch: key of a wish -> what devlink calls it (Documentation/networking/devlink/devlink-eswitch-attr.rst).
ATTRIBUTES = {"mode": "mode", "inline_mode": "inline-mode", "encap_mode": "encap-mode"}

#: Seconds until the port is there again, with its switch's id, after the mode has changed or the driver has started anew.
UPLINK_LIMIT = 30.0

#: Seconds in which a new network device gets its name from udev.
RENAME_LIMIT = 5.0

Args = Mapping[str, Any]


# --- Reading -------------------------------------------------------------------------------------------------------


def eswitch(host: Host, address: str) -> dict[str, Any]:
    """Attribute -> value of a device's eswitch; {'error': what was said} where it has none."""
    handle = sysfs.devlink(address)
    answer, wrong = _ask(host, ["dev", "eswitch", "show", handle], "dev")
    if wrong:
        return {"error": wrong}
    found = answer.get(handle, {})
    return {key: found[name] for key, name in ATTRIBUTES.items() if name in found}


def params(host: Host) -> tuple[dict[str, dict[str, dict[str, Any]]], str | None]:
    """Handle -> parameter -> cmode -> value, of all devices of the host; and what went wrong."""
    answer, wrong = _ask(host, ["dev", "param", "show"], "param")
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for handle, listed in answer.items():
        for param in listed:
            values = {value["cmode"]: value.get("value") for value in param.get("values", []) if "cmode" in value}
            found.setdefault(handle, {})[param["name"]] = values
    return found, wrong


def _ask(host: Host, words: list[str], key: str) -> tuple[Mapping[str, Any], str | None]:
    code, out, err = host.run(["devlink", "-j", *words])
    if code == 127:
        return {}, "the command devlink is not there (package iproute2)"
    try:
        answer = json.loads(out or "{}")
    except ValueError:
        answer = None
    if code or not isinstance(answer, dict):
        return {}, f"devlink {' '.join(words)}: {_said(code, err)}"
    found = answer.get(key, {})
    return (found if isinstance(found, dict) else {}), None


def _said(code: int, err: str) -> str:
    return " ".join(err.split()) or f"exit status {code}"


def tc_offload(host: Host, netdev: str) -> dict[str, Any]:
    """The feature hw-tc-offload of a network device: 'on', 'fixed'; or {'error': what was said}."""
    code, out, err = host.run(["ethtool", "-k", netdev])
    if code == 127:
        return {"error": "the command ethtool is not there (package ethtool)"}
    line = re.search(r"^hw-tc-offload: (on|off)(.*)$", out, re.MULTILINE)
    if code or not line:
        return {"error": f"ethtool -k {netdev}: {_said(code, err)}"}
    return {"on": line.group(1) == "on", "fixed": "fixed" in line.group(2)}


# --- Steps ---------------------------------------------------------------------------------------------------------


def set_eswitch(host: Host, args: Args) -> None:
    """One attribute of an eswitch. Changing the mode may take the port away for a moment and leave it down."""
    _set_eswitch(host, args, args["to"])


def undo_eswitch(host: Host, args: Args) -> None:
    """A change of the mode that failed half way may show the old mode, with the port down."""
    if eswitch(host, args["address"]).get(args["key"]) != args["from"]:
        _set_eswitch(host, args, args["from"])
    elif args["key"] == "mode":
        _bring_back(host, args, need_switch_id=args["from"] == "switchdev" and args["uplink"])


def _set_eswitch(host: Host, args: Args, value: str) -> None:
    address, name = args["address"], ATTRIBUTES[args["key"]]
    if eswitch(host, address).get(args["key"]) != value:
        _do(host, ["devlink", "dev", "eswitch", "set", sysfs.devlink(address), name, value])
    now = eswitch(host, address).get(args["key"])
    if now != value:
        raise EngineError(f"devlink said yes to {name} {value}, but shows {now}. Look at the kernel log.")
    if args["key"] == "mode":
        _bring_back(host, args, need_switch_id=value == "switchdev" and args["uplink"])


def _bring_back(host: Host, args: Args, need_switch_id: bool = False) -> None:
    """Wait for the port, and bring it up if it was: the network device may be another one now."""
    if not args["netdev"]:
        return
    address = args["address"]
    if not host.wait(lambda: _uplink(host, address, need_switch_id) is not None, UPLINK_LIMIT):
        raise EngineError(f"its port is not there again within {UPLINK_LIMIT:g} s. Look at the kernel log.")
    if args["up"] and not host.wait(lambda: _up(host, address), UPLINK_LIMIT):
        raise EngineError("its port could not be brought up again. Look at the kernel log.")


def _up(host: Host, address: str) -> bool:
    """Under the name that it has now: udev gives a new network device another one at any moment."""
    return host.run(["ip", "link", "set", "dev", _uplink(host, address) or "", "up"])[0] == 0


def _uplink(host: Host, address: str, need_switch_id: bool = False) -> str | None:
    """The network device that is the PF's own port."""
    for name in host.files.names(f"{sysfs.device(address)}/net"):
        folder = f"/sys/class/net/{name}"
        own = not REPRESENTOR.fullmatch(host.files.attr(f"{folder}/phys_port_name") or "")
        if own and (not need_switch_id or host.files.attr(f"{folder}/phys_switch_id")):
            return name
    return None


def set_param(host: Host, args: Args) -> None:
    """One parameter that needs no reload."""
    _set_params(host, args, "to")


def undo_param(host: Host, args: Args) -> None:
    _set_params(host, args, "from")


def reload(host: Host, args: Args) -> None:
    """Parameters of cmode driverinit, and the reload by which the driver takes them. devlink shows such a value as soon as it is set, so a value
    without its reload would look done: both are one step."""
    _set_params(host, args, "to")
    try:
        _do(host, ["devlink", "dev", "reload", sysfs.devlink(args["address"])])
    except EngineError:
        # A driver that forbids it runs with the old values: with those set back, all is as it was. One that failed half way may come back by another try.
        _set_params(host, args, "from")
        host.run(["devlink", "dev", "reload", sysfs.devlink(args["address"])])
        raise
    _bring_back(host, args)
    _keep_offload(host, args)


def undo_reload(host: Host, args: Args) -> None:
    """A reload that failed half way has its old values again, and has left the port down."""
    if _set_params(host, args, "from"):
        _do(host, ["devlink", "dev", "reload", sysfs.devlink(args["address"])])
    _bring_back(host, args)
    _keep_offload(host, args)


def _keep_offload(host: Host, args: Args) -> None:
    """hw-tc-offload as it was before the reload, which starts with the driver's own setting: what nobody wishes stays as it is."""
    if args["netdev"] and args.get("offload") is not None:
        _set_offload(host, args, args["offload"])


def _set_params(host: Host, args: Args, which: str) -> bool:
    """Was anything to be set?"""
    handle = sysfs.devlink(args["address"])
    changed = False
    for param in args["params"]:
        name, cmode, value = param["name"], param["cmode"], param[which]
        if _value(host, handle, name, cmode) == value:
            continue
        _do(host, ["devlink", "dev", "param", "set", handle, "name", name, "value", value, "cmode", cmode])
        changed = True
        if _value(host, handle, name, cmode) != value:
            raise EngineError(f"devlink said yes to {name} {value} ({cmode}), but shows another value. Look at the kernel log.")
    return changed


def _value(host: Host, handle: str, name: str, cmode: str) -> str | None:
    found, wrong = params(host)
    if wrong:
        raise EngineError(f"{wrong}. Look at the kernel log.")
    value = found.get(handle, {}).get(name, {}).get(cmode)
    return None if value is None else word(value)


def word(value: Any) -> str:
    """A value as devlink takes it on its command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def set_offload(host: Host, args: Args) -> None:
    _set_offload(host, args, args["to"])


def undo_offload(host: Host, args: Args) -> None:
    if _uplink(host, args["address"]):
        _set_offload(host, args, args["from"])


def _set_offload(host: Host, args: Args, on: bool) -> None:
    said = ""

    def done() -> bool:
        """Under the name that the port has now: udev gives a new network device another one at any moment."""
        nonlocal said
        netdev = _uplink(host, args["address"]) or ""
        if tc_offload(host, netdev).get("on") == on:
            return True
        code, _out, err = host.run(["ethtool", "-K", netdev, "hw-tc-offload", "on" if on else "off"])
        said = _said(code, err) if code else "ethtool said yes, but it is as it was"
        return tc_offload(host, netdev).get("on") == on

    if not host.wait(done, RENAME_LIMIT):
        raise EngineError(f"hw-tc-offload cannot be set: {said}. Look at the kernel log.")


def _do(host: Host, argv: list[str]) -> None:
    code, _out, err = host.run(argv)
    if code:
        raise EngineError(f"{' '.join(argv)}: {_said(code, err)}. {_advice(err)}")


def _advice(err: str) -> str:
    for words, advice in _ADVICE.items():
        if words in err:
            return advice
    return "Look at the kernel log."


#: What devlink says -> what to do.
_ADVICE = {
    "Operation not supported": "The driver or the card's firmware cannot do it as things are now; the kernel log may say why.",
    "Device or resource busy": "Something holds the switch (offloaded rules, a VF's user, a bond); let it go, then run again.",
}
