"""Helpers that run the commands as a user does: as processes, some of them under mpirun."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from data_tools.__main__ import main

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(REPOSITORY),
    # Containers run as root, which Open MPI refuses unless it is allowed explicitly.
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


def command(*arguments) -> list[str]:
    return [sys.executable, "-m", "data_tools", *map(str, arguments)]


def run(
    *arguments, ranks: int | None = None, before=None, encoding: str = "utf-8"
) -> subprocess.CompletedProcess:
    """Run a command to its end, under mpirun if ``ranks`` is given, and check that it prints no traceback.

    The encoding is that of the terminal.
    """
    mpirun = [Path(sys.executable).with_name("mpirun"), "--oversubscribe", "-n", str(ranks)] if ranks else []
    done = subprocess.run(
        [*mpirun, *command(*arguments)],
        capture_output=True,
        text=True,
        encoding=encoding,
        env=ENVIRONMENT | {"PYTHONIOENCODING": encoding},
        timeout=180,
        preexec_fn=before,
    )
    assert "Traceback" not in done.stderr
    return done


def start(*arguments) -> subprocess.Popen:
    """Start a command in its own process group."""
    return subprocess.Popen(
        command(*arguments),
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests that a shell runs in the background ignore Ctrl-C, and child processes inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def assert_failed(done: subprocess.CompletedProcess, *facts: str) -> None:
    """Check that a command failed with one line on standard error that holds some facts."""
    assert done.returncode == 1
    assert done.stderr.startswith("data_tools: error: ")
    assert done.stderr.count("\n") == 1
    for fact in facts:
        assert fact in done.stderr


def assert_rejected(done: subprocess.CompletedProcess, *facts: str) -> None:
    """Check that the value of an option was rejected with one line on standard error with some facts."""
    assert done.returncode == 2
    assert "error: argument " in done.stderr
    assert done.stderr.count("\n") == 1
    for fact in facts:
        assert fact in done.stderr


def assert_fails(capsys, arguments: Iterable, *facts: str) -> None:
    """Run a command in this process and check that it fails as in ``assert_failed``."""
    assert main([str(each) for each in arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("data_tools: error: ")
    assert error.count("\n") == 1
    for fact in facts:
        assert fact in error
