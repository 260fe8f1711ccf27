# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A simulated libvirt over the simulated kernel: what it fills into a definition, what it does to a VF, its files.

"lab": seen with libvirt 11.3 on the lab host; the documents that it wrote there are in fixtures/libvirt/.
"""

from __future__ import annotations

import copy
import hashlib
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from ansible_collections.iovirt.host.plugins.module_utils._engine.errors import EngineError
from ansible_collections.iovirt.host.plugins.module_utils._engine.guests import compare
from ansible_collections.iovirt.host.plugins.module_utils._engine.guests.virt import Domain
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils import sim_vmdq

CAPABILITIES = """<capabilities><host><cpu><arch>x86_64</arch><model>EPYC</model><vendor>AMD</vendor></cpu></host>
<guest><os_type>hvm</os_type><arch name='x86_64'><domain type='qemu'/><domain type='kvm'/></arch></guest></capabilities>"""

DEFINED, RUNNING = "/etc/libvirt/qemu", "/run/libvirt/qemu"


class SimDomains:
    """The Connection protocol."""

    def __init__(self, sim: Any) -> None:
        self.sim = sim
        self.defined: dict[str, Element] = {}
        self.live: dict[str, Element] = {}
        self.started: set[str] = set()
        self.saved: set[str] = set()
        self.nets = {"default": True}
        self.down = False
        #: Call -> what libvirt answers to it.
        self.faults: dict[str, str] = {}
        #: Guests that do not look at their power button.
        self.deaf: set[str] = set()
        self.calls: list[str] = []
        #: Where VFs were before a guest took them: address -> driver, override, mac, vlan.
        self.kept: dict[str, tuple[Any, ...]] = {}

    def _called(self, name: str, what: str = "") -> None:
        if self.down:
            raise EngineError("libvirt does not answer at qemu:///system: Failed to connect socket. Start it, then run again; nothing was changed.")
        self.calls.append(f"{name} {what}".strip())
        if name not in ("capabilities", "domains", "networks", "active"):
            self.sim.log.append(("libvirt", name, what))
            if self.sim._fails():
                raise EngineError("libvirt answered: simulated failure.")
        if name in self.faults:
            raise EngineError(f"libvirt answered: {self.faults[name]}.")

    # --- Reading ---------------------------------------------------------------------------------------------------

    def capabilities(self) -> str:
        self._called("capabilities")
        return CAPABILITIES

    def domains(self) -> dict[str, Domain]:
        self._called("domains")
        return {name: self._domain(name) for name in {**self.defined, **self.live}}

    def _domain(self, name: str) -> Domain:
        inactive = self.defined.get(name, self.live.get(name))
        live = text(self.live[name]) if name in self.live else ""
        state = "running" if live else "shut off"
        return Domain(name, inactive.findtext("uuid"), text(inactive), live, state, name in self.started, name in self.saved, name in self.defined)

    def networks(self) -> dict[str, bool]:
        self._called("networks")
        return dict(self.nets)

    def active(self, name: str) -> bool:
        self._called("active")
        return name in self.live

    # --- Definitions -----------------------------------------------------------------------------------------------

    def define(self, xml: str) -> None:
        root = ElementTree.fromstring(xml)
        name = root.findtext("name")
        self._called("define", name)
        if "/" in name:
            raise EngineError(f"libvirt answered: XML error: name {name} cannot contain '/'.")
        self.defined[name] = filled(root)
        self._write()

    def undefine(self, name: str) -> None:
        self._called("undefine", name)
        del self.defined[name]
        self.started.discard(name)
        self._write()

    def autostart(self, name: str, value: bool) -> None:
        self._called("autostart", f"{name} {value}")
        (self.started.add if value else self.started.discard)(name)

    def _write(self) -> None:
        """Its own files, which the engine reads for users of devices."""
        for folder, documents in ((DEFINED, self.defined), (RUNNING, self.live)):
            for path in [path for path in self.sim.files if path.startswith(f"{folder}/") and path.count("/") == folder.count("/") + 1]:
                del self.sim.files[path]
            for name, root in documents.items():
                self.sim.files[f"{folder}/{name}.xml"] = text(root) if folder == DEFINED else f"<domstatus state='running'>{text(root)}</domstatus>"
        self.sim._tree = None

    # --- Running ---------------------------------------------------------------------------------------------------

    def create(self, name: str) -> None:
        self._called("create", name)
        root = copy.deepcopy(self.defined[name])
        for device in root.find("devices"):
            self._given(device)
        for number, device in enumerate(root.find("devices")):
            SubElement(device, "alias", name=f"dev{number}")
        self.live[name] = root
        self._write()

    def shutdown(self, name: str) -> None:
        self._called("shutdown", name)
        if name not in self.deaf:
            self.sim.later(5, lambda: self._ended(name))

    def destroy(self, name: str) -> None:
        self._called("destroy", name)
        self._ended(name)

    def _ended(self, name: str) -> None:
        root = self.live.pop(name, None)
        for device in root.find("devices") if root is not None else ():
            self._taken(device)
        self._write()

    def attach(self, name: str, xml: str) -> None:
        self._called("attach", name)
        device = ElementTree.fromstring(xml)
        self._given(device)
        self.live[name].find("devices").append(device)
        self._write()

    def detach(self, name: str, xml: str) -> None:
        self._called("detach", name)
        devices = self.live[name].find("devices")
        label = next(label for label, _child in compare.labelled(_in_list(xml)))
        device = dict(compare.labelled(devices))[label]
        devices.remove(device)
        self._taken(device)
        self._write()

    def update(self, name: str, xml: str) -> None:
        self._called("update", name)
        devices = self.live[name].find("devices")
        label, new = next(compare.labelled(_in_list(xml)))
        old = dict(compare.labelled(devices))[label]
        devices.remove(old)
        devices.append(new)
        self._write()

    def set_vcpus(self, name: str, count: int) -> None:
        self._called("set_vcpus", f"{name} {count}")
        self.live[name].find("vcpu").set("current", str(count))

    def set_memory(self, name: str, kib: int) -> None:
        self._called("set_memory", f"{name} {kib}")
        self.live[name].find("currentMemory").text = str(kib)

    # --- VFs -------------------------------------------------------------------------------------------------------

    def _given(self, device: Element) -> None:
        """lab: driver and override become vfio-pci, MAC and VLAN are set at the PF."""
        address = compare.address_of(device)
        sim_vmdq.guest_device(self.sim, device, there=True)
        if device.get("type") == "mdev":
            self._mediated(device, address)
        if device.tag not in ("interface", "hostdev") or address not in self.sim.functions:
            return
        vf = self.sim.functions[address]
        if device.get("managed") == "no":
            # virHostdevPreparePCIDevices: it is taken as it is, and has to be one of vfio's (here by a vGPU type).
            if not self.sim.vgpu.types.get(address):
                raise EngineError(f"libvirt answered: Unmanaged PCI device {address} must be manually detached from the host.")
            return
        if any(address == compare.address_of(other) for root in self.live.values() for other in root.find("devices")):
            raise EngineError(f"libvirt answered: Requested operation is not valid: PCI device {address} is in use by driver QEMU.")
        self.kept[address] = (vf.driver, vf.override, dict(vf.attributes))
        vf.driver = vf.override = "vfio-pci"
        self.sim.registered.add("vfio-pci")
        if device.tag == "interface":
            tag = device.find("vlan/tag")
            vf.attributes.update(mac=device.find("mac").get("address"), vlan=int(tag.get("id")) if tag is not None else 0, by_pf=True)
        self.sim._tree = None

    def _mediated(self, device: Element, uuid: str) -> None:
        """As qemuValidateDomainDeviceDefHostdev, virMediatedDeviceNew and virHostdevPrepareMediatedDevices answer."""
        if uuid not in self.sim.mdev.devices:
            raise EngineError(f"libvirt answered: device not found: mediated device '{uuid}' not found.")
        if any(uuid == compare.address_of(other) for root in self.live.values() for other in root.find("devices")):
            raise EngineError(f"libvirt answered: Requested operation is not valid: Mediated device /sys/bus/mdev/devices/{uuid} is in use by driver QEMU.")

    def _taken(self, device: Element) -> None:
        """lab: MAC and VLAN are put back; a VF that had a driver of its own goes back to it, its override cleared."""
        address = compare.address_of(device)
        sim_vmdq.guest_device(self.sim, device, there=False)
        if address in self.kept:
            vf = self.sim.functions[address]
            vf.driver, vf.override, vf.attributes = self.kept.pop(address)
            self.sim._tree = None


def _in_list(xml: str) -> Element:
    root = Element("devices")
    root.append(ElementTree.fromstring(xml))
    return root


def text(root: Element) -> str:
    return ElementTree.tostring(root, encoding="unicode")


def filled(root: Element) -> Element:
    """lab: what libvirt makes of a definition."""
    root = copy.deepcopy(root)
    name = root.findtext("name")
    if root.find("uuid") is None:
        seed = hashlib.sha256(name.encode()).hexdigest()
        SubElement(root, "uuid").text = f"{seed[:8]}-{seed[8:12]}-4{seed[13:16]}-8{seed[17:20]}-{seed[20:32]}"
    kind = root.find("os/type")
    kind.set("machine", {"q35": "pc-q35-10.0", "pc": "pc-i440fx-10.0"}.get(kind.get("machine", "pc"), kind.get("machine", "pc")))
    if root.find("os/boot") is None and root.find("os/kernel") is None:
        SubElement(root.find("os"), "boot", dev="hd")
    if root.find("currentMemory") is None:
        SubElement(root, "currentMemory", unit="KiB").text = root.findtext("memory")
    devices = root.find("devices")
    if devices is None:
        devices = SubElement(root, "devices")
    for tag, attributes in (("input", {"type": "mouse", "bus": "ps2"}), ("memballoon", {"model": "virtio"}), ("audio", {"id": "1", "type": "none"})):
        if devices.find(tag) is None:
            SubElement(devices, tag, attributes)
    for number, device in enumerate(devices):
        _fill(device, number)
    return root


def _fill(device: Element, number: int) -> None:
    """An address in the guest; a source's address in libvirt's own spelling; a MAC where there is none."""
    if device.tag in ("interface", "hostdev", "video", "memballoon", "rng") and device.find("address") is None:
        SubElement(device, "address", type="pci", domain="0x0000", bus=f"0x{number + 1:02x}", slot="0x00", function="0x0")
    if device.get("type") == "mdev":
        # lab: what it writes out beside the model.
        device.attrib.setdefault("managed", "no")
        if device.get("model") == "vfio-pci":
            device.attrib.setdefault("display", "off")
    for address in device.iterfind("source/address"):
        for key, digits in (("domain", 4), ("bus", 2), ("slot", 2), ("function", 1)):
            if key in address.attrib:
                address.set(key, f"0x{int(address.get(key), 0):0{digits}x}")
    if device.tag == "interface" and device.find("mac") is None:
        SubElement(device, "mac", address="52:54:00:ff:ff:ff")
