# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Early binding: what the initramfs claims, when it is made anew, and what the script itself does."""

from __future__ import annotations

import errno
import json
import os
import subprocess

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import initramfs, replay
from ansible_collections.iovirt.host.plugins.module_utils._engine.errors import EngineError
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils import sim_modules
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import (
    DISK,
    EDU,
    MANAGEMENT,
    NVME,
    PF1,
    PF2,
    at,
    call,
    converged,
    lab,
    quiet,
    refused,
)
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import DEVICES, RELEASE

IMAGE = f"/boot/initrd.img-{RELEASE}"
TOOLS = {
    "initramfs-tools": sim_modules.INITRAMFS_TOOLS,
    "dracut": sim_modules.DRACUT,
    "mkinitcpio": sim_modules.MKINITCPIO,
}


def refreshes(sim):
    return [c for c in sim.commands if c[0] in ("update-initramfs", "dracut", "mkinitcpio")]


def with_tool(sim, tool):
    """A host whose images are made by another tool."""
    sim.initramfs_tool = TOOLS[tool]
    if tool == "mkinitcpio":
        sim.files[f"/lib/modules/{RELEASE}/pkgbase"] = "linux\n"
        sim.images = {"/boot/initramfs-linux.img": {}, "/boot/initramfs-linux-fallback.img": {}}
    sim._tree = None
    return sim


def early(address, **wish):
    return at(address, early=True, **wish)


@pytest.mark.parametrize("tool", TOOLS)
def test_claimed_before_udev_and_given_back(tool):
    """One of two ports of the same ids: the other one keeps its driver all the way, which ids= could not do."""
    sim = with_tool(lab(), tool)
    files = dict(sim.files)
    done = converged(sim, vfio=[early(PF1), early(EDU)])
    assert len(refreshes(sim)) == 1
    assert [a["text"] for a in done["actions"]][-1].startswith("make 1 initramfs image anew")
    assert done["reboot_required"] is False
    assert done["vfio"] == [
        {"match": {"address": [EDU]}, "driver": "vfio-pci", "early": True},
        {"match": {"address": [PF1]}, "driver": "vfio-pci", "early": True},
    ]
    sim.reboot()
    for address in (PF1, EDU):
        assert (sim.functions[address].driver, sim.functions[address].override) == ("vfio-pci", "vfio-pci")
    assert sim.functions[PF2].driver == "igb"
    assert replay.run(sim.host(environment={}, sources=None), None)["changed"] is False
    quiet(sim, vfio=[early(PF1), early(EDU)])
    converged(sim, vfio=[at(PF1, state="absent"), at(EDU, state="absent")])
    assert len(refreshes(sim)) == 2
    assert next(iter(sim.images.values())) == {}
    assert {p: t for p, t in sim.files.items() if p[:5] != "/run/"} == {p: t for p, t in files.items() if p[:5] != "/run/"}
    sim.reboot()
    assert sim.functions[PF1].driver == "igb" and sim.functions[EDU].override is None


def test_unset_keeps_it_and_false_ends_it():
    sim = lab()
    call(sim, vfio=[early(NVME)])
    quiet(sim, vfio=[at(NVME)])
    converged(sim, vfio=[at(NVME, early=False)])
    assert len(refreshes(sim)) == 2 and not sim.exists(initramfs.RECORD)
    sim.reboot()
    assert sim.functions[NVME].driver == "nvme"


def test_a_device_more_or_less_makes_the_images_anew_once():
    sim = lab()
    call(sim, vfio=[early(NVME)])
    converged(sim, vfio=[early(NVME), early(EDU), early(PF2)])
    assert len(refreshes(sim)) == 2
    converged(sim, vfio=[early(NVME)], exclusive=("vfio",))
    assert len(refreshes(sim)) == 3
    sim.reboot()
    assert [sim.functions[a].driver for a in (NVME, EDU, PF2)] == ["vfio-pci", None, "igb"]


def test_what_is_bound_already_only_gets_the_initramfs():
    sim = lab()
    call(sim, vfio=[at(EDU)])
    done = converged(sim, vfio=[early(EDU)])
    assert {a["action"] for a in done["actions"]} == {"declare", "refresh_initramfs"}


def test_a_kernel_that_comes_later_is_fresh_by_itself_and_an_old_image_is_not():
    sim = lab()
    call(sim, vfio=[early(EDU)])
    later = "/boot/initrd.img-6.12.1-later"
    sim.files["/lib/modules/6.12.1-later/modules.dep"] = ""
    sim.images[later], sim.changes[later] = dict(sim.images[IMAGE]), sim.now
    sim._tree = None
    quiet(sim, vfio=[early(EDU)])
    sim.changes[later] = 1.0
    done = converged(sim, vfio=[early(EDU)])
    assert [a["action"] for a in done["actions"]] == ["refresh_initramfs"]
    assert refreshes(sim)[-2:] == [["update-initramfs", "-u", "-k", "6.12.1-later"], ["update-initramfs", "-u", "-k", RELEASE]] or (
        refreshes(sim)[-2:] == [["update-initramfs", "-u", "-k", RELEASE], ["update-initramfs", "-u", "-k", "6.12.1-later"]]
    )


def test_a_refresh_that_fails_is_done_by_the_next_run():
    sim = lab()
    sim.initramfs_breaks = True
    done = call(sim, vfio=[early(EDU)])
    assert "No space left" in done["failures"]["host"] and "room in /boot" in done["failures"]["host"]
    assert sim.functions[EDU].driver == "vfio-pci"
    assert not [path for path in sim.files if path.startswith("/etc/initramfs-tools")]
    sim.initramfs_breaks = False
    converged(sim, vfio=[early(EDU)])


def test_dracut_makes_the_image_beside_the_old_one_which_stays_until_the_new_one_is_looked_at(monkeypatch):
    sim = with_tool(lab(), "dracut")
    whole = dict(sim.images)
    sim.initramfs_breaks = True
    said = call(sim, vfio=[early(EDU)])["failures"]["host"]
    assert f"{IMAGE} is as it was. Is there room in /boot?" in said and sim.images == whole
    sim.initramfs_breaks = False
    make = sim_modules._make

    def empty(sim, image):
        make(sim, image)
        sim.images[image] = {}
        return 0, "", ""

    monkeypatch.setattr(sim_modules, "_make", empty)
    said = call(sim, vfio=[early(EDU)])["failures"]["host"]
    assert f"{IMAGE}.iovirt-new did not come out as wished" in said and f"{IMAGE} is as it was." in said and sim.images == whole
    monkeypatch.setattr(sim_modules, "_make", make)
    # What stood beside it after a cut is written anew.
    sim.images[f"{IMAGE}.iovirt-new"] = {"half": ""}
    converged(sim, vfio=[early(EDU)])
    assert list(sim.images) == [IMAGE] and "iovirt_claim" in "".join(sim.images[IMAGE].values())
    assert refreshes(sim)[-1] == ["dracut", "--force", f"{IMAGE}.iovirt-new", RELEASE]


def test_dracut_that_makes_nothing_is_told(monkeypatch):
    """As with noimageifnotneeded: it ends well, and there is no file."""
    sim = with_tool(lab(), "dracut")
    monkeypatch.setattr(sim_modules, "_make", lambda sim, image: (0, "", ""))
    said = call(sim, vfio=[early(EDU)])["failures"]["host"]
    assert f"{IMAGE}.iovirt-new did not come out as wished" in said and "does not exist" in said and f"{IMAGE} is as it was." in said
    assert sim.images == {IMAGE: {}}


def test_what_went_wrong_is_said_also_where_nothing_can_be_taken_away(monkeypatch):
    sim = with_tool(lab(), "dracut")
    sim.initramfs_breaks = True
    remove = sim.remove

    def read_only(path):
        if path.startswith("/boot/"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        remove(path)

    monkeypatch.setattr(sim, "remove", read_only)
    # One that a run has left cannot go either.
    sim.images[f"{IMAGE}.iovirt-new"] = {"half": ""}
    said = call(sim, vfio=[early(EDU)])["failures"]["host"]
    assert "No space left on device" in said and f"{IMAGE} is as it was." in said


def test_what_a_run_left_beside_the_image_of_a_kernel_that_is_gone_goes():
    sim = with_tool(lab(), "dracut")
    sim.images["/boot/initramfs-5.1.0-gone.img.iovirt-new"] = {"half": ""}
    sim.files["/boot/notes.iovirt-new"] = "somebody's"
    call(sim, vfio=[early(EDU)])
    assert list(sim.images) == [IMAGE] and sim.exists("/boot/notes.iovirt-new")


def test_an_image_that_is_a_link_stays_one():
    sim = with_tool(lab(), "dracut")
    sim.images = {"/boot/efi/images/initrd": {}}
    sim.links[IMAGE] = "/boot/efi/images/initrd"
    sim._tree = None
    call(sim, vfio=[early(EDU)])
    assert refreshes(sim) == [["dracut", "--force", "/boot/efi/images/initrd.iovirt-new", RELEASE]]
    assert sim.links[IMAGE] == "/boot/efi/images/initrd" and "iovirt_claim" in "".join(sim.images["/boot/efi/images/initrd"].values())


def test_an_image_made_for_something_else_is_looked_at_as_well(monkeypatch):
    """Parameters of a module: nothing of ours is in the image, and one that cannot be listed is none."""
    sim = with_tool(lab(), "dracut")
    host = sim.host()
    initramfs.remake(host, "dracut", {IMAGE: RELEASE})
    assert sim.commands[-2:] == [["dracut", "--force", f"{IMAGE}.iovirt-new", RELEASE], ["lsinitrd", f"{IMAGE}.iovirt-new"]]
    before = dict(sim.images)
    monkeypatch.setattr(sim_modules, "listed", lambda sim, image: (0, "", ""))
    with pytest.raises(EngineError, match=r"nothing is in it.*is as it was"):
        initramfs.remake(host, "dracut", {IMAGE: RELEASE})
    assert sim.images == before


def test_a_place_that_cannot_be_taken_is_an_error_of_the_device(monkeypatch):
    sim = with_tool(lab(), "dracut")

    def full(made, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sim, "put_in_place", full)
    said = call(sim, vfio=[early(EDU)])["failures"]["host"]
    assert f"{IMAGE}.iovirt-new cannot take the place of {IMAGE}: ENOSPC" in said
    assert list(sim.images) == [IMAGE]


def test_giving_back_whose_refresh_fails_is_not_forgotten():
    """The images still claim the device: the next run of any kind makes them anew, and the record tells it."""
    sim = lab()
    call(sim, vfio=[early(EDU)])
    sim.initramfs_breaks = True
    assert call(sim, vfio=[at(EDU, state="absent")])["failures"]["host"]
    sim.initramfs_breaks = False
    converged(sim, vfio=[])
    assert sim.images[IMAGE] == {} and not sim.exists(initramfs.RECORD)


def test_an_image_without_our_script_is_not_believed():
    sim = lab()
    make = sim_modules._make
    sim_modules._make = lambda sim, image: (0, "", "")
    try:
        assert "did not come out as wished" in call(sim, vfio=[early(EDU)])["failures"]["host"]
    finally:
        sim_modules._make = make


def test_another_card_in_the_place_is_not_claimed():
    sim = lab()
    call(sim, vfio=[early(PF1)])
    sim.functions[PF1].ids = "8086:10d3"
    sim.reboot()
    assert (sim.functions[PF1].driver, sim.functions[PF1].override) == ("e1000e", None)


def test_one_boot_without():
    sim = lab()
    call(sim, vfio=[early(PF1)])
    sim._boot("intel_iommu=on iovirt.early=off")
    assert sim.functions[PF1].driver == "igb"


def test_before_the_iommu_is_on():
    """The initramfs is made ready now, the bind waits for the boot."""
    sim = lab(iommu=False, next_iommu=True)
    done = converged(sim, vfio=[early(EDU)])
    assert [a["certainty"] for a in done["actions"] if a["action"] in ("bind", "refresh_initramfs")] == ["after_reboot", "certain"]
    assert done["reboot_required"]
    sim.reboot()
    assert sim.functions[EDU].driver == "vfio-pci"


# --- Refusals --------------------------------------------------------------------------------------------------------


def test_no_tool_and_no_image():
    sim = lab()
    sim.initramfs_tool = ()
    refused(sim, EDU, "no tool", "initramfs-tools, dracut, mkinitcpio", "Leave `early` out", vfio=[early(EDU)])
    sim = lab()
    sim.images.clear()
    refused(sim, EDU, "no initramfs of an installed kernel", vfio=[early(EDU)])


def test_a_vf_is_born_too_late():
    sim = lab()
    sim.write(f"{DEVICES}/{PF1}/sriov_numvfs", "1")
    refused(sim, "it is a VF", vfio=[{"match": {"address": ["0000:82:10.0"], "vf": True}, "early": True}])


def test_a_built_in_driver_comes_first():
    sim = lab()
    sim.builtin.add("nvme")
    sim.reboot()
    refused(sim, NVME, "nvme is built into the kernel", vfio=[early(NVME)])


def test_the_dangers_stay():
    refused(lab(), "mounted on /", "allow: [boot_disk]", vfio=[early(DISK)])
    refused(lab(), "path to the controller", vfio=[early(MANAGEMENT)])


def test_a_missing_tool_does_not_keep_the_replay_from_binding():
    sim = lab()
    call(sim, vfio=[early(EDU)])
    sim.images[IMAGE], sim.initramfs_tool = {}, ()
    sim.reboot()
    assert replay.run(sim.host(environment={}, sources=None), None)["failures"] == {}
    assert sim.functions[EDU].driver == "vfio-pci"


def test_a_tool_that_went_away_stops_no_other_call():
    sim = lab()
    call(sim, vfio=[early(EDU)])
    sim.initramfs_tool, sim._tree = (), None
    done = converged(sim, vfio=[at(NVME)])
    assert "no tool" in done["warnings"][0] and EDU in done["warnings"][0]


# --- The script itself, in a real shell ------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path):
    """A tree with the function 0000:21:00.0 in it and a modprobe that says what it was called with."""
    device = tmp_path / "sys/bus/pci/devices/0000:21:00.0"
    device.mkdir(parents=True)
    for name, text in (("vendor", "0x8086"), ("device", "0x10c9"), ("subsystem_vendor", "0x1af4"), ("subsystem_device", "0x1100")):
        (device / name).write_text(text + "\n")
    (tmp_path / "sys/bus/pci/drivers").mkdir()
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cmdline").write_text("root=/dev/vda2 quiet\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/modprobe").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/loaded\n')
    (tmp_path / "bin/modprobe").chmod(0o755)
    return tmp_path


def run_script(root, tool, shell="/bin/sh", ids="8086:10c9", **environment):
    script = initramfs.wanted(tool, [initramfs.Claim("0000:21:00.0", *ids.split(":"), "1af4:1100", "vfio-pci")])
    text = next(text for text, _mode in script.values() if "iovirt_claim()" in text)
    (root / "script.sh").write_text(text)
    # dracut sources it, and goes on after it.
    line = ". ./script.sh; echo after" if tool == "dracut" else "./script.sh; echo after"
    (root / "script.sh").chmod(0o755)
    done = subprocess.run(
        [shell, "-c", line], cwd=root, capture_output=True, text=True, check=False,
        env={"PATH": f"{root}/bin", "IOVIRT_ROOT": str(root), **environment},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "after\n", "")
    device = root / "sys/bus/pci/devices/0000:21:00.0"
    override = device / "driver_override"
    return override.read_text().strip() if override.exists() else None


@pytest.mark.parametrize("tool", TOOLS)
def test_the_script_claims(root, tool):
    assert run_script(root, tool) == "vfio-pci"
    assert (root / "loaded").read_text() == "vfio_pci\n"
    assert (root / "sys/bus/pci/drivers_probe").read_text() == "0000:21:00.0\n"


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("what", ["ids", "subsystem", "bound", "absent", "off"])
def test_the_script_leaves_alone(root, tool, what):
    device = root / "sys/bus/pci/devices/0000:21:00.0"
    if what == "subsystem":
        (device / "subsystem_device").write_text("0x1101\n")
    if what == "bound":
        (device / "driver").mkdir()
    if what == "absent":
        device.rename(device.with_name("0000:22:00.0"))
    if what == "off":
        (root / "proc/cmdline").write_text("root=/dev/vda2 iovirt.early=off quiet\n")
    assert run_script(root, tool, ids="8086:10ca" if what == "ids" else "8086:10c9") is None
    assert not (root / "loaded").exists()


def test_a_driver_that_is_there_is_not_loaded(root):
    """vfio-pci built in: it is asked to take the device, and nothing is loaded."""
    (root / "sys/bus/pci/drivers/vfio-pci").mkdir()
    assert run_script(root, "initramfs-tools") == "vfio-pci"
    assert not (root / "loaded").exists()
    assert (root / "sys/bus/pci/drivers_probe").exists()


def test_the_script_answers_for_its_prerequisites(root):
    """initramfs-tools calls each script with 'prereqs' when an image is made: nothing may be done then."""
    text = initramfs.wanted("initramfs-tools", [initramfs.Claim("0000:21:00.0", "8086", "10c9", "1af4:1100", "vfio-pci")])
    for script, _mode in text.values():
        done = subprocess.run(["/bin/sh", "-s", "prereqs"], input=script, capture_output=True, text=True, check=False, cwd=root,
                              env={"IOVIRT_ROOT": str(root)})
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (root / "sys/bus/pci/devices/0000:21:00.0/driver_override").exists()


@pytest.mark.parametrize("hooks", ["base udev block", "base systemd sd-vconsole"])
def test_what_mkinitcpio_makes_of_our_hook(tmp_path, hooks):
    """Its functions are doubles that say what they were called with; bash is real."""
    files = initramfs.wanted("mkinitcpio", [initramfs.Claim("0000:21:00.0", "8086", "10c9", "1af4:1100", "vfio-pci")])
    for path, (text, _mode) in files.items():
        (tmp_path / path.rpartition("/")[2]).write_text(text)
    doubles = "".join(f'{name}() {{ echo {name} "$@"; }}\n' for name in ("add_module", "add_binary", "add_file", "add_symlink", "add_runscript"))
    script = f'{doubles}HOOKS=({hooks})\n. ./zz-iovirt.conf\necho "${{HOOKS[@]}}"\n. ./iovirt-vfio.build\nbuild\n'
    (tmp_path / "iovirt-vfio.build").write_text(files["/etc/initcpio/install/iovirt-vfio"][0])
    done = subprocess.run(["bash", "-euc", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    said = done.stdout.splitlines()
    assert said[0] == f"iovirt-vfio {hooks}"
    assert "add_module vfio_pci?" in said and "add_file /etc/initcpio/iovirt-vfio.sh /usr/bin/iovirt-vfio 755" in said
    assert ("add_runscript" in said) is ("udev" in hooks)
    assert any(line.startswith("add_symlink /usr/lib/systemd/system/sysinit.target.wants/") for line in said) is ("systemd" in hooks)


def test_of_two_tools_the_one_whose_images_are_there():
    sim = with_tool(lab(), "mkinitcpio")
    sim.initramfs_tool = (*sim_modules.DRACUT, *sim_modules.MKINITCPIO)
    sim._tree = None
    call(sim, vfio=[early(EDU)])
    assert [c[0] for c in refreshes(sim)] == ["mkinitcpio"]


def test_the_record_is_kept_with_the_wish():
    sim = lab()
    call(sim, vfio=[early(EDU)])
    assert json.loads(sim.text("/etc/iovirt/vfio.json"))["devices"][EDU]["wish"] == {"driver": "vfio-pci", "early": True}
