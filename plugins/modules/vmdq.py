#!/usr/bin/python
# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: vmdq
short_description: Queues of a port and stations in hardware (VMDq)
version_added: 0.1.0
description:
  - >-
    Makes macvlans and macvtaps ("stations") on a port and proves that its driver gave each of them a pool of queues in hardware; sets the
    numbers of queues of the port, its feature C(l2-fwd-offload), and the module parameter C(VMDQ) of drivers that have it.
  - Whether a station is in hardware is read from the kernel, from the port's forwarding table and its queues' files.
  - All ports are read, planned and changed in one call. One station changes without the others.
  - Nothing is destroyed by surprise. What would cost the path to the controller, an address of the host or a station in use is refused, in
    check mode too, unless O(allow) names that danger.
  - >-
    Either all that is wished for a device is done or nothing: when a step fails, the steps before it on that device
    are undone.
  - What is declared is kept in C(/etc/iovirt) and made true again at every boot, before the network comes up, and when the driver is loaded again.
author:
  - The iovirt.host authors (@iovirt)
requirements:
  - Linux with sysfs and Python 3.9 or newer; nothing beyond the standard library.
  - C(ethtool), and C(ip) and C(bridge) of iproute2.
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
      - The ports, and what each of them gives to stations.
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
      expect:
        description:
          - How many devices the match has to find. Any other number is an error, and nothing is changed.
        type: int
      state:
        description:
          - V(present) makes the port as wished.
          - V(absent) takes the stations away that the collection made, and gives back the numbers of queues, the feature
            and the driver's parameter as they were before. A port that the collection never touched is left alone.
        type: str
        choices:
          - present
          - absent
        default: present
      offload:
        description:
          - The port's feature C(l2-fwd-offload), by which its driver may give pools to stations. What is in hardware falls
            back to software when it is switched off.
          - Unset, it is switched on where O(devices[].stations) have to be in hardware, and stays as it is elsewhere.
        type: bool
      require_offload:
        description:
          - Whether each station that is up has to be in hardware. The kernel forwards a station in software, without a
            word, when it finds no pool; with V(true) that is an error, which names the number of pools and who holds them.
        type: bool
        default: true
      queues:
        description:
          - How many queues the port has, as C(ethtool -L) takes them. What is unset stays as it is.
        type: dict
        suboptions:
          combined:
            description:
              - Queues for both directions.
            type: int
          rx:
            description:
              - Queues for receiving alone. Many drivers have none of this kind.
            type: int
          tx:
            description:
              - Queues for sending alone. Many drivers have none of this kind.
            type: int
      layout:
        description:
          - The layout of queues that the driver must not go beyond, as stations times queues of each. C(ixgbe) has V(15x4),
            V(31x2) and V(63x1), and goes from one to the next by itself when a station more is made; with this a wish for
            more is refused.
        type: str
      pools:
        description:
          - What the driver's module parameter C(VMDQ) says of this port, in a file in C(/etc/modprobe.d). It is in force
            when the module is loaded again, which the collection does not do by itself.
          - Refused where C(modinfo) knows no such parameter. The drivers that come with Linux have none; some of Intel's
            own have.
        type: int
      stations:
        description:
          - The macvlans and macvtaps of the port. Those of an earlier call that the list no longer names go; those that
            others made stay.
        type: list
        elements: dict
        suboptions:
          name:
            description:
              - The name of its network device.
            type: str
            required: true
          kind:
            description:
              - V(macvtap) has a device file, by which a guest takes it; V(macvlan) is for the host and for containers.
            type: str
            choices:
              - macvlan
              - macvtap
            default: macvlan
          mac:
            description:
              - Its MAC address, in quotes, or V(auto) for one that is the same on every run. A change takes it down and
                up, as its pool filters for the address that it had when it went up.
              - Unset, it stays as it is, and a new one gets that of V(auto).
            type: str
          mode:
            description:
              - Whom of the port's other stations it can reach, see C(ip-link(8)). The kernel never puts V(passthru) and
                V(source) into hardware.
            type: str
            choices:
              - private
              - vepa
              - bridge
              - passthru
              - source
            default: bridge
          mtu:
            description:
              - Its MTU, not above that of the port. Unset, it stays as it is, and a new one gets the port's.
            type: int
          up:
            description:
              - Whether it is up. One that is down has no pool.
            type: bool
            default: true
  exclusive:
    description:
      - >-
        Whether the list is all there is: every device that the collection owns and the list no longer names is
        given back.
    type: bool
    default: false
notes:
  - >-
    The rules are those of the kernel: C(drivers/net/macvlan.c), and C(traffic_class) in C(Documentation/ABI/testing/sysfs-class-net-queues).
seealso:
  - module: iovirt.host.vmdq_info
  - module: iovirt.host.devices
  - module: iovirt.host.sriov
  - module: iovirt.host.host_info
"""

EXAMPLES = r"""
- name: Two stations in hardware, one for a guest
  iovirt.host.vmdq:
    devices:
      - match:
          driver: ixgbe
          ifname: enp65s0f0
        stations:
          - name: web0
            mac: auto
          - name: guest0
            kind: macvtap
            mac: "52:54:00:12:34:56"

- name: Give the port back
  iovirt.host.vmdq:
    devices:
      - match:
          ifname: enp65s0f0
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
vmdq:
  description:
    - The ports with stations after the call, and all that the collection owns. Each entry is valid input for O(devices).
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
        - Whether C(l2-fwd-offload) is on; missing where it was not asked.
      type: bool
    queues:
      description:
        - The numbers of queues; missing where they were not asked.
      type: dict
    stations:
      description:
        - Its stations, of a port that the collection owns those that are declared.
      type: list
      elements: dict
vmdq_stations:
  description:
    - Every station of the ports that the call was about, and whether it is in hardware, as the kernel's own tables say.
  returned: always
  type: list
  elements: dict
  contains:
    device:
      description:
        - The PCI address of the port.
      type: str
    name:
      description:
        - The station's network device.
      type: str
    offloaded:
      description:
        - Whether it has a pool.
      type: bool
"""

from ansible_collections.iovirt.host.plugins.module_utils import _door


def main() -> None:
    _door.devices("vmdq")


if __name__ == "__main__":
    main()
