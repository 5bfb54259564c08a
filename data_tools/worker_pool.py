"""Worker processes that share the work of a command on one machine."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

WORKER_KILLED = (
    "a worker process was killed, most likely because memory ran out; "
    "run the same command again with a smaller --workers"
)
SPAWN_CONTEXT = multiprocessing.get_context("spawn")
"""Start method of the workers. MPI, the progress bar and some libraries run threads, and a forked child could
inherit a lock that one of them holds."""


def make_worker_pool(
    workers: int, initializer: Callable[..., None] | None = None, arguments: tuple[Any, ...] = ()
) -> ProcessPoolExecutor:
    """Return a pool of processes that end when this process ends, even if it is killed.

    Tasks must be submitted inside ``interrupts_blocked``, because submitting may start a process.

    Args:
        workers: Number of worker processes.
        initializer: Function that each worker calls first, with ``arguments``.
        arguments: Arguments of the initializer.
    """
    return ProcessPoolExecutor(workers, SPAWN_CONTEXT, _initialize, (initializer, arguments))


@contextlib.contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Delay Ctrl-C in this process, and block it in processes that are started inside the block.

    The terminal sends Ctrl-C to every process. Only the parent shall handle it and stop the others.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _initialize(initializer: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    if initializer is not None:
        initializer(*arguments)


def _exit_with_parent() -> None:
    # The workers would outlive a parent that is killed, and write to the files of the next command.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
