# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Boot loaders: found, changed, taken back to the same bytes, and never left without an entry that boots."""

from __future__ import annotations

import errno

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import cmdline, engine
from ansible_collections.iovirt.host.plugins.module_utils._engine.errors import EngineError
from ansible_collections.iovirt.host.plugins.module_utils._engine.loaders import edited, find, grub, pe, uki
from ansible_collections.iovirt.host.plugins.module_utils._engine.resources import kernel_cmdline
from ansible_collections.iovirt.host.plugins.module_utils._engine.resources.iommu import IommuWish
from ansible_collections.iovirt.host.plugins.module_utils._engine.resources.kernel_cmdline import Wish
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils import sim_loaders
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import lab
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import RELEASE
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim_loaders import ESP, MACHINE, OLDER

SYNTHETIC = {
    "grub": lambda: lab(iommu=False),
    "suse": sim_loaders.suse,
    "systemd-boot": sim_loaders.systemd_boot,
    "uki": lambda: sim_loaders.systemd_boot("uki"),
    "bls": sim_loaders.grub_bls,
    "bls-kernelopts": lambda: sim_loaders.grub_bls(kernelopts=True),
    "proxmox": sim_loaders.proxmox,
    "rpm-ostree": sim_loaders.ostree,
}
ALL = sorted(SYNTHETIC)


@pytest.fixture(params=ALL)
def sim(request):
    return SYNTHETIC[request.param]()


def cmd(sim, check=False, **wish):
    return engine.host_cmdline(sim.host(), Wish(**wish), engine.Call(check=check, who="test"))


def iommu(sim, state="enabled", mode=None, check=False, **more):
    return engine.host_iommu(sim.host(), IommuWish(state, mode), engine.Call(check=check, who="test"), **more)


def files_of(sim):
    """Files, but for those of this boot."""
    return {path: text for path, text in sim.files.items() if not path.startswith(("/run/", "/proc/"))}


def settled(sim, call=cmd, **wish):
    """Announced, done, and nothing left to do."""
    before = sim.snapshot()
    announced = call(sim, check=True, **wish)
    assert sim.snapshot() == before
    done = call(sim, **wish)
    assert done["failures"] == {}
    assert (done["actions"], done["diff"], done["changed"]) == (announced["actions"], announced["diff"], announced["changed"])
    for check in (True, False):
        again = call(sim, check=check, **wish)
        assert again["actions"] == []
        assert again["changed"] is False
    return done


def running(sim):
    sim.reboot()
    return cmdline.split(sim.files["/proc/cmdline"])


def next_boot(sim):
    return kernel_cmdline.read(sim.host()).loader


# --- Every back end --------------------------------------------------------------------------------------------------


def test_off_passthrough_translated_off_ends_with_the_same_bytes(sim):
    start = files_of(sim)
    words = sorted(running(sim))
    assert not sim.iommu_on
    assert settled(sim, iommu, mode="passthrough")["reboot_required"]
    sim.reboot()
    assert sim.iommu_on and sim.identity_groups
    iommu(sim, mode="passthrough", prove=True)
    assert settled(sim, iommu, mode="translated")["reboot_required"]
    sim.reboot()
    assert sim.iommu_on and not sim.identity_groups
    settled(sim, iommu, state="absent")
    if "/.kargs" in start:
        # A transaction of rpm-ostree appends: the same words, maybe in another order.
        assert sorted(sim.files.pop("/.kargs").split()) == sorted(start.pop("/.kargs").split())
        assert files_of(sim) == start
        return
    assert files_of(sim) == start
    assert sorted(running(sim)) == words
    assert not sim.iommu_on


def test_it_reaches_every_entry_and_what_later_kernels_get(sim):
    settled(sim, present=["isolcpus=2-3"], absent=["console=ttyS0"])
    loader = next_boot(sim)
    assert loader.normal
    for words in loader.lines:
        assert "isolcpus=2-3" in words
        assert "console=ttyS0" not in words
    assert "isolcpus=2-3" in running(sim)
    assert cmd(sim, present=["isolcpus=2-3"])["reboot_required"] is False


def test_an_unmet_wish_names_what_differs(sim):
    done = settled(sim, present=["isolcpus=2-3"])
    assert done["reboot_required"]
    assert "isolcpus=2-3" in done["reboot_reasons"][0]
    differing = {item["key"]: item for item in done["kernel_cmdline"]["differing"]}
    assert differing["isolcpus"] == {"key": "isolcpus", "running": [], "next_boot": ["isolcpus=2-3"]}
    assert not set(differing) & {"BOOT_IMAGE", "initrd", "systemd.machine_id"}


@pytest.mark.parametrize("number", range(1, 16))
def test_each_step_that_fails_is_undone(sim, number):
    before = files_of(sim)
    sim.fail_at = number
    try:
        result = cmd(sim, present=["intel_iommu=on"])
    except EngineError as error:
        # rpm-ostree is asked by a command, before and after.
        assert "rpm-ostree kargs failed" in str(error)
        result = {"failures": {}}
    failed = len(sim.log) >= number
    sim.fail_at = None
    if result["failures"]:
        assert "undone" in result["failures"]["host"]
        assert "could not be undone" not in result["failures"]["host"]
        assert files_of(sim) == before
    elif failed and "/.kargs" not in before:
        # What failed was cleaning up.
        assert "intel_iommu=on" in running(sim)
    settled(sim, present=["intel_iommu=on"])
    assert "intel_iommu=on" in running(sim)


class PowerCut(BaseException):
    """Nothing runs any more: no undoing either."""


@pytest.mark.parametrize("wish", [{"present": ["intel_iommu=on"]}, {"release": ["intel_iommu"]}], ids=["set", "release"])
@pytest.mark.parametrize("number", range(1, 14))
def test_a_power_cut_leaves_a_host_that_boots_and_a_run_that_converges(sim, number, wish, monkeypatch):
    start = files_of(sim)
    if "release" in wish:
        settled(sim, present=["intel_iommu=on"])
    begin = type(sim)._begin
    left = [number]

    def cut(self, what, path, data):
        left[0] -= 1
        if left[0] <= 0:
            raise PowerCut
        begin(self, what, path, data)

    monkeypatch.setattr(type(sim), "_begin", cut)
    try:
        cmd(sim, **wish)
    except PowerCut:
        pass
    monkeypatch.setattr(type(sim), "_begin", begin)
    sim.lock_holder = None
    sim._tree = None
    words = running(sim)
    assert any(word.startswith("intel_iommu=") for word in words)
    assert "root=" in " ".join(words)
    settled(sim, **wish)
    if "release" in wish:
        ended, first = files_of(sim), start
        assert sorted(ended.pop("/.kargs", "").split()) == sorted(first.pop("/.kargs", "").split())
        assert ended == first
    else:
        assert "intel_iommu=on" in running(sim)


def test_two_wishes_of_two_calls_and_one_taken_back(sim):
    settled(sim, present=["isolcpus=2-3"])
    settled(sim, present=["nohz_full=2-3"], absent=["console"])
    settled(sim, release=["isolcpus"])
    words = running(sim)
    assert "nohz_full=2-3" in words
    assert not [w for w in words if w.startswith(("isolcpus", "console"))]


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"present": ["a\nb"]}, "line break"),
        ({"present": ['a="b']}, "unbalanced quote"),
        ({"present": ["=b"]}, "no key"),
        ({"present": ["quiet=1"]}, "takes none"),
        ({"present": ["a=1"], "absent": ["a"]}, "present and absent at once"),
        ({"present": ["a=1"], "exact": ["a=2"]}, "present and exact at once"),
        ({"present": ["pcie_acs_override=downstream"]}, r"allow: \[group\]"),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(sim, wish, said):
    before = files_of(sim)
    for check in (True, False):
        with pytest.raises(EngineError, match=said):
            cmd(sim, check=check, **wish)
    assert (files_of(sim), [item for item in sim.log if item != ("run", "/usr/bin/rpm-ostree", "kargs")]) == (before, [])


# --- Words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "present", "unmet"),
    [
        ("hugepagesz=1G hugepages=4", ["hugepagesz=1G", "hugepages=4"], []),
        ("hugepages=4 hugepagesz=1G", ["hugepagesz=1G", "hugepages=4"], ["hugepagesz=1G hugepages=4"]),
        ("hugepagesz=2M hugepages=4 hugepagesz=1G hugepages=2", ["hugepagesz=1G", "hugepages=4"], ["hugepagesz=1G hugepages=4"]),
        ("hugepagesz=2M hugepages=4 hugepagesz=1G hugepages=2", ["hugepagesz=1G", "hugepages=2", "hugepagesz=2M", "hugepages=4"], []),
        ("hugepages=4", ["hugepages=4"], []),
        ("hugepagesz=1G hugepages=4", ["hugepages=4"], ["hugepages=4"]),
    ],
)
def test_huge_pages_are_ordered_pairs(line, present, unmet):
    assert cmdline.unmet(cmdline.split(line), present, ()) == unmet


def test_other_sizes_of_huge_pages_stay(sim):
    settled(sim, present=["hugepagesz=2M", "hugepages=512"])
    settled(sim, present=["hugepagesz=1G", "hugepages=4"])
    settled(sim, present=["hugepages=8"])
    assert cmdline.huge_pages(running(sim)) == {None: "8", "2M": "512", "1G": "4"}
    settled(sim, release=["hugepages"])
    assert cmdline.huge_pages(running(sim)) == {}


def test_exactly_these(sim):
    settled(sim, exact=["console=tty0", "console=ttyS1", "intel_iommu=on"])
    words = running(sim)
    assert [w for w in words if w.startswith("console")] == ["console=tty0", "console=ttyS1"]
    assert [w for w in words if w.startswith("intel_iommu")] == ["intel_iommu=on"]
    settled(sim, release=["console", "intel_iommu"])
    assert [w for w in running(sim) if w.startswith("console")] == ["console=ttyS0"]


# --- Which one -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "loader"),
    [("grub", "grub"), ("suse", "grub"), ("systemd-boot", "systemd-boot"), ("uki", "uki"), ("bls", "grub-bls"),
     ("proxmox", "proxmox-boot-tool"), ("rpm-ostree", "rpm-ostree")],
)
def test_it_is_found_by_looking(name, loader):
    assert cmd(SYNTHETIC[name](), check=True)["kernel_cmdline"]["loader"] == loader


def test_of_two_the_one_that_booted_is_used_and_said():
    sim = sim_loaders.systemd_boot(foreign_grub=True)
    before = {path: sim.files[path] for path in (grub.CONFIG, "/etc/default/grub")}
    done = settled(sim, present=["isolcpus=2"])
    assert "systemd-boot booted this system" in done["warnings"][0]
    assert {path: sim.files[path] for path in before} == before
    sim.files[sim_loaders.LOADER_INFO] = sim_loaders.variable("GRUB 2.12-9")
    sim._tree = None
    assert cmd(sim, check=True)["kernel_cmdline"]["loader"] == "grub"
    sim.files.pop(sim_loaders.LOADER_INFO)
    sim._tree = None
    with pytest.raises(EngineError, match=r"systemd-boot and grub are installed.*LoaderInfo"):
        cmd(sim, check=True)


def test_grub_that_leaves_no_variable_leaves_boot_image():
    sim = sim_loaders.systemd_boot(foreign_grub=True)
    sim.files.pop(sim_loaders.LOADER_INFO)
    sim.files["/proc/cmdline"] = "BOOT_IMAGE=/boot/vmlinuz root=LABEL=labroot\n"
    sim._tree = None
    assert find.booted_by(sim) == "grub"


def test_a_host_that_bios_started_has_no_systemd_boot():
    sim = sim_loaders.systemd_boot(foreign_grub=True)
    sim.files.pop("/sys/firmware/efi/fw_platform_size")
    for path in [p for p in sim.files if p.startswith("/sys/firmware/efi")]:
        sim.files.pop(path)
    sim._tree = None
    assert cmd(sim, check=True)["kernel_cmdline"]["loader"] == "grub"


@pytest.mark.parametrize(("path", "said"), [("/etc/NIXOS", "boot.kernelParams"), ("/usr/bin/sdbootutil", "sdbootutil"), ("/etc/zipl.conf", "zipl")])
def test_a_loader_that_another_tool_writes_anew(path, said):
    sim = sim_loaders.systemd_boot()
    sim.files[path] = ""
    sim._tree = None
    with pytest.raises(EngineError, match=said):
        cmd(sim, present=["a=1"])
    assert sim.log == []


# --- systemd-boot and unified images ---------------------------------------------------------------------------------


def entry(version):
    return f"{ESP}/loader/entries/{MACHINE}-{version}.conf"


def image(version):
    return f"{ESP}/EFI/Linux/{MACHINE}-{version}.efi"


@pytest.mark.parametrize("kind", ["type1", "uki"])
def test_a_kernel_installed_before_the_reboot_has_it(kind):
    sim = sim_loaders.systemd_boot(kind)
    settled(sim, present=["intel_iommu=on"])
    sim_loaders.install_kernel(sim, "6.99.0-sim")
    assert cmd(sim, present=["intel_iommu=on"])["changed"] is False
    words = running(sim)
    assert "intel_iommu=on" in words and "intel_iommu=off" not in words
    settled(sim, release=["intel_iommu"])
    assert "intel_iommu=off" in running(sim) and "intel_iommu=on" not in running(sim)


def test_other_systems_and_rescue_entries_are_left_alone():
    sim = sim_loaders.systemd_boot()
    text = sim.files[entry(RELEASE)]
    others = {
        f"{ESP}/loader/entries/other.conf": text.replace(MACHINE, "f" * 32),
        f"{ESP}/loader/entries/mine-rescue.conf": text.replace("title      ", "title      Rescue "),
        f"{ESP}/loader/entries/gone.conf": text.replace("/linux\n", "/no-such-kernel\n"),
        f"{ESP}/loader/entries/shell.conf": "title EFI shell\nefi /EFI/shellx64.efi\n",
    }
    sim.files.update(others)
    sim._tree = None
    settled(sim, present=["intel_iommu=on"])
    assert {path: sim.files[path] for path in others} == others


def test_an_entry_by_hand_without_a_machine_id_boots_too():
    sim = sim_loaders.systemd_boot()
    path = f"{ESP}/loader/entries/by-hand.conf"
    sim.files[path] = f"title mine\nlinux /{MACHINE}/{RELEASE}/linux\noptions root=/dev/vda1\noptions quiet\n"
    sim._tree = None
    settled(sim, present=["intel_iommu=on"])
    assert sim.files[path].endswith("options root=/dev/vda1 quiet intel_iommu=on\n")
    settled(sim, release=["intel_iommu"])
    assert sim.files[path].endswith("options root=/dev/vda1\noptions quiet\n")


def test_without_a_seed_one_is_made_and_goes_again():
    sim = sim_loaders.systemd_boot()
    sim.files.pop("/etc/kernel/cmdline")
    sim._tree = None
    settled(sim, present=["intel_iommu=on"])
    # Not the words of this boot alone, and not the machine id that kernel-install adds by itself.
    assert sim.files["/etc/kernel/cmdline"] == "root=LABEL=labroot ro console=ttyS0 intel_iommu=on\n"
    settled(sim, release=["intel_iommu"])
    assert "/etc/kernel/cmdline" not in sim.files


def test_what_somebody_wrote_meanwhile_stays():
    sim = sim_loaders.systemd_boot()
    settled(sim, present=["intel_iommu=on"])
    for path in ("/etc/kernel/cmdline", entry(RELEASE)):
        sim.replace(path, sim.files[path].replace("console=ttyS0", "console=ttyS0 audit=0"))
    assert cmd(sim, present=["intel_iommu=on"])["changed"] is False
    settled(sim, release=["intel_iommu"])
    for path in ("/etc/kernel/cmdline", entry(RELEASE)):
        words = cmdline.split(sim.files[path])
        assert "audit=0" in words and "intel_iommu=off" in words and "intel_iommu=on" not in words
    assert edited.RECORD not in sim.files


def test_on_fat_one_whole_file_is_there_at_each_moment():
    sim = sim_loaders.systemd_boot("uki")
    settled(sim, present=["intel_iommu=on"])
    done = [(what, path) for what, path, _data in sim.log if path.startswith(ESP)]
    twin = edited.twin(image(RELEASE))
    steps = [item for item in done if item[1] in (image(RELEASE), twin)]
    assert steps == [("replace", twin), ("remove", image(RELEASE)), ("replace", image(RELEASE)), ("remove", twin)]


def test_entries_of_both_types_are_changed():
    """After a change of the layout the old entries of type 1 stay (seen in the lab)."""
    sim = sim_loaders.systemd_boot()
    sim.files["/etc/kernel/install.conf"] = "layout=uki\n"
    sim_loaders.install_kernel(sim, RELEASE)
    settled(sim, present=["intel_iommu=on"])
    assert "intel_iommu=on" in pe.words(sim, image(RELEASE))
    for version in (OLDER, RELEASE):
        assert "intel_iommu=on" in sim.files[entry(version)]


def test_an_image_from_elsewhere_gets_an_addon():
    sim = sim_loaders.systemd_boot("vendor")
    start = files_of(sim)
    settled(sim, present=["intel_iommu=on", "iommu=pt"])
    assert pe.words(sim, f"{ESP}/{uki.ADDON}") == ("intel_iommu=on", "iommu=pt")
    assert sim.files[image(RELEASE)] == start[image(RELEASE)]
    sim.reboot()
    assert sim.iommu_on and sim.identity_groups
    settled(sim, present=["intel_iommu=on"], release=["iommu"])
    sim.reboot()
    assert not sim.identity_groups
    settled(sim, release=["intel_iommu"])
    assert files_of(sim) == start


def test_an_addon_cannot_take_anything_away():
    sim = sim_loaders.systemd_boot("vendor")
    for check in (True, False):
        with pytest.raises(EngineError, match=r"an addon can only add to its command line: not console=ttyS0"):
            cmd(sim, check=check, absent=["console=ttyS0"])
    assert sim.log == []


@pytest.mark.parametrize("kind", ["uki", "vendor"])
def test_unsigned_images_and_addons_are_refused_under_secure_boot(kind):
    sim = sim_loaders.systemd_boot(kind)
    sim.files[sim_loaders.SECURE_BOOT] = "\x06\0\0\0\x01"
    sim._tree = None
    for check in (True, False):
        with pytest.raises(EngineError, match=r"Secure Boot is on.*SecureBootPrivateKey"):
            cmd(sim, check=check, present=["intel_iommu=on"])
    assert sim.log == []
    sim.files["/etc/kernel/uki.conf"] = "[UKI]\nSecureBootPrivateKey=/etc/k.key\nSecureBootCertificate=/etc/k.crt\n"
    sim._tree = None
    settled(sim, present=["intel_iommu=on"])


def test_entries_of_type_1_need_no_signature():
    sim = sim_loaders.systemd_boot()
    sim.files[sim_loaders.SECURE_BOOT] = "\x06\0\0\0\x01"
    sim._tree = None
    settled(sim, present=["intel_iommu=on"])


def test_a_full_esp_is_said_before_anything_changes():
    sim = sim_loaders.systemd_boot("uki")
    sim.room[ESP] = 1000
    for check in (True, False):
        with pytest.raises(EngineError, match="has to fit beside the old one"):
            cmd(sim, check=check, present=["intel_iommu=on"])
    assert sim.log == []


def test_what_a_cut_off_write_left_is_removed_and_counts_as_room():
    """An image that was half written, three of which would fill the partition."""
    sim = sim_loaders.systemd_boot("uki")
    start = files_of(sim)
    left = [f"{ESP}/EFI/Linux/iovirt-{MACHINE}-{RELEASE}.efi.iovirt-812", f"{ESP}/EFI/Linux/{MACHINE}-{RELEASE}.efi.iovirt-9"]
    for path in left:
        sim.files[path] = "x" * (3 << 20)
    sim._tree = None
    sim.room[ESP] = 1000
    done = settled(sim, present=["intel_iommu=on"])
    assert not [path for path in sim.files if path in left]
    assert f"remove {left[1]}, the unfinished file of a run that was cut off" in [a["text"] for a in done["actions"]]
    sim.room.pop(ESP)
    settled(sim, release=["intel_iommu"])
    assert files_of(sim) == start


def test_an_esp_that_gets_full_keeps_what_boots():
    sim = sim_loaders.systemd_boot()
    before = files_of(sim)
    sim.faults.append((f"{ESP}/loader/*", "*", errno.ENOSPC))
    result = cmd(sim, present=["intel_iommu=on"])
    assert "ENOSPC" in result["failures"]["host"]
    assert files_of(sim) == before


def test_a_kernel_install_that_fails_leaves_the_image():
    sim = sim_loaders.systemd_boot("uki")
    before = files_of(sim)
    sim.tools["kernel-install"] = lambda sim, argv, env=None: (1, "", "ukify: no such stub\n")
    result = cmd(sim, present=["intel_iommu=on"])
    assert "ukify: no such stub" in result["failures"]["host"]
    assert files_of(sim) == before


@pytest.mark.parametrize("mount", ["/boot/efi", "/"])
def test_what_is_mounted_read_only_is_said_before_anything_changes(mount):
    sim = sim_loaders.systemd_boot()
    lines = sim.files["/proc/self/mountinfo"].splitlines()
    sim.files["/proc/self/mountinfo"] = "".join(
        (line.replace(" rw,relatime ", " ro,relatime ") if f" {mount} " in line else line) + "\n" for line in lines
    )
    sim._tree = None
    for check in (True, False):
        with pytest.raises(EngineError, match=f"{mount} is mounted read-only"):
            cmd(sim, check=check, present=["intel_iommu=on"])
    assert sim.log == []


def test_a_boot_that_is_mounted_read_only_stops_grub():
    sim = lab(iommu=False)
    sim.files["/proc/self/mountinfo"] += "41 29 254:17 / /boot ro,relatime shared:3 - ext4 /dev/vdb1 rw\n"
    sim._tree = None
    for check in (True, False):
        with pytest.raises(EngineError, match="/boot is mounted read-only"):
            cmd(sim, check=check, present=["isolcpus=2"])
    assert sim.log == []


@pytest.mark.parametrize("text", ["", "menuentry 'Debian, with Linux 6 (recovery mode)' {\n\tlinux /boot/vmlinuz-6 single\n}\n"])
def test_a_grub_without_an_entry_that_starts_a_kernel(text):
    sim = lab(iommu=False)
    sim.replace(grub.CONFIG, text)
    sim.log.clear()
    for check in (True, False):
        with pytest.raises(EngineError, match=r"no entry that starts a kernel.*update-grub"):
            cmd(sim, check=check, present=["isolcpus=2"])
    assert sim.log == []


# --- GRUB: what others do to it --------------------------------------------------------------------------------------


def test_tuned_keeps_its_variable_and_rescue_its_words():
    sim = sim_loaders.grub_bls()
    rescue = f"/boot/loader/entries/{MACHINE}-0-rescue.conf"
    before = sim.files[rescue]
    settled(sim, present=["intel_iommu=on"])
    assert sim.files[rescue] == before
    text = sim.files[f"/boot/loader/entries/{MACHINE}-{RELEASE}.conf"]
    assert "$tuned_params" in text and "skew_tick" not in text
    assert "skew_tick=1" in running(sim)


def test_grubby_has_the_last_word():
    sim = sim_loaders.grub_bls()
    before = files_of(sim)
    real = sim.tools["grubby"]
    sim.tools["grubby"] = lambda sim, argv: (0, real(sim, argv)[1].replace("intel_iommu=on", "intel_iommu=off"), "")
    assert "grubby says that" in cmd(sim, present=["intel_iommu=on"])["failures"]["host"]
    assert files_of(sim) == before


@pytest.mark.parametrize("text", ['GRUB_CMDLINE_LINUX="$(cat /x)"\n', 'GRUB_CMDLINE_LINUX+=" a"\n', 'GRUB_CMDLINE_LINUX="a"" b"\n'])
def test_defaults_that_only_a_shell_understands(text):
    sim = sim_loaders.suse()
    sim.files["/etc/default/grub"] = text
    sim._tree = None
    with pytest.raises(EngineError, match="shell code"):
        cmd(sim, present=["a=1"])


def test_a_broken_drop_in_of_another_is_named():
    sim = lab()
    sim.mkconfig_breaks = False
    sim.files["/etc/default/grub.d/50-theirs.cfg"] = 'X="unterminated\n'
    sim._tree = None
    before = files_of(sim)
    failure = cmd(sim, present=["isolcpus=2"])["failures"]["host"]
    assert "/etc/default/grub.d/50-theirs.cfg" in failure
    assert files_of(sim) == before


def test_a_grub_mkconfig_that_only_complains_has_succeeded():
    sim = lab(iommu=False)
    real = sim._mkconfig
    sim._mkconfig = lambda path: (*real(path)[:2], "Warning: os-prober will not be executed\n")
    settled(sim, present=["isolcpus=2"])
    assert "isolcpus=2" in running(sim)


def test_a_grub_mkconfig_that_succeeds_without_a_kernel_is_not_believed():
    sim = lab(iommu=False)
    before = files_of(sim)

    def empty(path):
        sim.replace(path, "# nothing found\n")
        return 0, "", ""

    sim._mkconfig = empty
    assert "without any kernel" in cmd(sim, present=["isolcpus=2"])["failures"]["host"]
    assert files_of(sim) == before


def test_a_record_that_nobody_understands_stops_everything():
    sim = sim_loaders.systemd_boot()
    sim.replace(edited.RECORD, "{}")
    with pytest.raises(EngineError, match="cannot be understood"):
        cmd(sim, present=["a=1"])


# --- bootc -----------------------------------------------------------------------------------------------------------


def bootc():
    """The build of an image for bootc: synthetic, after bootc's documentation of kargs.d."""
    sim = lab()
    sim.files["/usr/bin/bootc"] = ""
    sim.files["/usr/lib/bootc/kargs.d/10-console.toml"] = '# theirs\nkargs = [\n  "console=ttyS0",\n  "mitigations=auto,nosmt",\n]\n'
    sim._tree = None
    return sim


def test_an_image_gets_a_file_in_kargs_d():
    sim = bootc()
    start = files_of(sim)
    settled(sim, present=["intel_iommu=on"])
    assert sim.files["/usr/lib/bootc/kargs.d/99-iovirt.toml"] == 'kargs = ["intel_iommu=on"]\n'
    assert cmd(sim)["kernel_cmdline"]["later_kernels"] == ["console=ttyS0", "mitigations=auto,nosmt", "intel_iommu=on"]
    settled(sim, release=["intel_iommu"])
    assert files_of(sim) == start


def test_kargs_d_can_only_add():
    sim = bootc()
    with pytest.raises(EngineError, match="can only add arguments"):
        cmd(sim, absent=["console=ttyS0"])


def test_a_booted_bootc_host_is_told_what_its_image_needs():
    sim = bootc()
    sim.links["/run/ostree-booted"] = "/usr/bin/bootc"
    sim._tree = None
    for check in (True, False):
        with pytest.raises(EngineError, match=r'read-only.*99-iovirt.toml.*kargs = \["intel_iommu=on"\]'):
            cmd(sim, check=check, present=["intel_iommu=on"])
    assert sim.log == []


def test_proxmox_with_grub_writes_its_defaults():
    sim = sim_loaders.proxmox()
    for path in [p for p in sim.files if p.startswith("/sys/firmware/efi")]:
        sim.files.pop(path)
    sim.files["/etc/default/grub"] = 'GRUB_CMDLINE_LINUX_DEFAULT="quiet"\nGRUB_CMDLINE_LINUX="intel_iommu=off"\n'
    sim._tree = None
    before = files_of(sim)
    settled(sim, present=["intel_iommu=on"])
    assert sim.files["/etc/default/grub"] == 'GRUB_CMDLINE_LINUX_DEFAULT="quiet intel_iommu=on"\nGRUB_CMDLINE_LINUX=""\n'
    settled(sim, release=["intel_iommu"])
    assert files_of(sim) == before


def test_a_refresh_that_fails_is_done_again_with_the_old_file():
    sim = sim_loaders.proxmox()
    before = files_of(sim)
    real, calls = sim.tools["proxmox-boot-tool"], []

    def flaky(sim, argv):
        calls.append(argv)
        real(sim, argv)
        return (1, "", "mount: /dev/sdb2: failed") if len(calls) == 1 else (0, "", "")

    sim.tools["proxmox-boot-tool"] = flaky
    assert "mount: /dev/sdb2: failed" in cmd(sim, present=["intel_iommu=on"])["failures"]["host"]
    assert files_of(sim) == before
