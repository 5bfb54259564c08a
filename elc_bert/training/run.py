"""A run that is ready for its next step; every part of training and every callback works on it."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch.utils.data import DataLoader

from elc_bert.checkpoint.manager import Checkpoints
from elc_bert.checkpoint.progress import Progress
from elc_bert.config.batch_plan import BatchPlan
from elc_bert.config.length_schedule import LengthSchedule
from elc_bert.config.schema import RunConfig
from elc_bert.data.sampling.collate import CollatedStep
from elc_bert.data.sampling.steps import MicroBatch
from elc_bert.distributed.signals import StopSignals
from elc_bert.distributed.world import World
from elc_bert.engine.monitor import RunMonitor
from elc_bert.engine.protocol import Engine
from elc_bert.evaluation.minimal_pairs import Paradigm
from elc_bert.training.data import RunData
from elc_bert.training.data_workers import describe_failed_start, prepare_data_worker
from elc_bert.training.metrics import Stopwatch
from elc_bert.training.step import StepResult
from elc_bert.utils.errors import UserError


@dataclass
class Run:
    """A run that is ready for its next step."""

    config: RunConfig
    """Configuration of the run."""
    world: World
    """Processes of the run."""
    signals: StopSignals
    """Signals that stop the run."""
    schedule: LengthSchedule
    """Sequence length and global batch by step."""
    plans: dict[int, BatchPlan]
    """Micro-batch and gradient accumulation, by phase index."""
    data: RunData
    """Datasets of the run."""
    engine: Engine
    """Model, optimizer and schedule under DeepSpeed."""
    checkpoints: Checkpoints
    """Checkpoints of the run."""
    progress: Progress
    """State that checkpoints record besides the engine's."""
    monitor: RunMonitor
    """TensorBoard and the other monitors."""
    paradigms: list[Paradigm]
    """Minimal pairs to score during training."""
    peak_flops: float
    """Floating-point operations per second of matrix products on all devices, measured at the start."""
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    """Time spent on training, callbacks excluded unless they are part of the step."""
    learning_rate: float = 0.0
    """Learning rate of the last step."""
    result: StepResult | None = None
    """Result of the last step on this rank."""
    summary: dict[str, str] = field(default_factory=dict)
    """Short form of the last log entry, for the progress bar."""
    stopping: bool = False
    """True if a rank has received a signal and all ranks stop after this step."""
    log_failed: bool = False
    """True if the log of rank 0 could not be written, as of the last exchange."""
    repeating_evaluations: bool = False
    """True if evaluations that a signal interrupted before the run was resumed are being repeated."""
    checkpoint_state: int = 0
    """Maximum of ``Checkpoints.state`` over all ranks, as of the last exchange."""

    @property
    def last_step(self) -> int:
        """Step after which the run is finished."""
        return self.config.elc_bert.training.max_steps

    def is_due(self, every: int | None) -> bool:
        """Return whether something that happens every so many steps, and after the last one, is due now."""
        step = self.progress.step
        return every is not None and (step % every == 0 or step == self.last_step)

    def batches(self) -> Iterator[list[MicroBatch]]:
        """Yield this rank's micro-batches of each remaining step, prepared ahead by data workers."""
        workers = self.config.elc_bert.data.workers
        loader = DataLoader(
            self.data.train,
            batch_size=None,
            sampler=range(self.progress.step, self.last_step),
            num_workers=workers,
            pin_memory=self.world.device.type == "cuda",
            prefetch_factor=4 if workers else None,
            collate_fn=CollatedStep.collate,
            worker_init_fn=prepare_data_worker,
        )
        try:
            steps = iter(loader)
        except OSError as error:
            raise UserError(describe_failed_start(error)) from None
        try:
            for step in steps:
                yield step.micro_batches()
        except UserError as error:
            # An error in a data worker arrives with the worker's traceback around its message.
            raise UserError(str(error).strip().rpartition("UserError: ")[2]) from None

    def epochs(self) -> dict[str, float]:
        """Return the number of passes over each training dataset, by its name."""
        return dict(zip(self.data.names, self.data.epochs(self._positions()), strict=True))

    def samples_seen(self) -> int:
        """Return the number of sequences that have been read, over all ranks."""
        return sum(self._positions().values())

    def _positions(self) -> dict[int, int]:
        """Return the number of sequences of each phase that have been read, by phase index."""
        return {
            phase.index: max(0, min(self.progress.step, end) - phase.first_step) * phase.global_batch
            for phase, end in self.schedule.phases_with_ends()
        }
