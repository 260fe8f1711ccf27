#!/usr/bin/python
# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: kvm_info
short_description: Read what a KVM host is and what guests can have on it
version_added: 0.1.0
description:
  - Says how the KVM module, huge pages, samepage merging and libvirt are set, whether C(/dev/kvm) really makes a VM, what
    C(virt-host-validate) finds, and which firmware guests can have.
  - The keys that M(iovirt.host.kvm) has as options are valid input for it.
  - It reads only, and it writes nothing on the host. The VM that it makes has one page of memory and is gone at once.
author:
  - The iovirt.host authors (@iovirt)
requirements:
  - Linux with sysfs and systemd, and Python 3.9 or newer; nothing beyond the standard library.
extends_documentation_fragment:
  - iovirt.host._attributes
  - iovirt.host._attributes.info_module
  - iovirt.host._attributes.actiongroup_host
seealso:
  - module: iovirt.host.kvm
  - module: iovirt.host.host_info
"""

EXAMPLES = r"""
- name: What is there
  iovirt.host.kvm_info:
  register: info

- name: Guests can run here
  ansible.builtin.assert:
    that: info.kvm.proof.usable
    fail_msg: "{{ info.kvm.proof.reason }}"

- name: What virt-host-validate does not like
  ansible.builtin.debug:
    msg: "{{ info.kvm.validate | default([], true) | rejectattr('result', 'eq', 'pass') }}"
"""

RETURN = r"""
---
kvm:
  description:
    - The KVM host.
  returned: always
  type: dict
  contains:
    module:
      description:
        - The KVM module of this processor, V(null) where none is known.
      type: str
    users:
      description:
        - Members of the group C(libvirt).
      type: list
      elements: str
    open_count:
      description:
        - How many have C(/dev/kvm) or a VM open; V(null) while the module is not loaded.
      type: int
    nested:
      description:
        - Whether guests can run guests now; V(null) while the module is not loaded.
      type: bool
    nested_next_load:
      description:
        - What is said for the next load of the module; V(null) where nothing is.
      type: bool
    paging:
      description:
        - Whether KVM uses nested paging now.
      type: bool
    paging_next_load:
      description:
        - What is said for the next load of the module; V(null) where nothing is.
      type: bool
    hugepages:
      description:
        - Huge pages by C(size) with their C(count); by C(numa_node) where there are several.
      type: list
      elements: dict
    ksm:
      description:
        - Whether pages are merged; V(null) where the kernel cannot.
      type: bool
    daemons:
      description:
        - libvirt's daemons that are in use, else installed, V(modular) or V(monolithic); V(null) without any.
      type: str
    running:
      description:
        - Whether one of them runs or listens.
      type: bool
    networks:
      description:
        - libvirt's networks as wishes. Those in a mode that M(iovirt.host.kvm) does not know are left out.
      type: list
      elements: dict
    pools:
      description:
        - libvirt's storage pools that are folders, as wishes.
      type: list
      elements: dict
    proof:
      description:
        - Whether C(/dev/kvm) is C(usable), and the C(reason) in a sentence.
      type: dict
    validate:
      description:
        - What C(virt-host-validate qemu) prints, by C(driver), C(check), C(result) (V(pass), V(warn), V(fail), V(note)) and
          C(message). V(null) where it is not installed.
      type: list
      elements: dict
    firmware:
      description:
        - Firmware for guests, from QEMU's descriptors, with C(descriptor), C(description), C(uefi), C(secure_boot), C(enrolled_keys), C(architectures)
          and C(file).
      type: list
      elements: dict
    tpm:
      description:
        - A TPM for guests, C(emulator) (the path of C(swtpm)) and C(host) (a device of the host), each V(null) where there is none.
      type: dict
"""

from ansible_collections.iovirt.host.plugins.module_utils import _door
from ansible_collections.iovirt.host.plugins.module_utils._engine import engine


def call(module, host, door):
    return engine.kvm_info(host)


def main() -> None:
    _door.run("kvm_info", call)


if __name__ == "__main__":
    main()
