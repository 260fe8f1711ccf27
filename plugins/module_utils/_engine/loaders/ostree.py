# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""rpm-ostree: kernel arguments belong to a deployment. A change makes a new deployment in one transaction, which is the
default of the next boot; the old one stays bootable (rpm-ostree kargs)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import cmdline
from ..errors import EngineError
from ..host import Files, Host
from ..model import HOST, Action
from . import edited
from .common import Change, Entry, Loader, predict
from .edited import Record

NAME = "rpm-ostree"
FAMILY = "ostree"
TOOL = "/usr/bin/rpm-ostree"
LOOKS_FOR = f"/run/ostree-booted with {TOOL}"


def fits(files: Files) -> bool:
    return files.exists("/run/ostree-booted") and files.exists(TOOL)


def read(host: Host) -> Loader:
    record = edited.read_record(host.files)
    words = _kargs(host)
    entry = Entry("the next deployment", "ostree", words)
    # Later deployments take over the arguments of the one before.
    details = {"record": record, "words": words}
    stale = any(word not in words for word in record.ours)
    return Loader(NAME, (entry,), record.ours, record.dropped, words, "the deployment itself", stale, details, quotes=False)


def _kargs(host: Host) -> tuple[str, ...]:
    code, out, err = host.run([TOOL, "kargs"])
    if code:
        raise EngineError(f"rpm-ostree kargs failed: {err.strip() or code}. Nothing was changed.")
    return tuple(cmdline.split(out))


def steps(loader: Loader, change: Change) -> list[Action]:
    record: Record = loader.details["record"]
    words = list(loader.details["words"])
    clean = [w for w in words if w not in record.ours] + [w for w in record.lost if w not in words]
    lost = [w for w in clean if any(cmdline.matches(w, p) for p in change.dropped)]
    wanted = [w for w in clean if w not in lost] + list(change.ours)
    new = Record(NAME, change.ours, change.dropped, tuple(lost)) if change.ours or change.dropped else None
    return _in_order(record, new, _action(loader, change, words, wanted))


def _action(loader: Loader, change: Change, words: list[str], wanted: list[str]) -> Action:
    # Additions go to the end, so all behind the first word that differs is deleted and appended in its order.
    kept, left = [], list(wanted)
    for word in words:
        if left and word == left[0]:
            kept.append(left.pop(0))
    delete = list(words)
    for word in kept:
        delete.remove(word)
    append = left
    return Action(
        kind="ostree_kargs",
        unit=HOST,
        text="make a deployment with the new kernel arguments (rpm-ostree kargs)",
        args={"append": append, "delete": delete, **change.wish()},
        before={"next boot": " ".join(words)},
        after={"next boot": " ".join(predict(words, change, loader.ours))},
    )


def _in_order(record: Record, new: Record | None, action: Action) -> list[Action]:
    old = edited.render_record(record) if record.loader else None
    text = edited.render_record(new) if new else None
    note = [edited.record_action(text, old)] if text != old else []
    return [*note, action] if new else [action, *note]


def set_kargs(host: Host, args: Mapping[str, Any]) -> None:
    _change(host, args["append"], args["delete"])
    change = Change((), (), *(tuple(args[key]) for key in ("present", "absent", "exact")))
    wrong = change.unmet(_kargs(host))
    if wrong:
        raise EngineError(f"the new deployment does not come out as wished ({', '.join(wrong)}).")


def undo_kargs(host: Host, args: Mapping[str, Any]) -> None:
    now = _kargs(host)
    _change(host, [w for w in args["delete"] if w not in now], [w for w in args["append"] if w in now])


def _change(host: Host, append: list[str], delete: list[str]) -> None:
    if not append and not delete:
        return
    words = [f"--delete={w}" for w in delete] + [f"--append={w}" for w in append]
    code, _out, err = host.run([TOOL, "kargs", *words])
    if code:
        raise EngineError(f"rpm-ostree kargs failed: {err.strip() or code}. The deployments are as they were.")
