"""Report on compilation by torch.compile."""

import logging

from elc_bert.kernels.compiled import GraphCounts
from elc_bert.training.callbacks.callback import Callback
from elc_bert.training.run import Run

logger = logging.getLogger(__name__)
STEPS_TO_COMPILE = 3
"""Steps after which every graph of a sequence length exists, unless batches of different sizes break it."""


class CompileReport(Callback):
    """Report, after the first steps of this process, how many graphs ``torch.compile`` has built."""

    part_of_step = True

    def __init__(self, run: Run) -> None:
        self._due = min(run.progress.step + STEPS_TO_COMPILE, run.last_step)

    def after_step(self, run: Run) -> None:
        """Report once, as soon as enough steps have been taken."""
        if run.progress.step == self._due:
            logger.info("torch.compile, first %d steps: %s", STEPS_TO_COMPILE, GraphCounts.so_far())
