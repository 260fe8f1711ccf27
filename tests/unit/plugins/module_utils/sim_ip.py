# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the simulated kernel knows of VFs' attributes, and iproute2's way in and out: `ip -j -d link` and `ip -batch`.

Answers of igb are those of the lab (Linux 6.12, iproute2 6.15); where another source is meant, it is named. A VF is born
without attributes, which live with it: a new VF has none (lab).
"""

from __future__ import annotations

import errno
import fnmatch
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ansible_collections.iovirt.host.tests.unit.plugins.module_utils import sim_vmdq

if TYPE_CHECKING:
    from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import Net, Pci, SimKernel

NO_MAC = "00:00:00:00:00:00"

#: PF driver -> word of `ip` -> what the kernel answers. A driver without the callback: EOPNOTSUPP.
REFUSED = {
    "igb": {
        "state": errno.EOPNOTSUPP,
        "query_rss": errno.EOPNOTSUPP,
        "node_guid": errno.EOPNOTSUPP,
        "port_guid": errno.EOPNOTSUPP,
    },
}
#: What an InfiniBand port takes, whatever its driver (ipoib_netdev_ops_pf in ulp/ipoib/ipoib_main.c, 6.12).
OF_INFINIBAND = {"state", "node_guid", "port_guid"}
NO_GUID = ":".join(["00"] * 8)
#: PF drivers whose rates need the link (lab; igb_ndo_set_vf_bw: E1000_STATUS_LU).
RATE_NEEDS_LINK = {"igb"}
#: Under these a new VF has the spoof check on.
SPOOF_CHECKED = {"igb", "ixgbe", "i40e", "ice"}


def is_infiniband(function: Pci) -> bool:
    return function.class_code.startswith("0207")


def address(sim: SimKernel, function: Pci) -> str:
    """The link-layer address of a network device. That of IPoIB has 20 bytes (RFC 4391, 9.1.1): flags, the number of a queue pair, which the
    driver gets anew each time that it is loaded (ipoib_transport_dev_init), the subnet's prefix and the port's GUID."""
    return f"00:00:{sim.boots % 256:02x}:49:fe:80:00:00:00:00:00:00:{function.mac}" if is_infiniband(function) else function.mac


def born(driver: str | None, infiniband: bool = False) -> dict[str, Any]:
    """What a new VF has (lab: igb has the spoof check on; mlx5 has it off, mlx5_eswitch in mlx5/core/eswitch.c). Of InfiniBand: no GUID was
    set, and all else is zero (mlx5_ib_get_vf_guid and mlx5_ib_get_vf_config in hw/mlx5/ib_virt.c)."""
    return {
        "mac": NO_MAC,
        "by_pf": False,
        "vlan": 0,
        "qos": 0,
        "proto": "802.1Q",
        "min_tx_rate": 0,
        "max_tx_rate": 0,
        "spoofchk": driver in SPOOF_CHECKED,
        "state": "auto",
        "trust": False,
        "query_rss": None if "query_rss" in REFUSED.get(driver or "", {}) else False,
        **({"node_guid": NO_GUID, "port_guid": NO_GUID} if infiniband else {}),
    }


def probed(sim: SimKernel, vf: Pci) -> None:
    """A network driver took a VF: it has the MAC that the PF knows, whoever that is from, else one of its own, which the
    PF gets to know (lab; e1000_reset_hw_vf in igbvf/vf.c)."""
    if is_infiniband(vf):
        # It asks for the GUIDs when it probes.
        vf.mac = vf.attributes["port_guid"]
        return
    vf.made_up_mac = vf.attributes["mac"] == NO_MAC
    if vf.made_up_mac:
        vf.attributes["mac"] = sim._random_mac()
    vf.mac = vf.attributes["mac"]


def function_reset(vf: Pci) -> None:
    """The PF forgets a MAC that was not its own with the VF's reset, and not when the VF's driver lets go (lab;
    igb_vf_reset_event in igb_main.c)."""
    if not vf.attributes["by_pf"]:
        vf.attributes["mac"] = NO_MAC


def vfinfo(sim: SimKernel, pf: Pci) -> list[dict[str, Any]]:
    """As many as the attribute's length says: it has 16 bits, and nla_nest_end cuts it (include/net/netlink.h)."""
    each = 236 if is_infiniband(pf) else 196
    size = (4 + each * len(pf.vfs)) % 65536
    return _all(sim, pf)[: max(size - 4, 0) // each]


def _all(sim: SimKernel, pf: Pci) -> list[dict[str, Any]]:
    return [_vfinfo(index, sim.functions[address].attributes) for index, address in enumerate(pf.vfs)]


def _vfinfo(index: int, known: dict[str, Any]) -> dict[str, Any]:
    """As print_vfinfo of iproute2 6.1 and 6.15 does: zeros of a VLAN are left out, and so is what the driver does not know."""
    vlan = {key: known[key] for key in ("vlan", "qos") if known[key]}
    if known["proto"] != "802.1Q":
        vlan["protocol"] = known["proto"]
    shown = {
        "vf": index,
        "link_type": "ether",
        "address": known["mac"],
        "broadcast": "ff:ff:ff:ff:ff:ff",
        "vlan_list": [vlan],
        "rate": {"max_tx": known["max_tx_rate"], "min_tx": known["min_tx_rate"]},
        "spoofchk": known["spoofchk"],
        "link_state": known["state"],
        "trust": known["trust"],
    }
    if known["query_rss"] is not None:
        shown["query_rss_en"] = known["query_rss"]
    if "node_guid" in known:
        zeros = {"link_type": "infiniband", "address": ":".join(["00"] * 20), "broadcast": ":".join(["00"] * 20)}
        shown.update(zeros, **{"node guid": known["node_guid"], "port guid": known["port_guid"]})
    return shown


def batch(sim: SimKernel, text: str) -> tuple[int, str, str]:
    """`ip -force -batch -`: each line for itself, with a failure said on two lines. A word that ip does not take ends it
    (lab: status 255, nothing of the lines after)."""
    said = []
    for number, line in enumerate(text.splitlines(), 1):
        answer = line_of(sim, line)
        if answer.startswith('Error: argument "'):
            return 255, "", "\n".join([*said, answer, ""]) + "\n"
        if answer:
            said += [answer, f"Command failed -:{number}"]
    return (1 if said else 0), "", "".join(f"{line}\n" for line in said)


def line_of(sim: SimKernel, line: str) -> str:
    """Do one line; what ip says when it fails."""
    for pattern, code in sim.ip_faults:
        if fnmatch.fnmatchcase(line, pattern):
            return _answers(code)
    words = line.split()
    sim._tree = None
    answer = sim_vmdq.line(sim, words)
    if answer is not None:
        return answer
    assert words[:3] == ["link", "set", "dev"], line
    here = sim.netdevs().get(words[3])
    if here is None:
        return f'Cannot find device "{words[3]}"'
    function, net = here
    sim._tree = None
    if words[4] == "vf":
        return _of_vf(sim, function, int(words[5]), dict(zip(words[6::2], words[7::2])))
    return _of_netdev(sim, words[3], net, words[4:])


def _answers(code: int) -> str:
    return f"RTNETLINK answers: {os.strerror(code)}" if code else ""


def _of_netdev(sim: SimKernel, name: str, net: Net, words: list[str]) -> str:
    net = sim.nets.setdefault(name, net)
    if words[0] in ("up", "down"):
        net.up = words[0] == "up"
        net.carrier = net.up and name not in sim.uncabled
    elif words[0] == "mtu":
        if int(words[1]) > 9216:
            return "Error: mtu greater than device maximum."
        net.mtu = int(words[1])
    else:
        net.promisc = words[1] == "on"
    return ""


def _of_vf(sim: SimKernel, pf: Pci | None, index: int, values: dict[str, str]) -> str:
    if int(values.get("vlan", 0)) > 4095:
        return f'Error: argument "{values["vlan"]}" is wrong: Invalid "vlan" value'
    driver = pf.driver if pf else None
    refused = next((code for word, code in REFUSED.get(driver or "", {}).items() if word in values), 0)
    guids = {"node_guid", "port_guid"} & set(values)
    if pf is not None and (bool(guids) if not is_infiniband(pf) else set(values) - OF_INFINIBAND):
        # handle_infiniband_guid asks for an InfiniBand port; that has no other callbacks (do_setvfinfo in net/core/rtnetlink.c).
        refused = errno.EOPNOTSUPP
    if refused or pf is None:
        return _answers(refused or errno.EOPNOTSUPP)
    if index >= len(pf.vfs):
        return _answers(errno.EINVAL)
    known = sim.functions[pf.vfs[index]].attributes
    check: Callable[..., int] = _rates if "max_tx_rate" in values else _others
    code = check(sim, pf, values)
    if code:
        return _answers(code)
    if "vlan" in values:
        # One message: what is not in it is zero (do_setvfinfo).
        known.update(qos=0, proto="802.1Q")
    if "mac" in values:
        # All zero takes the MAC of the PF's back (igb_ndo_set_vf_mac).
        known["by_pf"] = values["mac"] != NO_MAC
    for word, value in values.items():
        known[word] = _value(known[word], value)
    return ""


def _value(old: Any, value: str) -> Any:
    if isinstance(old, bool) or value in ("on", "off"):
        return value == "on"
    return int(value) if isinstance(old, int) else value


def _rates(sim: SimKernel, pf: Pci, values: dict[str, str]) -> int:
    """igb_ndo_set_vf_bw(): no minimum, not without a link, not above its speed (lab)."""
    if pf.driver not in RATE_NEEDS_LINK:
        return 0
    net = sim.nets.get(pf.ifname)
    linked = net is not None and net.up and net.carrier
    return 0 if linked and values["min_tx_rate"] == "0" and int(values["max_tx_rate"]) <= 1000 else errno.EINVAL


def _others(sim: SimKernel, pf: Pci, values: dict[str, str]) -> int:
    if "mac" in values and int(values["mac"][:2], 16) & 1:
        return errno.EINVAL
    if int(values.get("qos", 0)) > 7:
        # igb_ndo_set_vf_vlan and its like.
        return errno.EINVAL
    if values.get("proto", "802.1Q") != "802.1Q" and pf.driver == "igb":
        return errno.EPROTONOSUPPORT
    return 0
