"""One optimizer step, and one look at held-out text."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from elc_bert.data.sampling.steps import MicroBatch
from elc_bert.distributed.world import World
from elc_bert.engine.zero_layout import whole
from elc_bert.model.layers import LayerMixture
from elc_bert.model.loss import masked_lm_loss
from elc_bert.training.metrics import Totals


@dataclass
class StepResult:
    """What came of one optimizer step on this rank."""

    totals: Totals
    losses: list[Tensor]
    """Summed loss of each micro-batch, on the device."""
    gradient_norm: Tensor | float
    """Over all ranks, before clipping; not finite where the step was skipped."""


def train_step(
    engine: Any, micro_batches: list[MicroBatch], world: World, label_smoothing: float, seed: int
) -> StepResult:
    """One optimizer step over this rank's part of a global batch. Collective.

    The gradient is that of the mean loss over all masked tokens of the global batch: each micro-batch
    adds its sum divided by their number, and DeepSpeed's averaging over ranks is undone.

    If any rank's loss or gradient is not finite, all ranks skip the step: weights, optimizer state and
    schedule stay as they are, and the engine counts it in ``skipped_steps``.

    Args:
        seed: decides dropout in this step on this rank, so that a resumed run needs no generator state.
    """
    torch.manual_seed(seed)
    # A tensor filled on the device; one copied there would have the host wait for it.
    predicted = torch.full((), sum(len(micro.targets) for micro in micro_batches), device=world.device)
    dist.all_reduce(predicted)
    loss_scale = _loss_scale_left_to_us(engine)
    scale = world.size * loss_scale / predicted.clamp(min=1)
    totals, losses = Totals(world.device), []
    for number, batch in enumerate(world.watchdog.track(on_device(micro_batches, world.device)), start=1):
        engine.set_gradient_accumulation_boundary(number == len(micro_batches))
        loss, correct = _forward(engine, batch, label_smoothing)
        losses.append(loss.detach())
        # An infinite loss may have a finite gradient: 0 times it is NaN, and with that the whole gradient.
        engine.backward(loss * (scale + 0.0 * loss.detach()), scale_wrt_gas=False)
        totals.add(loss, correct, batch)
        if number < len(micro_batches):
            engine.step()
    gradient_norm = _take_step(engine)
    if type(engine.optimizer).__name__ == "FP16_UnfusedOptimizer":
        gradient_norm /= loss_scale  # all other wrappers have done so
    return StepResult(totals, losses, gradient_norm)


def on_device(micro_batches: Iterable[MicroBatch], device: torch.device) -> Iterator[MicroBatch]:
    """Copies on the device; that of each is on its way before the one ahead of it is computed on.

    From page-locked memory, which the loader provides for a GPU, nobody waits for them.
    """
    copies = (micro.to(device, non_blocking=True) for micro in micro_batches)
    for batch, _ in itertools.pairwise(itertools.chain(copies, [None])):
        assert batch is not None
        yield batch


def _forward(engine: Any, batch: MicroBatch, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Summed loss and number of right predictions."""
    logits = engine(batch.input_ids, batch.attention_mask, batch.positions)
    return masked_lm_loss(logits, batch.targets, label_smoothing, engine.module.kernels)


def _loss_scale_left_to_us(engine: Any) -> float:
    """What DeepSpeed divides gradients by in this step without having multiplied the loss by it.

    So it does in fp16 without ZeRO: left alone, gradients would vanish beside Adam's epsilon.
    """
    return engine.optimizer.loss_scale if engine.fp16_enabled() and not engine.zero_optimization() else 1.0


def _take_step(engine: Any) -> Tensor | float:
    """``engine.step()`` where gradients are complete; the norm of the gradient before clipping.

    DeepSpeed's wrappers of the optimizer skip a step that is not finite. In fp32 without ZeRO there is no
    wrapper, and DeepSpeed clips in place and forgets the norm.
    """
    if engine.zero_optimization() or engine.bfloat16_enabled() or engine.fp16_enabled():
        engine.step()
        return engine.get_global_grad_norm()
    norm = torch.nn.utils.get_total_norm(p.grad for p in engine.module.parameters() if p.grad is not None)
    optimizer = engine.optimizer
    # Where a wrapper has it, the engine finds it: it counts the step and leaves the schedule.
    optimizer.overflow = not torch.isfinite(norm)
    with _without_step(optimizer) if optimizer.overflow else contextlib.nullcontext():
        engine.step()
    return norm


@contextlib.contextmanager
def _without_step(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within this block ``optimizer.step`` does nothing."""
    step = optimizer.step
    optimizer.step = lambda *args, **kwargs: None  # type: ignore
    try:
        yield
    finally:
        optimizer.step = step  # type: ignore


def layer_weights(engine: Any) -> dict[str, Tensor]:
    """``ElcBertEncoder.layer_weights`` of the model in the engine. Collective."""
    encoder = engine.module.encoder
    with whole(module.weights for module in encoder.modules() if isinstance(module, LayerMixture)):
        return encoder.layer_weights()


@torch.no_grad()
def evaluate(
    engine: Any, micro_batches: Iterable[MicroBatch], world: World, stopping: Callable[[], bool]
) -> Totals | None:
    """Totals over held-out micro-batches on all ranks. Collective; every rank gives equally many.

    Args:
        stopping: asked before each micro-batch on all ranks; once it says yes the result is None.
    """
    engine.eval()
    totals = Totals(world.device)
    stopped = False
    for batch in world.watchdog.track(on_device(micro_batches, world.device)):
        if stopped := stopping():
            break
        totals.add(*_forward(engine, batch), batch)
    engine.train()
    if stopped:
        return None
    totals.reduce()
    return totals
