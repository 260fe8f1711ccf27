# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Parameters of kernel modules: in force now (/sys/module) and at the next load (modprobe.d, kernel command line).

A part for resources that need one: `read` tells of the modules of a wish, `plan` makes it true, `info` reports. A wish is
module -> parameter -> value, as a text; None gives the parameter back. Unnamed parameters stay as they are. Sources:
modprobe.d(5), libkmod-config.c of kmod (order of files, kernel command line last), kernel/params.c (what the kernel takes).

Each module has a file of its own, which sorts last: of two values for one parameter the kernel takes the later. A parameter
that may be written while the module is loaded is written as well. For others the module has to be loaded again: by `reload`
where the caller knows that nobody would miss it meanwhile, else by the next boot. An initramfs has a copy of modprobe.d: for
a module that it may load, `early` (what initramfs.read says) has the images made anew.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import field, replace
from typing import Any

from . import aliases, cmdline, initramfs
from .errors import EngineError, explain
from .host import Files, Host
from .model import HOST, Action, Plan, Refusal
from .plain import dataclass

FOLDER = "/etc/modprobe.d"
SYS = "/sys/module"
_NOTE = "# Written by iovirt.host; removed with the last parameter of this module that it sets."
_NAME = re.compile(r"[A-Za-z0-9_-]+")
#: What modprobe.d(5) and the kernel pass on as it stands: no blank, no quote, nothing that continues or ends a line.
_VALUE = re.compile(r"[^\s\"'\\#]*")
#: kstrtobool in lib/kstrtox.c: by the first letter, for 'o' by the second.
_BOOLEAN = re.compile(r"(?i)(?:(y|t|1|on)|(n|f|0|of))")

Wishes = Mapping[str, Mapping[str, "str | None"]]


@dataclass(frozen=True)
class Module:
    """A module on both sides of its next load. Names of parameters with '_', as sysfs has them."""

    name: str
    loaded: bool = False
    builtin: bool = False
    #: Names of parameters that it takes; None: not asked, as what was wished is in `running`.
    known: frozenset[str] | None = None
    #: Parameter -> its value now, for those that the kernel shows.
    running: Mapping[str, str] = field(default_factory=dict)
    #: Those that can be written while it is loaded.
    writable: frozenset[str] = frozenset()
    #: Parameter -> its value at the next load and where that is said, for those that are said anywhere.
    next_load: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    #: The same without our file.
    foreign: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    #: What our file says; its text as it is (None: not there).
    ours: Mapping[str, str] = field(default_factory=dict)
    text: str | None = None


def path_of(module: str) -> str:
    """Our file for a module. 'zz' sorts behind what distributions and people use."""
    return f"{FOLDER}/zz-iovirt-{canonical(module)}.conf"


def canonical(name: str) -> str:
    """'-' and '_' are one to modprobe and to the kernel, in names of modules and of parameters."""
    return name.replace("-", "_")


# --- Reading ---------------------------------------------------------------------------------------------------------


def read(host: Host, wishes: Wishes) -> dict[str, Module]:
    """The modules of a wish. Costs no process where the kernel shows every wished parameter."""
    lines = list(aliases.modprobe_lines(host.files))
    return {canonical(name): _read(host, canonical(name), params, lines) for name, params in wishes.items()}


def _read(host: Host, name: str, params: Mapping[str, str | None], lines: Sequence[tuple[str, list[str]]]) -> Module:
    files = host.files
    folder = f"{SYS}/{name}"
    shown = files.names(f"{folder}/parameters")
    running = {p: value for p in shown if (value := files.attr(f"{folder}/parameters/{p}")) is not None}
    # Of what is built in, the kernel shows the parameters alone (Documentation/ABI/stable/sysfs-module: initstate).
    loaded = files.exists(f"{folder}/initstate")
    builtin = not loaded and (files.exists(folder) or name in aliases.builtin(files))
    ask = [canonical(p) for p, value in params.items() if value is not None and canonical(p) not in shown]
    return Module(
        name=name,
        loaded=loaded,
        builtin=builtin,
        known=_known(host, name) if ask else None,
        running=running,
        writable=frozenset(p for p in running if (files.mode(f"{folder}/parameters/{p}") or 0) & 0o200),
        next_load=_said(files, name, lines),
        foreign=_said(files, name, [line for line in lines if line[0] != path_of(name)]),
        ours={p: value for p, (value, _where) in _in_files(name, [x for x in lines if x[0] == path_of(name)]).items()},
        text=files.text(path_of(name)),
    )


def _known(host: Host, name: str) -> frozenset[str]:
    """Raises EngineError where there is no such module."""
    code, out, err = host.run(["modinfo", "-F", "parm", "--", name])
    if code:
        raise EngineError(f"there is no module {name} ({err.strip() or code}). Correct the name or install the module.")
    return frozenset(line.partition(":")[0].strip() for line in out.splitlines() if ":" in line)


def _said(files: Files, name: str, lines: Sequence[tuple[str, list[str]]]) -> dict[str, tuple[str, str]]:
    """What the next load gets: the files in their order, then the kernel command line."""
    found = _in_files(name, lines)
    for word in cmdline.split(files.text("/proc/cmdline") or ""):
        module, dot, rest = word.partition(".")
        if dot and canonical(module) == name:
            found.update(_assigned([rest], "the kernel command line"))
    return found


def _in_files(name: str, lines: Iterable[tuple[str, list[str]]]) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for path, words in lines:
        if words[0] == "options" and canonical(words[1]) == name:
            found.update(_assigned(words[2:], path))
    return found


def _assigned(words: Iterable[str], where: str) -> dict[str, tuple[str, str]]:
    """A parameter without a value is a switch that is on (parse_one in kernel/params.c, param_set_bool)."""
    return {canonical(p): (value if equals else "1", where) for p, equals, value in (w.partition("=") for w in words)}


def same(one: str | None, other: str | None) -> bool:
    """Are these two ways to write one value? The kernel shows 1 as 'Y' for a switch, 0x10 as 16 for a number."""
    if one is None or other is None:
        return one == other
    if "," in one or "," in other:
        parts = one.split(","), other.split(",")
        return len(parts[0]) == len(parts[1]) and all(map(same, *parts))
    if "Y" in (one, other) or "N" in (one, other):
        return _switch(one) is not None and _switch(one) == _switch(other)
    numbers = _number(one), _number(other)
    return one == other if None in numbers else numbers[0] == numbers[1]


def _switch(text: str) -> bool | None:
    found = _BOOLEAN.match(text)
    return bool(found.group(1)) if found else None


def _number(text: str) -> int | None:
    """As kstrtoint with base 0 reads it: '010' is eight."""
    try:
        return int(text, 8) if re.fullmatch(r"-?0[0-7]+", text) else int(text, 0)
    except ValueError:
        return None


# --- The plan --------------------------------------------------------------------------------------------------------


def plan(
    modules: Mapping[str, Module],
    wishes: Wishes,
    reload: Collection[str] = (),
    device: str = HOST,
    early: Mapping[str, Any] | None = None,
) -> Plan:
    """What makes the wishes true. `reload`: modules that may be taken out and loaded again now. `device` is whose fate the
    steps share. What has to wait for a boot is in reboot_reasons."""
    result = Plan()
    reloadable = set(map(canonical, reload))
    for name, params in wishes.items():
        module = modules[canonical(name)]
        wished = {canonical(p): value for p, value in params.items()}
        wrong = _refusals(module, wished, device)
        result.refusals += wrong
        if not wrong:
            _converge(result, module, wished, module.name in reloadable, device)
    if early and early["tool"]:
        result.actions = [_with_images(action, early) for action in result.actions]
    return result


def _with_images(action: Action, early: Mapping[str, Any]) -> Action:
    if action.args["text"] == action.args["previous"]:
        return action
    images = {"tool": early["tool"], "images": dict(early["images"])}
    text = f"{action.text}; make the initramfs anew with {early['tool']}"
    return replace(action, text=text, args={**action.args, "initramfs": images})


def _refusals(module: Module, wished: Mapping[str, str | None], device: str) -> list[Refusal]:
    if not _NAME.fullmatch(module.name):
        return [Refusal(device, f"{module.name!r} is no name of a module.", "Correct it; nothing was changed.")]
    found = []
    for param, value in wished.items():
        if value is None:
            continue
        name = f"{module.name}.{param}"
        if not _NAME.fullmatch(param) or not _VALUE.fullmatch(value):
            reason, way = (
                f"{name}={value!r} holds what modprobe would interpret (blank, quote, '#', '\\').",
                "Correct it",
            )
        elif module.builtin:
            reason = f"{module.name} is built into the running kernel, which modprobe.d does not reach."
            way = f"Set {name}={value} on the kernel command line (kernel_cmdline)"
        elif module.known is not None and param not in module.known:
            reason = f"the module {module.name} has no parameter {param}."
            way = f"Correct the name (modinfo -p {module.name} lists them) or install the driver that has it"
        elif _overruled(module, param, value):
            reason = f"{name}={module.next_load[param][0]} is said by {module.next_load[param][1]}, behind our {path_of(module.name)}."
            way = "Take it out there"
        else:
            continue
        found.append(Refusal(device, reason, f"{way}; nothing was changed."))
    return found


def _overruled(module: Module, param: str, value: str) -> bool:
    """Does somebody say otherwise after us?"""
    said, where = module.foreign.get(param, (value, ""))
    behind = not where.startswith("/") or where.rpartition("/")[2] > path_of(module.name).rpartition("/")[2]
    return behind and not same(said, value)


def _converge(result: Plan, module: Module, wished: Mapping[str, str | None], reload: bool, device: str) -> None:
    ours = _next_ours(module, wished)
    text = render(module.name, ours)
    now, later = _unmet_now(module, wished, reload)
    reload = reload and bool(later)
    if text != module.text or now or reload:
        result.actions.append(_action(module, wished, text, now, later if reload else {}, device))
    if not reload:
        result.reboot_reasons += [
            f"{module.name}.{param} is {module.running[param]} until the module is loaded again; then it is {value}"
            for param, value in later.items()
        ]
    if text != module.text and module.loaded:
        result.reboot_reasons += [
            f"{module.name}.{param} is not shown by the kernel; it is {value} when the module is loaded again"
            for param, value in wished.items()
            if value is not None and param not in module.running
        ]


def _next_ours(module: Module, wished: Mapping[str, str | None]) -> dict[str, str]:
    """What our file has to say. What others say already needs no word of ours, unless it is ours to keep."""
    ours = {p: value for p, value in module.ours.items() if p not in wished}
    for param, value in wished.items():
        if value is None:
            continue
        foreign = module.foreign.get(param)
        if param in module.ours or foreign is None or not same(foreign[0], value):
            ours[param] = value
    return ours


def render(name: str, ours: Mapping[str, str]) -> str | None:
    """The text of our file; None where it says nothing and goes."""
    words = " ".join(f"{p}={value}" for p, value in sorted(ours.items()))
    return f"{_NOTE}\noptions {name} {words}\n" if ours else None


def _unmet_now(module: Module, wished: Mapping[str, str | None], reload: bool) -> tuple[dict[str, str], dict[str, str]]:
    """Parameters that are not in force: those that can be written, and those that wait for a load. What is given back and
    said by nobody else has a value that only the module knows, and so waits for its next load without a word."""
    now: dict[str, str] = {}
    later: dict[str, str] = {}
    for param, value in wished.items():
        if value is None and param in module.ours:
            value = module.foreign.get(param, (None, ""))[0]
        running = module.running.get(param)
        if value is None or running is None or same(running, value):
            continue
        (now if param in module.writable else later)[param] = value
    return now, later


def _action(
    module: Module,
    wished: Mapping[str, str | None],
    text: str | None,
    now: Mapping[str, str],
    again: Mapping[str, str],
    device: str,
) -> Action:
    parts = [] if text == module.text else [f"{'remove' if text is None else 'write'} {path_of(module.name)}"]
    parts += [f"set {module.name}.{param} from {module.running[param]} to {value}" for param, value in now.items()]
    parts += [f"load {module.name} again"] if again else []
    keys = [*dict.fromkeys([*wished, *now, *again])]
    after = {**{p: v for p, (v, _w) in module.foreign.items()}, **_next_ours(module, wished)}
    return Action(
        kind="set_module_options",
        unit=device,
        text="; ".join(parts),
        args={
            "module": module.name,
            "text": text,
            "previous": module.text,
            "set": dict(now),
            "was": {param: module.running[param] for param in now},
            "reload": dict(again),
        },
        before={f"{module.name}.{p}": _sides(module.running.get(p), module.next_load.get(p, (None,))[0]) for p in keys},
        after={
            f"{module.name}.{p}": _sides(now.get(p, again.get(p, module.running.get(p))), after.get(p)) for p in keys
        },
    )


def _sides(running: str | None, next_load: str | None) -> dict[str, str | None]:
    return {"running": running, "next load": next_load}


def info(modules: Mapping[str, Module]) -> dict[str, Any]:
    """Both sides of each module, for the facts of a resource."""
    return {
        name: {
            "loaded": module.loaded,
            "builtin": module.builtin,
            "running": dict(module.running),
            "next_load": {param: value for param, (value, _where) in module.next_load.items()},
            "ours": dict(module.ours),
        }
        for name, module in modules.items()
    }


# --- The step --------------------------------------------------------------------------------------------------------


def set_options(host: Host, args: Mapping[str, Any]) -> None:
    """The file, then what can be written, then the module; each read back."""
    name = args["module"]
    _put(host.files, name, args["text"])
    _remake(host, args)
    for param, value in args["set"].items():
        _write(host.files, name, param, value)
    if args["reload"]:
        _reload(host, name)
        for param, value in args["reload"].items():
            running = host.files.attr(f"{SYS}/{name}/parameters/{param}")
            if not same(running, value):
                raise EngineError(
                    f"{name} was loaded again, and its {param} is {running} instead of {value}. Look at the kernel log."
                )


def undo_options(host: Host, args: Mapping[str, Any]) -> None:
    """The file as it was; a module that was loaded again, or did not come back, gets loaded with that; then what was
    written: it went with the module."""
    name = args["module"]
    changed = host.files.text(path_of(name)) != args["previous"]
    _put(host.files, name, args["previous"])
    if changed:
        _remake(host, args)
    if args["reload"] and not host.files.exists(f"{SYS}/{name}/initstate"):
        _modprobe(host, ["--", name])
    elif any(same(host.files.attr(f"{SYS}/{name}/parameters/{p}"), value) for p, value in args["reload"].items()):
        _reload(host, name)
    for param, value in args["was"].items():
        if not same(host.files.attr(f"{SYS}/{name}/parameters/{param}"), value):
            _write(host.files, name, param, value)


def _remake(host: Host, args: Mapping[str, Any]) -> None:
    if "initramfs" in args:
        initramfs.remake(host, args["initramfs"]["tool"], args["initramfs"]["images"])


def _put(files: Files, name: str, text: str | None) -> None:
    path = path_of(name)
    if files.text(path) == text:
        return
    try:
        if text is None:
            files.remove(path)
        else:
            files.replace(path, text)
    except OSError as error:
        raise EngineError(f"{path} cannot be written: {explain(error)}.") from None


def _write(files: Files, name: str, param: str, value: str) -> None:
    path = f"{SYS}/{name}/parameters/{param}"
    try:
        files.write(path, value)
    except OSError as error:
        raise EngineError(
            f"the kernel answered {explain(error)} to {name}.{param}={value}. Look at the kernel log."
        ) from None
    if not same(files.attr(path), value):
        raise EngineError(f"the kernel accepted {name}.{param}={value}, but {path} reads {files.attr(path)}.")


def _reload(host: Host, name: str) -> None:
    _modprobe(host, ["-r", "--", name])
    _modprobe(host, ["--", name])


def _modprobe(host: Host, words: list[str]) -> None:
    code, _out, err = host.run(["modprobe", *words])
    if code:
        raise EngineError(f"modprobe {' '.join(words)} failed: {err.strip() or code}. Look for who uses it (lsmod).")
