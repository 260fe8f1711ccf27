#!/usr/bin/python
# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: vgpu
short_description: Give VFs of NVIDIA GPUs their vGPU types, and take them back
version_added: 0.1.0
description:
  - Gives VFs of a GPU their vGPU types, in NVIDIA's vendor-specific VFIO framework (C(nvidia/current_vgpu_type) of each VF; Linux 6.8 and newer).
  - The framework is found by asking the driver (C(nvidia-smi), sysfs), not by the model. A card whose driver makes mediated devices is declared
    by M(iovirt.host.mdev).
  - One VF at a time. VFs that have what is wished are not written to.
  - A vGPU that a process or a running guest has is never cleared. No O(allow) changes that.
  - Where the GPU has no VFs, NVIDIA's C(sriov-manage) makes them. It is believed only once they and their files are there.
  - >-
    Either all that is wished for a GPU is done or nothing: when a step fails, the steps before it on that GPU are undone.
  - What is declared is kept in C(/etc/iovirt) and made true again at every boot.
author:
  - The iovirt.host authors (@iovirt)
requirements:
  - Linux with sysfs and Python 3.9 or newer; nothing beyond the standard library.
  - NVIDIA's vGPU host driver with C(nvidia-smi) and C(/usr/lib/nvidia/sriov-manage).
extends_documentation_fragment:
  - iovirt.host._attributes
  - iovirt.host._attributes.actiongroup_host
  - iovirt.host._devices
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  devices:
    description:
      - The GPUs, and the types that their VFs shall have.
    type: list
    elements: dict
    required: true
    suboptions:
      match:
        description:
          - Which devices of the host are meant. All keys that are named must fit; of a list in a key one must fit.
          - 'At least one key has to be named: an empty match would mean every device of the host.'
          - A match that finds no device is an error, unless O(devices[].expect) says V(0) or O(devices[].state) is V(absent).
        type: dict
        required: true
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
              - 'Drivers that the device has when nothing overrides it: the one that was recorded before the collection
                took the device, else the one that the kernel''s module aliases name.'
              - So a selector finds the same devices before and after it was applied. It never finds a device by V(vfio-pci).
            type: list
            elements: str
          ifname:
            description:
              - Names of network interfaces of the device. A shell pattern is possible, as in V(ens3f*).
              - While the interface is gone, because the device is on another driver, the name counts that was recorded
                before.
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
      expect:
        description:
          - How many devices the match has to find. Any other number is an error, and nothing is changed.
        type: int
      state:
        description:
          - V(present) gives vGPU types to VFs of the GPU.
          - V(absent) takes the types that the collection gave, and the VFs where it had them made. What others had set
            stays.
        type: str
        choices:
          - present
          - absent
        default: present
      type:
        description:
          - The vGPU type by its name, with or without the maker in front, or by its id, as in V(NVIDIA L40S-12Q), V(L40S-12Q)
            or V("1153").
          - It is one that the driver names for this GPU. Types for GPU instances of MIG are refused.
        type: str
      count:
        description:
          - How many VFs of the GPU have this type. VFs are chosen so that as few as possible change; those count that have
            it already.
          - Several wishes may speak of one GPU, each with a type of its own.
        type: int
  exclusive:
    description:
      - >-
        Whether the list is all there is: every GPU that the collection owns and the list no longer names is given back.
    type: bool
    default: false
notes:
  - It was never run on a GPU, only on a simulated driver with the files of a captured L40S.
seealso:
  - module: iovirt.host.vgpu_info
  - module: iovirt.host.mdev
  - module: iovirt.host.devices
"""

EXAMPLES = r"""
- name: Two halves of each GPU
  iovirt.host.vgpu:
    devices:
      - match:
          driver: nvidia
        type: NVIDIA L40S-24Q
        count: 2

- name: Types of one size and two kinds on one GPU
  iovirt.host.vgpu:
    devices:
      - match:
          address: "0000:26:00.0"
        type: L40S-12Q
        count: 3
      - match:
          address: "0000:26:00.0"
        type: L40S-12A
        count: 1

- name: Give it back
  iovirt.host.vgpu:
    devices:
      - match:
          address: "0000:26:00.0"
        state: absent
"""

RETURN = r"""
---
changed:
  description:
    - Whether anything was changed, or would be in check mode. What waits for a reboot does not count.
  returned: always
  type: bool
diff:
  description:
    - What differs, with one entry for each device.
  returned: always
  type: list
  elements: dict
actions:
  description:
    - The steps, in the order in which they are taken. Check mode returns those that a run would take.
  returned: always
  type: list
  elements: dict
  contains:
    device:
      description:
        - The PCI address of the device, or V(host) for what belongs to no single device.
        - When a step fails, the steps before it on the same device are undone.
      type: str
    action:
      description:
        - What kind of step it is, in a word.
      type: str
      sample: "set_vf_count"
    text:
      description:
        - The step in words.
      type: str
    certainty:
      description:
        - V(certain) will be so to the letter. For V(predicted) the kernel has the last word, as with the address of
          a VF that is not born yet. V(after_reboot) waits for the next boot,
          V(after_link) for a link of the port.
      type: str
    before:
      description:
        - What the step finds.
      type: dict
    after:
      description:
        - What the step leaves.
      type: dict
predicted:
  description:
    - What guests can count on after this call; O(iovirt.host.guest#module:assume) takes it.
    - C(vgpus) has the VFs whose vGPU changes, with C(type), C(name) and C(gpu), or null for one that loses it.
  returned: always
  type: dict
reboot_required:
  description:
    - Whether something of what is wished waits for a reboot.
  returned: always
  type: bool
reboot_reasons:
  description:
    - What waits for a reboot, in words. Empty if nothing does.
  returned: always
  type: list
  elements: str
failures:
  description:
    - The devices on which a step failed, and for each of them which step, what the kernel answered and what was
      undone.
    - The module fails when there is any. Other devices keep what they have.
  returned: always
  type: dict
indeterminate:
  description:
    - Devices with a write that never returned. Nothing was undone there and nothing else was done.
  returned: always
  type: list
  elements: str
vgpu:
  description:
    - The vGPUs of the GPUs that the call named, in the form of wishes. Each entry is valid input for O(devices).
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
"""

from ansible_collections.iovirt.host.plugins.module_utils import _door


def main() -> None:
    _door.devices("vgpu")


if __name__ == "__main__":
    main()
