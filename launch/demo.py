"""Run the demo, from raw text to a trained and evaluated model; see ``--help``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from elc_bert.demo import run_demo
from elc_bert.utils.errors import run_single_process
from elc_bert.utils.options import positive_int
from elc_bert_launch.options import add_set_option, command_line

REPOSITORY = Path(__file__).resolve().parents[1]
EXAMPLES = """examples:
  python launch/demo.py
  python launch/demo.py --set elc_bert.model.variant=base --set elc_bert.training.output_dir=runs/demo_base

The configuration is ds_configs/demo.json. To start over, remove data/demo and runs/demo.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = command_line(
        "Collect text, train a tokenizer, encode the text, pretrain a small ELC-BERT with DeepSpeed, and\n"
        "report what it has learned. Steps that are done are skipped, so after an interruption the same\n"
        "command resumes where it stopped.",
        EXAMPLES,
    )
    add_set_option(parser)
    parser.add_argument(
        "--max-words",
        type=positive_int,
        metavar="N",
        help="use at most N words of text (default: all that is found)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    return run_single_process(lambda: run_demo(REPOSITORY, arguments.set, arguments.max_words), parser.prog)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
