# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine with the real kernel-install, ukify and grub-mkconfig on a tree: seconds instead of a boot.

What it cannot show is that a firmware and a boot loader take what came out: test_boot.py does.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

if os.geteuid() != 0:
    pytest.skip("chroot needs root", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parent))

import boot_tree as tree  # type: ignore[import-not-found]

if not tree.image.image_path().is_dir():
    pytest.skip("its kernel comes from the lab's image, which is not built", allow_module_level=True)

KILLS = int(os.environ.get("IOVIRT_TOOLS_KILLS", "10"))
SEED = os.environ.get("IOVIRT_BOOT_SEED", "1")


@pytest.fixture(params=os.environ.get("IOVIRT_TOOLS_KINDS", " ".join(tree.KINDS)).split())
def kind(request):
    return request.param


@pytest.fixture
def root(kind, tmp_path_factory):
    # Beside the tree that it is linked to: hard links do not cross file systems.
    folder = Path(tree.built()).parent / f"test-{os.getpid()}-{kind}"
    folder.mkdir()
    try:
        tree.make(folder, kind)
        yield folder
    finally:
        subprocess.run(["rm", "-rf", "--one-file-system", str(folder)], check=True)


def settled(root, **wish):
    before = tree.files(root)
    announced = tree.call(root, check=True, **wish)
    assert tree.files(root) == before
    done = tree.call(root, **wish)
    assert done["failures"] == {}
    assert done["actions"] == announced["actions"] != []
    assert tree.call(root, **wish)["actions"] == []
    return done


def test_there_and_back_ends_with_the_same_bytes(root, kind):
    start = tree.files(root)
    settled(root, present=["intel_iommu=on"])
    assert all("intel_iommu=on" in words for words in tree.boots(root) if kind != "addon")
    settled(root, present=["iommu=pt"])
    if kind != "addon":
        settled(root, absent=["console"])
        assert all("iommu=pt" in words and "console=ttyS0" not in words for words in tree.boots(root))
    # Blanks have to come through every tool in one piece.
    quoted = 'dyndbg="file drivers/pci/pci.c +p; file drivers/pci/probe.c +p"'
    settled(root, present=[quoted])
    assert all(quoted in " ".join(words) for words in tree.boots(root) if kind != "addon")
    settled(root, release=["intel_iommu", "iommu", "console", "dyndbg"])
    assert tree.files(root) == start


def test_a_kernel_installed_after_the_change_has_it(root, kind):
    if kind in ("grub", "addon"):
        pytest.skip("grub-mkconfig reads the drop-in each time, and an addon serves every image")
    settled(root, present=["intel_iommu=on"])
    tree.install(root, "6.99.0-tree")
    assert len(tree.boots(root)) == 2
    assert all("intel_iommu=on" in words and "intel_iommu=off" not in words for words in tree.boots(root))
    assert tree.call(root, present=["intel_iommu=on"])["changed"] is False


WISHES = ({"present": ["intel_iommu=on", "iommu=pt"]}, {"release": ["intel_iommu", "iommu"]})


def test_killed_before_each_of_its_calls_it_boots_and_a_second_run_converges(root, kind):
    """What a disk has not written when the power goes is for test_power_cuts.py."""
    start = tree.files(root)
    number, done = 0, 0
    while done < 2:
        number += 1
        wish = WISHES[done]
        code = subprocess.run([sys.executable, tree.__file__, str(root), json.dumps(wish), str(number)], check=False).returncode
        assert tree.boots(root), f"nothing boots after it was killed before call {number}"
        assert tree.call(root, **wish)["failures"] == {}
        assert tree.call(root, **wish)["actions"] == []
        if done == 1:
            assert {path: text for path, text in tree.files(root).items() if ".iovirt-" not in path} == start
        if code == 0:
            print(f"{kind}: killed {number - 1} times ({wish})")
            assert number > 3
            number, done = 0, done + 1
            continue
        assert code == -signal.SIGKILL
        # From the other side again.
        assert tree.call(root, **WISHES[1 - done])["failures"] == {}


def test_killed_at_any_moment_it_boots_and_a_second_run_converges(root, kind):
    """SIGKILL, to the run and its tools."""
    if kind in ("systemd-boot", "addon"):
        pytest.skip("no tool runs there that takes its time")
    draw = random.Random(f"{SEED}-{kind}")
    start = tree.files(root)
    wishes = WISHES
    lengths = [timed(root, wish) for wish in wishes]
    idle = timed(root, wishes[1])
    assert tree.files(root) == start
    middle = 0
    for number in range(KILLS):
        wish, length = wishes[number % 2], lengths[number % 2]
        before = tree.files(root)
        # Most of a run is Python's own start; the moments that count are behind it.
        cut = killed(root, wish, draw.uniform(min(idle, length) * 0.8, length))
        left = tree.files(root)
        assert tree.boots(root), f"nothing boots after cut {number}"
        assert tree.call(root, **wish)["failures"] == {}
        assert tree.call(root, **wish)["actions"] == []
        assert tree.boots(root)
        middle += cut and left not in (before, tree.files(root))
        if number % 2:
            assert {path: text for path, text in tree.files(root).items() if ".iovirt-" not in path} == start
    print(f"{kind}: {middle} of {KILLS} kills hit in the middle")
    assert middle


def timed(root, wish):
    began = time.monotonic()
    assert not killed(root, wish, 600)
    return time.monotonic() - began


def killed(root, wish, after):
    child = subprocess.Popen([sys.executable, tree.__file__, str(root), json.dumps(wish)], start_new_session=True)
    try:
        child.wait(after)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        return True
    return False
