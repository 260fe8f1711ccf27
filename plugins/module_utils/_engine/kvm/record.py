# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What of the host the collection touched for KVM, and how it was before: /etc/iovirt/kvm.json.

An entry is made before the first touch and stays as it was first written; `state: absent` makes the host as it says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import StateFileError
from ..model import HOST, Action
from ..store import FOLDER

PATH = f"{FOLDER}/kvm.json"
VERSION = 1

#: Part -> what it was, in the part's own form.
Origin = Mapping[str, Mapping[str, Any]]


def parse(text: str | None) -> dict[str, dict[str, Any]]:
    """Raises StateFileError where it cannot be understood: what is given back is not guessed at."""
    if text is None:
        return {}
    try:
        document = json.loads(text)
        origin = document["origin"]
        usable = document["version"] == VERSION and all(isinstance(part, dict) for part in origin.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        usable = False
    if not usable:
        raise StateFileError(
            f"{PATH}: is not a version {VERSION} record of what this host was before the collection touched it, so nothing "
            "was changed. Put a good copy back, or move the file away to start without the record."
        )
    return {name: dict(part) for name, part in origin.items()}


def write(previous: str | None, origin: Origin) -> Action | None:
    """The step that puts the record in the place of what is there; None where that says the same."""
    kept = {name: dict(part) for name, part in sorted(origin.items()) if part}
    if kept == parse(previous):
        return None
    body = {"version": VERSION, "resource": "kvm", "origin": kept}
    text = json.dumps(body, indent=1, sort_keys=True) + "\n" if kept else None
    return Action(
        kind="write_file",
        unit=HOST,
        text=f"record in {PATH} how it was before" if kept else f"remove the record {PATH}",
        args={"path": PATH, "text": text, "previous": previous, "mode": 0o600},
    )


def merged(old: Origin, new: Origin) -> dict[str, dict[str, Any]]:
    """With what is touched now for the first time."""
    return {name: {**new.get(name, {}), **old.get(name, {})} for name in {**old, **new}}
