# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The simulated kernel's network namespaces: who lives in one, and which network devices are there.

lab: a port that was moved leaves an empty folder net below its PCI function, is not in /sys/class/net of the others,
and is seen as /proc/PID/root/sys/class/net/NAME/device through a process that has a sysfs of its namespace.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

FIRST = "net:[4026531840]"


@dataclass
class Space:
    """A network namespace: its name in /run/netns, a process in it, and its network devices: name -> kind, number of
    the lower device, PCI address."""

    name: str = ""
    pid: int | None = None
    #: False: the process sees the first namespace's sysfs (systemd's PrivateNetwork=).
    own_sysfs: bool = True
    #: The device between the PCI function and the network device ('virtio1'), where there is one.
    below: str = ""
    netdevs: dict[str, tuple[str, int, str]] = field(default_factory=dict)


class Spaces:
    """All namespaces but the first."""

    def __init__(self) -> None:
        self.all: list[Space] = []

    def moved(self) -> dict[str, str]:
        """Network devices of PCI functions that are not in the first namespace: PCI address -> name."""
        return {address: name for s in self.all for name, (_kind, _low, address) in s.netdevs.items() if address}

    def nodes(self, pids: list[int], link: type) -> Iterator[tuple[str, Any]]:
        yield "/proc/self/ns/net", link(FIRST)
        inside = {space.pid for space in self.all}
        for pid in pids:
            if pid not in inside:
                yield f"/proc/{pid}/ns/net", link(FIRST)
        for number, space in enumerate(self.all):
            if space.name:
                yield f"/run/netns/{space.name}", ""
            if space.pid:
                yield f"/proc/{space.pid}/ns/net", link(f"net:[{4026532000 + number}]")
                yield from self._of_process(space, link)

    def _of_process(self, space: Space, link: type) -> Iterator[tuple[str, Any]]:
        rows = "".join(f"{name:>6}: 0 0\n" for name in ("lo", *space.netdevs))
        yield f"/proc/{space.pid}/net/dev", "Inter-| Receive\n face |bytes\n" + rows
        for number, (name, (_kind, lower, address)) in enumerate(space.netdevs.items() if space.own_sysfs else ()):
            folder = f"/proc/{space.pid}/root/sys/class/net/{name}"
            yield f"{folder}/ifindex", f"{100 + number}\n"
            yield f"{folder}/iflink", f"{lower or 100 + number}\n"
            if address:
                yield f"{folder}/device", link(f"../../../{space.below or address}")

    def run(self, argv: list[str]) -> tuple[int, str, str] | None:
        """`ip -n NAME -j -d link` and `nsenter -t PID -n ip -j -d link show dev NAME`, as iproute2 6.15 prints them (lab)."""
        if argv[:2] == ["ip", "-n"]:
            found = [s for s in self.all if s.name == argv[2]]
        elif argv[0] == "nsenter":
            found = [s for s in self.all if str(s.pid) == argv[2]]
        else:
            return None
        if not found:
            return 1, "", "Cannot open network namespace: No such file or directory"
        wanted = argv[argv.index("dev") + 1] if "dev" in argv else None
        links: list[dict[str, Any]] = []
        for name, (kind, _lower, address) in found[0].netdevs.items():
            if wanted in (None, name):
                link: dict[str, Any] = {"ifname": name}
                if kind:
                    link["linkinfo"] = {"info_kind": kind}
                if address:
                    link.update(parentbus="virtio" if found[0].below else "pci", parentdev=found[0].below or address)
                links.append(link)
        return 0, json.dumps(links), ""
