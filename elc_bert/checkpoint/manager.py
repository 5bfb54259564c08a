"""Checkpoints of a run: found, loaded and saved by all ranks together.

Files are written while training continues; ``checkpoint.files`` describes them. The state of random
generators is not saved: order and masks are functions of (seed, epoch, sample), and dropout is seeded with
(seed, step, rank) at every step.
"""

import contextlib
import functools
import logging
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from elc_bert.checkpoint import files, publish
from elc_bert.checkpoint.finite import check_finite
from elc_bert.checkpoint.identity import check_identity, check_order_is_recorded, differences, layout_of
from elc_bert.checkpoint.progress import Progress
from elc_bert.checkpoint.reshard import SavedState, load_into
from elc_bert.config.held_out import held_out_step
from elc_bert.config.schema import RunConfig
from elc_bert.config.secrets import without_secrets
from elc_bert.distributed.collectives import SharedUserError, agree, from_main
from elc_bert.distributed.world import World
from elc_bert.engine.protocol import Engine
from elc_bert.engine.stepping import restore_step_counts
from elc_bert.engine.weights import full_precision_weights, full_shape
from elc_bert.engine.zero_layout import pieces_of_rank
from elc_bert.utils.errors import UserError

T = TypeVar("T")
logger = logging.getLogger(__name__)
IDLE, WRITING, FAILED = 0, 1, 2


class Written(NamedTuple):
    """A checkpoint that has become complete."""

    step: int
    """Step of the checkpoint."""
    seconds: float
    """Seconds from the start of the checkpoint to its completion."""


@dataclass
class _Unfinished:
    """A checkpoint that is being written."""

    final: Path
    record: dict[str, Any]
    shapes: dict[str, Sequence[int]]
    weights: dict[str, Tensor] | None
    start: float
    work: Future[None]
    """Background work of this rank: writing its files, then, on rank 0, publishing."""
    publishing: bool = False
    """True if the files of all ranks are on disk."""


class Checkpoints:
    """Checkpoints of one run. Methods are collective unless they say otherwise.

    Args:
        config: Configuration of the run.
        world: Processes of the run.
        identity: Result of ``run_identity``.
    """

    def __init__(self, config: RunConfig, world: World, identity: dict[str, Any]) -> None:
        self.directory = config.elc_bert.training.output_dir / "checkpoints"
        self._config = config
        self._world = world
        self._identity = identity
        self._layout = layout_of(config, world.size)
        hang_limit = config.elc_bert.training.hang_limit
        # A file system that does not respond is reported before the watchdog reports a hang.
        self._write_timeout = None if hang_limit is None else 0.8 * hang_limit
        self._unfinished: _Unfinished | None = None
        self._thread = ThreadPoolExecutor(1, "checkpoint", initializer=_lower_priority)

    def find(self, resume: str) -> tuple[Path, dict[str, Any]] | None:
        """Find the checkpoint to resume from, and report what has changed since.

        Every file is compared with its checksum. If the newest checkpoint is damaged, the previous one is
        used.

        Args:
            resume: ``auto`` for the newest checkpoint of this run, if any, ``never``, or the directory of a
                checkpoint.

        Returns:
            Directory and record of the checkpoint; None for a new run.

        Raises:
            UserError: No checkpoint is usable, it belongs to another run, or a new run would overwrite one.
                Raised on all ranks.
        """
        world = self._world
        problems: list[str] = []
        for path in from_main(world, lambda: self._candidates(resume)):
            try:
                record = from_main(world, functools.partial(files.read_record, path))
                mine = sorted(record["files"].items())[world.rank :: world.size]
                agree(world, functools.partial(files.check_files, path, dict(mine)))
            except SharedUserError as damage:
                problems.append(str(damage))
                continue
            moved = agree(world, check_identity, path, record["identity"], self._identity)
            before, now = record["config"], self._config.model_dump(mode="json")
            changes = differences(without_secrets(before), without_secrets(now))
            changes += differences(record["layout"], self._layout, "layout")
            if world.is_main:
                for problem in problems:
                    logger.warning("%s; resuming from %s", problem, path.name)
                for change in moved:
                    logger.warning("the schedule differs from that of the checkpoint's version: %s", change)
                if step := held_out_step(record["config"], self._config):
                    logger.warning("%s", step)
                for change in changes:
                    logger.info("changed since the checkpoint: %s", change)
            return path, record
        if problems:
            raise SharedUserError(
                f"{'; '.join(problems)}; resume from another checkpoint, or start a new run in another "
                "elc_bert.training.output_dir"
            )
        return None

    def load(self, engine: Engine, path: Path, record: Mapping[str, Any]) -> None:
        """Load the state of a checkpoint that ``find`` has checked into the engine.

        In the layout in which it was written (devices, ZeRO stage, precision), DeepSpeed loads its own files.
        In any other layout they are read tensor by tensor. Both restore the saved state bit for bit.

        Raises:
            UserError: A file would run code when loaded, or the layout is unknown. Raised on all ranks.
        """
        try:
            if differences(record["layout"], self._layout):
                check_order_is_recorded(path, record)
                load_into(engine, SavedState(path))
            else:
                engine.load_checkpoint(str(path.parent), tag=path.name)
            restore_step_counts(engine)
        except pickle.UnpicklingError as error:
            # The same program has written the files of all ranks, so this is raised on all of them.
            raise UserError(
                f"{path}: holds more than tensors and plain values, and is not loaded because that could run "
                f"code ({str(error).splitlines()[0]}); resume from a checkpoint that this project wrote"
            ) from None

    def save(self, engine: Engine, progress: Progress) -> float:
        """Start to write a checkpoint, which ``advance`` or ``finish`` completes. No other may be unfinished.

        Returns:
            Seconds for which training had to wait.

        Raises:
            UserError: The checkpoint cannot be written, or the model or the optimizer holds NaN or infinite
                numbers. Raised on all ranks.
        """
        assert self._unfinished is None
        start = time.perf_counter()
        final = self.directory / files.checkpoint_name(progress.step)
        agree(self._world, check_finite, engine, self._world, final)
        partial = files.partial_path(final)
        agree(self._world, lambda: self._explain_errors(final, lambda: self._make_directory(partial)))
        engine.save_checkpoint(str(self.directory), tag=partial.name, save_latest=False)
        pieces = pieces_of_rank(engine)
        self._unfinished = _Unfinished(
            final,
            record={
                "identity": self._identity,
                "layout": self._layout,
                "progress": asdict(progress),
                "config": self._config.model_dump(mode="json"),
            },
            shapes={name: full_shape(parameter) for name, parameter in engine.module.named_parameters()},
            weights=full_precision_weights(engine) if pieces is None else None,
            start=start,
            work=self._thread.submit(
                files.write_rank,
                partial,
                self._world.rank,
                self._world.size,
                engine.checkpoint_engine.write,
                None if pieces is None else [piece for _, piece in pieces],
            ),
        )
        if not self._config.elc_bert.checkpoint.background:
            self.finish()
        return time.perf_counter() - start

    @property
    def state(self) -> int:
        """State of this rank's background work: IDLE, WRITING or FAILED. Not collective."""
        if self._unfinished is None:
            return IDLE
        work = self._unfinished.work
        return WRITING if not work.done() else IDLE if work.exception() is None else FAILED

    def advance(self, highest_state: int) -> Written | None:
        """Move the unfinished checkpoint to its next stage if all ranks are ready. Does not wait.

        Args:
            highest_state: Maximum of ``state`` over all ranks.

        Returns:
            The checkpoint, once, when it is complete; else None.

        Raises:
            UserError: The checkpoint cannot be written. Raised on all ranks.
        """
        unfinished = self._unfinished
        if unfinished is None or highest_state == WRITING:
            return None
        if highest_state == FAILED or unfinished.publishing:
            return self.finish()
        self._publish(unfinished)
        return None

    def finish(self) -> Written | None:
        """Wait until the unfinished checkpoint, if any, is complete.

        Returns:
            The checkpoint that has become complete, if there was one.

        Raises:
            UserError: The checkpoint cannot be written. Raised on all ranks.
        """
        unfinished = self._unfinished
        if unfinished is None:
            return None
        try:
            self._wait(unfinished)
            if not unfinished.publishing:
                self._publish(unfinished)
                self._wait(unfinished)
        except SharedUserError:
            if self._world.is_main and unfinished.work.done():
                files.remove(files.partial_path(unfinished.final))
            raise
        finally:
            self._unfinished = None
        step = unfinished.record["progress"]["step"]
        return Written(step, time.perf_counter() - unfinished.start)

    def _wait(self, unfinished: _Unfinished) -> None:
        wait = functools.partial(unfinished.work.result, self._write_timeout)
        agree(self._world, lambda: self._explain_errors(unfinished.final, wait))

    def _publish(self, unfinished: _Unfinished) -> None:
        unfinished.publishing = True
        if self._world.is_main:
            unfinished.work = self._thread.submit(
                publish.publish,
                unfinished.final,
                unfinished.record,
                unfinished.shapes,
                unfinished.weights,
                self._config.elc_bert.checkpoint,
            )

    def _candidates(self, resume: str) -> list[Path]:
        """Return the directories to try, in order."""
        if resume not in ("auto", "never"):
            path = Path(resume)
            if not path.is_dir():
                raise UserError(f"{path}: no such checkpoint; give a {files.checkpoint_name(500)} directory")
            return [path]
        with contextlib.suppress(OSError):  # an unwritable directory is reported later
            files.restore_replaced(self.directory)
        candidates = files.newest_first(self.directory)
        latest = self.directory / files.LATEST
        if candidates and latest.exists() and files.named_checkpoint(self.directory) is None:
            logger.warning("%s: names no checkpoint; trying %s first", latest, candidates[0].name)
        if candidates and resume == "never":
            raise UserError(
                f"{self.directory}: holds a run already; continue it with --resume auto, or choose another "
                "--set elc_bert.training.output_dir=DIR"
            )
        return candidates

    def _make_directory(self, partial: Path) -> None:
        if self._world.is_main:
            files.remove(partial)
            partial.mkdir(parents=True)

    def _explain_errors(self, final: Path, action: Callable[[], T]) -> T:
        """Run an action, and raise errors of the file system as UserError."""
        try:
            return action()
        except OSError as error:
            if isinstance(error, TimeoutError) and error.errno is None:  # from Future.result
                raise UserError(
                    f"{self.directory}: the file system does not respond: {final.name} is not written after "
                    f"{self._write_timeout:.0f} s; fix that and continue from the previous checkpoint with "
                    "--resume auto"
                ) from None
            (good, *_) = [*files.newest_first(self.directory), None]
            if good == final and self._unfinished and not files.partial_path(final).exists():
                outcome = f"{final.name} is complete"
            else:
                outcome = f"{final.name} could not be written, the last good checkpoint is "
                outcome += "none" if good is None else good.name
            raise UserError(
                f"{error.filename or self.directory}: {error.strerror or error}; {outcome}; fix that and "
                "continue with --resume auto"
            ) from None


def _lower_priority() -> None:
    """Let this thread yield the core to training on a CPU.

    Only on Linux, where the priority is that of a thread; elsewhere it is that of the process.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
