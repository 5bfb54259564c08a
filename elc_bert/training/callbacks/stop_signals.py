"""Exchange between the ranks, after every step, of what they must decide together."""

from elc_bert.distributed.collectives import agree
from elc_bert.training.callbacks.callback import Callback
from elc_bert.training.run import Run


class ExchangeSignals(Callback):
    """Exchange whether any rank has received a signal, how far checkpoints are, and log failures."""

    def after_step(self, run: Run) -> None:
        """Exchange three numbers over the hosts. Collective.

        Raises:
            UserError: The log cannot be written. Raised on all ranks.
        """
        signal, run.checkpoint_state, log_failed = run.signals.max_over_ranks(
            run.signals.received, run.checkpoints.state, run.monitor.has_failed
        )
        run.stopping = signal > 0
        if log_failed:
            agree(run.world, run.monitor.check)
