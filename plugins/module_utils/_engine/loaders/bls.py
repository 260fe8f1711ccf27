# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""GRUB with Boot Loader Specification entries in /boot/loader/entries, as on Fedora and RHEL.

The entries and what later kernels get their command line from (/etc/kernel/cmdline, GRUB_CMDLINE_LINUX in
/etc/default/grub) are edited; variables in an entry, such as tuned's $tuned_params, stay as they are. grubby itself
would write the variables out, take rescue entries along, and write without fsync (grubby-bls: update_bls_fragment,
set_bls_value); it is asked afterwards what it sees. An entry that says $kernelopts (RHEL 8) gets its own words in that
place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .. import cmdline
from ..errors import EngineError
from ..host import Files, Host
from ..model import HOST, Action
from . import edited
from .common import Change, Entry, Loader, predict
from .edited import DEFAULTS, Source

NAME = "grub-bls"
FAMILY = "grub"
ENTRIES = "/boot/loader/entries"
SEED = "/etc/kernel/cmdline"
GRUBBY = ("/usr/sbin/grubby", "/usr/bin/grubby", "/sbin/grubby")
LOOKS_FOR = f"grubby with entries in {ENTRIES}"

_ENVIRONMENTS = ("/boot/grub2/grubenv", "/boot/grub/grubenv", "/boot/efi/EFI/redhat/grubenv", "/boot/efi/EFI/fedora/grubenv")
_VARIABLE = re.compile(r"\$\{?(\w+)\}?")


def _grubby(files: Files) -> str | None:
    return next((path for path in GRUBBY if files.exists(path)), None)


def fits(files: Files) -> bool:
    return _grubby(files) is not None and any(name.endswith(".conf") for name in files.names(ENTRIES))


def read(host: Host) -> Loader:
    files = host.files
    record = edited.read_record(files)
    environment = _environment(files)
    kernelopts = tuple(cmdline.split(environment.get("kernelopts", "")))
    sources, entries = [], []
    for name in sorted(files.names(ENTRIES), reverse=True):
        if not name.endswith(".conf"):
            continue
        path = f"{ENTRIES}/{name}"
        source = Source(path, "entry", files.text(path), kernelopts=kernelopts)
        entry = _entry(source, environment)
        if entry.kernel:
            entries.append(entry)
            sources += [] if entry.rescue else [source]
    for path, kind, variable in ((SEED, "cmdline", ""), (DEFAULTS, "defaults", "GRUB_CMDLINE_LINUX")):
        if files.exists(path) or path in record.was:
            sources.append(Source(path, kind, files.text(path), variable=variable))
    seed = files.text(SEED)
    details = {"record": record, "sources": sources, "grubby": _grubby(files)}
    return Loader(
        NAME,
        tuple(entries),
        record.ours,
        record.dropped,
        seed=tuple(edited.cmdline_words(seed)) if seed is not None else None,
        seed_path=SEED,
        stale=edited.stale(record, sources),
        details=details,
    )


def _environment(files: Files) -> dict[str, str]:
    """GRUB's environment block: variables that an entry may name."""
    for path in _ENVIRONMENTS:
        text = files.text(path)
        if text is not None:
            return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    return {}


def _entry(source: Source, environment: Mapping[str, str]) -> Entry:
    text = source.text or ""
    words = " ".join(edited.entry_words(text))
    expanded = _VARIABLE.sub(lambda found: environment.get(found.group(1), ""), words)
    name = source.path.rpartition("/")[2][:-5]
    # By its name: the title of a rescue entry may be in any language.
    title = f"{value(text, 'title') or name}{' (rescue)' if 'rescue' in name else ''}"
    return Entry(title, value(text, "linux") or "", tuple(cmdline.split(expanded)), path=source.path)


def value(text: str, key: str) -> str | None:
    """The value of a key of an entry (UAPI.1 Boot Loader Specification)."""
    found = re.search(rf"^{key}[ \t]+(.*?)[ \t]*$", text, re.MULTILINE)
    return found.group(1) if found else None


def steps(loader: Loader, change: Change) -> list[Action]:
    return edited.steps(NAME, loader.details["record"], loader.details["sources"], change, [_check(loader, change)])


def _check(loader: Loader, change: Change) -> Action:
    entry = loader.normal[0]
    return Action(
        kind="grubby_check",
        unit=HOST,
        text=f"ask grubby what its {len(loader.normal)} entries say now",
        args={"tool": loader.details["grubby"], "kernels": [e.kernel for e in loader.normal], **change.wish()},
        before={"next boot": " ".join(entry.words)},
        after={"next boot": " ".join(predict(entry.words, change, loader.ours))},
    )


def check(host: Host, args: Mapping[str, Any]) -> None:
    """What grubby says of every kernel: index=, kernel="", args="", root="" line by line."""
    code, out, err = host.run([args["tool"], "--info=ALL"])
    if code:
        raise EngineError(f"grubby --info=ALL failed: {err.strip() or code}.")
    change = Change((), (), *(tuple(args[key]) for key in ("present", "absent", "exact")))
    seen = set()
    for kernel, words in _infos(out):
        name = kernel.rpartition("/")[2]
        if name not in {k.rpartition("/")[2] for k in args["kernels"]} or "rescue" in name:
            continue
        seen.add(name)
        wrong = change.unmet(words)
        if wrong:
            raise EngineError(f"grubby says that {kernel} does not come out as wished ({', '.join(wrong)}).")
    missing = [k for k in args["kernels"] if k.rpartition("/")[2] not in seen]
    if missing:
        raise EngineError(f"grubby does not know the kernel {missing[0]} any more.")


def _infos(out: str) -> Sequence[tuple[str, list[str]]]:
    found = []
    kernel = ""
    for line in out.splitlines():
        key, _equals, text = line.partition("=")
        if key == "kernel":
            kernel = text.strip('"')
        if key == "args" and kernel:
            found.append((kernel, cmdline.split(text[1:-1] if text.startswith('"') else text)))
    return found


def undo_check(host: Host, args: Mapping[str, Any]) -> None:
    """It only looks."""
