"""Processes that share the work of a command on one machine."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

KILLED = (
    "a worker process was killed, most likely for want of memory; "
    "run the same command again with fewer --workers"
)
#: Not forked: MPI, the progress bar and libraries have threads, which a fork could catch holding a lock.
CONTEXT = multiprocessing.get_context("spawn")


def worker_pool(
    workers: int, initializer: Callable[..., None] | None = None, arguments: tuple[Any, ...] = ()
) -> ProcessPoolExecutor:
    """A pool of processes that end with this one, however it ends; submit under `interrupts_blocked`.

    Args:
        workers: how many.
        initializer: called in each of them first, with `arguments`.
    """
    return ProcessPoolExecutor(workers, CONTEXT, _start, (initializer, arguments))


@contextlib.contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Keeps Ctrl-C waiting, and for good in processes that are started meanwhile.

    It reaches every process of the terminal; the parent alone reports it and stops the rest.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(initializer: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initializer is not None:
        initializer(*arguments)


def _end_with_parent() -> None:
    # A pool's processes would outlive a parent that is killed, and write beside those of the next command.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
