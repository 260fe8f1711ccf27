# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What networks and storage pools of libvirt have in common: a definition, and being active and started by itself.

Both are read from libvirt's own files, as a daemon that is asked would be started by it, and changed by virsh(1). Only
which pools are active has to be asked for: a pool whose folder is there is active as soon as a daemon has started, and
then has no file that says so (storagePoolUpdateStateCallback in libvirt's storage_driver.c; lab).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import EngineError
from ..host import Files, Host
from ..model import CERTAIN, PREDICTED, Action, Plan, Refusal
from ..plain import dataclass

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

#: What libvirt itself takes for a name, less what a shell or a path would stumble over.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+:@-]*")

#: Seconds for one command of virsh: a daemon that does not answer must not hold up the run.
LIMIT = 60


#: Sockets of the daemons that qemu:///system leads to; without one of them nobody listens.
_LISTENING = ("/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock")


@dataclass(frozen=True)
class Kind:
    """`prefix` is that of virsh's commands."""

    word: str
    prefix: str
    defined: str

    def path(self, name: str) -> str:
        return f"{self.defined}/{name}.xml"

    def unit(self, name: str) -> str:
        return f"{self.word} {name}"


NETWORK = Kind("network", "net", "/etc/libvirt/qemu/networks")
POOL = Kind("pool", "pool", "/etc/libvirt/storage")
#: The status of networks that are active; it outlives the daemon.
_ACTIVE = "/run/libvirt/network"
KINDS = {kind.word: kind for kind in (NETWORK, POOL)}


@dataclass(frozen=True)
class Object:
    """A network or a pool as it is."""

    name: str
    xml: str
    active: bool
    autostart: bool
    #: What the definition means, in the words of a wish.
    meaning: Mapping[str, Any]


Meaning = Callable[["Element"], "dict[str, Any]"]


def read(host: Host, kind: Kind, meaning: Meaning) -> dict[str, Object]:
    """All that are defined. One that is active and not defined (virsh net-create) is not among them."""
    files, running = host.files, active(host, kind)
    found = {}
    for entry in files.names(kind.defined):
        name = entry[: -len(".xml")]
        text = files.text(f"{kind.defined}/{entry}") if entry.endswith(".xml") else None
        root = parse(text or "")
        if root is not None and (root.findtext("name") or "").strip() == name:
            found[name] = Object(name, text or "", name in running, starts(files, kind, name), meaning(root))
    return found


def parse(text: str) -> Element | None:
    """None for what is no XML: libvirt does not load it either."""
    # Loading the parser takes a hundredth of a second.
    from xml.etree import ElementTree

    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return None


def active(host: Host, kind: Kind) -> frozenset[str]:
    """Names. Pools cost one process, and are none where no daemon listens."""
    if kind is NETWORK:
        return frozenset(entry[:-4] for entry in host.files.names(_ACTIVE) if entry.endswith(".xml"))
    if not any(host.files.exists(path) for path in _LISTENING) or not host.files.names(kind.defined):
        return frozenset()
    return frozenset(line.strip() for line in virsh(host, ["pool-list", "--name"]).splitlines() if line.strip())


def starts(files: Files, kind: Kind, name: str) -> bool:
    return files.link(f"{kind.defined}/autostart/{name}.xml") is not None


def bad_names(kind: Kind, wishes: Sequence[Mapping[str, Any]]) -> list[Refusal]:
    names = [wish["name"] for wish in wishes]
    found = [
        Refusal(kind.unit(name), "that is no name: letters, digits and . _ - + : @ are.", "Correct it; nothing was changed.")
        for name in names
        if not _NAME.fullmatch(name)
    ]
    twice = sorted({name for name in names if names.count(name) > 1})
    return found + [Refusal(kind.unit(n), "it is wished twice.", "Correct it; nothing was changed.") for n in twice]


# --- The plan ------------------------------------------------------------------------------------------------------


def converge(kind: Kind, now: Object | None, wish: Mapping[str, Any], xml: str | None, meaning: Mapping[str, Any]) -> list[Action]:
    """`xml`: the definition to be; None where the one that is there means what is wished. An active one is stopped
    before it is redefined, and the way back goes the same way."""
    name = wish["name"]
    actions = []
    up = now.active if now else False
    if xml is not None:
        if up:
            actions.append(_switch(kind, name, False, "stop it, for its new definition"))
            up = False
        actions.append(_define(kind, name, xml, now, meaning))
    if kind is POOL and xml is not None:
        actions.append(_build(name, meaning["path"]))
    if wish["active"] != up:
        actions.append(_switch(kind, name, wish["active"], "start it" if wish["active"] else "stop it"))
    if wish["autostart"] != (now.autostart if now else False):
        actions.append(_autostart(kind, name, wish["autostart"]))
    return actions


def remove(kind: Kind, now: Object) -> list[Action]:
    """What is in a pool stays where it is."""
    stop = [_switch(kind, now.name, False, "stop it")] if now.active else []
    undo = {**_args(kind, now.name), "xml": None, "previous": now.xml, "autostart": now.autostart}
    gone = Action("libvirt_define", kind.unit(now.name), "undefine it", args=undo, before={"defined": dict(now.meaning)})
    return [*stop, gone]


def restored(kind: Kind, now: Mapping[str, Object], before: Mapping[str, Mapping[str, Any] | None], meaning: Meaning) -> Plan:
    """Each as it was before the collection touched it."""
    result = Plan()
    for name, was in before.items():
        here = now.get(name)
        if was is None:
            result.actions += remove(kind, here) if here else []
            continue
        root = parse(was["xml"])
        means = meaning(root) if root is not None else {}
        wish = {"name": name, "active": was["active"], "autostart": was["autostart"]}
        xml = None if here and here.meaning == means else was["xml"]
        result.actions += converge(kind, here, wish, xml, means)
    return result


def origin(now: Mapping[str, Object], wishes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """None: it was not there. What is not there and shall not be is none of ours."""
    found: dict[str, Any] = {}
    for wish in wishes:
        here = now.get(wish["name"])
        if here:
            found[wish["name"]] = {"xml": here.xml, "active": here.active, "autostart": here.autostart}
        elif wish["state"] == "present":
            found[wish["name"]] = None
    return found


def predicted(plan: Plan) -> Plan:
    """libvirt is not there yet: what its packages bring along nobody knows."""
    plan.actions = [replace(action, certainty=PREDICTED) for action in plan.actions]
    return plan


def _args(kind: Kind, name: str) -> dict[str, Any]:
    return {"kind": kind.word, "name": name}


def _define(kind: Kind, name: str, xml: str, now: Object | None, meaning: Mapping[str, Any]) -> Action:
    args = {**_args(kind, name), "xml": xml, "previous": now.xml if now else None, "autostart": bool(now and now.autostart)}
    before = {"defined": dict(now.meaning)} if now else {}
    return Action("libvirt_define", kind.unit(name), "redefine it" if now else "define it", CERTAIN, args, before, {"defined": dict(meaning)})


def _switch(kind: Kind, name: str, on: bool, text: str) -> Action:
    state = {True: "active", False: "inactive"}
    args = {**_args(kind, name), "active": on}
    return Action("libvirt_active", kind.unit(name), text, args=args, before={"state": state[not on]}, after={"state": state[on]})


def _autostart(kind: Kind, name: str, on: bool) -> Action:
    text = f"start it with the host{'' if on else ' no longer'}"
    args = {**_args(kind, name), "on": on}
    return Action("libvirt_autostart", kind.unit(name), text, args=args, before={"autostart": not on}, after={"autostart": on})


def _build(name: str, path: str) -> Action:
    """libvirt makes the folder where there is none, with the label that guests need."""
    args = {"name": name, "path": path}
    return Action("libvirt_build", POOL.unit(name), f"make sure of its folder {path}", args=args)


# --- The steps -----------------------------------------------------------------------------------------------------


def define(host: Host, args: Mapping[str, Any]) -> None:
    _put(host, args, args["xml"])


def undo_define(host: Host, args: Mapping[str, Any]) -> None:
    _put(host, args, args["previous"])
    if args["previous"] is not None:
        _mark(host, args, args["autostart"])


def _put(host: Host, args: Mapping[str, Any], xml: str | None) -> None:
    kind, name = KINDS[args["kind"]], args["name"]
    if xml is None:
        if host.files.exists(kind.path(name)):
            virsh(host, [f"{kind.prefix}-undefine", name])
    elif host.files.text(kind.path(name)) != xml:
        virsh(host, [f"{kind.prefix}-define", "/dev/stdin"], _with_uuid(host, kind, name, xml))
    if host.files.exists(kind.path(name)) != (xml is not None):
        raise EngineError(f"virsh said yes, but {kind.path(name)} is {'not ' if xml else 'still '}there. Look at libvirt's log.")
    if xml is not None and not _means(kind, host.files.text(kind.path(name)) or "", xml):
        raise EngineError(f"virsh said yes, but {kind.path(name)} says something else. Look at libvirt's log.")


def _with_uuid(host: Host, kind: Kind, name: str, xml: str) -> str:
    """Of two definitions with one name and without one UUID libvirt takes the second for another object, and refuses it.
    A definition that a package brought has none until a daemon has read it."""
    from xml.etree import ElementTree

    root = ElementTree.fromstring(xml)
    if root.find("uuid") is not None or not host.files.exists(kind.path(name)):
        return xml
    element = ElementTree.Element("uuid")
    element.text = virsh(host, [f"{kind.prefix}-uuid", name]).strip()
    root.insert(1, element)
    return ElementTree.tostring(root, encoding="unicode")


def _means(kind: Kind, now: str, wanted: str) -> bool:
    """libvirt adds what nobody named (a UUID, a bridge, a MAC address)."""
    from . import networks, pools

    meaning = networks.meaning if kind is NETWORK else pools.meaning
    said, asked = (meaning(root) if (root := parse(text)) is not None else {} for text in (now, wanted))
    return all(said.get(key) == value for key, value in asked.items() if value is not None)


def set_active(host: Host, args: Mapping[str, Any]) -> None:
    _activate(host, args, args["active"])


def undo_active(host: Host, args: Mapping[str, Any]) -> None:
    _activate(host, args, not args["active"])


def _activate(host: Host, args: Mapping[str, Any], on: bool) -> None:
    kind, name = KINDS[args["kind"]], args["name"]
    if (name in active(host, kind)) != on:
        virsh(host, [f"{kind.prefix}-{'start' if on else 'destroy'}", name])
    if (name in active(host, kind)) != on:
        raise EngineError(f"virsh said yes, but the {kind.word} is {'not ' if on else 'still '}active. Look at libvirt's log.")


def set_autostart(host: Host, args: Mapping[str, Any]) -> None:
    _mark(host, args, args["on"])


def undo_autostart(host: Host, args: Mapping[str, Any]) -> None:
    _mark(host, args, not args["on"])


def _mark(host: Host, args: Mapping[str, Any], on: bool) -> None:
    kind, name = KINDS[args["kind"]], args["name"]
    if starts(host.files, kind, name) != on:
        virsh(host, [f"{kind.prefix}-autostart", name, *([] if on else ["--disable"])])
    if starts(host.files, kind, name) != on:
        raise EngineError(f"virsh said yes, but the {kind.word} is {'not ' if on else 'still '}marked for autostart.")


def build(host: Host, args: Mapping[str, Any]) -> None:
    if not host.files.exists(args["path"]):
        virsh(host, ["pool-build", args["name"]])
    if not host.files.exists(args["path"]):
        raise EngineError(f"virsh said yes, but there is no folder {args['path']}. Look at libvirt's log.")


def undo_build(host: Host, args: Mapping[str, Any]) -> None:
    """An empty folder harms nobody; whether it was there before is not known after a step that failed half way."""


def virsh(host: Host, words: Sequence[str], data: str = "") -> str:
    """Raises EngineError with what libvirt said."""
    code, out, err = host.run(["timeout", str(LIMIT), "virsh", "--quiet", "--connect", "qemu:///system", *words], data)
    if code == 124:
        raise EngineError(f"virsh {words[0]}: libvirt has not answered within {LIMIT} s. Look at the journal of its daemon.")
    if code:
        said = " ".join(line.removeprefix("error: ").strip() for line in err.strip().splitlines()) or str(code)
        way = " Is its daemon running (kvm_daemons: auto starts it)?" if "connect" in said else ""
        raise EngineError(f"virsh {words[0]}: {said.rstrip('.')}.{way}")
    return out
