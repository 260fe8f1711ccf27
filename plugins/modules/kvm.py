#!/usr/bin/python
# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: kvm
short_description: Make a machine a KVM host, from module parameters to libvirt's networks
version_added: 0.1.0
description:
  - Parameters of the KVM module, huge pages, samepage merging, libvirt's daemons, its users, networks and storage pools,
    now and at the next boot.
  - What is not named is neither read nor touched. How the host was before stands in C(/etc/iovirt/kvm.json), and
    O(state=absent) makes it so again.
  - It installs no packages; the role C(kvm) does. The host is never rebooted by this module.
author:
  - The iovirt.host authors (@iovirt)
requirements:
  - Linux with sysfs and systemd, and Python 3.9 or newer; nothing beyond the standard library.
  - C(virsh) for networks and pools.
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
      - V(absent) makes everything as it was before the collection touched it, whatever else is named. What is in a storage
        pool stays. Refused while guests run.
    type: str
    choices: [present, absent]
    default: present
  nested:
    description:
      - Whether guests can run guests. The KVM module reads it when it is loaded, so it is loaded again where nobody has
        C(/dev/kvm) open, and else the next boot brings it.
      - Unset, it stays as it is.
    type: bool
  paging:
    description:
      - Whether KVM uses the processor's nested paging (EPT, NPT). V(false) means shadow paging, which costs much more.
      - It comes into force as O(nested) does. Unset, it stays as it is.
    type: bool
  hugepages:
    description:
      - How many huge pages there are, by size. Sizes that are not named keep what they have.
      - They are got now where there is room, and stand on the kernel command line for the boot. Where there is no room now,
        the result says that a boot is needed.
      - Refused where they would leave the host less than 256 MiB.
    type: list
    elements: dict
    suboptions:
      size:
        description:
          - The size of a page, as V(2M) or V(1G). Only the kernel's own sizes will do.
        type: str
        required: true
      count:
        description:
          - How many pages, on all nodes together unless O(hugepages[].numa_node) is named.
        type: int
        required: true
      numa_node:
        description:
          - The NUMA node that has them. It takes Linux 5.16 or newer, which understands it at boot.
          - Unset, the kernel spreads them over all nodes.
        type: int
  ksm:
    description:
      - Whether the kernel merges pages of guests that hold the same. V(false) takes merged pages apart as well.
      - Refused while C(ksmtuned) rules it. Unset, it stays as it is.
    type: bool
  daemons:
    description:
      - Which of libvirt's daemons are enabled and listen, V(monolithic) (C(libvirtd)) or V(modular) (C(virtqemud) and its
        like); those of the other kind are stopped and disabled. Guests go on running.
      - V(auto) means the kind that is in use, else the one that is installed.
      - Unset, they stay as they are.
    type: str
    choices: [auto, modular, monolithic]
  users:
    description:
      - Users who may manage guests without being root, by being members of the group C(libvirt). Others who are members
        stay so.
      - Where polkit has no rule for that group, one is written.
    type: list
    elements: str
  networks:
    description:
      - libvirt's networks. Those that are not named stay as they are.
      - A definition is compared by what it means, and what it says beyond the wish stays in it.
    type: list
    elements: dict
    suboptions:
      name:
        description:
          - Its name.
        type: str
        required: true
      state:
        description:
          - V(absent) stops it and takes its definition away.
        type: str
        choices: [present, absent]
        default: present
      active:
        description:
          - Whether it is started.
        type: bool
        default: true
      autostart:
        description:
          - Whether it is started with the host.
        type: bool
        default: true
      mode:
        description:
          - V(nat) and V(route) connect guests with the host's other networks, V(isolated) with each other and the host
            alone. V(bridge) hands out a bridge that the host has.
          - Unset, it stays as it is; a new network needs it.
        type: str
        choices: [nat, route, isolated, bridge]
      bridge:
        description:
          - The name of the bridge. With O(networks[].mode=bridge) it has to be there; else libvirt makes it.
          - Unset, it stays as it is, and libvirt takes the next free name for a new one.
        type: str
      address:
        description:
          - The host's address on it with its prefix, as V(192.168.122.1/24).
          - Unset, it stays as it is. V(nat) and V(route) need one.
        type: str
      dhcp_start:
        description:
          - The first address that guests get by DHCP. It needs O(networks[].dhcp_end).
        type: str
      dhcp_end:
        description:
          - The last one.
        type: str
  pools:
    description:
      - libvirt's storage pools that are folders of the host. Those that are not named stay as they are.
    type: list
    elements: dict
    suboptions:
      name:
        description:
          - Its name.
        type: str
        required: true
      state:
        description:
          - V(absent) stops it and takes its definition away. The folder and what is in it stay.
        type: str
        choices: [present, absent]
        default: present
      active:
        description:
          - Whether it is started.
        type: bool
        default: true
      autostart:
        description:
          - Whether it is started with the host.
        type: bool
        default: true
      path:
        description:
          - The folder, made where there is none. A new pool needs it; unset, it stays as it is.
        type: str
  prove:
    description:
      - Whether to fail where C(/dev/kvm) makes no VM. It is asked for one, which on x86-64 runs one instruction; the file
        being there proves nothing.
    type: bool
    default: false
  assume:
    description:
      - What an earlier step of the same run makes true.
    type: dict
    suboptions:
      packages:
        description:
          - Whether libvirt is going to be installed. With it check mode sees through that on a bare host.
        type: bool
  allow:
    description:
      - Dangers that are accepted, each by its own name. Here V(in_use) counts (guests are plugged into a network that is
        stopped, or run while all is given back), V(foreign) (C(ksmtuned) rules samepage merging) and V(sealed_disk) (the
        key of an encrypted volume is sealed in the TPM to what another command line changes).
    type: list
    elements: str
    choices: [management, link_flap, in_use, boot_disk, console, group, foreign, sealed_disk]
    default: []
seealso:
  - module: iovirt.host.kvm_info
  - module: iovirt.host.host_info
"""

EXAMPLES = r"""
- name: A KVM host
  iovirt.host.kvm:
    nested: true
    hugepages:
      - {size: 1G, count: 16}
    daemons: auto
    networks:
      - {name: default, mode: nat, address: 192.168.122.1/24}
      - {name: lan, mode: bridge, bridge: br0}
    pools:
      - {name: images, path: /var/lib/libvirt/images}
    prove: true

- name: As it was
  iovirt.host.kvm:
    state: absent
"""

RETURN = r"""
---
actions:
  description:
    - The steps, in their order, with C(device), C(action), C(text), C(certainty), C(before) and C(after). In check mode
      those that a run would take.
    - V(predicted) marks those in which the kernel has the last word, V(after_reboot) those that wait for a boot.
  returned: always
  type: list
  elements: dict
failures:
  description:
    - Part -> sentence, for the parts that failed; each was put back as it was.
  returned: always
  type: dict
indeterminate:
  description:
    - Parts with a write that never returned.
  returned: always
  type: list
  elements: str
predicted:
  description:
    - Nothing here; other modules say what will be true by the next boot.
  returned: always
  type: dict
reboot_required:
  description:
    - Whether something waits for a boot.
  returned: always
  type: bool
reboot_reasons:
  description:
    - What waits for it, in words.
  returned: always
  type: list
  elements: str
kvm:
  description:
    - The parts that were named, as they are now, in the shape of M(iovirt.host.kvm_info).
  returned: always
  type: dict
"""

from ansible_collections.iovirt.host.plugins.module_utils import _door
from ansible_collections.iovirt.host.plugins.module_utils._engine import engine


def call(module, host, door):
    params = module.params
    return engine.host_kvm(host, params, door, params["allow"], bool((params["assume"] or {}).get("packages")))


def main() -> None:
    _door.run("kvm", call)


if __name__ == "__main__":
    main()
