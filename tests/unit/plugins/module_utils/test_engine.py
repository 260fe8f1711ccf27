# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The result that every door hands out, what a call costs, and the facts."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import host_info
from ansible_collections.iovirt.host.plugins.module_utils._engine.errors import EngineError
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import EDU, NVME, PF1, PF2, at, call, lab
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import DEVICES

KEYS = {"changed", "diff", "actions", "predicted", "reboot_required", "reboot_reasons", "warnings", "failures", "indeterminate"}
WISHES = {"sriov": [at(PF1, vf_count=2, vf_defaults={"driver": "vfio-pci"})], "vfio": [at(EDU)]}


@pytest.mark.parametrize("check", [True, False])
def test_one_shape(check):
    result = call(lab(), check=check, **WISHES)
    assert set(result) == KEYS | {"sriov", "vfio"}
    assert result["changed"] is True
    assert [part["before_header"] for part in result["diff"]] == ["host", PF1, EDU]
    for part in result["diff"]:
        assert set(part) == {"before_header", "after_header", "before", "after"}
        assert part["before_header"] == part["after_header"]
        assert part["before"] != part["after"]
        assert part["after"] == "" or part["after"].endswith("\n")
    pf = result["diff"][1]
    assert "vf_count: 0\n" in pf["before"]
    assert "vf_count: 2\n" in pf["after"]
    assert 'vf 1 driver: "vfio-pci"\n' in pf["after"]
    for action in result["actions"]:
        assert set(action) == {"device", "action", "text", "certainty", "before", "after"}
        assert action["certainty"] in ("certain", "predicted")


def test_what_waits_is_marked_and_counts_not_as_a_change():
    sim = lab(iommu=False, next_iommu=True)
    call(sim, vfio=[at(EDU)])
    again = call(sim, vfio=[at(EDU)])
    assert again["changed"] is False
    assert again["reboot_required"] is True
    assert 'driver (after the reboot): "vfio-pci"\n' in again["diff"][0]["after"]


def test_a_converged_host_costs_one_command():
    sim = lab()
    call(sim, **WISHES)
    sim.commands.clear()
    sim.log.clear()
    call(sim, **WISHES)
    assert sim.commands == [["ip", "-j", "-d", "addr", "show"]]
    assert sim.log == []


def test_facts_follow_the_run_and_name_all_devices():
    sim = lab()
    result = call(sim, **WISHES)
    assert {"match": {"address": [EDU]}, "driver": "vfio-pci"} in result["vfio"]
    assert [wish["vf_count"] for wish in result["sriov"]] == [2, 0, 0]


def test_an_empty_call_does_nothing():
    sim = lab()
    assert call(sim)["changed"] is False
    assert call(sim, sriov=[], vfio=[])["actions"] == []
    assert sim.log == []


def test_all_refusals_at_once_each_once():
    with pytest.raises(EngineError) as caught:
        call(lab(), sriov=[at(PF1, vf_count=9), at(PF2, vf_count=9), at(NVME, vf_count=9)])
    lines = str(caught.value).splitlines()
    assert [line.partition(": ")[0] for line in lines] == [PF1, PF2, NVME]


def test_an_iommu_table_without_groups_makes_no_group():
    sim = lab(iommu=False)
    assert host_info.facts(sim.host())["host"]["iommu"]["active"] is False


def test_host_info():
    sim = lab()
    sim.files["/proc/cpuinfo"] = "processor\t: 0\nmodel name\t: Xeon\nflags\t\t: vmx ept hypervisor\nprocessor\t: 1\n"
    sim.files["/sys/class/dmi/id/sys_vendor"] = "QEMU\n"
    sim.files["/dev/kvm"] = ""
    sim.files["/sys/module/kvm_intel/parameters/nested"] = "Y\n"
    sim._tree = None
    call(sim, **WISHES)
    facts = host_info.facts(sim.host())
    assert facts["changed"] is False
    assert facts["host"]["cpu"] == {"model": "Xeon", "count": 2, "virtualization": "VT-x", "paging": "EPT"}
    assert facts["host"]["hypervisor"] == "kvm"
    assert facts["host"]["kvm"]["device"] is True
    assert facts["host"]["kvm"]["nested"] is True
    by_address = {function["address"]: function for function in facts["host"]["functions"]}
    assert set(by_address) == set(sim.names(DEVICES))
    assert by_address[PF1]["sriov"]["vf_count"] == 2
    assert by_address[PF1]["netdevs"][0]["name"] == "enp129s0"
    assert by_address[NVME]["serial"] == "LAB0"
    assert by_address["0000:00:02.0"]["disks_in_use"] == ["mounted on /"]
    assert facts["host"]["iommu"]["active"] is True
    assert EDU in facts["declared"]["vfio"]
    assert facts["last_replay"] is None


@pytest.mark.parametrize(("ports", "each", "attributes"), [(2, 256, True), (1, 512, False)])
def test_what_the_benchmark_of_the_plan_measures_is_planned(ports, each, attributes):
    """It once measured refusals, and failed, when a limit of the kernel had become known."""
    path = Path(__file__).resolve().parents[3] / "bench" / "plan.py"
    spec = importlib.util.spec_from_file_location("bench_of_the_plan", path)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    assert (ports, each, attributes) in bench.CASES
    bench.ROUNDS = 1
    assert bench.plan_time(ports, each, attributes) > 0
