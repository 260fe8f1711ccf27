# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What host_info and vgpu_info say of a machine's NVIDIA GPUs, against nvidia-smi and the PCI configuration space.

usage: python3 tests/hardware/nvidia.py [--require] [--root DIR]

Reads only: the engine gets a file system that refuses every write, and a runner that starts only commands that ask. The other
side is read here anew, by other ways than the engine takes: bytes of the configuration space (PCI Express Base Specification,
7.5.1 and 9.3.3), and nvidia-smi's comma-separated and XML output, of which the engine reads neither.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "plugins" / "module_utils"))

# After the line above, by which Python finds the engine without Ansible.
from _engine import engine, host_info  # noqa: E402
from _engine.errors import EngineError  # noqa: E402
from _engine.host import FileSystem, Host  # noqa: E402

VENDOR = 0x10DE
NOT_RUN = "not run: this machine has no NVIDIA GPU, so nothing was checked."


class Fact(NamedTuple):
    """One thing that both sides speak of. `theirs` is None where the other side says nothing."""

    device: str
    name: str
    ours: Any
    other: str
    theirs: Any


# --- Reading only --------------------------------------------------------------------------------------------------


class ReadOnly(FileSystem):
    """The engine's file system without a way to change anything."""

    def _refuse(self, *_arguments: Any, **_more: Any) -> Any:
        raise AssertionError("this check changes nothing, and the engine tried to")

    write = write_together = replace = replace_data = copy = remove = symlink = lock = _refuse  # type: ignore[assignment]
    offer_together = replace_for_loader = kept_for_loader = put_in_place = _refuse  # type: ignore[assignment]


#: Command -> what its arguments have to be.
ASKING = {
    "ip": re.compile(r"-j -d .*show.*|-j .*show.*"),
    "nvidia-smi": re.compile(r"-q( -x)?( -i \S+)?|vgpu -s -v -i \S+|mig -lgip? -i \S+|--query-gpu=\S+ --format=csv,noheader"),
    "modinfo": re.compile(r".*"),
    "devlink": re.compile(r"-j .*show.*"),
    "ethtool": re.compile(r"-[kl] \S+"),
    "bridge": re.compile(r"-j .*show.*"),
}


def ask(argv: Sequence[str], data: str = "") -> tuple[int, str, str]:
    """Start a command that only asks."""
    allowed = ASKING.get(argv[0])
    if allowed is None or data or not allowed.fullmatch(" ".join(argv[1:])):
        raise AssertionError(f"this check changes nothing, and the engine would start: {' '.join(argv)}")
    try:
        environment = {**os.environ, "LC_ALL": "C"}
        done = subprocess.run(list(argv), capture_output=True, text=True, errors="replace", check=False, env=environment)
    except OSError as error:
        return 127, "", f"{argv[0]}: {error.strerror}"
    return done.returncode, done.stdout, done.stderr


# --- The configuration space ---------------------------------------------------------------------------------------


def spaces(root: str) -> dict[str, bytes]:
    """Address -> configuration space of each whole function of NVIDIA that is a display controller. A VF shows ffff for a vendor."""
    found = {}
    folder = Path(root, "sys/bus/pci/devices")
    for device in sorted(folder.iterdir()) if folder.is_dir() else []:
        try:
            space = (device / "config").read_bytes()
        except OSError:
            continue
        if len(space) >= 64 and _word(space, 0x00) == VENDOR and space[0x0B] == 0x03:
            found[device.name] = space
    return found


def _word(space: bytes, offset: int) -> int:
    return int.from_bytes(space[offset : offset + 2], "little")


def header(space: bytes) -> dict[str, str]:
    """What a function is, in the words of host_info."""
    return {
        "vendor": f"{_word(space, 0x00):04x}",
        "device": f"{_word(space, 0x02):04x}",
        "subsystem": f"{_word(space, 0x2C):04x}:{_word(space, 0x2E):04x}",
        "class": f"{space[0x0B]:02x}{space[0x0A]:02x}{space[0x09]:02x}",
    }


def sriov(space: bytes) -> dict[str, Any] | None:
    """The SR-IOV extended capability (0010h), found along the list that begins at 100h."""
    offset, seen = 0x100, set()
    while offset >= 0x100 and offset not in seen and offset + 0x40 <= len(space):
        seen.add(offset)
        head = int.from_bytes(space[offset : offset + 4], "little")
        if head & 0xFFFF == 0x0010:
            enabled = _word(space, offset + 0x08) & 1
            return {
                "total_vfs": _word(space, offset + 0x0E),
                "vf_count": _word(space, offset + 0x10) if enabled else 0,
                "vf_device": f"{_word(space, offset + 0x1A):04x}",
            }
        offset = head >> 20
    return None


# --- nvidia-smi ----------------------------------------------------------------------------------------------------

#: Column of --query-gpu -> key here.
COLUMNS = {
    "pci.bus_id": "address",
    "uuid": "uuid",
    "serial": "serial",
    "pci.device_id": "ids",
    "pci.sub_device_id": "subsystem",
    "mig.mode.current": "mig",
}


def smi() -> tuple[dict[str, dict[str, Any]], str]:
    """Address -> what nvidia-smi says of a GPU; or why it says nothing."""
    code, out, err = ask(["nvidia-smi", f"--query-gpu={','.join(COLUMNS)}", "--format=csv,noheader"])
    if code:
        return {}, (err or out).strip() or f"nvidia-smi ended with {code}"
    found = {}
    for line in out.splitlines():
        row = dict(zip(COLUMNS.values(), (_said(cell) for cell in line.split(","))))
        found[_address(str(row.pop("address")))] = {**row, **_swapped(row)}
    for gpu in _log():
        address = _address(gpu.get("id", ""))
        if address in found:
            mode = "gpu_virtualization_mode"
            found[address]["host_vgpu_mode"] = gpu.findtext(f"{mode}/host_vgpu_mode")
            found[address]["virtualization_mode"] = gpu.findtext(f"{mode}/virtualization_mode")
    return found, ""


def _log() -> list[ElementTree.Element]:
    code, out, _err = ask(["nvidia-smi", "-q", "-x"])
    try:
        return list(ElementTree.fromstring(out).iter("gpu")) if code == 0 else []
    except ElementTree.ParseError:
        return []


def _said(cell: str) -> str | None:
    """'[N/A]', 'N/A', '[Not Supported]' and a serial number of 0 are no answers."""
    cell = cell.strip()
    return None if cell in ("N/A", "0", "") or cell.startswith("[") else cell


def _swapped(row: Mapping[str, Any]) -> dict[str, str | None]:
    """'0x26B910DE' is device and vendor; of a subsystem as well."""
    ids, subsystem = (str(row[key] or "").lower().removeprefix("0x") for key in ("ids", "subsystem"))
    return {
        "device": ids[:4] or None,
        "vendor": ids[4:] or None,
        "subsystem": f"{subsystem[4:]}:{subsystem[:4]}" if subsystem else None,
    }


def _address(text: str) -> str:
    domain, _colon, rest = text.strip().lower().partition(":")
    return f"{domain[-4:]}:{rest}"


# --- The comparison ------------------------------------------------------------------------------------------------


def facts_of(root: str, found: Mapping[str, bytes]) -> tuple[list[Fact], list[str]]:
    """All that both sides say, and what could not be compared."""
    host = Host(files=ReadOnly(root), run=ask)
    functions = {f["address"]: f for f in host_info.facts(host)["host"]["functions"]}
    vgpus = {f["address"]: f for f in engine.resource_info(host, "vgpu", None)["facts"]}
    ours = sorted(a for a, f in functions.items() if f["vendor"] == f"{VENDOR:04x}" and f["class"].startswith("03") and not f["physfn"])
    facts = [Fact("all", "NVIDIA GPUs of host_info", ours, "configuration space", sorted(found))]
    left: list[str] = []
    for address, space in found.items():
        facts += _of_space(address, functions.get(address, {}), space, left)
    told, why = smi()
    if why:
        left.append(f"nvidia-smi: {why}")
    else:
        driven = sorted(a for a, f in functions.items() if f["driver"] == "nvidia" and a in found)
        facts.append(Fact("all", "GPUs with the driver nvidia in host_info", driven, "nvidia-smi", sorted(told)))
        facts.append(Fact("all", "GPUs of vgpu_info", sorted(a for a in vgpus if a in found), "nvidia-smi", sorted(told)))
    for address, said in told.items():
        facts += _of_smi(address, functions.get(address, {}), vgpus.get(address, {}), said)
    left += [f"{fact.device}: {fact.name}: {fact.other} says nothing of it" for fact in facts if fact.theirs is None and fact.ours is not None]
    return [fact for fact in facts if fact.theirs is not None], left


def _of_space(address: str, ours: Mapping[str, Any], space: bytes, left: list[str]) -> Iterator[Fact]:
    other = "configuration space"
    for name, theirs in header(space).items():
        yield Fact(address, name, ours.get(name), other, theirs)
    if len(space) < 0x200:
        left.append(f"{address}: SR-IOV: only {len(space)} bytes of its configuration space can be read; run as root")
        return
    theirs, mine = sriov(space), ours.get("sriov")
    yield Fact(address, "has SR-IOV", mine is not None, other, theirs is not None)
    for name, value in theirs.items() if theirs and mine else ():
        if name == "total_vfs" and mine["total_vfs"] < value:
            # A driver may allow fewer than the device has (pci_sriov_set_totalvfs), and never more.
            left.append(f"{address}: total_vfs: its driver allows {mine['total_vfs']} of {value}")
        else:
            yield Fact(address, name, mine[name], other, value)


def _of_smi(address: str, function: Mapping[str, Any], vgpu: Mapping[str, Any], said: Mapping[str, Any]) -> Iterator[Fact]:
    for name in ("vendor", "device", "subsystem"):
        yield Fact(address, name, function.get(name), "nvidia-smi", said.get(name))
    for name in ("uuid", "serial", "host_vgpu_mode", "virtualization_mode"):
        yield Fact(address, name, vgpu.get(name), "nvidia-smi", said.get(name))
    mig = vgpu.get("mig")
    yield Fact(address, "mig", {True: "Enabled", False: "Disabled"}.get(mig["enabled"]) if mig else None, "nvidia-smi", said.get("mig"))


def main(arguments: Sequence[str]) -> int:
    """0: all the same, or nothing to check; 1: something differs, or --require and nothing to check."""
    parser = argparse.ArgumentParser(description="Compare what the collection says of NVIDIA GPUs with the GPUs themselves. Reads only.")
    parser.add_argument("--require", action="store_true", help="fail where there is no NVIDIA GPU")
    parser.add_argument("--root", default="/", help="look for /sys, /proc and /etc below this folder")
    options = parser.parse_args(arguments)
    found = spaces(options.root)
    if not found:
        print(NOT_RUN)
        return 1 if options.require else 0
    try:
        facts, left = facts_of(options.root, found)
    except (EngineError, AssertionError) as error:
        print(f"failed: {error}")
        return 1
    differing = [fact for fact in facts if fact.ours != fact.theirs]
    for fact in facts:
        verdict = "differs:" if fact in differing else "same:"
        print(f"{verdict:<9}{fact.device} {fact.name}: {fact.ours}" + (f", but {fact.other} says {fact.theirs}" if fact in differing else f" ({fact.other})"))
    for line in left:
        print(f"not compared: {line}")
    print(f"{len(facts)} facts of {len(found)} GPUs compared, {len(differing)} differ, {len(left)} not compared.")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
