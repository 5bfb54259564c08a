"""The optimizer step, with DeepSpeed's differences between precisions and ZeRO stages evened out."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from elc_bert.engine.protocol import Engine


def loss_scale_to_apply(engine: Engine) -> float:
    """Return the factor by which the caller must multiply the loss because DeepSpeed does not.

    In fp16 at ZeRO stage 0, ``DeepSpeedEngine.backward`` (0.19.8) leaves the loss as it is, although
    ``FP16_UnfusedOptimizer.step`` divides the gradients by the loss scale. Without this factor the gradients
    would vanish against the epsilon of the optimizer. Check again when DeepSpeed is updated.
    """
    if engine.fp16_enabled() and not engine.zero_optimization():
        return float(engine.optimizer.loss_scale)
    return 1.0


def take_step(engine: Engine, loss_scale: float) -> Tensor | float:
    """Run ``engine.step()`` on a complete gradient.

    DeepSpeed's wrappers skip a step whose gradient is not finite. In fp32 at ZeRO stage 0 there is no
    wrapper: DeepSpeed (0.19.8) clips in place, discards the norm and takes every step.

    Args:
        engine: Engine with the gradient of the whole step.
        loss_scale: Result of ``loss_scale_to_apply`` before the step.

    Returns:
        Gradient norm over all ranks, before clipping. It is not finite if the step was skipped.
    """
    if engine.zero_optimization() or engine.bfloat16_enabled() or engine.fp16_enabled():
        engine.step()
        norm = engine.get_global_grad_norm()
        # All wrappers but this one return the norm without the loss scale.
        return norm / loss_scale if type(engine.optimizer).__name__ == "FP16_UnfusedOptimizer" else norm
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    total_norm = torch.nn.utils.get_total_norm(gradients)
    optimizer = engine.optimizer
    # The engine reads this attribute as it would from a wrapper. If it is true, the engine counts the step as
    # skipped and does not advance the schedule.
    optimizer.overflow = not torch.isfinite(total_norm)
    with _without_step(optimizer) if optimizer.overflow else contextlib.nullcontext():
        engine.step()
    return total_norm


def continue_at_min_loss_scale(engine: Engine) -> None:
    """Let fp16 continue when an overflow occurs at the smallest loss scale.

    DeepSpeed (0.19.8, ``DynamicLossScaler.update_scale``) raises an exception at the first such overflow.
    This project counts these steps and ends the run after ``elc_bert.training.max_nonfinite_steps`` of them
    in a row.
    """
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if scaler is not None and scaler.dynamic:
        scaler.raise_error_at_min_scale = False


def loss_scale_can_decrease(engine: Engine) -> bool:
    """Return whether fp16 may still find a loss scale at which gradients are finite."""
    if not (engine.fp16_enabled() and engine.dynamic_loss_scale()):
        return False
    return bool(engine.optimizer.loss_scale > engine.dynamic_loss_scale_args()["min_scale"])


def next_loss_scale(engine: Engine) -> float | None:
    """Return the loss scale of the next step; None without fp16."""
    return float(engine.optimizer.loss_scale) if engine.fp16_enabled() else None


def restore_loss_scale(engine: Engine, state: Mapping[str, float]) -> None:
    """Set the dynamic loss scale of fp16 to a saved state; do nothing without fp16 or without a state."""
    if engine.fp16_enabled() and state:
        scaler = getattr(engine.optimizer, "loss_scaler", None) or engine.optimizer.loss_scale_config
        for key, value in state.items():
            setattr(scaler, key, value)


def restore_step_counts(engine: Engine) -> None:
    """Let Adam continue from a loaded state, whichever of PyTorch and DeepSpeed has written it.

    PyTorch counts the steps of each tensor in a tensor, DeepSpeed in an integer, which its FusedAdam (0.19.8)
    advances for the last tensor of a group only.
    """
    optimizer, taken = engine.basic_optimizer, engine.global_steps - engine.skipped_steps
    is_of_deepspeed = type(optimizer).__name__ in ("FusedAdam", "DeepSpeedCPUAdam")
    if not (is_of_deepspeed or isinstance(optimizer, torch.optim.Adam)):
        return
    for group in optimizer.param_groups:
        on_device = group.get("fused") or group.get("capturable")
        for parameter in group["params"]:
            if state := optimizer.state.get(parameter):
                device = parameter.device if on_device else None
                state["step"] = taken if is_of_deepspeed else torch.tensor(float(taken), device=device)


@contextlib.contextmanager
def _without_step(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Replace ``optimizer.step`` by a function that does nothing, within this block."""
    step = optimizer.step
    optimizer.step = lambda *args, **kwargs: None  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        optimizer.step = step  # type: ignore[method-assign]
