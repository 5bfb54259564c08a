"""Finding the largest micro-batch that the devices have memory for, by trying."""

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from elc_bert.config.batch_plan import BatchPlan, divisors, plan_batch, plan_phases
from elc_bert.config.deepspeed import check_deepspeed_sections
from elc_bert.config.length_schedule import LengthSchedule, Phase
from elc_bert.config.schema import RunConfig
from elc_bert.data.sampling.steps import MicroBatch
from elc_bert.distributed.collectives import agree, max_over_ranks
from elc_bert.distributed.watchdog.watchdog import Watchdog
from elc_bert.distributed.world import World
from elc_bert.engine.build import build_engine, choose_kernels
from elc_bert.engine.processes import connect
from elc_bert.planner.activations import saved_bytes
from elc_bert.planner.memory import workload
from elc_bert.training.checks.memory import free_memory
from elc_bert.training.metrics import peak_memory
from elc_bert.training.step import train_step
from elc_bert.utils.errors import UserError
from elc_bert.utils.machine import forget_peak
from elc_bert.utils.text import human

GIB = 2**30
MARGIN = 0.95
"""Share of the free memory that trials may take: in a run, allocators have holes and batches differ."""


@dataclass(frozen=True)
class Trial:
    """One micro-batch that has been tried, on the rank that did worst."""

    micro_batch: int
    peak: float
    """Bytes."""
    tokens_per_second: float
    """Over all devices."""


def find_micro_batch(config: RunConfig, watchdog: Watchdog, memory_limit: float | None = None) -> None:
    """Try micro-batches on all processes that the launcher started, and print which to use. Collective.

    Args:
        config: the run; its data are not read and nothing is written.
        memory_limit: GiB per device; by default most of what is free.

    Raises:
        UserError: on all ranks alike, if not even the smallest micro-batch fits, or the batch cannot be met.
    """
    world = connect(watchdog)
    agree(world, lambda: check_deepspeed_sections(config))
    kernels = agree(world, lambda: choose_kernels(config, world.device))
    share = agree(world, lambda: plan_batch(config.train_batch_size, world.size, 1)).accumulation
    engine = agree(world, lambda: build_engine(config, BatchPlan(1, share, world.size), world, kernels))
    limit = memory_limit * GIB if memory_limit else MARGIN * free_memory(world.device)
    limit = -max_over_ranks([-limit], world.device)[0]
    shapes = {size: _worst_shape(config, world, size) for size in divisors(share)}
    _tell(world, f"at most {limit / GIB:.2f} GiB per device; possible: {', '.join(map(str, shapes))}")

    def attempt(size: int) -> Trial:
        rows, phase = shapes[size]
        trial = _try(config, world, engine, size, rows, phase.sequence_length)
        _tell(
            world,
            f"micro-batch {size} (as {rows} x {phase.sequence_length}): {trial.peak / GIB:.2f} GiB, "
            f"{human(trial.tokens_per_second)} tokens/s",
        )
        return trial

    def kept(size: int) -> float:
        rows, phase = shapes[size]
        on_cpu = world.device.type == "cpu"
        return saved_bytes(workload(config, rows, phase.sequence_length, "fused", on_cpu))

    trials = search(list(shapes), limit, attempt, kept)
    if not trials:
        raise UserError(
            f"{config.origin}no micro-batch fits into {limit / GIB:.2f} GiB: use more devices, a higher "
            "zero_optimization.stage, zero_optimization.offload_optimizer or "
            "elc_bert.training.activation_checkpointing"
        )
    for line in conclusion(trials):
        _tell(world, line)


def search(
    sizes: Sequence[int], limit: float, attempt: Callable[[int], Trial], kept: Callable[[int], float]
) -> list[Trial]:
    """The trials that stayed below the limit, by size; the last is the largest that fits.

    Sizes about double until the next would not fit; between those two the largest that should is looked for.
    Nothing is tried that should not fit: memory grows at least by what a pass must keep, and as much faster
    than that as it was seen to grow.

    Args:
        sizes: possible micro-batches, rising.
        limit: bytes.
        attempt: measures one.
        kept: bytes that a pass with such a micro-batch must keep.
    """
    good: list[Trial] = []
    low, high = -1, len(sizes)  # sizes[low] fits, sizes[high] does not
    steepness = 1.0
    while high - low > 1:
        if low < 0:
            number = 0
        else:
            last = good[-1]
            for earlier in good[:-1]:
                grown, least = last.peak - earlier.peak, kept(last.micro_batch) - kept(earlier.micro_batch)
                steepness = max(steepness, grown / least) if least > 0 else steepness
            fits = [
                last.peak + steepness * (kept(size) - kept(last.micro_batch)) <= limit
                for size in sizes[low + 1 : high]
            ]
            if not fits[0]:
                break
            most = low + fits.count(True)
            doubled = bisect_right(sizes, 2 * last.micro_batch) - 1
            number = min(most, max(low + 1, doubled))
        trial = attempt(sizes[number])
        if trial.peak <= limit:
            good.append(trial)
            low = number
        else:
            high = number
    return good


def conclusion(trials: Sequence[Trial]) -> list[str]:
    """What to put into the configuration."""
    largest, fastest = trials[-1], max(trials, key=lambda trial: trial.tokens_per_second)
    lines = [_entry(largest)]
    if fastest is not largest:
        lines = [
            f"largest: {_entry(largest)}",
            f"fastest: {_entry(fastest)}  ({human(fastest.tokens_per_second)} against "
            f"{human(largest.tokens_per_second)} tokens/s)",
        ]
    return lines


def _entry(trial: Trial) -> str:
    return f'"train_micro_batch_size_per_gpu": {trial.micro_batch}'


def _worst_shape(config: RunConfig, world: World, micro_batch: int) -> tuple[int, Phase]:
    """Rows, and the phase, of the micro-batches that need the most memory."""
    training = config.elc_bert.training
    schedule = LengthSchedule(
        training.max_steps, training.sequence_length, config.train_batch_size, training.long_after
    )
    changes = {"train_micro_batch_size_per_gpu": micro_batch, "gradient_accumulation_steps": None}
    plans = agree(world, lambda: plan_phases(config.model_copy(update=changes), schedule, world.size))
    on_cpu = world.device.type == "cpu"
    shapes = [(plans[phase.index].micro_batch, phase) for phase in schedule.phases]
    return max(
        shapes,
        key=lambda shape: saved_bytes(workload(config, shape[0], shape[1].sequence_length, "fused", on_cpu)),
    )


def _try(config: RunConfig, world: World, engine: Any, size: int, rows: int, length: int) -> Trial:
    """Two steps of two micro-batches, as with accumulation; the second one is timed. Collective."""
    smoothing = config.elc_bert.training.label_smoothing
    batch = full_batch(config, rows, length)
    _forget_peak(world.device)
    try:
        for _ in range(2):
            start = time.perf_counter()
            totals = train_step(engine, [batch, batch], world, smoothing, seed=0).totals
            totals.reduce()  # waits for the device
            seconds = time.perf_counter() - start
    except torch.OutOfMemoryError:
        if world.size > 1:
            # The other ranks wait for this one and cannot be told.
            raise UserError(
                f"out of memory at micro-batch {size}, although it should have fitted; the one before it does"
            ) from None
        return Trial(size, float("inf"), 0.0)
    (peak,) = max_over_ranks([_peak(world.device)], world.device)
    return Trial(size, peak, 2 * rows * length * world.size / seconds)


def full_batch(config: RunConfig, rows: int, length: int) -> MicroBatch:
    """Random tokens without padding."""
    ours = config.elc_bert
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(ours.model.vocab_size, (rows, length), generator=generator)
    predicted = max(1, round(ours.data.mask_probability * rows * (length - 2)))
    positions = torch.randperm(rows * length, generator=generator)[:predicted].sort().values
    mask = torch.ones(rows, length, dtype=torch.bool)
    return MicroBatch(tokens, mask, positions, tokens.flatten()[positions], rows * length)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cpu":
        forget_peak()
    else:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> float:
    """Since it was forgotten; on a GPU with what PyTorch holds in reserve, which others cannot have."""
    return peak_memory(device) if device.type == "cpu" else torch.cuda.max_memory_reserved(device)


def _tell(world: World, line: str) -> None:
    if world.is_main:
        print(line, flush=True)
