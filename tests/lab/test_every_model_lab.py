# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One guest with every model of network device and two mediated devices, on a real kernel: all at once, and all given back.

The port with pools is vmdqsim's, as in test_vmdq_lab.py; the parents are mtty and mdpy, as in test_mdev_lab.py. What each of them does by itself is
shown there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.iovirt.host.tests.lab.test_mdev_lab import (  # noqa: F401  # pylint: disable=unused-import
    IMAGES,
    NOTHING,
    WISHES,
    parents,
    there,
)
from ansible_collections.iovirt.host.tests.lab.test_vmdq_lab import pools, port  # noqa: F401  # pylint: disable=unused-import

TINY = Path(__file__).resolve().parents[2] / "lab" / "tiny" / "make"
CONSOLE = "/var/log/libvirt/qemu/every-model-console.log"
#: Model -> MAC, and the driver that the guest has for it.
MACS = {model: f"52:54:00:0e:00:{n:02x}" for n, model in enumerate(("emulated", "virtio", "macvtap", "vmdq", "sriov"), 1)}
DRIVERS = {"emulated": "e1000e", "virtio": "virtio_net", "macvtap": "virtio_net", "vmdq": "virtio_net", "sriov": "igbvf"}


@pytest.fixture
def host(wishes: dict[str, Any], parents: Any, port: Any) -> Iterator[Any]:  # noqa: F811
    """The host with a pool of VFs on the one port of igb, the other one whole, the feature of the port with pools on, and mediated devices."""
    lab = port
    lab.near, lab.far = lab.shell("basename -a $(ls -d /sys/bus/pci/drivers/igb/0*)").split()[:2]
    lab.mac = lab.shell(f"cat /sys/bus/pci/devices/{lab.far}/net/*/address")
    lab.shell("ip link add br-every type bridge && ip link set br-every up; mkdir -p /run/iovirt-lab")
    lab.send("/run/iovirt-lab/make", TINY.read_bytes())
    lab.shell(f"cd {IMAGES}; sh /run/iovirt-lab/make tiny.img; install -m 644 /boot/vmlinuz-$(uname -r) tiny-kernel; chmod 644 tiny.img", limit=240)
    one = {"match": {"address": [lab.near]}, "up": True, "vf_count": 3, "vfs": [{"range": "0-1", "driver": "vfio-pci", "pool": "dataplane"}]}
    sriov = [one, {"match": {"address": [lab.far]}, "state": "absent"}]
    made = lab.apply({"sriov": sriov, "vmdq": [{"match": {"address": [lab.edu]}, "offload": True}], "mdev": WISHES})
    assert not made["failed"], made
    yield lab
    lab.shell(f"virsh destroy every-model; virsh undefine every-model; ip link del br-every; rm -f /etc/iovirt/guests.json {CONSOLE}; true")
    # The edu device is given back by the fixture of the port.
    result = lab.module("devices", sriov=wishes["sriov"])
    assert not result["failed"], result


def guest(lab: Any) -> dict[str, Any]:
    where = {
        "emulated": {"bridge": "br-every"},
        "virtio": {"bridge": "br-every"},
        "macvtap": {"parent": lab.shell(f"ls /sys/bus/pci/devices/{lab.near}/net")},
        "vmdq": {"parent": lab.port},
        "sriov": {"pool": "dataplane", "vlan": 100},
    }
    network: list[dict[str, Any]] = [{"model": model, "mac": MACS[model], "rom": False, **keys} for model, keys in where.items()]
    network.append({"model": "passthrough", "address": lab.far, "rom": False})
    # It waits for as many ports as it is told addresses of.
    told = " ".join(f"tiny.{mac}=10.9.20.{n}/24" for n, mac in enumerate([*MACS.values(), lab.mac], 1))
    cmdline = f"console=ttyS0 quiet panic=-1 no_timer_check {told}"
    return {
        "name": "every-model",
        "memory": "256M",
        "boot": {"kernel": f"{IMAGES}/tiny-kernel", "initrd": f"{IMAGES}/tiny.img", "cmdline": cmdline},
        "network": network,
        "mdev": [{"type": "mtty-2"}, {"type": "mdpy-hd", "display": True}],
        "display": {"model": "emulated"},
        "console_log": CONSOLE,
    }


def test_one_guest_has_every_model_at_once(host: Any) -> None:
    lab = host
    wish, before = guest(lab), lab.drivers()
    announced = lab.module("guest", check=True, guests=[wish])
    done = lab.module("guest", guests=[wish])
    assert not done["failed"] and done["actions"] == announced["actions"], (done, announced)
    lab.shell(f"for i in $(seq 400); do grep -q 'tiny: up' {CONSOLE} 2>/dev/null && exit; sleep 1; done; tail {CONSOLE}; exit 1", limit=600)
    said = [line.split() for line in lab.shell(f"tr -d '\r' <{CONSOLE} | sed -n 's/^tiny: //p'").splitlines()]
    assert {words[1]: words[2] for words in said if words[0] == "nic"} == {lab.mac: "igb", **{MACS[model]: DRIVERS[model] for model in MACS}}
    assert {words[2] for words in said if words[0] == "pci"} >= {"4348:3253", "1b36:000f"}
    # The station of libvirt's making is in hardware.
    assert pools(lab) == {"1"}
    again = lab.module("guest", guests=[wish])
    assert again["changed"] is False and again["actions"] == [] and not again["restart_required"], again
    gone = lab.module("guest", guests=[{"name": "every-model", "state": "absent"}], shutdown_timeout=60, power_off=True)
    assert not gone["failed"], gone
    assert pools(lab) == set() and lab.drivers() == before
    assert lab.shell(f"lspci -ks {lab.far} | sed -n 's/.*in use: //p'") == "igb"
    assert not lab.apply({"mdev": NOTHING})["failed"] and there(lab) == {}
