# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Huge pages: how many there are of each size and node, now and at the next boot.

Documentation/admin-guide/mm/hugetlbpage.rst. Now they are written to sysfs, where the kernel gives as many as it has room
for; for the boot they stand on the kernel command line, which gets them before anything else takes the memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .. import aliases, cmdline
from ..errors import EngineError, explain
from ..host import Files, Host
from ..loaders.common import Loader
from ..model import AFTER_REBOOT, CERTAIN, PREDICTED, Action, Plan, Refusal
from ..plain import dataclass
from ..resources import kernel_cmdline
from ..resources.kernel_cmdline import Parameters

SYS = "/sys/kernel/mm/hugepages"
NODES = "/sys/devices/system/node"
#: Seconds. The kernel moves other pages out of the way for a page of 1 GiB.
LIMIT = 120.0
#: KiB that the host has to keep beside its huge pages: below it a boot ends in the hands of the OOM killer.
LEFT = 256 * 1024
#: hugepages=NODE:COUNT,... (commit b5389086ad7b, "hugetlbfs: extend the definition of hugepages parameter").
_NODES_SINCE = (5, 16)

_SIZE = re.compile(r"(\d+)\s*([kmg])(?:i?b)?", re.IGNORECASE)
_UNITS = {"k": 1, "m": 1024, "g": 1024 * 1024}

Key = tuple[int, "int | None"]


@dataclass(frozen=True)
class Facts:
    """`counts`: (size in KiB, node or None for all) -> pages that are there to stay."""

    counts: Mapping[Key, int]
    #: KiB: of the host (None) and of each node.
    total: Mapping[int | None, int]
    available: Mapping[int | None, int]
    #: None: not asked for.
    parameters: Parameters | None = None
    release: str = ""


def parse(text: str) -> int | None:
    """'2M', '1G', '2048kB' -> KiB."""
    found = _SIZE.fullmatch(text.strip())
    return int(found.group(1)) * _UNITS[found.group(2).lower()] if found else None


def word(size: int) -> str:
    """KiB as the kernel command line has it."""
    for unit, letter in ((1024 * 1024, "G"), (1024, "M")):
        if size % unit == 0:
            return f"{size // unit}{letter}"
    return f"{size}K"


def read(host: Host, wished: bool) -> Facts:
    files = host.files
    nodes = [int(name[4:]) for name in files.names(NODES) if re.fullmatch(r"node\d+", name)]
    counts: dict[Key, int] = {}
    for size in _sizes(files):
        counts[size, None] = _persistent(files, folder_of(size, None))
        counts.update({(size, node): _persistent(files, folder_of(size, node)) for node in nodes})
    info = {node: _meminfo(files.text(f"{NODES}/node{node}/meminfo") or "") for node in nodes}
    whole = _meminfo(files.text("/proc/meminfo") or "")
    return Facts(
        counts=counts,
        total={None: whole.get("MemTotal", 0), **{n: i.get("MemTotal", 0) for n, i in info.items()}},
        # A node does not say what is available; its page cache is.
        available={
            None: whole.get("MemAvailable", 0),
            **{n: i.get("MemFree", 0) + i.get("FilePages", 0) for n, i in info.items()},
        },
        parameters=kernel_cmdline.read(host) if wished else None,
        release=aliases.release(files),
    )


def _sizes(files: Files) -> list[int]:
    return sorted(int(name[10:-2]) for name in files.names(SYS) if re.fullmatch(r"hugepages-\d+kB", name))


def folder_of(size: int, node: int | None) -> str:
    return f"{SYS}/hugepages-{size}kB" if node is None else f"{NODES}/node{node}/hugepages/hugepages-{size}kB"


def _persistent(files: Files, folder: str) -> int:
    """Surplus pages are those that a lower count could not take from whoever uses them: they go by themselves."""
    return int(files.attr(f"{folder}/nr_hugepages") or 0) - int(files.attr(f"{folder}/surplus_hugepages") or 0)


def _meminfo(text: str) -> dict[str, int]:
    return {key: int(value) for key, value in re.findall(r"(\w+):\s+(\d+) kB", text)}


# --- The plan ------------------------------------------------------------------------------------------------------


def plan(facts: Facts, wishes: Sequence[Mapping[str, Any]], allow: Sequence[str] = ()) -> Plan:
    """What makes the counts true, now where there is room and with the next boot where there is none."""
    refusals = _refusals(facts, wishes)
    if refusals or facts.parameters is None:
        return Plan(refusals=refusals)
    wanted = {(parse(w["size"]) or 0, w.get("numa_node")): w["count"] for w in wishes}
    words = boot_words(facts.parameters.loader, wanted)
    boot = kernel_cmdline.plan(facts.parameters, kernel_cmdline.Wish(present=words), allow)
    result = Plan(actions=boot.actions, refusals=boot.refusals, warnings=boot.warnings)
    booted_with = not cmdline.unmet(facts.parameters.running, words, ())
    later = not boot.actions and not booted_with
    for key, count in wanted.items():
        now = facts.counts[key]
        if now == count:
            continue
        delta = sum(size * (n - facts.counts[size, node]) for (size, node), n in wanted.items() if node == key[1])
        waits = count > now and (later or delta > facts.available[key[1]])
        result.actions.append(_set(key, now, count, AFTER_REBOOT if waits else PREDICTED if count > now else CERTAIN, booted_with))
        if waits:
            result.reboot_reasons.append(f"{name(key)}: {now} of {count} are there; the others come with the boot")
    return result


def name(key: Key) -> str:
    """What the pages are called in a sentence, and the unit that their steps share."""
    return f"huge pages {word(key[0])}" + ("" if key[1] is None else f" of NUMA node {key[1]}")


def _set(key: Key, now: int, count: int, certainty: str, strict: bool) -> Action:
    return Action(
        kind="set_hugepages",
        unit=name(key),
        text=f"set their number from {now} to {count}",
        certainty=certainty,
        args={"folder": folder_of(*key), "to": count, "from": now, "strict": strict},
        before={"count": now},
        after={"count": count},
    )


def boot_words(loader: Loader, wanted: Mapping[Key, int]) -> list[str]:
    """hugepagesz=2M hugepages=512, or hugepages=0:256,1:256 for nodes. None for a size of which none are wished and of
    which nobody speaks."""
    words = []
    for size in sorted({size for size, _node in wanted}):
        per_node = {node: count for (s, node), count in wanted.items() if s == size and node is not None}
        count = ",".join(f"{node}:{n}" for node, n in sorted(per_node.items())) or str(wanted.get((size, None), 0))
        said = any(word(size) in cmdline.huge_pages(line) for line in loader.lines)
        if said or any(n for (s, _node), n in wanted.items() if s == size):
            words += [f"{cmdline.SIZE}={word(size)}", f"{cmdline.COUNT}={count}"]
    return words


def _refusals(facts: Facts, wishes: Sequence[Mapping[str, Any]]) -> list[Refusal]:
    found: list[Refusal] = []
    seen: set[tuple[int | None, int | None]] = set()
    sizes = sorted({size for size, _node in facts.counts})
    for wish in wishes:
        size, node = parse(wish["size"]), wish.get("numa_node")
        unit = "huge pages " + (wish["size"] if size is None else word(size))
        if size not in sizes:
            has = ", ".join(map(word, sizes)) or "none"
            found.append(Refusal(unit, f"the kernel has no pages of that size (it has {has}).", _CORRECT))
        elif node is not None and (size, node) not in facts.counts:
            nodes = ", ".join(str(n) for n in facts.total if n is not None)
            found.append(Refusal(unit, f"there is no NUMA node {node} (there are {nodes or 'none'}).", _CORRECT))
        elif wish["count"] < 0:
            found.append(Refusal(unit, f"{wish['count']} is no number of pages.", _CORRECT))
        elif (size, node) in seen or any(s == size and (n is None) != (node is None) for s, n in seen):
            found.append(Refusal(unit, "they are wished twice, or for all nodes and for one.", _CORRECT))
        elif node is not None and _version(facts.release) < _NODES_SINCE:
            reason = f"the kernel {facts.release} takes no numbers for single nodes at boot; 5.16 does."
            found.append(Refusal(unit, reason, "Leave numa_node out. Nothing was changed."))
        seen.add((size, node))
    return found or _too_much(facts, wishes)


_CORRECT = "Correct kvm_hugepages; nothing was changed."


def _version(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", release)[:2])


def _too_much(facts: Facts, wishes: Sequence[Mapping[str, Any]]) -> list[Refusal]:
    """Sizes that nobody speaks of keep what they have."""
    wanted = {(parse(w["size"]) or 0, w.get("numa_node")): w["count"] for w in wishes}
    spoken = {size for size, _node in wanted}
    kept = {key: count for key, count in facts.counts.items() if key[0] not in spoken}
    found = []
    for node, total in facts.total.items():
        need, left = _need(wanted, kept, node), LEFT if node is None else 0
        if need and need > total - left:
            where = "the host" if node is None else f"NUMA node {node}"
            reason = f"{need // 1024} MiB are wished, and {where} has {total // 1024} MiB, of which {left // 1024} have to stay."
            found.append(Refusal("huge pages", reason, _CORRECT))
    return found


def _need(wanted: Mapping[Key, int], kept: Mapping[Key, int], node: int | None) -> int:
    """KiB of the host (None) or of a node."""
    ours = sum(size * count for (size, at), count in wanted.items() if node is None or at == node)
    return ours + sum(size * count for (size, at), count in kept.items() if at == node)


def origin(facts: Facts, wishes: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    keys = [(parse(w["size"]) or 0, w.get("numa_node")) for w in wishes]
    return {_text(key): facts.counts[key] for key in keys if key in facts.counts}


def restore(facts: Facts, before: Mapping[str, int]) -> Plan:
    """The counts as they were, and nothing of ours on the command line."""
    if facts.parameters is None:
        return Plan()
    boot = kernel_cmdline.plan(facts.parameters, kernel_cmdline.Wish(release=[cmdline.SIZE, cmdline.COUNT]))
    result = Plan(actions=boot.actions, refusals=boot.refusals, warnings=boot.warnings)
    for text, count in before.items():
        key = _key(text)
        now = facts.counts.get(key)
        if now is not None and now != count:
            result.actions.append(_set(key, now, count, CERTAIN if count < now else PREDICTED, True))
    return result


def _text(key: Key) -> str:
    return f"{key[0]}" if key[1] is None else f"{key[0]}@{key[1]}"


def _key(text: str) -> Key:
    size, _at, node = text.partition("@")
    return int(size), int(node) if node else None


def info(facts: Facts) -> list[dict[str, Any]]:
    """In the form of wishes: by node where there are several."""
    several = len([node for node in facts.total if node is not None]) > 1
    return [
        {"size": word(size), "count": count, **({} if node is None else {"numa_node": node})}
        for (size, node), count in sorted(facts.counts.items(), key=str)
        if (node is not None) == several
    ]


# --- The step ------------------------------------------------------------------------------------------------------


def set_count(host: Host, args: Mapping[str, Any]) -> None:
    """Where they are to come with the next boot anyway, fewer than wished are given back at once: half of them is memory
    that nobody can use as meant."""
    got = _write(host, args["folder"], args["to"])
    if got == args["to"]:
        return
    if not args["strict"]:
        _write(host, args["folder"], args["from"])
        return
    raise EngineError(
        f"the kernel gave {got} of {args['to']}: its memory is too full or too scattered. End guests, or reboot: the "
        "kernel command line has the number."
    )


def undo_count(host: Host, args: Mapping[str, Any]) -> None:
    _write(host, args["folder"], args["from"])


def _write(host: Host, folder: str, count: int) -> int:
    try:
        host.files.write(f"{folder}/nr_hugepages", str(count), limit=LIMIT)
    except OSError as error:
        raise EngineError(f"the kernel answered {explain(error)} to {count} pages.") from None
    return _persistent(host.files, folder)
