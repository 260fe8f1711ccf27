# Copyright: the iovirt.host authors
# GNU General Public License v3.0-or-later (see LICENSES/GPL-3.0-or-later.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The real file system below a root, and real commands."""

from __future__ import annotations

import errno
import os
import signal
import stat
import threading
import time

import pytest
from ansible_collections.iovirt.host.plugins.module_utils._engine import host as host_module
from ansible_collections.iovirt.host.plugins.module_utils._engine.errors import EngineError, Stuck, explain
from ansible_collections.iovirt.host.plugins.module_utils._engine.host import (
    FileSystem,
    Host,
    begin_command,
    run_command,
    session,
)
from ansible_collections.iovirt.host.plugins.module_utils._engine.kvm import api


@pytest.fixture
def files(tmp_path):
    return FileSystem(str(tmp_path))


def test_attributes_lose_their_line_end(files, tmp_path):
    (tmp_path / "vendor").write_text("0x8086\n")
    (tmp_path / "folder").mkdir()
    assert files.attr("/vendor") == "0x8086"
    assert files.attr("/absent") is None
    assert files.attr("/folder") is None


def test_text_tells_absent_from_unreadable(files, tmp_path):
    (tmp_path / "latin").write_bytes(b"\xe4\xf6")
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain").write_text("x")
    assert files.text("/absent") is None
    assert files.text("/plain/below") is None
    with pytest.raises(EngineError, match=r"/latin: is not UTF-8"):
        files.text("/latin")
    with pytest.raises(EngineError, match=r"/folder: cannot be read: EISDIR"):
        files.text("/folder")


def test_names_links_and_paths(files, tmp_path):
    (tmp_path / "sys/devices/b").mkdir(parents=True)
    (tmp_path / "sys/devices/a").mkdir()
    (tmp_path / "sys/driver").symlink_to("devices/b")
    assert files.names("/sys/devices") == ["a", "b"]
    assert files.names("/nowhere") == []
    assert files.link("/sys/driver") == "b"
    assert files.link("/sys/devices") is None
    assert files.resolve("/sys/driver") == "/sys/devices/b"
    assert files.exists("/sys/driver")
    assert not files.exists("/sys/absent")


@pytest.mark.parametrize("path", ["relative", "/etc/../shadow", "/sys/.."])
def test_paths_cannot_leave_the_root(files, path):
    with pytest.raises(EngineError, match="internal"):
        files.exists(path)


def test_replace_sets_mode_and_leaves_nothing_beside(files, tmp_path):
    files.replace("/etc/iovirt/sriov.json", "one", 0o600)
    files.replace("/etc/iovirt/sriov.json", "two", 0o640)
    path = tmp_path / "etc/iovirt/sriov.json"
    assert path.read_text() == "two"
    assert files.mode("/etc/iovirt/sriov.json") == stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(path.parent) == ["sriov.json"]


def test_a_replace_that_fails_leaves_the_old_content(files, tmp_path, monkeypatch):
    files.replace("/etc/x", "old")

    def full(*_args):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(host_module.os, "fsync", full)
    with pytest.raises(OSError, match="full"):
        files.replace("/etc/x", "new")
    assert (tmp_path / "etc/x").read_text() == "old"
    assert os.listdir(tmp_path / "etc") == ["x"]


def test_leftovers_of_a_crash_do_not_stop_the_next_run(files, tmp_path):
    """At boot the process ids come again: a temporary name of the run before the crash may be ours."""
    (tmp_path / "etc").mkdir()
    (tmp_path / f"etc/x.iovirt-{os.getpid()}").write_text("half")
    (tmp_path / f"etc/link.iovirt-{os.getpid()}").symlink_to("nowhere")
    # Of other runs too, or each cut would leave a file; what only looks alike is somebody's.
    (tmp_path / "etc/x.iovirt-1").write_text("half")
    (tmp_path / "etc/y.x.iovirt-1").write_text("of another file")
    (tmp_path / "etc/x.iovirt-new").write_text("of grub-mkconfig")
    files.replace("/etc/x", "new")
    files.symlink("target", "/etc/link")
    assert (tmp_path / "etc/x").read_text() == "new"
    assert files.link("/etc/link") == "target"
    assert sorted(os.listdir(tmp_path / "etc")) == ["link", "x", "x.iovirt-new", "y.x.iovirt-1"]


def test_a_leftover_that_is_a_link_is_not_followed(files, tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "victim").write_text("precious")
    (tmp_path / f"etc/x.iovirt-{os.getpid()}").symlink_to(tmp_path / "victim")
    files.replace("/etc/x", "new")
    assert (tmp_path / "victim").read_text() == "precious"


def test_remove_and_symlink(files, tmp_path):
    files.symlink("../unit", "/etc/wants/unit")
    files.symlink("../other", "/etc/wants/unit")
    assert files.link("/etc/wants/unit") == "other"
    files.remove("/etc/wants/unit")
    files.remove("/etc/wants/unit")
    files.remove("/etc/wants")
    assert not (tmp_path / "etc/wants").exists()


def test_remove_takes_a_link_not_what_it_points_to(files, tmp_path):
    (tmp_path / "engine/1").mkdir(parents=True)
    files.symlink("1", "/engine/current")
    files.remove("/engine/current")
    assert os.listdir(tmp_path / "engine") == ["1"]


def test_a_read_that_hangs_costs_no_other_its_answer(files, tmp_path):
    """Opening a FIFO for reading blocks until somebody writes."""
    for name in ("a", "c", "e"):
        (tmp_path / name).write_text(f"{name}\n")
    os.mkfifo(tmp_path / "b")
    os.mkfifo(tmp_path / "d")
    start, before = time.monotonic(), children()
    found = files.attrs_within(["/a", "/b", "/c", "/absent", "/d", "/e"], 0.2)
    left = children() - before
    assert len(left) == 2
    assert found == {"/a": "a", "/c": "c", "/absent": None, "/e": "e"}
    assert time.monotonic() - start < 5
    assert files.attrs_within([], 0.2) == {}
    for name in ("b", "d"):
        with open(tmp_path / name, "w"):
            pass
    assert_ended(left)


# --- Writes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 5.0])
def test_writes_arrive_and_errors_keep_their_number(files, tmp_path, limit):
    (tmp_path / "attribute").write_text("")
    files.write("/attribute", "7", limit)
    assert (tmp_path / "attribute").read_text() == "7"
    with pytest.raises(FileNotFoundError) as caught:
        files.write("/absent", "7", limit)
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(IsADirectoryError):
        files.write("/", "7", limit)


def test_a_write_that_hangs_is_left_behind_at_its_limit(files, tmp_path):
    """Opening a FIFO for writing blocks until somebody reads, as a write to sriov_numvfs may for ever."""
    os.mkfifo(tmp_path / "numvfs")
    start = time.monotonic()
    with pytest.raises(Stuck, match=r"'4' .*numvfs has not returned within 0.2 s"):
        files.write("/numvfs", "4", limit=0.2)
    assert 0.2 <= time.monotonic() - start < 3
    # The child still waits; it writes once it can, and goes.
    with open(tmp_path / "numvfs") as reader:
        assert reader.read() == "4"


def test_writes_together_wait_at_the_same_time_and_fail_each_for_itself(files, tmp_path):
    """Two that hang cost one limit; what the others do is not lost."""
    os.mkfifo(tmp_path / "one")
    os.mkfifo(tmp_path / "two")
    (tmp_path / "good").write_text("")
    start = time.monotonic()
    failed = files.write_together({"/one": "1", "/absent": "1", "/two": "2", "/good": "7"}, limit=1.0)
    assert 1.0 <= time.monotonic() - start < 1.9
    assert set(failed) == {"/one", "/two", "/absent"}
    assert isinstance(failed["/one"], Stuck) and isinstance(failed["/two"], Stuck)
    assert "'2'" in str(failed["/two"]) and failed["/absent"].errno == errno.ENOENT
    assert (tmp_path / "good").read_text() == "7"
    for name, data in (("one", "1"), ("two", "2")):
        with open(tmp_path / name) as reader:
            assert reader.read() == data


@pytest.fixture
def settled(tmp_path, monkeypatch):
    """What a boot loader finds each time that the journal is emptied."""
    seen = []
    monkeypatch.setattr(host_module, "_settle", lambda folder: seen.append({p.name: p.read_text() for p in tmp_path.iterdir()}))
    return seen


def test_a_boot_loader_finds_the_old_or_the_new_file_whole(settled, tmp_path):
    """The new one is settled before its name is, and the old one's blocks are its own until then."""
    (tmp_path / "grub.cfg").write_text("old")
    FileSystem("/").replace_for_loader(f"{tmp_path}/grub.cfg", "new", 0o600)
    beside = f"grub.cfg.iovirt-{os.getpid()}"
    assert settled == [
        {"grub.cfg": "old", "grub.cfg.iovirt-0": "old", beside: "new"},
        {"grub.cfg": "new", "grub.cfg.iovirt-0": "old"},
    ]
    assert os.listdir(tmp_path) == ["grub.cfg"]
    assert stat.S_IMODE((tmp_path / "grub.cfg").stat().st_mode) == 0o600


def test_a_file_for_a_boot_loader_that_is_new_or_cannot_have_two_names(settled, tmp_path, monkeypatch):
    FileSystem("/").replace_for_loader(f"{tmp_path}/entry.conf", "one")

    def refused(source, target):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refused)
    FileSystem("/").replace_for_loader(f"{tmp_path}/entry.conf", "two")
    assert [found.get("entry.conf") for found in settled] == [None, "one", "one", "two"]
    assert os.listdir(tmp_path) == ["entry.conf"]


def test_a_tool_that_fails_leaves_no_second_name(settled, tmp_path):
    (tmp_path / "initrd.img").write_text("old")
    # One that a cut left.
    (tmp_path / "initrd.img.iovirt-0").write_text("older")
    with pytest.raises(RuntimeError), FileSystem("/").kept_for_loader(f"{tmp_path}/initrd.img"):
        assert (tmp_path / "initrd.img.iovirt-0").read_text() == "old"
        raise RuntimeError
    assert os.listdir(tmp_path) == ["initrd.img"]


def test_what_a_tool_has_made_beside_takes_the_place(settled, tmp_path):
    (tmp_path / "initrd.img").write_text("old")
    (tmp_path / "initrd.img").chmod(0o600)
    (tmp_path / "initrd.img.iovirt-new").write_text("new")
    FileSystem("/").put_in_place(f"{tmp_path}/initrd.img.iovirt-new", f"{tmp_path}/initrd.img")
    assert settled == [
        {"initrd.img": "old", "initrd.img.iovirt-0": "old", "initrd.img.iovirt-new": "new"},
        {"initrd.img": "new", "initrd.img.iovirt-0": "old"},
    ]
    assert os.listdir(tmp_path) == ["initrd.img"]
    assert stat.S_IMODE((tmp_path / "initrd.img").stat().st_mode) == 0o600


def test_what_a_tool_has_not_made_takes_no_place(settled, tmp_path):
    (tmp_path / "initrd.img").write_text("old")
    with pytest.raises(FileNotFoundError):
        FileSystem("/").put_in_place(f"{tmp_path}/initrd.img.iovirt-new", f"{tmp_path}/initrd.img")
    assert settled == [] and (tmp_path / "initrd.img").read_text() == "old"


def test_below_another_root_nothing_is_settled(settled, files, tmp_path):
    files.replace_for_loader("/grub.cfg", "new")
    assert settled == [] and os.listdir(tmp_path) == ["grub.cfg"]


def test_one_that_a_cut_left_is_settled_before_it_goes(settled, tmp_path):
    """On the disk the old name may lead to it still."""
    (tmp_path / "grub.cfg").write_text("newer")
    (tmp_path / "grub.cfg.iovirt-0").write_text("old")
    (tmp_path / "grub.cfg.iovirt-77").write_text("")
    FileSystem("/").replace_for_loader(f"{tmp_path}/grub.cfg", "newest")
    assert settled[0]["grub.cfg.iovirt-0"] == "old" and settled[1]["grub.cfg.iovirt-0"] == "newer" and len(settled) == 3
    assert os.listdir(tmp_path) == ["grub.cfg"]


def test_without_room_for_a_second_name_nothing_is_touched(settled, tmp_path, monkeypatch):
    (tmp_path / "grub.cfg").write_text("old")

    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(OSError, match="No space"):
        FileSystem("/").replace_for_loader(f"{tmp_path}/grub.cfg", "new")
    assert (tmp_path / "grub.cfg").read_text() == "old" and os.listdir(tmp_path) == ["grub.cfg"]


def test_what_cannot_be_settled_after_it_has_its_name_waits(tmp_path, monkeypatch):
    (tmp_path / "grub.cfg").write_text("old")
    asked = []

    def settle(folder):
        asked.append(folder)
        if len(asked) == 2:
            raise OSError(errno.EMFILE, "")

    monkeypatch.setattr(host_module, "_settle", settle)
    FileSystem("/").replace_for_loader(f"{tmp_path}/grub.cfg", "new")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"grub.cfg": "new", "grub.cfg.iovirt-0": "old"}


@pytest.mark.parametrize(
    ("answers", "asked"),
    [
        # ext4
        ({}, ["checkpoint"]),
        # XFS, and an ext4 of before Linux 5.14
        ({"checkpoint": errno.ENOTTY}, ["checkpoint", "freeze", "thaw"]),
        # vfat
        ({"checkpoint": errno.ENOTTY, "freeze": errno.EOPNOTSUPP}, ["checkpoint", "freeze"]),
        # Somebody makes a snapshot: theirs is not let go.
        ({"checkpoint": errno.ENOTTY, "freeze": errno.EBUSY}, ["checkpoint", "freeze"]),
        # ext4 without a journal
        ({"checkpoint": errno.ENODEV}, ["checkpoint"]),
    ],
)
def test_a_journal_is_emptied_as_the_file_system_can(answers, asked, tmp_path, monkeypatch):
    log = tmp_path / "log"

    def ioctl(folder, number):
        name = {host_module._CHECKPOINT: "checkpoint", host_module._FREEZE: "freeze", host_module._THAW: "thaw"}[number]
        with open(log, "a") as stream:
            stream.write(f"{name}\n")
        if name in answers:
            raise OSError(answers[name], "")
        return 4

    monkeypatch.setattr(host_module, "_ioctl", ioctl)
    host_module._settle(str(tmp_path))
    assert log.read_text().split() == asked


@pytest.mark.parametrize("at", ["freeze", "thaw"])
def test_what_was_frozen_is_let_go_whatever_ends_in_between(at, tmp_path, monkeypatch):
    here, thawed = os.getpid(), []
    last = host_module._FREEZE if at == "freeze" else host_module._THAW

    def ioctl(folder, number):
        if number == host_module._CHECKPOINT:
            raise OSError(errno.ENOTTY, "")
        if number == last and os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        thawed.extend([folder] if number == host_module._THAW else [])
        return 4

    monkeypatch.setattr(host_module, "_ioctl", ioctl)
    host_module._settle(str(tmp_path))
    assert thawed == [str(tmp_path)]


def test_offers_of_several_cards_wait_at_the_same_time(files, tmp_path):
    """What the kernel answers is nobody's matter; only one that hangs is told, and keeps no other one."""
    os.mkfifo(tmp_path / "hangs")
    (tmp_path / "probe").write_text("")
    assert files.offer_together("/absent", {"a": ["1", "2"], "b": []}, limit=5) == {}
    assert files.offer_together("/probe", {"a": ["1", "2"]}, limit=5) == {}
    start = time.monotonic()
    late = files.offer_together("/hangs", {"a": ["1", "2"], "b": ["3"]}, limit=0.5)
    assert 0.5 <= time.monotonic() - start < 3
    assert set(late) == {"a", "b"} and "1, 2" in str(late["a"]) and "0.5 s" in str(late["b"])
    # What hung may go on; nothing else is begun, which a later run may not want.
    reader, seen = os.open(tmp_path / "hangs", os.O_RDWR), b""
    while len(seen) < 2:
        seen += os.read(reader, 3)
    time.sleep(0.2)
    os.set_blocking(reader, False)
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    os.close(reader)
    assert sorted(seen.decode()) == ["1", "3"]


def test_an_offer_whose_writer_is_ended_is_no_success(files, tmp_path, monkeypatch):
    (tmp_path / "probe").write_text("")
    monkeypatch.setattr(host_module, "_write_attribute", lambda real, word: os.kill(os.getpid(), signal.SIGKILL))
    failed = files.offer_together("/probe", {"a": ["1"], "b": []}, limit=5)
    assert set(failed) == {"a"} and "look at the kernel log" in str(failed["a"])

    def none_left():
        raise BlockingIOError(errno.EAGAIN, "")

    monkeypatch.setattr(os, "fork", none_left)
    failed = files.offer_together("/probe", {"a": ["1"], "b": []}, limit=5)
    assert failed["a"].errno == errno.EAGAIN


def test_the_hanging_child_is_in_a_session_of_its_own(files, tmp_path):
    """So that the end of the connection that started the run does not end it in the middle of a write."""
    os.mkfifo(tmp_path / "numvfs")
    before = children()
    with pytest.raises(Stuck):
        files.write("/numvfs", "4", limit=0.3)
    (child,) = children() - before
    assert os.getsid(child) == child != os.getsid(0)
    with open(tmp_path / "numvfs") as reader:
        reader.read()


def children():
    found = set()
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/children") as handle:
            found |= set(map(int, handle.read().split()))
    return found


def assert_ended(left):
    """Each of these children ends by itself, and soon: one that was answered reads nothing else."""
    end = time.monotonic() + 5
    while left and time.monotonic() < end:
        left = {child for child in left if os.waitpid(child, os.WNOHANG) == (0, 0)}
        time.sleep(0.01)
    for child in left:
        os.kill(child, signal.SIGKILL)
    assert left == set()


def test_the_hanging_child_does_not_hold_the_lock(files, tmp_path):
    os.mkfifo(tmp_path / "numvfs")
    with files.lock("/run/lock", 1.0, "first"), pytest.raises(Stuck):
        files.write("/numvfs", "4", limit=0.1)
    with files.lock("/run/lock", 0.5, "second"):
        pass
    with open(tmp_path / "numvfs") as reader:
        reader.read()


def test_error_numbers_beyond_a_byte_are_not_taken_for_others(files, tmp_path, monkeypatch):
    """The kernel leaks ENOTSUPP (524), which as an exit status would read as ENOMEM (524 & 255 = 12)."""
    (tmp_path / "attribute").write_text("")

    def leak(_real, _data):
        raise OSError(524, "unknown")

    monkeypatch.setattr(host_module, "_write_attribute", leak)
    with pytest.raises(OSError, match=r".") as caught:
        files.write("/attribute", "1", limit=5.0)
    assert caught.value.errno != errno.ENOMEM


# --- Lock ------------------------------------------------------------------------------------------------------------


def test_the_second_waits_then_names_the_holder(files):
    second = FileSystem(files._root)
    with files.lock("/run/iovirt.lock", 1.0, "Ansible module sriov"):
        start = time.monotonic()
        with pytest.raises(EngineError) as caught, second.lock("/run/iovirt.lock", 0.3, "boot replay"):
            raise AssertionError("both hold it")
        assert time.monotonic() - start >= 0.3
    assert f"process {os.getpid()} (Ansible module sriov)" in str(caught.value)
    assert "nothing was changed" in str(caught.value)


def test_the_second_gets_it_when_the_first_is_done(files):
    second = FileSystem(files._root)
    order = []
    held = threading.Event()

    def first():
        with files.lock("/run/iovirt.lock", 1.0, "first"):
            held.set()
            time.sleep(0.3)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    held.wait()
    with second.lock("/run/iovirt.lock", 5.0, "second"):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_an_error_below_the_lock_lets_it_go(files, tmp_path):
    with pytest.raises(ValueError, match="boom"), files.lock("/run/iovirt.lock", 1.0, "first"):
        raise ValueError("boom")
    with files.lock("/run/iovirt.lock", 0.1, "second"):
        assert "second" in (tmp_path / "run/iovirt.lock").read_text()
    assert (tmp_path / "run/iovirt.lock").read_text() == ""


# --- Commands --------------------------------------------------------------------------------------------------------


def test_commands_give_status_and_both_streams():
    assert run_command(["sh", "-c", "echo out; echo err >&2; exit 3"]) == (3, "out\n", "err\n")


def test_commands_have_no_shell_and_no_input():
    assert run_command(["printf", "%s", "$HOME;x"])[1] == "$HOME;x"
    assert run_command(["cat"]) == (0, "", "")


def test_a_talkative_command_does_not_block():
    code, out, _err = run_command(["sh", "-c", "head -c 300000 /dev/zero | tr '\\0' x"])
    assert (code, len(out)) == (0, 300000)


def test_a_missing_command_is_an_answer():
    code, _out, err = run_command(["iovirt-no-such-command"])
    assert code == 127
    assert "iovirt-no-such-command" in err


def test_a_command_is_never_taken_from_the_current_folder(tmp_path, monkeypatch):
    """Root may stand in a folder into which others write, and many a tool that is asked for is not installed."""
    program = tmp_path / "iovirt-no-such-command"
    program.write_text("#!/bin/sh\necho taken\n")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    assert run_command([program.name])[:2] == (127, "")
    monkeypatch.setenv("PATH", f".:{os.environ['PATH']}")
    assert run_command([program.name])[:2] == (127, "")


def test_a_word_that_no_command_can_be_given_is_an_answer():
    before = len(os.listdir("/proc/self/fd"))
    assert run_command(["echo", "a\0b"])[:2] == (127, "")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_killed_command_says_so():
    assert run_command(["sh", "-c", "kill -9 $$"])[0] == 128 + signal.SIGKILL


def test_commands_die_of_a_closed_pipe_as_they_are_used_to():
    """Python ignores SIGPIPE; a shell script that inherits that sees write errors instead of ending."""
    _code, out, _err = run_command(["sh", "-c", "grep SigIgn /proc/self/status"])
    ignored = int(out.split()[1], 16)
    assert not ignored >> (signal.SIGPIPE - 1) & 1


def test_a_command_works_while_its_answer_is_not_asked_for(tmp_path):
    begin = time.monotonic()
    answer = begin_command(["sh", "-c", f"sleep 0.3; touch {tmp_path}/done; echo said"])
    assert not (tmp_path / "done").exists()
    assert time.monotonic() - begin < 0.3
    assert answer() == (0, "said\n", "")
    assert (tmp_path / "done").exists()


def test_a_command_that_cannot_be_started_is_an_answer(tmp_path):
    (tmp_path / "text").write_text("no program")
    (tmp_path / "text").chmod(0o755)
    code, _out, err = run_command([f"{tmp_path}/text"])
    assert (code, "Exec format error" in err) == (127, True)


def test_a_host_that_can_only_run_commands_runs_them_at_once():
    ran = []
    answer = Host(files=FileSystem("/"), run=lambda argv, data="": ran.append(argv) or (0, "said", "")).begin(["ip"])
    assert ran == [["ip"]]
    assert answer() == (0, "said", "")
    host = Host(files=FileSystem("/"), run=run_command, start=begin_command)
    assert host.begin(["printf", "x"])() == (0, "x", "")


# --- Waiting ---------------------------------------------------------------------------------------------------------


def test_waiting_looks_once_more_at_the_end():
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds

    host = Host(files=FileSystem("/"), run=run_command, sleep=sleep, clock=lambda: now[0])
    assert host.wait(lambda: now[0] >= 5, 30)
    assert 5 <= now[0] < 6
    assert not host.wait(lambda: False, 2)
    assert host.wait(lambda: True, 0)


@pytest.mark.parametrize("known", [True, False])
def test_a_child_is_waited_for_whether_or_not_the_kernel_tells_its_end(files, tmp_path, monkeypatch, known):
    """pidfd_open(2) came with Linux 5.3."""
    def unknown(_pid):
        raise OSError(errno.ENOSYS, "none")

    if not known:
        monkeypatch.setattr(os, "pidfd_open", unknown, raising=False)
    (tmp_path / "count").write_text("0")
    files.write("/count", "7", limit=5.0)
    assert (tmp_path / "count").read_text() == "7"
    os.mkfifo(tmp_path / "held")
    begin = time.monotonic()
    with pytest.raises(Stuck, match=r"within 0\.2 s"):
        files.write("/held", "7", limit=0.2)
    assert 0.2 <= time.monotonic() - begin < 2
    # Let the child go.
    (tmp_path / "held").open("rb").close()


def test_errors_are_named():
    assert explain(OSError(errno.EBUSY, "x")) == "EBUSY (Device or resource busy)"
    assert explain(OSError("plain words")) == "plain words"


def test_an_attribute_that_hangs_costs_no_other_one_its_answer(files, tmp_path):
    """As driver_override does while a write to the device hangs: opening a FIFO for reading blocks until one writes."""
    for name in ("first", "last"):
        (tmp_path / name).write_text(f"{name}\n")
    for name in ("hangs", "hangs-too"):
        os.mkfifo(tmp_path / name)
    start, before = time.monotonic(), children()
    found = files.attrs_within(["/first", "/hangs", "/missing", "/hangs-too", "/last"], 0.2)
    left = children() - before
    assert time.monotonic() - start < 3
    assert found == {"/first": "first", "/missing": None, "/last": "last"}
    for name in ("hangs", "hangs-too"):
        # The children still wait; they go once they are answered.
        (tmp_path / name).write_text("")
    assert_ended(left)


def test_parts_of_binary_files(files, tmp_path):
    (tmp_path / "image").write_bytes(b"MZ\xff\x00rest")
    assert files.data("/image", 0, 3) == b"MZ\xff"
    assert files.data("/image", 4, 100) == b"rest"
    assert files.data("/absent", 0, 1) == b""
    assert files.size("/image") == 8
    assert files.size("/absent") is None
    assert files.free("/image") > 0
    assert files.free("/absent") is None


def test_copy_is_whole_or_not_at_all(files, tmp_path, monkeypatch):
    (tmp_path / "new").write_bytes(b"\xff" * 1000)
    (tmp_path / "there").write_bytes(b"old")
    files.copy("/new", "/there", 0o600)
    assert (tmp_path / "there").read_bytes() == b"\xff" * 1000
    assert stat.S_IMODE((tmp_path / "there").stat().st_mode) == 0o600
    (tmp_path / "new").write_bytes(b"newer")

    def full(handle):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="full"):
        files.copy("/new", "/there")
    assert (tmp_path / "there").read_bytes() == b"\xff" * 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "there"]


@pytest.mark.parametrize(("path", "step", "number"), [("/null", "KVM_GET_API_VERSION", errno.ENOTTY), ("/none", "open", errno.ENOENT)])
def test_what_is_no_kvm_is_told_by_its_answer(path, step, number):
    answer = FileSystem("/dev").ask_kvm(path, 10.0)
    assert answer == {"api": None, "vm": False, "ran": None, "step": step, "errno": number}


def test_kvm_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(api, "ask", lambda _path: time.sleep(60))
    assert FileSystem("/dev").ask_kvm("/null", 0.1) is None


SESSION = "10.0.2.2 50000 10.0.2.15 22"


@pytest.fixture
def sudo(files, tmp_path):
    """sshd's shell (20) -> sudo (21) -> a shell of root's (22), from whose environment sudo has taken what sshd had put in."""
    for pid, parent, words in ((1, 0, ""), (20, 1, f"HOME=/home/op\0SSH_CONNECTION={SESSION}\0"), (21, 20, "SSH_CONNECTIONS=3\0"), (22, 21, "")):
        folder = tmp_path / "proc" / str(pid)
        folder.mkdir(parents=True)
        (folder / "environ").write_text(words)
        (folder / "status").write_text(f"Name:\tsh\nPPid:\t{parent}\n")
    return files


def test_the_connection_is_known_behind_sudo(sudo):
    assert session(sudo, {}, 22) == session(sudo, {}, 20) == session(sudo, {"SSH_CONNECTION": ""}, 22) == {"SSH_CONNECTION": SESSION}


def test_what_the_environment_says_itself_counts_first(sudo):
    assert session(sudo, {"SSH_CONNECTION": "one", "HOME": "/root"}, 22) == {"SSH_CONNECTION": "one"}


def test_no_connection_is_none(sudo, tmp_path):
    """At boot, where the process above is PID 1; beside processes that have ended or run in a circle."""
    assert session(sudo, {}, 1) == session(sudo, {}, 77) == {}
    for pid, parent in ((30, 31), (31, 30)):
        (tmp_path / f"proc/{pid}").mkdir()
        (tmp_path / f"proc/{pid}/status").write_text(f"PPid:\t{parent}\n")
    assert session(sudo, {}, 30) == {}
