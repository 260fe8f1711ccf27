# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: the iovirt.host authors
"""The checks, declared. To add one, add a Part to the list in `parts()`; `tools/check` does the rest."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import common
import tree
from common import BUILD, LIVE, ROOT

ENGINE = "plugins/module_utils/_engine"
ENGINE_TESTS = "tests/unit/plugins/module_utils"


@dataclass
class Part:
    name: str
    about: str
    # The commands, one after the other; the first that fails ends the part.
    commands: list[list[str]]
    # Why it cannot run here, or None.
    hindrance: str | None = None
    # Called before the commands; gives the folder to run in.
    prepare: Callable[[], Path] = lambda: ROOT
    env: dict[str, str] = field(default_factory=dict)
    # Parts that have to pass before.
    after: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    limit: int = 1200


# --- what a part needs ----------------------------------------------------------------------------------------


def venv_path(use: str) -> Path:
    """The folder of a virtual environment by its use; one that does not exist where set-up could not make it."""
    venv = common.setup_found()["venvs"].get(use)
    return ROOT / (venv["folder"] if venv else f".venv-{use}-is-missing")


def no_venv(use: str) -> str | None:
    found = common.setup_found()
    if use in found["missing"]:
        return str(found["missing"][use])
    if not (venv_path(use) / "bin" / "python").exists():
        return f"its virtual environment ({use}) is missing; `make setup` makes it"
    return None


def no_path(path: str) -> str | None:
    return None if (ROOT / path).exists() else f"there is no {path}"


def no_command(name: str) -> str | None:
    return None if shutil.which(name) else f"{name} is not installed; `make setup` installs it on Debian and Ubuntu"


def no_nvidia() -> str | None:
    return None if Path("/proc/driver/nvidia/gpus").is_dir() else "this machine has no NVIDIA GPU with its driver"


def no_engine() -> str | None:
    """A container engine that answers; a client without its daemon does not."""
    for engine in ("podman", "docker"):
        if shutil.which(engine) and not subprocess.run([engine, "ps"], capture_output=True, check=False).returncode:
            return None
    return "neither podman nor docker works here"


def base_env(venv: Path) -> dict[str, str]:
    """The tools of one virtual environment first; pyenv's real Pythons rather than its shims."""
    return {
        "PATH": f"{venv / 'bin'}{os.pathsep}{common.search_path()}",
        "ANSIBLE_COLLECTIONS_PATH": str(LIVE),
        "ANSIBLE_FORCE_COLOR": "0",
        "NO_COLOR": "1",
        "PYTHONUNBUFFERED": "1",
    }


def main_venv() -> Path:
    return ROOT / ".venv"


def tool(name: str, about: str, *commands: list[str], **more: Any) -> Part:
    """A part that runs in the checkout with the main virtual environment."""
    more.setdefault("hindrance", None if (main_venv() / "bin").exists() else "there is no .venv; `make setup` makes it")
    return Part(name, about, list(commands), env=base_env(main_venv()), **more)


def times(name: str) -> str:
    """pytest writes there how long each test took; tools/check adds it up."""
    return f"--junit-xml={BUILD / 'times' / name}.xml"


# --- the parts ------------------------------------------------------------------------------------------------


def static() -> list[Part]:
    lint = {"groups": ("lint",)}
    shell = sorted(name for name in tree.files() if is_shell(ROOT / name))
    return [
        tool("ansible-lint", "roles and playbooks, profile production", ["ansible-lint", "--offline", "-q"], **lint),
        tool("mypy", "types of the engine, strict", ["mypy", "-p", "ansible_collections.iovirt.host." + ENGINE.replace("/", ".")],
             hindrance=no_path(ENGINE), **lint),
        tool("ruff", "Python style and likely errors", ["ruff", "check", "--output-format", "concise", "."], **lint),
        tool("yamllint", "YAML style", ["yamllint", "--strict", "."], **lint),
        tool("shellcheck", "shell scripts", ["shellcheck", *shell],
             hindrance=no_command("shellcheck") or (None if shell else "there are no shell scripts"), **lint),
        tool("options", "the words of the options stand in every copy", ["tools/options", "--check"], **lint),
        tool("licences", "an SPDX line in every file", ["python", "tools/spdx"], **lint),
        tool("changelog", "changelog and fragments", ["antsibull-changelog", "lint"],
             ["antsibull-changelog", "lint-changelog-yaml", "changelogs/changelog.yaml"], **lint),
        tool("tools", "this machinery itself", ["pytest", "-q", "tests/tools"], groups=("lint", "unit")),
        tool("docs", "documentation of modules, roles and references",
             ["antsibull-docs", "lint-collection-docs", "--plugin-docs", "--validate-collection-refs=self",
              "--disallow-unknown-collection-refs", "."],
             hindrance=no_path("plugins/modules"), prepare=lambda: tree.copy("docs"), groups=("lint",)),
    ]


def is_shell(path: Path) -> bool:
    if path.is_symlink() or not path.is_file() or path.suffix in (".py", ".md", ".j2"):
        return False
    with path.open("rb") as file:
        first = file.readline(80)
    return re.match(rb"#!.*\b(sh|bash)\b", first) is not None


def ansible_test(
    name: str, about: str, use: str, arguments: list[str], hindrance: str | None = None, groups: tuple[str, ...] = ()
) -> Part:
    venv = venv_path(use)

    home = BUILD / "home" / name

    def prepare() -> Path:
        tree.ansible_test_home(name, venv)
        shutil.rmtree(home / "tmp", ignore_errors=True)
        (home / "tmp").mkdir()
        return tree.copy(name, without=tree.NOT_SHIPPED)

    # ansible-test starts pip from a script in the folder for temporary files, and Python imports from beside a script:
    # an attr.py that somebody left in /tmp once broke it.
    env = {**base_env(venv), "HOME": str(home), "TMPDIR": str(home / "tmp")}
    return Part(name, about, [["ansible-test", *arguments]], no_venv(use) or hindrance, prepare, env, groups=groups)


def sanity() -> list[Part]:
    arguments = ["sanity", "--python", "default", "--requirements", "--color", "no"]
    return [
        ansible_test("sanity-2.21", "ansible-test sanity, ansible-core 2.21", "newest", arguments, groups=("sanity",)),
        ansible_test("sanity-2.19", "ansible-test sanity, ansible-core 2.19", "oldest", arguments, groups=("sanity",)),
    ]


def units() -> list[Part]:
    found = common.setup_found()["venvs"]
    parts = []
    for use, core in (("newest", "2.21"), ("oldest", "2.19")):
        python = found.get(use, {}).get("python", "default")
        parts.append(ansible_test(
            f"units-{core}", f"ansible-test units, ansible-core {core}, Python {python}", use,
            ["units", "--venv", "--python", python, "--requirements", "--color", "no"],
            hindrance=no_path("tests/unit/plugins"), groups=("ansible-units",),
        ))
    seed = os.environ.get("IOVIRT_SEED") or str(random.SystemRandom().randrange(10**6))
    order = ["--random-order-bucket=global", f"--random-order-seed={seed}"]
    parts.append(tool("units", f"pytest with the newest ansible-core, in random order: IOVIRT_SEED={seed}",
                      ["pytest", "-q", *order, times("units"), "tests/unit"],
                      hindrance=no_path("tests/unit"), groups=("unit",)))
    parts[-1].env.update(PYTHONPATH=str(LIVE), IOVIRT_EXAMPLES="all")
    for use in sorted({"units-3.9", *(use for use in found if use.startswith("units-"))}, key=lambda use: int(use[8:])):
        parts.append(Part(
            use.replace("units-", "engine-py"), f"the engine's units on Python {use[6:]}",
            [["python", "-m", "pytest", "-q", "-p", "no:cacheprovider", times(use), ENGINE_TESTS]],
            no_venv(use) or no_path(ENGINE_TESTS),
            env={**base_env(venv_path(use)), "PYTHONPATH": str(LIVE), "IOVIRT_EXAMPLES": "all"}, groups=("pythons",),
        ))
    return parts


def artifact() -> list[Part]:
    dist = BUILD / "dist"
    tarball = str(dist / f"iovirt-host-{version()}.tar.gz")
    parts = [
        tool("build", "the collection's artifact",
             ["ansible-galaxy", "collection", "build", "--force", "--output-path", str(dist), "."],
             prepare=lambda: tree.copy("build"), groups=("artifact",)),
        Part("importer", "galaxy-importer on the artifact", [["python", "-m", "galaxy_importer.main", tarball]],
             no_venv("importer"), env=base_env(venv_path("importer")), prepare=make_temporary, after=("build",),
             groups=("artifact",)),
    ]
    for use, core in (("newest", "2.21"), ("oldest", "2.19")):
        parts.append(Part(
            f"install-{core}", f"the artifact, installed and stripped to its core, with ansible-core {core}",
            [["python", str(ROOT / "tools" / "artifact"), tarball, str(BUILD / f"install-{core}")]],
            no_venv(use), env={**base_env(venv_path(use)), "ANSIBLE_COLLECTIONS_PATH": "/nonexistent"},
            after=("build",), groups=("artifact",),
        ))
    return parts


def make_temporary() -> Path:
    """galaxy-importer writes beside itself; give it a folder of ours."""
    folder = BUILD / "importer"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def version() -> str:
    for line in (ROOT / "galaxy.yml").read_text().splitlines():
        if line.startswith("version:"):
            return line.split(":", 1)[1].strip()
    raise RuntimeError("galaxy.yml has no `version:` line, so the artifact has no name")


def machines() -> list[Part]:
    """The parts that start containers or virtual machines."""
    return [
        tool("lab", "a real kernel: molecule's lab scenario, then what it must withstand", ["tests/lab/run", "molecule"],
             hindrance=no_path("molecule/lab") or no_path("lab/lab"), groups=("lab",), limit=3600),
        tool("lab-bare", "a real kernel: the other half, on a lab host of its own", ["tests/lab/run", "bare"],
             hindrance=no_path("lab/lab"), groups=("lab",), limit=3600),
        tool("lab-alone", "a real kernel: mediated devices and VMDq, each file on a lab host of its own", ["tests/lab/run", "alone"],
             hindrance=no_path("lab/lab"), groups=("lab",), limit=3600),
        tool("boot", "boot loaders and AMD-Vi with real reboots, a slice by the commit", ["tests/boot/run"],
             hindrance=no_path("lab/lab"), groups=("boot",), limit=2400),
        tool("boot-all", "every boot loader, and 30 power cuts", ["tests/boot/run", "all"],
             hindrance=no_path("lab/lab"), groups=("boot-all",), limit=14400),
        tool("hardware", "what is told of this machine's NVIDIA GPUs, against nvidia-smi and the configuration space; reads only",
             ["tests/hardware/run", "--require"], hindrance=no_nvidia(), groups=("hardware",)),
        tool("container", "molecule's container scenario", ["molecule", "test", "-s", "container"],
             hindrance=no_path("molecule/container") or no_engine(), groups=("container",), limit=900),
    ]


def parts() -> list[Part]:
    """All of them, the long ones first: with two at a time the total is then nearly half the sum."""
    return machines() + sanity() + units() + artifact() + static()
