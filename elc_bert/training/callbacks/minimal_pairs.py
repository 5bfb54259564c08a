"""Minimal pairs scored during training."""

import logging

import torch.distributed as dist

from elc_bert.data.format.vocabulary import load_tokenizer
from elc_bert.engine.weights import current_model
from elc_bert.evaluation.accuracy import ParadigmResult, Results
from elc_bert.evaluation.run_pairs import score_paradigm
from elc_bert.training.callbacks.callback import Callback
from elc_bert.training.run import Run

logger = logging.getLogger(__name__)


class MinimalPairsEvaluation(Callback):
    """Score minimal pairs every ``elc_bert.evaluation.minimal_pairs_every`` steps."""

    repeated_after_interruption = True

    def after_step(self, run: Run) -> None:
        """Score the pairs if a scoring is due, unless a signal has arrived. Collective if one is due."""
        if run.progress.evaluation_due or not run.is_due(run.config.elc_bert.evaluation.minimal_pairs_every):
            return
        if run.signals.received_by_any_rank():
            run.progress.evaluation_due = True
            return
        with run.world.watchdog.activity("scoring minimal pairs"):
            results = _score(run)
        step = run.progress.step
        by_phenomenon = {f"minimal_pairs/{name}": value for name, value in results.by_phenomenon().items()}
        run.monitor.scalars(step, {"minimal_pairs/overall": results.overall, **by_phenomenon})
        logger.info("step %d: minimal pairs %.1f%%", step, 100 * results.overall)


def _score(run: Run) -> Results:
    """Score the model as it is now, in fp32; each rank scores some of the files. Collective."""
    settings, world = run.config.elc_bert, run.world
    tokenizer = load_tokenizer(settings.data.tokenizer)
    model = current_model(run.engine).to(world.device)
    limit = settings.evaluation.minimal_pairs_limit
    mine = [
        score_paradigm(model, tokenizer, paradigm, limit=limit)
        for paradigm in world.watchdog.track(run.paradigms[world.rank :: world.size])
    ]
    parts: list[list[ParadigmResult]] = [[] for _ in range(world.size)]
    dist.all_gather_object(parts, mine)
    by_name = {result.name: result for part in parts for result in part}
    return Results([by_name[paradigm.name] for paradigm in run.paradigms])
