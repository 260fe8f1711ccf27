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
  - What is ours stands in one drop-in, C(/etc/default/grub.d/zz-iovirt.cfg), and nothing else is edited.
    C(grub-mkconfig) writes beside C(grub.cfg); only a result in which every entry names a kernel that is there and
    says what is wished takes its place.
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
      - V(console), V(earlycon), V(hugepages), V(hugepagesz) and V(module_blacklist) may stand several times; each
        is looked at by itself.
      - Blanks, quotes, backslashes, dollar signs and line breaks are refused.
    type: list
    elements: str
  absent:
    description:
      - Parameters that shall not be there. V(key) means whatever its value is, V(key=value) that value alone.
    type: list
    elements: str
  release:
    description:
      - Keys that the collection shall no longer speak of. They are what they were without it.
    type: list
    elements: str
notes:
  - The boot loader has to be GRUB with drop-ins in C(/etc/default/grub.d), as on Debian and Ubuntu. On any other
    the module fails and changes nothing.
  - Keys and their values are documented in the kernel's C(Documentation/admin-guide/kernel-parameters.txt).
seealso:
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
    return engine.host_cmdline(host, kernel_cmdline.wish_of(module.params), door)


def main() -> None:
    _door.run("kernel_cmdline", call)


if __name__ == "__main__":
    main()
