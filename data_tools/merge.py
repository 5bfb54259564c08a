"""Several token datasets as one."""

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.copying import (
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
from elc_bert.data.format.writer import IndexedDatasetWriter, token_dtype
from elc_bert.utils.errors import UserError

HELP = "put several datasets on end as one, without encoding their text again"

EPILOG = """\
The documents of the inputs follow one another in the order given; none is cut, and none joined to the
next. All inputs must have been built with the same tokenizer. Datasets of Megatron-LM and GPT-NeoX, which
do not tell their tokenizer, can be merged too: then the result does not tell it either.

Segments are cut for the sequence lengths that all inputs have segments for, or for those of --lengths.

examples:
  python -m data_tools merge --input books wiki speech --output corpus/train
  python -m data_tools merge --input corpus/2022 corpus/2023 --output corpus/train --lengths 128 512
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `merge`."""
    parser.add_argument(
        "--input", nargs="+", required=True, type=Path, metavar="PREFIX", help="the datasets, without .bin"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="PREFIX", help="dataset to write")
    add_lengths(parser, "all inputs")
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset of the same name")


def run(args: argparse.Namespace) -> None:
    """Runs `merge` and prints a summary."""
    manifest = merge_datasets(args.input, args.output, lengths=args.lengths, overwrite=args.overwrite)
    print(summary(args.output, manifest))
    if manifest.tokenizer_sha256 is None:
        print("  the tokenizer is unknown: not every input tells its own")


def merge_datasets(
    inputs: Sequence[Path], prefix: Path, *, lengths: Iterable[int] | None = None, overwrite: bool = False
) -> Manifest:
    """Writes the dataset `prefix` with the documents of others; its files appear only when all is well.

    Args:
        inputs: prefixes of datasets that were built with one tokenizer.
        prefix: path of the result without `.bin`; its directory is created.
        lengths: sequence lengths to cut segments for under the reference policy; None stands for the
            segment indexes that all inputs have.
        overwrite: replace a dataset of the same name.

    Raises:
        UserError: an input is damaged, of another tokenizer or the output, or the output is there.
    """
    check_outputs([prefix], inputs)
    for length in lengths or ():
        check_sequence_length(length)
    datasets = [IndexedDataset(each) for each in inputs]
    manifests = [dataset.manifest for dataset in datasets]
    vocab_size = _common("vocab_size", inputs, manifests)
    tokenizer = _common("tokenizer_sha256", inputs, manifests)
    if lengths is None:
        shared = [{(each.policy, each.sequence_length) for each in one.segments} for one in manifests]
        segments = sorted(set.intersection(*shared))
    else:
        segments = [(POLICY, length) for length in lengths]
    words = [manifest.words for manifest in manifests if manifest.words is not None]
    with new_dataset(prefix, overwrite) as staged:
        with (
            progress_bar(datasets, prefix) as progress,
            IndexedDatasetWriter(staged, _dtype(datasets, vocab_size)) as writer,
        ):
            for dataset in datasets:
                for part in read_parts(dataset, progress):
                    writer.add(*part)
        return finish(
            staged,
            writer.written,
            segments,
            _agreed([manifest.versions for manifest in manifests]),
            words=sum(words) if len(words) == len(manifests) else None,
            vocab_size=vocab_size,
            tokenizer_sha256=tokenizer,
            inputs=list(dict.fromkeys(file for manifest in manifests for file in manifest.inputs)),
            skipped=dict(sum((Counter(manifest.skipped) for manifest in manifests), Counter())),
        )


def _common(field: str, inputs: Sequence[Path], manifests: Sequence[Manifest]) -> Any:
    """The value of a manifest's field that all inputs share, None where one of them does not tell.

    Raises:
        UserError: two inputs differ in it.
    """
    values = [getattr(manifest, field) for manifest in manifests]
    known = {value: prefix for prefix, value in zip(inputs, values, strict=True) if value is not None}
    if len(known) > 1:
        (one, first), (other, second), *_ = known.items()
        raise UserError(
            f"{second}: built with another tokenizer than {first} ({field} {other} and {one}); build one of "
            "them again with the tokenizer of the other"
        )
    return None if None in values else values[0]


def _agreed(versions: Sequence[dict[str, str]]) -> dict[str, str]:
    """What all inputs say alike."""
    return {name: at for name, at in versions[0].items() if all(each.get(name) == at for each in versions)}


def _dtype(datasets: Sequence[IndexedDataset], vocab_size: int | None) -> np.dtype:
    """The narrowest dtype for all ids; where the vocabulary is unknown, only int64 ids are looked at."""
    if vocab_size is None:
        vocab_size = 1 + max(map(_largest_id, datasets))
    return token_dtype(vocab_size) if vocab_size <= 1 << 31 else np.dtype("<i8")


def _largest_id(dataset: IndexedDataset) -> int:
    tokens = dataset.tokens
    return int(tokens.max()) if tokens.dtype == np.int64 else int(np.iinfo(tokens.dtype).max)
