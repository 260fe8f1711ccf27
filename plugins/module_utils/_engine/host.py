# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The two objects through which the engine touches a host: a root-relative file system and a command runner.

Unit tests, the simulated kernel and the benchmarks hand in their own. Paths are always absolute as seen on the host
('/sys/...', '/etc/...') and are placed below the root; no path is built from input that was not checked.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import select
import signal
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any, Callable, Protocol

from .errors import EngineError, Stuck, explain
from .plain import dataclass


class Run(Protocol):
    """Start a command: argv and its standard input -> exit status, standard output, standard error."""

    def __call__(self, argv: list[str], data: str = "") -> tuple[int, str, str]: ...


#: The name of a file that was being written (FileSystem.replace), left by a run that was cut off.
LEFTOVER = re.compile(r".+\.iovirt-\d+")
#: The second name of a file that a boot loader reads (FileSystem.kept_for_loader): of the same kind, and no process has this number.
_KEPT = ".iovirt-0"

#: Attributes of sysfs are at most one page (Documentation/filesystems/sysfs.rst); resource tables are a little more.
ATTRIBUTE_LIMIT = 65536


class Files(Protocol):
    """What the engine asks of a file system. FileSystem is the real one."""

    def attr(self, path: str) -> str | None: ...
    def attrs_within(self, paths: Sequence[str], limit: float) -> dict[str, str | None]: ...
    def data(self, path: str, offset: int, size: int) -> bytes: ...
    def text(self, path: str) -> str | None: ...
    def size(self, path: str) -> int | None: ...
    def free(self, path: str) -> int | None: ...
    def names(self, path: str) -> list[str]: ...
    def exists(self, path: str) -> bool: ...
    def link(self, path: str) -> str | None: ...
    def resolve(self, path: str) -> str: ...
    def mode(self, path: str) -> int | None: ...
    def changed(self, path: str) -> float | None: ...
    def ask_kvm(self, path: str, limit: float) -> dict[str, Any] | None: ...
    def write(self, path: str, data: str, limit: float | None = None) -> None: ...
    def write_together(self, writes: Mapping[str, str], limit: float) -> dict[str, Exception]: ...
    def offer_together(self, path: str, series: Mapping[str, Sequence[str]], limit: float) -> dict[str, Exception]: ...
    def replace(self, path: str, text: str, mode: int = 0o644) -> None: ...
    def replace_data(self, path: str, data: bytes, mode: int = 0o644) -> None: ...
    def replace_for_loader(self, path: str, text: str, mode: int = 0o644) -> None: ...
    def kept_for_loader(self, path: str) -> contextlib.AbstractContextManager[None]: ...
    def put_in_place(self, made: str, path: str) -> None: ...
    def copy(self, source: str, path: str, mode: int = 0o644) -> None: ...
    def remove(self, path: str) -> None: ...
    def symlink(self, target: str, path: str) -> None: ...
    def lock(self, path: str, limit: float, who: str) -> contextlib.AbstractContextManager[None]: ...


class FileSystem:
    """The real file system below a root."""

    def __init__(self, root: str = "/") -> None:
        self._root = os.path.realpath(root).rstrip("/")

    def _real(self, path: str) -> str:
        if not path.startswith("/") or "/../" in path + "/":
            raise EngineError(f"internal: {path!r} is not an absolute path without '..'")
        return self._root + path

    def attr(self, path: str) -> str | None:
        """A sysfs or procfs attribute without its line end; None when it is not there or the driver gives none."""
        return _attribute(self._real(path))

    def attrs_within(self, paths: Sequence[str], limit: float) -> dict[str, str | None]:
        """Attributes that the kernel may hold back for ever. They are read in a detached child; one that does not
        answer within limit seconds is not in the result, and costs no other one its answer."""
        found: dict[str, str | None] = {}
        todo = list(paths)
        while todo:
            answers = _read_detached([self._real(path) for path in todo], limit)
            found.update(zip(todo, answers))
            # The one after the last answer is the one that hangs. Others of its family do as well: they are not given
            # as long, now that one is known to.
            todo = todo[len(answers) + 1 :]
            limit = min(limit, 1.0)
        return found

    def data(self, path: str, offset: int, size: int) -> bytes:
        """A part of a binary attribute; nothing when it is not there, ends before, or may not be read."""
        try:
            handle = os.open(self._real(path), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return b""
        try:
            return os.pread(handle, size, offset)
        except OSError:
            return b""
        finally:
            os.close(handle)

    def text(self, path: str) -> str | None:
        """A whole file; None when it is not there, an error when it is there and cannot be read."""
        try:
            with open(self._real(path), encoding="utf-8") as handle:
                return handle.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except UnicodeDecodeError as error:
            raise EngineError(f"{path}: is not UTF-8 text ({error.reason})") from None
        except OSError as error:
            raise EngineError(f"{path}: cannot be read: {explain(error)}") from None

    def size(self, path: str) -> int | None:
        """Bytes of a file; None when it is not there."""
        try:
            return os.stat(self._real(path)).st_size
        except OSError:
            return None

    def free(self, path: str) -> int | None:
        """Bytes that are free in the file system of a path; None when it is not there."""
        try:
            found = os.statvfs(self._real(path))
        except OSError:
            return None
        return found.f_bavail * found.f_frsize

    def names(self, path: str) -> list[str]:
        """The entries of a directory, sorted; none when it is not there."""
        try:
            return sorted(os.listdir(self._real(path)))
        except OSError:
            return []

    def exists(self, path: str) -> bool:
        return os.path.exists(self._real(path))

    def link(self, path: str) -> str | None:
        """The last part of where a symbolic link points, as sysfs names things ('driver', 'iommu_group', 'physfn')."""
        try:
            return os.path.basename(os.readlink(self._real(path)))
        except OSError:
            return None

    def resolve(self, path: str) -> str:
        """The path with all symbolic links followed, again as seen on the host."""
        real = os.path.realpath(self._real(path))
        return real[len(self._root) :] or "/"

    def mode(self, path: str) -> int | None:
        """The permission bits of a file; None when it is not there."""
        try:
            return os.stat(self._real(path)).st_mode & 0o7777
        except OSError:
            return None

    def changed(self, path: str) -> float | None:
        """When a file was last written, in seconds since the epoch; None when it is not there."""
        try:
            return os.stat(self._real(path)).st_mtime
        except OSError:
            return None

    def ask_kvm(self, path: str, limit: float) -> dict[str, Any] | None:
        """What /dev/kvm answers to whoever wants a VM (kvm/api.py); None when it has not answered within limit
        seconds. In a detached child, as a guest that does not come back would take this process along."""
        from .kvm import api

        lines = _detached(lambda: [api.ask(self._real(path))], limit, end=True)
        return lines[0] if lines else None

    def write(self, path: str, data: str, limit: float | None = None) -> None:
        """Write an attribute. With a limit (seconds) the write runs in a detached child, because the kernel may
        hold it for ever and a writer in that state cannot be killed (docs/kernel-facts.md)."""
        if limit is None:
            _write_attribute(self._real(path), data)
        else:
            real = self._real(path)
            _end_write(_begin_write(real, data), real, data, limit, time.monotonic() + limit)

    def write_together(self, writes: Mapping[str, str], limit: float) -> dict[str, Exception]:
        """Write several attributes at the same time, each as with a limit. Path -> what went wrong: OSError, or Stuck for
        one that has not returned within limit seconds."""
        children = {path: _begin_write(self._real(path), data) for path, data in writes.items()}
        end = time.monotonic() + limit
        failed: dict[str, Exception] = {}
        for path, child in children.items():
            try:
                _end_write(child, self._real(path), writes[path], limit, end)
            except (OSError, Stuck) as error:
                failed[path] = error
        return failed

    def offer_together(self, path: str, series: Mapping[str, Sequence[str]], limit: float) -> dict[str, Exception]:
        """Write words to one attribute: those of a series one after the other, whatever the kernel answers, and all series at the same time. Key ->
        what went wrong: Stuck for a series that has not come to its end within limit seconds."""
        real, end = self._real(path), time.monotonic() + limit
        children: dict[str, int] = {}
        failed: dict[str, Exception] = {}
        for key, words in series.items():
            try:
                children.update({key: _begin_offers(real, words, end)} if words else {})
            except OSError as error:
                failed[key] = error
        for key, child in children.items():
            status = _wait_for_child(child, end - time.monotonic())
            if status is None:
                failed[key] = Stuck(f"the writes of {', '.join(series[key])} to {real} have not returned within {limit:g} s")
            elif status:
                failed[key] = EngineError(f"who wrote {', '.join(series[key])} to {real} was ended before it was done; look at the kernel log.")
        return failed

    def replace(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file so that after a crash either the old or the new content is there, never half of one."""
        self._put(path, text.encode(), mode)

    def replace_data(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Like replace, with bytes."""
        self._put(path, data, mode)

    def copy(self, source: str, path: str, mode: int = 0o644) -> None:
        """Like replace, with the bytes of another file."""
        with open(self._real(source), "rb") as stream:
            self._put(path, stream.read(), mode)

    def replace_for_loader(self, path: str, text: str, mode: int = 0o644) -> None:
        """Like replace, for a file that a boot loader reads: at each moment it finds the old or the new one, whole."""
        self._put(path, text.encode(), mode, for_loader=True)

    @contextlib.contextmanager
    def kept_for_loader(self, path: str) -> Iterator[None]:
        """While a file that a boot loader reads is replaced. A boot loader replays no journal (grub-core/fs/ext2.c and xfs.c have none of it):
        what is only there is not there for it. After a power cut the old name may lead it to a file whose blocks others have by then, so the old
        file keeps them until the new name is where it finds it; what was written before is settled first (docs/kernel-facts.md)."""
        real = self._real(path)
        kept = f"{real}{_KEPT}"
        if os.path.lexists(kept):
            # A run that was cut off has left it. On the disk the name may lead there still.
            self._settle(real)
            os.unlink(kept)
        try:
            os.link(real, kept)
        except OSError as error:
            # No file yet, or a file system that knows one name for a file only: FAT, which has no journal either.
            if error.errno not in (errno.ENOENT, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                raise
        try:
            self._settle(real)
            yield
        except BaseException:
            _unlink(kept)
            raise
        # The new file has its name. What is not settled, or cannot be taken away, waits for the next time.
        with contextlib.suppress(OSError):
            self._settle(real)
            _unlink(kept)

    def put_in_place(self, made: str, path: str) -> None:
        """A file that a tool has made beside one that a boot loader reads takes its place, with its owner and mode."""
        new, real = self._real(made), self._real(path)
        handle = os.open(new, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            with contextlib.suppress(FileNotFoundError):
                old = os.stat(real)
                # FAT has no owners.
                with contextlib.suppress(PermissionError):
                    os.fchown(handle, old.st_uid, old.st_gid)
                os.fchmod(handle, stat.S_IMODE(old.st_mode))
            os.fsync(handle)
        finally:
            os.close(handle)
        with self.kept_for_loader(path):
            os.rename(new, real)
            # It has its place by now; what is not settled is so by the next write.
            with contextlib.suppress(OSError):
                _sync_folder(os.path.dirname(real))

    def _settle(self, real: str) -> None:
        # No boot loader reads a tree below another root.
        if not self._root:
            _settle(os.path.dirname(real))

    def _put(self, path: str, data: bytes, mode: int, for_loader: bool = False) -> None:
        real = self._real(path)
        folder = os.path.dirname(real)
        os.makedirs(folder, mode=0o755, exist_ok=True)
        temporary = _temporary(real)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fchmod(stream.fileno(), mode)
                os.fsync(stream.fileno())
            with self.kept_for_loader(path) if for_loader else contextlib.nullcontext():
                os.rename(temporary, real)
                _sync_folder(folder)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise

    def remove(self, path: str) -> None:
        """Remove a file or an empty directory; nothing happens when it is not there."""
        real = self._real(path)
        try:
            if os.path.isdir(real) and not os.path.islink(real):
                os.rmdir(real)
            else:
                os.unlink(real)
        except FileNotFoundError:
            return

    def symlink(self, target: str, path: str) -> None:
        """Point a symbolic link somewhere, in one step for whoever reads it meanwhile."""
        real = self._real(path)
        os.makedirs(os.path.dirname(real), mode=0o755, exist_ok=True)
        temporary = _temporary(real)
        os.symlink(target, temporary)
        os.rename(temporary, real)

    @contextlib.contextmanager
    def lock(self, path: str, limit: float, who: str) -> Iterator[None]:
        """Hold a lock file; wait up to limit seconds, then say who holds it."""
        real = self._real(path)
        os.makedirs(os.path.dirname(real), exist_ok=True)
        handle = os.open(real, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _wait_for_lock(handle, path, limit)
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} ({who})".encode(), 0)
            yield
            os.ftruncate(handle, 0)
        finally:
            os.close(handle)


def _temporary(real: str) -> str:
    """A name beside a file. What runs that were cut off have left of this kind goes: under the lock nobody else writes
    the file, process ids come again, and on an EFI system partition a left-over image would take the next one's room."""
    folder, name = os.path.split(real)
    for found in os.listdir(folder):
        if LEFTOVER.fullmatch(found) and found.rpartition(".iovirt-")[0] == name and not found.endswith(_KEPT):
            _unlink(f"{folder}/{found}")
    return f"{real}.iovirt-{os.getpid()}"


def _unlink(real: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(real)


def _wait_for_lock(handle: int, path: str, limit: float) -> None:
    end = time.monotonic() + limit
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= end:
                holder = os.pread(handle, 200, 0).decode("utf-8", "replace") or "an unnamed process"
                raise EngineError(
                    f"{path}: held by {holder} for more than {limit:g} s. "
                    "Wait until that run has ended, then run again; nothing was changed."
                ) from None
            time.sleep(0.1)


def _attribute(real: str) -> str | None:
    try:
        handle = os.open(real, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(handle, ATTRIBUTE_LIMIT).decode("utf-8", "replace").strip()
    except OSError:
        return None
    finally:
        os.close(handle)


def _read_detached(reals: Sequence[str], limit: float) -> list[str | None]:
    """The attributes up to the first that does not answer. A child that was left behind there reads no further once it is
    answered: nobody waits for it, and the next one might hold it for ever."""
    end = time.monotonic() + limit
    return _detached(lambda: (_attribute(real) for real in reals if time.monotonic() < end), limit)


def _detached(work: Callable[[], Iterable[Any]], limit: float, end: bool = False) -> list[Any]:
    """What a child of its own session finds within limit seconds; with `end` a late one is ended. Answers go through
    memory, one line of JSON each, so what was found before a hang is not lost."""
    return _detach(work, limit, end)[0]


def _detach(work: Callable[[], Iterable[Any]], limit: float, end: bool = False) -> tuple[list[Any], bool]:
    """The same, and whether the child has ended by itself."""
    memory = os.memfd_create("iovirt-read", os.MFD_CLOEXEC)
    child = os.fork()
    if child == 0:
        _child_work(work, memory)
    ended = _wait_for_child(child, limit) is not None
    if end and not ended:
        # Not waited for: one that the kernel holds does not end.
        os.kill(child, signal.SIGKILL)
    with os.fdopen(memory, "rb") as stream:
        stream.seek(0)
        return [json.loads(line) for line in stream.read().splitlines()], ended


def _child_work(work: Callable[[], Iterable[Any]], memory: int) -> None:
    try:
        os.setsid()
        _close_all_but(memory)
        for answer in work():
            os.write(memory, json.dumps(answer).encode() + b"\n")
    finally:
        os._exit(0)


def _close_all_but(keep: int) -> None:
    os.closerange(0, keep)
    os.closerange(keep + 1, 65536)


def _write_attribute(real: str, data: str) -> None:
    handle = os.open(real, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(handle, data.encode())
    finally:
        os.close(handle)


def _begin_write(real: str, data: str) -> int:
    """The child that writes."""
    child = os.fork()
    if child == 0:
        _child_write(real, data)
    return child


def _begin_offers(real: str, words: Sequence[str], end: float) -> int:
    """The child that writes one after the other. Past the end nobody waits for it, and another run may have other plans: it begins no more."""
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            os.closerange(0, 65536)
            for word in words:
                with contextlib.suppress(OSError):
                    if time.monotonic() < end:
                        _write_attribute(real, word)
        finally:
            os._exit(0)
    return child


def _end_write(child: int, real: str, data: str, limit: float, end: float) -> None:
    status = _wait_for_child(child, end - time.monotonic())
    if status is None:
        raise Stuck(f"the write of {data!r} to {real} has not returned within {limit:g} s")
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else errno.EINTR
    if code:
        raise OSError(code, os.strerror(code), real)


def _wait_for_child(child: int, limit: float) -> int | None:
    """How the child ended; None when it has not within limit seconds. It is then left to itself: a process that the
    kernel holds cannot be killed."""
    end = time.monotonic() + limit
    with _ending(child) as pause:
        while True:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return status
            left = end - time.monotonic()
            if left <= 0:
                return None
            pause(left)


@contextlib.contextmanager
def _ending(child: int) -> Iterator[Callable[[float], Any]]:
    """A pause that lasts until a child ends, or the seconds given. A kernel before 5.3 (pidfd_open(2)) cannot tell: there
    it is a short one."""
    try:
        handle = os.pidfd_open(child)
    except (AttributeError, OSError):
        yield lambda left: time.sleep(min(left, 0.005))
        return
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        # Milliseconds, and never none at all.
        yield lambda left: poll.poll(int(left * 1000) + 1)
    finally:
        os.close(handle)


def _child_write(real: str, data: str) -> None:
    """In the child: own session, no inherited descriptors (the lock's included), the error number as exit status."""
    code = errno.EIO
    try:
        os.setsid()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.closerange(0, 65536)
        _write_attribute(real, data)
        code = 0
    except OSError as error:
        # An exit status holds one byte; the kernel's own ENOTSUPP (524) would come out as ENOMEM.
        code = error.errno or errno.EIO
        code = code if code < 256 else errno.EOPNOTSUPP
    finally:
        os._exit(code)


#: EXT4_IOC_CHECKPOINT (fs/ext4/ext4.h, since Linux 5.14), FIFREEZE and FITHAW (include/uapi/linux/fs.h), as most architectures number them.
_CHECKPOINT, _FREEZE, _THAW = 0x4004662B, 0xC0045877, 0xC0045878
#: Seconds for a file system to write all that it has to.
_SETTLE_LIMIT = 60.0


def _settle(folder: str) -> None:
    """Empty the journal of a folder's file system: its metadata are in their places then. ext4 does it when asked; others (XFS, an ext4 before Linux
    5.14) do it when they are frozen, as ostree has it for /boot, and this one is let go in the same breath. Where there is no journal, or nothing
    of it, nothing happens."""
    try:
        _ioctl(folder, _CHECKPOINT)
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL):
            # ENODEV: ext4 without a journal. Others: the write that comes will say it.
            return
        _freeze_for_a_moment(folder)


def _freeze_for_a_moment(folder: str) -> None:
    """In a session of its own, so that nothing that ends this process comes between the two."""
    said, ended = _detach(lambda: _freeze_and_thaw(folder), _SETTLE_LIMIT)
    if ended and not said:
        # Something ended it in between. A freeze that was refused said so: one that was there before is somebody's, who makes a snapshot.
        with contextlib.suppress(OSError):
            _ioctl(folder, _THAW)


def _freeze_and_thaw(folder: str) -> Iterator[str]:
    try:
        _ioctl(folder, _FREEZE)
    except OSError:
        yield "refused"
        return
    _ioctl(folder, _THAW)
    yield "done"


def _ioctl(folder: str, number: int) -> int:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return len(fcntl.ioctl(handle, number, bytes(4)))
    finally:
        os.close(handle)


def _sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


#: Waits for a command's end: its status, standard output and standard error.
Answer = Callable[[], tuple[int, str, str]]


def session(files: Files, own: Mapping[str, str], pid: int) -> dict[str, str]:
    """What sshd said of the connection: SSH_CONNECTION of the environment, or of the nearest process above `pid` that still has it. sudo takes it
    away (sudoers(5), env_reset), and so does whatever begins with an environment of its own."""
    name = "SSH_CONNECTION"
    if own.get(name):
        return {name: own[name]}
    for _step in range(64):
        if pid <= 1:
            break
        words = files.data(f"/proc/{pid}/environ", 0, 1 << 20).decode("utf-8", "replace").split("\0")
        found = next((word.partition("=")[2] for word in words if word.startswith(f"{name}=")), "")
        if found:
            return {name: found}
        parent = re.search(r"^PPid:\s*(\d+)", files.data(f"/proc/{pid}/status", 0, 4096).decode("utf-8", "replace"), re.MULTILINE)
        pid = int(parent.group(1)) if parent else 0
    return {}


def run_command(argv: list[str], data: str = "") -> tuple[int, str, str]:
    """Run a command without a shell: the runner of all doors."""
    return begin_command(argv, data)()


def begin_command(argv: list[str], data: str = "") -> Answer:
    """Start a command; what comes back waits for its end and tells its answer.

    By posix_spawn(3), which copies nothing of this process: a fork costs more than many a command (docs/dev/benchmarks.md), and the engine goes
    where ansible-test forbids the subprocess module. Input and output go through memory files, so neither can block on a full pipe.
    """
    environment = {**os.environ, "LC_ALL": "C", "PATH": f"{os.environ.get('PATH', '')}:{os.defpath}:/usr/sbin:/sbin".lstrip(":")}
    streams: list[int] = []
    try:
        streams += [os.memfd_create(name, os.MFD_CLOEXEC) for name in ("stdin", "stdout", "stderr")]
        os.pwrite(streams[0], data.encode(errors="surrogateescape"), 0)
        # Ansible's run_command copies this process for each command, and a host without Ansible has none (the operator's command, the replay).
        child = os.posix_spawn(  # pylint: disable=ansible-bad-function
            _program(argv[0], environment["PATH"]),
            argv,
            environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, stream, number) for number, stream in enumerate(streams)],
            # Python ignores them; a shell script's 'x | head -1' counts on the first.
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )
    except (OSError, ValueError) as error:
        for stream in streams:
            os.close(stream)
        # A command that is not there is an answer like any other, and so is a word that no command can be given (a zero byte): whoever
        # asked has the sentence for it.
        said = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        missing = (127, "", f"{argv[0]}: {said}")
        return lambda: missing
    return lambda: _ended(child, streams)


def _program(name: str, path: str) -> str:
    """Where a command is, as execvp(3) looks for it, but never in the current folder nor in one that is named from there: whoever can write
    there must not become root."""
    if "/" in name:
        return name
    places = (f"{folder}/{name}" for folder in path.split(":") if folder.startswith("/"))
    found = next((place for place in places if os.access(place, os.X_OK) and not os.path.isdir(place)), None)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    return found


def _ended(child: int, streams: Sequence[int]) -> tuple[int, str, str]:
    status = os.waitpid(child, 0)[1]
    texts = []
    for stream in streams:
        with os.fdopen(stream, "rb") as handle:
            handle.seek(0)
            texts.append(handle.read().decode("utf-8", "replace"))
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
    return code, texts[1], texts[2]


@dataclass
class Host:
    """A host as the engine sees it."""

    files: Files
    run: Run
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    #: The time of day, in UTC, for records: '2026-01-31T12:00:00Z'.
    utc: Callable[[], str] = lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    #: What the controller's connection comes in through ('SSH_CONNECTION' and the like); empty at boot.
    environment: Mapping[str, str] = field(default_factory=dict)
    #: name -> source of the engine's files, for the copy that replays at boot; None where nothing is to be installed.
    sources: Callable[[], Mapping[str, str]] | None = None
    #: The Python that the installed copy runs under.
    python: str = "/usr/bin/python3"
    #: The connection to libvirt (guests/virt.py), made when it is first asked for; None where nobody speaks of guests.
    libvirt: Callable[[], Any] | None = None
    #: Modalias and the drivers there are -> the driver of its own, once looked up: the table has over 10 000 lines.
    natives: dict[tuple[str, ...], str | None] = field(default_factory=dict)
    #: The version of the engine that this door brought, once it is known (boot.brought).
    version: str = ""
    #: As `run`, for a command that works while this process goes on; None where it can only be run and waited for.
    start: Callable[[list[str]], Answer] | None = None

    #: Commands that were begun beside the steps, and what came of those that were waited for.
    beside: list[tuple[list[str], Answer]] = field(default_factory=list)
    heard: list[tuple[list[str], tuple[int, str, str]]] = field(default_factory=list)

    def begin_beside(self, argv: list[str]) -> None:
        """Start a command that steps need not wait for; `join` does, before one that does need it."""
        self.beside.append((argv, self.begin(argv)))

    def join(self) -> None:
        """Wait for what was begun beside the steps. Raises EngineError, each time it is asked, where one of them failed."""
        while self.beside:
            argv, answer = self.beside.pop(0)
            self.heard.append((argv, answer()))
        for argv, (code, _out, err) in self.heard:
            if code:
                raise EngineError(f"{' '.join(argv)} failed: {err.strip() or code}.")

    def begin(self, argv: list[str]) -> Answer:
        """Start a command; its answer is asked for later."""
        if self.start is not None:
            return self.start(argv)
        answer = self.run(argv)
        return lambda: answer

    def wait(self, ready: Callable[[], bool], limit: float) -> bool:
        """Poll until ready or until limit seconds have passed; the last answer."""
        end = self.clock() + limit
        pause = 0.01
        while not ready():
            if self.clock() >= end:
                return False
            self.sleep(pause)
            pause = min(pause * 2, 0.2)
        return True
