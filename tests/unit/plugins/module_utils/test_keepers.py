# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Other programs that rule a device. The files are written by hand after each program's documentation."""

from __future__ import annotations

import json

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import guards, keepers, read
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import (
    EDU,
    PF1,
    PF2,
    at,
    call,
    lab,
    quiet,
    refused,
)

PORT1, PORT2, MAC1 = "enp129s0", "enp130s0", "52:54:00:00:01:00"
VFS = {"vf_count": 2}


def host(**files):
    """The lab host with files: names are paths."""
    sim = lab()
    for path, text in files.items():
        sim.files[path] = text
    sim._tree = None
    return sim


def rules(sim, address=PF1):
    """What others rule of a port, as 'keeper: rule'."""
    state = read.read_state(sim.host(), read.Needs())
    return sorted(f"{k.name}: {rule}" for k in keepers.read(sim, state).get(address, ()) for rule in k.rules)


def foreign(sim, keeper, *words):
    """A count is refused, on this port alone, in check mode too; allowed by its name it is done, and then all is quiet."""
    refused(sim, PF1, f"{keeper} rules its number of VFs", "allow: [foreign]", *words, sriov=[at(PF1, **VFS)])
    assert call(sim, check=True, sriov=[at(PF2, **VFS)])["changed"]
    assert call(sim, sriov=[at(PF1, **VFS)], allow=("foreign",))["changed"]
    # What is as wished takes nothing from anybody: not asked again.
    quiet(sim, sriov=[at(PF1, **VFS)])


# --- NetworkManager --------------------------------------------------------------------------------------------------

NM = "/etc/NetworkManager/system-connections/uplink.nmconnection"


def profile(sriov="[sriov]\ntotal-vfs=4\n", **more):
    lines = "".join(f"\n[{section}]\n" + "".join(f"{k}={v}\n" for k, v in keys.items()) for section, keys in more.items())
    return f"# by hand\n[connection]\nid=Uplink\ntype=ethernet\n{lines}\n{sriov}"


MATCHING = {
    "by name": {"connection": {"interface-name": PORT1}},
    "by MAC address": {"ethernet": {"mac-address": MAC1.upper()}},
    "by pattern": {"match": {"interface-name": "enp129*;eno1;"}},
    "by driver and path": {"match": {"driver": "igb", "path": f"pci-{PF1}"}},
}
NOT_MATCHING = {
    "by name": {"connection": {"interface-name": "eno9"}},
    "by MAC address": {"ethernet": {"mac-address": "52:54:00:00:0f:0f"}},
    "by pattern": {"match": {"interface-name": "!enp129*"}},
    "by path": {"match": {"path": f"pci-{PF2}"}},
}


@pytest.mark.parametrize("how", MATCHING)
def test_a_profile_of_networkmanager(how):
    sim = host(**{NM: profile(**MATCHING[how])})
    if how == "by driver and path":
        assert rules(sim, PF2) == []
    foreign(sim, "NetworkManager", f"the profile Uplink ({NM}) has a section [sriov]")


@pytest.mark.parametrize("how", NOT_MATCHING)
def test_a_profile_for_another_port(how):
    assert rules(host(**{NM: profile(**NOT_MATCHING[how])})) == []


def test_a_profile_for_no_port_in_particular_is_for_each():
    sim = host(**{NM: profile()})
    assert rules(sim, PF1) == rules(sim, PF2) == ["NetworkManager: vf_attributes", "NetworkManager: vf_count"]


def test_a_profile_that_says_nothing_of_vfs():
    assert rules(host(**{NM: profile(sriov="", connection={"interface-name": PORT1})})) == []


def test_a_profile_of_this_boot_with_an_eswitch():
    path = "/run/NetworkManager/system-connections/x.nmconnection"
    sim = host(**{path: profile(sriov="[sriov]\neswitch-mode=1\n")})
    assert "NetworkManager: eswitch" in rules(sim)
    state = read.read_state(sim.host(), read.Needs())
    state = type(state)(**{**vars(state), "keepers": keepers.read(sim, state)})
    assert "NetworkManager rules its eswitch" in guards.before_eswitch(state, state.functions[PF1])[0].reason
    assert "rules what its VFs are set to" in guards.before_attributes(state, state.functions[PF1], {})[0].reason


# --- systemd .link ---------------------------------------------------------------------------------------------------

LINK = "/etc/systemd/network/10-sriov.link"
COUNT = "[Link]\nSR-IOVVirtualFunctions=2\n"


@pytest.mark.parametrize("match", [
    f"MACAddress={MAC1.replace(':', '-').upper()}", f"PermanentMACAddress=00:00:00:00:00:01 {MAC1}", f"Path=pci-{PF1}", "Path=pci-0000:81:*",
    "Driver=igb\nPath=!pci-0000:82:00.0", "OriginalName=*\nPath=pci-0000:81*", f"Path=pci-{PF1}\nOriginalName=eth7",
    f"Path=pci-{PF1}\nProperty=ID_SERIAL=abc",
])  # fmt: skip
def test_a_link_file_of_systemd(match):
    foreign(host(**{LINK: f"[Match]\n{match}\n\n{COUNT}"}), "systemd (.link)", f"{LINK} sets SR-IOV for {PORT1}")


@pytest.mark.parametrize("match", ["MACAddress=52:54:00:00:0f:0f", f"Path=pci-{PF2}", "Driver=ixgbe", "Driver=!igb", "Kind=bond", "Type=wlan"])
def test_a_link_file_for_another_port(match):
    assert rules(host(**{LINK: f"[Match]\n{match}\n{COUNT}"})) == []


def test_a_link_file_that_sets_vfs_only():
    sim = host(**{LINK: f"[Match]\nPath=pci-{PF1}\n[SR-IOV]\nVirtualFunction=0\nVLANId=5\n"})
    assert rules(sim) == ["systemd (.link): vf_attributes"]
    assert call(sim, sriov=[at(PF1, **VFS)])["changed"]


def test_the_first_link_file_that_matches_counts():
    """systemd.link(5): what comes first in the order of names, also the distribution's own."""
    mine = f"[Match]\nPath=pci-{PF1}\n{COUNT}"
    plain = "[Match]\nOriginalName=*\n[Link]\nNamePolicy=keep kernel\n"
    assert rules(host(**{"/usr/lib/systemd/network/05-x.link": plain, LINK: mine})) == []
    assert rules(host(**{"/usr/lib/systemd/network/99-default.link": plain, LINK: mine})) == ["systemd (.link): vf_count"]
    # One that only udev can judge is taken to match where it sets SR-IOV, and not to match where it does not.
    unknown = "[Match]\nHost=other\n[Link]\nMTUBytes=1500\n"
    assert rules(host(**{"/usr/lib/systemd/network/05-x.link": unknown, LINK: mine})) == ["systemd (.link): vf_count"]


def test_a_link_file_that_is_masked_or_extended():
    mine = {"/usr/lib/systemd/network/10-sriov.link": f"[Match]\nPath=pci-{PF1}\n{COUNT}"}
    assert rules(host(**mine, **{LINK: ""})) == []
    plain = {LINK: f"[Match]\nPath=pci-{PF1}\n[Link]\nMTUBytes=9000\n", "/run/systemd/network/10-sriov.link.d/vfs.conf": COUNT}
    assert rules(host(**plain)) == ["systemd (.link): vf_count"]


# --- netplan ---------------------------------------------------------------------------------------------------------

NETPLAN = "/etc/netplan/50-cloud-init.yaml"


def plan_yaml(port, *lines):
    return f"# comment: with colon\nnetwork:\n  version: 2\n  ethernets:\n    {port}:\n" + "".join(f"      {line}\n" for line in lines)


@pytest.mark.parametrize("text", [
    plan_yaml(PORT1, "dhcp4: true", "virtual-function-count: 4   # four"),
    plan_yaml("uplink", "match:", "  macaddress: '52:54:00:00:01:00'", "virtual-function-count: 4"),
    plan_yaml("uplink", "match:", "  name: enp129*", "  driver: igb", "set-name: uplink", "virtual-function-count: 4"),
    plan_yaml(f'"{PORT1}"', "addresses:", "  - 192.0.2.1/24:", "virtual-function-count: 4"),
    plan_yaml("vf0", f"link: {PORT1}"),
    f"network: {{ethernets: {{{PORT1}: {{virtual-function-count: 4}}}}}}\n",
    f"network:\n  ethernets: {{ {PORT1}: {{ virtual-function-count: 4 }} }}\n",
])  # fmt: skip
def test_a_count_of_netplan(text):
    foreign(host(**{NETPLAN: text}), "netplan", f"{NETPLAN} sets SR-IOV for it")


@pytest.mark.parametrize("text", [
    plan_yaml(PORT1, "dhcp4: true"),
    plan_yaml(PORT2, "virtual-function-count: 4"),
    plan_yaml("uplink", "match: ", "  macaddress: 52:54:00:00:0f:0f", "virtual-function-count: 4"),
    plan_yaml("vf0", f"link: {PORT2}"),
    f"network:\n  vlans:\n    vlan5:\n      id: 5\n      link: {PORT1}\n",
    f"network: {{ethernets: {{{PORT2}: {{virtual-function-count: 4}}}}}}\n",
    "network:\n  renderer: networkd\n",
])  # fmt: skip
def test_netplan_says_nothing_of_this_port(text):
    assert rules(host(**{NETPLAN: text})) == []


def test_an_eswitch_of_netplan():
    assert rules(host(**{NETPLAN: plan_yaml(PORT1, "embedded-switch-mode: switchdev")})) == ["netplan: eswitch"]


# --- Others ----------------------------------------------------------------------------------------------------------


def test_driverctl():
    sim = host(**{f"/etc/driverctl.d/pci-{EDU}": "uio_pci_generic\n"})
    refused(sim, EDU, "driverctl rules its driver", f"/etc/driverctl.d/pci-{EDU} sets uio_pci_generic", "allow: [foreign]", vfio=[at(EDU)])
    assert call(sim, check=True, vfio=[at(PF1)])["changed"]
    assert call(sim, vfio=[at(EDU)], allow=("foreign",))["changed"]


@pytest.mark.parametrize("there", [0, 1, 2])
def test_driverctl_of_a_vf(there):
    """Also of one that the same call makes, or makes anew."""
    sim = host(**{"/etc/driverctl.d/pci-0000:82:10.0": "igbvf\n"})
    if there:
        call(sim, sriov=[at(PF1, vf_count=there)])
    wish = at(PF1, vf_count=2, vfs=[{"range": "0", "driver": "vfio-pci"}])
    refused(sim, "0000:82:10.0: driverctl rules its driver", "allow: [foreign]", sriov=[wish])
    assert call(sim, check=True, sriov=[at(PF1, vf_count=2, vfs=[{"range": "1", "driver": "vfio-pci"}])])["changed"]
    assert call(sim, sriov=[wish], allow=("foreign",))["failures"] == {}


def test_driverctl_of_a_pf_says_nothing_of_its_vfs():
    assert call(host(**{f"/etc/driverctl.d/pci-{PF1}": "igb\n"}), sriov=[at(PF1, **VFS)])["changed"]


POOL = "/etc/libvirt/qemu/networks/pool.xml"


def pool(inside):
    return f"<network><name>pool</name><forward mode='hostdev' managed='yes'>{inside}</forward></network>"


@pytest.mark.parametrize("by", ["name", "address"])
def test_a_network_of_libvirt_that_hands_out_vfs(by):
    """Making VFs for it is the work of this collection; taking those away that it hands out is not."""
    sim = lab(igbvf_loaded=True)
    vf = "0000:82:10.0"
    slot = "<address type='pci' domain='0x0000' bus='0x82' slot='0x10' function='0x0'/>"
    sim.files[POOL] = pool(f"<pf dev='{PORT1}'/>" if by == "name" else slot)
    sim._tree = None
    assert call(sim, sriov=[at(PF1, vf_count=2)])["changed"]
    assert sim.functions[PF1].vfs[0] == vf
    wish = at(PF1, vfs=[{"range": "0", "driver": "vfio-pci"}])
    refused(sim, vf, f"libvirt rules it as one of the VFs of {PF1}: its network pool hands them out", sriov=[wish])
    refused(sim, PF1, "libvirt rules its VFs", "allow: [foreign]", sriov=[at(PF1, vf_count=0)])
    assert call(sim, sriov=[at(PF1, vf_count=0)], allow=("foreign",))["changed"]


@pytest.mark.parametrize("text", [pool(f"<pf dev='{PORT2}'/>"), pool(f"<pf dev='{PORT1}'/>").replace("hostdev", "nat"), "<network/>"])
def test_other_networks_of_libvirt(text):
    assert rules(host(**{POOL: text})) == []


def test_the_network_operator():
    path = f"/etc/sriov-operator/pci/{PF1}"
    foreign(host(**{path: json.dumps({"pciAddress": PF1, "numVfs": 4})}), "the SR-IOV network operator", path)
    assert "the SR-IOV network operator: vf_count" in rules(host(**{path: "half a fi"}))
    external = rules(host(**{path: json.dumps({"numVfs": 4, "externallyManaged": True})}))
    assert external and not [rule for rule in external if rule.endswith("vf_count")]


@pytest.mark.parametrize("born", [True, False])
@pytest.mark.parametrize("external", [True, False])
def test_the_network_operator_and_the_drivers_of_vfs(born, external):
    """It binds the VFs of its ports as its policies say (deviceType)."""
    sim = lab(vfio_loaded=True, igbvf_loaded=True)
    if not born:
        call(sim, sriov=[at(PF1, vf_count=2)])
    sim.files[f"/etc/sriov-operator/pci/{PF1}"] = json.dumps({"numVfs": 2, "externallyManaged": external})
    sim._tree = None
    wish = at(PF1, vf_count=2, vfs=[{"range": "0", "driver": "vfio-pci"}])
    word = "its number of VFs" if born and not external else f"as one of the VFs of {PF1}"
    refused(sim, "the SR-IOV network operator rules", word, "allow: [foreign]", sriov=[wish])
    assert call(sim, sriov=[wish], allow=("foreign",))["failures"] == {}


def test_os_net_config():
    path = "/var/lib/os-net-config/sriov_config.yaml"
    foreign(host(**{path: f"- device_type: pf\n  name: {PORT1}\n  numvfs: 4\n"}), "os-net-config", path)
    assert rules(host(**{path: f"- device_type: pf\n  name: {PORT2}\n- device_type: vf\n  name: {PORT1}_0\n"})) == []


def test_a_file_that_is_no_text_rules_nothing():
    sim = host(**{NM: profile(), LINK: COUNT})
    sim.unreadable = {NM, LINK}
    assert rules(sim) == []


def test_what_was_allowed_is_kept_for_the_replay():
    sim = host(**{NM: profile()})
    call(sim, sriov=[at(PF1, **VFS)], allow=("foreign",))
    assert json.loads(sim.files["/etc/iovirt/sriov.json"])["devices"][PF1]["allow"] == ["foreign"]
