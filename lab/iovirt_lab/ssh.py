# Copyright: the iovirt.host authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reaching a lab host: ssh with its own key and known hosts, and the inventory that says the same to Ansible."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .common import LabError, tool


def options(key: Path, known_hosts: Path) -> list[str]:
    """Only the lab's own key and known hosts; nothing of the user's configuration or agent."""
    return [
        "-F", "none",
        "-i", str(key),
        "-o", "IdentitiesOnly=yes",
        "-o", "IdentityAgent=none",
        "-o", f'UserKnownHostsFile="{known_hosts}"',
        "-o", "GlobalKnownHostsFile=none",
        "-o", "StrictHostKeyChecking=yes",
        "-o", "ConnectTimeout=20",
        "-o", "ServerAliveInterval=15",
        "-o", "ServerAliveCountMax=8",
    ]  # fmt: skip


def argv(port: int, key: Path, known_hosts: Path, command: Sequence[str] = ()) -> list[str]:
    """The ssh command for a host. No shared connection: a lasting one keeps its first caller's pipe open."""
    shared = ["-o", "ControlMaster=no", "-o", "ControlPath=none", "-o", "LogLevel=ERROR"]
    return [tool("ssh"), *options(key, known_hosts), *shared, "-p", str(port), "root@127.0.0.1", *command]


def call(words: Sequence[str], limit: float | None, stdin: Path | None = None, log: Path | None = None) -> int:
    """Run ssh with a limit on the wall clock; 124 says that the limit was met, as timeout(1) does."""
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(stdin.open("rb")) if stdin else None
        out = stack.enter_context(log.open("ab")) if log else None
        child = subprocess.Popen(  # pylint: disable=consider-using-with
            list(words), stdin=source, stdout=out, stderr=subprocess.STDOUT if out else None
        )
        try:
            return child.wait(limit)
        except subprocess.TimeoutExpired:
            return 124
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()


def greets(port: int, limit: float = 3.0) -> bool:
    """Whether sshd answers. QEMU accepts the connection long before, so only the banner tells."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=limit) as connection:
            connection.settimeout(limit)
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def free_port(last: int = 0) -> int:
    """A port that is free now, the last one if it can be; QEMU says so when it was taken in the meantime."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As QEMU does it: connections that have just ended do not keep the port from being used again.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", last))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_known_hosts(path: Path, port: int, host_key: Path) -> None:
    """The host's key is known from the build: nothing has to be taken on trust."""
    words = host_key.read_text(encoding="ascii").split()
    path.write_text(f"[127.0.0.1]:{port} {words[0]} {words[1]}\n", encoding="ascii")


def inventory(name: str, port: int, key: Path, known_hosts: Path) -> str:
    """An Ansible inventory in YAML with this one host."""
    if "'" in str(key) + str(known_hosts):
        raise LabError("the path of the lab's folder contains a quote", "name another folder with IOVIRT_LAB_DIR")
    # Single quotes around each option for Ansible's word splitting, doubled for YAML.
    words = options(key, known_hosts)[4:]
    common = " ".join(word if word.startswith("-") else f"''{word}''" for word in words)
    return f"""---
all:
  hosts:
    {name}:
      ansible_host: 127.0.0.1
      ansible_port: {port}
      ansible_user: root
      ansible_ssh_private_key_file: '{key}'
      ansible_ssh_common_args: '-F none {common}'
      ansible_python_interpreter: /usr/bin/python3
      ansible_pipelining: true
"""


def check_reply(code: int, what: str, log: Path) -> None:
    """Turn the exit status of a build step over ssh into an error."""
    if code == 124:
        raise LabError(f"{what} did not end within its limit", log=log)
    if code != 0:
        raise LabError(f"{what} failed with exit status {code}", log=log)
