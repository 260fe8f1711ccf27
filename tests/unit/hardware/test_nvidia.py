# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""tests/hardware on a synthetic machine: a tree of files, and commands of our own first on PATH.

The ids are those of an L40S (pci.ids), the configuration space is made by the PCI Express Base Specification (7.5.1, 9.3.3), what
nvidia-smi prints by its manual (fields of --query-gpu; sections of -q and of -q -x).
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "tests" / "hardware" / "nvidia.py"
GPU = "0000:26:00.0"
UUID = "GPU-5b1d4a60-8a1f-4a0e-9a57-3d2b9e6a7c01"


def config_space(total=32, enabled=0, device=0x26B9):
    """An AER capability, then SR-IOV."""
    space = bytearray(4096)
    struct.pack_into("<HH", space, 0x00, 0x10DE, device)
    space[0x09:0x0C] = bytes((0x00, 0x02, 0x03))
    struct.pack_into("<HH", space, 0x2C, 0x10DE, 0x1851)
    struct.pack_into("<I", space, 0x100, 0x0001 | 1 << 16 | 0x160 << 20)
    struct.pack_into("<I", space, 0x160, 0x0010 | 1 << 16)
    struct.pack_into("<HHHH", space, 0x168, int(bool(enabled)), 0, total, total)
    struct.pack_into("<H", space, 0x170, enabled)
    struct.pack_into("<HHHH", space, 0x174, 4, 1, 0, device)
    return bytes(space)


class Machine:
    def __init__(self, folder):
        self.root, self.bin = folder / "root", folder / "bin"
        self.gpu = self.root / "sys/bus/pci/devices" / GPU
        self.bin.mkdir(parents=True)
        self.gpu.mkdir(parents=True)
        driver = self.root / "sys/bus/pci/drivers/nvidia"
        driver.mkdir(parents=True)
        os.symlink("../../drivers/nvidia", self.gpu / "driver")
        os.symlink(f"../../devices/{GPU}", driver / GPU)
        for name, text in {
            "vendor": "0x10de", "device": "0x26b9", "subsystem_vendor": "0x10de", "subsystem_device": "0x1851", "class": "0x030200",
            "modalias": "pci:v000010DEd000026B9sv000010DEsd00001851bc03sc02i00", "numa_node": "0", "sriov_totalvfs": "32",
            "sriov_drivers_autoprobe": "1", "sriov_offset": "4", "sriov_stride": "1", "sriov_vf_device": "26b9",
        }.items():  # fmt: skip
            self.has(name, text)
        (self.gpu / "config").write_bytes(config_space())
        self.command("ip", "echo '[]'")
        self.smi()

    def has(self, name, text):
        (self.gpu / name).write_text(text + "\n")

    def command(self, name, script):
        (self.bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    def smi(self, uuid=UUID, ids="0x26B910DE", subsystem="0x185110DE", mode="SR-IOV", text_mode="SR-IOV", mig="Disabled", address="00000000:26:00.0"):
        """`text_mode` is what the engine reads, `mode` what it is held against."""
        self.command("nvidia-smi", f"""case "$*" in
--query-gpu=*) echo "{address}, {uuid}, 1320924000001, {ids}, {subsystem}, {mig}" ;;
"-q -x") echo '<nvidia_smi_log><gpu id="00000000:26:00.0"><gpu_virtualization_mode><virtualization_mode>Host VGPU</virtualization_mode>\\
<host_vgpu_mode>{mode}</host_vgpu_mode></gpu_virtualization_mode></gpu></nvidia_smi_log>' ;;
"-q -i {GPU}") cat <<END

==============NVSMI LOG==============

GPU 00000000:26:00.0
    Product Name                          : NVIDIA L40S
    Product Architecture                  : Ada Lovelace
    Display Attached                      : No
    MIG Mode
        Current                           : Disabled
        Pending                           : Disabled
    Serial Number                         : 1320924000001
    GPU UUID                              : {UUID}
    GPU Virtualization Mode
        Virtualization Mode               : Host VGPU
        Host VGPU Mode                    : {text_mode}
END
;;
"vgpu -s -v -i {GPU}") cat <<END
GPU 00000000:26:00.0
    vGPU Type ID                          : 0x483
        Name                              : NVIDIA L40S-24Q
END
;;
*) echo "$0: $*" >&2; exit 9 ;;
esac""")

    def run(self, *words):
        argv = [sys.executable, str(SCRIPT), "--root", str(self.root), *words]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env={"PATH": f"{self.bin}:/usr/bin:/bin"})
        assert done.stderr == ""
        return done.returncode, done.stdout


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def tree(machine):
    return {path: path.read_bytes() for path in sorted(machine.root.rglob("*")) if path.is_file()}


def test_a_machine_of_which_all_say_the_same(machine):
    before = tree(machine)
    code, out = machine.run("--require")
    assert code == 0, out
    assert "differs" not in out and "not compared:" not in out
    for said in (f"same:    {GPU} total_vfs: 32 (configuration space)", f"uuid: {UUID} (nvidia-smi)", "class: 030200", "subsystem: 10de:1851",
                 "host_vgpu_mode: SR-IOV", "serial: 1320924000001", "mig: Disabled", "0 differ"):  # fmt: skip
        assert said in out
    assert tree(machine) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.has("sriov_totalvfs", "48"), "total_vfs: 48, but configuration space says 32"),
        (lambda m: m.has("device", "0x26ba"), "device: 26ba, but configuration space says 26b9"),
        (lambda m: m.has("class", "0x030000"), "class: 030000, but configuration space says 030200"),
        (lambda m: m.has("subsystem_device", "0x1852"), "subsystem: 10de:1852, but configuration space says 10de:1851"),
        (lambda m: (m.gpu / "config").write_bytes(config_space(enabled=16)), "vf_count: 0, but configuration space says 16"),
        (lambda m: [p.unlink() for p in m.gpu.glob("sriov_*")], "has SR-IOV: False, but configuration space says True"),
        (lambda m: m.smi(uuid="GPU-0"), f"uuid: {UUID}, but nvidia-smi says GPU-0"),
        (lambda m: m.smi(ids="0x26BA10DE"), "device: 26b9, but nvidia-smi says 26ba"),
        (lambda m: m.smi(subsystem="0x185210DE"), "subsystem: 10de:1851, but nvidia-smi says 10de:1852"),
        (lambda m: m.smi(mode="Non SR-IOV"), "host_vgpu_mode: SR-IOV, but nvidia-smi says Non SR-IOV"),
        (lambda m: m.smi(mig="Enabled"), "mig: Disabled, but nvidia-smi says Enabled"),
        (lambda m: m.smi(address="00000000:27:00.0"), f"['{GPU}'], but nvidia-smi says ['0000:27:00.0']"),
        (lambda m: (m.gpu / "driver").unlink(), f"GPUs with the driver nvidia in host_info: [], but nvidia-smi says ['{GPU}']"),
    ],
)
def test_each_difference_is_found(machine, change, said):
    change(machine)
    code, out = machine.run()
    assert code == 1, out
    assert "differs:" in out and said in out


def test_what_cannot_be_compared_is_named(machine):
    """No root: 64 bytes; and no tool."""
    (machine.gpu / "config").write_bytes(config_space()[:64])
    machine.command("nvidia-smi", "echo 'NVIDIA-SMI has failed' >&2; exit 9")
    code, out = machine.run()
    assert code == 0, out
    assert "SR-IOV: only 64 bytes" in out and "run as root" in out
    assert "not compared: nvidia-smi: NVIDIA-SMI has failed" in out
    assert "same:    0000:26:00.0 device: 26b9" in out


def test_a_driver_may_allow_fewer_vfs_than_the_device_has(machine):
    machine.has("sriov_totalvfs", "16")
    code, out = machine.run()
    assert code == 0, out
    assert "not compared: 0000:26:00.0: total_vfs: its driver allows 16 of 32" in out


def test_without_a_gpu_it_says_so(machine):
    for path in sorted(machine.gpu.glob("*")):
        path.unlink()
    machine.gpu.rmdir()
    sentence = "not run: this machine has no NVIDIA GPU, so nothing was checked.\n"
    assert machine.run() == (0, sentence)
    assert machine.run("--require") == (1, sentence)


def test_a_vf_is_no_gpu(machine):
    """A VF shows ffff where its PF has its ids."""
    space = bytearray(config_space())
    space[0:4] = b"\xff" * 4
    (machine.gpu / "config").write_bytes(bytes(space))
    assert machine.run()[0] == 0
    assert machine.run()[1].startswith("not run:")


def test_nothing_can_be_changed():
    """The engine's hands are bound: neither a write nor a command that does more than ask."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import nvidia\n"
        "for act in (lambda: nvidia.ReadOnly('/').write('/dev/null', ''), lambda: nvidia.ReadOnly('/').replace('/dev/null', ''),\n"
        "            lambda: nvidia.ask(['nvidia-smi', '-i', '0', '-mig', '1']), lambda: nvidia.ask(['modprobe', '--', 'nvidia']),\n"
        "            lambda: nvidia.ask(['ip', '-batch', '-'], 'link set x up'), lambda: nvidia.ask(['nvidia-smi', 'mig', '-dgi', '-i', '0'])):\n"
        "    try:\n        act()\n    except AssertionError as error:\n        assert 'changes nothing' in str(error)\n"
        "    else:\n        sys.exit('it was done')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(SCRIPT.parent)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
