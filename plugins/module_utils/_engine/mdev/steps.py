# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The steps on mediated devices: their definitions, through mdevctl; the devices themselves.

A device that somebody uses is not removed by the kernel, and whoever asked for it waits, unkillably, until it is let go
(docs/kernel-facts.md): so that is one write with a limit, and not mdevctl, which would be left behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import security, sysfs
from ..errors import EngineError, explain
from ..host import Host
from . import ccw, facts

#: Seconds for the kernel to make or remove a device that nobody uses. NVIDIA's manager takes seconds for one.
LIMIT = 30.0
#: Seconds for a driver to let a subchannel go or to take it.
DRIVER_LIMIT = 60.0

Args = Mapping[str, Any]


# --- Definitions ---------------------------------------------------------------------------------------------------


def define(host: Host, args: Args) -> None:
    _set_definition(host, args, args["to"])


def undo_define(host: Host, args: Args) -> None:
    _set_definition(host, args, args["from"])


def _set_definition(host: Host, args: Args, wanted: Mapping[str, Any] | None) -> None:
    parent, uuid = args["parent"], args["uuid"]
    now = facts.definition(host.files, parent, uuid)
    if now == wanted:
        return
    if now and (now.get("broken") or wanted is None or now["type"] != wanted.get("type")):
        # Not every version of mdevctl modifies a type.
        _drop(host, args, broken="broken" in now)
        now = None
    if wanted is not None and not wanted.get("broken"):
        _write(host, args, wanted, now)
        found = facts.definition(host.files, parent, uuid)
        if found != wanted:
            raise EngineError(f"mdevctl said yes, but {facts.DEFINED}/{parent}/{uuid} holds {found}. Look at that file.")


def _drop(host: Host, args: Args, broken: bool) -> None:
    if broken:
        # What is no JSON mdevctl does not know, so it cannot undefine it either.
        host.files.remove(f"{facts.DEFINED}/{args['parent']}/{args['uuid']}")
    else:
        _mdevctl(host, args, "undefine")


def _write(host: Host, args: Args, wanted: Mapping[str, Any], now: Mapping[str, Any] | None) -> None:
    """In words that every version of mdevctl knows; it takes one of them at a time (lab, 1.4)."""
    if now is None:
        _mdevctl(host, args, "define", "--type", wanted["type"], *(["--auto"] if wanted["autostart"] else []))
    elif now["autostart"] != wanted["autostart"]:
        _mdevctl(host, args, "modify", "--auto" if wanted["autostart"] else "--manual")
    had = now["attributes"] if now else []
    if had != wanted["attributes"]:
        for _attribute in had:
            _mdevctl(host, args, "modify", "--delattr")
        for attribute in wanted["attributes"]:
            _mdevctl(host, args, "modify", f"--addattr={attribute['name']}", f"--value={attribute['value']}")


def _mdevctl(host: Host, args: Args, verb: str, *words: str) -> None:
    code, out, err = host.run(["mdevctl", verb, "--uuid", args["uuid"], "--parent", args["parent"], *words])
    if code:
        raise EngineError(f"mdevctl {verb} said: {(err or out).strip() or code}.")


# --- Devices -------------------------------------------------------------------------------------------------------


def start(host: Host, args: Args) -> None:
    """Make a device, with its attributes in their order. mdevctl's own rule may have been faster."""
    if _is_there(host, args):
        return
    defined = facts.definition(host.files, args["parent"], args["uuid"]) if args["keeper"] else None
    if defined:
        _mdevctl(host, args, "start")
    else:
        _create(host, args)
    if not _is_there(host, args):
        raise EngineError("the kernel said yes, but the device is not there. Look at the kernel log.")


def _is_there(host: Host, args: Args) -> bool:
    if not host.files.exists(f"{facts.DEVICES}/{args['uuid']}"):
        return False
    found = facts.device(host.files, args["uuid"])
    if (found["parent"], found["type"]) != (args["parent"], args["type"]):
        raise EngineError(f"{args['uuid']} is there as {found['type']} of {found['parent']}: somebody made it meanwhile.")
    return True


def _create(host: Host, args: Args) -> None:
    folder = f"{facts.PARENTS}/{args['parent']}/mdev_supported_types/{args['type']}"
    try:
        host.files.write(f"{folder}/create", args["uuid"], limit=LIMIT)
        for attribute in args["attributes"]:
            _set_attribute(host, args["uuid"], attribute["name"], attribute["value"])
    except OSError as error:
        raise EngineError(f"the kernel answered {explain(error)}. Look at the kernel log.") from None


def _set_attribute(host: Host, uuid: str, name: str, value: str) -> None:
    try:
        host.files.write(f"{facts.DEVICES}/{uuid}/{name}", value, limit=LIMIT)
    except OSError as error:
        raise EngineError(f"its attribute {name} took {value!r} not: the kernel answered {explain(error)}.") from None


def undo_start(host: Host, args: Args) -> None:
    if host.files.exists(f"{facts.DEVICES}/{args['uuid']}") and facts.parent_of(host.files, args["uuid"]) == args["parent"]:
        _remove(host, args["uuid"])


def stop(host: Host, args: Args) -> None:
    if host.files.exists(f"{facts.DEVICES}/{args['uuid']}"):
        _remove(host, args["uuid"])


def undo_stop(host: Host, args: Args) -> None:
    start(host, args)


def _remove(host: Host, uuid: str) -> None:
    try:
        host.files.write(f"{facts.DEVICES}/{uuid}/remove", "1", limit=LIMIT)
    except OSError as error:
        raise EngineError(f"the kernel answered {explain(error)} to the removal of {uuid}. Look at the kernel log.") from None
    if not host.wait(lambda: not host.files.exists(f"{facts.DEVICES}/{uuid}"), LIMIT):
        raise EngineError(f"the kernel said yes, but {uuid} is still there. Look at the kernel log.")


# --- Subchannels ---------------------------------------------------------------------------------------------------


def give_subchannel(host: Host, args: Args) -> None:
    _set_driver(host, args["subchannel"], args["to"], args["override"])


def undo_give_subchannel(host: Host, args: Args) -> None:
    _set_driver(host, args["subchannel"], args["from"], args["from_override"])


def _set_driver(host: Host, name: str, driver: str | None, override: str | None) -> None:
    """The override first: from then on no other driver can take the subchannel."""
    path = sysfs.device(name)
    if driver == ccw.DRIVER:
        _load(host)
    try:
        host.files.write(f"{path}/driver_override", override or "\n")
        now = host.files.link(f"{path}/driver")
        if now and now != driver:
            host.files.write(f"{path}/driver/unbind", name, limit=DRIVER_LIMIT)
        if driver and now != driver:
            host.files.write(f"{ccw.DRIVERS}/{driver}/bind", name, limit=DRIVER_LIMIT)
    except OSError as error:
        advice = f" {ccw.DRIVER} takes no QDIO subchannels." if driver == ccw.DRIVER else ""
        raise EngineError(f"the kernel answered {explain(error)}.{advice} Look at the kernel log.") from None
    found = host.files.link(f"{path}/driver")
    if found != driver:
        raise EngineError(f"{name} has the driver {found or 'none'} now, not {driver or 'none'}. Look at the kernel log.")
    if driver == ccw.DRIVER and not host.wait(lambda: host.files.exists(f"{facts.PARENTS}/{name}"), DRIVER_LIMIT):
        raise EngineError(f"{ccw.DRIVER} has {name}, but did not register it for mediated devices. Look at the kernel log.")


def _load(host: Host) -> None:
    if host.files.exists(f"{ccw.DRIVERS}/{ccw.DRIVER}"):
        return
    code, _out, err = host.run(["modprobe", "--", ccw.DRIVER])
    if code or not host.files.exists(f"{ccw.DRIVERS}/{ccw.DRIVER}"):
        why = security.why_refused(host.files, err) or "Install or repair the module."
        raise EngineError(f"modprobe {ccw.DRIVER} failed: {err.strip() or code}. {why}")
