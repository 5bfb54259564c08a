"""Comparison of the weights of all ranks during training."""

from elc_bert.training.callbacks.callback import Callback
from elc_bert.training.checks.replicas import check_replicas
from elc_bert.training.run import Run


class ReplicaCheck(Callback):
    """Compare the weights of all ranks every ``elc_bert.training.check_replicas_every`` steps."""

    part_of_step = True

    def after_step(self, run: Run) -> None:
        """Compare the weights if a comparison is due. Collective if one is due.

        Raises:
            UserError: The ranks hold different weights. Raised on all ranks.
        """
        every = run.config.elc_bert.training.check_replicas_every
        if every is not None and run.progress.step % every == 0:
            check_replicas(run.engine, run.world, run.progress.step)
