# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""/dev/kvm asked for a VM, by its API (Documentation/virt/kvm/api.rst). The file being there proves nothing, nor does
opening it; the VM that is made here runs one instruction, and is gone with the process that asks.

Numbers: include/uapi/linux/kvm.h, arch/x86/include/uapi/asm/kvm.h.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
from typing import Any

GET_API_VERSION, CREATE_VM, GET_VCPU_MMAP_SIZE = 0xAE00, 0xAE01, 0xAE04
CREATE_VCPU, SET_USER_MEMORY_REGION, RUN = 0xAE41, 0x4020AE46, 0xAE80
GET_SREGS, SET_SREGS, SET_REGS = 0x8138AE83, 0x4138AE84, 0x4090AE82
#: The only version that there is since Linux 2.6.22.
VERSION = 12
EXIT_HLT = 5
#: Sizes of struct kvm_sregs and kvm_regs; offsets of cs.base, cs.selector, rip, rflags and kvm_run.exit_reason.
_SREGS, _REGS, _CS_BASE, _CS_SELECTOR, _RIP, _RFLAGS, _REASON = 312, 144, 0, 12, 128, 136, 8
_HLT, _WHERE, _PAGE = b"\xf4", 0x1000, 0x1000


def ask(path: str) -> dict[str, Any]:
    """What came of it: `api`, `vm`, `ran` (None: not tried on this processor), and with an error `step` and `errno`."""
    found: dict[str, Any] = {"api": None, "vm": False, "ran": None, "step": "open", "errno": None}
    try:
        kvm = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        found["step"] = "KVM_GET_API_VERSION"
        found["api"] = fcntl.ioctl(kvm, GET_API_VERSION, 0)
        if found["api"] != VERSION:
            return found
        found["step"] = "KVM_CREATE_VM"
        # Type 0 is the default of every architecture.
        vm = fcntl.ioctl(kvm, CREATE_VM, 0)
        found.update(vm=True, step=None)
        if os.uname().machine == "x86_64":
            found["step"] = "KVM_RUN"
            found["ran"] = _halts(kvm, vm)
            found["step"] = None if found["ran"] else found["step"]
    except OSError as error:
        found["errno"] = error.errno
    return found


def _halts(kvm: int, vm: int) -> bool:
    """In real mode, as a processor starts: one page with 'hlt' in it, which KVM answers with an exit."""
    memory = mmap.mmap(-1, _PAGE)
    memory[:1] = _HLT
    at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(vm, SET_USER_MEMORY_REGION, struct.pack("=IIQQQ", 0, 0, _WHERE, _PAGE, at))
    cpu = fcntl.ioctl(vm, CREATE_VCPU, 0)
    run = mmap.mmap(cpu, fcntl.ioctl(kvm, GET_VCPU_MMAP_SIZE, 0))
    sregs = bytearray(_SREGS)
    fcntl.ioctl(cpu, GET_SREGS, sregs)
    struct.pack_into("=Q", sregs, _CS_BASE, 0)
    struct.pack_into("=H", sregs, _CS_SELECTOR, 0)
    fcntl.ioctl(cpu, SET_SREGS, bytes(sregs))
    regs = bytearray(_REGS)
    struct.pack_into("=Q", regs, _RIP, _WHERE)
    # Bit 1 is always set.
    struct.pack_into("=Q", regs, _RFLAGS, 2)
    fcntl.ioctl(cpu, SET_REGS, bytes(regs))
    fcntl.ioctl(cpu, RUN, 0)
    return bool(struct.unpack_from("=I", run, _REASON)[0] == EXIT_HLT)
