#!/usr/bin/python
# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: vgpu_info
short_description: Read which vGPUs NVIDIA GPUs have, what they could have, and how MIG is
version_added: 0.1.0
description:
  - >-
    Reads the vGPUs and the MIG instances of all GPUs that NVIDIA's driver has, in the form of wishes, so that an existing host can be
    exported into an inventory; and what the driver says of each GPU.
  - It reads only, and it writes nothing on the host. It runs C(nvidia-smi) up to four times for each GPU.
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
          - Serial numbers, as the GPU's driver tells them (C(nvidia-smi -q)). It takes a process to find out.
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
      uuid:
        description:
          - UUIDs of GPUs, as in V(GPU-eaf23aa1-4d3d-596c-da66-b86b0e5db584), in any case (C(nvidia-smi -L)).
        type: list
        elements: str
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
        - How many vGPUs of the GPU have it.
      type: int
    mig:
      description:
        - How MIG is, in the first entry of a GPU whose MIG mode is on.
      type: dict
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
        - V(nvidia_vfio), V(nvidia_mdev), or V(null) where the driver offers no vGPUs. A GPU without VFs that will have some counts as
          V(nvidia_vfio); which it is shows with them.
      type: str
    uuid:
      description:
        - Its UUID, or V(null).
      type: str
    serial:
      description:
        - Its serial number, or V(null).
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
    mig:
      description:
        - MIG of the GPU, with C(enabled), C(pending) (the mode from the next reset on), C(instances) (each with C(id) and C(profile)) and
          C(profiles) (each with C(name), and C(free) of C(total)). V(null) where it knows no MIG.
      type: dict
    types:
      description:
        - The types that the driver knows for it, each with C(id), C(name), C(memory) in MiB, C(most) (how many of this type alone), C(mig) (it needs
          a GPU instance), C(profile) (the id of its profile) and C(per_instance) (how many share one). Of Intel GPUs C(name), C(id) (GVT-g), C(most)
          (VFs) and C(free).
      type: list
      elements: dict
    vgpus:
      description:
        - Its VFs, or up to Turing the places that the GPU itself has for vGPUs. Each with C(index), C(address) (of the VF, or of the GPU), C(uuid) (of
          the mediated device), C(type), C(creatable) (what it could have now) and C(declared). Of a VF of an Intel GPU also C(driver) and C(profile)
          (its shares of time and its quotas as they are).
      type: list
      elements: dict
    profile:
      description:
        - Of an Intel GPU with SR-IOV what can be set of a VF, and where the driver has it - V(sriov_admin), V(iov) or V(debugfs).
      type: dict
"""

from ansible_collections.iovirt.host.plugins.module_utils import _door
from ansible_collections.iovirt.host.plugins.module_utils._engine import engine


def call(module, host, door):
    return engine.resource_info(host, "vgpu", module.params["match"])


def main() -> None:
    _door.run("vgpu_info", call)


if __name__ == "__main__":
    main()
