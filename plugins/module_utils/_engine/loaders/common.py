# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What all boot loaders share: their entries as plain values, and what is to become of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .. import cmdline
from ..host import Files

#: Words that make an entry one for repairs; they get no parameter of ours and keep theirs.
_RESCUE_WORDS = frozenset(
    {"single", "rescue", "emergency", "systemd.unit=rescue.target", "systemd.unit=emergency.target"}
)
_RESCUE_TITLE = re.compile(r"recovery mode|rescue", re.IGNORECASE)


@dataclass(frozen=True)
class Entry:
    """A boot entry that starts a kernel."""

    title: str
    kernel: str
    words: tuple[str, ...]
    #: Made from the parameters of this system; not by memtest86+, os-prober, another system or by hand.
    generated: bool = True
    #: The file that it stands in, where it has one of its own.
    path: str = ""

    @property
    def rescue(self) -> bool:
        return bool(_RESCUE_TITLE.search(self.title)) or bool(_RESCUE_WORDS & set(self.words))


@dataclass(frozen=True)
class Loader:
    """What a boot loader will do at the next boot, and what of it is ours."""

    name: str
    entries: tuple[Entry, ...]
    #: Parameters that we set, and patterns that we take out of the others.
    ours: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    #: The command line that a kernel yet to be installed will get; None where its tool takes it from the entries.
    seed: tuple[str, ...] | None = None
    #: Where the seed stands, in words.
    seed_path: str = ""
    #: An earlier change was cut off: what is ours is not in the entries yet, or still there.
    stale: bool = False
    #: What only the back end understands.
    details: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    #: Do its tools keep a parameter with a blank in quotes together?
    quotes: bool = True

    @property
    def normal(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.generated and not entry.rescue]

    @property
    def lines(self) -> list[tuple[str, ...]]:
        """Every command line that a boot from now on may use."""
        return [entry.words for entry in self.normal] + ([self.seed] if self.seed is not None else [])


@dataclass(frozen=True)
class Change:
    """What shall be ours from now on, and the wish that it comes from, to look at what came out."""

    ours: tuple[str, ...]
    dropped: tuple[str, ...]
    present: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    exact: tuple[str, ...] = ()

    def unmet(self, words: Sequence[str]) -> list[str]:
        return cmdline.unmet(words, self.present, self.absent, self.exact)

    def wish(self) -> dict[str, list[str]]:
        """For the arguments of a step."""
        return {"present": list(self.present), "absent": list(self.absent), "exact": list(self.exact)}


def predict(words: Sequence[str], change: Change, old: Sequence[str]) -> list[str]:
    """The words of an entry after the change: without our old part and what is now taken out, and ours at the end."""
    kept = [w for w in words if w not in old and not any(cmdline.matches(w, p) for p in change.dropped)]
    return [*kept, *change.ours]


class Mount(NamedTuple):
    point: str
    type: str
    read_only: bool


def mount_of(files: Files, path: str) -> Mount:
    """The file system that a path is on (/proc/self/mountinfo, Documentation/filesystems/proc.rst)."""
    best = Mount("/", "", False)
    for line in (files.text("/proc/self/mountinfo") or "").splitlines():
        fields = line.split()
        if "-" not in fields:
            continue
        point, dash = fields[4], fields.index("-")
        if path == point or path.startswith(point.rstrip("/") + "/"):
            options = set(fields[5].split(",")) | set(fields[-1].split(","))
            if len(point) >= len(best.point) and fields[dash + 1] != "autofs":
                best = Mount(point, fields[dash + 1], "ro" in options)
    return best


def efi_variable(files: Files, name: str) -> str | None:
    """A variable that the boot loader left (systemd's Boot Loader Interface), as text; None when it is not there."""
    text = files.attr(f"/sys/firmware/efi/efivars/{name}-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f")
    # Four bytes of attributes, then UTF-16; all of these are ASCII.
    return re.sub(r"[^ -~]", "", text).strip() if text else None


def secure_boot(files: Files) -> bool:
    """Does the firmware start signed programs only? (UEFI specification, 32.4: SecureBoot)."""
    data = files.data("/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c", 0, 8)
    return data[4:] == b"\1"
