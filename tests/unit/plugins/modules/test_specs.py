# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The engine's argument specifications, the modules' documentation and the roles' specifications say the same."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import cli, spec, store

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

ROOT = Path(__file__).resolve().parents[4]
MODULES = sorted(path.stem for path in (ROOT / "plugins" / "modules").glob("*.py") if path.stem != "__init__")
ROLES = sorted(path.parent.parent.name for path in (ROOT / "roles").glob("*/meta/argument_specs.yml"))


def constant(path, name):
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
            return ast.literal_eval(node.value)
    return None


def documentation(module):
    """A module's options with those of the fragments that it extends."""
    text = yaml.safe_load(constant(ROOT / "plugins" / "modules" / f"{module}.py", "DOCUMENTATION"))
    options = dict(text.get("options") or {})
    for name in text.get("extends_documentation_fragment") or []:
        fragment, _dot, section = name.replace("iovirt.host.", "").partition(".")
        source = (ROOT / "plugins" / "doc_fragments" / f"{fragment}.py").read_text(encoding="utf-8")
        constants = {
            node.targets[0].id: ast.literal_eval(node.value)
            for class_ in ast.parse(source).body
            if isinstance(class_, ast.ClassDef)
            for node in class_.body
            if isinstance(node, ast.Assign)
        }
        options.update((yaml.safe_load(constants[(section or "documentation").upper()]) or {}).get("options") or {})
    return options


def plain(options, below):
    """What counts for a comparison: neither words nor defaults that are Ansible's own."""
    found = {}
    for name, option in options.items():
        entry = {key: option[key] for key in ("type", "elements", "choices", "default") if option.get(key) is not None}
        entry["type"] = entry.get("type", "str")
        entry["required"] = bool(option.get("required", False))
        if option.get(below):
            entry["below"] = plain(option[below], below)
        found[name] = entry
    return found


def test_every_module_has_a_specification_and_every_specification_a_module():
    assert sorted(spec.MODULES) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_the_documentation_of_a_module(module):
    assert plain(documentation(module), "suboptions") == plain(spec.MODULES[module], "options")


def role_options(role):
    text = yaml.safe_load((ROOT / "roles" / role / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))
    return plain(text["argument_specs"]["main"]["options"], "options")


@pytest.mark.parametrize("role", [role for role in ROLES if role in ("sriov", "vfio", "vmdq")])
def test_the_list_of_a_role_is_that_of_its_module(role):
    options = role_options(role)
    wanted = plain(spec.MODULES[role], "options")
    assert options[f"{role}_devices"]["below"] == wanted["devices"]["below"]
    assert options[f"{role}_exclusive"] == wanted["exclusive"]
    assert options["iovirt_allow"] == wanted["allow"]
    assert options["iovirt_declared_by"]["type"] == wanted["declared_by"]["type"]


def test_the_role_devices_takes_the_lists_of_all_resources():
    if "devices" not in ROLES:
        pytest.skip("there is no role devices yet")
    options = role_options("devices")
    wanted = plain(spec.MODULES["devices"], "options")
    for resource in store.RESOURCES:
        assert options[f"{resource}_devices"]["below"] == wanted[resource]["below"]
        assert options[f"{resource}_exclusive"]["type"] == "bool"
    assert options["iovirt_allow"] == wanted["allow"]
    assert options["devices_assume"]["below"] == wanted["assume"]["below"]


@pytest.mark.parametrize("role", [role for role in ROLES if role == "iommu"])
def test_the_role_iommu(role):
    options = role_options(role)
    wanted = plain(spec.MODULES["iommu"], "options")
    for name in ("state", "mode"):
        assert options[f"iommu_{name}"]["choices"] == wanted[name]["choices"]
    for name in ("strict", "scalable_mode", "interrupt_remapping", "prove"):
        assert options[f"iommu_{name}"]["type"] == wanted[name]["type"]
    assert options["iovirt_allow"] == wanted["allow"]


@pytest.mark.parametrize("role", [role for role in ROLES if role == "kvm"])
def test_the_role_kvm(role):
    options = role_options(role)
    wanted = plain(spec.MODULES["kvm"], "options")
    for name in (*spec.KVM, "state"):
        # The role starts what it installs, and proves it.
        assert {**options[f"kvm_{name}"], "default": None} == {**wanted[name], "default": None}
    assert options["kvm_prove"]["type"] == wanted["prove"]["type"]
    assert options["iovirt_allow"] == wanted["allow"]


def test_the_role_guests():
    options, wanted = role_options("guests"), plain(spec.MODULES["guest"], "options")
    assert options["guests_list"]["below"] == wanted["guests"]["below"]
    for name in ("exclusive", "restart", "shutdown_timeout", "power_off"):
        assert options[f"guests_{name}"] == wanted[name]
    assert options["iovirt_allow"] == wanted["allow"]


@pytest.mark.parametrize("role", ROLES)
def test_defaults_of_a_role_are_those_it_declares(role):
    path = ROOT / "roles" / role / "defaults" / "main.yml"
    defaults = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.exists() else {}
    options = role_options(role)
    assert set(defaults) <= set(options)
    for name, value in defaults.items():
        if value is not None and "{{" not in str(value):
            assert options[name].get("default", value) == value, name


def test_the_command_names_what_it_can_do():
    for word in ("status", "plan", "apply", "replay", "--device", "--after-link", "--json"):
        assert word in cli.USAGE


@pytest.mark.parametrize("role", ["sriov", "vfio", "vmdq", "mdev", "vgpu", "devices"])
def test_a_role_that_is_given_no_name_declares_by_its_own(role):
    """Else nobody could tell two roles that wish different things of one device (common.overruled)."""
    tasks = yaml.safe_load((ROOT / "roles" / role / "tasks" / "apply.yml").read_text(encoding="utf-8"))
    (given,) = [task[f"iovirt.host.{role}"]["declared_by"] for task in tasks if f"iovirt.host.{role}" in task]
    assert given == f"{{{{ iovirt_declared_by or 'the role {role}' }}}}"
    defaults = yaml.safe_load((ROOT / "roles" / role / "defaults" / "main.yml").read_text(encoding="utf-8"))
    assert defaults["iovirt_declared_by"] == ""
