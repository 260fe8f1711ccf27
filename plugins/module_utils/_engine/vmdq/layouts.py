# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How drivers lay their queues out for stations, as far as their source tells it. A driver that is in no table is simply not known.

No file and no command of the kernel tells how many pools a port has. Read in Linux 6.12.118 (Debian's linux-source-6.12), below
drivers/net/ethernet/intel, and for ice in Intel's own driver (github.com/intel/ethernet-linux-ice).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..plain import dataclass


@dataclass(frozen=True)
class Layout:
    """A layout: how many stations it has room for, and how many queues each of them and the port then have at most."""

    stations: int
    queues: int

    @property
    def name(self) -> str:
        return f"{self.stations}x{self.queues}"


@dataclass(frozen=True)
class Vmdq:
    """How a driver gives pools of queues to macvlans (ndo_dfwd_add_station)."""

    #: Number of VFs -> the layouts, in the order in which the driver goes from one to the next by itself when a station more is made. VFs
    #: draw on the same pools. None: they are not known, or they do not depend on VFs.
    beside_vfs: Callable[[int], tuple[Layout, ...]] | None = None
    #: Number of interrupt vectors of the port's own queues, as they were when the driver started -> the one layout.
    of_vectors: Callable[[int], Layout] | None = None
    #: More stations than this it never has.
    at_most: int | None = None
    #: The first station of a port has its link down for a moment.
    resets: bool = True
    #: A reset of the port (new numbers of queues, the first VF and the last) leaves its stations without a filter, while the kernel's files
    #: go on calling them offloaded.
    forgets: bool = False
    #: Linux's own driver of this name does not have it.
    out_of_tree: bool = False
    #: What the module parameter VMDQ can say of a port, where a driver has one.
    parameter: tuple[int, int] = (0, 64)


def _ixgbe(vfs: int) -> tuple[Layout, ...]:
    """ixgbe_fwd_add in ixgbe/ixgbe_main.c: 64 pools, of which the port has one and each VF one; more are reserved when a station finds
    none free. ixgbe_set_sriov_queues in ixgbe/ixgbe_lib.c: queues of each (MAX_TX_QUEUES, 64, for all pools that are not VFs')."""
    found = []
    pools = 1
    while pools + vfs < 64:
        used = pools + vfs
        if used < 32 and pools < 16:
            pools += min(32 - used, 16 - pools)
        elif pools < 32:
            pools += min(64 - used, 32 - pools)
        else:
            pools = 64 - vfs
        each = 64 // pools
        # Beyond 32 pools the card has two queues for each; below it four, two or one.
        queues = min(each, 2) if pools + vfs > 32 else 4 if each > 3 else 2 if each > 1 else 1
        found.append(Layout(pools - 1, queues))
    return tuple(found)


def _i40e(vectors: int) -> Layout:
    """i40e_fwd_add in i40e/i40e_main.c: with its first station a port gives a share of its queues away, which depends on the number of
    interrupt vectors that it got (num_lan_msix), and stays like that until the driver is loaded again."""
    if 64 < vectors <= 128:
        return Layout((vectors - 32) // 4, 4)
    if 32 < vectors <= 64:
        return Layout((vectors - 16) // 2, 2)
    if 16 < vectors <= 32:
        return Layout(vectors - 16, 1)
    if 8 < vectors <= 16:
        return Layout(vectors - 8, 1)
    return Layout(max(vectors - 1, 0), 1)


#: Driver -> what it can. fm10k: fm10k_dfwd_add_station in fm10k/fm10k_netdev.c, which binds no queues, so that no station of it can be
#: proven. ice: the feature is in Intel's own driver alone, ice_init_macvlan and ice_fwd_add_macvlan in its src/ice_main.c (64 or as many as queues
#: are left). igb and the parameter of ixgbe: igb_param.c and ixgbe_param.c of Intel's own drivers. vmdqsim is the lab's double.
VMDQ: Mapping[str, Vmdq] = {
    "fm10k": Vmdq(),
    "i40e": Vmdq(of_vectors=_i40e, forgets=True),
    "ice": Vmdq(at_most=64, out_of_tree=True),
    "ixgbe": Vmdq(beside_vfs=_ixgbe, parameter=(0, 16)),
    "vmdqsim": Vmdq(resets=False),
}

#: A driver that is in no table: whether it can, its feature says. The parameter is all that Intel's igb has.
VMDQ_UNKNOWN = Vmdq()
PARAMETER_ALONE: Mapping[str, Vmdq] = {"igb": Vmdq(parameter=(0, 8))}


def of_driver(name: str | None) -> Vmdq:
    return VMDQ.get(name or "") or PARAMETER_ALONE.get(name or "") or VMDQ_UNKNOWN


def too_few(driver: Vmdq, queues: int, most_vectors: int) -> bool:
    """Could a first station ask for more queues than the port has now? i40e_setup_macvlans reckons with the vectors of the driver's start, also
    when the port has fewer queues by now, and the kernel then reads beyond the end of the port's rings (a NULL pointer dereference under
    the lock of all network devices; "i40e: Fix kernel crash during macvlan offloading setup" on netdev, 24 November 2023, is not in 6.12.118).
    How many vectors there were nobody tells; not more than `most_vectors`."""
    if driver.of_vectors is None:
        return False
    layouts = [driver.of_vectors(vectors) for vectors in range(queues + 1, most_vectors + 1)]
    return any(layout.stations * layout.queues >= queues for layout in layouts)
