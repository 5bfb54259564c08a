"""Saving a run and going on with it: what all ranks do together.

Files are written while training goes on (``checkpoint_files`` has the format). Nothing of random generators
needs saving: order and masks are functions of (seed, epoch, sample), and dropout is seeded by (seed, step,
rank) at every step.
"""

import contextlib
import functools
import os
import pickle
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from elc_bert.checkpoint import files as files
from elc_bert.checkpoint.identity import differences, layout_of
from elc_bert.checkpoint.progress import Progress
from elc_bert.config.schema import RunConfig
from elc_bert.distributed.collectives import SharedUserError, agree, from_main
from elc_bert.distributed.world import World
from elc_bert.engine.zero_layout import full_precision_weights, pieces_of_rank, whole_shape
from elc_bert.utils.errors import UserError

IDLE, WRITING, FAILED = 0, 1, 2


class Written(NamedTuple):
    """A checkpoint that has become complete."""

    step: int
    seconds: float
    """From when it was begun."""


@dataclass
class _Unfinished:
    """A checkpoint that is being written."""

    final: Path
    record: dict[str, Any]
    shapes: dict[str, Sequence[int]]
    weights: dict[str, Tensor] | None
    began: float
    work: Future
    """What this rank does in the background: writing its files, on rank 0 then publishing."""
    publishing: bool = False
    """Whether the files of all ranks are on disk."""


class Checkpoints:
    """The checkpoints of one run. Methods are collective unless they say otherwise."""

    def __init__(self, config: RunConfig, world: World, identity: dict[str, Any]):
        self.directory = config.elc_bert.training.output_dir / "checkpoints"
        self._config = config
        self._world = world
        self._identity = identity
        self._layout = layout_of(config, world.size)
        hang_limit = config.elc_bert.training.hang_limit
        # A file system that does not answer is told of sooner than that a rank hangs.
        self._patience = None if hang_limit is None else 0.8 * hang_limit
        self._unfinished: _Unfinished | None = None
        self._thread = ThreadPoolExecutor(1, "checkpoint", initializer=_give_way)

    def find(self, resume: str) -> tuple[Path, dict[str, Any]] | None:
        """The checkpoint to go on from and its record, or None for a new run; what was changed is printed.

        Every file has been compared with its checksum. If the newest is damaged, the one before is taken.

        Args:
            resume: ``auto`` (the newest of this run, if any), ``never``, or a checkpoint's directory.

        Raises:
            UserError: none can be used, it is another run's, or a new run would overwrite one. On all ranks.
        """
        problems: list[str] = []
        for path in from_main(self._world, lambda: self._candidates(resume)):
            try:
                record = from_main(self._world, functools.partial(files.read_record, path))
                mine = sorted(record["files"].items())[self._world.rank :: self._world.size]
                agree(self._world, functools.partial(files.check_files, path, dict(mine)))
            except SharedUserError as damage:
                problems.append(str(damage))
                continue
            agree(self._world, functools.partial(self._check_identity, path, record))
            self._tell(f"{problem}; going on from {path.name}" for problem in problems)
            changes = differences(record["config"], self._config.model_dump(mode="json"))
            changes += differences(record["layout"], self._layout, "layout")
            self._tell(f"changed since the checkpoint: {change}" for change in changes)
            return path, record
        if problems:
            instead = "resume from another checkpoint, or start anew in another elc_bert.training.output_dir"
            raise SharedUserError(f"{'; '.join(problems)}; {instead}")
        return None

    def load(self, engine: Any, path: Path, record: Mapping[str, Any]) -> None:
        """Put the state saved in ``path``, which ``find`` has checked, into the engine.

        In the layout that it was written in (devices, ZeRO stage, precision), DeepSpeed loads its own files;
        in another one they are read tensor by tensor. Both give the saved state to the bit.

        Raises:
            UserError: a file would run code when loaded, or the layout is not known. On all ranks alike.
        """
        from elc_bert.checkpoint.reshard import SavedState, load_into

        try:
            if differences(record["layout"], self._layout):
                load_into(engine, SavedState(path))
            else:
                engine.load_checkpoint(str(path.parent), tag=path.name)
        except pickle.UnpicklingError as error:
            # All ranks read files of the same making and so all raise.
            raise UserError(
                f"{path}: holds more than tensors and plain values, and is not loaded because that could run "
                f"code ({str(error).splitlines()[0]}); resume from a checkpoint that this project wrote"
            ) from None

    def save(self, engine: Any, progress: Progress) -> float:
        """Begin to write a checkpoint, of which there is none unfinished; ``advance`` and ``finish`` end it.

        Returns:
            Seconds that training had to wait.

        Raises:
            UserError: it cannot be written. On all ranks alike.
        """
        assert self._unfinished is None
        began = time.perf_counter()
        final = self.directory / files.name_of(progress.step)
        partial = files.partial_of(final)
        agree(self._world, lambda: self._told(final, lambda: self._make(partial)))
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
            shapes={name: whole_shape(parameter) for name, parameter in engine.module.named_parameters()},
            weights=full_precision_weights(engine) if pieces is None else None,
            began=began,
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
        return time.perf_counter() - began

    @property
    def state(self) -> int:
        """What this rank's background work is at: IDLE, WRITING or FAILED. Not collective."""
        if self._unfinished is None:
            return IDLE
        work = self._unfinished.work
        return WRITING if not work.done() else IDLE if work.exception() is None else FAILED

    def advance(self, highest: int) -> Written | None:
        """Take the checkpoint that is being written a stage further, if all ranks are ready. Without waiting.

        Args:
            highest: of the ``state`` of all ranks.

        Returns:
            What has been written, once, when it is complete.

        Raises:
            UserError: it cannot be written. On all ranks alike.
        """
        unfinished = self._unfinished
        if unfinished is None or highest == WRITING:
            return None
        if highest == FAILED or unfinished.publishing:
            return self.finish()
        self._publish(unfinished)
        return None

    def finish(self) -> Written | None:
        """Wait until the checkpoint that is being written, if any, is complete.

        Returns:
            What has been written, if there was one.

        Raises:
            UserError: it cannot be written. On all ranks alike.
        """
        unfinished = self._unfinished
        if unfinished is None:
            return None
        try:
            agree(
                self._world,
                lambda: self._told(unfinished.final, lambda: unfinished.work.result(self._patience)),
            )
            if not unfinished.publishing:
                self._publish(unfinished)
                agree(
                    self._world,
                    lambda: self._told(unfinished.final, lambda: unfinished.work.result(self._patience)),
                )
        except SharedUserError:
            if self._world.is_main and unfinished.work.done():
                shutil.rmtree(files.partial_of(unfinished.final), ignore_errors=True)
            raise
        finally:
            self._unfinished = None
        step = unfinished.record["progress"]["step"]
        return Written(step, time.perf_counter() - unfinished.began)

    def _wait(self, unfinished: _Unfinished) -> None:
        wait = functools.partial(unfinished.work.result, self._patience)
        agree(self._world, lambda: self._told(unfinished.final, wait))

    def _publish(self, unfinished: _Unfinished) -> None:
        unfinished.publishing = True
        if self._world.is_main:
            unfinished.work = self._thread.submit(
                files.publish,
                unfinished.final,
                unfinished.record,
                unfinished.shapes,
                unfinished.weights,
                self._config.elc_bert.checkpoint,
            )

    def _candidates(self, resume: str) -> list[Path]:
        """Directories to try, in order."""
        if resume not in ("auto", "never"):
            path = Path(resume)
            if not path.is_dir():
                raise UserError(f"{path}: no checkpoint there; give a {files.name_of(500)} directory")
            return [path]
        with contextlib.suppress(OSError):  # what cannot be written is told later
            files.put_back(self.directory)
        candidates = files.newest_first(self.directory)
        if candidates and resume == "never":
            raise UserError(
                f"{self.directory}: holds a run already; go on with it by --resume auto, or choose another "
                "--set elc_bert.training.output_dir=DIR"
            )
        return candidates

    def _check_identity(self, path: Path, record: Mapping[str, Any]) -> None:
        changes = differences(record["identity"], self._identity)
        if changes:
            raise UserError(
                f"{path}: is a checkpoint of another run: {'; '.join(changes)}; use that run's settings, or "
                "start a new run in another elc_bert.training.output_dir"
            )

    def _tell(self, lines: Iterable[str]) -> None:
        if self._world.is_main:
            for line in lines:
                print(line, flush=True)

    def _make(self, partial: Path) -> None:
        if self._world.is_main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)

    def _told(self, final: Path, action: Callable[[], Any]) -> Any:
        """Turn an error of the disk into one for the user."""
        try:
            return action()
        except OSError as error:
            if isinstance(error, TimeoutError) and error.errno is None:  # of our waiting, not of the disk
                raise UserError(
                    f"{self.directory}: its file system does not answer: {final.name} is not written after "
                    f"{self._patience:.0f} s; mend that and go on from the one before with --resume auto"
                ) from None
            good = files.newest_first(self.directory)
            raise UserError(
                f"{error.filename or self.directory}: {error.strerror or error}; {final.name} could not be "
                f"written, the last good one is {good[0].name if good else 'none'}; mend that and go on "
                "with --resume auto"
            ) from None


def _give_way() -> None:
    """Have this thread wait where training on a CPU wants the core (Linux; elsewhere it would slow all)."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
