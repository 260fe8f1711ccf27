# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A whole GPU for a guest: with its audio and USB, and how it can be reset. The card is synthetic: classes and functions as lspci shows them for a
GeForce RTX 2080 (TU104: VGA, audio, USB 3.1, UCSI), ids of pci.ids."""

from __future__ import annotations

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import engine, replay
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import (
    EDU,
    at,
    call,
    converged,
    lab,
    quiet,
    refused,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import Pci
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.test_mdev import guest

CARD = "0000:65:00"
GPU, AUDIO, USB, UCSI = (f"{CARD}.{number}" for number in range(4))
WITH_ALL = {"match": {"class": ["display"], "vendor": ["10de"]}, "siblings": True}


def host(methods="flr bus"):
    sim = lab(vfio_loaded=True)
    port = sim.add(Pci("0000:64:00.0", "8086:2030", "060400", parent="/sys/devices/pci0000:64"))
    rows = [(GPU, "10de:1e87", "030000", "nouveau"), (AUDIO, "10de:10f8", "040300", "snd_hda_intel"), (USB, "10de:1ad8", "0c0330", "xhci_hcd"),
            (UCSI, "10de:1ad9", "0c8000", "nvidia-gpu")]  # fmt: skip
    for address, ids, class_code, driver in rows:
        sim.add_driver(driver, ids)
        sim.add(Pci(address, ids, class_code, parent=port.path, reset_methods=methods if address == GPU else "bus"))
    return sim.power_on("root=UUID=1d9f ro console=ttyS0 intel_iommu=on quiet")


def drivers(sim):
    return [sim.functions[address].driver for address in (GPU, AUDIO, USB, UCSI)]


def test_all_of_the_slot_over_a_reboot_and_back():
    sim = host()
    before = drivers(sim)
    assert None not in before
    converged(sim, vfio=[WITH_ALL])
    assert drivers(sim) == ["vfio-pci"] * 4
    sim.reboot()
    assert replay.run(sim.host(environment={}, sources=None), None)["failures"] == {}
    assert drivers(sim) == ["vfio-pci"] * 4
    quiet(sim, vfio=[WITH_ALL])
    quiet(sim, vfio=[WITH_ALL], exclusive=("vfio",))
    converged(sim, vfio=[{**WITH_ALL, "state": "absent"}])
    assert drivers(sim) == before
    assert "/etc/iovirt/vfio.json" not in sim.files


def test_the_number_is_of_what_the_selector_finds():
    sim = host()
    refused(sim, "expect: 4, but 1 devices match", vfio=[{**WITH_ALL, "expect": 4}])
    converged(sim, vfio=[{**WITH_ALL, "expect": 1}])


def test_the_wish_of_its_own_counts_for_a_sibling():
    sim = host()
    converged(sim, vfio=[WITH_ALL, at(USB, state="absent"), at(AUDIO, driver="vfio-pci")], allow=("group",))
    assert drivers(sim)[2] == "xhci_hcd"
    assert drivers(sim)[:2] == ["vfio-pci"] * 2


def test_a_sibling_in_use_stands_against_all_of_it():
    sim = host()
    source = "<address domain='0x0000' bus='0x65' slot='0x00' function='0x1'/>"
    text = guest("x").replace("<address uuid='x'/>", source).replace("mdev", "pci")
    sim.files["/run/libvirt/qemu/router1.xml"] = f"<domstatus state='running' pid=''>{text}</domstatus>"
    sim._tree = None
    refused(sim, AUDIO, "router1", "allow: [in_use]", vfio=[WITH_ALL])


def test_without_its_siblings_its_group_stands_against_it():
    sim = host()
    for address in (GPU, AUDIO, USB, UCSI):
        sim.functions[address].group = "77"
    sim._tree = None
    refused(sim, "its IOMMU group 77 also holds", vfio=[{**WITH_ALL, "siblings": False}])
    converged(sim, vfio=[WITH_ALL])


@pytest.mark.parametrize(("methods", "words"), [("", "no way to reset it"), ("bus", "with its whole bus only"), ("flr bus", None), (None, None)])
def test_how_it_can_be_reset_is_said(methods, words):
    sim = host(methods)
    result = call(sim, vfio=[WITH_ALL])
    said = [text for text in result["warnings"] if GPU in text and "reset" in text]
    assert [words in text for text in said] == ([True] if words else [])
    # Once, and not with each run.
    assert not [text for text in call(sim, vfio=[WITH_ALL])["warnings"] if "reset" in text]
    facts = {f["address"]: f for f in engine.resource_info(sim.host(), "vfio", None)["facts"]}
    assert facts[GPU]["reset_methods"] == (None if methods is None else methods.split())
    converged(sim, vfio=[at(EDU)])
    assert {f["address"]: f for f in engine.resource_info(sim.host(), "vfio", None)["facts"]}[EDU]["reset_methods"] is None
