# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The embedded switch of a PF, its devlink parameters and the offload of traffic control rules to it.

Rules of the kernel: Documentation/networking/devlink (eswitch attributes, parameters and their cmodes, reload) and representors.rst. The order in
which a driver wants it is data: drivers.ESWITCH.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import devlink, drivers, guards, sysfs
from ..host import Host
from ..model import PREDICTED, Action, Function, Plan, Refusal, State
from ..resources import common
from ..resources.common import Target
from .port import Port

NAME = "eswitch"

#: Keys of a wish that this part follows.
KEYS = ("eswitch", "devlink_params", "hw_tc_offload")

LEGACY, SWITCHDEV = "legacy", "switchdev"


# --- Reading -------------------------------------------------------------------------------------------------------


def read_more(host: Host, state: State, targets: Sequence[Target]) -> State:
    """What devlink and ethtool say of the ports whose wish speaks of it, or spoke of it and is given back."""
    wanted = {}
    for target in targets:
        entry = common.stored_entry(state, "sriov", target.function.address)
        # What is given back is all that was ever touched, also what a later wish no longer named.
        wish = as_before(entry["origin"].get("pf", {}) if entry else {}) if target.absent else target.wish
        keys = [key for key in KEYS if wish.get(key) is not None]
        if keys and target.function.address in state.functions:
            wanted[target.function.address] = (keys, wish)
    if not wanted:
        return state
    named_params = any("devlink_params" in keys for keys, _wish in wanted.values())
    params, wrong = devlink.params(host) if named_params else ({}, None)
    return state.with_more(
        NAME,
        {address: _facts(host, state.functions[address], keys, wish, params, wrong) for address, (keys, wish) in wanted.items()},
    )


def _facts(
    host: Host,
    function: Function,
    keys: Sequence[str],
    wish: Mapping[str, Any],
    params: Mapping[str, Any],
    wrong: str | None,
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "eswitch" in keys or "devlink_params" in keys:
        # Of parameters as well: which of them can be set, and what a reload does, depends on the mode.
        found["eswitch"] = devlink.eswitch(host, function.address)
    if "devlink_params" in keys:
        found["params"] = {"error": wrong} if wrong else params.get(sysfs.devlink(function.address), {})
        found["named"] = sorted({param["name"] for param in wish["devlink_params"]})
    if "hw_tc_offload" in keys and function.netdevs:
        found["hw_tc_offload"] = devlink.tc_offload(host, function.netdevs[0])
    elif "devlink_params" in keys and function.netdevs:
        # Nobody wishes it, but a reload loses it: the step puts it back, and so does its undo.
        found["offload_before"] = devlink.tc_offload(host, function.netdevs[0])
    return found


def info(state: State, function: Function) -> dict[str, Any]:
    """What was read of a port, in the form of wishes. A parameter that has a permanent and another value stands there with both: what will be after
    the next boot, and what is."""
    facts = state.more.get(NAME, {}).get(function.address, {})
    found: dict[str, Any] = {}
    if facts.get("eswitch") and "error" not in facts["eswitch"]:
        found["eswitch"] = dict(facts["eswitch"])
    if facts.get("named") and "error" not in facts["params"]:
        found["devlink_params"] = [
            {"name": name, "cmode": cmode, "value": value}
            for name in facts["named"]
            for cmode, value in sorted(facts["params"].get(name, {}).items())
        ]
    if "on" in facts.get("hw_tc_offload", {}):
        found["hw_tc_offload"] = facts["hw_tc_offload"]["on"]
    return found


def representors(state: State, function: Function) -> list[dict[str, Any]]:
    """The network devices that stand for the VFs of a PF in switchdev mode."""
    return [
        {
            "netdev": name,
            "vf": _vf_index(state.netdevs[name].port_name),
            "port_name": state.netdevs[name].port_name,
            "switch_id": state.netdevs[name].switch_id,
        }
        for name in function.representors
        if name in state.netdevs
    ]


def _vf_index(port_name: str) -> int | None:
    """'pf0vf3' -> 3; a representor of something else has none."""
    _pf, found, index = port_name.partition("vf")
    return int(index) if found and index.isdigit() else None


# --- What the plan asks --------------------------------------------------------------------------------------------


def mode_now(port: Port) -> str | None:
    """The mode of the eswitch, where it was read."""
    mode = _eswitch(port).get("mode")
    return str(mode) if mode else None


def mode_wished(port: Port) -> str | None:
    """The mode that the eswitch shall have: what is unset stays."""
    mode = (port.wish.get("eswitch") or {}).get("mode") or mode_now(port)
    return str(mode) if mode else None


def legacy_calls_refused(port: Port) -> bool:
    """Will the calls that set a VF's rates by its PF (`ip link set PF vf N min_tx_rate`) be refused? In switchdev mode the representor is where
    that is done (netdevsim: nsim_set_vf_rate; mlx5 and ice alike). Read or not, representors tell as well."""
    return (mode_wished(port) or (SWITCHDEV if port.pf.representors else LEGACY)) != LEGACY


def clears_vfs(port: Port) -> bool:
    """Must the VFs that are there go before what is wished of the switch can be done?"""
    return bool(port.sriov.vfs) and (_reloads(port) or (_mode_changes(port) and not _order(port).with_vfs))


def _facts_of(port: Port) -> Mapping[str, Any]:
    facts: Mapping[str, Any] = port.state.more.get(NAME, {}).get(port.pf.address, {})
    return facts


def _eswitch(port: Port) -> Mapping[str, Any]:
    facts: Mapping[str, Any] = _facts_of(port).get("eswitch", {})
    return facts


def _order(port: Port) -> drivers.Eswitch:
    return drivers.ESWITCH.get(port.pf.driver or "", drivers.ESWITCH_UNKNOWN)


def _differing(port: Port, *cmodes: str) -> list[dict[str, str]]:
    """The wished parameters of these cmodes that have another value now."""
    found = []
    for param in port.wish.get("devlink_params") or []:
        now = _facts_of(port).get("params", {}).get(param["name"], {})
        value = devlink.word(param["value"])
        if param["cmode"] in cmodes and param["cmode"] in now and devlink.word(now[param["cmode"]]) != value:
            was = devlink.word(now[param["cmode"]])
            found.append({"name": param["name"], "cmode": param["cmode"], "from": was, "to": value})
    return found


def _reloads(port: Port) -> bool:
    return bool(_differing(port, "driverinit"))


def _via_legacy(port: Port) -> bool:
    """Is switchdev left and entered again, because something changes in legacy mode only?"""
    if mode_now(port) != SWITCHDEV or mode_wished(port) != SWITCHDEV:
        return False
    by_param = any(param["name"] in drivers.IN_LEGACY_ONLY for param in _differing(port, "runtime"))
    by_count = port.count != len(port.sriov.vfs) and _order(port).count_in_legacy
    return by_param or by_count or _reloads(port)


def _mode_changes(port: Port) -> bool:
    return mode_now(port) != mode_wished(port) or _via_legacy(port)


# --- Checking ------------------------------------------------------------------------------------------------------


def check(port: Port) -> list[Refusal]:
    """Can the driver and the card do what is wished?"""
    found = [*_check_eswitch(port), *_check_params(port), *_check_offload(port)]
    if not found and port.pf.representors and not port.wish.get("eswitch") and port.count != len(port.sriov.vfs):
        reason = "its eswitch is in switchdev mode (it has representors), and its number of VFs is to change: a driver may fall back to legacy mode then."
        found.append(port.wrong(reason, "Say which mode it shall have: eswitch: {mode: switchdev}."))
    return found


def _check_eswitch(port: Port) -> list[Refusal]:
    wished = {key: value for key, value in (port.wish.get("eswitch") or {}).items() if value is not None}
    if not wished:
        return []
    if _eswitch(port).get("error"):
        whose = f"its driver {port.pf.driver}" if port.pf.driver else "it has no driver, and the kernel without one"
        reason = f"{whose} has no eswitch to set ({_eswitch(port)['error']})."
        return [port.wrong(reason, "Leave eswitch unset for it.")]
    missing = [key for key in wished if key not in _eswitch(port)]
    if missing:
        reason = f"its eswitch has no {missing[0].replace('_', '-').replace('-mode', ' mode')} (devlink shows none)."
        return [port.wrong(reason, f"Leave eswitch.{missing[0]} unset for it.")]
    return []


def _check_params(port: Port) -> list[Refusal]:
    known = _facts_of(port).get("params", {})
    wished = port.wish.get("devlink_params") or []
    if wished and "error" in known:
        return [port.wrong(f"its devlink parameters cannot be read ({known['error']}).", "Leave devlink_params unset for it.")]
    seen = set()
    found = []
    for param in wished:
        key = (param["name"], param["cmode"])
        wrong = f"devlink_params names {key[0]} ({key[1]}) twice." if key in seen else _wrong_param(known, param)
        seen.add(key)
        if wrong:
            found.append(port.wrong(wrong, "`devlink dev param show` lists what there is."))
    return found


def _wrong_param(known: Mapping[str, Any], param: Mapping[str, Any]) -> str | None:
    name, cmode = param["name"], param["cmode"]
    if "value" not in param:
        return f"devlink_params names {name} ({cmode}) without a value."
    value = devlink.word(param["value"])
    if name not in known:
        return f"it has no devlink parameter {name} (it has {', '.join(sorted(known)) or 'none'})."
    if cmode not in known[name]:
        return f"its devlink parameter {name} has no cmode {cmode} (it has {', '.join(sorted(known[name]))})."
    now = known[name][cmode]
    if isinstance(now, bool) and value not in ("true", "false"):
        return f"its devlink parameter {name} is true or false, and not {value}."
    if isinstance(now, int) and not isinstance(now, bool) and not value.isdigit():
        return f"its devlink parameter {name} is a number from 0, and not {value}."
    return f"{value!r} is no value for a devlink parameter." if not value or value.startswith("-") else None


def _check_offload(port: Port) -> list[Refusal]:
    wished, now = port.wish.get("hw_tc_offload"), _facts_of(port).get("hw_tc_offload")
    if wished is None:
        return []
    if now is None:
        return [port.wrong("it has no network device whose hw-tc-offload could be set.", "Leave hw_tc_offload unset for it.")]
    if "error" in now:
        return [port.wrong(f"its hw-tc-offload cannot be read ({now['error']}).", "Leave hw_tc_offload unset for it.")]
    if now["fixed"] and now["on"] != wished:
        reason = f"hw-tc-offload of {port.pf.netdevs[0]} is fixed to {'on' if now['on'] else 'off'} by its driver."
        return [port.wrong(reason, "Leave hw_tc_offload unset for it.")]
    return []


# --- Planning ------------------------------------------------------------------------------------------------------


def guard(port: Port) -> Plan:
    """What stands against all that is to be done to the switch. Nothing is done in this part before it was asked."""
    result = Plan()
    if not (_mode_changes(port) or _reloads(port)):
        return result
    doing = "reloading its driver" if _reloads(port) else "changing its eswitch mode"
    dangers = guards.before_recount(port.state, port.pf, port.count, doing)
    dangers += guards.before_eswitch(port.state, port.pf) if _mode_changes(port) else []
    if _reloads(port) or not _order(port).keeps_netdev:
        dangers += guards.before_new_netdev(port.state, port.pf)
    common.guarded(result, dangers, port.options, port.pf.address)
    common.refuse_all(result, _in_a_bridge(port))
    return result


def _in_a_bridge(port: Port) -> list[Refusal]:
    """The rules that a bridge offloaded hold the switch: leaving switchdev mode fails, or takes the guests' network away."""
    if mode_now(port) != SWITCHDEV:
        return []
    for name in (*port.pf.netdevs, *port.pf.representors):
        for upper in port.state.netdevs[name].uppers if name in port.state.netdevs else ():
            kind = port.state.netdevs[upper].kind if upper in port.state.netdevs else ""
            if kind in ("bridge", "openvswitch"):
                reason = f"{name} is in {upper}, which may have offloaded its rules to the switch: the mode cannot change under it."
                return [port.wrong(reason, f"Take {name} out of {upper} first.")]
    return []


def before_count(port: Port) -> Plan:
    """What is done before the number of VFs changes: leaving switchdev mode, a reload, parameters; and the whole change of the mode with a
    driver that wants no VFs for it."""
    result = Plan()
    now, wished = mode_now(port), mode_wished(port)
    if now == SWITCHDEV and _mode_changes(port):
        stays = not port.born and wished == LEGACY
        result.actions += [*(_attributes(port) if wished == LEGACY else []), *_mode(port, SWITCHDEV, LEGACY, attach=stays, born=False)]
    result.extend(_params(port))
    if wished == SWITCHDEV and _mode_changes(port) and not _order(port).with_vfs:
        result.actions += [*_mode(port, LEGACY, SWITCHDEV, attach=False, born=False), *_attributes(port)]
    return result


def after_count(port: Port) -> Plan:
    """What is done with the VFs as they are to be: entering switchdev mode, and all that can be set at any time."""
    result = Plan()
    enters = mode_wished(port) == SWITCHDEV and _mode_changes(port)
    if enters and _order(port).with_vfs:
        steps = _mode(port, LEGACY, SWITCHDEV, attach=True, born=port.born)
        at = len(steps) - (1 if steps[-1].kind == "attach_vfs" else 0)
        # Before a VF's driver starts: it asks for the inline mode when it does.
        result.actions += [*steps[:at], *_attributes(port), *steps[at:]]
    elif not _mode_changes(port):
        result.actions += _attributes(port)
    result.extend(_offload(port))
    return result


def _mode(port: Port, before: str, after: str, attach: bool, born: bool) -> list[Action]:
    """The mode, with the VFs taken from their drivers for it. `born`: they were made by this plan."""
    steps = [_set(port, "mode", before, after)]
    there = port.count if born else (0 if port.cleared else len(port.sriov.vfs))
    if not there or not port.has_vf_functions:
        return steps
    functions = {} if born else {i: port.state.functions.get(a) for i, a in port.sriov.vfs.items()}
    had = {str(index): vf.driver for index, vf in functions.items() if vf and vf.driver}
    if not born and not had:
        return steps
    args = {"pf": port.pf.address, "drivers": had, "offered": born and port.sriov.autoprobe, "reserved": _reserved(port)}
    names = "its VFs" if born else f"VF {', '.join(had)}"
    away = Action("detach_vfs", port.pf.address, f"take {names} from their drivers while the eswitch mode changes", args=args)
    back = Action("attach_vfs", port.pf.address, f"give {names} their drivers back", args=args)
    return [away, *steps, *([back] if attach else [])]


def _reserved(port: Port) -> dict[str, str]:
    return {str(i): vf["driver"] for i, vf in port.wished.items() if vf.get("driver") not in (None, "default")}


def _attributes(port: Port) -> list[Action]:
    """Inline and encap mode."""
    wished = dict(port.wish.get("eswitch") or {})
    entering = mode_wished(port) == SWITCHDEV and mode_now(port) != SWITCHDEV
    usual = drivers.INLINE_MODES.get((port.pf.vendor, port.pf.device))
    if entering and usual and not wished.get("inline_mode") and "inline_mode" in _eswitch(port):
        wished["inline_mode"] = usual
    return [
        _set(port, key, _eswitch(port)[key], wished[key])
        for key in ("inline_mode", "encap_mode")
        if wished.get(key) and _eswitch(port).get(key) != wished[key]
    ]


def _set(port: Port, key: str, before: str, after: str) -> Action:
    netdevs = [port.state.netdevs[name] for name in port.pf.netdevs if name in port.state.netdevs]
    label = f"eswitch {key.replace('_', ' ')}"
    return Action(
        kind="set_eswitch",
        unit=port.pf.address,
        text=f"set the {label} from {before} to {after}",
        args={
            "address": port.pf.address,
            "key": key,
            "from": before,
            "to": after,
            "netdev": netdevs[0].name if netdevs else None,
            "up": bool(netdevs) and netdevs[0].up,
            "uplink": _order(port).uplink,
        },
        before={label: _eswitch(port).get(key)},
        after={label: after},
    )


def _params(port: Port) -> Plan:
    result = Plan()
    reloading, others = _differing(port, "driverinit"), _differing(port, "runtime", "permanent")
    if reloading:
        result.actions.append(_reload(port, reloading))
    for param in others:
        result.actions.append(_set_param(port, param))
    result.reboot_reasons += _waiting(port)
    return result


def _waiting(port: Port) -> list[str]:
    """Permanent parameters that will be another thing after the next boot than they are now."""
    known = _facts_of(port).get("params", {})
    fresh = {param["name"] for param in _differing(port, "permanent")}
    reasons = []
    for param in port.wish.get("devlink_params") or []:
        name, value = param["name"], devlink.word(param["value"])
        running = [devlink.word(v) for cmode, v in known.get(name, {}).items() if cmode != "permanent"]
        if param["cmode"] == "permanent" and (any(v != value for v in running) or (not running and name in fresh)):
            reasons.append(f"{port.pf.address}: its devlink parameter {name} is {value} after the next boot (cold, for some cards)")
    return reasons


def _reload(port: Port, params: Sequence[Mapping[str, str]]) -> Action:
    netdevs = [port.state.netdevs[name] for name in port.pf.netdevs if name in port.state.netdevs]
    said = ", ".join(f"{param['name']} {param['to']}" for param in params)
    return Action(
        kind="devlink_reload",
        unit=port.pf.address,
        text=f"set {said} and reload the driver; its network devices go and come back without what was configured on them",
        args={
            "address": port.pf.address,
            "params": list(params),
            "netdev": netdevs[0].name if netdevs else None,
            "up": bool(netdevs) and netdevs[0].up,
            "offload": (_facts_of(port).get("hw_tc_offload") or _facts_of(port).get("offload_before") or {}).get("on"),
        },
        before={_param_label(param): param["from"] for param in params},
        after={_param_label(param): param["to"] for param in params},
    )


def _set_param(port: Port, param: Mapping[str, str]) -> Action:
    late = ", in force from the next boot on" if param["cmode"] == "permanent" else ""
    return Action(
        kind="set_devlink_param",
        unit=port.pf.address,
        text=f"set the devlink parameter {param['name']} ({param['cmode']}) from {param['from']} to {param['to']}{late}",
        args={"address": port.pf.address, "params": [param]},
        before={_param_label(param): param["from"]},
        after={_param_label(param): param["to"]},
    )


def _param_label(param: Mapping[str, str]) -> str:
    return f"devlink {param['name']} ({param['cmode']})"


def _offload(port: Port) -> Plan:
    """Also where it is as wished now and the network device is made anew: a new one starts with the driver's own setting."""
    wished, now = port.wish.get("hw_tc_offload"), _facts_of(port).get("hw_tc_offload", {}).get("on")
    anew = _reloads(port) or (_mode_changes(port) and not _order(port).keeps_netdev)
    if wished is None or (now == wished and not anew):
        return Plan()
    word = {True: "on", False: "off"}
    action = Action(
        kind="set_tc_offload",
        unit=port.pf.address,
        text=f"see to it that hw-tc-offload is {word[wished]}" if now == wished else f"switch hw-tc-offload {word[wished]}",
        args={"address": port.pf.address, "from": now, "to": wished},
        before={"hw-tc-offload": word[bool(now)]},
        after={"hw-tc-offload": word[wished]},
    )
    return Plan(actions=[action if now != wished else _predicted(action)])


def _predicted(action: Action) -> Action:
    return Action(action.kind, action.unit, action.text, PREDICTED, action.args, action.before, action.after)


# --- Giving back ---------------------------------------------------------------------------------------------------


def origin(port: Port) -> dict[str, Any]:
    """How that was which the wish speaks of: 'eswitch mode' and the like -> value."""
    found: dict[str, Any] = {}
    if port.wish.get("eswitch"):
        found.update({f"eswitch {key}": value for key, value in _eswitch(port).items()})
    known = _facts_of(port).get("params", {})
    for param in port.wish.get("devlink_params") or []:
        found[f"param {param['cmode']} {param['name']}"] = known[param["name"]][param["cmode"]]
    if port.wish.get("hw_tc_offload") is not None:
        found["hw_tc_offload"] = _facts_of(port)["hw_tc_offload"]["on"]
    return found


def as_before(was: Mapping[str, Any]) -> dict[str, Any]:
    """What `origin` recorded, as a wish."""
    wish: dict[str, Any] = {}
    for key, value in was.items():
        first, _blank, rest = key.partition(" ")
        if first == "eswitch":
            wish.setdefault("eswitch", {})[rest] = value
        elif first == "param":
            cmode, _blank, name = rest.partition(" ")
            wish.setdefault("devlink_params", []).append({"name": name, "cmode": cmode, "value": value})
        elif first == "hw_tc_offload":
            wish["hw_tc_offload"] = value
    return wish


def still_there(state: State, pf: Function, wish: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The wish without the parameters that the kernel no longer has, and a sentence for each of those."""
    known = state.more.get(NAME, {}).get(pf.address, {}).get("params", {})
    params, warnings = [], []
    for param in wish.get("devlink_params") or []:
        if "error" in known or not pf.driver or param["cmode"] in known.get(param["name"], {}):
            params.append(param)
        else:
            said = f"its devlink parameter {param['name']} ({param['cmode']}) was {devlink.word(param['value'])}"
            warnings.append(f"{pf.address}: {said} and is not given back: the kernel no longer has it.")
    return {**wish, **({"devlink_params": params} if "devlink_params" in wish else {})}, warnings
