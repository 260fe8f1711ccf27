# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The simulated kernel's module parameters: /sys/module, and what modprobe hands over at a load.

Which values win: kernel/params.c (parse_args: each word in turn, so the last one), kmod's libkmod-config.c (files by name,
the kernel command line behind them). How they are shown: param_get_bool prints Y or N, integers are decimal. What may be
written while loaded: by the mode (module_param). A module with users: delete_module(2) answers EWOULDBLOCK.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim_text import kstrtobool

if TYPE_CHECKING:
    from ansible_collections.iovirt.host.tests.unit.plugins.module_utils.sim import SimKernel

_FOLDERS = ("/etc/modprobe.d/", "/run/modprobe.d/", "/usr/lib/modprobe.d/")


@dataclass
class Param:
    """`type` is 'bool', 'int' or 'charp'; mode 0 is not shown in sysfs."""

    type: str
    default: str
    mode: int = 0o444
    value: str = ""

    def take(self, text: str | None) -> int:
        """0 or an error number, as the kernel's param_set_* functions answer."""
        if self.type == "bool":
            wanted = True if text is None else kstrtobool(text)
            if wanted is None:
                return errno.EINVAL
            self.value = "Y" if wanted else "N"
        elif self.type == "int":
            if text is None or not re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)", text.strip()):
                return errno.EINVAL
            self.value = str(int(text, 0))
        else:
            self.value = text or ""
        return 0


@dataclass
class Module:
    name: str
    params: dict[str, Param] = field(default_factory=dict)
    builtin: bool = False
    loaded: bool = True
    users: int = 0


def add(sim: SimKernel, name: str, builtin: bool = False, loaded: bool = True, **params: tuple[Any, ...]) -> Module:
    """A module with parameters, as it is after a boot."""
    module = Module(name, {p: Param(*words) for p, words in params.items()}, builtin, loaded)
    sim.params[name] = module
    sim.modes.update({f"/sys/module/{name}/parameters/{p}": param.mode for p, param in module.params.items()})
    if loaded or builtin:
        load(sim, module)
    return module


def nodes(sim: SimKernel) -> dict[str, str]:
    found = {}
    for module in sim.params.values():
        if not module.loaded and not module.builtin:
            continue
        if not module.builtin:
            found[f"/sys/module/{module.name}/initstate"] = "live\n"
        for name, param in module.params.items():
            if param.mode:
                found[f"/sys/module/{module.name}/parameters/{name}"] = param.value + "\n"
    return found


def write(sim: SimKernel, real: str, data: str) -> int | None:
    found = re.fullmatch(r"/sys/module/(\w+)/parameters/(\w+)", real)
    if not found or found[1] not in sim.params:
        return None
    param = sim.params[found[1]].params[found[2]]
    return param.take(data) if param.mode & 0o200 else errno.EACCES


def load(sim: SimKernel, module: Module) -> str:
    """What is wrong, or nothing. Unknown parameters are passed over (unknown_module_param_cb in kernel/module/main.c)."""
    for param in module.params.values():
        param.take(param.default)
    for name, value in _words(sim, module):
        param = module.params.get(name.replace("-", "_"))
        if param and param.take(value):
            module.loaded = False
            return f"modprobe: ERROR: could not insert '{module.name}': Invalid argument"
    module.loaded = True
    return ""


def _words(sim: SimKernel, module: Module) -> list[tuple[str, str | None]]:
    found = []
    if not module.builtin:
        names: dict[str, str] = {}
        for folder in _FOLDERS:
            for path in sim.files:
                if path.startswith(folder) and path.endswith(".conf"):
                    names.setdefault(path[len(folder) :], path)
        for _name, path in sorted(names.items()):
            for line in sim.files[path].replace("\\\n", " ").splitlines():
                words = line.split()
                if words[:1] == ["options"] and words[1].replace("-", "_") == module.name:
                    found += words[2:]
    prefix = re.compile(re.escape(module.name).replace("_", "[-_]") + r"\.")
    found += [prefix.sub("", word, count=1) for word in sim.files.get("/proc/cmdline", "").split() if prefix.match(word)]
    return [(name, value if equals else None) for name, equals, value in (word.partition("=") for word in found)]


def boot(sim: SimKernel) -> None:
    for module in sim.params.values():
        if module.loaded or module.builtin:
            load(sim, module)


def run(sim: SimKernel, argv: list[str]) -> tuple[int, str, str] | None:
    """modinfo(8) and modprobe(8) for modules with parameters; None for any other."""
    module = sim.params.get(argv[-1].replace("-", "_"))
    if argv[:3] == ["modinfo", "-F", "parm"]:
        if module is None:
            return 1, "", f"modinfo: ERROR: Module {argv[-1]} not found."
        return 0, "".join(f"{name}: of {module.name} ({p.type})\n" for name, p in module.params.items()), ""
    if argv[0] != "modprobe" or module is None:
        return None
    if argv[1] != "-r":
        why = "" if module.loaded else load(sim, module)
        return (1, "", why) if why else (0, "", "")
    if module.users:
        return 1, "", f"modprobe: FATAL: Module {module.name} is in use."
    module.loaded = False
    return 0, "", ""


def snapshot(sim: SimKernel) -> dict[str, Any]:
    return {m.name: (m.loaded, {name: p.value for name, p in m.params.items()}) for m in sim.params.values()}
