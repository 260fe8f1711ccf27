# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One list of writes to the kernel, and what can be seen after each. It is run on a real kernel (this file, by the Python
of the lab host) and on the simulated one (test_sim_lab.py), which must give the same answers.

usage: python3 - PF EDU NVME <kernel_calls.py

Prints one JSON list of [answer, state]; the answer is 'ok' or the name of the error.
"""

from __future__ import annotations

import errno
import json
import os
import sys

DEVICES = "/sys/bus/pci/devices"
DRIVERS = "/sys/bus/pci/drivers"
COUNT, AUTOPROBE, OVERRIDE = "sriov_numvfs", "sriov_drivers_autoprobe", "driver_override"

#: (path, data); @PF@, @EDU@ and @NVME@ are addresses, @VF0@ is the first VF of the PF, @NVF0@ of the controller. They
#: begin with no VFs, no overrides, and edu without a driver.
CALLS = [
    # What a count may be: kstrtou16() with base 0, then sriov_numvfs_store() in its order.
    *((f"{DEVICES}/@PF@/{COUNT}", data) for data in (
        "0", "-1", "two", " 2", "2 ", "2\n\n", "8", "65536", "99999999999999999999", "0x8", "+0", "2", "2", "2\n", "0x2",
        "02", "3", "7", "8", "-1", "1", "0", "0", "0x3", "0", "010", "07", "0", "2",
    )),
    (f"{DEVICES}/@VF0@/{COUNT}", "1"),
    (f"{DEVICES}/@EDU@/{COUNT}", "1"),
    # Overrides: driver_set_override().
    *((f"{DEVICES}/@VF0@/{OVERRIDE}", data) for data in (
        "vfio-pci", "vfio-pci\n", "a b", "one\ntwo", "\n", "x" * 4094, "\n", "x" * 4095, "x" * 5000, "no-such-driver", "\n",
    )),
    # Who may bind: bind_store(), device_driver_attach().
    (f"{DRIVERS}/vfio-pci/bind", "@VF0@"),
    (f"{DRIVERS}/igbvf/bind", "@VF0@"),
    (f"{DRIVERS}/vfio-pci/unbind", "@VF0@"),
    (f"{DEVICES}/@VF0@/{OVERRIDE}", "vfio-pci"),
    (f"{DRIVERS}/vfio-pci/bind", "@VF0@"),
    (f"{DRIVERS}/igbvf/unbind", "@VF0@"),
    (f"{DRIVERS}/igbvf/bind", "@VF0@"),
    (f"{DRIVERS}/vfio-pci/bind", "@VF0@\n"),
    (f"{DRIVERS}/vfio-pci/bind", "@VF0@"),
    ("/sys/bus/pci/drivers_probe", "@VF0@"),
    (f"{DEVICES}/@VF0@/driver/unbind", "@VF0@"),
    ("/sys/bus/pci/drivers_probe", "@VF0@"),
    (f"{DEVICES}/@VF0@/{OVERRIDE}", "\n"),
    ("/sys/bus/pci/drivers_probe", "@VF0@"),
    (f"{DEVICES}/@VF0@/driver/unbind", "@VF0@"),
    ("/sys/bus/pci/drivers_probe", "@VF0@"),
    (f"{DEVICES}/@VF0@/driver/unbind", "@VF0@"),
    (f"{DEVICES}/@VF0@/{OVERRIDE}", "no-such-driver"),
    ("/sys/bus/pci/drivers_probe", "@VF0@"),
    (f"{DRIVERS}/igbvf/bind", "@VF0@"),
    ("/sys/bus/pci/drivers_probe", "ffff:00:00.0"),
    ("/sys/bus/pci/drivers_probe", "nonsense"),
    (f"{DRIVERS}/igb/bind", "nonsense"),
    (f"{DRIVERS}/no-such-driver/bind", "@VF0@"),
    # All of a VF is gone with the count.
    (f"{DEVICES}/@PF@/{COUNT}", "0"),
    (f"{DEVICES}/@PF@/{COUNT}", "1"),
    (f"{DEVICES}/@PF@/{COUNT}", "0"),
    # Probing held back: kstrtobool(), pci_device_can_probe().
    *((f"{DEVICES}/@PF@/{AUTOPROBE}", data) for data in ("2", "no", "yes", "off", "on", "o", "true", "", " 0", "0\n", "0")),
    (f"{DEVICES}/@PF@/{COUNT}", "2"),
    ("/sys/bus/pci/drivers_probe", "@VF0@"),
    (f"{DRIVERS}/igbvf/bind", "@VF0@"),
    (f"{DEVICES}/@VF0@/{OVERRIDE}", "vfio-pci"),
    ("/sys/bus/pci/drivers_probe", "@VF0@"),
    (f"{DEVICES}/@VF0@/driver/unbind", "@VF0@"),
    (f"{DEVICES}/@VF0@/{OVERRIDE}", "igbvf"),
    (f"{DRIVERS}/igbvf/bind", "@VF0@"),
    (f"{DEVICES}/@PF@/{AUTOPROBE}", "1"),
    # A PF without its driver, with one that does no SR-IOV, and with its own again.
    (f"{DEVICES}/@PF@/driver/unbind", "@PF@"),
    *((f"{DEVICES}/@PF@/{COUNT}", data) for data in ("0", "2", "8")),
    (f"{DEVICES}/@PF@/{OVERRIDE}", "vfio-pci"),
    (f"{DRIVERS}/vfio-pci/bind", "@PF@"),
    *((f"{DEVICES}/@PF@/{COUNT}", data) for data in ("0", "2", "8")),
    (f"{DEVICES}/@PF@/{OVERRIDE}", "\n"),
    (f"{DRIVERS}/igb/bind", "@PF@"),
    (f"{DEVICES}/@PF@/driver/unbind", "@PF@"),
    (f"{DRIVERS}/igb/bind", "@PF@"),
    (f"{DEVICES}/@PF@/{COUNT}", "1"),
    (f"{DEVICES}/@PF@/{COUNT}", "0"),
    # A device that no driver knows.
    (f"{DRIVERS}/vfio-pci/bind", "@EDU@"),
    ("/sys/bus/pci/drivers_probe", "@EDU@"),
    (f"{DEVICES}/@EDU@/{OVERRIDE}", "vfio-pci"),
    ("/sys/bus/pci/drivers_probe", "@EDU@"),
    (f"{DRIVERS}/vfio-pci/unbind", "@EDU@"),
    (f"{DEVICES}/@EDU@/{OVERRIDE}", "\n"),
    # VFs that their driver does not take without resources.
    *((f"{DEVICES}/@NVME@/{COUNT}", data) for data in ("5", "2", "3")),
    ("/sys/bus/pci/drivers_probe", "@NVF0@"),
    (f"{DEVICES}/@NVF0@/{OVERRIDE}", "vfio-pci"),
    ("/sys/bus/pci/drivers_probe", "@NVF0@"),
    (f"{DEVICES}/@NVME@/{COUNT}", "0"),
]


class RealKernel:
    """What the list needs of a kernel, from this one."""

    def write(self, path, data):
        handle = os.open(path, os.O_WRONLY)
        try:
            os.write(handle, data.encode())
        finally:
            os.close(handle)

    def attr(self, path):
        try:
            with open(path) as stream:
                return stream.read().strip()
        except OSError:
            return None

    def link(self, path):
        try:
            return os.path.basename(os.readlink(path))
        except OSError:
            return None

    def names(self, path):
        return os.listdir(path)


def short(text):
    return text if text is None or len(text) < 80 else f"{len(text)} times {text[0]}"


def state_of(kernel, places):
    """Count, drivers and overrides; VFs by their index, for their addresses are another on each machine."""
    seen = {}
    for pf in ("@PF@", "@NVME@"):
        path = f"{DEVICES}/{places[pf]}"
        links = sorted(name for name in kernel.names(path) if name.startswith("virtfn"))
        seen[pf] = [kernel.link(f"{path}/driver"), kernel.attr(f"{path}/{AUTOPROBE}"), *(
            [kernel.link(f"{path}/{name}/driver"), short(kernel.attr(f"{path}/{name}/{OVERRIDE}"))] for name in links
        )]
    seen["@EDU@"] = [kernel.link(f"{DEVICES}/{places['@EDU@']}/driver"), kernel.attr(f"{DEVICES}/{places['@EDU@']}/{OVERRIDE}")]
    return seen


def filled(kernel, places, text):
    """The text with the addresses that it names; a VF that is not there stays as it is written."""
    vfs = {vf: kernel.link(f"{DEVICES}/{places[pf]}/virtfn0") for vf, pf in (("@VF0@", "@PF@"), ("@NVF0@", "@NVME@"))}
    for place, address in {**places, **vfs}.items():
        text = text.replace(place, address or place)
    return text


def answers(kernel, places):
    """Do all, and tell after each what was answered and what can be seen."""
    told = []
    for path, data in CALLS:
        try:
            kernel.write(filled(kernel, places, path), filled(kernel, places, data))
            answer = "ok"
        except OSError as error:
            answer = errno.errorcode.get(error.errno, str(error.errno))
        told.append([answer, state_of(kernel, places)])
    return told


if __name__ == "__main__":
    print(json.dumps(answers(RealKernel(), dict(zip(("@PF@", "@EDU@", "@NVME@"), sys.argv[1:])))))
