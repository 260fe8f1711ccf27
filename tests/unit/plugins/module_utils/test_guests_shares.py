# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Guests with mediated devices and vGPUs: who gets which, who keeps it, who is refused."""

from __future__ import annotations

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import cli, engine, host_info
from ansible_collections.iovirt.host.plugins.module_utils._engine.errors import EngineError
from ansible_collections.iovirt.host.plugins.module_utils._engine.guests import shares
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils import (
    guests_hosts,
    hosts,
    test_mdev,
    test_vgpu,
    test_vgpu_intel,
    test_vgpu_mdev,
    test_vgpu_mig,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.guests_hosts import (
    Host,
    converged,
    guest,
    quiet,
    refused,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import call
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import Net, Pci
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.test_mdev import A, B, C, absent, on
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.test_vgpu import A12, GPU, Q12, Q24

D = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1004"
IGPU = "0000:00:0a.0"
TWO = [on(uuids=[A, B]), on("mdpy", "mdpy-hd", uuids=[C], pool="screens")]


def ready(sim):
    """Memory and nodes for guests, a bridge, and vfio."""
    sim.nets["br0"] = Net(kind="bridge", mac="52:54:00:00:00:99")
    sim.files.update({
        "/proc/meminfo": "MemTotal:        4000000 kB\n",
        "/sys/devices/system/cpu/online": "0-3",
        "/sys/devices/system/node/node0/cpulist": "0-1",
        "/sys/devices/system/node/node1/cpulist": "2-3",
    })  # fmt: skip
    sim._tree = None
    return Host(sim)


def host(*wishes, **more):
    it = ready(test_mdev.host(**more))
    if wishes:
        call(it.sim, mdev=list(wishes))
    return it


def mdevs(it, name="g1", running=True):
    """UUID -> attributes of the device in the definition; it is the same in the running guest."""
    found = {
        device.find("source/address").get("uuid"): dict(device.attrib) for device in it.virt.defined[name].iterfind("devices/hostdev[@type='mdev']")
    }
    if running:
        live = {device.find("source/address").get("uuid") for device in it.virt.live[name].iterfind("devices/hostdev[@type='mdev']")}
        assert live == set(found)
    return found


def want(**more):
    return {"mdev": [{"type": "mtty-2"}], **more}


# --- Which one --------------------------------------------------------------------------------------------------------


def test_by_type_by_pool_by_uuid_and_all_of_it_goes_back():
    it = host(*TWO)
    before = it.sim.snapshot()
    wish = guest("g1", mdev=[{"type": "mtty-2"}, {"pool": "screens"}, {"uuid": B.upper()}])
    converged(it, wish)
    assert set(mdevs(it)) == {A, B, C}
    assert mdevs(it)[A]["model"] == "vfio-pci" and mdevs(it)[A]["type"] == "mdev"
    assert {m["uuid"]: (m["parent"], m["type"]) for m in it.info()["facts"][0]["mdevs"]} == {
        A: ("mtty", "mtty-2"), B: ("mtty", "mtty-2"), C: ("mdpy", "mdpy-hd"),
    }  # fmt: skip
    assert it.info()["guests"][0]["mdev"] == [{"type": "mtty-2"}, {"pool": "screens"}, {"uuid": B}]
    result = converged(it, guest("g1", state="absent"))
    assert any(A in action["text"] for action in result["actions"])
    after = it.sim.snapshot()
    assert after == before


def test_a_type_by_its_name_and_of_one_parent():
    it = host(on(uuids=[A]), on(type_="mtty-1", uuids=[B]))
    converged(it, guest("g1", mdev=[{"type": "Single port serial", "parent": "mtty"}]))
    assert set(mdevs(it)) == {B}
    refused(it, guest("g2", mdev=[{"type": "mtty-2", "parent": "mdpy"}]), says="no mediated device of the type 'mtty-2' on mdpy is declared")


def test_everybody_keeps_what_it_has_whatever_the_order_of_the_list():
    it = host(on(uuids=[A, B, C, D]))
    converged(it, guest("g2", **want()))
    assert set(mdevs(it, "g2")) == {A}
    # The first of the list is new, and takes none from one that was there.
    converged(it, guest("g1", **want()), guest("g2", mdev=[{"type": "mtty-2"}, {"type": "mtty-2"}], state="present"), restart=True, power_off=True)
    assert set(mdevs(it, "g1")) == {C} and set(mdevs(it, "g2", running=False)) == {A, B}
    converged(it, guest("g1", mdev=[]), guest("g2", state="stopped"), restart=True, power_off=True)
    assert mdevs(it, "g1") == {}
    assert set(mdevs(it, "g2", running=False)) == {A, B}
    # One that does not run keeps its own as well.
    converged(it, guest("g1", mdev=[{"type": "mtty-2"}] * 2), guest("g2", state="stopped"), restart=True, power_off=True)
    assert set(mdevs(it, "g1")) == {C, D}


def test_a_certain_one_comes_before_one_of_a_type():
    it = host(on(uuids=[A, B]))
    converged(it, guest("g1", **want()), guest("g2", mdev=[{"uuid": A}]))
    assert (set(mdevs(it, "g1")), set(mdevs(it, "g2"))) == ({B}, {A})


def test_what_is_unset_stays_and_an_empty_list_takes_away():
    it = host(on(uuids=[A]))
    converged(it, guest("g1", **want()))
    converged(it, guest("g1"))
    assert set(mdevs(it)) == {A}
    done = it.call(guest("g1", mdev=[]))
    assert done["restart_required"] is True and done["restart_reasons"] == {"g1": [f"devices/hostdev[{A}] is there"]}
    # In each run until it was started anew.
    again = it.call(guest("g1", mdev=[]))
    assert (again["actions"], again["restart_reasons"]) == ([], done["restart_reasons"])
    # It still has it.
    refused(it, guest("g1", mdev=[]), guest("g2", **want()), says=f"{A}: g1")
    converged(it, guest("g1", mdev=[]), restart=True, power_off=True)
    assert mdevs(it) == {}


def test_a_foreign_one_by_its_uuid_alone():
    it = host(on(uuids=[A]))
    it.sim.mdev.make(D, "mtty", "mtty-1")
    refused(it, guest("g1", mdev=[{"type": "mtty-1"}]), says="no mediated device of the type 'mtty-1' is declared")
    converged(it, guest("g1", mdev=[{"uuid": D}]))
    assert set(mdevs(it)) == {D}


def test_a_pool_that_is_empty_is_none():
    """What is in no pool, others' included, is not found by the name of none."""
    for declared, pool, asked in ((True, "", ""), (False, "", ""), (False, "lines", "lines")):
        share = shares.Share(A, "mtty-2", device_api="vfio-pci", pool=pool, declared=declared)
        assert not shares._is_meant(share, shares.Request("g1", "mdev", 0, {"pool": asked}))
    share = shares.Share(A, "mtty-2", device_api="vfio-pci", pool="lines", declared=True)
    assert shares._is_meant(share, shares.Request("g1", "mdev", 0, {"pool": "lines"}))


def test_one_that_was_made_anew_under_another_uuid():
    it = host(on(uuids=[A]))
    converged(it, guest("g1", **want(), state="present"))
    call(it.sim, mdev=[on(uuids=[B])], allow=("in_use",))
    converged(it, guest("g1", **want()))
    assert set(mdevs(it)) == {B}


def test_the_model_comes_from_the_api_of_the_type():
    it = host()
    it.sim.mdev.add_matrix()
    match = {"match": {"parent": ["matrix"]}, "type": "vfio_ap-passthrough", "uuids": [A], "attributes": [{"name": "assign_adapter", "value": "0x05"}]}
    call(it.sim, mdev=[match])
    converged(it, guest("g1", mdev=[{"type": "vfio_ap-passthrough"}]))
    assert mdevs(it)[A]["model"] == "vfio-ap" and "display" not in mdevs(it)[A]
    said = refused(it, guest("g2", mdev=[{"uuid": A, "display": True}], display={"model": "emulated"}), says="is held by g1")
    assert "display" not in said
    converged(it, guest("g1", state="absent"))
    refused(it, guest("g2", mdev=[{"uuid": A, "display": True}], display={"model": "emulated"}), says="the API of its type is vfio-ap")


def test_a_display_on_the_graphics_of_the_guest():
    it = host(*TWO)
    screen = {"pool": "screens", "display": True, "ramfb": True}
    refused(it, guest("g1", mdev=[screen]), says="mdev[0]: display needs something to be shown on")
    refused(it, guest("g1", mdev=[screen], display={"model": "none"}), says="the guest has no graphics")
    wish = guest("g1", mdev=[screen, {"type": "mtty-2"}], display={"model": "emulated"})
    converged(it, wish)
    assert (mdevs(it)[C]["display"], mdevs(it)[C]["ramfb"]) == ("on", "on")
    # libvirt's own word for what nobody asked for.
    assert mdevs(it)[A]["display"] == "off" and "ramfb" not in mdevs(it)[A]
    # The graphics that it has count where nobody speaks of them.
    converged(it, guest("g1", mdev=[screen, {"type": "mtty-2"}]))
    off = guest("g1", mdev=[{**screen, "display": False, "ramfb": False}])
    converged(it, off, restart=True, power_off=True)
    assert (mdevs(it)[C]["display"], mdevs(it)[C]["ramfb"]) == ("off", "off")


def gvt(node=None):
    it = host()
    it.sim.add_driver("i915", "8086:3e92")
    gpu = it.sim.add(Pci(IGPU, "8086:3e92", "030000", driver="i915", **({} if node is None else {"numa_node": node})))
    it.sim.registered.add("i915")
    it.sim.mdev.add_gvt(IGPU, gpu.path)
    call(it.sim, mdev=[{"match": {"address": [IGPU]}, "type": "GVTg_V5_4", "count": 2}])
    return it


def test_near():
    it = gvt(node=1)
    share = {"type": "GVTg_V5_4", "numa": "near"}
    refused(it, guest("g1", mdev=[share]), says="mdev[0]: numa: near, and nothing says where the guest is")
    refused(it, guest("g1", mdev=[share], numa_node=0), says="near NUMA node 0")
    converged(it, guest("g1", mdev=[share], numa_node=1))
    # One of no node is near to all.
    call(it.sim, mdev=[on(uuids=[A])])
    converged(it, guest("g1", mdev=[share], numa_node=1), guest("g2", mdev=[{"type": "mtty-2", "numa": "near"}], numa_node=0))


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ({}, "mdev[0]: a mediated device is asked by type, pool or uuid, one of them"),
        ({"type": "mtty-2", "uuid": A}, "one of them"),
        ({"uuid": "12345"}, "mdev[0]: '12345' is no UUID"),
        ({"pool": ""}, "mdev[0]: pool is empty. Name it, or leave the device out."),
        ({"type": ""}, "mdev[0]: type is empty. Name it, or leave the device out."),
        ({"uuid": ""}, "mdev[0]: uuid is empty. Name it, or leave the device out."),
        ({"uuid": A, "parent": "mtty"}, "parent means nothing beside uuid"),
        ({"pool": "screens", "parent": "mdpy"}, "parent means nothing beside pool"),
        ({"uuid": A, "numa": "near"}, "numa means nothing beside uuid"),
        ({"uuid": A, "ramfb": True}, "ramfb is what display shows"),
        ({"uuid": D}, f"there is no mediated device {D} on this host. Declare it"),
        ({"pool": "tapes"}, "there is no pool tapes of mediated devices: the pools of mediated devices on this host are screens."),
        (
            {"type": "mtty-9"},
            "mdev[0]: no mediated device of the type 'mtty-9' is declared on this host. mdpy offers mdpy-hd 'hd' (3 free), mdpy-vga 'vga' (3 free), "
            "mdpy-xga 'xga' (3 free); mtty offers mtty-1 'Single port serial' (20 free), mtty-2 'Dual port serial' (10 free). Declare it",
        ),
        ({"type": "mtty-1"}, "no mediated device of the type 'mtty-1' is declared on this host."),
    ],
)
def test_bad_input_changes_nothing(item, says):
    refused(host(*TWO), guest("g1", mdev=[item]), says=says)


def test_more_than_are_free_names_the_holders_and_the_room():
    it = host(*TWO)
    converged(it, guest("g1", **want()))
    two = guest("g2", mdev=[{"type": "mtty-2"}] * 2)
    said = refused(it, guest("g1", **want()), two, says="g2: mdev[1]: there is no free mediated device of the type 'mtty-2'")
    assert f"they are held by {A}: g1; {B}: g2. mtty has room for 10 more of mtty-2. Give one of them back" in said
    assert it.call(guest("g1", **want()), guest("g2", **want()))["failures"] == {}


def test_one_that_another_guest_has():
    it = host(*TWO)
    converged(it, guest("g1", mdev=[{"uuid": A}], state="present"))
    refused(it, guest("g2", mdev=[{"uuid": A}]), says=f"g2: mdev[0]: the mediated device {A} is held by g1.")
    refused(it, guest("g2", mdev=[{"uuid": B}]), guest("g3", mdev=[{"uuid": B}]), says=f"mdev[0] and mdev[0] of the guest g2 both name {B}")
    refused(it, guest("g2", mdev=[{"uuid": B}, {"uuid": B}]), says=f"mdev[1] and mdev[0] of the guest g2 both name {B}")
    # From hand to hand in one call.
    converged(it, guest("g1", state="absent"), guest("g2", mdev=[{"uuid": A}]))


def test_one_that_a_process_holds_open():
    it = host(*TWO)
    it.sim.pids[77] = ("holder", [f"/dev/vfio/{it.sim.mdev.devices[A].group}"])
    it.sim.files[f"/dev/vfio/{it.sim.mdev.devices[A].group}"] = ""
    it.sim._tree = None
    said = refused(it, guest("g1", mdev=[{"uuid": A}]), says="process 77 (holder)")
    assert A in said
    converged(it, guest("g1", **want()))
    assert set(mdevs(it)) == {B}


def test_one_that_is_declared_and_not_there():
    it = host(on(uuids=[A], autostart=False))
    it.sim.mdev.devices.clear()
    it.sim._tree = None
    refused(it, guest("g1", mdev=[{"uuid": A}]), says=f"the mediated device {A} is defined on mtty and not there now. Run the role devices first")


def test_a_start_that_libvirt_refuses_is_undone():
    it = host(*TWO)
    before = it.snapshot()
    it.virt.faults["create"] = "vfio: device doesn't support any (known) display method"
    result = it.call(guest("g1", **want()))
    assert "known) display method" in result["failures"]["g1"] and "It was undone" in result["failures"]["g1"]
    assert it.snapshot() == before


# --- The resource knows of it -----------------------------------------------------------------------------------------


def test_the_device_of_a_running_guest_is_not_taken_and_its_holder_is_named():
    it = host(*TWO)
    converged(it, guest("g1", **want()))
    hosts.refused(it.sim, A, "the guest g1 (libvirt; running)", "unkillably", mdev=[absent(), *TWO[1:]], allow=("in_use",))
    facts = engine.resource_info(it.sim.host(), "mdev", None)["facts"]
    held = {m["uuid"]: (m["holders"], m["pool"]) for fact in facts for m in fact["mdevs"]}
    assert held == {A: (["the guest g1 (libvirt; running)"], None), B: ([], None), C: ([], "screens")}
    assert {m["uuid"]: m["holders"] for m in host_info.facts(it.sim.host())["host"]["mdevs"]}[A] == ["the guest g1 (libvirt; running)"]
    # Its neighbour goes, and comes.
    call(it.sim, mdev=[on(uuids=[A])])
    quiet(it, guest("g1", **want()))
    converged(it, guest("g1", state="absent"))
    assert call(it.sim, mdev=[absent()])["failures"] == {}


def test_a_pool_is_declared_stays_unsaid_and_is_taken_back():
    it = host(on(uuids=[A]))
    hosts.converged(it.sim, mdev=[on(uuids=[A], pool="lines")])
    hosts.quiet(it.sim, mdev=[on(uuids=[A])])
    said = engine.resource_info(it.sim.host(), "mdev", None)["devices"]
    assert said == [{"match": {"parent": ["mtty"]}, "type": "mtty-2", "attributes": [], "autostart": True, "pool": "lines", "uuids": [A]}]
    hosts.quiet(it.sim, mdev=said)
    converged(it, guest("g1", mdev=[{"pool": "lines"}]))
    hosts.converged(it.sim, mdev=[on(uuids=[A], pool="")])
    refused(it, guest("g2", mdev=[{"pool": "lines"}]), says="there is no pool lines of mediated devices: this host has none.")


def test_status_shows_them(monkeypatch, capsys):
    it = host(*TWO)
    converged(it, guest("g1", **want()))
    monkeypatch.setattr(cli, "Host", lambda **_given: it.sim.host())
    monkeypatch.setattr(cli.os, "geteuid", lambda: 0)
    assert cli.main(["status"]) == 0
    assert f"g1     running  {A}  no" in capsys.readouterr().out


# --- Made in the same run ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [[], [on(uuids=[A]), on(type_="mtty-1", uuids=[D])]])
def test_check_mode_sees_what_the_devices_call_makes(start):
    it = host(*start)
    wishes = [on(uuids=[B], pool="lines"), on("mdpy", "mdpy-hd", count=1)]
    guests = [guest("g1", mdev=[{"pool": "lines"}, {"type": "mdpy-hd"}])]
    predicted = call(it.sim, mdev=wishes, check=True)["predicted"]
    announced = it.call(*guests, check=True, assume={"mdevs": predicted["mdevs"]})
    # What is to go cannot be had; what is not announced neither.
    with pytest.raises(EngineError, match="mtty-1"):
        it.call(guest("g2", mdev=[{"type": "mtty-1"}]), check=True, assume={"mdevs": predicted["mdevs"]})
    with pytest.raises(EngineError, match="lines"):
        it.call(*guests, check=True)
    done = call(it.sim, mdev=wishes)
    assert done["predicted"] == predicted
    result = it.call(*guests, assume={"mdevs": done["predicted"]["mdevs"]})
    assert result["failures"] == {}
    assert (result["actions"], result["diff"]) == (announced["actions"], announced["diff"])
    quiet(it, *guests, assume={"mdevs": call(it.sim, mdev=wishes)["predicted"].get("mdevs", {})})


def test_check_mode_sees_a_subchannel_that_the_same_run_gives_to_vfio_ccw():
    """It is no parent before, so that the kernel names no API of its type."""
    it = host()
    it.sim.mdev.add_subchannels()
    wishes = [on("0.0.0313", "vfio_ccw-io", uuids=[A])]
    predicted = call(it.sim, mdev=wishes, check=True)["predicted"]
    share = guest("g1", mdev=[{"type": "I/O subchannel (Non-QDIO)"}])
    announced = it.call(share, check=True, assume=predicted)
    with pytest.raises(EngineError, match="the API of its type is vfio-ccw"):
        it.call(guest("g1", mdev=[{"uuid": A, "display": True}], display={"model": "emulated"}), check=True, assume=predicted)
    assert call(it.sim, mdev=wishes)["failures"] == {}
    result = it.call(share)
    assert (result["failures"], result["actions"], result["diff"]) == ({}, announced["actions"], announced["diff"])
    assert mdevs(it)[A]["model"] == "vfio-ccw"


def test_a_run_does_not_believe_what_was_announced():
    it = host()
    announced = {"mdevs": call(it.sim, mdev=[on(uuids=[A])], check=True)["predicted"]["mdevs"]}
    with pytest.raises(EngineError, match="no mediated device of the type 'mtty-2' is declared"):
        it.call(guest("g1", **want()), assume=announced)


@pytest.mark.parametrize("said", [{"mdevs": {A: 5}}, {"mdevs": {A: {"parent": "mtty"}}}, {"vgpus": {"0000:26:00.4": {"type": 1153, "name": "", "gpu": ""}}}])
@pytest.mark.parametrize("check", [True, False])
def test_what_nobody_predicts(said, check):
    with pytest.raises(EngineError, match="Hand on what the devices call predicts"):
        host().call(guest("g1"), check=check, assume=said)


# --- vGPUs ------------------------------------------------------------------------------------------------------------


def test_a_vgpu_that_is_a_mediated_device():
    it = gvt()
    first, second = it.sim.mdev.devices
    converged(it, guest("g1", gpu={"vgpu": "GVTg_V5_4"}), guest("g2", gpu={"vgpu": "i915-GVTg_V5_4", "address": IGPU}))
    assert set(mdevs(it, "g1")) | set(mdevs(it, "g2")) == {first, second}
    said = refused(it, guest("g3", gpu={"vgpu": "GVTg_V5_4"}), says="gpu: there is no free vGPU of the type 'GVTg_V5_4'; they are held by")
    assert ": g1" in said and ": g2" in said
    said = refused(it, guest("g3", gpu={"vgpu": "GVTg_V5_1"}), says="no vGPU of the type 'GVTg_V5_1' is declared on this host; its vGPUs are")
    assert f"{IGPU} offers i915-GVTg_V5_1 'GVTg_V5_1' (0 free)" in said
    # What is no part of a GPU is no vGPU.
    call(it.sim, mdev=[on(uuids=[A])])
    refused(it, guest("g3", gpu={"vgpu": "mtty-2"}), says="no vGPU of the type 'mtty-2' is declared")
    converged(it, guest("g1"))
    converged(it, guest("g1", gpu={"vgpu": "none"}), restart=True, power_off=True)
    assert mdevs(it, "g1") == {}


def vendor(*wishes):
    it = ready(test_vgpu.host())
    if wishes:
        call(it.sim, vgpu=list(wishes))
    return it


def functions(it, name="g1"):
    found = it.virt.defined[name].iterfind("devices/hostdev[@type='pci']")
    return {guests_hosts.compare.address_of(device): device.get("managed") for device in found}


def test_a_vgpu_that_is_a_vf():
    it = vendor(test_vgpu.on(Q12, 2), test_vgpu.on(A12, 1))
    vfs = it.sim.functions[GPU].vfs
    converged(it, guest("g1", gpu={"vgpu": "L40S-12Q"}), guest("g2", gpu={"vgpu": A12}), guest("g3", gpu={"vgpu": "1153", "address": vfs[1]}))
    assert [functions(it, name) for name in ("g1", "g2", "g3")] == [{vfs[0]: "no"}, {vfs[2]: "no"}, {vfs[1]: "no"}]
    # It stays with the vendor's driver.
    assert {it.sim.functions[vf].driver for vf in vfs} == {"nvidia"}
    said = refused(it, guest("g4", gpu={"vgpu": Q12}), says=f"gpu: there is no free vGPU of the type {Q12!r}; they are held by {vfs[0]}: g1; {vfs[1]}: g3.")
    assert "vgpu_devices" in said
    says = f"gpu: there is no vGPU of the type 'L40S-12Q' on {vfs[2]}: {vfs[2]} has {A12}. Name its type"
    refused(it, guest("g4", gpu={"vgpu": "L40S-12Q", "address": vfs[2]}), says=says)
    refused(it, guest("g4", gpu={"vgpu": "L40S-1Q"}), says=f"its vGPUs are {vfs[0]} ({Q12} of {GPU}), {vfs[1]}")
    passthrough = {"model": "passthrough", "address": vfs[0]}
    refused(it, guest("g4", passthrough), says=f"{vfs[0]} is in use by the guest g1")
    hosts.refused(it.sim, vfs[0], "the guest g1", vgpu=[test_vgpu.on(A12, 1)])
    converged(it, *(guest(name, state="absent") for name in ("g1", "g2", "g3")))


def test_a_vf_with_another_type_than_the_declared_one_is_not_declared():
    it = vendor(test_vgpu.on(Q12, 1))
    vf = it.sim.functions[GPU].vfs[0]
    for number in ("0", "1155"):
        it.sim.write(f"/sys/bus/pci/devices/{vf}/nvidia/current_vgpu_type", number)
    said = refused(it, guest("g1", gpu={"vgpu": "L40S-24Q"}), says="no vGPU of the type 'L40S-24Q' is declared on this host")
    assert f"{vf} ({Q24} of {GPU}; not declared)" in said
    refused(it, guest("g1", gpu={"vgpu": Q12}), says="is declared on this host")
    hosts.converged(it.sim, vgpu=[test_vgpu.on(Q12, 1)])
    converged(it, guest("g1", gpu={"vgpu": Q12}))


def test_memory_is_pinned_for_a_vf():
    it = vendor(test_vgpu.on(Q12, 2))
    two = [guest(name, gpu={"vgpu": Q12}, memory="3G") for name in ("g1", "g2")]
    refused(it, *two, says="the guests g1, g2 have functions or locked memory, so theirs is pinned: 6144 MiB in all")


@pytest.mark.parametrize(
    ("gpu", "says"),
    [
        ({"address": GPU}, "gpu: vgpu is not named"),
        ({"vgpu": "none", "display": True}, "without a vGPU display means nothing"),
        ({"vgpu": Q12, "address": "26:00"}, "'26:00' is no PCI address"),
        ({"vgpu": Q12, "display": True}, "a VF shows nothing to the host"),
        ({"vgpu": Q12, "ramfb": True}, "ramfb is what display shows"),
    ],
)
def test_bad_vgpus(gpu, says):
    refused(vendor(test_vgpu.on(Q12, 1)), guest("g1", gpu=gpu), says=says)


def test_check_mode_sees_the_vgpus_of_the_same_run():
    it = vendor(test_vgpu.on(Q12, 1))
    wishes = [test_vgpu.on(Q24, 1)]
    predicted = call(it.sim, vgpu=wishes, check=True)["predicted"]
    announced = it.call(guest("g1", gpu={"vgpu": Q24}), check=True, assume=predicted)
    with pytest.raises(EngineError, match="no vGPU of the type 'L40S-12Q' is declared"):
        it.call(guest("g1", gpu={"vgpu": "L40S-12Q"}), check=True, assume=predicted)
    call(it.sim, vgpu=wishes)
    assert it.call(guest("g1", gpu={"vgpu": Q24}))["actions"] == announced["actions"]


def test_vfs_that_are_made_in_the_same_run_are_waited_for():
    it = ready(test_vgpu.host(vfs=False))
    predicted = call(it.sim, vgpu=[test_vgpu.on(Q24, 1)], check=True)["predicted"]
    result = it.call(guest("g1", gpu={"vgpu": "L40S-24Q"}), check=True, assume=predicted)
    assert [(a["text"], a["certainty"]) for a in result["actions"]] == [("define it and start it, once VFs get the vGPU type L40S-24Q", "predicted")]
    assert (result["changed"], result["reboot_required"]) == (True, False)
    with pytest.raises(EngineError, match="no vGPU of the type 'L40S-24Q' is declared"):
        it.call(guest("g1", gpu={"vgpu": "L40S-24Q"}), assume=predicted)
    call(it.sim, vgpu=[test_vgpu.on(Q24, 1)])
    converged(it, guest("g1", gpu={"vgpu": "L40S-24Q"}))


# --- vGPUs of GVT-g, declared by vgpu -----------------------------------------------------------------------------------


def gvt_of(type_, count=1):
    return test_vgpu_intel.at(test_vgpu_intel.GPU, type=type_, count=count)


@pytest.mark.parametrize("keeper", [True, False])
def test_a_vgpu_of_gvt_that_vgpu_declared(keeper):
    it, pf = ready(test_vgpu_intel.gvt(keeper)), test_vgpu_intel.GPU
    hosts.converged(it.sim, vgpu=[gvt_of("GVTg_V5_4", 2)])
    made = set(it.sim.mdev.devices)
    converged(it, guest("g1", gpu={"vgpu": "GVTg_V5_4"}), guest("g2", gpu={"vgpu": test_vgpu_intel.V4, "address": pf}))
    assert set(mdevs(it, "g1")) | set(mdevs(it, "g2")) == made
    # mdev tells that they are declared, and vgpu takes none from a guest.
    facts = engine.resource_info(it.sim.host(), "mdev", None)["facts"]
    assert {(m["uuid"], m["declared"], m["next_boot"]) for fact in facts for m in fact["mdevs"]} == {(uuid, True, True) for uuid in made}
    hosts.refused(it.sim, "is in use by", "the guest g", vgpu=[test_vgpu_intel.absent()], allow=("in_use",))


def test_check_mode_sees_the_vgpus_of_gvt():
    it = ready(test_vgpu_intel.gvt())
    hosts.converged(it.sim, vgpu=[gvt_of("GVTg_V5_4", 2)])
    wishes, guests = [gvt_of("GVTg_V5_8")], [guest("g1", gpu={"vgpu": "GVTg_V5_8"})]
    predicted = call(it.sim, vgpu=wishes, check=True)["predicted"]
    announced = it.call(*guests, check=True, assume=predicted)
    with pytest.raises(EngineError, match="no vGPU of the type 'GVTg_V5_4' is declared"):
        it.call(guest("g2", gpu={"vgpu": "GVTg_V5_4"}), check=True, assume=predicted)
    done = call(it.sim, vgpu=wishes)
    assert (done["failures"], done["predicted"]) == ({}, predicted)
    assert it.call(*guests)["actions"] == announced["actions"]
    quiet(it, *guests)


def test_a_vf_of_intel_has_no_type_and_is_taken_by_its_address():
    it = ready(test_vgpu_intel.host())
    hosts.converged(it.sim, vgpu=[test_vgpu_intel.on(2)])
    vf = it.sim.functions[test_vgpu_intel.GPU].vfs[1]
    refused(it, guest("g1", gpu={"vgpu": "VF"}), says="no vGPU of the type 'VF' is declared")
    converged(it, guest("g1", display={"model": "passthrough", "address": vf}))
    hosts.quiet(it.sim, vgpu=[test_vgpu_intel.on(2)])
    hosts.refused(it.sim, "VF 1", "the guest g1", vgpu=[test_vgpu_intel.on(1)], allow=("in_use",))


# --- vGPUs of NVIDIA's older framework, declared by vgpu --------------------------------------------------------------

FOUR = {"t4": "GRID T4-4Q", "a2": "NVIDIA A2-4Q"}
EIGHT = {"t4": "GRID T4-8Q", "a2": "NVIDIA A2-8Q"}


def older(card, *wishes, **more):
    """A T4, which has the mediated devices itself, or an A2, whose VFs have one each."""
    it = ready(test_vgpu_mdev.host(card, **more))
    if wishes:
        hosts.converged(it.sim, vgpu=list(wishes))
    return it


def wished(card, type_, count=1):
    return test_vgpu_mdev.on(card, type_, count)


@pytest.mark.parametrize("keeper", [True, False])
@pytest.mark.parametrize("card", ["t4", "a2"])
def test_a_mediated_device_that_vgpu_declared(card, keeper):
    it = older(card, wished(card, FOUR[card], 2), keeper=keeper)
    made = set(it.sim.mdev.devices)
    gpu = test_vgpu_mdev.CARDS[card]
    # By its name with or without the maker, of one GPU or any.
    converged(it, guest("g1", gpu={"vgpu": FOUR[card]}), guest("g2", gpu={"vgpu": FOUR[card].partition(" ")[2], "address": gpu}))
    assert set(mdevs(it, "g1")) | set(mdevs(it, "g2")) == made
    assert len(mdevs(it, "g1")) == len(mdevs(it, "g2")) == 1
    (first,), (second,) = mdevs(it, "g1"), mdevs(it, "g2")
    two = [guest(name, gpu={"vgpu": FOUR[card]}) for name in ("g1", "g2")]
    says = f"gpu: there is no free vGPU of the type {FOUR[card]!r}; they are held by"
    said = refused(it, *two, guest("g3", gpu={"vgpu": FOUR[card]}), says=says)
    assert f"{first}: g1" in said and f"{second}: g2" in said
    # vgpu takes none from a guest, and mdev_info names who has it.
    absent = [test_vgpu_mdev.at(gpu, state="absent")]
    hosts.refused(it.sim, f"({first}) is of" if card == "t4" else "is of", "the guest g1 (libvirt; running)", vgpu=absent, allow=("in_use",))
    facts = engine.resource_info(it.sim.host(), "mdev", None)["facts"]
    assert {m["uuid"]: m["holders"] for fact in facts for m in fact["mdevs"]} == {
        first: ["the guest g1 (libvirt; running)"],
        second: ["the guest g2 (libvirt; running)"],
    }
    converged(it, *(guest(name, state="absent") for name in ("g1", "g2")))
    hosts.converged(it.sim, vgpu=[test_vgpu_mdev.at(gpu, state="absent")])
    assert it.sim.mdev.devices == {}


@pytest.mark.parametrize("card", ["t4", "a2"])
def test_somebody_elses_beside_them_is_not_taken_by_its_type(card):
    it = older(card, wished(card, FOUR[card], 1))
    parent = next(parent for parent in reversed(it.sim.mdev.parents) if parent in (test_vgpu_mdev.T4, *it.sim.functions[test_vgpu_mdev.CARDS[card]].vfs))
    it.sim.mdev.make(D, parent, test_vgpu_mdev.TYPES[card][1])
    refused(it, *(guest(name, gpu={"vgpu": FOUR[card]}) for name in ("g1", "g2")), says="there is no free vGPU of the type")
    # Once vgpu has it declared as it is, it is.
    hosts.converged(it.sim, vgpu=[wished(card, FOUR[card], 2)])
    converged(it, *(guest(name, gpu={"vgpu": FOUR[card]}) for name in ("g1", "g2")))
    assert D in {*mdevs(it, "g1"), *mdevs(it, "g2")}


@pytest.mark.parametrize("start", [0, 1, 2])
@pytest.mark.parametrize("card", ["t4", "a2"])
def test_check_mode_sees_the_mediated_devices_that_vgpu_makes(card, start):
    it = older(card, *([wished(card, FOUR[card], start)] if start else []))
    it.sim.vgpu.sizes, it.sim._tree = "Enabled", None
    vgpu = [wished(card, FOUR[card], 1), wished(card, EIGHT[card], 1)]
    guests = [guest("g1", gpu={"vgpu": EIGHT[card]}), guest("g2", gpu={"vgpu": FOUR[card]})]
    predicted = call(it.sim, vgpu=vgpu, check=True)["predicted"]
    announced = it.call(*guests, check=True, assume=predicted)
    assert announced["changed"] is True
    # What goes cannot be had.
    with pytest.raises(EngineError, match="there is no free vGPU"):
        it.call(*guests, guest("g3", gpu={"vgpu": FOUR[card]}), check=True, assume=predicted)
    done = call(it.sim, vgpu=vgpu)
    assert (done["failures"], done["predicted"]) == ({}, predicted)
    there = {uuid: (device.parent, device.type) for uuid, device in it.sim.mdev.devices.items()}
    assert {uuid: (said["parent"], said["type"]) for uuid, said in predicted["mdevs"].items() if said} == there
    assert "vgpus" not in predicted
    result = it.call(*guests)
    assert result["failures"] == {}
    assert (result["actions"], result["diff"]) == (announced["actions"], announced["diff"])
    quiet(it, *guests)


@pytest.mark.parametrize("card", ["t4", "a2"])
def test_check_mode_sees_those_that_vgpu_gives_back(card):
    it = older(card)
    parent = next(iter(it.sim.functions[test_vgpu_mdev.CARDS[card]].vfs), test_vgpu_mdev.T4)
    it.sim.mdev.make(D, parent, test_vgpu_mdev.TYPES[card][1])
    hosts.converged(it.sim, vgpu=[wished(card, FOUR[card], 2)])
    (own,) = set(it.sim.mdev.devices) - {D}
    absent_ = [test_vgpu_mdev.at(test_vgpu_mdev.CARDS[card], state="absent")]
    predicted = call(it.sim, vgpu=absent_, check=True)["predicted"]
    assert predicted["mdevs"] == {own: None, D: {"parent": parent, "type": test_vgpu_mdev.TYPES[card][1], "pool": "", "declared": False}}
    # What was there before the collection stays, and can be had by its name alone.
    with pytest.raises(EngineError, match="is declared on this host"):
        it.call(guest("g1", gpu={"vgpu": FOUR[card]}), check=True, assume=predicted)
    announced = it.call(guest("g1", mdev=[{"uuid": D}]), check=True, assume=predicted)
    hosts.converged(it.sim, vgpu=absent_)
    assert it.call(guest("g1", mdev=[{"uuid": D}]))["actions"] == announced["actions"]


def test_mdev_and_vgpu_foretell_in_one_call():
    it = older("t4")
    it.sim.mdev.add_samples()
    wishes = {"vgpu": [wished("t4", FOUR["t4"])], "mdev": [on(uuids=[A])]}
    guests = [guest("g1", gpu={"vgpu": FOUR["t4"]}, mdev=[{"type": "mtty-2"}])]
    predicted = call(it.sim, **wishes, check=True)["predicted"]
    assert sorted(said["type"] for said in predicted["mdevs"].values()) == ["mtty-2", test_vgpu_mdev.TYPES["t4"][1]]
    announced = it.call(*guests, check=True, assume=predicted)
    assert call(it.sim, **wishes)["failures"] == {}
    result = it.call(*guests)
    assert (result["failures"], result["actions"]) == ({}, announced["actions"])


def test_a_declared_one_that_is_not_there():
    it = older("t4", wished("t4", FOUR["t4"]))
    (uuid,) = it.sim.mdev.devices
    it.sim.mdev.devices.clear()
    it.sim._tree = None
    says = f"the mediated device {uuid} is defined on {test_vgpu_mdev.T4} and not there now. Run the role devices first"
    refused(it, guest("g1", mdev=[{"uuid": uuid}]), says=says)
    # It is no drift of the record: the step alone says that it comes.
    predicted = call(it.sim, vgpu=[wished("t4", FOUR["t4"])], check=True)["predicted"]
    assert list(predicted["mdevs"]) == [uuid]
    assert it.call(guest("g1", gpu={"vgpu": FOUR["t4"]}), check=True, assume=predicted)["changed"] is True


def test_vgpus_that_wait_for_the_mode_of_mig_are_waited_for():
    it = ready(test_vgpu_mig.host("a100"))
    wishes = [test_vgpu_mig.mig("a100", {test_vgpu_mig.SMALL["a100"]: 1}), test_vgpu_mig.on("a100", test_vgpu_mig.BACKED["a100"], 1)]
    predicted = call(it.sim, vgpu=wishes, check=True)["predicted"]
    result = it.call(guest("g1", gpu={"vgpu": test_vgpu_mig.BACKED["a100"]}), check=True, assume=predicted)
    assert [a["certainty"] for a in result["actions"]] == ["predicted"]


@pytest.mark.parametrize("mode", [True, False])
def test_a_vgpu_on_a_gpu_instance_is_a_vf_as_any_other(mode):
    """Of a Hopper: its mode of MIG changes at once."""
    it = ready(test_vgpu_mig.host("h100", mig=mode))
    backed = test_vgpu_mig.BACKED["h100"]
    wishes = [test_vgpu_mig.mig("h100", {test_vgpu_mig.SMALL["h100"]: 1}), test_vgpu_mig.on("h100", backed, 1)]
    predicted = call(it.sim, vgpu=wishes, check=True)["predicted"]
    announced = it.call(guest("g1", gpu={"vgpu": backed}), check=True, assume=predicted)
    hosts.converged(it.sim, vgpu=wishes)
    (vf,) = predicted["vgpus"]
    assert it.call(guest("g1", gpu={"vgpu": backed}))["actions"] == announced["actions"]
    assert functions(it) == {vf: "no"}
    quiet(it, guest("g1", gpu={"vgpu": backed}))
