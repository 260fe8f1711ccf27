# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The kernel command line and GRUB: the drop-in is read by a real sh, as grub-mkconfig does."""

from __future__ import annotations

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import cmdline, engine
from ansible_collections.iovirt.host.plugins.module_utils._engine.errors import EngineError
from ansible_collections.iovirt.host.plugins.module_utils._engine.loaders import grub
from ansible_collections.iovirt.host.plugins.module_utils._engine.resources.kernel_cmdline import Wish
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import lab
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import KERNEL


def cmd(sim, check=False, **wish):
    return engine.host_cmdline(sim.host(), Wish(**wish), engine.Call(check=check, who="test"))


def settled(sim, **wish):
    """Announced, done, and nothing left to do; the announced line of the next boot is the one that came."""
    before = sim.snapshot()
    announced = cmd(sim, check=True, **wish)
    assert sim.snapshot() == before
    done = cmd(sim, **wish)
    assert (done["actions"], done["diff"], done["changed"]) == (announced["actions"], announced["diff"], announced["changed"])
    assert done["failures"] == {}
    for check in (True, False):
        again = cmd(sim, check=check, **wish)
        assert again["actions"] == []
        assert again["changed"] is False
    return done


def next_boot(sim):
    return list(grub.parse(sim.files[grub.CONFIG])[0].words)


def defaults(sim, inherited, default):
    sim.files["/etc/default/grub"] = f"GRUB_DEFAULT=0\nGRUB_CMDLINE_LINUX_DEFAULT={default}\nGRUB_CMDLINE_LINUX={inherited}\n"
    sim._mkconfig(grub.CONFIG)
    sim.reboot()
    sim.log.clear()
    return sim


# --- Words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", []),
        ("  quiet   ro ", ["quiet", "ro"]),
        ('dyndbg="file a.c +p" quiet', ['dyndbg="file a.c +p"', "quiet"]),
        ('"a b"=c d', ['"a b"=c', "d"]),
        ("root=UUID=1 x", ["root=UUID=1", "x"]),
    ],
)
def test_split(line, words):
    assert cmdline.split(line) == words


@pytest.mark.parametrize(
    ("line", "wish", "met"),
    [
        ("intel_iommu=on,sm_on", "intel_iommu=on", True),
        ("intel_iommu=sm_on", "intel_iommu=on", False),
        ("intel-iommu=on", "intel_iommu=on", True),
        ("intel_iommu=on intel_iommu=off", "intel_iommu=on", False),
        ("intel_iommu=off intel_iommu=on", "intel_iommu=on", True),
        ("iommu=pt,force", "iommu=pt", True),
        ("iommu=pt iommu=nopt", "iommu=pt", False),
        ("iommu=pt iommu=force", "iommu=pt", True),
        ("console=tty0 console=ttyS0", "console=tty0", True),
        ("hugepagesz=1G hugepages=4", "hugepages=8", False),
        ("quiet", "quiet", True),
        ("quiet=1", "quiet", False),
        ("a=1 a=2", "a=1", False),
        ("", "quiet", False),
    ],
)
def test_satisfied(line, wish, met):
    assert cmdline.satisfied(cmdline.split(line), wish) is met


@pytest.mark.parametrize(
    "word",
    ["", "=x", "a b", "a\nb", "a=$x", "a=`id`", 'a="b$x"', 'a=b"c d"', 'a="b  c"', 'a=" b"', 'a="b\tc"', 'a="b\\\\c"', '"a=b"c',
     "a='b'", "a=\\", "a=b;reboot", "a=b|c", "a=b&c", "a={b}", "a=<b>", "a=b#c\r"],
)
def test_words_that_a_shell_or_grub_would_interpret_are_refused(word):
    assert cmdline.invalid(word)
    for wish in ({"present": [word]}, {"absent": [word]}, {"release": [word]}):
        sim = lab()
        before = sim.snapshot()
        with pytest.raises(EngineError, match="kernel command line"):
            cmd(sim, **wish)
        assert (sim.snapshot(), sim.log) == (before, [])


@pytest.mark.parametrize("word", ["quiet", "intel_iommu=on,sm_on", "vfio-pci.ids=10de:1234,8086:1", "memmap=1G!4G", "a=b#c", "x=*"])
def test_ordinary_words_are_not(word):
    assert cmdline.invalid(word) is None
    sim = lab()
    settled(sim, present=[word])
    assert word in next_boot(sim)


def test_wishes_against_each_other():
    for wish in (
        {"present": ["a=1"], "absent": ["a=1"]},
        {"present": ["a=1"], "absent": ["a"]},
        {"present": ["intel_iommu=on", "intel-iommu=off"]},
    ):
        with pytest.raises(EngineError, match="wished"):
            cmd(lab(), check=True, **wish)


# --- The drop-in -----------------------------------------------------------------------------------------------------


def test_a_parameter_is_set_and_asks_for_a_boot():
    sim = lab()
    done = settled(sim, present=["hugepagesz=1G"])
    assert done["reboot_required"]
    assert "hugepagesz=1G" in done["reboot_reasons"][0]
    assert "hugepagesz=1G" in next_boot(sim)
    sim.reboot()
    assert cmd(sim, present=["hugepagesz=1G"])["reboot_required"] is False


def test_what_is_there_already_needs_nothing():
    sim = lab()
    assert cmd(sim, present=["intel_iommu=on", "quiet"])["actions"] == []
    assert sim.log == []


def test_recovery_entries_are_left_alone():
    sim = lab()
    recovery = [entry for entry in grub.parse(sim.files[grub.CONFIG]) if entry.rescue]
    settled(sim, present=["isolcpus=2-3"])
    assert [entry for entry in grub.parse(sim.files[grub.CONFIG]) if entry.rescue] == recovery


def test_an_inherited_value_gives_way_and_comes_back():
    sim = lab(iommu=False)
    original = sim.snapshot()
    settled(sim, present=["intel_iommu=on"])
    assert "intel_iommu=on" in next_boot(sim)
    assert "intel_iommu=off" not in next_boot(sim)
    sim.reboot()
    settled(sim, release=["intel_iommu"])
    assert "intel_iommu=off" in next_boot(sim)
    now = sim.snapshot()
    for path in (grub.CONFIG, "/etc/default/grub"):
        assert now["files"][path] == original["files"][path]
    assert grub.DROP_IN not in now["files"]
    assert sim.modes[grub.CONFIG] == 0o600


def test_members_that_the_wish_does_not_speak_of_stay():
    sim = defaults(lab(), '"intel_iommu=off,igfx_off"', '"quiet"')
    settled(sim, present=["intel_iommu=on"])
    assert "intel_iommu=igfx_off,on" in next_boot(sim) or "intel_iommu=on,igfx_off" in next_boot(sim)


def test_a_parameter_goes():
    sim = defaults(lab(), '"console=ttyS0 nomodeset"', '"quiet splash nomodeset"')
    settled(sim, absent=["nomodeset"])
    assert "nomodeset" not in next_boot(sim)
    assert "quiet" in next_boot(sim)
    settled(sim, release=["nomodeset"])
    assert next_boot(sim).count("nomodeset") == 2


def test_one_value_goes_and_others_of_that_key_stay():
    sim = defaults(lab(), '"console=ttyS0 console=tty0"', '""')
    settled(sim, absent=["console=tty0"])
    assert [w for w in next_boot(sim) if w.startswith("console")] == ["console=ttyS0"]


def test_one_member_goes_and_others_of_that_word_stay():
    sim = defaults(lab(), '"iommu=off,merge"', '"quiet"')
    settled(sim, absent=["iommu=off"])
    assert [w for w in next_boot(sim) if w.startswith("iommu")] == ["iommu=merge"]


def test_a_member_that_goes_does_not_come_back_with_one_that_comes():
    sim = defaults(lab(), '"iommu=off"', '"quiet"')
    settled(sim, present=["iommu=pt"], absent=["iommu=off"])
    assert [w for w in next_boot(sim) if w.startswith("iommu")] == ["iommu=pt"]


def test_repeated_keys_are_added_to():
    sim = lab()
    settled(sim, present=["console=tty0"])
    assert [w for w in next_boot(sim) if w.startswith("console")] == ["console=ttyS0", "console=tty0"]


def test_inherited_quotes_and_backslashes_survive():
    sim = defaults(lab(), """'dyndbg="file a.c +p" x=a\\\\nb'""", '"quiet nomodeset"')
    before = [word for word in next_boot(sim) if word != "nomodeset"]
    settled(sim, absent=["nomodeset"])
    assert next_boot(sim) == before


def test_globs_in_inherited_words_are_not_expanded():
    sim = defaults(lab(), '"earlycon=* nomodeset"', '"quiet"')
    settled(sim, absent=["nomodeset"])
    assert "earlycon=*" in next_boot(sim)


def test_wishes_of_several_calls_live_side_by_side():
    sim = lab()
    settled(sim, present=["isolcpus=2-3"])
    settled(sim, present=["hugepages=4"])
    settled(sim, present=["isolcpus=2-5"])
    assert [w for w in next_boot(sim) if w.startswith(("isol", "huge"))] in (
        ["hugepages=4", "isolcpus=2-5"],
        ["isolcpus=2-5", "hugepages=4"],
    )
    assert cmd(sim, present=["hugepages=4"])["actions"] == []
    settled(sim, release=["isolcpus", "hugepages"])
    assert grub.DROP_IN not in sim.files


def test_a_stale_grub_cfg_is_made_anew():
    sim = lab()
    old = sim.files[grub.CONFIG]
    settled(sim, present=["isolcpus=2"])
    sim.replace(grub.CONFIG, old)
    done = settled(sim, present=["isolcpus=2"])
    assert [action["action"] for action in done["actions"]] == ["write_file", "grub_mkconfig"]
    assert grub.new_name(grub.CONFIG) not in sim.files


# --- Entries that are none of ours -----------------------------------------------------------------------------------

FOREIGN = f"""### BEGIN /etc/grub.d/20_memtest86+ ###
menuentry "Memory test (memtest86+x64.bin)" {{
\tlinux /boot/memtest86+x64.bin
}}
### END /etc/grub.d/20_memtest86+ ###
### BEGIN /etc/grub.d/30_os-prober ###
menuentry 'Fedora (on /dev/sdb1)' {{
\tlinux /boot/vmlinuz-of-another-system root=/dev/sdb1
}}
### END /etc/grub.d/30_os-prober ###
### BEGIN /etc/grub.d/40_custom ###
menuentry 'My own' {{
\tlinux {KERNEL} root=/dev/sda1 mine
}}
### END /etc/grub.d/40_custom ###
"""


def test_memtest_other_systems_and_entries_by_hand_are_not_ruled_by_the_drop_in():
    sim = lab()
    sim.files["/etc/grub.d/output"] = FOREIGN
    sim._mkconfig(grub.CONFIG)
    settled(sim, present=["isolcpus=2"])
    assert FOREIGN in sim.files[grub.CONFIG]


# --- What goes wrong -------------------------------------------------------------------------------------------------


def files_of(sim):
    return {path: text for path, text in sim.files.items() if not path.startswith("/run/")}


def test_a_failing_grub_mkconfig_leaves_all_as_it_was():
    sim = lab()
    before = files_of(sim)
    sim.mkconfig_breaks = True
    result = cmd(sim, present=["isolcpus=2"])
    assert "Syntax errors" in result["failures"]["host"]
    assert files_of(sim) == before
    assert result["changed"] is False


@pytest.mark.parametrize(
    ("drop_in", "words"),
    [
        ('GRUB_CMDLINE_LINUX_DEFAULT="quiet"\n', "does not come out as wished"),
        ("exit 3\n", "failed"),
    ],
)
def test_another_file_that_overrides_ours(drop_in, words):
    sim = lab()
    sim.files["/etc/default/grub.d/zzz.cfg"] = drop_in
    before = files_of(sim)
    assert words in cmd(sim, present=["isolcpus=2"])["failures"]["host"]
    assert files_of(sim) == before


def test_a_configuration_without_its_kernel_is_not_put_in_place(monkeypatch):
    sim = lab()
    before = files_of(sim)
    exists = sim.exists
    monkeypatch.setattr(sim, "exists", lambda path: path not in (KERNEL, "/boot" + KERNEL) and exists(path))
    assert "which is not there" in cmd(sim, present=["isolcpus=2"])["failures"]["host"]
    assert files_of(sim) == before


@pytest.mark.parametrize("number", range(1, 6))
def test_each_step_that_fails_is_undone(number):
    sim = lab()
    before = files_of(sim)
    sim.fail_at = number
    result = cmd(sim, present=["isolcpus=2"])
    sim.fail_at = None
    if result["failures"]:
        assert files_of(sim) == before
    else:
        assert "isolcpus=2" in next_boot(sim)
    settled(sim, present=["isolcpus=2"])


def test_a_host_with_another_boot_loader():
    sim = lab()
    sim.remove(grub.CONFIG)
    with pytest.raises(EngineError, match=r"boot loader: none that is known was found.*systemd-boot.*/boot/grub/grub.cfg or"):
        cmd(sim, present=["isolcpus=2"])


def test_a_configuration_without_entries():
    sim = lab()
    sim.replace(grub.CONFIG, "# empty\n")
    with pytest.raises(EngineError, match="no entry that starts a kernel"):
        cmd(sim, present=["isolcpus=2"])


def test_a_boot_of_its_own():
    """With /boot on its own file system, GRUB's paths start there."""
    entries = grub.parse("menuentry 'x' {\n  linux16 /vmlinuz-1 ro\n  linuxefi /vmlinuz-2 quiet\n}\n")
    assert [(entry.kernel, entry.words) for entry in entries] == [("/vmlinuz-1", ("ro",)), ("/vmlinuz-2", ("quiet",))]


@pytest.mark.parametrize("path", ["/@rootfs{}", "/@{}", '"/BOOT/ubuntu_x@{}"'])
def test_kernels_below_a_subvolume(path):
    """btrfs and ZFS: GRUB's paths begin with the subvolume, the running system's do not."""
    sim = lab()
    text = sim.text(grub.CONFIG).replace(KERNEL, path.format(KERNEL))
    present = {"present": [], "absent": [], "exact": [], "tool": "grub-mkconfig", "config": grub.CONFIG}
    grub._check(sim, text, present)
    with pytest.raises(EngineError, match="which is not there"):
        grub._check(sim, text.replace("vmlinuz", "gone"), present)
