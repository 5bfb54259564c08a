"""Command lines and reports of the benchmarks."""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from elc_bert.utils.errors import run_single_process
from elc_bert.utils.files import atomic_write


class Report(Protocol):
    """Results of a benchmark, as a dataclass."""

    __dataclass_fields__: Any

    def lines(self) -> list[str]:
        """Return the results as lines of text."""


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--json``."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")


def report_to_user(
    program: str, arguments: argparse.Namespace, benchmark: Callable[[argparse.Namespace], Report]
) -> int:
    """Run a benchmark, print its report, write it to the file of ``--json``, and return the exit status.

    Args:
        program: Name of the program in error messages.
        arguments: Parsed command line, with ``json``.
        benchmark: Function that measures.
    """

    def command() -> None:
        report = benchmark(arguments)
        print("\n".join(report.lines()))
        if arguments.json:
            with atomic_write(arguments.json, "w") as file:
                json.dump(asdict(report), file, indent=2)
                file.write("\n")

    return run_single_process(command, program)
