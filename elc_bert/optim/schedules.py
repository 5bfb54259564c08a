"""Learning-rate schedules, as factors of the peak."""

import math
from collections.abc import Callable


def schedule_factor(
    shape: str, max_steps: int, warmup_proportion: float, min_factor: float
) -> Callable[[int], float]:
    """Factor of the peak learning rate at each step, counted from 0.

    Linear from 0 over the warmup, then ``Cosine`` or ``Linear`` down to ``min_factor`` at the end, or
    ``Constant``. The peak is reached exactly at the first step after the warmup. DeepSpeed's
    ``WarmupCosineLR`` is not used because it starts its cosine one step early and so never gets there.
    """
    warmup_steps = round(max_steps * warmup_proportion)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps
        progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
        if shape == "Constant":
            return 1.0
        remaining = (1.0 + math.cos(math.pi * progress)) / 2.0 if shape == "Cosine" else 1.0 - progress
        return min_factor + (1.0 - min_factor) * remaining

    return factor
