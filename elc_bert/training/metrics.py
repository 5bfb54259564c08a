"""Metrics of training: sums over micro-batches, time, memory, and norms of LAMB."""

import math
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from elc_bert.data.sampling.steps import MicroBatch
from elc_bert.optim.lamb import TensorNorms
from elc_bert.utils.machine import peak_resident_bytes

T = TypeVar("T")


class Totals:
    """Sums over micro-batches: loss, correct predictions, predictions, real tokens, all tokens, words.

    Sums that the device computes stay there, in float64, until they are read; the host counts the rest.
    Adding a micro-batch therefore never waits for a GPU.

    Args:
        device: Device of the losses.
        values: Sums to start from, as ``values()`` returns them.
    """

    def __init__(self, device: torch.device, values: list[float] | None = None) -> None:
        self.device = device
        values = [*(values or []), *[0.0] * 6][:6]  # checkpoints of early versions hold fewer values
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        if any(values):
            self._sums.copy_(torch.tensor(values[:2], dtype=torch.float64))
        self._counts = values[2:]

    def add(self, loss: Tensor, correct: Tensor, micro: MicroBatch) -> None:
        """Add a micro-batch.

        Args:
            loss: Summed loss in nats, scalar.
            correct: Number of correct predictions, scalar.
            micro: The micro-batch.
        """
        self._sums[0] += loss.detach()
        self._sums[1] += correct
        self._count([len(micro.targets), micro.tokens, micro.input_ids.numel(), micro.words])

    def merge(self, other: "Totals") -> None:
        """Add the sums of another object."""
        self._sums += other._sums
        self._count(other._counts)

    def discard_loss(self) -> None:
        """Set loss and predictions to zero, because the loss is not finite; the text read still counts."""
        self._sums.zero_()
        self._counts[0] = 0.0

    def reduce(self) -> None:
        """Sum over all ranks, in place. Collective."""
        everything = torch.tensor(self.values(), dtype=torch.float64, device=self.device)
        dist.all_reduce(everything)
        self._sums, self._counts = everything[:2], everything[2:].tolist()

    def reduced(self) -> "Totals":
        """Return the sums over all ranks, and leave this object as it is. Collective."""
        copy = Totals(self.device, self.values())
        copy.reduce()
        return copy

    def values(self) -> list[float]:
        """Return all sums; waits for the device."""
        return [*self._sums.tolist(), *self._counts]

    def _mean(self, number: int) -> float:
        values = self.values()
        return values[number] / values[2] if values[2] else math.nan

    def _count(self, counts: Iterable[float]) -> None:
        self._counts = [mine + more for mine, more in zip(self._counts, counts, strict=True)]

    @property
    def loss(self) -> float:
        """Mean cross entropy per predicted token, in nats; NaN without predictions."""
        return self._mean(0)

    @property
    def accuracy(self) -> float:
        """Share of the predicted tokens that are correct; NaN without predictions."""
        return self._mean(1)

    @property
    def tokens(self) -> int:
        """Number of real tokens, without padding."""
        return int(self._counts[1])

    @property
    def words(self) -> int:
        """Number of words of the text."""
        return int(self._counts[3])

    @property
    def real_share(self) -> float:
        """Share of real tokens among all tokens computed; the rest is padding."""
        return self._counts[1] / max(1.0, self._counts[2])


class Stopwatch:
    """Seconds of training since the last reading, without evaluations and checkpoints."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._waited = 0.0

    def waiting_for(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, and measure how long each one takes to arrive."""
        iterator = iter(items)
        while True:
            start = time.perf_counter()
            item = next(iterator, None)
            self._waited += time.perf_counter() - start
            if item is None:
                return
            yield item

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time within this block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._start += time.perf_counter() - start

    def read(self) -> tuple[float, float]:
        """Return the seconds since the last reading, and those of them spent waiting for the next item."""
        now = time.perf_counter()
        elapsed, self._start = now - self._start, now
        waited, self._waited = self._waited, 0.0
        return elapsed, waited


def peak_memory(device: torch.device) -> int:
    """Return the peak of the bytes that PyTorch has used on a GPU, or that this process has used on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_bytes()


def lamb_scalars(norms: Mapping[str, TensorNorms], every_tensor: bool) -> dict[str, float]:
    """Return the scalars to log about a step of LAMB.

    Args:
        norms: Norms by tensor name.
        every_tensor: Include the ratios of each tensor, not only their minimum, median and maximum.
    """
    ratios = {name: norm.trust_ratio for name, norm in norms.items() if norm.trust_ratio is not None}
    # A tensor that is still zero, as biases are at first, has no norm to compare its update with.
    updates = {name: n.update_to_weight for name, n in norms.items() if math.isfinite(n.update_to_weight)}
    entry = {}
    for kind, values in (("trust_ratio", ratios), ("update_to_weight", updates)):
        if values:
            entry[f"lamb/{kind}_min"] = min(values.values())
            entry[f"lamb/{kind}_median"] = statistics.median(values.values())
            entry[f"lamb/{kind}_max"] = max(values.values())
        if every_tensor:
            entry |= {f"{kind}/{name}": value for name, value in values.items()}
    return entry
