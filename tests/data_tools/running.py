"""The commands as a user runs them: as processes, some of them under mpirun."""

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
    # Containers run as root; Open MPI wants to be told that this is meant.
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


def command(*arguments) -> list[str]:
    return [sys.executable, "-m", "data_tools", *map(str, arguments)]


def run(*arguments, ranks: int | None = None, before=None) -> subprocess.CompletedProcess:
    """Run a command to its end, under mpirun if `ranks` are given; its own mistakes have no traceback."""
    mpirun = [Path(sys.executable).with_name("mpirun"), "--oversubscribe", "-n", str(ranks)] if ranks else []
    done = subprocess.run(
        [*mpirun, *command(*arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=ENVIRONMENT,
        timeout=180,
        preexec_fn=before,
    )
    assert "Traceback" not in done.stderr
    return done


def start(*arguments) -> subprocess.Popen:
    """Start a command in a process group of its own."""
    return subprocess.Popen(
        command(*arguments),
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that started the tests in the background has them ignore Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def fails_with(done: subprocess.CompletedProcess, message: str) -> None:
    """One line on standard error that says so."""
    assert done.returncode == 1
    assert done.stderr.startswith("data_tools: error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def fails(capsys, arguments: Iterable, message: str) -> None:
    """As `fails_with`, of a command that is run within this process."""
    assert main([str(each) for each in arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("data_tools: error: ")
    assert error.count("\n") == 1
    assert message in error
