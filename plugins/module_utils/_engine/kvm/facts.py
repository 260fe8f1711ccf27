# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What only kvm_info tells: whether /dev/kvm runs anything, what virt-host-validate says, which firmware guests can have."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from ..host import Files, Host

DEVICE = "/dev/kvm"
#: Seconds for a VM with one instruction.
LIMIT = 20.0
#: Where firmware.json(5) of QEMU's docs/interop has its descriptors, the first of one name wins.
DESCRIPTORS = ("/etc/qemu/firmware", "/usr/share/qemu/firmware")
_SWTPM = ("/usr/bin/swtpm", "/usr/local/bin/swtpm")
_LINE = re.compile(r"^\s*(\w+)\s*:\s*Checking (?:for |if )?(.*?)\s*:\s*(PASS|WARN|FAIL|NOTE)\s*(?:\((.*)\))?\s*$")


def proof(host: Host) -> dict[str, Any]:
    """Does /dev/kvm make a VM, and does that run an instruction? With the reason in a sentence."""
    if not host.files.exists(DEVICE):
        return {"usable": False, "reason": f"There is no {DEVICE}: the KVM module is not loaded, or there is no KVM here."}
    answer = host.files.ask_kvm(DEVICE, LIMIT)
    if answer is None:
        return {"usable": False, "reason": f"A VM with one instruction has not come back within {LIMIT:g} s."}
    if answer["step"] is None:
        ran = " and ran an instruction in it" if answer["ran"] else ""
        return {"usable": True, "reason": f"{DEVICE} made a VM{ran}."}
    return {"usable": False, "reason": _why(answer)}


def _why(answer: Mapping[str, Any]) -> str:
    number, step = answer["errno"], answer["step"]
    if number is None:
        if step == "KVM_GET_API_VERSION":
            return f"{DEVICE} has version {answer['api']} of the API, and 12 is the only one in use."
        return f"{DEVICE} made a VM, but it did not run one instruction. Look for kvm in the kernel log."
    said = f"{errno.errorcode.get(number, number)} ({os.strerror(number)})"
    hint = {
        errno.ENODEV: " The module is there and the processor is not: see host_info's techniques.",
        errno.EACCES: " Run it as root.",
        errno.EBUSY: " Another hypervisor (VirtualBox, VMware) has the processor's virtualization.",
        errno.ENOTTY: " It is not KVM's.",
    }.get(number, " Look for kvm in the kernel log.")
    return f"{DEVICE}: {step} answers {said}.{hint}"


def validate(host: Host) -> list[dict[str, str | None]] | None:
    """virt-host-validate(1) as data; None where it is not installed. Its exit status says no more than its lines."""
    code, out, _err = host.run(["timeout", "60", "virt-host-validate", "qemu"])
    if code == 127:
        return None
    lines = [_LINE.match(line) for line in out.splitlines()]
    return [
        {"driver": m.group(1).lower(), "check": m.group(2), "result": m.group(3).lower(), "message": m.group(4)} for m in lines if m
    ]


def firmware(files: Files) -> list[dict[str, Any]]:
    """QEMU's descriptors of guest firmware, in short."""
    found: dict[str, dict[str, Any]] = {}
    for folder in DESCRIPTORS:
        for name in files.names(folder):
            if name.endswith(".json") and name not in found:
                entry = _descriptor(files.text(f"{folder}/{name}") or "")
                # An empty one takes away what stands below it.
                found[name] = {"descriptor": f"{folder}/{name}", **entry} if entry else {}
    return [entry for _name, entry in sorted(found.items()) if entry]


def _descriptor(text: str) -> dict[str, Any] | None:
    try:
        said = json.loads(text)
        features = said.get("features", [])
        mapping = said.get("mapping", {})
        return {
            "description": said.get("description"),
            "uefi": "uefi" in said.get("interface-types", []),
            "secure_boot": "secure-boot" in features,
            "enrolled_keys": "enrolled-keys" in features,
            "architectures": sorted({target["architecture"] for target in said.get("targets", [])}),
            "file": (mapping.get("executable") or {}).get("filename") or mapping.get("filename"),
        }
    except (ValueError, AttributeError, KeyError, TypeError):
        return None


def tpm(files: Files) -> dict[str, Any]:
    """A TPM for guests: emulated by swtpm, or the host's own passed through."""
    return {
        "emulator": next((path for path in _SWTPM if files.exists(path)), None),
        "host": next((f"/dev/{name}" for name in ("tpmrm0", "tpm0") if files.exists(f"/dev/{name}")), None),
    }
