# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The boot replay's files on the host: the engine itself, systemd units, udev rules, the operator's command.

Everything is installed by one action with the first declared device and removed with the last. The engine stands in
/var, so a read-only /usr is no obstacle, below a folder named by its content: 'current' is swung over in one step.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from typing import Any

from . import store, sysfs
from .errors import EngineError
from .host import Files, Host
from .model import HOST, Action, State

HOME = "/var/lib/iovirt"
CURRENT = f"{HOME}/engine/current"
UNITS = "/etc/systemd/system"
UNIT = "iovirt-replay.service"
WANTED = f"{UNITS}/multi-user.target.wants/{UNIT}"
RULES = "/etc/udev/rules.d/99-iovirt.rules"
NETWORK = "/etc/systemd/network/00-iovirt-vf.network"
COMMAND = "/usr/local/sbin/iovirt"
PACKAGE = "iovirt_engine"

_NOTE = "# Written by iovirt.host; removed with the last device that the collection owns."

# Before network-pre.target: the VFs are there when the network is configured. Before libvirt: they are there when a
# guest starts by itself. No default dependencies: those would order it after basic.target, far too late.
_BOOT_UNIT = f"""{_NOTE}
[Unit]
Description=iovirt.host: put virtual functions and drivers back
Documentation=https://github.com/iovirt/host
DefaultDependencies=no
RequiresMountsFor=/etc/iovirt {HOME}
# cloud-init chooses the port that it configures before there is a VF to choose.
After=local-fs.target systemd-udev-trigger.service systemd-modules-load.service cloud-init-local.service
Wants=network-pre.target
Before=network-pre.target libvirtd.service virtqemud.service virtnodedevd.service shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=%(python)s -I {CURRENT} replay
# The replay ends by itself before that (its budget); this is for a kernel that does not answer.
TimeoutStartSec=420
TimeoutStopSec=5

[Install]
WantedBy=multi-user.target
"""

_DEVICE_UNIT = f"""{_NOTE}
[Unit]
Description=iovirt.host: put virtual functions and drivers of %%i back
Documentation=https://github.com/iovirt/host
After={UNIT}

[Service]
Type=oneshot
ExecStart=%(python)s -I {CURRENT} replay --device %%i
TimeoutStartSec=300
TimeoutStopSec=5
"""

# Default dependencies: it is not in the way of the boot. A second start while it waits does nothing.
_LINK_UNIT = f"""{_NOTE}
[Unit]
Description=iovirt.host: what %%i waits for a link with
Documentation=https://github.com/iovirt/host
After={UNIT} network-pre.target

[Service]
Type=oneshot
ExecStart=%(python)s -I {CURRENT} replay --device %%i --after-link
TimeoutStartSec=600
TimeoutStopSec=5
"""

# For a networkd that does not know ID_NET_MANAGED_BY (before systemd 255); read when it starts. The name sorts before
# any other, and networkd takes the first file that matches (systemd.network(5)).
_NETWORK_FILE = f"""{_NOTE}
# The network devices of VFs are for guests: without this they would get DHCP the moment they appear.
[Match]
Property=ID_NET_MANAGED_BY=iovirt.host

[Link]
Unmanaged=yes
"""

_COMMAND = f"""#!/bin/sh
{_NOTE}
exec %(python)s -I {CURRENT} "$@"
"""

_MAIN = f"""import sys

from {PACKAGE} import cli

sys.exit(cli.main(sys.argv[1:]))
"""


def link_unit(address: str) -> str:
    """The unit that does what waits for a port's link."""
    return f"iovirt-link@{address}.service"


def wanted_files(
    python: str, declared: Collection[str], ours: Collection[str] = (), stations: Collection[str] = ()
) -> dict[str, tuple[str, int]]:
    """Path -> content and mode of everything but the engine."""
    fill = {"python": python}
    return {
        f"{UNITS}/{UNIT}": (_BOOT_UNIT % fill, 0o644),
        f"{UNITS}/iovirt-replay@.service": (_DEVICE_UNIT % fill, 0o644),
        f"{UNITS}/iovirt-link@.service": (_LINK_UNIT % fill, 0o644),
        RULES: (_rules(declared, ours, stations), 0o644),
        NETWORK: (_NETWORK_FILE, 0o644),
        COMMAND: (_COMMAND % fill, 0o755),
    }


def _rules(declared: Collection[str], ours: Collection[str], stations: Collection[str]) -> str:
    """A driver that comes back (reload, recovery from an error) finds its device as it was declared; events of vfio-pci are
    our own doing. A devlink reload binds nothing anew and makes the port's network device anew. And the network devices
    of VFs of the ports `ours` and the macvtaps `stations` are kept out of NetworkManager (NM_UNMANAGED) and of networkd (ID_NET_MANAGED_BY,
    link_configure in networkd-link.c): else they get DHCP the moment they appear."""
    net, unmanaged = 'SUBSYSTEM=="net", ACTION!="remove", ', 'ENV{ID_NET_MANAGED_BY}="iovirt.host", ENV{NM_UNMANAGED}="1"'
    vf = net + 'ATTR{device/physfn/uevent}=="*PCI_SLOT_NAME=%(a)s*", ' + unmanaged
    # lab: a macvtap says nothing of its kind when it appears (no DEVTYPE), so it is known by its name.
    station = net + 'KERNEL=="%(a)s", ' + unmanaged
    start = 'RUN+="/bin/systemctl --no-block start iovirt-replay@%(a)s.service"'
    events = (
        'ACTION=="bind", SUBSYSTEM=="%(bus)s", KERNEL=="%(a)s", ENV{DRIVER}!="*vfio*", ' + start,
        # drivers/pci/pci-driver.c, pci_uevent_ers
        'ACTION=="change", SUBSYSTEM=="%(bus)s", KERNEL=="%(a)s", ENV{ERROR_EVENT}=="SUCCESSFUL_RECOVERY", ' + start,
        # Not when udev asks for all events again at boot: then the boot unit does it.
        'ACTION=="add", SUBSYSTEM=="net", KERNELS=="%(a)s", ENV{SYNTH_UUID}!="?*", ' + start,
    )
    # A parent of mediated devices registers (mdev_register_parent, drivers/vfio/mdev/mdev_core.c).
    registered = 'ACTION=="change", KERNEL=="%(a)s", ENV{MDEV_STATE}=="registered", ' + start
    # A subchannel appears, or shows that it has a device (io_subchannel_register, drivers/s390/cio/device.c).
    appeared = 'ACTION=="add", SUBSYSTEM=="css", KERNEL=="%(a)s", ENV{SYNTH_UUID}!="?*", ' + start
    fills = [{"a": address, "bus": sysfs.bus_of(address)} for address in sorted(declared)]
    rules = {sysfs.MDEV: (registered,), sysfs.CSS: (appeared, registered), sysfs.PCI: (*events, registered)}
    lines = [rule % fill for fill in fills for rule in rules.get(fill["bus"], events)] + [vf % {"a": address} for address in sorted(ours)]
    lines += [station % {"a": re.sub(r"([*?\[\]|])", r"[\1]", name)} for name in sorted(stations)]
    return "\n".join([_NOTE, *lines]) + "\n"


def engine_files(sources: Mapping[str, str]) -> dict[str, str]:
    """Path below the version's folder -> content."""
    return {"__main__.py": _MAIN, **{f"{PACKAGE}/{name}": text for name, text in sources.items()}}


def version(sources: Mapping[str, str]) -> str:
    """The name of an engine's folder: by its content, so that no two engines share one."""
    digest = hashlib.sha256()
    for name, text in sorted(engine_files(sources).items()):
        digest.update(f"{name}\0{text}\0".encode())
    return digest.hexdigest()[:16]


def brought(host: Host) -> str:
    """The version of the engine that the door brought, which stays the same as long as the call lasts."""
    if not host.version and host.sources is not None:
        host.version = version(host.sources())
    return host.version


def read(files: Files, python: str) -> dict[str, Any]:
    """What is installed: the version of the engine and the text of each file."""
    return {
        "version": files.link(CURRENT),
        "enabled": files.link(WANTED) is not None,
        "files": {path: files.text(path) for path in wanted_files(python, ())},
    }


_RULES_AGAIN = ["udevadm", "control", "--reload"]

#: Kinds of steps that make the replay what it has to be.
STEPS = ("install_replay", "remove_replay", "write_rules")


def plan(
    state: State,
    declared: Collection[str],
    wanted_version: str,
    python: str,
    ours: Collection[str] = (),
    stations: Collection[str] = (),
) -> list[Action]:
    """Install, refresh or remove the replay, by whether any device is declared."""
    now = state.replay
    if not declared:
        return [_removal(now)] if now["version"] else []
    wanted = {path: text for path, (text, _mode) in wanted_files(python, declared, ours, stations).items()}
    # The operator's command may be missing, where it could not be written.
    same = all(now["files"].get(path) in (text, None if path == COMMAND else text) for path, text in wanted.items())
    if now["version"] == wanted_version and now["enabled"] and same:
        return []
    return [
        Action(
            kind="install_replay",
            unit=HOST,
            text=f"install the boot replay in {CURRENT} (engine {wanted_version}) with {UNIT} and {RULES}",
            args={"version": wanted_version, "declared": sorted(declared), "ours": sorted(ours), "stations": sorted(stations), "previous": now},
            before={"replay": _summary(now["version"], now["files"].get(RULES))},
            after={"replay": _summary(wanted_version, wanted[RULES])},
        )
    ]


def follow(state: State, declared: Collection[str], ours: Collection[str], stations: Collection[str] = ()) -> list[Action]:
    """Where a declared card has moved, the rules of udev have to name its new address before its VFs are born."""
    now = state.replay["files"].get(RULES)
    wanted = _rules(declared, ours, stations)
    if now is None or _spoken_of(now) == _spoken_of(wanted):
        return []
    return [
        Action(
            kind="write_rules",
            unit=HOST,
            text=f"let {RULES} follow the devices that have moved",
            args={"text": wanted, "previous": now},
            before={"replay": _summary("", now)},
            after={"replay": _summary("", wanted)},
        )
    ]


def _spoken_of(rules: str) -> set[str]:
    """The ports and devices that rules speak of, and as what."""
    return set(re.findall(r'(KERNEL=="[^"]*"|PCI_SLOT_NAME=[^*]*)', rules))


def write_rules(host: Host, args: Mapping[str, Any]) -> None:
    host.files.replace(RULES, args["text"])
    _reload(host)


def undo_rules(host: Host, args: Mapping[str, Any]) -> None:
    write_rules(host, {"text": args["previous"]})


def _summary(engine: str | None, rules: str | None) -> Any:
    if engine is None:
        return None
    return {"engine": engine, "devices": list(dict.fromkeys(re.findall(r'ACTION=="[^"]*".*KERNEL=="([^"]*)"', rules or "")))}


def _removal(now: Mapping[str, Any]) -> Action:
    return Action(
        kind="remove_replay",
        unit=HOST,
        text=f"remove the boot replay: nothing is declared any more ({CURRENT}, {UNIT}, {RULES})",
        args={"previous": now},
        before={"replay": _summary(now["version"], now["files"].get(RULES))},
        after={"replay": None},
    )


def install(host: Host, args: Mapping[str, Any]) -> None:
    if host.sources is None:
        raise EngineError("internal: this door carries no engine to install.")
    if args["previous"]["version"] != args["version"]:
        # 'current' points to a version when that is there whole.
        _put_engine(host, f"{HOME}/engine/{args['version']}", engine_files(host.sources()))
    wanted = wanted_files(host.python, args["declared"], args["ours"], args["stations"])
    others = [path for path, (text, _mode) in wanted.items() if _is_other(host.files, path, text)]
    for path in others:
        _write(host.files, path, *wanted[path])
    enabled = host.files.link(WANTED) is not None
    host.files.symlink(args["version"], CURRENT)
    host.files.symlink(f"../{UNIT}", WANTED)
    # One more declared port is one more rule of udev: systemd, which takes long to read all its files, has nothing new.
    if host.files.exists("/run/systemd/system"):
        if not enabled or any(path.startswith(UNITS) for path in others):
            _run(host, ["systemctl", "daemon-reload"])
        # Half of it is the start of udevadm. No rule speaks of what happens until a driver is let at a VF (apply.py).
        host.begin_beside(_RULES_AGAIN)
    if RULES in others:
        _mark(host, _ports_in(args["previous"]["files"].get(RULES) or "") ^ set(args["ours"]))
    _remove_engines(host, keep=args["version"])


def _put_engine(host: Host, folder: str, wanted: Mapping[str, str]) -> None:
    # A file that is there already keeps its time of change: Python takes bytecode of another time for outdated.
    missing = {name: text for name, text in wanted.items() if _is_other(host.files, f"{folder}/{name}", text)}
    for name, text in missing.items():
        host.files.replace(f"{folder}/{name}", text)
    # Bytecode beside it, so that neither the replay nor the next run compiles (docs/dev/benchmarks.md). All works without.
    if missing or not host.files.exists(f"{folder}/{PACKAGE}/__pycache__"):
        host.run([host.python, "-I", "-m", "compileall", "-q", folder])


def _ports_in(rules: str) -> set[str]:
    """The ports whose VFs' network devices are marked."""
    return set(re.findall(r"PCI_SLOT_NAME=([^*]*)", rules))


def _mark(host: Host, ports: Collection[str]) -> None:
    """The network devices that are there get, or lose, their marks: udev looks at its rules when there is an event."""
    vfs = [f"{sysfs.device(port)}/{name}" for port in ports for name in host.files.names(sysfs.device(port)) if name.startswith("virtfn")]
    netdevs = [f"/sys/class/net/{netdev}" for vf in vfs for netdev in host.files.names(f"{vf}/net")]
    if netdevs and host.files.exists("/run/systemd/system"):
        host.join()
        code, _out, err = host.run(["udevadm", "trigger", "--action=change", *sorted(netdevs)])
        if code:
            raise EngineError(f"udevadm trigger failed: {err.strip() or code}.")


def _is_other(files: Files, path: str, text: str) -> bool:
    try:
        return files.text(path) != text
    except EngineError:
        # Not even text: it is written anew.
        return True


def _write(files: Files, path: str, text: str, mode: int) -> None:
    try:
        files.replace(path, text, mode)
    except OSError:
        # The operator's command is a convenience: a read-only /usr must not keep the replay off a host.
        if path != COMMAND:
            raise


def undo_install(host: Host, args: Mapping[str, Any]) -> None:
    previous = args["previous"]
    if not previous["version"]:
        remove(host, args)
        return
    # The engine before this one may be gone; this one reads the same documents, so it stays.
    for path, text in previous["files"].items():
        if text is not None:
            _write(host.files, path, text, 0o755 if path == COMMAND else 0o644)
    _reload(host)
    _mark(host, _ports_in(previous["files"].get(RULES) or "") ^ set(args["ours"]))


def remove(host: Host, args: Mapping[str, Any]) -> None:
    for path in (WANTED, *wanted_files(host.python, ())):
        host.files.remove(path)
    _reload(host)
    _remove_engines(host, keep="")
    # Last: while it is there, the next run finishes what this one did not.
    host.files.remove(CURRENT)
    for path in (f"{HOME}/engine", HOME, store.FOLDER):
        if not host.files.names(path):
            host.files.remove(path)


def undo_remove(host: Host, args: Mapping[str, Any]) -> None:
    """The next run that declares a device installs it again; a half-removed replay is worse than none."""


def _remove_engines(host: Host, keep: str) -> None:
    for name in host.files.names(f"{HOME}/engine"):
        if name not in (keep, "current"):
            _remove_tree(host.files, f"{HOME}/engine/{name}")


def _remove_tree(files: Files, path: str) -> None:
    for name in files.names(path):
        _remove_tree(files, f"{path}/{name}")
    files.remove(path)


def _reload(host: Host) -> None:
    """Both daemons read their files again. A host without them (a container) has nothing to replay at boot."""
    for argv in (["systemctl", "daemon-reload"], _RULES_AGAIN):
        if host.files.exists("/run/systemd/system"):
            _run(host, argv)


def _run(host: Host, argv: list[str]) -> None:
    code, _out, err = host.run(argv)
    if code:
        raise EngineError(f"{' '.join(argv)} failed: {err.strip() or code}.")
