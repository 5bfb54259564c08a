"""Ranks watch each other, so that all end soon, with one message, if one dies or hangs.

``verdict`` decides, ``lifeline`` carries the signs of life, ``whereabouts`` says where a thread is.
"""

import os
import socket
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeVar

import torch.distributed as dist

from elc_bert.distributed.exit_status import FAILED
from elc_bert.distributed.watchdog.diagnosis import TRAINING, Limits, Member, failure
from elc_bert.distributed.watchdog.heartbeats import Follower, Leader, Lifeline, Meeting, last_words
from elc_bert.distributed.watchdog.stack_traces import peer_is_lost
from elc_bert.utils.errors import UserError

T = TypeVar("T")
#: Seconds that a rank which failed waits to be ended with the others, and that joining may take.
_PATIENCE = 5.0
_JOINING = 60.0


class Watchdog:
    """This rank's part in the watch; it is told what the main thread does.

    That costs an assignment: another thread passes it on. A process alone has nobody to tell.
    """

    def __init__(self) -> None:
        self._me = Member(0, socket.gethostname(), os.getpid())
        self._lifeline: Lifeline | None = None
        self.limits = Limits()

    def begin_step(self, step: int) -> None:
        """An optimizer step begins, counted from 1."""
        self._me.step, self._me.doing = step, TRAINING

    @contextmanager
    def activity(self, what: str) -> Iterator[None]:
        """Something else than training is done meanwhile, such as ``evaluating``."""
        before, self._me.doing = self._me.doing, what
        yield
        self._me.doing = before  # not after an exception: its message says during what

    def track(self, items: Iterable[T]) -> Iterator[T]:
        """The items; each is progress."""
        for item in items:
            self.progress()
            yield item

    def progress(self) -> None:
        """Within a step, or whatever else takes long."""
        if self._lifeline is not None:
            self._lifeline.marks += 1

    def start(self, rank: int, local_rank: int, size: int, limits: Limits) -> None:
        """Begin to watch, or go on with other limits. Collective.

        Raises:
            UserError: this rank and rank 0 do not reach each other.
        """
        self.limits = limits
        if self._lifeline is not None:
            self._lifeline.limits = limits
            return
        self._me.rank, self._me.pid = rank, os.getpid()
        leader = Leader(self._me, size, limits) if rank == 0 else None
        told: list[Meeting | None] = [leader.meeting if leader else None]
        dist.broadcast_object_list(told)
        (meeting,) = told
        assert meeting is not None
        # Of those that lose rank 0, one on each host says so; on that of rank 0 itself rank 1 most likely.
        speaks = local_rank == 0 or rank == 1
        self._lifeline = leader or Follower(self._me, size, limits, meeting, speaks)
        self._lifeline.start()
        if not self._lifeline.ready.wait(_JOINING):
            who = (
                f"rank 0 at {' or '.join(meeting.addresses)}, port {meeting.port}"
                if rank
                else "all other ranks"
            )
            raise UserError(
                f"{self._me.host}: no connection to {who} in {_JOINING:.0f} s; allow TCP between the hosts"
            )

    def stop(self) -> None:
        """End in order: from now on, that a rank goes is no loss."""
        if self._lifeline is not None:
            self._lifeline.change("ended")
            self._lifeline.join()

    def end_all_ranks(self, error: BaseException | None = None) -> NoReturn:
        """End this rank and all others because of an error, which is told first if it is given.

        If a collective failed because a rank was lost, the verdict on that comes instead.
        """
        lifeline = self._lifeline
        if lifeline is not None:
            if error is not None and peer_is_lost(error):
                time.sleep(1.25 * lifeline.limits.silence)
            if error is not None and not isinstance(error, KeyboardInterrupt):
                told = failure(self._me, error, lifeline.size)
                last_words("".join(traceback.format_exception(error)) + told)
            lifeline.change("failed")
            time.sleep(_PATIENCE)
        os._exit(FAILED)
