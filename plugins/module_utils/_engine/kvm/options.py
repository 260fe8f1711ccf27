# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Parameters of the KVM module: nested guests, and nested paging (EPT, NPT) or shadow paging.

Documentation/admin-guide/kernel-parameters.txt (kvm-intel.*, kvm-amd.*). They are read when the module is loaded. While a
guest runs, or anything else has /dev/kvm open, the module cannot be taken out: then the next boot brings them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .. import modprobe, platform
from ..host import Files, Host
from ..model import Action, Plan, Refusal
from ..plain import dataclass

UNIT = "KVM"
#: Module -> its parameter for nested guests and that for nested paging.
PARAMETERS: Mapping[str, Mapping[str, str]] = {
    "kvm_intel": {"nested": "nested", "paging": "ept"},
    "kvm_amd": {"nested": "nested", "paging": "npt"},
    "kvm_hv": {"nested": "nested"},
    # s390x. On x86 and Arm there is a module kvm as well, without either parameter.
    "kvm": {"nested": "nested"},
}
_BY_FLAG = {"vmx": "kvm_intel", "svm": "kvm_amd", "sie": "kvm"}
_ON = ("Y", "1")
_LOAD = "load it"


@dataclass(frozen=True)
class Facts:
    #: The KVM module of this processor; None where it is not known.
    module: str | None
    #: How many have /dev/kvm or a VM of it open; None while the module is not loaded.
    users: int | None = None
    state: modprobe.Module | None = None


def module_of(files: Files) -> str | None:
    """The module that is loaded, else the one that the processor asks for."""
    for name in ("kvm_intel", "kvm_amd", "kvm_hv", "kvm"):
        if files.exists(f"/sys/module/{name}/parameters/nested"):
            return name
    flags = platform.flags(files.text("/proc/cpuinfo") or "")
    return next((name for flag, name in _BY_FLAG.items() if flag in flags), None)


def read(host: Host) -> Facts:
    name = module_of(host.files)
    if name is None:
        return Facts(None)
    count = host.files.attr(f"/sys/module/{name}/refcnt")
    state = modprobe.read(host, {name: dict.fromkeys(PARAMETERS[name].values())})[name]
    return Facts(name, int(count) if count else None, state)


def plan(facts: Facts, wish: Mapping[str, bool]) -> Plan:
    """`wish`: 'nested' and 'paging', as far as they are named."""
    if facts.module is None or facts.state is None:
        reason = "no KVM module of this processor is known: it shows none of vmx, svm and sie (host_info says why)."
        return Plan(refusals=[Refusal(UNIT, reason, f"Leave {_options(wish)} unset. Nothing was changed.")])
    has = PARAMETERS[facts.module]
    lacking = [name for name in wish if name not in has]
    if lacking:
        reason = f"{facts.module} has no parameter for {', '.join(lacking)}."
        return Plan(refusals=[Refusal(UNIT, reason, f"Leave {_options(dict.fromkeys(lacking))} unset. Nothing was changed.")])
    values: dict[str, str | None] = {has[name]: "1" if on else "0" for name, on in wish.items()}
    result = modprobe.plan({facts.module: facts.state}, {facts.module: values}, _reloadable(facts), UNIT)
    return result if result.refusals else _load(facts.state, result, values)


def _load(state: modprobe.Module, result: Plan, values: Mapping[str, str | None]) -> Plan:
    """A module that is not loaded, as after a run that was cut off while it loaded it again, is loaded."""
    wanted = {param: value for param, value in values.items() if value is not None}
    if state.loaded or state.builtin or not wanted:
        return result
    if not result.actions:
        args: dict[str, Any] = {"module": state.name, "text": state.text, "previous": state.text, "set": {}, "was": {}, "reload": {}}
        result.actions = [Action("set_module_options", UNIT, _LOAD, args=args, before={"loaded": False}, after={"loaded": True})]
    result.actions = [_with_reload(action, state.name, wanted) for action in result.actions]
    return result


def _options(wish: Mapping[str, Any]) -> str:
    return " and ".join(f"kvm_{name}" for name in wish)


def _reloadable(facts: Facts) -> list[str]:
    return [facts.module] if facts.module and facts.users == 0 else []


def origin(facts: Facts, wish: Mapping[str, bool]) -> dict[str, str | None]:
    """Parameter -> its value before; None where the module was not loaded."""
    if facts.module is None or facts.state is None:
        return {}
    names = [PARAMETERS[facts.module].get(name, "") for name in wish]
    return {name: facts.state.running.get(name) for name in names if name}


def restore(facts: Facts, before: Mapping[str, str | None]) -> Plan:
    """Our words go. The value that the module has by itself comes with its next load, which is now where nobody uses it."""
    if facts.module is None or facts.state is None:
        return Plan()
    state, running = facts.state, facts.state.running
    result = modprobe.plan({facts.module: facts.state}, {facts.module: dict.fromkeys(before)}, _reloadable(facts), UNIT)
    back = {p: value for p, value in before.items() if value is not None and not modprobe.same(running.get(p, value), value)}
    if not state.loaded:
        return _load(state, result, before)
    if back and _reloadable(facts):
        result.actions = [_with_reload(action, facts.module, back) for action in result.actions]
    elif back:
        result.reboot_reasons = [f"{facts.module}.{p} is {running[p]} until the module is loaded again" for p in back]
    return result


def _with_reload(action: Action, module: str, values: Mapping[str, str]) -> Action:
    if action.args["reload"]:
        return action
    text = f"{action.text}; load {module} again" if action.text != _LOAD else _LOAD
    return replace(action, text=text, args={**action.args, "reload": dict(values)})


def info(facts: Facts) -> dict[str, Any]:
    """Both sides of the next load, in the words of a wish."""
    found: dict[str, Any] = {"module": facts.module, "open_count": facts.users}
    for name in ("nested", "paging"):
        param = PARAMETERS.get(facts.module or "", {}).get(name)
        running = facts.state.running.get(param) if facts.state and param else None
        said = facts.state.next_load.get(param) if facts.state and param else None
        found[name] = None if running is None else running in _ON
        found[f"{name}_next_load"] = modprobe.same(said[0], "1") if said else None
    return found
