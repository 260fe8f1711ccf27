# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""MSI-X vectors of VFs. mlx5 is synthetic (sim_msix.py), and so is its configuration space."""

from __future__ import annotations

import copy
import errno
from pathlib import Path

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import msix, replay
from ansible_collections.iovirt.host.plugins.module_utils._engine.host import FileSystem
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils import sim_msix
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import (
    ICE,
    MLX5,
    NSIM,
    PF1,
    at,
    call,
    converged,
    drivers_of,
    quiet,
    refused,
    switches,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import DEVICES


def counts(sim):
    return [sim.functions[address].msix for address in sim.functions[MLX5].vfs]


def test_new_vfs_get_their_vectors_before_a_driver_takes_them():
    sim = switches()
    done = converged(sim, sriov=[at(MLX5, vf_count=3, vf_defaults={"msix_count": 8}, vfs=[{"range": "2", "driver": "vfio-pci"}])])
    assert counts(sim) == [8, 8, 8]
    assert drivers_of(sim, MLX5) == ["mlx5_core", "mlx5_core", "vfio-pci"]
    kinds = [action["action"] for action in done["actions"]]
    assert kinds[-4:] == ["set_vf_count", "set_msix_count", "probe_vfs", "bind"]
    shown = next(wish for wish in done["sriov"] if wish["match"]["address"] == [MLX5])
    assert [vf["msix_count"] for vf in shown["vfs"]] == [8, 8, 8]
    call(sim, sriov=[shown])
    quiet(sim, sriov=[shown])
    assert counts(sim) == [8, 8, 8]


def test_a_living_vf_leaves_its_driver_for_it_and_only_where_it_differs():
    sim = switches()
    call(sim, sriov=[at(MLX5, vf_count=3, vfs=[{"range": "0", "msix_count": 8}])])
    sim.log.clear()
    done = converged(sim, sriov=[at(MLX5, vfs=[{"range": "0", "msix_count": 8}, {"range": "1", "msix_count": 6}])])
    assert counts(sim) == [8, 6, sim_msix.DEFAULT]
    assert drivers_of(sim, MLX5) == ["mlx5_core"] * 3
    assert "6 to VF 1 (VF 1 is taken from mlx5_core for it)" in done["actions"][-1]["text"]
    unbound = [data for _what, path, data in sim.log if path.endswith("/unbind")]
    assert unbound == [sim.functions[MLX5].vfs[1]]


def test_unset_is_untouched():
    sim = switches()
    call(sim, sriov=[at(MLX5, vf_count=2, vf_defaults={"msix_count": 8})])
    quiet(sim, sriov=[at(MLX5, vf_count=2, vf_defaults={"msix_count": 8})])
    call(sim, sriov=[at(MLX5, vf_defaults={"trust": True})])
    assert counts(sim) == [8, 8]


def test_a_reboot_brings_them_back():
    sim = switches()
    wish = at(MLX5, vf_count=2, vf_defaults={"msix_count": 8})
    call(sim, sriov=[wish])
    sim.reboot()
    assert replay.run(sim.host(sources=None), None)["failures"] == {}
    assert counts(sim) == [8, 8]
    quiet(sim, sriov=[wish])


def test_given_back_as_it_was():
    sim = switches()
    sim.write(f"{DEVICES}/{MLX5}/sriov_numvfs", "2")
    vf = sim.functions[MLX5].vfs[0]
    sim.functions[vf].msix = 7
    sim._tree = None
    call(sim, sriov=[at(MLX5, vf_defaults={"msix_count": 8})])
    converged(sim, sriov=[at(MLX5, state="absent")])
    assert counts(sim) == [7, sim_msix.DEFAULT]
    assert drivers_of(sim, MLX5) == ["mlx5_core"] * 2


def test_an_undone_count_has_its_vectors_again():
    sim = switches()
    call(sim, sriov=[at(MLX5, vf_count=2, vfs=[{"range": "0", "msix_count": 8}])])
    sim.faults = [("*/sriov_numvfs", "3", errno.ENOMEM)]
    result = call(sim, sriov=[at(MLX5, vf_count=3)])
    assert "It was undone" in result["failures"][MLX5]
    assert counts(sim) == [8, sim_msix.DEFAULT]


@pytest.mark.parametrize(
    ("address", "count", "words"),
    [
        (PF1, 4, ("msix_count is wished", "igb does not share out", "sriov_vf_total_msix")),
        (ICE, 4, ("ice does not share out",)),
        (NSIM, 4, ("does not share out",)),
        (MLX5, 0, ("msix_count 0 is not from 1 to 2048",)),
        (MLX5, True, ("msix_count True is not from 1 to 2048",)),
        (MLX5, 2049, ("msix_count 2049",)),
        (MLX5, 21, ("42 MSI-X vectors are wished", "it has 40")),
    ],
)
def test_what_cannot_be_is_refused(address, count, words):
    refused(switches(), address, *words, sriov=[at(address, vf_count=2, vf_defaults={"msix_count": count})])


def test_a_vf_in_use_is_not_taken_from_its_user():
    sim = switches()
    call(sim, sriov=[at(MLX5, vf_count=1, vf_defaults={"driver": "vfio-pci"})])
    group = sim.functions[sim.functions[MLX5].vfs[0]].group
    sim.pids[4711] = ("qemu", [f"/dev/vfio/{group}"])
    sim._tree = None
    refused(sim, "qemu", sriov=[at(MLX5, vf_defaults={"msix_count": 8})])


def test_what_the_kernel_refuses_is_named_and_undone():
    sim = switches()
    call(sim, sriov=[at(MLX5, vf_count=2)])
    before = copy.deepcopy(sim.snapshot()["functions"])
    result = call(sim, sriov=[at(MLX5, vfs=[{"range": "0", "msix_count": 8}, {"range": "1", "msix_count": 1}])])
    assert "EINVAL" in result["failures"][MLX5] and "fewer than a VF needs" in result["failures"][MLX5]
    assert counts(sim) == [sim_msix.DEFAULT] * 2
    assert sim.snapshot()["functions"] == before


def test_a_number_that_does_not_show_up_is_a_failure(monkeypatch):
    sim = switches()
    monkeypatch.setattr(sim_msix, "set_count", lambda *_args: 0)
    result = call(sim, sriov=[at(MLX5, vf_count=1, vf_defaults={"msix_count": 8})])
    assert f"shows {sim_msix.DEFAULT}" in result["failures"][MLX5]
    assert sim.functions[MLX5].vfs == []


def test_configuration_space_is_read_as_bytes(tmp_path):
    folder = tmp_path / "sys/bus/pci/devices" / PF1
    folder.mkdir(parents=True)
    files = FileSystem(str(tmp_path))
    assert msix.table_size(files, PF1) is None
    for data, size in (
        (sim_msix.config(1), 1),
        (sim_msix.config(2048), 2048),
        (sim_msix.config(9)[:64], None),
        (bytes(256), None),
        (b"\xff" * 256, None),
    ):
        Path(folder / "config").write_bytes(data)
        assert msix.table_size(files, PF1) == size
