#!/usr/bin/python
# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: iommu
short_description: Switch the IOMMU on or off and choose its mode
version_added: 0.1.0
description:
  - Makes the IOMMU as wished by the next boot, by kernel parameters, and says whether that boot is needed.
  - What to set is decided from the ACPI tables that the firmware offers (V(DMAR) for Intel VT-d, V(IVRS) for
    AMD-Vi, V(IORT) for the Arm SMMU) and from what the kernel has made of them, never from the name of a processor.
    Where the kernel has the IOMMU on by itself, nothing is set.
  - >-
    It fails, in check mode too, when the firmware offers no IOMMU: then a reboot alone would be for nothing.
  - The host is never rebooted by this module.
author:
  - The iovirt.host authors (@iovirt)
requirements:
  - Linux with sysfs and Python 3.9 or newer; nothing beyond the standard library.
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
  state:
    description:
      - V(enabled) switches the IOMMU on, V(disabled) switches it off, both with the next boot.
      - V(absent) takes back what the collection ever said of it on the kernel command line.
    type: str
    choices: [enabled, disabled, absent]
    default: enabled
  mode:
    description:
      - V(translated) gives each device of the host an address space of its own. V(passthrough) lets the host's own
        devices see memory as it is, which costs less; guests are fenced in either way.
      - Unset, the mode stays as it is. It has no meaning unless O(state) is V(enabled).
    type: str
    choices: [translated, passthrough]
  strict:
    description:
      - Whether a mapping that ends is flushed from the IOMMU at once. V(false) flushes later and in batches, which costs
        less and leaves a device a moment of access. It has no effect in O(mode) V(passthrough).
      - Unset, it stays as it is.
    type: bool
  scalable_mode:
    description:
      - VT-d only. Whether the IOMMU works in scalable mode. Refused where a unit does not offer it.
      - Unset, it stays as it is.
    type: bool
  interrupt_remapping:
    description:
      - Whether interrupts of devices are remapped. Without it no device can be given to a guest.
      - Unset, it stays as it is.
    type: bool
  prove:
    description:
      - >-
        Whether to fail when the IOMMU is not as wished by now. Say so after the reboot: then a second one would
        change nothing.
      - It has no meaning with O(state) V(absent).
    type: bool
    default: false
  allow:
    description:
      - Dangers that are accepted, each by its own name; O(iovirt.host.devices#module:allow) explains them all. Two can
        stand here.
      - V(sealed_disk) - the key of an open encrypted volume is sealed in the TPM to what another command line changes.
      - V(group) - a parameter makes devices look isolated from each other that are not (C(pcie_acs_override),
        C(vfio_iommu_type1.allow_unsafe_interrupts)).
    type: list
    elements: str
    choices: [management, link_flap, in_use, boot_disk, console, group, foreign, sealed_disk]
    default: []
notes:
  - The boot loaders are those of M(iovirt.host.kernel_cmdline).
  - The parameters are C(intel_iommu), C(amd_iommu), C(iommu), C(iommu.passthrough), C(iommu.strict) and C(intremap) of
    the kernel's
    C(Documentation/admin-guide/kernel-parameters.txt); the mode is read from C(type) in
    C(Documentation/ABI/testing/sysfs-kernel-iommu_groups).
seealso:
  - module: iovirt.host.iommu_info
  - module: iovirt.host.kernel_cmdline
  - module: iovirt.host.host_info
"""

EXAMPLES = r"""
- name: On by the next boot
  iovirt.host.iommu:
  register: iommu

- name: Reboot if that takes one
  ansible.builtin.reboot:
  when: iommu.reboot_required

- name: See that it is on now, and in passthrough mode
  iovirt.host.iommu:
    mode: passthrough
    prove: true
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
      sample: "grub_mkconfig"
    text:
      description:
        - The step in words.
      type: str
    certainty:
      description:
        - V(certain) will be so to the letter. For V(predicted) the kernel has the last word, as with the address of
          a VF that is not born yet. V(after_reboot) waits for the next boot.
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
    - What will be true after the next boot. It is what O(iovirt.host.devices#module:assume) takes.
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
iommu:
  description:
    - The IOMMU as it is now.
  returned: always
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
    strict:
      description:
        - Whether the IOMMU is flushed at once when a mapping ends. V(null) unless RV(iommu.mode) is V(translated).
      type: bool
    scalable_mode_offered:
      description:
        - Whether VT-d's units offer scalable mode. V(null) where none is driven.
      type: bool
    interrupt_remapping:
      description:
        - Whether interrupts are remapped.
      type: bool
    problem:
      description:
        - Why no device can be given to a guest, in a sentence. V(null) while the IOMMU is on.
      type: str
    groups:
      description:
        - The IOMMU groups by number, with C(type) (the domain type) and C(devices) (PCI addresses).
      type: dict
"""

from ansible_collections.iovirt.host.plugins.module_utils import _door
from ansible_collections.iovirt.host.plugins.module_utils._engine import engine
from ansible_collections.iovirt.host.plugins.module_utils._engine.resources.iommu import IommuWish


def call(module, host, door):
    params = module.params
    wish = IommuWish(**{name: params[name] for name in IommuWish.__dataclass_fields__})
    return engine.host_iommu(host, wish, door, params["prove"], params["allow"])


def main() -> None:
    _door.run("iommu", call)


if __name__ == "__main__":
    main()
