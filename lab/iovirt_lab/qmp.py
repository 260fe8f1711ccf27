# Copyright: the iovirt.host authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A word with QEMU itself, for what must work when nothing inside the host answers."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from .common import LabError

LIMIT = 10.0


def ask(folder: Path, command: str, **arguments: Any) -> Any:
    """Run one QMP command of the host in this run folder."""
    # A socket's path may have 107 characters at most, and a checkout may lie deeper: go through its folder's descriptor.
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(LIMIT)
            connection.connect(f"/proc/self/fd/{descriptor}/qmp.sock")
            with connection.makefile("rwb") as stream:
                stream.readline()  # the greeting
                send(stream, {"execute": "qmp_capabilities"})
                return send(stream, {"execute": command, "arguments": arguments})
    except (OSError, ValueError) as error:
        raise LabError(f"QEMU does not answer {command}: {error}", "lab/lab kill NAME, then lab/lab up NAME") from None
    finally:
        os.close(descriptor)


def send(stream: Any, message: dict[str, Any]) -> Any:
    """Send one command and read on to its answer; events come in between."""
    stream.write(json.dumps(message).encode() + b"\n")
    stream.flush()
    while True:
        line = stream.readline()
        if not line:
            raise ValueError("the connection was closed")
        answer = json.loads(line)
        if "return" in answer:
            return answer["return"]
        if "error" in answer:
            raise ValueError(answer["error"].get("desc", "unknown error"))
