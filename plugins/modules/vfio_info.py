#!/usr/bin/python
# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: vfio_info
short_description: Read which PCI functions vfio drivers hold
version_added: 0.1.0
description:
  - >-
    Reads which whole PCI functions a vfio driver holds, and all functions that the collection gave to a driver, in the
    form of wishes, so that an existing host can be exported into an inventory.
  - It reads only, and it writes nothing on the host.
author:
  - The iovirt.host authors (@iovirt)
requirements:
  - Linux with sysfs and Python 3.9 or newer; nothing beyond the standard library.
extends_documentation_fragment:
  - iovirt.host._attributes
  - iovirt.host._attributes.info_module
  - iovirt.host._attributes.actiongroup_host
options:
  match:
    description:
      - Which devices to return. Unset, all of them.
    type: dict
    suboptions:
      address:
        description:
          - PCI addresses with their domain, as in V(0000:3b:00.0), in any case.
          - A shell pattern is possible, as in V(0000:3b:*).
        type: list
        elements: str
      vendor:
        description:
          - PCI vendor IDs, four hexadecimal digits each, in quotes, as in V("8086"). A leading V(0x) is allowed.
        type: list
        elements: raw
      device:
        description:
          - PCI device IDs, four hexadecimal digits each, in quotes, as in V("10c9"). A leading V(0x) is allowed.
        type: list
        elements: raw
      subsystem:
        description:
          - PCI subsystem IDs, vendor and device joined by a colon, in quotes, as in V("8086:a04c").
        type: list
        elements: str
      driver:
        description:
          - 'Drivers that the device has when nothing overrides it: the one that was recorded before the collection took
            the device, else the one that the kernel''s module aliases name.'
          - So a selector finds the same devices before and after it was applied. It never finds a device by V(vfio-pci).
        type: list
        elements: str
      ifname:
        description:
          - Names of network interfaces of the device. A shell pattern is possible, as in V(ens3f*).
          - While the interface is gone, because the device is on another driver, the name counts that was recorded before.
        type: list
        elements: str
      mac:
        description:
          - Permanent MAC addresses of network interfaces of the device, in any case.
          - While the interface is gone, the address counts that was recorded before.
        type: list
        elements: str
      serial:
        description:
          - Serial numbers, as sysfs shows them for NVMe controllers.
        type: list
        elements: str
      class:
        description:
          - 'Classes of devices by name: V(storage), V(scsi), V(sata), V(nvme), V(network), V(ethernet), V(infiniband),
            V(display), V(multimedia), V(audio), V(usb), V(fibre_channel), V(encryption), V(accelerator).'
          - Or the first two, four or six digits of a PCI class code, in quotes, as in V("0x0200").
        type: list
        elements: str
      numa_node:
        description:
          - NUMA nodes that the device is attached to. V(-1) means that the firmware names none.
        type: list
        elements: int
      slot:
        description:
          - Names of physical slots, as in C(/sys/bus/pci/slots).
        type: list
        elements: str
      vf:
        description:
          - Find virtual functions as well. Without it a selector sees physical and whole functions only.
          - It widens a match and selects nothing by itself.
        type: bool
seealso:
  - module: iovirt.host.vfio
  - module: iovirt.host.host_info
"""

EXAMPLES = r"""
- name: What guests can have of this host
  iovirt.host.vfio_info:
  register: found

- name: Declare it as it is
  iovirt.host.vfio:
    devices: "{{ found.devices }}"

- name: Which vfio driver is made for each of them
  ansible.builtin.debug:
    msg: "{{ found.facts | items2dict(key_name='address', value_name='vfio_driver') }}"
"""

RETURN = r"""
---
devices:
  description:
    - The functions, in the form of wishes.
    - Each entry is valid input for O(iovirt.host.vfio#module:devices).
    - Of a device that the collection owns an entry holds what was wished for it, as it is now; handed back, it changes
      nothing. Of any other device it holds all there is; handed back, it changes nothing on the device and the collection
      owns it from then on.
  returned: always
  type: list
  elements: dict
  contains:
    match:
      description:
        - A selector that names exactly this device.
      type: dict
    driver:
      description:
        - The driver that holds it.
      type: str
    early:
      description:
        - Whether it is declared to be bound in the initramfs; missing where it is not.
      type: bool
facts:
  description:
    - What stands beside that and is no input, for the same devices in the same order.
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
        - Its driver now.
      type: str
    driver_override:
      description:
        - The driver that an override gives to it, or V(null).
      type: str
    native_driver:
      description:
        - The driver that it has when nothing overrides it, or V(null).
      type: str
    vfio_driver:
      description:
        - The vfio driver made for this device (a variant driver), else V(vfio-pci). It is what V(vfio-best) comes to.
      type: str
    next_boot:
      description:
        - What the next boot brings, C(driver) and C(bound_by), which is V(initramfs), V(replay) or V(kernel).
        - With V(kernel) it is what the kernel does by itself; what others have set up is not looked at.
      type: dict
    iommu_group:
      description:
        - The number of its IOMMU group.
      type: str
    reset_methods:
      description:
        - How the kernel can reset it, in the order in which it tries (C(reset_method)); empty where it knows no way.
        - Told of GPUs and of what shares a slot with one; V(null) for others, and before Linux 5.15.
      type: list
      elements: str
    declared:
      description:
        - Whether the collection owns it.
      type: bool
"""

from ansible_collections.iovirt.host.plugins.module_utils import _door
from ansible_collections.iovirt.host.plugins.module_utils._engine import engine


def call(module, host, door):
    return engine.resource_info(host, "vfio", module.params["match"])


def main() -> None:
    _door.run("vfio_info", call)


if __name__ == "__main__":
    main()
