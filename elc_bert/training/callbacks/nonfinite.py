"""Steps whose loss or gradient is not finite: counted and recorded; too many in a row end the run."""

import logging
import math
from typing import Any

from elc_bert.distributed.collectives import SharedUserError, agree, max_over_ranks
from elc_bert.engine.stepping import loss_scale_can_decrease
from elc_bert.training.callbacks.callback import Callback
from elc_bert.training.checks.nonfinite import nonfinite_directory, record_samples
from elc_bert.training.run import Run
from elc_bert.utils.text import numbers_in_short

logger = logging.getLogger(__name__)


class NonFiniteSteps(Callback):
    """Report steps that ``train_step`` skipped, and record which samples they read.

    Steps by which fp16 finds its loss scale are not reported.
    """

    name = "nonfinite"
    part_of_step = True

    def __init__(self) -> None:
        self._steps: list[int] = []
        """Last steps, if they were all skipped in a row."""

    def after_step(self, run: Run) -> None:
        """Examine the step, and remove a non-finite loss from its totals. Collective if the step was skipped.

        Raises:
            UserError: ``elc_bert.training.max_nonfinite_steps`` were skipped in a row. Raised on all ranks.
        """
        result, step = run.result, run.progress.step
        assert result is not None
        if run.engine.was_step_applied():
            self._steps = []
            return
        losses = [float(loss) for loss in result.losses]
        bad = [not math.isfinite(loss) for loss in losses]
        is_loss = max_over_ranks([any(bad)], run.world.device)[0] > 0
        if not is_loss and loss_scale_can_decrease(run.engine):
            return
        if is_loss:
            result.totals.discard_loss()
        self._steps.append(step)
        path = nonfinite_directory(run) / f"step-{step:06d}.json"
        agree(run.world, record_samples, run, path, losses, bad if is_loss else [True] * len(bad))
        self._stop_after_too_many(run)
        what = "loss" if is_loss else "gradient"
        if run.world.is_main:
            logger.warning(
                "step %d: the %s is not finite; skipped, the samples it read are in %s", step, what, path
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the last steps, if they were all skipped in a row."""
        return {"steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the steps that were skipped in a row."""
        self._steps = list(state["steps"])

    def _stop_after_too_many(self, run: Run) -> None:
        limit = run.config.elc_bert.training.max_nonfinite_steps
        if len(self._steps) < limit:
            return
        raise SharedUserError(
            f"the loss or the gradient was not finite in step{'s' * (limit > 1)} "
            f"{numbers_in_short(self._steps)}, {limit} in a row (elc_bert.training.max_nonfinite_steps); "
            f"they were skipped. The samples they read are in {nonfinite_directory(run)}: look at them with "
            "python -m data_tools inspect PREFIX --segment N --length T --tokenizer FILE; if the text is "
            "sound, resume from an earlier checkpoint, or start a new run with a lower learning rate"
        )
