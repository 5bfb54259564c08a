"""When the sequences get longer: the phases of a run."""

from dataclasses import dataclass

from elc_bert.utils.errors import UserError


@dataclass(frozen=True)
class Phase:
    """Steps of one sequence length."""

    first_step: int
    sequence_length: int
    """Tokens of a sample."""
    global_batch: int
    """Samples of a step, over all ranks and micro-steps."""
    index: int
    """0 before the switch, 1 after it."""


@dataclass(frozen=True)
class LengthSchedule:
    """Late in a run the sequence length is multiplied, and the batch divided, by one factor.

    Both change at the same step, so that a step reads as many tokens before as after it.

    Raises:
        UserError: a number is out of range, or the batch cannot be divided.
    """

    max_steps: int
    """Steps of the run."""
    sequence_length: int
    """Tokens of a sample at first."""
    global_batch: int
    """Samples of a step at first."""
    long_after: float = 0.9
    """Share of the run after which the sequences are long; 1 means never."""
    long_factor: int = 4
    """How many times longer."""

    def __post_init__(self) -> None:
        for name in ("max_steps", "sequence_length", "global_batch", "long_factor"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if not 0 <= self.long_after <= 1:
            raise UserError(f"long_after is {self.long_after}, but is a share of the run, between 0 and 1")
        if self.switch_step < self.max_steps and self.global_batch % self.long_factor:
            raise UserError(
                f"the batch of {self.global_batch} samples cannot be divided by {self.long_factor} when "
                f"the sequences get longer; use a multiple of {self.long_factor}, or set long_after to 1"
            )

    @property
    def switch_step(self) -> int:
        """The first step with long sequences; `max_steps` if there is none."""
        return round(self.max_steps * self.long_after)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases that have steps, in order."""
        short = Phase(0, self.sequence_length, self.global_batch, 0)
        long = Phase(
            self.switch_step,
            self.sequence_length * self.long_factor,
            self.global_batch // self.long_factor,
            1,
        )
        if self.switch_step >= self.max_steps:
            return (short,)
        return (short, long) if self.switch_step > 0 else (long,)

    def phases_with_ends(self) -> list[tuple[Phase, int]]:
        """The phases, each with the step behind its last one."""
        ends = [phase.first_step for phase in self.phases[1:]] + [self.max_steps]
        return list(zip(self.phases, ends, strict=True))

    def phase_at(self, step: int) -> Phase:
        """The phase that a step belongs to."""
        return next(phase for phase in reversed(self.phases) if step >= phase.first_step)

    def at(self, step: int) -> tuple[int, int, int]:
        """Sequence length, global batch, and first position of the step in its phase's stream of samples."""
        phase = self.phase_at(step)
        return phase.sequence_length, phase.global_batch, (step - phase.first_step) * phase.global_batch
