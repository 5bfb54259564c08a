"""A file open for reading: mapped for what reads it from end to end, read piece by piece at random."""

import contextlib
import errno
import mmap
import os
import stat
from itertools import repeat
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

from elc_bert.utils.errors import UserError


class MappedFile:
    """One file, read-only, shared by threads and forked processes.

    The file may be replaced by another of its name, which leaves the open one as it was. One that is
    cut short in place is a `UserError` of `gather`, but kills a process that reads a view (SIGBUS).

    Args:
        path: of a regular file.

    Raises:
        OSError: it cannot be opened; `strerror` says why.
    """

    def __init__(self, path: Path):
        self.path = path
        self._descriptor = -1
        try:
            # Without O_NONBLOCK a named pipe would be waited for.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except ValueError:
            raise OSError(errno.EINVAL, "no valid file name", os.fspath(path)) from None
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
        self.size = status.st_size
        """Bytes in the file when it was opened."""
        self._pages: mmap.mmap | None = None
        self._is_random = False

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def array(self, dtype: DTypeLike, offset: int, count: int) -> NDArray:
        """A read-only view of `count` items from byte `offset` on; a page is read when it is used.

        Raises:
            TypeError: it would not lie in the file.
            UserError: the file cannot be mapped.
        """
        if self._pages is None and self.size > 0:  # An empty file cannot be mapped.
            self._pages = self._map()
        return np.ndarray((count,), dtype, self._pages or b"", offset)

    def release(self) -> None:
        """Takes pages that were read through views out of memory; views stay and read them again."""
        if self._pages is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._pages.madvise(mmap.MADV_DONTNEED)

    def gather(self, dtype: DTypeLike, offset: int, places: NDArray[np.int64]) -> NDArray:
        """`array(dtype, offset, ...)[places]` for places far apart, as a copy.

        Reading, unlike a view, keeps nothing in memory: a page fault maps up to 2 MiB of a cached file.

        Args:
            dtype: of the items.
            offset: of the first item in bytes.
            places: numbers of items, int64 of any shape, [..., T]; the T are read at once if close together.

        Raises:
            UserError: the file ends before one of them, or cannot be read.
        """
        dtype = np.dtype(dtype)
        if places.size == 0:
            return np.empty(places.shape, dtype)
        rows = places.reshape(-1, places.shape[-1])  # [R, T]
        first = rows.min(axis=1)
        counts = rows.max(axis=1) - first + 1
        if counts.max() > 4 * rows.shape[1]:
            rows = places.reshape(-1, 1)
            first, counts = rows[:, 0], np.ones(len(rows), dtype=np.int64)
        items = np.frombuffer(self._read(offset + first * dtype.itemsize, counts * dtype.itemsize), dtype)
        begins = np.cumsum(counts) - counts
        return items[rows + (begins - first)[:, None]].reshape(places.shape)

    def _read(self, offsets: NDArray[np.int64], sizes: NDArray[np.int64]) -> bytes:
        """Some ranges of the file on end."""
        if not self._is_random and hasattr(os, "posix_fadvise"):
            # From here on the kernel reads what is asked for and nothing behind it, if it takes advice.
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            self._is_random = True
        try:
            parts = list(map(os.pread, repeat(self._descriptor), sizes.tolist(), offsets.tolist()))
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error.strerror}; check the file system") from None
        if sum(map(len, parts)) != sizes.sum():
            raise UserError(f"{self.path}: was cut short while it was open; copy or build it again")
        return b"".join(parts)

    def _map(self) -> mmap.mmap:
        try:
            return mmap.mmap(self._descriptor, self.size, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.path}: cannot be mapped into memory: {error}; copy it elsewhere"
            ) from None
