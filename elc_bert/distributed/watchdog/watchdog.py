"""Watchdog of a rank: all ranks end soon, with one message, if one of them dies or hangs.

The rank's thread in ``heartbeats`` (``coordinator`` on rank 0, ``peer`` on the others) exchanges heartbeats,
``diagnosis`` decides from them whether the run is healthy, and ``stack_traces`` locates a thread in the code.
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
from elc_bert.distributed.watchdog.coordinator import Coordinator
from elc_bert.distributed.watchdog.diagnosis import TRAINING, RankStatus, Timeouts, exception_message
from elc_bert.distributed.watchdog.heartbeats import CoordinatorAddress, HeartbeatThread, print_final_message
from elc_bert.distributed.watchdog.peer import Peer
from elc_bert.distributed.watchdog.stack_traces import is_failed_collective
from elc_bert.utils import logs
from elc_bert.utils.errors import UserError

T = TypeVar("T")
_END_TIMEOUT = 5.0
"""Seconds for which a failed rank waits for rank 0 to end it together with the others."""
_CONNECT_TIMEOUT = 60.0
"""Seconds within which all ranks must connect to rank 0."""


class Watchdog:
    """Watchdog of this rank, to which the main thread reports its progress.

    A report costs an assignment; the heartbeat thread passes it on. Before ``start`` reports have no effect.
    In a run of one process, the thread only notices a hang.
    """

    def __init__(self) -> None:
        self._status = RankStatus(0, socket.gethostname(), os.getpid())
        self._heartbeats: HeartbeatThread | None = None
        self.timeouts = Timeouts()

    def begin_step(self, step: int) -> None:
        """Report that an optimizer step begins; steps are counted from 1."""
        self._status.step, self._status.activity = step, TRAINING

    @contextmanager
    def activity(self, name: str) -> Iterator[None]:
        """Report that this rank is busy with something other than training, such as ``evaluating``."""
        before, self._status.activity = self._status.activity, name
        yield
        self._status.activity = before  # not after an exception, whose message names the activity

    def track(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, and report progress before each of them."""
        for item in items:
            self.progress()
            yield item

    def progress(self) -> None:
        """Report progress within a step or an activity that takes long."""
        if self._heartbeats is not None:
            self._heartbeats.progress_count += 1

    def start(
        self, rank: int, local_rank: int, world_size: int, several_hosts: bool, timeouts: Timeouts
    ) -> None:
        """Start the heartbeats, or change the timeouts if they have been started. Collective.

        Args:
            rank: Rank of this process.
            local_rank: Rank among the processes of this host.
            world_size: Number of ranks.
            several_hosts: True if the ranks run on several hosts.
            timeouts: Timeouts of the watchdog.

        Raises:
            UserError: This rank and rank 0 cannot connect to each other.
        """
        self.timeouts = timeouts
        if self._heartbeats is not None:
            self._heartbeats.timeouts = timeouts
            return
        self._status.rank, self._status.pid = rank, os.getpid()
        coordinator = Coordinator(self._status, world_size, timeouts, several_hosts) if rank == 0 else None
        if world_size == 1:
            assert coordinator is not None
            self._heartbeats = coordinator
            self._heartbeats.start()
            return
        shared: list[CoordinatorAddress | None] = [coordinator.address if coordinator else None]
        dist.broadcast_object_list(shared)
        (address,) = shared
        assert address is not None
        # If rank 0 is lost, one rank on each host reports it. On the host of rank 0 itself that is rank 1,
        # which most launchers place there.
        reports_loss = local_rank == 0 or rank == 1
        self._heartbeats = coordinator or Peer(self._status, world_size, timeouts, address, reports_loss)
        self._heartbeats.start()
        if not self._heartbeats.connected.wait(_CONNECT_TIMEOUT):
            if rank:
                missing = f"rank 0 at {' or '.join(address.hosts)}, port {address.port}"
            else:
                missing = "all other ranks"
            raise UserError(
                f"{self._status.host}: no connection to {missing} in {_CONNECT_TIMEOUT:.0f} s; allow TCP "
                "between the hosts"
            )

    def watch_signals(self) -> None:
        """End the run at the second SIGTERM if it has made no progress since the first."""
        if self._heartbeats is not None:
            self._heartbeats.watch_signals()

    def stop(self) -> None:
        """Stop the heartbeats cleanly, so that the exit of this rank does not count as a loss."""
        if self._heartbeats is not None:
            self._heartbeats.report("ended")
            self._heartbeats.join()

    def end_all_ranks(self, error: BaseException | None = None) -> NoReturn:
        """End this rank and all others because of an error.

        If the error only says that a collective failed because a rank was lost, the watchdog's message about
        the lost rank is printed in its place.

        Args:
            error: Error to print with its traceback, or None if it has been printed.
        """
        heartbeats = self._heartbeats
        if heartbeats is not None:
            if error is not None and is_failed_collective(error):
                time.sleep(1.25 * heartbeats.timeouts.silence)  # the watchdog usually ends this process now
            if error is not None and not isinstance(error, KeyboardInterrupt):
                message = exception_message(self._status, error, heartbeats.world_size)
                print_final_message("".join(traceback.format_exception(error)) + message)
            heartbeats.report("failed")
            time.sleep(_END_TIMEOUT)
        logs.flush()
        os._exit(FAILED)
