#!/usr/bin/python
# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: guest
short_description: Guests of KVM and the devices they take, as a list of declarations
version_added: 0.1.0
description:
  - Makes guests in libvirt as declared, with VFs from pools, mediated devices, vGPUs, whole functions, emulated and paravirtual devices.
  - Only what a declaration names is a wish. It is compared by meaning with what libvirt has, and what others added beside it stays.
  - What QEMU can change while a guest runs is changed at once. The rest waits for the guest's next start, and RV(restart_required) says so.
  - What was edited by another hand since it was declared is refused with what differs, and overwritten only with O(allow) V(foreign).
  - The whole list is read, planned and changed in one call. What a host cannot give is refused, in check mode too, before anything is changed.
author:
  - The iovirt.host authors (@iovirt)
requirements:
  - Linux with sysfs and Python 3.9 or newer.
  - libvirt with QEMU, and the distribution's python3-libvirt. Where another Python runs the module, it runs itself again under the one that has it.
extends_documentation_fragment:
  - iovirt.host._attributes
  - iovirt.host._attributes.actiongroup_host
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  guests:
    description:
      - The guests. Each key that is left out stays as it is; a new guest gets what the keys' descriptions say.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description:
          - The name of the guest in libvirt. One declaration a name.
        type: str
        required: true
      state:
        description:
          - V(running) defines the guest and starts it where it does not run. V(stopped) defines it and shuts it down where
            it runs. V(present) defines it and leaves it running or not.
          - V(absent) shuts it down, undefines it and removes its seed. VFs and functions go back to what they were. Disks
            stay.
          - A guest that runs is never started anew unless O(restart) says so.
        type: str
        choices:
          - running
          - stopped
          - present
          - absent
        default: running
      autostart:
        description:
          - Whether libvirt starts it with the host.
        type: bool
      machine:
        description:
          - QEMU's machine type, as V(q35) or V(pc). A new guest gets V(q35).
        type: str
      vcpus:
        description:
          - How many CPUs it has. A new guest gets one. More of them come at once where O(guests[].vcpus_max) leaves room.
        type: int
      vcpus_max:
        description:
          - How many CPUs it can be given while it runs.
        type: int
      numa_node:
        description:
          - The NUMA node of the host that all of its memory comes from.
        type: int
      cpu:
        description:
          - What kind of processor it sees, and which ones of the host it runs on.
        type: dict
        suboptions:
          accel:
            description:
              - V(kvm) runs it on the host's processor. V(tcg) emulates one in software (full virtualization), slowly. A
                new guest gets V(kvm).
            type: str
            choices:
              - kvm
              - tcg
          model:
            description:
              - V(host-passthrough), V(host-model), V(maximum) or the name of a model that libvirt knows. A new guest gets
                V(host-passthrough), with V(tcg) V(maximum).
            type: str
          topology:
            description:
              - How its CPUs are grouped. The product is O(guests[].vcpus_max), else O(guests[].vcpus).
            type: dict
            suboptions:
              sockets:
                description:
                  - Sockets.
                type: int
                required: true
              cores:
                description:
                  - Cores of a socket.
                type: int
                required: true
              threads:
                description:
                  - Threads of a core.
                type: int
                required: true
          pinning:
            description:
              - On which CPUs of the host which of its CPUs run.
            type: list
            elements: dict
            suboptions:
              vcpus:
                description:
                  - Its CPUs, counted from V(0), as in V(0-3).
                type: str
                required: true
              cpus:
                description:
                  - CPUs of the host, as in V(4-7) or V(4,6). They have to be online.
                type: str
                required: true
          emulator_cpus:
            description:
              - CPUs of the host for QEMU's other threads.
            type: str
          nested:
            description:
              - Whether it can run guests of its own (V(svm) or V(vmx), by the host's processor). The host's KVM has to
                allow it.
            type: bool
          features:
            description:
              - Single features of the processor, by libvirt's names.
            type: list
            elements: dict
            suboptions:
              name:
                description:
                  - The feature, as V(pcid).
                type: str
                required: true
              policy:
                description:
                  - What is done about it, in libvirt's words.
                type: str
                choices:
                  - force
                  - require
                  - optional
                  - disable
                  - forbid
                required: true
          kvmclock:
            description:
              - Whether it is offered KVM's clock.
            type: bool
          pv_eoi:
            description:
              - Whether it is offered the paravirtual end of interrupts.
            type: bool
          pv_spinlock:
            description:
              - Whether it is offered paravirtual spinlocks.
            type: bool
          hyperv:
            description:
              - Whether it is offered the enlightenments that Windows profits from, with the clock that goes with them.
                V(false) takes all of them away.
            type: bool
      memory:
        description:
          - Its memory, as V(8G) or V(512M). A new guest needs it.
        type: str
      hugepages:
        description:
          - The size of the host's pages that its memory comes from, as V(2M) or V(1G). As many as it needs have to be free
            when it starts.
        type: str
      locked:
        description:
          - Whether its memory is locked into the host's, so that none of it is swapped out. What has a VF or another function
            is pinned anyway.
        type: bool
      ksm:
        description:
          - Whether the host may merge pages of its memory with others' that are the same.
        type: bool
      balloon:
        description:
          - The device by which the host takes memory back.
        type: dict
        suboptions:
          enabled:
            description:
              - Whether there is one.
            type: bool
          free_page_reporting:
            description:
              - Whether the guest tells the host of its free pages.
            type: bool
          target:
            description:
              - What the balloon leaves to the guest, as V(4G). It is set at once. Unset, what others set stays.
            type: str
      boot:
        description:
          - What it starts from.
        type: dict
        suboptions:
          firmware:
            description:
              - V(bios) or V(uefi). libvirt finds UEFI by the descriptions that its packages bring.
            type: str
            choices:
              - bios
              - uefi
          secure_boot:
            description:
              - Whether Secure Boot is on, with the vendors' keys enrolled.
            type: bool
          tpm:
            description:
              - Whether it has a TPM 2.0, emulated by swtpm.
            type: bool
          order:
            description:
              - What is tried in which order.
            type: list
            elements: str
            choices:
              - disk
              - network
              - cdrom
          kernel:
            description:
              - A kernel of the host that it starts directly. QEMU's user has to be able to read it; a file below C(/root)
                it cannot.
            type: str
          initrd:
            description:
              - The initramfs for O(guests[].boot.kernel).
            type: str
          cmdline:
            description:
              - The command line for O(guests[].boot.kernel).
            type: str
      network:
        description:
          - All of its network devices, in their order. An empty list means none; unset, they stay as they are.
          - Without O(guests[].network[].mac) a MAC address is made of host, guest and place in the list, so it is the same
            in each run.
        type: list
        elements: dict
        suboptions:
          model:
            description:
              - V(emulated) is a card as there is one in hardware (e1000e), on a bridge or a network of libvirt's. V(virtio)
                is made for guests.
              - V(macvtap) sits on a port of the host. V(vmdq) does so too, and has a pool of the port's queues in hardware,
                or the guest is not started. V(sriov) is a VF. V(passthrough) is a whole function.
            type: str
            choices:
              - emulated
              - virtio
              - macvtap
              - vmdq
              - sriov
              - passthrough
            required: true
          device:
            description:
              - QEMU's model of an emulated card, V(e1000e) unless named; for V(macvtap) and V(vmdq) V(virtio) unless named.
            type: str
          mac:
            description:
              - Its MAC address. No other guest and no port of the host may have it.
            type: str
          bridge:
            description:
              - A bridge of the host, of Linux or of Open vSwitch.
            type: str
          nat:
            description:
              - A network of libvirt's, as V(default).
            type: str
          parent:
            description:
              - The port of the host that a V(macvtap) or a V(vmdq) sits on.
            type: str
          mode:
            description:
              - How a V(macvtap) or a V(vmdq) shares its port. V(bridge) unless named.
            type: str
            choices:
              - bridge
              - vepa
              - private
              - passthrough
          pool:
            description:
              - The pool of VFs that it is given one of; pools are declared as C(pool) on a range of VFs in C(sriov_devices).
                The guest keeps its VF.
            type: str
          numa:
            description:
              - V(near) takes VFs of the guest's own NUMA node only, which O(guests[].numa_node) or its pinned CPUs say.
            type: str
            choices:
              - near
              - any
          address:
            description:
              - The PCI address of a certain VF (V(sriov)) or of a whole function (V(passthrough)).
            type: str
          vlan:
            description:
              - The VLAN that the VF's port puts its frames into while the guest runs. The guest does not see it. V(0) takes
                it out of the definition; whether a VLAN of the same VF in C(sriov_devices) holds then depends on libvirt's
                version.
            type: int
          trust:
            description:
              - V(true) takes only a VF that is trusted (C(trust) of its range in C(sriov_devices)).
            type: bool
          vhost:
            description:
              - Whether the host's kernel moves the frames (vhost) or QEMU.
            type: bool
          queues:
            description:
              - How many pairs of queues it has.
            type: int
          mtu:
            description:
              - The MTU that it is told.
            type: int
          rom:
            description:
              - Whether it has a boot ROM.
            type: bool
      disks:
        description:
          - All of its disks, in their order. An empty list means none; unset, they stay as they are.
        type: list
        elements: dict
        suboptions:
          model:
            description:
              - V(ide) and V(sata) are emulated, V(virtio) is virtio-blk, V(scsi) a disk of virtio-scsi. V(lun) passes a
                SCSI disk of the host through, commands and all. V(nvme) passes a whole NVMe function through.
            type: str
            choices:
              - ide
              - sata
              - virtio
              - scsi
              - lun
              - nvme
            required: true
          path:
            description:
              - The image, or a disk of the host below C(/dev). An image that is there is taken as it is and never written
                by us.
            type: str
          format:
            description:
              - The image's format. V(qcow2) unless named, for a disk of the host V(raw).
            type: str
            choices:
              - qcow2
              - raw
          size:
            description:
              - How large a new image becomes, as V(20G).
            type: str
          source:
            description:
              - What a new image is made of, a file of the host or a URL (C(https), C(http), C(file)). Without it a new
                image is empty.
            type: str
          checksum:
            description:
              - The checksum of O(guests[].disks[].source), V(sha256:...) or V(sha512:...). A URL needs it. What does not
                have it becomes no image.
            type: str
          address:
            description:
              - The PCI address of the function for V(nvme).
            type: str
          cache:
            description:
              - How the host caches it, in libvirt's words.
            type: str
            choices:
              - default
              - none
              - writethrough
              - writeback
              - directsync
              - unsafe
          io:
            description:
              - How QEMU reads and writes, in libvirt's words.
            type: str
            choices:
              - native
              - threads
              - io_uring
          discard:
            description:
              - Whether what the guest discards is given back.
            type: str
            choices:
              - unmap
              - ignore
          serial:
            description:
              - The serial number that the guest sees.
            type: str
          readonly:
            description:
              - Whether the guest can only read it.
            type: bool
      display:
        description:
          - What it draws on.
        type: dict
        suboptions:
          model:
            description:
              - V(none), V(emulated) (a VNC server on the host), or V(passthrough), a GPU as a whole function.
            type: str
            choices:
              - none
              - emulated
              - passthrough
            required: true
          address:
            description:
              - The PCI address of the GPU for V(passthrough).
            type: str
          video:
            description:
              - The emulated card, V(virtio) unless named.
            type: str
            choices:
              - virtio
              - vga
              - bochs
              - cirrus
          listen:
            description:
              - The host's address that VNC listens at, V(127.0.0.1) unless named.
            type: str
      mdev:
        description:
          - Its mediated devices, in their order. One that an earlier declaration named and this one does not is taken out,
            so an empty list takes out all of these; what others added to the definition stays. Unset, they stay as they
            are.
          - Each is asked by O(guests[].mdev[].type), O(guests[].mdev[].pool) or O(guests[].mdev[].uuid). The devices have
            to be there; M(iovirt.host.mdev) makes them. By type or pool the guest gets one that is declared and free, and
            keeps it.
          - QEMU gets them at the guest's start. What changes while it runs waits for its next one.
        type: list
        elements: dict
        suboptions:
          type:
            description:
              - The type of the device, by its id or its name, as in V(mtty-2) or V(Dual port serial).
            type: str
          pool:
            description:
              - The pool that it is taken from; pools are declared as C(pool) in C(mdev_devices).
            type: str
          uuid:
            description:
              - A certain device, also one that the collection did not make.
            type: str
          parent:
            description:
              - The parent that a O(guests[].mdev[].type) is taken from, by its name in C(/sys/class/mdev_bus).
            type: str
          numa:
            description:
              - V(near) takes one of the guest's own NUMA node only, which O(guests[].numa_node) or its pinned CPUs say.
                A parent that says no node is near to all.
            type: str
            choices:
              - near
              - any
          display:
            description:
              - Whether what it shows is seen on the guest's graphics (O(guests[].display.model) V(emulated)). Unset means
                it is not.
              - It needs a type whose API is C(vfio-pci) and that has a display, as those of mdpy, GVT-g and NVIDIA do.
                Where it has none, QEMU says so at the start.
            type: bool
          ramfb:
            description:
              - Whether QEMU shows a plain framebuffer there until the guest's driver is up. It needs O(guests[].mdev[].display).
            type: bool
      gpu:
        description:
          - Its share of a GPU. Unset, it stays as it is.
        type: dict
        suboptions:
          vgpu:
            description:
              - The type of its vGPU by its name, with or without the maker in front, or by its id, as in V(L40S-12Q), V(GRID
                T4-2Q) or V(GVTg_V5_4).
              - It is a mediated device of a GPU, or a VF of it with this type, whichever the GPU's driver makes. It has
                to be declared (M(iovirt.host.vgpu), M(iovirt.host.mdev)) and there. The guest keeps it.
              - V(none) takes it away.
            type: str
          address:
            description:
              - The PCI address of the GPU that it is taken from, or of a certain VF. Unset, any GPU is good.
            type: str
          numa:
            description:
              - V(near) takes one of the guest's own NUMA node only, which O(guests[].numa_node) or its pinned CPUs say.
                A parent that says no node is near to all.
            type: str
            choices:
              - near
              - any
          display:
            description:
              - Whether what it shows is seen on the guest's graphics (O(guests[].display.model) V(emulated)). Unset means
                it is not.
              - It is of mediated devices alone. A VF shows nothing to the host.
            type: bool
          ramfb:
            description:
              - Whether QEMU shows a plain framebuffer there until the guest's driver is up. It needs O(guests[].gpu.display).
            type: bool
      seed:
        description:
          - What cloud-init in the guest is told, on a CD that is made for it (NoCloud). An empty dictionary gives it its
            name alone.
          - It stands in a record that only root can read, and in no diff.
        type: dict
        suboptions:
          user_data:
            description:
              - The user data as text, as a rule beginning with C(#cloud-config).
            type: str
          meta_data:
            description:
              - The metadata as text. Without it the instance and the host have the guest's name.
            type: str
          network_config:
            description:
              - The configuration of its network as text.
            type: str
      console_log:
        description:
          - A file of the host that what it writes to its serial console is kept in.
        type: str
  exclusive:
    description:
      - >-
        Whether O(guests) is all there is: every guest that the collection made and the list no longer names is given up as with V(absent).
        Guests of others are left alone.
    type: bool
    default: false
  restart:
    description:
      - Whether a guest that runs may be shut down and started for what cannot be changed while it runs.
    type: str
    choices: [never, when_needed]
    default: never
  shutdown_timeout:
    description:
      - Seconds that a guest gets to shut down when it is asked to. V(0) with O(power_off) does not ask.
    type: int
    default: 120
  power_off:
    description:
      - Whether the power of a guest is cut that has not shut down in time. Without it that is a failure.
    type: bool
    default: false
  allow:
    description:
      - Dangers that are accepted, each by its own name; M(iovirt.host.devices) says what each of them means.
      - V(foreign) lets declarations overwrite what was edited by another hand, and take over guests that others made.
    type: list
    elements: str
    choices: [management, link_flap, in_use, boot_disk, console, group, foreign, sealed_disk]
    default: []
  assume:
    description:
      - What an earlier call of the same run makes true, now or by the next boot. With it check mode sees through a host that is still bare, and
        a guest whose devices come with the next boot is announced as waiting for it.
    type: dict
    suboptions:
      iommu:
        description:
          - Whether the IOMMU will be on, as RV(iovirt.host.iommu#module:predicted) says.
        type: bool
      pools:
        description:
          - The pools that will have VFs, and how many, as RV(iovirt.host.devices#module:predicted) says.
        type: dict
      mdevs:
        description:
          - The mediated devices that will be there, or will not, by their UUIDs, as RV(iovirt.host.devices#module:predicted) says. It counts in check
            mode alone.
        type: dict
      vgpus:
        description:
          - The VFs that will have a vGPU, or lose it, as RV(iovirt.host.devices#module:predicted) says. It counts in check mode alone; a guest
            whose VF is not there yet is announced as waiting for it.
        type: dict
      libvirt:
        description:
          - Whether libvirt is going to be installed or started. In check mode it then need not answer.
        type: bool
  declared_by:
    description:
      - Who declares, in free text, as the revision of the inventory. It stands with the time in the record on the host.
    type: str
seealso:
  - module: iovirt.host.sriov
  - module: iovirt.host.guest_info
"""

EXAMPLES = r"""
- name: A router with a VF of the pool and a port on a bridge
  iovirt.host.guest:
    guests:
      - name: router1
        vcpus: 4
        memory: 8G
        autostart: true
        numa_node: 0
        disks:
          - model: virtio
            path: /var/lib/libvirt/images/router1.qcow2
            source: https://cloud.debian.org/images/cloud/trixie/latest/debian-13-genericcloud-amd64.qcow2
            checksum: "{{ debian_checksum }}"
            size: 20G
        network:
          - {model: sriov, pool: dataplane, numa: near, vlan: 100}
          - {model: virtio, bridge: br0}
        seed:
          user_data: "{{ lookup('file', 'router1.yml') }}"

- name: One guest less
  iovirt.host.guest:
    guests:
      - name: router1
        state: absent
"""

RETURN = r"""
diff:
  description:
    - 'What changes, a list with a header per guest: keys of the declaration, and the XML.'
  returned: always
  type: list
  elements: dict
actions:
  description:
    - The steps that were done, or in check mode would be done, in their order.
  returned: always
  type: list
  elements: dict
  contains:
    device:
      description:
        - The guest that the step belongs to.
      type: str
    action:
      description:
        - What kind of step it is.
      type: str
      sample: "define_guest"
    text:
      description:
        - The step in words.
      type: str
    certainty:
      description:
        - V(certain) will be so to the letter. For V(predicted) libvirt and QEMU have the last word. V(after_reboot) waits for a boot.
      type: str
    before:
      description:
        - What the step finds.
      type: dict
    after:
      description:
        - What the step leaves.
      type: dict
restart_required:
  description:
    - Whether a running guest has to be started anew for something that is declared.
  returned: always
  type: bool
restart_reasons:
  description:
    - The guests that have to, and for each of them what is not as declared while it runs.
  returned: always
  type: dict
  sample: {"router1": ["memory is 4194304 and not 8388608"]}
predicted:
  description:
    - Always empty here.
  returned: always
  type: dict
reboot_required:
  description:
    - Whether a guest waits for a reboot of the host, by what O(assume) says of its devices.
  returned: always
  type: bool
reboot_reasons:
  description:
    - What guests wait for that comes with the next boot. Empty if none does.
  returned: always
  type: list
  elements: str
failures:
  description:
    - The guests on which a step failed, and for each of them which step, what libvirt answered and what was undone.
    - The module fails when there is any. Other guests keep what they have.
  returned: always
  type: dict
indeterminate:
  description:
    - Always empty here.
  returned: always
  type: list
  elements: str
guests:
  description:
    - All guests of the host after the call, those of others too.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description:
        - Its name.
      type: str
    uuid:
      description:
        - Its UUID.
      type: str
    state:
      description:
        - Its state in libvirt's words, as V(running) or V(shut off); V(not defined) where it was declared and is gone.
      type: str
    autostart:
      description:
        - Whether libvirt starts it with the host.
      type: bool
    declared:
      description:
        - Whether the collection made it.
      type: bool
    functions:
      description:
        - The PCI functions that it has or names.
      type: list
      elements: str
    network:
      description:
        - Its network devices, with C(mac), C(type), C(model), C(source) and C(port), the host's end.
      type: list
      elements: dict
    mdevs:
      description:
        - Its mediated devices, with C(uuid), C(model), C(parent) and C(type); the last two are null where the device is not there.
      type: list
      elements: dict
"""

from ansible_collections.iovirt.host.plugins.module_utils import _door
from ansible_collections.iovirt.host.plugins.module_utils._engine import engine
from ansible_collections.iovirt.host.plugins.module_utils._engine.resources.guest import GuestOptions


def call(module, host, door):
    params = module.params
    options = GuestOptions(
        allow=frozenset(params["allow"]),
        exclusive=params["exclusive"],
        restart=params["restart"] == "when_needed",
        timeout=params["shutdown_timeout"],
        power_off=params["power_off"],
        declared_by=params["declared_by"] or "",
        assume={key: value for key, value in (params["assume"] or {}).items() if value is not None},
    )
    return engine.guests(host, params["guests"], options, door)


def main() -> None:
    _door.run("guest", call)


if __name__ == "__main__":
    main()
