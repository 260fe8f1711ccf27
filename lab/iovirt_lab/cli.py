# Copyright: the iovirt.host authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, Callable

from . import flavour, hosts, image, process, ssh, suites
from .common import LabError, find_tool, handle_signals, lock, remove_tree, say
from .paths import build_lock, run_dir, state_dir
from .qemu import IOMMUS
from .recipe import KEYRING, MACHINE_PROGRAMS, SUITE, USER_PROGRAMS


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="lab", description="The virtual lab hosts; see docs/dev/lab.md.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, does: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(does=does)
        return sub

    add("build", do_build, "build what is missing: QEMU, the image, the modules")
    sub = add("up", do_up, "start a host over the built image")
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("--memory", default="3G", help="default: %(default)s")
    sub.add_argument("--cpus", type=int, default=2, help="default: %(default)s")
    sub.add_argument("--igb-ports", type=int, default=2, help="of 7 VFs each; default: %(default)s")
    sub.add_argument(
        "--bare",
        action="store_true",
        help="without the igb ports, the NVMe controller and the second node: it boots sooner",
    )
    sub.add_argument("--wait", action="store_true", help="until ssh answers")
    sub.add_argument("--boot", choices=flavour.BOOTS, help="firmware and boot loader; default: grub-bios")
    sub.add_argument("--iommu", choices=sorted(IOMMUS), help="default: vtd")
    sub.add_argument("--suite", choices=suites.SUITES, help=f"of Debian; default: {SUITE}")
    sub.add_argument("--timeout", type=float, default=hosts.UP_LIMIT, help="seconds to wait; default: %(default)s")
    sub = add("down", do_down, "end a host and remove its disk")
    sub.add_argument("name", metavar="NAME", nargs="?")
    sub.add_argument("--all", action="store_true", help="every host of this lab, also after a crash")
    sub.add_argument("--purge", action="store_true", help=argparse.SUPPRESS)
    for name, does, text in (
        ("reset", do_reset, "hard reset from outside"),
        ("kill", do_kill, "cut the power; the disk stays for the next up"),
        ("inventory", do_inventory, "print an Ansible inventory for the host"),
        ("console", do_console, "print what the host wrote to its serial console"),
    ):
        add(name, does, text).add_argument("name", metavar="NAME")
    sub = add("ssh", do_ssh, "log in, or run a command: lab ssh NAME -- COMMAND")
    sub.add_argument("--timeout", type=float, help="seconds; the exit status is then 124")
    sub.add_argument("name", metavar="NAME")
    sub.add_argument("words", nargs="*", metavar="-- COMMAND")
    sub = add("list", do_list, "the hosts")
    sub.add_argument("--json", action="store_true")
    add("clean", do_clean, "end every host and remove everything the lab built")
    sub = add("packages", do_packages, "the Debian packages that this machine needs")
    sub.add_argument("--missing", action="store_true", help="only those whose programs are not there")
    return top


def do_build(_args: argparse.Namespace) -> int:
    """lab build"""
    start = time.monotonic()
    qemu = image.ensure()
    say(f"built in {time.monotonic() - start:.1f} s: {image.image_path()}; QEMU: {qemu.origin}")
    return 0


def do_up(args: argparse.Namespace) -> int:
    """lab up"""
    kind = None
    if args.boot or args.iommu or args.suite:
        kind = hosts.Flavour(args.boot or flavour.DEFAULT, args.iommu or "vtd", args.suite or SUITE)
    hosts.up(args.name, args.memory, args.cpus, args.igb_ports, args.wait, args.timeout, kind, args.bare)
    return 0


def do_down(args: argparse.Namespace) -> int:
    """lab down"""
    if bool(args.name) == args.all:
        raise LabError("name one host, or say --all")
    if args.all:
        hosts.down_all()
    else:
        hosts.down(args.name)
    return 0


def do_reset(args: argparse.Namespace) -> int:
    """lab reset"""
    hosts.reset(args.name)
    return 0


def do_kill(args: argparse.Namespace) -> int:
    """lab kill"""
    hosts.kill(args.name)
    return 0


def do_inventory(args: argparse.Namespace) -> int:
    """lab inventory"""
    host = hosts.load(args.name)
    known = hosts.folder_of(args.name) / "known_hosts"
    print(ssh.inventory(host.name, host.port, hosts.key_of(host), known), end="")
    return 0


def do_console(args: argparse.Namespace) -> int:
    """lab console"""
    path = hosts.folder_of(args.name) / "console.log"
    try:
        sys.stdout.write(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        raise LabError(f"host {args.name} has no console log", f"lab/lab up {args.name}") from None
    return 0


def do_ssh(args: argparse.Namespace) -> int:
    """lab ssh"""
    host = hosts.need_running(args.name)
    known = hosts.folder_of(args.name) / "known_hosts"
    code = ssh.call(ssh.argv(host.port, hosts.key_of(host), known, args.words), args.timeout)
    if code == 124 and args.timeout:
        say(f"ended after {args.timeout:.0f} s")
    return code


def do_list(args: argparse.Namespace) -> int:
    """lab list"""
    rows = [row_of(name) for name in hosts.names()]
    if args.json:
        print(json.dumps(rows, indent=1))
        return 0
    line = "{name:<20} {state:<8} {port:<6} {pid:<8} {memory:<7} {cpus:<5} {folder}"
    print(
        line.format(name="NAME", state="STATE", port="PORT", pid="PID", memory="MEMORY", cpus="CPUS", folder="FOLDER")
    )
    for row in rows:
        print(line.format(**{key: "-" if value is None else value for key, value in row.items()}))
    return 0


def row_of(name: str) -> dict[str, Any]:
    """What the list says of a host."""
    found = process.find(name)
    row: dict[str, Any] = {"name": name, "state": "running" if found else "off", "pid": found.pid if found else None}
    row.update({"port": None, "memory": None, "cpus": None, "started": None, "folder": str(run_dir() / name)})
    try:
        host = hosts.load(name)
    except LabError:
        return row
    row.update({"port": host.port, "memory": host.memory, "cpus": host.cpus, "started": host.started})
    return row


def do_clean(_args: argparse.Namespace) -> int:
    """lab clean"""
    hosts.down_all()
    with lock(build_lock(), "building", 60):
        image.remove_leftovers()
        remove_tree(state_dir())
    if state_dir().exists():
        raise LabError(f"{state_dir()} could not be removed whole", "remove it as the user who built it")
    say(f"removed {state_dir()}")
    return 0


def do_packages(args: argparse.Namespace) -> int:
    """lab packages"""
    pairs = list(MACHINE_PROGRAMS) + (USER_PROGRAMS if os.geteuid() != 0 or not args.missing else [])
    for package, program in pairs:
        if not args.missing or find_tool(program) is None:
            print(package)
    package, path = KEYRING
    if not args.missing or not path.exists():
        print(package)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; an expected failure is told in words."""
    words = list(sys.argv[1:] if argv is None else argv)
    # Everything after -- is the command to run there, whatever it looks like.
    cut = words.index("--") if "--" in words else len(words)
    args = parser().parse_args(words[:cut])
    if cut < len(words):
        args.words = words[cut + 1 :]
    handle_signals()
    try:
        if platform.machine() != "x86_64":
            raise LabError(f"the lab runs on x86_64 only, and this is {platform.machine()}")
        return int(args.does(args))
    except LabError as error:
        print(f"lab: error: {error}", file=sys.stderr)
        return 1
    except subprocess.TimeoutExpired as error:
        print(f"lab: error: {error.cmd[0]} did not answer within {error.timeout:.0f} s", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted", file=sys.stderr)
        return 130
