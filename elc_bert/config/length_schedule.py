"""Phases of a run: the step at which sequences become longer, and what comes before and after it."""

from dataclasses import dataclass

from elc_bert.config.schema import RunConfig
from elc_bert.utils.errors import UserError


@dataclass(frozen=True)
class Phase:
    """Consecutive steps with the same sequence length."""

    first_step: int
    """Index of the phase's first step in the run."""
    sequence_length: int
    """Number of tokens in a sample."""
    global_batch: int
    """Number of samples per step, over all ranks and micro-batches."""
    index: int
    """0 before the length switch, 1 after it."""


@dataclass(frozen=True)
class LengthSchedule:
    """Switch, late in a run, to sequences ``long_factor`` times longer and batches that many times smaller.

    Both change at the same step, so that every step reads the same number of tokens.

    Raises:
        UserError: A number is out of range, or the batch is not divisible by ``long_factor``.
    """

    max_steps: int
    """Number of steps of the run."""
    sequence_length: int
    """Number of tokens in a sample before the switch."""
    global_batch: int
    """Number of samples per step before the switch."""
    long_after: float = 0.9
    """Fraction of the run after which sequences are long; 1 means never."""
    long_factor: int = 4
    """Factor by which the sequence length is multiplied and the batch divided."""

    def __post_init__(self) -> None:
        for name in ("max_steps", "sequence_length", "global_batch", "long_factor"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.long_after <= 1:
            raise UserError(f"long_after is {self.long_after}; give a fraction of the run, between 0 and 1")
        if self.switch_step < self.max_steps and self.global_batch % self.long_factor:
            raise UserError(
                f"train_batch_size: {self.global_batch} cannot be divided by {self.long_factor} when "
                f"sequences become longer; use a multiple of {self.long_factor}, or set long_after to 1"
            )

    @property
    def switch_step(self) -> int:
        """Index of the first step with long sequences; ``max_steps`` or more if there is none."""
        return steps_in_share(self.max_steps, self.long_after)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Phases with at least one step, in order."""
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
        """Return the phases, each with the index of the step after its last one."""
        ends = [phase.first_step for phase in self.phases[1:]] + [self.max_steps]
        return list(zip(self.phases, ends, strict=True))

    def phase_at(self, step: int) -> Phase:
        """Return the phase that contains ``step``."""
        return next(phase for phase in reversed(self.phases) if step >= phase.first_step)

    def at(self, step: int) -> tuple[int, int, int]:
        """Return the step's sequence length, global batch and first index in its phase's sample stream."""
        phase = self.phase_at(step)
        return phase.sequence_length, phase.global_batch, (step - phase.first_step) * phase.global_batch


def steps_in_share(max_steps: int, share: float) -> int:
    """Return the number of steps in a share of the run, as the reference computes it.

    The product is cut, not rounded, in double precision: ``int(100 * 0.29)`` is 28.
    """
    return int(max_steps * share)


def length_schedule(config: RunConfig) -> LengthSchedule:
    """Return the sequence length and global batch of a run by step.

    Raises:
        UserError: The length switch does not fit the batch or the number of steps.
    """
    training = config.elc_bert.training
    return LengthSchedule(
        training.max_steps, training.sequence_length, config.train_batch_size, training.long_after
    )
