"""Checkpoints during training."""

import logging
import time
from collections.abc import Sequence

from elc_bert.checkpoint.manager import Written
from elc_bert.distributed.collectives import agree
from elc_bert.training.callbacks.callback import Callback, states_of
from elc_bert.training.run import Run

logger = logging.getLogger(__name__)


class SaveCheckpoint(Callback):
    """Save a checkpoint every ``elc_bert.checkpoint.every`` steps, and when the run stops or is finished.

    Args:
        callbacks: Callbacks whose state goes into the checkpoint.
    """

    repeated_after_interruption = True

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = callbacks

    def after_step(self, run: Run) -> None:
        """Continue the checkpoint that is being written, and start a new one if one is due. Collective.

        Raises:
            UserError: A checkpoint or the log cannot be written. Raised on all ranks.
        """
        step = run.progress.step
        if run.repeating_evaluations:
            if not run.progress.evaluation_due:
                self.save(run, wait=True)
            return
        # Checkpoints come before the log: if both fail on a full disk, the message names the last good one.
        self._log_written(run, run.checkpoints.advance(run.checkpoint_state))
        if run.log_failed:
            agree(run.world, run.monitor.check)
        if run.stopping or run.is_due(run.config.elc_bert.checkpoint.every):
            self.save(run, wait=run.stopping or step == run.last_step)
        if run.stopping:
            logger.info("step %d: stopped by a signal, with a checkpoint; --resume auto continues", step)

    def save(self, run: Run, wait: bool) -> None:
        """Save a checkpoint. Collective.

        Args:
            run: The run.
            wait: Wait until it is complete, instead of writing it in the background.
        """
        progress = run.progress
        progress.samples_seen, progress.epochs = run.samples_seen(), run.epochs()
        progress.callbacks = states_of(self._callbacks)
        with run.world.watchdog.activity("saving a checkpoint"):
            start = time.perf_counter()
            self._log_written(run, run.checkpoints.finish())  # the previous one, if it is not complete yet
            stall = time.perf_counter() - start + run.checkpoints.save(run.engine, progress)
            run.monitor.scalars(progress.step, {"checkpoint/stall_seconds": stall})
            if wait:
                self._log_written(run, run.checkpoints.finish())

    def _log_written(self, run: Run, written: Written | None) -> None:
        if written is not None:
            run.monitor.scalars(written.step, {"checkpoint/write_seconds": written.seconds})
