# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Kernel parameters: in force now (/proc/cmdline) and at the next boot (the boot loader's entries)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .. import cmdline
from ..host import Host
from ..loaders import find
from ..loaders.common import Change, Loader, mount_of, predict
from ..model import Plan, Refusal
from ..plain import dataclass

NAME = "kernel_cmdline"


@dataclass(frozen=True)
class Parameters:
    """Both sides of a reboot."""

    running: tuple[str, ...]
    loader: Loader
    #: Where the loader's files stand, if that cannot be written to.
    read_only: str | None = None


@dataclass(frozen=True)
class Wish:
    """Parameters to be there, not to be there, and keys to leave to themselves again."""

    present: Sequence[str] = ()
    absent: Sequence[str] = ()
    release: Sequence[str] = ()
    #: For each key named here: these words, in this order, and no others.
    exact: Sequence[str] = ()

    @property
    def spoken(self) -> list[str]:
        return [*self.present, *self.absent, *self.release, *self.exact]


def read(host: Host) -> Parameters:
    """Raises EngineError when the boot loader is not one we know."""
    loader = find.read(host)
    places = ["/etc", *(entry.path for entry in loader.entries if entry.path)]
    places += ["/boot"] if loader.name == "grub" else []
    mounts = [mount_of(host.files, place) for place in places]
    read_only = next((mount.point for mount in mounts if mount.read_only), None)
    return Parameters(tuple(cmdline.split(host.files.text("/proc/cmdline") or "")), loader, read_only)


def check(wish: Wish, allow: Collection[str] = ()) -> list[Refusal]:
    """What is wrong with a wish in itself."""
    found = []
    for word in wish.spoken:
        why = cmdline.invalid(word)
        if why:
            found.append(_bad(f"the parameter {word!r} {why}."))
    for word in [*wish.present, *wish.exact]:
        if any(cmdline.says([word], pattern) for pattern in wish.absent):
            found.append(_bad(f"{word} is wished present and absent at once."))
        danger = cmdline.DANGEROUS.get(cmdline.parsed(word)[0])
        if danger and danger not in allow:
            found.append(Refusal("kernel command line", _unsafe(word), _by_name(danger), danger))
    for key in sorted({cmdline.key_of(w) for w in wish.exact} & {cmdline.key_of(w) for w in wish.present}):
        found.append(_bad(f"{key} is wished present and exact at once."))
    keys = [cmdline.key_of(w) for w in wish.present if cmdline.key_of(w) not in cmdline.REPEATED]
    for key in sorted({k for k in keys if keys.count(k) > 1}):
        found.append(
            _bad(f"{key} is wished twice, with {', '.join(w for w in wish.present if cmdline.key_of(w) == key)}.")
        )
    return found


def _unsafe(word: str) -> str:
    return f"{word} makes devices look isolated from each other that are not: a guest could reach the host's memory."


def _by_name(danger: str) -> str:
    return f"Nothing was changed. Where this is meant, allow it by name: allow: [{danger}]."


def _bad(reason: str) -> Refusal:
    return Refusal("kernel command line", reason, "Correct the parameter; nothing was changed.")


def plan(state: Parameters, wish: Wish, allow: Collection[str] = ()) -> Plan:
    """What makes the next boot as wished, and whether that boot is needed."""
    loader = state.loader
    result = Plan(refusals=check(wish, allow), warnings=list(loader.warnings))
    wish = _spelled(wish)
    if not loader.quotes and any('"' in word for word in (*wish.present, *wish.exact)):
        result.refusals.append(_no_quotes(loader))
    if not loader.normal:
        result.refusals.append(_no_entry(loader))
    if result.refusals:
        return result
    change = _change(loader, wish)
    if _needed(loader, wish, change):
        if state.read_only:
            result.refusals.append(_no_writing(state.read_only))
            return result
        result.actions = find.steps(loader, change)
    result.reboot_reasons = [f"kernel command line: {text} needs a boot" for text in _waiting(state, wish, change)]
    return result


def _spelled(wish: Wish) -> Wish:
    return Wish(*(tuple(map(cmdline.spelled, words)) for words in (wish.present, wish.absent, wish.release, wish.exact)))


def _no_quotes(loader: Loader) -> Refusal:
    reason = f"{loader.name} is not known to keep a parameter with a blank together."
    return Refusal("boot loader", reason, "Write such a parameter by hand, with its own tool; nothing was changed.")


def _change(loader: Loader, wish: Wish) -> Change:
    """What shall be ours: as it is, where all is met and nothing is given up."""
    ours, dropped = _ours(loader, wish)
    met = not any(_unmet(words, wish) for words in loader.lines)
    if met and not _gives_up(loader, wish):
        ours, dropped = loader.ours, loader.dropped
    return Change(ours, dropped, tuple(wish.present), tuple(wish.absent), tuple(wish.exact))


def _gives_up(loader: Loader, wish: Wish) -> bool:
    return any(_spoken_of(word, wish.release) for word in (*loader.ours, *loader.dropped))


def _needed(loader: Loader, wish: Wish, change: Change) -> bool:
    if loader.stale or (change.ours, change.dropped) != (loader.ours, loader.dropped):
        return True
    return any(_unmet(words, wish) for words in loader.lines)


def _unmet(words: Sequence[str], wish: Wish) -> list[str]:
    return cmdline.unmet(words, wish.present, wish.absent, wish.exact)


def _no_entry(loader: Loader) -> Refusal:
    reason = f"{loader.details.get('config', loader.name)} has no entry that starts a kernel, other than rescue entries."
    return Refusal("boot loader", reason, "Repair it first (update-grub, kernel-install); nothing was changed.")


def _no_writing(point: str) -> Refusal:
    return Refusal("boot loader", f"{point} is mounted read-only.", "Mount it for writing first; nothing was changed.")


def _waiting(state: Parameters, wish: Wish, change: Change) -> list[str]:
    """What of the wish the running kernel was not started with."""
    found = _unmet(state.running, wish)
    coming = predict(state.loader.normal[0].words, change, state.loader.ours)
    for key in map(cmdline.key_of, wish.release):
        now, then, own = (_values(words, key) for words in (state.running, coming, state.loader.ours))
        # While ours is being taken back nobody knows yet what was inherited below it: then only what is ours and
        # running counts.
        if set(own) & set(now) if own else now != then:
            found.append(f"{key} without {', '.join(own or now)}")
    return found


def _values(words: Sequence[str], key: str) -> list[str]:
    return [cmdline.spelled(word) for word in words if cmdline.key_of(word) == key]


def _ours(loader: Loader, wish: Wish) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What we set from now on, and what we take out of the other parameters."""
    words = loader.normal[0].words
    spoken = wish.spoken
    if _spoken_of(cmdline.COUNT, wish.release) or _spoken_of(cmdline.SIZE, wish.release):
        # They were written as pairs, and go as pairs.
        spoken += [cmdline.SIZE, cmdline.COUNT]
    ours = [word for word in loader.ours if not _spoken_of(word, spoken)]
    dropped = [word for word in loader.dropped if not _spoken_of(word, spoken)]
    huge = [word for word in wish.present if cmdline.key_of(word) in (cmdline.SIZE, cmdline.COUNT)]
    if huge:
        # Pairs are written as a whole: a size taken away would hand its count to the one before it.
        ours = [word for word in ours if not _spoken_of(word, (cmdline.SIZE, cmdline.COUNT))]
        ours += cmdline.pairs_with(words, huge)
        dropped += [key for key in (cmdline.SIZE, cmdline.COUNT) if key not in dropped]
    for word in wish.present:
        if word in huge:
            continue
        ours.append(cmdline.merged(words, word, wish.absent))
        if cmdline.key_of(word) not in cmdline.REPEATED:
            dropped.append(cmdline.parsed(word)[0])
    for word in wish.exact:
        ours.append(word)
        dropped += [key for key in (cmdline.parsed(word)[0],) if key not in dropped]
    for word in wish.absent:
        rest = cmdline.remaining(words, word, wish.absent)
        if rest and cmdline.key_of(word) not in map(cmdline.key_of, ours):
            ours.append(rest)
            dropped.append(cmdline.parsed(word)[0])
        dropped.append(word)
    return tuple(ours), tuple(dropped)


def _spoken_of(word: str, spoken: Sequence[str]) -> bool:
    return any(cmdline.key_of(word) == cmdline.key_of(other) for other in spoken)


def info(state: Parameters) -> dict[str, Any]:
    """Both sides, and what of the next boot is ours."""
    return {
        "running": list(state.running),
        "next_boot": {entry.title: list(entry.words) for entry in state.loader.entries},
        "loader": state.loader.name,
        "ours": list(state.loader.ours),
        "later_kernels": None if state.loader.seed is None else list(state.loader.seed),
        "differing": cmdline.differing(state.running, state.loader.normal[0].words) if state.loader.normal else [],
    }


def wish_of(params: Mapping[str, Any]) -> Wish:
    return Wish(*(tuple(params.get(name) or ()) for name in ("present", "absent", "release", "exact")))
