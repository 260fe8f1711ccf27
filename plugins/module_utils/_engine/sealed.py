# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Volumes whose key is sealed in a TPM to what the boot measures: another kernel command line, and nobody is there to
type the recovery key.

Which PCRs change is said by UAPI.7 (Linux TPM PCR Registry): GRUB measures its commands and the command line into 8 and
the files that it reads into 9; the kernel's EFI stub measures the command line into 9; systemd-boot into 12 and, of old,
8; systemd-stub an image's own sections into 11 and addons into 12; and an image made anew is another program, PCR 4.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from .host import Host
from .model import Refusal

_MEASURED: Mapping[str, frozenset[int]] = {
    "grub": frozenset({8, 9}),
    "grub-bls": frozenset({8, 9}),
    "systemd-boot": frozenset({8, 9, 12}),
    "uki": frozenset({4, 9, 11, 12}),
}
#: Of a loader that is not in the table nothing is known, so everything that a command line can reach counts.
_ANY = frozenset({4, 8, 9, 11, 12})


def refusals(host: Host, loader: str, allow: Collection[str]) -> list[Refusal]:
    """What stands against another command line: open volumes that the TPM opens by what the loader measures. Costs a
    process for each encrypted volume, so it is asked only when something is to be changed."""
    if "sealed_disk" in allow:
        return []
    measured = _MEASURED.get(loader, _ANY)
    found = []
    for volume, device in _volumes(host):
        pcrs = sorted(measured & _sealed_to(host, device))
        if pcrs:
            found.append(_refusal(volume, device, pcrs))
    return found


def _refusal(volume: str, device: str, pcrs: list[int]) -> Refusal:
    reason = (
        f"the key of {volume} is sealed in the TPM to PCR {', '.join(map(str, pcrs))}, which another command line changes: "
        "it would not open at the next boot."
    )
    way_out = (
        "Have the recovery key at hand and seal it anew after the reboot (systemd-cryptenroll, clevis). Nothing was "
        "changed. Where this is meant, allow it by name: allow: [sealed_disk]."
    )
    return Refusal(device, reason, way_out, "sealed_disk")


def _volumes(host: Host) -> Iterator[tuple[str, str]]:
    """Open LUKS2 volumes and the device below each (Documentation/ABI/testing/sysfs-block-dm)."""
    for name in host.files.names("/sys/class/block"):
        if (host.files.attr(f"/sys/class/block/{name}/dm/uuid") or "").startswith("CRYPT-LUKS2-"):
            for below in host.files.names(f"/sys/class/block/{name}/slaves"):
                yield host.files.attr(f"/sys/class/block/{name}/dm/name") or name, f"/dev/{below}"


def _sealed_to(host: Host, device: str) -> set[int]:
    code, out, _err = host.run(["cryptsetup", "luksDump", "--dump-json-metadata", device])
    if code:
        # An old cryptsetup, or none: what cannot be read is taken for the worst.
        return set(_ANY) if _tpm_is_named(host) else set()
    try:
        tokens = json.loads(out).get("tokens", {}).values()
    except (ValueError, AttributeError):
        return set()
    return {pcr for token in tokens for pcr in _pcrs(token)}


def _pcrs(token: Mapping[str, Any]) -> set[int]:
    """Of a token of systemd-cryptenroll, or of clevis, which names its PCRs in the protected part of a JWE."""
    if token.get("type") == "systemd-tpm2":
        return {int(pcr) for pcr in token.get("tpm2-pcrs") or ()}
    if token.get("type") == "clevis" and "tpm2" in json.dumps(token):
        return {int(pcr) for pcr in re.findall(r"\d+", str((token.get("jwe") or {}).get("pcr_ids", "8,9")))}
    return set()


def _tpm_is_named(host: Host) -> bool:
    return "tpm2" in (host.files.text("/etc/crypttab") or "") + (host.files.text("/proc/cmdline") or "")
