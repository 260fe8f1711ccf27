# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The declaration of a guest by itself: what is unset taken out, values in one form, and what is wrong with it that
needs no look at the host.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..model import Refusal

Wish = Mapping[str, Any]

#: Factor of a unit, in KiB. As everywhere in libvirt and QEMU 'G' means GiB.
_UNITS = {"K": 1, "M": 1024, "G": 1024**2, "T": 1024**3}
_SIZE = re.compile(r"(\d+)\s*([KMGT])(?:i?B)?", re.IGNORECASE)
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")
_ADDRESS = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_CHECKSUM = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")

#: Network model -> keys that it needs one of, and keys that it can have beside those that all have.
_NETWORK: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "emulated": (("bridge", "nat"), ("device", "mtu", "rom")),
    "virtio": (("bridge", "nat"), ("vhost", "queues", "mtu", "rom")),
    "macvtap": (("parent",), ("device", "mode", "queues", "vhost", "rom")),
    "vmdq": (("parent",), ("device", "mode", "vhost", "rom")),
    "sriov": (("pool", "address"), ("numa", "vlan", "trust", "rom")),
    "passthrough": (("address",), ("rom",)),
}
#: The word for a guest that shall have none.
NO_VGPU = "none"

#: What has a MAC that libvirt sets: a whole function has its own.
_WITH_MAC = ("emulated", "virtio", "macvtap", "vmdq", "sriov")

#: Disk model -> keys that it needs.
_DISK: Mapping[str, tuple[str, ...]] = {
    "ide": ("path",),
    "sata": ("path",),
    "virtio": ("path",),
    "scsi": ("path",),
    "lun": ("path",),
    "nvme": ("address",),
}
_OF_FUNCTION = ("model", "address")

#: What a mediated device is asked by -> keys that it can have beside those that all have.
_MDEV: Mapping[str, tuple[str, ...]] = {"type": ("parent", "numa"), "pool": ("numa",), "uuid": ()}


def kib(text: Any) -> int | None:
    """'8G' in KiB; None where it is no size."""
    found = _SIZE.fullmatch(str(text).strip())
    return int(found.group(1)) * _UNITS[found.group(2).upper()] if found and int(found.group(1)) else None


def cpus(text: Any) -> frozenset[int] | None:
    """'0-3,8' as numbers; None where it is no such list. libvirt's '^' is not taken."""
    found: set[int] = set()
    for part in str(text).replace(" ", "").split(","):
        first, _dash, last = part.partition("-")
        if not first.isdigit() or not (last or first).isdigit() or int(last or first) < int(first):
            return None
        if int(last or first) > 65535:
            return None
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def normal(wish: Wish) -> dict[str, Any]:
    """Without what is null, at any depth: unset means untouched. An empty list is a wish: none of these. Addresses in small letters."""
    kept = {key: _normal(value) for key, value in wish.items() if value is not None}
    return {key: value for key, value in kept.items() if value != {} or key == "seed"}


def _normal(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = {key: _normal(part) for key, part in value.items() if part is not None}
        for key in ("mac", "address", "uuid", "checksum"):
            if isinstance(kept.get(key), str):
                kept[key] = kept[key].lower()
        return kept
    return [_normal(part) for part in value] if isinstance(value, list) else value


def with_macs(wish: Wish, machine_id: str) -> dict[str, Any]:
    """Each network device with its MAC: the wished one, else one made of host, guest and its place in the list, the same in each
    run. 52:54:00 is what QEMU and libvirt use."""
    if "network" not in wish:
        return dict(wish)
    network = []
    for index, item in enumerate(wish["network"]):
        if item["model"] in _WITH_MAC and not item.get("mac"):
            seed = hashlib.sha256(f"{machine_id}/{wish['name']}/{index}".encode()).digest()
            item = {**item, "mac": "52:54:00:{:02x}:{:02x}:{:02x}".format(*seed[:3])}
        network.append(item)
    return {**wish, "network": network}


def functions(wish: Wish) -> list[tuple[str, str]]:
    """What of the wish is a PCI function as a whole or a VF by its address: a word for a sentence, the address."""
    found = [(f"network[{n}]", item["address"]) for n, item in enumerate(wish.get("network", ())) if item.get("address")]
    found += [(f"disks[{n}]", item["address"]) for n, item in enumerate(wish.get("disks", ())) if item.get("address")]
    display = wish.get("display", {})
    return found + ([("display", display["address"])] if display.get("address") else [])


def shares_of(wish: Wish) -> list[tuple[str, int, Wish]]:
    """The mediated devices and the vGPU that it asks for: key, place in the list, item."""
    if wish.get("state") == "absent":
        return []
    gpu = wish.get("gpu", {})
    asked = [("gpu", 0, gpu)] if gpu.get("vgpu", NO_VGPU) != NO_VGPU else []
    return [*(("mdev", n, item) for n, item in enumerate(wish.get("mdev", ()))), *asked]


# --- What is wrong with it -------------------------------------------------------------------------------------------


def check_list(wishes: Sequence[Wish]) -> list[Refusal]:
    """What is wrong with each declaration, and with them together."""
    found = [refusal for wish in wishes for refusal in check(wish)]
    names = [wish.get("name") for wish in wishes]
    for name in sorted({str(name) for name in names if names.count(name) > 1}):
        found.append(_bad(name, "two declarations have this name.", "Give each guest a name of its own."))
    return found + _named_twice([wish for wish in wishes if wish.get("state") != "absent"])


def _named_twice(wishes: Sequence[Wish]) -> list[Refusal]:
    """A function, or a mediated device, is one guest's."""
    owners: dict[str, str] = {}
    found = []
    for wish in wishes:
        certain = [(f"mdev[{n}]", item["uuid"]) for n, item in enumerate(wish.get("mdev", ())) if item.get("uuid")]
        for what, address in functions(wish) + certain:
            here = f"{what} of the guest {wish['name']}"
            other = owners.setdefault(address, here)
            if other != here:
                found.append(_bad(str(wish["name"]), f"{what} and {other} both name {address}.", "Only one of them can have it."))
    return found


def check(wish: Wish) -> list[Refusal]:
    name = str(wish.get("name", ""))
    why = _bad_name(name)
    if why:
        return [_bad(repr(name), f"libvirt does not take it as a name: {why}.", "Give the guest another name.")]
    if wish.get("state") == "absent":
        return []
    parts = (_check_cpu, _check_memory, _check_boot, _check_network, _check_disks, _check_display, _check_mdev, _check_gpu)
    return [_bad(name, reason, way_out) for part in parts for reason, way_out in part(wish)]


def _bad(name: str, reason: str, way_out: str) -> Refusal:
    return Refusal(name, reason, f"{way_out} Nothing was changed.")


def _bad_name(name: str) -> str | None:
    """virDomainDefPostParse and virXMLCheckIllegalChars: no '/', no line end, not empty; it becomes a file's name as well."""
    if not name.strip():
        return "it is empty"
    if name != name.strip():
        return "it begins or ends with a blank"
    if name in (".", "..") or "/" in name:
        return "it becomes the name of a file"
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        return "it has a control character"
    return "it is longer than 200 bytes" if len(name.encode()) > 200 else None


Wrong = Iterator[tuple[str, str]]


def _check_cpu(wish: Wish) -> Wrong:
    vcpus, most, cpu = wish.get("vcpus"), wish.get("vcpus_max"), wish.get("cpu", {})
    for key, value in (("vcpus", vcpus), ("vcpus_max", most)):
        if value is not None and value < 1:
            yield f"{key} {value} is less than one.", "A guest has at least one."
    if vcpus and most and vcpus > most:
        yield f"vcpus {vcpus} is more than vcpus_max {most}.", "Raise vcpus_max, or leave it out."
    topology = cpu.get("topology")
    if topology:
        product = topology["sockets"] * topology["cores"] * topology["threads"]
        if min(topology.values()) < 1:
            yield "cpu.topology has a part that is less than one.", "Each part is at least one."
        elif (most or vcpus) not in (None, product):
            yield f"cpu.topology makes {product} CPUs, and there are {most or vcpus} (vcpus_max, else vcpus).", "Let them agree."
    yield from _check_pinning(cpu, most or vcpus)
    yield from _check_tcg(cpu)


def _check_pinning(cpu: Wish, count: int | None) -> Wrong:
    for number, pin in enumerate(cpu.get("pinning", ())):
        for key in ("vcpus", "cpus"):
            if cpus(pin[key]) is None:
                yield f"cpu.pinning[{number}].{key} {pin[key]!r} is no list of CPUs.", "Write for example 0-3,8."
        pinned = cpus(pin["vcpus"])
        if pinned and count and max(pinned) >= count:
            yield f"cpu.pinning[{number}] names vCPU {max(pinned)}, and there are {count}.", "vCPUs count from 0."
    if "emulator_cpus" in cpu and cpus(cpu["emulator_cpus"]) is None:
        yield f"cpu.emulator_cpus {cpu['emulator_cpus']!r} is no list of CPUs.", "Write for example 0-1."


def _check_tcg(cpu: Wish) -> Wrong:
    if cpu.get("accel") != "tcg":
        return
    for key in ("nested", "kvmclock", "pv_eoi", "pv_spinlock", "hyperv"):
        if cpu.get(key):
            yield f"cpu.{key} is KVM's, and cpu.accel is tcg.", f"Leave cpu.{key} out, or take kvm."
    if cpu.get("model") in ("host-passthrough", "host-model"):
        yield f"cpu.model {cpu['model']} is KVM's, and cpu.accel is tcg.", "Take maximum, or a model by its name."


def _check_memory(wish: Wish) -> Wrong:
    for key in ("memory", "hugepages"):
        if key in wish and kib(wish[key]) is None:
            yield f"{key} {wish[key]!r} is no size.", "Write for example 8G."
    balloon = wish.get("balloon", {})
    target = balloon.get("target")
    if target is not None and kib(target) is None:
        yield f"balloon.target {target!r} is no size.", "Write for example 4G."
    elif target is not None and kib(wish.get("memory", target)) and (kib(target) or 0) > (kib(wish.get("memory", target)) or 0):
        yield f"balloon.target {target} is more than memory {wish['memory']}.", "The balloon only takes memory away."
    if balloon.get("enabled") is False and (target is not None or balloon.get("free_page_reporting")):
        yield "balloon.enabled is false, and the rest of balloon needs it.", "Leave one of them out."


def _check_boot(wish: Wish) -> Wrong:
    boot = wish.get("boot", {})
    if boot.get("secure_boot") and boot.get("firmware") != "uefi":
        yield "boot.secure_boot is UEFI's.", "Set boot.firmware to uefi."
    if boot.get("kernel") is None and (boot.get("initrd") or boot.get("cmdline")):
        yield "boot.initrd and boot.cmdline belong to boot.kernel.", "Name boot.kernel as well."
    for key in ("kernel", "initrd"):
        yield from _no_path(f"boot.{key}", boot.get(key))
    yield from _no_path("console_log", wish.get("console_log"))


def _no_path(what: str, path: Any) -> Wrong:
    if path is not None and (not str(path).startswith("/") or "/../" in f"{path}/"):
        yield f"{what} {path!r} is no absolute path.", "Name the file from the root on."


def _check_network(wish: Wish) -> Wrong:
    for number, item in enumerate(wish.get("network", ())):
        here, model = f"network[{number}]", item["model"]
        needs, may = _NETWORK[model]
        known = {"model", *needs, *may, *(("mac",) if model in _WITH_MAC else ())}
        given = [key for key in needs if key in item]
        if len(given) != 1:
            words = " or ".join(needs)
            yield f"{here}: the model {model} needs {words}{', one of them' if len(needs) > 1 else ''}.", f"Name {words}."
        for key in sorted(set(item) - known):
            yield f"{here}: {key} means nothing for the model {model}.", f"Leave {key} out, or take another model."
        yield from _check_numbers(here, item)


def _check_numbers(here: str, item: Wish) -> Wrong:
    mac, vlan, queues = item.get("mac"), item.get("vlan"), item.get("queues")
    if mac is not None and (not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1 or not mac.strip("0:")):
        yield f"{here}: mac {mac!r} is no address of one device.", "Write for example 52:54:00:12:34:56."
    if vlan is not None and not 0 <= vlan <= 4094:
        yield f"{here}: vlan {vlan} is not between 0 (none) and 4094.", "Name another VLAN."
    if queues is not None and not 1 <= queues <= 256:
        yield f"{here}: queues {queues} is not between 1 and 256.", "One per vCPU is usual."
    address = item.get("address")
    if address is not None and not _ADDRESS.fullmatch(address):
        yield f"{here}: address {address!r} is no PCI address.", "Write it with its domain, as in 0000:3b:00.0."


def _check_disks(wish: Wish) -> Wrong:
    paths = [item.get("path") for item in wish.get("disks", ()) if item.get("path")]
    for path in sorted({path for path in paths if paths.count(path) > 1}):
        yield f"two of its disks are {path}.", "Give each its own."
    for number, item in enumerate(wish.get("disks", ())):
        here, model = f"disks[{number}]", item["model"]
        for key in _DISK[model]:
            if key not in item:
                yield f"{here}: the model {model} needs {key}.", f"Name {key}."
        for key in sorted(set(item) - set(_OF_FUNCTION)) if model == "nvme" else [k for k in item if k == "address"]:
            yield f"{here}: {key} means nothing for the model {model}.", f"Leave {key} out, or take another model."
        yield from _check_numbers(here, item)
        yield from _no_path(f"{here}: path", item.get("path"))
        yield from _check_image(here, item)


def _check_image(here: str, item: Wish) -> Wrong:
    source, checksum, device = item.get("source"), item.get("checksum"), str(item.get("path", "")).startswith("/dev/")
    if "size" in item and kib(item["size"]) is None:
        yield f"{here}: size {item['size']!r} is no size.", "Write for example 20G."
    if item["model"] == "lun" and not device:
        yield f"{here}: the model lun passes a SCSI disk of the host through.", "Name it as path: /dev/disk/by-id/..."
    if device and (source or "size" in item):
        yield f"{here}: a disk of the host is taken as it is.", "Leave source and size out."
    if checksum is not None and not _CHECKSUM.fullmatch(checksum):
        yield f"{here}: checksum {checksum!r} is none that is known.", "Write sha256: or sha512: and the hexadecimal digits."
    if checksum is not None and source is None:
        yield f"{here}: checksum is of source, and there is none.", "Name source, or leave checksum out."
    if source is not None and "://" in source:
        if not source.startswith(("https://", "http://", "file://")):
            yield f"{here}: source {source!r} is of no known kind.", "Take https, http or a path of the host."
        if checksum is None:
            yield f"{here}: what comes from a URL needs a checksum.", "Name it as checksum: sha256:..."
    elif source is not None:
        yield from _no_path(f"{here}: source", source)


def _check_display(wish: Wish) -> Wrong:
    display = wish.get("display", {})
    model = display.get("model")
    if model == "passthrough" and "address" not in display:
        yield "display: the model passthrough needs address.", "Name the GPU's PCI address."
    for key in ("video", "listen"):
        if key in display and model != "emulated":
            yield f"display: {key} means nothing for the model {model}.", f"Leave {key} out, or take emulated."
    if "address" in display and model != "passthrough":
        yield f"display: address means nothing for the model {model}.", "Leave it out, or take passthrough."
    yield from _check_numbers("display", display)


def _check_mdev(wish: Wish) -> Wrong:
    for number, item in enumerate(wish.get("mdev", ())):
        here, given = f"mdev[{number}]", [key for key in _MDEV if key in item]
        if len(given) != 1:
            yield f"{here}: a mediated device is asked by type, pool or uuid, one of them.", "Name one of them."
            continue
        for key in sorted(set(item) - {given[0], *_MDEV[given[0]], "display", "ramfb"}):
            yield f"{here}: {key} means nothing beside {given[0]}.", f"Leave {key} out."
        if not item[given[0]]:
            yield f"{here}: {given[0]} is empty.", "Name it, or leave the device out."
        elif "uuid" in item and not _UUID.fullmatch(item["uuid"]):
            yield f"{here}: {item['uuid']!r} is no UUID.", "A UUID is 8-4-4-4-12 hexadecimal digits, as uuidgen prints it."
        yield from _check_shown(here, item)


def _check_gpu(wish: Wish) -> Wrong:
    gpu = wish.get("gpu")
    if gpu is None:
        return
    if not gpu.get("vgpu"):
        yield "gpu: vgpu is not named.", f"Name the type of its vGPU, or {NO_VGPU}."
    elif gpu["vgpu"] == NO_VGPU and len(gpu) > 1:
        yield f"gpu: without a vGPU {', '.join(sorted(set(gpu) - {'vgpu'}))} means nothing.", "Leave it out."
    yield from _check_numbers("gpu", gpu)
    yield from _check_shown("gpu", gpu)


def _check_shown(here: str, item: Wish) -> Wrong:
    if item.get("ramfb") and not item.get("display"):
        yield f"{here}: ramfb is what display shows before the guest's driver is there.", "Set display as well, or leave ramfb out."
