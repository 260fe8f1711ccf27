# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The power goes in the middle of the change: the host boots, and a run after that converges.

IOVIRT_BOOT_CUTS says how often, all flavours together; the moments are drawn from IOVIRT_BOOT_SEED.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import threading
import time
from typing import Any

import pytest

CUTS = int(os.environ.get("IOVIRT_BOOT_CUTS", "0"))
SEED = int(os.environ.get("IOVIRT_BOOT_SEED", "1"))
WISHES: list[dict[str, Any]] = [{"mode": "passthrough"}, {"state": "absent"}]


@pytest.mark.skipif(not CUTS, reason="IOVIRT_BOOT_CUTS is not set")
def test_it_boots_after_every_cut(lab: Any) -> None:
    draw = random.Random(f"{SEED}-{lab.flavour}")
    began = time.monotonic()
    lab.module("iommu", **WISHES[0])
    length = time.monotonic() - began
    lab.module("iommu", **WISHES[1])
    for number in range(-(-CUTS // lab.flavours)):
        wish = WISHES[number % 2]
        other = WISHES[(number + 1) % 2]
        lab.module("iommu", **other)
        moment = draw.uniform(0.2, 1.1) * length
        run = threading.Thread(target=cut_off_run, args=(lab, wish))
        run.start()
        time.sleep(moment)
        lab.kill()
        run.join()
        print(f"{lab.flavour}: cut {number + 1} after {moment:.1f} s of {length:.1f} s ({wish})", flush=True)
        lab.up()
        assert "root=" in " ".join(lab.words())
        result = lab.module("iommu", **wish)
        assert not result["failed"], result
        assert lab.module("iommu", **wish)["changed"] is False


def cut_off_run(lab: Any, wish: dict[str, Any]) -> None:
    # What Ansible says of a host that is gone is of no interest.
    with contextlib.suppress(AssertionError, subprocess.SubprocessError):
        lab.module("iommu", **wish)
