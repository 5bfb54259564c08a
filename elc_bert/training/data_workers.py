"""Data workers: processes that prepare batches, which ``Run.batches`` starts through PyTorch's DataLoader."""

import multiprocessing.queues
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from elc_bert.distributed.signals import SIGNALS
from elc_bert.utils.errors import UserError


def prepare_data_worker(worker: int = 0) -> None:
    """Leave signals to the training process, and exit if a batch cannot be sent.

    Launchers send their signals to all processes below them; the training process ends its data workers
    itself.

    Args:
        worker: Number of the worker, as ``DataLoader`` passes it to ``worker_init_fn``.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # By default the thread that sends batches prints a traceback, drops the batch and continues, and the
    # training process waits for that batch without end. The hook exists for concurrent.futures (Python 3.13).
    queue: Any = multiprocessing.queues.Queue
    queue._on_queue_feeder_error = staticmethod(_exit_after_feeder_error)


def _exit_after_feeder_error(error: BaseException, item: Any) -> None:
    if not isinstance(error, ConnectionError):  # the training process has died, and others report that
        print(
            f"error: a data worker could not send a batch: {type(error).__name__}: {error}",
            file=sys.stderr,
            flush=True,
        )
    os._exit(1)


@contextmanager
def explaining_worker_failures() -> Iterator[None]:
    """Raise errors of the DataLoader about its workers as UserError, with a message of one line.

    The end of a worker raises an error in the training process wherever that is, not only where it waits for
    a batch.
    """
    try:
        yield
    except RuntimeError as error:
        if (problem := describe_worker_failure(str(error))) is None:
            raise
        raise UserError(problem) from None


def describe_worker_failure(text: str) -> str | None:
    """Return a one-line message if the text of an error is about data workers, else None."""
    if not (found := re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", text)):
        return None
    killed = re.search(r"killed by signal: ([^.]*)", text)
    cause = f"was killed by a signal ({killed[1].strip()})" if killed else "ended unexpectedly"
    return (
        f"elc_bert.data.workers: the data worker with pid {found[1].strip()} {cause}; if the machine had no "
        "memory left, use fewer workers, or prepare batches in the training process with "
        "elc_bert.data.workers=0; --resume auto continues"
    )


def describe_failed_start(error: OSError) -> str:
    """Return a one-line message for an error at the start of the workers."""
    return (
        f"elc_bert.data.workers: data workers cannot be started: {error.strerror or error}; free some memory "
        "and space in /dev/shm, or prepare batches in the training process with elc_bert.data.workers=0"
    )
