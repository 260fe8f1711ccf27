# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: the iovirt.host authors
"""Copies of the checkout in the shape that ansible-test and the build want, and homes for them to live in."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import common
from common import BUILD, ROOT


def files() -> list[str]:
    """What belongs to the project: tracked, or not yet tracked and not ignored; what was deleted is left out."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )
    return sorted({name for name in done.stdout.split("\0") if name and os.path.lexists(ROOT / name)})


# Tools of the checkout that the artifact does not hold (build_ignore in galaxy.yml). ansible-test knows no executable
# Python scripts beside modules; these are checked by ruff and shellcheck.
NOT_SHIPPED = (".ci/", "lab/", "tools/")


def copy(name: str, without: tuple[str, ...] = ()) -> Path:
    """A fresh copy at .build/trees/NAME/ansible_collections/iovirt/host, in a throwaway git.

    ansible-test sees only what git knows, and derives the collection's name from the folders. One copy a part, as
    ansible-test writes into it.
    """
    base = BUILD / "trees" / name
    shutil.rmtree(base, ignore_errors=True)
    top = base / "ansible_collections" / "iovirt" / "host"
    for file in files():
        if without and file.startswith(without):
            continue
        (top / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, top / file, follow_symlinks=False)
    subprocess.run(["git", "init", "-q", "."], cwd=top, check=True)
    subprocess.run(["git", "add", "--all", "--force", "."], cwd=top, check=True)
    return top


# What ansible-test downloads from Ansible's CI host, in a few lines of ours: it is called as
# `python get_pip_X.py pip==X [options]` and has to leave that pip behind. ensurepip runs in a process of its own,
# because in-process it points pip's configuration at the null device for everything that follows.
BOOTSTRAP = """\
import subprocess, sys
subprocess.check_call([sys.executable, "-m", "ensurepip", "--upgrade", "--default-pip"])
wanted = [argument for argument in sys.argv[1:] if argument.startswith("pip==")]
subprocess.check_call([sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *wanted])
"""


def _pip_version(venv: Path) -> str:
    """The pip that this ansible-test pins."""
    source = next(venv.glob("lib/python3.*/site-packages/ansible_test/_internal/python_requirements.py")).read_text()
    match = re.search(r"""\bpip=['"]([0-9.]+)['"]""", source)
    if not match:
        raise RuntimeError(f"cannot find the pip version that ansible-test of {venv} pins, so its download cannot "
                           "be replaced; see BOOTSTRAP in tools/tree.py")
    return match[1]


def ansible_test_home(name: str, venv: Path) -> Path:
    """A home folder for ansible-test, so that the user's own is not written to.

    ansible-test drops the variables that pip listens to, so pip's settings go into a file of that home.
    """
    home = BUILD / "home" / name
    cache = home / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    (cache / f"get_pip_{_pip_version(venv).replace('.', '_')}.py").write_text(BOOTSTRAP)
    settings = common.pip_settings(str(venv / "bin" / "python"))
    settings.setdefault("cache-dir", str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pip"))
    # ansible-test makes a dozen environments; what each downloads would bury its findings.
    settings["quiet"] = "1"
    lines = [f"{key} = " + "\n    ".join(value.split("\n")) for key, value in settings.items()]
    config = home / ".config" / "pip" / "pip.conf"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text("[global]\n" + "\n".join(lines) + "\n")
    return home
