# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
# Do not use this from other collections or standalone plugins/modules!

"""The Ansible door: an AnsibleModule in, the engine's result out. Nothing is decided here."""

from __future__ import annotations

import importlib.util
import os
import pkgutil
import sys
from collections.abc import Callable, Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule

# cli and replay are not called here: naming them puts them into the module's payload, from which the copy for the
# boot replay is made.
from ansible_collections.iovirt.host.plugins.module_utils import _engine
from ansible_collections.iovirt.host.plugins.module_utils._engine import cli, engine, replay, resources, spec, sriov
from ansible_collections.iovirt.host.plugins.module_utils._engine.errors import EngineError
from ansible_collections.iovirt.host.plugins.module_utils._engine.host import FileSystem, Host
from ansible_collections.iovirt.host.plugins.module_utils._engine.resources.common import Options

PACKED = (cli, replay)

#: The engine's packages, each with its folder in the copy on the host.
_PACKAGES = ((_engine, ""), (resources, "resources/"), (sriov, "sriov/"))


def create_module(name: str) -> AnsibleModule:
    """The AnsibleModule of a module of this collection, by the one source of argument specifications."""
    return AnsibleModule(argument_spec=spec.MODULES[name], supports_check_mode=True)


def run(name: str, call: Callable[[AnsibleModule, Host, engine.Call], Mapping[str, Any]]) -> None:
    """Build the module, call the engine, hand its answer to Ansible. An error of ours is a sentence, not a traceback."""
    module = create_module(name)
    if os.geteuid() != 0 and not name.endswith("_info"):
        module.fail_json(msg="It needs root, in check mode too: guards see a part of the host only. Set become: true.")
    try:
        result = call(module, _host(module), engine.Call(check=module.check_mode, who=f"Ansible module {name}"))
    except EngineError as error:
        module.fail_json(msg=str(error))
    result = dict(result)
    for warning in result.pop("warnings", []):
        module.warn(warning)
    if result.get("failures"):
        module.fail_json(msg="\n".join(result["failures"].values()), **result)
    module.exit_json(**result)


def devices(name: str) -> None:
    """A module that is a part of the devices call: one resource."""
    run(name, lambda module, host, call: _one_resource(name, module, host, call))


def _one_resource(name: str, module: AnsibleModule, host: Host, call: engine.Call) -> dict[str, Any]:
    exclusive = [name] if module.params["exclusive"] else []
    return engine.devices(host, {name: module.params["devices"]}, options(module.params, exclusive), call)


def options(params: Mapping[str, Any], exclusive: list[str]) -> Options:
    """The options that all device modules share."""
    assume = {key: value for key, value in (params.get("assume") or {}).items() if value is not None}
    return Options(allow=frozenset(params["allow"]), exclusive=frozenset(exclusive), assume=assume)


def _host(module: AnsibleModule) -> Host:
    return Host(
        files=FileSystem("/"),
        run=lambda argv, data="": _run_command(module, argv, data),
        environment=os.environ,
        sources=_sources,
        python=_python(),
    )


def _python() -> str:
    """By the name that outlives an upgrade of the distribution, where that is the Python that runs this."""
    usual = "/usr/bin/python3"
    return usual if os.path.realpath(usual) == os.path.realpath(sys.executable) else sys.executable


def _run_command(module: AnsibleModule, argv: list[str], data: str) -> tuple[int, str, str]:
    """A command that is not there is an answer like any other: the engine has the sentence for it."""
    try:
        code, out, err = module.run_command(
            argv, data=data or None, binary_data=True, environ_update={"LC_ALL": "C"}, handle_exceptions=False
        )
    except OSError as error:
        return 127, "", f"{argv[0]}: {error.strerror}"
    return code, out, err


def _sources() -> dict[str, str]:
    """The engine's files, from wherever this module was loaded: Ansible's payload is a zip file."""
    found = {}
    for package, prefix in _PACKAGES:
        found[f"{prefix}__init__.py"] = ""
        for info in pkgutil.iter_modules(package.__path__):
            if not info.ispkg:
                found[f"{prefix}{info.name}.py"] = _source(f"{package.__name__}.{info.name}")
    return found


def _source(name: str) -> str:
    found = importlib.util.find_spec(name)
    loader = found.loader if found else None
    source = loader.get_source(name) if loader is not None and hasattr(loader, "get_source") else None
    if not isinstance(source, str):
        raise EngineError(f"internal: the source of {name} is not in this module's payload.")
    return source
