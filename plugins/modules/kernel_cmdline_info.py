#!/usr/bin/python
# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: kernel_cmdline_info
short_description: Read the kernel command line of the running and of the next boot
version_added: 0.1.0
description:
  - Says which parameters the running kernel was started with, which ones each boot entry will give to its kernel, what a
    kernel yet to be installed will get, and in what the next boot differs.
  - It reads only, and it writes nothing on the host.
author:
  - The iovirt.host authors (@iovirt)
requirements:
  - Linux with sysfs and Python 3.9 or newer; nothing beyond the standard library.
extends_documentation_fragment:
  - iovirt.host._attributes
  - iovirt.host._attributes.info_module
  - iovirt.host._attributes.actiongroup_host
seealso:
  - module: iovirt.host.kernel_cmdline
"""

EXAMPLES = r"""
- name: Both sides of a reboot
  iovirt.host.kernel_cmdline_info:
  register: info

- name: What a reboot would change
  ansible.builtin.debug:
    var: info.kernel_cmdline.differing
"""

RETURN = r"""
---
kernel_cmdline:
  description:
    - Both sides of a reboot.
  returned: always
  type: dict
  contains:
    running:
      description:
        - The parameters that the running kernel was started with.
      type: list
      elements: str
    next_boot:
      description:
        - For each boot entry, by its title, the parameters that it gives to its kernel.
      type: dict
    later_kernels:
      description:
        - The parameters that a kernel yet to be installed will get. V(null) where its entry is made from the same source
          as the others.
      type: list
      elements: str
    differing:
      description:
        - The parameters in which the next boot differs from the running one, by C(key), with C(running) and
          C(next_boot). What boot loaders add by themselves does not count.
      type: list
      elements: dict
    loader:
      description:
        - The boot loader.
      type: str
      sample: grub
    ours:
      description:
        - The parameters that the collection sets.
      type: list
      elements: str
"""

from ansible_collections.iovirt.host.plugins.module_utils import _door
from ansible_collections.iovirt.host.plugins.module_utils._engine import engine


def call(module, host, door):
    return engine.cmdline_info(host)


def main() -> None:
    _door.run("kernel_cmdline_info", call)


if __name__ == "__main__":
    main()
