# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The embedded switch of a PF and its devlink parameters (Documentation/networking/devlink)."""

from __future__ import annotations

from collections.abc import Sequence

from ..host import Host
from ..model import State
from ..resources.common import Target

NAME = "eswitch"


def read_more(host: Host, state: State, targets: Sequence[Target]) -> State:
    """What devlink says of the ports whose wish speaks of it."""
    return state
