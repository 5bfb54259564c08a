"""How far a run has got, as its checkpoints record it."""

from dataclasses import dataclass, field


@dataclass
class Progress:
    """Everything that a resumed run needs besides the engine's state."""

    step: int = 0
    """Optimizer steps taken."""
    samples_seen: int = 0
    """Sequences read, over all ranks."""
    epochs: dict[str, float] = field(default_factory=dict)
    """Times that each training dataset has been gone through."""
    tokens_seen: int = 0
    """Real tokens read up to the last log entry, over all ranks."""
    words_seen: int = 0
    """Words read up to the last log entry, over all ranks, repeats included."""
    since_log: list[float] | None = None
    """Sums since the last log entry over all ranks, if the checkpoint fell between two entries."""
    held_out_loss: float | None = None
    """In nats per masked token, if it was measured after this step."""
    evaluation_due: bool = False
    """Whether what follows this step but the step itself was cut short by a signal."""
    nonfinite_steps: list[int] = field(default_factory=list)
    """The last steps, if they were skipped in a row because loss or gradient were not finite."""
