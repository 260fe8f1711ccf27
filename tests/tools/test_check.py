# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: the iovirt.host authors
"""The check runner counts truly: a part that fails, hangs or cannot run is never a part that passed."""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def check(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(TOOLS))
    loader = SourceFileLoader("iovirt_check", str(TOOLS / "check"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    monkeypatch.setitem(sys.modules, loader.name, module)
    loader.exec_module(module)
    monkeypatch.setattr(module, "LOGS", tmp_path)
    monkeypatch.setattr(module, "log_of", lambda part: tmp_path / part.name)
    monkeypatch.setattr(module, "show_failure", lambda result: None)
    return module


def outcomes(check, *parts):
    return {result.part.name: result for result in check.Run(list(parts), 2).all()}


def test_failure_is_counted_and_stops_what_builds_on_it(check, capsys):
    results = outcomes(
        check,
        check.Part("good", "", [["true"]]),
        check.Part("bad", "", [["true"], ["false"]]),
        check.Part("built", "", [["true"]], after=("bad",)),
        check.Part("absent", "", [["true"]], hindrance="there is no such thing"),
    )
    assert {name: result.outcome for name, result in results.items()} == {
        "good": "passed", "bad": "failed", "built": "not run", "absent": "not run",
    }
    assert check.report(list(results.values()), 1.0) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "1 passed, 1 failed"


def test_the_end_of_the_output_says_what_failed_and_what_passed_late(check, capsys):
    late = "echo 'WARNING: second try: tests/a.py::b'; echo '1 failed, 2 passed in 1.0s'; echo '1 passed in 1.0s'"
    results = outcomes(
        check,
        check.Part("late", "", [["sh", "-c", late]]),
        check.Part("bad", "", [["sh", "-c", "echo 'FAILED tests/c.py::d - why'; exit 1"]]),
    )
    assert (results["late"].passed, results["late"].failed) == (3, 0)
    check.report(list(results.values()), 1.0)
    out = capsys.readouterr().out
    assert "passed at the second try only:\n  late  tests/a.py::b\n" in out
    assert "failed: bad: `sh` ended with 1\n  | FAILED tests/c.py::d - why\n" in out


def test_nothing_ran_is_no_success(check):
    results = outcomes(check, check.Part("absent", "", [["true"]], hindrance="no"))
    assert check.report(list(results.values()), 1.0) == 1


def test_a_part_that_hangs_is_ended_with_its_children(check, tmp_path):
    sign = tmp_path / "sign"
    script = f"(sleep 3; touch {sign}) & sleep 60"
    result = outcomes(check, check.Part("slow", "", [["sh", "-c", script]], limit=1))["slow"]
    assert (result.outcome, result.failed) == ("failed", 1)
    assert result.seconds < 3
    assert not sign.exists()


def test_a_part_that_cannot_be_prepared_has_failed(check):
    def prepare():
        raise OSError("no space")

    result = outcomes(check, check.Part("part", "", [["true"]], prepare=prepare))["part"]
    assert (result.outcome, result.failed) == ("failed", 1)
    assert "no space" in result.reason


@pytest.mark.parametrize(("text", "expected"), [
    ("=== 3 failed, 21 passed, 1 skipped in 0.42s ===", (21, 3, 1)),
    ("21 passed in 1.42s", (21, 0, 0)),
    ("== 1 passed, 2 warnings in 61.00s (0:01:01) ==", (1, 0, 0)),
    ("2 failed, 1 error in 0.1s", (0, 3, 0)),
    ("== 4 passed in 1.00s ==\n== 5 passed in 1.00s ==", (9, 0, 0)),
    ("no tests ran in 0.10s", None),
    ("3 passed, as I like to say", None),
])
def test_pytest_counts(check, text, expected):
    assert check.pytest_counts(text) == expected


def test_times_are_added_up_by_file_and_not_those_of_another_run(check, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(check, "BUILD", tmp_path)
    monkeypatch.setattr(check, "TIMES", tmp_path / "times")
    theirs = tmp_path / "trees/units-2.21/ansible_collections/iovirt/host/tests/output/junit"
    for folder, name, classname, seconds in (
        (tmp_path / "times", "lab", "tests.lab.test_a_lab", "2.5"),
        (tmp_path / "times", "units", "tests.unit.test_b.TestIt", "1.25"),
        (tmp_path / "times", "old", "tests.lab.test_a_lab", "100"),
        (theirs, "units", "unit.test_b", "1.0"),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        text = f'<testsuites><testsuite><testcase classname="{classname}" name="x" time="{seconds}"/></testsuite></testsuites>'
        (folder / f"{name}.xml").write_text(text)
    os.utime(tmp_path / "times/old.xml", (1000, 1000))
    (tmp_path / "times/cut-off.xml").write_text("<testsuites><testsuite>")
    (tmp_path / "times/empty.xml").write_text("")
    times = check.times_since(2000)
    assert times == {"test_a_lab": 2.5, "test_b": 2.25}
    check.say_times(times)
    assert "2 slowest of 2 (together 5):\n      2.5  test_a_lab\n      2.2  test_b\n" in capsys.readouterr().out
