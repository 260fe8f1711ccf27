# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What holds for every host and every wish that hypothesis can think of."""

from __future__ import annotations

import copy

import pytest

pytest.importorskip("hypothesis", reason="hypothesis is not installed; tests/unit/requirements.txt names it")

from ansible_collections.iovirt.host.plugins.module_utils._engine import cmdline, engine, match, replay, spec
from ansible_collections.iovirt.host.plugins.module_utils._engine.errors import EngineError
from ansible_collections.iovirt.host.plugins.module_utils._engine.read import Needs, read_state
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import (
    EDU,
    NVME,
    PF1,
    PF2,
    SSH,
    at,
    call,
    converged,
    examples,
    lab,
    quiet,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import DEVICES, Pci
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.test_info import fits
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as some

#: The same examples in each run: a check that fails by chance is no check.
quick = settings(max_examples=examples(60), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

drivers = some.sampled_from([None, "default", "vfio-pci", "igbvf"])


#: What an operator may have set on a VF.
OPERATORS = ["vlan 7 qos 2", "trust on", "spoofchk off", "mac 52:54:00:99:00:0{}"]

attributes = some.fixed_dictionaries(
    {},
    optional={
        "mac": some.just("auto"),
        "vlan": some.sampled_from([None, 0, 5, 4094]),
        "trust": some.booleans(),
        "spoof_check": some.booleans(),
        "max_tx_rate": some.sampled_from([None, 0, 50]),
    },
)


@some.composite
def hosts(draw):
    sim = lab(igbvf_loaded=draw(some.booleans()), vfio_loaded=draw(some.booleans()))
    sim.udev_delay = draw(some.sampled_from([0.0, 0.004, 0.02, 3.0, None]))
    sim.functions[PF1].autoprobe = draw(some.booleans())
    sim._tree = None
    there = draw(some.integers(0, 3))
    if there:
        sim.write(f"{DEVICES}/{PF1}/sriov_numvfs", str(there))
    for vf in sim.functions[PF1].vfs:
        if draw(some.booleans()):
            sim.run(["modprobe", "--", "vfio-pci"])
            sim.write(f"{DEVICES}/{vf}/driver_override", "vfio-pci")
            if sim.functions[vf].driver:
                sim.write(f"{DEVICES}/{vf}/driver/unbind", vf)
                # As a guest's start does. A MAC that its driver made up could not be told from one that was set, else
                # (docs/kernel-facts.md).
                sim.write(f"{DEVICES}/{vf}/reset", "1")
            sim.write("/sys/bus/pci/drivers_probe", vf)
    sim.sleep(10)
    for index, vf in enumerate(sim.functions[PF1].vfs):
        lines = draw(some.lists(some.sampled_from(OPERATORS), max_size=2, unique=True))
        text = "".join(f"link set dev enp129s0 vf {index} {line.format(index)}\n" for line in lines)
        assert sim.run(["ip", "-force", "-batch", "-"], text) == (0, "", "")
        if any("mac" in line for line in lines) and sim.functions[vf].driver == "igbvf":
            # As the kernel log asks for.
            sim.write(f"{DEVICES}/{vf}/driver/unbind", vf)
            sim.write("/sys/bus/pci/drivers_probe", vf)
    return sim


@some.composite
def sriov_wishes(draw):
    count = draw(some.one_of(some.none(), some.integers(0, 7)))
    cut = draw(some.lists(some.integers(0, 6), unique=True, max_size=4))
    known = [index for index in cut if count is None or index < count]
    vfs = [{"range": str(index), "driver": draw(drivers), **draw(attributes)} for index in known]
    up = draw(some.sampled_from([None, True, False]))
    return at(PF1, up=up, vf_count=count, vf_defaults={"driver": draw(drivers), **draw(attributes)}, vfs=vfs)


@some.composite
def wishes(draw):
    result = {"sriov": [draw(sriov_wishes())]}
    if draw(some.booleans()):
        result["sriov"].append({"match": {"slot": ["2"]}, "vf_count": draw(some.integers(0, 7))})
    if draw(some.booleans()):
        result["vfio"] = [at(draw(some.sampled_from([EDU, NVME])))]
    return result


def accepted(sim, wished):
    try:
        call(copy.deepcopy(sim), check=True, **wished)
    except EngineError:
        return False
    return True


@quick
@given(hosts(), wishes())
def test_check_is_run_and_a_second_run_is_empty(sim, wished):
    assume(accepted(sim, wished))
    converged(sim, **wished)
    sim.sleep(60)
    quiet(sim, **wished)


@quick
@given(hosts(), wishes())
def test_a_reboot_and_its_replay_bring_all_back(sim, wished):
    assume(accepted(sim, wished))
    assume(all(wish.get("vf_count") is not None for wish in wished["sriov"]))
    sim.functions[PF1].autoprobe = True
    call(sim, **wished)
    sim.sleep(60)
    sim.reboot()
    result = replay.run(sim.host(environment={}, sources=None), None)
    assert result["failures"] == {}
    late = {action["device"] for action in result["actions"] if action["certainty"] == "after_link"}
    for port in sorted(address for address in late if sim.netdevs()[sim.functions[address].ifname][1].up):
        # Its unit, which waits for the link. A port that nobody brings up after a boot gets none.
        assert replay.run(sim.host(environment={}, sources=None), port, after_link=True)["failures"] == {}
    sim.sleep(60)
    quiet(sim, **wished)


def settings_of(sim):
    """The attributes of the VFs of the first port, but for a MAC that a VF made up: it makes up another one."""
    return {
        address: {key: value for key, value in function.attributes.items() if key != "mac" or function.attributes["by_pf"]}
        for address, function in sim.functions.items()
        if function.physfn == PF1
    }


@quick
@given(hosts(), wishes(), some.integers(1, 40))
def test_an_undo_restores(sim, wished, number):
    assume(accepted(sim, wished))
    before, values = sim.of_device(PF1), settings_of(sim)
    sim.fail_at = len(sim.log) + number
    result = call(sim, **wished)
    if PF1 in result["failures"] or "host" in result["failures"]:
        after = sim.of_device(PF1)
        assert after.keys() == before.keys()
        for address, (driver, override, vfs, autoprobe) in before.items():
            now = after[address]
            assert (now[1], now[2], now[3]) == (override, vfs, autoprobe)
            # A VF that had no driver may have found its own.
            assert now[0] == driver or driver is None
        assert settings_of(sim) == values


@quick
@given(hosts(), wishes())
def test_absent_gives_all_back(sim, wished):
    assume(accepted(sim, wished))
    before = {address: (f.override, tuple(f.vfs)) for address, f in sim.functions.items()}
    files, values = dict(sim.files), settings_of(sim)
    call(sim, **wished)
    back = {name: [{**wish, "state": "absent"} for wish in list_] for name, list_ in wished.items()}
    converged(sim, **back)
    assert {address: (f.override, tuple(f.vfs)) for address, f in sim.functions.items()} == before
    assert sim.files == files
    assert settings_of(sim) == values


@quick
@given(hosts(), some.one_of(some.none(), wishes()))
def test_what_is_exported_is_valid_input_and_touches_no_device(sim, wished):
    """Of what others made, and of what a wish of ours made on top of it."""
    if wished:
        assume(accepted(sim, wished))
        call(sim, **wished)
        sim.sleep(60)
    export = {name: engine.resource_info(sim.host(environment=SSH), name, None)["devices"] for name in ("sriov", "vfio")}
    for name, devices in export.items():
        for item in devices:
            fits(spec.MODULES[name]["devices"]["options"], item)
    before = {part: copy.deepcopy(sim.snapshot()[part]) for part in ("functions", "attributes", "nvme", "msix", "nets")}
    done = call(sim, **export)
    assert done["failures"] == {} and {action["action"] for action in done["actions"]} <= {"declare", "install_replay"}
    assert {part: sim.snapshot()[part] for part in before} == before
    quiet(sim, **export)


@quick
@given(hosts())
def test_an_export_makes_a_bare_host_the_same(sim):
    """What an operator made by hand, exported and applied to the host after it has lost all of it."""
    assume(sim.functions[PF1].autoprobe)
    export = {name: engine.resource_info(sim.host(environment=SSH), name, None)["devices"] for name in ("sriov", "vfio")}
    before = {address: [function.driver, list(function.vfs)] for address, function in sim.functions.items()}
    values = settings_of(sim)
    sim.reboot()
    assert sim.functions[PF1].vfs == []
    assert call(sim, **export)["failures"] == {}
    sim.sleep(60)
    assert settings_of(sim) == values
    for address, (driver, vfs) in before.items():
        # One that udev had not given its driver yet has it now.
        assert sim.functions[address].vfs == vfs
        assert sim.functions[address].driver == driver or driver is None


@quick
@given(hosts(), some.integers(-2, 12), some.lists(some.text("0123456789-, x", max_size=5), max_size=3), some.text(max_size=6))
def test_refusals_never_act(sim, count, ranges, driver):
    """Any nonsense is either refused, with nothing changed, or planned; it never ends in a traceback."""
    wish = at(PF1, vf_count=count, vfs=[{"range": text, "driver": driver or None} for text in ranges])
    before, log = sim.snapshot(), list(sim.log)
    for check in (True, False):
        try:
            call(sim, sriov=[wish], check=check)
        except EngineError as error:
            assert str(error).startswith((PF1, "sriov[0]"))
            assert (sim.snapshot(), sim.log) == (before, log)


selectors = some.fixed_dictionaries(
    {},
    optional={
        "address": some.lists(some.sampled_from(["0000:8*", "*.0", PF1, NVME, "9*"]), max_size=2),
        "vendor": some.lists(some.sampled_from(["8086", "1b36", "0x1234"]), max_size=2),
        "driver": some.lists(some.sampled_from(["igb", "nvme", "igbvf", "vfio-pci"]), max_size=2),
        "ifname": some.lists(some.sampled_from(["enp*", "enp130s0", "e?s3"]), max_size=2),
        "mac": some.lists(some.sampled_from(["52:54:00:00:01:00", "52:54:00:00:01:01"]), max_size=2),
        "serial": some.lists(some.sampled_from(["LAB0", "x"]), max_size=2),
        "class": some.lists(some.sampled_from(["network", "nvme", "storage"]), max_size=2),
        "numa_node": some.lists(some.integers(-1, 1), max_size=2),
        "slot": some.lists(some.sampled_from(["1", "2", "3"]), max_size=2),
    },
)


def chosen(sim, selector):
    return [function.address for function in match.select(read_state(sim.host(), Needs()), selector)]


@quick
@given(selectors, some.booleans())
def test_a_selector_matches_the_same_devices_after_apply(selector, rebooted):
    assume(match.check_selector(selector) is None)
    sim = lab()
    before = chosen(sim, selector)
    call(sim, vfio=[at(PF1), at(NVME), at(EDU)], sriov=[at(PF2, vf_count=3, vf_defaults={"driver": "vfio-pci"})])
    assert chosen(sim, selector) == before
    if rebooted:
        sim.reboot()
        replay.run(sim.host(sources=None), None)
        assert chosen(sim, selector) == before


@some.composite
def moves(draw):
    """Where cards are at the next boot: addresses of now -> addresses of then, among the places of one kind."""
    found = {}
    for kind in ((PF1, PF2, "0000:83:00.0"), (NVME, "0000:92:00.0", "0000:93:00.0")):
        found.update(zip(kind[:2], draw(some.permutations(kind))))
    return found


@quick
@given(some.integers(1, 2), some.integers(3, 4), some.booleans(), some.lists(moves(), min_size=1, max_size=3), some.booleans())
def test_cards_that_move_keep_what_was_declared_for_them(first, second, both, ways, pulled):
    """Whatever the addresses become from boot to boot, each card has what was declared for it, and no card has what was
    declared for an identical neighbour."""
    sim = lab()
    second_nvme = sim.add(Pci("0000:92:00.0", "1b36:0010", "010802", serial="LAB1", slot="4"))
    sim.reboot()
    ports = [sim.functions[PF1], sim.functions[PF2]]
    controllers = [sim.functions[NVME], second_nvme]
    wanted = [first, second if both else 0]
    call(sim, sriov=[at(PF1, vf_count=first)] + ([at(PF2, vf_count=second)] if both else []), vfio=[at(NVME)])
    place = {card.address: card for card in (*ports, *controllers)}
    for way in ways:
        cards = {address: card for address, card in place.items() if not (pulled and card is ports[0])}
        for card in place.values():
            sim.functions.pop(card.address, None)
        for address, card in cards.items():
            card.address = way[address]
            sim.functions[card.address] = card
        sim.reboot()
        result = replay.run(sim.host(environment={}, sources=None), None)
        assert bool(result["failures"]) == pulled
        for port, count in zip(ports, wanted):
            assert port.address not in sim.functions or sim.functions[port.address] is not port or len(port.vfs) == count
        assert [card.driver for card in controllers] == ["vfio-pci", "nvme"]
        quiet(sim, sriov=[], vfio=[])


words = some.text("abiou_=-,.1 pt", min_size=1, max_size=12)


@quick
@given(some.lists(words, max_size=6))
def test_a_command_line_is_split_and_joined(parts):
    line = " ".join(parts)
    assert cmdline.split(" ".join(cmdline.split(line))) == cmdline.split(line) == line.split()


members = some.lists(some.sampled_from(["on", "off", "sm_on", "sm_off", "igfx_off", "strict"]), min_size=1, max_size=3)


@quick
@given(some.lists(members, max_size=3), members)
def test_a_merged_wish_is_met_and_keeps_what_it_does_not_speak_of(present, wished):
    line = [f"intel_iommu={','.join(values)}" for values in present]
    wish = f"intel_iommu={','.join(wished)}"
    kept = cmdline.effective_members("intel_iommu", [",".join(wished)])
    assume(sorted(kept) == sorted(set(wished)))
    merged = cmdline.merged(line, wish)
    assert cmdline.satisfied([merged], wish)
    assert cmdline.satisfied([*line, merged], wish)
    before = set(cmdline.effective_members("intel_iommu", [",".join(values) for values in present]))
    assert "igfx_off" not in before or "igfx_off" in merged
    assert "strict" not in before or "strict" in merged
