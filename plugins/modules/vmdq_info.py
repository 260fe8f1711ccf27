#!/usr/bin/python
# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: vmdq_info
short_description: Read the stations of ports and which of them are in hardware
version_added: 0.1.0
description:
  - >-
    Reads the macvlans and macvtaps of the host's ports in the form of wishes, and beside them whether each is in hardware, how many pools the
    port has and who holds them.
  - It reads only, and it writes nothing on the host. It starts C(ethtool) for each port.
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
  - module: iovirt.host.vmdq
  - module: iovirt.host.host_info
"""

EXAMPLES = r"""
- name: Which stations does this host have?
  iovirt.host.vmdq_info:
  register: found

- name: Declare them as they are
  iovirt.host.vmdq:
    devices: "{{ found.devices }}"
"""

RETURN = r"""
---
devices:
  description:
    - The ports that have stations, and all that the collection owns, in the form of wishes.
    - Each entry is valid input for O(iovirt.host.vmdq#module:devices).
  returned: always
  type: list
  elements: dict
  contains:
    match:
      description:
        - A selector that names exactly this device.
      type: dict
    offload:
      description:
        - Whether C(l2-fwd-offload) is on.
      type: bool
    queues:
      description:
        - The numbers of queues.
      type: dict
    stations:
      description:
        - Its stations.
      type: list
      elements: dict
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
    declared:
      description:
        - Whether the collection owns it.
      type: bool
    netdev:
      description:
        - The port's network device.
      type: str
    offload:
      description:
        - Whether C(l2-fwd-offload) is on; V(null) where nobody says.
      type: bool
    offload_fixed:
      description:
        - Whether the driver lets nobody switch it.
      type: bool
    pools:
      description:
        - How many stations can be in hardware; V(null) where only the driver knows.
      type: int
    pools_used:
      description:
        - How many pools stations hold now, in all network namespaces; those of VFs too, where they draw on the same ones.
      type: int
    pools_with_vfs:
      description:
        - Whether VFs draw on the same pools.
      type: bool
    holders:
      description:
        - Who holds pools, in words.
      type: list
      elements: str
    max_queues:
      description:
        - The largest numbers of queues, by their kind.
      type: dict
    stations:
      description:
        - Its stations, each with C(name), C(offloaded), C(kind), C(mac), C(mode), C(mtu) and C(up).
      type: list
      elements: dict
    parameter:
      description:
        - What the driver's parameter C(VMDQ) says of this port, C(running) and C(next_load); V(null) where nobody says.
      type: dict
"""

from ansible_collections.iovirt.host.plugins.module_utils import _door
from ansible_collections.iovirt.host.plugins.module_utils._engine import engine


def call(module, host, door):
    return engine.resource_info(host, "vmdq", module.params["match"])


def main() -> None:
    _door.run("vmdq_info", call)


if __name__ == "__main__":
    main()
