# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Boot loaders without drop-ins: their files are edited word by word, and a record keeps what they were.

The record is written before the first file and goes after the last one, so a run that was cut off is always known
for what it is. What somebody else changed meanwhile stays: then only our words go and the words that we took come back.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import cmdline
from ..errors import EngineError, StateFileError, explain
from ..host import Files, Host
from ..model import HOST, Action
from .common import Change, mount_of

FOLDER = "/etc/iovirt"
RECORD = f"{FOLDER}/kernel_cmdline.json"
VERSION = 1
DEFAULTS = "/etc/default/grub"

_OPTIONS = re.compile(r"^(options[ \t]+)(.*)$", re.MULTILINE)
#: A quoted string, or one word, at the end of a line but for a comment.
_VALUE = r"([\"']?)((?<=[\"'])(?:(?!\2)[^\n])*|[^\s\"'#]*)\2(?=[ \t]*(?:[ \t]#|$))"
_VARIABLES = ("GRUB_CMDLINE_LINUX", "GRUB_CMDLINE_LINUX_DEFAULT")


@dataclass(frozen=True)
class Record:
    """What is ours in files that are not: the words, the words that we took out, each file before and after."""

    loader: str = ""
    ours: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    was: Mapping[str, str | None] = field(default_factory=dict)
    wrote: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """A file with a command line in it. `kind` is a key of _TRANSFORM; `fallback` is what stands for a file that is
    not there."""

    path: str
    kind: str
    text: str | None
    fallback: tuple[str, ...] = ()
    #: For 'defaults': the variable that ours go into.
    variable: str = ""
    #: For 'entry': what its $kernelopts stands for. An entry that is changed gets the words themselves.
    kernelopts: tuple[str, ...] = ()


def read_record(files: Files) -> Record:
    """The record; an empty one when nothing is ours. Raises StateFileError when it cannot be understood."""
    text = files.text(RECORD)
    if text is None:
        return Record()
    try:
        document = json.loads(text)
        if document["version"] != VERSION:
            raise ValueError("another version")
        words = {name: tuple(str(w) for w in document[name]) for name in ("ours", "dropped", "lost")}
        return Record(loader=document["loader"], was=dict(document["was"]), wrote=dict(document["wrote"]), **words)
    except (ValueError, KeyError, TypeError) as error:
        raise StateFileError(
            f"{RECORD}: cannot be understood ({error}). It records what the boot loader's files were before the "
            "collection touched them, so it is not guessed at and nothing was changed. Put a good copy back, or move "
            "the file away to start without the record."
        ) from None


def render_record(record: Record) -> str:
    document = {"version": VERSION, "loader": record.loader, "ours": record.ours, "dropped": record.dropped}
    document.update(lost=record.lost, was=dict(record.was), wrote=dict(record.wrote))
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


# --- Text to text ----------------------------------------------------------------------------------------------------


def _new_words(words: Sequence[str], ours: Sequence[str], dropped: Sequence[str]) -> list[str]:
    return [w for w in words if not any(cmdline.matches(w, p) for p in dropped)] + list(ours)


def _cmdline_text(source: Source, text: str | None, ours: Sequence[str], dropped: Sequence[str]) -> str | None:
    """/etc/kernel/cmdline: one line, comments dropped by kernel-install since systemd 257."""
    words = cmdline_words(text) if text is not None else list(source.fallback)
    return " ".join(_new_words(words, ours, dropped)) + "\n"


def cmdline_words(text: str) -> list[str]:
    """The words of an /etc/kernel/cmdline."""
    return cmdline.split(" ".join(line for line in text.splitlines() if not line.lstrip().startswith("#")))


def _entry_text(source: Source, text: str | None, ours: Sequence[str], dropped: Sequence[str]) -> str | None:
    """A Boot Loader Specification entry: several lines 'options' count as one."""
    if text is None:
        return None
    words = _new_words(words_in(source, text), ours, dropped)
    found = _OPTIONS.search(text)
    if not found:
        return text.rstrip("\n") + f"\noptions {' '.join(words)}\n" if words else text
    head = text[: found.start()] + f"{found.group(1)}{' '.join(words)}"
    return head + re.sub(r"\noptions[ \t][^\n]*", "", text[found.end() :])


def entry_words(text: str) -> list[str]:
    """The words of an entry, variables as they stand."""
    return cmdline.split(" ".join(found.group(2) for found in _OPTIONS.finditer(text)))


def _defaults_text(source: Source, text: str | None, ours: Sequence[str], dropped: Sequence[str]) -> str | None:
    """/etc/default/grub: what goes, goes from both variables; what comes, comes into one."""
    result = text or ""
    for name in _VARIABLES:
        found = assignment(result, name)
        words = cmdline.split(found.group(3)) if found else []
        new = _new_words(words, ours if name == source.variable else (), dropped)
        if new == words:
            continue
        if found is None:
            quote = _shell_quote(new, '"')
            line = f"{name}={quote}{' '.join(new)}{quote}\n"
            result = result.rstrip("\n") + f"\n{line}" if result.strip() else line
            continue
        quote = _shell_quote(new, found.group(2) or '"')
        line = f"{found.group(1)}{quote}{' '.join(new)}{quote}"
        result = result[: found.start()] + line + result[found.end() :]
    return result


def _shell_quote(words: Sequence[str], quote: str) -> str:
    """The shell's quotes around words that may have double ones of their own, for the kernel."""
    text = "".join(words)
    if '"' in text and "'" in text:
        raise EngineError(f"{DEFAULTS}: its parameters hold both kinds of quotes, which is not edited here; nothing was changed.")
    return "'" if '"' in text else quote


def assignment(text: str, name: str) -> re.Match[str] | None:
    """The assignment of a shell variable that is in force, the last one. Raises EngineError for one that only a shell
    understands."""
    head = rf"^([ \t]*(?:export[ \t]+)?{name}=)"
    understood = list(re.finditer(head + _VALUE, text, re.MULTILINE))
    lines = len(re.findall(rf"^[ \t]*(?:export[ \t]+)?{name}\+?=", text, re.MULTILINE))
    last = understood[-1] if understood else None
    if lines != len(understood) or (last and last.group(2) != "'" and re.search(r"[$`\\]", last.group(3))):
        raise EngineError(
            f"{DEFAULTS}: its {name} is put together by shell code, which is not edited here. Write it as one quoted "
            "string; nothing was changed."
        )
    return last


_TRANSFORM = {"cmdline": _cmdline_text, "entry": _entry_text, "defaults": _defaults_text}


def transform(source: Source, text: str | None, ours: Sequence[str], dropped: Sequence[str]) -> str | None:
    return _TRANSFORM[source.kind](source, text, ours, dropped)


def base(record: Record, source: Source) -> str | None:
    """The file as it would be without us: as recorded where nobody else wrote it since, else by taking our words out
    and putting those back that we took."""
    if source.path in record.was:
        if source.text in (record.was[source.path], record.wrote.get(source.path)):
            return record.was[source.path]
    elif not record.ours and not record.dropped:
        return source.text
    if source.text is None:
        return None
    return transform(source, source.text, _missing(source, record), record.ours)


def _missing(source: Source, record: Record) -> list[str]:
    """Words that we took, as far as they did not come back by themselves."""
    here = set(words_in(source, source.text))
    if source.kind != "entry" and source.path not in record.was:
        return []
    return [word for word in record.lost if word not in here]


def words_in(source: Source, text: str | None) -> list[str]:
    """All words of a file, of whatever kind."""
    if text is None:
        return list(source.fallback)
    if source.kind == "cmdline":
        return cmdline_words(text)
    if source.kind == "entry":
        words = entry_words(text)
        return [w for word in words for w in (source.kernelopts if word == "$kernelopts" else (word,))]
    return [w for name in _VARIABLES for w in _assigned(text, name)]


def _assigned(text: str, name: str) -> list[str]:
    found = assignment(text, name)
    return cmdline.split(found.group(3)) if found else []


def wanted(record: Record, source: Source, ours: Sequence[str], dropped: Sequence[str]) -> str | None:
    """The file as it has to be."""
    clean = base(record, source)
    return transform(source, clean, ours, dropped) if ours or dropped else clean


def stale(record: Record, sources: Sequence[Source]) -> bool:
    """Is a file other than the record says that we left it? Another order of the words does not count."""
    for source in sources:
        want = wanted(record, source, record.ours, record.dropped)
        if sorted(words_in(source, want)) != sorted(words_in(source, source.text)):
            return True
    return False


# --- The steps -------------------------------------------------------------------------------------------------------


def steps(
    name: str, record: Record, sources: Sequence[Source], change: Change, before_last: Sequence[Action] = ()
) -> list[Action]:
    """Record, files, what the loader's own tool has to do (`before_last`); and the record goes last when nothing is
    ours any more."""
    texts = {source.path: wanted(record, source, change.ours, change.dropped) for source in sources}
    ours = bool(change.ours or change.dropped)
    actions = []
    new = render_record(_next_record(name, record, sources, texts, change)) if ours else None
    old = render_record(record) if record.loader else None
    if new is not None and new != old:
        actions.append(record_action(new, old))
    for source in sources:
        text = texts[source.path]
        if text != source.text:
            actions.append(_file_action(source, text))
    actions += before_last
    if new is None and old is not None:
        actions.append(record_action(None, old))
    return actions


def _next_record(
    name: str, record: Record, sources: Sequence[Source], texts: Mapping[str, str | None], change: Change
) -> Record:
    was = {source.path: base(record, source) for source in sources}
    lost = [w for s in sources for w in words_in(s, was[s.path]) if any(cmdline.matches(w, p) for p in change.dropped)]
    return Record(name, change.ours, change.dropped, tuple(dict.fromkeys(lost)), was, dict(texts))


def record_action(text: str | None, old: str | None) -> Action:
    word = "remove" if text is None else "write"
    return Action(
        kind="boot_record",
        unit=HOST,
        text=f"{word} {RECORD}, the record of what the boot loader's files were",
        args={"text": text, "previous": old},
    )


def _file_action(source: Source, text: str | None) -> Action:
    word = "remove" if text is None else "write" if source.text is None else "edit"
    return Action(
        kind="write_boot_file",
        unit=HOST,
        text=f"{word} {source.path}",
        args={"path": source.path, "text": text, "previous": source.text, "mode": 0o644},
        before={source.path: source.text},
        after={source.path: text},
    )


def put_record(host: Host, args: Mapping[str, Any]) -> None:
    _set_record(host.files, args["text"])


def undo_record(host: Host, args: Mapping[str, Any]) -> None:
    _set_record(host.files, args["previous"])


def _set_record(files: Files, text: str | None) -> None:
    try:
        if text is not None:
            files.replace(RECORD, text, 0o600)
            return
        files.remove(RECORD)
        if files.exists(FOLDER) and not files.names(FOLDER):
            files.remove(FOLDER)
    except OSError as error:
        raise EngineError(f"{RECORD} cannot be written: {explain(error)}.") from None


# --- How a file is written -------------------------------------------------------------------------------------------


def write(host: Host, args: Mapping[str, Any]) -> None:
    _set(host.files, args["path"], args["text"], args["mode"])


def undo_write(host: Host, args: Mapping[str, Any]) -> None:
    _set(host.files, args["path"], args["previous"], args["mode"])


def _set(files: Files, path: str, text: str | None, mode: int) -> None:
    if files.text(path) == text:
        return
    try:
        if text is None:
            files.remove(path)
        elif mount_of(files, path).type in ("vfat", "msdos"):
            swap(files, path, lambda target: files.replace(target, text, mode))
        elif path.startswith("/boot/"):
            files.replace_for_loader(path, text, files.mode(path) or mode)
        else:
            files.replace(path, text, files.mode(path) or mode)
    except OSError as error:
        raise EngineError(f"{path} cannot be written: {explain(error)}. The host boots with what it had.") from None
    if files.text(path) != text:
        raise EngineError(f"{path} does not read as it was written. Look at the file system's health.")


def twin(path: str) -> str:
    """The name under which a bootable file stands while its own is being written: a boot loader finds it, too."""
    folder, _slash, name = path.rpartition("/")
    return f"{folder}/iovirt-{name}"


def swap(files: Files, path: str, put: Any) -> None:
    """Replace a file on the EFI system partition. FAT has no journal: after a power cut in the middle of a rename the
    freed clusters of the old file, and not the new name, may be what reached the disk. So the new file stands there
    whole under a second bootable name before the old one is touched; at each moment one of them is whole."""
    other = twin(path)
    try:
        put(other)
        files.remove(path)
        put(path)
    except OSError:
        # A full or failing disk: what is left boots, under whichever name.
        if files.exists(path):
            with contextlib.suppress(OSError):
                files.remove(other)
        raise
    files.remove(other)
