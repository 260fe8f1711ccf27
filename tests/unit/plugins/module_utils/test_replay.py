# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Records, what waits for a link, who has the VFs' network devices, and the operator's command."""

from __future__ import annotations

import contextlib
import json
import re

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import actions, boot, cli, engine, replay
from ansible_collections.iovirt.host.plugins.module_utils._engine import after_link as link
from ansible_collections.iovirt.host.plugins.module_utils._engine.model import Action
from ansible_collections.iovirt.host.plugins.module_utils._engine.resources import sriov
from ansible_collections.iovirt.host.plugins.module_utils._engine.resources.common import Options
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import (
    EDU,
    PF1,
    PF2,
    SSH,
    at,
    call,
    converged,
    drivers_of,
    lab,
    quiet,
    refused,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import Net

DEVICES = "/sys/bus/pci/devices"


def document(sim, name="sriov"):
    return json.loads(sim.text(f"/etc/iovirt/{name}.json"))["devices"]


def again(sim, only=None, after_link=False):
    return replay.run(sim.host(environment={}, sources=None), only, after_link)


# --- Records -------------------------------------------------------------------------------------------------------------


def declared(sim, by, **wishes):
    options = Options(declared_by=by)
    return engine.devices(sim.host(environment=SSH), wishes, options, engine.Call(who="test"))


def test_a_record_says_who_declared_it_and_when():
    sim = lab()
    declared(sim, "inventory 4f2c91", sriov=[at(PF1, vf_count=2)])
    assert document(sim)[PF1]["declared"] == {"by": "inventory 4f2c91", "at": "2026-01-31T12:00:00Z"}


def test_the_same_wish_of_a_later_revision_changes_nothing():
    sim = lab()
    declared(sim, "first", sriov=[at(PF1, vf_count=2)], vfio=[at(EDU)])
    before = sim.snapshot()
    sim.today = "2026-02-01T12:00:00Z"
    assert declared(sim, "second", sriov=[at(PF1, vf_count=2)], vfio=[at(EDU)])["changed"] is False
    assert sim.snapshot() == before
    declared(sim, "second", sriov=[at(PF1, vf_count=3)], vfio=[at(EDU)])
    assert document(sim)[PF1]["declared"] == {"by": "second", "at": "2026-02-01T12:00:00Z"}
    assert document(sim, "vfio")[EDU]["declared"]["by"] == "first"


def test_a_wish_in_the_place_of_somebody_elses_names_both():
    """Two roles or two revisions of one inventory: nobody can tell, so it is done and said, in check mode too."""
    sim = lab(vfio_loaded=True)
    declared(sim, "role network", sriov=[at(PF1, up=True, vf_count=4, vfs=[{"range": "0-3", "driver": "vfio-pci"}])], vfio=[at(EDU)])
    wish = at(PF1, vf_count=2, vf_defaults={"driver": "default"})
    for check in (True, False):
        options, door = Options(declared_by="role storage"), engine.Call(check=check, who="test")
        result = engine.devices(sim.host(environment=SSH), {"sriov": [wish], "vfio": [at(EDU)]}, options, door)
        (said,) = result["warnings"]
        assert said.startswith(
            f"{PF1}: 'role storage' wishes vf_count 2 instead of 4; VF 0: driver default instead of vfio-pci; "
            "VF 1: driver default instead of vfio-pci, which 'role network' declared at 2026-01-31T12:00:00Z."
        )
    # Once it is so, there is nothing to say; nor where one side has no name, or it is the same one.
    for by in ("role storage", "role network"):
        assert declared(sim, by, sriov=[wish])["warnings"] == []
    assert declared(sim, "", sriov=[at(PF1, vf_count=1)])["warnings"] == []
    assert declared(sim, "role network", sriov=[at(PF1, vf_count=3)])["warnings"] == []
    assert declared(sim, "role network", sriov=[at(PF1, vf_count=2)])["warnings"] == []


def test_a_wish_that_adds_contradicts_nobody():
    sim = lab()
    declared(sim, "first", sriov=[at(PF1, vf_count=2)])
    assert declared(sim, "second", sriov=[at(PF1, vf_count=2, vfs=[{"range": "0", "vlan": 5}])])["warnings"] == []


# --- VFs that others made --------------------------------------------------------------------------------------------------


def vfs_of_others(sim, count=3):
    sim.write(f"{DEVICES}/{PF1}/sriov_numvfs", str(count))
    sim.sleep(20)
    return sim.functions[PF1].vfs


@pytest.mark.parametrize("count", [None, 3], ids=["count unset", "same count"])
def test_vfs_of_others_are_adopted_and_given_back_as_they_were(count):
    sim = lab(vfio_loaded=True)
    vfs = vfs_of_others(sim)
    sim.write(f"{DEVICES}/{vfs[2]}/driver_override", "vfio-pci")
    sim.write(f"{DEVICES}/{vfs[2]}/driver/unbind", vfs[2])
    sim.write("/sys/bus/pci/drivers_probe", vfs[2])
    before = sim.of_device(PF1)
    wish = at(PF1, vfs=[{"range": "0", "driver": "vfio-pci"}, {"range": "2", "driver": "default"}], vf_count=count)
    converged(sim, sriov=[wish])
    assert drivers_of(sim, PF1) == ["vfio-pci", "igbvf", "igbvf"]
    converged(sim, sriov=[{**wish, "state": "absent"}])
    assert sim.of_device(PF1) == before
    assert not sim.exists("/etc/iovirt/sriov.json")


@pytest.mark.parametrize("count", [None, 3], ids=["count unset", "same count"])
def test_a_vf_that_no_wish_named_is_not_given_back(count):
    """What somebody did to it meanwhile stays."""
    sim = lab(vfio_loaded=True)
    vfs = vfs_of_others(sim)
    call(sim, sriov=[at(PF1, vf_count=count, vfs=[{"range": "0", "driver": "vfio-pci"}])])
    sim.write(f"{DEVICES}/{vfs[1]}/driver_override", "vfio-pci")
    sim.write(f"{DEVICES}/{vfs[1]}/driver/unbind", vfs[1])
    sim.write("/sys/bus/pci/drivers_probe", vfs[1])
    converged(sim, sriov=[], exclusive=("sriov",))
    assert drivers_of(sim, PF1) == ["igbvf", "vfio-pci", "igbvf"]
    assert len(sim.functions[PF1].vfs) == 3


# --- Who has their network devices -------------------------------------------------------------------------------------------


def kept_out(sim):
    return [pf for pf in (PF1, PF2) if f"PCI_SLOT_NAME={pf}*" in sim.text(boot.RULES)]


@pytest.mark.parametrize(
    ("there", "word", "out"),
    [
        (0, None, True),
        (0, "unmanaged", True),
        (0, "managed", False),
        (2, None, False),
        (2, "unmanaged", True),
        (2, "managed", False),
    ],
)
def test_who_configures_the_network_devices_of_vfs(there, word, out):
    sim = lab()
    if there:
        vfs_of_others(sim, there)
    wish = at(PF1, vf_count=2, vf_netdevs=word)
    converged(sim, sriov=[wish])
    assert kept_out(sim) == ([PF1] if out else [])
    sim.reboot()
    assert again(sim)["failures"] == {}
    quiet(sim, sriov=[wish])


def test_a_word_that_is_neither():
    refused(lab(), PF1, "vf_netdevs 'nobody' is neither unmanaged nor managed", sriov=[at(PF1, vf_netdevs="nobody")])


# --- What needs a link --------------------------------------------------------------------------------------------------------


@pytest.fixture
def rated(monkeypatch):
    """A stand-in for the attributes that need a link: an action that notes on the host that it was done."""
    plan = sriov.plan

    def with_rate(state, wishes, options):
        result = plan(state, wishes, options)
        for wish in wishes:
            (pf,) = wish["match"]["address"]
            if wish.get("state") != "absent":
                done = Action("rate", pf, "set max_tx_rate of VF 0 to 100", args={"needs_link": True, "pf": pf})
                result.actions.append(done)
        return result

    done = []
    monkeypatch.setattr(sriov, "plan", with_rate)
    monkeypatch.setitem(actions.TABLE, "rate", actions.Step(lambda host, args: done.append(args["pf"]), lambda host, args: None))
    return done


def linked(sim, name="enp129s0", carrier=True):
    sim.nets[name] = Net(up=True, carrier=carrier)
    sim._tree = None


def units(sim):
    return [argv[3] for argv in sim.commands if argv[:3] == ["systemctl", "start", "--no-block"]]


def test_with_a_link_it_is_done_in_the_run(rated):
    sim = lab()
    linked(sim)
    result = call(sim, sriov=[at(PF1, vf_count=2)])
    assert (rated, result["warnings"], units(sim)) == ([PF1], [], [])


def test_without_a_link_a_run_says_so_and_leaves_it_to_the_unit(rated):
    sim = lab()
    for check in (True, False):
        result = call(sim, sriov=[at(PF1, vf_count=2)], check=check)
        late = [action for action in result["actions"] if action["certainty"] == "after_link"]
        assert [action["text"] for action in late] == ["set max_tx_rate of VF 0 to 100"]
        assert PF1 in result["warnings"][0] and f"iovirt-link@{PF1}.service" in result["warnings"][0]
        assert result["changed"] is True
        assert units(sim) == ([] if check else [f"iovirt-link@{PF1}.service"])
    assert rated == []
    # What waits does not make the next run a change.
    assert call(sim, sriov=[at(PF1, vf_count=2)])["changed"] is False


def test_the_boot_does_not_wait_for_a_link(rated):
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=2)])
    sim.commands.clear()
    sim.reboot()
    linked(sim)
    start = sim.now
    assert again(sim)["failures"] == {}
    assert sim.now - start < 10
    assert (rated, units(sim)) == ([], [f"iovirt-link@{PF1}.service"])
    assert again(sim, PF1, after_link=True)["failures"] == {}
    assert rated == [PF1]


def test_the_second_phase_waits_for_the_link(rated):
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=2)])
    linked(sim, carrier=False)
    sim.later(100.0, lambda: linked(sim))
    assert again(sim, PF1, after_link=True)["failures"] == {}
    assert rated == [PF1]


def test_a_link_that_never_comes_is_a_sentence(rated):
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=2)])
    start = sim.now
    result = again(sim, PF1, after_link=True)
    assert "no link for 300 s" in result["failures"][PF1]
    assert link.LIMIT <= sim.now - start < link.LIMIT + 5
    assert rated == []


def test_the_units_and_rules():
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=2)])
    unit = sim.text(f"{boot.UNITS}/iovirt-link@.service")
    assert "replay --device %i --after-link" in unit and "WantedBy" not in unit
    assert "cloud-init-local.service" in sim.text(f"{boot.UNITS}/{boot.UNIT}")
    rules = [line for line in sim.text(boot.RULES).splitlines() if f"iovirt-replay@{PF1}.service" in line]
    assert [line.partition(",")[0] for line in rules] == ['ACTION=="bind"', 'ACTION=="change"', 'ACTION=="add"', 'ACTION=="change"']
    assert 'KERNELS=="0000:81:00.0"' in rules[2] and 'ENV{SYNTH_UUID}!="?*"' in rules[2]


# --- The operator's command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def operator(monkeypatch, capsys):
    def run(sim, *arguments):
        monkeypatch.setattr(cli.os, "geteuid", lambda: 0)
        monkeypatch.setattr(cli, "Host", lambda **_more: sim.host(environment={}, sources=None))
        code = cli.main(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_status_is_a_table(operator):
    sim = lab()
    assert operator(sim, "status") == (0, "nothing is declared\n", "")
    declared(sim, "4f2c91", sriov=[at(PF1, vf_count=3, vfs=[{"range": "0-1", "driver": "vfio-pci"}])], vfio=[at(EDU)])
    sim.sleep(20)
    code, out, _err = operator(sim, "status")
    assert code == 0
    assert out.splitlines() == [
        "DEVICE        RESOURCE  DECLARED             NOW                           DIFFERS  BY      WHEN",
        "0000:81:00.0  sriov     3 VFs: 0-1 vfio-pci  3 VFs: 0-1 vfio-pci, 2 igbvf  no       4f2c91  2026-01-31T12:00:00Z",
        "0000:00:09.0  vfio      vfio-pci             vfio-pci                      no       4f2c91  2026-01-31T12:00:00Z",
    ]
    sim.reboot()
    code, out, _err = operator(sim, "status")
    assert code == 2
    assert "0 VFs" in out and "no driver" in out
    assert f"{PF1}: to do: set the number of VFs from 0 to 3" in out
    sim.functions.pop(PF1)
    sim.reboot()
    code, out, _err = operator(sim, "status", "--json")
    lost = next(device for device in json.loads(out)["devices"] if device["device"] == PF1)
    assert code == 1 and lost["now"] is None and "not there" in lost["failure"]
    assert "not there" in operator(sim, "status")[1]


def test_status_names_what_is_refused(operator):
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=3)])
    sim.reboot()
    linked(sim)
    sim.nets["enp129s0"].addresses.append("192.0.2.1")
    code, out, _err = operator(sim, "status")
    assert code == 1
    assert f"{PF1}: changing its number of VFs takes the running link" in out


@pytest.mark.parametrize("words", [["replay", "--after-link"], ["replay", "--device"], ["status", "--device", PF1]])
def test_a_wrong_call(operator, words):
    assert operator(lab(), *words) == (2, "", cli.USAGE)


def test_after_link_by_the_command(operator):
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=1)])
    linked(sim)
    assert operator(sim, "replay", "--device", PF1, "--after-link")[0] == 0
    assert operator(sim, "replay", "--after-link", "--device", PF1)[0] == 0


def test_a_slower_link_at_boot_holds_back_the_rates_alone():
    sim = lab(vfio_loaded=True)
    linked(sim)
    call(sim, sriov=[at(PF1, vf_count=2, vf_defaults={"max_tx_rate": 500, "driver": "vfio-pci"})])
    sim.reboot()
    sim.nets["enp129s0"] = Net(speed=100)
    sim._tree = None
    assert again(sim)["failures"] == {}
    assert drivers_of(sim, PF1) == ["vfio-pci", "vfio-pci"]
    assert units(sim)[-1:] == [f"iovirt-link@{PF1}.service"]
    # The unit says it, and takes nothing away.
    assert "max_tx_rate 500 is above the 100 Mbit/s of the link" in again(sim, PF1, after_link=True)["failures"][PF1]
    assert drivers_of(sim, PF1) == ["vfio-pci", "vfio-pci"]
    linked(sim)
    assert again(sim, PF1, after_link=True)["failures"] == {}
    assert call(sim, sriov=[at(PF1, vf_count=2, vf_defaults={"max_tx_rate": 500, "driver": "vfio-pci"})])["changed"] is False


# --- A run that comes while it waits for its turn ---------------------------------------------------------------------------


@pytest.fixture
def meanwhile(monkeypatch):
    """What another run wishes of PF1 after this door asked for its turn, and before it has it."""

    def run(sim, **wish):
        real, todo = sim.lock, [wish]

        @contextlib.contextmanager
        def lock(path, limit, who):
            if who != "test" and todo:
                assert call(sim, sriov=[at(PF1, **todo.pop())])["failures"] == {}
            with real(path, limit, who):
                yield

        monkeypatch.setattr(sim, "lock", lock)

    return run


def doors(operator):
    return [lambda sim: again(sim)["failures"], lambda sim: again(sim, PF1)["failures"], lambda sim: operator(sim, "apply")[2]]


@pytest.mark.parametrize("door", range(3), ids=["replay", "replay of one", "apply"])
def test_what_is_brought_back_is_what_is_declared_when_it_has_its_turn(operator, meanwhile, door):
    sim = lab(vfio_loaded=True)
    call(sim, sriov=[at(PF1, vf_count=2)])
    meanwhile(sim, vf_count=5, vfs=[{"range": "0", "driver": "vfio-pci"}])
    assert not doors(operator)[door](sim)
    assert document(sim)[PF1]["wish"]["vf_count"] == 5
    assert drivers_of(sim, PF1)[0] == "vfio-pci" and len(sim.functions[PF1].vfs) == 5


@pytest.mark.parametrize("door", range(3), ids=["replay", "replay of one", "apply"])
def test_what_was_given_back_meanwhile_is_not_brought_back_and_no_failure(operator, meanwhile, door):
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=2)])
    meanwhile(sim, state="absent")
    assert not doors(operator)[door](sim)
    assert sim.functions[PF1].vfs == []


def test_the_second_leg_of_a_bond_is_not_begun_past_the_time_of_a_boot():
    """They go one after the other, and so does the look at the clock."""
    sim = lab()
    sim.nets["bond0"] = Net(kind="bond", lowers=["enp129s0", "enp130s0"])
    call(sim, sriov=[at(PF1, vf_count=2), at(PF2, vf_count=2)])
    sim.reboot()
    write = sim.write_together

    def slowly(writes, limit):
        sim.sleep(replay.TOTAL + 1)
        return write(writes, limit)

    sim.write_together = slowly
    result = again(sim)
    assert list(result["failures"]) == [PF2]
    assert "was not begun: the time that a boot may be held up is used" in result["failures"][PF2]
    assert [len(sim.functions[pf].vfs) for pf in (PF1, PF2)] == [2, 0]
    del sim.write_together
    assert again(sim)["failures"] == {} and len(sim.functions[PF2].vfs) == 2


# --- Errors of our own ---------------------------------------------------------------------------------------------------


@pytest.fixture
def breaking(monkeypatch):
    """Plans end with an error of Python where `when` says so of their wishes."""
    real = engine.devices_in_turn

    def set_(when):
        def turn(host, wishes, options, call):
            if when(wishes):
                raise KeyError("ggtt_quota")
            return real(host, wishes, options, call)

        monkeypatch.setattr(engine, "devices_in_turn", turn)

    return set_


def assert_our_fault(what, said):
    """It names the device, the error with its place, and what to do."""
    assert re.fullmatch(rf"{what}: internal: KeyError\('ggtt_quota'\) \(test_replay\.py, line \d+\)\. It is a fault .* report it .*/etc/iovirt\.", said), said


def test_an_error_of_our_own_with_one_device_keeps_no_other_from_coming_back(breaking):
    sim = lab()
    converged(sim, sriov=[at(PF1, vf_count=2)], vfio=[at(EDU)])
    sim.reboot()
    breaking(lambda wishes: "vfio" in wishes)
    result = again(sim)
    assert list(result["failures"]) == [EDU]
    assert_our_fault(EDU, result["failures"][EDU])
    assert len(sim.functions[PF1].vfs) == 2


def test_an_error_of_our_own_with_all_of_them_is_told_though_each_came_back(breaking):
    sim = lab()
    converged(sim, sriov=[at(PF1, vf_count=2)], vfio=[at(EDU)])
    sim.reboot()
    breaking(lambda wishes: len(wishes) > 1)
    failures = again(sim)["failures"]
    assert list(failures) == ["host"]
    assert_our_fault("host", failures["host"])
    assert len(sim.functions[PF1].vfs) == 2 and sim.functions[EDU].driver == "vfio-pci"
