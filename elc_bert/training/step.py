"""One optimizer step, and one look at held-out text."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from elc_bert.data.steps import MicroBatch
from elc_bert.model.encoder import LayerMixture
from elc_bert.optim.zero_layout import whole
from elc_bert.training.distributed import World
from elc_bert.training.loss import masked_lm_loss
from elc_bert.training.metrics import Totals


def train_step(
    engine: Any, micro_batches: list[MicroBatch], world: World, label_smoothing: float, seed: int
) -> tuple[Totals, Tensor | float]:
    """One optimizer step over this rank's part of a global batch. Collective.

    The gradient is that of the mean loss over all masked tokens of the global batch: each micro-batch
    adds its sum divided by their number, and DeepSpeed's averaging over ranks is undone.

    Args:
        seed: decides dropout in this step on this rank, so that a resumed run needs no generator state.

    Returns:
        this rank's totals, and the norm of the gradient over all ranks before clipping; infinite where an
        overflow (fp16, bf16) made DeepSpeed skip the step.
    """
    torch.manual_seed(seed)
    # A tensor filled on the device; one copied there would have the host wait for it.
    predicted = torch.full((), sum(len(micro.targets) for micro in micro_batches), device=world.device)
    dist.all_reduce(predicted)
    loss_scale = _loss_scale_left_to_us(engine)
    scale = world.size * loss_scale / predicted.clamp(min=1)
    totals = Totals(world.device)
    for number, batch in enumerate(world.watch.over(on_device(micro_batches, world.device)), start=1):
        engine.set_gradient_accumulation_boundary(number == len(micro_batches))
        loss, correct = _forward(engine, batch, label_smoothing)
        engine.backward(loss * scale, scale_wrt_gas=False)
        totals.add(loss, correct, batch)
        if number == len(micro_batches):
            gradient_norm = _norm_before_clipping(engine)
        engine.step()
    if gradient_norm is None:
        gradient_norm = engine.get_global_grad_norm()
        if type(engine.optimizer).__name__ == "FP16_UnfusedOptimizer":
            gradient_norm /= loss_scale  # all other wrappers have done so
    return totals, gradient_norm


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
    return masked_lm_loss(logits, batch.targets, label_smoothing, engine.module.encoder.kernels)


def _loss_scale_left_to_us(engine: Any) -> float:
    """What DeepSpeed divides gradients by in this step without having multiplied the loss by it.

    So it does in fp16 without ZeRO: left alone, gradients would vanish beside Adam's epsilon.
    """
    return engine.optimizer.loss_scale if engine.fp16_enabled() and not engine.zero_optimization() else 1.0


def _norm_before_clipping(engine: Any) -> Tensor | None:
    """The norm where DeepSpeed does not tell it: in fp32 without ZeRO it clips in place and forgets it."""
    if engine.zero_optimization() or engine.bfloat16_enabled() or engine.fp16_enabled():
        return None
    return torch.nn.utils.get_total_norm(p.grad for p in engine.module.parameters() if p.grad is not None)


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
    for batch in world.watch.over(on_device(micro_batches, world.device)):
        if stopped := stopping():
            break
        totals.add(*_forward(engine, batch), batch)
    engine.train()
    if stopped:
        return None
    totals.reduce()
    return totals
