# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The list of docs/guests.md that has every model at once, on the simulated kernel: announced, made, quiet, given back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import spec
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils import hosts
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.guests_hosts import Host, converged
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import Net

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed, so the example cannot be parsed")

PAGE = Path(__file__).resolve().parents[3] / "docs" / "guests.md"
HEADING = "## Every model on one host"


def example() -> dict[str, Any]:
    text = PAGE.read_text(encoding="utf-8").partition(HEADING)[2]
    found = re.search(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert found, HEADING
    read: dict[str, Any] = yaml.safe_load(found.group(1))
    return read


def listed(wish: dict[str, Any]) -> dict[str, Any]:
    """As Ansible hands it to the engine: each key of a selector a list."""
    return {**wish, "match": {key: value if isinstance(value, list) else [value] for key, value in wish["match"].items()}}


def wishes(variables: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {name: [listed(wish) for wish in variables[f"{name}_devices"]] for name in ("sriov", "vmdq", "mdev")}


def host() -> Host:
    sim = hosts.stations()
    sim.mdev.add_samples()
    sim.nets["br0"] = Net(kind="bridge", mac="52:54:00:00:00:99")
    sim.files["/proc/meminfo"] = "MemTotal:        4000000 kB\n"
    sim._tree = None
    it = Host(sim)
    it.with_images()
    return it


def test_it_has_every_model():
    variables = example()
    models = {item["model"] for guest in variables["guests_list"] for item in guest["network"]}
    assert models == set(spec.NETWORK_MODELS)
    # A LUN needs a disk of SCSI, which the host of the example has not.
    disks = {item["model"] for guest in variables["guests_list"] for item in guest["disks"]}
    assert disks == set(spec.DISK_MODELS) - {"lun"}
    assert all("mdev" in guest for guest in variables["guests_list"][:1])


def test_it_is_announced_made_and_given_back():
    it, variables = host(), example()
    devices, guests = wishes(variables), variables["guests_list"]
    announced = hosts.call(it.sim, **devices, check=True)
    waiting = it.call(*guests, check=True, assume=announced["predicted"])
    assert [action["text"] for action in waiting["actions"] if action["device"] == "every"] == ["define it and start it, once the pool dataplane gets its VFs"]
    before = it.sim.snapshot()
    done = hosts.call(it.sim, **devices)
    assert done["failures"] == {} and done["actions"] == announced["actions"]
    converged(it, *guests)
    hosts.quiet(it.sim, **devices)
    kinds = [(device.tag, device.get("type")) for device in it.virt.live["every"].find("devices") if device.tag in ("interface", "hostdev")]
    interfaces = [("interface", kind) for kind in ("bridge", "direct", "direct", "hostdev", "network")]
    assert sorted(kinds) == [("hostdev", "mdev")] * 2 + [("hostdev", "pci")] * 2 + interfaces
    converged(it, *({"name": guest["name"], "state": "absent"} for guest in guests))
    gone = {name: [{"match": wish["match"], "state": "absent"} for wish in list_] for name, list_ in devices.items()}
    assert hosts.call(it.sim, **gone)["failures"] == {}
    after = it.sim.snapshot()
    for part in ("mdev", "functions"):
        assert after[part] == before[part]
