# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The examples of README.md and docs/ name options that exist, and the links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import match, spec
from ansible_collections.iovirt.host.plugins.module_utils._engine.sriov import ranges

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed, so the examples cannot be parsed")

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *ROOT.glob("roles/*/README.md")])
PREFIX = "iovirt.host."

#: Variables of the roles and the playbook -> their specification.
VARIABLES: dict[str, dict[str, Any]] = {
    "sriov_devices": spec.MODULES["sriov"]["devices"],
    "sriov_exclusive": spec.EXCLUSIVE,
    "vfio_devices": spec.MODULES["vfio"]["devices"],
    "vfio_exclusive": spec.EXCLUSIVE,
    "vmdq_devices": spec.MODULES["vmdq"]["devices"],
    "vmdq_exclusive": spec.EXCLUSIVE,
    "mdev_devices": spec.MODULES["mdev"]["devices"],
    "mdev_exclusive": spec.EXCLUSIVE,
    "vgpu_devices": spec.MODULES["vgpu"]["devices"],
    "vgpu_exclusive": spec.EXCLUSIVE,
    "devices_assume": spec.ASSUME,
    "guests_list": spec.MODULES["guest"]["guests"],
    "guests_exclusive": spec.EXCLUSIVE,
    "guests_restart": spec.RESTART,
    "guests_shutdown_timeout": spec.SHUTDOWN_TIMEOUT,
    "guests_power_off": spec.POWER_OFF,
    "iommu_state": spec.MODULES["iommu"]["state"],
    "iommu_mode": spec.MODULES["iommu"]["mode"],
    **{f"iommu_{n}": spec.MODULES["iommu"][n] for n in ("strict", "scalable_mode", "interrupt_remapping", "prove")},
    **{f"kvm_{name}": option for name, option in spec.KVM.items()},
    **{f"kvm_{name}": spec.MODULES["kvm"][name] for name in ("state", "prove")},
    "kvm_packages": {"type": "list", "elements": "str"},
    "iovirt_allow": spec.ALLOW,
    "iovirt_declared_by": {"type": "str"},
    "iovirt_reboot": {"type": "str", "choices": ["never", "when_needed"]},
}
OURS = re.compile(r"(sriov|vfio|vmdq|devices|guests|iommu|kernel_cmdline|kvm|iovirt)_")
REGISTERED = re.compile(r"(sriov|vfio|vmdq|devices|guests|iommu|kvm)_result")
#: What Ansible's argument specification makes of YAML's scalars: a number where a word is wanted becomes one.
TYPES: dict[str, Any] = {"str": (str, int), "int": int, "bool": bool, "raw": object}


def templated(value: Any) -> bool:
    return isinstance(value, str) and "{{" in value


def wrong(value: Any, wanted: dict[str, Any], where: str) -> list[str]:
    """What Ansible would refuse of a value. A single value is as good as a list of one, as Ansible takes it."""
    if value is None or templated(value):
        return []
    kind = wanted["type"]
    if kind == "dict":
        return wrong_dict(value, wanted.get("options"), where)
    if kind == "list":
        element = {"type": wanted["elements"], **{k: v for k, v in wanted.items() if k in ("options", "choices")}}
        values = value if isinstance(value, list) else [value]
        return [text for n, item in enumerate(values) for text in wrong(item, element, f"{where}[{n}]")]
    if not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind not in ("bool", "raw")):
        return [f"{where}: {value!r} is not of type {kind}"]
    if value not in wanted.get("choices", [value]):
        return [f"{where}: {value!r} is none of {wanted['choices']}"]
    return []


def wrong_dict(value: Any, options: dict[str, Any] | None, where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{where}: {value!r} is not a dictionary"]
    if options is None:
        return []
    found = [f"{where}.{key}: there is no such option" for key in value if key not in options]
    found += [f"{where}.{key}: missing" for key, item in options.items() if item.get("required") and key not in value]
    if options is spec.SELECTOR:
        why = match.check_selector({k: [str(i) for i in (v if isinstance(v, list) else [v])] for k, v in value.items()})
        found += [f"{where}: {why}"] if why else []
    if "range" in options and ranges.parse_range(str(value.get("range"))) is None:
        found.append(f"{where}.range: {value.get('range')!r} is no range")
    return found + [
        t for key, item in value.items() if key in options for t in wrong(item, options[key], f"{where}.{key}")
    ]


def examine(node: Any, where: str = "") -> list[str]:
    """Look for variables and module calls of ours anywhere in an example."""
    found: list[str] = []
    if isinstance(node, list):
        for number, item in enumerate(node):
            found += examine(item, f"{where}[{number}]")
    if not isinstance(node, dict):
        return found
    for key, value in node.items():
        here = f"{where}.{key}".lstrip(".")
        name = key[len(PREFIX) :] if isinstance(key, str) and key.startswith(PREFIX) else ""
        if name:
            known = name in spec.MODULES
            found += (
                wrong_dict(value or {}, spec.MODULES[name], here) if known else [f"{here}: there is no such module"]
            )
        elif key in VARIABLES:
            found += wrong(value, VARIABLES[key], here)
        elif isinstance(key, str) and OURS.match(key) and not REGISTERED.fullmatch(key):
            found.append(f"{here}: there is no such variable")
        else:
            found += examine(value, here)
    return found


def blocks(page: Path) -> list[tuple[int, str]]:
    """Line and text of each YAML block of a page."""
    text = page.read_text(encoding="utf-8")
    return [
        (text[: found.start()].count("\n") + 2, found.group(1))
        for found in re.finditer(r"^```ya?ml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


EXAMPLES = [(page, line, text) for page in PAGES for line, text in blocks(page)]


@pytest.mark.parametrize(
    ("page", "line", "text"), EXAMPLES, ids=[f"{page.relative_to(ROOT)}:{line}" for page, line, _text in EXAMPLES]
)
def test_examples_name_what_exists(page, line, text):
    assert [text for part in yaml.safe_load_all(text) for text in examine(part)] == []


def test_there_are_examples():
    assert {"README.md", "docs/sriov.md", "docs/vfio.md", "docs/iommu.md"} <= {
        str(page.relative_to(ROOT)) for page, _line, _text in EXAMPLES
    }


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        ("sriov_devices: [{match: {colour: red}}]", "colour: there is no such option"),
        ("sriov_devices: [{vf_count: 2}]", "match: missing"),
        ("sriov_devices: [{match: {driver: igb}, vf_count: many}]", "'many' is not of type int"),
        ("sriov_devices: [{match: {driver: igb}, vfs: [{range: a-b}]}]", "is no range"),
        ("vfio_devices: [{match: {vendor: nvidia}}]", "not four hexadecimal digits"),
        ("vfio_devices: [{match: {}}]", "an empty match"),
        ("iommu_state: present", "is none of"),
        ("iovirt_allow: [everything]", "is none of"),
        ("sriov_exclusive: 1", "is not of type bool"),
        ("iovirt_rebot: never", "there is no such variable"),
        ("- iovirt.host.toaster: {devices: []}", "there is no such module"),
        ("- block: [{iovirt.host.iommu: {mode: pt}}]", "is none of"),
        ("- hosts: all\n  roles: [{role: iovirt.host.vfio, vars: {vfio_devices: 5}}]", "is not a dictionary"),
    ],
)
def test_the_check_finds_what_is_wrong(example, expected):
    assert expected in "\n".join(examine(yaml.safe_load(example)))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and Galaxy make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_somewhere(page):
    broken = []
    for target in re.findall(r"\]\((?!https?://)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        name, _hash, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert broken == []


def broken_tables(text: str) -> list[int]:
    """Lines that begin a table without a head: what stands behind a blank line within a table is shown as text."""
    lines, fenced, found = text.split("\n"), False, []
    for number, line in enumerate(lines):
        fenced ^= line.startswith("```")
        begins = line.startswith("|") and not (number and lines[number - 1].startswith("|"))
        ruled = number + 1 < len(lines) and lines[number + 1].startswith("|---")
        if begins and not ruled and not fenced:
            found.append(number + 1)
    return found


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_tables_are_whole(page):
    assert broken_tables(page.read_text(encoding="utf-8")) == []


def test_a_broken_table_is_found():
    assert broken_tables("text\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n| 3 | 4 |\n\n```\n| drawn |\n```\n") == [7]


def test_site_runs_the_role_kvm_for_its_own_variables_and_no_other():
    play = yaml.safe_load((ROOT / "playbooks/site.yml").read_text(encoding="utf-8"))[0]
    options = yaml.safe_load((ROOT / "roles/kvm/meta/argument_specs.yml").read_text(encoding="utf-8"))["argument_specs"]["main"]["options"]
    own = {name for name in options if name.startswith("kvm_")}
    assert len(own) > 5 and not re.search(play["vars"]["kvm_variables"], "kvm_rack")
    assert {name for name in [*own, "kvm_result", "kvm_variables", "kvm_rack"] if re.search(play["vars"]["kvm_variables"], name)} == own
