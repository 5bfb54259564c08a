"""The training loop."""

from collections.abc import Sequence
from contextlib import nullcontext

from elc_bert.data.sampling.random import derive_seed
from elc_bert.distributed.exit_status import DONE, PREEMPTED
from elc_bert.training.callbacks.callback import Callback
from elc_bert.training.run import Run
from elc_bert.training.step import train_step


def train(run: Run, callbacks: Sequence[Callback]) -> int:
    """Take the remaining steps; everything else that happens during training is a callback.

    Args:
        run: Run that is ready for its next step.
        callbacks: Callbacks, called in this order after every step.

    Returns:
        Exit status: ``DONE``, or ``PREEMPTED`` if a signal stopped the run.
    """
    progress, training = run.progress, run.config.elc_bert.training
    if run.signals.received_by_any_rank() or not repeat_interrupted(run, callbacks):
        return PREEMPTED
    run.stopwatch.read()  # restarts it: the set-up does not count as training
    for micro_batches in run.stopwatch.waiting_for(run.batches()):
        run.world.watchdog.begin_step(progress.step + 1)
        seed = derive_seed(training.seed, progress.step, run.world.rank)
        run.learning_rate = run.engine.get_lr()[0]
        run.result = train_step(run.engine, micro_batches, run.world, training.label_smoothing, seed)
        progress.step += 1
        progress.held_out_loss = None
        call(callbacks, run)
        if run.stopping:
            is_finished = progress.step == run.last_step and not progress.evaluation_due
            return DONE if is_finished else PREEMPTED
    return DONE


def call(callbacks: Sequence[Callback], run: Run) -> None:
    """Call the callbacks in order; only the time of those that are part of a step counts as training."""
    for callback in callbacks:
        with nullcontext() if callback.part_of_step else run.stopwatch.paused():
            callback.after_step(run)


def repeat_interrupted(run: Run, callbacks: Sequence[Callback]) -> bool:
    """Repeat the evaluations that a signal interrupted before the run was resumed. Collective.

    Returns:
        False if another signal has interrupted them again.
    """
    if not run.progress.evaluation_due:
        return True
    run.progress.evaluation_due, run.repeating_evaluations = False, True
    call([callback for callback in callbacks if callback.repeated_after_interruption], run)
    run.repeating_evaluations = False
    return not run.progress.evaluation_due
