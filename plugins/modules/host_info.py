#!/usr/bin/python
# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: host_info
short_description: Read what a host can do, from its processor to its PCI functions
version_added: 0.1.0
description:
  - >-
    Reads what a host offers to guests: virtualization and paging of its processor, the hypervisor that it runs
    under itself, IOMMU, KVM, and every PCI function with all that a selector can name and its SR-IOV abilities.
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
  - module: iovirt.host.devices
  - module: iovirt.host.sriov
  - module: iovirt.host.vfio
  - module: iovirt.host.iommu
"""

EXAMPLES = r"""
- name: What is there
  iovirt.host.host_info:
  register: info

- name: Ports that can be cut
  ansible.builtin.debug:
    msg: "{{ info.host.functions | selectattr('sriov') | map(attribute='address') }}"
"""

RETURN = r"""
---
host:
  description:
    - The host.
  returned: always
  type: dict
  contains:
    cpu:
      description:
        - The processor.
      type: dict
      contains:
        model:
          description:
            - Its name.
          type: str
        count:
          description:
            - How many processors Linux runs on.
          type: int
        virtualization:
          description:
            - V(VT-x), V(AMD-V) or V(null).
          type: str
        paging:
          description:
            - Nested paging, V(EPT), V(NPT) or V(null).
          type: str
    hypervisor:
      description:
        - What the host itself runs under; V(null) on bare metal.
      type: str
    platform:
      description:
        - What the host stands on.
      type: dict
      contains:
        kind:
          description:
            - V(container), else as C(machine).
          type: str
        machine:
          description:
            - V(bare_metal), V(kvm), V(qemu) (without KVM), V(xen_dom0), V(xen_domu), V(vmware), V(hyperv), V(virtualbox), V(powervm), V(powerkvm),
              V(zvm), V(lpar) or V(unknown).
          type: str
        container:
          description:
            - What made the container that this is, as V(docker) or V(lxc); V(null) outside.
          type: str
        techniques:
          description:
            - For V(kvm), V(nested), V(iommu), V(sriov), V(passthrough) and V(mdev) whether it is C(possible) here, and the C(reason) in a sentence.
          type: dict
    kernel:
      description:
        - The release of the running kernel.
      type: str
    kvm:
      description:
        - KVM.
      type: dict
      contains:
        device:
          description:
            - Whether C(/dev/kvm) is there.
          type: bool
        module:
          description:
            - The KVM module that is loaded, V(kvm_intel), V(kvm_amd) or V(null).
          type: str
        nested:
          description:
            - Whether guests may run guests; V(null) where nobody knows.
          type: bool
        paging:
          description:
            - Whether KVM uses nested paging; V(null) where nobody knows.
          type: bool
    iommu:
      description:
        - The IOMMU.
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
        interrupt_remapping:
          description:
            - Whether interrupts are remapped.
          type: bool
        groups:
          description:
            - The IOMMU groups by number, with C(type) (the domain type) and C(devices) (PCI addresses).
          type: dict
    lockdown:
      description:
        - How far the kernel is locked down even for root, V(none), V(integrity) or V(confidentiality). V(null) where it
          does not say. From V(integrity) on it takes signed modules only.
      type: str
    secure_boot:
      description:
        - Whether the firmware checks what it boots; V(null) where it is no UEFI.
      type: bool
    mdevs:
      description:
        - The mediated devices that are there, each with C(uuid), C(parent), C(type) and C(holders), the guests and processes that have it.
      type: list
      elements: dict
    functions:
      description:
        - The PCI functions, by address.
      type: list
      elements: dict
      contains:
        address:
          description:
            - PCI address with its domain.
          type: str
          sample: "0000:3b:00.0"
        bus:
          description:
            - The bus that it is on, V(pci) or V(netdevsim). What only PCI has is empty elsewhere.
          type: str
          sample: pci
        vendor:
          description:
            - Vendor ID, four hexadecimal digits.
          type: str
          sample: "8086"
        device:
          description:
            - Device ID, four hexadecimal digits.
          type: str
          sample: "10c9"
        subsystem:
          description:
            - Subsystem IDs, vendor and device.
          type: str
          sample: "8086:a04c"
        class:
          description:
            - Class code, six hexadecimal digits.
          type: str
          sample: "020000"
        driver:
          description:
            - Its driver now, or V(null).
          type: str
        driver_override:
          description:
            - The driver that an override gives to it, or V(null).
          type: str
        native_driver:
          description:
            - The driver that it has when nothing overrides it, or V(null) where none is known.
          type: str
        vfio_driver:
          description:
            - The vfio driver made for this device (a variant driver), else V(vfio-pci). It is what V(vfio-best) comes to.
          type: str
        numa_node:
          description:
            - The NUMA node that it is attached to; V(-1) where the firmware names none.
          type: int
        slot:
          description:
            - The name of its physical slot, or an empty string.
          type: str
        serial:
          description:
            - Its serial number, for NVMe controllers, or an empty string.
          type: str
        physfn:
          description:
            - For a virtual function the address of its physical function, else V(null).
          type: str
        netdevs:
          description:
            - Its network interfaces.
          type: list
          elements: dict
          contains:
            name:
              description:
                - Its name.
              type: str
            mac:
              description:
                - Its permanent MAC address.
              type: str
            up:
              description:
                - Whether it is up.
              type: bool
            carrier:
              description:
                - Whether it has a link.
              type: bool
        iommu_group:
          description:
            - The number of its IOMMU group. V(null) means that it cannot be given to a guest.
          type: str
        iommu_group_type:
          description:
            - The domain type of that group.
          type: str
          sample: DMA-FQ
        iommu_group_members:
          description:
            - All functions of that group. A guest gets all of them or none.
          type: list
          elements: str
        disks_in_use:
          description:
            - What on the host uses its disks, such as mount points and swap.
          type: list
          elements: str
        sriov:
          description:
            - Its SR-IOV abilities; V(null) where it has none.
          type: dict
          contains:
            total_vfs:
              description:
                - How many VFs it can have.
              type: int
            vf_count:
              description:
                - How many it has.
              type: int
            vf_device:
              description:
                - The device ID of its VFs.
              type: str
            drivers_autoprobe:
              description:
                - Whether the kernel looks for drivers for new VFs.
              type: bool
            representors:
              description:
                - In switchdev mode, the network devices that stand for its VFs, with C(netdev), C(vf), C(port_name) and C(switch_id).
              type: list
              elements: dict
            vfs:
              description:
                - Its VFs, with C(index) and C(address).
              type: list
              elements: dict
        vmdq:
          description:
            - Whether stations of it can be in hardware (VMDq); V(null) for what is no port.
          type: dict
          contains:
            ways:
              description:
                - The ways to it, C(l2-fwd-offload) and C(module parameter VMDQ); empty where there is none.
              type: list
              elements: str
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
declared:
  description:
    - For each resource the devices that the collection owns, by address, with what was wished for them and how they
      were before.
  returned: always
  type: dict
last_replay:
  description:
    - What the replay of this boot did; V(null) where there was none.
  returned: always
  type: dict
"""

from ansible_collections.iovirt.host.plugins.module_utils import _door
from ansible_collections.iovirt.host.plugins.module_utils._engine import host_info


def call(module, host, door):
    return host_info.facts(host)


def main() -> None:
    _door.run("host_info", call)


if __name__ == "__main__":
    main()
