#!/usr/bin/python
# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: host_info
short_description: x
"""

EXAMPLES = r"""
"""

RETURN = r"""
"""

from ansible_collections.iovirt.host.plugins.module_utils import _door
from ansible_collections.iovirt.host.plugins.module_utils._engine import host_info


def call(module, host, door):
    return host_info.facts(host)


def main() -> None:
    _door.run("host_info", call)


if __name__ == "__main__":
    main()
