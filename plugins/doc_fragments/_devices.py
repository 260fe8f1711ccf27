# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

# Note that this document fragment is **PRIVATE** to the collection. It can have breaking changes at any time.


class ModuleDocFragment:
    """Options of every module that changes devices."""

    DOCUMENTATION = r"""
options:
  allow:
    description:
      - Dangers that are accepted, each by its own name. Whatever is not named is refused, with a sentence that
        names the user of the device.
      - V(management) - the path to the controller, the default route or an address of the host would be lost.
      - V(link_flap) - a running link, or one leg of a bond, goes down for a moment.
      - V(in_use) - a guest, a container or another process has the device.
      - V(boot_disk) - the host uses a disk of the device.
      - V(console) - it shows the console of the host.
      - V(group) - the host goes on using another function of the same IOMMU group.
      - V(foreign) - another program (NetworkManager, systemd, netplan, driverctl, libvirt) rules what would change.
      - V(sealed_disk) - a key sealed in a TPM depends on what would change.
    type: list
    elements: str
    choices: [management, link_flap, in_use, boot_disk, console, group, foreign, sealed_disk]
    default: []
  assume:
    description:
      - >-
        What an earlier call of the same run makes true by the next boot: RV(iovirt.host.iommu#module:predicted).
      - With it check mode sees through a reboot that has not happened yet.
    type: dict
    suboptions:
      iommu:
        description:
          - Whether the IOMMU will be on.
        type: bool
  declared_by:
    description:
      - Who declares, in free text, as the revision of the inventory. It stands with the time in the records on the
        host, and C(iovirt status) shows it.
      - A run that would change nothing else does not write it.
      - A wish that contradicts what another one declared for a device is followed, with a warning that names both.
    type: str
"""
