"""Descriptors of open files, of which the least recently used are closed before a process has too many.

A blend may consist of thousands of datasets, while many systems allow a process only 1,024 open files, among
them its sockets and pipes.
"""

import contextlib
import errno
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable

SHARE = 4
"""Descriptors are kept up to one part in this many of the limit on open files."""
MAX_LIMIT = 1 << 16
"""Highest limit on open files that this process asks for."""


class Descriptor:
    """Open file, which is closed when nothing refers to this object any more."""

    def __init__(self, number: int) -> None:
        self.number = number
        """Number of the descriptor."""
        self.is_random = False
        """True once readahead has been turned off."""

    def __del__(self) -> None:
        os.close(self.number)


class DescriptorCache:
    """Descriptors of a process, by an object that stands for the file.

    Threads and forked processes may share it. A descriptor that a thread still uses stays open when it is
    dropped from the cache.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[int, Descriptor] = OrderedDict()
        self._renew_lock()
        os.register_at_fork(after_in_child=self._renew_lock)

    def _renew_lock(self) -> None:
        # Another thread may hold the lock at the moment of a fork, and does not exist in the child process.
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: object, open_file: Callable[[], int]) -> Descriptor:
        """Return the descriptor of a file, which is opened if it is not open.

        Args:
            key: Object that stands for the file, and calls ``drop`` when it is deleted.
            open_file: Function that opens the file and returns the number of the descriptor.

        Raises:
            OSError: The file cannot be opened.
        """
        with self._lock:
            found = self._kept.get(id(key))
            if found is not None:
                self._kept.move_to_end(id(key))
                return found
            while len(self._kept) >= self._capacity():
                self._kept.popitem(last=False)
            try:
                number = open_file()
            except OSError as error:
                # Something else in this process may need more descriptors than expected.
                if error.errno != errno.EMFILE or not self.clear():
                    raise
                number = open_file()
            return self._kept.setdefault(id(key), Descriptor(number))

    def drop(self, key: object) -> None:
        """Forget the descriptor of a file."""
        with self._lock:
            self._kept.pop(id(key), None)

    def clear(self) -> bool:
        """Close all files that are not in use, and return whether there were any."""
        with self._lock:
            is_empty = not self._kept
            self._kept.clear()
        return not is_empty

    def _capacity(self) -> int:
        """Return the number of descriptors to keep; raise the limit on open files if it is reached."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = MAX_LIMIT if hard == resource.RLIM_INFINITY else min(hard, MAX_LIMIT)
        if soft != resource.RLIM_INFINITY and soft < highest and len(self._kept) >= soft // SHARE:
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
                soft = highest
        return max(1, (MAX_LIMIT if soft == resource.RLIM_INFINITY else soft) // SHARE)


DESCRIPTORS = DescriptorCache()
"""Descriptors of this process."""
