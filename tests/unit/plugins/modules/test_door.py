# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which engine a module runs: the one that it brought in its zip file, or the host's copy where that is the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

MODULE_UTILS = Path(__file__).resolve().parents[4] / "plugins" / "module_utils"
WHERE = "ansible_collections/iovirt/host/plugins/module_utils"

#: As Ansible's wrapper does it, with the copy in a folder of the test's.
SCRIPT = """
import json, os, shutil, sys
payload, copy, after = sys.argv[1:]
sys.path.insert(0, payload)
real = os.path.realpath
os.path.realpath = lambda path, **more: copy if path.startswith("/var/lib/iovirt") else real(path, **more)
from ansible_collections.iovirt.host.plugins.module_utils import _door
if after == "removed":
    shutil.rmtree(copy)
from ansible_collections.iovirt.host.plugins.module_utils._engine import apply
from ansible_collections.iovirt.host.plugins.module_utils._engine.resources import kernel_cmdline
print(json.dumps([_door.engine.__file__, apply.__file__, kernel_cmdline.__file__, [_door._VERSION, _door._sources()]]))
"""


@pytest.fixture
def payload(tmp_path):
    path = tmp_path / "payload.zip"
    with zipfile.ZipFile(path, "w") as archive:
        parts = WHERE.split("/")
        for number in range(1, len(parts) + 1):
            archive.writestr("/".join(parts[:number]) + "/__init__.py", "")
        for source in sorted(MODULE_UTILS.rglob("*.py")):
            archive.write(source, f"{WHERE}/{source.relative_to(MODULE_UTILS)}")
    return path


@pytest.fixture
def copy(tmp_path):
    path = tmp_path / "0123456789abcdef" / "iovirt_engine"
    shutil.copytree(MODULE_UTILS / "_engine", path, ignore=shutil.ignore_patterns("__pycache__"))
    return path


def imported(payload, copy, after=""):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if "ansible_collections" not in path)}
    argv = [sys.executable, "-c", SCRIPT, str(payload), str(copy), after]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_copy_that_is_the_same_is_run(payload, copy):
    before = sorted(copy.rglob("*"))
    *files, (version, sources) = imported(payload, copy)
    assert [path.startswith(str(copy)) for path in files] == [True] * 3
    assert version == "0123456789abcdef"
    assert sources == {str(path.relative_to(copy)): path.read_text() for path in copy.rglob("*.py")}
    assert {"cli.py", "replay.py", "resources/sriov.py"} <= set(sources)
    # Check mode runs the same imports, and leaves no files.
    assert sorted(copy.rglob("*")) == before


def test_a_copy_that_differs_is_not(payload, copy):
    with (copy / "guards.py").open("a") as stream:
        stream.write("#")
    *files, (version, sources) = imported(payload, copy)
    assert [path.startswith(str(payload)) for path in files] == [True] * 3
    assert version == ""
    assert sources["guards.py"] == (MODULE_UTILS / "_engine" / "guards.py").read_text()


def test_a_copy_with_a_file_more_does_not_say_its_version(payload, copy):
    (copy / "resources" / "other.py").write_text("")
    *files, (version, _sources) = imported(payload, copy)
    assert [path.startswith(str(copy)) for path in files] == [True] * 3
    assert version == ""


def test_without_a_copy_nothing_is_missing(payload, tmp_path):
    *files, _sources = imported(payload, tmp_path / "nothing")
    assert [path.startswith(str(payload)) for path in files] == [True] * 3


def test_a_copy_that_goes_meanwhile_takes_nothing_along(payload, copy):
    *files, _sources = imported(payload, copy, after="removed")
    assert [path.startswith(str(root)) for path, root in zip(files, (copy, payload, payload))] == [True] * 3
