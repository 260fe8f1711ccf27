# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on the lab host, beside a copy of the engine: calls of it, without the seconds that Ansible takes to get there.

    python3 engine_on_host.py '[["iommu", {"mode": "passthrough"}], ["kernel_cmdline", {"present": ["a=b"]}]]'

It says `begun` when Python has loaded everything, and prints a line with the result of each call. A result is what the
module would return: changed, actions, reboot_required, msg and failed. `"check": true` in a wish is check mode.
On stderr it says what it begins to write or to run and when that has ended, in seconds since it began.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from _engine import engine
from _engine.errors import EngineError
from _engine.host import FileSystem, Host, run_command
from _engine.resources.iommu import IommuWish
from _engine.resources.kernel_cmdline import wish_of

BEGAN = time.monotonic()


@contextlib.contextmanager
def said(what: str) -> Iterator[None]:
    """Before and after, so that whoever cuts the power knows from the last line what it fell into."""
    print(f"{time.monotonic() - BEGAN:.3f} begin {what}", file=sys.stderr, flush=True)
    yield
    print(f"{time.monotonic() - BEGAN:.3f} end {what}", file=sys.stderr, flush=True)


class Watched(FileSystem):
    """The file system, and a word for each write."""

    def _put(self, path: str, data: bytes, mode: int, for_loader: bool = False) -> None:
        with said(f"write {path}"):
            super()._put(path, data, mode, for_loader)

    def remove(self, path: str) -> None:
        with said(f"remove {path}"):
            super().remove(path)


def run(argv: list[str], data: str = "") -> tuple[int, str, str]:
    with said(f"run {argv[0]}"):
        return run_command(argv, data)


def call(host: Host, name: str, wish: dict[str, Any]) -> dict[str, Any]:
    who = engine.Call(check=wish.pop("check", False), who="boot test")
    try:
        if name == "iommu":
            prove = wish.pop("prove", False)
            result: dict[str, Any] = engine.host_iommu(host, IommuWish(**wish), who, prove)
        else:
            result = engine.host_cmdline(host, wish_of(wish), who)
    except EngineError as error:
        return {"failed": True, "msg": str(error), "failures": {"host": str(error)}}
    return {**result, "failed": bool(result["failures"]), "msg": " ".join(result["failures"].values())}


if __name__ == "__main__":
    here = Host(files=Watched(), run=run)
    print("begun", flush=True)
    for words in json.loads(sys.argv[1]):
        print(json.dumps(call(here, *words)), flush=True)
