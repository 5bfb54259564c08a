"""Signals that stop a run: recorded on the rank that receives them, and exchanged between the ranks."""

import signal
from types import FrameType

import torch
import torch.distributed as dist

from elc_bert.distributed.world import World

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""Slurm's warning before a time limit or a preemption, the signals that launchers send, and Ctrl-C."""


class StopSignals:
    """Record signals instead of being killed by them, so that all ranks stop after the same step.

    The exchange runs on the host (gloo), so that no rank waits for its GPU. If the run makes no progress, the
    watchdog ends it at the second SIGTERM, see ``HeartbeatThread.watch_signals``.

    Args:
        world: Processes of the run. Constructing this object is collective.
    """

    def __init__(self, world: World) -> None:
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None
        self._signal: int | None = None
        for number in SIGNALS:
            signal.signal(number, self._note)
        world.watchdog.watch_signals()

    def max_over_ranks(self, *values: int) -> tuple[int, ...]:
        """Return the element-wise maximum of integers over all ranks. Collective."""
        if self._group is None:
            return values
        everyone = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(everyone, op=dist.ReduceOp.MAX, group=self._group)
        return tuple(everyone.tolist())

    @property
    def received(self) -> int:
        """Number of the signal that this rank has received, or 0."""
        return self._signal or 0

    def received_by_any_rank(self) -> bool:
        """Return whether any rank has received a signal. Collective."""
        return self.max_over_ranks(self.received)[0] > 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C stops at once
        self._signal = number
