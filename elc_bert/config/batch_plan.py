"""Split the global batch into micro-batches and gradient accumulation on the available devices."""

from dataclasses import dataclass

from elc_bert.config.length_schedule import LengthSchedule
from elc_bert.config.schema import RunConfig
from elc_bert.utils.errors import UserError


@dataclass(frozen=True)
class BatchPlan:
    """Split of a global batch: ``global_batch = micro_batch * accumulation * world_size`` sequences."""

    micro_batch: int
    """Number of sequences that a device processes at once."""
    accumulation: int
    """Number of micro-batches per device and optimizer step."""
    world_size: int
    """Number of devices."""

    @property
    def global_batch(self) -> int:
        """Number of sequences per optimizer step over all devices."""
        return self.micro_batch * self.accumulation * self.world_size


def plan_batch(
    global_batch: int,
    world_size: int,
    max_micro_batch: int,
    micro_batch: int | None = None,
    accumulation: int | None = None,
    name: str = "train_batch_size",
) -> BatchPlan:
    """Find the micro-batch and accumulation that give exactly ``global_batch`` on ``world_size`` devices.

    Args:
        global_batch: Number of sequences per optimizer step over all devices.
        world_size: Number of devices.
        max_micro_batch: Upper bound of the micro-batch. The largest possible micro-batch within it is chosen.
        micro_batch: Micro-batch given by the user; it may exceed ``max_micro_batch``.
        accumulation: Gradient accumulation given by the user.
        name: Key of the global batch, for the error message.

    Raises:
        UserError: There is no such split. The message begins with ``name`` or the key at fault and lists the
            possible values.
    """
    if global_batch % world_size:
        raise UserError(
            f"{name}: {global_batch} sequences cannot be divided equally among {world_size} devices; "
            f"possible numbers of devices: {_listed(divisors(global_batch))}"
        )
    share = global_batch // world_size
    possible = divisors(share)
    if accumulation is not None and accumulation not in possible:
        raise UserError(
            f"gradient_accumulation_steps: {accumulation} micro-batches do not divide the {share} sequences "
            f"of each of {world_size} devices; possible: {_listed(possible)}"
        )
    if micro_batch is None:
        micro_batch = (
            share // accumulation
            if accumulation is not None
            else max(size for size in possible if size <= max_micro_batch)
        )
    if micro_batch not in possible:
        raise UserError(
            f"train_micro_batch_size_per_gpu: {micro_batch} does not divide the {share} sequences of each "
            f"of {world_size} devices; possible: {_listed(possible)}"
        )
    if accumulation is not None and micro_batch * accumulation != share:
        raise UserError(
            f"train_batch_size {global_batch} is not train_micro_batch_size_per_gpu {micro_batch} x "
            f"gradient_accumulation_steps {accumulation} x {world_size} devices; remove one of these keys"
        )
    return BatchPlan(micro_batch, share // micro_batch, world_size)


def plan_phases(config: RunConfig, schedule: LengthSchedule, world_size: int) -> dict[int, BatchPlan]:
    """Plan the batch of every phase, with equally many tokens per micro-batch before and after the switch.

    Returns:
        The plans, by phase index.

    Raises:
        UserError: The batch of a phase cannot be split in this way.
    """
    plans = {
        0: plan_batch(
            config.train_batch_size,
            world_size,
            config.elc_bert.training.max_micro_batch_size,
            config.train_micro_batch_size_per_gpu,
            config.gradient_accumulation_steps,
        )
    }
    for phase in schedule.phases:
        if phase.index > 0:
            plans[phase.index] = plan_batch(
                phase.global_batch,
                world_size,
                max_micro_batch=max(1, plans[0].micro_batch // schedule.long_factor),
                name=f"train_batch_size / {schedule.long_factor} after elc_bert.training.long_after",
            )
    return plans


def divisors(number: int) -> list[int]:
    """Return all divisors of ``number`` in ascending order."""
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def _listed(numbers: list[int]) -> str:
    shown = numbers if len(numbers) <= 24 else [*numbers[:23], "..."]
    return ", ".join(map(str, shown))
