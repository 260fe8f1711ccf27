#!/usr/bin/python
# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: mdev_info
short_description: Read which mediated devices there are, and what their parents offer
version_added: 0.1.0
description:
  - >-
    Reads all mediated devices of a host, those that are there and those that mdevctl has defined, in the form of wishes,
    so that an existing host can be exported into an inventory; and what each parent offers and has free.
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
      - Which parents to tell of. Unset, all of them.
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
          - Permanent MAC addresses of network interfaces of the device, in any case. Of an InfiniBand port its GUID, which
            is also the end of its long address.
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
      parent:
        description:
          - Names of parents, as in C(/sys/class/mdev_bus). A PCI function goes by its address there, a VF too.
          - A parent that is not there yet is waited for, up to ten seconds.
          - A subchannel of s390x, as V(0.0.0313), is one by the wish itself. It is given to the driver C(vfio_ccw), which
            makes one device of it.
        type: list
        elements: str
seealso:
  - module: iovirt.host.mdev
  - module: iovirt.host.host_info
"""

EXAMPLES = r"""
- name: What there is
  iovirt.host.mdev_info:
  register: found

- name: How many more of each type would fit
  ansible.builtin.debug:
    msg: "{{ item.address }}: {{ item.types | items2dict(key_name='type', value_name='available') }}"
  loop: "{{ found.facts }}"

- name: Declare it as it is
  iovirt.host.mdev:
    devices: "{{ found.devices }}"
"""

RETURN = r"""
---
changed:
  description:
    - Always V(false).
  returned: always
  type: bool
devices:
  description:
    - The mediated devices, in the form of wishes. Each entry is valid input for O(iovirt.host.mdev#module:devices).
    - Those of a GPU that M(iovirt.host.vgpu) rules are in RV(iovirt.host.vgpu_info#module:devices) instead, and here in RV(facts) alone.
    - Handed back, an entry changes nothing on its devices. The collection owns them from then on, and they stay when they are given back.
  returned: always
  type: list
  elements: dict
  contains:
    match:
      description:
        - A selector that names exactly this parent.
      type: dict
    type:
      description:
        - The type of the devices.
      type: str
    uuids:
      description:
        - The devices of this type that have the same attributes and autostart.
      type: list
      elements: str
    attributes:
      description:
        - The attributes, as they are declared or defined; missing where nobody knows them.
      type: list
      elements: dict
    autostart:
      description:
        - Whether they start with the host; missing where nobody said.
      type: bool
facts:
  description:
    - What stands beside that and is no input, for each parent.
  returned: always
  type: list
  elements: dict
  contains:
    address:
      description:
        - The name of the parent, as in C(/sys/class/mdev_bus).
      type: str
    driver:
      description:
        - The driver of the PCI function or of the subchannel, or V(null) where the parent is neither.
      type: str
    mdevctl:
      description:
        - Whether mdevctl is there to keep definitions.
      type: bool
    declared:
      description:
        - Whether the collection owns devices of it.
      type: bool
    types:
      description:
        - The types that it offers, each with C(type), C(name), C(available) and C(device_api). C(available) is how many would fit if all that is
          free went to this type.
      type: list
      elements: dict
    mdevs:
      description:
        - Its devices, each with C(uuid), C(active), C(type), C(iommu_group), C(defined) (by mdevctl), C(declared) (by the collection; also as a vGPU),
          C(next_boot), which says whether it is there after the next boot, C(pool), C(holders), the guests and processes that have it,
          and C(queues), which of vfio-ap are those that it has (C(ADAPTER.DOMAIN), hexadecimal) and V(null) for all others.
      type: list
      elements: dict
"""

from ansible_collections.iovirt.host.plugins.module_utils import _door
from ansible_collections.iovirt.host.plugins.module_utils._engine import engine


def call(module, host, door):
    return engine.resource_info(host, "mdev", module.params["match"])


def main() -> None:
    _door.run("mdev_info", call)


if __name__ == "__main__":
    main()
