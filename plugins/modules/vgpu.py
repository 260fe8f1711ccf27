#!/usr/bin/python
# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: vgpu
short_description: Divide GPUs into vGPUs, VFs and MIG instances, and take them back
version_added: 0.1.0
description:
  - Gives GPUs their vGPUs by intent, in both of NVIDIA's frameworks - the vendor-specific VFIO one (C(nvidia/current_vgpu_type) of each VF; Linux 6.8
    and newer) and the older one, in which vGPUs are mediated devices of the GPU (up to Turing) or of its VFs (Ampere).
  - Intel GPUs have VFs with shares of time and quotas (C(xe), and C(i915) with Intel's SR-IOV patches) or the mediated devices of GVT-g.
  - The framework is found by asking the driver (C(nvidia-smi), sysfs), not by the model. Other mediated devices are declared by M(iovirt.host.mdev).
  - Sets the MIG mode of a GPU and its GPU instances, for MIG-backed vGPUs or for the host itself.
  - One vGPU at a time. Those that are as wished are not touched.
  - A vGPU that a process or a running guest has is never cleared, and no GPU instance that somebody computes on is destroyed. No O(allow) changes that.
  - Where the GPU has no VFs, NVIDIA's C(sriov-manage) makes them. It is believed only once they and their files are there.
  - >-
    Either all that is wished for a GPU is done or nothing: when a step fails, the steps before it on that GPU are undone.
  - What is declared is kept in C(/etc/iovirt) and made true again at every boot.
author:
  - The iovirt.host authors (@iovirt)
requirements:
  - Linux with sysfs and Python 3.9 or newer; nothing beyond the standard library.
  - For VFs of Intel GPUs the IOMMU and C(vfio-pci); for GVT-g C(kvmgt) and C(i915.enable_gvt=1).
  - NVIDIA's vGPU host driver with C(nvidia-smi) and, for GPUs with VFs, C(/usr/lib/nvidia/sriov-manage). For MIG alone any driver of NVIDIA's.
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
      - The GPUs, and the vGPUs that they shall have.
    type: list
    elements: dict
    required: true
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
          - Without O(devices[].type) a GPU keeps the vGPUs that are declared.
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
              - Address space in the global translation table, in bytes. With O(devices[].profile.contexts_quota), for all
                VFs or for none.
            type: int
          contexts_quota:
            description:
              - Contexts of the firmware (i915 has them by 128). With O(devices[].profile.ggtt_quota), for all VFs or for
                none.
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
  exclusive:
    description:
      - >-
        Whether the list is all there is: every GPU that the collection owns and the list no longer names is given back.
    type: bool
    default: false
notes:
  - It was never run on a GPU, only on a simulated driver with the files of a captured L40S and of a VF of an A2.
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

- name: Seven GPU instances of an A100, named by its UUID, with a vGPU on each
  iovirt.host.vgpu:
    devices:
      - match:
          uuid: GPU-eaf23aa1-4d3d-596c-da66-b86b0e5db584
        mig:
          enabled: true
          instances:
            - profile: 1g.5gb
              count: 7
        type: A100-1-5C
        count: 7

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
    - C(vgpus) has the VFs whose vGPU changes, with C(type), C(name) and C(gpu), or null for one that loses it. What is not there yet goes by its
      GPU and its number.
    - C(mdevs) has the mediated devices that are vGPUs in NVIDIA's older framework, of GPUs that change, by UUID, with C(parent), C(type) and
      C(pool) (empty), or null for one that goes.
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
        - How many vGPUs of the GPU have it.
      type: int
    mig:
      description:
        - How MIG is, in the first entry of a GPU whose MIG mode is on.
      type: dict
"""

from ansible_collections.iovirt.host.plugins.module_utils import _door


def main() -> None:
    _door.devices("vgpu")


if __name__ == "__main__":
    main()
