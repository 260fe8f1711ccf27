# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The simulated kernel's modules and initramfs: depmod's tables, and what a script in the initramfs does at boot.

modules.alias, modules.dep and modules.builtin.modinfo as depmod(8) and the kernel's build write them; vfio_pci: aliases as
in Linux 6.12 (scripts/mod/file2alias.c). The initramfs holds what was in its folders when it was made; at boot its script
runs before udev loads anything (lab: order of init-top).
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import SimKernel

INITRAMFS_TOOLS = ("/usr/sbin/update-initramfs", "/usr/share/initramfs-tools/hook-functions")
DRACUT = ("/usr/bin/dracut", "/usr/lib/dracut/modules.d/99base/module-setup.sh")
MKINITCPIO = ("/usr/bin/mkinitcpio", "/etc/mkinitcpio.conf")
_FOLDERS = ("/etc/initramfs-tools/", "/usr/lib/dracut/modules.d/", "/etc/initcpio/", "/etc/mkinitcpio.conf.d/")


def tables(sim: SimKernel, folder: str) -> dict[str, str]:
    """depmod's tables of the running kernel; none where an upgrade took its modules away."""
    if sim.modules_gone:
        return {}
    loadable = [d for d in sim.known_drivers.values() if d.name not in sim.builtin and d.module not in sim.missing_modules]
    inside = [d for d in sim.known_drivers.values() if d.name in sim.builtin]
    aliases = [(glob, d.module) for d in loadable for glob in _globs(d)] + [("vfio_pci:v*d*sv*sd*bc*sc*i*", "vfio_pci")]
    return {
        f"{folder}/modules.dep": "".join(f"kernel/drivers/{d.module.replace('_', '-')}.ko.xz:\n" for d in loadable),
        f"{folder}/modules.builtin": "".join(f"kernel/drivers/{d.module.replace('_', '-')}.ko\n" for d in inside),
        f"{folder}/modules.alias": "".join(f"alias {glob} {module}\n" for glob, module in aliases),
        f"{folder}/modules.builtin.modinfo": "".join(
            f"{d.module}.license=GPL\0" + "".join(f"{d.module}.alias={glob}\0" for glob in _globs(d)) for d in inside
        ),
        **{
            f"/sys/module/{d.module}/drivers/pci:{d.name}": ""
            for d in sim.known_drivers.values()
            if d.name in sim.registered
        },
    }


def _globs(driver: Any) -> list[str]:
    """vfio-pci has none of its own: its ids are those of ids= and new_id, which no table knows."""
    if driver.name == "vfio-pci":
        return []
    return [_glob(ids) for ids in sorted(driver.ids)] + [f"vfio_{_glob(ids)}" for ids in sorted(driver.variant_of)]


@cache
def _glob(ids: str) -> str:
    if ":" in ids:
        vendor, device = (part.upper().rjust(8, "0") for part in ids.split(":"))
        return f"pci:v{vendor}d{device}sv*sd*bc*sc*i*"
    return f"pci:v*d*sv*sd*bc{ids[:2]}sc{ids[2:4]}i{ids[4:6]}*"


def initramfs_nodes(sim: SimKernel) -> dict[str, str]:
    return {**dict.fromkeys(sim.initramfs_tool, ""), **dict.fromkeys(sim.images, "")}


def run(sim: SimKernel, argv: list[str]) -> tuple[int, str, str] | None:
    """update-initramfs(8), lsinitramfs(8), dracut(8), lsinitrd(1), mkinitcpio(8), lsinitcpio(1); None for any other command."""
    if argv[:3] == ["update-initramfs", "-u", "-k"]:
        return _make(sim, f"/boot/initrd.img-{argv[3]}")
    if argv[:2] == ["dracut", "--force"]:
        code, out, err = _make(sim, argv[2])
        if code:
            # dracut.sh copies into the file that is there, and removes it where that fails.
            sim.images.pop(argv[2], None)
        return code, out, err
    if argv[:2] == ["mkinitcpio", "-p"]:
        return _make(sim, f"/boot/initramfs-{argv[2]}.img")
    if argv[0] == "lsinitcpio":
        # Only what a hook puts there, and only the hooks that HOOKS names.
        hooked = any("HOOKS=(iovirt-vfio" in text for text in sim.images[argv[1]].values())
        return 0, "init\nusr/bin/iovirt-vfio\n" if hooked else "init\n", ""
    if argv[0] in ("lsinitramfs", "lsinitrd"):
        return listed(sim, argv[1])
    return None


def listed(sim: SimKernel, image: str) -> tuple[int, str, str]:
    if image not in sim.images:
        return 1, "", f"{image} does not exist"
    return 0, "\n".join(["init", *(p.replace("/etc/initramfs-tools/", "") for p in sim.images[image])]), ""


def _make(sim: SimKernel, image: str) -> tuple[int, str, str]:
    sim.sleep(20.0)
    if image not in sim.images and image.replace(".iovirt-new", "") not in sim.images:
        return 1, "", f"{image} does not exist."
    if sim.initramfs_breaks:
        return 1, "", "zstd: error 70 : Write error : cannot write block : No space left on device"
    sim.images[image] = {p: t for p, t in sim.files.items() if p.startswith(_FOLDERS)}
    sim.changes[image] = sim.now
    return 0, "", ""


def boot(sim: SimKernel, image: str) -> None:
    """The script in the image of the kernel that boots: it does what its lines say (test_early.py runs the real one)."""
    image = image if image in sim.images else next(iter(sim.images), "")
    script = "".join(text for path, text in sim.images.get(image, {}).items() if "iovirt_claim()" in text)
    if "iovirt.early=off" in sim.files["/proc/cmdline"].split():
        return
    for line in re.findall(r"^  iovirt_claim (.+)$", script, re.MULTILINE):
        address, vendor, device, sub_vendor, sub_device, driver, module = line.split()
        function = sim.functions.get(address)
        known = (f"0x{function.ids[:4]}", f"0x{function.ids[5:]}", f"0x{function.subsystem[:4]}", f"0x{function.subsystem[5:]}") if function else ()
        if function and function.driver is None and known == (vendor, device, sub_vendor, sub_device):
            function.override = driver
            for found in sim._module(module):
                sim._register(found.name)
            sim._attach(function)
