"""What is measured while training."""

import math
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from elc_bert.data.sampling.steps import MicroBatch
from elc_bert.optim.lamb import TensorNorms
from elc_bert.utils.machine import peak_resident_bytes

T = TypeVar("T")


class Totals:
    """Sums over micro-batches: loss, right predictions, predictions, real tokens, all tokens, words.

    What the device computes stays there in float64 until read, and the host counts the rest, so that
    adding never waits for a GPU.
    """

    def __init__(self, device: torch.device, values: list[float] | None = None):
        self.device = device
        values = [*(values or []), *[0.0] * 6][:6]  # older checkpoints have fewer
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        if any(values):
            self._sums.copy_(torch.tensor(values[:2], dtype=torch.float64))
        self._counts = values[2:]

    def add(self, loss: Tensor, correct: Tensor, micro: MicroBatch) -> None:
        """Add one micro-batch: its summed loss (nats) and number of right predictions."""
        self._sums[0] += loss.detach()
        self._sums[1] += correct
        self._count([len(micro.targets), micro.tokens, micro.input_ids.numel(), micro.words])

    def merge(self, other: "Totals") -> None:
        self._sums += other._sums
        self._count(other._counts)

    def forget_loss(self) -> None:
        """Count what was read, but not the loss, which was not finite, nor the predictions."""
        self._sums.zero_()
        self._counts[0] = 0.0

    def reduce(self) -> None:
        """Sum over all ranks. Collective."""
        everything = torch.tensor(self.values(), dtype=torch.float64, device=self.device)
        dist.all_reduce(everything)
        self._sums, self._counts = everything[:2], everything[2:].tolist()

    def values(self) -> list[float]:
        """All sums; waits for the device."""
        return [*self._sums.tolist(), *self._counts]

    def _mean(self, number: int) -> float:
        values = self.values()
        return values[number] / values[2] if values[2] else math.nan

    def _count(self, counts: Iterable[float]) -> None:
        self._counts = [mine + more for mine, more in zip(self._counts, counts, strict=True)]

    @property
    def loss(self) -> float:
        """Mean cross entropy per predicted token, in nats; NaN of none."""
        return self._mean(0)

    @property
    def accuracy(self) -> float:
        """Share of the predicted tokens that are right; NaN of none."""
        return self._mean(1)

    @property
    def tokens(self) -> int:
        """Real tokens, padding not counted."""
        return int(self._counts[1])

    @property
    def words(self) -> int:
        """Words of the text that was read."""
        return int(self._counts[3])

    @property
    def real_share(self) -> float:
        """Real tokens among the tokens that were computed on; the rest is padding."""
        return self._counts[1] / max(1.0, self._counts[2])


class Stopwatch:
    """Seconds of training since the last reading, without evaluation and checkpoints."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._waited = 0.0

    def waiting_for(self, items: Iterable[T]) -> Iterator[T]:
        """The items, while the time that each one takes to come is noted."""
        iterator = iter(items)
        while True:
            start = time.perf_counter()
            item = next(iterator, None)
            self._waited += time.perf_counter() - start
            if item is None:
                return
            yield item

    def exclude(self, seconds: float) -> None:
        self._start += seconds

    def read(self) -> tuple[float, float]:
        """Seconds, and how many of them went by waiting for the next item."""
        now = time.perf_counter()
        elapsed, self._start = now - self._start, now
        waited, self._waited = self._waited, 0.0
        return elapsed, waited


def peak_memory(device: torch.device) -> int:
    """Most bytes that PyTorch has had in use on a GPU, or this process in memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_bytes()


def lamb_scalars(norms: Mapping[str, TensorNorms], every_tensor: bool) -> dict[str, float]:
    """What to log of a step of LAMB.

    Args:
        norms: by tensor name.
        every_tensor: each tensor's ratios as well, not only their minimum, median and maximum.
    """
    ratios = {name: norm.trust_ratio for name, norm in norms.items() if norm.trust_ratio is not None}
    # A tensor that is still zero, as biases are at first, has no length to compare its update to.
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
