# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where the Python that runs a module has no libvirt: again under the one that has it, once, else a sentence."""

from __future__ import annotations

import pytest
from ansible.module_utils.common import respawn
from ansible_collections.iovirt.host.plugins.module_utils import _door


class Ended(Exception):
    pass


class Module:
    def __init__(self, check_mode=False, assume=None):
        self.check_mode = check_mode
        self.params = {"assume": assume}

    def fail_json(self, msg):
        raise Ended(msg)


def raising(error, text=""):
    """A function that does nothing but raise, with its argument."""

    def called(word):
        raise error(text + word)

    return called


@pytest.fixture
def without(monkeypatch):
    """No libvirt here; another Python has it or not."""

    def arrange(elsewhere, respawned=False):
        monkeypatch.setattr(_door.importlib, "import_module", raising(ImportError))
        monkeypatch.setattr(respawn, "has_respawned", lambda: respawned)
        monkeypatch.setattr(respawn, "probe_interpreters_for_module", lambda paths, name: elsewhere)
        monkeypatch.setattr(respawn, "respawn_module", raising(Ended, "again under "))

    return arrange


def test_it_runs_again_under_the_python_that_has_it(without):
    without("/usr/bin/python3")
    with pytest.raises(Ended, match=r"^again under /usr/bin/python3$"):
        _door._libvirt(Module())


@pytest.mark.parametrize(("elsewhere", "respawned"), [(None, False), ("/usr/bin/python3", True)])
def test_without_any_it_says_what_to_install(without, elsewhere, respawned):
    without(elsewhere, respawned)
    with pytest.raises(Ended, match=r"has no Python module libvirt\. Install it"):
        _door._libvirt(Module())


def test_one_that_the_run_installs_is_not_there_yet_in_check_mode(without):
    without(None)
    coming = {"libvirt": True}
    assert _door._libvirt(Module(check_mode=True, assume=coming))().domains() == {}
    for module in (Module(assume=coming), Module(check_mode=True), Module(check_mode=True, assume={"libvirt": False})):
        with pytest.raises(Ended, match=r"has no Python module libvirt"):
            _door._libvirt(module)


def test_the_connection_is_one(monkeypatch):
    class Libvirt:
        libvirtError = Exception

        def registerErrorHandler(self, handler, context):
            pass

    monkeypatch.setattr(_door.importlib, "import_module", lambda name: Libvirt())
    connection = _door._libvirt(Module())
    assert connection() is connection()
