"""What a token dataset holds, shown to people."""

import argparse
import random
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data_tools.copying import read_spans
from data_tools.histogram import Lengths, as_text, binned, draw, even_steps, powers_of_two
from elc_bert.data.format.indexed import IndexedDataset, with_suffix
from elc_bert.data.format.manifest import Manifest
from elc_bert.data.format.segments import POLICY, SegmentIndex, open_segments
from elc_bert.data.format.vocabulary import UNK, check_tokenizer, load_tokenizer
from elc_bert.utils.errors import UserError
from elc_bert.utils.files import atomic_write

if TYPE_CHECKING:
    from tokenizers import Tokenizer

HELP = "show what a dataset holds: counts, lengths, segments, and documents as text"

EPILOG = """\
Counts, where the dataset comes from, how long its documents and sentences are, and how full its segments
are. With the tokenizer it was built with also the most frequent subwords, and some documents as text,
drawn at random. It reads the tables of lengths but only a few of the tokens, and takes little memory.

examples:
  python -m data_tools inspect corpus/train
  python -m data_tools inspect corpus/train --tokenizer tokenizer.json --documents 5 --seed 1
  python -m data_tools inspect corpus/train --picture lengths.png
  python -m data_tools inspect corpus/train --tokenizer tokenizer.json --segment 17 4033 --length 128
"""

WIDTH = 76
INPUTS_SHOWN = 3
WORDS_SHOWN = 60
DOCUMENTS_SHOWN = 2
SUBWORDS_SHOWN = 12
SAMPLES, SAMPLE_TOKENS = 256, 1 << 14
PERCENTS = {"1 %": 1, "10 %": 10, "median": 50, "90 %": 90, "99 %": 99}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `inspect`."""
    parser.add_argument("prefix", type=Path, metavar="PREFIX", help="the dataset, without .bin")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="show documents as text with it")
    parser.add_argument(
        "--documents",
        type=int,
        metavar="N",
        help=f"how many documents to show, with --tokenizer (default: {DOCUMENTS_SHOWN})",
    )
    parser.add_argument(
        "--full", action="store_true", help=f"show them whole, not only their first {WORDS_SHOWN} words or so"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="another number shows other documents (default: 0)"
    )
    parser.add_argument(
        "--segment",
        type=int,
        nargs="+",
        metavar="N",
        help="show only these segments as text, with --tokenizer and --length",
    )
    parser.add_argument("--length", type=int, metavar="T", help="sequence length of the segments")
    parser.add_argument("--policy", default=POLICY, help=f"of the segments (default: {POLICY})")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="also draw the lengths, as PNG")


def run(args: argparse.Namespace) -> None:
    """Runs `inspect`."""
    if args.tokenizer is None and (args.documents is not None or args.full):
        raise UserError("--documents and --full need --tokenizer, to turn tokens into text")
    if args.documents is not None and args.documents < 0:
        raise UserError(f"--documents is {args.documents}; use 0 or more")
    if args.segment is not None and (args.tokenizer is None or args.length is None):
        raise UserError(
            "--segment needs --tokenizer, to turn tokens into text, and --length, of the segments"
        )
    dataset = IndexedDataset(args.prefix)
    manifest = dataset.manifest
    if args.tokenizer is not None:
        check_tokenizer(dataset, args.tokenizer)
    if args.segment is not None:
        segments = open_segments(dataset, args.length, args.policy)
        tokenizer = load_tokenizer(args.tokenizer)
        for number in args.segment:
            show(segment_text(dataset, tokenizer, segments, number))
        return
    documents, sentences = count_lengths(dataset)
    print(args.prefix)
    show(facts(dataset, manifest))
    show(segments_table(manifest))
    show(quantiles_table(documents, sentences))
    show(as_text("documents by their tokens", binned(documents, powers_of_two(documents))))
    show(as_text("sentences by their tokens", binned(sentences, even_steps(sentences))))
    if args.tokenizer is not None:
        tokenizer = load_tokenizer(args.tokenizer)
        show(frequent_subwords(dataset, tokenizer))
        wanted = DOCUMENTS_SHOWN if args.documents is None else args.documents
        number_of = len(dataset.documents) - 1
        for document in random.Random(args.seed).sample(range(number_of), min(wanted, number_of)):
            show(document_text(dataset, tokenizer, document, args.full))
    if args.picture is not None:
        save_picture(args.picture, documents, sentences)
        print(f"\npicture of the lengths: {args.picture}")


def show(lines: list[str]) -> None:
    """Prints a paragraph, indented."""
    print("\n" + textwrap.indent("\n".join(lines), "  "))


def count_lengths(dataset: IndexedDataset) -> tuple[Lengths, Lengths]:
    """Lengths in tokens of all documents and of all sentences.

    Raises:
        UserError: the tables are damaged.
    """
    documents, sentences = Lengths(), Lengths()
    tokens = document_start = 0
    # Of what is done in a second nobody needs to see how far it is.
    with tqdm(
        total=len(dataset.lengths), unit="sentence", unit_scale=True, disable=None, delay=1, leave=False
    ) as progress:
        for _, lengths, document_ends in read_spans(dataset):
            places = tokens + np.concatenate([[0], np.cumsum(lengths)])
            ends = places[document_ends]
            documents.add(np.diff(ends, prepend=document_start))
            sentences.add(lengths)
            tokens, document_start = int(places[-1]), int(ends[-1]) if len(ends) else document_start
            progress.update(len(lengths))
    return documents, sentences


def facts(dataset: IndexedDataset, manifest: Manifest) -> list[str]:
    """What the manifest and the files say."""
    tokens = dataset.tokens
    numbers = {
        "documents": manifest.documents,
        "sentences": manifest.sequences,
        "tokens": manifest.tokens,
        "words": manifest.words,
        "vocabulary": manifest.vocab_size,
        f"bytes of tokens ({tokens.dtype.name})": tokens.nbytes,
        "bytes of index": with_suffix(dataset.prefix, ".idx").stat().st_size,
    }
    lines = [f"{name:<24}{'unknown' if n is None else f'{n:,}':>20}" for name, n in numbers.items()]
    if manifest.words:
        lines.insert(4, f"{'subwords per word':<24}{manifest.tokens / manifest.words:>20.3f}")
    lines += [f"{'tokenizer':<24}{(manifest.tokenizer_sha256 or 'unknown')[:12]:>20}"]
    if manifest.versions:
        versions = ", ".join(f"{name} {at}" for name, at in manifest.versions.items())
        lines += ["", *textwrap.wrap(f"built with {versions}", WIDTH)]
    if manifest.inputs:
        size = sum(file.bytes for file in manifest.inputs)
        lines += ["", f"built from {len(manifest.inputs):,} files, {size:,} bytes"]
        lines += [f"  {file.path}  {file.bytes:,}" for file in manifest.inputs[:INPUTS_SHOWN]]
        if len(manifest.inputs) > INPUTS_SHOWN:
            lines += ["  ..."]
    lines += [f"left out: {count:,} x {reason}" for reason, count in manifest.skipped.items()]
    return lines


def segments_table(manifest: Manifest) -> list[str]:
    """The segment indexes, and how much of their T - 2 places hold a token."""
    if not manifest.segments:
        return ["no segments; add some with: python -m data_tools segments"]
    lines = [f"{'segments of':<14}{'policy':<12}{'count':>16}{'tokens':>20}{'filled':>9}"]
    for each in manifest.segments:
        filled = each.tokens / (each.count * (each.sequence_length - 2)) if each.count else 0
        lines += [
            f"{each.sequence_length:<14,}{each.policy:<12}{each.count:>16,}{each.tokens:>20,}{filled:>9.1%}"
        ]
    return lines


def quantiles_table(documents: Lengths, sentences: Lengths) -> list[str]:
    """How long documents and sentences are."""
    names = ["shortest", *PERCENTS, "longest", "mean"]
    lines = ["tokens in a" + "".join(f"{name:>15}" for name in ("document", "sentence"))]
    columns = []
    for lengths in (documents, sentences):
        inner = lengths.quantiles(list(PERCENTS.values()))
        whole = [int(lengths.values[0]), *inner, int(lengths.values[-1])]
        columns += [[*(f"{each:,}" for each in whole), f"{lengths.mean():,.1f}"]]
    return lines + [
        f"{name:<11}{one:>15}{other:>15}" for name, one, other in zip(names, *columns, strict=True)
    ]


def frequent_subwords(dataset: IndexedDataset, tokenizer: "Tokenizer") -> list[str]:
    """The most frequent subwords, as the vocabulary spells them, and the share of unknown ones.

    A large dataset is looked at in places spread evenly over it.
    """
    size = min(SAMPLE_TOKENS, dataset.num_tokens)
    starts = np.linspace(0, dataset.num_tokens - size, min(SAMPLES, -(-dataset.num_tokens // size)))
    ids = _ids(dataset, tokenizer, starts.astype(np.int64)[:, None] + np.arange(size))
    counts = np.bincount(ids.ravel(), minlength=tokenizer.get_vocab_size())
    most = np.argsort(-counts, kind="stable")[:SUBWORDS_SHOWN].tolist()
    cells = [f"{tokenizer.id_to_token(each):<15.15}{counts[each] / ids.size:>7.2%}" for each in most]
    rows = [cells[start : start + 3] for start in range(0, len(cells), 3)]
    return [
        f"most frequent subwords among {ids.size:,} tokens",
        *("   ".join(row) for row in rows),
        f"{'unknown':<15}{counts[UNK] / ids.size:>7.4%}",
    ]


def document_text(dataset: IndexedDataset, tokenizer: "Tokenizer", document: int, whole: bool) -> list[str]:
    """A document's title and its text, a line for each paragraph, wrapped."""
    first, last = dataset.documents_between(document, document + 1).tolist()
    tokens = int(dataset.lengths[first:last].sum(dtype=np.int64))
    lines = [f"document {document:,}: sentences {last - first:,}, tokens {tokens:,}"]
    return lines + _paragraphs(" ".join(_sentences(dataset, tokenizer, first, last, whole)))


def segment_text(
    dataset: IndexedDataset, tokenizer: "Tokenizer", segments: SegmentIndex, number: int
) -> list[str]:
    """A segment's title and its text, as `document_text` shows a document.

    Raises:
        UserError: there is no segment of this number.
    """
    if not 0 <= number < len(segments):
        raise UserError(f"--segment {number}: {segments.path} holds 0 to {len(segments) - 1}")
    offsets, lengths = segments(np.array([number]))
    begin, length = int(offsets[0]), int(lengths[0])
    lines = [f"segment {number:,}: tokens {length:,}, from {begin:,} on"]
    return lines + _paragraphs(_text(dataset, tokenizer, begin, length))


def _paragraphs(text: str) -> list[str]:
    return [
        line
        for paragraph in text.replace("[PAR]", "[PAR]\n").splitlines()
        for line in textwrap.wrap(paragraph.strip(), WIDTH)
    ]


def _sentences(
    dataset: IndexedDataset, tokenizer: "Tokenizer", first: int, last: int, whole: bool
) -> Iterator[str]:
    """The text of some sentences; unless `whole`, of the first `WORDS_SHOWN` words or so."""
    words = 0
    for sentence in range(first, last):
        offsets, lengths = dataset.spans(sentence, sentence + 1)
        begin, length = int(offsets[0]), int(lengths[0])
        shown = length if whole else min(length, 4 * WORDS_SHOWN)
        text = _text(dataset, tokenizer, begin, shown)
        words += len(text.split())
        yield text
        if not whole and words >= WORDS_SHOWN and sentence + 1 < last:
            yield "..."
            return


def _text(dataset: IndexedDataset, tokenizer: "Tokenizer", begin: int, length: int) -> str:
    """Some tokens of the stream as text."""
    ids = _ids(dataset, tokenizer, np.arange(begin, begin + length))
    text = tokenizer.decode(ids.tolist(), skip_special_tokens=False).strip()
    # What a web page brought along must not steer the terminal.
    return "".join(each if each.isprintable() else "�" for each in text)


def _ids(dataset: IndexedDataset, tokenizer: "Tokenizer", places: NDArray[np.int64]) -> NDArray[np.integer]:
    """Tokens at some places of the stream.

    Raises:
        UserError: the tokenizer has no such subword.
    """
    ids = dataset.gather(places)
    size = tokenizer.get_vocab_size()
    if ids.size and ids.max() >= size:
        raise UserError(
            f"{dataset.prefix}: holds the token id {ids.max()}, but the tokenizer has only {size} subwords; "
            "give the tokenizer of the dataset"
        )
    return ids


def save_picture(path: Path, documents: Lengths, sentences: Lengths) -> None:
    """Draws the lengths of documents and sentences as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw(left, documents, f"{documents.counts.sum():,} documents", is_logarithmic=True)
    draw(right, sentences, f"{sentences.counts.sum():,} sentences", is_logarithmic=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)
