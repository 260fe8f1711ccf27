#!/usr/bin/python
# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: kernel_cmdline
short_description: x
"""

EXAMPLES = r"""
"""

RETURN = r"""
"""

from ansible_collections.iovirt.host.plugins.module_utils import _door
from ansible_collections.iovirt.host.plugins.module_utils._engine import engine
from ansible_collections.iovirt.host.plugins.module_utils._engine.resources import kernel_cmdline


def call(module, host, door):
    return engine.host_cmdline(host, kernel_cmdline.wish_of(module.params), door)


def main() -> None:
    _door.run("kernel_cmdline", call)


if __name__ == "__main__":
    main()
