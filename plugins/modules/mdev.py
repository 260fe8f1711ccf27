#!/usr/bin/python
# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: mdev
short_description: Make mediated devices, keep them over a boot, and remove them
version_added: 0.1.0
description:
  - Makes the declared set of mediated devices of each parent (C(mtty), a GPU with GVT-g or the vGPUs of an older NVIDIA driver, C(vfio-ap),
    C(vfio-ccw)), one device at a time. Only what differs is touched.
  - Where mdevctl is installed it keeps the definitions. Devices that it does not start at boot are started by the boot replay.
  - Devices that the collection did not make are never removed or changed.
  - A device that a process or a guest uses is never removed. The kernel would let the removal wait until it is let go. No O(allow) changes that.
  - >-
    Either all that is wished for a parent is done or nothing: when a step fails, the steps before it on that parent
    are undone.
  - What is declared is kept in C(/etc/iovirt) and made true again at every boot, and when the parent's driver registers again.
author:
  - The iovirt.host authors (@iovirt)
requirements:
  - Linux with sysfs and Python 3.9 or newer; nothing beyond the standard library.
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
      - The parents, and what each of them shall have.
    type: list
    elements: dict
    required: true
    suboptions:
      match:
        description:
          - Which parents of mediated devices are meant. All keys that are named must fit; of a list in a key one must fit.
          - 'At least one key has to be named: an empty match would mean every device of the host.'
          - A match that finds no device is an error, unless O(devices[].expect) says V(0) or O(devices[].state) is V(absent).
          - Several wishes may speak of one parent.
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
              - Permanent MAC addresses of network interfaces of the device, in any case. Of an InfiniBand port its GUID,
                which is also the end of its long address.
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
              - A subchannel of s390x, as V(0.0.0313), is one by the wish itself. It is given to the driver C(vfio_ccw),
                which makes one device of it.
            type: list
            elements: str
      expect:
        description:
          - How many devices the match has to find. Any other number is an error, and nothing is changed.
        type: int
      state:
        description:
          - V(present) makes the mediated devices that are named here.
          - V(absent) removes those that the collection made on this parent. What others made is left alone.
        type: str
        choices:
          - present
          - absent
        default: present
      type:
        description:
          - The type of the devices, by its id in C(mdev_supported_types), as in V(i915-GVTg_V5_4), or by its name.
        type: str
      count:
        description:
          - How many devices of this type the parent shall have of the collection. Their UUIDs are derived from the host,
            the parent and an index, so they are the same in each run.
          - Where several wishes count on one parent, the index goes on from one to the next; name O(devices[].uuids) then.
        type: int
      uuids:
        description:
          - The UUIDs of the devices, in place of O(devices[].count).
        type: list
        elements: str
      attributes:
        description:
          - Attributes that are written to each device when it starts, in this order. Of vfio-ap (parent V(matrix)) C(assign_adapter),
            C(assign_domain), C(assign_control_domain) or C(ap_config); the queues that they come to must not be kept for
            the host by C(/sys/bus/ap/apmask) and C(aqmask).
          - Another list starts a device anew. Unset, they stay as they are; a new device gets none.
        type: list
        elements: dict
        suboptions:
          name:
            description:
              - The name of the attribute, a file in the folder of the device.
            type: str
            required: true
          value:
            description:
              - What is written to it, in quotes.
            type: str
            required: true
      autostart:
        description:
          - Whether the devices are there again after a boot. A run starts them in any case.
          - Unset, it stays as it is; a new device has it.
        type: bool
      pool:
        description:
          - The pool of mediated devices that these are in, from which guests are given one (C(pool) of C(mdev) in M(iovirt.host.guest)).
            It may span parents and types.
          - Unset, it stays as it is; an empty word takes them out.
        type: str
  exclusive:
    description:
      - >-
        Whether the list is all there is: the devices that the collection made on parents which the list no longer names are
        removed.
    type: bool
    default: false
notes:
  - >-
    The rules are those of the kernel: C(Documentation/driver-api/vfio-mediated-device.rst), and C(mdevctl(8)).
seealso:
  - module: iovirt.host.mdev_info
  - module: iovirt.host.devices
  - module: iovirt.host.vfio
"""

EXAMPLES = r"""
- name: Two ports for guests, by UUIDs that guests name
  iovirt.host.mdev:
    devices:
      - match:
          parent: mtty
        type: mtty-2
        uuids:
          - 83b8f4f2-509f-382f-3c1e-e6bfe0fa1001
          - 83b8f4f2-509f-382f-3c1e-e6bfe0fa1002

- name: Four quarters of an Intel GPU
  iovirt.host.mdev:
    devices:
      - match:
          vendor: "8086"
          class: display
        type: i915-GVTg_V5_4
        count: 4

- name: Crypto adapter 5, domain 4, for a guest on s390x
  iovirt.host.mdev:
    devices:
      - match:
          parent: matrix
        type: vfio_ap-passthrough
        uuids:
          - 669d9b23-fe1b-4ecb-be08-a2fabca99b71
        attributes:
          - name: assign_adapter
            value: "0x05"
          - name: assign_domain
            value: "0x04"

- name: Give them back
  iovirt.host.mdev:
    devices:
      - match:
          parent: mtty
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
        - The name of the parent, or V(host) for what belongs to no single device.
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
    - C(mdevs) has the mediated devices of parents that change, by UUID, with C(parent), C(type) and C(pool), or null for one that goes.
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
mdev:
  description:
    - All mediated devices of the host, in the form of wishes, whoever made them. Each entry is valid input for O(devices).
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
"""

from ansible_collections.iovirt.host.plugins.module_utils import _door


def main() -> None:
    _door.devices("mdev")


if __name__ == "__main__":
    main()
