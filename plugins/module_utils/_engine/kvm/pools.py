# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""libvirt's storage pools (https://libvirt.org/formatstorage.html): folders of the host that hold guests' disks."""

from __future__ import annotations

import os.path
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..host import Host
from ..model import Plan, Refusal
from . import objects
from .objects import POOL, Object

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element


def read(host: Host) -> dict[str, Object]:
    return objects.read(host, POOL, meaning)


def meaning(root: Element) -> dict[str, Any]:
    """In the words of a wish."""
    path = (root.findtext("target/path") or "").strip()
    return {"type": root.get("type"), "path": os.path.normpath(path) if path else None}


def plan(pools: Mapping[str, Object], wishes: Sequence[Mapping[str, Any]], coming: bool) -> Plan:
    result = Plan(refusals=objects.bad_names(POOL, wishes))
    for wish in wishes if not result.refusals else ():
        now = pools.get(wish["name"])
        if wish["state"] == "absent":
            result.actions += objects.remove(POOL, now) if now else []
            continue
        wrong = _refusals(pools, now, wish)
        result.refusals += wrong
        if wrong:
            continue
        path = os.path.normpath(wish["path"]) if wish.get("path") else None
        xml = None if now and path in (None, now.meaning["path"]) else rendered(now.xml if now else None, wish["name"], path or "")
        means = {"type": "dir", "path": path}
        result.actions += objects.converge(POOL, now, wish, xml, means)
    return objects.predicted(result) if coming else result


def _refusals(pools: Mapping[str, Object], now: Object | None, wish: Mapping[str, Any]) -> list[Refusal]:
    path = wish.get("path")
    reason = None
    if now is None and not path:
        reason = "it is not there, and path says not where to make it. Say path"
    elif path and (not path.startswith("/") or any(char in path for char in "\n\0")):
        reason = f"{path!r} is no absolute path. Correct it"
    elif path and now and now.meaning["type"] != "dir":
        reason = f"it is there and of type {now.meaning['type']}, not a folder. Take another name"
    elif path:
        holder = next((p.name for p in pools.values() if p.name != wish["name"] and p.meaning["path"] == os.path.normpath(path)), None)
        reason = f"{path} is the folder of the pool {holder}. Take another one" if holder else None
    return [Refusal(POOL.unit(wish["name"]), f"{reason};", "nothing was changed.")] if reason else []


def rendered(xml: str | None, name: str, path: str) -> str:
    """The definition with the path that is wished; whatever else is in it stays."""
    from xml.etree import ElementTree

    root = ElementTree.fromstring(xml) if xml else ElementTree.Element("pool", type="dir")
    for tags, text in ((("name",), name), (("target", "path"), path)):
        element = root
        for tag in tags:
            found = element.find(tag)
            element = found if found is not None else ElementTree.SubElement(element, tag)
        element.text = text
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def info(pools: Mapping[str, Object]) -> list[dict[str, Any]]:
    """In the form of wishes."""
    return [
        {"name": p.name, "path": p.meaning["path"], "active": p.active, "autostart": p.autostart}
        for p in pools.values()
        if p.meaning["type"] == "dir"
    ]
