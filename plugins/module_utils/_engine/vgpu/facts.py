# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What NVIDIA's host driver says of a GPU, and of the vGPUs on its VFs.

NVIDIA vGPU Software User Guide, "Creating an NVIDIA vGPU on a Linux with KVM Hypervisor that uses a vendor-specific VFIO framework".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .. import sysfs
from ..host import Files, Host
from ..mdev import facts as mdev

#: A line of creatable_vgpu_types: '1155  : NVIDIA L40S-24Q'.
_CREATABLE = re.compile(r"(\d+)\s*:\s*(\S.*)")
_FIELD = re.compile(r"\s*(\S[^:]*?)\s*:\s*(.*)")


def read(host: Host, pf: str, vfs: Mapping[int, str]) -> dict[str, Any]:
    """Two processes for a GPU that a wish names: what mode it is in, and which types it knows."""
    code, out, err = host.run(["nvidia-smi", "-q", "-i", pf])
    said = _fields(out) if code == 0 else {}
    code_of_types, types, _err = host.run(["nvidia-smi", "vgpu", "-s", "-v", "-i", pf]) if said else (1, "", "")
    return {
        "error": "" if said else (err or out).strip() or str(code),
        "mode": said.get("Host VGPU Mode", ""),
        "virtualization": said.get("Virtualization Mode", ""),
        "display": said.get("Display Attached", said.get("Display Active", "")),
        "types": _types(types) if code_of_types == 0 else {},
        "mediated": any(host.files.exists(f"{mdev.PARENTS}/{address}") for address in (pf, *vfs.values())),
        "vfs": {index: vf(host.files, address) for index, address in vfs.items()},
    }


def vf(files: Files, address: str) -> dict[str, Any]:
    """The type that a VF has (0: none), and those that it could have now. `ready`: the driver has made the files."""
    folder = f"{sysfs.device(address)}/nvidia"
    current = files.attr(f"{folder}/current_vgpu_type")
    lines = (files.attr(f"{folder}/creatable_vgpu_types") or "").splitlines()
    return {
        "address": address,
        "ready": current is not None,
        "current": int(current) if current and current.isdigit() else 0,
        "creatable": [int(found.group(1)) for line in lines if (found := _CREATABLE.fullmatch(line.strip()))],
    }


def _fields(text: str) -> dict[str, str]:
    """The fields of one GPU: of several of one name the first, as there are those of the GPU itself."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        field = _FIELD.fullmatch(line)
        if field:
            found.setdefault(field.group(1), field.group(2))
    return found


def _types(text: str) -> dict[int, dict[str, Any]]:
    """Id -> name, framebuffer in MiB and the number of instances of this type alone."""
    found = {}
    for part in re.split(r"^\s*vGPU Type ID\s*:\s*", text, flags=re.M)[1:]:
        number, _line, rest = part.partition("\n")
        fields = _fields(rest)
        found[int(number.strip(), 0)] = {
            "name": fields.get("Name", ""),
            "memory": _leading(fields.get("FB Memory", "")),
            "most": _leading(fields.get("Max Instances", "")),
            # MIG-backed: it needs a GPU instance of this profile.
            "mig": fields.get("GPU Instance Profile ID", "N/A") != "N/A",
        }
    return found


def _leading(text: str) -> int:
    found = re.match(r"\d+", text)
    return int(found.group()) if found else 0
