"""Progress bar on the terminal."""

from elc_bert.training.callbacks.callback import Callback
from elc_bert.training.run import Run
from elc_bert.utils.progress import progress_bar


class ProgressBar(Callback):
    """Show the steps taken, with the last log entry; without a terminal, print a line now and then."""

    part_of_step = True

    def __init__(self, run: Run) -> None:
        self._bar = progress_bar(
            run.last_step, "step", done=run.progress.step, title="pretraining", shown=run.world.is_main
        )

    def after_step(self, run: Run) -> None:
        """Advance the bar by one step."""
        self._bar.set_postfix(run.summary, refresh=False)
        self._bar.update()

    def close(self) -> None:
        """Leave the bar as it is and end its line."""
        self._bar.close()
