# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Records that somebody edited by hand: a sentence that names the file, never a traceback."""

from __future__ import annotations

import copy
import json

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import engine, record, replay
from ansible_collections.iovirt.host.plugins.module_utils._engine.errors import EngineError
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import (
    DOUBLE,
    EDU,
    MLX5,
    NVME,
    PF1,
    at,
    call,
    lab,
    stations,
    switches,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import Pci
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim_vgpu import Instance

READY = {"nvme_queues": 2, "nvme_interrupts": 1, "online": True}
PARAMS = [{"name": "enable_roce", "cmode": "driverinit", "value": False}]
UUID = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"


def mediated():
    """A definition of an operator: then there is something to be recorded of it."""
    sim = lab()
    sim.mdev.add_matrix()
    sim.mdev.install()
    held = {"mdev_type": "vfio_ap-passthrough", "start": "manual", "attrs": [{"assign_adapter": "0x05"}]}
    sim.mdev._save(UUID, "matrix", held)
    return sim


L40S, A100 = "0000:26:00.0", "0000:17:00.0"


def gpu():
    sim = lab()
    sim.vgpu.add(Pci(L40S, "10de:26b9", "030200", total_vfs=32, offset=4, stride=1, vf_ids="10de:26b9"))
    return sim


def divided():
    """In MIG mode, with vGPUs that are mediated devices, one of them somebody else's."""
    sim = lab()
    ids = "10de:20f1"
    sim.vgpu.add(Pci(A100, ids, "030200", total_vfs=16, offset=4, stride=1, vf_ids=ids), "a100", mig=True, pending=True)
    sim.vgpu.enable(A100)
    sim.sleep(5)
    sim.vgpu.cards[A100].instances[1] = Instance("1g.5gb", 6)
    sim.mdev.install()
    sim.mdev.make(UUID, sim.functions[A100].vfs[2], "nvidia-474")
    sim.mdev._save(UUID, sim.functions[A100].vfs[2], {"mdev_type": "nvidia-474", "start": "manual", "attrs": []})
    return sim


MIG = {"enabled": True, "instances": [{"profile": "1g.5gb", "count": 2}]}

HOSTS = {
    "igb": (lab, "sriov", PF1, {"vf_count": 3, "up": True, "vfs": [{"range": "0", "driver": "igbvf", "vlan": 5}]}),
    "mlx5": (switches, "sriov", MLX5, {"vf_count": 1, "eswitch": {"mode": "switchdev"}, "devlink_params": PARAMS,
                                       "hw_tc_offload": True, "vf_defaults": {"msix_count": 4}}),
    "nvme": (lab, "sriov", NVME, {"vf_count": 1, "nvme_primary_queues": 0, "vf_defaults": READY}),
    "vfio": (lab, "vfio", EDU, {"driver": "vfio-pci"}),
    "vmdq": (stations, "vmdq", DOUBLE, {"queues": {"combined": 4}, "stations": [{"name": "theirs", "mode": "private"}, {"name": "mv0", "mac": "auto"}]}),
    "vgpu": (gpu, "vgpu", L40S, {"type": "L40S-12Q", "count": 2}),
    "mig": (divided, "vgpu", A100, {"type": "GRID A100-1-5C", "count": 2, "mig": MIG}),
    "mdev": (mediated, "mdev", "matrix", {"type": "vfio_ap-passthrough", "uuids": [UUID], "autostart": True,
                                          "attributes": [{"name": "assign_adapter", "value": "0x05"}]}),
}
GONE = "(gone)"


def entry_of(name):
    make, resource, address, wish = HOSTS[name]
    sim = make()
    if name == "igb":
        # VFs of an operator, with an override: then there is something to be recorded of them.
        sim.write(f"/sys/bus/pci/devices/{PF1}/sriov_numvfs", "2")
        sim.sleep(20)
        sim.write(f"/sys/bus/pci/devices/{sim.functions[PF1].vfs[1]}/driver_override", "vfio-pci")
    if name == "vmdq":
        text = "link add link enp195s0 name theirs address 52:54:00:0f:00:01 mtu 1500 type macvlan mode vepa\n"
        assert sim.run(["ip", "-batch", "-"], text)[0] == 0
    assert call(sim, **{resource: [at(address, **wish)]})["failures"] == {}
    return json.loads(sim.text(f"/etc/iovirt/{resource}.json"))["devices"][address]


def paths(value, path=()):
    if path:
        yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from paths(value[key], (*path, key))


def edited(entry, path, new):
    result = copy.deepcopy(entry)
    inner = result
    for key in path[:-1]:
        inner = inner[key]
    if new == GONE:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return result


def with_record(make, resource, address, entry):
    sim = make()
    sim.files[f"/etc/iovirt/{resource}.json"] = json.dumps({"version": 2, "resource": resource, "devices": {address: entry}})
    sim._tree = None
    return sim


@pytest.mark.parametrize("name", HOSTS)
def test_whatever_is_edited_no_door_breaks(name):
    make, resource, address, _wish = HOSTS[name]
    good = entry_of(name)
    assert record.wrong(resource, good) is None
    for path in paths(good):
        passing = [e for new in (GONE, None, 5, "x", [None]) if record.wrong(resource, e := edited(good, path, new)) is None]
        # What is taken is a value of the right kind, or not read: the doors are asked about one of each place.
        for entry in passing[:1] + passing[-1:]:
            for door in (give_back, bring_back):
                try:
                    door(with_record(make, resource, address, entry), resource, address)
                except EngineError as error:
                    assert str(error)


def give_back(sim, resource, address):
    call(sim, check=True, **{resource: [at(address, state="absent")]})


def bring_back(sim, resource, address):
    replay.converge_declared(sim.host(), engine.Call(check=True, declare=False), address)


@pytest.mark.parametrize(
    ("path", "new", "said"),
    [
        (("wish", "vf_count"), GONE, "wish.vf_count"),
        (("wish", "vf_count"), "3", "wish.vf_count"),
        (("wish", "vfs", "0", "driver"), 5, "wish.vfs.0.driver"),
        (("wish", "vfs"), {"²": {}}, "wish.vfs.²"),
        (("wish", "up"), "yes", "wish.up"),
        (("origin", "vf_count"), -1, "origin.vf_count"),
        (("origin", "attributes"), None, "origin.attributes"),
        (("origin", "attributes", "0"), None, "origin.attributes.0"),
        (("origin", "overrides"), None, "origin.overrides"),
        (("allow",), None, "allow"),
        (("declared",), 5, "declared"),
        (("identity", "peers"), [None], "identity"),
    ],
)
def test_the_sentence_names_the_file_the_entry_and_what_is_wrong(path, new, said):
    sim = with_record(lab, "sriov", PF1, edited(entry_of("igb"), path, new))
    for wishes in ([at(PF1, vf_count=1)], [at(PF1, state="absent")]):
        with pytest.raises(EngineError) as caught:
            call(sim, sriov=wishes)
        assert f"/etc/iovirt/sriov.json: its entry for {PF1} is incomplete ({said} is missing" in str(caught.value)


def test_a_number_that_is_none_is_refused_for_its_device_alone():
    """A record of an older version may hold it: the others come back all the same."""
    sim = with_record(lab, "sriov", PF1, edited(entry_of("igb"), ("wish", "vf_count"), True))
    failures = replay.run(sim.host(environment={}, sources=None), None)["failures"]
    assert "vf_count True is no number from 0" in failures[PF1]


def test_what_could_not_be_read_again_is_never_recorded(monkeypatch):
    sim = lab()
    call(sim, vfio=[at(EDU)])
    before = dict(sim.files)
    real = record.wrong
    monkeypatch.setattr(record, "wrong", lambda resource, entry: "wish.driver" if resource == "sriov" else real(resource, entry))
    result = call(sim, sriov=[at(PF1, vf_count=2)])
    assert "could not be read again (wish.driver). Nothing was recorded." in result["failures"][PF1]
    assert {path for path in sim.files if path.startswith("/etc/iovirt/")} == {path for path in before if path.startswith("/etc/iovirt/")}
    assert not sim.functions[PF1].vfs
