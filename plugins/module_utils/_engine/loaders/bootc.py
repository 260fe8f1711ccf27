# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""bootc: kernel arguments belong to the image, in TOML files below /usr/lib/bootc/kargs.d that only add (bootc's
"Kernel arguments"). On a booted host /usr is read-only, so this back end serves the build of an image; a booted host
with rpm-ostree is rpm-ostree's.
"""

from __future__ import annotations

import re

from ..errors import EngineError
from ..host import Files, Host
from ..model import HOST, Action
from .common import Change, Entry, Loader, mount_of

NAME = FAMILY = "bootc"
FOLDER = "/usr/lib/bootc/kargs.d"
DROP_IN = f"{FOLDER}/99-iovirt.toml"
LOOKS_FOR = "/usr/bin/bootc with kargs.d"


def fits(files: Files) -> bool:
    return files.exists("/usr/bin/bootc")


def read(host: Host) -> Loader:
    files = host.files
    texts = {name: files.text(f"{FOLDER}/{name}") or "" for name in files.names(FOLDER) if name.endswith(".toml")}
    words = tuple(word for _name, text in sorted(texts.items()) for word in _kargs(text))
    own = texts.get(DROP_IN.rpartition("/")[2])
    read_only = files.exists("/run/ostree-booted") or mount_of(files, FOLDER).read_only
    details = {"text": own, "words": words, "read_only": read_only}
    entry = Entry("hosts made from this image", "bootc", words)
    return Loader(NAME, (entry,), tuple(_kargs(own or "")), (), words, FOLDER, False, details, quotes=False)


def _kargs(text: str) -> list[str]:
    """The list 'kargs' of a file: strings in one or several lines. No other TOML is looked at."""
    found = re.search(r"^\s*kargs\s*=\s*\[(.*?)\]", text, re.MULTILINE | re.DOTALL)
    return re.findall(r'"([^"]*)"', found.group(1)) if found else []


def steps(loader: Loader, change: Change) -> list[Action]:
    inherited = [w for w in loader.details["words"] if w not in loader.ours]
    wrong = Change((), (), absent=change.absent).unmet(inherited)
    if wrong:
        raise EngineError(
            f"boot loader: a file in {FOLDER} can only add arguments, and {', '.join(wrong)} comes from another file "
            "of this image. Take it out there; nothing was changed."
        )
    text = f"kargs = [{', '.join(f'{chr(34)}{w}{chr(34)}' for w in change.ours)}]\n" if change.ours else None
    if loader.details["read_only"]:
        raise EngineError(
            f"boot loader: this host was made from a bootc image and its /usr is read-only. Put this into {DROP_IN} of "
            f"the image, then 'bootc upgrade': {(text or 'nothing (remove the file)').strip()}. Nothing was changed."
        )
    after = [*inherited, *change.ours]
    return [
        Action(
            kind="write_file",
            unit=HOST,
            text=f"{'write' if text else 'remove'} {DROP_IN}",
            args={"path": DROP_IN, "text": text, "previous": loader.details["text"]},
            before={DROP_IN: loader.details["text"], "next boot": " ".join(loader.details["words"])},
            after={DROP_IN: text, "next boot": " ".join(after)},
        )
    ]
