# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is known of drivers, as data. A driver that is in no table is simply not known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Eswitch:
    """How a driver changes the mode of its eswitch."""

    #: The mode may change while there are VFs; they are taken from their drivers for it. Otherwise there must be none.
    with_vfs: bool = True
    #: The number of VFs is changed in legacy mode only.
    count_in_legacy: bool = True
    #: The PF's network device is the same one afterwards, with its addresses.
    keeps_netdev: bool = False
    #: The port in switchdev mode is another thing than before, and ready when it names its switch (phys_switch_id).
    uplink: bool = False


#: Driver -> how it changes the mode. Where the orders are from: mlx5_devlink_eswitch_mode_set in
#: mlx5/core/eswitch_offloads.c and the SR-IOV network operator (setEswitchModeAndNumVFsMlx: legacy, count, VFs
#: unbound, switchdev); ice_eswitch_mode_set in ice/ice_eswitch.c (EOPNOTSUPP while there are VFs);
#: nsim_devlink_eswitch_mode_set in netdevsim/dev.c.
ESWITCH: Mapping[str, Eswitch] = {
    "ice": Eswitch(with_vfs=False, count_in_legacy=False, keeps_netdev=True),
    "mlx5_core": Eswitch(uplink=True),
    "netdevsim": Eswitch(keeps_netdev=True),
}

#: A driver that is in no table: the careful order, which is that of mlx5.
ESWITCH_UNKNOWN = Eswitch()

#: Vendor and device -> the inline mode that goes with switchdev: these cards match on packet headers that a VF has put into its descriptor
#: (ConnectX-4 and ConnectX-4 Lx; so do os-net-config and TripleO, after the mode, as the kernel's own devlink handler has it).
INLINE_MODES: Mapping[tuple[str, str], str] = {("15b3", "1013"): "transport", ("15b3", "1015"): "transport"}

#: Parameters that change only while the eswitch is in legacy mode (mlx5_fs_mode_validate in mlx5/core/fs_core.c).
IN_LEGACY_ONLY = frozenset({"flow_steering_mode"})
