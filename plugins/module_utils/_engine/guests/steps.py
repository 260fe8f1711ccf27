# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The steps on guests, each with its way back."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from ..errors import EngineError
from ..host import Host
from . import facts
from .virt import Connection

Args = Mapping[str, Any]

#: Seconds for QEMU to be gone after its power was cut, and for a guest to let a device go.
GONE_LIMIT = 60.0


def _connection(host: Host) -> Connection:
    if host.libvirt is None:
        raise EngineError("internal: no connection to libvirt was handed in.")
    connection: Connection = host.libvirt()
    return connection


def define(host: Host, args: Args) -> None:
    from . import compare

    connection = _connection(host)
    connection.define(args["xml"])
    # Read back: a word that this libvirt does not know would be lost without one of its own.
    domain = connection.domains().get(args["name"])
    have = compare.flatten(compare.parse(domain.inactive)) if domain else {}
    lost = [path for path, value in args["made"].items() if not compare.same(path, value, have.get(path))]
    if lost:
        raise EngineError(f"libvirt took the definition and has it otherwise: {', '.join(lost[:5])}. Is this libvirt old?")


def undo_define(host: Host, args: Args) -> None:
    connection = _connection(host)
    if args["was"]:
        connection.define(args["was"])
    elif args["name"] in connection.domains():
        connection.undefine(args["name"])


def undefine(host: Host, args: Args) -> None:
    connection = _connection(host)
    connection.undefine(args["name"])
    if args["name"] in connection.domains():
        raise EngineError("libvirt still has it.")


def undo_undefine(host: Host, args: Args) -> None:
    if args["name"] not in _connection(host).domains():
        _connection(host).define(args["was"])
        _connection(host).autostart(args["name"], args["autostart"])


def start(host: Host, args: Args) -> None:
    connection = _connection(host)
    if not connection.active(args["name"]):
        connection.create(args["name"])
    if not connection.active(args["name"]):
        raise EngineError(f"it ended at once. Look at /var/log/libvirt/qemu/{args['name']}.log.")
    _prove(host, args)


def _prove(host: Host, args: Args) -> None:
    if args.get("stations"):
        from . import stations

        stations.prove(host, args["stations"])


def undo_start(host: Host, args: Args) -> None:
    """It had run for a moment only."""
    if _connection(host).active(args["name"]):
        _connection(host).destroy(args["name"])


def stop(host: Host, args: Args) -> None:
    """Asked by the power button; what has its power cut loses what it had not written."""
    connection, name = _connection(host), args["name"]
    if connection.active(name) and args["timeout"] > 0:
        connection.shutdown(name)
    if host.wait(lambda: not connection.active(name), args["timeout"]):
        return
    if not args["power_off"]:
        raise EngineError(
            f"it has not shut down within {args['timeout']} s. It may do so later; power_off: true cuts its power then."
        )
    connection.destroy(name)
    if not host.wait(lambda: not connection.active(name), GONE_LIMIT):
        raise EngineError("it still runs although its power was cut.")


def undo_stop(host: Host, args: Args) -> None:
    if not _connection(host).active(args["name"]):
        _connection(host).create(args["name"])


def set_autostart(host: Host, args: Args) -> None:
    connection = _connection(host)
    connection.autostart(args["name"], args["to"])
    domain = connection.domains().get(args["name"])
    if domain is None or domain.autostart != args["to"]:
        raise EngineError("libvirt did not take its autostart.")


def undo_autostart(host: Host, args: Args) -> None:
    if args["name"] in _connection(host).domains():
        _connection(host).autostart(args["name"], args["was"])


# --- While it runs ---------------------------------------------------------------------------------------------------


def attach(host: Host, args: Args) -> None:
    _connection(host).attach(args["name"], args["xml"])
    _see(host, args, there=True)
    _prove(host, args)


def undo_attach(host: Host, args: Args) -> None:
    if _has(host, args):
        _connection(host).detach(args["name"], args["xml"])
        _see(host, args, there=False)


def detach(host: Host, args: Args) -> None:
    """The guest has to let it go: libvirt only asks it to."""
    _connection(host).detach(args["name"], args["xml"])
    _see(host, args, there=False)


def undo_detach(host: Host, args: Args) -> None:
    if not _has(host, args):
        _connection(host).attach(args["name"], args["xml"])


def update(host: Host, args: Args) -> None:
    _connection(host).update(args["name"], args["xml"])


def undo_update(host: Host, args: Args) -> None:
    _connection(host).update(args["name"], args["was"])


def _has(host: Host, args: Args) -> bool:
    from . import compare

    domain = _connection(host).domains().get(args["name"])
    return bool(domain and domain.live and args["path"] in compare.flatten(compare.parse(domain.live)))


def _see(host: Host, args: Args, there: bool) -> None:
    if not host.wait(lambda: _has(host, args) is there, GONE_LIMIT):
        word = "is not there" if there else "is still there"
        raise EngineError(f"{args['path']} {word} after {GONE_LIMIT:g} s: the guest has not answered.")


def set_vcpus(host: Host, args: Args) -> None:
    _connection(host).set_vcpus(args["name"], args["to"])


def undo_vcpus(host: Host, args: Args) -> None:
    """A guest need not let a CPU go."""
    _connection(host).set_vcpus(args["name"], args["was"])


def set_memory(host: Host, args: Args) -> None:
    """The guest's balloon does it, in its own time."""
    _connection(host).set_memory(args["name"], args["to"])


def undo_memory(host: Host, args: Args) -> None:
    _connection(host).set_memory(args["name"], args["was"])


# --- Files -----------------------------------------------------------------------------------------------------------

#: Fetches a URL into a file and looks at its checksum before it is there by its name.
_FETCH = """
import hashlib, os, sys, urllib.request
# Ansible's sanity tests want its own open_url here, which this small program of a bare Python has not.
fetch = urllib.request.build_opener().open
url, path, kind, digest = sys.argv[1:]
part = path + ".iovirt-part"
seen = hashlib.new(kind)
try:
    with fetch(url, timeout=60) as source, open(part, "wb") as target:
        while True:
            data = source.read(1 << 20)
            if not data:
                break
            seen.update(data)
            target.write(data)
        target.flush()
        os.fsync(target.fileno())
    if seen.hexdigest() != digest:
        sys.exit("its checksum is " + kind + ":" + seen.hexdigest() + " and not " + kind + ":" + digest)
    os.rename(part, path)
except OSError as error:
    sys.exit(str(error))
finally:
    if os.path.exists(part):
        os.unlink(part)
"""


def create_image(host: Host, args: Args) -> None:
    """An image that is not there yet: fetched or taken from a file, then in the wished format, or empty."""
    path, source = args["path"], args["source"]
    new = f"{path}.iovirt-new"
    try:
        if source:
            _copy(host, args, new)
        if args["size"]:
            words = ["resize", "-q", "-f", args["format"], new] if source else ["create", "-q", "-f", args["format"], new]
            _run(host, ["qemu-img", *words, str(args["size"])])
        _run(host, ["mv", "-n", new, path])
    finally:
        host.files.remove(new)
    if host.files.size(path) is None:
        raise EngineError(f"{path} is not there although it was made.")


def _copy(host: Host, args: Args, new: str) -> None:
    source, fetched = args["source"], f"{args['path']}.iovirt-fetched"
    try:
        if args["checksum"]:
            kind, _colon, digest = args["checksum"].partition(":")
            url = source if "://" in source else f"file://{source}"
            _run(host, [host.python, "-I", "-c", _FETCH, url, fetched, kind, digest], f"{source} cannot be had")
            source = fetched
        _run(host, ["qemu-img", "convert", "-O", args["format"], source, new])
    finally:
        host.files.remove(fetched)


def _run(host: Host, argv: list[str], what: str = "") -> None:
    code, _out, err = host.run(argv)
    if code:
        raise EngineError(f"{what or ' '.join(argv[:2])}: {err.strip() or f'it ended with {code}'}.")


def undo_create_image(host: Host, args: Args) -> None:
    """It was not there before; nobody has written to it."""
    host.files.remove(args["path"])


def write_seed(host: Host, args: Args) -> None:
    host.files.replace_data(args["path"], base64.b64decode(args["data"]), mode=0o640)


def undo_write_seed(host: Host, args: Args) -> None:
    if args["was"] is None:
        host.files.remove(args["path"])
    else:
        host.files.replace_data(args["path"], base64.b64decode(args["was"]), mode=0o640)


def remove_seed(host: Host, args: Args) -> None:
    host.files.remove(args["path"])


# --- The record ------------------------------------------------------------------------------------------------------


def record(host: Host, args: Args) -> None:
    guests = facts.load(host.files)
    if args["entry"] is None:
        guests.pop(args["name"], None)
    else:
        guests[args["name"]] = {**args["entry"], "at": host.utc()}
    facts.save(host.files, guests)


def undo_record(host: Host, args: Args) -> None:
    guests = facts.load(host.files)
    guests.pop(args["name"], None)
    if args["was"] is not None:
        guests[args["name"]] = dict(args["was"])
    facts.save(host.files, guests)
