# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module `devices`, on a host that is a tree of files below the folder that IOVIRT_BENCH_ROOT names."""

from __future__ import annotations

import os

_ROOT = os.environ["IOVIRT_BENCH_ROOT"]
_realpath = os.path.realpath
# The engine's copy is looked for before anybody can say where the tree is.
os.path.realpath = lambda path, **more: _realpath(_ROOT + path if path.startswith("/var/lib/iovirt") else path, **more)

from ansible_collections.iovirt.host.plugins.module_utils import _door  # noqa: E402
from ansible_collections.iovirt.host.plugins.module_utils._engine import engine  # noqa: E402

_REAL, _RUN, _START = _door.FileSystem, _door.run_command, _door.begin_command


def call(module, host, door):
    only = module.params["only"] or list(engine.RESOURCES)
    wishes = {name: module.params[name] for name in only if module.params[name] is not None}
    return engine.devices(host, wishes, _door.options(module.params, module.params["exclusive"]), door)


def only_harmless(argv, data=""):
    """The tree is no host: nothing of the machine that it lies on may be touched."""
    if "compileall" in argv:
        return _RUN([*argv[:-1], _ROOT + argv[-1]], data)
    if argv[0] != "ip":
        raise SystemExit(f"{argv} was to be run on this machine")
    return _RUN(argv, data)


def start(argv):
    if argv[0] != "ip":
        raise SystemExit(f"{argv} was to be run on this machine")
    return _START(argv)


def main() -> None:
    _door.run_command, _door.begin_command = only_harmless, start
    _door.FileSystem = lambda _root: _REAL(_ROOT)
    _door.run("devices", call)


if __name__ == "__main__":
    main()
