# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The seed of cloud-init: a CD with the label 'cidata' (https://docs.cloud-init.io, NoCloud), written by ourselves: no tool for it is
on every host.

The format is ECMA-119 (ISO 9660) with names in small letters, which Linux reads as they are (fs/isofs/dir.c, isofs_name_translate).
The same content gives the same bytes, so that a second run changes nothing.
"""

from __future__ import annotations

from ..host import Files
from .wish import Wish

FOLDER = "/var/lib/libvirt/images"
_SECTOR = 2048
_LABEL = "cidata"
#: No time of day: it would make each image another one. 1 January 2000, year since 1900 first.
_DATE = bytes((100, 1, 1, 0, 0, 0, 0))
_LONG_DATE = b"2000010100000000\0"
_NO_DATE = b"0" * 16 + b"\0"


def path_of(name: str) -> str:
    return f"{FOLDER}/{name}-seed.iso"


def image(wish: Wish) -> bytes:
    """The CD of a guest's declaration."""
    given = wish["seed"]
    meta = given.get("meta_data") or f"instance-id: {wish['name']}\nlocal-hostname: {wish['name']}\n"
    files = {"meta-data": meta, "user-data": given.get("user_data") or "#cloud-config\n"}
    if given.get("network_config"):
        files["network-config"] = given["network_config"]
    return iso({name: text.encode() for name, text in sorted(files.items())})


def is_there(files: Files, wish: Wish) -> bool:
    data, path = image(wish), path_of(str(wish["name"]))
    return files.size(path) == len(data) and files.data(path, 0, len(data)) == data


def iso(files: dict[str, bytes]) -> bytes:
    """An ISO 9660 image with these files in its root, by ECMA-119: 16 empty sectors, the volume descriptor and its end, both path tables, the root,
    the files."""
    root, first = 20, 21
    entries, contents, sector = [], b"", first
    for name, data in files.items():
        entries.append(_entry(sector, len(data), name.encode() + b";1"))
        contents += _padded(data)
        sector += len(_padded(data)) // _SECTOR
    here = _entry(root, _SECTOR, b"\0", folder=True) + _entry(root, _SECTOR, b"\1", folder=True)
    table = _path_tables(root)
    parts = [bytes(16 * _SECTOR), _volume(sector, root, len(table[0])), _padded(b"\xffCD001\x01")]
    return b"".join([*parts, *map(_padded, table), _padded(here + b"".join(entries)), contents])


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _SECTOR)


def _both(number: int, size: int) -> bytes:
    """ECMA-119 7.2.3 and 7.3.3: little and big endian."""
    return number.to_bytes(size, "little") + number.to_bytes(size, "big")


def _entry(sector: int, size: int, name: bytes, folder: bool = False) -> bytes:
    """A directory record (9.1)."""
    rest = b"\0" + _both(sector, 4) + _both(size, 4) + _DATE + bytes((2 if folder else 0, 0, 0)) + _both(1, 2)
    record = rest + bytes((len(name),)) + name
    record += bytes((len(record) + 1) % 2)
    return bytes((len(record) + 1,)) + record


def _path_tables(root: int) -> list[bytes]:
    """The root alone, little and big endian (9.4)."""
    return [b"\x01\x00" + root.to_bytes(4, order) + (1).to_bytes(2, order) + b"\0\0" for order in ("little", "big")]


def _volume(sectors: int, root: int, table: int) -> bytes:
    """The primary volume descriptor (8.4). Path tables are in sectors 18 and 19."""
    text = b"\x01CD001\x01\0" + b" " * 32 + _LABEL.encode().ljust(32) + bytes(8) + _both(sectors, 4) + bytes(32)
    text += _both(1, 2) + _both(1, 2) + _both(_SECTOR, 2) + _both(table, 4)
    text += (18).to_bytes(4, "little") + bytes(4) + (19).to_bytes(4, "big") + bytes(4)
    text += _entry(root, _SECTOR, b"\0", folder=True) + b" " * (4 * 128 + 3 * 37)
    return _padded(text + _LONG_DATE + _LONG_DATE + _NO_DATE + _NO_DATE + b"\x01\0")
