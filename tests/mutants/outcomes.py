"""Plugin for pytest that writes the outcome of every test to the JSON file named by ``MUTANTS_OUTCOMES``."""

import json
import os
from pathlib import Path

import pytest

VARIABLE = "MUTANTS_OUTCOMES"
_outcomes: dict[str, str] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Record ``failed`` if any phase of a test failed, else ``skipped`` or ``passed``."""
    before = _outcomes.get(report.nodeid)
    if before != "failed" and (report.outcome != "passed" or report.when == "call"):
        _outcomes[report.nodeid] = report.outcome


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Record files that cannot be collected."""
    if report.outcome != "passed":
        _outcomes[report.nodeid] = report.outcome


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the outcomes, in the process that reports them."""
    if not hasattr(session.config, "workerinput"):
        Path(os.environ[VARIABLE]).write_text(json.dumps(_outcomes), encoding="utf-8")
