# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stations in hardware on a real kernel, by a driver that has pools (lab/vmdqsim, on QEMU's edu device).

macvlan, ethtool and the queues' files are the kernel's own. What came true is asked of ip, bridge, ethtool and those files, never of us. The
driver comes to the host with this file and goes with it, and the edu device is whose it was.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

MAKE = Path(__file__).resolve().parents[2] / "lab" / "vmdqsim" / "make"
TINY = Path(__file__).resolve().parents[2] / "lab" / "tiny" / "make"
MODULE = "/lib/modules/$(uname -r)/updates/vmdqsim.ko"
OPTIONS = "/etc/modprobe.d/zz-iovirt-vmdqsim.conf"
#: depmod takes 45 s in emulation (40 of them its own), so it runs once: the indexes of before are kept, also over a boot.
KEEP_INDEXES = "mkdir /var/tmp/indexes && cp -a /lib/modules/$(uname -r)/modules.* /var/tmp/indexes"
RETURN_INDEXES = "cp -a /var/tmp/indexes/* /lib/modules/$(uname -r) && rm -r /var/tmp/indexes"

MAC = {"mv0": "52:54:00:0c:00:00", "mv1": "52:54:00:0c:00:01", "mv2": "52:54:00:0c:00:02"}
#: Of 4 pools one is the port's.
TWO = [{"name": "mv0", "mac": MAC["mv0"]}, {"name": "mv1", "kind": "macvtap", "mac": MAC["mv1"], "mode": "private", "mtu": 1400}]


@pytest.fixture(scope="module")
def port(lab: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The lab, with the edu device as a port that has pools, joined by a wire to a port in the namespace 'far'."""
    built = tmp_path_factory.mktemp("vmdqsim") / "vmdqsim.ko"
    subprocess.run([str(MAKE), lab.shell("uname -r"), str(built)], check=True, timeout=600, env=os.environ)
    lab.edu = lab.shell("lspci -Dd 1234:11e8 | cut -d' ' -f1")
    held = lab.edu in json.loads(lab.shell("cat /etc/iovirt/vfio.json 2>/dev/null || echo '{\"devices\": {}}'"))["devices"]
    if held:
        assert not lab.apply({"vfio": [{"match": {"address": [lab.edu]}, "state": "absent"}]})["failed"]
    lab.shell(f"mkdir -p $(dirname {MODULE}) && {KEEP_INDEXES}")
    lab.send(MODULE, built.read_bytes())
    lab.shell("depmod && modprobe vmdqsim && udevadm settle", limit=240)
    lab.port = lab.shell(f"ls /sys/bus/pci/devices/{lab.edu}/net")
    lab.shell(
        "ip netns add far; f=$(ls /sys/bus/platform/devices/vmdqsim.0/net); ip link set $f netns far; "
        f"ip -n far link set $f up; ip -n far addr add 10.9.7.1/24 dev $f; ip link set {lab.port} up"
    )
    yield lab
    lab.shell("ip link del theirs 2>/dev/null; ip -n far link del theirs 2>/dev/null; true")
    result = lab.apply(wish(lab, state="absent"))
    lab.shell(f"modprobe -r vmdqsim; rm -f {MODULE}; ip netns del far; {RETURN_INDEXES}", limit=240)
    if held:
        assert not lab.apply({"vfio": [{"match": {"address": [lab.edu]}}]})["failed"]
    # The rules of udev follow.
    lab.shell("iovirt apply")
    assert not result["failed"], result


def wish(lab: Any, **keys: Any) -> dict[str, Any]:
    return {"vmdq": [{"match": {"address": [lab.edu]}, **keys}]}


def made(lab: Any, **keys: Any) -> dict[str, Any]:
    """Check mode announces what the run does, and a second run finds nothing to do."""
    announced, done, again = lab.calls((True, wish(lab, **keys)), (False, wish(lab, **keys)), (False, wish(lab, **keys)))
    assert done.get("failures") == {}, done
    assert (done["actions"], done["diff"], done["changed"]) == (announced["actions"], announced["diff"], announced["changed"])
    assert again["changed"] is False and again["actions"] == [], again
    return dict(done)


def pools(lab: Any) -> set[str]:
    """The pools that the port's own queues say belong to stations ('0-1')."""
    classes = lab.shell(f"cat /sys/class/net/{lab.port}/queues/tx-*/traffic_class 2>/dev/null || true").split()
    return {text.partition("-")[2] for text in classes if "-" in text}


def in_software(lab: Any) -> set[str]:
    """The addresses that the port listens to for stations without a pool."""
    return set(lab.shell(f"bridge fdb show dev {lab.port} | sed -n 's/ self permanent//p' | grep -v ^33: | grep -v ^01: || true").split())


def link(lab: Any, name: str) -> dict[str, Any]:
    (found,) = json.loads(lab.shell(f"ip -j -d -s link show dev {name}"))
    return dict(found)


def counters(lab: Any, name: str) -> tuple[int, int]:
    stats = link(lab, name)["stats64"]
    return stats["rx"]["packets"], stats["tx"]["packets"]


def names(lab: Any) -> set[str]:
    return set(lab.shell("ls /sys/class/net").split())


def until(look: Callable[[], bool], limit: float = 120) -> None:
    end = time.monotonic() + limit
    while not look():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(2)


def test_stations_appear_and_are_in_hardware(port: Any) -> None:
    """Through Ansible, as a user would; from here on through the engine that this put on the host."""
    lab = port
    devices = wish(lab, queues={"combined": 3}, stations=TWO)["vmdq"]
    announced = lab.module("vmdq", check=True, devices=devices)
    assert pools(lab) == set() and "mv0" not in names(lab)
    done = lab.module("vmdq", devices=devices)
    assert not done["failed"] and done["actions"] == announced["actions"], (done, announced)
    assert pools(lab) == {"1", "2"}
    assert not in_software(lab) & set(MAC.values())
    mv0, mv1 = link(lab, "mv0"), link(lab, "mv1")
    assert (mv0["linkinfo"]["info_kind"], mv0["linkinfo"]["info_data"]["mode"], mv0["address"]) == ("macvlan", "bridge", MAC["mv0"])
    assert (mv1["linkinfo"]["info_kind"], mv1["linkinfo"]["info_data"]["mode"], mv1["mtu"]) == ("macvtap", "private", 1400)
    assert mv0["link"] == mv1["link"] == lab.port and "UP" in mv0["flags"] and "UP" in mv1["flags"]
    assert "l2-fwd-offload: on" in lab.shell(f"ethtool -k {lab.port}")
    assert lab.shell(f"ethtool -l {lab.port} | sed -n '$s/Combined:[[:space:]]*//p'") == "3"
    assert {s["name"]: s["offloaded"] for s in done["vmdq_stations"]} == {"mv0": True, "mv1": True}
    # Network managers are kept off what is a guest's.
    marked = lab.shell("udevadm settle; for n in mv0 mv1; do udevadm info /sys/class/net/$n | grep -q NM_UNMANAGED=1 && echo $n; done; true")
    assert marked.split() == ["mv1"]
    again = lab.module("vmdq", devices=devices)
    assert not again["changed"] and again["actions"] == [], again
    facts = next(f["vmdq"] for f in lab.module("host_info")["host"]["functions"] if f["address"] == lab.edu)
    assert facts["ways"] == ["l2-fwd-offload", "module parameter VMDQ"] and (facts["pools"], facts["pools_used"]) == (3, 2)
    assert sorted(facts["holders"]) == ["macvlan mv0", "macvtap mv1"]


REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    ({"stations": [{"name": f"mv{n}"} for n in range(4)]}, ["4 stations", "has pools for (3)"]),
    ({"stations": [{"name": "mv0", "mode": "passthru"}]}, ["passthru", "no filter by destination"]),
    ({"stations": [{"name": "mv0", "mode": "source"}]}, ["source", "no filter by destination"]),
    ({"stations": [TWO[0], {"name": "mv2", "mac": MAC["mv0"]}]}, ["mv2 and mv0", "MAC"]),
    ({"stations": [{"name": "mv0", "mac": "01:00:5e:00:00:01"}]}, ["multicast"]),
    ({"stations": [{"name": "lo"}]}, ["lo is taken"]),
    ({"queues": {"combined": 5}}, ["5 combined", "1 to 4"]),
    ({"queues": {"rx": 1}}, ["no rx queues"]),
]


def test_refusals_change_nothing(port: Any) -> None:
    lab = port
    igb = lab.shell("basename $(ls -d /sys/bus/pci/drivers/igb/0* | tail -1)")
    cases = [*REFUSED, ({"match": {"address": [igb]}, "stations": [{"name": "mv9"}]}, [igb, "off [fixed]", "igb"])]
    cases.append(({"match": {"address": [igb]}, "pools": 4}, [igb, "no parameter VMDQ"]))
    before = lab.snapshot()
    calls = [(check, wish(lab, **keys)) for check in (True, False) for keys, _said in cases]
    for answer, (_keys, said) in zip(lab.calls(*calls), [*cases, *cases]):
        for part in said:
            assert part in answer.get("refused", ""), (answer, said)
    assert lab.snapshot() == before


def test_one_changes_and_its_sibling_goes_on(port: Any) -> None:
    """With traffic between the sibling and the port at the other end of the wire."""
    lab = port
    made(lab, stations=TWO)
    lab.shell("ip addr add 10.9.7.2/24 dev mv0; ping -c 3 -i 0.2 -W 5 -I mv0 10.9.7.1")
    before = counters(lab, "mv0")
    pool = int(lab.shell(f"ethtool -S {lab.port} | sed -n 's/ *pool_1_rx_packets: //p'"))
    assert min(before) >= 3 and pool >= 3
    made(lab, stations=[TWO[0], {**TWO[1], "mac": "52:54:00:0c:00:11"}])
    assert pools(lab) == {"1", "2"} and not in_software(lab) & {MAC["mv0"], "52:54:00:0c:00:11"}
    made(lab, stations=[TWO[0], {**TWO[1], "mode": "vepa", "mtu": 1300}])
    made(lab, stations=[TWO[0], {"name": "mv2", "mac": MAC["mv2"]}])
    assert pools(lab) == {"1", "2"} and "mv1" not in names(lab) and "mv2" in names(lab)
    assert counters(lab, "mv0") >= before and "10.9.7.2" in lab.shell("ip -4 addr show dev mv0")
    lab.shell("ping -c 1 -W 5 -I mv0 10.9.7.1")
    # It has an address of the host now, so it is not taken.
    refused, allowed = lab.calls((True, wish(lab, stations=[TWO[1]])), (True, wish(lab, stations=[TWO[1]]), ["management"]))
    assert "station mv0 carries the address 10.9.7.2" in refused["refused"] and allowed["changed"]
    lab.shell("ip addr flush dev mv0")


def test_who_holds_the_pools_is_said(port: Any) -> None:
    """Somebody's own station has the third pool; one in another namespace shows by its queues alone."""
    lab = port
    made(lab, stations=TWO)
    lab.shell(f"ip link add link {lab.port} name theirs address 52:54:00:0c:00:21 type macvlan mode bridge; ip link set theirs up")
    assert pools(lab) == {"1", "2", "3"}
    three = [*TWO, {"name": "mv2", "mac": MAC["mv2"]}]
    (answer,) = lab.calls((True, wish(lab, stations=three)))
    assert "3 stations and 1 of others (macvlan theirs) are more than" in answer["refused"], answer
    lab.shell("ip link set theirs netns far; ip -n far link set theirs up")
    assert pools(lab) == {"1", "2", "3"}
    (answer,) = lab.calls((True, wish(lab, stations=three)))
    assert "(1 in other network namespaces)" in answer["refused"], answer
    lab.shell("ip -n far link del theirs")
    assert made(lab, stations=three)["changed"] and pools(lab) == {"1", "2", "3"}
    made(lab, stations=TWO)


IMAGES = "/var/lib/libvirt/images"
LOG = "/var/log/libvirt/qemu/station-console.log"
GUEST_MAC = "52:54:00:0c:00:31"

#: A guest of one file (lab/tiny), and libvirt to run it; and away with it.
WITH_GUESTS = f"""
set -e
systemctl start virtlogd.socket libvirtd.socket
sh /run/iovirt-lab/make {IMAGES}/station.img
install -m 644 /boot/vmlinuz-$(uname -r) {IMAGES}/station-kernel; chmod 644 {IMAGES}/station.img
"""
WITHOUT_GUESTS = f"""
virsh destroy station; virsh undefine --nvram station; rm -f /etc/iovirt/guests.json {IMAGES}/station* {LOG}
systemctl stop libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd.service virtlogd.socket virtlogd-admin.socket virtlogd.service
true
"""


@pytest.fixture
def guests(port: Any) -> Iterator[Any]:
    lab = port
    lab.shell("mkdir -p /run/iovirt-lab")
    lab.send("/run/iovirt-lab/make", TINY.read_bytes())
    lab.shell(WITH_GUESTS, limit=240)
    yield lab
    lab.shell(WITHOUT_GUESTS)


def test_a_guest_takes_its_pool_at_the_start(guests: Any) -> None:
    """Traffic between the guest and the other end of the wire goes through the pool; it is free when the guest ends."""
    lab = guests
    made(lab, stations=TWO)
    cmdline = f"console=ttyS0 quiet panic=-1 no_timer_check tiny.{GUEST_MAC}=10.9.7.3/24"
    guest = {
        "name": "station",
        "vcpus": 1,
        "memory": "256M",
        "boot": {"kernel": f"{IMAGES}/station-kernel", "initrd": f"{IMAGES}/station.img", "cmdline": cmdline},
        "display": {"model": "none"},
        "console_log": LOG,
        "network": [{"model": "vmdq", "parent": lab.port, "mac": GUEST_MAC, "rom": False}],
    }
    done = lab.module("guest", guests=[guest])
    assert not done["failed"], done
    assert pools(lab) == {"1", "2", "3"} and GUEST_MAC not in in_software(lab)
    lab.shell(f"for i in $(seq 300); do grep -q 'tiny: up' {LOG} && exit 0; sleep 1; done; tail {LOG}; exit 1", limit=400)
    lab.shell("ip netns exec far ping -c 3 -i 0.5 -W 8 10.9.7.3")
    assert int(lab.shell(f"ethtool -S {lab.port} | sed -n 's/ *pool_3_rx_packets: //p'")) >= 3
    gone = lab.module("guest", guests=[{"name": "station", "state": "absent"}], power_off=True, shutdown_timeout=0)
    assert not gone["failed"] and pools(lab) == {"1", "2"}, gone


def test_what_the_kernel_does_in_silence_is_seen_and_mended(port: Any) -> None:
    """Facts of docs/kernel-facts.md that the plan relies on, each mended by the next run."""
    lab = port
    made(lab, stations=TWO)
    # An address that changes while the station is up: it goes to the port's own list, the pool stays.
    lab.shell("ip link set mv1 address 52:54:00:0c:00:77")
    assert "52:54:00:0c:00:77" in in_software(lab) and pools(lab) == {"1", "2"}
    made(lab, stations=TWO)
    assert not in_software(lab) & {MAC["mv1"], "52:54:00:0c:00:77"} and pools(lab) == {"1", "2"}
    # The feature off and on again: nobody gets a pool back by himself.
    lab.shell(f"ethtool -K {lab.port} l2-fwd-offload off; ethtool -K {lab.port} l2-fwd-offload on")
    assert pools(lab) == set() and {MAC["mv0"], MAC["mv1"]} <= in_software(lab)
    result = made(lab, stations=TWO)
    assert [a["action"] for a in result["actions"]] == ["set_station", "set_station"]
    assert pools(lab) == {"1", "2"} and not in_software(lab) & set(MAC.values())


def test_the_driver_is_loaded_again_with_more_pools(port: Any) -> None:
    """udev starts the replay of this port; stations, feature and queues come back, and the parameter is in force."""
    lab = port
    result = made(lab, queues={"combined": 3}, stations=TWO, pools=6)
    assert result["reboot_required"] and "until the module is loaded again; then it is 6" in result["reboot_reasons"][0]
    assert lab.shell(f"cat {OPTIONS}").endswith("options vmdqsim VMDQ=6")
    lab.shell("iovirt apply; ip netns del far; modprobe -r vmdqsim && ! test -e /sys/class/net/mv0 && modprobe vmdqsim")
    until(lambda: pools(lab) == {"1", "2"})
    until(lambda: "inactive" in lab.shell(f"systemctl is-active iovirt-replay@{lab.edu}.service || true"))
    assert not in_software(lab) & set(MAC.values()) and link(lab, "mv0")["address"] == MAC["mv0"]
    assert lab.shell(f"ethtool -l {lab.port} | sed -n '$s/Combined:[[:space:]]*//p'") == "3"
    assert lab.shell("cat /sys/module/vmdqsim/parameters/VMDQ").startswith("6")
    five = [*TWO, *({"name": f"mv{n}"} for n in (2, 3, 4))]
    again, more, many = lab.calls(
        (False, wish(lab, queues={"combined": 3}, stations=TWO, pools=6)),
        (True, wish(lab, stations=five)),
        (True, wish(lab, stations=[*five, {"name": "mv5"}])),
    )
    assert again["changed"] is False and not again["reboot_required"], again
    assert more["changed"] and "has pools for (5)" in many["refused"]


def test_it_is_there_after_a_reboot(port: Any) -> None:
    lab = port
    made(lab, queues={"combined": 3}, stations=[*TWO, {"name": "mv2", "mac": "auto"}])
    mac = link(lab, "mv2")["address"]
    lab.reboot()
    lab.port = lab.shell(f"ls /sys/bus/pci/devices/{lab.edu}/net")
    replayed = json.loads(lab.shell("cat /run/iovirt-replay.json"))
    assert replayed["failures"] == {} and {a["action"] for a in replayed["actions"]} >= {"set_offload", "set_station", "set_queues"}, replayed
    assert pools(lab) == {"1", "2", "3"} and not in_software(lab) & {MAC["mv0"], MAC["mv1"], mac}
    assert link(lab, "mv2")["address"] == mac and link(lab, "mv1")["linkinfo"]["info_kind"] == "macvtap"
    (again,) = lab.calls((False, wish(lab, queues={"combined": 3}, stations=[*TWO, {"name": "mv2", "mac": "auto"}])))
    assert again["changed"] is False and again["actions"] == [], again


def test_all_vanishes_when_it_is_given_back(port: Any) -> None:
    lab = port
    made(lab, stations=TWO)
    result = made(lab, state="absent")
    assert not {"mv0", "mv1", "mv2"} & names(lab) and pools(lab) == set() and not in_software(lab) & set(MAC.values())
    assert "l2-fwd-offload: off" in lab.shell(f"ethtool -k {lab.port}")
    assert lab.shell(f"ethtool -l {lab.port} | sed -n '$s/Combined:[[:space:]]*//p'") == "2"
    assert lab.shell(f"test -e {OPTIONS} || echo gone") == "gone" and lab.shell("test -e /etc/iovirt/vmdq.json || echo gone") == "gone"
    assert "set_module_options" in [a["action"] for a in result["actions"]]
