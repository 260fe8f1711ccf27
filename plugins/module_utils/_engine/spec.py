# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one source of the argument specifications of modules and roles, in Ansible's format but without Ansible.

A test compares it with the documentation of the modules and with meta/argument_specs.yml of the roles.
"""

from __future__ import annotations

from typing import Any

from .model import DANGERS


def _words() -> dict[str, Any]:
    return {"type": "list", "elements": "str"}


SELECTOR: dict[str, Any] = {
    "address": _words(),
    # Raw, so that a number can be refused: YAML makes 4347 of an unquoted 0x10fb, which would match another device.
    "vendor": {"type": "list", "elements": "raw"},
    "device": {"type": "list", "elements": "raw"},
    "subsystem": _words(),
    "driver": _words(),
    "ifname": _words(),
    "mac": _words(),
    "serial": _words(),
    "class": _words(),
    "numa_node": {"type": "list", "elements": "int"},
    "slot": _words(),
    "vf": {"type": "bool"},
}

_TARGET: dict[str, Any] = {
    "match": {"type": "dict", "required": True, "options": SELECTOR},
    "expect": {"type": "int"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}

#: What can be wished for a VF, by default or for a range.
_VF: dict[str, Any] = {
    "driver": {"type": "str"},
    "nvme_queues": {"type": "int"},
    "nvme_interrupts": {"type": "int"},
    "online": {"type": "bool"},
    "mac": {"type": "str"},
    "vlan": {"type": "int"},
    "qos": {"type": "int"},
    "vlan_proto": {"type": "str", "choices": ["802.1Q", "802.1ad"]},
    "spoof_check": {"type": "bool"},
    "trust": {"type": "bool"},
    "link_state": {"type": "str", "choices": ["auto", "enable", "disable"]},
    "min_tx_rate": {"type": "int"},
    "max_tx_rate": {"type": "int"},
    "query_rss": {"type": "bool"},
    "msix_count": {"type": "int"},
    "node_guid": {"type": "str"},
    "port_guid": {"type": "str"},
    "mtu": {"type": "int"},
    "promisc": {"type": "bool"},
}

SRIOV: dict[str, Any] = {
    **_TARGET,
    "up": {"type": "bool"},
    "vf_count": {"type": "int"},
    # Without choices, so that null can be given for it; the engine refuses other words.
    "vf_netdevs": {"type": "str"},
    "firmware": {"type": "dict", "options": {"sriov": {"type": "bool"}, "vf_count": {"type": "int"}}},
    "eswitch": {
        "type": "dict",
        "options": {
            "mode": {"type": "str", "choices": ["legacy", "switchdev"]},
            "inline_mode": {"type": "str", "choices": ["none", "link", "network", "transport"]},
            "encap_mode": {"type": "str", "choices": ["none", "basic"]},
        },
    },
    "devlink_params": {
        "type": "list",
        "elements": "dict",
        "options": {
            "name": {"type": "str", "required": True},
            "value": {"type": "raw", "required": True},
            "cmode": {"type": "str", "required": True, "choices": ["runtime", "driverinit", "permanent"]},
        },
    },
    "hw_tc_offload": {"type": "bool"},
    "nvme_primary_queues": {"type": "int"},
    "nvme_primary_interrupts": {"type": "int"},
    "vf_defaults": {"type": "dict", "options": _VF},
    "vfs": {
        "type": "list",
        "elements": "dict",
        "options": {"range": {"type": "str", "required": True}, **_VF, "pool": {"type": "str"}},
    },
}

VFIO: dict[str, Any] = {
    **_TARGET,
    "driver": {"type": "str", "default": "vfio-pci"},
    "early": {"type": "bool"},
    "siblings": {"type": "bool"},
}

#: Numbers are of the port; a station that is named is there, up, and in hardware unless require_offload is false.
VMDQ: dict[str, Any] = {
    **_TARGET,
    "offload": {"type": "bool"},
    "require_offload": {"type": "bool", "default": True},
    "queues": {"type": "dict", "options": {kind: {"type": "int"} for kind in ("combined", "rx", "tx")}},
    # Without choices: what a driver has is in vmdq/layouts.py.
    "layout": {"type": "str"},
    "pools": {"type": "int"},
    "stations": {
        "type": "list",
        "elements": "dict",
        "options": {
            "name": {"type": "str", "required": True},
            "kind": {"type": "str", "choices": ["macvlan", "macvtap"], "default": "macvlan"},
            "mac": {"type": "str"},
            "mode": {"type": "str", "choices": ["private", "vepa", "bridge", "passthru", "source"], "default": "bridge"},
            "mtu": {"type": "int"},
            "up": {"type": "bool", "default": True},
        },
    },
}

#: Mediated devices: the one resource that names a parent, which need not be a function of a bus.
_MDEV_SELECTOR: dict[str, Any] = {**SELECTOR, "parent": _words()}

MDEV: dict[str, Any] = {
    **_TARGET,
    "match": {"type": "dict", "required": True, "options": _MDEV_SELECTOR},
    "type": {"type": "str"},
    "count": {"type": "int"},
    "uuids": _words(),
    "attributes": {
        "type": "list",
        "elements": "dict",
        "options": {"name": {"type": "str", "required": True}, "value": {"type": "str", "required": True}},
    },
    "autostart": {"type": "bool"},
    "pool": {"type": "str"},
}

#: GPUs: their drivers name them by more than others do.
_VGPU_SELECTOR: dict[str, Any] = {**SELECTOR, "uuid": _words()}

#: How a VF of an Intel GPU shares it (vgpu/intel_places.py).
PROFILE: dict[str, Any] = {
    "exec_quantum_ms": {"type": "int"},
    "preempt_timeout_us": {"type": "int"},
    "sched_priority": {"type": "str", "choices": ["low", "normal", "high"]},
    "vram_quota": {"type": "int"},
    "ggtt_quota": {"type": "int"},
    "contexts_quota": {"type": "int"},
    "doorbells_quota": {"type": "int"},
}

VGPU: dict[str, Any] = {
    **_TARGET,
    "match": {"type": "dict", "required": True, "options": _VGPU_SELECTOR},
    "type": {"type": "str"},
    "count": {"type": "int"},
    "profile": {"type": "dict", "options": PROFILE},
    "mig": {
        "type": "dict",
        "options": {
            "enabled": {"type": "bool", "required": True},
            "instances": {
                "type": "list",
                "elements": "dict",
                "options": {"profile": {"type": "str", "required": True}, "count": {"type": "int", "required": True}},
            },
        },
    },
}

#: Of a network or a pool of libvirt. They have no state "unset": one that is named is there, active, and started with the host.
_OBJECT: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "active": {"type": "bool", "default": True},
    "autostart": {"type": "bool", "default": True},
}

#: What a host is for KVM guests.
KVM: dict[str, Any] = {
    "nested": {"type": "bool"},
    "paging": {"type": "bool"},
    "hugepages": {
        "type": "list",
        "elements": "dict",
        "options": {
            "size": {"type": "str", "required": True},
            "count": {"type": "int", "required": True},
            "numa_node": {"type": "int"},
        },
    },
    "ksm": {"type": "bool"},
    "daemons": {"type": "str", "choices": ["auto", "modular", "monolithic"]},
    "users": _words(),
    "networks": {
        "type": "list",
        "elements": "dict",
        "options": {
            **_OBJECT,
            "mode": {"type": "str", "choices": ["nat", "route", "isolated", "bridge"]},
            "bridge": {"type": "str"},
            "address": {"type": "str"},
            "dhcp_start": {"type": "str"},
            "dhcp_end": {"type": "str"},
        },
    },
    "pools": {"type": "list", "elements": "dict", "options": {**_OBJECT, "path": {"type": "str"}}},
}

#: How a network device of a guest is made.
NETWORK_MODELS = ["emulated", "virtio", "macvtap", "vmdq", "sriov", "passthrough"]
#: How a disk of a guest is made.
DISK_MODELS = ["ide", "sata", "virtio", "scsi", "lun", "nvme"]
#: What a guest draws on.
DISPLAY_MODELS = ["none", "emulated", "passthrough"]

#: How a share of a device is given to a guest: a mediated device, a vGPU.
_SHARE: dict[str, Any] = {
    "numa": {"type": "str", "choices": ["near", "any"]},
    "display": {"type": "bool"},
    "ramfb": {"type": "bool"},
}

GUEST: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["running", "stopped", "present", "absent"], "default": "running"},
    "autostart": {"type": "bool"},
    "machine": {"type": "str"},
    "vcpus": {"type": "int"},
    "vcpus_max": {"type": "int"},
    "numa_node": {"type": "int"},
    "cpu": {
        "type": "dict",
        "options": {
            "accel": {"type": "str", "choices": ["kvm", "tcg"]},
            "model": {"type": "str"},
            "topology": {
                "type": "dict",
                "options": {
                    "sockets": {"type": "int", "required": True},
                    "cores": {"type": "int", "required": True},
                    "threads": {"type": "int", "required": True},
                },
            },
            "pinning": {
                "type": "list",
                "elements": "dict",
                "options": {"vcpus": {"type": "str", "required": True}, "cpus": {"type": "str", "required": True}},
            },
            "emulator_cpus": {"type": "str"},
            "nested": {"type": "bool"},
            "features": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "name": {"type": "str", "required": True},
                    "policy": {"type": "str", "choices": ["force", "require", "optional", "disable", "forbid"], "required": True},
                },
            },
            "kvmclock": {"type": "bool"},
            "pv_eoi": {"type": "bool"},
            "pv_spinlock": {"type": "bool"},
            "hyperv": {"type": "bool"},
        },
    },
    "memory": {"type": "str"},
    "hugepages": {"type": "str"},
    "locked": {"type": "bool"},
    "ksm": {"type": "bool"},
    "balloon": {
        "type": "dict",
        "options": {
            "enabled": {"type": "bool"},
            "free_page_reporting": {"type": "bool"},
            "target": {"type": "str"},
        },
    },
    "boot": {
        "type": "dict",
        "options": {
            "firmware": {"type": "str", "choices": ["bios", "uefi"]},
            "secure_boot": {"type": "bool"},
            "tpm": {"type": "bool"},
            "order": {"type": "list", "elements": "str", "choices": ["disk", "network", "cdrom"]},
            "kernel": {"type": "str"},
            "initrd": {"type": "str"},
            "cmdline": {"type": "str"},
        },
    },
    "network": {
        "type": "list",
        "elements": "dict",
        "options": {
            "model": {"type": "str", "choices": NETWORK_MODELS, "required": True},
            "device": {"type": "str"},
            "mac": {"type": "str"},
            "bridge": {"type": "str"},
            "nat": {"type": "str"},
            "parent": {"type": "str"},
            "mode": {"type": "str", "choices": ["bridge", "vepa", "private", "passthrough"]},
            "pool": {"type": "str"},
            "numa": {"type": "str", "choices": ["near", "any"]},
            "address": {"type": "str"},
            "vlan": {"type": "int"},
            "trust": {"type": "bool"},
            "vhost": {"type": "bool"},
            "queues": {"type": "int"},
            "mtu": {"type": "int"},
            "rom": {"type": "bool"},
        },
    },
    "disks": {
        "type": "list",
        "elements": "dict",
        "options": {
            "model": {"type": "str", "choices": DISK_MODELS, "required": True},
            "path": {"type": "str"},
            "format": {"type": "str", "choices": ["qcow2", "raw"]},
            "size": {"type": "str"},
            "source": {"type": "str"},
            "checksum": {"type": "str"},
            "address": {"type": "str"},
            "cache": {"type": "str", "choices": ["default", "none", "writethrough", "writeback", "directsync", "unsafe"]},
            "io": {"type": "str", "choices": ["native", "threads", "io_uring"]},
            "discard": {"type": "str", "choices": ["unmap", "ignore"]},
            "serial": {"type": "str"},
            "readonly": {"type": "bool"},
        },
    },
    "display": {
        "type": "dict",
        "options": {
            "model": {"type": "str", "choices": DISPLAY_MODELS, "required": True},
            "address": {"type": "str"},
            "video": {"type": "str", "choices": ["virtio", "vga", "bochs", "cirrus"]},
            "listen": {"type": "str"},
        },
    },
    "mdev": {
        "type": "list",
        "elements": "dict",
        "options": {
            "type": {"type": "str"},
            "pool": {"type": "str"},
            "uuid": {"type": "str"},
            "parent": {"type": "str"},
            **_SHARE,
        },
    },
    "gpu": {"type": "dict", "options": {"vgpu": {"type": "str"}, "address": {"type": "str"}, **_SHARE}},
    "seed": {
        "type": "dict",
        "options": {
            "user_data": {"type": "str"},
            "meta_data": {"type": "str"},
            "network_config": {"type": "str"},
        },
    },
    "console_log": {"type": "str"},
}

#: May a guest be shut down and started for what cannot be changed while it runs?
RESTART: dict[str, Any] = {"type": "str", "choices": ["never", "when_needed"], "default": "never"}
SHUTDOWN_TIMEOUT: dict[str, Any] = {"type": "int", "default": 120}
POWER_OFF: dict[str, Any] = {"type": "bool", "default": False}

ALLOW: dict[str, Any] = {"type": "list", "elements": "str", "choices": list(DANGERS), "default": []}
ASSUME: dict[str, Any] = {"type": "dict", "options": {"iommu": {"type": "bool"}}}
#: Of the guests: also what the devices and KVM's own call bring.
GUEST_ASSUME: dict[str, Any] = {
    "type": "dict",
    "options": {
        "iommu": {"type": "bool"},
        "pools": {"type": "dict"},
        "mdevs": {"type": "dict"},
        "vgpus": {"type": "dict"},
        "libvirt": {"type": "bool"},
    },
}
EXCLUSIVE: dict[str, Any] = {"type": "bool", "default": False}


def _list_of(element: dict[str, Any]) -> dict[str, Any]:
    return {"type": "list", "elements": "dict", "options": element}


_COMMON: dict[str, Any] = {"allow": ALLOW, "assume": ASSUME, "declared_by": {"type": "str"}}

#: Module name -> its argument specification.
MODULES: dict[str, dict[str, Any]] = {
    "devices": {
        "sriov": _list_of(SRIOV),
        "vfio": _list_of(VFIO),
        "vmdq": _list_of(VMDQ),
        "mdev": _list_of(MDEV),
        "vgpu": _list_of(VGPU),
        "only": {"type": "list", "elements": "str", "choices": ["sriov", "vfio", "vmdq", "mdev", "vgpu"]},
        "exclusive": {"type": "list", "elements": "str", "choices": ["sriov", "vfio", "vmdq", "mdev", "vgpu"], "default": []},
        **_COMMON,
    },
    "sriov": {"devices": {**_list_of(SRIOV), "required": True}, "exclusive": EXCLUSIVE, **_COMMON},
    "vfio": {"devices": {**_list_of(VFIO), "required": True}, "exclusive": EXCLUSIVE, **_COMMON},
    "vmdq": {"devices": {**_list_of(VMDQ), "required": True}, "exclusive": EXCLUSIVE, **_COMMON},
    "kernel_cmdline": {
        "present": _words(),
        "absent": _words(),
        "exact": _words(),
        "release": _words(),
        "allow": ALLOW,
    },
    "kernel_cmdline_info": {},
    "iommu": {
        "state": {"type": "str", "choices": ["enabled", "disabled", "absent"], "default": "enabled"},
        "mode": {"type": "str", "choices": ["translated", "passthrough"]},
        "strict": {"type": "bool"},
        "scalable_mode": {"type": "bool"},
        "interrupt_remapping": {"type": "bool"},
        "prove": {"type": "bool", "default": False},
        "allow": ALLOW,
    },
    "iommu_info": {},
    "guest": {
        "guests": {**_list_of(GUEST), "required": True},
        "exclusive": EXCLUSIVE,
        "restart": RESTART,
        "shutdown_timeout": SHUTDOWN_TIMEOUT,
        "power_off": POWER_OFF,
        "allow": ALLOW,
        "assume": GUEST_ASSUME,
        "declared_by": {"type": "str"},
    },
    "guest_info": {"names": _words()},
    "host_info": {},
    "kvm": {
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        **KVM,
        "prove": {"type": "bool", "default": False},
        "assume": {"type": "dict", "options": {"packages": {"type": "bool"}}},
        "allow": ALLOW,
    },
    "kvm_info": {},
    "sriov_info": {"match": {"type": "dict", "options": SELECTOR}},
    "vfio_info": {"match": {"type": "dict", "options": SELECTOR}},
    "vmdq_info": {"match": {"type": "dict", "options": SELECTOR}},
    "mdev": {"devices": {**_list_of(MDEV), "required": True}, "exclusive": EXCLUSIVE, **_COMMON},
    "vgpu": {"devices": {**_list_of(VGPU), "required": True}, "exclusive": EXCLUSIVE, **_COMMON},
    "vgpu_info": {"match": {"type": "dict", "options": _VGPU_SELECTOR}},
    "mdev_info": {"match": {"type": "dict", "options": _MDEV_SELECTOR}},
}
