"""Files that appear whole or not at all."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Opens a temporary file in the directory of `path` and moves it there on success.

    The data and the directory entry are on disk when the block ends. If the block raises, the
    temporary file is removed and whatever stood at `path` before stays as it was.

    Args:
        path: the final name; its directory must exist.
        mode: `"wb"`, or `"w"` for UTF-8 text.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = os.fspath(path)  # writing to an open file does not tell
        raise


def temporary_name(path: Path) -> Path:
    """The hidden name beside `path` under which this process writes it."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def sync_directory(directory: Path) -> None:
    """Makes the names in a directory durable: without it a rename can be lost in a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
