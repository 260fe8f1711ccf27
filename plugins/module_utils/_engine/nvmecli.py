# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is asked of nvme-cli 2: the secondary controllers of an NVMe controller, and commands to its virtualization
management (NVM Express Base Specification, Virtualization Enhancements; nvme-virt-mgmt(1))."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .errors import EngineError
from .host import Host
from .read import DEVICES

#: Resource types of Virtualization Management.
QUEUES, INTERRUPTS = 0, 1
#: Actions of Virtualization Management. Offline takes all flexible resources away from the controller as well.
PRIMARY_FLEXIBLE, OFFLINE, ASSIGN, ONLINE = 1, 7, 8, 9

#: Entries of one Secondary Controller List (Identify, CNS 15h).
_LIST_SIZE = 127


def controller(host: Host, pf: str) -> str:
    """The character device of a controller. Its number may be another one after each probe."""
    names = host.files.names(f"{DEVICES}/{pf}/nvme")
    if not names:
        raise EngineError(f"the nvme driver shows no controller below {pf}. Look at the kernel log.")
    return f"/dev/{names[0]}"


def secondaries(host: Host, device: str) -> dict[int, dict[str, Any]]:
    """VF index -> its secondary controller: id, queues, interrupts, online."""
    found: dict[int, dict[str, Any]] = {}
    first = 0
    while True:
        answer = _ask(host, ["list-secondary", device, "-c", str(first), "-o", "json"])
        try:
            entries = [_secondary(entry) for entry in answer["secondary-controllers"]]
        except (KeyError, TypeError, ValueError):
            raise EngineError(f"nvme list-secondary {device}: its JSON is not that of nvme-cli 2.") from None
        # VF numbers count from 1 (SR-IOV capability); 0 is said of a controller that is no VF.
        found.update({vfn - 1: entry for vfn, entry in entries if vfn})
        if len(entries) < _LIST_SIZE:
            return found
        first = entries[-1][1]["id"] + 1


def _secondary(entry: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    facts = {
        "id": int(entry["secondary-controller-identifier"]),
        "queues": int(entry["num-virtual-queues"]),
        "interrupts": int(entry["num-virtual-interrupts"]),
        "online": bool(int(entry["secondary-controller-state"]) & 1),
    }
    return int(entry["virtual-function-number"]), facts


def capabilities(host: Host, device: str) -> dict[str, int]:
    """The Primary Controller Capabilities by their names in the specification: vqfrt, vqrfap, vqfrsm, ..."""
    answer = _ask(host, ["primary-ctrl-caps", device, "-o", "json"])
    wanted = ("cntlid", "vqfrt", "vqrfap", "vqfrsm", "vifrt", "virfap", "vifrsm")
    try:
        return {key: int(answer[key]) for key in wanted}
    except (KeyError, TypeError, ValueError):
        raise EngineError(f"nvme primary-ctrl-caps {device}: its JSON is not that of nvme-cli 2.") from None


def manage(host: Host, device: str, controller_id: int, action: int, kind: int = QUEUES, number: int = 0) -> None:
    """One Virtualization Management command."""
    words = ["-c", str(controller_id), "-r", str(kind), "-a", str(action), "-n", str(number)]
    _run(host, ["virt-mgmt", device, *words])


def _ask(host: Host, words: list[str]) -> Any:
    try:
        return json.loads(_run(host, words))
    except ValueError:
        raise EngineError(f"nvme {' '.join(words)}: its output is not JSON.") from None


def _run(host: Host, words: list[str]) -> str:
    code, out, err = host.run(["nvme", *words])
    if code == 127:
        raise EngineError("the command nvme is not there. Install the package nvme-cli.")
    if code:
        raise EngineError(f"nvme {' '.join(words)} failed: {_said(out, err) or code}.")
    return out


def _said(out: str, err: str) -> str:
    """With `-o json` an error is a JSON object on standard output, and standard error may hold the whole usage; without
    it, it is a line on standard error."""
    try:
        return str(json.loads(out)["error"])
    except (KeyError, TypeError, ValueError):
        lines = [line.strip() for line in (err or out).splitlines() if line.strip()]
        return next((line for line in lines if line.startswith("NVMe status")), lines[-1] if lines else "")
