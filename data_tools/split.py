"""A token dataset as two: one to train on, one to measure on."""

import argparse
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_tools.copying import (
    TOKENS_AT_ONCE,
    Part,
    add_lengths,
    check_outputs,
    finish,
    progress_bar,
    read_parts,
)
from data_tools.output import new_dataset, summary
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.manifest import Manifest
from elc_bert.data.format.segments import POLICY, check_sequence_length
from elc_bert.data.format.writer import IndexedDatasetWriter, Written
from elc_bert.utils.errors import UserError

HELP = "divide the documents of a dataset into one to train on and one to measure on"

EPILOG = """\
What a document holds decides where it goes: a hash of its tokens and of --seed, and nothing else. So the
same document always falls on the same side, whatever stands beside it and in whatever order: documents
that occur twice never leak from one side to the other, a corpus that grows moves none, and merging first
or splitting first comes to the same. A larger --dev-fraction only adds to what is held out.

The share is one of documents, so that of tokens differs a little. Documents keep their order.

examples:
  python -m data_tools split corpus/all --output-train corpus/train --output-dev corpus/dev
  python -m data_tools split corpus/all --output-train corpus/train --output-dev corpus/dev \\
      --dev-fraction 0.001 --lengths 128 512
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `split`."""
    parser.add_argument("prefix", type=Path, metavar="PREFIX", help="the dataset, without .bin")
    parser.add_argument(
        "--output-train", required=True, type=Path, metavar="PREFIX", help="dataset to write, to train on"
    )
    parser.add_argument(
        "--output-dev", required=True, type=Path, metavar="PREFIX", help="dataset to write, to measure on"
    )
    parser.add_argument(
        "--dev-fraction",
        type=float,
        default=0.02,
        metavar="SHARE",
        help="share of the documents to hold out, between 0 and 1 (default: 0.02)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="another number holds out others (default: 0)"
    )
    add_lengths(parser, "the dataset")
    parser.add_argument("--overwrite", action="store_true", help="replace datasets of the same names")


def run(args: argparse.Namespace) -> None:
    """Runs `split` and prints a summary of both sides."""
    outputs = args.output_train, args.output_dev
    manifests = split_dataset(
        args.prefix,
        *outputs,
        dev_fraction=args.dev_fraction,
        seed=args.seed,
        lengths=args.lengths,
        overwrite=args.overwrite,
    )
    for prefix, manifest in zip(outputs, manifests, strict=True):
        print(summary(prefix, manifest))


def split_dataset(
    source: Path,
    train: Path,
    dev: Path,
    *,
    dev_fraction: float,
    seed: int = 0,
    lengths: Iterable[int] | None = None,
    overwrite: bool = False,
) -> tuple[Manifest, Manifest]:
    """Writes the documents of a dataset to two others; their files appear only when all is well.

    Memory holds the longest document. How many words the sides have is unknown: tokens do not tell.

    Args:
        source: prefix of the dataset.
        train: prefix for the documents that are not held out.
        dev: prefix for those that are.
        dev_fraction: about this share of the documents is held out.
        seed: in [0, 2^64).
        lengths: sequence lengths to cut segments for under the reference policy; None stands for the
            segment indexes of the source.
        overwrite: replace datasets of the same names.

    Returns:
        Manifests of `train` and of `dev`.

    Raises:
        UserError: the source is damaged or an output, a side is empty, or an output is there already.
    """
    check_outputs([train, dev], [source])
    for length in lengths or ():
        check_sequence_length(length)
    if not 0 < dev_fraction < 1:
        raise UserError(f"--dev-fraction is {dev_fraction}; use a share between 0 and 1, such as 0.02")
    if not 0 <= seed < 2**64:
        raise UserError(f"--seed is {seed}; use a number from 0 to 2^64 - 1")
    dataset = IndexedDataset(source)
    manifest = dataset.manifest
    if lengths is None:
        segments = [(each.policy, each.sequence_length) for each in manifest.segments]
    else:
        segments = [(POLICY, length) for length in lengths]
    with new_dataset(train, overwrite) as staged_train, new_dataset(dev, overwrite) as staged_dev:
        staged = staged_train, staged_dev
        both = [
            finish(
                prefix,
                written,
                segments,
                manifest.versions,
                vocab_size=manifest.vocab_size,
                tokenizer_sha256=manifest.tokenizer_sha256,
                inputs=manifest.inputs,
            )
            for prefix, written in zip(staged, _write(dataset, *staged, dev_fraction, seed), strict=True)
        ]
    return both[0], both[1]


def _write(
    dataset: IndexedDataset, train: Path, dev: Path, dev_fraction: float, seed: int
) -> tuple[Written, Written]:
    """Writes `.bin` and `.idx` of both sides."""
    dtype = dataset.tokens.dtype
    with (
        progress_bar([dataset], dataset.prefix) as progress,
        IndexedDatasetWriter(train, dtype) as train_writer,
        IndexedDatasetWriter(dev, dtype) as dev_writer,
    ):
        held_out = documents = 0
        tokens = {train_writer: 0, dev_writer: 0}
        for part in whole_documents(read_parts(dataset, progress)):
            is_dev = document_hashes(part, seed) < np.uint64(dev_fraction * 2.0**64)
            for writer, side in ((train_writer, select(part, ~is_dev)), (dev_writer, select(part, is_dev))):
                writer.add(*side)
                tokens[writer] += len(side.tokens)
            held_out += int(is_dev.sum())
            documents += len(is_dev)
        if not all(tokens.values()):
            raise UserError(
                f"{dataset.prefix}: --dev-fraction {dev_fraction} holds out {held_out} of {documents} "
                "documents, which leaves a side empty; choose another fraction, or a larger dataset"
            )
    return train_writer.written, dev_writer.written


def whole_documents(parts: Iterable[Part]) -> Iterator[Part]:
    """Parts cut anew, so that each ends where a document does."""
    waiting: list[Part] = []
    for part in parts:
        if len(part.document_ends) == 0:
            waiting.append(part)
            continue
        cut = int(part.document_ends[-1])
        tokens_cut = int(part.lengths[:cut].sum())
        waiting.append(Part(part.tokens[:tokens_cut], part.lengths[:cut], part.document_ends))
        sentences_before = sum(len(each.lengths) for each in waiting[:-1])
        yield Part(
            _joined([each.tokens for each in waiting]),
            _joined([each.lengths for each in waiting]),
            part.document_ends + sentences_before,
        )
        waiting = [Part(part.tokens[tokens_cut:], part.lengths[cut:], part.document_ends[:0])]


def _joined(arrays: list[NDArray]) -> NDArray:
    """Arrays on end, not copied if there is only one."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def document_hashes(part: Part, seed: int) -> NDArray[np.uint64]:
    """A hash of each document of a part of whole ones.

    It depends on the seed and on the document's token ids, not on the dtype that they are stored in.

    Returns:
        The first 64 bits of keyed BLAKE2b over the ids as little-endian int32, uint64 [documents].
    """
    key = seed.to_bytes(8, "little")
    token_ends = np.concatenate([[0], np.cumsum(part.lengths)])[part.document_ends]
    hashes = bytearray()
    begin = 0
    for end in token_ends.tolist():
        document = hashlib.blake2b(digest_size=8, key=key)
        for start in range(begin, end, TOKENS_AT_ONCE):
            tokens = part.tokens[start : min(start + TOKENS_AT_ONCE, end)]
            document.update(np.ascontiguousarray(tokens, dtype="<i4").data)
        hashes += document.digest()
        begin = end
    return np.frombuffer(hashes, dtype="<u8")


def select(part: Part, documents: NDArray[np.bool_]) -> Part:
    """Some of the documents of a part of whole ones.

    Args:
        documents: which of them, bool [documents].
    """
    if documents.all():
        return part
    sentences = np.diff(part.document_ends, prepend=0)
    is_in = np.repeat(documents, sentences)
    return Part(
        part.tokens[np.repeat(is_in, part.lengths)], part.lengths[is_in], np.cumsum(sentences[documents])
    )
