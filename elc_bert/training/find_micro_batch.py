"""Search for the largest micro-batch that fits into the memory of the devices, by trying."""

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from elc_bert.config.batch_plan import BatchPlan, divisors, plan_batch, plan_phases
from elc_bert.config.deepspeed import check_deepspeed_sections
from elc_bert.config.length_schedule import Phase, length_schedule
from elc_bert.config.schema import RunConfig
from elc_bert.data.sampling.steps import MicroBatch
from elc_bert.distributed.collectives import agree, max_over_ranks
from elc_bert.distributed.watchdog.watchdog import Watchdog
from elc_bert.distributed.world import World
from elc_bert.engine.build import build_engine, choose_kernels
from elc_bert.engine.processes import connect
from elc_bert.engine.protocol import Engine
from elc_bert.planner.activations import saved_bytes
from elc_bert.planner.memory import workload
from elc_bert.training.checks.memory import free_memory
from elc_bert.training.metrics import peak_memory
from elc_bert.training.step import train_step
from elc_bert.utils.errors import UserError
from elc_bert.utils.machine import reset_peak_memory
from elc_bert.utils.text import human

GIB = 2**30
MARGIN = 0.95
"""Share of the free memory that trials may use: in a run, allocators fragment memory and batches differ."""


@dataclass(frozen=True)
class Trial:
    """Measurement of one micro-batch, on the rank that needed the most memory."""

    micro_batch: int
    """Micro-batch in the first phase."""
    peak: float
    """Peak memory in bytes."""
    tokens_per_second: float
    """Tokens per second on all devices."""


def find_micro_batch(config: RunConfig, watchdog: Watchdog, memory_limit: float | None = None) -> None:
    """Try micro-batches on all processes that the launcher started, and print which to use. Collective.

    Args:
        config: Configuration of the run. Its data is not read, and nothing is written.
        watchdog: Watchdog of this process.
        memory_limit: GiB per device; by default most of the free memory.

    Raises:
        UserError: The smallest micro-batch does not fit, or the global batch cannot be met. Raised on all
            ranks.
    """
    world = connect(watchdog)
    agree(world, check_deepspeed_sections, config)
    kernels = agree(world, choose_kernels, config, world.device)
    share = agree(world, plan_batch, config.train_batch_size, world.size, 1).accumulation
    engine = agree(world, build_engine, config, BatchPlan(1, share, world.size), world, kernels)
    limit = memory_limit * GIB if memory_limit else MARGIN * free_memory(world.device)
    limit = -max_over_ranks([-limit], world.device)[0]
    shapes = {size: _largest_shape(config, world, size) for size in divisors(share)}
    _print(world, f"at most {limit / GIB:.2f} GiB per device; possible: {', '.join(map(str, shapes))}")

    def attempt(size: int) -> Trial:
        rows, phase = shapes[size]
        trial = _try(config, world, engine, size, rows, phase.sequence_length)
        _print(
            world,
            f"micro-batch {size} (as {rows} x {phase.sequence_length}): {trial.peak / GIB:.2f} GiB, "
            f"{human(trial.tokens_per_second)} tokens/s",
        )
        return trial

    def saved(size: int) -> float:
        rows, phase = shapes[size]
        on_cpu = world.device.type == "cpu"
        return saved_bytes(workload(config, rows, phase.sequence_length, "fused", on_cpu))

    trials = search(list(shapes), limit, attempt, saved)
    if not trials:
        raise UserError(
            f"{config.origin}no micro-batch fits into {limit / GIB:.2f} GiB; use more devices, a higher "
            "zero_optimization.stage, zero_optimization.offload_optimizer or "
            "elc_bert.training.activation_checkpointing"
        )
    for line in conclusion(trials):
        _print(world, line)
    if config.gradient_accumulation_steps is not None:
        _print(world, "remove gradient_accumulation_steps, which follows from the micro-batch")


def search(
    sizes: Sequence[int], limit: float, attempt: Callable[[int], Trial], saved: Callable[[int], float]
) -> list[Trial]:
    """Return the trials that stayed below the limit, by size; the last is the largest that fits.

    Sizes about double until the next would not fit; then the largest that should fit is tried. Sizes that
    should not fit are not tried. Memory is expected to grow by the bytes that a forward pass must save, times
    the largest factor measured so far, which is at least 1.

    Args:
        sizes: Possible micro-batches, ascending.
        limit: Limit in bytes.
        attempt: Function that measures a micro-batch.
        saved: Function that returns the bytes that a forward pass with a micro-batch must save.
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
                grown, least = last.peak - earlier.peak, saved(last.micro_batch) - saved(earlier.micro_batch)
                steepness = max(steepness, grown / least) if least > 0 else steepness
            fits = [
                last.peak + steepness * (saved(size) - saved(last.micro_batch)) <= limit
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
    """Return the lines to put into the configuration."""
    largest, fastest = trials[-1], max(trials, key=lambda trial: trial.tokens_per_second)
    if fastest is largest:
        return [_config_line(largest)]
    return [
        f"largest: {_config_line(largest)}",
        f"fastest: {_config_line(fastest)}  ({human(fastest.tokens_per_second)} against "
        f"{human(largest.tokens_per_second)} tokens/s)",
    ]


def _config_line(trial: Trial) -> str:
    return f'"train_micro_batch_size_per_gpu": {trial.micro_batch}'


def _largest_shape(config: RunConfig, world: World, micro_batch: int) -> tuple[int, Phase]:
    """Return the rows and the phase of the micro-batches that need the most memory."""
    schedule = length_schedule(config)
    changes = {"train_micro_batch_size_per_gpu": micro_batch, "gradient_accumulation_steps": None}
    plans = agree(world, plan_phases, config.model_copy(update=changes), schedule, world.size)
    on_cpu = world.device.type == "cpu"
    shapes = [(plans[phase.index].micro_batch, phase) for phase in schedule.phases]
    return max(
        shapes,
        key=lambda shape: saved_bytes(workload(config, shape[0], shape[1].sequence_length, "fused", on_cpu)),
    )


def _try(config: RunConfig, world: World, engine: Engine, size: int, rows: int, length: int) -> Trial:
    """Take two steps of two micro-batches, as with accumulation, and time the second. Collective."""
    smoothing = config.elc_bert.training.label_smoothing
    batch = full_batch(config, rows, length)
    _reset_peak(world.device)
    try:
        for _ in range(2):
            start = time.perf_counter()
            totals = train_step(engine, [batch, batch], world, smoothing, seed=0).totals
            totals.reduce()  # waits for the device
            seconds = time.perf_counter() - start
    except torch.OutOfMemoryError:
        if world.size > 1:
            # The other ranks wait for this one in a collective, so the search cannot continue.
            raise UserError(
                f"out of memory at micro-batch {size}, although it should have fitted; use the one before it"
            ) from None
        return Trial(size, float("inf"), 0.0)
    (peak,) = max_over_ranks([_peak(world.device)], world.device)
    return Trial(size, peak, 2 * rows * length * world.size / seconds)


def full_batch(config: RunConfig, rows: int, length: int) -> MicroBatch:
    """Return a micro-batch of random tokens without padding."""
    ours = config.elc_bert
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(ours.model.vocab_size, (rows, length), generator=generator)
    predicted = max(1, round(ours.data.mask_probability * rows * (length - 2)))
    positions = torch.randperm(rows * length, generator=generator)[:predicted].sort().values
    mask = torch.ones(rows, length, dtype=torch.bool)
    return MicroBatch(tokens, mask, positions, tokens.flatten()[positions], rows * length)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cpu":
        reset_peak_memory()
    else:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> float:
    """Return the peak since ``_reset_peak``; on a GPU with PyTorch's cache, which no other can use."""
    return peak_memory(device) if device.type == "cpu" else torch.cuda.max_memory_reserved(device)


def _print(world: World, line: str) -> None:
    if world.is_main:
        print(line, flush=True)
