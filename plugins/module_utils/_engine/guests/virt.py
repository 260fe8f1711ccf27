# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A thin connection to libvirt. The libvirt module is handed in: it is the one thing that the engine needs beyond the
standard library, and only whoever speaks of guests needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable, Protocol, TypeVar

from ..errors import EngineError
from ..plain import dataclass

URI = "qemu:///system"

_T = TypeVar("_T")


@dataclass(frozen=True)
class Domain:
    """A guest as libvirt has it. `inactive`: the XML of its next start. `live`: of the running one; nothing while it does not run."""

    name: str
    uuid: str
    inactive: str
    live: str = ""
    state: str = "shut off"
    autostart: bool = False
    #: Its memory lies in a file (managedsave); to undefine it would lose that.
    saved: bool = False
    persistent: bool = True

    @property
    def active(self) -> bool:
        return bool(self.live)


class Connection(Protocol):
    """What the engine asks of libvirt. Each call raises EngineError with libvirt's words."""

    def capabilities(self) -> str: ...
    def domains(self) -> Mapping[str, Domain]: ...
    def networks(self) -> Mapping[str, bool]: ...
    def define(self, xml: str) -> None: ...
    def undefine(self, name: str) -> None: ...
    def create(self, name: str) -> None: ...
    def shutdown(self, name: str) -> None: ...
    def destroy(self, name: str) -> None: ...
    def active(self, name: str) -> bool: ...
    def autostart(self, name: str, value: bool) -> None: ...
    def attach(self, name: str, xml: str) -> None: ...
    def detach(self, name: str, xml: str) -> None: ...
    def update(self, name: str, xml: str) -> None: ...
    def set_vcpus(self, name: str, count: int) -> None: ...
    def set_memory(self, name: str, kib: int) -> None: ...


class NotYet:
    """A Connection to the libvirt that an earlier call of the same run installs or starts, in check mode: it has nothing yet, and nothing can
    be done with it."""

    def capabilities(self) -> str:
        return "<capabilities/>"

    def domains(self) -> Mapping[str, Domain]:
        return {}

    def networks(self) -> Mapping[str, bool]:
        return {}

    def __getattr__(self, name: str) -> Any:
        raise EngineError(f"internal: {name} was asked of a libvirt that is not there yet.")


#: virDomainState, by the words of `virsh list`.
_STATES = ("no state", "running", "idle", "paused", "in shutdown", "shut off", "crashed", "suspended")


class Libvirt:
    """A Connection over python3-libvirt. One that broke, as when the daemon was started anew, is made again at the next
    call."""

    def __init__(self, libvirt: Any, uri: str = URI) -> None:
        self._libvirt = libvirt
        self._uri = uri
        self._open: Any = None
        # Its own handler prints to standard error.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)

    def _connection(self) -> Any:
        if self._open is None or not self._open.isAlive():
            try:
                self._open = self._libvirt.open(self._uri)
            except self._libvirt.libvirtError as error:
                raise EngineError(
                    f"libvirt does not answer at {self._uri}: {_words(error)}. Start it (systemctl start libvirtd.socket, or "
                    "virtqemud.socket and its kin), then run again; nothing was changed."
                ) from None
        return self._open

    def _ask(self, question: Callable[[Any], _T]) -> _T:
        connection = self._connection()
        try:
            return question(connection)
        except self._libvirt.libvirtError as error:
            raise EngineError(f"libvirt answered: {_words(error)}.") from None

    def _of(self, name: str, question: Callable[[Any], _T]) -> _T:
        return self._ask(lambda connection: question(connection.lookupByName(name)))

    def capabilities(self) -> str:
        return str(self._ask(lambda connection: connection.getCapabilities()))

    def domains(self) -> dict[str, Domain]:
        return {domain.name: domain for domain in self._ask(self._domains)}

    def _domains(self, connection: Any) -> list[Domain]:
        return [found for domain in connection.listAllDomains() if (found := self._domain(domain))]

    def _domain(self, domain: Any) -> Domain | None:
        lv = self._libvirt
        inactive = lv.VIR_DOMAIN_XML_INACTIVE | lv.VIR_DOMAIN_XML_SECURE
        try:
            active, persistent = bool(domain.isActive()), bool(domain.isPersistent())
            number = domain.state()[0]
            return Domain(
                name=domain.name(),
                uuid=domain.UUIDString(),
                inactive=domain.XMLDesc(inactive),
                live=domain.XMLDesc(lv.VIR_DOMAIN_XML_SECURE) if active else "",
                state=_STATES[number] if number < len(_STATES) else "no state",
                autostart=persistent and bool(domain.autostart()),
                saved=persistent and bool(domain.hasManagedSaveImage()),
                persistent=persistent,
            )
        except lv.libvirtError as error:
            if error.get_error_code() == lv.VIR_ERR_NO_DOMAIN:
                # It went while it was looked at.
                return None
            raise

    def networks(self) -> dict[str, bool]:
        return self._ask(lambda connection: {n.name(): bool(n.isActive()) for n in connection.listAllNetworks()})

    def define(self, xml: str) -> None:
        self._ask(lambda connection: connection.defineXMLFlags(xml, self._libvirt.VIR_DOMAIN_DEFINE_VALIDATE))

    def undefine(self, name: str) -> None:
        """With its UEFI variables. A saved state or snapshots are in the way: those are the user's."""
        self._of(name, lambda domain: domain.undefineFlags(self._libvirt.VIR_DOMAIN_UNDEFINE_NVRAM))

    def create(self, name: str) -> None:
        self._of(name, lambda domain: domain.create())

    def shutdown(self, name: str) -> None:
        self._of(name, lambda domain: domain.shutdown())

    def destroy(self, name: str) -> None:
        self._of(name, lambda domain: domain.destroy())

    def active(self, name: str) -> bool:
        return bool(self._of(name, lambda domain: domain.isActive()))

    def autostart(self, name: str, value: bool) -> None:
        self._of(name, lambda domain: domain.setAutostart(int(value)))

    def attach(self, name: str, xml: str) -> None:
        self._of(name, lambda domain: domain.attachDeviceFlags(xml, self._libvirt.VIR_DOMAIN_AFFECT_LIVE))

    def detach(self, name: str, xml: str) -> None:
        self._of(name, lambda domain: domain.detachDeviceFlags(xml, self._libvirt.VIR_DOMAIN_AFFECT_LIVE))

    def update(self, name: str, xml: str) -> None:
        self._of(name, lambda domain: domain.updateDeviceFlags(xml, self._libvirt.VIR_DOMAIN_AFFECT_LIVE))

    def set_vcpus(self, name: str, count: int) -> None:
        self._of(name, lambda domain: domain.setVcpusFlags(count, self._libvirt.VIR_DOMAIN_AFFECT_LIVE))

    def set_memory(self, name: str, kib: int) -> None:
        self._of(name, lambda domain: domain.setMemoryFlags(kib, self._libvirt.VIR_DOMAIN_AFFECT_LIVE))


def _words(error: Any) -> str:
    return str(error).strip().rstrip(".")
