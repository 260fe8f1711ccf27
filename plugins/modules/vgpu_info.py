#!/usr/bin/python
# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: vgpu_info
short_description: Read which vGPU types VFs of NVIDIA GPUs have, and what they could have
version_added: 0.1.0
description:
  - >-
    Reads the vGPU types of the VFs of all GPUs that NVIDIA's driver has, in the form of wishes, so that an existing host can be
    exported into an inventory; and what the driver says of each GPU.
  - It reads only, and it writes nothing on the host. It runs C(nvidia-smi) twice for each GPU.
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
      - Which GPUs to tell of. Unset, all of them.
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
seealso:
  - module: iovirt.host.vgpu
  - module: iovirt.host.mdev_info
  - module: iovirt.host.host_info
"""

EXAMPLES = r"""
- name: What there is
  iovirt.host.vgpu_info:
  register: found

- name: In which framework each GPU is
  ansible.builtin.debug:
    msg: "{{ found.facts | items2dict(key_name='address', value_name='framework') }}"

- name: Declare it as it is
  iovirt.host.vgpu:
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
    - The vGPUs, in the form of wishes. Each entry is valid input for O(iovirt.host.vgpu#module:devices).
    - Handed back, an entry changes nothing. The collection owns those vGPUs from then on, and they stay when it gives them back.
  returned: always
  type: list
  elements: dict
  contains:
    match:
      description:
        - A selector that names exactly this GPU.
      type: dict
    type:
      description:
        - The name of the type.
      type: str
    count:
      description:
        - How many VFs of the GPU have it.
      type: int
facts:
  description:
    - What stands beside that and is no input, for each GPU.
  returned: always
  type: list
  elements: dict
  contains:
    address:
      description:
        - The PCI address of the GPU.
      type: str
    driver:
      description:
        - Its driver.
      type: str
    framework:
      description:
        - V(vendor), V(mdev), or V(null) where the driver offers no vGPUs.
      type: str
    host_vgpu_mode:
      description:
        - What C(nvidia-smi) calls so, as in V(SR-IOV).
      type: str
    virtualization_mode:
      description:
        - What C(nvidia-smi) calls so, as in V(Host VGPU).
      type: str
    error:
      description:
        - What C(nvidia-smi) said where it told nothing of the GPU.
      type: str
    declared:
      description:
        - Whether the collection owns vGPUs of it.
      type: bool
    types:
      description:
        - The types that the driver knows for it, each with C(id), C(name), C(memory) in MiB, C(most) (how many of this type alone) and C(mig).
      type: list
      elements: dict
    vfs:
      description:
        - Its VFs, each with C(index), C(address), C(type), C(creatable) (what it could have now) and C(declared).
      type: list
      elements: dict
"""

from ansible_collections.iovirt.host.plugins.module_utils import _door
from ansible_collections.iovirt.host.plugins.module_utils._engine import engine


def call(module, host, door):
    return engine.resource_info(host, "vgpu", module.params["match"])


def main() -> None:
    _door.run("vgpu_info", call)


if __name__ == "__main__":
    main()
