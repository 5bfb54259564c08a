"""The command ``tests/mutants/run``."""

import argparse
import fnmatch
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from tests.mutants.copies import Copy, TestRun, outcome_of
from tests.mutants.fault import REPOSITORY, Fault, read_faults

TIMEOUT = 600.0
"""Seconds for the tests of one fault."""
DESCRIPTION = """\
Put small faults into a copy of the code, one at a time, and check that the tests named for each fault fail.

The faults are in tests/mutants/faults/*.toml. The named tests run once on the unchanged code first; a fault
whose tests fail there, or are all skipped on this machine, is reported and not tried.

exit status: 0 if all faults that were tried were noticed, else 1
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="tests/mutants/run",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", action="store_true", help="list the faults and exit")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="PATTERN",
        help="only faults whose name or file matches one of these patterns, such as 'lamb-*' or '*/report/*'",
    )
    parser.add_argument("--jobs", type=int, default=2, help="faults tried at a time (default: %(default)s)")
    parser.add_argument(
        "--no-unchanged", action="store_true", help="do not run the tests on the unchanged code first"
    )
    parser.add_argument("--verbose", action="store_true", help="print pytest's output for every survivor")
    arguments = parser.parse_args(argv)
    faults = [fault for fault in read_faults() if matches(fault, arguments.only)]
    if not faults:
        parser.error("--only: no fault matches")
    if arguments.list:
        for fault in faults:
            print(f"{fault.name}  {fault.path}: {fault.wrong}")
        return 0
    with tempfile.TemporaryDirectory(prefix="mut-", ignore_cleanup_errors=True) as folder:
        return Trial(faults, arguments, Path(folder)).run()


def matches(fault: Fault, patterns: Sequence[str] | None) -> bool:
    """Return whether a fault's name or file matches one of the patterns; True without patterns."""
    return patterns is None or any(
        fnmatch.fnmatch(text, pattern) for text in (fault.name, fault.path) for pattern in patterns
    )


class Trial:
    """One run of the command.

    Args:
        faults: Faults to try.
        arguments: Command line.
        folder: Empty folder for copies of the code.
    """

    def __init__(self, faults: list[Fault], arguments: argparse.Namespace, folder: Path) -> None:
        self.faults, self.arguments = faults, arguments
        self.copies = [Copy(Path(tempfile.mkdtemp(dir=folder, prefix="c"))) for _ in range(arguments.jobs)]
        self.start = time.monotonic()
        self.noticed: list[str] = []
        self.survived: list[str] = []
        self.not_tried: list[str] = []
        self._todo: queue.SimpleQueue[Fault] = queue.SimpleQueue()
        self._lock = threading.Lock()

    def run(self) -> int:
        """Try all faults, print a line about each and a summary, and return the exit status."""
        outcomes = None if self.arguments.no_unchanged else self._run_unchanged()
        for fault in self.faults:
            problem = self._problem(fault, outcomes)
            if problem:
                self._report(self.not_tried, fault, f"NOT TRIED  {fault.name}: {problem}")
            else:
                self._todo.put(fault)
        threads = [threading.Thread(target=self._work, args=[copy]) for copy in self.copies]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        minutes = (time.monotonic() - self.start) / 60
        tried = len(self.noticed) + len(self.survived)
        print(f"noticed {len(self.noticed)} of {tried} faults in {minutes:.0f} minutes", flush=True)
        if self.survived:
            print(f"survived: {' '.join(sorted(self.survived))}")
        if self.not_tried:
            print(f"not tried: {' '.join(self.not_tried)}")
        return 1 if self.survived or self._broken else 0

    _broken = False
    """True if a fault does not apply, or its tests fail without it."""

    def _run_unchanged(self) -> dict[str, str]:
        tests = sorted({test for fault in self.faults for test in fault.tests})
        print(f"running the tests of {len(self.faults)} faults on the unchanged code", flush=True)
        # A file stands for all of its tests, which pytest would otherwise run twice.
        tests = [test for test in tests if not ("::" in test and test.partition("::")[0] in tests)]
        found = self.copies[0].run(tests, 10 * TIMEOUT, jobs=self.arguments.jobs, first_failure=False)
        if not found.outcomes:
            sys.exit(f"tests/mutants/run: the tests cannot be run:\n{found.output[-3000:]}")
        return found.outcomes

    def _problem(self, fault: Fault, outcomes: dict[str, str] | None) -> str:
        """Return why a fault cannot be tried; empty if it can."""
        try:
            fault.changed((REPOSITORY / fault.path).read_text(encoding="utf-8"))
        except (LookupError, OSError) as error:
            self._broken = True
            return str(error)
        if outcomes is None:
            return ""
        by_test = {test: outcome_of(test, outcomes) for test in fault.tests}
        if bad := [
            f"{test} ({outcome})" for test, outcome in by_test.items() if outcome in ("failed", "missing")
        ]:
            self._broken = True
            return f"does not pass on the unchanged code: {', '.join(bad)}"
        return "all of its tests are skipped here" if {*by_test.values()} == {"skipped"} else ""

    def _work(self, copy: Copy) -> None:
        while True:
            try:
                fault = self._todo.get_nowait()
            except queue.Empty:
                return
            begin = time.monotonic()
            with copy.with_fault(fault):
                result = copy.run(fault.tests, TIMEOUT)
            self._judge(fault, result, time.monotonic() - begin)

    def _judge(self, fault: Fault, result: TestRun, seconds: float) -> None:
        # Status 1: tests failed; 2: the code could not even be imported.
        if result.status in (1, 2) and result.failed:
            self._report(
                self.noticed, fault, f"noticed    {fault.name} ({seconds:.0f} s): {result.failed[0]}"
            )
            return
        why = {None: "the tests took too long", 0: "all tests passed"}.get(
            result.status, f"pytest ended with status {result.status}"
        )
        output = f"\n{result.output[-5000:]}" if self.arguments.verbose or result.status else ""
        text = f"SURVIVED   {fault.name} ({seconds:.0f} s): {fault.path}: {fault.wrong} ({why}){output}"
        self._report(self.survived, fault, text)

    def _report(self, names: list[str], fault: Fault, text: str) -> None:
        with self._lock:
            names.append(fault.name)
            done = len(self.noticed) + len(self.survived) + len(self.not_tried)
            print(f"[{done:3}/{len(self.faults)}] {text}", flush=True)
