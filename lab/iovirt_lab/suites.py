# Copyright: the iovirt.host authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's host from other Debian suites than its own: the same recipe, with what differs said here.

None of this is part of the usual image's recipe (recipe.py), so that a suite more never makes that be built anew.
"""

from __future__ import annotations

from pathlib import Path

from . import recipe

#: By age. The lab's own is in the middle; what is not released moves, and may not build on a given day.
SUITES = ("bookworm", "trixie", "forky", "sid")
_MOVING = ("forky", "sid")
#: The lists of a suite that moves are valid for a week; a mirror that stands still has older ones.
OLD_LISTS = "--aptopt=Acquire::Check-Valid-Until false"

#: Suite -> what is done in its tree after all else. OpenSSH knows the word from 9.8 on, and does not start with it before.
_LAST = {"bookworm": 'sed -i "/^PerSourcePenalties/d" "$1/etc/ssh/sshd_config.d/lab.conf"'}


def image_key(suite: str) -> str:
    """Name of the built disk image of a suite."""
    if suite == recipe.SUITE:
        return recipe.image_key()
    return f"image-{suite}-" + recipe.digest([recipe.image_key()], [Path(__file__)])


def tree_words(suite: str) -> list[str]:
    """Arguments of mmdebstrap for the root tree of a host."""
    last = [f"--customize-hook={_LAST[suite]}"] if suite in _LAST else []
    return [*_lists(suite), *recipe.tree_words(), *last]


def module_words(suite: str, out: Path) -> list[str]:
    """Arguments of mmdebstrap for a tree that builds the modules."""
    return [*_lists(suite), *recipe.module_words(out)]


def _lists(suite: str) -> list[str]:
    return [OLD_LISTS] if suite in _MOVING else []
