# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Selectors."""

from __future__ import annotations

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import aliases, match, spec
from ansible_collections.iovirt.host.plugins.module_utils._engine.read import Needs, read_state
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import (
    DISK,
    EDU,
    MANAGEMENT,
    NVME,
    PF1,
    PF2,
    at,
    call,
    lab,
    refused,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import DEVICES


def selected(sim, **selector):
    assert match.check_selector(selector) is None
    return [function.address for function in match.select(read_state(sim.host(), Needs()), selector)]


@pytest.mark.parametrize(
    ("selector", "addresses"),
    [
        ({"address": [PF1]}, [PF1]),
        ({"address": ["0000:8[12]:*"]}, [PF1, PF2]),
        ({"address": ["0000:81:00.0", "0000:91:00.0"]}, [PF1, NVME]),
        ({"vendor": ["8086"]}, [PF1, PF2]),
        ({"vendor": ["0x8086"]}, [PF1, PF2]),
        ({"vendor": ["1AF4"]}, [DISK, MANAGEMENT]),
        ({"device": ["11E8"]}, [EDU]),
        ({"subsystem": ["8086:A04C"]}, [PF1, PF2]),
        ({"driver": ["igb"]}, [PF1, PF2]),
        ({"driver": ["igb", "nvme"]}, [PF1, PF2, NVME]),
        ({"ifname": ["enp129*"]}, [PF1]),
        ({"ifname": ["ens3"]}, [MANAGEMENT]),
        ({"mac": ["52:54:00:00:01:01"]}, [PF2]),
        ({"mac": ["52:54:00:00:01:01".upper()]}, [PF2]),
        ({"serial": ["lab0"]}, [NVME]),
        ({"class": ["nvme"]}, [NVME]),
        ({"class": ["network"]}, [MANAGEMENT, PF1, PF2]),
        ({"class": ["0x0108"]}, [NVME]),
        ({"class": ["storage"]}, [DISK, NVME]),
        ({"numa_node": [0], "class": ["ethernet"]}, [PF1, PF2]),
        ({"numa_node": [1], "driver": ["nvme"]}, [NVME]),
        ({"slot": ["2"]}, [PF2]),
        ({"slot": ["1", "3"]}, [PF1, NVME]),
        ({"driver": ["igb"], "slot": ["2"]}, [PF2]),
        ({"driver": ["igb"], "slot": ["3"]}, []),
        ({"driver": ["igb"], "slot": None, "mac": []}, [PF1, PF2]),
    ],
)
def test_every_key(selector, addresses):
    assert selected(lab(), **selector) == addresses


def test_vfs_only_where_asked():
    sim = lab(igbvf_loaded=True)
    sim.write(f"{DEVICES}/{PF1}/sriov_numvfs", "2")
    assert selected(sim, vendor=["8086"]) == [PF1, PF2]
    assert selected(sim, vendor=["8086"], vf=True) == [PF1, "0000:82:00.0", "0000:82:10.0", "0000:82:10.2"]
    assert selected(sim, driver=["igbvf"], vf=True) == ["0000:82:10.0", "0000:82:10.2"]
    assert selected(sim, vendor=["8086"], vf=False) == [PF1, PF2]


def test_the_mac_is_the_permanent_one():
    sim = lab()
    sim.nets["enp129s0"] = sim.nets["ens3"].__class__(mac="02:00:00:00:00:99")
    assert selected(sim, mac=["52:54:00:00:01:00"]) == [PF1]
    assert selected(sim, mac=["02:00:00:00:00:99"]) == []


@pytest.mark.parametrize("key", [key for key in match.KEYS if key != "numa_node"])
def test_an_empty_value_is_no_value(key):
    """A variable that came out empty must not mean all devices that lack the thing."""
    for value in ([""], ["8086:a04c" if key == "subsystem" else "8086", ""]):
        wrong = match.check_selector({key: value})
        assert wrong is not None, value
        assert key in wrong


@pytest.mark.parametrize(
    ("selector", "words"),
    [
        ({}, "empty match"),
        ({"vf": True}, "empty match"),
        ({"driver": []}, "empty match"),
        ({"nic": ["x"], "drv": ["y"]}, "unknown key drv, nic"),
        ({"vendor": ["8086:10c9"]}, "four hexadecimal"),
        ({"vendor": ["808"]}, "four hexadecimal"),
        ({"device": ["igb0"]}, "four hexadecimal"),
        ({"subsystem": ["8086"]}, "vendor:device"),
        ({"class": ["nic"]}, "class 'nic' is unknown"),
        ({"class": ["0x020"]}, "unknown"),
    ],
)
def test_what_no_selector_can_be(selector, words):
    assert words in match.check_selector(selector)
    refused(lab(), "sriov[0]", words, sriov=[{"match": selector, "vf_count": 1}])
    refused(lab(), "vfio[0]", words, vfio=[{"match": selector}])


def test_expect():
    found = call(lab(), sriov=[{"match": {"driver": ["igb"]}, "expect": 2, "vf_count": 0}], check=True)
    assert found["failures"] == {}
    assert call(lab(), sriov=[{"match": {"driver": ["no"]}, "expect": 0, "vf_count": 1}])["changed"] is False
    refused(lab(), "expect: 3", PF1, PF2, "driver=igb", sriov=[{"match": {"driver": ["igb"]}, "expect": 3, "vf_count": 1}])
    refused(lab(), "expect: 1", "none", sriov=[{"match": {"driver": ["no"]}, "expect": 1, "vf_count": 1}])


def test_a_driver_is_named_by_depmod_when_nobody_has_the_device():
    sim = lab()
    sim.functions[NVME].driver = None
    sim.functions[NVME].override = "vfio-pci"
    sim._tree = None
    assert selected(sim, driver=["nvme"]) == [NVME]
    assert selected(sim, driver=["vfio-pci"]) == []


def test_drivers_with_a_module_of_their_own():
    sim = lab()
    found = aliases.providable(sim, {"vfio-pci", "igbvf", "virtio-pci", "nothing"})
    assert found >= {"vfio-pci", "igbvf", "virtio-pci"}
    assert "nothing" not in found
    assert aliases.providable(sim, set()) == frozenset()


def test_a_description_names_what_was_said():
    assert match.describe({"driver": ["igb"], "slot": None, "vf": False, "numa_node": [0, 1]}) == "driver=igb, numa_node=0|1"
    assert at("x")["match"] == {"address": ["x"]}


def test_a_number_is_no_id():
    """YAML makes 4347 of an unquoted 0x10fb: four digits, and another device."""
    refused(lab(), "vfio[0]", "device 4347 is a number", "in quotes", vfio=[{"match": {"device": [4347]}}])


def test_a_parent_that_is_no_function_is_in_nobodys_way():
    """Ansible hands on a key that is not set as null; lab: a host with mtty refused every wish without an address."""
    sim = lab()
    sim.mdev.add_samples()
    selector = {**dict.fromkeys(spec.SELECTOR), "driver": ["igb"]}
    assert call(sim, sriov=[{"match": selector, "state": "present", "vf_count": 1}])["failures"] == {}
