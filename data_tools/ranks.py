"""The processes of one command that `mpirun` or `srun` started, or a single one."""

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

from elc_bert.utils.errors import UserError, told
from elc_bert.utils.machine import available_cores, started_by_mpi

T = TypeVar("T")
POLL_SECONDS = 0.01


class Ranks:
    """This process and its like. Every method is collective: all ranks call it, in the same order.

    In the `with` block, a `UserError` must come out of one of the methods, so that all ranks know of it
    and one speaks; any other exception ends all ranks.
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
                    f"this process was started by MPI, but mpi4py cannot be used: {error}; install mpi4py, "
                    "or start the command without mpirun"
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
        """The values of all ranks, in order, on all."""
        if self.size == 1:
            return [value]
        waiting = self._world.Ibarrier()
        while not waiting.Test():  # MPI itself would keep a core busy meanwhile
            time.sleep(POLL_SECONDS)
        return self._world.allgather(value)

    def first(self, work: Callable[[], T]) -> T:
        """What `work` returns on the first rank, on all; a mistake in it ends all."""
        result, message = None, None
        if self.rank == 0:
            try:
                result = work()
            except UserError as error:
                message = str(error)
            except OSError as error:
                message = told(error)
        result, message = self.gather((result, message))[0]
        self.stop_on([message])
        return result  # type: ignore[return-value]

    def stop_on(self, messages: list[str | None]) -> None:
        """Ends all ranks if there is a message, which is the same list on all: the first one says it.

        Raises:
            UserError: on the first rank.
            SystemExit: on the others, with status 1.
        """
        message = next(filter(None, messages), None)
        if message is not None:
            if self.rank == 0:
                raise UserError(message)
            sys.exit(1)

    def cores(self) -> int:
        """Processor cores for this rank: those that it may use, divided among the ranks that may as well."""
        mine = (socket.gethostname(), sorted(os.sched_getaffinity(0)))
        return max(1, available_cores() // self.gather(mine).count(mine))
