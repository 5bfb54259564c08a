"""Report what runs have learned; see ``--help``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from elc_bert.report.output import PAGE, page_path
from elc_bert.utils.errors import run_single_process
from elc_bert_launch.options import command_line

EXAMPLES = """what the figures mean:
  loss      negative logarithm of the probability that the model gives to the right token, averaged over
            the masked tokens of the run's held-out set; its exponential is the perplexity, the number of
            equally likely tokens that would leave one as unsure
  accuracy  share of the masked tokens that the model's best guess gets right
  without context
            what the best guess that ignores the context reaches on the same text: the unigram entropy as
            loss, and the share of the most frequent token as accuracy; a model that is not clearly better
            has not yet learned to use context

examples:
  python launch/report.py runs/demo
  python launch/report.py runs/zero runs/weighted_output --output comparison.html
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command_line(
        "Print what runs have learned: held-out loss and accuracy of the newest checkpoint, and ten masked\n"
        "words with the model's guesses. Also write a page with curves, layer weights, minimal pairs and\n"
        "the configuration. The page is one file that opens anywhere, without a network. Runs may still be\n"
        "training; what is missing is left out and named. The command needs one process and no GPU.",
        EXAMPLES,
    )
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN_DIR",
        help="a run's elc_bert.training.output_dir, such as runs/demo; several runs are compared",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help=f"page to write (default for one run: RUN_DIR/{PAGE})"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = build_parser()
    arguments = parser.parse_args(argv)

    def command() -> None:
        path = page_path(arguments.runs, arguments.output)
        # This import loads PyTorch and Plotly, which takes seconds, so the path is checked first.
        from elc_bert.report.command import report

        report(arguments.runs, path)

    return run_single_process(command, parser.prog)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
