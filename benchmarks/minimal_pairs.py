"""Compare scoring minimal pairs in batches with one forward pass per masked sentence; see ``--help``."""

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
from elc_bert.data.format.text_tokenizer import TextTokenizer
from elc_bert.evaluation.minimal_pairs import Paradigm, Sentence, read_paradigms
from elc_bert.evaluation.pseudo_likelihood import Encoded, encode, score_sentences
from elc_bert.hub.loading import load_model
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.utils.errors import UserError
from elc_bert.utils.options import positive_int
from elc_bert.utils.progress import progress_bar

EPILOG = """methods, measured alternately in one run:
  batched           all pairs of a file together, in batches of sentences of equal length, as in
                    launch/evaluate.py
  sentence          one batch per sentence, of all its masked copies
  masked sentence   one forward pass per masked copy, as in the definition

Without --model, the small model of the recipe is used with random weights: its scores are meaningless, but
its speed is that of a trained model.

example:
  python benchmarks/minimal_pairs.py --pairs blimp/data --tokenizer data/strict_small/tokenizer.json
"""


@dataclass(frozen=True)
class Scoring:
    """Speed of each method, and the agreement of their scores."""

    parameters: int
    """Number of parameters of the model."""
    pairs: int
    """Number of pairs scored in batches."""
    pairs_per_second: dict[str, float]
    """Speed by method."""
    largest_difference: dict[str, float]
    """Largest difference from the batched scores in nats, by method."""

    def lines(self) -> list[str]:
        """Return the result as lines of text."""
        lines = [f"{self.parameters:,} parameters, {torch.get_num_threads()} threads, {self.pairs:,} pairs"]
        for name, rate in self.pairs_per_second.items():
            ratio = self.pairs_per_second["batched"] / rate
            lines.append(
                f"  {name:<16}{rate:>8.2f} pairs/s   batched is {ratio:5.2f} x   "
                f"scores differ by at most {self.largest_difference[name]:.1e}"
            )
        return lines


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="minimal_pairs.py",
        description="Measure how many minimal pairs are scored per second, and check that all methods agree.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    option("--pairs", type=Path, required=True, metavar="FOLDER", help="folder of .jsonl files")
    option("--tokenizer", type=Path, metavar="FILE", help="tokenizer.json (default: the model's own)")
    option(
        "--model",
        type=Path,
        metavar="MODEL",
        help="run, checkpoint or exported model, as for launch/evaluate.py",
    )
    option(
        "--limit",
        type=positive_int,
        default=100,
        metavar="N",
        help="pairs per file to score in batches (default: 100)",
    )
    option(
        "--few",
        type=positive_int,
        default=1,
        metavar="N",
        help="pairs per file for the other methods (default: 1)",
    )
    option(
        "--rounds",
        type=positive_int,
        default=3,
        metavar="N",
        help="repetitions of the other methods (default: 3)",
    )
    add_json(parser)
    return parser.parse_args(argv)


def compare(arguments: argparse.Namespace) -> Scoring:
    """Score the pairs with all methods."""
    paradigms = read_paradigms(arguments.pairs)
    model, path = _model(arguments)
    tokenizer = TextTokenizer.load(path)

    def encoded(paradigm: Paradigm, limit: int) -> list[Encoded]:
        sentences: list[Sentence] = [
            each for pair in paradigm.pairs[:limit] for each in (pair.good, pair.bad)
        ]
        return [encode(tokenizer, sentence) for sentence in sentences]

    few = [each for paradigm in paradigms for each in encoded(paradigm, arguments.few)]
    methods: dict[str, Callable[[], NDArray[np.float64]]] = {
        "sentence": lambda: np.array([score_sentences(model, [each])[0] for each in few]),
        "masked sentence": lambda: np.array(
            [score_sentences(model, [each], max_batch_tokens=1)[0] for each in few]
        ),
    }
    rates: dict[str, list[float]] = {name: [] for name in ("batched", *methods)}
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
            # Run the other methods in between, so that changes in the machine's speed affect all methods.
            for name, score in methods.items() if number in turns else ():
                start = time.perf_counter()
                scores[name] = score()
                rates[name].append(len(few) / 2 / (time.perf_counter() - start))

    figures = {name: statistics.median(values) for name, values in rates.items()}
    figures["batched"] = pairs / seconds  # files differ in length
    largest = {name: float(np.abs(values - scores["batched"]).max()) for name, values in scores.items()}
    return Scoring(model.num_parameters(), pairs, figures, largest)


def _model(arguments: argparse.Namespace) -> tuple[ElcBertForMaskedLM, Path]:
    if arguments.model is not None:
        loaded = load_model(arguments.model)
        model, tokenizer = loaded.model, loaded.tokenizer
    else:
        torch.manual_seed(1)
        model, tokenizer = ElcBertForMaskedLM(ModelConfig()).eval(), None
    if (path := arguments.tokenizer or tokenizer) is None:
        raise UserError(
            "--tokenizer: required, because the model comes without a tokenizer; give a tokenizer.json"
        )
    return model, path


def main(argv: list[str]) -> int:
    """Run the benchmark and return the exit status."""
    return report_to_user("minimal_pairs.py", parse_arguments(argv), compare)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
