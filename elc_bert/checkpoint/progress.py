"""Progress of a run, as its checkpoints record it."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """State of a run besides the engine's."""

    step: int = 0
    """Optimizer steps taken, skipped ones included."""
    samples_seen: int = 0
    """Sequences read, over all ranks."""
    epochs: dict[str, float] = field(default_factory=dict)
    """Passes over each training dataset, by its name."""
    tokens_seen: int = 0
    """Real tokens read up to the last log entry, over all ranks."""
    words_seen: int = 0
    """Words read up to the last log entry, over all ranks, repetitions included."""
    held_out_loss: float | None = None
    """Held-out loss in nats per masked token, if it was measured after this step."""
    evaluation_due: bool = False
    """True if a signal interrupted the evaluations of this step; the resumed run repeats them."""
    callbacks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """State of each callback that has any, by its name."""

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Progress":
        """Read the progress from the record of a checkpoint.

        Checkpoints written before callbacks existed hold the state of two of them as fields of their own.

        Raises:
            TypeError: The record has an unknown field.
        """
        record = dict(record)
        callbacks = dict(record.pop("callbacks", {}))
        if (sums := record.pop("since_log", None)) is not None:
            callbacks.setdefault("log", {"sums": sums})
        if steps := record.pop("nonfinite_steps", []):
            callbacks.setdefault("nonfinite", {"steps": steps})
        return cls(**record, callbacks=callbacks)
