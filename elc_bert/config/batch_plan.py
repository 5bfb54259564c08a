"""Meeting a global batch on the devices there are."""

from dataclasses import dataclass

from elc_bert.config.length_schedule import LengthSchedule
from elc_bert.config.schema import RunConfig
from elc_bert.utils.errors import UserError


@dataclass(frozen=True)
class BatchPlan:
    """global batch = micro_batch x accumulation x world_size, in sequences."""

    micro_batch: int
    """Sequences a device takes at once."""
    accumulation: int
    """Micro-batches per device and optimizer step."""
    world_size: int
    """Devices."""

    @property
    def global_batch(self) -> int:
        return self.micro_batch * self.accumulation * self.world_size


def plan_batch(
    global_batch: int,
    world_size: int,
    max_micro_batch: int,
    micro_batch: int | None = None,
    accumulation: int | None = None,
    name: str = "train_batch_size",
) -> BatchPlan:
    """Micro-batch and accumulation that give exactly ``global_batch`` on ``world_size`` devices.

    What is given is taken as it is; otherwise the micro-batch is the largest possible one of at most
    ``max_micro_batch`` sequences.

    Raises:
        UserError: there is none; the message begins with ``name`` or the key at fault and lists
            what is possible.
    """
    if global_batch % world_size:
        raise UserError(
            f"{name}: {global_batch} sequences cannot be shared equally by {world_size} devices; "
            f"possible numbers of devices: {_some(divisors(global_batch))}"
        )
    share = global_batch // world_size
    possible = divisors(share)
    if accumulation is not None and accumulation not in possible:
        raise UserError(
            f"gradient_accumulation_steps: {accumulation} micro-batches do not divide the {share} sequences "
            f"of each of {world_size} devices; possible: {_some(possible)}"
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
            f"of {world_size} devices; possible: {_some(possible)}"
        )
    if accumulation is not None and micro_batch * accumulation != share:
        raise UserError(
            f"train_batch_size {global_batch} is not train_micro_batch_size_per_gpu {micro_batch} x "
            f"gradient_accumulation_steps {accumulation} x {world_size} devices; leave one of them out"
        )
    return BatchPlan(micro_batch, share // micro_batch, world_size)


def plan_phases(config: RunConfig, schedule: LengthSchedule, world_size: int) -> dict[int, BatchPlan]:
    """How each phase's global batch is met: in the later phase a device takes as many tokens at once.

    Raises:
        UserError: a phase's batch cannot be met.
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
    """All of them, in order."""
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def _some(numbers: list[int]) -> str:
    shown = numbers if len(numbers) <= 24 else [*numbers[:23], "..."]
    return ", ".join(map(str, shown))
