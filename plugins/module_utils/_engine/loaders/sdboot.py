# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""systemd-boot and unified kernel images: entries of both types on the EFI system partition or $BOOT.

/etc/kernel/cmdline is what kernel-install gives to later kernels, and is edited with the entries that are there.
Entries of type 1 are edited as they are: kernel-install writes kernel, initrd and entry over the ones that boot. An
image that kernel-install makes here (layout=uki) is made anew elsewhere and put in place whole; to one from elsewhere
an addon is added, which can say more but take nothing away (systemd-stub(7)).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .. import cmdline
from ..errors import EngineError
from ..host import LEFTOVER, Files, Host
from ..model import HOST, Action
from . import bls, edited, uki
from .common import Change, Entry, Loader, efi_variable, predict, secure_boot
from .edited import Record, Source

NAME = FAMILY = "systemd-boot"
#: Where the EFI system partition and $BOOT are mounted (bootctl(1)).
ROOTS = ("/efi", "/boot", "/boot/efi")
SEED = "/etc/kernel/cmdline"
LOOKS_FOR = f"EFI/systemd/systemd-boot*.efi or unified kernel images in EFI/Linux below {', '.join(ROOTS)}, started by UEFI"


def fits(files: Files) -> bool:
    if not files.exists("/sys/firmware/efi"):
        return False
    started = any(name.startswith("systemd-boot") for r in ROOTS for name in files.names(f"{r}/EFI/systemd"))
    return started or (efi_variable(files, "StubInfo") is not None and bool(_images(files)))


def read(host: Host) -> Loader:
    files = host.files
    record = edited.read_record(files)
    leftovers: list[str] = []
    sources, entries = _type1(files, leftovers)
    images = [_image(files, path, leftovers) for path in _images(files)]
    unfinished = [f"{folder}/{n}" for folder in _folders() for n in files.names(folder) if LEFTOVER.fullmatch(n)]
    entries += [_entry_of(files, image) for image in images]
    entries = sorted(entries, key=lambda entry: _natural(entry.kernel), reverse=True)
    seed = _seed(files, entries)
    mine = [s for s in sources if any(e.path == s.path and e.generated and not e.rescue for e in entries)]
    rebuilt = uki.layout(files) == "uki"
    all_sources = [seed, *mine]
    details = {
        "back_end": NAME,
        "record": record,
        "sources": all_sources,
        "images": images,
        "rebuilt": rebuilt,
        "leftovers": leftovers,
        "unfinished": unfinished,
        "signing": uki.signing(files),
        "secure_boot": secure_boot(files),
        "room": {root: _room(files, root, unfinished) for root in ROOTS},
        "addon": uki.addon(files, ROOTS),
        "stage": files.exists(uki.STAGE),
    }
    stale = edited.stale(record, all_sources) or bool(leftovers or unfinished) or _images_stale(record, images, rebuilt)
    return Loader(
        "uki" if images and not mine else NAME,
        tuple(entries),
        record.ours,
        record.dropped,
        seed=tuple(edited.words_in(seed, seed.text)),
        seed_path=SEED,
        stale=stale or bool(details["stage"]),
        details=details,
        warnings=_warnings(images, rebuilt),
    )


def _folders() -> list[str]:
    """Where we write on the partition."""
    return [f"{root}/{folder}" for root in ROOTS for folder in ("loader/entries", "loader/addons", "EFI/Linux")]


def _room(files: Files, root: str, unfinished: Sequence[str]) -> int | None:
    """What will be free when the unfinished files of a run that was cut off are gone."""
    free = files.free(root)
    return None if free is None else free + sum(files.size(p) or 0 for p in unfinished if p.startswith(f"{root}/"))


def _natural(text: str) -> list[Any]:
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", text)]


def _warnings(images: Sequence[uki.Image], rebuilt: bool) -> tuple[str, ...]:
    left = [image.path for image in images if rebuilt and image.ours and not image.kernel]
    if not left:
        return ()
    return (f"{', '.join(left)}: the kernel of this image is not on the host, so it is left as it is.",)


# --- Entries ---------------------------------------------------------------------------------------------------------


def _type1(files: Files, leftovers: list[str]) -> tuple[list[Source], list[Entry]]:
    sources, entries = [], []
    for root in ROOTS:
        for path in _named(files, f"{root}/loader/entries", ".conf"):
            text = files.text(path)
            if files.exists(edited.twin(path)):
                leftovers.append(path)
                text = text if text is not None else files.text(edited.twin(path))
            entry = _entry(files, root, path, text or "")
            if entry:
                sources.append(Source(path, "entry", text))
                entries.append(entry)
    return sources, entries


def _named(files: Files, folder: str, ending: str) -> list[str]:
    """The files of a folder; one that a cut-off swap left under its second name alone comes under its own."""
    names = [name for name in files.names(folder) if name.endswith(ending)]
    return [f"{folder}/{name}" for name in sorted({n[7:] if n.startswith("iovirt-") else n for n in names})]


def _entry(files: Files, root: str, path: str, text: str) -> Entry | None:
    """An entry of type 1 that starts a Linux kernel which is there (UAPI.1)."""
    kernel = bls.value(text, "linux")
    if kernel is None:
        return None
    name = path.rpartition("/")[2][:-5]
    machine = bls.value(text, "machine-id")
    ours = machine in (None, files.attr("/etc/machine-id")) and files.exists(f"{root}/{kernel.lstrip('/')}")
    title = f"{bls.value(text, 'title') or name} ({bls.value(text, 'version') or name})"
    return Entry(title, bls.value(text, "version") or kernel, tuple(edited.entry_words(text)), ours, path)


def _images(files: Files) -> list[str]:
    return [path for root in ROOTS for path in _named(files, f"{root}/EFI/Linux", ".efi")]


def _image(files: Files, path: str, leftovers: list[str]) -> uki.Image:
    if files.exists(edited.twin(path)):
        leftovers.append(path)
    return uki.read_image(files, path)


def _entry_of(files: Files, image: uki.Image) -> Entry:
    name = image.path.rpartition("/")[2]
    return Entry(f"{name} (unified kernel image)", image.version or name, image.words + image.added, image.ours, image.path)


def _seed(files: Files, entries: Sequence[Entry]) -> Source:
    """What kernel-install gives to a kernel: /etc/kernel/cmdline, else that of /usr/lib, else the running command line.
    In its place stands an entry's here: this boot may have been started with words typed for it alone."""
    vendor = files.text("/usr/lib/kernel/cmdline")
    words: Sequence[str] = edited.cmdline_words(vendor) if vendor is not None else ()
    if vendor is None:
        normal = [entry for entry in entries if entry.generated and not entry.rescue]
        running = cmdline.split(files.text("/proc/cmdline") or "")
        words = cmdline.own(normal[0].words if normal else running)
    return Source(SEED, "cmdline", files.text(SEED), fallback=tuple(words))


# --- Plan ------------------------------------------------------------------------------------------------------------


def _expected(record: Record, image: uki.Image, ours: Sequence[str], dropped: Sequence[str]) -> list[str]:
    """The words that an image has to carry."""
    clean = [w for w in image.words if w not in record.ours]
    clean += [w for w in record.lost if w not in image.words]
    return [w for w in clean if not any(cmdline.matches(w, p) for p in dropped)] + list(ours)


def _images_stale(record: Record, images: Sequence[uki.Image], rebuilt: bool) -> bool:
    if not record.loader:
        return False
    ours = [image for image in images if image.ours]
    if rebuilt:
        return any(
            sorted(_expected(record, image, record.ours, record.dropped)) != sorted(image.words)
            for image in ours
            if image.kernel
        )
    return any(word not in image.words + image.added for image in ours for word in record.ours)


def steps(loader: Loader, change: Change) -> list[Action]:
    details = loader.details
    record: Record = details["record"]
    finish = [_remove(path) for path in details["unfinished"]] + [_finish(path) for path in details["leftovers"]]
    builds = _builds(loader, change) if details["rebuilt"] else _addons(loader, change)
    if builds and details["secure_boot"] and not details["signing"]:
        raise EngineError(
            "boot loader: Secure Boot is on and /etc/kernel/uki.conf names no key (SecureBootPrivateKey), so an image "
            "or addon made here would be unsigned and refused at boot. Nothing was changed."
        )
    actions = edited.steps(NAME, record, details["sources"], change, builds)
    if details["stage"] or any(action.kind == "build_uki" for action in builds):
        actions.append(_clean())
    return _with_lines(loader, change, [*finish, *actions])


def _with_lines(loader: Loader, change: Change, actions: list[Action]) -> list[Action]:
    """The diff shows the next boot's command line once, with the first step."""
    if not actions or not loader.normal:
        return actions
    words = loader.normal[0].words
    first = actions[0]
    before = {**first.before, "next boot": " ".join(words)}
    after = {**first.after, "next boot": " ".join(predict(words, change, loader.ours))}
    return [Action(first.kind, first.unit, first.text, first.certainty, first.args, before, after), *actions[1:]]


def _builds(loader: Loader, change: Change) -> list[Action]:
    record: Record = loader.details["record"]
    actions = []
    for image in loader.details["images"]:
        if not image.ours or not image.kernel:
            continue
        want = _expected(record, image, change.ours, change.dropped)
        if sorted(want) != sorted(image.words):
            _check_room(loader, image)
            actions.append(_build(image, want, change))
    return actions


def _check_room(loader: Loader, image: uki.Image) -> None:
    room: Mapping[str, int | None] = loader.details["room"]
    free = next(room[root] for root in sorted(ROOTS, key=len, reverse=True) if image.path.startswith(f"{root}/"))
    # The new image stands beside the old one before that one goes; FAT rounds up to clusters.
    if free is not None and free < image.size + (1 << 20):
        raise EngineError(
            f"boot loader: {image.path} has {image.size >> 20} MiB and its file system only {free >> 20} MiB free: the "
            "new image has to fit beside the old one. Make room on it first; nothing was changed."
        )


def _build(image: uki.Image, words: Sequence[str], change: Change) -> Action:
    return Action(
        kind="build_uki",
        unit=HOST,
        text=f"make {image.path} anew with kernel-install, elsewhere, and put it in place",
        args={"path": image.path, "version": image.version, "kernel": image.kernel, **change.wish()},
        before={image.path: " ".join(image.words)},
        after={image.path: " ".join(words)},
    )


def _clean() -> Action:
    return Action(kind="clean_uki", unit=HOST, text=f"remove {uki.STAGE}, where images were made", args={})


def _remove(path: str) -> Action:
    return Action(
        kind="write_file",
        unit=HOST,
        text=f"remove {path}, the unfinished file of a run that was cut off",
        args={"path": path, "text": None, "previous": None},
    )


def _finish(path: str) -> Action:
    return Action(
        kind="finish_swap",
        unit=HOST,
        text=f"end what a cut-off run began with {path}: it stands there as {edited.twin(path)} too",
        args={"path": path},
    )


def _addons(loader: Loader, change: Change) -> list[Action]:
    """Images from elsewhere get an addon; it cannot take anything away."""
    images = [image for image in loader.details["images"] if image.ours]
    if not images:
        return []
    addon = loader.details["addon"]
    for image in images:
        others = [w for w in image.words + image.added if w not in addon.words]
        wrong = change.unmet([*others, *change.ours])
        if wrong:
            raise EngineError(
                f"boot loader: {image.path} was not made by kernel-install here (there is no layout=uki in "
                f"/etc/kernel/install.conf), and an addon can only add to its command line: {', '.join(wrong)}. Make "
                "the image anew where it comes from; nothing was changed."
            )
    if tuple(change.ours) == addon.words:
        return []
    return [
        Action(
            kind="uki_addon",
            unit=HOST,
            text=f"{'write' if change.ours else 'remove'} {addon.path}, an addon for every image",
            args={
                "path": addon.path,
                "words": list(change.ours),
                "previous": list(addon.words),
                "key": list(loader.details["signing"] or ()),
            },
            before={addon.path: " ".join(addon.words) or None},
            after={addon.path: " ".join(change.ours) or None},
        )
    ]
