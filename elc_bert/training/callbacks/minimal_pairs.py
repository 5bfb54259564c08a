"""Minimal pairs scored during training."""

import logging

import torch.distributed as dist

from elc_bert.data.format.text_tokenizer import TextTokenizer
from elc_bert.data.sampling.from_config import special_names
from elc_bert.distributed.collectives import SharedUserError, agree
from elc_bert.engine.weights import current_model
from elc_bert.evaluation.accuracy import ParadigmResult, Results, as_percentage
from elc_bert.evaluation.pair_settings import OVERALL, PAIRS, PairSettings, describe
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
        step = run.progress.step
        with run.world.watchdog.activity("scoring minimal pairs"):
            try:
                results = _score(run)
            except (
                SharedUserError
            ) as problem:  # the checks for non-finite steps decide whether the run continues
                if run.world.is_main:
                    logger.warning("step %d: minimal pairs not scored: %s", step, problem)
                return
        settings, pairs = _settings(run), results.total("pairs")
        scores = {OVERALL: results.overall, PAIRS: float(pairs), **results.by_phenomenon()}
        run.monitor.scalars(
            step, {settings.tag(name): value for name, value in scores.items() if value is not None}
        )
        overall, how = as_percentage(results.overall), describe(settings, pairs)
        logger.info("step %d: minimal pairs %s (%s)", step, overall, how)


def _settings(run: Run) -> PairSettings:
    return PairSettings("within-word", run.config.elc_bert.evaluation.minimal_pairs_limit)


def _score(run: Run) -> Results:
    """Score the model as it is now, in fp32; each rank scores some of the paradigms. Collective.

    Raises:
        SharedUserError: The weights or the scores are not finite, or the tokenizer cannot be read. Raised on
            all ranks.
    """
    world, settings = run.world, _settings(run)
    data = run.config.elc_bert.data
    tokenizer = agree(world, TextTokenizer.load, data.tokenizer, special_names(data))
    model = agree(world, current_model, run.engine).to(world.device)
    paradigms = world.watchdog.track(run.paradigms[world.rank :: world.size])
    mine = agree(
        world,
        lambda: [score_paradigm(model, tokenizer, paradigm, settings) for paradigm in paradigms],
    )
    parts: list[list[ParadigmResult]] = [[] for _ in range(world.size)]
    dist.all_gather_object(parts, mine)
    by_name = {result.name: result for part in parts for result in part}
    return Results([by_name[paradigm.name] for paradigm in run.paradigms])
