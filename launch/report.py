"""Say and show what runs have learned; see ``--help``."""

import argparse
import sys
from pathlib import Path

from elc_bert.utils.errors import UserError, run_single_process

PAGE = "report.html"
EXAMPLES = """what the figures mean:
  loss      minus the logarithm of the probability that the model gave to the right token, averaged
            over the masked tokens of the run's held-out set; e to the power of it is the number of
            equally likely tokens that one would be as unsure among
  accuracy  share of the masked tokens that the model's best guess met
  without context
            what the best guess that ignores the surroundings reaches on the same text: a loss of its
            unigram entropy, and the share of the most frequent token; a model that is not clearly
            better has not learned to read yet

examples:
  python launch/report.py runs/demo
  python launch/report.py runs/zero runs/weighted_output --output comparison.html
"""


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="report.py",
        description="Say what runs have learned: held-out loss and accuracy of the newest checkpoint, and\n"
        "ten masked words with the model's guesses; and write a page about it, with curves, layer\n"
        "weights, minimal pairs and the configuration. The page is one file that opens anywhere,\n"
        "without a network. Runs may still be training: what is missing is left out, and named.\n"
        "It runs in one process, on the CPU.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN_DIR",
        help="a run's elc_bert.training.output_dir, such as runs/demo; several are compared",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help=f"the page; of a single run by default RUN_DIR/{PAGE}"
    )
    return parser.parse_args(argv)


def page_path(runs: list[Path], output: Path | None) -> Path:
    """Where the page goes.

    Raises:
        UserError: that is not said, or cannot be.
    """
    if output is None:
        if len(runs) > 1:
            raise UserError("--output is missing: of several runs, say where the page goes: --output FILE")
        return runs[0] / PAGE
    if output.is_dir():
        raise UserError(f"--output {output}: is a folder; name a file, such as {output / PAGE}")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}; make it first")
    return output


def main(argv: list[str]) -> int:
    arguments = parse_arguments(argv)

    def command() -> None:
        path = page_path(arguments.runs, arguments.output)
        from elc_bert.report.command import report  # after the cheap checks: it loads torch and plotly

        report(arguments.runs, path)

    return run_single_process(command, "report.py")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
