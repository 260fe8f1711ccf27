# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Unified kernel images: what they carry, and how one is made anew without ever losing the one that boots."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import EngineError, explain
from ..host import Files, Host
from . import edited, pe
from .common import Change

#: Where images are made and kept until the run has ended: not on the EFI system partition, which is small.
STAGE = "/var/lib/iovirt/boot"
#: Configurations of kernel-install, the first that is there counts (kernel-install(8)).
_CONFIGS = ("/etc/kernel", "/run/kernel", "/usr/local/lib/kernel", "/usr/lib/kernel")
ADDON = "loader/addons/iovirt.addon.efi"


@dataclass(frozen=True)
class Image:
    """A unified kernel image: its own words, those that addons add, and the kernel that it can be made from."""

    path: str
    words: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    version: str = ""
    kernel: str = ""
    size: int = 0
    #: Of this system, by its os-release.
    ours: bool = True


@dataclass(frozen=True)
class Addon:
    """Our addon: what it says now."""

    path: str
    words: tuple[str, ...] = ()


def layout(files: Files) -> str:
    """What kernel-install makes of a kernel: 'bls', 'uki', 'other', or nothing where it decides by itself."""
    for folder in _CONFIGS:
        text = files.text(f"{folder}/install.conf")
        if text is not None:
            found = re.findall(r"^[ \t]*layout[ \t]*=[ \t]*[\"']?(\w+)", text, re.MULTILINE)
            return found[-1] if found else ""
    return ""


def signing(files: Files) -> tuple[str, str] | None:
    """Key and certificate that ukify signs with (ukify(1): SecureBootPrivateKey=, SecureBootCertificate=)."""
    text = files.text("/etc/kernel/uki.conf") or ""
    found = dict(re.findall(r"^[ \t]*(SecureBoot(?:PrivateKey|Certificate))[ \t]*=[ \t]*(\S+)", text, re.MULTILINE))
    key, certificate = found.get("SecureBootPrivateKey"), found.get("SecureBootCertificate")
    return (key, certificate) if key and certificate else None


def read_image(files: Files, path: str) -> Image:
    """What an image carries. One that is damaged, or whose own name is empty after a cut-off swap, is read by its
    second name."""
    real = path if files.exists(path) else edited.twin(path)
    found = pe.sections(files, real) or {}
    version = found.get(".uname", "")
    candidates = (f"/boot/vmlinuz-{version}", f"/usr/lib/modules/{version}/vmlinuz", f"/lib/modules/{version}/vmlinuz")
    kernel = next((c for c in candidates if version and files.exists(c)), "")
    folders = (f"{path.partition('/EFI/')[0]}/loader/addons", f"{path}.extra.d")
    addons = [f"{folder}/{name}" for folder in folders for name in files.names(folder) if name.endswith(".addon.efi")]
    added = tuple(word for addon in addons for word in pe.words(files, addon))
    mine = _os_id(files.text("/etc/os-release") or files.text("/usr/lib/os-release") or "")
    ours = bool(found) and _os_id(found.get(".osrel", "")) in ("", mine)
    return Image(path, pe.words(files, real), added, version, kernel, files.size(real) or 0, ours)


def _os_id(text: str) -> str:
    found = re.search(r"^ID=[\"']?([\w.-]+)", text, re.MULTILINE)
    return found.group(1) if found else ""


def addon(files: Files, roots: Sequence[str]) -> Addon:
    """Our addon, beside the images that it serves."""
    root = next((r for r in roots if files.names(f"{r}/EFI/Linux")), roots[0])
    path = f"{root}/{ADDON}"
    return Addon(path, pe.words(files, path))


# --- Steps -----------------------------------------------------------------------------------------------------------


def build(host: Host, args: Mapping[str, Any]) -> None:
    """Let kernel-install make the image below another $BOOT, look at it, and put it in place."""
    files, path, version = host.files, args["path"], args["version"]
    new = f"{STAGE}/new"
    kept = _kept(path)
    try:
        _remove_tree(files, new)
        files.copy(path, kept)
        # By this file kernel-install knows that entries of type 1 and images may be put here; and it makes the folder.
        files.replace(f"{new}/loader/entries.srel", "type1\n")
        code, _out, err = host.run(["env", f"BOOT_ROOT={new}", "kernel-install", "add", version, args["kernel"]])
        if code:
            said = (err.strip().splitlines() or [f"exit status {code}"])[-1]
            raise EngineError(f"kernel-install add {version} failed: {said}. {path} is as it was.")
        made = [f"{new}/EFI/Linux/{name}" for name in files.names(f"{new}/EFI/Linux") if name.endswith(".efi")]
        image = next((m for m in made if (pe.sections(files, m) or {}).get(".uname") == version), None)
        if image is None:
            raise EngineError(f"kernel-install add {version} made no image. {path} is as it was.")
        change = Change((), (), *(tuple(args[key]) for key in ("present", "absent", "exact")))
        wrong = change.unmet(pe.words(files, image))
        if wrong:
            raise EngineError(
                f"the image that kernel-install made does not say what is wished ({', '.join(wrong)}): look at "
                f"Cmdline= in /etc/kernel/uki.conf. {path} is as it was."
            )
        edited.swap(files, path, lambda target: files.copy(image, target))
    except OSError as error:
        raise EngineError(f"{path} cannot be written: {explain(error)}. The host boots with what it had.") from None
    finally:
        with contextlib.suppress(OSError):
            _remove_tree(files, new)


def undo_build(host: Host, args: Mapping[str, Any]) -> None:
    kept = _kept(args["path"])
    if host.files.exists(kept):
        edited.swap(host.files, args["path"], lambda target: host.files.copy(kept, target))
        host.files.remove(kept)


def _kept(path: str) -> str:
    return f"{STAGE}/was/{path.rpartition('/')[2]}"


def clean(host: Host, args: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):
        _remove_tree(host.files, STAGE)
    if host.files.exists("/var/lib/iovirt") and not host.files.names("/var/lib/iovirt"):
        host.files.remove("/var/lib/iovirt")


def undo_clean(host: Host, args: Mapping[str, Any]) -> None:
    """It comes last; what it removed nobody needs."""


def _remove_tree(files: Files, path: str) -> None:
    if not files.exists(path):
        return
    for name in files.names(path):
        _remove_tree(files, f"{path}/{name}")
    files.remove(path)


def finish(host: Host, args: Mapping[str, Any]) -> None:
    """Both names hold a whole file, or only the second does."""
    files, path = host.files, args["path"]
    other = edited.twin(path)
    try:
        if not files.exists(path):
            files.copy(other, path)
        files.remove(other)
    except OSError as error:
        raise EngineError(f"{path} cannot be written: {explain(error)}. The host boots with {other}.") from None


def undo_finish(host: Host, args: Mapping[str, Any]) -> None:
    """What it ended stays ended."""


def write_addon(host: Host, args: Mapping[str, Any]) -> None:
    _set_addon(host, args, args["words"])


def undo_addon(host: Host, args: Mapping[str, Any]) -> None:
    _set_addon(host, args, args["previous"])


def _set_addon(host: Host, args: Mapping[str, Any], words: Sequence[str]) -> None:
    """An addon that is not there takes nothing from the image, so it needs no second name."""
    files, path = host.files, args["path"]
    if tuple(words) == pe.words(files, path) and bool(words) == files.exists(path):
        return
    new = f"{STAGE}/iovirt.addon.efi"
    try:
        if not words:
            files.remove(path)
            return
        files.replace(f"{STAGE}/.keep", "")
        key = [f"--secureboot-private-key={args['key'][0]}", f"--secureboot-certificate={args['key'][1]}"] if args["key"] else []
        code, _out, err = host.run(["ukify", "build", f"--cmdline={' '.join(words)}", f"--output={new}", *key])
        if code:
            raise EngineError(f"ukify failed: {(err.strip().splitlines() or [str(code)])[-1]}. Is systemd-ukify installed?")
        if pe.words(files, new) != tuple(words):
            raise EngineError("the addon that ukify made does not say what is wished.")
        files.copy(new, path)
    except OSError as error:
        raise EngineError(f"{path} cannot be written: {explain(error)}. The host boots with what it had.") from None
    finally:
        clean(host, {})
