"""What the BabyLM challenge asks of a run: exports along the way, and no more than 10 epochs."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from elc_bert.distributed.collectives import agree
from elc_bert.engine.build import current_model
from elc_bert.hub.card import facts_of_run
from elc_bert.hub.export import export
from elc_bert.hub.loading import Loaded

if TYPE_CHECKING:
    from elc_bert.training.metrics import Totals
    from elc_bert.training.run import Run

FOLDER = "babylm_checkpoints"
"""In the run's directory, with an export for each milestone."""
EPOCHS_ALLOWED = 10
"""By the rules since 2025."""
MILLION = 10**6
MILESTONES = tuple(
    MILLION * number for number in (*range(1, 10), *range(10, 100, 10), *range(100, 1001, 100))
)
"""Words at which the fast evaluation looks at a model."""


def over_the_limit(epochs: Mapping[str, float]) -> str:
    """What to say about datasets that a run goes through more often than allowed; empty if there are none."""
    over = [f"{name} {number:.3g} times" for name, number in epochs.items() if number > EPOCHS_ALLOWED]
    return f"reads {', '.join(over)}; BabyLM allows {EPOCHS_ALLOWED} epochs" if over else ""


def name_of(milestone: int) -> str:
    """``chck_1M`` for a million words."""
    return f"chck_{milestone // MILLION}M"


class MilestoneExports:
    """Writes ``chck_1M`` and so on, each as soon as a step has read that many words.

    Args:
        run: where it is, and with what settings.
        since_log: what all ranks have read since the last log entry.
    """

    def __init__(self, run: "Run", since_log: "Totals"):
        self._run = run
        self._words = run.progress.words_seen + since_log.words

    def after_step(self, since_log: "Totals") -> list[str]:
        """Write an export for each milestone that the last step has passed. Collective.

        Args:
            since_log: what all ranks have read since the last log entry.

        Returns:
            Their names. A step that passes several writes the same model for each.

        Raises:
            UserError: on all ranks alike, if one cannot be written.
        """
        run, config = self._run, self._run.config
        words = run.progress.words_seen + since_log.words
        names = [name_of(milestone) for milestone in MILESTONES if self._words < milestone <= words]
        self._words = words
        if not names:
            return []
        tokens = run.progress.tokens_seen + since_log.tokens
        progress = {**asdict(run.progress), "tokens_seen": tokens, "words_seen": words}
        loaded = Loaded(current_model(run.engine), tokenizer=config.elc_bert.data.tokenizer)

        def write() -> None:
            facts = facts_of_run(config.model_dump(mode="json"), progress)
            folder = config.elc_bert.training.output_dir / FOLDER
            for name in names:
                export(loaded, config.elc_bert.data.tokenizer, folder / name, force=True, facts=facts)

        agree(run.world, write if run.world.is_main else lambda: None)
        return names
