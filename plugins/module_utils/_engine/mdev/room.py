# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How many more instances a parent has room for. Its types share what it has: a port, memory, a number of devices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

#: Room is known, and it is enough; nobody can tell; it is certainly not enough.
ENOUGH, OPEN, TOO_MANY = "enough", "open", "too many"


def judge(types: Mapping[str, Mapping[str, Any]], new: Mapping[str, int], gone: Mapping[str, int]) -> str:
    """Is there room for `new` instances (type -> number) once `gone` are away?

    The kernel gives for each type how many would fit if all the room went to it (available_instances). The smallest type
    is taken for a unit and the others for whole multiples of it, as with the ports of mtty and the memory of a GPU.
    """
    net = {name: number - gone.get(name, 0) for name, number in new.items() if number > gone.get(name, 0)}
    free = {name: int(type_["available"]) for name, type_ in types.items()}
    others = any(number > new.get(name, 0) for name, number in gone.items())
    if not net:
        return ENOUGH
    if not others and any(number > free.get(name, 0) for name, number in net.items()):
        return TOO_MANY
    if len(net) == 1 and not others:
        return ENOUGH
    if others:
        # What is given back makes room that no file tells of.
        return OPEN
    room = max(free.values())
    if sum(number * _least(room, free[name]) for name, number in net.items()) > room:
        return TOO_MANY
    return ENOUGH if sum(number * room / free[name] for name, number in net.items()) <= room else OPEN


def _least(room: int, fitting: int) -> float:
    """The least that one instance takes of the room, when `fitting` of them would fill it."""
    least = room / (fitting + 1)
    whole = math.floor(least) + 1
    return whole if whole * fitting <= room else least
