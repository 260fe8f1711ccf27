# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which boot loader a host has, found by looking at it, and the one that booted it where there are two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..errors import EngineError
from ..host import Files, Host
from ..model import Action
from . import bls, bootc, grub, ostree, proxmox, sdboot
from .common import Change, Loader, efi_variable

#: A back end is a module with NAME, LOOKS_FOR, fits(files), read(host) and steps(loader, change).
#: Systems that own their boot loader as a whole come first, and nothing is asked after them.
OWNERS: tuple[Any, ...] = (ostree, bootc, proxmox)
LOADERS: tuple[Any, ...] = (sdboot, bls, grub)

#: Systems that write their boot entries anew from a configuration of their own.
REGENERATED = {
    "/etc/NIXOS": "NixOS writes them from its own configuration: set boot.kernelParams there",
    "/usr/bin/sdbootutil": "sdbootutil writes them: set the parameters in /etc/kernel/cmdline and run "
    "'sdbootutil update-all-entries'",
    "/etc/zipl.conf": "zipl has to write them to the disk: set the parameters in /etc/zipl.conf and run zipl",
    "/etc/flash-kernel/db": "flash-kernel writes them: set the parameters in /etc/default/flash-kernel and run it",
}


def read(host: Host) -> Loader:
    """The boot loader of this host. Raises EngineError, saying what was looked for, when there is none that we know,
    or two and nothing tells which one booted."""
    for owner in OWNERS:
        if owner.fits(host.files):
            return _read(owner, host)
    for path, way_out in REGENERATED.items():
        if host.files.exists(path):
            raise EngineError(f"boot loader: its entries are not for others to edit: {way_out}. Nothing was changed.")
    found = [loader for loader in LOADERS if loader.fits(host.files)]
    if not found:
        raise EngineError(_none())
    if len(found) == 1:
        return _read(found[0], host)
    return _choose(host, found)


def _read(back_end: Any, host: Host) -> Loader:
    loader: Loader = back_end.read(host)
    return loader


def steps(loader: Loader, change: Change) -> list[Action]:
    """What has to be done for a change."""
    back_end = next(b for b in (*OWNERS, *LOADERS) if loader.details.get("back_end", loader.name) == b.NAME)
    actions: list[Action] = back_end.steps(loader, change)
    return actions


def _none() -> str:
    looked = "; ".join(f"{back_end.NAME}: {back_end.LOOKS_FOR}" for back_end in (*OWNERS, *LOADERS))
    return (
        "boot loader: none that is known was found, so the kernel command line of the next boot cannot be set. Looked "
        f"for {looked}. Is the EFI system partition mounted? Nothing was changed."
    )


def booted_by(files: Files) -> str | None:
    """Who started the running kernel: 'systemd-boot' (also a unified kernel image), 'grub', or None."""
    said = (efi_variable(files, "LoaderInfo") or "").lower()
    if said.startswith("systemd-boot") or (not said and efi_variable(files, "StubInfo")):
        return "systemd-boot"
    # GRUB sets the variable from 2.12 on; the word BOOT_IMAGE it has set ever since.
    if said.startswith("grub") or "BOOT_IMAGE=" in (files.text("/proc/cmdline") or ""):
        return "grub"
    return None


def _choose(host: Host, found: Sequence[Any]) -> Loader:
    family = booted_by(host.files)
    chosen = [back_end for back_end in found if family == back_end.FAMILY]
    names = " and ".join(back_end.NAME for back_end in found)
    if not chosen and len({back_end.FAMILY for back_end in found}) > 1:
        raise EngineError(
            f"boot loader: {names} are installed, and neither the firmware's variables (LoaderInfo) nor /proc/cmdline "
            "tell which one booted this system. Remove the one that is not used; nothing was changed."
        )
    loader = _read((chosen or found)[0], host)
    if len({back_end.FAMILY for back_end in found}) == 1:
        return loader
    others = " and ".join(back_end.NAME for back_end in found if back_end not in chosen)
    warning = (
        f"Two boot loaders are installed. {loader.name} booted this system and is used; the entries of {others} are "
        "left as they are."
    )
    return replace(loader, warnings=(*loader.warnings, warning))
