"""What a run has logged, read back from TensorBoard's files."""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

EVENT_FILES = "events.out.tfevents.*"


@dataclass(frozen=True)
class Series:
    """A scalar over the steps of a run; at least one entry."""

    steps: NDArray[np.int64]
    """Steps taken when each was logged, int64 [n], rising."""
    values: NDArray[np.float64]
    """Float64 [n]."""

    @property
    def last(self) -> float:
        """The newest value."""
        return float(self.values[-1])


def all_scalars(run: Path, up_to: int | None = None) -> dict[str, Series]:
    """Every scalar that a run has logged, by name; empty where nothing was logged.

    What a run logged and then, stopped and resumed from an earlier step, logged again counts once, the later.

    Args:
        run: the run's ``elc_bert.training.output_dir``.
        up_to: step that entries may not be younger than.
    """
    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for folder in _folders(log_folder(run)):
        for name, entries in _entries(folder).items():
            found[name] += entries
    series = {name: _in_effect(entries, up_to) for name, entries in found.items()}
    return {name: each for name, each in series.items() if len(each.steps)}


def last_scalars(run: Path, up_to: int | None = None) -> dict[str, float]:
    """The newest value of every scalar, by name; see ``all_scalars``."""
    return {name: series.last for name, series in all_scalars(run, up_to).items()}


def log_folder(run: Path) -> Path:
    """Where a run's event files are: where its configuration sends them, or else the run itself."""
    try:
        settings = json.loads((run / "config.json").read_text(encoding="utf-8"))["tensorboard"]
        folder = Path(settings["output_path"]) / settings.get("job_name", "tensorboard")
        has_logs = any(folder.rglob(EVENT_FILES))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return run
    return folder if has_logs and settings["output_path"] else run


def _folders(root: Path) -> list[Path]:
    """Those with event files, the oldest first: the names of the files begin with the time."""
    first: dict[Path, str] = {}
    for path in root.rglob(EVENT_FILES):
        first[path.parent] = min(path.name, first.get(path.parent, path.name))
    return sorted(first, key=lambda folder: (first[folder], folder))


def _entries(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every scalar in a folder's files, as they were written."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1})
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def _in_effect(entries: list[tuple[int, float]], up_to: int | None) -> Series:
    """Entries that none of the same or an earlier step was written after.

    TensorBoard drops those too, but only where the resumed run told it to: one that was stopped before its
    first checkpoint began anew without a word, and so does one that logs to another folder.
    """
    steps = np.array([step for step, _ in entries], dtype=np.int64)
    values = np.array([value for _, value in entries], dtype=np.float64)
    earliest_after = np.minimum.accumulate(np.append(steps[1:], np.iinfo(np.int64).max)[::-1])[::-1]
    kept = steps < earliest_after
    if up_to is not None:
        kept &= steps <= up_to
    return Series(steps[kept], values[kept])
