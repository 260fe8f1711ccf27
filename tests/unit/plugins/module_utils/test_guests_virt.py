# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The connection to libvirt, over a module that behaves as python3-libvirt does."""

from __future__ import annotations

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine.errors import EngineError
from ansible_collections.iovirt.host.plugins.module_utils._engine.guests.virt import Libvirt


class Error(Exception):
    def __init__(self, text, code=1):
        super().__init__(text)
        self.code = code

    def get_error_code(self):
        return self.code


class Domain:
    def __init__(self, name, gone=False):
        self.given, self.gone = name, gone

    def name(self):
        return self.given

    def isActive(self):
        if self.gone:
            raise Error("Domain not found", 42)
        return 1

    def isPersistent(self):
        return 1

    def state(self):
        return [3, 1]

    def UUIDString(self):
        return "uuid"

    def XMLDesc(self, flags):
        return f"<domain flags='{flags}'/>"

    def autostart(self):
        return 1

    def hasManagedSaveImage(self, flags=0):
        return 0


class Module:
    """libvirt's numbers: https://libvirt.org/html/libvirt-libvirt-domain.html."""

    libvirtError = Error
    VIR_DOMAIN_XML_SECURE, VIR_DOMAIN_XML_INACTIVE, VIR_ERR_NO_DOMAIN = 1, 2, 42
    VIR_DOMAIN_DEFINE_VALIDATE = 1

    def __init__(self):
        self.opened, self.alive, self.down = 0, True, False
        self.domains = [Domain("a"), Domain("b", gone=True)]

    def registerErrorHandler(self, handler, context):
        self.handler = handler

    def open(self, uri):
        if self.down:
            raise Error("Failed to connect socket to '/var/run/libvirt/libvirt-sock': No such file or directory")
        self.opened += 1
        self.alive = True
        return self

    def isAlive(self):
        return self.alive

    def listAllDomains(self):
        return self.domains

    def defineXMLFlags(self, xml, flags):
        raise Error("XML error: name a/b cannot contain '/'")

    def lookupByName(self, name):
        raise Error(f"Domain not found: no domain with matching name '{name}'", 42)


def test_a_guest_that_went_meanwhile_is_no_error():
    (domain,) = Libvirt(Module()).domains().values()
    assert (domain.name, domain.state, domain.inactive, domain.live) == ("a", "paused", "<domain flags='3'/>", "<domain flags='1'/>")
    assert domain.active and domain.autostart and not domain.saved


def test_what_libvirt_says_is_a_sentence():
    with pytest.raises(EngineError, match=r"^libvirt answered: XML error: name a/b cannot contain '/'\.$"):
        Libvirt(Module()).define("<domain/>")
    with pytest.raises(EngineError, match="no domain with matching name 'x'"):
        Libvirt(Module()).create("x")


def test_a_daemon_that_is_down():
    module = Module()
    module.down = True
    with pytest.raises(EngineError, match=r"^libvirt does not answer at qemu:///system: Failed to connect .* nothing was changed\.$"):
        Libvirt(module).domains()


def test_a_daemon_that_was_started_anew_is_asked_anew():
    module = Module()
    connection = Libvirt(module)
    connection.domains()
    connection.domains()
    assert module.opened == 1
    module.alive = False
    connection.domains()
    assert module.opened == 2
