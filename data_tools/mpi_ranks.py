"""The ranks of one command: all processes that ``mpirun`` or ``srun`` started, or a single process."""

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

from elc_bert.utils.errors import UserError, describe_expected
from elc_bert.utils.machine import available_cores, started_by_mpi

T = TypeVar("T")
POLL_SECONDS = 0.01
"""Interval at which a rank that waits for the others checks whether they have arrived."""


class Ranks:
    """Communication between the ranks. Every method is collective: all ranks call it, in the same order.

    Inside the ``with`` block a ``UserError`` must be raised by one of these methods, so that all ranks know
    about it and only the first one reports it. Any other exception aborts all ranks.

    Raises:
        UserError: MPI started this process, but mpi4py cannot be imported.
    """

    rank = 0
    size = 1

    def __init__(self) -> None:
        self._world: Any = None
        if started_by_mpi():
            try:
                from mpi4py import MPI
            except ImportError as error:
                raise UserError(
                    f"mpi4py: cannot be imported, but MPI started this process: {error}; run: "
                    "pip install 'elc-bert[mpi]', or run the command without mpirun"
                ) from None
            self._world = MPI.COMM_WORLD
            self.rank, self.size = self._world.Get_rank(), self._world.Get_size()

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.size > 1 and error is not None and not isinstance(error, UserError | SystemExit):
            if not isinstance(error, KeyboardInterrupt):
                traceback.print_exception(error)
            sys.stderr.flush()
            self._world.Abort(130 if isinstance(error, KeyboardInterrupt) else 1)

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in the order of the ranks, on every rank."""
        if self.size == 1:
            return [value]
        waiting = self._world.Ibarrier()
        while not waiting.Test():  # MPI's own wait would keep a core busy
            time.sleep(POLL_SECONDS)
        values: list[T] = self._world.allgather(value)
        return values

    def run_on_first(self, work: Callable[[], T]) -> T:
        """Call ``work`` on the first rank and return its result on every rank.

        An error that is not a bug stops all ranks, as in ``stop_if_any``.
        """
        result, message = None, None
        if self.rank == 0:
            try:
                result = work()
            except Exception as error:
                message = describe_expected(error)
                if message is None:
                    raise
        result, message = self.gather((result, message))[0]
        self.stop_if_any([message])
        return result  # type: ignore[return-value]  # None only if work returns None

    def stop_if_any(self, messages: list[str | None]) -> None:
        """Stop all ranks if there is an error message. The first rank reports the first message.

        Args:
            messages: Error messages or None. The list is the same on every rank.

        Raises:
            UserError: There is a message, on the first rank.
            SystemExit: There is a message, with status 1 on the other ranks.
        """
        message = next(filter(None, messages), None)
        if message is not None:
            if self.rank == 0:
                raise UserError(message)
            sys.exit(1)

    def cores_per_rank(self) -> int:
        """Return the number of processor cores for this rank.

        These are the cores that this rank may use, divided by the number of ranks that may use the same ones.
        """
        mine = (socket.gethostname(), sorted(os.sched_getaffinity(0)))
        return max(1, available_cores() // self.gather(mine).count(mine))
