# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""MSI-X vectors that a PF's driver shares out among its VFs.

Synthetic: no such card was seen. Answers and their order are those of sriov_vf_msix_count_store (drivers/pci/iov.c), limits those of
mlx5_set_msix_vec_count (mlx5/core/pci_irq.c), Linux 6.12; a pool that is used up answers as ice does (ice_sriov_set_msix_vec_count).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .sim import Pci, SimKernel

#: What a new VF has, and the least and the most that one can have.
DEFAULT, LEAST, MOST = 4, 2, 32


def set_count(sim: SimKernel, vf: Pci, data: str) -> int:
    try:
        count = int(data.strip(), 0)
    except ValueError:
        return errno.EINVAL
    pf = sim.functions[vf.physfn or ""]
    if count < 0:
        return errno.EINVAL
    if pf.driver is None or not pf.msix:
        return errno.EOPNOTSUPP
    if vf.driver is not None:
        return errno.EBUSY
    count = count or DEFAULT
    if count < LEAST:
        return errno.EINVAL
    if count > MOST:
        return errno.EOVERFLOW
    if sum(sim.functions[other].msix for other in pf.vfs if other != vf.address) + count > pf.msix:
        return errno.ENOSPC
    vf.msix = count
    return 0


def config(count: int) -> bytes:
    """Configuration space with capabilities of power management and, behind it, MSI-X (linux/pci_regs.h)."""
    space = bytearray(256)
    space[0x06], space[0x34] = 0x10, 0x40
    space[0x40], space[0x41] = 0x01, 0x70
    space[0x70] = 0x11
    space[0x72:0x74] = (0x8000 | (count - 1)).to_bytes(2, "little")
    return bytes(space)
