# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on the lab host: tries one dangerous thing after the other with the engine that is installed there, in one
process, so that a danger costs a second and not an Ansible call each. test_guards_lab.py sends it over and judges.

Prints one JSON list a line: the scene, what the engine answered in check mode and in a run, and how the host differed.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import re
import struct
import subprocess
import sys
import time

sys.path.insert(0, "/var/lib/iovirt/engine/current")
from iovirt_engine import engine, read, users
from iovirt_engine.errors import EngineError
from iovirt_engine.guards import before_unbind
from iovirt_engine.host import FileSystem, Host, run_command
from iovirt_engine.resources.common import Options
from snapshot_on_host import settle, snapshot

DEVICES = "/sys/bus/pci/devices"
HOST = Host(files=FileSystem("/"), run=run_command, environment=os.environ)


def sh(script):
    done = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{script!r}: {done.stdout}{done.stderr}")
    return done.stdout.strip()


def replaying():
    return "activating" in sh("systemctl list-units --plain --no-legend 'iovirt-replay@*'")


def at_rest():
    """What came of the scene before is over: links are up, and the replays that udev started have ended."""
    wait_for(lambda: all(carrier(name) for name in (P1, P2, A, B)) and not replaying(), 60)


def wait_for(condition, limit=15):
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"not within {limit} s: {condition.__name__}")
        time.sleep(0.1)


PF1, PF2 = sorted(name for name in os.listdir("/sys/bus/pci/drivers/igb") if name[0] == "0")
NVME = next(name for name in os.listdir("/sys/bus/pci/drivers/nvme") if name[0] == "0")
EDU, VGA, AHCI = "0000:00:09.0", "0000:00:01.0", "0000:00:1f.2"
P1, P2 = (os.listdir(f"{DEVICES}/{pf}/net")[0] for pf in (PF1, PF2))
VF1, VF2 = (os.path.basename(os.readlink(f"{DEVICES}/{pf}/virtfn2")) for pf in (PF1, PF2))
A, B = (os.listdir(f"{DEVICES}/{vf}/net")[0] for vf in (VF1, VF2))
NAMES = {"PF1": PF1, "PF2": PF2, "VF1": VF1, "VF2": VF2, "P1": P1, "P2": P2, "A": A, "B": B, "PID": str(os.getpid())}

TAKE_VF1 = {"sriov": [{"match": {"address": [PF1]}, "vfs": [{"range": "2", "driver": "vfio-pci"}]}]}
COUNT1 = {"sriov": [{"match": {"address": [PF1]}, "vf_count": 2}]}
COUNT2 = {"sriov": [{"match": {"address": [PF2]}, "vf_count": 2}]}


def take(address):
    return {"vfio": [{"match": {"address": [address]}}]}


def carrier(name):
    try:
        with open(f"/sys/class/net/{name}/carrier") as handle:
            return handle.read().strip() == "1"
    except OSError:
        return False


# --- Setting the scene: each is a context, which puts back what it changed -------------------------------------------


@contextlib.contextmanager
def shell(before, after):
    try:
        sh(before)
        yield
    finally:
        sh(f"set +e; {after}; true")


def up(*names):
    return "; ".join(f"ip link set {name} up" for name in names)


@contextlib.contextmanager
def opened(path, limit=10):
    """This very process holds a device file open."""
    wait_for(lambda: os.path.exists(path), limit)
    handle = os.open(path, os.O_RDWR)
    try:
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def tap(name):
    """A tap device with somebody behind it, as a guest's is (linux/if_tun.h: TUNSETIFF, IFF_TAP | IFF_NO_PI)."""
    handle = os.open("/dev/net/tun", os.O_RDWR)
    try:
        fcntl.ioctl(handle, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1002))
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def xdp(name):
    """The smallest XDP program there is (r0 = XDP_PASS; exit), loaded by bpf(2) and attached by ip."""
    program = struct.pack("<BBhiBBhi", 0xB7, 0, 0, 2, 0x95, 0, 0, 0)
    code, licence = ctypes.create_string_buffer(program), ctypes.create_string_buffer(b"GPL")
    load = struct.pack("<IIQQ100x", 6, 2, ctypes.addressof(code), ctypes.addressof(licence))
    libc = ctypes.CDLL(None, use_errno=True)
    handle = libc.syscall(321, 5, ctypes.create_string_buffer(load), len(load))
    if handle < 0:
        raise RuntimeError(f"bpf: {os.strerror(ctypes.get_errno())}")
    pinned = ctypes.create_string_buffer(b"/sys/fs/bpf/iovirt-test")
    pin = struct.pack("<QIi", ctypes.addressof(pinned), handle, 0)
    try:
        if libc.syscall(321, 6, ctypes.create_string_buffer(pin), len(pin)) < 0:
            raise RuntimeError(f"bpf pin: {os.strerror(ctypes.get_errno())}")
        sh(f"ip link set dev {name} xdpgeneric pinned /sys/fs/bpf/iovirt-test")
        yield
    finally:
        sh(f"set +e; ip link set dev {name} xdpgeneric off; rm -f /sys/fs/bpf/iovirt-test; true")
        os.close(handle)


@contextlib.contextmanager
def other_driver(address, driver):
    """A device bound by hand, and back to vfio-pci."""
    to = "echo {1} > {0}/driver_override; echo {2} > {0}/driver/unbind; echo {2} > /sys/bus/pci/drivers_probe"
    try:
        sh("modprobe " + driver + "; " + to.format(f"{DEVICES}/{address}", driver, address))
        yield
    finally:
        sh(to.format(f"{DEVICES}/{address}", "vfio-pci", address) + f"; modprobe -r {driver} || true")


@contextlib.contextmanager
def file(path, text):
    made = [folder for folder in (os.path.dirname(path),) if not os.path.isdir(folder)]
    for folder in made:
        os.makedirs(folder)
    with open(path, "w") as handle:
        handle.write(text)
    try:
        yield
    finally:
        os.unlink(path)
        for folder in made:
            os.removedirs(folder)


@contextlib.contextmanager
def sleeper(space):
    """A process in a network namespace, as a container has it: with a sysfs of its own."""
    child = subprocess.Popen(["ip", "netns", "exec", space, "sleep", "300"])
    wait_for(lambda: os.readlink(f"/proc/{child.pid}/ns/net") != os.readlink("/proc/self/ns/net"))
    wait_for(lambda: HOST.files.attr(f"/proc/{child.pid}/comm") == "sleep")
    try:
        yield
    finally:
        child.kill()
        child.wait()


def both(*contexts):
    stack = contextlib.ExitStack()

    @contextlib.contextmanager
    def together():
        with stack:
            for make in contexts:
                stack.enter_context(make if hasattr(make, "__enter__") else make())
            yield

    return together()


#: igbvf looks for its link every two seconds.
NO_CARRIER = f"for i in $(seq 100); do [ $(cat /sys/class/net/{A}/carrier) = 0 ] && break; sleep 0.1; done"

#: The port goes down for the move, and igbvf, which asks it at that moment, has no MAC address from then until the next
#: reset ("PF still resetting" in the kernel log).
AGAIN = f"for i in $(seq 300); do [ $(cat /sys/class/net/{P1}/carrier) = 1 ] && break; sleep 0.1; done; ip link set {A} down; {up(A)}"

BOND = (
    f"ip link add bond9 type bond mode active-backup miimon 100; ip link set {A} down; ip link set {B} down; "
    f"ip link set {A} master bond9; ip link set {B} master bond9; {up(A, B, 'bond9')}"
)
NO_BOND = f"ip link del bond9; {up(A, B)}"
NETNS = "ip netns add iovirt9"

#: The kernel gives the devices of a namespace back when its last process is gone, and some time after (cleanup_net).
NO_NETNS = "ip netns del iovirt9; for i in $(seq 100); do ip link show {0} >/dev/null 2>&1 && break; sleep 0.1; done; ip link set {0} up"
OVS = (
    "modprobe openvswitch; ovs-dpctl add-dp ovs9; ovs-dpctl add-if ovs9 brex9,type=internal; "
    f"ovs-dpctl add-if ovs9 {A}; ip addr add 192.0.2.10/24 dev brex9; {up('brex9')}"
)
NM = f"[connection]\nid=uplink\ntype=ethernet\ninterface-name={P2}\n\n[sriov]\neswitch-mode=0\ntotal-vfs=4\n"

#: Name -> scene, wishes.
SCENES = {
    "an address": (lambda: shell(f"ip addr add 192.0.2.10/24 dev {A}", f"ip addr del 192.0.2.10/24 dev {A}"), TAKE_VF1),
    "a default route": (lambda: shell(f"ip route add default dev {A} metric 9999", f"ip route del default dev {A} metric 9999"), TAKE_VF1),
    "one leg of a bond": (lambda: shell(f"{BOND}; ip addr add 192.0.2.10/24 dev bond9", NO_BOND), TAKE_VF1),
    "the last leg of a bond": (lambda: shell(f"{BOND}; ip addr add 192.0.2.10/24 dev bond9; ip link set {B} down", NO_BOND), TAKE_VF1),
    "a bridge over a vlan": (
        lambda: shell(f"ip link add link {A} name v9 type vlan id 9; ip link add br9 type bridge; ip link set v9 master br9; "
                      f"ip addr add 192.0.2.10/24 dev br9; {up('v9', 'br9')}", "ip link del br9; ip link del v9"), TAKE_VF1),
    "a macvlan": (
        lambda: shell(f"ip link add mv9 link {A} type macvlan mode bridge; ip addr add 192.0.2.10/24 dev mv9", "ip link del mv9"), TAKE_VF1),
    "a veth pair behind a bridge": (
        lambda: shell(f"ip link add br9 type bridge; ip link add ve9 type veth peer name vf9; ip link set {A} master br9; "
                      f"ip link set ve9 master br9; ip addr add 192.0.2.10/24 dev vf9; {up('br9', 've9', 'vf9')}",
                      "ip link del ve9; ip link del br9"), TAKE_VF1),
    "open vswitch": (lambda: shell(OVS, "ovs-dpctl del-dp ovs9; modprobe -r openvswitch"), TAKE_VF1),
    "a named network namespace": (lambda: shell(f"{NETNS}; ip link set {A} netns iovirt9", NO_NETNS.format(A)), TAKE_VF1),
    "a process in a network namespace": (
        lambda: both(shell(f"{NETNS}; ip link set {A} netns iovirt9", NO_NETNS.format(A)), sleeper("iovirt9")), COUNT1),
    "a port in a network namespace": (
        lambda: shell(f"{NETNS}; ip link set {P1} netns iovirt9; {NO_CARRIER}", f"{NO_NETNS.format(P1)}; {AGAIN}"), COUNT1),
    "a macvlan of a container": (
        lambda: both(shell(f"{NETNS}; ip link add mv9 link {A} type macvlan mode bridge; ip link set mv9 netns iovirt9", "ip netns del iovirt9"),
                     sleeper("iovirt9")), TAKE_VF1),
    "a macvtap": (lambda: shell(f"ip link add mt9 link {A} type macvtap mode bridge; {up('mt9')}", "ip link del mt9"), TAKE_VF1),
    "a guest on a bridge": (
        lambda: both(tap("tap9"), shell(f"ip link add br9 type bridge; ip link set {A} master br9; ip link set tap9 master br9; {up('tap9', 'br9')}",
                                        "ip link del br9")), TAKE_VF1),
    "an xdp program": (lambda: xdp(A), TAKE_VF1),
    "an rdma process": (
        lambda: both(shell(f"modprobe rdma_rxe; rdma link add rxe9 type rxe netdev {A}", "rdma link del rxe9; modprobe -r rdma_rxe"),
                     lambda: opened("/dev/infiniband/uverbs0")), TAKE_VF1),
    "a clock daemon on a running port": (lambda: opened("/dev/" + os.listdir(f"{DEVICES}/{PF1}/ptp")[0]), COUNT1),
    "a bridge that has the port": (
        lambda: shell(f"ip link add br9 type bridge; ip link set {P1} master br9", "ip link del br9"), COUNT1),
    "a process with uio": (lambda: both(other_driver(EDU, "uio_pci_generic"), lambda: opened("/dev/uio0")), take(EDU)),
    "the console": (contextlib.nullcontext, take(VGA)),
    "a group": (contextlib.nullcontext, take(AHCI)),
    "a networkmanager profile": (lambda: file("/etc/NetworkManager/system-connections/iovirt9.nmconnection", NM), COUNT2),
    "a link file": (
        lambda: file("/etc/systemd/network/10-iovirt9.link", f"[Match]\nPath=pci-{PF2}\n[Link]\nSR-IOVVirtualFunctions=4\n"), COUNT2),
    "netplan": (
        lambda: file("/etc/netplan/90-iovirt9.yaml", f"network:\n  ethernets:\n    {P2}:\n      virtual-function-count: 4\n"), COUNT2),
    # The file as driverctl writes it. driverctl itself takes the driver away, also where it is told not to probe.
    "driverctl": (lambda: file(f"/etc/driverctl.d/pci-{VF1}", "igbvf\n"), TAKE_VF1),
}


def ask(wishes, check):
    try:
        result = engine.devices(HOST, wishes, Options(), engine.Call(check=check, who="lab test"))
        return f"NOT REFUSED: {result['actions']}"
    except EngineError as error:
        return str(error)


def differing(before, after):
    old, new = before.splitlines(), after.splitlines()
    return [f"- {line}" for line in old if line not in new][:20] + [f"+ {line}" for line in new if line not in old][:20]


def play(name, scene, wishes):
    try:
        at_rest()
        with scene():
            settle(pause=0.5)
            before = snapshot()
            answers = [ask(wishes, check) for check in (True, False)]
            tell(name, answers, differing(before, snapshot()))
    except (RuntimeError, OSError) as error:
        tell(name, [f"the scene could not be set: {error}"])


def disks():
    """The NVMe controller has VFs, which keeps it from being taken before its disk is asked about: so the guard itself
    is asked here, with stacks of the kernel's own above the disk."""
    disk = os.path.basename(sh("ls -d /sys/class/block/nvme*n1"))
    table = f"echo 0 65536 linear /dev/{disk} 0 | dmsetup create iovirt9"
    mounted = f"{table}; mkfs.ext4 -q /dev/mapper/iovirt9; mount /dev/mapper/iovirt9 /mnt"
    scenes = {
        "nothing on the disk": contextlib.nullcontext(),
        "swap": shell(f"mkswap -q /dev/{disk}; swapon /dev/{disk}", f"swapoff /dev/{disk}; wipefs -qa /dev/{disk}"),
        "a mount over a mapped device": shell(mounted, f"umount /mnt; dmsetup remove iovirt9; wipefs -qa /dev/{disk}"),
        "a process with the disk": opened(f"/dev/{disk}"),
    }
    for name, scene in scenes.items():
        with scene:
            state = users.look(HOST, read.read_state(HOST, read.Needs()))
            tell(name, [refusal.sentence() for refusal in before_unbind(state, state.functions[NVME])])
    tell("frame buffer", [state.consoles.get(VGA, "")])


def tell(name, answers, differing=()):
    print(json.dumps([name, answers, list(differing)]), flush=True)


def main():
    wanted = sys.argv[1:]
    were_up = {name for name in (P1, P2, A, B) if "UP" in re.split(r"[<>,]", sh(f"ip -o link show {name}"))}
    sh(up(P1, P2, A, B))
    # What is made here has its addresses at once, without the seconds that it takes to ask whether others have them.
    sysctl = "sysctl -qw net.ipv6.conf.default.accept_dad="
    sh(f"{sysctl}0; for n in {P1} {P2} {A} {B}; do sysctl -qw net.ipv6.conf.$n.accept_dad=0; done")
    try:
        at_rest()
        settle()
        start = snapshot()
        for name, (scene, wishes) in SCENES.items():
            if not wanted or name in wanted:
                play(name, scene, wishes)
        if not wanted or "disks" in wanted:
            disks()
        # Modules that a scene needed stay loaded.
        at_rest()
        settle()
        tell("left behind", [], [line for line in differing(start, snapshot()) if " module " not in line])
        tell("names", [json.dumps(NAMES)])
    finally:
        sh(f"{sysctl}1")
        for name in (P1, P2, A, B):
            sh(f"sysctl -qw net.ipv6.conf.{name}.accept_dad=1; " + ("true" if name in were_up else f"ip link set {name} down"))


main()
