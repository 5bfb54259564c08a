"""Score minimal pairs, measure the held-out loss, or fill in a blank; see ``--help``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from elc_bert.distributed.watchdog.watchdog import Watchdog
from elc_bert.engine.processes import run_command
from elc_bert.utils.options import positive_int
from elc_bert_launch.options import MODEL_HELP, add_local_rank, add_model_options, command_line

EXAMPLES = f"""MODEL: {MODEL_HELP}.

examples:
  accuracy on BLiMP:
    python launch/evaluate.py pairs runs/strict_small blimp/data
  the same on all GPUs of this host:
    deepspeed launch/evaluate.py pairs runs/strict_small blimp/data
  the first 100 pairs of each paradigm only:
    python launch/evaluate.py pairs runs/strict_small blimp/data --limit 100
  loss on the held-out text of the run:
    python launch/evaluate.py loss runs/strict_small
  loss on other text:
    python launch/evaluate.py loss models/published --data data/other
  fill in a blank:
    python launch/evaluate.py fill runs/strict_small "The cat sat on the [MASK]."

An interrupted evaluation of minimal pairs resumes with the same command; files that were finished are not
scored again.
"""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_line("Evaluate a model without fine-tuning it.", EXAMPLES)
    add_local_rank(parser)
    commands = parser.add_subparsers(dest="command", required=True)
    pairs = commands.add_parser(
        "pairs",
        help="accuracy on minimal pairs: BLiMP, its supplement, EWoK",
        description="Compare the pseudo-log-likelihoods of the two sentences of each pair, in fp32.",
    )
    add_model_options(pairs)
    pairs.add_argument("pairs", type=Path, metavar="PAIRS", help="folder of .jsonl files, or one such file")
    pairs.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="folder for results.json, results.csv, results.png and the state of an interrupted evaluation, "
        "each method and limit in a folder of its own in it (default for a model of a run: "
        "RUN/minimal_pairs/NAME-STEP, where reports and model cards look)",
    )
    pairs.add_argument(
        "--method",
        choices=("within-word", "plain"),
        default="within-word",
        help="plain masks one subword at a time; within-word also masks those to its right in the same word "
        "(default: %(default)s)",
    )
    pairs.add_argument(
        "--limit", type=positive_int, metavar="N", help="score the first N pairs of each paradigm only"
    )
    loss = commands.add_parser(
        "loss",
        help="loss and perplexity on masked held-out text",
        description="Mask text as in training and measure how well the model restores it. For a model of a "
        "run, the defaults are the settings of the run's own evaluations.",
    )
    add_model_options(loss)
    loss.add_argument(
        "--data", type=Path, metavar="PREFIX", help="dataset (default: the run's elc_bert.data.dev)"
    )
    loss.add_argument(
        "--sequence-length",
        type=positive_int,
        metavar="T",
        help="tokens per sequence (default: the run's, else 128)",
    )
    loss.add_argument(
        "--sequences",
        type=positive_int,
        metavar="N",
        help="number of sequences (default: the run's, else all)",
    )
    loss.add_argument("--output", type=Path, metavar="FILE", help="also write the figures to this JSON file")
    fill = commands.add_parser("fill", help="print the most probable words for a blank")
    add_model_options(fill)
    fill.add_argument("text", metavar="TEXT", help="text with one [MASK]")
    fill.add_argument(
        "--guesses",
        type=positive_int,
        default=5,
        metavar="N",
        help="number of words to print (default: %(default)s)",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command and end the process with its exit status."""
    arguments = parse_arguments(argv)

    def command(watchdog: Watchdog) -> None:
        # These imports are slow, and --help does not need them.
        from elc_bert.evaluation.commands import evaluate_loss, evaluate_pairs, fill_in
        from elc_bert.evaluation.pair_settings import PairSettings
        from elc_bert.hub.loading import load_model
        from elc_bert.model.loaded import LoadedModel

        def load() -> LoadedModel:
            return load_model(arguments.model, arguments.variant)

        if arguments.command == "pairs":
            evaluate_pairs(
                watchdog,
                load,
                arguments.tokenizer,
                arguments.pairs,
                arguments.output,
                PairSettings(arguments.method, arguments.limit),
            )
        elif arguments.command == "loss":
            evaluate_loss(
                watchdog,
                load,
                arguments.tokenizer,
                arguments.data,
                arguments.sequence_length,
                arguments.sequences,
                arguments.output,
            )
        else:
            print(fill_in(load(), arguments.tokenizer, arguments.text, arguments.guesses))

    run_command(command)


if __name__ == "__main__":
    main(sys.argv[1:])
