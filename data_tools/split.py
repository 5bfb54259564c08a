"""The command ``split``: divide a token dataset into a training set and a held-out set."""

import argparse
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from data_tools.dataset_output import check_outputs, new_dataset, summary, write_manifest_and_segments
from data_tools.dataset_stream import TOKENS_AT_ONCE, SentenceBatch, read_batches, reading_progress
from data_tools.options import add_dataset, add_lengths, add_overwrite
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.manifest import Manifest
from elc_bert.data.format.segments import POLICY, check_sequence_length
from elc_bert.data.format.writer import IndexedDatasetWriter, Written
from elc_bert.utils.errors import UserError
from elc_bert.utils.options import non_negative_int

Number = TypeVar("Number", bound=np.generic)

HELP = "divide the documents of a dataset into a training set and a held-out set"

EPILOG = """\
A hash of the tokens of a document and of --seed decides which side the document goes to, and nothing else
does. The same document therefore always goes to the same side. Duplicates of a document never end up on both
sides, adding documents to a corpus moves none of the others, and it does not matter whether datasets are
merged before or after splitting. A larger --dev-fraction only adds documents to the held-out set.

--dev-fraction is a share of the documents, so the share of the tokens differs slightly. Documents keep their
order.

examples:
  python -m data_tools split corpus/all --output-train corpus/train --output-dev corpus/dev
  python -m data_tools split corpus/all --output-train corpus/train --output-dev corpus/dev \\
      --dev-fraction 0.001 --lengths 128 512
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``split``."""
    add_dataset(parser)
    parser.add_argument(
        "--output-train",
        required=True,
        type=Path,
        metavar="PREFIX",
        help="path of the training set to write, without the suffix .bin",
    )
    parser.add_argument(
        "--output-dev",
        required=True,
        type=Path,
        metavar="PREFIX",
        help="path of the held-out set to write, without the suffix .bin",
    )
    parser.add_argument(
        "--dev-fraction",
        type=float,
        default=0.02,
        metavar="SHARE",
        help="share of the documents to hold out, between 0 and 1 (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="seed of the hash; another seed holds out other documents (default: %(default)s)",
    )
    add_lengths(parser, default_text="those that the dataset has segment indexes for")
    add_overwrite(parser, "existing datasets of the same names")


def run(args: argparse.Namespace) -> None:
    """Run ``split`` and print a summary of both datasets."""
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
    """Divide the documents of a dataset between two new ones.

    The files of both appear only when the split has succeeded. The longest document must fit in memory. The
    manifests do not record the number of words, which cannot be computed from tokens.

    Args:
        source: Prefix of the dataset to divide.
        train: Prefix of the training set.
        dev: Prefix of the held-out set.
        dev_fraction: Approximate share of the documents to hold out.
        seed: Seed of the hash, in [0, 2^64).
        lengths: Sequence lengths to create segment indexes for, with the reference policy. None selects the
            segment indexes of the source.
        overwrite: Replace datasets of the same names.

    Returns:
        Manifests of ``train`` and ``dev``.

    Raises:
        UserError: The source is damaged or the same as an output, one side would be empty, or an output
            exists already.
    """
    check_outputs([train, dev], [source])
    for length in lengths or ():
        check_sequence_length(length)
    if not 0 < dev_fraction < 1:
        raise UserError(f"--dev-fraction: must be above 0 and below 1, found {dev_fraction}; use, say, 0.02")
    if not 0 <= seed < 2**64:
        raise UserError(f"--seed: must be from 0 to 2^64 - 1, found {seed}")
    dataset = IndexedDataset(source)
    manifest = dataset.manifest
    if lengths is None:
        segments = [(each.policy, each.sequence_length) for each in manifest.segments]
    else:
        segments = [(POLICY, length) for length in lengths]
    with new_dataset(train, overwrite) as staged_train, new_dataset(dev, overwrite) as staged_dev:
        staged = staged_train, staged_dev
        both = [
            write_manifest_and_segments(
                prefix,
                written,
                segments,
                manifest.versions,
                vocab_size=manifest.vocab_size,
                tokenizer_sha256=manifest.tokenizer_sha256,
                tokenizer_fingerprint=manifest.tokenizer_fingerprint,
                special_tokens=manifest.special_tokens,
                inputs=manifest.read_inputs(source),
            )
            for prefix, written in zip(
                staged, _write_tokens(dataset, *staged, dev_fraction, seed), strict=True
            )
        ]
    return both[0], both[1]


def _write_tokens(
    dataset: IndexedDataset, train: Path, dev: Path, dev_fraction: float, seed: int
) -> tuple[Written, Written]:
    """Write ``.bin`` and ``.idx`` of both datasets."""
    dtype = dataset.tokens.dtype
    with (
        reading_progress([dataset], dataset.prefix) as progress,
        IndexedDatasetWriter(train, dtype) as train_writer,
        IndexedDatasetWriter(dev, dtype) as dev_writer,
    ):
        held_out = documents = 0
        tokens = {train_writer: 0, dev_writer: 0}
        for batch in whole_documents(read_batches(dataset, progress)):
            is_dev = document_hashes(batch, seed) < np.uint64(dev_fraction * 2.0**64)
            for writer, keep in ((train_writer, ~is_dev), (dev_writer, is_dev)):
                side = select_documents(batch, keep)
                writer.add(*side)
                tokens[writer] += len(side.tokens)
            held_out += int(is_dev.sum())
            documents += len(is_dev)
        if not all(tokens.values()):
            raise UserError(
                f"{dataset.prefix}: --dev-fraction {dev_fraction} holds out {held_out} of {documents} "
                "documents, which leaves one side empty; choose another fraction or a larger dataset"
            )
    return train_writer.written, dev_writer.written


def whole_documents(batches: Iterable[SentenceBatch]) -> Iterator[SentenceBatch]:
    """Regroup the sentences of some batches, so that every batch ends where a document ends."""
    waiting: list[SentenceBatch] = []
    for batch in batches:
        if len(batch.document_ends) == 0:
            waiting.append(batch)
            continue
        cut = int(batch.document_ends[-1])
        tokens_cut = int(batch.lengths[:cut].sum())
        waiting.append(SentenceBatch(batch.tokens[:tokens_cut], batch.lengths[:cut], batch.document_ends))
        sentences_before = sum(len(each.lengths) for each in waiting[:-1])
        yield SentenceBatch(
            _concatenate([each.tokens for each in waiting]),
            _concatenate([each.lengths for each in waiting]),
            batch.document_ends + sentences_before,
        )
        waiting = [SentenceBatch(batch.tokens[tokens_cut:], batch.lengths[cut:], batch.document_ends[:0])]


def _concatenate(arrays: list[NDArray[Number]]) -> NDArray[Number]:
    """Return the concatenation of some arrays, without a copy if there is only one."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def document_hashes(batch: SentenceBatch, seed: int) -> NDArray[np.uint64]:
    """Return a hash of each document in a batch of whole documents.

    The hash depends on the seed and on the token ids of the document, but not on the dtype of the tokens.

    Args:
        batch: Sentences of whole documents.
        seed: Seed of the hash, in [0, 2^64).

    Returns:
        The first 64 bits of keyed BLAKE2b of the token ids as little-endian int32, uint64 ``[documents]``.
    """
    key = seed.to_bytes(8, "little")
    token_ends = np.concatenate([[0], np.cumsum(batch.lengths)])[batch.document_ends]
    hashes = bytearray()
    begin = 0
    for end in token_ends.tolist():
        document = hashlib.blake2b(digest_size=8, key=key)
        for start in range(begin, end, TOKENS_AT_ONCE):
            tokens = batch.tokens[start : min(start + TOKENS_AT_ONCE, end)]
            document.update(np.ascontiguousarray(tokens, dtype="<i4").data)
        hashes += document.digest()
        begin = end
    return np.frombuffer(hashes, dtype="<u8")


def select_documents(batch: SentenceBatch, keep: NDArray[np.bool_]) -> SentenceBatch:
    """Return some of the documents in a batch of whole documents.

    Args:
        batch: Sentences of whole documents.
        keep: True for each document to keep, bool ``[documents]``.
    """
    if keep.all():
        return batch
    sentences = np.diff(batch.document_ends, prepend=0)
    is_kept = np.repeat(keep, sentences)
    return SentenceBatch(
        batch.tokens[np.repeat(is_kept, batch.lengths)], batch.lengths[is_kept], np.cumsum(sentences[keep])
    )
