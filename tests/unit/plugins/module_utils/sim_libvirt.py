# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The simulated kernel as a KVM host: huge pages, KSM, /dev/kvm, systemd's units, groups, and libvirt behind virsh.

Huge pages: set_max_huge_pages and the boot parameters in mm/hugetlb.c. Units: systemctl(1), systemd.unit(5) (Also=), and the
refusal "Socket service %s already active, refusing." of socket.c. libvirt: networkDefineXML and storagePoolDefineXML
(names and UUIDs), storagePoolUpdateStateCallback (a pool whose folder is there is active when a daemon starts), its files as on
Debian 13 (lab).
"""

from __future__ import annotations

import errno
import re
import uuid
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from ansible_collections.iovirt.host.plugins.module_utils._engine import cmdline
from ansible_collections.iovirt.host.plugins.module_utils._engine.kvm import daemons, hugepages
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils import sim_params

if TYPE_CHECKING:
    from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import SimKernel

MIB = 1024
NETWORKS, POOLS = "/etc/libvirt/qemu/networks", "/etc/libvirt/storage"
ACTIVE = "/run/libvirt/network"
DEFINED = {"net": NETWORKS, "pool": POOLS}
#: As Debian's package brings it.
DEFAULT = """<network>
  <name>default</name>
  <bridge name='virbr0'/>
  <forward/>
  <ip address='192.168.122.1' netmask='255.255.255.0'>
    <dhcp>
      <range start='192.168.122.2' end='192.168.122.254'/>
    </dhcp>
  </ip>
</network>
"""
_NO_DAEMON = """error: failed to connect to the hypervisor
error: Failed to connect socket to '/var/run/libvirt/libvirt-sock': No such file or directory
"""
WORKS = {"api": 12, "vm": True, "ran": True, "step": None, "errno": None}
VALIDATE = """  QEMU: Checking for hardware virtualization                                 : PASS
  QEMU: Checking if device '/dev/kvm' exists                                 : PASS
  QEMU: Checking for device assignment IOMMU support                         : WARN (No ACPI IVRS table found, IOMMU either disabled in BIOS or not supported)
  QEMU: Checking for secure guest support                                    : WARN (Unknown if this platform has Secure Guest support)
"""


def install(sim: SimKernel, kind: str | None = "monolithic", nodes: int = 1, module: str = "kvm_amd") -> KvmHost:
    """Make a host a KVM host. `kind` of libvirt's daemons; None: it is not installed."""
    host = KvmHost(sim, nodes)
    sim.virt = host
    paging = {"kvm_amd": "npt", "kvm_intel": "ept"}[module]
    sim_params.add(sim, module, nested=("bool", "1"), **{paging: ("bool", "1")})
    host.module = module
    sim.files["/proc/cpuinfo"] = f"processor\t: 0\nflags\t\t: fpu {'svm npt' if module == 'kvm_amd' else 'vmx ept'}\n"
    sim.files["/etc/passwd"] = "root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n"
    sim.files["/etc/group"] = "root:x:0:\n"
    if kind:
        host.install(kind)
    sim._tree = None
    return host


class KvmHost:
    """What is behind the files and commands of a KVM host."""

    def __init__(self, sim: SimKernel, nodes: int) -> None:
        self.sim = sim
        self.module = ""
        self.nodes = list(range(nodes))
        #: KiB of each node; (KiB, node) -> pages, and those of them that are surplus.
        self.memory = 8 * MIB * MIB
        self.pages = {(size, node): 0 for size in (2048, 1048576) for node in self.nodes}
        self.surplus: dict[tuple[int, int], int] = {}
        #: Size -> pages of a node that there is room for at most, now; those that the kernel gets at boot.
        self.room: dict[int, int] = {}
        #: KiB that are taken by others on each node.
        self.taken = 1 * MIB * MIB
        self.ksm, self.sharing = "0", 0
        self.has_ksm = True
        self.answer: dict[str, Any] | None = dict(WORKS)
        self.vms = 0
        self.pools: set[str] = set()
        #: Unit -> [LoadState, ActiveState, UnitFileState].
        self.units: dict[str, list[str]] = {}
        #: Units that do not do what systemctl is told.
        self.stubborn: set[str] = set()
        #: What virsh answers instead, by its first word: what it says on standard error.
        self.refusals: dict[str, str] = {}
        #: Commands of virsh that succeed and do nothing.
        self.deaf: set[str] = set()

    def install(self, kind: str, enabled: bool = False) -> None:
        """A distribution's packages: its daemons, its default network, its group and polkit's rule."""
        file = "enabled" if enabled else "disabled"
        for name in [*daemons.units_of(kind), "virtlogd.socket", "virtlogd-admin.socket"]:
            self.units[name] = ["loaded", "inactive", file]
        main = "libvirtd" if kind == "monolithic" else "virtqemud"
        self.sim.files.update({
            f"/usr/sbin/{main}": "",
            "/usr/sbin/dnsmasq": "",
            f"{NETWORKS}/default.xml": DEFAULT,
            "/usr/share/polkit-1/actions/org.libvirt.unix.policy": "",
            "/usr/share/polkit-1/rules.d/60-libvirt.rules": "",
        })
        self.sim.files["/etc/group"] += "libvirt:x:105:\n"
        self.sim._tree = None

    # --- Hooks of the simulated kernel -----------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        pages = {"pages": dict(self.pages), "ksm": self.ksm, "pools": set(self.pools)}
        return {**pages, "units": {name: list(unit) for name, unit in self.units.items()}}

    def nodes_of_tree(self) -> dict[str, str]:
        found = {"/dev/kvm": "", f"/sys/module/{self.module}/refcnt": f"{self.vms}\n", "/proc/meminfo": self._meminfo(None)}
        if not self.sim.params[self.module].loaded:
            found.pop(f"/sys/module/{self.module}/refcnt")
        if self.has_ksm:
            found.update({"/sys/kernel/mm/ksm/run": f"{self.ksm}\n", "/sys/kernel/mm/ksm/pages_sharing": f"{self.sharing}\n"})
        for node in self.nodes:
            found[f"/sys/devices/system/node/node{node}/meminfo"] = self._meminfo(node)
        for size in {size for size, _node in self.pages}:
            for place in (None, *self.nodes):
                folder = hugepages.folder_of(size, place)
                found[f"{folder}/nr_hugepages"] = f"{self._sum(self.pages, size, place)}\n"
                found[f"{folder}/surplus_hugepages"] = f"{self._sum(self.surplus, size, place)}\n"
        if self._listening():
            found["/run/libvirt/libvirt-sock"] = ""
        found.update({f"/sys/class/net/{name}/bridge/stp_state": "0\n" for name in self._bridges()})
        return found

    def _sum(self, table: dict[tuple[int, int], int], size: int, node: int | None) -> int:
        return sum(count for (s, at), count in table.items() if s == size and node in (None, at))

    def _meminfo(self, node: int | None) -> str:
        nodes = self.nodes if node is None else [node]
        total = self.memory * len(nodes)
        free = total - self.taken * len(nodes) - sum(size * n for (size, at), n in self.pages.items() if at in nodes)
        if node is None:
            return f"MemTotal:       {total} kB\nMemFree:        {free} kB\nMemAvailable:   {free} kB\n"
        return f"Node {node} MemTotal:       {total} kB\nNode {node} MemFree:        {free} kB\nNode {node} FilePages:      0 kB\n"

    def _bridges(self) -> list[str]:
        """Those that active networks made."""
        active = [text for path, text in self.sim.files.items() if path.startswith(f"{ACTIVE}/")]
        found = [ElementTree.fromstring(text).find("bridge") for text in active]
        return [bridge.get("name", "") for bridge in found if bridge is not None]

    def write(self, real: str, data: str) -> int | None:
        if real == "/sys/kernel/mm/ksm/run":
            # run_store, mm/ksm.c.
            if data not in ("0", "1", "2"):
                return errno.EINVAL
            self.ksm, self.sharing = data, 0 if data == "2" else self.sharing
            return 0
        found = re.fullmatch(r"(?:.*/node(\d+))?.*/hugepages-(\d+)kB/nr_hugepages", real)
        return self._set_pages(int(found[2]), found[1], int(data)) if found else None

    def _set_pages(self, size: int, node: str | None, count: int) -> int:
        """As many as there is room for, and success (set_max_huge_pages)."""
        places = self.nodes if node is None else [int(node)]
        for number, place in enumerate(places):
            share = count // len(places) + (number < count % len(places))
            most = self.room.get(size, 1 << 30)
            free = self.memory - self.taken - sum(s * n for (s, at), n in self.pages.items() if at == place and s != size)
            self.pages[size, place] = min(share, most, free // size)
        return 0

    def boot(self) -> None:
        """hugetlb_nrpages_setup: before anything else takes the memory."""
        self.ksm, self.sharing, self.surplus = "0", 0, {}
        self.pages = dict.fromkeys(self.pages, 0)
        for size, count in cmdline.huge_pages(cmdline.split(self.sim.files["/proc/cmdline"])).items():
            kib = hugepages.parse(size or "2M") or 0
            for part in (count or "").split(","):
                node, colon, number = part.rpartition(":")
                if colon:
                    self.pages[kib, int(node)] = int(number)
                else:
                    for place in self.nodes:
                        self.pages[kib, place] = int(number) // len(self.nodes)
        for path, text in self.sim.files.items():
            found = re.search(r"^w /sys/kernel/mm/ksm/run - - - - (\d)$", text, re.MULTILINE)
            if path.startswith("/etc/tmpfiles.d/") and found:
                self.ksm = found[1]
        for unit in self.units.values():
            unit[1] = "active" if unit[2] == "enabled" else "inactive"
        for link in [p for p in self.sim.links if p.startswith(f"{NETWORKS}/autostart/")]:
            name = link.rpartition("/")[2]
            self.sim.files[f"{ACTIVE}/{name}"] = self.sim.files[f"{NETWORKS}/{name}"]
        self.pools.clear()
        self._pools_come_up()

    def _pools_come_up(self) -> None:
        for path, text in self.sim.files.items():
            if path.startswith(f"{POOLS}/") and path.endswith(".xml"):
                folder = ElementTree.fromstring(text).findtext("target/path") or "?"
                if any(other.startswith(f"{folder}/") for other in self.sim.files):
                    self.pools.add(path.rpartition("/")[2][:-4])

    def run(self, argv: list[str], data: str) -> tuple[int, str, str] | None:
        """None for a command that is not ours."""
        if argv[0] == "timeout":
            return self.run(argv[2:], data)
        if argv[0] == "systemctl":
            return self._systemctl(argv[1], [word for word in argv[2:] if not word.startswith("-")])
        if argv[0] == "virsh":
            return self._virsh(argv[4:], data)
        if argv[0] == "gpasswd":
            return self._gpasswd(argv)
        if argv[:2] == ["getent", "passwd"]:
            return (0, "", "") if argv[3] == "dora" else (2, "", "")
        if argv[0] == "virt-host-validate":
            return 1, VALIDATE, ""
        return None

    @staticmethod
    def reads(argv: list[str]) -> bool:
        """Does a command only look?"""
        words = argv[2:] if argv[0] == "timeout" else argv
        asks = "".join(words[4:5]) in ("net-uuid", "pool-uuid", "pool-list")
        return asks or words[:2] == ["systemctl", "show"] or words[0] in ("getent", "virt-host-validate")

    # --- systemd ---------------------------------------------------------------------------------------------------

    def _systemctl(self, verb: str, names: list[str]) -> tuple[int, str, str]:
        if verb == "show":
            blocks = [self._show(name) for name in names]
            return 0, "\n".join(blocks), ""
        if verb not in ("enable", "disable", "start", "stop"):
            return 0, "", ""
        for name in names:
            if name not in self.units:
                return 5, "", f"Failed to {verb} {name}: Unit {name} not found."
        for name in names:
            served = name.replace(".socket", ".service").replace("-ro.", ".").replace("-admin.", ".")
            if verb == "start" and name.endswith(".socket") and self.units.get(served, ["", ""])[1] == "active":
                return 1, "", f"Job for {name} failed. Socket service {served} already active, refusing."
            if name not in self.stubborn:
                self._change(verb, name)
        return 0, "", ""

    def _change(self, verb: str, name: str) -> None:
        if verb in ("start", "stop"):
            self.units[name][1] = "active" if verb == "start" else "inactive"
            if name in ("libvirtd.socket", "virtqemud.socket"):
                self.pools.clear()
                self._pools_come_up()
            return
        self.units[name][2] = f"{verb}d"
        if name.endswith(".service"):
            # Also= in the service's [Install].
            for suffix in ("", "-ro", "-admin"):
                also = self.units.get(name.replace(".service", f"{suffix}.socket"))
                if also:
                    also[2] = f"{verb}d"

    def _show(self, name: str) -> str:
        load, active, file = self.units.get(name, ["not-found", "inactive", ""])
        return f"Id={name}\nLoadState={load}\nActiveState={active}\nUnitFileState={file}\n"

    def up(self, name: str, enabled: bool = False) -> None:
        self.units[name][1] = "active"
        if enabled:
            self.units[name][2] = "enabled"

    # --- libvirt ---------------------------------------------------------------------------------------------------

    def _virsh(self, words: list[str], data: str) -> tuple[int, str, str]:
        if not self._listening():
            return 1, "", _NO_DAEMON
        if words[0] in self.refusals:
            return 1, "", f"error: {self.refusals[words[0]]}\n"
        if words[0] in self.deaf:
            return 0, "", ""
        if words[0] == "pool-list":
            return 0, "".join(f"{name}\n" for name in sorted(self.pools)) + "\n", ""
        verb, _dash, what = words[0].partition("-")
        return self._define(verb, data) if what == "define" else self._existing(verb, what, words[1:])

    def _listening(self) -> bool:
        return any(self.units.get(n, ["", ""])[1] == "active" for n in ("libvirtd.socket", "libvirtd.service", "virtqemud.socket"))

    def _define(self, verb: str, data: str) -> tuple[int, str, str]:
        root = ElementTree.fromstring(data)
        name, known = root.findtext("name"), root.find("uuid")
        path = f"{DEFINED[verb]}/{name}.xml"
        if path in self.sim.files:
            self._give_uuid(path)
            there = ElementTree.fromstring(self.sim.files[path]).findtext("uuid")
            if known is None or known.text != there:
                return 1, "", f"error: operation failed: network '{name}' already exists with uuid {there}\n"
        if known is None:
            self.sim.files[path] = data
            self._give_uuid(path)
        else:
            self.sim.files[path] = data
        self.sim._tree = None
        return 0, "", ""

    def _give_uuid(self, path: str) -> None:
        root = ElementTree.fromstring(self.sim.files[path])
        if root.find("uuid") is None:
            element = ElementTree.Element("uuid")
            element.text = str(uuid.uuid5(uuid.NAMESPACE_OID, path))
            root.insert(1, element)
            if root.tag == "network" and root.find("bridge") is None:
                ElementTree.SubElement(root, "bridge", name="virbr7")
            self.sim.files[path] = ElementTree.tostring(root, encoding="unicode")

    def _existing(self, verb: str, what: str, words: list[str]) -> tuple[int, str, str]:
        path, link = f"{DEFINED[verb]}/{words[0]}.xml", f"{DEFINED[verb]}/autostart/{words[0]}.xml"
        files = self.sim.files
        if path not in files:
            return 1, "", f"error: failed to get {verb} '{words[0]}'\n"
        if what == "uuid":
            self._give_uuid(path)
            return 0, ElementTree.fromstring(files[path]).findtext("uuid") or "", ""
        if what in ("start", "destroy"):
            return self._switch(verb, words[0], what == "start")
        if what == "undefine":
            if verb == "pool" and words[0] in self.pools:
                return 1, "", f"error: Requested operation is not valid: storage pool '{words[0]}' is still active\n"
            files.pop(path)
            self.sim.links.pop(link, None)
        elif what == "autostart" and "--disable" in words:
            self.sim.links.pop(link, None)
        elif what == "autostart":
            self.sim.links[link] = path
        elif what == "build":
            files[(ElementTree.fromstring(files[path]).findtext("target/path") or "") + "/.keep"] = ""
        self.sim._tree = None
        return 0, "", ""

    def _switch(self, verb: str, name: str, on: bool) -> tuple[int, str, str]:
        files, status = self.sim.files, f"{ACTIVE}/{name}.xml"
        if on == (status in files if verb == "net" else name in self.pools):
            return 1, "", f"error: Requested operation is not valid: it is {'already' if on else 'not'} active\n"
        if verb == "pool":
            self.pools.symmetric_difference_update({name})
        elif on:
            files[status] = files[f"{NETWORKS}/{name}.xml"]
        else:
            files.pop(status)
        self.sim._tree = None
        return 0, "", ""

    # --- Users -----------------------------------------------------------------------------------------------------

    def _gpasswd(self, argv: list[str]) -> tuple[int, str, str]:
        verb, user, group = argv[1:4]
        lines = []
        for line in self.sim.files["/etc/group"].splitlines():
            fields = line.split(":")
            if fields[0] == group:
                names = [name for name in fields[3].split(",") if name and name != user]
                fields[3] = ",".join([*names, user] if verb == "-a" else names)
            lines.append(":".join(fields))
        self.sim.files["/etc/group"] = "\n".join(lines) + "\n"
        self.sim._tree = None
        return 0, "", ""
