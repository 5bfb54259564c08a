"""The training loop."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from elc_bert.checkpoint.manager import Written
from elc_bert.config.schema import RunConfig
from elc_bert.data.sampling.random import derive_seed
from elc_bert.distributed.collectives import SharedUserError, agree, max_over_ranks
from elc_bert.distributed.exit_status import DONE, PREEMPTED
from elc_bert.distributed.watchdog.diagnosis import Timeouts
from elc_bert.distributed.watchdog.watchdog import Watchdog
from elc_bert.engine.processes import connect
from elc_bert.kernels.compiled import GraphCounts
from elc_bert.model import flops_per_token
from elc_bert.optim import Lamb
from elc_bert.training.callbacks.babylm_exports import FOLDER, MilestoneExports
from elc_bert.training.callbacks.minimal_pairs import score_minimal_pairs
from elc_bert.training.checks.memory import telling_out_of_memory
from elc_bert.training.checks.nonfinite import check_finite
from elc_bert.training.checks.replicas import check_replicas
from elc_bert.training.metrics import Stopwatch, Totals, lamb_scalars, peak_memory
from elc_bert.training.run import Run, set_up
from elc_bert.training.step import evaluate, layer_weights, train_step
from elc_bert.utils.errors import UserError
from elc_bert.utils.progress import progress_bar
from elc_bert.utils.text import human

#: After so many, every graph that a length needs is there, if batches of several sizes do not break it.
STEPS_TO_COMPILE = 3


def pretrain(
    config: RunConfig, watchdog: Watchdog, resume: str = "never", init_from: Path | None = None
) -> int:
    """Pretrain from a configuration, on all processes that the launcher started.

    Args:
        config: the run.
        resume: ``never``, ``auto`` (go on with this run if it has been started) or a checkpoint's directory.
        init_from: model whose weights a new run starts from, see ``hub.loading.load_model``.

    Returns:
        The exit status: ``DONE``, or ``PREEMPTED`` by a signal, with a checkpoint of the last step.

    Raises:
        UserError: on all ranks alike; nothing has been overwritten.
    """
    training = config.elc_bert.training
    if training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first use of the device
        torch.use_deterministic_algorithms(True)
    world = connect(watchdog, Timeouts(training.silence_limit, training.hang_limit))
    with telling_out_of_memory():
        run = set_up(config, resume, world, init_from)
        try:
            status = train(run)
        except SharedUserError:
            # What ends the run is no reason to lose the checkpoint that was being written.
            with suppress(UserError):
                run.checkpoints.finish()
            raise
    run.monitor.close()
    return status


def train(run: Run) -> int:
    """Take the remaining steps, with logs, evaluations and checkpoints when they are due."""
    settings, progress = run.config.elc_bert, run.progress
    last = settings.training.max_steps
    since_log = _carried_totals(run)
    exports = (
        MilestoneExports(run, _on_all_ranks(since_log)) if settings.evaluation.babylm_checkpoints else None
    )
    watch = Stopwatch()
    compiled_by = min(progress.step + STEPS_TO_COMPILE, last)
    with progress_bar(last, "step", done=progress.step, title="pretraining", shown=run.world.is_main) as bar:
        if run.signals.received_by_any_rank() or (
            progress.evaluation_due and not catch_up(run, bar, since_log)
        ):
            return PREEMPTED
        for micro_batches in watch.waiting_for(run.batches()):
            run.world.watchdog.begin_step(progress.step + 1)
            seed = derive_seed(settings.training.seed, progress.step, run.world.rank)
            learning_rate = run.engine.get_lr()[0]
            result = train_step(run.engine, micro_batches, run.world, settings.training.label_smoothing, seed)
            progress.step, progress.held_out_loss = progress.step + 1, None
            bar.update()
            step = progress.step
            if line := check_finite(run, result):
                tell(run, bar, line)
            since_log.merge(result.totals)
            if (every := settings.training.check_replicas_every) and step % every == 0:
                check_replicas(run.engine, run.world, step)
            if settings.training.compile and step == compiled_by:
                tell(run, bar, f"torch.compile, first {STEPS_TO_COMPILE} steps: {GraphCounts.so_far()}")
            if step % settings.training.log_every == 0 or step == last:
                bar.set_postfix(
                    log(run, since_log, learning_rate, float(result.gradient_norm), watch), refresh=False
                )
                since_log = Totals(run.world.device)
            with _not_counted(watch):
                if exports is not None:
                    for name in exports.after_step(_on_all_ranks(since_log)):
                        tell(run, bar, f"step {step}: exported {FOLDER}/{name}")
                progress.evaluation_due = not look_at_model(run, bar)
                stopping, state, log_failed = run.signals.max_over_ranks(
                    run.signals.received, run.checkpoints.state, run.monitor.has_failed
                )
                log_written(run, run.checkpoints.advance(state))
                if log_failed:
                    agree(run.world, run.monitor.check)
                if stopping or step % settings.checkpoint.every == 0 or step == last:
                    save(run, since_log, wait=bool(stopping) or step == last)
            if stopping:
                tell(run, bar, f"step {step}: stopped by a signal, with a checkpoint; --resume auto goes on")
                return DONE if step == last and not progress.evaluation_due else PREEMPTED
    return DONE


def look_at_model(run: Run, bar) -> bool:
    """Pictures and evaluations that are due after this step; False if a signal cut them short. Collective."""
    settings, step = run.config.elc_bert, run.progress.step
    last = step == settings.training.max_steps
    if step % settings.training.picture_every == 0 or step == 1 or last:
        run.monitor.layer_weights(step, layer_weights(run.engine))
    if (step % settings.evaluation.every == 0 or last) and not log_held_out(run, bar):
        return False
    if run.paradigms and (step % settings.evaluation.minimal_pairs_every == 0 or last):
        if run.signals.received_by_any_rank():
            return False
        log_minimal_pairs(run, bar)
    return True


def catch_up(run: Run, bar, since_log: Totals) -> bool:
    """Evaluate what a signal had cut short; False if another one does so again. Collective."""
    if not look_at_model(run, bar):
        return False
    run.progress.evaluation_due = False
    save(run, since_log, wait=True)
    return True


def save(run: Run, since_log: Totals, wait: bool) -> None:
    """Write a checkpoint, to its end or in the background. Collective."""
    run.progress.since_log = _on_all_ranks(since_log).values()
    run.progress.samples_seen, run.progress.epochs = run.samples_seen(), run.epochs()
    with run.world.watchdog.activity("saving a checkpoint"):
        began = time.perf_counter()
        log_written(run, run.checkpoints.finish())  # the one before, if it took so long
        stall = time.perf_counter() - began + run.checkpoints.save(run.engine, run.progress)
        run.monitor.scalars(run.progress.step, {"checkpoint/stall_seconds": stall})
        if wait:
            log_written(run, run.checkpoints.finish())


def log_written(run: Run, written: Written | None) -> None:
    """Log how long the checkpoint took that has become complete, if one has."""
    if written is not None:
        run.monitor.scalars(written.step, {"checkpoint/write_seconds": written.seconds})


def log(
    run: Run, totals: Totals, learning_rate: float, gradient_norm: float, watch: Stopwatch
) -> dict[str, str]:
    """Write what the steps since the last entry came to; return the short form for the bar. Collective."""
    totals.reduce()
    progress, settings = run.progress, run.config.elc_bert
    progress.tokens_seen += totals.tokens
    progress.words_seen += totals.words
    seconds, waited = watch.read()  # after the sums are in, and with them the device's work
    data_wait, peak_memory_of_rank = max_over_ranks(
        [waited / seconds, peak_memory(run.world.device)], run.world.device
    )
    sequence_length = run.schedule.at(progress.step - 1)[0]
    per_second = totals.tokens / seconds
    flops = flops_per_token(settings.model, sequence_length, settings.data.mask_probability)
    entry = {
        "train/loss": totals.loss,
        "train/accuracy": totals.accuracy,
        "train/learning_rate": learning_rate,
        "train/gradient_norm": gradient_norm,
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
    if run.engine.fp16_enabled():
        entry["train/loss_scale"] = run.engine.optimizer.loss_scale  # of the next step
    if isinstance(run.engine.basic_optimizer, Lamb):
        norms = run.engine.basic_optimizer.norms()
        entry |= lamb_scalars(norms, settings.training.log_every_tensor)
    run.monitor.scalars(progress.step, entry)
    return {
        "loss": f"{totals.loss:.4f}",
        "acc": f"{totals.accuracy:.3f}",
        "lr": f"{learning_rate:.2e}",
        "tok/s": human(per_second),
    }


def _epochs(run: Run) -> dict[str, float]:
    """By tag: of a blend, each dataset has its own."""
    epochs = run.epochs()
    if len(epochs) == 1:
        return {"data/epochs": next(iter(epochs.values()))}
    return {f"data/epochs/{name}": value for name, value in epochs.items()}


def log_held_out(run: Run, bar) -> bool:
    """Evaluate on the held-out set and write the result; False if a signal cut it short. Collective."""
    pin_memory = run.world.device.type == "cuda"
    micro_batches = DataLoader(run.data.held_out, batch_size=None, pin_memory=pin_memory)
    with run.world.watchdog.activity("evaluating"):
        totals = evaluate(run.engine, micro_batches, run.world, run.signals.received_by_any_rank)
    if totals is None:
        return False
    run.progress.held_out_loss = totals.loss
    entry = {"held_out/loss": totals.loss, "held_out/accuracy": totals.accuracy}
    run.monitor.scalars(run.progress.step, entry)
    tell(
        run,
        bar,
        f"step {run.progress.step}: held-out loss {totals.loss:.4f}, accuracy {totals.accuracy:.4f}",
    )
    return True


def log_minimal_pairs(run: Run, bar) -> None:
    """Score minimal pairs and write the accuracy. Collective."""
    with run.world.watchdog.activity("scoring minimal pairs"):
        results = score_minimal_pairs(run)
    by_phenomenon = {f"minimal_pairs/{name}": value for name, value in results.by_phenomenon().items()}
    run.monitor.scalars(run.progress.step, {"minimal_pairs/overall": results.overall, **by_phenomenon})
    tell(run, bar, f"step {run.progress.step}: minimal pairs {results.overall:.1%}")


def tell(run: Run, bar, line: str) -> None:
    """Print a line, on one rank, above the progress bar."""
    if run.world.is_main:
        bar.write(line)


def _carried_totals(run: Run) -> Totals:
    """What the checkpoint holds of an unfinished log interval: a sum over all ranks, so one rank gets it."""
    return Totals(run.world.device, run.progress.since_log if run.world.is_main else None)


def _on_all_ranks(totals: Totals) -> Totals:
    summed = Totals(totals.device, totals.values())
    summed.reduce()
    return summed


@contextmanager
def _not_counted(watch: Stopwatch) -> Iterator[None]:
    start = time.perf_counter()
    yield
    watch.exclude(time.perf_counter() - start)
