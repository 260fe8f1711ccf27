# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The power goes in the middle of the change: the host boots, and a run after that converges.

IOVIRT_BOOT_CUTS says how often, all flavours together; the moments are drawn from IOVIRT_BOOT_SEED. A cut costs one cold
boot, of a machine without the devices that are shared out and into a target that holds no more than ssh: the run that
converges after it is followed by the next cut, of the way back.
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
#: A little longer than a run: what it wrote last may still be on its way to the disk.
OVER = 1.1


def settle(lab: Any, wish: dict[str, Any]) -> None:
    """A run converges, and a second one finds nothing to do."""
    first, second = lab.engine(("iommu", wish), ("iommu", wish))
    assert not first["failed"], first
    assert (second["failed"], second["actions"]) == (False, []), second


def measured(lab: Any, wish: dict[str, Any]) -> float:
    """How long a run takes that is left alone; it says when it writes."""
    child = lab.begin(("iommu", wish))
    began = time.monotonic()
    (result,), said = lab.ended(child, 1)
    length = time.monotonic() - began
    assert result["changed"] and not result["failed"], result
    print(f"{lab.flavour}: a run ({wish}) takes {length:.1f} s when it has begun:\n{said}", flush=True)
    return length


def moments(draw: random.Random, count: int, length: float) -> list[float]:
    """Random ones that leave no part of the run out: one in each of as many equal parts, in random order."""
    drawn = [(part + draw.random()) / count * length * OVER for part in range(count)]
    draw.shuffle(drawn)
    return drawn


def cut(lab: Any, wish: dict[str, Any], moment: float) -> tuple[str, str]:
    """SIGKILL to QEMU, so many seconds after the run began to work. What it had said until then: results, and writes."""
    pid = lab.pid()
    child = lab.begin(("iommu", wish))
    time.sleep(moment)
    os.kill(pid, signal.SIGKILL)
    # The shared connection holds the ends of the pipes.
    lab.hang_up()
    child.kill()
    out, err = child.communicate(timeout=60)
    # Its lock on the disk goes with it, on a busy machine a moment later.
    end = time.monotonic() + 60
    while os.path.exists(f"/proc/{pid}/exe"):
        assert time.monotonic() < end, f"QEMU {pid} does not go"
        time.sleep(0.05)
    return out, err


def place(out: str, err: str) -> str:
    """Where in the run a cut fell, by what the run had said."""
    lines = [line.split(" ", 1)[1] for line in err.splitlines() if line.startswith(tuple("0123456789")) and " " in line]
    if out:
        return "after the run"
    writing = any(line.startswith(("begin write", "begin remove")) for line in lines)
    return f"{'among the writes' if writing else 'before the first write'} ({lines[-1] if lines else 'nothing said'})"


def halves(lab: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the kernel was started with: that about the IOMMU, and the rest."""
    words = lab.words()
    return tuple(w for w in words if "iommu" in w), tuple(w for w in words if "iommu" not in w)


@pytest.mark.skipif(not CUTS, reason="IOVIRT_BOOT_CUTS is not set")
def test_it_boots_after_every_cut(bare: Any) -> None:
    lab = bare
    start = lab.boot_files()
    iommu, rest = halves(lab)
    seen = {iommu}
    draw = random.Random(f"{SEED}-{lab.flavour}")
    count = -(-CUTS // lab.flavours)
    drawn = []
    for number, wish in enumerate(WISHES):
        # Halves: the longer one is that of the first wish.
        drawn.append(moments(draw, (count + 1 - number) // 2, measured(lab, wish)))
        settle(lab, wish)
    print(f"{lab.flavour}: {count} cuts, seed {SEED}", flush=True)
    places = []
    middle = 0
    after = lab.boot_files()
    assert after == start
    for number in range(count):
        wish, moment = WISHES[number % 2], drawn[number % 2].pop()
        before, began = after, time.monotonic()
        places.append(place(*cut(lab, wish, moment)))
        off = time.monotonic()
        lab.up()
        booted = time.monotonic()
        left = lab.boot_files()
        iommu, others = halves(lab)
        seen.add(iommu)
        # As before or as wished, and nothing else of the line has gone.
        assert others == rest and len(seen) <= 2, (others, rest, seen)
        settle(lab, wish)
        after = lab.boot_files()
        between = left not in (before, after)
        middle += between
        state = "files between the two" if between else "files as before" if left == before else "files as after"
        print(
            f"{lab.flavour}: cut {number + 1} of {count} after {moment:.2f} s, {places[-1]}, {state}; up again in "
            f"{booted - off:.0f} s, converged, {time.monotonic() - began:.0f} s in all ({wish}); it had booted with {' '.join(iommu)}",
            flush=True,
        )
        if wish == WISHES[1]:
            assert {p: s for p, s in after.items() if ".iovirt-" not in p} == start
    writes = sum(text.startswith("among") for text in places)
    print(
        f"{lab.flavour}: {count} cuts, {writes} among the writes, {middle} left files between before and after",
        flush=True,
    )
    assert (middle and writes) or count < 8
    settle(lab, WISHES[1])
    assert {p: s for p, s in lab.boot_files().items() if ".iovirt-" not in p} == start
