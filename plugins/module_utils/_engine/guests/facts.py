# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a host has for guests, read once: a plain value, no I/O after it is made."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any

from ..errors import StateFileError
from ..host import Files, Host
from ..model import State
from ..plain import dataclass
from . import seed, shares
from .virt import Connection, Domain, NotYet
from .wish import Wish, cpus

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

#: What the collection declared of guests. With it stands what each one was made, so that an operator's hand is told from ours.
RECORD = "/etc/iovirt/guests.json"
VERSION = 1

_NODES = "/sys/devices/system/node"
_HUGEPAGES = "/sys/kernel/mm/hugepages"


@dataclass(frozen=True)
class Facts:
    """A host with its guests. Sizes in KiB. `hugepages`: (node, size of a page) -> pages, all of them and the free ones; node None is the
    host. `files`: path -> its size in bytes, of the files that the wishes name. `seeds`: guests whose seed on disk is as wished."""

    state: State = field(default_factory=State)
    domains: Mapping[str, Domain] = field(default_factory=dict)
    networks: Mapping[str, bool] = field(default_factory=dict)
    arch: str = "x86_64"
    vendor: str = ""
    #: Domain types that libvirt offers for this architecture: 'kvm', 'qemu'.
    types: frozenset[str] = frozenset()
    cpus: frozenset[int] = frozenset()
    nodes: Mapping[int, frozenset[int]] = field(default_factory=dict)
    memory: int = 0
    hugepages: Mapping[tuple[int | None, int], tuple[int, int]] = field(default_factory=dict)
    files: Mapping[str, int | None] = field(default_factory=dict)
    seeds: frozenset[str] = frozenset()
    record: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: libvirt does not answer yet; an earlier call of the run makes it.
    assumed: bool = False


def read(host: Host, connection: Connection, state: State, wishes: Sequence[Wish], assume: Mapping[str, Any] | None = None) -> Facts:
    """`assume`: what an earlier call of the same run would have made (shares.assumed)."""
    # Loading the parser takes a hundredth of a second; runs that change devices come here for the record alone.
    from xml.etree import ElementTree

    files = host.files
    capabilities = ElementTree.fromstring(connection.capabilities())
    arch = capabilities.findtext("host/cpu/arch") or "x86_64"
    return Facts(
        state=shares.read(host, state, wishes, assume or {}),
        domains=connection.domains(),
        networks=connection.networks(),
        arch=arch,
        vendor=capabilities.findtext("host/cpu/vendor") or "",
        types=_types(capabilities, arch),
        cpus=cpus(files.attr("/sys/devices/system/cpu/online") or "") or frozenset(),
        nodes=_nodes(files),
        memory=_memory(files),
        hugepages=dict(_hugepages(files)),
        files={path: files.size(path) for path in _named(wishes)},
        seeds=frozenset(str(wish["name"]) for wish in wishes if "seed" in wish and seed.is_there(files, wish)),
        record=load(files),
        assumed=isinstance(connection, NotYet),
    )


def _types(capabilities: Element, arch: str) -> frozenset[str]:
    found = capabilities.iterfind(f"guest/arch[@name='{arch}']/domain")
    return frozenset(kind for domain in found if (kind := domain.get("type")))


def _nodes(files: Files) -> dict[int, frozenset[int]]:
    names = [name for name in files.names(_NODES) if re.fullmatch(r"node\d+", name)]
    return {int(name[4:]): cpus(files.attr(f"{_NODES}/{name}/cpulist") or "") or frozenset() for name in names}


def _memory(files: Files) -> int:
    found = re.search(r"^MemTotal:\s*(\d+) kB", files.attr("/proc/meminfo") or "", re.MULTILINE)
    return int(found.group(1)) if found else 0


def _hugepages(files: Files) -> Iterator[tuple[tuple[int | None, int], tuple[int, int]]]:
    """Documentation/admin-guide/mm/hugetlbpage.rst."""
    folders: list[tuple[int | None, str]] = [(None, _HUGEPAGES)]
    folders += [(int(n[4:]), f"{_NODES}/{n}/hugepages") for n in files.names(_NODES) if re.fullmatch(r"node\d+", n)]
    for node, folder in folders:
        for name in files.names(folder):
            found = re.fullmatch(r"hugepages-(\d+)kB", name)
            if found:
                pages, free = (files.attr(f"{folder}/{name}/{key}") or "0" for key in ("nr_hugepages", "free_hugepages"))
                yield (node, int(found.group(1))), (int(pages), int(free))


def _named(wishes: Iterable[Wish]) -> set[str]:
    found: set[str] = set()
    for wish in wishes:
        boot = wish.get("boot", {})
        found.update(boot[key] for key in ("kernel", "initrd") if key in boot)
        for disk in wish.get("disks", ()):
            found.update(disk[key] for key in ("path", "source") if str(disk.get(key, "")).startswith("/"))
    return {path for path in found if path.startswith("/") and "/../" not in f"{path}/"}


# --- The record ------------------------------------------------------------------------------------------------------


def load(files: Files) -> dict[str, dict[str, Any]]:
    """Name -> `wish`, `made` (the XML that we wanted, laid out flat), `by`, `at`. What cannot be understood is not guessed at."""
    text = files.text(RECORD)
    if text is None:
        return {}
    try:
        document = json.loads(text)
        guests: dict[str, dict[str, Any]] = document["guests"]
        usable = document["version"] == VERSION and all(
            isinstance(entry["wish"], dict) and isinstance(entry["made"], dict) for entry in guests.values()
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        usable = False
    if not usable:
        raise StateFileError(
            f"{RECORD}: is not a version {VERSION} document of guests. It records what the collection made, so it is not guessed at "
            "and nothing was changed. Put a good copy back, or move the file away: the guests then count as made by others."
        )
    return guests


def save(files: Files, guests: Mapping[str, Mapping[str, Any]]) -> None:
    """Readable by root alone: a seed may hold passwords. The file goes with the last guest."""
    if guests:
        document = {"version": VERSION, "resource": "guests", "guests": guests}
        files.replace(RECORD, json.dumps(document, indent=2, sort_keys=True) + "\n", mode=0o600)
    else:
        files.remove(RECORD)
