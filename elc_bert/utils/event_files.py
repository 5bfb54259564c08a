"""Scalars that a run has logged, read from its TensorBoard event files."""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

EVENT_FILES = "events.out.tfevents.*"
"""Glob pattern of TensorBoard's event files."""


@dataclass(frozen=True)
class Series:
    """A scalar over the steps of a run, with at least one entry."""

    steps: NDArray[np.int64]
    """Training step of each entry, int64 ``[n]``, increasing."""
    values: NDArray[np.float64]
    """Value of each entry, float64 ``[n]``."""

    @property
    def last(self) -> float:
        """The newest value."""
        return float(self.values[-1])


def all_scalars(run: Path, up_to: int | None = None) -> dict[str, Series]:
    """Return every scalar that a run has logged, by name; empty if nothing was logged.

    A run that was stopped and resumed from an earlier step logs some steps twice; the later entry counts.

    Args:
        run: The run's ``elc_bert.training.output_dir``.
        up_to: Last step to include; None for all.
    """
    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for folder in _event_folders(log_folder(run)):
        for name, entries in _read_entries(folder).items():
            found[name] += entries
    all_series = {name: _without_superseded(entries, up_to) for name, entries in found.items()}
    return {name: series for name, series in all_series.items() if len(series.steps)}


def last_scalars(run: Path, up_to: int | None = None) -> dict[str, float]:
    """Return the newest value of every scalar, by name; see ``all_scalars``."""
    return {name: series.last for name, series in all_scalars(run, up_to).items()}


def log_folder(run: Path) -> Path:
    """Return the folder of a run's event files: the configured one if it has any, else the run's own."""
    try:
        settings = json.loads((run / "config.json").read_text(encoding="utf-8"))["tensorboard"]
        folder = Path(settings["output_path"]) / settings.get("job_name", "tensorboard")
        has_logs = any(folder.rglob(EVENT_FILES))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return run
    return folder if has_logs and settings["output_path"] else run


def _event_folders(root: Path) -> list[Path]:
    """Return the folders that hold event files, oldest first."""
    # The names of event files begin with the time of their creation.
    first: dict[Path, str] = {}
    for path in root.rglob(EVENT_FILES):
        first[path.parent] = min(path.name, first.get(path.parent, path.name))
    return sorted(first, key=lambda folder: (first[folder], folder))


def _read_entries(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the (step, value) entries of every scalar in a folder, in the order of writing."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1})
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def _without_superseded(entries: list[tuple[int, float]], up_to: int | None) -> Series:
    """Drop entries that are followed by an entry of the same or an earlier step.

    TensorBoard drops them too, but only if the resumed run wrote a session log that says so. A run that was
    stopped before its first checkpoint restarts without one, and so does a run that logs to another folder.
    """
    steps = np.array([step for step, _ in entries], dtype=np.int64)
    values = np.array([value for _, value in entries], dtype=np.float64)
    earliest_after = np.minimum.accumulate(np.append(steps[1:], np.iinfo(np.int64).max)[::-1])[::-1]
    kept = steps < earliest_after
    if up_to is not None:
        kept &= steps <= up_to
    return Series(steps[kept], values[kept])
