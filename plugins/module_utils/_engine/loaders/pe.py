# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sections of an EFI program (PE/COFF), read without a tool: a unified kernel image and its addons carry their command
line in one (UAPI.5 Unified Kernel Image)."""

from __future__ import annotations

import struct

from .. import cmdline
from ..host import Files

#: A command line, a version, an os-release: none of them is larger.
LIMIT = 65536


def sections(files: Files, path: str) -> dict[str, str] | None:
    """The text of the sections .cmdline, .uname and .osrel; None when the file is no PE file, or a damaged one."""
    start = files.data(path, 0, 0x40)
    if len(start) < 0x40 or start[:2] != b"MZ":
        return None
    offset = struct.unpack_from("<I", start, 0x3C)[0]
    head = files.data(path, offset, 24)
    if len(head) < 24 or head[:4] != b"PE\0\0":
        return None
    count, optional = struct.unpack_from("<H", head, 6)[0], struct.unpack_from("<H", head, 20)[0]
    table = files.data(path, offset + 24 + optional, 40 * count)
    found = {}
    for number in range(len(table) // 40):
        name, virtual, _address, raw, pointer = struct.unpack_from("<8sIIII", table, 40 * number)
        key = name.rstrip(b"\0").decode("ascii", "replace")
        if key in (".cmdline", ".uname", ".osrel") and min(virtual, raw) <= LIMIT:
            data = files.data(path, pointer, min(virtual, raw))
            found[key] = data.rstrip(b"\0").decode("utf-8", "replace").strip()
    return found


def words(files: Files, path: str) -> tuple[str, ...]:
    """The command line that an image or an addon carries."""
    return tuple(cmdline.split((sections(files, path) or {}).get(".cmdline", "")))
