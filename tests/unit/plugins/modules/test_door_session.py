# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Modules and the operator's command ask by which connection they are called."""

from __future__ import annotations

import os

import pytest
from ansible_collections.iovirt.host.plugins.module_utils import _door
from ansible_collections.iovirt.host.plugins.module_utils._engine import cli

SAID = {"SSH_CONNECTION": "10.0.2.2 50000 10.0.2.15 22"}


def asked(files, own, pid):
    assert own is os.environ and pid == os.getppid()
    return SAID


def test_a_module_knows_the_connection(monkeypatch):
    monkeypatch.setattr(_door, "session", asked)
    assert _door._host().environment is SAID


def test_the_command_knows_the_connection(monkeypatch):
    class Seen(Exception):
        pass

    def host(**given):
        assert given["environment"] is SAID
        raise Seen

    monkeypatch.setattr(cli, "session", asked)
    monkeypatch.setattr(cli, "Host", host)
    with pytest.raises(Seen):
        cli.main(["plan"])
