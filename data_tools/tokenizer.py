"""Training of the byte-level WordPiece tokenizer."""

import argparse
import itertools
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from data_tools.reading import read_paragraphs
from data_tools.text import Skipped, add_input_arguments, input_files
from elc_bert.data.format.vocabulary import SPECIAL_TOKENS, UNK
from elc_bert.utils.errors import UserError
from elc_bert.utils.files import atomic_write

HELP = "train a subword vocabulary on text"

EPILOG = """\
Subwords are learned over the bytes of the text, so that no character is unknown; each digit is a
subword of its own. Training on the same text always gives the same file. It prints:

  F95                  95 % of the subwords occur at least this often in the training text; about 100
                       or more tells that the vocabulary is not too large for the text
  unknown              share of held-out subwords that are [UNK]
  subwords per word    length of held-out text; near 1 is short

examples:
  python -m data_tools tokenizer --input text/ --vocab-size 6144 --output tokenizer.json
  python -m data_tools tokenizer --input train.txt --held-out dev.txt --vocab-size 16384 \\
      --output tokenizer.json
"""

SAMPLE_SENTENCES = (
    "The cat sat on the mat, purring unmistakably.",
    "In 1984 she couldn't afford café prices of 3.50 euros.",
)
HELD_OUT_LINES = 1000
LINES_AT_ONCE = 1000
_SPECIAL = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `tokenizer`."""
    add_input_arguments(parser)
    parser.add_argument("--vocab-size", type=int, default=6144, metavar="N", help="subwords (default: 6144)")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="tokenizer.json to write")
    parser.add_argument(
        "--min-frequency",
        type=int,
        default=10,
        metavar="N",
        help="a subword joins two that stand together this often (default: 10)",
    )
    parser.add_argument(
        "--held-out",
        type=Path,
        metavar="FILE",
        help=f"text to measure on (default: the last {HELD_OUT_LINES} lines of the input)",
    )


def run(args: argparse.Namespace) -> None:
    """Runs `tokenizer` and prints how well the vocabulary fits."""
    files = input_files(args.input)
    held_out = input_files([args.held_out]) if args.held_out else None

    def read(some: list[Path]) -> tuple[Iterator[str], Skipped]:
        skipped = Skipped()
        return read_paragraphs(some, args.json_key, skipped if args.on_error == "skip" else None), skipped

    args.output.parent.mkdir(parents=True, exist_ok=True)
    text, skipped = read(files)
    tokenizer = train(text, args.vocab_size, args.min_frequency)
    with atomic_write(args.output, "w") as file:
        file.write(tokenizer.to_str(pretty=True))
    counts = count_subwords(tokenizer, read(files)[0])
    lines = read(held_out)[0] if held_out else iter(deque(read(files)[0], HELD_OUT_LINES))
    print(f"{args.output}: {tokenizer.get_vocab_size():,} subwords")
    print(f"  F95 {f95(counts[len(SPECIAL_TOKENS) :]):,}")
    fit = measure(tokenizer, lines)
    where = args.held_out or f"last {HELD_OUT_LINES} lines of the training text"
    print(f"  {where}: unknown {fit.unknown:.4%}, subwords per word {fit.subwords_per_word:.3f}")
    for sentence in SAMPLE_SENTENCES:
        print("  " + " ".join(tokenizer.encode(sentence).tokens))
    for line in skipped.lines():
        print(line)


def train(text: Iterable[str], vocab_size: int, min_frequency: int) -> Tokenizer:
    """Trains a byte-level WordPiece tokenizer on paragraphs of text.

    Raises:
        UserError: the vocabulary is too small for the bytes and special tokens, or the text too
            short for the vocabulary.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    smallest = len(alphabet) + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise UserError(f"--vocab-size is {vocab_size}, but {smallest} hold only the bytes; use more")
    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL_TOKENS[UNK], continuing_subword_prefix=""))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.ByteLevel(add_prefix_space=True), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=alphabet,
        continuing_subword_prefix="",
        show_progress=os.isatty(2),
    )
    # The trainer would take a special token in the text for ordinary letters.
    tokenizer.train_from_iterator(batched(_SPECIAL.sub(" ", line) for line in text), trainer)
    found = tokenizer.get_vocab_size()
    if found < vocab_size:
        raise UserError(
            f"the text gives only {found} subwords of the {vocab_size} of --vocab-size; give more text, "
            f"--vocab-size {found}, or a lower --min-frequency"
        )
    return tokenizer


def batched(lines: Iterable[str]) -> Iterator[list[str]]:
    """Lists of some lines, for calls that use several cores."""
    lines = iter(lines)
    while batch := list(itertools.islice(lines, LINES_AT_ONCE)):
        yield batch


def count_subwords(tokenizer: Tokenizer, lines: Iterable[str]) -> NDArray[np.int64]:
    """How often each subword occurs in the text, int64 [vocabulary]."""
    counts = np.zeros(tokenizer.get_vocab_size(), dtype=np.int64)
    for batch in batched(lines):
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            np.add.at(counts, encoding.ids, 1)
    return counts


def f95(counts: NDArray[np.int64]) -> int:
    """The largest f such that 95 % of the subwords occur at least f times (Gowda and May, 2020)."""
    needed = -(-len(counts) * 95 // 100)
    return int(np.sort(counts)[::-1][needed - 1])


@dataclass(frozen=True)
class Fit:
    """How well a vocabulary fits a text."""

    unknown: float
    """Share of the subwords that are `[UNK]`."""
    subwords_per_word: float


def measure(tokenizer: Tokenizer, lines: Iterable[str]) -> Fit:
    """Measures a vocabulary on text."""
    words = subwords = unknown = 0
    for batch in batched(lines):
        words += sum(len(line.split()) for line in batch)
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            subwords += len(encoding.ids)
            unknown += encoding.ids.count(UNK)
    return Fit(unknown / max(subwords, 1), subwords / max(words, 1))
