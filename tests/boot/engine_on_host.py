# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on the lab host, beside a copy of the engine: calls of it, without the seconds that Ansible takes to get there.

    python3 engine_on_host.py '[["iommu", {"mode": "passthrough"}], ["kernel_cmdline", {"present": ["a=b"]}]]'

It says `begun` when Python has loaded everything, and prints a line with the result of each call. A result is what the
module would return: changed, actions, reboot_required, msg and failed. `"check": true` in a wish is check mode.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from _engine import engine
from _engine.errors import EngineError
from _engine.host import FileSystem, Host, run_command
from _engine.resources.iommu import IommuWish
from _engine.resources.kernel_cmdline import wish_of


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
    here = Host(files=FileSystem(), run=run_command)
    print("begun", flush=True)
    for words in json.loads(sys.argv[1]):
        print(json.dumps(call(here, *words)), flush=True)
