# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is known of drivers, as data. A driver that is in no table is simply not known."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .plain import dataclass

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

# --- Attributes of VFs -----------------------------------------------------------------------------------------------
# rtnetlink cannot be asked what a PF's driver can set. A callback that is not in its net_device_ops answers EOPNOTSUPP
# (do_setvfinfo in net/core/rtnetlink.c); what a callback refuses whatever the value is a "no" as well.


def _can(yes: str, no: str) -> Mapping[str, bool]:
    return {**dict.fromkeys(yes.split(), True), **dict.fromkeys(no.split(), False)}


#: PF driver -> attribute -> can it set that? What is in neither list is unknown: nobody looked, or it depends on the card
#: or its firmware. "802.1ad" is a VLAN with that protocol.
#: Read in the sources of Linux 6.12.117 (Debian's linux-source-6.12): net_device_ops and the ndo_set_vf_* functions of
#: each, below drivers/net/ethernet unless said. What a callback takes and does not pass on is a "no" as well.
_ETHERNET: Mapping[str, Mapping[str, bool]] = {
    # broadcom/bnx2x/bnx2x_main.c; bnx2x_set_vf_vlan in bnx2x_sriov.c: the priority is not used
    "bnx2x": _can("mac vlan spoof_check link_state", "qos trust query_rss min_tx_rate max_tx_rate 802.1ad"),
    # broadcom/bnxt/bnxt.c; bnxt_sriov.c, bnxt_set_vf_vlan: 802.1ad as the firmware can; older kernels refuse a priority
    "bnxt_en": _can("mac vlan spoof_check trust link_state min_tx_rate max_tx_rate", "query_rss"),
    # chelsio/cxgb4/cxgb4_main.c, cxgb4_mgmt_netdev_ops; cxgb4_mgmt_set_vf_vlan: no priority; _set_vf_rate: no minimum
    "cxgb4": _can("mac vlan link_state max_tx_rate", "qos spoof_check trust query_rss min_tx_rate 802.1ad"),
    # emulex/benet/be_main.c; be_set_vf_tx_rate: no minimum; BE2 and BE3 have no spoof check, BE2 no link state
    "be2net": _can("mac vlan qos max_tx_rate", "trust query_rss min_tx_rate 802.1ad"),
    # hisilicon/hns3/hns3_enet.c; hns3pf/hclge_main.c: no VLAN and spoof check below version 2 of the device, no minimum
    "hns3": _can("mac trust link_state max_tx_rate", "query_rss min_tx_rate 802.1ad"),
    # intel/i40e/i40e_main.c; i40e_virtchnl_pf.c, i40e_ndo_set_vf_bw: no minimum
    "i40e": _can("mac vlan qos spoof_check trust link_state max_tx_rate", "query_rss min_tx_rate 802.1ad"),
    # intel/ice/ice_main.c; ice_sriov.c: 802.1ad in double VLAN mode only (ice_is_supported_port_vlan_proto), no minimum
    # while DCB is on (ice_set_vf_bw)
    "ice": _can("mac vlan qos spoof_check trust link_state max_tx_rate", "query_rss"),
    # intel/igb/igb_main.c; igb_ndo_set_vf_bw: rates on the 82576 alone, and no minimum. All seen on the lab (82576).
    "igb": _can("mac vlan qos spoof_check trust", "link_state query_rss min_tx_rate 802.1ad"),
    # intel/ixgbe/ixgbe_main.c; ixgbe_sriov.c: no minimum, query_rss on 82599 and X540 alone, link state enable is ignored
    "ixgbe": _can("mac vlan qos spoof_check trust max_tx_rate", "min_tx_rate 802.1ad"),
    # mellanox/mlx4/en_netdev.c, mlx4_netdev_ops_master; cmd.c: no minimum; VLAN, spoof check and rate as the firmware can
    "mlx4_core": _can("mac link_state", "trust query_rss min_tx_rate"),
    # mellanox/mlx5/core/en_main.c; esw/legacy.c: in legacy mode; esw/qos.c: rates as the firmware can
    "mlx5_core": _can("mac vlan qos spoof_check trust link_state", "query_rss 802.1ad"),
    # netronome/nfp/nfp_net_common.c: the rest as the firmware can (nfp_net_sriov_check in nfp_net_sriov.c)
    "nfp": _can("", "query_rss"),
    # qlogic/qede/qede_main.c; qede_set_vf_vlan: the priority is not passed on
    "qede": _can("mac vlan spoof_check trust link_state min_tx_rate max_tx_rate", "qos query_rss 802.1ad"),
    # sfc/efx.c; ef10_sriov.c: no priority (efx_ef10_sriov_set_vf_vlan), spoof check as the firmware can
    "sfc": _can("mac vlan link_state", "qos trust query_rss min_tx_rate max_tx_rate 802.1ad"),
    # drivers/net/netdevsim/netdev.c
    "netdevsim": _can("mac vlan qos 802.1ad spoof_check trust link_state query_rss min_tx_rate max_tx_rate", ""),
}

#: On an InfiniBand port, whatever its driver: drivers/infiniband/ulp/ipoib/ipoib_main.c, ipoib_netdev_ops_pf (6.12.117).
_INFINIBAND = _can(
    "link_state node_guid port_guid", "mac vlan qos 802.1ad spoof_check trust query_rss min_tx_rate max_tx_rate"
)


def can_set(driver: str | None, attribute: str, infiniband: bool = False) -> bool | None:
    """Can the driver of a PF set this attribute of its VFs? None: nobody here knows."""
    if infiniband:
        return _INFINIBAND.get(attribute)
    if attribute in ("node_guid", "port_guid"):
        # handle_infiniband_guid in net/core/rtnetlink.c asks for an InfiniBand port first.
        return False
    return _ETHERNET.get(driver or "", {}).get(attribute)


#: PF drivers that set rates without a link as well; the others reckon with its speed (igb_ndo_set_vf_bw and its like).
#: hclge_vf_rate_param_check in hns3pf/hclge_main.c (the speed that the port can have), mlx4_set_vf_rate in mlx4/cmd.c,
#: mlx5_esw_qos_set_vport_rate in mlx5/core/esw/qos.c, nsim_set_vf_rate; Linux 6.12.117.
RATES_WITHOUT_LINK = frozenset({"hns3", "mlx4_core", "mlx5_core", "netdevsim"})

#: PF drivers that take the zero address for "no MAC of mine": igb_ndo_set_vf_mac, ixgbe_ndo_set_vf_mac,
#: i40e_ndo_set_vf_mac, __ice_set_vf_mac, bnxt_set_vf_mac, efx_ef10_sriov_set_vf_mac, nsim_set_vf_mac; Linux 6.12.117.
UNSETS_MAC = frozenset({"bnxt_en", "i40e", "ice", "igb", "ixgbe", "netdevsim", "sfc"})

#: PF drivers under which a new VF has the spoof check on: i40e_alloc_vfs, ice_initialize_vf_entry, igb_vf_configure,
#: __ixgbe_enable_sriov; Linux 6.12.117.
CHECKS_SPOOFING = frozenset({"i40e", "ice", "igb", "ixgbe"})


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
