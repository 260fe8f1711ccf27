# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The ways in which drivers divide a GPU, in the order in which the driver is asked. Each is a module of this folder of one
shape; none knows of another, and the resource (resources/vgpu.py) knows of none by name.

read -> facts      asks the driver of a GPU (DRIVERS: no other is asked), files before processes. None: it does not divide this GPU in this
                   way, so the next one is asked. The last one for a driver always answers, and refuses in `converge` with the reason.
                   Facts are plain values; they are in state.more["vgpu"][ADDRESS] of all that follows, with `framework` (NAME) added.
converge -> plan   pure: all wishes of one GPU (none of them absent) to a Plan. It refuses first, all at once (`common.refuse_all`), then
                   `common.declare`s, then has the steps. Its steps are in actions.TABLE, by functions of a file of its own in this
                   folder; each has the GPU as `unit` and reads back what it wrote. What is as wished gets no step, so that a second
                   run has none, and what a reload of the driver took comes back as drift.
give_back -> plan  pure: the GPU as it was before the collection (`common.stored_entry`), then `common.forget`.

Two more a framework may have. Without them no guest gets its vGPUs by type, and its mediated devices are nobody's to the resource mdev.

shares -> dict     pure: what guests can take of the vGPUs that wish["vgpus"] names, by what they take it by, in the form of what devices calls predict
                   (guests/shares.py): {"vgpus": {VF: {"type", "name", "gpu"}}} or {"mdevs": {UUID: {"parent", "type", "pool"}}}. Types are ids there.
                   The facts are those of `read`. A VF that is not there yet goes by the GPU and its KEY, '0000:3b:00.0 VF 4', so that guests wait.
mdevs -> dict      pure: KEY -> UUID, of a recorded wish of the framework whose vGPUs are mediated devices; empty for records of others. It
                   follows from the record alone, so that nobody has to ask a driver whose a device is.

A record (record.py) holds `wish`: {"framework": NAME, or what stands for several, "vgpus": {KEY: TYPE NAME}, ...}, where KEY is the index of a VF,
or a number where the GPU itself has the vGPUs; and `origin`, whose keys are the framework's own. As a wish of the replay it comes back whole:
`wish["vgpus"]` is set then, and `type` and `count` are not.

Of the facts others read: `uuid` and `serial` of the GPU, by which a wish may name it, and `beside`: how the GPU is beyond types and counts, as
further keys of a wish; or `wishes`: all of them without a match, where they are no types with counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..host import Host
from ..model import Function, Plan, State
from ..resources.common import Options, Target

Facts = Mapping[str, Any]


class Framework(Protocol):
    """The names that a module of a framework has."""

    @property
    def NAME(self) -> str:
        """As records, vgpu_info and the documentation call it."""

    @property
    def DRIVERS(self) -> frozenset[str]:
        """Drivers of a whole GPU that are asked."""

    def read(self, host: Host, state: State, function: Function) -> dict[str, Any] | None:
        """What the driver says of a GPU; None where it does not divide it in this way."""

    def converge(self, state: State, targets: Sequence[Target], options: Options) -> Plan:
        """What makes the wishes for one GPU true."""

    def give_back(self, state: State, target: Target, options: Options) -> Plan:
        """What puts it back as it was."""

    def have(self, facts: Facts) -> dict[str, str]:
        """KEY -> type name, of all vGPUs that are there, whoever made them."""

    def told(self, state: State, function: Function) -> dict[str, Any]:
        """For vgpu_info: at least `framework` (None: no vGPUs can be had), `types` and `declared`."""


class Shares(Protocol):
    """`shares` of a framework."""

    def __call__(self, state: State, pf: str, wish: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]: ...


def shares_of(framework: Framework) -> Shares | None:
    found: Shares | None = getattr(framework, "shares", None)
    return found


def mdevs_of(machine_id: str, wish: Mapping[str, Any]) -> dict[str, str]:
    """KEY -> UUID, of a recorded wish whose vGPUs are mediated devices."""
    found: dict[str, str] = {}
    for framework in every():
        mdevs = getattr(framework, "mdevs", None)
        if mdevs is not None:
            found.update(mdevs(machine_id, wish))
    return found


def every() -> tuple[Framework, ...]:
    """In the order of asking. Imported when they are asked for (docs/dev/benchmarks.md)."""
    from . import intel_gvt, intel_sriov, nvidia_mdev, nvidia_vfio

    return (nvidia_mdev, nvidia_vfio, intel_gvt, intel_sriov)


def drivers() -> frozenset[str]:
    """All drivers that are asked."""
    return frozenset[str]().union(*(framework.DRIVERS for framework in every()))


def ask(host: Host, state: State, function: Function) -> dict[str, Any] | None:
    """The facts of the first framework that the driver of a GPU offers."""
    for framework in every():
        facts = framework.read(host, state, function) if function.driver in framework.DRIVERS else None
        if facts is not None:
            return {**facts, "framework": framework.NAME}
    return None


def named(name: str) -> Framework | None:
    return next((framework for framework in every() if name == framework.NAME), None)
