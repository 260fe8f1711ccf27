# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""GRUB with drop-ins below /etc/default/grub.d, as on Debian and Ubuntu.

Our drop-in sorts last and is the record of what is ours: two shell variables say which keys it sets and which it
takes out of what was inherited. grub-mkconfig writes to another file first; only a result that was checked takes the
place of grub.cfg.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from . import cmdline
from .errors import EngineError, explain
from .host import Files, Host
from .plain import dataclass

DROP_IN = "/etc/default/grub.d/zz-iovirt.cfg"
CONFIG = "/boot/grub/grub.cfg"
NEW = "/boot/grub/grub.cfg.iovirt-new"
TOOLS = ("/usr/sbin/grub-mkconfig", "/usr/bin/grub-mkconfig", "/sbin/grub-mkconfig")

_TITLE = re.compile(r"""\s*menuentry\s+(?:'([^']*)'|"([^"]*)")""")
_LINUX = re.compile(r"\s*linux(?:efi|16)?\s+(\S+)\s*(.*)")
_SECTION = re.compile(r"### (BEGIN|END) \S*/([^/\s]+) ###")
_GENERATOR = re.compile(r"\d+_linux\w*")
_RECORD = re.compile(r"^(iovirt_set|iovirt_drop)='([^']*)'$", re.MULTILINE)


@dataclass(frozen=True)
class Entry:
    """A boot entry of grub.cfg that starts a kernel."""

    title: str
    kernel: str
    words: tuple[str, ...]
    #: Made from the parameters of /etc/default/grub; not by memtest86+, os-prober or by hand.
    generated: bool = True

    @property
    def rescue(self) -> bool:
        return "recovery mode" in self.title or "single" in self.words or "rescue" in self.title


@dataclass(frozen=True)
class Grub:
    """What this boot loader will do at the next boot, and what of it is ours."""

    tool: str
    entries: tuple[Entry, ...]
    drop_in: str | None
    #: Parameters that our drop-in sets, and keys that it takes out of the inherited ones.
    ours: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    @property
    def normal(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.generated and not entry.rescue]


def read(files: Files) -> Grub:
    """Raises EngineError, saying what was looked for, on a host that this back end does not fit."""
    tool = next((path for path in TOOLS if files.exists(path)), None)
    config = files.text(CONFIG)
    if tool is None or config is None:
        missing = CONFIG if tool else "grub-mkconfig"
        raise EngineError(
            f"boot loader: {missing} is not there, so the kernel command line of the next boot cannot be set. Looked "
            f"for GRUB with drop-ins ({CONFIG}, {', '.join(TOOLS)}); no other boot loader is supported yet."
        )
    drop_in = files.text(DROP_IN)
    record = dict(_RECORD.findall(drop_in or ""))
    return Grub(
        tool=tool,
        entries=parse(config),
        drop_in=drop_in,
        ours=tuple(record.get("iovirt_set", "").split()),
        dropped=tuple(record.get("iovirt_drop", "").split()),
    )


def parse(config: str) -> tuple[Entry, ...]:
    """The entries of a grub.cfg that start a kernel."""
    entries = []
    title = ""
    generated = True
    for line in config.splitlines():
        match = _SECTION.match(line)
        if match:
            generated = match.group(1) == "END" or _GENERATOR.fullmatch(match.group(2)) is not None
        match = _TITLE.match(line)
        if match:
            title = match.group(1) or match.group(2) or ""
        match = _LINUX.match(line)
        if match and title:
            entries.append(Entry(title, match.group(1), tuple(cmdline.split(match.group(2))), generated))
    return tuple(entries)


def render(ours: Sequence[str], dropped: Sequence[str]) -> str | None:
    """The drop-in; None when there is nothing for it to say. POSIX sh: grub-mkconfig runs under dash, which has
    neither arrays nor '+='."""
    if not ours and not dropped:
        return None
    text = (
        "# Written by iovirt.host; it goes when nothing is wished any more. Do not edit: the next run would undo it.\n"
        f"iovirt_set='{' '.join(ours)}'\n"
        f"iovirt_drop='{' '.join(dropped)}'\n"
    )
    if dropped:
        text += _FILTER % "|".join(_shell_pattern(key) for key in dropped)
    # printf, not echo: dash's echo would interpret backslashes that were inherited.
    return text + 'GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT' + "".join(f" {w}" for w in ours) + '"\n'


_FILTER = """iovirt_filter() {
  set -f
  iovirt_kept=
  for iovirt_word in $1; do
    case $iovirt_word in
      %s) ;;
      *) iovirt_kept="${iovirt_kept:+$iovirt_kept }$iovirt_word" ;;
    esac
  done
  printf '%%s' "$iovirt_kept"
}
GRUB_CMDLINE_LINUX="$(iovirt_filter "$GRUB_CMDLINE_LINUX")"
GRUB_CMDLINE_LINUX_DEFAULT="$(iovirt_filter "$GRUB_CMDLINE_LINUX_DEFAULT")"
"""


def _shell_pattern(word: str) -> str:
    key, equals, value = word.partition("=")
    name = re.sub("[-_]", "[-_]", key)
    return f'{name}="{value}"' if equals else f"{name}|{name}=*"


def predict(entry: Entry, ours: Sequence[str], dropped: Sequence[str], old: Sequence[str]) -> list[str]:
    """The words of an entry after our drop-in has changed: without its old part and what it now drops."""
    kept = [w for w in entry.words if w not in old and not any(cmdline.matches(w, p) for p in dropped)]
    return [*kept, *ours]


def make_config(host: Host, args: Mapping[str, Any]) -> None:
    """Let grub-mkconfig write beside grub.cfg, look at what came out, and only then put it in place."""
    code, _out, err = host.run([args["tool"], "-o", NEW])
    text = host.files.text(NEW)
    if code or text is None:
        said = (err.strip().splitlines() or [f"exit status {code}"])[-1]
        raise EngineError(
            f"{args['tool']} failed: {said}. {CONFIG} is as it was; look for a broken file in /etc/default/grub.d."
        )
    try:
        _check(host.files, text, args)
        host.files.replace(CONFIG, text, host.files.mode(CONFIG) or 0o600)
    except OSError as error:
        raise EngineError(f"{CONFIG} cannot be written: {explain(error)}. The host boots with what it had.") from None
    finally:
        # What is left beside grub.cfg does no harm. The second is grub-mkconfig's own, when it finds a syntax error.
        for path in (NEW, f"{NEW}.new"):
            with contextlib.suppress(OSError):
                host.files.remove(path)


def _check(files: Files, text: str, args: Mapping[str, Any]) -> None:
    normal = [entry for entry in parse(text) if entry.generated and not entry.rescue]
    if not normal:
        raise EngineError(f"{args['tool']} wrote a configuration without any kernel. {CONFIG} is as it was.")
    for entry in normal:
        # GRUB's paths start at its own root: a /boot of its own, a btrfs subvolume (/@/boot/...), a ZFS dataset. The
        # kernel itself is in /boot in all of them.
        name = entry.kernel.strip("\"'").rpartition("/")[2]
        if not files.exists(f"/boot/{name}") and not files.exists(entry.kernel):
            raise EngineError(
                f"the entry '{entry.title}' names {entry.kernel}, which is not there. {CONFIG} is as it was."
            )
        wrong = unmet(entry.words, args["present"], args["absent"])
        if wrong:
            raise EngineError(
                f"the entry '{entry.title}' does not come out as wished ({', '.join(wrong)}): another file in "
                f"/etc/default/grub.d or /etc/grub.d overrides it. {CONFIG} is as it was."
            )


def unmet(words: Sequence[str], present: Sequence[str], absent: Sequence[str]) -> list[str]:
    """What a command line lacks of the wished parameters or has of the unwished ones."""
    lacking = [wish for wish in present if not cmdline.satisfied(words, wish)]
    return lacking + [f"not {p}" for p in absent if cmdline.says(words, p)]


def undo_config(host: Host, args: Mapping[str, Any]) -> None:
    """grub.cfg was not touched unless its step succeeded, and it is the last step."""
    for path in (NEW, f"{NEW}.new"):
        host.files.remove(path)
