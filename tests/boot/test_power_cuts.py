# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The power goes in the middle of the change: the host boots, and a run after that converges.

IOVIRT_BOOT_CUTS says how often, all flavours together; the moments are drawn from IOVIRT_BOOT_SEED. A cut costs one boot,
into a target that holds no more than ssh: the run that converges after it is followed by the next cut, of the way back.
"""

from __future__ import annotations

import os
import random
import signal
import time
from typing import Any

import pytest

CUTS = int(os.environ.get("IOVIRT_BOOT_CUTS", "0"))
SEED = int(os.environ.get("IOVIRT_BOOT_SEED", "1"))
WISHES: list[dict[str, Any]] = [{"mode": "passthrough"}, {"state": "absent"}]


def settle(lab: Any, wish: dict[str, Any]) -> None:
    """A run converges, and a second one finds nothing to do."""
    first, second = lab.engine(("iommu", wish), ("iommu", wish))
    assert not first["failed"], first
    assert (second["failed"], second["actions"]) == (False, []), second


def cut(lab: Any, wish: dict[str, Any], moment: float) -> None:
    """SIGKILL to QEMU, so many seconds after the run began to work."""
    pid = lab.pid()
    child = lab.begin(("iommu", wish))
    time.sleep(moment)
    os.kill(pid, signal.SIGKILL)
    child.kill()
    child.communicate()


@pytest.mark.skipif(not CUTS, reason="IOVIRT_BOOT_CUTS is not set")
def test_it_boots_after_every_cut(lab: Any) -> None:
    start = lab.boot_files()
    draw = random.Random(f"{SEED}-{lab.flavour}")
    lengths = []
    for wish in WISHES:
        began = time.monotonic()
        child = lab.begin(("iommu", wish))
        first = time.monotonic()
        child.communicate(timeout=600)
        lengths.append(time.monotonic() - first)
        print(f"{lab.flavour}: a run takes {time.monotonic() - began:.1f} s, {lengths[-1]:.1f} s of it work ({wish})")
        settle(lab, wish)
    middle = 0
    for number in range(-(-CUTS // lab.flavours)):
        wish, moment = WISHES[number % 2], draw.uniform(0, 1) * lengths[number % 2]
        before = lab.boot_files()
        cut(lab, wish, moment)
        began = time.monotonic()
        lab.up()
        left = lab.boot_files()
        assert "root=" in " ".join(lab.words())
        settle(lab, wish)
        after = lab.boot_files()
        between = left not in (before, after)
        middle += between
        print(
            f"{lab.flavour}: cut {number + 1} after {moment:.1f} s, {'in the middle' if between else 'at an end'}; "
            f"it booted and converged in {time.monotonic() - began:.0f} s ({wish})",
            flush=True,
        )
        if wish == WISHES[1]:
            assert {p: s for p, s in after.items() if ".iovirt-" not in p} == start
    assert middle or CUTS < 8
    settle(lab, WISHES[1])
    assert {p: s for p, s in lab.boot_files().items() if ".iovirt-" not in p} == start
