# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real guest that is paused while it holds a VF: neither a run, nor the next one, nor another port hangs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

# --- A paused guest --------------------------------------------------------------------------------------------------

#: A guest of one file: the host's kernel, and busybox that says that it is up.
START_GUEST = r"""
set -e
mkdir -p /root/guest/bin /root/guest/proc /root/guest/sys /root/guest/dev; cd /root/guest
cp /bin/busybox bin/busybox; ln -sf busybox bin/sh
printf '#!/bin/sh\n/bin/busybox mount -t sysfs sysfs /sys\necho guest is up >/dev/console\nexec /bin/busybox sleep 100000\n' >init
chmod +x init; mknod dev/console c 5 1 2>/dev/null || true
find . | busybox cpio -o -H newc 2>/dev/null | gzip -1 >/root/guest.img
modprobe kvm_amd 2>/dev/null || modprobe kvm_intel 2>/dev/null || true
accel=tcg; [ -e /dev/kvm ] && accel=kvm
rm -f /root/guest.log
systemd-run --quiet --collect --unit=guest qemu-system-x86_64 -M pc -accel $accel -cpu max -m 192 -nodefaults -display none \
  -kernel /boot/vmlinuz-$(uname -r) -initrd /root/guest.img -append "console=ttyS0 quiet panic=-1 no_timer_check" \
  -serial file:/root/guest.log -monitor unix:/root/guest.mon,server,nowait -device vfio-pci,host=@VF@
for i in $(seq 300); do grep -q "guest is up" /root/guest.log 2>/dev/null && exit 0; sleep 1; done
cat /root/guest.log; exit 1
"""

MONITOR = """python3 - <<'X'
import socket, time
s = socket.socket(socket.AF_UNIX); s.connect("/root/guest.mon"); time.sleep(0.5); s.recv(65536)
s.sendall(b"@COMMAND@\\ninfo status\\n"); time.sleep(1.5); print(s.recv(65536).decode())
X"""


def monitor(lab: Any, command: str) -> str:
    text: str = lab.shell(MONITOR.replace("@COMMAND@", command))
    return text


@pytest.fixture
def guest(wishes: dict[str, Any], lab: Any) -> Iterator[dict[str, str]]:
    """A running guest that holds VF 0 of the first port by vfio-pci."""
    assert not lab.apply(wishes)["failed"]
    pf = lab.shell("basename $(ls -d /sys/bus/pci/drivers/igb/0* | head -1)")
    vf = lab.shell(f"basename $(readlink /sys/bus/pci/devices/{pf}/virtfn0)")
    try:
        lab.shell(START_GUEST.replace("@VF@", vf), limit=400)
        yield {"pf": pf, "vf": vf, "pid": lab.shell("systemctl show -P MainPID guest")}
    finally:
        # What is taken from a guest by force may hang until the guest is gone: that is ended first.
        lab.shell("systemctl kill -s KILL guest 2>/dev/null; systemctl stop guest writer 2>/dev/null; rm -rf /root/guest*; true")
        result = lab.apply(wishes, allow=("in_use",))
        assert not result["failed"], result


def test_a_paused_guest_makes_nothing_hang(guest: dict[str, str], wishes: dict[str, Any], lab: Any) -> None:
    pf, vf, pid = guest["pf"], guest["vf"], guest["pid"]
    ports, nvme = wishes["sriov"]
    assert "paused" in monitor(lab, "stop")

    # Without leave the guest is named and nothing is written.
    fewer = {"match": {"address": [pf]}, "vf_count": 2}
    before = lab.snapshot()
    for check in (True, False):
        result = lab.apply({"sriov": [fewer]}, check)
        assert result["failed"] is True
        assert f"{vf}: it is in use by process {pid} (qemu-system-x86) (IOMMU group" in result["msg"], result
        assert "allow: [in_use]" in result["msg"]
    assert lab.snapshot() == before

    # With leave the write hangs. The limit of 120 s is lowered in the operator's copy of the engine, for this call.
    said = lab.shell(APPLY_WITH_SHORT_LIMIT.replace("@PF@", pf), limit=200)
    assert "is indeterminate" in said and "has not returned within 5 s" in said, said
    # Its writer is there, with the file open, and the VFs are gone from the front on or are to go.
    writer = f"ls -l /proc/[0-9]*/fd 2>/dev/null | grep -c '{pf}/sriov_numvfs' || true"
    assert lab.shell(writer) == "1"

    # The next runs say so, on this port and on another one, and what needs no change is done with.
    asked = time.monotonic()
    result = lab.apply({"sriov": [fewer]})
    assert result["failed"] is True and "the kernel does not answer for" in result["msg"], result
    other = lab.shell("basename $(ls -d /sys/bus/pci/drivers/igb/0* | tail -1)")
    result = lab.apply({"sriov": [{"match": {"address": [other]}, "vf_count": 2}]})
    assert result["failed"] is True and f"{other}: its number of VFs cannot change while" in result["msg"], result
    result = lab.apply({"sriov": [{**ports, "match": {"address": [other]}, "expect": None}, nvme], "vfio": wishes["vfio"]})
    assert not result["failed"] and result["changed"] is False, result
    assert time.monotonic() - asked < 200

    # The guest goes on: it lets the VF go, the write ends, and the next run puts all back.
    monitor(lab, "cont")
    lab.shell(f"for i in $(seq 60); do ls /sys/bus/pci/devices/{pf} | grep -q virtfn || exit 0; sleep 1; done; exit 1")
    result = lab.apply(wishes)
    assert not result["failed"] and result["changed"] is True, result
    assert lab.apply(wishes)["changed"] is False


APPLY_WITH_SHORT_LIMIT = """timeout 120 python3 -I - <<'X'
import sys
sys.path.insert(0, "/var/lib/iovirt/engine/current")
from iovirt_engine import actions, engine
from iovirt_engine.host import FileSystem, Host, run_command
from iovirt_engine.resources.common import Options
actions.COUNT_LIMIT = 5.0
wish = {"match": {"address": ["@PF@"]}, "vf_count": 2}
host = Host(files=FileSystem("/"), run=run_command)
call = engine.Call(declare=False, who="lab test")
print(engine.devices(host, {"sriov": [wish]}, Options(allow=frozenset(["in_use"])), call)["failures"])
X"""
