"""The command ``merge``: combine several token datasets into one."""

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.dataset_output import check_outputs, new_dataset, summary, write_manifest_and_segments
from data_tools.dataset_stream import read_batches, reading_progress
from data_tools.options import add_dataset_output, add_lengths, add_overwrite
from elc_bert.data.format.indexed import IndexedDataset, with_suffix
from elc_bert.data.format.manifest import Manifest
from elc_bert.data.format.segments import POLICY, check_sequence_length
from elc_bert.data.format.writer import IndexedDatasetWriter, token_dtype
from elc_bert.utils.errors import UserError

HELP = "combine several datasets into one, without encoding their text again"

EPILOG = """\
The result holds the documents of all inputs, in the order of the inputs. Documents are neither split nor
joined. All inputs must have been built with the same tokenizer. Datasets of Megatron-LM and GPT-NeoX, which
do not record their tokenizer, can be merged too; the tokenizer of the result is then unknown.

By default the result gets segment indexes for the sequence lengths and policies that all inputs have.

examples:
  python -m data_tools merge --input books wiki speech --output corpus/train
  python -m data_tools merge --input corpus/2022 corpus/2023 --output corpus/train --lengths 128 512
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``merge``."""
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        type=Path,
        metavar="PREFIX",
        help="paths of the datasets to merge, without the suffix .bin",
    )
    add_dataset_output(parser)
    add_lengths(parser, default_text="those that all inputs have segment indexes for")
    add_overwrite(parser, "an existing dataset of the same name")


def run(args: argparse.Namespace) -> None:
    """Run ``merge`` and print a summary of the dataset."""
    manifest = merge_datasets(args.input, args.output, lengths=args.lengths, overwrite=args.overwrite)
    print(summary(args.output, manifest))
    if manifest.tokenizer_sha256 is None:
        print("  the tokenizer is unknown, because at least one input does not record it")


def merge_datasets(
    inputs: Sequence[Path], prefix: Path, *, lengths: Iterable[int] | None = None, overwrite: bool = False
) -> Manifest:
    """Write the documents of several datasets to the dataset ``prefix``.

    The files of the result appear only when the merge has succeeded.

    Args:
        inputs: Prefixes of datasets that were built with the same tokenizer.
        prefix: Path of the result without ``.bin``. Its directory is created.
        lengths: Sequence lengths to create segment indexes for, with the reference policy. None selects the
            segment indexes that all inputs have.
        overwrite: Replace a dataset of the same name.

    Returns:
        The manifest of the result.

    Raises:
        UserError: An input is damaged, is the same as the output or another input, or was built with another
            tokenizer, or the output exists already.
    """
    check_outputs([prefix], inputs)
    for length in lengths or ():
        check_sequence_length(length)
    _check_different(inputs)
    datasets = [IndexedDataset(each) for each in inputs]
    manifests = [dataset.manifest for dataset in datasets]
    vocab_size = _common_value("vocab_size", inputs, manifests)
    tokenizer = _common_tokenizer(inputs, manifests)
    if lengths is None:
        shared = [{(each.policy, each.sequence_length) for each in one.segments} for one in manifests]
        segments = sorted(set.intersection(*shared))
    else:
        segments = [(POLICY, length) for length in lengths]
    origins = [one.read_inputs(prefix) for prefix, one in zip(inputs, manifests, strict=True)]
    unknown = [manifest.unknown for manifest in manifests if manifest.unknown is not None]
    words = [manifest.words for manifest in manifests if manifest.words is not None]
    with new_dataset(prefix, overwrite) as staged:
        with (
            reading_progress(datasets, prefix) as progress,
            IndexedDatasetWriter(staged, _dtype(datasets, vocab_size)) as writer,
        ):
            for dataset in datasets:
                for batch in read_batches(dataset, progress):
                    writer.add(*batch)
        return write_manifest_and_segments(
            staged,
            writer.written,
            segments,
            _common_versions([manifest.versions for manifest in manifests]),
            words=sum(words) if len(words) == len(manifests) else None,
            unknown=sum(unknown) if len(unknown) == len(manifests) else None,
            vocab_size=vocab_size,
            **tokenizer,
            special_tokens=_common_special_tokens(inputs, manifests),
            inputs=list(dict.fromkeys(file for each in origins for file in each)),
            skipped=dict(sum((Counter(manifest.skipped) for manifest in manifests), Counter())),
        )


def _check_different(inputs: Sequence[Path]) -> None:
    """Check that no dataset is given twice, by one name or several, because all of it would be repeated.

    Raises:
        UserError: Two inputs are the same dataset.
    """
    seen: dict[tuple[int, int], Path] = {}
    for prefix in inputs:
        path = with_suffix(prefix, ".bin")
        if path.exists():
            status = path.stat()
            first = seen.setdefault((status.st_dev, status.st_ino), prefix)
            if first is not prefix:
                raise UserError(
                    f"--input {prefix}: the same dataset as {first}; give it once, and repeat it in training "
                    "with elc_bert.data.train"
                )


def _common_value(field: str, inputs: Sequence[Path], manifests: Sequence[Manifest]) -> Any:
    """Return the value of a field that all manifests share, or None if one of them does not record it.

    Raises:
        UserError: Two inputs have different values.
    """
    values = [getattr(manifest, field) for manifest in manifests]
    known = {value: prefix for prefix, value in zip(inputs, values, strict=True) if value is not None}
    if len(known) > 1:
        (one, first), (other, second), *_ = known.items()
        raise UserError(
            f"{second}: built with another tokenizer than {first} ({field} {other} and {one}); rebuild one "
            "of them with the tokenizer of the other"
        )
    return None if None in values else values[0]


def _common_tokenizer(inputs: Sequence[Path], manifests: Sequence[Manifest]) -> dict[str, str | None]:
    """Return the manifest's fields about the tokenizer of all inputs, None if one of them does not record it.

    Files with other bytes that encode text in the same way are the same tokenizer.

    Raises:
        UserError: Two inputs have different tokenizers.
    """
    # A dataset of an early version records the file only; another dataset may know more about that file.
    fingerprints = {
        each.tokenizer_sha256: each.tokenizer_fingerprint for each in manifests if each.tokenizer_fingerprint
    }
    known = [
        (fingerprints.get(each.tokenizer_sha256) or each.tokenizer_sha256, prefix, each.tokenizer_sha256)
        for prefix, each in zip(inputs, manifests, strict=True)
        if each.tokenizer_sha256 is not None
    ]
    for same, second, other in known[1:]:
        first_same, first, one = known[0]
        if same != first_same:
            raise UserError(
                f"{second}: built with another tokenizer than {first} (tokenizer_sha256 {other} and {one}); "
                "rebuild one of them with the tokenizer of the other"
            )
    sha256 = manifests[0].tokenizer_sha256 if len(known) == len(manifests) else None
    return {"tokenizer_sha256": sha256, "tokenizer_fingerprint": fingerprints.get(sha256)}


def _common_special_tokens(
    inputs: Sequence[Path], manifests: Sequence[Manifest]
) -> dict[str, str | None] | None:
    """Return the names of special tokens that all inputs were built with.

    Raises:
        UserError: Two inputs have different names, so that a token has two meanings.
    """
    known = [each for each in zip(inputs, manifests, strict=True) if each[1].tokenizer_sha256 is not None]
    for prefix, manifest in known[1:]:
        if manifest.special_tokens != known[0][1].special_tokens:
            raise UserError(
                f"{prefix}: built with other names of special tokens than {known[0][0]}; rebuild one of them "
                "with the --special-tokens of the other"
            )
    return known[0][1].special_tokens if known else None


def _common_versions(versions: Sequence[dict[str, str]]) -> dict[str, str]:
    """Return the versions that all inputs agree on."""
    return {name: at for name, at in versions[0].items() if all(each.get(name) == at for each in versions)}


def _dtype(datasets: Sequence[IndexedDataset], vocab_size: int | None) -> np.dtype[np.integer]:
    """Return the narrowest dtype that holds all token ids.

    If the size of the vocabulary is unknown, the limits of the inputs' dtypes stand for their largest ids.
    Only int64 tokens are read.
    """
    if vocab_size is None:
        vocab_size = 1 + max(map(_largest_id, datasets))
    return token_dtype(vocab_size) if vocab_size <= 1 << 31 else np.dtype("<i8")


def _largest_id(dataset: IndexedDataset) -> int:
    tokens = dataset.tokens
    return int(tokens.max()) if tokens.dtype == np.int64 else int(np.iinfo(tokens.dtype).max)
