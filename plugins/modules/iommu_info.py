#!/usr/bin/python
# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: iommu_info
short_description: Read the IOMMU and which devices can be given to a guest
version_added: 0.1.0
description:
  - Says how the IOMMU works, and for every PCI function whether it can be given to a guest; where not, why, in one
    sentence.
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
  - module: iovirt.host.iommu
  - module: iovirt.host.host_info
"""

EXAMPLES = r"""
- name: The IOMMU
  iovirt.host.iommu_info:
  register: info

- name: What cannot be given away, and why
  ansible.builtin.debug:
    msg: "{{ item.address }}: {{ item.reason }}"
  loop: "{{ info.devices | rejectattr('assignable') }}"
"""

RETURN = r"""
---
iommu:
  description:
    - The IOMMU as it is now.
  returned: always
  type: dict
  contains:
    tables:
      description:
        - ACPI tables that announce an IOMMU, out of V(DMAR), V(IVRS) and V(IORT). None means that the firmware
          offers no IOMMU.
      type: list
      elements: str
    units:
      description:
        - IOMMU units that the kernel drives.
      type: list
      elements: str
    active:
      description:
        - Whether there are IOMMU groups, without which no device can be given to a guest.
      type: bool
    mode:
      description:
        - How most groups are translated, V(translated) or V(passthrough). V(null) while the IOMMU is off.
      type: str
    strict:
      description:
        - Whether the IOMMU is flushed at once when a mapping ends. V(null) unless RV(iommu.mode) is V(translated).
      type: bool
    scalable_mode_offered:
      description:
        - Whether VT-d's units offer scalable mode. V(null) where none is driven.
      type: bool
    interrupt_remapping:
      description:
        - Whether interrupts are remapped.
      type: bool
    problem:
      description:
        - Why no device can be given to a guest, in a sentence. V(null) while the IOMMU is on.
      type: str
    groups:
      description:
        - The IOMMU groups by number, with C(type) (the domain type) and C(devices) (PCI addresses).
      type: dict
devices:
  description:
    - Every PCI function.
  returned: always
  type: list
  elements: dict
  contains:
    address:
      description:
        - The PCI address.
      type: str
    driver:
      description:
        - The driver that has it now.
      type: str
    group:
      description:
        - The number of its IOMMU group; it may change from boot to boot.
      type: str
    type:
      description:
        - The domain type of the group, as in C(Documentation/ABI/testing/sysfs-kernel-iommu_groups).
      type: str
    members:
      description:
        - All functions of the group.
      type: list
      elements: str
    reserved_regions:
      description:
        - Regions of addresses that a guest's memory cannot take, with C(start), C(end) and C(type).
      type: list
      elements: dict
    assignable:
      description:
        - Whether it can be given to a guest. Whether it should be (a mounted disk, the path to the controller) is
          another question, which M(iovirt.host.vfio) asks.
      type: bool
    reason:
      description:
        - Why, or why not, in one sentence.
      type: str
"""

from ansible_collections.iovirt.host.plugins.module_utils import _door
from ansible_collections.iovirt.host.plugins.module_utils._engine import engine


def call(module, host, door):
    return engine.iommu_info(host)


def main() -> None:
    _door.run("iommu_info", call)


if __name__ == "__main__":
    main()
