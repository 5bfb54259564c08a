"""What the benchmarks' command lines have in common."""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from elc_bert.utils.errors import run_single_process
from elc_bert.utils.files import atomic_write


class Report(Protocol):
    """What was measured; a dataclass."""

    __dataclass_fields__: Any

    def lines(self) -> list[str]:
        """A table for people."""


def positive(text: str) -> int:
    """The type of an option that counts something."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


def add_json(parser: argparse.ArgumentParser) -> None:
    """Declares `--json`."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="also save the figures there")


def report_to_user(
    program: str, arguments: argparse.Namespace, benchmark: Callable[[argparse.Namespace], Report]
) -> int:
    """Measures, prints the report and saves it where `--json` says; returns the exit status."""

    def command() -> None:
        report = benchmark(arguments)
        print("\n".join(report.lines()))
        if arguments.json:
            with atomic_write(arguments.json, "w") as file:
                json.dump(asdict(report), file, indent=2)
                file.write("\n")

    return run_single_process(command, program)
