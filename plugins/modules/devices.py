#!/usr/bin/python
# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: devices
short_description: All device resources of a host in one call
version_added: 0.1.0
description:
  - Does what M(iovirt.host.sriov), M(iovirt.host.vfio), M(iovirt.host.vmdq), M(iovirt.host.vgpu) and M(iovirt.host.mdev)
    do, with one reading of the host, one plan and one round trip.
  - >-
    The wishes are checked against each other: a device that two resources name is refused, but for a port with VFs and stations.
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
  sriov:
    description:
      - The SR-IOV devices and how each of them is cut. Any device with the SR-IOV capability will do, not only
        network ports.
      - Unset, SR-IOV devices stay as they are. An empty list wishes nothing, and with O(exclusive) gives everything
        back.
    type: list
    elements: dict
    suboptions:
      match:
        description:
          - Which devices of the host are meant. All keys that are named must fit; of a list in a key one must fit.
          - 'At least one key has to be named: an empty match would mean every device of the host.'
          - A match that finds no device is an error, unless O(sriov[].expect) says V(0) or O(sriov[].state) is V(absent).
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
              - While O(sriov[].vf_count) is more than the card can have now, and no more than it can have from the next
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
          - As for O(sriov[].nvme_primary_queues).
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
          - What holds for every VF of the device that O(sriov[].vfs) does not speak of, and for what a range leaves unset.
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
              - As for O(sriov[].vfs[].nvme_queues).
            type: int
          online:
            description:
              - 'NVMe only: whether the secondary controller is online. A driver, also one in a guest, takes an NVMe VF
                only then; it needs two queues and one interrupt.'
              - Where O(sriov[].vfs[].driver) is unset and the VF has no driver, V(true) lets the kernel give it one.
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
              - As for O(sriov[].vfs[].nvme_queues).
            type: int
          online:
            description:
              - 'NVMe only: whether the secondary controller is online. A driver, also one in a guest, takes an NVMe VF
                only then; it needs two queues and one interrupt.'
              - Where O(sriov[].vfs[].driver) is unset and the VF has no driver, V(true) lets the kernel give it one.
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
  vfio:
    description:
      - The PCI functions that are handed to vfio, each of them whole. VFs are named where they are made, by their
        PF.
      - Unset, functions on vfio stay as they are. An empty list wishes nothing, and with O(exclusive) gives
        everything back.
    type: list
    elements: dict
    suboptions:
      match:
        description:
          - Which devices of the host are meant. All keys that are named must fit; of a list in a key one must fit.
          - 'At least one key has to be named: an empty match would mean every device of the host.'
          - A match that finds no device is an error, unless O(vfio[].expect) says V(0) or O(vfio[].state) is V(absent).
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
          - V(present) gives the device to O(vfio[].driver).
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
          - Let the initramfs give the device to O(vfio[].driver), before udev loads the device's own driver. Without it,
            its own driver may have it for some seconds at boot, until the replay takes it.
          - It needs initramfs-tools, dracut or mkinitcpio. The images of all installed kernels are made anew, once a run
            and only when something about it changes. VFs cannot have it, nor devices whose own driver is built into the
            kernel.
          - Unset, it stays as it is. V(iovirt.early=off) on the kernel command line lets one boot go without it.
        type: bool
      siblings:
        description:
          - Whether the other functions of its slot (same domain, bus and device) go with it, as the audio and USB functions
            of a GPU. VFs and bridges do not; a function that another wish names is as that says. O(vfio[].expect) counts
            what the match finds.
          - Each of them is recorded as a device of its own. Take them back in the same way, with O(vfio[].siblings) and
            O(vfio[].state=absent).
        type: bool
  vmdq:
    description:
      - The ports, and what each of them gives to stations (macvlans and macvtaps in hardware).
      - Unset, ports stay as they are. An empty list wishes nothing, and with O(exclusive) gives everything back.
    type: list
    elements: dict
    suboptions:
      match:
        description:
          - Which devices of the host are meant. All keys that are named must fit; of a list in a key one must fit.
          - 'At least one key has to be named: an empty match would mean every device of the host.'
          - A match that finds no device is an error, unless O(vmdq[].expect) says V(0) or O(vmdq[].state) is V(absent).
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
          - Unset, it is switched on where O(vmdq[].stations) have to be in hardware, and stays as it is elsewhere.
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
  mdev:
    description:
      - The parents of mediated devices, and what each of them shall have.
      - Unset, mediated devices stay as they are. An empty list wishes nothing, and with O(exclusive) removes all that the
        collection made.
    type: list
    elements: dict
    suboptions:
      match:
        description:
          - Which parents of mediated devices are meant. All keys that are named must fit; of a list in a key one must fit.
          - 'At least one key has to be named: an empty match would mean every device of the host.'
          - A match that finds no device is an error, unless O(mdev[].expect) says V(0) or O(mdev[].state) is V(absent).
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
          - Where several wishes count on one parent, the index goes on from one to the next; name O(mdev[].uuids) then.
        type: int
      uuids:
        description:
          - The UUIDs of the devices, in place of O(mdev[].count).
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
  vgpu:
    description:
      - The GPUs, and the vGPUs that they shall have.
      - Unset, vGPUs stay as they are. An empty list wishes nothing, and with O(exclusive) gives everything back.
    type: list
    elements: dict
    suboptions:
      match:
        description:
          - Which GPUs are meant. All keys that are named must fit; of a list in a key one must fit.
          - A GPU is named, not its VFs. Several wishes may speak of one GPU.
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
      expect:
        description:
          - How many devices the match has to find. Any other number is an error, and nothing is changed.
        type: int
      state:
        description:
          - V(present) gives the GPU its vGPUs.
          - V(absent) takes those that the collection gave, and the VFs where it had them made, and puts MIG back as it
            was. What others had set stays.
        type: str
        choices:
          - present
          - absent
        default: present
      type:
        description:
          - The vGPU type by its name, with or without the maker in front, or by its id, as in V(NVIDIA L40S-12Q), V(L40S-12Q)
            or V("1153"); of Intel's GVT-g V(i915-GVTg_V5_4) or V(GVTg_V5_4). Intel GPUs with SR-IOV have no types but V(VF),
            which may be left out.
          - It is one that the driver names for this GPU. MIG-backed types, as V(A100-1-5C), are had in MIG mode, all others
            without it.
          - Without O(vgpu[].type) a GPU keeps the vGPUs that are declared.
        type: str
      count:
        description:
          - How many vGPUs of each GPU that the match finds have this type. They are chosen so that as few as possible change;
            those count that have it already.
          - Several wishes may speak of one GPU, each with a type of its own. Without NVIDIA's mixed-size mode those have
            one size.
          - Of an Intel GPU with SR-IOV, how many VFs there shall be. Those of several wishes follow each other, in the
            order of the wishes.
        type: int
      profile:
        description:
          - How the VFs of an Intel GPU with SR-IOV share it. What is unset stays as the driver has it.
          - Which of these there are depends on the driver and its version. A value that the driver rounds is an error.
        type: dict
        suboptions:
          exec_quantum_ms:
            description:
              - How long a VF may run before it is another one's turn, in milliseconds. V(0) is without a limit.
            type: int
          preempt_timeout_us:
            description:
              - How long a VF has to let go when its time is over, in microseconds, before it is reset. V(0) is without
                a limit.
            type: int
          sched_priority:
            description:
              - V(low) gives a VF its turn only when it has work, V(normal) whether or not it has. It is one for all functions
                of a GPU.
              - V(high) is for the PF alone with the firmware of today.
            type: str
            choices:
              - low
              - normal
              - high
          vram_quota:
            description:
              - Memory of the GPU, in bytes, on GPUs that have some (xe, Linux 7.0; before that by debugfs).
            type: int
          ggtt_quota:
            description:
              - Address space in the global translation table, in bytes. With O(vgpu[].profile.contexts_quota), for all
                VFs or for none.
            type: int
          contexts_quota:
            description:
              - Contexts of the firmware (i915 has them by 128). With O(vgpu[].profile.ggtt_quota), for all VFs or for none.
            type: int
          doorbells_quota:
            description:
              - Doorbells of the firmware.
            type: int
      mig:
        description:
          - How MIG (Multi-Instance GPU) of the GPU shall be. Unset, it stays as it is, or as it was declared.
        type: dict
        suboptions:
          enabled:
            description:
              - Its MIG mode. On Ampere it changes with a reset of the GPU, which is never done here; the reboot is announced,
                and what needs the mode waits for it. From Hopper on it changes at once.
              - A GPU that a process or a vGPU in use has keeps its mode.
            type: bool
            required: true
          instances:
            description:
              - All GPU instances that there shall be. Those that are there and are wished stay; of the others those go
                that nobody uses, and where somebody does, the wish is refused. Each comes with a compute instance.
              - Unset, they stay as they are. In which places they lie, the driver decides.
            type: list
            elements: dict
            suboptions:
              profile:
                description:
                  - Its profile by name, as in V(1g.5gb) (C(nvidia-smi mig -lgip)).
                type: str
                required: true
              count:
                description:
                  - How many there shall be.
                type: int
                required: true
  only:
    description:
      - The resources to look at. The lists of the others are passed over. Unset means all.
    type: list
    elements: str
    choices: [sriov, vfio, vmdq, mdev, vgpu]
  exclusive:
    description:
      - >-
        The resources whose list is all there is: every device of theirs that the collection owns and the list no
        longer names is given back.
      - A resource without a list is not touched, whatever is said here.
    type: list
    elements: str
    choices: [sriov, vfio, vmdq, mdev, vgpu]
    default: []
seealso:
  - module: iovirt.host.sriov_info
  - module: iovirt.host.vfio_info
  - module: iovirt.host.sriov
  - module: iovirt.host.vfio
  - module: iovirt.host.vmdq
  - module: iovirt.host.mdev
  - module: iovirt.host.vgpu
  - module: iovirt.host.iommu
  - module: iovirt.host.host_info
"""

EXAMPLES = r"""
- name: Network ports and an accelerator
  iovirt.host.devices:
    sriov:
      - match:
          driver: igb
        vf_count: 7
        vf_defaults:
          driver: vfio-pci
    vfio:
      - match:
          class: accelerator

- name: The IOMMU comes with the next boot
  iovirt.host.iommu:
  register: iommu

- name: What of the devices will wait for that boot
  iovirt.host.devices:
    vfio:
      - match:
          class: accelerator
    assume: "{{ iommu.predicted }}"
  check_mode: true
  register: devices

- name: Nothing but the listed VFs
  iovirt.host.devices:
    sriov: []
    exclusive:
      - sriov
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
    - What will be true beyond the devices themselves, now or after the next boot.
    - C(pools) has the pools that get VFs which are not there yet, and how many. C(mdevs) has the mediated devices of parents that change, by
      UUID, with C(parent), C(type) and C(pool), or null for one that goes, those of vGPUs in NVIDIA's older framework among them. C(vgpus)
      has the VFs whose vGPU changes, with C(type), C(name) and C(gpu), or null.
      O(iovirt.host.guest#module:assume) takes them.
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
    - All SR-IOV devices of the host as they are after the call. Each entry is valid input for O(sriov).
  returned: when O(sriov) is set and O(only) does not leave it out
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
vfio:
  description:
    - All whole functions that a vfio driver holds after the call, and all that the collection owns. Each entry is valid input for O(vfio).
  returned: when O(vfio) is set and O(only) does not leave it out
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
vgpu:
  description:
    - The vGPUs of the GPUs that the call named, in the form of wishes. Each entry is valid input for O(vgpu).
  returned: when O(vgpu) is set and O(only) does not leave it out
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
mdev:
  description:
    - All mediated devices of the host, in the form of wishes, whoever made them. Each entry is valid input for O(mdev).
  returned: when O(mdev) is set and O(only) does not leave it out
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
vmdq:
  description:
    - The ports with stations after the call, and all that the collection owns. Each entry is valid input for O(vmdq).
  returned: when O(vmdq) is set and O(only) does not leave it out
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
  returned: when O(vmdq) is set and O(only) does not leave it out
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
from ansible_collections.iovirt.host.plugins.module_utils._engine import engine


def call(module, host, door):
    only = module.params["only"] or list(engine.RESOURCES)
    wishes = {name: module.params[name] for name in only if module.params[name] is not None}
    return engine.devices(host, wishes, _door.options(module.params, module.params["exclusive"]), door)


def main() -> None:
    _door.run("devices", call)


if __name__ == "__main__":
    main()
