"""Writing files so that they appear either complete or not at all."""

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file next to ``path`` and rename it to ``path`` on success.

    The data and the directory entry are on disk when the block ends. If the block raises, the temporary file
    is removed and an existing file at ``path`` stays unchanged.

    Args:
        path: Final file name; its directory must exist.
        mode: ``"wb"``, or ``"w"`` for UTF-8 text.
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
        if isinstance(error, OSError) and error.filename in (None, os.fspath(temporary)):
            # Name the file that the caller knows; errors while writing to an open file carry no name at all.
            error.filename = os.fspath(path)
        raise


def temporary_name(path: Path) -> Path:
    """Return the hidden name, in the directory of ``path``, that this process writes to first."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def sync_directory(directory: Path) -> None:
    """Flush a directory to disk, so that a rename in it survives a power failure."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """Return the content of a regular file. Anything else, such as a named pipe, is an error, not a wait.

    Raises:
        OSError: The file cannot be read, or is not a regular file; ``strerror`` gives the reason.
    """
    # Without O_NONBLOCK, opening a named pipe would block until it has a writer.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
        return file.read()


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 digest of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
