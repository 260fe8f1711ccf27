# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which functions show the console of the host, beyond what boot_vga says."""

from __future__ import annotations

import re

from .host import Files
from .read import ADDRESS


def read(files: Files) -> dict[str, str]:
    """PCI address -> how it is known to be the console."""
    return {**_framebuffer(files), **_serial(files)}


def _framebuffer(files: Files) -> dict[str, str]:
    """The frame buffer console is drawn on the first frame buffer (fbcon maps all consoles to it unless told
    otherwise), whoever drives it: simpledrm and efifb hang below the function of the screen as well, where the kernel
    knows it (drivers/firmware/sysfb.c, from Linux 6.9 on)."""
    consoles = "/sys/class/vtconsole"
    names = [name for name in files.names(consoles) if files.attr(f"{consoles}/{name}/bind") == "1"]
    buffers = [name for name in files.names("/sys/class/graphics") if re.fullmatch(r"fb\d+", name)]
    if not buffers or not any("frame buffer" in (files.attr(f"{consoles}/{name}/name") or "") for name in names):
        return {}
    first = min(buffers, key=lambda name: int(name[2:]))
    addresses = ADDRESS.findall(files.resolve(f"/sys/class/graphics/{first}"))
    return dict.fromkeys(addresses[-1:], f"the console is drawn on its frame buffer {first}")


def _serial(files: Files) -> dict[str, str]:
    """The kernel's serial consoles that sit on a PCI card."""
    found = {}
    for name in (files.attr("/sys/class/tty/console/active") or "").split():
        for address in ADDRESS.findall(files.resolve(f"/sys/class/tty/{name}"))[-1:]:
            found[address] = f"the serial console {name} is on it"
    return found
