"""Training step without DeepSpeed, with timers of its parts and measurement of its memory."""

import ctypes
import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from elc_bert.config.schema import ModelConfig
from elc_bert.data.sampling.steps import MicroBatch
from elc_bert.kernels import Kernels
from elc_bert.model import ElcBertForMaskedLM, use_kernels
from elc_bert.model.encoder import Layer
from elc_bert.model.loss import masked_lm_loss
from elc_bert.optim import Lamb, parameter_groups
from elc_bert.utils.errors import UserError
from elc_bert.utils.machine import peak_resident_bytes

PARTS = ("data", "embedding", "layer mixing", "attention", "feed-forward", "head + loss", "optimizer")
"""Parts of a step in the order in which they are shown; REST is the remainder."""
REST = "rest"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Reader = Callable[[], Sequence[MicroBatch]]


class Training:
    """Model that takes training steps with LAMB and dropout.

    Args:
        read: Function that returns the micro-batches of the next step.
        precision: ``fp32`` or ``bf16``. In ``bf16`` weights, activations and gradients are bfloat16; LAMB
            updates fp32 master weights with gradients cast to fp32, and the weights are cast from them.
    """

    def __init__(
        self, config: ModelConfig, kernels: Kernels, precision: str, device: torch.device, read: Reader
    ) -> None:
        torch.manual_seed(0)
        self.device = device
        self.read = read
        self.model = ElcBertForMaskedLM(config).to(device)
        use_kernels(self.model, kernels)
        groups = parameter_groups(self.model, weight_decay=0.1)
        self._weights: list[Tensor] = []
        self._masters: list[Tensor] = []
        if precision == "bf16":
            for group in groups:
                masters = [nn.Parameter(p.detach().clone()) for p in group["params"]]
                self._weights += group["params"]
                self._masters += masters
                group["params"] = masters
            self.model.to(torch.bfloat16)
        self.lamb = Lamb(groups, lr=1e-4)

    def step(self, timer: "StepTimer | None" = None) -> None:
        """Take a step: read, forward, backward, update."""
        timer = timer or StepTimer(self.device)
        with timer.part("data"):
            micro_batches = self.read()
        self.gradients(micro_batches, timer)
        with timer.part("optimizer"):
            self.update()
            self.model.zero_grad(set_to_none=True)

    def gradients(self, micro_batches: Sequence[MicroBatch], timer: "StepTimer | None" = None) -> None:
        """Run forward and backward passes of all micro-batches."""
        timer = timer or StepTimer(self.device)
        predicted = sum(len(micro.targets) for micro in micro_batches)
        for micro in micro_batches:
            with timer.part("data"):
                batch = micro.to(self.device, non_blocking=True)
            logits = self.model(batch.input_ids, batch.attention_mask, batch.positions)
            with timer.part("head + loss"):
                loss, _ = masked_lm_loss(logits, batch.targets, kernels=self.model.kernels)
                loss = loss / max(1, predicted)
            timer.backward_of(loss)
            loss.backward()

    @torch.no_grad()
    def update(self) -> None:
        """Take an optimizer step, through fp32 master weights if there are any."""
        if self._masters:
            for weight, master in zip(self._weights, self._masters, strict=True):
                assert weight.grad is not None
                master.grad = weight.grad.float()
        self.lamb.step()
        if self._masters:
            torch._foreach_copy_(self._weights, self._masters)
            for master in self._masters:
                master.grad = None


class StepTimer:
    """Timer of the parts of a step; it does nothing unless it instruments a model.

    In the forward pass, a part is the time between entering and leaving its modules. In the backward pass,
    every autograd node is timed, and counts for the part that created it, by its sequence number.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._is_on = False
        self._spans: list[tuple[str, Any, Any]] = []
        self._made: list[tuple[int, int, str]] = []
        """Ranges of sequence numbers: the first, one past the last, and the part that created these nodes."""

    @contextmanager
    def instrument(self, model: ElcBertForMaskedLM) -> Iterator[None]:
        """Time the parts of the model within this block."""
        modules: dict[str, list[nn.Module]] = {part: [] for part in PARTS}
        modules["embedding"] = [model.encoder.embedding]
        modules["head + loss"] = [model.head]
        for module in model.modules():
            if isinstance(module, Layer):
                modules["layer mixing"].append(module.mixture)
                modules["attention"].append(module.attention)
                modules["feed-forward"].append(module.feed_forward)
        if model.encoder.output_mixture is not None:
            modules["layer mixing"].append(model.encoder.output_mixture)
        handles = []
        for part, of_part in modules.items():
            for module in of_part:
                begun: list[Any] = []
                handles.append(
                    module.register_forward_pre_hook(lambda *_, begun=begun: begun.append(self._now()))
                )
                handles.append(
                    module.register_forward_hook(
                        lambda *_, begun=begun, part=part: self._end(part, begun.pop())
                    )
                )
        self._is_on = True
        yield
        self._is_on = False
        for handle in handles:
            handle.remove()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time of this block to a part."""
        begun = self._now() if self._is_on else None
        yield
        if self._is_on:
            self._end(name, begun)

    def backward_of(self, loss: Tensor) -> None:
        """Time the nodes that will be run by ``loss.backward()``."""
        if not self._is_on:
            return
        seen, waiting = set(), [loss.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
            number = node._sequence_nr()
            part = next((part for first, end, part in self._made if first <= number < end), REST)
            begun: list[Any] = []
            node.register_prehook(lambda *_, begun=begun: begun.append(self._mark()))
            node.register_hook(
                lambda *_, begun=begun, part=part: self._spans.append((part, begun.pop(), self._mark()))
            )
        self._made.clear()

    def seconds(self) -> Counter[str]:
        """Return the total seconds by part."""
        synchronize(self.device)
        total: Counter[str] = Counter()
        for part, begin, end in self._spans:
            total[part] += begin.elapsed_time(end) / 1e3 if self.device.type == "cuda" else end - begin
        return total

    def _now(self) -> tuple[int, Any]:
        return torch._C._autograd._get_sequence_nr(), self._mark()

    def _end(self, part: str, begun: Any) -> None:
        first, begin = begun
        following, end = self._now()
        self._made.append((first, following, part))
        self._spans.append((part, begin, end))

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Memory:
    """Memory in bytes: of the whole process on a CPU, of PyTorch's tensors on a GPU."""

    peak: int
    """Peak during a step."""
    activations: int
    """Peak during forward and backward, in addition to weights, gradients and optimizer state."""


def measure_memory(training: Training) -> Memory:
    """Measure the memory of a step, after a first step that allocates gradients and optimizer state."""
    device, model = training.device, training.model
    if device.type != "cuda":
        # Return freed memory to the system at once. Otherwise it would still count as used.
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 1 << 16)  # M_TRIM_THRESHOLD
    micro_batches = training.read()
    training.gradients(micro_batches)
    training.update()
    model.zero_grad(set_to_none=False)
    gc.collect()
    before, first_peak = _start_peak(device), _peak(device)
    training.gradients(micro_batches)
    during = _peak(device)
    training.update()
    return Memory(max(first_peak, _peak(device)), during - before)


def _start_peak(device: torch.device) -> int:
    """Reset the peak, and return the memory in use."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError as error:
        raise UserError(
            f"peak memory cannot be measured: /proc/self/clear_refs: {error.strerror}; Linux lets a process "
            "reset its own peak, so run this outside of the sandbox that forbids it"
        ) from None
    return peak_resident_bytes()


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident_bytes()
