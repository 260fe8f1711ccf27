# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a device is found: a function is named by its address on its bus, and the names of no two buses are alike."""

from __future__ import annotations

import re

PCI = "pci"
#: Subchannels of s390x (css_sch_device_register, drivers/s390/cio/css.c).
CSS = "css"
#: Parents of mediated devices that are on none of the buses here; their names are those in /sys/class/mdev_bus.
MDEV = "mdev"
#: What is found by its name alone, not by a pattern that was meant for addresses.
BY_NAME = (CSS, MDEV)

_SUBCHANNEL = re.compile(r"[0-9a-f]\.[0-9a-f]\.[0-9a-f]{4}")

#: Buses other than PCI whose devices can have VFs -> how a device is called there.
#: netdevsim: nsim_bus in drivers/net/netdevsim/bus.c.
OTHER_BUSES = {"netdevsim": re.compile(r"netdevsim\d+")}


def bus_of(address: str) -> str:
    """'pci' for '0000:81:00.0', 'netdevsim' for 'netdevsim1', 'css' for '0.0.0313', 'mdev' for 'mtty'."""
    if _SUBCHANNEL.fullmatch(address):
        return CSS
    # A VF with a name of ours ('netdevsim1/0') is on no bus of its own.
    other = PCI if not address or ":" in address or "/" in address else MDEV
    return next((bus for bus, name in OTHER_BUSES.items() if name.fullmatch(address)), other)


def device(address: str) -> str:
    """The folder of a device in /sys."""
    if bus_of(address) == MDEV:
        return f"/sys/class/mdev_bus/{address}"
    return f"/sys/bus/{bus_of(address)}/devices/{address}"


def devlink(address: str) -> str:
    """What devlink calls it: BUS_NAME/BUS_ADDRESS (devlink-dev(8))."""
    return f"{bus_of(address)}/{address}"


def is_name_of_ours(address: str) -> bool:
    """Is it the name that we gave to a VF which is no function of its own ('netdevsim1/0')?"""
    return "/" in address
