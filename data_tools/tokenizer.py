"""The command ``tokenizer``: train a byte-level WordPiece tokenizer."""

import argparse
import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from data_tools.input_files import Skipped, find_input_files
from data_tools.input_formats import TextFile
from data_tools.long_text import cut_texts, in_batches
from data_tools.options import add_format, add_json_key, add_on_error, add_text_input
from data_tools.progress import progress_bar
from data_tools.sentences import without_markers
from data_tools.text_reader import read_paragraphs
from elc_bert.data.format.plain_text import read_as_text
from elc_bert.data.format.text_with_masks import accept_special_tokens
from elc_bert.data.format.vocabulary import SPECIAL_TOKENS, UNK
from elc_bert.utils.errors import UserError
from elc_bert.utils.files import atomic_write
from elc_bert.utils.options import non_negative_int, positive_int

HELP = "train a subword tokenizer on text"

EPILOG = """\
The tokenizer is a byte-level WordPiece, so no character is unknown to it. Each of the digits 0 to 9 is a
subword of its own. Training on the same text always gives the same file. The command prints:

  F95                  of the subwords that occur in the training text, 95 % occur at least this often. A
                       value of about 100 or more shows that the vocabulary is not too large for the text.
  unknown              share of [UNK] among the subwords of held-out text
  subwords per word    average on held-out text; the closer to 1, the shorter the sequences

examples:
  python -m data_tools tokenizer --input text/ --vocab-size 6144 --output tokenizer.json
  python -m data_tools tokenizer --input train.txt --held-out dev.txt --vocab-size 16384 \\
      --output tokenizer.json
"""

SAMPLE_SENTENCES = (
    "The cat sat on the mat, purring unmistakably.",
    "In 1984 she couldn't afford café prices of 3.50 euros.",
)
"""Sentences whose subwords are printed after training."""
DIGITS = ("ascii", "reference")
"""Values of ``--digits``."""
LONGEST_WORD = 500
"""Longest word that is encoded as a whole, in bytes. The time for a word grows with its length squared."""
HELD_OUT_LINES = 1000
"""Number of lines to measure on where no held-out text is given."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``tokenizer``."""
    add_text_input(parser)
    add_format(parser)
    add_json_key(parser)
    add_on_error(parser)
    parser.add_argument(
        "--vocab-size",
        type=positive_int,
        default=6144,
        metavar="N",
        help="number of subwords, special tokens included (default: %(default)s)",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="tokenizer.json to write")
    parser.add_argument(
        "--min-frequency",
        type=non_negative_int,
        default=10,
        metavar="N",
        help="merge two subwords only if they occur next to each other this often (default: %(default)s)",
    )
    parser.add_argument(
        "--digits",
        choices=DIGITS,
        default=DIGITS[0],
        help="ascii: each of the digits 0 to 9 is a subword of its own (default). reference: as in the "
        "published tokenizers, where some bytes of other scripts count as digits and words of 100 bytes "
        "are unknown",
    )
    parser.add_argument(
        "--held-out",
        type=Path,
        metavar="FILE",
        help=f"text to measure the tokenizer on (default: the last {HELD_OUT_LINES} lines of the input)",
    )


def run(args: argparse.Namespace) -> None:
    """Run ``tokenizer`` and print how well the vocabulary fits the text."""
    skipped = Skipped()
    skips = args.on_error == "skip"
    inputs = find_input_files(args.input, args.format, skipped if skips else None)
    files = inputs.files
    held_out = find_input_files([args.held_out], args.format).files if args.held_out else None
    print(*inputs.lines(), sep="\n", flush=True)

    def read(some: list[TextFile], title: str, found: Skipped, shown: bool = True) -> Iterator[str]:
        with progress_bar(sum(file.size for file in some), "B", title, leave=False, shown=shown) as bar:
            yield from read_paragraphs(some, args.json_key, found if skips else None, bar.update)

    args.output.parent.mkdir(parents=True, exist_ok=True)
    # On a terminal the trainer shows bars of its own.
    text = read(files, "training", skipped, shown=not os.isatty(2))
    tokenizer = train(text, args.vocab_size, args.min_frequency, args.digits)
    with atomic_write(args.output, "w") as file:
        file.write(tokenizer.to_str(pretty=True))
    text_tokenizer = read_as_text(tokenizer, SPECIAL_TOKENS)
    counts = count_subwords(text_tokenizer, read(files, "counting subwords", Skipped()))[
        len(SPECIAL_TOKENS) :
    ]
    lines = read(held_out or files, "measuring", Skipped())
    if not held_out:
        lines = iter(deque(lines, HELD_OUT_LINES))
    print(f"{args.output}: {tokenizer.get_vocab_size():,} subwords")
    print(f"  F95 {f95(counts):,} ({np.count_nonzero(counts):,} of {len(counts):,} subwords occur)")
    fit = measure_fit(text_tokenizer, lines)
    where = args.held_out or f"last {HELD_OUT_LINES} lines of the training text"
    print(f"  {where}: unknown {fit.unknown:.4%}, subwords per word {fit.subwords_per_word:.3f}")
    for sentence in SAMPLE_SENTENCES:
        print("  " + " ".join(tokenizer.encode(sentence).tokens))
    for line in skipped.lines():
        print(line)


def train(text: Iterable[str], vocab_size: int, min_frequency: int, digits: str = DIGITS[0]) -> Tokenizer:
    """Train a byte-level WordPiece tokenizer.

    Args:
        text: Paragraphs of the training text.
        vocab_size: Number of subwords, special tokens included.
        min_frequency: Number of times that two subwords must occur next to each other to be merged.
        digits: What a digit is; one of ``DIGITS``.

    Raises:
        UserError: The vocabulary is too small for the bytes and the special tokens, or the text is too short
            for the vocabulary.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    smallest = len(alphabet) + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise UserError(
            f"--vocab-size: {vocab_size} is too small, since bytes and special tokens alone take {smallest}; "
            "use a larger one"
        )
    longest = 100 if digits == "reference" else LONGEST_WORD
    tokenizer = Tokenizer(
        models.WordPiece(
            unk_token=SPECIAL_TOKENS[UNK], continuing_subword_prefix="", max_input_chars_per_word=longest
        )
    )
    split: pre_tokenizers.PreTokenizer = pre_tokenizers.Digits(individual_digits=True)
    if digits != "reference":
        # ``Digits`` takes the letters ²³¹¼½¾ for digits, by which ByteLevel writes bytes of other scripts.
        # Longer words are cut, because the model would not know them.
        split = pre_tokenizers.Split(Regex(f"[0-9]|[^0-9]{{1,{LONGEST_WORD}}}"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.ByteLevel(add_prefix_space=True), split]
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
    tokenizer.train_from_iterator(in_batches(cut_texts(map(without_markers, text))), trainer)
    found = tokenizer.get_vocab_size()
    if found < vocab_size:
        raise UserError(
            f"--input: the text yields only {found} of the {vocab_size} subwords of --vocab-size; use more "
            f"text, --vocab-size {found}, or a smaller --min-frequency"
        )
    return accept_special_tokens(tokenizer)


def count_subwords(tokenizer: Tokenizer, lines: Iterable[str]) -> NDArray[np.int64]:
    """Return the number of occurrences of each subword in the text, int64 ``[vocabulary]``."""
    counts = np.zeros(tokenizer.get_vocab_size(), dtype=np.int64)
    for batch in in_batches(cut_texts(map(without_markers, lines))):
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            np.add.at(counts, encoding.ids, 1)
    return counts


def f95(counts: NDArray[np.int64]) -> int:
    """Return the largest f such that 95 % of the subwords that occur do so at least f times.

    This is F95 % of Gowda and May (2020). It is 0 if no subword occurs.

    Args:
        counts: Number of occurrences of each subword, int64 ``[vocabulary]``.
    """
    counts = counts[counts > 0]
    needed = -(-len(counts) * 95 // 100)
    return int(np.sort(counts)[::-1][needed - 1]) if needed else 0


@dataclass(frozen=True)
class VocabularyFit:
    """Measures of how well a vocabulary fits a text."""

    unknown: float
    """Share of ``[UNK]`` among the subwords."""
    subwords_per_word: float
    """Average number of subwords of a word."""


def measure_fit(tokenizer: Tokenizer, lines: Iterable[str]) -> VocabularyFit:
    """Measure how well the vocabulary of a tokenizer fits some text."""
    words = subwords = unknown = 0
    for batch in in_batches(cut_texts(map(without_markers, lines))):
        words += sum(len(line.split()) for line in batch)
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            subwords += len(encoding.ids)
            unknown += encoding.ids.count(UNK)
    return VocabularyFit(unknown / max(subwords, 1), subwords / max(words, 1))
