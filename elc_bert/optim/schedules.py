"""Learning-rate schedules, as factors of the peak learning rate."""

import math
from collections.abc import Callable

from elc_bert.config.length_schedule import steps_in_share


def schedule_factor(
    shape: str, max_steps: int, warmup_proportion: float, min_factor: float
) -> Callable[[int], float]:
    """Return the factor of the peak learning rate as a function of the step, counted from 0.

    The factor rises linearly from 0 during the warmup. It then falls to ``min_factor`` at the last step, by a
    ``Cosine`` or a ``Linear`` curve, or stays ``Constant``. The first step after the warmup has exactly the
    peak. DeepSpeed's ``WarmupCosineLR`` starts its cosine one step early and never reaches the peak, so it is
    not used.

    Args:
        shape: ``Cosine``, ``Linear`` or ``Constant``.
        max_steps: Number of steps of the run.
        warmup_proportion: Fraction of the steps that are warmup (see ``steps_in_share``).
        min_factor: Factor at the last step.
    """
    warmup_steps = steps_in_share(max_steps, warmup_proportion)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps
        progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
        if shape == "Constant":
            return 1.0
        remaining = (1.0 + math.cos(math.pi * progress)) / 2.0 if shape == "Cosine" else 1.0 - progress
        return min_factor + (1.0 - min_factor) * remaining

    return factor
