# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Does an entry of a document hold all that is read of it, each of its kind? What somebody edited by hand need not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Callable

from . import identity, spec

#: As Ansible's type is called -> what it is here. To Python a bool is an int: that it is no number the plan says, for one
#: device and not for all that are in the file.
_KINDS: Mapping[str, type | tuple[type, ...]] = {"str": str, "int": int, "bool": bool, "dict": dict, "list": list}

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_INDEX = re.compile(r"[0-9]{1,5}")

_OF_PF = {key: option for key, option in spec.SRIOV.items() if key not in ("match", "vfs")}
_OF_VF = {key: option for key, option in spec.SRIOV["vfs"]["options"].items() if key != "range"}
_OF_VFIO = {key: option for key, option in spec.VFIO.items() if key != "match"}
_OF_VMDQ = {key: option for key, option in spec.VMDQ.items() if key != "match"}
_OF_STATION = spec.VMDQ["stations"]["options"]
_ATTRIBUTES = {**spec.MDEV["attributes"], "required": True}
_OF_MDEV = {
    "uuid": {"type": "str", "required": True},
    "type": {"type": "str", "required": True},
    "attributes": _ATTRIBUTES,
    "autostart": {"type": "bool", "required": True},
    "pool": {"type": "str"},
}
_MDEV_DEFINED = {key: option for key, option in _OF_MDEV.items() if key not in ("uuid", "pool")}
_OF_CONTROLLER = {"queues": {"type": "int"}, "interrupts": {"type": "int"}, "online": {"type": "bool"}}


def wrong(resource: str, entry: Any) -> str | None:
    """What of an entry is missing or of another kind, as 'wish.vf_count'; None: nothing."""
    return next(_wrong(resource, entry), None)


def _wrong(resource: str, entry: Any) -> Iterator[str]:
    if not isinstance(entry, dict):
        yield "all of it"
        return
    if not _names_a_card(entry.get("identity")):
        yield "identity"
    for key in ("allow", "touched"):
        words = entry.get(key, [])
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            yield key
    if not isinstance(entry.get("declared_at", ""), str):
        yield "declared_at"
    said = {"at": {"type": "str"}, "by": {"type": "str"}}
    yield from _typed(entry.get("declared", {}), said, "declared")
    wish, origin = entry.get("wish"), entry.get("origin")
    if not isinstance(wish, dict):
        yield "wish"
    elif not isinstance(origin, dict):
        yield "origin"
    else:
        yield from _WRONG[resource](wish, origin)


def _wrong_vfio(wish: Mapping[str, Any], origin: Mapping[str, Any]) -> Iterator[str]:
    if not wish.get("driver"):
        yield "wish.driver"
    yield from _typed(wish, _OF_VFIO, "wish")
    yield from _typed(origin, {key: {"type": "str"} for key in ("driver", "override", "bound")}, "origin")


def _wrong_vmdq(wish: Mapping[str, Any], origin: Mapping[str, Any]) -> Iterator[str]:
    yield from _typed(wish, _OF_VMDQ, "wish")
    yield from _typed(origin, {"offload": {"type": "bool"}, "queues": spec.VMDQ["queues"]}, "origin")
    stations = origin.get("stations", {})
    if not isinstance(stations, dict):
        yield "origin.stations"
        return
    for name, station in stations.items():
        yield from _typed(station, _OF_STATION, f"origin.stations.{name}")
        lacking = [key for key in ("kind", "mac", "mode", "mtu", "up") if isinstance(station, dict) and station.get(key) is None]
        yield from (f"origin.stations.{name}.{key}" for key in lacking)


def _wrong_mdev(wish: Mapping[str, Any], origin: Mapping[str, Any]) -> Iterator[str]:
    devices = wish.get("devices")
    if not isinstance(devices, list):
        yield "wish.devices"
    else:
        yield from _of_kind(devices, {"type": "list", "options": _OF_MDEV}, "wish.devices")
        yield from (f"wish.devices.{n}.uuid" for n, item in enumerate(devices) if not isinstance(item, dict) or not _is_uuid(item.get("uuid")))
    yield from _typed(wish, {"named_after": {"type": "str"}}, "wish")
    yield from _typed(origin, {key: {"type": "str"} for key in ("driver", "override")}, "origin")
    yield from _wrong_before(origin.get("mdevs", {}))


def _wrong_before(mdevs: Any) -> Iterator[str]:
    """How mediated devices were before the collection: by UUID, or by the number of the vGPU that they are."""
    if not isinstance(mdevs, dict):
        yield "origin.mdevs"
        return
    for uuid, was in mdevs.items():
        where, defined = f"origin.mdevs.{uuid}", was.get("defined") if isinstance(was, dict) else None
        if not isinstance(was, dict) or not {"active", "defined"} <= was.keys():
            yield where
        elif isinstance(defined, dict) and not defined.get("broken"):
            # As an item of a list, so that what is required is asked for.
            yield from _of_kind([defined], {"type": "list", "options": _MDEV_DEFINED}, f"{where}.defined")
        yield from _typed(was if isinstance(was, dict) else {}, {"active": {"type": "bool"}, "defined": {"type": "dict", "options": {}}}, where)


def _is_uuid(text: Any) -> bool:
    return isinstance(text, str) and bool(_UUID.fullmatch(text))


def _wrong_sriov(wish: Mapping[str, Any], origin: Mapping[str, Any]) -> Iterator[str]:
    if "vf_count" not in wish:
        yield "wish.vf_count"
    if not isinstance(origin.get("vf_count"), int) or origin["vf_count"] < 0:
        yield "origin.vf_count"
    yield from _typed(wish, _OF_PF, "wish")
    yield from _by_index(wish.get("vfs"), {"type": "dict", "options": _OF_VF}, "wish.vfs")
    yield from _typed(origin, {"driver": {"type": "str"}, "up": {"type": "bool"}}, "origin")
    yield from _typed(origin.get("pf", {}), {"hw_tc_offload": {"type": "bool"}}, "origin.pf")
    yield from _typed(origin.get("firmware", {}), spec.SRIOV["firmware"]["options"], "origin.firmware")
    yield from _typed(origin.get("nvme_primary", {}), _OF_PF, "origin.nvme_primary")
    parts: Mapping[str, dict[str, Any]] = {
        "attributes": {"type": "dict", "options": _OF_VF},
        "overrides": {"type": "str"},
        "nvme_vfs": {"type": "dict", "options": dict(_OF_CONTROLLER)},
        "msix": {"type": "int"},
    }
    for part, option in parts.items():
        yield from _by_index(origin.get(part, {}), option, f"origin.{part}")


def _by_index(values: Any, option: Mapping[str, Any], where: str) -> Iterator[str]:
    """VF index -> a value of one kind, which is there."""
    if not isinstance(values, dict):
        yield where
        return
    for index, value in values.items():
        if value is None or not _INDEX.fullmatch(index):
            yield f"{where}.{index}"
        else:
            yield from _of_kind(value, option, f"{where}.{index}")


def _typed(values: Any, options: Mapping[str, Any], where: str) -> Iterator[str]:
    """The values that have not the kind which the argument specification gives them. Null is unset."""
    if not isinstance(values, dict):
        yield where
        return
    for key, value in values.items():
        option = options.get(key)
        if option and value is not None and not isinstance(value, _KINDS.get(option["type"], object)):
            yield f"{where}.{key}"
        elif option and value is not None and "options" in option:
            yield from _of_kind(value, option, f"{where}.{key}")


def _of_kind(value: Any, option: Mapping[str, Any], where: str) -> Iterator[str]:
    fits = isinstance(value, _KINDS.get(option["type"], object))
    if not fits:
        yield where
    elif option["type"] == "dict":
        yield from _typed(value, option["options"], where)
    elif option["type"] == "list":
        for number, item in enumerate(value):
            yield from _typed(item, option["options"], f"{where}.{number}")
            required = [key for key, inner in option["options"].items() if inner.get("required")]
            yield from (f"{where}.{number}.{key}" for key in required if isinstance(item, dict) and item.get(key) is None)


def _names_a_card(known: Any) -> bool:
    words = ("address", "ids", "slot", "ifname", *identity.STRONG)
    if not isinstance(known, dict) or not all(isinstance(known.get(key, ""), str) for key in words):
        return False
    pf, peers = known.get("pf"), known.get("peers", [])
    if not isinstance(peers, list) or not all(isinstance(peer, str) for peer in peers):
        return False
    return isinstance(known.get("index"), (int, type(None))) and (
        pf is None or (_names_a_card(pf) and isinstance(pf.get("address"), str))
    )


def _wrong_vgpu(wish: Mapping[str, Any], origin: Mapping[str, Any]) -> Iterator[str]:
    """What a framework alone knows of is its own to look at."""
    if not isinstance(wish.get("framework"), str):
        yield "wish.framework"
    yield from _by_index(wish.get("vgpus"), {"type": "str"}, "wish.vgpus")
    if str(wish.get("framework")).startswith("nvidia"):
        if not isinstance(origin.get("vfs"), bool):
            yield "origin.vfs"
        yield from _by_index(origin.get("types"), {"type": "int"}, "origin.types")
        if not isinstance(wish.get("named_after"), str):
            yield "wish.named_after"
        yield from _by_index(wish.get("mdevs", {}), {"type": "str"}, "wish.mdevs")
        mdevs = wish.get("mdevs", {})
        yield from (f"wish.mdevs.{key}" for key, uuid in (mdevs.items() if isinstance(mdevs, dict) else ()) if not _is_uuid(uuid))
        yield from _wrong_before(origin.get("mdevs", {}))
        yield from _wrong_mig(wish.get("mig"), "wish.mig")
        yield from _wrong_mig(origin.get("mig"), "origin.mig")
    elif wish.get("framework") == "intel_gvt":
        yield from _wrong_gvt(wish, origin)
    elif wish.get("framework") == "intel_sriov":
        yield from _wrong_intel(wish, origin)


def _wrong_gvt(wish: Mapping[str, Any], origin: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(wish.get("named_after"), str):
        yield "wish.named_after"
    yield from _by_index(wish.get("mdevs", {}), {"type": "str"}, "wish.mdevs")
    yield from _wrong_before(origin.get("mdevs", {}))


def _wrong_intel(wish: Mapping[str, Any], origin: Mapping[str, Any]) -> Iterator[str]:
    profile = {"type": "dict", "options": spec.PROFILE}
    yield from _by_index(wish.get("profiles"), profile, "wish.profiles")
    yield from _by_index(origin.get("profiles"), profile, "origin.profiles")
    yield from _typed(origin, {"vf_count": {"type": "int"}, "auto": {"type": "bool"}}, "origin")
    if origin.get("vf_count") is None:
        yield "origin.vf_count"


def _wrong_mig(said: Any, where: str) -> Iterator[str]:
    if said is None:
        return
    counts = said.get("instances", {}) if isinstance(said, dict) else None
    if not isinstance(counts, dict) or not isinstance(said.get("enabled"), bool) or not all(isinstance(count, int) for count in counts.values()):
        yield where


_WRONG: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Any]], Iterator[str]]] = {
    "sriov": _wrong_sriov,
    "vfio": _wrong_vfio,
    "vmdq": _wrong_vmdq,
    "mdev": _wrong_mdev,
    "vgpu": _wrong_vgpu,
}
