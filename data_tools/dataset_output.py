"""Output of datasets: written in a hidden work folder first, and moved into place when complete."""

import contextlib
import dataclasses
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data_tools.progress import progress_bar
from elc_bert import __version__
from elc_bert.data.format.coverage import unread_share, unread_warning
from elc_bert.data.format.indexed import IndexedDataset, with_suffix
from elc_bert.data.format.manifest import INPUTS_SUFFIX, Manifest
from elc_bert.data.format.segments import POLICY, build_segments, segment_files
from elc_bert.data.format.writer import Written
from elc_bert.utils.errors import UserError
from elc_bert.utils.files import sync_directory
from elc_bert.utils.text import printable

SUFFIXES = (".bin", ".idx", ".json")
"""Suffixes of the files that every dataset has."""


def work_folder(prefix: Path) -> Path:
    """Return the hidden folder in which the dataset ``prefix`` is written."""
    return prefix.with_name(f".{prefix.name}.build")


@contextlib.contextmanager
def new_dataset(prefix: Path, overwrite: bool) -> Iterator[Path]:
    """Provide a temporary prefix for the dataset ``prefix``, and move the dataset into place on success.

    If the block raises, the files of the dataset are removed. Other files in the work folder, such as
    finished parts, remain for the next attempt and are removed after a success.

    Args:
        prefix: Path of the dataset without ``.bin``. Its directory is created.
        overwrite: Replace a dataset that exists already.

    Yields:
        Prefix in the work folder to write the dataset to.

    Raises:
        UserError: The dataset exists and ``overwrite`` is false, another process is writing it, or its name
            is not UTF-8.
    """
    if printable(prefix.name) != prefix.name:
        raise UserError(
            f"--output {printable(prefix)}: the name is not valid UTF-8, so the manifest cannot hold it; "
            "choose another name"
        )
    prefix.parent.mkdir(parents=True, exist_ok=True)
    folder = work_folder(prefix)
    folder.mkdir(exist_ok=True)
    with _lock(folder / "lock", prefix):
        try:
            check_absent(prefix, overwrite)
            staged = folder / prefix.name
            # A process that was killed may have left files.
            for path in (*folder.glob(".*.tmp"), *_files_of(staged)):
                path.unlink()
            try:
                yield staged
            except BaseException:
                for path in _files_of(staged):
                    path.unlink()
                raise
            _publish(staged, prefix)
            shutil.rmtree(folder)
        finally:
            # This runs while the lock is held, so that no other process can have begun to use the folder.
            if folder.is_dir() and {path.name for path in folder.iterdir()} <= {"lock"}:
                shutil.rmtree(folder)
    sync_directory(prefix.parent)


def check_absent(prefix: Path, overwrite: bool) -> None:
    """Check that a dataset does not exist yet, unless it may be replaced.

    Raises:
        UserError: A file of the dataset exists and ``overwrite`` is false.
    """
    for suffix in SUFFIXES:
        path = with_suffix(prefix, suffix)
        if path.exists() and not overwrite:
            raise UserError(f"{path}: exists already; choose another output, or add --overwrite")


def check_outputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Check that the outputs of a command differ from one another and from its inputs.

    Raises:
        UserError: Two of the datasets are the same.
    """
    taken = {with_suffix(prefix, ".bin").resolve(): f"the input {prefix}" for prefix in inputs}
    for prefix in outputs:
        path = with_suffix(prefix, ".bin").resolve()
        if path in taken:
            raise UserError(f"{prefix}: this output is also {taken[path]}; choose another name")
        taken[path] = "the other output"


def _publish(staged: Path, prefix: Path) -> None:
    # Readers open .idx first. It is removed first and moved last, so that nobody can open half a dataset.
    with_suffix(prefix, ".idx").unlink(missing_ok=True)
    for path in _files_of(prefix):
        path.unlink()
    sync_directory(prefix.parent)
    for path in sorted(_files_of(staged), key=lambda path: path.suffix == ".idx"):
        os.replace(path, prefix.parent / path.name)
    sync_directory(prefix.parent)


def _files_of(prefix: Path) -> list[Path]:
    named = [with_suffix(prefix, suffix) for suffix in (*SUFFIXES, INPUTS_SUFFIX)]
    return [*filter(Path.exists, named), *segment_files(prefix)]


@contextlib.contextmanager
def _lock(path: Path, prefix: Path) -> Iterator[None]:
    """Hold a lock that the system releases when the process ends, even if it is killed."""
    with open(path, "a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(
                f"{prefix}: another process is writing this dataset; wait for it, or choose another output"
            ) from None
        except OSError:
            pass  # the file system does not support locks
        yield


def write_manifest_and_segments(
    prefix: Path,
    written: Written,
    segments: Iterable[tuple[str, int]],
    versions: dict[str, str],
    **description: Any,
) -> Manifest:
    """Write the manifest and the segment indexes of a dataset whose tokens have been written.

    Args:
        prefix: Path of the dataset without ``.bin``.
        written: Counts and checksums from the writer.
        segments: Policy and sequence length of each segment index.
        versions: Versions of the packages that encoded the tokens.
        **description: Further fields of the manifest.

    Returns:
        The manifest.
    """
    counts = dataclasses.asdict(written)
    Manifest(**counts, versions=versions | {"elc-bert": __version__}, **description).save(prefix)
    dataset = IndexedDataset(prefix)
    for policy, sequence_length in segments:
        title = f"segments of {sequence_length}"
        with progress_bar(dataset.num_tokens, "token", title, leave=False) as bar:
            build_segments(dataset, sequence_length, policy, progress=bar.update)
    return dataset.manifest


def summary(prefix: Path, manifest: Manifest) -> str:
    """Return a short table of the contents of a dataset."""
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
    if manifest.unknown is not None:
        rows.append(("unknown", f"{manifest.unknown / max(manifest.tokens, 1):.4%}"))
    for each in manifest.segments:
        policy = "" if each.policy == POLICY else f", {each.policy}"
        rows.append((f"segments of {each.sequence_length}{policy}", f"{each.count:,}"))
        if each.unread is not None:
            rows.append(("  tokens in none of them", f"{unread_share(each, manifest.tokens):.2%}"))
    warnings = [unread_warning(prefix, each, manifest.tokens) for each in manifest.segments]
    lines = [str(prefix), *(f"  {name:<26}{value:>16}" for name, value in rows), *filter(None, warnings)]
    return "\n".join(lines)
