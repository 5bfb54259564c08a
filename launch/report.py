"""Say what a run has learned; see ``--help``."""

import argparse
import sys
from pathlib import Path

from elc_bert.errors import exit_status

EXAMPLES = """what the figures mean:
  loss      minus the logarithm of the probability that the model gave to the right token, averaged
            over the masked tokens of the run's held-out set; e to the power of it is the number of
            equally likely tokens that one would be as unsure among
  accuracy  share of the masked tokens that the model's best guess met
  without context
            what the best guess that ignores the surroundings reaches on the same text: a loss of its
            unigram entropy, and the share of the most frequent token; a model that is not clearly
            better has not learned to read yet

example:
  python launch/report.py runs/demo
"""


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="report.py",
        description="Say what a run has learned: held-out loss and accuracy of its newest checkpoint, ten\n"
        "masked words with the model's guesses, and where its checkpoints and logs are.\n"
        "It runs in one process, on the CPU.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN_DIR", help="the run's elc_bert.training.output_dir, such as runs/demo"
    )
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    arguments = parse_arguments(argv)

    def command() -> None:
        from elc_bert.evaluation.report import report  # after the cheap checks: it loads torch

        print(report(arguments.run))

    return exit_status(command, "report.py")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
