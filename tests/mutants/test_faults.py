"""Every fault applies to the code as it is, still compiles, and names tests that exist; see ``run``."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants.command import matches
from tests.mutants.copies import outcome_of
from tests.mutants.fault import REPOSITORY, Fault, read_faults

FAULTS = read_faults()
PARTS = {
    "checkpoint",
    "config",
    "data",
    "distributed",
    "engine",
    "evaluation",
    "hub",
    "kernels",
    "model",
    "optim",
    "planner",
    "report",
    "training",
}
"""Packages of elc_bert in which there are faults."""
HARMLESS = Fault("name", "file.py", "a = 1", "a = 2", ("tests/test_it.py",), "")


def named_test_exists(test: str) -> bool:
    """Return whether a file, class or function of tests exists; parameters are not checked."""
    path, *names = test.partition("[")[0].split("::")
    if not (REPOSITORY / path).is_file():
        return False
    body = ast.parse((REPOSITORY / path).read_text(encoding="utf-8")).body
    for name in names:
        found = [node for node in body if getattr(node, "name", None) == name]
        if not found:
            return False
        body = getattr(found[0], "body", [])
    return True


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_applies_once_still_compiles_and_names_tests_that_exist(fault):
    code = fault.changed((REPOSITORY / fault.path).read_text(encoding="utf-8"))
    assert fault.old != fault.new
    if fault.path.endswith(".py"):
        compile(code, fault.path, "exec")
    assert fault.tests
    assert fault.wrong.endswith(".")
    assert not [test for test in fault.tests if not named_test_exists(test)]


def test_there_are_many_faults_in_all_parts_of_the_code():
    assert len(FAULTS) >= 60
    paths = [Path(fault.path) for fault in FAULTS]
    assert {path.parts[1] for path in paths if path.parts[0] == "elc_bert"} >= PARTS
    assert any(path.parts[0] == "data_tools" for path in paths)


@pytest.mark.parametrize("code", ["b = 1\n", "a = 1\na = 1\n"])
def test_a_fault_that_does_not_apply_once_is_named(code):
    with pytest.raises(LookupError, match=r"name: the old text occurs [02] times in file\.py"):
        HARMLESS.changed(code)
    assert HARMLESS.changed("a = 1\n") == "a = 2\n"


def test_the_outcome_of_a_file_is_that_of_its_tests():
    outcomes = {"f.py::a": "passed", "f.py::b[1]": "failed", "f.py::c": "skipped", "g.py::a": "passed"}
    names = ("f.py", "f.py::a", "f.py::b", "f.py::c", "g.py", "h.py", "f.py::")
    assert [outcome_of(name, outcomes) for name in names] == [
        "failed",
        "passed",
        "failed",
        "skipped",
        "passed",
        "missing",
        "missing",
    ]


def test_patterns_select_by_name_or_file():
    assert matches(HARMLESS, None)
    assert matches(HARMLESS, ["na*"])
    assert matches(HARMLESS, ["x", "*.py"])
    assert not matches(HARMLESS, ["other"])


def test_the_command_lists_the_faults_and_refuses_patterns_without_a_match():
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        script = REPOSITORY / "tests" / "mutants" / "run"
        return subprocess.run(
            [sys.executable, script, *arguments], capture_output=True, text=True, timeout=60
        )

    listed = call("--list", "--only", FAULTS[0].name)
    assert listed.returncode == 0
    assert listed.stdout == f"{FAULTS[0].name}  {FAULTS[0].path}: {FAULTS[0].wrong}\n"
    refused = call("--only", "no-such-fault")
    assert refused.returncode == 2
    assert "--only" in refused.stderr
