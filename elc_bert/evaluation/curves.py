"""What a run has logged, read back from TensorBoard's files."""

from pathlib import Path


def last_scalars(run: Path, up_to: int | None = None) -> dict[str, float]:
    """The newest value of every scalar, by name; empty where nothing was logged.

    Args:
        run: the run's ``elc_bert.training.output_dir``.
        up_to: step that the values may not be younger than.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    values: dict[str, tuple[int, float]] = {}
    for folder in sorted({path.parent for path in run.rglob("events.out.tfevents.*")}):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        for name in events.Tags()["scalars"]:
            for event in events.Scalars(name):
                if (up_to is None or event.step <= up_to) and event.step >= values.get(name, (0, 0.0))[0]:
                    values[name] = (event.step, event.value)
    return {name: value for name, (_, value) in values.items()}
