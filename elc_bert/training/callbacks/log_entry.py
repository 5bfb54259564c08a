"""Entries of the log: loss, accuracy, throughput, memory and norms, in TensorBoard and the other monitors."""

import logging
from typing import Any

from elc_bert.distributed.collectives import max_over_ranks
from elc_bert.engine.stepping import next_loss_scale
from elc_bert.kernels.compiled import GraphCounts
from elc_bert.model import flops_per_token
from elc_bert.optim import Lamb
from elc_bert.training.callbacks.callback import Callback
from elc_bert.training.metrics import Totals, lamb_scalars, peak_memory
from elc_bert.training.run import Run
from elc_bert.utils.logs import FILE_ONLY
from elc_bert.utils.text import human

logger = logging.getLogger(__name__)


class LogEntry(Callback):
    """Write an entry every ``elc_bert.training.log_every`` steps, averaged since the last entry."""

    name = "log"
    part_of_step = True

    def __init__(self, run: Run) -> None:
        self._is_main = run.world.is_main
        self._totals = Totals(run.world.device)

    def after_step(self, run: Run) -> None:
        """Add the step to the sums, and write an entry if one is due. Collective if one is due."""
        assert run.result is not None
        self._totals.merge(run.result.totals)
        if run.is_due(run.config.elc_bert.training.log_every):
            self._totals.reduce()
            self._write(run, self._totals, run.result.gradient_norm)
            self._totals = Totals(run.world.device)

    def seen(self, run: Run) -> tuple[int, int]:
        """Return the real tokens and the words that all ranks have read so far. Collective."""
        since_entry = self._totals.reduced()
        return (
            run.progress.tokens_seen + since_entry.tokens,
            run.progress.words_seen + since_entry.words,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the sums since the last entry over all ranks. Collective."""
        return {"sums": self._totals.reduced().values()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the sums, which are those of all ranks, on rank 0 alone."""
        if self._is_main:
            self._totals = Totals(self._totals.device, state["sums"])

    def _write(self, run: Run, totals: Totals, gradient_norm: Any) -> None:
        progress, settings = run.progress, run.config.elc_bert
        progress.tokens_seen += totals.tokens
        progress.words_seen += totals.words
        # The time is read after the sums: when these are known, the device has finished its work.
        seconds, waited = run.stopwatch.read()
        data_wait, peak_memory_of_rank = max_over_ranks(
            [waited / seconds, peak_memory(run.world.device)], run.world.device
        )
        sequence_length = run.schedule.at(progress.step - 1)[0]
        per_second = totals.tokens / seconds
        flops = flops_per_token(settings.model, sequence_length, settings.data.mask_probability)
        entry = {
            "train/loss": totals.loss,
            "train/accuracy": totals.accuracy,
            "train/learning_rate": run.learning_rate,
            "train/gradient_norm": float(gradient_norm),
            "train/sequence_length": sequence_length,
            "train/skipped_steps": run.engine.skipped_steps,
            "throughput/tokens_per_second": per_second,
            "throughput/real_share": totals.real_share,
            "throughput/mfu": flops * per_second / run.peak_flops,
            "throughput/data_wait": data_wait,
            "memory/peak_gib": peak_memory_of_rank / 2**30,
            "data/words": progress.words_seen,
            **_epochs(run),
        }
        if settings.training.compile:
            counts = GraphCounts.so_far()
            entry |= {"compile/graph_breaks": counts.breaks, "compile/recompiles": counts.recompiles}
        if (loss_scale := next_loss_scale(run.engine)) is not None:
            entry["train/loss_scale"] = loss_scale
        if isinstance(run.engine.basic_optimizer, Lamb):
            norms = run.engine.basic_optimizer.norms()
            entry |= lamb_scalars(norms, settings.training.log_every_tensor)
        run.monitor.scalars(progress.step, entry)
        run.summary = {
            "loss": f"{totals.loss:.4f}",
            "acc": f"{totals.accuracy:.3f}",
            "lr": f"{run.learning_rate:.2e}",
            "tok/s": human(per_second),
        }
        line = ", ".join(f"{key} {value}" for key, value in run.summary.items())
        logger.info("step %d of %d: %s", progress.step, run.last_step, line, extra=FILE_ONLY)


def _epochs(run: Run) -> dict[str, float]:
    """Return the passes over each training dataset by tag; a single dataset needs no name in its tag."""
    epochs = run.epochs()
    if len(epochs) == 1:
        return {"data/epochs": next(iter(epochs.values()))}
    return {f"data/epochs/{name}": value for name, value in epochs.items()}
