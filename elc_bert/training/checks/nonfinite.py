"""Steps whose loss or gradient was not finite: counted, written down, and too many in a row end the run.

``train_step`` has skipped them. What they read is in ``<output_dir>/nonfinite/step-000123.json``.
"""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from elc_bert.distributed.collectives import SharedUserError, agree, max_over_ranks
from elc_bert.training.step import StepResult
from elc_bert.utils.errors import UserError, told
from elc_bert.utils.files import atomic_write
from elc_bert.utils.text import numbers_in_short

if TYPE_CHECKING:
    from elc_bert.training.run import Run


def watch_loss_scale(engine: Any) -> None:
    """Have fp16 go on at the least loss scale: how often that may be is counted here.

    DeepSpeed would end the run with a traceback at the first overflow there.
    """
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if scaler is not None and scaler.dynamic:
        scaler.raise_error_at_min_scale = False


def check_finite(run: "Run", result: StepResult) -> str | None:
    """Look at the step that has just been taken or skipped. Collective where it was skipped.

    A loss that is not finite is left out of ``result.totals``.

    Returns:
        a line for the terminal; None after a good step, or one by which fp16 looks for its loss scale.

    Raises:
        UserError: on all ranks alike, after ``max_nonfinite_steps`` in a row.
    """
    engine, progress, world = run.engine, run.progress, run.world
    if engine.was_step_applied():
        progress.nonfinite_steps = []
        return None
    losses = [float(loss) for loss in result.losses]
    bad = [not math.isfinite(loss) for loss in losses]
    is_loss = max_over_ranks([any(bad)], world.device)[0] > 0
    if not is_loss and _scale_can_fall(engine):
        return None
    if is_loss:
        result.totals.forget_loss()
    progress.nonfinite_steps.append(progress.step)
    path = _directory(run) / f"step-{progress.step:06d}.json"
    agree(run.world, lambda: _write_down(run, path, losses, bad if is_loss else [True] * len(bad)))
    _stop_after_too_many(run)
    what = "the loss is" if is_loss else "the gradient is"
    return f"step {progress.step}: {what} not finite; skipped, what it read is in {path}"


def _scale_can_fall(engine: Any) -> bool:
    """Whether fp16 may still find a loss scale at which gradients are finite."""
    if not (engine.fp16_enabled() and engine.dynamic_loss_scale()):
        return False
    return engine.optimizer.loss_scale > engine.dynamic_loss_scale_args()["min_scale"]


def _directory(run: "Run") -> Path:
    return run.config.elc_bert.training.output_dir / "nonfinite"


def _write_down(run: "Run", path: Path, losses: list[float], is_bad: list[bool]) -> None:
    """Save from all ranks which samples the bad micro-batches hold. Collective."""
    samples = run.data.train.samples_of(run.progress.step - 1)
    paths = [str(each.path) for each in run.config.elc_bert.data.train]
    ours = {
        "rank": run.world.rank,
        "micro_batches": [
            {
                "micro_batch": number,
                "loss": str(losses[number]),  # JSON has neither NaN nor infinity
                "samples": [
                    {"dataset": paths[dataset], "epoch": epoch, "segment": segment}
                    for dataset, epoch, segment in samples[number].T.tolist()
                ],
            }
            for number in range(len(losses))
            if is_bad[number]
        ],
    }
    ranks: list[Any] | None = [None] * run.world.size if run.world.is_main else None
    dist.gather_object(ours, ranks)
    if ranks is None:
        return
    record = {
        "step": run.progress.step,
        "sequence_length": run.schedule.at(run.progress.step - 1)[0],
        "segments": run.config.elc_bert.data.segments,
        "ranks": [each for each in ranks if each["micro_batches"]],
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, "w") as file:
            json.dump(record, file, indent=1)
    except OSError as error:
        raise UserError(told(error)) from None


def _stop_after_too_many(run: "Run") -> None:
    steps, most = run.progress.nonfinite_steps, run.config.elc_bert.training.max_nonfinite_steps
    if len(steps) < most:
        return
    raise SharedUserError(
        f"the loss or the gradient was not finite in step{'s' * (most > 1)} {numbers_in_short(steps)}, "
        f"{most} in a row (elc_bert.training.max_nonfinite_steps); they were skipped. What they read is in "
        f"{_directory(run)}: look at it with python -m data_tools inspect --segment; if the text is sound, "
        "resume from an earlier checkpoint, or start anew with a lower learning rate"
    )
