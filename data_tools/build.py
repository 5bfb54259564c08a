"""Text to token dataset."""

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_tools.encoding import encode_chunks, read_chunks, split_paragraph, whole_line
from data_tools.text import file_bytes, input_files
from elc_bert import __version__
from elc_bert.data.indexed import IndexedDataset, with_suffix
from elc_bert.data.manifest import Manifest
from elc_bert.data.segments import MIN_SEQUENCE_LENGTH, build_segments
from elc_bert.data.vocabulary import load_tokenizer, tokenizer_sha256
from elc_bert.data.writer import IndexedDatasetWriter, token_dtype
from elc_bert.errors import UserError
from elc_bert.machine import available_cores

HELP = "encode text as a token dataset, with its segments"

EPILOG = """\
text:
  Plain UTF-8. A line is a paragraph, an empty line ends a document, and each file starts a new one.
  A directory stands for all files below it, sorted by name.

written:
  PREFIX.bin, PREFIX.idx           the tokens, in the format of Megatron-LM and GPT-NeoX
  PREFIX.segments-T.npy            where the samples of sequence length T lie in them
  PREFIX.json                      counts, checksums, hash of the tokenizer

examples:
  python -m data_tools build --input text/ --tokenizer tokenizer.json --output corpus/train
  python -m data_tools build --input a.txt b.txt --tokenizer tokenizer.json --output corpus/train \\
      --lengths 128 512

  with one sentence on each line and [PAR] at the ends of paragraphs already:
  python -m data_tools build --input segmented.txt --sentences lines --tokenizer tokenizer.json \\
      --output corpus/train
"""

SENTENCES = {"split": split_paragraph, "lines": whole_line}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `build`."""
    parser.add_argument("--input", nargs="+", required=True, metavar="PATH", help="text files or directories")
    parser.add_argument("--tokenizer", required=True, type=Path, metavar="FILE", help="the tokenizer.json")
    parser.add_argument("--output", required=True, type=Path, metavar="PREFIX", help="dataset to write")
    parser.add_argument(
        "--lengths",
        nargs="+",
        type=int,
        default=[128, 512],
        metavar="T",
        help="sequence lengths to cut segments for (default: 128 512)",
    )
    parser.add_argument(
        "--sentences",
        choices=SENTENCES,
        default="split",
        help="split: find the sentences of each line (default); lines: every line is one",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=available_cores(),
        metavar="N",
        help="processes (default: all cores, %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset of the same name")


def run(args: argparse.Namespace) -> None:
    """Runs `build` and prints a summary."""
    manifest = build_dataset(
        args.input,
        args.tokenizer,
        args.output,
        lengths=args.lengths,
        sentences=args.sentences,
        workers=args.workers,
        overwrite=args.overwrite,
    )
    print(summary(args.output, manifest))


def build_dataset(
    inputs: Iterable[str | Path],
    tokenizer_path: Path,
    prefix: Path,
    *,
    lengths: Iterable[int] = (),
    sentences: str = "split",
    workers: int = 1,
    overwrite: bool = False,
) -> Manifest:
    """Encodes text as the dataset `prefix`; its files appear only when all is well.

    Args:
        inputs: text files or directories.
        tokenizer_path: the tokenizer's JSON file.
        prefix: path of the dataset without `.bin`; its directory is created.
        lengths: sequence lengths to cut segments for.
        sentences: a key of `SENTENCES`.
        workers: processes that encode.
        overwrite: replace a dataset of the same name.

    Raises:
        UserError: the input is missing, empty or not UTF-8, the tokenizer is none, or the dataset is
            there already.
    """
    if workers < 1:
        raise UserError(f"--workers is {workers}; use at least 1")
    if too_short := [length for length in lengths if length < MIN_SEQUENCE_LENGTH]:
        raise UserError(f"sequence length {too_short[0]} is too short; use {MIN_SEQUENCE_LENGTH} or more")
    files = input_files(inputs)
    vocab_size = load_tokenizer(tokenizer_path).get_vocab_size()
    for suffix in (".bin", ".idx", ".json"):
        path = with_suffix(prefix, suffix)
        if path.exists() and not overwrite:
            raise UserError(f"{path}: exists already; choose another --output, or add --overwrite")
    prefix.parent.mkdir(parents=True, exist_ok=True)
    words, written = _encode(files, tokenizer_path, prefix, SENTENCES[sentences], vocab_size, workers)
    Manifest(
        sequences=written.sequences,
        documents=written.documents,
        tokens=written.tokens,
        words=words,
        vocab_size=vocab_size,
        tokenizer_sha256=tokenizer_sha256(tokenizer_path),
        bin_sha256=written.bin_sha256,
        idx_sha256=written.idx_sha256,
        versions={"elc-bert": __version__},
    ).save(prefix)
    dataset = IndexedDataset(prefix)
    for length in lengths:
        build_segments(dataset, length)
    return dataset.manifest


def _encode(
    files: list[Path], tokenizer_path: Path, prefix: Path, sentences_of, vocab_size: int, workers: int
):
    """Writes `.bin` and `.idx`; returns the number of words, and counts and checksums."""
    dtype = token_dtype(vocab_size)
    words = tokens = 0
    with (
        tqdm(total=file_bytes(files), unit="B", unit_scale=True, desc=prefix.name, disable=None) as progress,
        IndexedDatasetWriter(prefix, dtype) as writer,
    ):
        for encoded in encode_chunks(read_chunks(files), tokenizer_path, sentences_of, dtype, workers):
            begin = first_token = 0
            token_ends = np.concatenate([[0], np.cumsum(encoded.lengths)])
            for end in encoded.document_ends:
                writer.add_sentences(
                    encoded.tokens[first_token : token_ends[end]], encoded.lengths[begin:end]
                )
                writer.end_document()
                begin, first_token = end, token_ends[end]
            writer.add_sentences(encoded.tokens[first_token:], encoded.lengths[begin:])
            words += encoded.words
            tokens += len(encoded.tokens)
            progress.update(encoded.size)
            elapsed = progress.format_dict["elapsed"] or 1
            progress.set_postfix_str(f"{tokens / elapsed / 1e6:.2f}M tokens/s", refresh=False)
        if tokens == 0:
            raise UserError(f"{files[0]}: the input holds no text; nothing was written")
    return words, writer.written


def summary(prefix: Path, manifest: Manifest) -> str:
    """A short table of what a dataset holds."""
    rows = [
        ("documents", f"{manifest.documents:,}"),
        ("sentences", f"{manifest.sequences:,}"),
        ("tokens", f"{manifest.tokens:,}"),
    ]
    if manifest.words:
        rows += [
            ("words", f"{manifest.words:,}"),
            ("subwords per word", f"{manifest.tokens / manifest.words:.3f}"),
        ]
    rows.append(("bytes of tokens", f"{with_suffix(prefix, '.bin').stat().st_size:,}"))
    rows += [(f"segments of {entry.sequence_length}", f"{entry.count:,}") for entry in manifest.segments]
    return "\n".join([str(prefix), *(f"  {name:<20}{value:>16}" for name, value in rows)])
