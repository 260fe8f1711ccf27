# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Parameters with blanks in quotes: read as the kernel reads them, and written so that every tool on the way keeps them."""

from __future__ import annotations

import subprocess

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import cmdline, engine
from ansible_collections.iovirt.host.plugins.module_utils._engine.errors import EngineError
from ansible_collections.iovirt.host.plugins.module_utils._engine.loaders import grub
from ansible_collections.iovirt.host.plugins.module_utils._engine.resources.kernel_cmdline import Wish
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils import sim_loaders
from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.hosts import lab

WORD = 'dyndbg="file drivers/pci/iov.c +p; func a*b +p"'
LOADERS = {
    "grub": lambda: lab(iommu=False),
    "suse": sim_loaders.suse,
    "systemd-boot": sim_loaders.systemd_boot,
    "uki": lambda: sim_loaders.systemd_boot("uki"),
    "bls": sim_loaders.grub_bls,
    "bls-kernelopts": lambda: sim_loaders.grub_bls(kernelopts=True),
}


def cmd(sim, check=False, **wish):
    return engine.host_cmdline(sim.host(), Wish(**wish), engine.Call(check=check, who="test"))


@pytest.mark.parametrize(
    ("word", "key", "value"),
    # What next_arg (lib/cmdline.c, Linux 6.12) makes of each, read there.
    [
        ("a", "a", None), ("a=", "a", ""), ("a=b", "a", "b"), ("a=b=c", "a", "b=c"), ('a="b c"', "a", "b c"),
        ('"a=b c"', "a", "b c"), ('"a"', "a", None), ('a="b"', "a", "b"), ('a=b"c d"', "a", 'b"c d"'), ('a=""', "a", ""),
        ('"a="b c""', "a", "b c\""), ("a-b.c-d=1", "a_b.c_d", "1"),
    ],
)  # fmt: skip
def test_a_word_as_the_kernel_takes_it(word, key, value):
    assert (cmdline.key_of(word), cmdline.value_of(word)) == (key, value)


def test_what_follows_two_dashes_is_for_init():
    words = cmdline.split("quiet -- iommu=pt")
    assert cmdline.unmet(words, ["iommu=pt"], []) == ["iommu=pt"]
    assert cmdline.unmet(words, [], ["iommu"]) == []


@pytest.mark.parametrize("name", LOADERS)
def test_written_kept_together_and_taken_back(name):
    sim = LOADERS[name]()
    start = {path: text for path, text in sim.files.items() if not path.startswith(("/run/", "/proc/"))}
    done = cmd(sim, present=[WORD, "x=1"])
    assert done["failures"] == {} and done["changed"]
    # In whatever way it is wished, and after GRUB has put the quotes round the whole word.
    for word in (WORD, f'"{WORD.replace(chr(34), "")}"'):
        assert cmd(sim, present=[word, "x=1"])["actions"] == []
    sim.reboot()
    running = sim.files["/proc/cmdline"]
    assert WORD in running
    sim.files["/proc/cmdline"] = running.replace(WORD, f'"{WORD.replace(chr(34), "")}"')
    sim._tree = None
    again = cmd(sim, present=[WORD, "x=1"])
    assert (again["actions"], again["reboot_required"]) == ([], False)
    assert not [item for item in again["kernel_cmdline"]["differing"] if item["key"] == "dyndbg"]
    assert cmd(sim, release=["dyndbg", "x"])["failures"] == {}
    assert {p: t for p, t in sim.files.items() if not p.startswith(("/run/", "/proc/"))} == start


@pytest.mark.parametrize("make", [sim_loaders.proxmox, sim_loaders.ostree])
def test_refused_where_nobody_knows_what_becomes_of_it(make):
    sim = make()
    before = sim.snapshot()
    with pytest.raises(EngineError, match="not known to keep a parameter with a blank together"):
        cmd(sim, present=[WORD])
    assert sim.snapshot() == before
    assert cmd(sim, check=True, present=['x="1"'])["failures"] == {}


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_the_drop_in_in_a_real_shell(shell, tmp_path):
    """What was inherited loses the parameter in each spelling, and nothing else; words with blanks stay in one piece."""
    theirs = 'quiet dyndbg="file a.c a-b +p" z=1 "dyndbg=file x" z=2 a_b keep="z=1 b" "z=1" "a-b=2" z="1" * open="a b'
    script = tmp_path / "defaults"
    script.write_text(
        f"GRUB_CMDLINE_LINUX='{theirs}'\n{grub.render([WORD, 'x=1'], ['dyndbg', 'a-b', 'z=1'])}"
        'printf "%s\\n" "$GRUB_CMDLINE_LINUX" "$GRUB_CMDLINE_LINUX_DEFAULT"\n'
    )
    done = subprocess.run([shell, str(script)], capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout.splitlines() == ['quiet z=2 keep="z=1 b" * open="a b', f" {WORD} x=1"]
    assert done.stderr == ""
