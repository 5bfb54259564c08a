"""One optimizer step, and one evaluation on held-out text."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from elc_bert.data.sampling.steps import MicroBatch
from elc_bert.distributed.world import World
from elc_bert.engine.protocol import Engine
from elc_bert.engine.stepping import loss_scale_to_apply, take_step
from elc_bert.model.loss import masked_lm_loss
from elc_bert.training.metrics import Totals


@dataclass
class StepResult:
    """Result of one optimizer step on this rank."""

    totals: Totals
    """Sums over the micro-batches of this rank."""
    losses: list[Tensor]
    """Summed loss of each micro-batch, on the device."""
    gradient_norm: Tensor | float
    """Gradient norm over all ranks, before clipping; not finite if the step was skipped."""


def train_step(
    engine: Engine, micro_batches: list[MicroBatch], world: World, label_smoothing: float, seed: int
) -> StepResult:
    """Take one optimizer step on this rank's part of a global batch. Collective.

    The gradient is that of the mean loss over all masked tokens of the global batch: each micro-batch adds
    its summed loss divided by their number, and DeepSpeed's averaging over ranks is undone.

    If the loss or gradient of any rank is not finite, all ranks skip the step: weights, optimizer state and
    schedule stay as they are, and the engine counts the step in ``skipped_steps``.

    Args:
        engine: Engine with the model.
        micro_batches: Micro-batches of this rank; all ranks have equally many.
        world: Processes of the run.
        label_smoothing: Probability spread evenly over the vocabulary in the loss.
        seed: Seed of dropout in this step on this rank, so that a resumed run needs no generator state.
    """
    torch.manual_seed(seed)
    # The tensor is filled on the device, because a copy to the device would make the host wait for it.
    predicted = torch.full((), sum(len(micro.targets) for micro in micro_batches), device=world.device)
    dist.all_reduce(predicted)
    loss_scale = loss_scale_to_apply(engine)
    scale = world.size * loss_scale / predicted.clamp(min=1)
    totals, losses = Totals(world.device), []
    for number, batch in enumerate(world.watchdog.track(on_device(micro_batches, world.device)), start=1):
        engine.set_gradient_accumulation_boundary(number == len(micro_batches))
        loss, correct = _forward(engine, batch, label_smoothing)
        losses.append(loss.detach())
        # An infinite loss may have a finite gradient. Adding 0 times the loss, which is NaN, to the scale
        # makes the whole gradient NaN, so that the step is skipped.
        engine.backward(loss * (scale + 0.0 * loss.detach()), scale_wrt_gas=False)
        totals.add(loss, correct, batch)
        if number < len(micro_batches):
            engine.step()
    return StepResult(totals, losses, take_step(engine, loss_scale))


def on_device(micro_batches: Iterable[MicroBatch], device: torch.device) -> Iterator[MicroBatch]:
    """Yield copies on the device, each of which was started before the previous one is computed on.

    Copies from page-locked memory, which the data loader provides for a GPU, do not block.
    """
    copies = (micro.to(device, non_blocking=True) for micro in micro_batches)
    for batch, _ in itertools.pairwise(itertools.chain(copies, [None])):
        assert batch is not None
        yield batch


@torch.no_grad()
def evaluate(
    engine: Engine, micro_batches: Iterable[MicroBatch], world: World, stopping: Callable[[], bool]
) -> Totals | None:
    """Return the totals over held-out micro-batches on all ranks. Collective.

    Args:
        engine: Engine with the model.
        micro_batches: Micro-batches of this rank; all ranks have equally many.
        world: Processes of the run.
        stopping: Called on all ranks before each micro-batch; if it returns True, the result is None.
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


def _forward(engine: Engine, batch: MicroBatch, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return the summed loss and the number of correct predictions."""
    logits = engine(batch.input_ids, batch.attention_mask, batch.positions)
    return masked_lm_loss(logits, batch.targets, label_smoothing, engine.module.kernels)
