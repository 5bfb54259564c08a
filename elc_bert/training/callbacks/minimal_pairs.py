"""Minimal pairs scored while a model trains."""

from typing import TYPE_CHECKING

import torch.distributed as dist

from elc_bert.data.format.vocabulary import load_tokenizer
from elc_bert.engine.build import current_model
from elc_bert.evaluation.accuracy import ParadigmResult, Results
from elc_bert.evaluation.run_pairs import score_paradigm

if TYPE_CHECKING:
    from elc_bert.training.run import Run


def score_minimal_pairs(run: "Run") -> Results:
    """Accuracy of the model as it is now on ``elc_bert.evaluation.minimal_pairs``, in fp32. Collective.

    Every rank scores some of the files with a copy of the whole model, whatever the ZeRO stage.
    """
    settings = run.config.elc_bert
    tokenizer = load_tokenizer(settings.data.tokenizer)
    model = current_model(run.engine).to(run.world.device)
    limit = settings.evaluation.minimal_pairs_limit
    mine = [
        score_paradigm(model, tokenizer, paradigm, limit=limit)
        for paradigm in run.world.watchdog.track(run.paradigms[run.world.rank :: run.world.size])
    ]
    parts: list[list[ParadigmResult]] = [[] for _ in range(run.world.size)]
    dist.all_gather_object(parts, mine)
    by_name = {result.name: result for part in parts for result in part}
    return Results([by_name[paradigm.name] for paradigm in run.paradigms])
