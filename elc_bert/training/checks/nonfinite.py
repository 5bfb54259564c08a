"""Record of the samples of a step whose loss or gradient is not finite.

It is written to ``OUTPUT_DIR/nonfinite/step-000123.json``.
"""

import json
from pathlib import Path
from typing import Any

import torch.distributed as dist

from elc_bert.training.run import Run
from elc_bert.utils.errors import UserError, describe_os_error
from elc_bert.utils.files import atomic_write


def nonfinite_directory(run: Run) -> Path:
    """Return the directory of the records."""
    return run.config.elc_bert.training.output_dir / "nonfinite"


def record_samples(run: Run, path: Path, losses: list[float], is_bad: list[bool]) -> None:
    """Save which samples the bad micro-batches of all ranks hold. Collective.

    Args:
        run: The run, after the step.
        path: File to write, on rank 0.
        losses: Summed loss of each micro-batch of this rank.
        is_bad: Whether each micro-batch is bad.

    Raises:
        UserError: The file cannot be written.
    """
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
        raise UserError(describe_os_error(error)) from None
