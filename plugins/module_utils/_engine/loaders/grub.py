# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""GRUB with a grub.cfg that grub-mkconfig writes: by a drop-in where grub-mkconfig reads them (Debian, Ubuntu), else by
the words of /etc/default/grub (SUSE, Arch).

Our drop-in sorts last and is the record of what is ours: two shell variables say which keys it sets and which it
takes out of what was inherited. grub-mkconfig writes to another file first; only a result that was checked takes the
place of grub.cfg.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .. import cmdline
from ..errors import EngineError, explain
from ..host import Files, Host
from ..model import HOST, Action
from . import edited
from .common import Change, Entry, Loader, predict
from .edited import DEFAULTS, Source

NAME = FAMILY = "grub"
DROP_IN = "/etc/default/grub.d/zz-iovirt.cfg"
CONFIG = "/boot/grub/grub.cfg"
#: grub.cfg by the name of GRUB's folder: the RPM distributions call it grub2.
CONFIGS = (CONFIG, "/boot/grub2/grub.cfg")
TOOLS = tuple(f"{folder}/{name}" for name in ("grub-mkconfig", "grub2-mkconfig") for folder in ("/usr/sbin", "/usr/bin", "/sbin"))
LOOKS_FOR = f"{' or '.join(CONFIGS)} with grub-mkconfig or grub2-mkconfig"
#: What is said in the loader's file that a change is under way.
_BEGUN = "# iovirt.host has begun to change the kernel command line; grub-mkconfig has yet to run.\n"

_TITLE = re.compile(r"""\s*menuentry\s+(?:'([^']*)'|"([^"]*)")""")
_LINUX = re.compile(r"\s*linux(?:efi|16)?\s+(\S+)\s*(.*)")
_SECTION = re.compile(r"### (BEGIN|END) \S*/([^/\s]+) ###")
_GENERATOR = re.compile(r"\d+_linux\w*")
_RECORD = re.compile(r"^(iovirt_set|iovirt_drop)='([^']*)'$", re.MULTILINE)


def _tool(files: Files) -> str | None:
    return next((path for path in TOOLS if files.exists(path)), None)


def _config(files: Files) -> str | None:
    return next((path for path in CONFIGS if files.exists(path)), None)


def fits(files: Files) -> bool:
    return _tool(files) is not None and _config(files) is not None


def read(host: Host) -> Loader:
    files = host.files
    tool, config = _tool(files) or "", _config(files) or ""
    details: dict[str, Any] = {"tool": tool, "config": config, "begun": files.exists(new_name(config))}
    entries = parse(files.text(config) or "")
    # Debian and Ubuntu patch it in; upstream's grub-mkconfig reads /etc/default/grub alone.
    if "default/grub.d" in (files.text(tool) or ""):
        drop_in = files.text(DROP_IN)
        record = dict(_RECORD.findall(drop_in or ""))
        ours, dropped = (tuple(cmdline.split(record.get(key, ""))) for key in ("iovirt_set", "iovirt_drop"))
        details["drop_in"] = drop_in
        return Loader(NAME, entries, ours, dropped, stale=details["begun"], details=details)
    recorded = edited.read_record(files)
    source = Source(DEFAULTS, "defaults", files.text(DEFAULTS), variable="GRUB_CMDLINE_LINUX_DEFAULT")
    details.update(record=recorded, sources=[source])
    stale = details["begun"] or edited.stale(recorded, [source])
    return Loader(NAME, entries, recorded.ours, recorded.dropped, stale=stale, details=details)


def new_name(config: str) -> str:
    """Where grub-mkconfig writes to first. It stands there from the first step of a change to its last."""
    return f"{config}.iovirt-new"


def steps(loader: Loader, change: Change) -> list[Action]:
    """Say that a change begins, write what is ours, and let grub-mkconfig make grub.cfg of it."""
    actions = []
    if not loader.details["begun"]:
        actions.append(_begin(loader))
    if "drop_in" not in loader.details:
        after = [_mkconfig(loader, change)]
        return actions + edited.steps(NAME, loader.details["record"], loader.details["sources"], change, after)
    text, now = render(change.ours, change.dropped), loader.details["drop_in"]
    if text != now:
        actions.append(
            Action(
                kind="write_file",
                unit=HOST,
                text=f"{'write' if text else 'remove'} {DROP_IN}",
                args={"path": DROP_IN, "text": text, "previous": now},
                before={DROP_IN: now},
                after={DROP_IN: text},
            )
        )
    return [*actions, _mkconfig(loader, change)]


def _begin(loader: Loader) -> Action:
    path = new_name(loader.details["config"])
    return Action(
        kind="write_file",
        unit=HOST,
        text=f"note in {path} that a change is under way",
        args={"path": path, "text": _BEGUN, "previous": None, "mode": 0o600},
    )


def _mkconfig(loader: Loader, change: Change) -> Action:
    entry = loader.normal[0]
    config = loader.details["config"]
    return Action(
        kind="grub_mkconfig",
        unit=HOST,
        text=f"write {config} anew, for {len(loader.normal)} boot entries",
        args={"tool": loader.details["tool"], "config": config, **change.wish()},
        before={"next boot": " ".join(entry.words)},
        after={"next boot": " ".join(predict(entry.words, change, loader.ours))},
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
    added = "".join(f" {word}" for word in ours).replace('"', '\\"')
    return text + f'GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT{added}"\n'


# A word with a blank in quotes comes in pieces: they are put together while the number of quotes is odd.
_FILTER = """iovirt_filter() {
  set -f
  iovirt_kept= iovirt_word= iovirt_open=
  for iovirt_piece in $1; do
    iovirt_word="${iovirt_word:+$iovirt_word }$iovirt_piece"
    while :; do
      case $iovirt_piece in
        *\\"*) iovirt_piece=${iovirt_piece#*\\"} ;;
        *) break ;;
      esac
      if [ -n "$iovirt_open" ]; then iovirt_open=; else iovirt_open=1; fi
    done
    [ -z "$iovirt_open" ] || continue
    case $iovirt_word in
      %s) ;;
      *) iovirt_kept="${iovirt_kept:+$iovirt_kept }$iovirt_word" ;;
    esac
    iovirt_word=
  done
  printf '%%s' "$iovirt_kept${iovirt_word:+ $iovirt_word}"
}
GRUB_CMDLINE_LINUX="$(iovirt_filter "$GRUB_CMDLINE_LINUX")"
GRUB_CMDLINE_LINUX_DEFAULT="$(iovirt_filter "$GRUB_CMDLINE_LINUX_DEFAULT")"
"""


def _shell_pattern(word: str) -> str:
    """In each way to put quotes (cmdline.parsed)."""
    key, value = cmdline.parsed(word)
    name = re.sub("[-_]", "[-_]", key)
    if value is None:
        return "|".join(f"{q}{name}{q}|{q}{name}=*" for q in ("", '\\"'))
    return f"{name}='{value}'|{name}='\"{value}\"'|\\\"{name}='{value}\"'"


def make_config(host: Host, args: Mapping[str, Any]) -> None:
    """Let grub-mkconfig write beside grub.cfg, look at what came out, and only then put it in place."""
    config = args["config"]
    new = new_name(config)
    code, _out, err = host.run([args["tool"], "-o", new])
    text = host.files.text(new)
    if code or text is None:
        said = (err.strip().splitlines() or [f"exit status {code}"])[-1]
        raise EngineError(f"{args['tool']} failed: {said}. {config} is as it was; {_culprit(host.files, err)}")
    try:
        _check(host.files, text, args)
        host.files.replace_for_loader(config, text, host.files.mode(config) or 0o600)
    except OSError as error:
        raise EngineError(f"{config} cannot be written: {explain(error)}. The host boots with what it had.") from None
    finally:
        _clean(host.files, config)


def _clean(files: Files, config: str) -> None:
    """What is left beside grub.cfg does no harm. The second is grub-mkconfig's own, when it finds a syntax error."""
    for path in (new_name(config), f"{new_name(config)}.new"):
        with contextlib.suppress(OSError):
            files.remove(path)


def _culprit(files: Files, err: str) -> str:
    """Which file the shell complained of: 'PATH: 3: Syntax error: ...' (dash), 'PATH: line 3: ...' (bash)."""
    named = re.findall(r"(/etc/(?:default/grub(?:\.d/[^\s:]+\.cfg)?|grub\.d/[^\s:]+))[: ]", err)
    if named and named[-1] != DROP_IN:
        return f"the broken file is {named[-1]}."
    names = [name for name in files.names("/etc/default/grub.d") if name.endswith(".cfg")]
    others = [f"/etc/default/grub.d/{name}" for name in names if f"/etc/default/grub.d/{name}" != DROP_IN]
    return f"look for a broken file among {', '.join([DEFAULTS, *others])}."


def _check(files: Files, text: str, args: Mapping[str, Any]) -> None:
    config = args["config"]
    change = Change((), (), *(tuple(args[key]) for key in ("present", "absent", "exact")))
    normal = [entry for entry in parse(text) if entry.generated and not entry.rescue]
    if not normal:
        raise EngineError(f"{args['tool']} wrote a configuration without any kernel. {config} is as it was.")
    for entry in normal:
        # GRUB's paths start at its own root: a /boot of its own, a btrfs subvolume (/@/boot/...), a ZFS dataset. The
        # kernel itself is in /boot in all of them.
        name = entry.kernel.strip("\"'").rpartition("/")[2]
        if not files.exists(f"/boot/{name}") and not files.exists(entry.kernel):
            raise EngineError(
                f"the entry '{entry.title}' names {entry.kernel}, which is not there. {config} is as it was."
            )
        wrong = change.unmet(entry.words)
        if wrong:
            raise EngineError(
                f"the entry '{entry.title}' does not come out as wished ({', '.join(wrong)}): another file in "
                f"/etc/default/grub.d or /etc/grub.d overrides it. {config} is as it was."
            )


def undo_config(host: Host, args: Mapping[str, Any]) -> None:
    """grub.cfg was not touched unless its step succeeded, and it is the last step."""
    for path in (new_name(args["config"]), f"{new_name(args['config'])}.new"):
        host.files.remove(path)
