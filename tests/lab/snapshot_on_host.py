# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on the lab host: all that a refused wish must leave as it was, as text that can be compared line by line.

Every readable attribute of every PCI function and of what hangs below it, all that netlink tells, the modules, and the
files of the host's configuration. Left out is what changes by itself, and sriov_numvfs, whose reader can hang.
"""

import os
import re
import subprocess
import time

DEVICES = "/sys/bus/pci/devices"

#: Names of attributes and folders that change by themselves, that ask the hardware, or that can hang.
VOLATILE = re.compile(
    r"sriov_numvfs|config|resource\d*(_wc)?|rom|vpd|power|statistics|byte_queue_limits|aer_dev_.*|msi_irqs|hwmon.*|"
    r"carrier_.*|stat|inflight|diskseq|duration|fifo|temp.*|state|uevent|firmware_node|trace|events.*|queue_count|"
    r"cntlid|keep_alive.*|fast_io_fail_tmo|reconnect_delay|ctrl_loss_tmo|clock_name|enable|power_state|timestamp|"
    r"pools|reset_method|rxbuf|local_cpu.*|ww_locks|crtc.*|edid|modes|dpms|proto_down|.*_timer|irq|duplex|speed|timeleft"
)

#: Files of the host that somebody may have written; python's caches come by themselves.
FOLDERS = ("/etc", "/boot", "/var/lib/iovirt", "/usr/local", "/run/NetworkManager", "/run/libvirt", "/run/systemd/network")
PASSING = re.compile(r".*\.pyc|/etc/machine-id|/run/libvirt/.*\.(pid|lock)|/etc/\.pwd\.lock")

PASSING_WORDS = re.compile(r"(valid_lft|preferred_lft|expires|\w+_timer) +\S+|state [A-Z]+\b| (tentative|optimistic)\b")


def snapshot() -> str:
    return "\n".join([*_functions(), *netlink(), *_modules(), *_files()])


def _functions():
    for address in sorted(os.listdir(DEVICES)):
        yield from _attributes(os.path.realpath(f"{DEVICES}/{address}"))


def _attributes(folder):
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        # It went meanwhile.
        return
    for entry in entries:
        if VOLATILE.fullmatch(entry.name):
            continue
        if entry.is_symlink():
            yield f"{entry.path} -> {os.readlink(entry.path)}"
        elif entry.is_dir():
            # A function below a bridge has its own turn.
            if not re.fullmatch(r"[0-9a-f]{4}:.*", entry.name):
                yield from _attributes(entry.path)
        elif entry.stat().st_mode & 0o400:
            yield f"{entry.path} = {_read(entry.path)}"


def _read(path):
    try:
        with open(path, "rb") as handle:
            return handle.read(4096).decode("utf-8", "replace").strip()
    except OSError as error:
        return error.strerror


def netlink():
    """With addresses, routes of all tables and rules; without the time that a lease or a bridge's timer has left, and without
    what an address goes through until it is known to be unique (RFC 4862, 5.4)."""
    for family in ("-4", "-6"):
        shows = "link show\naddr show\nroute show table all\nrule show\n"
        words = ["ip", family, "-d", "-o", "-batch", "-"]
        out = subprocess.run(words, input=shows, capture_output=True, text=True, check=True).stdout
        for line in sorted(out.splitlines()):
            yield f"ip {family}: " + PASSING_WORDS.sub("", line)


def settle(pause=1.5, limit=20.0):
    """Wait until the network is at rest: the same twice with a pause between. A port that a test before has used gets its carrier,
    and then its addresses and their routes, seconds later, by the kernel alone: the route of an address comes when it is known to
    be unique."""
    end = time.monotonic() + limit
    before = None
    while time.monotonic() < end:
        shown = subprocess.run(["ip", "-o", "addr", "show"], capture_output=True, text=True, check=True).stdout
        now = list(netlink())
        if now == before and not re.search(r" (tentative|optimistic)\b", shown):
            return
        before = now
        time.sleep(pause)


def _modules():
    with open("/proc/modules", encoding="ascii") as handle:
        yield from sorted(f"module {line.split()[0]}" for line in handle)


def _files():
    for top in FOLDERS:
        for folder, _folders, names in os.walk(top):
            for name in sorted(names):
                path = f"{folder}/{name}"
                if not PASSING.fullmatch(path):
                    # The time of the last change tells more than the content: also what was written anew as it was.
                    facts = os.lstat(path)
                    yield f"{path} {facts.st_ino} {facts.st_size} {facts.st_mode:o} {facts.st_ctime_ns}"


if __name__ == "__main__":
    settle()
    print(snapshot())
