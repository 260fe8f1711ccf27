#!/usr/bin/python
# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: devices
short_description: All device resources of a host in one call
"""

EXAMPLES = r"""
"""

RETURN = r"""
"""

from ansible_collections.iovirt.host.plugins.module_utils import _door
from ansible_collections.iovirt.host.plugins.module_utils._engine import engine


def call(module, host, door):
    only = module.params["only"] or list(engine.RESOURCES)
    wishes = {name: module.params[name] for name in only if module.params[name] is not None}
    return engine.devices(host, wishes, _door.options(module.params, module.params["exclusive"]), door)


def main() -> None:
    _door.run("devices", call)


if __name__ == "__main__":
    main()
