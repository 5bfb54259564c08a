"""Scoring of minimal pairs in batches against one forward pass for each masked sentence; see ``--help``."""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from reporting import add_json, report_to_user

from elc_bert.config.schema import ModelConfig
from elc_bert.data.format.vocabulary import load_tokenizer
from elc_bert.evaluation.minimal_pairs import Paradigm, Sentence, read_paradigms
from elc_bert.evaluation.pseudo_likelihood import Encoded, encode, score_sentences
from elc_bert.hub.loading import load_model
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.utils.errors import UserError
from elc_bert.utils.options import positive_int
from elc_bert.utils.progress import progress_bar

EPILOG = """what is measured, in one run and in turn:
  batched           all pairs of a file at once, sentences of a length together, as launch/evaluate.py does
  sentence          a batch for each sentence: its masked copies
  masked sentence   a forward pass for each masked copy, as the definition reads

Without --model the small model of the recipe, freshly initialised: its scores mean nothing, its speed does.

example:
  python benchmarks/minimal_pairs.py --pairs blimp/data --tokenizer data/strict_small/tokenizer.json
"""


@dataclass(frozen=True)
class Scoring:
    """How fast each way is, and whether they agree."""

    parameters: int
    pairs: int
    """Scored in batches."""
    pairs_per_second: dict[str, float]
    largest_difference: dict[str, float]
    """From the scores in batches, in nats."""

    def lines(self) -> list[str]:
        lines = [f"{self.parameters:,} parameters, {torch.get_num_threads()} threads, {self.pairs:,} pairs"]
        for name, rate in self.pairs_per_second.items():
            ratio = self.pairs_per_second["batched"] / rate
            lines.append(
                f"  {name:<16}{rate:>8.2f} pairs/s   batched is {ratio:5.2f} x   "
                f"scores differ by at most {self.largest_difference[name]:.1e}"
            )
        return lines


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="minimal_pairs.py",
        description="Pairs per second by pseudo-log-likelihood, and whether all ways give the same scores.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    option("--pairs", type=Path, required=True, metavar="FOLDER", help="of .jsonl files")
    option("--tokenizer", type=Path, metavar="FILE", help="tokenizer.json (default: the model's own)")
    option("--model", type=Path, metavar="MODEL", help="whatever launch/evaluate.py reads")
    option(
        "--limit", type=positive_int, default=100, metavar="N", help="pairs of a file, batched (default: 100)"
    )
    option(
        "--few",
        type=positive_int,
        default=1,
        metavar="N",
        help="pairs of a file, the other ways (default: 1)",
    )
    option("--rounds", type=positive_int, default=3, metavar="N", help="of the other ways (default: 3)")
    add_json(parser)
    return parser.parse_args(argv)


def compare(arguments: argparse.Namespace) -> Scoring:
    paradigms = read_paradigms(arguments.pairs)
    model, path = _model(arguments)
    tokenizer = load_tokenizer(path)

    def encoded(paradigm: Paradigm, limit: int) -> list[Encoded]:
        sentences: list[Sentence] = [
            each for pair in paradigm.pairs[:limit] for each in (pair.good, pair.bad)
        ]
        return [encode(tokenizer, sentence) for sentence in sentences]

    few = [each for paradigm in paradigms for each in encoded(paradigm, arguments.few)]
    ways: dict[str, Callable[[], NDArray[np.float64]]] = {
        "sentence": lambda: np.array([score_sentences(model, [each])[0] for each in few]),
        "masked sentence": lambda: np.array(
            [score_sentences(model, [each], tokens_at_once=1)[0] for each in few]
        ),
    }
    rates: dict[str, list[float]] = {name: [] for name in ("batched", *ways)}
    scores = {"batched": score_sentences(model, few)}
    pairs = sum(len(paradigm.pairs[: arguments.limit]) for paradigm in paradigms)
    seconds, turns = 0.0, np.linspace(0, len(paradigms), arguments.rounds + 1).astype(int)[1:]
    with progress_bar(pairs, "pair", title="batched") as bar:
        for number, paradigm in enumerate(paradigms, start=1):
            start = time.perf_counter()
            batch = encoded(paradigm, arguments.limit)
            score_sentences(model, batch)
            spent = time.perf_counter() - start
            rates["batched"].append(len(batch) / 2 / spent)
            seconds += spent
            bar.update(len(batch) // 2)
            # The other ways in between, so that a machine that changes its speed does so for all.
            for name, way in ways.items() if number in turns else ():
                start = time.perf_counter()
                scores[name] = way()
                rates[name].append(len(few) / 2 / (time.perf_counter() - start))

    figures = {name: statistics.median(values) for name, values in rates.items()}
    figures["batched"] = pairs / seconds  # files differ in length
    largest = {name: float(np.abs(values - scores["batched"]).max()) for name, values in scores.items()}
    return Scoring(model.num_parameters(), pairs, figures, largest)


def _model(arguments: argparse.Namespace) -> tuple[ElcBertForMaskedLM, Path]:
    if arguments.model is not None:
        loaded = load_model(arguments.model)
        model, own = loaded.model, loaded.tokenizer
    else:
        torch.manual_seed(1)
        model, own = ElcBertForMaskedLM(ModelConfig()).eval(), None
    if (path := arguments.tokenizer or own) is None:
        raise UserError("no tokenizer; name its file by --tokenizer")
    return model, path


def main(argv: list[str]) -> int:
    return report_to_user("minimal_pairs.py", parse_arguments(argv), compare)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
