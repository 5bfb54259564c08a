"""A dataset under construction: in a folder of its own beside the place where it is to appear."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from elc_bert.data.format.indexed import with_suffix
from elc_bert.data.format.manifest import Manifest
from elc_bert.data.format.segments import POLICY, segment_files
from elc_bert.utils.errors import UserError
from elc_bert.utils.files import sync_directory

NAMED = (".bin", ".idx", ".json")


def work_folder(prefix: Path) -> Path:
    """The hidden folder in which the dataset `prefix` is built."""
    return prefix.with_name(f".{prefix.name}.build")


@contextlib.contextmanager
def new_dataset(prefix: Path, overwrite: bool) -> Iterator[Path]:
    """Gives a prefix in the work folder to write the dataset `prefix` to, and moves it there on success.

    After a failure the dataset as far as it was written is removed. Whatever else is in the work folder,
    such as finished parts, is there again when the same dataset is begun anew, and removed with the folder
    after a success.

    Raises:
        UserError: the dataset is there and `overwrite` is false, or somebody is writing it now.
    """
    prefix.parent.mkdir(parents=True, exist_ok=True)
    folder = work_folder(prefix)
    folder.mkdir(exist_ok=True)
    with _lock(folder / "lock", prefix):
        try:
            check_absent(prefix, overwrite)
            staged = folder / prefix.name
            for path in (*folder.glob(".*.tmp"), *_files_of(staged)):  # of a process that was killed
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
            # Under the lock: to another process that has only begun, the folder is not empty.
            if folder.is_dir() and {path.name for path in folder.iterdir()} <= {"lock"}:
                shutil.rmtree(folder)
    sync_directory(prefix.parent)


def check_absent(prefix: Path, overwrite: bool) -> None:
    """Makes sure that nothing is at the place of a dataset, or may be replaced.

    Raises:
        UserError: a file is there and `overwrite` is false.
    """
    for suffix in NAMED:
        path = with_suffix(prefix, suffix)
        if path.exists() and not overwrite:
            raise UserError(f"{path}: exists already; choose another --output, or add --overwrite")


def _publish(staged: Path, prefix: Path) -> None:
    # Readers open `.idx` first: without it there is no dataset, and it comes last.
    with_suffix(prefix, ".idx").unlink(missing_ok=True)
    for path in _files_of(prefix):
        path.unlink()
    sync_directory(prefix.parent)
    for path in sorted(_files_of(staged), key=lambda path: path.suffix == ".idx"):
        os.replace(path, prefix.parent / path.name)
    sync_directory(prefix.parent)


def _files_of(prefix: Path) -> list[Path]:
    named = [with_suffix(prefix, suffix) for suffix in NAMED]
    return [*filter(Path.exists, named), *segment_files(prefix)]


@contextlib.contextmanager
def _lock(path: Path, prefix: Path) -> Iterator[None]:
    """Holds a lock that its process's end releases, however it ends."""
    with open(path, "a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(
                f"{prefix}: another process is writing this dataset; wait for it, or choose another --output"
            ) from None
        except OSError:
            pass  # a file system without locks
        yield


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
    for each in manifest.segments:
        policy = "" if each.policy == POLICY else f", {each.policy}"
        rows.append((f"segments of {each.sequence_length}{policy}", f"{each.count:,}"))
    return "\n".join([str(prefix), *(f"  {name:<26}{value:>16}" for name, value in rows)])
