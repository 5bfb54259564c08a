"""Loss and accuracy on masked held-out text, without DeepSpeed."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from elc_bert.data.sampling.steps import MicroBatch
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.model.loss import masked_lm_loss


@dataclass(frozen=True)
class Score:
    """Loss and accuracy, averaged over all masked tokens."""

    loss: float
    """Cross entropy in nats per masked token."""
    accuracy: float
    """Fraction of the masked tokens that the model predicts correctly."""
    predictions: int
    """Number of masked tokens."""

    @property
    def perplexity(self) -> float:
        """The exponential of the loss; infinity if the model has diverged and it overflows."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf


def combine_scores(parts: Sequence[Score]) -> Score:
    """Return the score on the union of several sets."""
    predictions = sum(part.predictions for part in parts)
    loss, correct = (
        sum(getattr(part, name) * part.predictions for part in parts) / max(1, predictions)
        for name in ("loss", "accuracy")
    )
    return Score(loss, correct, predictions)


@torch.no_grad()
def score_held_out(model: ElcBertForMaskedLM, micro_batches: Iterable[MicroBatch]) -> Score:
    """Return the score of a model in evaluation mode, computed on the model's device."""
    device = model.encoder.embedding.word.weight.device
    loss, correct, predictions = 0.0, 0, 0
    for batch in micro_batches:
        micro = batch.to(device)
        logits = model(micro.input_ids, micro.attention_mask, micro.positions)
        loss_sum, correct_count = masked_lm_loss(logits, micro.targets)
        loss += loss_sum.item()
        correct += int(correct_count)
        predictions += len(micro.targets)
    return Score(loss / max(1, predictions), correct / max(1, predictions), predictions)
