"""What all ranks must know of each other after every step: whether to stop, and how the checkpoint is."""

import signal
import sys
from types import FrameType, TracebackType

import torch
import torch.distributed as dist

from elc_bert.distributed.world import World

#: Slurm's notice before a time limit or a pre-emption, what launchers send, and Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Control:
    """Notes signals instead of dying of them, and tells all ranks so that they stop after the same step.

    The exchange is on the host (gloo), so that no rank waits for its GPU.
    """

    def __init__(self, world: World):
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None
        self._signal: int | None = None
        for number in SIGNALS:
            signal.signal(number, self._note)

    def highest(self, *values: int) -> tuple[int, ...]:
        """The highest of each value over all ranks. Collective."""
        if self._group is None:
            return values
        everyone = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(everyone, op=dist.ReduceOp.MAX, group=self._group)
        return tuple(everyone.tolist())

    @property
    def signalled(self) -> int:
        """Whether this rank has been told to stop: 0, or the signal's number."""
        return self._signal or 0

    def stopping(self) -> bool:
        """Whether any rank has been told to stop. Collective."""
        return self.highest(self.signalled)[0] > 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            raise KeyboardInterrupt  # Ctrl-C again: now
        self._signal = number


def leave_it_to_the_rank(worker: int = 0) -> None:
    """In a process that prepares batches: the training process ends it, and says what there is to say.

    Launchers send their signals to all processes below them. And when a rank dies while it is handed a batch,
    the thread of the worker that does so would print a traceback.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    say = sys.excepthook

    def say_unless_left_alone(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, ConnectionError | EOFError):
            say(kind, error, trace)

    sys.excepthook = say_unless_left_alone
