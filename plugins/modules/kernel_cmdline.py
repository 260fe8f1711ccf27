#!/usr/bin/python
# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: kernel_cmdline
short_description: Set kernel parameters for the next boot
version_added: 0.1.0
description:
  - Sees to it that kernel parameters are there, or are not there, when the host boots the next time, and says
    whether that boot is needed.
  - Parameters are compared by key, the way the kernel reads them, with V(-) and V(_) in a key taken for the same.
    What is there already, whoever put it there, is not put there again.
  - The boot loader is found by looking at the host; where there are two, the one that booted it is used. Every entry
    that can be booted is changed, and what later kernels get their command line from; rescue entries stay as they are.
  - Where the boot loader has drop-ins, what is ours stands in one (C(/etc/default/grub.d/zz-iovirt.cfg)). Elsewhere
    its files are edited, and C(/etc/iovirt/kernel_cmdline.json) keeps what they were until nothing is wished any more.
  - A configuration takes the place of the one that boots only when it is whole and says what is wished.
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
  present:
    description:
      - Parameters that shall be there, as V(key) or V(key=value). The value of a key that was there is replaced.
      - >-
        Of V(intel_iommu), V(amd_iommu) and V(iommu), whose values are sets, the members that are not spoken of
        stay: a command line with C(intel_iommu=on,sm_on) satisfies V(intel_iommu=on).
      - V(console), V(earlycon) and V(module_blacklist) may stand several times; each is looked at by itself.
      - V(hugepages) belongs to the V(hugepagesz) before it, in this list as on the command line; other sizes stay.
      - A value with blanks stands in double quotes, as in V(dyndbg="file drivers/pci/iov.c +p"). Several blanks in a row,
        quotes within a value, backslashes, backticks, dollar signs and line breaks are refused, and so is a value where the
        kernel takes none. With rpm-ostree, bootc and proxmox-boot-tool blanks are refused, too.
    type: list
    elements: str
  absent:
    description:
      - Parameters that shall not be there. V(key) means whatever its value is, V(key=value) that value alone.
    type: list
    elements: str
  exact:
    description:
      - For each key named here exactly these parameters, in this order, and no others with that key.
    type: list
    elements: str
  release:
    description:
      - Keys that the collection shall no longer speak of. They are what they were without it.
    type: list
    elements: str
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
  - >-
    Boot loaders: GRUB (Debian, Ubuntu, SUSE, Arch), GRUB with Boot Loader Specification entries and grubby (Fedora,
    RHEL), systemd-boot, unified kernel images, proxmox-boot-tool, rpm-ostree, and bootc while an image is built. On any
    other the module fails, says what it looked for, and changes nothing.
  - Keys and their values are documented in the kernel's C(Documentation/admin-guide/kernel-parameters.txt).
seealso:
  - module: iovirt.host.kernel_cmdline_info
  - module: iovirt.host.iommu
"""

EXAMPLES = r"""
- name: Huge pages, and no audit
  iovirt.host.kernel_cmdline:
    present:
      - hugepagesz=1G
      - hugepages=64
    absent:
      - audit
  register: cmdline

- name: This console and no other
  iovirt.host.kernel_cmdline:
    exact:
      - console=ttyS0,115200

- name: Leave huge pages to others again
  iovirt.host.kernel_cmdline:
    release:
      - hugepages
      - hugepagesz
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
kernel_cmdline:
  description:
    - Both sides of a reboot.
  returned: always
  type: dict
  contains:
    running:
      description:
        - The parameters that the running kernel was started with.
      type: list
      elements: str
    next_boot:
      description:
        - For each boot entry, by its title, the parameters that it gives to its kernel.
      type: dict
    later_kernels:
      description:
        - The parameters that a kernel yet to be installed will get. V(null) where its entry is made from the same source
          as the others.
      type: list
      elements: str
    differing:
      description:
        - The parameters in which the next boot differs from the running one, by C(key), with C(running) and
          C(next_boot). What boot loaders add by themselves does not count.
      type: list
      elements: dict
    loader:
      description:
        - The boot loader.
      type: str
      sample: grub
    ours:
      description:
        - The parameters that the collection sets.
      type: list
      elements: str
"""

from ansible_collections.iovirt.host.plugins.module_utils import _door
from ansible_collections.iovirt.host.plugins.module_utils._engine import engine
from ansible_collections.iovirt.host.plugins.module_utils._engine.resources import kernel_cmdline


def call(module, host, door):
    return engine.host_cmdline(host, kernel_cmdline.wish_of(module.params), door, module.params["allow"])


def main() -> None:
    _door.run("kernel_cmdline", call)


if __name__ == "__main__":
    main()
