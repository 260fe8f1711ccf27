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

ALLOW: dict[str, Any] = {"type": "list", "elements": "str", "choices": list(DANGERS), "default": []}
ASSUME: dict[str, Any] = {"type": "dict", "options": {"iommu": {"type": "bool"}}}
EXCLUSIVE: dict[str, Any] = {"type": "bool", "default": False}


def _list_of(element: dict[str, Any]) -> dict[str, Any]:
    return {"type": "list", "elements": "dict", "options": element}


_COMMON: dict[str, Any] = {"allow": ALLOW, "assume": ASSUME, "declared_by": {"type": "str"}}

#: Module name -> its argument specification.
MODULES: dict[str, dict[str, Any]] = {
    "devices": {
        "sriov": _list_of(SRIOV),
        "vfio": _list_of(VFIO),
        "only": {"type": "list", "elements": "str", "choices": ["sriov", "vfio"]},
        "exclusive": {"type": "list", "elements": "str", "choices": ["sriov", "vfio"], "default": []},
        **_COMMON,
    },
    "sriov": {"devices": {**_list_of(SRIOV), "required": True}, "exclusive": EXCLUSIVE, **_COMMON},
    "vfio": {"devices": {**_list_of(VFIO), "required": True}, "exclusive": EXCLUSIVE, **_COMMON},
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
}
