#!/usr/bin/python
# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: vfio
short_description: Hand PCI functions to vfio-pci, and give them back
version_added: 0.1.0
description:
  - Binds whole PCI functions to V(vfio-pci) or another driver of choice, so that a guest can have them.
  - All devices are read, planned and changed in one call.
  - A function needs an IOMMU group. While the IOMMU is off and is to come with the next boot, the function waits
    for that boot; otherwise it is refused.
  - Nothing is destroyed by surprise. What would cost the path to the controller, a mounted disk, the console or a
    device in use is refused, in check mode too, unless O(allow) names that danger.
  - >-
    Either all that is wished for a device is done or nothing: when a step fails, the steps before it on that device
    are undone.
  - What is declared is kept in C(/etc/iovirt) and made true again at every boot, before the network comes up.
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
      - The PCI functions that are handed to vfio, each of them whole. VFs are named where they are made, by their
        PF.
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
          - V(present) gives the device to O(devices[].driver).
          - V(absent) gives it back to the driver that it had before the collection touched it. A device that the collection
            never touched is left alone.
        type: str
        choices:
          - present
          - absent
        default: present
      driver:
        description:
          - The driver that the device is given to, by the name it has in C(/sys/bus/pci/drivers).
          - V(vfio-best) means the vfio driver that is made for this very device (a variant driver such as V(mlx5_vfio_pci)),
            where the running kernel's C(modules.alias) names one, else V(vfio-pci). What it came to is recorded.
        type: str
        default: vfio-pci
      early:
        description:
          - Let the initramfs give the device to O(devices[].driver), before udev loads the device's own driver. Without
            it, its own driver may have it for some seconds at boot, until the replay takes it.
          - It needs initramfs-tools, dracut or mkinitcpio. The images of all installed kernels are made anew, once a run
            and only when something about it changes. VFs cannot have it, nor devices whose own driver is built into the
            kernel.
          - Unset, it stays as it is. V(iovirt.early=off) on the kernel command line lets one boot go without it.
        type: bool
      siblings:
        description:
          - Whether the other functions of its slot (same domain, bus and device) go with it, as the audio and USB functions
            of a GPU. VFs and bridges do not; a function that another wish names is as that says. O(devices[].expect) counts
            what the match finds.
          - Each of them is recorded as a device of its own. Take them back in the same way, with O(devices[].siblings)
            and O(devices[].state=absent).
        type: bool
  exclusive:
    description:
      - >-
        Whether the list is all there is: every device that the collection owns and the list no longer names is
        given back.
    type: bool
    default: false
notes:
  - >-
    The rules are those of the kernel: C(driver_override) in C(Documentation/ABI/testing/sysfs-bus-pci), and
    C(Documentation/driver-api/vfio.rst).
seealso:
  - module: iovirt.host.vfio_info
  - module: iovirt.host.devices
  - module: iovirt.host.sriov
  - module: iovirt.host.iommu
  - module: iovirt.host.host_info
"""

EXAMPLES = r"""
- name: Two accelerators for guests
  iovirt.host.vfio:
    devices:
      - match:
          vendor: "1da3"
          class: accelerator
        expect: 2

- name: This card for guests, and everything else back to the host
  iovirt.host.vfio:
    devices:
      - match:
          slot: "3"
    exclusive: true

- name: Give a device back
  iovirt.host.vfio:
    devices:
      - match:
          address: "0000:5e:00.0"
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
    - What will be true after the next boot beyond the devices themselves.
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
vfio:
  description:
    - All whole functions that a vfio driver holds after the call, and all that the collection owns. Each entry is valid input for O(devices).
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
"""

from ansible_collections.iovirt.host.plugins.module_utils import _door


def main() -> None:
    _door.devices("vfio")


if __name__ == "__main__":
    main()
