# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Shares of devices that guests take: mediated devices (`mdev`), and vGPUs (`gpu`), which are mediated devices of a GPU or VFs to which the
vendor's driver gave a type. The resources mdev and vgpu make them; here they are handed out, as VFs of a pool are (allocate.py).

By type or pool a guest gets one that is declared; one that others made it gets by its UUID only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .. import sysfs
from ..errors import EngineError
from ..host import Host
from ..mdev import ccw
from ..mdev import facts as mdev
from ..model import Function, Refusal, State
from ..plain import dataclass
from . import compare
from .allocate import others
from .virt import Domain
from .wish import Wish, shares_of

#: Where the shares of a host stand in its State, and what the kernel says of mediated devices, as the resource has it.
NAME, MDEV = "shares", "mdev"

#: The driver of a mediated device that QEMU takes as a card, and the only one that can show something (hw/vfio/display.c).
PCI_API = "vfio-pci"

#: What devices calls predict of shares -> what each of them has.
_ASSUMED: Mapping[str, tuple[str, ...]] = {"mdevs": ("parent", "type", "pool"), "vgpus": ("type", "name", "gpu")}


@dataclass(frozen=True)
class Share:
    """`name`: a UUID, or the PCI address of a VF. `called`: the name of its type. `gpu`: the GPU that it is a part of. `device_api`: of a mediated
    device; nothing for a VF."""

    name: str
    type: str
    called: str = ""
    parent: str = ""
    gpu: str = ""
    device_api: str = ""
    pool: str = ""
    node: int = -1
    declared: bool = False

    def is_of(self, type_: str) -> bool:
        """By the id of its type or by its name, of a vGPU without the maker in front as well: 'L40S-12Q'."""
        return type_ in (self.type, self.called) or bool(self.gpu and self.called.partition(" ")[2] == type_)

    def shown(self) -> str:
        return self.called if self.gpu and self.called else self.type


@dataclass(frozen=True)
class Request:
    """An item of a declaration that asks for a share. `kept`: what the guest has already. `node`: where it must be near to; None: anywhere."""

    guest: str
    key: str
    index: int
    item: Mapping[str, Any]
    kept: tuple[str, ...] = ()
    node: int | None = None

    @property
    def where(self) -> str:
        return where(self.key, self.index)

    @property
    def place(self) -> tuple[str, str, int]:
        return self.guest, self.key, self.index


def where(key: str, index: int) -> str:
    return f"mdev[{index}]" if key == "mdev" else key


# --- What there is ---------------------------------------------------------------------------------------------------


def assumed(assume: Mapping[str, Any], check: bool) -> dict[str, Any]:
    """What an earlier call of the same run makes, in check mode; in a run that is there, or it is not."""
    for key, words in _ASSUMED.items():
        for name, said in (assume.get(key) or {}).items():
            if said is not None and not (isinstance(said, Mapping) and all(isinstance(said.get(word), str) for word in words)):
                raise EngineError(f"assume.{key}: {name} has not {', '.join(words)}, each a word, or null. Hand on what the devices call predicts.")
    return {key: value for key, value in assume.items() if check or key not in _ASSUMED}


def read(host: Host, state: State, wishes: Sequence[Wish], assume: Mapping[str, Any]) -> State:
    """The state with its mediated devices and, where a guest asks for one, its vGPUs. `assume`: what an earlier call of the same run would have
    made, or taken, by name."""
    state = state.with_more(MDEV, mdev.read(host.files))
    found = {share.name: share for share in _mediated(state, assume.get("mdevs") or {})}
    if any(key == "gpu" for wish in wishes for key, _index, _item in shares_of(wish)):
        from ..vgpu import shares as vgpu

        found.update({vf: _of_vf(state, vf, said) for vf, said in vgpu.read(host, state, assume.get("vgpus") or {}).items()})
    return state.with_more(NAME, {"all": found})


def _mediated(state: State, coming: Mapping[str, Any]) -> Iterator[Share]:
    """Those that are there, of each parent in the order in which they are declared; others after them. None: one that goes. A call foretells
    parents as a whole, so that the order is that of a run."""
    active, declared = dict(state.more[MDEV]["devices"]), _declared(state)
    for name, said in coming.items():
        active.pop(name, None)
        declared.pop(name, None)
        if said is not None:
            active[name] = said
        if said is not None and said.get("declared", True):
            declared[name] = said
    first = sorted((name for name in declared if name in active), key=lambda name: active[name]["parent"])
    for name in [*first, *(name for name in active if name not in declared)]:
        parent, type_ = active[name]["parent"], active[name]["type"]
        types = _type(state, parent, type_)
        function = state.functions.get(parent)
        yield Share(
            name=name,
            type=type_,
            called=types.get("name", ""),
            parent=parent,
            gpu=_gpu(function),
            device_api=types.get("device_api") or PCI_API,
            pool=declared.get(name, {}).get("pool") or "",
            node=function.numa_node if function else -1,
            declared=name in declared,
        )


def _type(state: State, parent: str, type_: str) -> Mapping[str, Any]:
    """What is known of a type. A subchannel that the same run gives to vfio_ccw is no parent yet."""
    types: Mapping[str, Mapping[str, Any]] = state.more[MDEV]["parents"].get(parent) or (ccw.TYPES if sysfs.bus_of(parent) == sysfs.CSS else {})
    return types.get(type_, {})


def _declared(state: State) -> dict[str, Mapping[str, Any]]:
    """By mdev, then by vgpu, whose records have no more than names."""
    entries = state.stored.get(MDEV, {}).get("devices", {})
    found: dict[str, Mapping[str, Any]] = {device["uuid"]: device for _parent, entry in sorted(entries.items()) for device in entry["wish"]["devices"]}
    return {**found, **{uuid: {} for uuid in _of_gpus(state)}}


def _of_gpus(state: State) -> dict[str, str]:
    """UUID -> GPU, of the mediated devices that the resource vgpu has declared."""
    if not state.stored.get("vgpu", {}).get("devices"):
        return {}
    from ..vgpu import shares as vgpu

    return vgpu.mdevs(state)


def _gpu(function: Function | None) -> str:
    """A mediated device of a display's function is a vGPU: of the GPU itself, or of a VF of it."""
    if function is None or not function.class_code.startswith("03"):
        return ""
    return function.physfn or function.address


def _of_vf(state: State, address: str, said: Mapping[str, Any]) -> Share:
    function = state.functions.get(address)
    node = function.numa_node if function else -1
    return Share(address, said["type"], said["name"], said["gpu"], said["gpu"], node=node, declared=said["declared"])


def known(state: State) -> Mapping[str, Share]:
    shares: Mapping[str, Share] = state.more.get(NAME, {}).get("all", {})
    return shares


def guests_devices(domain: Domain | None) -> tuple[str, ...]:
    """The mediated devices and functions that a guest names: of its next start first."""
    texts = (domain.inactive, domain.live) if domain else ()
    found = [compare.address_of(device) for text in texts if text for device in compare.parse(text).iterfind("devices/hostdev")]
    return tuple(dict.fromkeys(name for name in found if name))


# --- Handing out -----------------------------------------------------------------------------------------------------


def waits(state: State, wish: Wish, assume: Mapping[str, Any]) -> str:
    """The type of a vGPU that an earlier call of the same run gives to VFs which are not there yet; nothing where it has a VF by now."""
    coming = [Share("", said["type"], said["name"], gpu=said["gpu"]) for vf, said in (assume.get("vgpus") or {}).items() if said and vf not in state.functions]
    for key, _index, item in shares_of(wish):
        if key == "gpu" and any(share.is_of(item["vgpu"]) for share in coming):
            there = any(share.gpu and share.is_of(item["vgpu"]) for share in known(state).values())
            return "" if there else str(item["vgpu"])
    return ""


def allocate(state: State, requests: Sequence[Request], holders: Mapping[str, Sequence[str]]) -> tuple[dict[tuple[str, str, int], Share], list[Refusal]]:
    """(guest, key, place) -> share. `holders`: name -> who names or uses it, guests by their plain name."""
    given: dict[tuple[str, str, int], Share] = {}
    refusals: list[Refusal] = []
    # A certain one before any of a type, and those that have one before those that are new: nobody loses one to another.
    ordered = sorted(requests, key=lambda request: (not _is_certain(request.item), not _kept(state, request)))
    claimed: dict[str, str] = {}
    for request in ordered:
        kin = [share for share in known(state).values() if _is_meant(share, request)]
        fitting = [share for share in kin if request.node is None or share.node in (-1, request.node)]
        free = [share for share in fitting if not others(share.name, request.guest, holders, claimed)]
        if not free:
            refusals.append(_refusal(state, request, kin, fitting, holders, claimed))
            continue
        chosen = next((share for name in request.kept for share in free if share.name == name), free[0])
        given[request.place] = chosen
        claimed[chosen.name] = request.guest
    return given, refusals


def _is_certain(item: Mapping[str, Any]) -> bool:
    return "uuid" in item


def _kept(state: State, request: Request) -> bool:
    return any(name in known(state) and _is_meant(known(state)[name], request) for name in request.kept)


def _is_meant(share: Share, request: Request) -> bool:
    item = request.item
    if request.key == "gpu":
        at = item.get("address")
        return bool(share.gpu) and share.declared and share.is_of(item["vgpu"]) and at in (None, share.name, share.parent, share.gpu)
    if not share.device_api:
        return False
    if "uuid" in item:
        return bool(share.name == item["uuid"])
    if "pool" in item:
        # What is in none has no name of one either.
        return share.declared and bool(share.pool) and bool(share.pool == item["pool"])
    return share.declared and share.is_of(item["type"]) and item.get("parent") in (None, share.parent)


def resolved(wish: Wish, given: Mapping[tuple[str, str, int], Share]) -> dict[str, Any]:
    """The declaration with what each item came to (`device`, `device_api`)."""
    result = dict(wish)
    for key, index, item in shares_of(wish):
        share = given[str(wish["name"]), key, index]
        new = {**item, "device": share.name, "device_api": share.device_api}
        if key == "gpu":
            result[key] = new
        else:
            result[key] = [new if n == index else old for n, old in enumerate(result[key])]
    return result


def as_declared(wish: Wish) -> dict[str, Any]:
    """The other way round."""
    result = dict(wish)
    if "mdev" in wish:
        result["mdev"] = [_plain(item) for item in wish["mdev"]]
    if "gpu" in wish:
        result["gpu"] = _plain(wish["gpu"])
    return result


def _plain(item: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key not in ("device", "device_api")}


# --- What stands against it ------------------------------------------------------------------------------------------


def _refusal(
    state: State,
    request: Request,
    kin: Sequence[Share],
    fitting: Sequence[Share],
    holders: Mapping[str, Sequence[str]],
    claimed: Mapping[str, str],
) -> Refusal:
    if not kin:
        reason, way_out = _unknown(state, request)
    elif not fitting:
        have = ", ".join(f"{share.name} (node {share.node})" for share in kin)
        reason, way_out = f"there is no {_asked(request)} near NUMA node {request.node}: {have}.", "Ask for numa: any, or declare one there."
    else:
        held = "; ".join(f"{share.name}: {', '.join(others(share.name, request.guest, holders, claimed))}" for share in fitting)
        if _is_certain(request.item):
            reason, way_out = f"the {_asked(request)} is held by {held.partition(': ')[2]}.", "Give it back there first, or name another one."
        else:
            reason = f"there is no free {_asked(request)}; they are held by {held}.{_room(state, fitting)}"
            way_out = f"Give one of them back, or declare more ({_list_of(request)})."
    return Refusal(request.guest, f"{request.where}: {reason}", f"{way_out} Nothing was changed.")


def _list_of(request: Request) -> str:
    return "vgpu_devices, or mdev_devices" if request.key == "gpu" else "mdev_devices"


def _asked(request: Request) -> str:
    item = request.item
    if request.key == "gpu":
        return f"vGPU of the type {item['vgpu']!r}" + (f" on {item['address']}" if "address" in item else "")
    if "uuid" in item:
        return f"mediated device {item['uuid']}"
    if "pool" in item:
        return f"mediated device of the pool {item['pool']}"
    return f"mediated device of the type {item['type']!r}" + (f" on {item['parent']}" if "parent" in item else "")


def _unknown(state: State, request: Request) -> tuple[str, str]:
    item, shares = request.item, known(state).values()
    if request.key == "gpu":
        return _no_vgpu(state, item, request)
    if "uuid" in item:
        parent = next((parent for parent, devices in _defined(state).items() if item["uuid"] in devices), None)
        if parent:
            return f"the {_asked(request)} is defined on {parent} and not there now.", "Run the role devices first, which starts it."
        return f"there is no {_asked(request)} on this host.", "Declare it (uuids in mdev_devices), or name another one."
    if "pool" in item:
        pools = ", ".join(sorted({share.pool for share in shares if share.pool}))
        have = f"the pools of mediated devices on this host are {pools}" if pools else "this host has none"
        return f"there is no pool {item['pool']} of mediated devices: {have}.", "Declare it (pool in mdev_devices)."
    return f"no {_asked(request)} is declared on this host. {_offered(state)}", "Declare it (mdev_devices) first."


def _defined(state: State) -> dict[str, list[str]]:
    """Parent -> UUIDs that are declared or defined on it."""
    found = {parent: list(devices) for parent, devices in state.more[MDEV]["defined"].items()}
    for parent, entry in state.stored.get(MDEV, {}).get("devices", {}).items():
        found.setdefault(parent, []).extend(device["uuid"] for device in entry["wish"]["devices"])
    for uuid, gpu in _of_gpus(state).items():
        found.setdefault(gpu, []).append(uuid)
    return found


def _no_vgpu(state: State, item: Mapping[str, Any], request: Request) -> tuple[str, str]:
    shares = [share for share in known(state).values() if share.gpu]
    there = [share for share in shares if item.get("address") in (share.name, share.parent, share.gpu)]
    if there:
        have = ", ".join(f"{share.name} has {share.shown()}" for share in there)
        return f"there is no vGPU of the type {item['vgpu']!r} on {item['address']}: {have}.", "Name its type, or another VF or GPU."
    have = ", ".join(f"{share.name} ({share.shown()} of {share.gpu}{'' if share.declared else '; not declared'})" for share in shares)
    mediated = _offered(state, gpus=True)
    reason = f"no {_asked(request)} is declared on this host; its vGPUs are {have or 'none'}.{' ' if mediated else ''}{mediated}"
    return reason, f"Declare it ({_list_of(request)}) first."


def _offered(state: State, gpus: bool = False) -> str:
    """What the parents of the host have, with the free instances."""
    said = []
    for parent, types in state.more[MDEV]["parents"].items():
        if gpus and not _gpu(state.functions.get(parent)):
            continue
        each = ", ".join(f"{name}{_quoted(facts['name'])} ({facts['available']} free)" for name, facts in types.items())
        said.append(f"{parent} offers {each or 'nothing'}")
    return f"{'; '.join(said)}." if said else ("" if gpus else "No parent of mediated devices is there (/sys/class/mdev_bus).")


def _quoted(name: str) -> str:
    return f" {name!r}" if name else ""


def _room(state: State, shares: Sequence[Share]) -> str:
    """Could there be more of them?"""
    said = []
    for parent, type_ in dict.fromkeys((share.parent, share.type) for share in shares if share.device_api):
        facts = state.more[MDEV]["parents"].get(parent, {}).get(type_)
        if facts:
            said.append(f"{parent} has room for {facts['available']} more of {type_}")
    return f" {'; '.join(said)}." if said else ""


def check(state: State, wish: Wish, domain: Domain | None) -> list[Refusal]:
    """What stands against a declaration whose items are resolved."""
    found = []
    for key, index, item in shares_of(wish):
        wrong = _wrong_display(wish, item, domain) or _wrong_vf(state, item)
        if wrong:
            found.append(Refusal(str(wish["name"]), f"{where(key, index)}: {wrong[0]}", f"{wrong[1]} Nothing was changed."))
    return found


def _wrong_display(wish: Wish, item: Mapping[str, Any], domain: Domain | None) -> tuple[str, str] | None:
    if not item.get("display"):
        return None
    if item["device_api"] != PCI_API:
        what = f"the API of its type is {item['device_api']}" if item["device_api"] else "a VF shows nothing to the host"
        return f"display is of mediated devices that are cards ({PCI_API}), and {what}.", "Leave display out."
    if "display" in wish:
        graphics = wish["display"]["model"] == "emulated"
    else:
        graphics = bool(domain and compare.parse(domain.inactive).find("devices/graphics") is not None)
    if not graphics:
        return "display needs something to be shown on, and the guest has no graphics.", "Set display.model of the guest to emulated."
    return None


def _wrong_vf(state: State, item: Mapping[str, Any]) -> tuple[str, str] | None:
    function = state.functions.get(item["device"])
    if item["device_api"] or (function and function.group):
        return None
    return f"{item['device']} has no IOMMU group: no guest can have it.", "Turn the IOMMU on (role iommu) and reboot."


# --- What is told of them --------------------------------------------------------------------------------------------


def of_guest(state: State, domain: Domain) -> list[dict[str, Any]]:
    """The mediated devices that a guest has or names. What is not there has no parent."""
    found: dict[str, dict[str, Any]] = {}
    active = state.more.get(MDEV, {}).get("devices", {})
    for text in (domain.live, domain.inactive):
        for device in compare.parse(text).iterfind("devices/hostdev[@type='mdev']") if text else ():
            uuid = compare.address_of(device)
            said = active.get(uuid, {})
            found.setdefault(uuid, {"uuid": uuid, "model": device.get("model"), "parent": said.get("parent"), "type": said.get("type")})
    return list(found.values())
