# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What NVIDIA's driver says of a GPU, and of the vGPUs on its VFs.

NVIDIA vGPU Software User Guide, "Creating an NVIDIA vGPU on a Linux with KVM Hypervisor that uses a vendor-specific VFIO framework"; NVIDIA
Multi-Instance GPU User Guide, "Getting Started with MIG", for the tables of `nvidia-smi mig`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from .. import sysfs
from ..host import Files, Host
from ..mdev import facts as mdev

#: A line of creatable_vgpu_types: '1155  : NVIDIA L40S-24Q'.
_CREATABLE = re.compile(r"(\d+)\s*:\s*(\S.*)")
_FIELD = re.compile(r"(\s*)(\S[^:]*?)\s*:\s*(.*)")
#: '|   0  MIG 1g.5gb        19        1          0:1     |' (-lgi), '|   0  MIG 1g.5gb     19     7/7        4.75 ...' (-lgip).
_INSTANCE = re.compile(r"\|\s*\d+\s+MIG\s+(\S+)\s+(\d+)\s+(\d+)\s+(\d+):(\d+)\s*\|")
_PROFILE = re.compile(r"\|\s*\d+\s+MIG\s+(\S+)\s+(\d+)\s+(\d+)/(\d+)\s")

#: Seconds for NVIDIA's manager to name its types, which it does once it runs.
TYPES_LIMIT = 10.0

#: The driver's own account of each GPU (docs.nvidia.com, README of the Linux driver, "The /proc interface").
INFORMATION = "/proc/driver/nvidia/gpus"


def read(host: Host, pf: str, vfs: Mapping[int, str]) -> dict[str, Any]:
    """Two processes for a GPU that a wish names: what it is and in which mode, and which types it knows. Two more where it is in MIG mode."""
    code, out, err = host.run(["nvidia-smi", "-q", "-i", pf])
    said = _fields(out) if code == 0 else {}
    types = _types(host, pf) if said else {}
    virtualization = said.get("GPU Virtualization Mode/Virtualization Mode", "")
    if not types and virtualization == "Host VGPU":
        # Its manager comes some time after the driver.
        host.wait(lambda: bool(types.update(_types(host, pf)) or types), TYPES_LIMIT)
    return {
        "error": "" if said else (err or out).strip() or str(code),
        "uuid": said.get("GPU UUID", ""),
        "serial": _known(said.get("Serial Number", "")),
        "architecture": said.get("Product Architecture", ""),
        "mode": said.get("GPU Virtualization Mode/Host VGPU Mode", ""),
        "virtualization": virtualization,
        # Enabled: vGPUs of several sizes beside each other.
        "sizes": _known(said.get("GPU Virtualization Mode/vGPU Heterogeneous Mode", "")),
        "display": said.get("Display Attached", said.get("Display Active", "")),
        "types": types,
        "mig": _mig(host, pf, said),
        "processes": _processes(out) if said else [],
        "vfs": {index: vf(host.files, address) for index, address in vfs.items()},
    }


def vf(files: Files, address: str) -> dict[str, Any]:
    """The type that a VF has (0: none), and those that it could have now. `ready`: the driver has made the files. `instance`: the GPU instance
    of MIG that its vGPU has."""
    folder = f"{sysfs.device(address)}/nvidia"
    current = files.attr(f"{folder}/current_vgpu_type")
    lines = (files.attr(f"{folder}/creatable_vgpu_types") or "").splitlines()
    instance = files.attr(f"{folder}/gpu_instance_id") or ""
    return {
        "address": address,
        "ready": current is not None,
        "current": int(current) if current and current.isdigit() else 0,
        "creatable": [int(found.group(1)) for line in lines if (found := _CREATABLE.fullmatch(line.strip()))],
        "instance": int(instance) if instance.isdigit() else None,
    }


def uuids(files: Files) -> dict[str, str]:
    """PCI address -> UUID of each GPU that NVIDIA's driver has. Files only."""
    texts = {address: files.attr(f"{INFORMATION}/{address}/information") or "" for address in files.names(INFORMATION)}
    found = {address: re.search(r"^GPU UUID:\s*(\S+)", text, flags=re.M) for address, text in texts.items()}
    return {address.lower(): uuid.group(1) for address, uuid in found.items() if uuid}


def serials(host: Host) -> dict[str, str]:
    """PCI address -> serial number of each GPU that has one; one process."""
    code, out, _err = host.run(["nvidia-smi", "--query-gpu=pci.bus_id,serial", "--format=csv,noheader"])
    rows = [[cell.strip() for cell in line.split(",")] for line in out.splitlines()] if code == 0 else []
    return {address_of(row[0]): row[1] for row in rows if len(row) == 2 and _known(row[1])}


def address_of(bus_id: str) -> str:
    """nvidia-smi says 00000000:3B:00.0, sysfs 0000:3b:00.0."""
    domain, _colon, rest = bus_id.lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}" if re.fullmatch(r"[0-9a-f]+", domain) else bus_id


def _known(text: str) -> str:
    """N/A, [N/A], [Not Supported], 0 for a serial number: none."""
    return "" if text in ("0", "N/A") or text.startswith("[") else text


def _fields(text: str) -> dict[str, str]:
    """The fields of one GPU: 'FIELD', or 'SECTION/FIELD'. Of several of one name the first."""
    found: dict[str, str] = {}
    section = ""
    for line in text.splitlines():
        field = _FIELD.fullmatch(line)
        depth = len(line) - len(line.lstrip())
        if depth <= 4 and (field is None or not field.group(3)):
            section = line.strip() if field is None else field.group(2)
        elif field:
            found.setdefault(f"{section}/{field.group(2)}" if depth > 4 else field.group(2), field.group(3))
    return found


def _types(host: Host, pf: str) -> dict[int, dict[str, Any]]:
    code, out, _err = host.run(["nvidia-smi", "vgpu", "-s", "-v", "-i", pf])
    return _parsed_types(out) if code == 0 else {}


def _parsed_types(text: str) -> dict[int, dict[str, Any]]:
    """Id -> name, framebuffer in MiB and the number of instances of this type alone. MIG-backed ones need a GPU instance of a profile, which takes
    `per_instance` of them."""
    found = {}
    for part in re.split(r"^\s*vGPU Type ID\s*:\s*", text, flags=re.M)[1:]:
        said, _line, rest = part.partition("\n")
        number = _number(said)
        if number is None:
            continue
        fields = {match.group(2): match.group(3) for line in reversed(rest.splitlines()) if (match := _FIELD.fullmatch(line))}
        profile = fields.get("GPU Instance Profile ID", "N/A")
        found[number] = {
            "name": fields.get("Name", ""),
            "memory": _leading(fields.get("FB Memory", "")),
            "most": _leading(fields.get("Max Instances", "")),
            "mig": profile != "N/A",
            "profile": _leading(profile) if profile != "N/A" else None,
            "per_instance": _leading(fields.get("Max Instances Per GI", "")) or 1,
        }
    return found


def _number(text: str) -> int | None:
    """'0x483', '1155', '0011', '1155 (0x483)'. None: 'N/A', or whatever else is no number."""
    found = re.match(r"\s*(?:0x([0-9a-f]+)|([0-9]+))(?!\w)", text, flags=re.I)
    if not found:
        return None
    return int(found.group(1), 16) if found.group(1) else int(found.group(2))


def _leading(text: str) -> int:
    found = re.match(r"\d+", text)
    return int(found.group()) if found else 0


# --- MIG -----------------------------------------------------------------------------------------------------------


def _mig(host: Host, pf: str, said: Mapping[str, str]) -> dict[str, Any]:
    """Mode of now and of the next reset ('' where the GPU knows no MIG), the GPU instances, and what could be made."""
    current, pending = (_known(said.get(f"MIG Mode/{key}", "")) for key in ("Current", "Pending"))
    on = current == "Enabled"
    return {
        "current": current,
        "pending": pending,
        "instances": instances(host, pf) if on else {},
        "profiles": _profiles(host, pf) if on else {},
    }


def instances(host: Host, pf: str) -> dict[int, dict[str, Any]]:
    """GPU instance -> its profile and where it lies. None at all is an error to nvidia-smi, so its status says nothing."""
    _code, out, _err = host.run(["nvidia-smi", "mig", "-lgi", "-i", pf])
    found = [row.groups() for line in out.splitlines() if (row := _INSTANCE.search(line))]
    return {int(id_): {"profile": name, "start": int(start), "size": int(size)} for name, _number, id_, start, size in found}


def _profiles(host: Host, pf: str) -> dict[str, dict[str, int]]:
    """Profile -> its id, and how many could be made now and of an empty GPU."""
    _code, out, _err = host.run(["nvidia-smi", "mig", "-lgip", "-i", pf])
    found = [row.groups() for line in out.splitlines() if (row := _PROFILE.search(line))]
    return {name: {"id": int(id_), "free": int(free), "total": int(total)} for name, id_, free, total in found}


def mode(host: Host, pf: str) -> tuple[str, str]:
    """The mode of MIG now, and from the next reset on."""
    code, out, _err = host.run(["nvidia-smi", "-q", "-i", pf])
    said = _fields(out) if code == 0 else {}
    return said.get("MIG Mode/Current", ""), said.get("MIG Mode/Pending", "")


def processes(host: Host, pf: str) -> list[dict[str, Any]] | None:
    """Who computes or draws on a GPU now; None: nvidia-smi does not tell."""
    code, out, _err = host.run(["nvidia-smi", "-q", "-i", pf])
    return _processes(out) if code == 0 else None


def _processes(text: str) -> list[dict[str, Any]]:
    """The section 'Processes' of nvidia-smi -q. `instance`: the GPU instance of MIG."""
    return list(_each_process(re.split(r"^    Processes\b", text, maxsplit=1, flags=re.M)[-1])) if "    Processes" in text else []


def _each_process(text: str) -> Iterator[dict[str, Any]]:
    instance: int | None = None
    for part in re.split(r"^(?=\s+(?:GPU instance ID|Process ID)\s*:)", text, flags=re.M):
        fields = {match.group(2): match.group(3) for line in part.splitlines() if (match := _FIELD.fullmatch(line))}
        if "GPU instance ID" in fields:
            said = fields["GPU instance ID"]
            instance = int(said) if said.isdigit() else None
        if "Process ID" in fields:
            yield {"pid": fields["Process ID"], "type": fields.get("Type", ""), "name": fields.get("Name", ""), "instance": instance}


# --- The older framework -------------------------------------------------------------------------------------------


def parents(files: Files, pf: str, vfs: Mapping[int, str]) -> list[str]:
    """Of a GPU and its VFs those that are parents of mediated devices."""
    return [address for address in (pf, *vfs.values()) if files.exists(f"{mdev.PARENTS}/{address}")]


def without_vfs(host: Host, pf: str) -> bool:
    """Does the driver call itself one for hosts of vGPUs, and make no VFs for them? One process."""
    code, out, _err = host.run(["nvidia-smi", "-q", "-i", pf])
    said = _fields(out) if code == 0 else {}
    modes = [said.get(f"GPU Virtualization Mode/{key}", "") for key in ("Virtualization Mode", "Host VGPU Mode")]
    return modes == ["Host VGPU", "Non SR-IOV"]


def uuid_of(machine_id: str, wish: Mapping[str, Any], key: int) -> str:
    """The UUID of the mediated device that is vGPU `key` of a recorded wish: that of somebody else's that was declared as it was, else one that is the
    same in each run."""
    from ..resources.mdev import derived

    given: str | None = wish.get("mdevs", {}).get(str(key))
    return given or derived(machine_id, f"{wish['named_after']} vGPU", key)


def mdevs_of(machine_id: str, entry: Mapping[str, Any] | None) -> dict[int, str]:
    """Number of a vGPU -> the UUID that it has as a mediated device, of all that are recorded for a GPU. In the framework of VFIO it has none."""
    wish: Mapping[str, Any] = entry["wish"] if entry else {"vgpus": {}}
    return {int(key): uuid_of(machine_id, wish, int(key)) for key in wish["vgpus"]}
