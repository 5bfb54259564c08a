"""Read-only file: memory-mapped for sequential reading, ``pread`` for random access."""

import contextlib
import errno
import mmap
import os
import stat
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from elc_bert.utils.errors import UserError


class MappedFile:
    """Read-only file that threads and forked processes can share.

    Replacing the file by another one of the same name does not affect an open one. If the file is truncated
    in place, ``gather`` raises a ``UserError``, but reading a view kills the process (SIGBUS).

    Args:
        path: Path of a regular file.

    Raises:
        OSError: The file cannot be opened; ``strerror`` gives the reason.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1
        try:
            # Without O_NONBLOCK, opening a named pipe would block until it has a writer.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except ValueError:
            raise OSError(errno.EINVAL, "not a valid file name", os.fspath(path)) from None
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
        self.size = status.st_size
        """Size of the file in bytes when it was opened."""
        self._pages: mmap.mmap | None = None
        self._is_random = False

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def array(self, dtype: DTypeLike, offset: int, count: int) -> NDArray[Any]:
        """Return a read-only view of ``count`` items starting at byte ``offset``; pages are read on access.

        Raises:
            TypeError: The items do not lie within the file.
            UserError: The file cannot be mapped.
        """
        if self._pages is None and self.size > 0:  # An empty file cannot be mapped.
            self._pages = self._map()
        return np.ndarray((count,), dtype, self._pages or b"", offset)

    def release(self) -> None:
        """Drop pages read through views from memory; views stay valid and read them again on access."""
        if self._pages is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._pages.madvise(mmap.MADV_DONTNEED)

    def gather(self, dtype: DTypeLike, offset: int, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Return a copy of ``array(dtype, offset, ...)[indices]``, for indices that are far apart.

        Unlike a view, which maps up to 2 MiB of a cached file per page fault, this keeps nothing in memory.

        Args:
            dtype: Type of the items.
            offset: Offset of the first item in bytes.
            indices: Indices of items, int64 ``[..., T]``. Along the last axis, they are read in one call if
                they are close together.

        Raises:
            UserError: The file ends before one of the items, or cannot be read.
        """
        dtype = np.dtype(dtype)
        if indices.size == 0:
            return np.empty(indices.shape, dtype)
        rows = indices.reshape(-1, indices.shape[-1])  # [R, T]
        first = rows.min(axis=1)
        counts = rows.max(axis=1) - first + 1
        if counts.max() > 4 * rows.shape[1]:
            rows = indices.reshape(-1, 1)
            first, counts = rows[:, 0], np.ones(len(rows), dtype=np.int64)
        data = self._read(offset + first * dtype.itemsize, counts * dtype.itemsize)
        items: NDArray[Any] = np.frombuffer(data, dtype)
        starts = np.cumsum(counts) - counts
        result: NDArray[Any] = items[rows + (starts - first)[:, None]].reshape(indices.shape)
        return result

    def _read(self, offsets: NDArray[np.int64], sizes: NDArray[np.int64]) -> bytes:
        """Return the concatenation of several byte ranges of the file."""
        if not self._is_random and hasattr(os, "posix_fadvise"):
            # Turn off the kernel's readahead; where the file system rejects the hint, nothing is lost.
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            self._is_random = True
        try:
            parts = list(map(os.pread, repeat(self._descriptor), sizes.tolist(), offsets.tolist()))
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot read the file: {error.strerror}; check the file system"
            ) from None
        if sum(map(len, parts)) != sizes.sum():
            raise UserError(f"{self.path}: truncated while it was open; copy or build it again")
        return b"".join(parts)

    def _map(self) -> mmap.mmap:
        try:
            return mmap.mmap(self._descriptor, self.size, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.path}: cannot map the file into memory: {error}; copy it to another file system"
            ) from None
