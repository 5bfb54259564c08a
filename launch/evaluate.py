"""Score minimal pairs, measure held-out loss, or fill in a blank; see ``--help``."""

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from elc_bert.distributed.watchdog.watchdog import Watchdog
from elc_bert.engine.processes import run_command
from elc_bert.utils.errors import UserError

EXAMPLES = """MODEL: a run, one of its checkpoints, an export, a published ELC-BERT, or model.bin.

examples:
  BLiMP:             python launch/evaluate.py pairs runs/strict_small blimp/data
  on all GPUs here:  deepspeed launch/evaluate.py pairs runs/strict_small blimp/data
  the first 100 of each paradigm:  ... --limit 100
  loss on the run's held-out text:  python launch/evaluate.py loss runs/strict_small
  on other text:     python launch/evaluate.py loss models/published --data data/other
  a blank:           python launch/evaluate.py fill runs/strict_small "The cat sat on the [MASK]."

A run that was stopped goes on with the same command: every paradigm that is finished stays so.
"""


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="evaluate.py",
        description="What a model knows, without fine-tuning.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # The deepspeed launcher passes it; the rank is read from the environment.
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True)
    pairs = commands.add_parser(
        "pairs",
        help="accuracy on minimal pairs: BLiMP, its supplement, EWoK",
        description="Compare the pseudo-log-likelihoods of the two sentences of each pair, in fp32.",
    )
    pairs.add_argument("model", type=Path, metavar="MODEL")
    pairs.add_argument("pairs", type=Path, metavar="PAIRS", help="folder of .jsonl files, or one of them")
    pairs.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="for results.json, results.csv, results.png and what a resumed run needs (default: of a run's "
        "model RUN/minimal_pairs/NAME-STEP, where reports and model cards find it)",
    )
    pairs.add_argument(
        "--method",
        choices=("within-word", "plain"),
        default="within-word",
        help="with a subword mask also those to its right in the same word (the default), or it alone",
    )
    pairs.add_argument("--limit", type=positive, metavar="N", help="only the first N pairs of each file")
    loss = commands.add_parser(
        "loss",
        help="loss and perplexity on masked held-out text",
        description="Mask the text as in training and let the model restore it. For a run's model everything "
        "is as in its own evaluations unless given here.",
    )
    loss.add_argument("model", type=Path, metavar="MODEL")
    loss.add_argument(
        "--data", type=Path, metavar="PREFIX", help="dataset (default: the run's elc_bert.data.dev)"
    )
    loss.add_argument(
        "--sequence-length", type=positive, metavar="T", help="tokens (default: the run's, else 128)"
    )
    loss.add_argument(
        "--sequences", type=positive, metavar="N", help="how many (default: the run's, else all)"
    )
    loss.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON, too")
    fill = commands.add_parser("fill", help="the most probable words for a blank")
    fill.add_argument("model", type=Path, metavar="MODEL")
    fill.add_argument("text", metavar="TEXT", help="with one [MASK]")
    fill.add_argument("--guesses", type=positive, default=5, metavar="N", help="(default: 5)")
    for command in (pairs, loss, fill):
        command.add_argument(
            "--tokenizer", type=Path, metavar="FILE", help="tokenizer.json (default: the model's own)"
        )
        command.add_argument(
            "--variant",
            choices=("base", "zero", "normalized", "weighted_output"),
            help="of a model of the reference's, whose tensors do not always tell",
        )
    return parser.parse_args(argv)


def main(argv: list[str]) -> NoReturn:
    arguments = parse_arguments(argv)

    def command(watchdog: Watchdog) -> None:
        # These load PyTorch; --help should not wait for it.
        from elc_bert.evaluation.commands import evaluate_loss, evaluate_pairs, fill_in
        from elc_bert.hub.loading import load_model

        if arguments.command == "pairs":
            evaluate_pairs(
                watchdog,
                lambda: load_model(arguments.model, arguments.variant),
                arguments.tokenizer,
                arguments.pairs,
                arguments.output,
                arguments.method,
                arguments.limit,
            )
            return
        if arguments.command == "loss":
            evaluate_loss(
                watchdog,
                lambda: load_model(arguments.model, arguments.variant),
                arguments.tokenizer,
                arguments.data,
                arguments.sequence_length,
                arguments.sequences,
                arguments.output,
            )
            return
        loaded = load_model(arguments.model, arguments.variant)
        if (tokenizer := arguments.tokenizer or loaded.tokenizer) is None:
            raise UserError(f"{arguments.model}: no tokenizer lies there; name its file by --tokenizer")
        print(fill_in(loaded.model, tokenizer, arguments.text, arguments.guesses))

    run_command(command)


if __name__ == "__main__":
    main(sys.argv[1:])
