# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How many MSI-X vectors a function has, from its configuration space: sriov_vf_msix_count can only be written
(Documentation/ABI/testing/sysfs-bus-pci), and what is written shows up as the Table Size of the VF's MSI-X capability."""

from __future__ import annotations

from . import sysfs
from .host import Files

#: The most that a Table Size can say (PCI Local Bus Specification 3.0, 6.8.2: eleven bits, less one).
MOST = 2048

#: Offsets in configuration space, and the number of the capability (linux/pci_regs.h).
_STATUS, _CAPABILITIES, _MSIX = 0x06, 0x34, 0x11
_HAS_CAPABILITIES = 0x10
#: Bytes of the configuration space of conventional PCI, which holds all these capabilities.
_SIZE = 256


def table_size(files: Files, address: str) -> int | None:
    """The number of MSI-X vectors of a function; None where it has no such capability, or it cannot be read."""
    config = files.data(f"{sysfs.device(address)}/config", 0, _SIZE)
    if len(config) <= _CAPABILITIES or not config[_STATUS] & _HAS_CAPABILITIES:
        return None
    seen: set[int] = set()
    at = config[_CAPABILITIES] & ~3
    while at and at not in seen and at + 4 <= len(config):
        if config[at] == _MSIX:
            return (int.from_bytes(config[at + 2 : at + 4], "little") & 0x7FF) + 1
        seen.add(at)
        at = config[at + 1] & ~3
    return None
