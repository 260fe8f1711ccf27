# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Each danger, refused and allowed."""

from __future__ import annotations

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import read
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import (
    DISK,
    EDU,
    ICE,
    MANAGEMENT,
    MLX4LX,
    MLX5,
    NSIM,
    NVME,
    PF1,
    PF2,
    at,
    call,
    lab,
    mount,
    refused,
    switches,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import DEVICES, Block, Net, Pci

PORT1, PORT2 = "enp129s0", "enp130s0"


def stands(sim, address, danger, *words, others=()):
    """Refused by this danger's name; done where that one is allowed, and by no other name."""
    text = refused(sim, address, f"allow: [{danger}]", *words, vfio=[at(address)])
    every = {"management", "link_flap", "in_use", "boot_disk", "console", "group", "foreign", "sealed_disk"}
    refused(sim, f"allow: [{danger}]", vfio=[at(address)], allow=tuple(every - {danger}))
    assert call(sim, vfio=[at(address)], allow=(danger, *others))["failures"] == {}
    assert sim.functions[address].driver == "vfio-pci"
    return text


# --- Network ---------------------------------------------------------------------------------------------------------


def test_an_address():
    sim = lab()
    sim.nets[PORT1] = Net(addresses=["192.0.2.1"])
    stands(sim, PF1, "management", PORT1, "the address 192.0.2.1")


def test_an_ipv6_address():
    sim = lab()
    sim.nets[PORT1] = Net(addresses=["2001:db8::1"])
    stands(sim, PF1, "management", "2001:db8::1")


def test_a_link_local_address_is_nobodys_way_in():
    sim = lab()
    sim.nets[PORT1] = Net(addresses=["fe80::2"])
    assert call(sim, vfio=[at(PF1)])["changed"]


def test_a_default_route():
    sim = lab()
    sim.nets[PORT1] = Net(default_route=True)
    stands(sim, PF1, "management", "the default route")


def test_an_ipv6_default_route():
    sim = lab()
    sim.nets[PORT1] = Net()
    zero = "0" * 32
    sim.files["/proc/net/ipv6_route"] = f"{zero} 00 {zero} 00 fe80{'0' * 27}1 00000400 1 0 00000003 {PORT1:>8}\n"
    stands(sim, PF1, "management", "the default route")


def test_the_path_to_the_controller_through_a_vlan_on_a_bridge():
    sim = lab()
    sim.nets.pop("ens3")
    sim.nets["br0"] = Net(kind="bridge", lowers=[PORT1])
    sim.nets["br0.5"] = Net(kind="vlan", lowers=["br0"], addresses=["10.0.2.15"])
    stands(sim, PF1, "management", PORT1, "the path to the controller", "br0.5")


def test_a_guests_tap_is_no_second_way_out_of_a_bridge():
    """The bridge of a hypervisor has one uplink and many taps with a carrier."""
    sim = lab()
    sim.nets["vnet0"] = Net(kind="tun")
    sim.nets["br0"] = Net(kind="bridge", lowers=[PORT1, "vnet0"], addresses=["192.0.2.1"])
    stands(sim, PF1, "management", "br0", others=("in_use",))


def test_one_leg_of_a_bond():
    sim = lab()
    sim.nets["bond0"] = Net(kind="bond", lowers=[PORT1, PORT2], addresses=["192.0.2.1"])
    sim.nets[PORT1] = sim.nets[PORT2] = Net()
    stands(sim, PF1, "link_flap", "one leg of bond0", "192.0.2.1")


@pytest.mark.parametrize("name", ["a-storage", "storage"])
def test_a_leg_of_a_bond_that_carries_an_address_of_its_own_too(name):
    """Whichever of the two comes first in sysfs."""
    sim = lab()
    sim.nets["bond0"] = Net(kind="bond", lowers=[PORT1, PORT2], addresses=["192.0.2.1"])
    sim.nets[PORT1] = sim.nets[PORT2] = Net()
    sim.nets[name] = Net(kind="macvlan", lowers=[PORT1], addresses=["198.51.100.7"])
    refused(sim, "one leg of bond0", "the address 192.0.2.1", "allow: [link_flap]", vfio=[at(PF1)], allow=("management",))
    refused(sim, "the address 198.51.100.7", "allow: [management]", vfio=[at(PF1)], allow=("link_flap",))
    assert call(sim, vfio=[at(PF1)], allow=("link_flap", "management"))["changed"]


def test_the_last_living_leg_of_a_bond():
    sim = lab()
    sim.nets["bond0"] = Net(kind="bond", lowers=[PORT1, PORT2], addresses=["192.0.2.1"])
    sim.nets[PORT1], sim.nets[PORT2] = Net(), Net(carrier=False)
    stands(sim, PF1, "management", "bond0", "192.0.2.1")


def test_both_legs_of_a_bond_in_one_call():
    sim = lab()
    sim.nets["bond0"] = Net(kind="bond", lowers=[PORT1, PORT2], addresses=["192.0.2.1"])
    sim.nets[PORT1] = sim.nets[PORT2] = Net()
    both = [{"match": {"driver": ["igb"]}}]
    refused(sim, "allow: [management]", vfio=both)
    refused(sim, "allow: [management]", vfio=both, allow=("link_flap",))


@pytest.mark.parametrize("wishes", [
    {"sriov": [at(PF1, up=False), at(PF2, up=False)]},
    {"sriov": [at(PF1, up=False)], "vfio": [at(PF2)]},
])
def test_both_legs_of_a_bond_by_different_ways(wishes):
    sim = lab()
    sim.nets["bond0"] = Net(kind="bond", lowers=[PORT1, PORT2], addresses=["192.0.2.1"])
    sim.nets[PORT1] = sim.nets[PORT2] = Net()
    refused(sim, PF1, PF2, "carries the address 192.0.2.1 through bond0", "allow: [management]", **wishes, allow=("link_flap",))
    one = {"sriov": wishes["sriov"][:1]}
    refused(sim, PF1, "one leg of bond0", "allow: [link_flap]", **one)
    assert call(sim, **one, allow=("link_flap",))["changed"]


@pytest.mark.parametrize("wish", [
    {"vf_count": 0},
    {"vf_count": 3},
    {"state": "absent"},
    {"up": False},
    {"vfs": [{"range": "0", "driver": "vfio-pci"}]},
    {"vfs": [{"range": "0", "mac": "auto"}]},
    {"vfs": [{"range": "0", "vlan": 7}]},
])
def test_a_bond_of_vfs_of_two_ports(wish):
    """The leg of the other port stays only where the same call does not take it as well."""
    sim = lab(vfio_loaded=True, igbvf_loaded=True)
    call(sim, sriov=[at(PF1, vf_count=2, up=True), at(PF2, vf_count=2, up=True)])
    legs = [sim.functions[sim.functions[pf].vfs[0]].ifname for pf in (PF1, PF2)]
    sim.nets.update({name: Net() for name in legs})
    sim.nets["bond0"] = Net(kind="bond", lowers=legs, addresses=["192.0.2.1"])
    sim._tree = None
    text = refused(sim, "allow: [management]", sriov=[at(PF1, **wish), at(PF2, **wish)], allow=("link_flap",))
    assert text.count("carries the address 192.0.2.1 through bond0") == 2
    assert "management" not in refused(sim, "one leg of bond0", "allow: [link_flap]", sriov=[at(PF1, **wish)])
    assert call(sim, sriov=[at(PF1, **wish)], allow=("link_flap",))["changed"]


def test_a_reload_of_both_legs_of_a_bond():
    """Each comes back as a new device, outside the bond."""
    sim = switches()
    legs = [sim.functions[pf].ifname for pf in (MLX5, MLX4LX)]
    sim.nets.update({name: Net() for name in legs})
    sim.nets["bond0"] = Net(kind="bond", lowers=legs, addresses=["192.0.2.1"])
    wish = {"devlink_params": [{"name": "enable_roce", "value": False, "cmode": "driverinit"}]}
    refused(sim, "allow: [management]", sriov=[at(MLX5, **wish), at(MLX4LX, **wish)], allow=("link_flap",))
    assert call(sim, sriov=[at(MLX5, **wish)], allow=("link_flap",))["changed"]


def test_a_port_that_is_down_may_go():
    sim = lab()
    sim.nets[PORT1] = Net(up=False)
    assert call(sim, vfio=[at(PF1)])["changed"]


def test_a_bridge_port_that_carries_guests_flaps_only_where_allowed():
    sim = lab()
    sim.nets[PORT1] = Net()
    sim.nets["br0"] = Net(kind="bridge", lowers=[PORT1])
    refused(sim, PORT1, "a leg of br0", "allow: [link_flap]", sriov=[at(PF1, vf_count=1)])
    assert call(sim, sriov=[at(PF1, vf_count=1)], allow=("link_flap",))["changed"]


def test_vfs_that_the_host_uses_itself():
    sim = lab(igbvf_loaded=True)
    call(sim, sriov=[at(PF1, vf_count=2)])
    sim.nets["enp129s0v1"] = Net(addresses=["192.0.2.9"])
    vf = sim.functions[PF1].vfs[1]
    for wish in (at(PF1, vf_count=3), at(PF1, state="absent"), at(PF1, vfs=[{"range": "1", "driver": "vfio-pci"}])):
        refused(sim, vf, "192.0.2.9", "allow: [management]", sriov=[wish])
    assert call(sim, sriov=[at(PF1, vfs=[{"range": "0", "driver": "vfio-pci"}])])["changed"]


@pytest.mark.parametrize("values", [{"vlan": 7}, {"link_state": "disable"}, {"vlan": 7, "qos": 3}])
def test_a_vf_that_the_host_lives_on_is_cut_off(values):
    sim = switches()
    call(sim, sriov=[at(ICE, vf_count=2)])
    vf = sim.functions[ICE].vfs[0]
    sim.nets[sim.functions[vf].ifname] = Net(addresses=["192.0.2.9"])
    sim._tree = None
    wish = at(ICE, vfs=[{"range": "0", **values}])
    refused(sim, vf, "192.0.2.9", "allow: [management]", sriov=[wish])
    harmless = at(ICE, vfs=[{"range": "0", "trust": True, "link_state": "enable"}, {"range": "1", **values}])
    assert call(sim, sriov=[harmless])["failures"] == {}
    assert call(sim, sriov=[wish], allow=("management",))["changed"]


@pytest.mark.parametrize("pf", [ICE, NSIM])
@pytest.mark.parametrize("wish", [{"vf_count": 0, "eswitch": {"mode": "switchdev"}}, {"vf_count": 2, "eswitch": {"mode": "legacy"}}])
def test_a_representor_that_the_host_lives_on(pf, wish):
    sim = switches()
    call(sim, sriov=[at(pf, vf_count=2, eswitch={"mode": "switchdev"})])
    name = read.read_state(sim.host(), read.Needs()).functions[pf].representors[1]
    sim.nets[name] = Net(addresses=["192.0.2.9"])
    sim._tree = None
    refused(sim, pf, f"its representor {name} carries the address 192.0.2.9", "allow: [management]", sriov=[at(pf, **wish)])
    assert call(sim, sriov=[at(pf, **wish)], allow=("management",))["changed"]


def test_a_representor_on_a_bridge():
    """Beside the port itself it is for the user of its VF; alone it is the uplink of who else is on the bridge."""
    sim = switches()
    call(sim, sriov=[at(ICE, vf_count=2, eswitch={"mode": "switchdev"})])
    name = read.read_state(sim.host(), read.Needs()).functions[ICE].representors[0]
    sim.nets.update({name: Net(), "vnet0": Net(kind="tun"), "enp177s0": Net()})
    sim.nets["br0"] = Net(kind="bridge", lowers=[name, "vnet0"])
    sim._tree = None
    wish = at(ICE, vf_count=1, eswitch={"mode": "switchdev"})
    refused(sim, ICE, "guests or containers behind br0 (vnet0)", "allow: [in_use]", sriov=[wish])
    sim.nets["br0"] = Net(kind="bridge", lowers=[name, "vnet0", "enp177s0"])
    sim._tree = None
    assert "in_use" not in refused(sim, ICE, "allow: [link_flap]", sriov=[wish])
    assert call(sim, sriov=[wish], allow=("link_flap",))["changed"]


def test_a_usb_network_card_below_a_usb_controller():
    sim = lab()
    sim.add_driver("xhci_hcd", "0c0330", builtin=True, net=True)
    sim.add(Pci("0000:00:14.0", "8086:a36d", "0c0330", below="usb1/1-1/1-1:1.0", ifname="enx0", mac="02:00:00:00:00:07"))
    sim.nets["enx0"] = Net(addresses=["192.0.2.4"])
    sim.reboot()
    stands(sim, "0000:00:14.0", "management", "enx0", "192.0.2.4")


def test_without_an_answer_of_ip_nothing_is_done():
    sim = lab()
    run = sim.run
    sim.run = lambda argv: (127, "", "ip: not found") if argv[0] == "ip" else run(argv)
    refused(sim, "ip -j -d addr show", "iproute2", vfio=[at(EDU)])
    sim.run = lambda argv: (0, "garbage", "") if argv[0] == "ip" else run(argv)
    refused(sim, "not JSON", vfio=[at(EDU)])


# --- Disks -----------------------------------------------------------------------------------------------------------


def test_a_mount():
    sim = lab()
    sim.files["/proc/self/mountinfo"] += mount("259:1", "/srv", "/dev/nvme0n1p1")
    stands(sim, NVME, "boot_disk", "mounted on /srv")


def test_a_mount_with_an_anonymous_number():
    sim = lab()
    sim.files["/proc/self/mountinfo"] += mount("0:42", "/srv", "/dev/nvme0n1p1", "btrfs")
    stands(sim, NVME, "boot_disk", "mounted on /srv")


def test_the_other_disk_of_a_mounted_btrfs():
    """mountinfo names one device of a file system that spans several."""
    sim = lab()
    sim.files["/proc/self/mountinfo"] += mount("0:42", "/srv", "/dev/vda", "btrfs")
    nvme = next(block for block in sim.blocks if block.name == "nvme0n1")
    sim.links["/sys/fs/btrfs/1d9f/devices/nvme0n1"] = nvme.path
    stands(sim, NVME, "boot_disk", "btrfs")


def test_swap():
    sim = lab()
    sim.files["/proc/swaps"] += "/dev/nvme0n1p1 partition 1 0 -2\n"
    stands(sim, NVME, "boot_disk", "swap")


def test_a_volume_over_lvm_over_raid_over_a_partition():
    sim = lab()
    virtual = "/sys/devices/virtual/block"
    sim.blocks += [
        Block("md0", "9:0", f"{virtual}/md0", slaves=["nvme0n1p1", "vda1"]),
        Block("dm-0", "253:0", f"{virtual}/dm-0", slaves=["md0"]),
        Block("dm-1", "253:1", f"{virtual}/dm-1", slaves=["dm-0"]),
    ]
    sim._tree = None
    sim.files["/proc/self/mountinfo"] += mount("253:1", "/guests", "/dev/mapper/vg-guests")
    refused(sim, NVME, "mounted on /guests", "part of md0", "allow: [boot_disk]", vfio=[at(NVME)])
    sim.files["/proc/self/mountinfo"] = ""
    stands(sim, NVME, "boot_disk", "part of md0")


def test_a_member_of_a_zfs_pool():
    """No holder, and the mount's source is the pool: only udev's database tells."""
    sim = lab()
    number = sim.attr("/sys/class/block/nvme0n1p1/dev")
    sim.files[f"/run/udev/data/b{number}"] = "S:disk/by-id/x\nE:ID_FS_TYPE=zfs_member\n"
    sim._tree = None
    # Labelled, and no pool is imported: nothing on the host uses it.
    assert call(sim, check=True, vfio=[at(NVME)])["changed"]
    sim.files["/proc/spl/kstat/zfs/tank/io"] = ""
    sim._tree = None
    stands(sim, NVME, "boot_disk", "part of a ZFS pool")


def test_a_namespace_with_native_multipath():
    """It hangs below a virtual subsystem; its controllers are links there (drivers/nvme/host/multipath.c)."""
    sim = lab()
    sim.blocks = [b for b in sim.blocks if not b.name.startswith("nvme")]
    path = "/sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1"
    sim.blocks.append(Block("nvme0n1", "259:0", path))
    sim.multipath["nvme-subsys0"] = [NVME]
    sim._tree = None
    sim.files["/proc/self/mountinfo"] += mount("259:0", "/srv", "/dev/nvme0n1")
    stands(sim, NVME, "boot_disk", "mounted on /srv")


def test_an_unused_disk_may_go():
    assert call(lab(), vfio=[at(NVME)])["changed"]


def test_the_disk_of_the_lab():
    stands(lab(), DISK, "boot_disk", "mounted on /")
    stands(lab(), MANAGEMENT, "management", "ens3")


# --- Console, group, users -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("boot_vga", [True, False])
def test_the_gpu_that_shows_the_console(boot_vga):
    sim = lab()
    sim.add_driver("amdgpu", "1002:73bf")
    sim.add(Pci("0000:0a:00.0", "1002:73bf", "030000", boot_vga=boot_vga))
    sim.reboot()
    if boot_vga:
        stands(sim, "0000:0a:00.0", "console", "boot_vga")
    else:
        assert call(sim, vfio=[at("0000:0a:00.0")])["changed"]


def test_a_group_that_the_host_uses_too():
    sim = lab()
    sim.shared_groups = {EDU: "a", PF2: "a", "0000:80:01.0": "a"}
    sim.reboot()
    stands(sim, EDU, "group", PF2, "driver igb")


CARD = "0000:00:0a.0"


def two_in_a_group():
    sim = lab(vfio_loaded=True)
    sim.add(Pci(CARD, "8086:10d3", "020000", ifname="eth9", mac="52:54:00:00:09:09"))
    sim.shared_groups = {EDU: "a", CARD: "a"}
    return sim.reboot()


def test_a_sibling_in_the_list_that_stays_with_the_host():
    sim = two_in_a_group()
    refused(sim, EDU, CARD, "driver e1000e", "allow: [group]", vfio=[at(EDU), at(CARD, driver="e1000e")])
    assert call(sim, vfio=[at(EDU), at(CARD)])["failures"] == {}


def test_a_sibling_of_a_guests_device_goes_back_to_the_host():
    sim = two_in_a_group()
    call(sim, vfio=[at(EDU), at(CARD)])
    words = (CARD, EDU, "which is for a guest (driver vfio-pci)", "allow: [group]")
    refused(sim, *words, vfio=[at(CARD, state="absent")])
    refused(sim, *words, vfio=[at(CARD, driver="e1000e")])
    assert call(sim, check=True, vfio=[at(CARD, state="absent")], allow=("group",))["changed"]
    # A device that no driver of the host takes does no harm, and both together leave nobody behind.
    assert call(sim, check=True, vfio=[at(EDU, state="absent")])["changed"]
    call(sim, vfio=[at(CARD, state="absent"), at(EDU, state="absent")])
    assert sim.functions[CARD].driver == "e1000e"


def test_bridges_and_idle_functions_do_no_harm_in_a_group():
    sim = lab()
    sim.add_driver("switchtec", "1b36:000c", builtin=True)
    sim.known_drivers.pop("pcieport")
    sim.builtin.discard("pcieport")
    sim.shared_groups = {EDU: "a", PF2: "a", "0000:80:01.0": "a"}
    sim.reboot()
    sim.write(f"{DEVICES}/{PF2}/driver/unbind", PF2)
    assert call(sim, vfio=[at(EDU)])["changed"]


def test_a_guest():
    sim = lab()
    call(sim, vfio=[at(NVME)])
    sim.pids[99] = ("qemu-kvm", ["socket:[1]", f"/dev/vfio/{sim.functions[NVME].group}", "/dev/vfio/vfio"])
    sim._tree = None
    refused(sim, NVME, "process 99 (qemu-kvm)", "allow: [in_use]", vfio=[at(NVME, state="absent")])
    assert call(sim, vfio=[at(NVME, state="absent")], allow=("in_use",))["changed"]


def test_files_of_the_same_name_elsewhere_are_no_guests():
    sim = lab()
    call(sim, vfio=[at(NVME)])
    sim.pids[99] = ("tail", [f"/srv/{sim.functions[NVME].group}"])
    sim._tree = None
    assert call(sim, vfio=[at(NVME, state="absent")])["changed"]


def test_a_port_below_open_vswitch():
    """The bridge with the address hangs on the datapath inside the switch; sysfs shows no link between them."""
    sim = lab()
    sim.nets["ovs-system"] = Net(kind="openvswitch", lowers=[PORT1], up=False)
    sim.nets["br-ex"] = Net(kind="openvswitch", addresses=["192.0.2.7"], default_route=True)
    stands(sim, PF1, "management", "br-ex")


def test_the_controller_came_in_by_a_link_local_address():
    sim = lab()
    sim.nets[PORT1] = Net(addresses=["fe80::2"])
    ssh = {"SSH_CONNECTION": "fe80::1%eth0 50000 fe80::2%ens9 22"}
    refused(sim, PF1, "the path to the controller", "allow: [management]", vfio=[at(PF1)], environment=ssh)


def test_an_address_behind_a_veth_pair():
    """The port's bridge is joined by a veth pair to another bridge, which has the address."""
    sim = lab()
    sim.nets[PORT1] = Net()
    sim.nets["br0"] = Net(kind="bridge", lowers=[PORT1, "veth0"])
    sim.nets["veth0"], sim.nets["veth1"] = Net(kind="veth", peer="veth1"), Net(kind="veth", peer="veth0")
    sim.nets["br1"] = Net(kind="bridge", lowers=["veth1"], addresses=["192.0.2.9"])
    stands(sim, PF1, "management", "192.0.2.9", "through br1")


def test_an_address_on_a_macvlan_of_a_vlan():
    sim = lab()
    sim.nets[PORT1] = Net()
    sim.nets["vlan5"] = Net(kind="vlan", lowers=[PORT1])
    sim.nets["mv0"] = Net(kind="macvlan", lowers=["vlan5"], addresses=["192.0.2.9"])
    stands(sim, PF1, "management", "192.0.2.9", "through mv0")


def test_a_default_route_on_a_bridge_over_a_bond_over_vlans():
    """Both legs have a link, so one of them may go for a moment; the last one may not."""
    sim = lab()
    sim.nets[PORT1] = sim.nets[PORT2] = Net()
    sim.nets["v1"], sim.nets["v2"] = Net(kind="vlan", lowers=[PORT1]), Net(kind="vlan", lowers=[PORT2])
    sim.nets["bond0"] = Net(kind="bond", lowers=["v1", "v2"])
    sim.nets["br0"] = Net(kind="bridge", lowers=["bond0"], default_route=True)
    refused(sim, PF1, "one leg of br0, which carries the default route", "allow: [link_flap]", vfio=[at(PF1)])
    sim.nets["v2"] = Net(kind="vlan", lowers=[PORT2], carrier=False)
    stands(sim, PF1, "management", "the default route through br0")
