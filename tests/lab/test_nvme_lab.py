# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""NVMe VFs that their own driver takes: resources and state of secondary controllers, on a real kernel.

What came true is asked of nvme-cli, lspci and sysfs. The controller is given back before and after; what was declared
of it before is declared again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

READY = {"nvme_queues": 2, "nvme_interrupts": 1, "online": True}


@pytest.fixture(scope="module")
def pf(lab: Any, wishes: dict[str, Any]) -> Iterator[str]:
    """The address of the controller, bare of VFs, on a host that has the engine (`lab.calls`), whichever file comes first."""
    address = lab.shell("basename $(dirname $(ls -d /sys/bus/pci/drivers/nvme/0*/sriov_totalvfs | head -1))")
    declared = json.loads(lab.shell("cat /etc/iovirt/sriov.json 2>/dev/null || echo '{\"devices\": {}}'"))["devices"]
    bare(lab, address)
    yield address
    bare(lab, address)
    entry = declared.get(address)
    if entry:
        vfs = [{"range": index, **vf} for index, vf in entry["wish"]["vfs"].items()]
        again = {**entry["wish"], "match": {"address": [address]}, "vfs": vfs}
        assert not lab.module("sriov", devices=[again], allow=entry["allow"])["failed"]


def bare(lab: Any, address: str) -> None:
    result = lab.module("sriov", devices=[{"match": {"address": [address]}, "state": "absent"}])
    assert not result["failed"], result
    assert lab.shell(f"ls -d /sys/bus/pci/devices/{address}/virtfn* 2>/dev/null | wc -l") == "0"


def wish(address: str, count: int = 2, **more: Any) -> dict[str, Any]:
    """VF 0 without a word about its driver, VF 1 with its own one."""
    vfs = [{"range": "0", **READY}, {"range": "1", "driver": "default", **READY}]
    return {"match": {"address": [address]}, "vf_count": count, "vfs": vfs, **more}


def controllers(lab: Any, address: str) -> list[tuple[int, int, int]]:
    """Queues, interrupts and state by VF number, as nvme-cli says."""
    name = lab.shell(f"ls /sys/bus/pci/devices/{address}/nvme")
    entries = json.loads(lab.shell(f"nvme list-secondary /dev/{name} -o json"))["secondary-controllers"]
    entries.sort(key=lambda entry: entry["virtual-function-number"])
    keys = ("num-virtual-queues", "num-virtual-interrupts", "secondary-controller-state")
    return [tuple(entry[key] for key in keys) for entry in entries]


def drivers(lab: Any, address: str) -> list[str]:
    """Of the VFs, by index, as lspci says."""
    script = (
        f"for l in /sys/bus/pci/devices/{address}/virtfn*; do "
        'echo "-$(lspci -ks $(basename $(readlink $l)) | sed -n \'s/.*in use: //p\')"; done'
    )
    return [line[1:] for line in lab.shell(script).splitlines()]


def made(lab: Any, pf: str, *wishes: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs of the engine on the host; none fails."""
    results: list[dict[str, Any]] = lab.calls(*((False, {"sriov": [wish]}) for wish in wishes))
    assert [result.get("failures") for result in results] == [{}] * len(wishes), results
    return results


def nothing(pf: str) -> dict[str, Any]:
    return {"match": {"address": [pf]}, "state": "absent"}


def test_vfs_come_online_and_their_driver_takes_them(lab: Any, pf: str) -> None:
    made(lab, pf, nothing(pf))
    announced = lab.module("sriov", check=True, devices=[wish(pf)])
    done = lab.module("sriov", devices=[wish(pf)])
    assert not done["failed"], done
    assert done["actions"] == announced["actions"]
    assert drivers(lab, pf) == ["nvme", "nvme"]
    assert controllers(lab, pf)[:3] == [(2, 1, 1), (2, 1, 1), (0, 0, 0)]
    states = lab.shell(f"cat /sys/bus/pci/devices/{pf}/virtfn[01]/nvme/nvme*/state").split()
    assert states == ["live", "live"]
    again = lab.module("sriov", devices=[wish(pf)])
    assert again["changed"] is False
    assert again["actions"] == []


def test_a_reset_of_the_controller_is_mended(lab: Any, pf: str) -> None:
    made(lab, pf, wish(pf))
    lab.shell(f"echo 1 > /sys/bus/pci/devices/{pf}/reset")
    assert controllers(lab, pf)[:2] == [(0, 0, 0), (0, 0, 0)]
    # They have a driver that noticed nothing.
    assert drivers(lab, pf) == ["nvme", "nvme"]
    (done,) = made(lab, pf, wish(pf))
    assert [a["action"] for a in done["actions"]] == ["set_nvme_secondary"], done
    assert controllers(lab, pf)[:2] == [(2, 1, 1), (2, 1, 1)]
    assert drivers(lab, pf) == ["nvme", "nvme"]


def test_all_of_it_survives_another_count(lab: Any, pf: str) -> None:
    made(lab, pf, wish(pf), wish(pf, 3))
    assert drivers(lab, pf) == ["nvme", "nvme", ""]
    assert controllers(lab, pf)[:3] == [(2, 1, 1), (2, 1, 1), (0, 0, 0)]


BAD: list[tuple[dict[str, Any], list[str]]] = [
    ({"vf_defaults": {"nvme_queues": 3}, "vfs": None}, ["nvme_queues 3 of VF 0, 1", "vqfrsm is 2"]),
    ({"vf_defaults": {"nvme_queues": 0, "online": True}, "vfs": None}, ["cannot be online with 0 queues"]),
    ({"nvme_primary_queues": 2}, ["by a reset of the function, and it has VFs"]),
    ({"firmware": {"vf_count": 4}}, ["no open tool is known for the firmware of vendor 1b36"]),
]


def test_bad_wishes_change_nothing(lab: Any, pf: str) -> None:
    made(lab, pf, wish(pf))
    before = lab.snapshot(), controllers(lab, pf), drivers(lab, pf)
    tries = [(check, more, said) for more, said in BAD for check in (True, False)]
    answers = lab.calls(*((check, {"sriov": [{**wish(pf, 3), **more}]}) for check, more, _said in tries))
    for answer, (_check, _more, said) in zip(answers, tries):
        assert all(word in answer["refused"] for word in said), answer
    assert (lab.snapshot(), controllers(lab, pf), drivers(lab, pf)) == before


def test_a_driver_reload_brings_it_back_without_ansible(lab: Any, pf: str) -> None:
    made(lab, pf, wish(pf, 3))
    lab.shell(f"iovirt apply && grep -q {pf} /etc/udev/rules.d/99-iovirt.rules")
    lab.shell("modprobe -r nvme && modprobe nvme")
    # The VFs outlive the driver, and a probe that fails shows a controller for a moment: what counts is their state.
    wait = (
        f"for i in $(seq 90); do n=$(ls /sys/bus/pci/devices/{pf}/nvme 2>/dev/null); "
        "c=$(nvme list-secondary /dev/${n:-none} -o json 2>/dev/null | grep -c '\"secondary-controller-state\":1'); "
        f"[ $c = 2 ] && [ $(systemctl show -P ActiveState iovirt-replay@{pf}.service) != activating ] "
        f"&& [ $(ls -d /sys/bus/pci/devices/{pf}/virtfn[01]/nvme/nvme* | wc -l) = 2 ] && exit 0; sleep 2; done; "
        f"systemctl status --no-pager iovirt-replay@{pf}.service; exit 1"
    )
    lab.shell(wait, limit=300)
    assert controllers(lab, pf)[:3] == [(2, 1, 1), (2, 1, 1), (0, 0, 0)]
    assert drivers(lab, pf) == ["nvme", "nvme", ""]
    (again,) = made(lab, pf, wish(pf, 3))
    assert again["changed"] is False


ASK_MSTCONFIG = """python3 -I - <<'END'
import sys
sys.path.insert(0, "/var/lib/iovirt/engine/current")
from iovirt_engine import errors, mstconfig
from iovirt_engine.host import FileSystem, Host, run_command
try:
    mstconfig.query(Host(files=FileSystem("/"), run=run_command), "@pf@")
except errors.EngineError as error:
    print(error)
END"""


def test_mstconfig_of_a_device_that_is_none_of_its_own(lab: Any, pf: str) -> None:
    """All that the lab can show of mstconfig: how it refuses."""
    assert lab.shell(ASK_MSTCONFIG.replace("@pf@", pf)) == "mstconfig failed: Failed to open the device."


def test_given_back(lab: Any, pf: str) -> None:
    bare(lab, pf)
    assert controllers(lab, pf) == [(0, 0, 0)] * 4
    assert pf not in lab.shell("cat /etc/iovirt/sriov.json 2>/dev/null || true")


def test_what_the_controller_keeps_for_itself(lab: Any, pf: str) -> None:
    """It is held from a reset on, which the driver lives through; and it counts against what its VFs can have."""
    made(lab, pf, nothing(pf))
    name = lab.shell(f"ls /sys/bus/pci/devices/{pf}/nvme")

    def kept() -> int:
        number: int = json.loads(lab.shell(f"nvme primary-ctrl-caps /dev/{name} -o json"))["vqrfap"]
        return number

    # Where the host uses a disk of it, that danger is the test's.
    done = lab.apply({"sriov": [wish(pf, nvme_primary_queues=4)]}, allow=("boot_disk",))
    assert not done["failed"], done
    assert kept() == 4
    assert drivers(lab, pf) == ["nvme", "nvme"]
    assert lab.apply({"sriov": [wish(pf, nvme_primary_queues=4)]})["changed"] is False
    more = {**wish(pf, 3, nvme_primary_queues=4), "vfs": None, "vf_defaults": READY}
    result = lab.apply({"sriov": [more]}, check=True)
    assert "6 queues are wished for its VFs" in result["msg"]
    assert "has 8 and keeps 4" in result["msg"]
    bare(lab, pf)
    assert kept() == 0
