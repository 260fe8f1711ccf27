# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The Ansible door: an AnsibleModule in, the engine's result out. Nothing is decided here."""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import os
import pkgutil
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.iovirt.host.plugins.module_utils import _engine

#: Is this a module on its way through Ansible, and not a test or a tool that imports it?
_PACKED = ".zip" in next(iter(_engine.__path__))

if _PACKED:
    # A call lasts for seconds. To look for garbage in it, and once more in all of it at its end, costs more than it frees
    # (docs/dev/benchmarks.md).
    gc.disable()
    atexit.register(gc.freeze)

#: The engine's copy on the host (boot.CURRENT and boot.PACKAGE, which are not imported yet).
_COPY = "/var/lib/iovirt/engine/current/iovirt_engine"


def _sources() -> dict[str, str]:
    """The engine's files, from wherever this module was loaded, by their names below the engine's folder."""
    files, folders = {"__init__.py": ""}, [""]
    top = next(iter(_engine.__path__))
    read = _engine.__loader__.get_data if ".zip" in top else _read
    while folders:
        prefix = folders.pop()
        for info in pkgutil.iter_modules([os.path.join(top, prefix.rstrip("/"))]):
            if info.ispkg:
                folders.append(f"{prefix}{info.name}/")
                files[f"{prefix}{info.name}/__init__.py"] = ""
            else:
                files[f"{prefix}{info.name}.py"] = read(os.path.join(top, f"{prefix}{info.name}.py")).decode()
    return files


def _read(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read()


def _use_copy(folder: str) -> str:
    """Import the engine from the host's own copy where that is what this module brought: the copy has its bytecode beside
    it. From a zip file each module is compiled anew, and that twice (zipimport's find_spec compiles to know the file's
    name): it was two thirds of what a call with nothing to do cost (docs/dev/benchmarks.md).

    Told by the sizes and checksums that the zip file has of its members, so that nothing has to be unpacked. What this
    module brought comes second, for a run that removes the copy. Returns the version, which is the name of the copy's folder
    (boot.version), or nothing where the copy is another engine, or has a file more."""
    archive, _zip, inner = next(iter(_engine.__path__)).rpartition(".zip/")
    with zipfile.ZipFile(f"{archive}.zip") as brought:
        files = {info.filename[len(inner) + 1 :]: info for info in brought.infolist() if info.filename.startswith(f"{inner}/")}
    if not all(_is_same(f"{folder}/{name}", info) for name, info in files.items()):
        return ""
    # Another Python than the one that compiled the copy leaves no files of its own there; check mode would be no check.
    sys.dont_write_bytecode = True
    paths = list(_engine.__path__)
    _engine.__path__ = [folder, *paths]
    for name in [name.partition("/")[0] for name in files if name.endswith("/__init__.py")]:
        package = importlib.import_module(f"{_engine.__name__}.{name}")
        package.__path__ = [os.path.join(path, name) for path in (folder, *paths)]
    return os.path.basename(os.path.dirname(folder)) if _has_no_more(folder, files) else ""


def _has_no_more(folder: str, files: Iterable[str]) -> bool:
    """Has the copy nothing but these files, and bytecode?"""
    known: dict[str, set[str]] = {"": {"__pycache__"}}
    for path in files:
        inner, _slash, name = path.rpartition("/")
        known.setdefault(inner, {"__pycache__"}).add(name)
    known[""].update(inner for inner in known if inner)
    try:
        return all(names.issuperset(os.listdir(f"{folder}/{inner}")) for inner, names in known.items())
    except OSError:
        return False


def _is_same(path: str, brought: zipfile.ZipInfo) -> bool:
    try:
        data = _read(path)
    except OSError:
        return False
    return len(data) == brought.file_size and zlib.crc32(data) == brought.CRC


#: The version of the engine that runs, where that is the host's own copy.
_VERSION = _use_copy(os.path.realpath(_COPY)) if _PACKED else ""

from ansible_collections.iovirt.host.plugins.module_utils._engine import engine, spec  # noqa: E402
from ansible_collections.iovirt.host.plugins.module_utils._engine.errors import EngineError  # noqa: E402
from ansible_collections.iovirt.host.plugins.module_utils._engine.host import (  # noqa: E402
    FileSystem,
    Host,
    begin_command,
    run_command,
    session,
)
from ansible_collections.iovirt.host.plugins.module_utils._engine.resources.common import Options  # noqa: E402


def _packed() -> tuple[Any, ...]:
    """Not called: what is named here is put into the module's payload, from which the copy for the boot replay is made."""
    from ansible_collections.iovirt.host.plugins.module_utils._engine import cli, replay
    from ansible_collections.iovirt.host.plugins.module_utils._engine.resources import guest

    return cli, replay, guest


def create_module(name: str) -> AnsibleModule:
    """The AnsibleModule of a module of this collection, by the one source of argument specifications."""
    return AnsibleModule(argument_spec=spec.MODULES[name], supports_check_mode=True)


def run(name: str, call: Callable[[AnsibleModule, Host, engine.Call], Mapping[str, Any]]) -> None:
    """Build the module, call the engine, hand its answer to Ansible. An error of ours is a sentence, not a traceback."""
    module = create_module(name)
    if os.geteuid() != 0 and not name.endswith("_info"):
        module.fail_json(msg="It needs root, in check mode too: guards see a part of the host only. Set become: true.")
    host = _host()
    if name in _OF_GUESTS:
        host.libvirt = _libvirt(module)
    try:
        result = call(module, host, engine.Call(check=module.check_mode, who=f"Ansible module {name}"))
    except EngineError as error:
        module.fail_json(msg=str(error))
    result = dict(result)
    for warning in result.pop("warnings", []):
        module.warn(warning)
    if result.get("failures"):
        module.fail_json(msg="\n".join(result["failures"].values()), **result)
    module.exit_json(**result)


#: Modules that speak to libvirt.
_OF_GUESTS = ("guest", "guest_info")

#: Where distributions have the Python that their python3-libvirt is for.
_PYTHONS = ("/usr/libexec/platform-python", "/usr/bin/python3")


def _libvirt(module: AnsibleModule) -> Callable[[], Any]:
    """The connection, made when it is first asked for. python3-libvirt comes with the distribution and for its Python: where
    another one runs this, the module is run again under that."""
    from ansible.module_utils.common import respawn
    from ansible_collections.iovirt.host.plugins.module_utils._engine.guests import virt

    libvirt: Any = None
    try:
        libvirt = importlib.import_module("libvirt")
    except ImportError:
        python = None if respawn.has_respawned() else respawn.probe_interpreters_for_module(_PYTHONS, "libvirt")
        if python:
            respawn.respawn_module(python)
        if module.check_mode and (module.params.get("assume") or {}).get("libvirt"):
            # It comes with the packages that an earlier step of the same run would install.
            return virt.NotYet
        module.fail_json(
            msg="This host has no Python module libvirt. Install it (python3-libvirt; libvirt-python on Arch, python3-libvirt-python on "
            "SUSE), as the role kvm does; nothing was changed."
        )
    return functools.cache(lambda: virt.Libvirt(libvirt))


def devices(name: str) -> None:
    """A module that is a part of the devices call: one resource."""
    run(name, lambda module, host, call: _one_resource(name, module, host, call))


def _one_resource(name: str, module: AnsibleModule, host: Host, call: engine.Call) -> dict[str, Any]:
    exclusive = [name] if module.params["exclusive"] else []
    return engine.devices(host, {name: module.params["devices"]}, options(module.params, exclusive), call)


def options(params: Mapping[str, Any], exclusive: list[str]) -> Options:
    """The options that all device modules share."""
    assume = {key: value for key, value in (params.get("assume") or {}).items() if value is not None}
    return Options(
        allow=frozenset(params["allow"]),
        exclusive=frozenset(exclusive),
        assume=assume,
        declared_by=params.get("declared_by") or "",
    )


def _host() -> Host:
    files = FileSystem("/")
    return Host(
        files=files,
        run=run_command,
        start=begin_command,
        environment=session(files, os.environ, os.getppid()),
        sources=_sources,
        version=_VERSION,
        python=_python(),
    )


def _python() -> str:
    """By the name that outlives an upgrade of the distribution, where that is the Python that runs this."""
    usual = "/usr/bin/python3"
    return usual if os.path.realpath(usual) == os.path.realpath(sys.executable) else sys.executable
