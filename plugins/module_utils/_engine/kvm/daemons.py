# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""libvirt's daemons: one for all (libvirtd) or one a driver (virtqemud and its like), started by their sockets.

https://libvirt.org/daemons.html. Guests go on running while the daemons are exchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import EngineError
from ..host import Host
from ..model import PREDICTED, Action, Plan, Refusal
from ..plain import dataclass

AUTO, MODULAR, MONOLITHIC = "auto", "modular", "monolithic"
UNIT = "libvirt daemons"
_DRIVERS = ("qemu", "interface", "network", "nodedev", "nwfilter", "secret", "storage")
#: Daemon -> suffixes of its sockets.
DAEMONS: Mapping[str, tuple[str, ...]] = {
    MODULAR: tuple(f"virt{driver}d" for driver in (*_DRIVERS, "proxy")),
    MONOLITHIC: ("libvirtd",),
}
_SOCKETS = ("", "-ro", "-admin")
#: What the other kind must not leave open, beside those.
_REMOTE = {MONOLITHIC: ("libvirtd-tcp.socket", "libvirtd-tls.socket"), MODULAR: ("virtproxyd-tcp.socket", "virtproxyd-tls.socket")}
#: Both kinds use them.
_HELPERS = ("virtlogd.socket", "virtlogd-admin.socket", "virtlockd.socket", "virtlockd-admin.socket")
#: Those that start what is marked for autostart: not by a socket, but with the host.
_STARTERS = ("libvirtd.service", "virtqemud.service", "virtnetworkd.service", "virtstoraged.service")
#: Says which kind is in use.
_MAIN = {MODULAR: "virtqemud", MONOLITHIC: "libvirtd"}


@dataclass(frozen=True)
class UnitState:
    """As systemctl show prints it."""

    load: str
    active: str
    file: str

    @property
    def loaded(self) -> bool:
        return self.load == "loaded"

    @property
    def up(self) -> bool:
        return self.active in ("active", "activating", "reloading")

    @property
    def enabled(self) -> bool:
        return self.file in ("enabled", "enabled-runtime", "static", "indirect", "generated", "alias")


Facts = Mapping[str, UnitState]


def units_of(kind: str) -> list[str]:
    services = [f"{daemon}.service" for daemon in DAEMONS[kind]]
    return services + [f"{daemon}{suffix}.socket" for daemon in DAEMONS[kind] for suffix in _SOCKETS]


def everything() -> list[str]:
    return [*units_of(MONOLITHIC), *_REMOTE[MONOLITHIC], *units_of(MODULAR), *_REMOTE[MODULAR], *_HELPERS]


def read(host: Host, more: Sequence[str] = ()) -> Facts:
    """One process for all units."""
    names = [*everything(), *more]
    code, out, err = host.run(["systemctl", "show", "--property=Id,LoadState,ActiveState,UnitFileState", "--", *names])
    if code:
        raise EngineError(f"systemctl show failed: {err.strip() or code}. The daemons' units are not known without systemd.")
    return parse(out, names)


def parse(out: str, names: Sequence[str]) -> Facts:
    """What systemctl show prints; units of which it says nothing are not there."""
    found = {}
    for block in out.strip().split("\n\n"):
        said = dict(line.partition("=")[::2] for line in block.splitlines())
        if said.get("Id"):
            found[said["Id"]] = UnitState(said.get("LoadState", ""), said.get("ActiveState", ""), said.get("UnitFileState", ""))
    return {name: found.get(name, UnitState("not-found", "inactive", "")) for name in names}


def kind_of(facts: Facts) -> str | None:
    """The kind in use, else the one that is installed."""
    kinds = [kind for kind in (MODULAR, MONOLITHIC) if facts[f"{_MAIN[kind]}.service"].loaded]
    in_use = [k for k in kinds if any(facts[f"{_MAIN[k]}{suffix}"].up or facts[f"{_MAIN[k]}{suffix}"].enabled for suffix in (".service", ".socket"))]
    return next(iter(in_use or kinds), None)


def running(facts: Facts) -> bool:
    """Would libvirt answer?"""
    return any(facts[f"{name}{suffix}"].up for name in _MAIN.values() for suffix in (".service", ".socket"))


def plan(facts: Facts, wished: str, coming: bool) -> Plan:
    kind = kind_of(facts) if wished == AUTO else wished
    if kind is None or not facts[f"{_MAIN[kind]}.service"].loaded:
        return _not_installed(wished, coming)
    steps = _steps(facts, kind)
    return Plan(actions=[_action(facts, kind, steps)] if any(steps.values()) else [])


def _not_installed(wished: str, coming: bool) -> Plan:
    if coming:
        text = "enable and start those that the packages bring"
        return Plan(actions=[Action("set_units", UNIT, text, PREDICTED, args=_nothing(), after={"daemons": wished})])
    main = _MAIN.get(wished, "libvirtd or virtqemud")
    reason = f"{main} is not installed."
    return Plan(refusals=[Refusal(UNIT, reason, "Install the packages first (the role kvm does); nothing was changed.")])


def _nothing() -> dict[str, Any]:
    return {"disable": [], "stop": [], "enable": [], "start": [], "was": {}}


def _steps(facts: Facts, kind: str) -> dict[str, list[str]]:
    other = MONOLITHIC if kind == MODULAR else MODULAR
    against = [name for name in [*units_of(other), *_REMOTE[other]] if facts[name].loaded]
    sockets = [n for n in [*units_of(kind), *_HELPERS] if n.endswith(".socket") and facts[n].loaded]
    starters = [name for name in _STARTERS if name in units_of(kind) and facts[name].loaded]
    return {
        "disable": [n for n in against if facts[n].file in ("enabled", "enabled-runtime")],
        "stop": [n for n in against if facts[n].up],
        "enable": [n for n in [*starters, *sockets] if not facts[n].enabled],
        # systemd refuses to start a socket whose service runs.
        "start": [n for n in sockets if not facts[n].up and not _served(facts, n)],
    }


def _served(facts: Facts, socket: str) -> bool:
    service = socket.removesuffix(".socket").removesuffix("-ro").removesuffix("-admin") + ".service"
    return service in facts and facts[service].up


def _action(facts: Facts, kind: str, steps: Mapping[str, list[str]]) -> Action:
    touched = [name for names in steps.values() for name in names]
    words = [f"{verb} {', '.join(names)}" for verb, names in steps.items() if names]
    return Action(
        kind="set_units",
        unit=UNIT,
        text="; ".join(words),
        args={**steps, "was": {name: [facts[name].file, facts[name].active] for name in touched}},
        before={name: _words(facts[name].enabled, facts[name].up) for name in touched},
        after={
            name: _words(
                name in steps["enable"] or (facts[name].enabled and name not in steps["disable"]),
                name in steps["start"] or (facts[name].up and name not in steps["stop"]),
            )
            for name in touched
        },
    )


def _words(enabled: bool, up: bool) -> str:
    return f"{'enabled' if enabled else 'disabled'}, {'running' if up else 'stopped'}"


def origin(facts: Facts) -> dict[str, list[str]]:
    """All of them: `systemctl enable` takes units along that a unit names (Also=)."""
    return {name: [unit.file, unit.active] for name, unit in facts.items() if unit.loaded and name in everything()}


def restore(facts: Facts, before: Mapping[str, Sequence[str]]) -> Plan:
    here = {name: UnitState("loaded", active, file) for name, (file, active) in before.items() if facts[name].loaded}
    # A service that waited for its socket goes with it, and comes with it.
    steps = {
        "disable": [n for n, was in here.items() if facts[n].enabled and not was.enabled],
        "stop": [n for n, was in here.items() if facts[n].up and not was.up and not (n.endswith(".service") and _has_socket(here, n))],
        "enable": [n for n, was in here.items() if not facts[n].enabled and was.enabled],
        "start": [n for n, was in here.items() if not facts[n].up and was.up and n.endswith(".socket") and not _served(facts, n)],
    }
    return Plan(actions=[_action(facts, "", steps)] if any(steps.values()) else [])


def _has_socket(here: Mapping[str, UnitState], service: str) -> bool:
    socket = here.get(service.removesuffix(".service") + ".socket")
    return socket is not None and socket.up


def info(facts: Facts) -> dict[str, Any]:
    return {"daemons": kind_of(facts), "running": running(facts)}


# --- The step ------------------------------------------------------------------------------------------------------


def set_units(host: Host, args: Mapping[str, Any]) -> None:
    """The other kind goes first: both listen at one place."""
    for verb in ("disable", "stop", "enable", "start"):
        _systemctl(host, verb, args[verb])
    facts = read(host)
    wrong = [name for name in args["enable"] if not facts[name].enabled]
    wrong += [name for name in args["start"] if not facts[name].up and not _served(facts, name)]
    wrong += [name for name in args["stop"] if facts[name].up]
    wrong += [name for name in args["disable"] if facts[name].file == "enabled"]
    if wrong:
        raise EngineError(f"systemctl said yes, but {', '.join(wrong)} did not follow. Look at the journal of that unit.")


def undo_units(host: Host, args: Mapping[str, Any]) -> None:
    was = {name: UnitState("loaded", active, file) for name, (file, active) in args["was"].items()}
    _systemctl(host, "stop", [n for n in args["start"] if not was[n].up])
    _systemctl(host, "disable", [n for n in args["enable"] if not was[n].enabled])
    _systemctl(host, "enable", [n for n in args["disable"] if was[n].enabled])
    _systemctl(host, "start", [n for n in args["stop"] if was[n].up and n.endswith(".socket")])


def _systemctl(host: Host, verb: str, names: Sequence[str]) -> None:
    if not names:
        return
    # A daemon that does not stop would hold up the run (TimeoutStopSec is 90 s).
    code, _out, err = host.run(["timeout", "120", "systemctl", verb, "--", *names])
    if code:
        raise EngineError(f"systemctl {verb} {' '.join(names)} failed: {err.strip() or code}. Look at the journal of that unit.")
