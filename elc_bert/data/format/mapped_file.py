"""Read-only file: memory-mapped for sequential reading, ``pread`` for random access."""

import contextlib
import errno
import mmap
import os
import stat
import weakref
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from elc_bert.data.format.descriptors import DESCRIPTORS, Descriptor
from elc_bert.utils.errors import UserError, limit_advice


class MappedFile:
    """Read-only file that threads and forked processes can share.

    The file need not stay open: ``descriptors`` closes it if the process has too many open files, and it is
    opened again when it is read. Replacing the file by another one of the same name does not affect an open
    one; after it was closed, it is an error. If the file is truncated in place, ``gather`` raises a
    ``UserError``, but reading a view kills the process (SIGBUS).

    Args:
        path: Path of a regular file.

    Raises:
        OSError: The file cannot be opened; ``strerror`` gives the reason.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptors = DESCRIPTORS  # the module may be gone when this object is deleted
        descriptor = self._descriptors.get(self, self._open)  # open as long as this variable refers to it
        status = os.fstat(descriptor.number)
        self.size = status.st_size
        """Size of the file in bytes when it was opened."""
        self._identity = _identity(status)
        self._pages: weakref.ref[mmap.mmap] | None = None

    def __del__(self) -> None:
        self._descriptors.drop(self)

    def _open(self) -> int:
        try:
            # Without O_NONBLOCK, opening a named pipe would block until it has a writer.
            number = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        except ValueError:
            raise OSError(errno.EINVAL, "not a valid file name", os.fspath(self.path)) from None
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(self.path))
        return number

    def _open_again(self) -> int:
        number = self._open()
        if _identity(os.fstat(number)) != self._identity:
            os.close(number)
            raise OSError(errno.ESTALE, "replaced or changed while it was in use", os.fspath(self.path))
        return number

    def _descriptor(self) -> Descriptor:
        """Return the open file.

        Raises:
            UserError: The file was closed, and cannot be opened again or is another one now.
        """
        try:
            return self._descriptors.get(self, self._open_again)
        except OSError as error:
            advice = limit_advice(error) or "start again with files that do not change"
            raise UserError(f"{self.path}: {error.strerror}; {advice}") from None

    def array(self, dtype: DTypeLike, offset: int, count: int) -> NDArray[Any]:
        """Return a read-only view of ``count`` items starting at byte ``offset``; pages are read on access.

        Raises:
            TypeError: The items do not lie within the file.
            UserError: The file cannot be mapped.
        """
        # The mapping lives as long as the views, so that datasets that are not read hold no descriptors.
        pages = self._pages() if self._pages is not None else None
        if pages is None and self.size > 0:  # An empty file cannot be mapped.
            pages = self._map()
            self._pages = weakref.ref(pages)
        return np.ndarray((count,), dtype, pages or b"", offset)

    def release(self) -> None:
        """Drop pages read through views from memory; views stay valid and read them again on access."""
        pages = self._pages() if self._pages is not None else None
        if pages is not None and hasattr(mmap, "MADV_DONTNEED"):
            pages.madvise(mmap.MADV_DONTNEED)

    def read(self, offset: int, size: int) -> bytes:
        """Return some bytes of the file, or fewer if it ends before, through the kernel's readahead.

        Raises:
            UserError: The file cannot be read.
        """
        return self._pread(self._descriptor(), [size], [offset])[0]

    def read_array(self, dtype: DTypeLike, offset: int, count: int) -> NDArray[Any]:
        """Return a copy of ``array(dtype, offset, count)``, which is read without mapping the file.

        Raises:
            UserError: The file ends before, or cannot be read.
        """
        dtype = np.dtype(dtype)
        data = self.read(offset, count * dtype.itemsize)
        if len(data) != count * dtype.itemsize:
            raise UserError(f"{self.path}: truncated while it was open; copy or build it again")
        return np.frombuffer(data, dtype)

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
        descriptor = self._descriptor()
        if not descriptor.is_random and hasattr(os, "posix_fadvise"):
            # Turn off the kernel's readahead; where the file system rejects the hint, nothing is lost.
            with contextlib.suppress(OSError):
                os.posix_fadvise(descriptor.number, 0, 0, os.POSIX_FADV_RANDOM)
            descriptor.is_random = True
        parts = self._pread(descriptor, sizes.tolist(), offsets.tolist())
        if sum(map(len, parts)) != sizes.sum():
            raise UserError(f"{self.path}: truncated while it was open; copy or build it again")
        return b"".join(parts)

    def _pread(self, descriptor: Descriptor, sizes: list[int], offsets: list[int]) -> list[bytes]:
        try:
            return list(map(os.pread, repeat(descriptor.number), sizes, offsets))
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot read the file: {error.strerror}; check the file system"
            ) from None

    def _map(self) -> mmap.mmap:
        descriptor = self._descriptor()
        try:
            try:
                return mmap.mmap(descriptor.number, self.size, access=mmap.ACCESS_READ)
            except OSError as error:
                # A mapping needs a descriptor of its own, which other files can spare.
                if error.errno != errno.EMFILE or not self._descriptors.clear():
                    raise
                return mmap.mmap(descriptor.number, self.size, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            advice = limit_advice(error) or "copy it to another file system"
            raise UserError(f"{self.path}: cannot map the file into memory: {error}; {advice}") from None


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    """Return what tells a file from another one of the same name, and from itself after a change."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
