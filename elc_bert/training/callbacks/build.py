"""List of the callbacks of a run."""

from elc_bert.training.callbacks.babylm_exports import BabyLMExports
from elc_bert.training.callbacks.callback import Callback, restore_states
from elc_bert.training.callbacks.checkpoint import SaveCheckpoint
from elc_bert.training.callbacks.compile_report import CompileReport
from elc_bert.training.callbacks.held_out import HeldOutEvaluation
from elc_bert.training.callbacks.layer_weights import LayerWeightsPicture
from elc_bert.training.callbacks.log_entry import LogEntry
from elc_bert.training.callbacks.minimal_pairs import MinimalPairsEvaluation
from elc_bert.training.callbacks.nonfinite import NonFiniteSteps
from elc_bert.training.callbacks.progress_bar import ProgressBar
from elc_bert.training.callbacks.replica_check import ReplicaCheck
from elc_bert.training.callbacks.stop_signals import ExchangeSignals
from elc_bert.training.run import Run


def build_callbacks(run: Run) -> list[Callback]:
    """Return the callbacks of a run in the order of their calls. Collective.

    The order matters: non-finite losses are discarded before they are logged, evaluations precede the
    exchange of signals, which may arrive during them, and the checkpoint comes last, with the results of all
    others.
    """
    settings = run.config.elc_bert
    log_entry = LogEntry(run)
    callbacks: list[Callback] = [NonFiniteSteps()]
    if settings.training.check_replicas_every is not None:
        callbacks.append(ReplicaCheck())
    if settings.training.compile:
        callbacks.append(CompileReport(run))
    callbacks += [log_entry, ProgressBar(run)]
    if settings.evaluation.babylm_checkpoints:
        restore_states([log_entry], run.progress.callbacks)  # BabyLMExports reads its sums
        callbacks.append(BabyLMExports(run, log_entry))
    callbacks += [LayerWeightsPicture(), HeldOutEvaluation()]
    if settings.evaluation.minimal_pairs is not None:
        callbacks.append(MinimalPairsEvaluation())
    callbacks.append(ExchangeSignals())
    callbacks.append(SaveCheckpoint(callbacks))
    return callbacks
