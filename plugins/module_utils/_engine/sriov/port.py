# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A physical function whose wish is being planned: what every part of an SR-IOV wish looks at.

A part is one module of this package and plans one side of the wish (drivers, attributes, eswitch, firmware, ...), by
functions of a Port: `check` says what is wrong with the wish, `plan` what has to be done. resources/sriov.py puts the
parts in their order.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import field
from functools import cached_property
from typing import Any

from .. import sysfs
from ..model import Function, Refusal, Sriov, State
from ..plain import dataclass
from ..resources.common import Options


@dataclass(frozen=True)
class Port:
    """What is wished of a PF, beside what it is."""

    state: State
    pf: Function
    sriov: Sriov
    options: Options
    #: Where the wish stands ('sriov[0]').
    label: str
    #: The keys of the wish that are about the PF itself; unset ones are not in it.
    wish: Mapping[str, Any] = field(default_factory=dict)
    #: The number of VFs that is to be.
    count: int = 0
    #: Is it wished, or just the one that is there?
    counted: bool = True
    #: Is what the card has but once (its firmware) set through this port?
    leads: bool = True
    #: The number of VFs that it can have only from the next boot on, where the wish needs that.
    coming: int | None = None
    #: VF index -> what is wished for it; unset keys are not in it.
    wished: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    #: VF index -> what an earlier wish set of it and this plan takes back.
    ours: Mapping[int, Collection[str]] = field(default_factory=dict)
    #: VFs that are made anew and get the driver again that somebody gave them, though the wish names none.
    kept: Collection[int] = ()
    #: Is it given back? Then nothing is left undone: there is no second time.
    returning: bool = False
    #: The VFs that are there go before anything else: what the plan does to the port is not possible with them.
    cleared: bool = False

    @property
    def born(self) -> bool:
        """Are the VFs made (anew) by this very plan? Then they are as the kernel makes them."""
        return self.cleared or self.count != len(self.sriov.vfs)

    @cached_property
    def addresses(self) -> Mapping[int, str]:
        """VF index -> its address, as it is or as it will be. Reckoned once: each VF's plan asks for it."""
        if self.born:
            return {index: predict_address(self.pf, self.sriov, index) for index in range(self.count)}
        return self.sriov.vfs

    @property
    def has_vf_functions(self) -> bool:
        """Are its VFs functions of their own, with drivers? Those of netdevsim are not."""
        return self.pf.bus == sysfs.PCI

    def vf(self, index: int) -> Function | None:
        """The VF as it is; None when it is not born yet."""
        return None if self.born else self.state.functions.get(self.addresses[index])

    def wrong(self, reason: str, way_out: str) -> Refusal:
        """A refusal that names the PF and the wish."""
        return bad(self.pf.address, f"{self.label}: {reason}", way_out)


def is_number(value: Any, low: int = 0, high: int | None = None) -> bool:
    """A whole number in its bounds. `yes` is none, though it is to Python."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value and (high is None or value <= high)


def bad(address: str, reason: str, way_out: str) -> Refusal:
    """A wish that cannot be followed."""
    return Refusal(address, reason, f"{way_out} Nothing was changed.")


def predict_address(pf: Function, sriov: Sriov, index: int) -> str:
    """The address of a VF that is not born yet: routing ID of the PF plus First VF Offset plus index times VF Stride
    (PCI Express Base Specification, SR-IOV capability). The device may change both when the count changes, and need not
    have them before (no VF can have the offset 0)."""
    if pf.bus != sysfs.PCI:
        return f"{pf.address}/{index}"
    if not sriov.offset:
        return "address not known yet"
    domain, bus, rest = pf.address.split(":")
    slot, function = rest.split(".")
    routing = (int(bus, 16) << 8 | int(slot, 16) << 3 | int(function)) + sriov.offset + index * sriov.stride
    return f"{domain}:{routing >> 8 & 0xFF:02x}:{routing >> 3 & 0x1F:02x}.{routing & 7}"
