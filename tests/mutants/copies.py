"""Copies of the repository in which tests run, and runs of tests in them."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.fault import REPOSITORY, Fault
from tests.mutants.outcomes import VARIABLE

IGNORED = shutil.ignore_patterns("__pycache__", ".git", ".venv", ".*_cache", "build", "runs", "data")


@dataclass(frozen=True)
class TestRun:
    """Result of a run of tests."""

    __test__ = False  # not a class of tests

    status: int | None
    """Exit status of pytest; None if it took too long."""
    outcomes: dict[str, str]
    """``passed``, ``failed`` or ``skipped``, by the id of the test; incomplete after the first failure."""
    output: str
    """Output of pytest."""

    @property
    def failed(self) -> list[str]:
        """Ids of the tests that failed."""
        return [test for test, outcome in self.outcomes.items() if outcome == "failed"]


def outcome_of(test: str, outcomes: dict[str, str]) -> str:
    """Return the outcome of a named file, class or function, which may stand for several tests.

    Returns:
        ``failed`` if any failed, ``passed`` if any of the others passed, else ``skipped``; ``missing`` if
        there are none.
    """
    found = {
        outcome
        for each, outcome in outcomes.items()
        if each == test or each.startswith((f"{test}::", f"{test}["))
    }
    return next((outcome for outcome in ("failed", "passed", "skipped") if outcome in found), "missing")


class Copy:
    """A copy of the working tree.

    Args:
        folder: Empty folder for the copy and for temporary files of the tests.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder / "code"
        self._temporary = folder / "tmp"
        # data_tools is a package, but the folders below are ignored at the top level only.
        shutil.copytree(REPOSITORY, self.root, symlinks=True, ignore=_ignored_at_the_top)
        for original, link in (
            (REPOSITORY / ".venv", self.root / ".venv"),
            (REPOSITORY.parent / "shared", folder / "shared"),
        ):
            if original.is_dir():
                link.symlink_to(original.resolve())

    @contextlib.contextmanager
    def with_fault(self, fault: Fault) -> Iterator[None]:
        """Change the code within this block. C code is compiled again.

        Raises:
            LookupError: The fault does not apply.
        """
        path = self.root / fault.path
        before = path.read_bytes()
        fault.apply(self.root)
        try:
            if path.suffix == ".c":
                self._compile()
            yield
        finally:
            path.write_bytes(before)
            if path.suffix == ".c":
                self._compile()

    def run(self, tests: Sequence[str], timeout: float, jobs: int = 1, first_failure: bool = True) -> TestRun:
        """Run tests in this copy.

        Args:
            tests: Tests as pytest takes them.
            timeout: Seconds after which the run is stopped.
            jobs: Number of test files to run at a time.
            first_failure: Stop after the first test that fails.
        """
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir()
        outcomes = self._temporary / "outcomes.json"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.mutants.outcomes"]
        command += ["-p", "no:cacheprovider", *(["-x"] if first_failure else [])]
        command += ["-n", str(jobs), "--dist", "loadfile"] if jobs > 1 else []
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.root),
            "OMP_NUM_THREADS": "1",
            # A file that is changed twice in a second, with the same size, would have an outdated .pyc file.
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(self._temporary),
            VARIABLE: str(outcomes),
        }
        process = subprocess.Popen(
            [*command, *tests],
            cwd=self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=timeout)
            status: int | None = process.returncode
        except subprocess.TimeoutExpired:
            status, output = None, f"no end after {timeout:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        found = json.loads(outcomes.read_text(encoding="utf-8")) if outcomes.is_file() else {}
        return TestRun(status, found, output)

    def _compile(self) -> None:
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--force"]
        subprocess.run(
            command, cwd=self.root, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )


def _ignored_at_the_top(folder: str, names: list[str]) -> set[str]:
    if Path(folder) == REPOSITORY:
        return IGNORED(folder, names)
    return {name for name in names if name == "__pycache__"}
