"""Evaluation on held-out text."""

import logging

from torch.utils.data import DataLoader

from elc_bert.data.sampling.steps import MicroBatch
from elc_bert.training.callbacks.callback import Callback
from elc_bert.training.run import Run
from elc_bert.training.step import evaluate

logger = logging.getLogger(__name__)


class HeldOutEvaluation(Callback):
    """Measure loss and accuracy on held-out text every ``elc_bert.evaluation.every`` steps."""

    repeated_after_interruption = True

    def after_step(self, run: Run) -> None:
        """Evaluate if an evaluation is due; a signal interrupts it. Collective if one is due."""
        if not run.is_due(run.config.elc_bert.evaluation.every):
            return
        pin_memory = run.world.device.type == "cuda"
        micro_batches: DataLoader[MicroBatch] = DataLoader(
            run.data.held_out, batch_size=None, pin_memory=pin_memory
        )
        with run.world.watchdog.activity("evaluating"):
            totals = evaluate(run.engine, micro_batches, run.world, run.signals.received_by_any_rank)
        if totals is None:
            run.progress.evaluation_due = True
            return
        step = run.progress.step
        run.progress.held_out_loss = totals.loss
        run.monitor.scalars(step, {"held_out/loss": totals.loss, "held_out/accuracy": totals.accuracy})
        logger.info("step %d: held-out loss %.4f, accuracy %.4f", step, totals.loss, totals.accuracy)
