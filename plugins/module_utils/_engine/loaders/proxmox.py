# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Proxmox VE with proxmox-boot-tool: it copies kernels and a configuration to EFI system partitions that it mounts by
itself, for systemd-boot from /etc/kernel/cmdline, for GRUB from /etc/default/grub (proxmox-kernel-helper,
zz-proxmox-boot). The partitions are not mounted, so the two files are what is read; the tool's exit status is what is
believed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import cmdline
from ..errors import EngineError
from ..host import Files, Host
from ..model import HOST, Action
from . import edited
from .common import Change, Entry, Loader, efi_variable, predict
from .edited import DEFAULTS, Source

NAME = "proxmox-boot-tool"
FAMILY = "proxmox"
PARTITIONS = "/etc/kernel/proxmox-boot-uuids"
TOOLS = ("/usr/sbin/proxmox-boot-tool", "/sbin/proxmox-boot-tool")
SEED = "/etc/kernel/cmdline"
LOOKS_FOR = f"proxmox-boot-tool with {PARTITIONS}"


def _tool(files: Files) -> str | None:
    return next((path for path in TOOLS if files.exists(path)), None)


def fits(files: Files) -> bool:
    return _tool(files) is not None and bool((files.text(PARTITIONS) or "").strip())


def read(host: Host) -> Loader:
    files = host.files
    record = edited.read_record(files)
    uefi = files.exists("/sys/firmware/efi")
    # Signed installations use GRUB on UEFI as well: the one that booted says so.
    by_grub = not uefi or (efi_variable(files, "LoaderInfo") or "").lower().startswith("grub")
    if by_grub:
        source = Source(DEFAULTS, "defaults", files.text(DEFAULTS), variable="GRUB_CMDLINE_LINUX_DEFAULT")
    else:
        source = Source(SEED, "cmdline", files.text(SEED), fallback=_running(files))
    words = tuple(edited.words_in(source, source.text))
    kernels = [name for name in files.names("/boot") if name.startswith("vmlinuz-")]
    entries = tuple(Entry(f"Proxmox VE, {name[8:]}", f"/boot/{name}", words) for name in reversed(kernels))
    details = {"record": record, "sources": [source], "tool": _tool(files)}
    stale = edited.stale(record, [source])
    return Loader(NAME, entries, record.ours, record.dropped, words, source.path, stale, details, quotes=False)


def _running(files: Files) -> tuple[str, ...]:
    """Without the file the tool takes the command line of this boot."""
    return tuple(cmdline.own(cmdline.split(files.text("/proc/cmdline") or "")))


def steps(loader: Loader, change: Change) -> list[Action]:
    entry = loader.normal[0]
    refresh = Action(
        kind="proxmox_refresh",
        unit=HOST,
        text="copy it to the EFI system partitions with proxmox-boot-tool refresh",
        args={"tool": loader.details["tool"], "previous": {s.path: s.text for s in loader.details["sources"]}},
        before={"next boot": " ".join(entry.words)},
        after={"next boot": " ".join(predict(entry.words, change, loader.ours))},
    )
    return edited.steps(NAME, loader.details["record"], loader.details["sources"], change, [refresh])


def refresh(host: Host, args: Mapping[str, Any]) -> None:
    code, _out, err = host.run([args["tool"], "refresh"])
    if code:
        raise EngineError(f"proxmox-boot-tool refresh failed: {err.strip() or code}.")


def undo_refresh(host: Host, args: Mapping[str, Any]) -> None:
    """Steps are undone in reverse, and the partitions are to get the old file: so it comes back here first."""
    for path, text in args["previous"].items():
        edited.write(host, {"path": path, "text": text, "mode": 0o644})
    refresh(host, args)
