# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Kernel parameters: in force now (/proc/cmdline) and at the next boot (the boot loader's entries)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import cmdline, grub
from ..grub import Grub
from ..host import Files
from ..model import HOST, Action, Plan, Refusal
from ..plain import dataclass

NAME = "kernel_cmdline"


@dataclass(frozen=True)
class Parameters:
    """Both sides of a reboot."""

    running: tuple[str, ...]
    loader: Grub


@dataclass(frozen=True)
class Wish:
    """Parameters to be there, not to be there, and keys to leave to themselves again."""

    present: Sequence[str] = ()
    absent: Sequence[str] = ()
    release: Sequence[str] = ()


def read(files: Files) -> Parameters:
    """Raises EngineError when the boot loader is not one we know."""
    return Parameters(tuple(cmdline.split(files.text("/proc/cmdline") or "")), grub.read(files))


def check(wish: Wish) -> list[Refusal]:
    """What is wrong with a wish in itself."""
    found = []
    for word in [*wish.present, *wish.absent, *wish.release]:
        why = cmdline.invalid(word)
        if why:
            found.append(_bad(f"the parameter {word!r} {why}."))
    for word in wish.present:
        if any(cmdline.says([word], pattern) for pattern in wish.absent):
            found.append(_bad(f"{word} is wished present and absent at once."))
    keys = [cmdline.key_of(w) for w in wish.present if cmdline.key_of(w) not in cmdline.REPEATED]
    for key in sorted({k for k in keys if keys.count(k) > 1}):
        found.append(
            _bad(f"{key} is wished twice, with {', '.join(w for w in wish.present if cmdline.key_of(w) == key)}.")
        )
    return found


def _bad(reason: str) -> Refusal:
    return Refusal("kernel command line", reason, "Correct the parameter; nothing was changed.")


def plan(state: Parameters, wish: Wish) -> Plan:
    """What makes the next boot as wished, and whether that boot is needed."""
    result = Plan(refusals=check(wish))
    loader = state.loader
    if not loader.normal:
        result.refusals.append(_no_entry())
    if result.refusals:
        return result
    ours, dropped = _drop_in(loader, wish)
    met = not any(grub.unmet(entry.words, wish.present, wish.absent) for entry in loader.normal)
    if (ours, dropped) != (loader.ours, loader.dropped) and (not met or wish.release):
        result.actions = _actions(loader, ours, dropped, wish)
    elif not met:
        result.actions = _actions(loader, loader.ours, loader.dropped, wish)
    result.reboot_reasons = [
        f"kernel command line: {text} needs a boot" for text in _waiting(state, wish, ours, dropped)
    ]
    return result


def _no_entry() -> Refusal:
    reason = f"{grub.CONFIG} has no entry that starts a kernel, other than rescue entries."
    return Refusal("boot loader", reason, "Repair it with update-grub first; nothing was changed.")


def _waiting(state: Parameters, wish: Wish, ours: Sequence[str], dropped: Sequence[str]) -> list[str]:
    """What of the wish the running kernel was not started with."""
    found = grub.unmet(state.running, wish.present, wish.absent)
    coming = grub.predict(state.loader.normal[0], ours, dropped, state.loader.ours)
    for key in map(cmdline.key_of, wish.release):
        now, then, own = (_values(words, key) for words in (state.running, coming, state.loader.ours))
        # While ours is being taken back nobody knows yet what was inherited below it: then only what is ours and
        # running counts.
        if set(own) & set(now) if own else now != then:
            found.append(f"{key} without {', '.join(own or now)}")
    return found


def _values(words: Sequence[str], key: str) -> list[str]:
    return [word for word in words if cmdline.key_of(word) == key]


def _drop_in(loader: Grub, wish: Wish) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The drop-in's new content: what it sets, and what it takes out of the inherited parameters."""
    words = loader.normal[0].words
    spoken = [*wish.present, *wish.absent, *wish.release]
    ours = [word for word in loader.ours if not _spoken_of(word, spoken)]
    dropped = [word for word in loader.dropped if not _spoken_of(word, spoken)]
    for word in wish.present:
        ours.append(cmdline.merged(words, word, wish.absent))
        if cmdline.key_of(word) not in cmdline.REPEATED:
            dropped.append(word.partition("=")[0])
    for word in wish.absent:
        rest = cmdline.remaining(words, word, wish.absent)
        if rest and cmdline.key_of(word) not in map(cmdline.key_of, ours):
            ours.append(rest)
            dropped.append(word.partition("=")[0])
        dropped.append(word)
    return tuple(ours), tuple(dropped)


def _spoken_of(word: str, spoken: Sequence[str]) -> bool:
    return any(cmdline.key_of(word) == cmdline.key_of(other) for other in spoken)


def _actions(loader: Grub, ours: Sequence[str], dropped: Sequence[str], wish: Wish) -> list[Action]:
    actions = []
    text = grub.render(ours, dropped)
    if text != loader.drop_in:
        actions.append(
            Action(
                kind="write_file",
                unit=HOST,
                text=f"{'write' if text else 'remove'} {grub.DROP_IN}",
                args={"path": grub.DROP_IN, "text": text, "previous": loader.drop_in},
                before={grub.DROP_IN: loader.drop_in},
                after={grub.DROP_IN: text},
            )
        )
    entry = loader.normal[0]
    actions.append(
        Action(
            kind="grub_mkconfig",
            unit=HOST,
            text=f"write {grub.CONFIG} anew, for {len(loader.normal)} boot entries",
            args={"tool": loader.tool, "present": list(wish.present), "absent": list(wish.absent)},
            before={"next boot": " ".join(entry.words)},
            after={"next boot": " ".join(grub.predict(entry, ours, dropped, loader.ours))},
        )
    )
    return actions


def info(state: Parameters) -> dict[str, Any]:
    """Both sides, and what of the next boot is ours."""
    return {
        "running": list(state.running),
        "next_boot": {entry.title: list(entry.words) for entry in state.loader.entries},
        "loader": "grub",
        "ours": list(state.loader.ours),
    }


def wish_of(params: Mapping[str, Any]) -> Wish:
    return Wish(params.get("present") or (), params.get("absent") or (), params.get("release") or ())
