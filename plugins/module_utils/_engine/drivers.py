# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is known of drivers, as data. A driver that is in no table is simply not known."""

from __future__ import annotations

import re

#: PF drivers without the sriov_configure callback: writing a count answers ENOENT (drivers/pci/iov.c,
#: sriov_numvfs_store). From the struct pci_driver of each, Linux 6.12.
NO_SRIOV = frozenset(
    {"ahci", "e1000", "e1000e", "igc", "nouveau", "pcieport", "r8169", "snd_hda_intel", "tg3", "xhci_hcd"}
)

#: Name of a module -> name of its driver, where they differ. People write the one that lsmod shows. For drivers that are
#: not on the bus yet; of those that are there the kernel tells it.
SPELLED = {
    "pci_stub": "pci-stub",
    "qat_4xxx": "4xxx",
    "qat_c3xxx": "c3xxx",
    "qat_c62x": "c6xx",
    "qat_dh895xcc": "dh895xcc",
    "vfio_pci": "vfio-pci",
    "virtio_pci": "virtio-pci",
    "xhci_pci": "xhci_hcd",
}
_MODULES = {driver: module for module, driver in SPELLED.items()}

#: VF drivers that take a VF only after the PF gave it resources: NVMe secondary controllers start offline
#: (NVM Express Base Specification, Virtualization Management command).
NEEDS_RESOURCES = frozenset({"nvme"})

#: PF drivers whose number of VFs is never written raw, with the tool that is to be used: it prepares the driver for VFs
#: (NVIDIA Virtual GPU Software documentation, "Preparing the Virtual Function for an NVIDIA vGPU").
OWN_VF_TOOL = {"nvidia": "/usr/lib/nvidia/sriov-manage"}

#: Vendors whose firmware has its SR-IOV settings ruled by mstconfig (mstflint).
MSTCONFIG = frozenset({"15b3"})

#: What a wish may say instead of a driver: the VFIO driver made for the device (a variant driver), else vfio-pci.
BEST = "vfio-best"

#: vfio-pci and its variants: mlx5_vfio_pci, nvgrace_gpu_vfio_pci, hisi_acc_vfio_pci, nvidia-vgpu-vfio.
_VFIO = re.compile(r"(.*[-_])?vfio([-_].*)?")


def is_vfio(driver: str | None) -> bool:
    """Does this driver hand its devices to user space through VFIO? By its name: all of them carry the word."""
    return bool(driver and _VFIO.fullmatch(driver))


def module_of(driver: str) -> str:
    """The module of a driver, the way the kernel writes module names."""
    return _MODULES.get(driver, driver).replace("-", "_")
