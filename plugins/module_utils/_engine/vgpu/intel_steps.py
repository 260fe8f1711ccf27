# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The steps on a VF of an Intel GPU: its share of time and its quotas. The VFs themselves and their drivers are made by the steps of sriov."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import EngineError, explain
from ..host import Host
from . import intel_places as places

#: Seconds for the GPU's firmware to take a value.
LIMIT = 30.0

Args = Mapping[str, Any]


def set_profile(host: Host, args: Args) -> None:
    """`kept` was set before the VFs were made: a driver may have shared out anew when it made them (xe before 6.18)."""
    _set(host, args, {**args["kept"], **args["to"]})


def undo_profile(host: Host, args: Args) -> None:
    _set(host, args, {key: value for key, value in args["from"].items() if value is not None})


def _set(host: Host, args: Args, wanted: Mapping[str, places.Value]) -> None:
    keys = places.found(host.files, args["pf"])
    for key, value in wanted.items():
        if key not in keys:
            raise EngineError(f"its driver has no {key} for a VF any more.")
        paths = keys[key]["paths"]
        if places.value(host.files, key, paths, args["index"]) != value:
            _write(host, args, key, paths, value)


def _write(host: Host, args: Args, key: str, paths: list[str], value: places.Value) -> None:
    for path in (path % (args["index"] + 1) for path in paths):
        try:
            host.files.write(places.written(host.files, key, path), str(value), limit=LIMIT)
        except OSError as error:
            raise EngineError(f"the driver answered {explain(error)} to {key} {value} for VF {args['index']}. Look at the kernel log.") from None
    now = places.value(host.files, key, paths, args["index"])
    if now != value:
        raise EngineError(f"the driver made {now} of {key} {value} for VF {args['index']} (it may round it): wish what it can have.")


def set_auto(host: Host, args: Args) -> None:
    _set_auto(host, args, args["to"])


def undo_auto(host: Host, args: Args) -> None:
    _set_auto(host, args, args["from"])


def _set_auto(host: Host, args: Args, wanted: bool) -> None:
    said = places.auto(host.files, args["pf"])
    if said is None or said[1] == wanted:
        return
    try:
        host.files.write(said[0], str(int(wanted)), limit=LIMIT)
    except OSError as error:
        raise EngineError(f"the driver answered {explain(error)} to {int(wanted)} for {said[0]}. Look at the kernel log.") from None
    now = places.auto(host.files, args["pf"])
    if now is None or now[1] != wanted:
        raise EngineError(f"the driver said yes, but {said[0]} is as it was. Look at the kernel log.")
