# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is known of drivers, as data. A driver that is in no table is simply not known."""

from __future__ import annotations

#: PF drivers without the sriov_configure callback: writing a count answers ENOENT (drivers/pci/iov.c,
#: sriov_numvfs_store). From the struct pci_driver of each, Linux 6.12.
NO_SRIOV = frozenset(
    {"ahci", "e1000", "e1000e", "igc", "nouveau", "pcieport", "r8169", "snd_hda_intel", "tg3", "xhci_hcd"}
)

#: Name of a module -> name of its driver, where they differ. People write the one that lsmod shows.
SPELLED = {"pci_stub": "pci-stub", "vfio_pci": "vfio-pci", "virtio_pci": "virtio-pci", "xhci_pci": "xhci_hcd"}

#: VF drivers that take a VF only after the PF gave it resources: NVMe secondary controllers start offline
#: (NVM Express Base Specification, Virtualization Management command).
NEEDS_RESOURCES = frozenset({"nvme"})
