# Copyright: the iovirt.host authors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every part of the lab needs: errors, progress, commands with a limit, locks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Callable

TAIL_LINES = 15


class LabError(Exception):
    """An expected failure: told to the user in words, without a traceback."""

    def __init__(self, what: str, todo: str = "", log: Path | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.todo = todo
        self.log = log

    def __str__(self) -> str:
        parts = [self.what]
        if self.log is not None:
            parts.append(f"log: {self.log}")
            parts.extend("  | " + line for line in tail(self.log))
        if self.todo:
            parts.append(f"what to do: {self.todo}")
        return "\n".join(parts)


def tail(path: Path, lines: int = TAIL_LINES) -> list[str]:
    """The last lines of a log, or nothing when it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]


def say(text: str) -> None:
    """One line of progress; on standard error, so that standard output stays data."""
    # In one write: stages run beside each other.
    sys.stderr.write(f"lab: {text}\n")
    sys.stderr.flush()


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Announce a stage and say afterwards how long it took."""
    say(f"{name} ...")
    start = time.monotonic()
    yield
    say(f"{name}: done in {time.monotonic() - start:.1f} s")


def find_tool(name: str) -> str | None:
    """Path of a program. A normal user's PATH on Debian lacks the sbin folders."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    return shutil.which(name, path=path)


def tool(name: str) -> str:
    """Like find_tool, but it must be there."""
    found = find_tool(name)
    if found is None:
        raise LabError(f"the program {name} is missing", "install what 'lab/lab packages --missing' prints")
    return found


def end_group(process: subprocess.Popen[bytes], grace: float = 10.0) -> None:
    """End a command and its children: first politely, so that it can remove its temporary files."""
    for signum, limit in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signum)
        try:
            process.wait(limit)
            return
        except subprocess.TimeoutExpired:
            continue


RUNNING: set[subprocess.Popen[bytes]] = set()


def end_on_signal(_signum: int, _frame: object) -> None:
    """End what runs, in the worker threads too, before the main thread unwinds and waits for them."""
    for process in list(RUNNING):
        end_group(process)
    raise KeyboardInterrupt


def handle_signals() -> None:
    """Let Ctrl-C, a closed terminal and a polite kill all clean up behind them."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, end_on_signal)


def remove_tree(path: Path) -> None:
    """Remove a folder, but nothing that is mounted below it: a build that was cut off may have mounts in it."""
    subprocess.run(["rm", "-rf", "--one-file-system", "--", str(path)], check=False, stderr=subprocess.DEVNULL)


def run(
    argv: Sequence[str],
    *,
    what: str,
    log: Path,
    limit: float,
    env: dict[str, str] | None = None,
    stdin: Path | None = None,
    todo: str = "",
) -> None:
    """Run a command with its output in a log and a limit on its time; an error names both."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(log.open("ab"))
        source = stack.enter_context(stdin.open("rb")) if stdin else subprocess.DEVNULL
        # A session of its own: a limit must end the children too, not just the first process.
        process = subprocess.Popen(  # pylint: disable=consider-using-with
            list(argv), stdin=source, stdout=out, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )
        RUNNING.add(process)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            end_group(process)
            raise LabError(f"{what} took longer than {limit:.0f} s and was ended", todo, log) from None
        except BaseException:
            end_group(process)
            raise
        finally:
            RUNNING.discard(process)
    if code != 0:
        raise LabError(f"{what} failed with exit status {code}", todo, log)


def output_of(argv: Sequence[str], *, limit: float = 20.0, env: dict[str, str] | None = None) -> str:
    """Standard output of a short command, empty when it fails in any way."""
    try:
        done = subprocess.run(
            list(argv), stdin=subprocess.DEVNULL, capture_output=True, timeout=limit, env=env, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""


def wait_for(check: Callable[[], bool], limit: float, pause: float = 0.25) -> bool:
    """Ask again until it is true or the wall clock says no (a count of tries would not be a limit)."""
    end = time.monotonic() + limit
    while True:
        if check():
            return True
        if time.monotonic() >= end:
            return False
        time.sleep(pause)


@contextlib.contextmanager
def lock(path: Path, what: str, limit: float) -> Iterator[None]:
    """Hold a lock file; another holder is waited for, and named when it takes too long."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as handle:
        if not try_lock(handle.fileno()):
            handle.seek(0)
            say(f"waiting for process {handle.read().strip() or '(unknown)'}, which is {what}")
            if not wait_for(lambda: try_lock(handle.fileno()), limit):
                raise LabError(
                    f"still locked after {limit:.0f} s: {path}", "end the process named above, then try again"
                )
        handle.seek(0)
        handle.truncate()
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def try_lock(descriptor: int) -> bool:
    """Take a lock if it is free."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock now."""
    try:
        with path.open("rb") as handle:
            return not try_lock(handle.fileno())
    except FileNotFoundError:
        return False
