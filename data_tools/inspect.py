"""The command ``inspect``: show the contents of a token dataset."""

import argparse
import random
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_tools.dataset_stream import read_spans
from data_tools.histogram import (
    LengthCounts,
    doubling_bin_starts,
    draw_histogram,
    linear_bin_starts,
    make_bins,
    text_histogram,
)
from data_tools.options import add_dataset, add_policy, add_tokenizer
from data_tools.progress import progress_bar
from elc_bert.data.format.coverage import unread_share, unread_warning
from elc_bert.data.format.indexed import IndexedDataset, with_suffix
from elc_bert.data.format.manifest import Manifest
from elc_bert.data.format.segments import SegmentIndex, open_segments, with_unread
from elc_bert.data.format.vocabulary import USUAL_NAMES, check_tokenizer, load_tokenizer
from elc_bert.utils.errors import UserError
from elc_bert.utils.files import atomic_write
from elc_bert.utils.options import non_negative_int, positive_int

if TYPE_CHECKING:
    from tokenizers import Tokenizer

HELP = "show the contents of a dataset: counts, lengths, segments, and documents as text"

EPILOG = """\
Prints the counts and the origin of a dataset, the lengths of its documents and sentences, and how full its
segments are. With the tokenizer that the dataset was built with, also prints the most frequent subwords and
some random documents as text. The command reads few of the tokens and needs little memory.

examples:
  python -m data_tools inspect corpus/train
  python -m data_tools inspect corpus/train --tokenizer tokenizer.json --documents 5 --seed 1
  python -m data_tools inspect corpus/train --picture lengths.png
  python -m data_tools inspect corpus/train --tokenizer tokenizer.json --segment 17 4033 --length 128
"""

WIDTH = 76
"""Width of wrapped text in characters."""
INPUTS_SHOWN = 3
"""Number of input files to list."""
WORDS_SHOWN = 60
"""Approximate number of words to show of a document."""
DOCUMENTS_SHOWN = 2
"""Default number of documents to show."""
SUBWORDS_SHOWN = 12
"""Number of frequent subwords to list."""
SAMPLES, SAMPLE_TOKENS = 256, 1 << 14
"""Number and length of the samples of tokens in which subwords are counted."""
PERCENTS = {"1 %": 1, "10 %": 10, "median": 50, "90 %": 90, "99 %": 99}
"""Quantiles to show, by name."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``inspect``."""
    add_dataset(parser)
    add_tokenizer(parser, "tokenizer.json of the dataset, to show subwords and documents as text")
    parser.add_argument(
        "--documents",
        type=non_negative_int,
        metavar="N",
        help=f"number of random documents to show; needs --tokenizer (default: {DOCUMENTS_SHOWN})",
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help=f"show whole documents instead of about the first {WORDS_SHOWN} words",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed for choosing the documents (default: %(default)s)",
    )
    parser.add_argument(
        "--segment",
        type=non_negative_int,
        nargs="+",
        metavar="N",
        help="show only these segments, counted from 0, as text; needs --tokenizer and --length",
    )
    parser.add_argument(
        "--length", type=positive_int, metavar="T", help="sequence length of the segments to show"
    )
    add_policy(parser, "policy of the segments to show")
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", help="also draw histograms of the lengths, as a PNG file"
    )


def run(args: argparse.Namespace) -> None:
    """Run ``inspect`` and print what it found."""
    if args.tokenizer is None and (args.documents is not None or args.full):
        raise UserError("--documents and --full: need a tokenizer to decode the tokens; add --tokenizer")
    if args.segment is not None and (args.tokenizer is None or args.length is None):
        raise UserError("--segment: needs a tokenizer and a sequence length; add --tokenizer and --length")
    dataset = IndexedDataset(args.prefix)
    manifest = dataset.manifest
    if args.tokenizer is not None:
        check_tokenizer(dataset, args.tokenizer)
    if args.segment is not None:
        segments = open_segments(dataset, args.length, args.policy)
        tokenizer = load_tokenizer(args.tokenizer, None)
        for number in args.segment:
            print_indented(segment_text(dataset, tokenizer, segments, number))
        return
    documents, sentences = count_lengths(dataset)
    print(args.prefix)
    print_indented(overview(dataset, manifest))
    print_indented(segments_table(dataset, manifest))
    print_indented(quantiles_table(documents, sentences))
    print_indented(
        text_histogram("documents by their tokens", make_bins(documents, doubling_bin_starts(documents)))
    )
    print_indented(
        text_histogram("sentences by their tokens", make_bins(sentences, linear_bin_starts(sentences)))
    )
    if args.tokenizer is not None:
        tokenizer = load_tokenizer(args.tokenizer, None)
        print_indented(frequent_subwords(dataset, tokenizer))
        count = dataset.num_documents
        shown = min(count, DOCUMENTS_SHOWN if args.documents is None else args.documents)
        for document in random.Random(args.seed).sample(range(count), shown):
            print_indented(document_text(dataset, tokenizer, document, args.full))
    if args.picture is not None:
        save_picture(args.picture, documents, sentences)
        print(f"\npicture of the lengths: {args.picture}")


def print_indented(lines: list[str]) -> None:
    """Print some lines as an indented paragraph."""
    print("\n" + textwrap.indent("\n".join(lines), "  "))


def count_lengths(dataset: IndexedDataset) -> tuple[LengthCounts, LengthCounts]:
    """Count the lengths, in tokens, of all documents and of all sentences.

    Raises:
        UserError: The index is damaged.
    """
    documents, sentences = LengthCounts(), LengthCounts()
    tokens = document_start = 0
    # No bar is shown for datasets that take less than a second.
    with progress_bar(
        dataset.num_sentences, "sentence", dataset.prefix.name, leave=False, delay=1
    ) as progress:
        for _, lengths, document_ends in read_spans(dataset):
            bounds = tokens + np.concatenate([[0], np.cumsum(lengths)])
            ends = bounds[document_ends]
            documents.add(np.diff(ends, prepend=document_start))
            sentences.add(lengths)
            tokens, document_start = int(bounds[-1]), int(ends[-1]) if len(ends) else document_start
            progress.update(len(lengths))
    return documents, sentences


def overview(dataset: IndexedDataset, manifest: Manifest) -> list[str]:
    """Return a table of the counts and the origin of a dataset."""
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
    if manifest.unknown is not None:
        lines.append(f"{'unknown':<24}{manifest.unknown / max(manifest.tokens, 1):>20.4%}")
    lines += [f"{'tokenizer':<24}{(manifest.tokenizer_sha256 or 'unknown')[:12]:>20}"]
    if manifest.versions:
        versions = ", ".join(f"{name} {at}" for name, at in manifest.versions.items())
        lines += ["", *textwrap.wrap(f"built with {versions}", WIDTH)]
    if inputs := manifest.read_inputs(dataset.prefix):
        size = sum(file.bytes for file in inputs)
        lines += ["", f"built from {len(inputs):,} files, {size:,} bytes"]
        lines += [f"  {file.path}  {file.bytes:,}" for file in inputs[:INPUTS_SHOWN]]
        if len(inputs) > INPUTS_SHOWN:
            lines += ["  ..."]
    lines += [f"skipped: {count:,} x {reason}" for reason, count in manifest.skipped.items()]
    return lines


def segments_table(dataset: IndexedDataset, manifest: Manifest) -> list[str]:
    """Return a table of the segment indexes.

    It shows the share of their T - 2 positions that hold a token, and of the tokens that are in none of them.
    """
    if not manifest.segments:
        return ["no segment indexes; add some with: python -m data_tools segments PREFIX --lengths T"]
    lines = [f"{'segments of':<12}{'policy':<12}{'count':>16}{'tokens':>20}{'filled':>9}{'unread':>9}"]
    warnings: list[str] = []
    for entry in manifest.segments:
        each = with_unread(dataset, entry)
        unread = unread_share(each, dataset.num_tokens)
        if warning := unread_warning(dataset.prefix, each, dataset.num_tokens):
            warnings += ["", *textwrap.wrap(warning, WIDTH)]
        filled = each.tokens / (each.count * (each.sequence_length - 2)) if each.count else 0
        lines += [
            f"{each.sequence_length:<12,}{each.policy:<12}{each.count:>16,}{each.tokens:>20,}{filled:>9.1%}"
            f"{unread:>9.2%}"
        ]
    return lines + warnings


def quantiles_table(documents: LengthCounts, sentences: LengthCounts) -> list[str]:
    """Return a table of the quantiles of the lengths of documents and sentences."""
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
    """Return a table of the most frequent subwords, as the vocabulary spells them, and of unknown ones.

    In a large dataset, they are counted in samples that are spread evenly over it.
    """
    size = min(SAMPLE_TOKENS, dataset.num_tokens)
    starts = np.linspace(0, dataset.num_tokens - size, min(SAMPLES, -(-dataset.num_tokens // size)))
    ids = _read_ids(dataset, tokenizer, starts.astype(np.int64)[:, None] + np.arange(size))
    counts = np.bincount(ids.ravel(), minlength=tokenizer.get_vocab_size())
    most = np.argsort(-counts, kind="stable")[:SUBWORDS_SHOWN].tolist()
    cells = [f"{tokenizer.id_to_token(each):<15.15}{counts[each] / ids.size:>7.2%}" for each in most]
    rows = [cells[start : start + 3] for start in range(0, len(cells), 3)]
    lines = [f"most frequent subwords among {ids.size:,} tokens", *("   ".join(row) for row in rows)]
    unknown = tokenizer.token_to_id((dataset.manifest.special_tokens or {}).get("unk") or USUAL_NAMES.unk)
    return lines if unknown is None else [*lines, f"{'unknown':<15}{counts[unknown] / ids.size:>7.4%}"]


def document_text(dataset: IndexedDataset, tokenizer: "Tokenizer", document: int, whole: bool) -> list[str]:
    """Return the title and the wrapped text of a document, beginning a new line for each paragraph.

    Args:
        dataset: Dataset that holds the document.
        tokenizer: Tokenizer that the dataset was built with.
        document: Index of the document.
        whole: Return the whole text instead of about the first ``WORDS_SHOWN`` words.
    """
    first, last = dataset.documents_between(document, document + 1).tolist()
    tokens = int(dataset.lengths[first:last].sum(dtype=np.int64))
    lines = [f"document {document:,}: sentences {last - first:,}, tokens {tokens:,}"]
    return lines + _wrap_paragraphs(dataset, " ".join(_sentences(dataset, tokenizer, first, last, whole)))


def segment_text(
    dataset: IndexedDataset, tokenizer: "Tokenizer", segments: SegmentIndex, number: int
) -> list[str]:
    """Return the title and the wrapped text of a segment, in the form of ``document_text``.

    Raises:
        UserError: The index of the segment is out of range.
    """
    if not 0 <= number < len(segments):
        raise UserError(
            f"--segment {number}: out of range, {segments.path} holds segments 0 to {len(segments) - 1}"
        )
    offsets, lengths = segments(np.array([number]))
    begin, length = int(offsets[0]), int(lengths[0])
    lines = [f"segment {number:,}: {length:,} tokens from position {begin:,}"]
    return lines + _wrap_paragraphs(dataset, _decode(dataset, tokenizer, begin, length))


def _wrap_paragraphs(dataset: IndexedDataset, text: str) -> list[str]:
    end = (dataset.manifest.special_tokens or {}).get("par", USUAL_NAMES.par)
    return [
        line
        for paragraph in (text.replace(end, f"{end}\n") if end else text).splitlines()
        for line in textwrap.wrap(paragraph.strip(), WIDTH)
    ]


def _sentences(
    dataset: IndexedDataset, tokenizer: "Tokenizer", first: int, last: int, whole: bool
) -> Iterator[str]:
    """Yield the text of some sentences, up to about ``WORDS_SHOWN`` words unless ``whole`` is true."""
    words = 0
    for sentence in range(first, last):
        offsets, lengths = dataset.spans(sentence, sentence + 1)
        begin, length = int(offsets[0]), int(lengths[0])
        shown = length if whole else min(length, 4 * WORDS_SHOWN)
        text = _decode(dataset, tokenizer, begin, shown)
        words += len(text.split())
        yield text
        if not whole and words >= WORDS_SHOWN and sentence + 1 < last:
            yield "..."
            return


def _decode(dataset: IndexedDataset, tokenizer: "Tokenizer", begin: int, length: int) -> str:
    """Return the text of some tokens of the stream."""
    ids = _read_ids(dataset, tokenizer, np.arange(begin, begin + length))
    text = tokenizer.decode(ids.tolist(), skip_special_tokens=False).strip()
    # Text from the web may contain control characters, which must not reach the terminal.
    return "".join(each if each.isprintable() else "�" for each in text)


def _read_ids(
    dataset: IndexedDataset, tokenizer: "Tokenizer", positions: NDArray[np.int64]
) -> NDArray[np.integer]:
    """Return the tokens at some positions of the stream.

    Raises:
        UserError: A token is not in the vocabulary of the tokenizer.
    """
    ids = dataset.gather(positions)
    size = tokenizer.get_vocab_size()
    if ids.size and ids.max() >= size:
        raise UserError(
            f"{dataset.prefix}: holds the token id {ids.max()}, but the tokenizer has only {size} subwords; "
            "use the tokenizer that the dataset was built with"
        )
    return ids


def save_picture(path: Path, documents: LengthCounts, sentences: LengthCounts) -> None:
    """Draw histograms of the lengths of documents and sentences, and save them as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_histogram(left, documents, f"{documents.counts.sum():,} documents", is_logarithmic=True)
    draw_histogram(right, sentences, f"{sentences.counts.sum():,} sentences", is_logarithmic=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)
