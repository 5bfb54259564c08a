"""Fixtures: the command's entry point, and a run with a report."""

import importlib.util
import shutil
from pathlib import Path

import pytest

from tests.report.making import write_pairs

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def main():
    spec = importlib.util.spec_from_file_location("launch_report", REPOSITORY / "launch" / "report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="session")
def reported(tiny_run, tmp_path_factory) -> Path:
    """A copy of a real run with results on minimal pairs, and the report about it."""
    from elc_bert.report.command import report

    run = tmp_path_factory.mktemp("reported") / "tiny"
    shutil.copytree(tiny_run.directory, run)
    write_pairs(run, "blimp-step-000002", {"binding": 0.1, "island_effects": 0.2})
    write_pairs(run, "blimp-step-000004", {"binding": 0.5, "island_effects": 0.7})
    write_pairs(run, "blimp-step-000004/plain", {"binding": 0.9}, "plain", None)
    report([run], run / "report.html")
    return run
