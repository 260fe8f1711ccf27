# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What of a declaration this host cannot give. Pure. What a guest has already, while it runs, is not asked about again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from .. import guards
from ..model import Function, Refusal, State
from . import compare
from .facts import Facts
from .virt import Domain
from .wish import Wish, cpus, functions, kib, shares_of

_KIND_OF_TYPE = {"kvm": "kvm", "tcg": "qemu"}


def on_host(facts: Facts, wish: Wish) -> list[Refusal]:
    """What is missing for one guest."""
    parts = (_memory, _processors, _accelerator, _networks, _files)
    return [Refusal(str(wish["name"]), reason, f"{way_out} Nothing was changed.") for part in parts for reason, way_out in part(facts, wish)]


Missing = Iterator[tuple[str, str]]


def _starts(facts: Facts, wish: Wish) -> bool:
    """Is it to be started, and so needs now what it names?"""
    domain = facts.domains.get(str(wish["name"]))
    return wish.get("state") == "running" and not (domain and domain.active)


def _memory(facts: Facts, wish: Wish) -> Missing:
    wanted = kib(wish.get("memory", "")) or 0
    if facts.memory and wanted > facts.memory:
        yield f"memory {wish['memory']} is more than this host has ({facts.memory // 1024} MiB).", "Lower memory."
        return
    if "hugepages" not in wish:
        return
    size, node = kib(wish["hugepages"]) or 0, wish.get("numa_node")
    where = "this host" if node is None else f"NUMA node {node}"
    if (None, size) not in facts.hugepages:
        sizes = ", ".join(f"{size // 1024}M" for size in sorted({size for _node, size in facts.hugepages})) or "none"
        yield f"hugepages {wish['hugepages']}: this host has no pages of that size (it has {sizes}).", "Take one of these sizes."
        return
    pages, free = facts.hugepages.get((node, size), (0, 0))
    if wanted % size:
        yield f"memory {wish['memory']} is no multiple of its pages ({wish['hugepages']}).", "Let it be one."
    elif wanted > (free if _starts(facts, wish) else pages) * size:
        have = f"{pages} of {size // 1024}M, {free} of them free"
        yield f"hugepages {wish['hugepages']}: {where} has {have}, and the guest needs {wanted // size}.", "Set more aside (kvm_hugepages of the role kvm)."


def _processors(facts: Facts, wish: Wish) -> Missing:
    cpu = wish.get("cpu", {})
    named = [(f"cpu.pinning[{n}].cpus", pin["cpus"]) for n, pin in enumerate(cpu.get("pinning", ()))]
    named += [("cpu.emulator_cpus", cpu["emulator_cpus"])] if "emulator_cpus" in cpu else []
    for what, text in named:
        absent = (cpus(text) or frozenset()) - facts.cpus if facts.cpus else frozenset()
        if absent:
            yield f"{what} {text}: this host has no CPU {compare.spelled(absent)} (online: {compare.spelled(facts.cpus)}).", "Name CPUs that are online."
    node = wish.get("numa_node")
    if node is not None and facts.nodes and node not in facts.nodes:
        yield f"numa_node {node}: this host has the nodes {', '.join(map(str, sorted(facts.nodes)))}.", "Name one of them."


def _accelerator(facts: Facts, wish: Wish) -> Missing:
    accel = wish.get("cpu", {}).get("accel") or ("kvm" if wish["name"] not in facts.domains else None)
    if accel and facts.types and _KIND_OF_TYPE[accel] not in facts.types:
        way_out = "Switch virtualization on (role kvm), or take cpu.accel: tcg." if accel == "kvm" else "Install QEMU's emulator."
        yield f"libvirt offers no {accel} for {facts.arch} on this host.", way_out


def _networks(facts: Facts, wish: Wish) -> Missing:
    netdevs = facts.state.netdevs
    for number, item in enumerate(wish.get("network", ())):
        here = f"network[{number}]"
        if "bridge" in item and item["bridge"] not in netdevs:
            yield f"{here}: there is no bridge {item['bridge']} on this host.", "Make it first, or name another one."
        elif "bridge" in item and netdevs[item["bridge"]].kind not in guards.SWITCHES:
            kind = netdevs[item["bridge"]].kind or "a port"
            yield f"{here}: {item['bridge']} is no bridge ({kind}).", "Name a bridge, or take the model macvtap for a port."
        if "nat" in item and facts.assumed:
            # Which networks there will be, the call that makes libvirt answer knows.
            continue
        if "nat" in item and item["nat"] not in facts.networks:
            known = ", ".join(sorted(facts.networks)) or "none"
            yield f"{here}: libvirt has no network {item['nat']} (it has {known}).", "Define it first (role kvm), or name another one."
        elif "nat" in item and not facts.networks[item["nat"]] and _starts(facts, wish):
            yield f"{here}: libvirt's network {item['nat']} is not active.", f"Start it: virsh net-start {item['nat']}."
        if "parent" in item and item["parent"] not in netdevs:
            yield f"{here}: there is no port {item['parent']} on this host.", "Name another one."


def _files(facts: Facts, wish: Wish) -> Missing:
    for key in ("kernel", "initrd"):
        path = wish.get("boot", {}).get(key)
        if path and facts.files.get(path) is None:
            yield f"boot.{key}: there is no {path} on this host.", "Put it there first."
    for number, item in enumerate(wish.get("disks", ())):
        here, path, source = f"disks[{number}]", item.get("path"), item.get("source")
        if path is None or facts.files.get(path) is not None:
            continue
        if path.startswith("/dev/"):
            yield f"{here}: there is no {path} on this host.", "Name another one."
        elif source is None and "size" not in item:
            yield f"{here}: there is no {path}, and nothing says what it is made of.", "Name size (an empty disk) or source."
        elif source and "://" not in source and facts.files.get(source) is None:
            yield f"{here}: there is no {source} on this host.", "Put it there first, or name a URL."


# --- Among guests ----------------------------------------------------------------------------------------------------


def macs(facts: Facts, wishes: Sequence[Wish]) -> list[Refusal]:
    """No MAC twice: two guests of the list, a guest that is not in it, the host itself."""
    named = {str(wish["name"]) for wish in wishes}
    holders: dict[str, str] = {n.mac: f"the host's port {n.name}" for n in facts.state.netdevs.values() if n.mac and n.kind != "tun"}
    for domain in facts.domains.values():
        if domain.name not in named:
            holders.update(dict.fromkeys(_macs_of(domain), f"the guest {domain.name}"))
    found = []
    for wish in wishes:
        known = facts.domains.get(str(wish["name"]))
        own = _macs_of(known) if known else frozenset()
        for number, item in enumerate(wish.get("network", ())):
            mac, who = item.get("mac"), f"network[{number}] of the guest {wish['name']}"
            if mac is None:
                continue
            other = holders.get(mac)
            # A VF's own network device, or a macvtap, shows the MAC that the guest has.
            if other and not (other.startswith("the host's") and mac in own):
                reason = f"network[{number}] and {other} would both have the MAC {mac}."
                found.append(Refusal(str(wish["name"]), reason, "Give each its own; nothing was changed."))
            holders[mac] = who
    return found


def _macs_of(domain: Domain) -> frozenset[str]:
    texts = [text for text in (domain.inactive, domain.live) if text]
    elements = [mac for text in texts for mac in compare.parse(text).iterfind("devices/interface/mac")]
    return frozenset(mac.get("address", "").lower() for mac in elements)


def functions_of(domain: Domain) -> frozenset[str]:
    """The PCI functions that a guest names, now or from its next start on."""
    return _addresses(domain.inactive) | _addresses(domain.live)


def mediated_of(domain: Domain) -> frozenset[str]:
    """The same of mediated devices, by their UUIDs."""
    return (_named(domain.inactive) | _named(domain.live)) - functions_of(domain)


def running_with(domain: Domain | None) -> frozenset[str]:
    return _addresses(domain.live) if domain else frozenset()


def _addresses(text: str) -> frozenset[str]:
    return frozenset(name for name in _named(text) if name.count(":") == 2)


def _named(text: str) -> frozenset[str]:
    """Functions by their address, mediated devices by their UUID."""
    if not text:
        return frozenset()
    devices = compare.parse(text).find("devices")
    found = (compare.address_of(device) for device in (devices if devices is not None else ()))
    return frozenset(name for name in found if name)


def holders(facts: Facts, leaving: Collection[str]) -> dict[str, list[str]]:
    """PCI address, or UUID of a mediated device -> who has it or names it: guests by their plain name, then who else uses it. Guests that go
    with this call hold nothing."""
    found: dict[str, list[str]] = {}
    for domain in facts.domains.values():
        for name in functions_of(domain) | mediated_of(domain) if domain.name not in leaving else ():
            found.setdefault(name, []).append(domain.name)
    for address, users in (facts.state.users or {}).items():
        others = [user.who for user in users if not _is_known(user.who, facts.domains)]
        # The process that holds the group of a guest's VF is that guest's QEMU.
        if others and not any(name in found.get(address, ()) for name in facts.domains if facts.domains[name].active):
            found.setdefault(address, []).extend(others)
    return found


def _is_known(who: str, domains: Mapping[str, Domain]) -> bool:
    return any(who.startswith(f"the guest {name} (libvirt") for name in domains)


def assignments(facts: Facts, wish: Wish, held: Mapping[str, Sequence[str]], allow: Collection[str]) -> list[Refusal]:
    """What stands against giving the functions of a guest to it. The VFs of its pools are among them."""
    name = str(wish["name"])
    domain = facts.domains.get(name)
    state = _without_own(facts.state, name)
    found: list[Refusal] = []
    pinned = functions(wish)
    state = _foreseen(state, [address for _what, address in pinned])
    for what, address in pinned:
        function = state.functions.get(address)
        if function is None:
            found.append(Refusal(name, f"{what}: there is no {address} on this host.", "Name another one; nothing was changed."))
            continue
        others = [who for who in held.get(address, ()) if who != name]
        if others:
            reason = f"{what}: {address} is in use by {', '.join(f'the guest {o}' if o in facts.domains else o for o in others)}."
            found.append(Refusal(name, reason, "Take it from there first, or name another one; nothing was changed."))
        elif address not in running_with(domain):
            found += _usable(state, name, what, function, allow)
    return found


def _foreseen(state: State, addresses: Sequence[str]) -> State:
    """With all that the guest takes at once: none of it stands in another one's way."""
    taken = [state.functions[address] for address in addresses if address in state.functions]
    going = frozenset(name for function in taken for name in function.netdevs)
    return replace(state, going=going, becoming={function.address: "vfio-pci" for function in taken})


def _usable(state: State, name: str, what: str, function: Function, allow: Collection[str]) -> list[Refusal]:
    reason = _unfit(state, function)
    if reason:
        return [Refusal(name, f"{what}: {function.address} {reason[0]}", f"{reason[1]} Nothing was changed.")]
    dangers = guards.before_assignment(state, function) + guards.before_unbind(state, function)
    return [
        replace(danger, device=name, reason=f"{what}: {function.address}: {danger.reason}")
        for danger in dangers
        if danger.danger not in allow
    ]


def _unfit(state: State, function: Function) -> tuple[str, str] | None:
    if function.is_bridge:
        return "is a bridge.", "A bridge is never given to a guest."
    if function.sriov and function.sriov.vfs:
        return f"has {len(function.sriov.vfs)} VFs, which would vanish with its driver.", "Set its vf_count to 0 first."
    if function.group is None:
        return "has no IOMMU group: no guest can have it.", "Turn the IOMMU on (role iommu) and reboot."
    return None


def ports_up(facts: Facts, wish: Wish) -> list[Refusal]:
    """libvirt sets the MAC and VLAN of a VF at its PF, and takes only one that is up ("the PF is not online")."""
    found, name = [], str(wish["name"])
    for number, item in enumerate(wish.get("network", ()) if _starts(facts, wish) else ()):
        function = facts.state.functions.get(item.get("address", "")) if item["model"] == "sriov" else None
        if function is None:
            continue
        if function.physfn is None:
            reason = f"network[{number}]: {function.address} is no VF."
            found.append(Refusal(name, reason, "Take the model passthrough for a whole function; nothing was changed."))
            continue
        pf = facts.state.functions.get(function.physfn)
        ports = [facts.state.netdevs[n] for n in (pf.netdevs if pf else ()) if n in facts.state.netdevs]
        down = [port.name for port in ports if not port.up]
        if down:
            reason = f"network[{number}]: the port {down[0]} of its VF {function.address} is down, and libvirt takes only a VF whose PF is up."
            found.append(Refusal(name, reason, "Set it up (up: true in sriov_devices); nothing was changed."))
    return found


def pinned_memory(facts: Facts, wishes: Iterable[Wish]) -> list[Refusal]:
    """A guest with a function has all of its memory pinned (vfio_pin_map_dma), and libvirt raises its limit to that and 1 GiB more. All of them
    together must fit into the host."""
    total, names = 0, []
    for wish in wishes:
        if wish.get("state") == "running" and "hugepages" not in wish and (functions(wish) or wish.get("locked") or _has_vgpu_vf(wish)):
            total += kib(wish.get("memory", "")) or 0
            names.append(str(wish["name"]))
    if len(names) < 2 or not facts.memory or total <= facts.memory:
        return []
    reason = (
        f"the guests {', '.join(names)} have functions or locked memory, so theirs is pinned: {total // 1024} MiB in all, "
        f"and this host has {facts.memory // 1024}."
    )
    return [Refusal(names[-1], reason, "Lower memory, or run fewer of them; nothing was changed.")]


def _has_vgpu_vf(wish: Wish) -> bool:
    """A VF is a function, whoever drives it. A mediated device pins what it uses, and says so itself."""
    return any(not item["device_api"] for _key, _number, item in shares_of(wish))


def _without_own(state: State, name: str) -> State:
    """What a guest holds itself is not in its way."""
    own = f"the guest {name} (libvirt"
    users = {a: tuple(u for u in users if not u.who.startswith(own)) for a, users in (state.users or {}).items()}
    return replace(state, users=users if state.users is not None else None)
