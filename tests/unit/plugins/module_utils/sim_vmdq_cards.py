# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Cards that give macvlans pools, step by step as their drivers do it: ixgbe, i40e, ice.

SYNTHETIC: nobody ran these drivers here. Source, function by function: Linux 6.12.118 (Debian's linux-source-6.12), below drivers/net/ethernet/intel;
for ice src/ice_main.c of github.com/intel/ethernet-linux-ice, as the ice of Linux has no such feature. What the files of queues then show is
traffic_class_show in net/core/net-sysfs.c: '0' for a queue of the port, '0-P' for one that is bound to the station in pool P.

They are written apart from the engine's own reckoning (vmdq/layouts.py), which is compared with them.
"""

from __future__ import annotations

import errno


class Crash(AssertionError):
    """The kernel would have died here."""


class Card:
    """What they have in common: pool 0 is the port's own."""

    #: Does every network device of this driver show the feature as one that can be switched?
    fixed = False

    def __init__(self, cpus: int) -> None:
        self.cpus = cpus
        self.start()

    def start(self) -> None:
        """The driver's probe."""
        raise NotImplementedError

    def take(self, vfs: int) -> int | None:
        """ndo_dfwd_add_station: the pool of a station, or None for an error, after which macvlan_open() falls back without a word."""
        raise NotImplementedError

    def give_back(self, pool: int) -> None:
        """ndo_dfwd_del_station."""
        raise NotImplementedError

    def feature(self, on: bool, vfs: int) -> str:
        """ndo_set_features: what ethtool says, or nothing."""
        raise NotImplementedError

    def channels(self, vfs: int) -> tuple[int, int]:
        """get_channels: the largest number of combined queues, and the present one."""
        raise NotImplementedError

    def set_channels(self, count: int, vfs: int) -> bool:
        raise NotImplementedError

    def classes(self, vfs: int, held: frozenset[int]) -> list[str | None]:
        """traffic_class of each transmit queue; None: EINVAL, a queue of a pool that nobody has."""
        raise NotImplementedError

    def vectors(self) -> int:
        """How many interrupt vectors the function has (msi_irqs)."""
        return self.cpus + 1

    def vfs_change(self, count: int) -> int:
        """sriov_configure: 0 or an error number."""
        return 0


class Ixgbe(Card):
    """X540 and its like. Numbers: ixgbe.h (MAX_TX_QUEUES 64, IXGBE_MAX_VF_FUNCTIONS 64, IXGBE_MAX_MACVLANS 63, IXGBE_MAX_RSS_INDICES 16)."""

    def start(self) -> None:
        """ixgbe_sw_init."""
        self.bits = {0}
        self.limit, self.rss_limit, self.fdir_limit = 1, min(16, self.cpus), min(63, self.cpus)
        self.vm_mode = False

    def _laid_out(self, vfs: int) -> tuple[int, int, int]:
        """ixgbe_set_sriov_queues in ixgbe_lib.c: pools that are not VFs', queues of each, RSS mask."""
        if not (self.vm_mode or vfs):
            return 1, self.rss_limit, 15
        rss = min(self.rss_limit, 64 // self.limit)
        total = min(64, self.limit + vfs)
        if total > 32:
            return total - vfs, min(rss, 2), 1
        return total - vfs, 4 if rss > 3 else 2 if rss > 1 else 1, 3

    def take(self, vfs: int) -> int | None:
        """ixgbe_fwd_add in ixgbe_main.c."""
        pools, _rss, _mask = self._laid_out(vfs)
        pool = self._free(pools)
        if pool is None:
            used = vfs + pools
            if pools > 63 or used >= 64:
                return None
            self.vm_mode = True
            if used < 32 and pools < 16:
                reserved = min(32 - used, 16 - pools)
            elif pools < 32:
                reserved = min(64 - used, 32 - pools)
            else:
                reserved = 64 - used
            if not reserved:
                return None
            self.limit += reserved
            pool = self._free(self._laid_out(vfs)[0])
        if pool is not None:
            self.bits.add(pool)
        return pool

    def _free(self, pools: int) -> int | None:
        return next((pool for pool in range(pools) if pool not in self.bits), None)

    def vfs_change(self, count: int) -> int:
        """ixgbe_pci_sriov_enable in ixgbe_sriov.c, without traffic classes."""
        return errno.EPERM if count > 64 - len(self.bits) else 0

    def give_back(self, pool: int) -> None:
        self.bits.discard(pool)

    def feature(self, on: bool, vfs: int) -> str:
        """ixgbe_set_features, ixgbe_reset_l2fw_offload: only with pools is anything laid out anew."""
        if not on and self._laid_out(vfs)[0] > 1:
            self.vm_mode, self.rss_limit, self.limit, self.bits = False, min(16, self.cpus), 1, {0}
        return ""

    def channels(self, vfs: int) -> tuple[int, int]:
        """ixgbe_max_channels, ixgbe_get_channels in ixgbe_ethtool.c."""
        _pools, rss, mask = self._laid_out(vfs)
        if self.vm_mode or vfs:
            return min(mask + 1, self.cpus), min(rss, self.cpus)
        return min(63, self.cpus), self.fdir_limit

    def set_channels(self, count: int, vfs: int) -> bool:
        if not 1 <= count <= self.channels(vfs)[0]:
            return False
        self.fdir_limit, self.rss_limit = count, min(count, 16)
        return True

    def classes(self, vfs: int, held: frozenset[int]) -> list[str | None]:
        pools, each, _mask = self._laid_out(vfs)
        if not (self.vm_mode or vfs):
            return ["0"] * self.fdir_limit
        return [("0" if pool == 0 else f"0-{pool}" if pool in held else None) for pool in range(pools) for _queue in range(each)]


class I40e(Card):
    """X710 and its like: without RDMA, one vector for the flow director, eight for VMDq of its own (num_vmdq_vsis)."""

    def __init__(self, cpus: int, in_card: int = 129) -> None:
        self.in_card = in_card
        super().__init__(cpus)

    def start(self) -> None:
        """i40e_determine_queue_usage, i40e_init_msix, i40e_vsi_setup_queue_map."""
        left = self.in_card - 1
        self.lan = min(self.cpus, left // 2)
        left -= self.lan + 1
        vmdq = min(left, 8)
        left -= vmdq
        extra = min(self.cpus - self.lan, left)
        self.lan += extra
        self.all_vectors = 1 + 1 + vmdq + self.lan
        self.most = min(max(min(64, 1 << (self.cpus - 1).bit_length()), self.cpus), self.in_card)
        self.pairs = self.lan
        self.count, self.each, self.base = 0, 0, 0
        self.bits: set[int] = set()
        #: Pools whose filters went with a reset of the port: their stations receive nothing.
        self.deaf: set[int] = set()
        self.stale, self.switch = False, False

    def vectors(self) -> int:
        return self.all_vectors

    def take(self, vfs: int) -> int | None:
        """i40e_fwd_add, i40e_setup_macvlans, i40e_fwd_ring_up in i40e_main.c."""
        if self.lan < 2:
            return None
        if not self.count:
            self._share_out()
        if not self.count:
            return None
        pool = next((bit for bit in range(1, self.count) if bit not in self.bits), self.count)
        # A channel for it, whose filter the card has to take.
        if pool in self.bits or pool >= 128 or self.stale:
            return None
        self.bits.add(pool)
        return pool

    def _share_out(self) -> None:
        vectors = self.lan
        if 64 < vectors <= 128:
            each, count = 4, (vectors - 32) // 4
        elif 32 < vectors <= 64:
            each, count = 2, (vectors - 16) // 2
        elif 16 < vectors <= 32:
            each, count = 1, vectors - 16
        elif 8 < vectors <= 16:
            each, count = 1, vectors - 8
        else:
            each, count = 1, vectors - 1
        if count and self.pairs - count * each <= 0:
            raise Crash("i40e_channel_config_tx_ring: NULL pointer dereference")
        self.count, self.each, self.base = count, each, self.pairs - count * each

    def give_back(self, pool: int) -> None:
        self.bits.discard(pool)
        self.deaf.discard(pool)

    def feature(self, on: bool, vfs: int) -> str:
        """i40e_set_features, i40e_del_all_macvlans: the channels stay."""
        if not on:
            self.bits.clear()
            self.deaf.clear()
        return ""

    def channels(self, vfs: int) -> tuple[int, int]:
        """i40e_get_channels in i40e_ethtool.c: num_queue_pairs, which channels do not change."""
        return self.most, self.pairs

    def set_channels(self, count: int, vfs: int) -> bool:
        """i40e_set_channels, i40e_reconfig_rss_queues."""
        if not 1 <= count <= self.most:
            return False
        count = min(count, self.cpus)
        if count != self.pairs:
            self.pairs = count
            self.reset()
        return True

    def vfs_change(self, count: int) -> int:
        """i40e_pci_sriov_configure in i40e_virtchnl_pf.c: with the first VFs the port becomes a switch (VEB) by a reset, and back with the last."""
        if bool(count) != self.switch:
            self.switch = bool(count)
            self.reset()
        return 0

    def reset(self) -> None:
        """i40e_reset_and_rebuild has no word of macvlans: what the card knew of their channels is gone."""
        self.deaf |= self.bits
        self.stale = bool(self.count)

    def classes(self, vfs: int, held: frozenset[int]) -> list[str | None]:
        found: list[str | None] = ["0"] * (self.base or self.pairs)
        for channel in range(1, self.count + 1):
            found += [f"0-{channel}" if channel in held else None] * self.each
        return found


class Ice(Card):
    """E810 with Intel's own driver: `queues` are left for stations."""

    def __init__(self, cpus: int, queues: int = 256) -> None:
        self.queues = queues
        self.switchdev = False
        super().__init__(cpus)

    def start(self) -> None:
        self.most, self.bits = 0, set()
        self.pairs = min(self.cpus, 64)

    def take(self, vfs: int) -> int | None:
        """ice_fwd_add_macvlan: ENOSPC when max_num_macvlan are there."""
        if len(self.bits) >= self.most:
            return None
        pool = next(number for number in range(1, self.most + 1) if number not in self.bits)
        self.bits.add(pool)
        return pool

    def give_back(self, pool: int) -> None:
        self.bits.discard(pool)

    def feature(self, on: bool, vfs: int) -> str:
        """ice_init_macvlan: min3(queues, queues, ICE_MAX_MACVLANS), and EOPNOTSUPP in switchdev mode; ice_deinit_macvlan."""
        if on and self.switchdev:
            return "netlink error: Operation not supported\n"
        self.most, self.bits = min(self.queues, 64) if on else 0, set()
        return ""

    def channels(self, vfs: int) -> tuple[int, int]:
        return self.cpus, self.pairs

    def set_channels(self, count: int, vfs: int) -> bool:
        self.pairs = count
        return True

    def classes(self, vfs: int, held: frozenset[int]) -> list[str | None]:
        return ["0"] * self.pairs + [f"0-{pool}" if pool in held else None for pool in range(1, self.most + 1)]
