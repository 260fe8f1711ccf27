# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Simulated boot loaders other than Debian's GRUB: their files and their tools, each behaving as its source says.

All trees here are synthetic. systemd-boot and unified kernel images were also booted in the lab; the others were not.
"""

from __future__ import annotations

import re
import struct
from typing import Any

from ansible_collections.iovirt.host.plugins.module_utils._engine import cmdline
from ansible_collections.iovirt.host.plugins.module_utils._engine.loaders import grub, pe
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import lab
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import RELEASE, SimKernel, _source, grub_config

MACHINE = "0123456789abcdef0123456789abcdef"
ESP = "/boot/efi"
OLDER = "6.1.0-sim"
LINE = "root=LABEL=labroot ro console=ttyS0 intel_iommu=off"
LOADER_INFO = "/sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
STUB_INFO = "/sys/firmware/efi/efivars/StubInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"

Answer = tuple[int, str, str]


def variable(text: str) -> str:
    """An EFI variable as efivarfs shows it: attributes, then UTF-16 (Documentation/filesystems/efivarfs.rst)."""
    return "\x06\0\0\0" + text.encode("utf-16-le").decode("latin-1")


def program(**sections: str) -> str:
    """A PE file with sections of text, in the layout of the PE/COFF specification; as latin-1 text."""
    names = {f".{name}": text.encode() for name, text in sections.items()}
    head = b"MZ" + bytes(0x3A) + struct.pack("<I", 0x40)
    coff = b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, len(names), 0, 0, 0, 0, 0)
    offset = len(head) + len(coff) + 40 * len(names)
    table, data = b"", b""
    for name, text in names.items():
        table += struct.pack("<8sIIII16x", name.encode(), len(text), 0x1000, len(text), offset + len(data))
        data += text
    return (head + coff + table + data).decode("latin-1")


def _ready(sim: SimKernel) -> SimKernel:
    """The host as it was booted, with nothing done to it yet."""
    sim.reboot()
    for path in sim.files:
        sim.modes.setdefault(path, 0o644)
    sim.log.clear()
    return sim


# --- systemd-boot and unified kernel images --------------------------------------------------------------------------


def systemd_boot(kind: str = "type1", line: str = LINE, foreign_grub: bool = False) -> SimKernel:
    """A host that systemd-boot 257 started: entries of type 1, unified images made here ('uki') or elsewhere ('vendor'),
    for two kernels. `foreign_grub`: a GRUB that is not in use is installed, too."""
    sim = lab()
    grub_files = {path: sim.files[path] for path in (grub.CONFIG, "/etc/default/grub")}
    for path in grub_files:
        sim.files.pop(path)
    sim.next_words = next_words
    sim.tools.update({"env": _env, "kernel-install": _kernel_install, "ukify": _ukify})
    sim.files.update({
        "/sys/firmware/efi/fw_platform_size": "64\n",
        LOADER_INFO: variable("systemd-boot 257.13-1~deb13u1"),
        f"{ESP}/EFI/systemd/systemd-bootx64.efi": program(sdmagic="x"),
        "/etc/machine-id": MACHINE + "\n",
        "/etc/os-release": 'ID=debian\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n',
        "/etc/kernel/cmdline": line + "\n",
        f"/boot/vmlinuz-{OLDER}": "kernel",
        f"/boot/initrd.img-{OLDER}": "initrd",
    })
    if kind != "type1":
        sim.files[STUB_INFO] = variable("systemd-stub 257.13-1~deb13u1")
        sim.files["/etc/kernel/install.conf"] = "layout=uki\nuki_generator=ukify\n"
    sim.files["/proc/self/mountinfo"] += f"40 29 254:17 / {ESP} rw,relatime shared:2 - vfat /dev/vdb1 rw,fmask=0077\n"
    if foreign_grub:
        sim.files.update(grub_files)
        sim.files["/usr/sbin/grub-mkconfig"] = "default/grub.d"
    for version in (OLDER, RELEASE):
        install_kernel(sim, version)
    if kind == "vendor":
        sim.files.pop("/etc/kernel/install.conf")
    return _ready(sim)


def install_kernel(sim: SimKernel, version: str) -> None:
    """What the package of a kernel does: /etc/kernel/postinst.d/zz-systemd-boot runs kernel-install."""
    sim.files[f"/boot/vmlinuz-{version}"] = "kernel"
    code, _out, err = _kernel_install(sim, ["kernel-install", "add", version, f"/boot/vmlinuz-{version}"])
    assert code == 0, err
    sim._tree = None


def _env(sim: SimKernel, argv: list[str]) -> Answer:
    environment = dict(word.split("=", 1) for word in argv[1:] if re.match(r"[A-Z_]+=", word))
    words = [word for word in argv[1:] if not re.match(r"[A-Z_]+=", word)]
    tool: Any = sim.tools[words[0]]
    return tool(sim, words, environment)  # type: ignore[no-any-return]


def _kernel_install(sim: SimKernel, argv: list[str], environment: dict[str, str] | None = None) -> Answer:
    """kernel-install add (src/kernel-install/kernel-install.c): $BOOT from BOOT_ROOT; 90-loaderentry.install for the
    layout bls, 60-ukify.install and 90-uki-copy.install for uki; both write over what is there."""
    _name, verb, version, image = argv
    if verb != "add" or (image not in sim.files and not sim.exists(image)):
        return 1, "", f"Kernel image {image} not found"
    root = (environment or {}).get("BOOT_ROOT", ESP)
    line = sim.files.get("/etc/kernel/cmdline") or sim.files.get("/usr/lib/kernel/cmdline") or sim.files["/proc/cmdline"]
    words = [w for w in line.split() if not w.startswith(("BOOT_IMAGE=", "initrd="))]
    options = " ".join([*words, f"systemd.machine_id={MACHINE}"])
    if "layout=uki" in sim.files.get("/etc/kernel/install.conf", ""):
        text = program(linux="kernel", cmdline=options, uname=version, osrel=sim.files["/etc/os-release"])
        sim.files[f"{root}/EFI/Linux/{MACHINE}-{version}.efi"] = text
        return 0, "", ""
    folder = f"{MACHINE}/{version}"
    sim.files[f"{root}/{folder}/linux"] = "kernel"
    sim.files[f"{root}/{folder}/initrd.img-{version}"] = "initrd"
    sim.files[f"{root}/loader/entries/{MACHINE}-{version}.conf"] = (
        "# Boot Loader Specification type#1 entry\n"
        "# File created by /usr/lib/kernel/install.d/90-loaderentry.install (systemd 257)\n"
        f"title      Debian GNU/Linux 13 (trixie)\nversion    {version}\nmachine-id {MACHINE}\nsort-key   debian\n"
        f"options    {options}\nlinux      /{folder}/linux\ninitrd     /{folder}/initrd.img-{version}\n"
    )
    return 0, "", ""


def _ukify(sim: SimKernel, argv: list[str]) -> Answer:
    """ukify build --cmdline= --output= without a kernel makes an addon (ukify(1))."""
    options = dict(word[2:].split("=", 1) for word in argv[2:])
    sim.files[options["output"]] = program(cmdline=options["cmdline"])
    return 0, "", ""


def next_words(sim: SimKernel) -> str:
    """What systemd-boot gives to the newest kernel: unified images sort first (seen in the lab)."""
    folder = f"{ESP}/EFI/Linux"
    images = [path for path in sim.files if path.startswith(f"{folder}/") and path.endswith(".efi") and pe.sections(sim, path)]
    if images:
        best = max(images, key=lambda path: (pe.sections(sim, path) or {})[".uname"])
        addons = [p for p in sorted(sim.files) if p.startswith(f"{ESP}/loader/addons/") and p.endswith(".addon.efi")]
        return " ".join([*pe.words(sim, best), *(w for a in addons for w in pe.words(sim, a))])
    found = [t for p, t in sim.files.items() if re.fullmatch(rf"{ESP}/loader/entries/[^/]+\.conf", p)]
    texts = sorted(found, key=lambda text: re.findall(r"^version\s+(\S+)", text, re.MULTILINE))
    options = " ".join(re.findall(r"^options\s+(.*)$", texts[-1], re.MULTILINE))
    return f"initrd=\\{MACHINE}\\{RELEASE}\\initrd.img-{RELEASE} {options}"


# --- GRUB with Boot Loader Specification entries ---------------------------------------------------------------------


def grub_bls(line: str = LINE, kernelopts: bool = False) -> SimKernel:
    """A host of the Fedora kind: two kernels and a rescue entry, tuned's variable in each."""
    sim = lab()
    for path in (grub.CONFIG, "/etc/default/grub"):
        sim.files.pop(path)
    sim.next_words = _bls_words
    sim.tools["grubby"] = _grubby
    options = "$kernelopts $tuned_params" if kernelopts else f"{line} $tuned_params"
    sim.files.update({
        "/usr/sbin/grubby": "",
        "/usr/sbin/grub2-mkconfig": "",
        "/boot/grub2/grub.cfg": "blscfg\n",
        "/boot/grub2/grubenv": f"# GRUB Environment Block\nkernelopts={line}\ntuned_params=skew_tick=1 nohz=on\n",
        "/etc/machine-id": MACHINE + "\n",
        "/etc/kernel/cmdline": line + "\n",
        "/etc/default/grub": f'GRUB_TIMEOUT=5\nGRUB_CMDLINE_LINUX="{line.partition("ro ")[2]}"\nGRUB_ENABLE_BLSCFG=true\n',
    })
    for version, title in ((OLDER, "Fedora Linux"), (RELEASE, "Fedora Linux"), ("0-rescue", "Fedora Linux")):
        name = f"{MACHINE}-{version}" if version != "0-rescue" else f"{MACHINE}-0-rescue"
        kernel = f"/vmlinuz-{version}" if version != "0-rescue" else f"/vmlinuz-0-rescue-{MACHINE}"
        sim.files[f"/boot{kernel}"] = "kernel"
        sim.files[f"/boot/loader/entries/{name}.conf"] = (
            f"title {title} ({version})\nversion {version}\nlinux {kernel}\ninitrd /initramfs-{version}.img\n"
            f"options {options}\ngrub_users $grub_users\ngrub_arg --unrestricted\ngrub_class fedora\n"
        )
    return _ready(sim)


def _expanded(sim: SimKernel, text: str) -> str:
    environment = dict(re.findall(r"^(\w+)=(.*)$", sim.files["/boot/grub2/grubenv"], re.MULTILINE))
    options = " ".join(re.findall(r"^options\s+(.*)$", text, re.MULTILINE))
    return re.sub(r"\$(\w+)", lambda found: environment.get(found.group(1), ""), options)


def _bls_words(sim: SimKernel) -> str:
    """blscfg sorts by version, newest first (lab, GRUB 2.14); BOOT_IMAGE as GRUB writes it."""
    name = f"/boot/loader/entries/{MACHINE}-{RELEASE}.conf"
    return f"BOOT_IMAGE=(hd0,gpt2)/vmlinuz-{RELEASE} " + _expanded(sim, sim.files[name])


def _grubby(sim: SimKernel, argv: list[str]) -> Answer:
    """grubby --info=ALL of the grubby-bls script (Fedora, 2023): root= has a line of its own."""
    if argv[1:] != ["--info=ALL"]:
        return 1, "", "no such action here"
    out = ""
    for number, path in enumerate(sorted((p for p in sim.files if p.startswith("/boot/loader/entries/")), reverse=True)):
        text = sim.files[path]
        words = cmdline.split(_expanded(sim, text))
        kernel = re.findall(r"^linux\s+(\S+)", text, re.MULTILINE)[0]
        args = " ".join(w for w in words if not w.startswith("root="))
        out += f'index={number}\nkernel="/boot{kernel}"\nargs="{args}"\nroot="LABEL=labroot"\n'
    return 0, out, ""


# --- GRUB without drop-ins, as on SUSE -------------------------------------------------------------------------------


def suse(line: str = "console=ttyS0 intel_iommu=off") -> SimKernel:
    """openSUSE Leap: grub2-mkconfig reads /etc/default/grub alone."""
    sim = lab()
    for path in (grub.CONFIG, "/etc/default/grub"):
        sim.files.pop(path)
    sim.next_words = _suse_words
    sim.tools["grub2-mkconfig"] = _grub2_mkconfig
    sim.files["/usr/sbin/grub2-mkconfig"] = ". ${sysconfdir}/default/grub"
    sim.files["/etc/default/grub"] = (
        "# If you change this file, run 'grub2-mkconfig -o /boot/grub2/grub.cfg' afterwards\n"
        'GRUB_DISTRIBUTOR=""\nGRUB_CMDLINE_LINUX_DEFAULT="splash=silent quiet"\n'
        f"GRUB_CMDLINE_LINUX='{line}' # console\n"
    )
    _grub2_mkconfig(sim, ["grub2-mkconfig", "-o", "/boot/grub2/grub.cfg"])
    return _ready(sim)


def _suse_words(sim: SimKernel) -> str:
    return f"BOOT_IMAGE=/boot/vmlinuz-{RELEASE} " + " ".join(grub.parse(sim.files["/boot/grub2/grub.cfg"])[0].words)


def _grub2_mkconfig(sim: SimKernel, argv: list[str]) -> Answer:
    """Upstream's grub-mkconfig: /etc/default/grub, read by sh, and no drop-ins."""
    code, words, err = _source(sim.files["/etc/default/grub"], {})
    if code:
        return code, "", err
    sim.files[argv[2]] = grub_config(words["GRUB_CMDLINE_LINUX"], words["GRUB_CMDLINE_LINUX_DEFAULT"])
    return 0, "", ""


# --- Proxmox VE ------------------------------------------------------------------------------------------------------


def proxmox(line: str = LINE) -> SimKernel:
    """Proxmox VE on ZFS with systemd-boot: the EFI system partitions are not mounted (proxmox-boot-tool: the scripts of
    proxmox-kernel-helper); `.esp` in the simulation stands for one of them."""
    sim = lab()
    sim.files.pop(grub.CONFIG)
    sim.next_words = lambda sim: sim.files["/.esp/cmdline"]
    sim.tools["proxmox-boot-tool"] = _proxmox
    sim.files.update({
        "/sys/firmware/efi/fw_platform_size": "64\n",
        LOADER_INFO: variable("systemd-boot 252.12-1~deb12u1"),
        "/usr/sbin/proxmox-boot-tool": "",
        "/etc/kernel/proxmox-boot-uuids": "ABCD-1234\n",
        "/etc/kernel/cmdline": line + "\n",
        f"/boot/vmlinuz-{RELEASE}": "kernel",
    })
    _proxmox(sim, ["proxmox-boot-tool", "refresh"])
    return _ready(sim)


def _proxmox(sim: SimKernel, argv: list[str]) -> Answer:
    if argv[1:] != ["refresh"]:
        return 1, "", "USAGE: proxmox-boot-tool <commands> [ARGS]"
    sim.files["/.esp/cmdline"] = sim.files["/etc/kernel/cmdline"].strip()
    return 0, f"Copying and configuring kernels on /dev/disk/by-uuid/ABCD-1234\n\tCopying kernel {RELEASE}\n", ""


# --- rpm-ostree ------------------------------------------------------------------------------------------------------


def ostree(line: str = LINE) -> SimKernel:
    """Fedora CoreOS: the arguments of the deployment that boots next; `.kargs` in the simulation holds them."""
    sim = lab()
    for path in (grub.CONFIG, "/etc/default/grub"):
        sim.files.pop(path)
    sim.next_words = lambda sim: "BOOT_IMAGE=(hd0,gpt3)/boot/ostree/x/vmlinuz " + sim.files["/.kargs"]
    sim.tools["rpm-ostree"] = _rpm_ostree
    sim.files.update({"/.kargs": line, "/usr/bin/rpm-ostree": ""})
    sim.files["/etc/kernel-is-ostree"] = ""
    sim.links["/run/ostree-booted"] = "/etc/kernel-is-ostree"
    return _ready(sim)


def _rpm_ostree(sim: SimKernel, argv: list[str]) -> Answer:
    """rpm-ostree kargs (rpm-ostree(1)): deletions, then additions at the end, in one transaction; a deletion of what is
    not there fails it as a whole."""
    words = sim.files["/.kargs"].split()
    for word in argv[2:]:
        option, _equals, value = word.partition("=")
        if option == "--delete":
            if value not in words:
                return 1, "", f"error: No karg '{value}' found"
            words.remove(value)
        if option == "--append":
            words.append(value)
    sim.files["/.kargs"] = " ".join(words)
    return 0, sim.files["/.kargs"] + "\n" if not argv[2:] else "Kernel arguments updated.\n", ""
