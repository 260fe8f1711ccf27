# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Everybody who may use a device: the dangerous thing is tried, refused, and done where it is allowed by its name."""

from __future__ import annotations

import pytest
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import (
    EDU,
    ICE,
    MLX5,
    NVME,
    PF1,
    PF2,
    at,
    call,
    drivers_of,
    lab,
    quiet,
    refused,
    switches,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import DEVICES, Net, Pci
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim_spaces import Space

PORT1, PORT2 = "enp129s0", "enp130s0"


def in_use(sim, address, *words, wish=None):
    """Refused as in use with these words; done where that is allowed."""
    wish = wish or {"vfio": [at(address)]}
    text = refused(sim, address, "it is in use by", "allow: [in_use]", *words, **wish)
    assert call(sim, allow=("in_use",), **wish)["changed"]
    return text


def holding(sim, *files, name="qemu-system-x86", pid=4242):
    """A process with these files open, among others."""
    sim.pids[pid] = (name, ["socket:[1]", "/dev/null", *files])
    sim._tree = None


def with_a_guest(sim, pf):
    """Two VFs of a port on vfio-pci, with a guest that has the first of them."""
    call(sim, sriov=[at(pf, vf_count=2, up=True, vf_defaults={"driver": "vfio-pci"})])
    vf = sim.functions[pf].vfs[0]
    holding(sim, f"/dev/vfio/{sim.functions[vf].group}")
    return vf


def test_a_port_goes_down_under_a_guest_that_has_a_vf():
    sim = lab(vfio_loaded=True)
    vf = with_a_guest(sim, PF1)
    in_use(sim, vf, "process 4242 (qemu-system-x86)", wish={"sriov": [at(PF1, up=False)]})


def test_a_link_of_a_vf_is_cut_under_a_guest():
    """Its MAC and VLAN are the holder's, its link state is not."""
    sim = switches()
    vf = with_a_guest(sim, ICE)
    quiet_one = at(ICE, vfs=[{"range": "0", "link_state": "enable", "trust": True}])
    assert call(sim, check=True, sriov=[quiet_one])["changed"]
    assert call(sim, check=True, sriov=[at(ICE, vfs=[{"range": "1", "link_state": "disable"}])])["changed"]
    in_use(sim, vf, "process 4242 (qemu-system-x86)", wish={"sriov": [at(ICE, vfs=[{"range": "0", "link_state": "disable"}])]})


# --- Processes -------------------------------------------------------------------------------------------------------


def test_a_guest_by_iommufd():
    """It holds the device's own file open, not the group's; the group is its own all the same."""
    sim = lab()
    call(sim, vfio=[at(NVME)])
    holding(sim, "/dev/vfio/devices/vfio91", "/dev/iommu")
    in_use(sim, NVME, "process 4242 (qemu-system-x86)", "IOMMU group", wish={"vfio": [at(NVME, state="absent")]})


def test_a_sibling_of_a_guests_device():
    sim = lab()
    sim.shared_groups = {EDU: "a", NVME: "a"}
    sim.reboot()
    call(sim, vfio=[at(EDU), at(NVME)])
    holding(sim, f"/dev/vfio/{sim.functions[EDU].group}")
    refused(sim, NVME, "process 4242", vfio=[at(NVME, state="absent")], allow=("group",))


def test_a_vf_of_a_guest_when_the_count_changes():
    sim = lab(vfio_loaded=True)
    call(sim, sriov=[at(PF1, vf_count=2, vfs=[{"range": "0-1", "driver": "vfio-pci"}])])
    first, second = sim.functions[PF1].vfs
    holding(sim, f"/dev/vfio/{sim.functions[second].group}")
    for wish in (at(PF1, vf_count=0), at(PF1, vf_count=7), at(PF1, state="absent")):
        text = refused(sim, second, "process 4242 (qemu-system-x86)", sriov=[wish])
        assert first not in text
    # Nothing is taken from it by a run that finds all in place, nor by one on another port.
    quiet(sim, sriov=[at(PF1, vf_count=2, vfs=[{"range": "0-1", "driver": "vfio-pci"}])])
    assert call(sim, sriov=[at(PF2, vf_count=1)])["changed"]
    assert call(sim, sriov=[at(PF1, vf_count=0)], allow=("in_use",))["changed"]


def test_a_dpdk_process():
    sim = lab()
    sim.add_driver("uio_pci_generic")
    sim.registered.add("uio_pci_generic")
    sim._tree = None
    call(sim, vfio=[at(EDU, driver="uio_pci_generic")])
    sim.files[f"{sim.functions[EDU].path}/uio/uio0/name"] = "uio_pci_generic\n"
    holding(sim, "/dev/uio0", name="dpdk-testpmd")
    in_use(sim, EDU, "process 4242 (dpdk-testpmd) (/dev/uio0 is held open)", wish={"vfio": [at(EDU)]})


@pytest.mark.parametrize("below_the_port", [True, False])
def test_an_rdma_process(below_the_port):
    """A card's RDMA device hangs below its function; that of rxe names its port (lab)."""
    sim = lab()
    sim.files["/sys/class/infiniband_verbs/uverbs0/ibdev"] = "mlx5_0\n"
    if below_the_port:
        sim.links["/sys/class/infiniband/mlx5_0"] = f"{sim.functions[PF1].path}/infiniband/mlx5_0"
    else:
        sim.files["/sys/class/infiniband/mlx5_0/parent"] = f"{PORT1}\n"
    holding(sim, "/dev/infiniband/uverbs0", name="rdma_server")
    assert call(sim, check=True, vfio=[at(PF2)])["changed"]
    in_use(sim, PF1, "process 4242 (rdma_server) (/dev/infiniband/uverbs0, RDMA, is held open)")


def test_a_display_and_a_computation():
    sim = lab()
    sim.add_driver("amdgpu", "1002:73bf")
    gpu = sim.add(Pci("0000:0a:00.0", "1002:73bf", "038000"))
    sim.reboot()
    sim.files[f"{gpu.path}/drm/renderD128/dev"] = "226:128\n"
    holding(sim, "/dev/dri/renderD128", name="ollama")
    in_use(sim, "0000:0a:00.0", "process 4242 (ollama) (/dev/dri/renderD128 is held open)")


def test_a_guest_that_has_the_whole_disk_as_a_file():
    """No mount and no holder: only the process tells."""
    sim = lab()
    holding(sim, "/dev/nvme0n1p1")
    in_use(sim, NVME, "process 4242 (qemu-system-x86) (the disk nvme0n1p1 is held open)")


@pytest.mark.parametrize("node", ["noiommu-{group}", "devices/noiommu-vfio0"])
def test_a_process_that_has_a_device_without_an_iommu(node):
    """DPDK on a machine without an IOMMU (enable_unsafe_noiommu_mode): the group file has another name."""
    sim = lab(vfio_loaded=True)
    call(sim, vfio=[at(EDU)])
    sim.files[f"{sim.functions[EDU].path}/vfio-dev/vfio0/dev"] = "511:0\n"
    holding(sim, f"/dev/vfio/{node.format(group=sim.functions[EDU].group)}", name="dpdk-testpmd")
    in_use(sim, EDU, "process 4242 (dpdk-testpmd)", wish={"vfio": [at(EDU, state="absent")]})


@pytest.mark.parametrize(("node", "what"), [
    ("ng0n1", "the NVMe namespace ng0n1 is held open"),
    ("nvme0", "/dev/nvme0 is held open"),
])
def test_a_process_that_works_with_nvme_past_the_disk(node, what):
    """io_uring passthrough and nvme-cli: neither opens a disk."""
    sim = lab()
    path = sim.functions[NVME].path
    sim.files[f"{path}/nvme/nvme0/ng0n1/dev"] = "242:0\n"
    sim.links["/sys/class/nvme-generic/ng0n1"] = f"{path}/nvme/nvme0/ng0n1"
    holding(sim, f"/dev/{node}")
    in_use(sim, NVME, f"process 4242 (qemu-system-x86) ({what})")


def test_udev_looks_at_each_disk_and_goes():
    sim = lab()
    holding(sim, "/dev/nvme0n1", name="(udev-worker)")
    assert call(sim, vfio=[at(NVME)])["changed"]


def test_a_file_of_the_same_name_elsewhere_is_nobodys_disk():
    sim = lab()
    holding(sim, "/srv/images/nvme0n1")
    assert call(sim, vfio=[at(NVME)])["changed"]


def test_processes_are_looked_at_only_before_something_is_taken():
    sim = lab(vfio_loaded=True)
    wishes = {"sriov": [at(PF1, vf_count=1)], "vfio": [at(EDU)]}
    call(sim, **wishes)
    looked = []
    names = sim.names
    sim.names = lambda path: (looked.append(path), names(path))[1]
    quiet(sim, **wishes)
    assert "/proc" not in looked
    call(sim, check=True, sriov=[at(PF1, vf_count=2)])
    assert "/proc" in looked


# --- libvirt ---------------------------------------------------------------------------------------------------------


def source(address):
    domain, bus, rest = address.split(":")
    slot, function = rest.split(".")
    return f"<address type='pci' domain='0x{domain}' bus='0x{bus}' slot='0x{slot}' function='0x{function}'/>"


def hostdev(address):
    """With the address that the guest sees it at, which is not ours."""
    return (
        f"<hostdev mode='subsystem' type='pci' managed='yes'><source>{source(address)}</source>"
        f"{source('0000:00:09.0')}</hostdev>"
    )


def domain(name, devices):
    return f"<domain type='kvm'><name>{name}</name><devices>{devices}</devices></domain>"


def define(sim, name, devices):
    sim.files[f"/etc/libvirt/qemu/{name}.xml"] = f"<!-- made by virsh -->\n{domain(name, devices)}"
    sim._tree = None


def run(sim, name, devices, state="running", pid=77):
    sim.files[f"/run/libvirt/qemu/{name}.xml"] = f"<domstatus state='{state}' reason='booted' pid='{pid}'>{domain(name, devices)}</domstatus>"
    sim.files[f"/proc/{pid}/comm"] = "qemu-system-x86\n"
    sim._tree = None


def test_a_running_guest_of_libvirt():
    sim = lab()
    define(sim, "vm1", hostdev(EDU))
    run(sim, "vm1", hostdev(EDU))
    text = in_use(sim, EDU, "the guest vm1 (libvirt; running)")
    assert "not running" not in text


def test_a_paused_guest_of_libvirt():
    sim = lab()
    run(sim, "vm1", hostdev(NVME), state="paused")
    in_use(sim, NVME, "the guest vm1 (libvirt; paused)")


def test_a_guest_that_ended_while_no_daemon_looked():
    sim = lab()
    run(sim, "vm1", hostdev(EDU))
    del sim.files["/proc/77/comm"]
    sim._tree = None
    assert call(sim, vfio=[at(EDU)])["changed"]


def test_a_defined_guest_loses_its_device_only_where_it_is_allowed():
    sim = lab()
    define(sim, "vm1", hostdev(EDU))
    # vfio is where it wants it.
    assert call(sim, vfio=[at(EDU)])["changed"]
    in_use(sim, EDU, "the guest vm1 (libvirt; defined, not running)", wish={"vfio": [at(EDU, state="absent")]})


VFS = {
    "hostdev": hostdev,
    "interface": lambda vf: f"<interface type='hostdev'><source>{source(vf)}</source></interface>",
    "from a network": lambda vf: (
        "<interface type='network'><source network='pool'/>"
        f"<actual type='hostdev'><source>{source(vf)}</source></actual></interface>"
    ),
}


@pytest.mark.parametrize("kind", VFS)
def test_a_defined_guest_wants_its_vf_to_be_there(kind):
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=2)])
    last = sim.functions[PF1].vfs[1]
    define(sim, "vm1", VFS[kind](last))
    for wish in (at(PF1, vf_count=0), at(PF1, vf_count=1)):
        refused(sim, last, "the guest vm1 (libvirt; defined, not running)", "allow: [in_use]", sriov=[wish])
    # It comes back with the greater count.
    assert call(sim, sriov=[at(PF1, vf_count=3)])["changed"]
    assert call(sim, sriov=[at(PF1, vf_count=0)], allow=("in_use",))["changed"]


def test_a_defined_guests_nvme_disk_and_macvtap():
    sim = lab()
    call(sim, vfio=[at(NVME)])
    define(sim, "vm1", f"<disk type='nvme' device='disk'><source type='pci' managed='yes' namespace='1'>{source(NVME)}</source></disk>")
    refused(sim, NVME, "the guest vm1", vfio=[at(NVME, state="absent")])
    sim.nets["enp129s0v0"] = Net()
    call(sim, sriov=[at(PF1, vf_count=1)])
    sim.pids.clear()
    sim.sleep(10)
    vf = sim.functions[PF1].vfs[0]
    assert drivers_of(sim, PF1) == ["igbvf"]
    define(sim, "vm2", "<interface type='direct'><source dev='enp129s0v0' mode='passthrough'/></interface>")
    refused(sim, vf, "the guest vm2 (libvirt; defined, not running)", sriov=[at(PF1, vf_count=0)])
    refused(sim, vf, "the guest vm2", sriov=[at(PF1, vfs=[{"range": "0", "driver": "vfio-pci"}])])


@pytest.mark.parametrize("text", ["", "<domain", "<network><name>x</name></network>", "<domain><devices/></domain>", "\ufffd",
                                  "<domain><name>a</name><devices><hostdev><source><address type='usb' bus='1' device='2'/>"
                                  "<address type='pci' bus='x' slot='1' function='0'/></source></hostdev></devices></domain>"])
def test_odd_files_of_libvirt_are_no_guests(text):
    sim = lab()
    for folder in ("/etc/libvirt/qemu", "/run/libvirt/qemu", "/etc/libvirt/qemu/networks"):
        sim.files[f"{folder}/odd.xml"] = text
    sim._tree = None
    assert call(sim, vfio=[at(EDU)])["changed"]


# --- Network ---------------------------------------------------------------------------------------------------------


def test_an_xdp_program():
    sim = lab()
    sim.nets[PORT1] = Net(xdp=17)
    refused(sim, PORT1, "XDP program 17", "allow: [link_flap]", sriov=[at(PF1, vf_count=1)])
    in_use(sim, PF1, f"XDP on {PORT1} (program 17)")


def test_an_xdp_program_on_a_vf():
    sim = lab(igbvf_loaded=True)
    call(sim, sriov=[at(PF1, vf_count=1)])
    sim.nets["enp129s0v0"] = Net(xdp=17)
    in_use(sim, sim.functions[PF1].vfs[0], "XDP on enp129s0v0", wish={"sriov": [at(PF1, vf_count=0)]})


def test_a_macvtap_of_a_guest():
    sim = lab()
    sim.nets[PORT1] = Net()
    sim.nets["macvtap0"] = Net(kind="macvtap", lowers=[PORT1])
    refused(sim, "a leg of macvtap0", "allow: [link_flap]", sriov=[at(PF1, vf_count=1)])
    in_use(sim, PF1, "a guest (macvtap macvtap0)")


@pytest.mark.parametrize("kind", ["bridge", "openvswitch"])
def test_guests_on_a_bridge_without_an_address(kind):
    sim = lab()
    sim.nets[PORT1] = Net()
    sim.nets["vnet0"], sim.nets["veth1"], sim.nets["vnet1"] = Net(kind="tun"), Net(kind="veth"), Net(kind="tun", carrier=False)
    sim.nets["br0"] = Net(kind=kind, lowers=[PORT1, "vnet0", "veth1", "vnet1"])
    in_use(sim, PF1, "guests or containers behind br0 (veth1, vnet0)")


def test_a_port_goes_down_under_the_guests_on_its_bridge():
    sim = lab()
    sim.nets[PORT1] = Net()
    sim.nets["br0"] = Net(kind="bridge", lowers=[PORT1, "vnet0"])
    sim.nets["vnet0"] = Net(kind="tun")
    in_use(sim, PF1, "guests or containers behind br0 (vnet0)", wish={"sriov": [at(PF1, up=False)]})


@pytest.mark.parametrize("wish", [{"devlink_params": [{"name": "enable_roce", "value": False, "cmode": "driverinit"}]}, {"eswitch": {"mode": "switchdev"}}])
def test_guests_on_a_bridge_whose_uplink_is_made_anew(wish):
    """It comes back outside the bridge, which is more than a flap."""
    sim = switches()
    port = sim.functions[MLX5].ifname
    sim.nets[port] = Net()
    sim.nets["br0"] = Net(kind="bridge", lowers=[port, "vnet0"])
    sim.nets["vnet0"] = Net(kind="tun")
    words = ("allow: [in_use]", "guests or containers behind br0 (vnet0)")
    refused(sim, MLX5, *words, sriov=[at(MLX5, **wish)], allow=("link_flap",))
    assert call(sim, sriov=[at(MLX5, **wish)], allow=("link_flap", "in_use"))["changed"]


def test_an_rdma_process_on_a_port_that_is_made_anew():
    sim = switches()
    sim.files["/sys/class/infiniband_verbs/uverbs0/ibdev"] = "mlx5_0\n"
    sim.links["/sys/class/infiniband/mlx5_0"] = f"{sim.functions[MLX5].path}/infiniband/mlx5_0"
    sim.nets[sim.functions[MLX5].ifname] = Net(carrier=False)
    holding(sim, "/dev/infiniband/uverbs0", name="rdma_server")
    wish = at(MLX5, devlink_params=[{"name": "enable_roce", "value": False, "cmode": "driverinit"}])
    in_use(sim, MLX5, "process 4242 (rdma_server)", wish={"sriov": [wish]})


def test_guests_on_a_bridge_over_a_bond_keep_a_leg():
    sim = lab()
    sim.nets[PORT1] = sim.nets[PORT2] = Net()
    sim.nets["bond0"] = Net(kind="bond", lowers=[PORT1, PORT2])
    sim.nets["vnet0"] = Net(kind="tun")
    sim.nets["br0"] = Net(kind="bridge", lowers=["bond0", "vnet0"])
    text = refused(sim, PF1, "one leg of what carries guests or containers behind br0 (vnet0)", "allow: [link_flap]", vfio=[at(PF1)])
    assert "in_use" not in text
    refused(sim, "allow: [in_use]", vfio=[at(PF1), at(PF2)])


def test_a_bridge_nobody_is_on():
    sim = lab()
    sim.nets[PORT1] = Net()
    sim.nets["br0"] = Net(kind="bridge", lowers=[PORT1])
    assert call(sim, vfio=[at(PF1)])["changed"]


def test_a_port_that_is_up_and_used_by_nobody_may_flap():
    sim = lab()
    sim.nets[PORT1] = Net()
    assert call(sim, sriov=[at(PF1, vf_count=1)])["changed"]


# --- Other network namespaces ----------------------------------------------------------------------------------------


def moved(sim, address, ifname, **space):
    sim.spaces.all.append(Space(netdevs={ifname: ("", 0, address)}, **space))
    if space.get("pid"):
        sim.pids[space["pid"]] = ("nginx", [])
    sim._tree = None


def test_a_vf_in_a_container():
    sim = lab(igbvf_loaded=True)
    call(sim, sriov=[at(PF1, vf_count=2)])
    vf = sim.functions[PF1].vfs[1]
    moved(sim, vf, "net1", pid=55)
    assert sim.names(f"{DEVICES}/{vf}/net") == [] and "enp129s0v1" not in sim.names("/sys/class/net")
    words = ("whoever has its network device in the network namespace of process 55 (nginx), as net1",)
    refused(sim, vf, *words, sriov=[at(PF1, vfs=[{"range": "1", "driver": "vfio-pci"}])])
    in_use(sim, vf, *words, wish={"sriov": [at(PF1, vf_count=0)]})
    # Nobody was started to look: sysfs told it all.
    assert not [argv for argv in sim.commands if argv[0] == "nsenter" or argv[1] == "-n"]


def test_a_port_in_a_named_namespace_without_a_process():
    sim = lab()
    moved(sim, PF1, "uplink", name="blue")
    refused(sim, "its link is with whoever has its network device in the network namespace blue, as uplink",
            "allow: [link_flap]", sriov=[at(PF1, vf_count=1)])
    in_use(sim, PF1, "the network namespace blue, as uplink")


def test_a_port_in_a_namespace_that_nobody_can_name():
    sim = lab()
    moved(sim, PF1, "x")
    in_use(sim, PF1, "another network namespace")


@pytest.mark.parametrize("space", [{"name": "pod"}, {"pid": 55}], ids=["named", "of a process"])
def test_a_virtio_port_in_a_container(space):
    """Between the PCI function and the network device there is another bus."""
    sim = lab()
    sim.add(Pci("0000:00:05.0", "1af4:1041", "020000", below="virtio9", ifname="ens5", mac="52:54:00:00:00:05"))
    sim.reboot()
    moved(sim, "0000:00:05.0", "eth0", below="virtio9", **space)
    sim.files[sim.functions["0000:00:05.0"].path + "/virtio9/status"] = "0x0000000f\n"
    place = "pod" if "name" in space else "of process 55 (nginx)"
    in_use(sim, "0000:00:05.0", f"the network namespace {place}, as eth0")


def test_a_process_with_a_namespace_and_our_sysfs():
    """systemd's PrivateNetwork=: what its /sys shows is ours."""
    sim = lab()
    sim.spaces.all.append(Space(pid=60, own_sysfs=False))
    sim.pids[60] = ("private", [])
    sim.links["/proc/60/root/sys/class/net/" + PORT1 + "/device"] = f"../../../{PF1}"
    sim._tree = None
    assert call(sim, vfio=[at(PF1)])["changed"]


@pytest.mark.parametrize("kind", ["macvlan", "ipvlan", "veth"])
def test_what_a_container_has_of_a_port(kind):
    """sysfs links upper and lower devices within one namespace only (lab): the number of the lower one is all there is,
    and a veth pair's other end in a third namespace may have the same."""
    sim = lab()
    sim.nets[PORT1] = Net()
    sim.spaces.all.append(Space(pid=55, netdevs={"eth0": (kind, sim.index(PORT1), "")}))
    sim.pids[55] = ("nginx", [])
    sim._tree = None
    if kind == "veth":
        assert call(sim, vfio=[at(PF1)])["changed"]
        return
    words = (f"process 55 (nginx) (its {kind} eth0 rides on {PORT1})",)
    refused(sim, *words, "allow: [link_flap]", sriov=[at(PF1, vf_count=1)])
    in_use(sim, PF1, *words)


# --- Console ---------------------------------------------------------------------------------------------------------


def console(sim, address, *words):
    refused(sim, address, "allow: [console]", *words, vfio=[at(address)])
    assert call(sim, vfio=[at(address)], allow=("console",))["changed"]


@pytest.mark.parametrize("driver", ["drm", "simple-framebuffer.0/drm"])
def test_the_frame_buffer_that_the_console_is_drawn_on(driver):
    """Also below the firmware's frame buffer, with no driver of the GPU's own; a second one is nobody's console."""
    sim = lab()
    gpus = [sim.add(Pci(f"0000:0{n}:00.0", "1002:73bf", "038000")) for n in ("a", "b")]
    sim.add_driver("amdgpu", "1002:73bf")
    sim.reboot()
    for number, gpu in enumerate(gpus):
        sim.links[f"/sys/class/graphics/fb{number}"] = f"{gpu.path}/{driver}/graphics/fb{number}"
    sim.files["/sys/class/vtconsole/vtcon0/name"] = "(S) dummy device\n"
    sim.files["/sys/class/vtconsole/vtcon1/name"] = "(M) frame buffer device\n"
    sim.files["/sys/class/vtconsole/vtcon1/bind"] = "0\n"
    sim._tree = None
    assert call(sim, check=True, vfio=[at(gpus[0].address)])["changed"]
    sim.files["/sys/class/vtconsole/vtcon1/bind"] = "1\n"
    sim._tree = None
    assert call(sim, check=True, vfio=[at(gpus[1].address)])["changed"]
    console(sim, gpus[0].address, "frame buffer fb0")


def test_the_serial_console_on_a_card():
    sim = lab()
    sim.add_driver("serial", "1b36:0002")
    card = sim.add(Pci("0000:00:06.0", "1b36:0002", "070002"))
    sim.reboot()
    sim.links["/sys/class/tty/ttyS4"] = f"{card.path}/0000:00:06.0:0/0000:00:06.0:0.0/tty/ttyS4"
    sim.links["/sys/class/tty/ttyS0"] = "/sys/devices/pnp0/00:02/00:02:0/00:02:0.0/tty/ttyS0"
    sim.files["/sys/class/tty/console/active"] = "tty0 ttyS0\n"
    sim._tree = None
    assert call(sim, check=True, vfio=[at("0000:00:06.0")])["changed"]
    sim.files["/sys/class/tty/console/active"] = "tty0 ttyS4\n"
    sim._tree = None
    console(sim, "0000:00:06.0", "the serial console ttyS4")


# --- A write that hangs ----------------------------------------------------------------------------------------------


def test_a_writer_that_has_not_returned_is_found_by_its_open_file():
    """lab: on Linux 6.12.118 driver_override answers while the removal waits for a paused guest; the writer tells."""
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=2), at(PF2, vf_count=2)])
    holding(sim, f"{sim.functions[PF1].path}/sriov_numvfs", name="sh")
    refused(sim, f"the kernel does not answer for {PF1}", sriov=[at(PF1, vf_count=0)])
    refused(sim, f"{PF2}: its number of VFs cannot change while the kernel does not answer for {PF1}", sriov=[at(PF2, vf_count=0)])
    assert call(sim, vfio=[at(EDU)])["changed"]


def test_vfs_that_are_going_away_are_no_smaller_count():
    """The link of VF 0 is gone while its guest has it: what is left counts like a smaller number of VFs."""
    sim = lab()
    call(sim, sriov=[at(PF1, vf_count=3)])
    names = sim.names
    sim.names = lambda path: [name for name in names(path) if not (path.endswith(PF1) and name == "virtfn0")]
    refused(sim, f"the kernel does not answer for {PF1}", sriov=[at(PF1, vf_count=2)])
