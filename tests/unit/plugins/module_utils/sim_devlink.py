# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""devlink, `ethtool -k` and netdevsim of the simulated kernel.

The JSON has the shape that devlink of iproute2 6.15 (Debian 13) printed on the lab host for netdevsim ("lab"); inline and encap mode stand beside
the mode as devlink-dev(8) prints them. What a driver answers is from its source (Linux 6.12), named at each profile. mlx5 and ice have never been
run here: synthetic, by their source.
"""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .sim import SimKernel

Answer = tuple[int, str, str]

BUS = "/sys/bus/netdevsim/devices"
UNSUPPORTED = (1, "", "kernel answers: Operation not supported")


@dataclass
class Profile:
    """How a driver behaves."""

    inline: bool = False
    encap: bool = False
    #: ice_eswitch_mode_set (ice/ice_eswitch.c): EOPNOTSUPP while there are VFs.
    no_vfs: bool = False
    #: mlx5: a VF that has its driver holds the switch. The kernel does not always say so (the operators' order assumes it); here it is EBUSY.
    unbound: bool = False
    #: Seconds until the port names its switch after the mode has changed (mlx5e: the uplink representor comes from a work queue).
    uplink_delay: float = 0.0


PROFILES = {
    "netdevsim": Profile(),
    "mlx5_core": Profile(inline=True, encap=True, unbound=True, uplink_delay=0.5),
    "ice": Profile(no_vfs=True),
}


@dataclass
class Instance:
    """One devlink device."""

    handle: str
    driver: str
    mode: str = "legacy"
    inline: str = "none"
    encap: str = "none"
    #: Parameter -> cmode -> value.
    params: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: What a driver that was never asked has, for cmode driverinit.
    running: dict[str, Any] = field(default_factory=dict)
    offload: bool = False
    offload_fixed: bool = False
    port_up: bool = True
    #: What it calls its switch, and what it says for now.
    own_id: str = "f4da28f536bb09a1"
    switch_id: str = "f4da28f536bb09a1"
    #: No eswitch at all: 'Operation not supported' (devlink_nl_eswitch_get_doit without eswitch_mode_get).
    eswitch: bool = True
    reloads: int = 0

    @property
    def address(self) -> str:
        return self.handle.partition("/")[2]

    @property
    def profile(self) -> Profile:
        return PROFILES[self.driver]


@dataclass
class Netdevsim:
    """A device of netdevsim: no PCI, VFs that are numbers (lab)."""

    name: str
    ifname: str
    max_vfs: int = 4
    vfs: int = 0


class Devlink:
    """All devlink devices of a simulated host."""

    def __init__(self, sim: SimKernel) -> None:
        self.sim = sim
        self.instances: dict[str, Instance] = {}
        self.netdevsims: dict[str, Netdevsim] = {}
        #: Commands that are not installed.
        self.missing: set[str] = set()
        #: The next sets of these (object or attribute) fail: name -> what devlink says.
        self.failing: dict[str, str] = {}

    def add(self, handle: str, driver: str, **more: Any) -> Instance:
        self.instances[handle] = Instance(handle, driver, **more)
        self.instances[handle].running = {
            name: cmodes["driverinit"] for name, cmodes in self.instances[handle].params.items() if "driverinit" in cmodes
        }
        return self.instances[handle]

    def add_netdevsim(self, number: int = 1) -> Instance:
        """echo "1 1" > /sys/bus/netdevsim/new_device; its parameters as devlink printed them (lab)."""
        name = f"netdevsim{number}"
        self.netdevsims[name] = Netdevsim(name, f"eni{number}np1")
        self.sim._tree = None
        params = {"max_macs": {"driverinit": 32}, "test1": {"driverinit": True}}
        return self.add(f"netdevsim/{name}", "netdevsim", params=params)

    def snapshot(self) -> dict[str, Any]:
        return {
            handle: (i.mode, i.inline, i.encap, json.dumps(i.params), json.dumps(i.running), i.offload)
            for handle, i in self.instances.items()
        } | {name: (device.vfs,) for name, device in self.netdevsims.items()}

    # --- sysfs -----------------------------------------------------------------------------------------------------

    def nodes(self) -> dict[str, Any]:
        from .sim import Link

        nodes: dict[str, Any] = {}
        for name, device in self.netdevsims.items():
            path = f"/sys/devices/{name}"
            nodes[f"{BUS}/{name}"] = Link(path)
            nodes[f"{path}/driver"] = Link("/sys/bus/netdevsim/drivers/netdevsim")
            nodes[f"{path}/sriov_numvfs"] = f"{device.vfs}\n"
            nodes[f"/sys/kernel/debug/netdevsim/{name}/max_vfs"] = f"{device.max_vfs}\n"
        for link in self.links():
            nodes[f"/sys/class/net/{link['ifname']}"] = Link(f"{link['path']}/net/{link['ifname']}")
            for key in ("phys_port_name", "phys_switch_id"):
                nodes[f"{link['path']}/net/{link['ifname']}/{key}"] = link[key] + "\n"
            for upper in [name for name, net in self.sim.nets.items() if net.kind and link["ifname"] in net.lowers]:
                # netdev_adjacent_sysfs_add in net/core/dev.c.
                nodes[f"{link['path']}/net/{link['ifname']}/upper_{upper}"] = Link(f"/sys/class/net/{upper}")
                nodes[f"/sys/devices/virtual/net/{upper}/lower_{link['ifname']}"] = Link(f"/sys/class/net/{link['ifname']}")
        return nodes

    def links(self) -> list[dict[str, Any]]:
        """The network devices that are netdevsim's, and the representors of all."""
        found = []
        for instance in self.instances.values():
            device = self.netdevsims.get(instance.address)
            path = f"/sys/devices/{device.name}" if device else self.sim.functions[instance.address].path
            if device:
                found.append({"ifname": device.ifname, "phys_port_name": "p1", "phys_switch_id": instance.switch_id, "path": path,
                              "up": instance.port_up})
            if instance.mode == "switchdev":
                stem = device.ifname[:-2] if device else self.sim.functions[instance.address].ifname
                for index in range(self._count(instance)):
                    found.append({"ifname": f"{stem}pf0vf{index}", "phys_port_name": f"pf0vf{index}",
                                  "phys_switch_id": instance.switch_id, "path": path, "up": False})
        return found

    def port_attributes(self, address: str) -> dict[str, str]:
        """What `ip -d` and sysfs say of the port of a PCI function: a switch only in switchdev mode (mlx5e, ice)."""
        instance = self.instances.get(f"pci/{address}")
        if instance is None or instance.mode != "switchdev" or not instance.switch_id:
            return {}
        return {"phys_port_name": "p0", "phys_switch_id": instance.switch_id}

    def write(self, real: str, data: str) -> int | None:
        """sriov_numvfs of netdevsim: nsim_drv_configure_vfs (netdevsim/dev.c; lab). None: not ours."""
        folder, _slash, name = real.rpartition("/")
        device = self.netdevsims.get(folder.rpartition("/")[2])
        if device is None or name != "sriov_numvfs":
            return None
        count = int(data)
        if count == device.vfs:
            return 0
        if count and device.vfs:
            return errno.EBUSY
        if count > device.max_vfs:
            return errno.ENOMEM
        device.vfs = count
        if not count:
            # nsim_esw_legacy_enable: with its last VF the switch is back in legacy mode.
            self.instances[f"netdevsim/{device.name}"].mode = "legacy"
        return 0

    def _count(self, instance: Instance) -> int:
        device = self.netdevsims.get(instance.address)
        return device.vfs if device else len(self.sim.functions[instance.address].vfs)

    # --- Commands --------------------------------------------------------------------------------------------------

    def run(self, argv: list[str]) -> Answer | None:
        """None: not ours."""
        if argv[0] in ("devlink", "ethtool") and argv[0] in self.missing:
            return 127, "", f"{argv[0]}: No such file or directory"
        if argv[:2] == ["ethtool", "-k"]:
            return self._features(argv[2])
        if argv[:2] == ["ethtool", "-K"] and argv[3] == "hw-tc-offload":
            return self._set_offload(argv[2], argv[4] == "on")
        if argv[:3] == ["ip", "link", "set"]:
            return self._link_up(argv[4])
        if argv[0] != "devlink":
            return None
        words = [word for word in argv[1:] if word != "-j"]
        if words[:3] == ["dev", "eswitch", "show"]:
            return self._show_eswitch(words[3])
        if words[:3] == ["dev", "param", "show"]:
            return 0, json.dumps({"param": {h: _params(i) for h, i in self.instances.items() if i.params}}), ""
        instance = self.instances.get(words[3] if len(words) > 3 else words[-1])
        if instance is None:
            return 1, "", "kernel answers: No such device"
        if words[:3] == ["dev", "eswitch", "set"]:
            return self._set_eswitch(instance, words[4], words[5])
        if words[:3] == ["dev", "param", "set"]:
            return self._set_param(instance, words[5], words[7], words[9])
        if words[:2] == ["dev", "reload"]:
            return self._reload(instance)
        raise AssertionError(f"the simulated devlink does not know {argv}")

    def _show_eswitch(self, handle: str) -> Answer:
        instance = self.instances.get(handle)
        if instance is None:
            return 1, '{"dev":{}}', "kernel answers: No such device"
        if not instance.eswitch:
            return 1, '{"dev":{}}', "kernel answers: Operation not supported"
        shown = {"mode": instance.mode}
        if instance.profile.inline:
            shown["inline-mode"] = instance.inline
        if instance.profile.encap:
            shown["encap-mode"] = instance.encap
        return 0, json.dumps({"dev": {handle: shown}}), ""

    def _set_eswitch(self, instance: Instance, name: str, value: str) -> Answer:
        if name in self.failing:
            return 1, "", self.failing[name]
        profile = instance.profile
        if name == "mode":
            return self._set_mode(instance, value)
        if (name == "inline-mode" and not profile.inline) or (name == "encap-mode" and not profile.encap):
            return UNSUPPORTED
        setattr(instance, "inline" if name == "inline-mode" else "encap", value)
        return 0, "", ""

    def _set_mode(self, instance: Instance, value: str) -> Answer:
        if instance.mode == value:
            return 0, "", ""
        if instance.profile.no_vfs and self._count(instance):
            said = "Error: ice: Changing eswitch mode is allowed only if there is no VFs created.\nkernel answers: Operation not supported"
            return 1, "", said
        if instance.profile.unbound and any(self.sim.functions[vf].driver for vf in self._vf_functions(instance)):
            return 1, "", "kernel answers: Device or resource busy"
        instance.mode = value
        if instance.profile.uplink_delay:
            instance.switch_id = ""
            self._port(instance, up=False)
            self.sim.later(instance.profile.uplink_delay, lambda: setattr(instance, "switch_id", instance.own_id))
        self.sim._tree = None
        return 0, "", ""

    def _vf_functions(self, instance: Instance) -> list[str]:
        function = self.sim.functions.get(instance.address)
        return list(function.vfs) if function else []

    def _set_param(self, instance: Instance, name: str, value: str, cmode: str) -> Answer:
        """iproute2 looks the parameter up first and says what is not supported itself (lab)."""
        if name in self.failing:
            return 1, "", self.failing[name]
        if name not in instance.params:
            return 1, "", "kernel answers: Invalid argument"
        if cmode not in instance.params[name]:
            return 1, "", "Configuration mode not supported"
        if name == "flow_steering_mode" and instance.mode == "switchdev":
            # mlx5_fs_mode_validate, mlx5/core/fs_core.c.
            said = "Error: mlx5_core: Moving to smfs is not supported when eswitch offloads enabled.\nkernel answers: Operation not supported"
            return 1, "", said
        now = instance.params[name][cmode]
        instance.params[name][cmode] = (value == "true") if isinstance(now, bool) else (int(value) if isinstance(now, int) else value)
        return 0, "", ""

    def _reload(self, instance: Instance) -> Answer:
        """driver_reinit: driverinit values come into force; VFs, mode and what was set on the network device are gone (lab)."""
        if "reload" in self.failing:
            return 1, "", self.failing["reload"]
        for name, cmodes in instance.params.items():
            if "driverinit" in cmodes:
                instance.running[name] = cmodes["driverinit"]
        instance.reloads += 1
        instance.mode, instance.offload = "legacy", False
        self._port(instance, up=False)
        if instance.address in self.netdevsims:
            self.netdevsims[instance.address].vfs = 0
        self.sim._tree = None
        return 0, "", ""

    def _of_netdev(self, netdev: str) -> Instance | None:
        for instance in self.instances.values():
            device, function = self.netdevsims.get(instance.address), self.sim.functions.get(instance.address)
            if netdev == (device.ifname if device else function.ifname if function else None):
                return instance
        return None

    def _features(self, netdev: str) -> Answer:
        instance = self._of_netdev(netdev)
        if instance is None:
            return 75, "", "netlink error: No such device\nCannot get device feature names: No such device"
        word = ("on" if instance.offload else "off") + (" [fixed]" if instance.offload_fixed else "")
        return 0, f"Features for {netdev}:\nrx-checksumming: off [fixed]\nhw-tc-offload: {word}\n", ""

    def _set_offload(self, netdev: str, on: bool) -> Answer:
        instance = self._of_netdev(netdev)
        if instance is None or "hw-tc-offload" in self.failing:
            return 1, "", self.failing.get("hw-tc-offload", "netlink error: No such device")
        instance.offload = on
        return 0, "", ""

    def has_port(self, argv: list[str]) -> bool:
        """Is this `ip link set dev NETDEV up` for a port of ours?"""
        return argv[:3] == ["ip", "link", "set"] and argv[5:] == ["up"] and self._of_netdev(argv[4]) is not None

    def _link_up(self, netdev: str) -> Answer:
        instance = self._of_netdev(netdev)
        if instance is None:
            return 1, "", f'Cannot find device "{netdev}"'
        here = self.sim.netdevs().get(netdev)
        if here:
            self.sim.nets.setdefault(netdev, here[1])
        self._port(instance, up=True)
        return 0, "", ""

    def _port(self, instance: Instance, up: bool) -> None:
        instance.port_up = up
        function = self.sim.functions.get(instance.address)
        if function and function.ifname in self.sim.nets:
            self.sim.nets[function.ifname].up = up
        self.sim._tree = None

    def reboot(self) -> None:
        """netdevsim's devices are gone with a boot, and made anew as whoever made them does; permanent values come into force where there are two."""
        for instance in self.instances.values():
            instance.mode, instance.offload, instance.port_up = "legacy", False, True
            instance.inline = instance.encap = "none"
            for name, value in instance.running.items():
                instance.params[name]["driverinit"] = DEFAULTS.get(name, value)
                instance.running[name] = DEFAULTS.get(name, value)
            for cmodes in instance.params.values():
                for cmode in cmodes:
                    cmodes[cmode] = cmodes.get("permanent", cmodes[cmode])
        for device in self.netdevsims.values():
            device.vfs = 0


#: What a driver starts with, by its source (NSIM_DEV_MAX_MACS_DEFAULT, NSIM_DEV_TEST1_DEFAULT in netdevsim/dev.c).
DEFAULTS = {"max_macs": 32, "test1": True}


def _params(instance: Instance) -> list[dict[str, Any]]:
    return [
        {"name": name, "type": "generic", "values": [{"cmode": cmode, "value": value} for cmode, value in cmodes.items()]}
        for name, cmodes in instance.params.items()
    ]
