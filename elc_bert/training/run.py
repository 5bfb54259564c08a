"""Everything a run needs before its first step, checked and built on all ranks together."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from elc_bert.checkpoint.files import clean_up
from elc_bert.checkpoint.identity import differences, run_identity
from elc_bert.checkpoint.manager import Checkpoints
from elc_bert.checkpoint.progress import Progress
from elc_bert.config.batch_plan import BatchPlan, plan_phases
from elc_bert.config.deepspeed import check_deepspeed_sections
from elc_bert.config.length_schedule import LengthSchedule
from elc_bert.config.schema import RunConfig
from elc_bert.data.sampling.steps import MicroBatch
from elc_bert.data.sampling.transport import StepInTransit
from elc_bert.distributed.collectives import agree
from elc_bert.distributed.signals import StopSignals, ignore_signals_in_data_worker
from elc_bert.distributed.world import World
from elc_bert.engine.build import build_engine, choose_kernels, missing_kernels
from elc_bert.engine.monitor import RunMonitor, check_monitors
from elc_bert.evaluation.minimal_pairs import Paradigm, read_paradigms
from elc_bert.hub.loading import load_model
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.training.checks.agreement import check_agreement, facts_of_data, facts_of_start
from elc_bert.training.checks.memory import check_memory
from elc_bert.training.checks.nonfinite import watch_loss_scale
from elc_bert.training.data import RunData, open_data
from elc_bert.training.startup_report import introduce
from elc_bert.utils.errors import UserError
from elc_bert.utils.files import atomic_write
from elc_bert.utils.peak_flops import measure_peak_flops

#: Of matrix products, by ``RunConfig.precision``.
DTYPES = {
    "bf16": torch.bfloat16,
    "bf16 autocast": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}


@dataclass
class Run:
    """A run that is ready for its next step."""

    config: RunConfig
    world: World
    signals: StopSignals
    schedule: LengthSchedule
    plans: dict[int, BatchPlan]
    """By phase index."""
    data: RunData
    engine: Any
    checkpoints: Checkpoints
    progress: Progress
    monitor: RunMonitor
    paradigms: list[Paradigm]
    """Minimal pairs to score while training."""
    peak_flops: float
    """Matrix-product operations per second of all devices together, measured at the start."""

    def batches(self) -> Iterator[list[MicroBatch]]:
        """This rank's micro-batches of each step from the next to the last, prepared ahead by workers."""
        settings = self.config.elc_bert
        loader = DataLoader(
            self.data.train,
            batch_size=None,
            sampler=range(self.progress.step, settings.training.max_steps),
            num_workers=settings.data.workers,
            pin_memory=self.world.device.type == "cuda",
            prefetch_factor=4 if settings.data.workers else None,
            collate_fn=StepInTransit.load,
            worker_init_fn=ignore_signals_in_data_worker,
        )
        try:
            for step in loader:
                yield step.unload()
        except UserError as error:
            # From a worker it comes with the worker's traceback wrapped around it.
            raise UserError(str(error).strip().rpartition("UserError: ")[2]) from None

    def epochs(self) -> dict[str, float]:
        """Times that each training dataset has been gone through, by its name."""
        return dict(zip(self.data.names, self.data.epochs(self._positions()), strict=True))

    def samples_seen(self) -> int:
        """Sequences that have been read, over all ranks."""
        return sum(self._positions().values())

    def _positions(self) -> dict[int, int]:
        """Sequences of each phase that have been read, by phase index."""
        return {
            phase.index: max(0, min(self.progress.step, end) - phase.first_step) * phase.global_batch
            for phase, end in self.schedule.phases_with_ends()
        }


def set_up(config: RunConfig, resume: str, world: World, init_from: Path | None = None) -> Run:
    """Check everything that can be checked, then build the engine and load the checkpoint. Collective.

    Raises:
        UserError: on all ranks alike, if anything does not fit on any rank.
    """
    agree(world, lambda: check_deepspeed_sections(config))  # the first thing, see distributed.run_to_status
    check_agreement(world, facts_of_start(config, resume, init_from, world))
    signals = StopSignals(world)
    agree(world, lambda: check_monitors(config))
    missing = agree(world, lambda: missing_kernels(config, world.device))
    kernels = agree(world, lambda: choose_kernels(config, world.device))
    training = config.elc_bert.training
    schedule = agree(
        world,
        lambda: LengthSchedule(
            training.max_steps, training.sequence_length, config.train_batch_size, training.long_after
        ),
    )
    plans = agree(world, lambda: plan_phases(config, schedule, world.size))
    memory = agree(world, lambda: check_memory(config, kernels, world))
    data = agree(world, lambda: open_data(config, schedule, plans, world))
    checkpoints = Checkpoints(config, world, run_identity(config, data.identity))
    facts = {"kernels": type(kernels).__name__, "why LAMB has no kernels": missing}
    check_agreement(world, facts_of_data(config, data) | facts)
    found = checkpoints.find(resume)
    checkpoint, record = found or (None, {})
    progress = Progress(**record.get("progress", {}))
    initial = None
    if init_from is not None and checkpoint is None:
        initial = agree(world, lambda: initial_model(config, init_from))
    pairs = config.elc_bert.evaluation.minimal_pairs
    paradigms = agree(world, lambda: [] if pairs is None else read_paradigms(pairs))
    engine = agree(
        world, lambda: build_engine(config, plans[schedule.phases[0].index], world, kernels, initial)
    )
    if checkpoint is not None:
        agree(world, lambda: checkpoints.load(engine, checkpoint, record))
    watch_loss_scale(engine)
    agree(world, lambda: _save_config(config, world))
    if world.is_main:
        clean_up(checkpoints.directory)
    monitor = RunMonitor(config, progress.step)
    run = Run(
        config,
        world,
        signals,
        schedule,
        plans,
        data,
        engine,
        checkpoints,
        progress,
        monitor,
        paradigms,
        _peak_flops(config, world),
    )
    if world.is_main:
        introduce(run, checkpoint or init_from, missing, memory)
    return run


def initial_model(config: RunConfig, path: Path) -> ElcBertForMaskedLM:
    """The model whose weights a new run starts from.

    Raises:
        UserError: it cannot be read, or has other sizes than the run's.
    """
    model = load_model(path, config.elc_bert.model.variant).model
    not_of_weights = {"hidden_dropout_prob", "attention_probs_dropout_prob"}
    theirs, ours = (
        each.model_dump(mode="json", exclude=not_of_weights) for each in (model.config, config.elc_bert.model)
    )
    if changes := differences(theirs, ours, "elc_bert.model"):
        raise UserError(
            f"{path}: another model than this run's: {'; '.join(changes)}; set these as it has them"
        )
    return model


def _save_config(config: RunConfig, world: World) -> None:
    """Leave the resolved configuration beside the checkpoints."""
    if not world.is_main:
        return
    output_dir: Path = config.elc_bert.training.output_dir
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with atomic_write(output_dir / "config.json", "w") as file:
            file.write(config.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise UserError(
            f"elc_bert.training.output_dir: cannot write to {output_dir} ({error.strerror}); choose another"
        ) from None


def _peak_flops(config: RunConfig, world: World) -> float:
    dist.barrier()
    peak = measure_peak_flops(world.device, DTYPES[config.precision])
    total = torch.tensor(peak, dtype=torch.float64, device=world.device)
    dist.all_reduce(total)
    return total.item()
