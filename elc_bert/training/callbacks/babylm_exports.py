"""Exports at the numbers of words at which BabyLM's fast evaluation scores a model."""

import logging
from collections.abc import Mapping
from dataclasses import asdict

from elc_bert.data.sampling.from_config import special_names
from elc_bert.distributed.collectives import agree
from elc_bert.engine.weights import current_model
from elc_bert.hub.card import facts_of_run
from elc_bert.hub.export import export
from elc_bert.model.loaded import LoadedModel
from elc_bert.training.callbacks.callback import Callback
from elc_bert.training.callbacks.log_entry import LogEntry
from elc_bert.training.run import Run

logger = logging.getLogger(__name__)
FOLDER = "babylm_checkpoints"
"""Folder in the run's directory with an export for each milestone."""
MAX_EPOCHS = 10
"""Passes over the training data that the rules allow since 2025."""
MILLION = 10**6
MILESTONES = tuple(
    MILLION * number for number in (*range(1, 10), *range(10, 100, 10), *range(100, 1001, 100))
)
"""Numbers of words after which a model is exported."""


def epochs_warning(epochs: Mapping[str, float]) -> str:
    """Return a line about the datasets that a run reads more often than allowed; empty if there are none."""
    over = [f"{name} {number:.3g} times" for name, number in epochs.items() if number > MAX_EPOCHS]
    return f"reads {', '.join(over)}; BabyLM allows {MAX_EPOCHS} epochs" if over else ""


def milestone_name(milestone: int) -> str:
    """Return the name of the export at a milestone, such as ``chck_1M`` for a million words."""
    return f"chck_{milestone // MILLION}M"


class BabyLMExports(Callback):
    """Export ``chck_1M`` and so on, each as soon as a step has read that many words.

    A step that passes several milestones exports the same model for each.

    Args:
        run: The run. Constructing this object is collective.
        log_entry: Callback that counts words, with its state restored.
    """

    def __init__(self, run: Run, log_entry: LogEntry) -> None:
        self._log_entry = log_entry
        _, self._words = log_entry.seen(run)

    def after_step(self, run: Run) -> None:
        """Write an export for each milestone that this step has passed. Collective.

        Raises:
            UserError: An export cannot be written, or a weight is not finite. Raised on all ranks.
        """
        config = run.config
        tokens, words = self._log_entry.seen(run)
        names = [milestone_name(milestone) for milestone in MILESTONES if self._words < milestone <= words]
        self._words = words
        if not names:
            return
        progress = {**asdict(run.progress), "tokens_seen": tokens, "words_seen": words}
        model = agree(run.world, current_model, run.engine)
        data = config.elc_bert.data
        loaded = LoadedModel(model, tokenizer=data.tokenizer, special_names=special_names(data))

        def write() -> None:
            facts = facts_of_run(config.model_dump(mode="json"), progress)
            folder = config.elc_bert.training.output_dir / FOLDER
            for name in names:
                export(loaded, data.tokenizer, folder / name, force=True, facts=facts)

        agree(run.world, write if run.world.is_main else lambda: None)
        for name in names:
            logger.info("step %d: exported %s/%s", run.progress.step, FOLDER, name)
