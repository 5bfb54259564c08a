"""Exchange between the ranks, after every step, of what they must decide together."""

from elc_bert.training.callbacks.callback import Callback
from elc_bert.training.run import Run


class ExchangeSignals(Callback):
    """Exchange whether a rank has received a signal, the state of the checkpoint, and log failures."""

    def after_step(self, run: Run) -> None:
        """Exchange three numbers between the CPUs of all ranks. Collective."""
        signal, run.checkpoint_state, log_failed = run.signals.max_over_ranks(
            run.signals.received, run.checkpoints.state, run.monitor.has_failed
        )
        run.stopping, run.log_failed = signal > 0, bool(log_failed)
