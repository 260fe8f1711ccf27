#!/usr/bin/python
# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: sriov
short_description: Cut SR-IOV devices into virtual functions
version_added: 0.1.0
description:
  - Sets how many virtual functions (VFs) SR-IOV devices have and which driver each of them gets, for network ports,
    NVMe controllers and anything else with the SR-IOV capability.
  - >-
    All devices are read, planned and changed in one call. Only what is named is read as a wish: what is unset, or
    V(null), stays as it is.
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
      - The SR-IOV devices and how each of them is cut. Any device with the SR-IOV capability will do, not only
        network ports.
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
          - V(present) makes what the other options say.
          - 'V(absent) gives the device back: number of VFs, drivers and behaviour at boot are as they were before the collection
            touched it. A device that the collection never touched is left alone.'
        type: str
        choices:
          - present
          - absent
        default: present
      up:
        description:
          - Whether the network device of the PF shall be set up. libvirt gives no VF of a PF that is down to a guest, and
            some drivers set nothing up without it. Unset, it stays as it is.
          - V(false) is refused where the path to the controller, the default route or an address would be lost, unless
            O(allow) names that.
        type: bool
      vf_count:
        description:
          - How many virtual functions the device shall have, from V(0) to what sysfs shows in C(sriov_totalvfs). Unset,
            the number stays as it is.
          - The kernel changes a number only through zero (C(sriov_numvfs_store) in C(drivers/pci/iov.c)), so all VFs that
            are there vanish and are born anew. Where one of them is in use, or the running link of the port would go down,
            this is refused unless O(allow) names the danger.
        type: int
      firmware:
        description:
          - SR-IOV in the firmware of the card. It is written at once and holds from the next boot on; a reboot is asked
            for where the wish needs more than the card has now.
          - For NVIDIA (Mellanox) cards, by C(mstconfig) of the package mstflint. All ports of a card share it.
        type: dict
        suboptions:
          sriov:
            description:
              - Whether the card has the SR-IOV capability at all (C(SRIOV_EN)).
            type: bool
          vf_count:
            description:
              - How many VFs each port can have at most (C(NUM_OF_VFS)). A larger number takes more memory space at boot.
              - While O(devices[].vf_count) is more than the card can have now, and no more than it can have from the next
                boot on, number and VFs wait for that boot.
            type: int
      nvme_primary_queues:
        description:
          - 'NVMe only: how many flexible queues the controller itself keeps instead of its VFs. Unset, they stay as they
            are.'
          - It holds from the next reset of the function on, so the function is reset, at which its disks stall for a moment.
            Where the host uses one of them this is refused unless O(allow) names the danger, and it is refused while there
            are VFs.
        type: int
      nvme_primary_interrupts:
        description:
          - 'NVMe only: how many flexible interrupts the controller itself keeps instead of its VFs.'
          - As for O(devices[].nvme_primary_queues).
        type: int
      vf_netdevs:
        description:
          - Who may configure the network devices of the VFs. V(unmanaged) keeps NetworkManager and systemd-networkd from
            them. V(managed) leaves them to these.
          - 'Unset: V(unmanaged), except where the port had VFs before the collection took it. Those stay with whoever has
            them.'
        type: str
      eswitch:
        description:
          - The embedded switch of the device, as C(devlink dev eswitch show) has it. What is unset in it stays as it is.
        type: dict
        suboptions:
          mode:
            description:
              - In V(legacy) mode the switch forwards by MAC address and VLAN, and the device sets what a VF may do.
              - In V(switchdev) mode each VF has a representor, a network device on the host through which rules are offloaded
                to the switch.
              - Changing it takes the VFs from their drivers for a moment, or makes them anew, as the driver of the device
                wants it; the link of the port may go down. Where a VF is in use, or the port carries an address, this is
                refused unless O(allow) names the danger.
            type: str
            choices:
              - legacy
              - switchdev
          inline_mode:
            description:
              - How much of a packet's headers a VF puts into its descriptor for the switch to match on.
              - Unset, a ConnectX-4 or ConnectX-4 Lx gets V(transport) when it enters switchdev mode.
            type: str
            choices:
              - none
              - link
              - network
              - transport
          encap_mode:
            description:
              - Whether the switch encapsulates and decapsulates tunnelled packets (V(basic)) or does not (V(none)).
            type: str
            choices:
              - none
              - basic
      devlink_params:
        description:
          - Parameters of the device's driver or firmware, as C(devlink dev param show) lists them. A parameter that is
            not named stays as it is.
        type: list
        elements: dict
        suboptions:
          name:
            description:
              - The name of the parameter, as V(flow_steering_mode) or V(max_macs).
            type: str
            required: true
          value:
            description:
              - The value, a number, a text, or V(true) or V(false).
            type: raw
            required: true
          cmode:
            description:
              - V(runtime) is in force at once.
              - V(driverinit) is in force after C(devlink dev reload), which is then done. All VFs are made anew for it,
                and the network devices of the device go and come back without what was configured on them; so it is guarded
                like taking the device's driver away.
              - V(permanent) is kept by the device and in force after the next boot; the result says that a reboot is needed.
            type: str
            required: true
            choices:
              - runtime
              - driverinit
              - permanent
      hw_tc_offload:
        description:
          - Whether rules of traffic control on the device's port are offloaded to its switch (C(ethtool -K), C(hw-tc-offload)).
            It needs the command C(ethtool) on the host.
        type: bool
      vf_defaults:
        description:
          - What holds for every VF of the device that O(devices[].vfs) does not speak of, and for what a range leaves unset.
        type: dict
        suboptions:
          driver:
            description:
              - The driver that the VF shall have, by the name it has in C(/sys/bus/pci/drivers). V(default) means the one
                that the kernel gives by itself.
              - V(vfio-best) means the vfio driver that is made for these VFs (a variant driver such as V(mlx5_vfio_pci)),
                where the running kernel's C(modules.alias) names one, else V(vfio-pci).
              - The driver has to be there or to be a module of the running kernel. Unset, the driver stays as it is.
              - A vfio driver needs the IOMMU. Where the IOMMU is to come with the next boot, the VF waits for that boot.
            type: str
          nvme_queues:
            description:
              - 'NVMe only: how many flexible queues the secondary controller has that the VF is, its admin queue included.'
              - Unset, they stay as they are. A VF that is born has none. It takes nvme-cli on the host.
              - The VF loses its driver while they change. Where it is in use this is refused unless O(allow) names the
                danger.
            type: int
          nvme_interrupts:
            description:
              - 'NVMe only: how many flexible interrupts the secondary controller has.'
              - As for O(devices[].vfs[].nvme_queues).
            type: int
          online:
            description:
              - 'NVMe only: whether the secondary controller is online. A driver, also one in a guest, takes an NVMe VF
                only then; it needs two queues and one interrupt.'
              - Where O(devices[].vfs[].driver) is unset and the VF has no driver, V(true) lets the kernel give it one.
              - Unset, the state stays as it is. A VF that is born is offline.
            type: bool
          mac:
            description:
              - The MAC address that the PF gives the VF, in quotes. V(auto) means one that is made from the host's machine-id,
                the permanent MAC of the port and the index of the VF, and so is the same on every run.
              - 'A VF that its network driver has already is taken from it for a moment: the driver learns the address when
                it probes the VF.'
              - While a guest has the VF, its MAC and VLAN are left as the guest's host software set them.
            type: str
          vlan:
            description:
              - The port VLAN, from V(1) to V(4094), which the VF knows nothing of. V(0) takes it away. Unset, it is left
                as it is.
            type: int
          qos:
            description:
              - The priority of the port VLAN, from V(0) to V(7). The kernel takes it together with the VLAN, so a VLAN
                has to be named as well.
            type: int
          vlan_proto:
            description:
              - The protocol of the port VLAN. Few drivers take V(802.1ad).
            type: str
            choices:
              - 802.1Q
              - 802.1ad
          spoof_check:
            description:
              - Whether packets with a MAC or VLAN that is not the VF's are dropped when the VF sends them.
            type: bool
          trust:
            description:
              - Whether the VF may change its MAC address and ask for promiscuous reception, as far as the PF's driver lets
                it.
            type: bool
          link_state:
            description:
              - The link that the VF sees. V(auto) is that of the port, V(enable) and V(disable) are always up and always
                down.
            type: str
            choices:
              - auto
              - enable
              - disable
          min_tx_rate:
            description:
              - What the VF may send at least, in Mbit/s. V(0) means nothing is set aside.
            type: int
          max_tx_rate:
            description:
              - What the VF may send at most, in Mbit/s. V(0) means no limit.
              - Many drivers set rates only while the port has a link. Without one they are left for later, with a warning.
            type: int
          query_rss:
            description:
              - Whether the VF may read the RSS hash key and the indirection table.
            type: bool
          msix_count:
            description:
              - How many MSI-X vectors the VF has, of those that its PF's driver shares out (C(sriov_vf_total_msix) in sysfs).
                Few drivers do, mlx5 and ice among them; with others it is refused.
              - A VF that has a driver is taken from it for a moment. Where it is in use this is refused unless O(allow)
                names the danger.
              - Unset, it stays as it is. A VF that is born has as many as its PF's driver gives it.
            type: int
          node_guid:
            description:
              - The node GUID of the VF of an InfiniBand port, eight pairs of hexadecimal digits with colons, in quotes.
                No two VFs of a host may have the same.
            type: str
          port_guid:
            description:
              - The port GUID of the VF of an InfiniBand port, eight pairs of hexadecimal digits with colons, in quotes.
                No two VFs of a host may have the same.
            type: str
          mtu:
            description:
              - The MTU of the VF's own network device on this host, from V(68). A VF under a vfio driver has none.
            type: int
          promisc:
            description:
              - Whether the VF's own network device on this host receives all packets that reach the VF.
            type: bool
      vfs:
        description:
          - What is wished for single VFs. A VF may stand in one range only.
        type: list
        elements: dict
        suboptions:
          driver:
            description:
              - The driver that the VF shall have, by the name it has in C(/sys/bus/pci/drivers). V(default) means the one
                that the kernel gives by itself.
              - V(vfio-best) means the vfio driver that is made for these VFs (a variant driver such as V(mlx5_vfio_pci)),
                where the running kernel's C(modules.alias) names one, else V(vfio-pci).
              - The driver has to be there or to be a module of the running kernel. Unset, the driver stays as it is.
              - A vfio driver needs the IOMMU. Where the IOMMU is to come with the next boot, the VF waits for that boot.
            type: str
          nvme_queues:
            description:
              - 'NVMe only: how many flexible queues the secondary controller has that the VF is, its admin queue included.'
              - Unset, they stay as they are. A VF that is born has none. It takes nvme-cli on the host.
              - The VF loses its driver while they change. Where it is in use this is refused unless O(allow) names the
                danger.
            type: int
          nvme_interrupts:
            description:
              - 'NVMe only: how many flexible interrupts the secondary controller has.'
              - As for O(devices[].vfs[].nvme_queues).
            type: int
          online:
            description:
              - 'NVMe only: whether the secondary controller is online. A driver, also one in a guest, takes an NVMe VF
                only then; it needs two queues and one interrupt.'
              - Where O(devices[].vfs[].driver) is unset and the VF has no driver, V(true) lets the kernel give it one.
              - Unset, the state stays as it is. A VF that is born is offline.
            type: bool
          mac:
            description:
              - The MAC address that the PF gives the VF, in quotes. V(auto) means one that is made from the host's machine-id,
                the permanent MAC of the port and the index of the VF, and so is the same on every run.
              - 'A VF that its network driver has already is taken from it for a moment: the driver learns the address when
                it probes the VF.'
              - While a guest has the VF, its MAC and VLAN are left as the guest's host software set them.
            type: str
          vlan:
            description:
              - The port VLAN, from V(1) to V(4094), which the VF knows nothing of. V(0) takes it away. Unset, it is left
                as it is.
            type: int
          qos:
            description:
              - The priority of the port VLAN, from V(0) to V(7). The kernel takes it together with the VLAN, so a VLAN
                has to be named as well.
            type: int
          vlan_proto:
            description:
              - The protocol of the port VLAN. Few drivers take V(802.1ad).
            type: str
            choices:
              - 802.1Q
              - 802.1ad
          spoof_check:
            description:
              - Whether packets with a MAC or VLAN that is not the VF's are dropped when the VF sends them.
            type: bool
          trust:
            description:
              - Whether the VF may change its MAC address and ask for promiscuous reception, as far as the PF's driver lets
                it.
            type: bool
          link_state:
            description:
              - The link that the VF sees. V(auto) is that of the port, V(enable) and V(disable) are always up and always
                down.
            type: str
            choices:
              - auto
              - enable
              - disable
          min_tx_rate:
            description:
              - What the VF may send at least, in Mbit/s. V(0) means nothing is set aside.
            type: int
          max_tx_rate:
            description:
              - What the VF may send at most, in Mbit/s. V(0) means no limit.
              - Many drivers set rates only while the port has a link. Without one they are left for later, with a warning.
            type: int
          query_rss:
            description:
              - Whether the VF may read the RSS hash key and the indirection table.
            type: bool
          msix_count:
            description:
              - How many MSI-X vectors the VF has, of those that its PF's driver shares out (C(sriov_vf_total_msix) in sysfs).
                Few drivers do, mlx5 and ice among them; with others it is refused.
              - A VF that has a driver is taken from it for a moment. Where it is in use this is refused unless O(allow)
                names the danger.
              - Unset, it stays as it is. A VF that is born has as many as its PF's driver gives it.
            type: int
          node_guid:
            description:
              - The node GUID of the VF of an InfiniBand port, eight pairs of hexadecimal digits with colons, in quotes.
                No two VFs of a host may have the same.
            type: str
          port_guid:
            description:
              - The port GUID of the VF of an InfiniBand port, eight pairs of hexadecimal digits with colons, in quotes.
                No two VFs of a host may have the same.
            type: str
          mtu:
            description:
              - The MTU of the VF's own network device on this host, from V(68). A VF under a vfio driver has none.
            type: int
          promisc:
            description:
              - Whether the VF's own network device on this host receives all packets that reach the VF.
            type: bool
          range:
            description:
              - 'Indexes of VFs, counted from V(0): V("5"), V("0-3") or V("0-3,6").'
            type: str
            required: true
          pool:
            description:
              - The pool that guests are given these VFs from (M(iovirt.host.guest)). It may span devices.
            type: str
  exclusive:
    description:
      - >-
        Whether the list is all there is: every device that the collection owns and the list no longer names is
        given back.
    type: bool
    default: false
notes:
  - The rules are those of the kernel, C(Documentation/PCI/pci-iov-howto.rst) and C(drivers/pci/iov.c).
  - Drivers are set between the birth of a VF and its first probing, so no VF shows up under a driver that it was
    not meant for.
seealso:
  - module: iovirt.host.devices
  - module: iovirt.host.vfio
  - module: iovirt.host.iommu
  - module: iovirt.host.host_info
"""

EXAMPLES = r"""
- name: Cut two network ports, half of their VFs for guests
  iovirt.host.sriov:
    devices:
      - match:
          driver: igb
          numa_node: 0
        expect: 2
        vf_count: 7
        vfs:
          - range: 0-3
            driver: vfio-pci
            pool: dataplane
          - range: 4-6
            driver: default

- name: Give one port back, as it was before
  iovirt.host.sriov:
    devices:
      - match:
          address: "0000:3b:00.1"
        state: absent

- name: Change the number of VFs of a port whose running link may go down for a moment
  iovirt.host.sriov:
    devices:
      - match:
          ifname: ens3f0
        vf_count: 4
    allow:
      - link_flap
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
sriov:
  description:
    - All SR-IOV devices of the host as they are after the call. Each entry is valid input for O(devices).
  returned: always
  type: list
  elements: dict
  contains:
    match:
      description:
        - A selector that names exactly this device.
      type: dict
    vf_count:
      description:
        - The number of its virtual functions.
      type: int
    vfs:
      description:
        - Its virtual functions, with index and driver.
      type: list
      elements: dict
"""

from ansible_collections.iovirt.host.plugins.module_utils import _door


def main() -> None:
    _door.devices("sriov")


if __name__ == "__main__":
    main()
