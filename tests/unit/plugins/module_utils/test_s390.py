# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""vfio-ap and vfio-ccw on synthetic trees (sim_ap.py and sim_css.py name their sources): read, plan, apply, refusal, reboot."""

from __future__ import annotations

import errno

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import replay
from ansible_collections.iovirt.host.plugins.module_utils._engine.mdev import ap
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import at, call, converged, quiet, refused
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.test_mdev import (
    BOTH,
    DEVICES,
    A,
    B,
    absent,
    host,
    info,
    kinds,
    on,
    restart,
)

TYPE = "vfio_ap-passthrough"


def matrix_host(mdevctl=True):
    sim = host(mdevctl)
    sim.mdev.add_matrix()
    return sim


def queues(uuid=A, adapters=(5,), domains=(4,), controls=()):
    parts = (("assign_adapter", adapters), ("assign_domain", domains), ("assign_control_domain", controls))
    attributes = [{"name": name, "value": f"{number:#04x}"} for name, numbers in parts for number in numbers]
    return on("matrix", TYPE, uuids=[uuid], attributes=attributes)


def has(sim, uuid=A):
    return sim.host().files.attr(f"{DEVICES}/{uuid}/matrix").split()


# --- vfio-ap -------------------------------------------------------------------------------------------------------


@BOTH
def test_queues_over_a_reboot_and_back(mdevctl):
    sim = matrix_host(mdevctl)
    wishes = [queues(A, (5, 6), (4, 0xAB), (4,)), queues(B, (5,), (0x47, 0xFF))]
    converged(sim, mdev=wishes)
    assert has(sim) == ["05.0004", "05.00ab", "06.0004", "06.00ab"]
    assert has(sim, B) == ["05.0047", "05.00ff"]
    facts = {m["uuid"]: m["queues"] for m in info(sim, parent=["matrix"])["facts"][0]["mdevs"]}
    assert facts == {A: has(sim), B: has(sim, B)}
    assert restart(sim)["failures"] == {}
    assert has(sim, B) == ["05.0047", "05.00ff"]
    quiet(sim, mdev=wishes)
    converged(sim, mdev=[absent("matrix")])
    assert sim.mdev.devices == {}


def test_a_queue_that_the_host_keeps_is_refused_with_the_masks():
    sim = matrix_host()
    said = refused(
        sim, "matrix: mdev[0]", A, "its queue 04.0004 is kept for the host", "/sys/bus/ap/apmask names adapter 0x04", "aqmask domain 0x0004",
        "'-0x04' written to apmask", "ap.apmask=0xf1ff", "kernel_cmdline", mdev=[queues(A, (4, 5), (4, 6))],
    )  # fmt: skip
    assert len(said) < 700
    sim.write("/sys/bus/ap/aqmask", "-4,-6")
    converged(sim, mdev=[queues(A, (4, 5), (4, 6))])


def test_a_boot_that_keeps_the_queue_is_told_of():
    """The masks were written by hand: a boot sets them back, and the queue is the host's again."""
    sim = matrix_host()
    sim.write("/sys/bus/ap/apmask", "-4")
    converged(sim, mdev=[queues(A, (4,))])
    assert "04.0004 is kept for the host" in restart(sim)["failures"]["matrix"]
    assert sim.mdev.devices == {}


def test_a_queue_of_a_sibling():
    sim = matrix_host()
    sim.mdev.make(B, "matrix", TYPE)
    for name, value in (("assign_adapter", "5"), ("assign_domain", "0x47")):
        sim.write(f"{DEVICES}/{B}/{name}", value)
    refused(sim, f"its queue 05.0047 is of the mediated device {B}", mdev=[queues(A, (5, 6), (4, 0x47))])
    refused(sim, f"its queue 05.0004 is of the mediated device {A}", mdev=[queues(A), queues("83b8f4f2-509f-382f-3c1e-e6bfe0fa1009", (5, 6))])
    converged(sim, mdev=[queues(A)])
    # Taken from one and given to the other in one call.
    third = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1009"
    converged(sim, mdev=[queues(A, (6,)), queues(third, (5,))])
    assert (has(sim), has(sim, third)) == (["06.0004"], ["05.0004"])


@pytest.mark.parametrize(
    ("attribute", "words"),
    [
        (("assign_adapter", "64"), "adapter 0x40, and the highest of this machine is 0x3f"),
        (("assign_control_domain", "256"), "control domain 0x100"),
        (("assign_adapter", "five"), "would not take the attribute assign_adapter 'five'"),
        (("assign_domain", "-1"), "would not take the attribute assign_domain '-1'"),
        (("ap_config", "0x04"), "would not take the attribute ap_config"),
        (("ap_config", "0x08,0x08,0x00"), "its queue 04.0004 is kept for the host"),
    ],
)
def test_attributes_that_the_kernel_would_refuse(attribute, words):
    sim = matrix_host()
    bad = {"name": attribute[0], "value": attribute[1]}
    refused(sim, words, mdev=[on("matrix", TYPE, uuids=[A], attributes=[bad])])


@BOTH
def test_all_at_once_by_ap_config(mdevctl):
    sim = matrix_host(mdevctl)
    config = {"name": "ap_config", "value": f"{ap.mask(frozenset({5}))},{ap.mask(frozenset({4, 6}))},{ap.mask(frozenset({4}))}"}
    wish = on("matrix", TYPE, uuids=[A], attributes=[config])
    converged(sim, mdev=[wish])
    assert has(sim) == ["05.0004", "05.0006"]
    assert restart(sim)["failures"] == {}
    quiet(sim, mdev=[wish])


def test_what_somebody_changed_on_a_running_device_is_drift():
    """Of vfio-ap alone the attributes can be read back."""
    sim = matrix_host()
    converged(sim, mdev=[queues(A, (5, 6)), queues(B, (5, 6), (6,))])
    sim.write(f"{DEVICES}/{A}/unassign_adapter", "6")
    sim.log.clear()
    assert kinds(converged(sim, mdev=[queues(A, (5, 6)), queues(B, (5, 6), (6,))])) == ["mdev_stop", "mdev_start"]
    assert has(sim) == ["05.0004", "06.0004"]
    assert not [entry for entry in sim.log if B in entry[1]]


def test_a_foreign_device_is_declared_with_what_it_has():
    sim = matrix_host()
    sim.mdev.make(A, "matrix", TYPE)
    for name, value in (("assign_adapter", "5"), ("assign_domain", "0x47"), ("assign_control_domain", "4")):
        sim.write(f"{DEVICES}/{A}/{name}", value)
    (found,) = info(sim, parent=["matrix"])["devices"]
    assert [(a["name"], a["value"]) for a in found["attributes"]] == [
        ("assign_adapter", "0x05"), ("assign_domain", "0x47"), ("assign_control_domain", "0x04"),
    ]  # fmt: skip
    refused(sim, A, "with other attributes", mdev=[queues(A, (5,), (0x47,))])
    assert kinds(converged(sim, mdev=[found])) == ["mdev_define"]
    assert has(sim) == ["05.0047"]


def test_queues_that_are_not_there_are_warned_of():
    sim = matrix_host()
    sim.write("/sys/bus/ap/apmask", "-3,-7")
    result = call(sim, check=True, mdev=[queues(A, (3, 5, 7))])
    (old, none) = result["warnings"]
    assert "03.0004" in old and "gets nothing of adapter 0x03" in old
    assert "07.0004" in none
    assert call(sim, mdev=[queues(A, (5,))])["warnings"] == []


def test_a_mask():
    # The example of Documentation/arch/s390/vfio-ap.rst.
    assert ap.bits("0x41") == {1, 7}
    assert ap.mask(frozenset({1, 7})) == "0x41" + "0" * 62
    assert ap.bits("0x7d" + "0" * 62) == {1, 2, 3, 4, 5, 7}
    attributes = [{"name": "assign_adapter", "value": "010"}, {"name": "assign_adapter", "value": "9"}, {"name": "unassign_adapter", "value": "0x9"}]
    assert ap.wanted(attributes) == ap.Matrix(adapters=frozenset({8}))


# --- vfio-ccw ------------------------------------------------------------------------------------------------------

SUB, ONLINE, QDIO, CHSC = "0.0.0313", "0.0.0314", "0.0.0010", "0.0.0020"


def css_host(mdevctl=True, rule_works=False):
    sim = host(mdevctl, rule_works)
    sim.mdev.add_subchannels()
    return sim


def dasd(name=SUB, **wish):
    return on(name, "vfio_ccw-io", **(wish or {"uuids": [A]}))


def driver(sim, name=SUB):
    return sim.mdev.css.subchannels[name].driver, sim.mdev.css.subchannels[name].override


@BOTH
@pytest.mark.parametrize("rule_works", [True, False])
def test_a_subchannel_over_a_reboot_and_back(mdevctl, rule_works):
    sim = css_host(mdevctl, rule_works)
    before = sim.snapshot()
    result = converged(sim, mdev=[dasd()])
    assert [a["action"] for a in result["actions"] if a["device"] == SUB and a["action"] != "declare"] == [
        "give_subchannel", *(["mdev_define"] if mdevctl else []), "mdev_start",
    ]  # fmt: skip
    assert [a["certainty"] for a in result["actions"] if a["action"] == "mdev_start"] == ["predicted"]
    assert driver(sim) == ("vfio_ccw", "vfio_ccw")
    assert list(sim.mdev.devices) == [A]
    (facts,) = info(sim, parent=[SUB])["facts"]
    assert (facts["driver"], facts["types"][0]["device_api"], facts["types"][0]["available"]) == ("vfio_ccw", "vfio-ccw", 0)
    sim.reboot()
    assert driver(sim) == ("io_subchannel", None)
    assert replay.run(sim.host(environment={}, sources=None), None)["failures"] == {}
    assert list(sim.mdev.devices) == [A]
    quiet(sim, mdev=[dasd()])
    converged(sim, mdev=[absent(SUB)])
    after = sim.snapshot()
    for part in ("files", "modes"):
        for snapshot in (before, after):
            snapshot[part] = {p: t for p, t in snapshot[part].items() if not p.startswith("/run/")}
    assert after == before


def test_udev_starts_the_replay_of_a_subchannel():
    sim = css_host()
    converged(sim, mdev=[dasd()])
    rules = sim.files["/etc/udev/rules.d/99-iovirt.rules"]
    assert f'ACTION=="add", SUBSYSTEM=="css", KERNEL=="{SUB}"' in rules
    assert f'KERNEL=="{SUB}", ENV{{MDEV_STATE}}=="registered"' in rules


def test_one_that_has_the_driver_already_keeps_it():
    """As by driverctl -b css set-override."""
    sim = css_host()
    sim.run(["modprobe", "--", "vfio_ccw"])
    for path, text in (("devices/0.0.0313/driver_override", "vfio_ccw"), ("devices/0.0.0313/driver/unbind", SUB), ("drivers/vfio_ccw/bind", SUB)):
        sim.write(f"/sys/bus/css/{path}", text)
    assert "give_subchannel" not in str(converged(sim, mdev=[dasd()])["actions"])
    converged(sim, mdev=[absent(SUB)])
    assert driver(sim) == ("vfio_ccw", "vfio_ccw")


def test_a_reload_of_the_driver_is_drift():
    sim = css_host()
    converged(sim, mdev=[dasd()])
    sim.mdev.css._unbind(SUB)
    sim._tree = None
    converged(sim, mdev=[dasd()])
    assert list(sim.mdev.devices) == [A]


def test_what_a_subchannel_cannot():
    sim = css_host()
    offer = "vfio_ccw-io 'I/O subchannel (Non-QDIO)' (1 free)"
    refused(sim, f"{ONLINE}: mdev[0]: its device 0.0.2b0a is online", "chzdev --disable 0.0.2b0a", mdev=[dasd(ONLINE)])
    refused(sim, f"{CHSC}: mdev[0]: it is a subchannel of type 1", mdev=[dasd(CHSC)])
    refused(sim, "there is no room for 2 of vfio_ccw-io", offer, mdev=[dasd(count=2)])
    refused(sim, "it offers no type 'vfio-ccw_io'", offer, mdev=[on(SUB, "vfio-ccw_io", uuids=[A])])
    refused(sim, "no device of this host matches (parent=0.0.0999)", mdev=[dasd("0.0.0999")])
    assert SUB not in refused(sim, vfio=[at("0*", driver="vfio-pci")])
    sim.files["/etc/modprobe.d/no.conf"] = "install vfio_ccw /bin/false\n"
    sim._tree = None
    refused(sim, SUB, "vfio_ccw", "/etc/modprobe.d/no.conf", mdev=[dasd()])
    sim.files.pop("/etc/modprobe.d/no.conf")
    sim.missing_modules.add("vfio_ccw")
    sim._tree = None
    refused(sim, "the running kernel has no driver vfio_ccw", mdev=[dasd()])


@BOTH
def test_a_driver_that_declines_leaves_the_subchannel_as_it_was(mdevctl):
    sim = css_host(mdevctl)
    before = sim.snapshot()
    result = call(sim, mdev=[dasd(QDIO)])
    assert "ENODEV" in result["failures"][QDIO] and "takes no QDIO subchannels" in result["failures"][QDIO]
    assert sim.snapshot() == before


def test_a_device_that_cannot_be_made_gives_the_subchannel_back():
    sim = css_host(mdevctl=False)
    before = sim.snapshot()
    sim.faults.append(("*/create", "*", errno.ENODEV))
    assert "ENODEV" in call(sim, mdev=[dasd()])["failures"][SUB]
    assert sim.snapshot() == before


def test_another_device_on_the_subchannel_is_left_alone():
    """Subchannels are numbered anew at an IPL."""
    sim = css_host()
    converged(sim, mdev=[dasd()])
    sim.mdev.css.subchannels[SUB].device = "0.0.1000"
    said = restart(sim)["failures"][SUB]
    assert "serial 0.0.1000 instead of 0.0.2b09" in said
    assert driver(sim) == ("io_subchannel", None)
