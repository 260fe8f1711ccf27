# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on the lab host, beside a copy of the engine: one call of iommu, without the seconds that Ansible takes to get there.

    python3 cut_on_host.py '{"mode": "passthrough"}'

It says `begun` when Python has loaded everything, and prints the result at the end.
"""

from __future__ import annotations

import json
import sys

from _engine import engine
from _engine.errors import EngineError
from _engine.host import FileSystem, Host, run_command
from _engine.resources.iommu import IommuWish

if __name__ == "__main__":
    wish = IommuWish(**json.loads(sys.argv[1]))
    host = Host(files=FileSystem(), run=run_command)
    print("begun", flush=True)
    try:
        result = engine.host_iommu(host, wish, engine.Call(who="power cut"))
    except EngineError as error:
        result = {"failures": {"host": str(error)}}
    print(json.dumps(result), flush=True)
