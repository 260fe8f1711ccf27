# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One list of lines for `ip -batch` about the VFs of an igb port, and what can be seen after each. It is run with the real `ip` (this file, by the
Python of the lab host) and with the simulated one (test_sim_lab.py), which must give the same answers.

usage: python3 - PORT <ip_calls.py

Prints one JSON list of [status, what ip said, VFs]. The port has two VFs without a driver, and is down.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

VF0, VF1 = "link set dev @PORT@ vf 0", "link set dev @PORT@ vf 1"
LINES = [
    # MACs: igb_ndo_set_vf_mac; all zero takes it back.
    *(f"{VF0} mac {mac}" for mac in ("52:54:00:aa:00:01", "01:00:5e:00:00:01", "00:00:00:00:00:00", "52:54:00:aa:00:02")),
    # VLANs: what is not named of vlan, qos and proto is none; igb_ndo_set_vf_vlan.
    *(f"{VF1} {words}" for words in (
        "vlan 100", "vlan 100 qos 3", "vlan 7", "vlan 7 qos 7", "vlan 7 qos 8", "vlan 4094", "vlan 4095", "vlan 4096", "vlan 5 proto 802.1ad",
        "vlan 5 proto 802.1Q", "vlan 5 qos 2 proto 802.1Q", "vlan 0 qos 0", "vlan 9", "vlan 0",
    )),
    *(f"{VF0} {words}" for words in (
        "spoofchk off", "spoofchk off", "spoofchk on", "trust on", "trust off", "trust on", "state enable", "state auto", "state disable", "query_rss on",
        "query_rss off", "node_guid 00:11:22:33:44:55:66:77", "port_guid 00:11:22:33:44:55:66:77",
    )),
    # Rates: igb_ndo_set_vf_bw, without a link and with one.
    f"{VF0} min_tx_rate 0 max_tx_rate 100",
    "link set dev @PORT@ up",
    *(f"{VF0} min_tx_rate {low} max_tx_rate {high}" for low, high in ((0, 100), (0, 1000), (0, 1001), (10, 100), (0, 0), (0, 200))),
    # What is set outlives the port's being down.
    "link set dev @PORT@ down",
    # VFs and ports that are not there.
    "link set dev @PORT@ vf 2 trust on", "link set dev @PORT@ vf 2 vlan 5", "link set dev @PORT@ vf 7 mac 52:54:00:aa:00:03",
    "link set dev nosuch9 vf 0 trust on", "link set dev nosuch9 up",
]  # fmt: skip
SHOWN = ("vf", "address", "vlan_list", "rate", "spoofchk", "link_state", "trust", "query_rss_en")


def run(argv, data=""):
    done = subprocess.run(argv, input=data, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def has_link(port):
    try:
        with open(f"/sys/class/net/{port}/carrier") as stream:
            return stream.read().strip() == "1"
    except OSError:
        return False


def vfs(run, port):
    (link,) = [link for link in json.loads(run(["ip", "-j", "-d", "link", "show"])[1]) if link.get("ifname") == port]
    return [{key: item[key] for key in SHOWN if key in item} for item in link["vfinfo_list"]]


def answers(run, port, after=lambda line: None):
    """Give ip all lines, one by one, and tell after each what it said and what can be seen."""
    told = []
    for line in LINES:
        code, _out, err = run(["ip", "-force", "-batch", "-"], line.replace("@PORT@", port) + "\n")
        after(line)
        told.append([code, [text for text in err.replace(port, "@PORT@").splitlines() if text], vfs(run, port)])
    return told


def main(port):
    def after(line):
        end = time.monotonic() + 30
        while line.endswith(" up") and "@PORT@" in line and not has_link(port) and time.monotonic() < end:
            time.sleep(0.2)

    print(json.dumps(answers(run, port, after)))


if __name__ == "__main__":
    main(sys.argv[1])
