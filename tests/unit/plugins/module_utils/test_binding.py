# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Drivers of all kinds: variants of vfio-pci, modules called otherwise, built in, missing, switched off, unsigned."""

from __future__ import annotations

import fnmatch
import random

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import aliases, drivers, security
from ansible_collections.iovirt.host.plugins.module_utils._engine.host import FileSystem
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import (
    EDU,
    MANAGEMENT,
    NVME,
    PF1,
    at,
    call,
    converged,
    drivers_of,
    lab,
    quiet,
    refused,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import DEVICES, RELEASE

# --- Variant drivers ---------------------------------------------------------------------------------------------------


def with_variants(**more):
    """igb and nvme have vfio drivers of their own here, as ConnectX VFs have mlx5_vfio_pci: a made-up host."""
    sim = lab(**more)
    sim.add_driver("igb_vfio_pci", variant_of=frozenset({"8086:10ca"}))
    sim.add_driver("nvme_vfio_pci", variant_of=frozenset({"1b36:0010"}))
    sim._tree = None
    return sim


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        *((name, True) for name in ("vfio-pci", "mlx5_vfio_pci", "nvgrace_gpu_vfio_pci", "hisi_acc_vfio_pci", "nvidia-vgpu-vfio")),
        *((name, False) for name in ("igb", "uio_pci_generic", "pci-stub", "", None, "notvfio")),
    ],
)
def test_which_drivers_are_vfio_drivers(name, is_one):
    assert drivers.is_vfio(name) is is_one


def test_the_best_driver_for_a_device():
    sim = with_variants()
    done = converged(sim, vfio=[at(NVME, driver="vfio-best"), at(EDU, driver="vfio-best")])
    assert sim.functions[NVME].driver == "nvme_vfio_pci"
    assert sim.functions[EDU].driver == "vfio-pci"
    assert {item["match"]["address"][0]: item["driver"] for item in done["vfio"]}[EDU] == "vfio-pci"
    converged(sim, vfio=[at(NVME, state="absent"), at(EDU, state="absent")])
    assert (sim.functions[NVME].driver, sim.functions[NVME].override) == ("nvme", None)


def test_the_best_driver_for_vfs_born_and_unborn():
    sim = with_variants()
    wish = {"sriov": [at(PF1, vf_count=2, vfs=[{"range": "0-1", "driver": "vfio-best"}])]}
    converged(sim, **wish)
    assert drivers_of(sim, PF1) == ["igb_vfio_pci", "igb_vfio_pci"]
    quiet(sim, **wish)


def test_a_variant_by_its_name_is_a_vfio_driver_in_all_respects():
    """It needs a group, its users are looked for, and its device has another native driver."""
    sim = with_variants(iommu=False)
    refused(sim, NVME, "the IOMMU is off", vfio=[at(NVME, driver="nvme_vfio_pci")])
    sim = with_variants()
    call(sim, vfio=[at(NVME, driver="nvme_vfio_pci")])
    sim.pids[4242] = ("qemu-system-x86", [f"/dev/vfio/{sim.functions[NVME].group}"])
    sim._tree = None
    refused(sim, NVME, "qemu-system-x86", "allow: [in_use]", vfio=[at(NVME, state="absent")])
    sim.pids.clear()
    sim._tree = None
    converged(sim, vfio=[{"match": {"driver": ["nvme"]}, "driver": "nvme_vfio_pci", "expect": 1}])


def test_of_two_variants_the_closer_one():
    files = lab()
    files.files[f"/lib/modules/{RELEASE}/modules.alias"] = (
        "alias vfio_pci:v00008086d*sv*sd*bc*sc*i* wide_vfio_pci\n"
        "alias vfio_pci:v00008086d000010CAsv*sd*bc*sc*i* close_vfio_pci\n"
        "alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci\n"
    )
    files._tree = None
    found = aliases.variants(files, {"a": "pci:v00008086d000010CAsv00000000sd00000000bc02sc00i00", "b": "pci:v00001234"}, ())
    assert found == {"a": "close_vfio_pci"}


# --- Names -------------------------------------------------------------------------------------------------------------


def test_a_driver_whose_module_is_called_otherwise():
    sim = lab()
    sim.add_driver("xhci_hcd", "0c0330", module="xhci_pci")
    converged(sim, vfio=[at(EDU, driver="xhci_hcd")])
    assert ["modprobe", "--", "xhci_pci"] in sim.commands
    assert sim.functions[EDU].driver == "xhci_hcd"
    refused(lab(), "that is its module", "called xhci_hcd", vfio=[at(EDU, driver="xhci_pci")])


def test_a_module_with_a_driver_of_a_name_nobody_knows():
    sim = lab()
    sim.add_driver("inner", module="outer")
    assert "driver is called inner" in call(sim, vfio=[at(EDU, driver="outer")])["failures"][EDU]


def test_a_pattern_fits_as_fnmatch_has_it():
    draw, fitted = random.Random(1), 0
    for _number in range(5000):
        text = "".join(draw.choices("ab", k=draw.randrange(6)))
        pattern = "".join(draw.choices("ab*?", [4, 4, 4, 1], k=draw.randrange(6)))
        assert aliases.fits(text, pattern) == fnmatch.fnmatchcase(text, pattern), (text, pattern)
        fitted += aliases.fits(text, pattern)
    assert 500 < fitted < 4500
    assert aliases.fits("pci:v0001", "pci:v[0-9]*")


def test_built_in_drivers_are_found_by_modalias():
    sim = lab()
    sim.add_driver("serial", "1234:11e8", module="8250_pci", builtin=True)
    sim.reboot()
    sim.functions[EDU].driver = None
    sim._tree = None
    modalias = sim.attr(f"{DEVICES}/{EDU}/modalias")
    assert aliases.native_drivers(sim, [modalias], ["serial"]) == {modalias: "serial"}
    call(sim, vfio=[at(EDU)])
    converged(sim, vfio=[at(EDU, state="absent")])
    assert sim.functions[EDU].driver == "serial"


def test_the_table_of_aliases_is_searched_once_a_call(monkeypatch):
    """VFs are born, half of them for vfio-pci and half for their own driver: what they would have by themselves is known from the first reading
    or seen, not searched for again."""
    sim, searched = lab(igbvf_loaded=True, vfio_loaded=True), []
    find = aliases.native_drivers
    monkeypatch.setattr(aliases, "native_drivers", lambda files, asked, of: searched.append(set(asked)) or find(files, asked, of))
    vfs = [{"range": "0-1", "driver": "vfio-pci"}, {"range": "2-3", "driver": "default"}]
    done = call(sim, sriov=[at(PF1, vf_count=4, vfs=vfs)])
    assert not done["failures"]
    assert drivers_of(sim, PF1) == ["vfio-pci", "vfio-pci", "igbvf", "igbvf"]
    assert [asked for asked in searched if asked][1:] == []


# --- Modules that cannot be had --------------------------------------------------------------------------------------


def test_missing():
    sim = lab()
    sim.missing_modules.add("vfio_pci")
    sim._tree = None
    refused(sim, f"{RELEASE}) has no module", "neither loadable nor built in", "linux-modules-extra", vfio=[at(EDU)])
    refused(sim, "linux-modules-extra", sriov=[at(PF1, vf_count=1, vfs=[{"range": "0", "driver": "vfio-pci"}])])


def test_gone_after_an_upgrade():
    sim = lab()
    sim.modules_gone = True
    sim._tree = None
    refused(sim, "are gone", "Install the kernel's package again", vfio=[at(EDU)])
    sim.files["/lib/modules/6.12.9-new/modules.dep"] = ""
    sim._tree = None
    refused(sim, "are gone, as after an upgrade", "6.12.9-new", "Reboot", vfio=[at(EDU)])


def test_built_in_and_not_on_the_bus():
    sim = lab()
    sim.builtin.add("vfio-pci")
    sim._tree = None
    refused(sim, "vfio-pci is built into the running kernel", "initcall_blacklist=", vfio=[at(EDU)])
    sim.reboot()
    converged(sim, vfio=[at(EDU)])
    assert not [c for c in sim.commands if c[0] == "modprobe"]


@pytest.mark.parametrize("line", ["install vfio-pci /bin/false", "install vfio_pci /usr/bin/true"])
def test_switched_off(line):
    sim = lab()
    sim.files["/etc/modprobe.d/hardening.conf"] = f"# none\n{line}\n"
    sim._tree = None
    refused(sim, "switched off in /etc/modprobe.d/hardening.conf", line, vfio=[at(EDU)])
    # The file of /etc hides the one of the same name below /usr (modprobe.d(5)).
    sim.files["/usr/lib/modprobe.d/hardening.conf"] = sim.files["/etc/modprobe.d/hardening.conf"]
    sim.files["/etc/modprobe.d/hardening.conf"] = ""
    sim._tree = None
    converged(sim, vfio=[at(EDU)])


def test_a_blacklist_is_for_udev_alone():
    sim = lab()
    sim.files["/etc/modprobe.d/hardening.conf"] = "blacklist vfio_pci\n"
    sim._tree = None
    converged(sim, vfio=[at(EDU)])


def test_forbidden_on_the_command_line():
    sim = lab()
    sim.files["/proc/cmdline"] += " module_blacklist=nouveau,vfio-pci"
    sim._tree = None
    refused(sim, "module_blacklist=", "reboot", vfio=[at(EDU)])


# --- Lockdown and Secure Boot ----------------------------------------------------------------------------------------

UNSIGNED = "modprobe: ERROR: could not insert 'vfio_pci': Key was rejected by service"


def locked(sim):
    sim.files[security.LOCKDOWN] = "none [integrity] confidentiality\n"
    sim.files[security.SECURE_BOOT] = "\x06\0\0\0\x01"
    sim._tree = None
    return sim


def test_an_unsigned_module():
    sim = lab()
    sim.module_refusal["vfio-pci"] = UNSIGNED
    failure = call(sim, vfio=[at(EDU)])["failures"][EDU]
    assert "Install or repair" in failure and "lockdown" not in failure
    failure = call(locked(sim), vfio=[at(EDU)])["failures"][EDU]
    assert "signed modules only (lockdown: integrity, Secure Boot is on)" in failure


def test_lockdown_is_no_excuse_for_another_answer():
    assert security.why_refused(locked(lab()), "Module vfio-pci not found") is None


@pytest.mark.parametrize(("byte", "expected"), [(b"\x01", True), (b"\x00", False), (None, None)])
def test_the_facts(tmp_path, byte, expected):
    """On a real file system: the variable is binary."""
    if byte is not None:
        path = tmp_path / security.SECURE_BOOT[1:]
        path.parent.mkdir(parents=True)
        path.write_bytes(b"\x06\0\0\0" + byte)
    assert security.facts(FileSystem(str(tmp_path))) == {"lockdown": None, "secure_boot": expected}


# --- Two wishes for one device ---------------------------------------------------------------------------------------


def test_two_entries_that_wish_different_things_are_both_named():
    refused(lab(), NVME, "both vfio[0] and vfio[1] name it", vfio=[at(NVME), at(NVME, driver="pci-stub")])
    refused(lab(), PF1, "both sriov[0] and sriov[1] name it", sriov=[at(PF1, vf_count=1), at(PF1, vf_count=2)])


def test_two_roles_in_separate_runs():
    """What an earlier run declared is as binding as what this one wishes."""
    sim = lab()
    call(sim, vfio=[at(PF1)])
    refused(sim, PF1, "sriov[0] names it", "the resource vfio holds it", "/etc/iovirt/vfio.json", sriov=[at(PF1, vf_count=1)])


def test_the_management_port_stays_refused_for_a_variant():
    sim = lab()
    sim.add_driver("virtio_vfio_pci", variant_of=frozenset({"1af4:1041"}))
    refused(sim, MANAGEMENT, "path to the controller", vfio=[at(MANAGEMENT, driver="vfio-best")])


# --- Giving back -------------------------------------------------------------------------------------------------------


def test_vfio_that_takes_it_again_by_its_ids_is_no_success():
    """new_id of an operator, since we took it: the override goes, and vfio-pci has the device all the same."""
    sim = lab()
    call(sim, vfio=[at(EDU)])
    before = sim.snapshot()
    sim.known_drivers["vfio-pci"].ids = frozenset({"1234:11e8"})
    sim._tree = None
    failure = call(sim, vfio=[at(EDU, state="absent")])["failures"][EDU]
    assert "took 0000:00:09.0 again by its IDs" in failure and "remove_id" in failure
    assert sim.snapshot() == before
