#!/usr/bin/python
# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: guest_info
short_description: What was declared of guests, and what libvirt has
version_added: 0.1.0
description:
  - Returns the declarations of the guests that the collection made, as input for M(iovirt.host.guest), and facts of all guests of the host.
  - Says of each declared guest what is not as it was made (RV(facts)).
author:
  - The iovirt.host authors (@iovirt)
requirements:
  - Linux with sysfs and Python 3.9 or newer.
  - libvirt with QEMU, and the distribution's python3-libvirt.
extends_documentation_fragment:
  - iovirt.host._attributes
  - iovirt.host._attributes.actiongroup_host
  - iovirt.host._attributes.info_module
options:
  names:
    description:
      - The guests that are asked for. All of them, unless named.
    type: list
    elements: str
seealso:
  - module: iovirt.host.guest
"""

EXAMPLES = r"""
- name: Which guest has which VF
  iovirt.host.guest_info:
  register: found

- name: Show them
  ansible.builtin.debug:
    msg: "{{ item.name }}: {{ item.functions | join(' ') }}"
  loop: "{{ found.facts }}"
"""

RETURN = r"""
guests:
  description:
    - What was declared, as input for M(iovirt.host.guest). A seed is among it, with what it holds.
  returned: always
  type: list
  elements: dict
facts:
  description:
    - All guests of the host, or those that were asked for.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description:
        - Its name.
      type: str
    uuid:
      description:
        - Its UUID.
      type: str
    state:
      description:
        - Its state in libvirt's words, as V(running) or V(shut off); V(not defined) where it was declared and is gone.
      type: str
    autostart:
      description:
        - Whether libvirt starts it with the host.
      type: bool
    declared:
      description:
        - Whether the collection made it.
      type: bool
    drift:
      description:
        - What is not as the collection made it last, in words.
      type: list
      elements: str
    functions:
      description:
        - The PCI functions that it has or names.
      type: list
      elements: str
    network:
      description:
        - Its network devices, with C(mac), C(type), C(model), C(source) and C(port), the host's end.
      type: list
      elements: dict
    mdevs:
      description:
        - Its mediated devices, with C(uuid), C(model), C(parent) and C(type); the last two are null where the device is not there.
      type: list
      elements: dict
"""

from ansible_collections.iovirt.host.plugins.module_utils import _door
from ansible_collections.iovirt.host.plugins.module_utils._engine import engine


def call(module, host, door):
    return engine.guest_info(host, module.params["names"])


def main() -> None:
    _door.run("guest_info", call)


if __name__ == "__main__":
    main()
