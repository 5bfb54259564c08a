"""Loss and accuracy on a masked held-out set, without DeepSpeed."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from elc_bert.data.sampling.steps import MicroBatch
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.model.loss import masked_lm_loss


@dataclass(frozen=True)
class Score:
    """Means over all masked tokens."""

    loss: float
    """Cross entropy in nats per masked token."""
    accuracy: float
    """Share of the masked tokens whose most probable guess is right."""
    predictions: int
    """Masked tokens."""

    @property
    def perplexity(self) -> float:
        """The number of equally likely tokens that one would be as unsure among: e to the loss."""
        try:
            return math.exp(self.loss)
        except OverflowError:  # of a model that has diverged
            return math.inf


def combined(parts: Sequence[Score]) -> Score:
    """The score on several sets together."""
    predictions = sum(part.predictions for part in parts)
    loss, right = (
        sum(getattr(part, name) * part.predictions for part in parts) / max(1, predictions)
        for name in ("loss", "accuracy")
    )
    return Score(loss, right, predictions)


@torch.no_grad()
def score(model: ElcBertForMaskedLM, micro_batches: Iterable[MicroBatch]) -> Score:
    """Loss and accuracy of a model in evaluation mode, on the device that it is on."""
    device = model.encoder.embedding.word.weight.device
    loss, correct, predictions = 0.0, 0, 0
    for batch in micro_batches:
        micro = batch.to(device)
        logits = model(micro.input_ids, micro.attention_mask, micro.positions)
        loss_sum, right = masked_lm_loss(logits, micro.targets)
        loss += loss_sum.item()
        correct += int(right)
        predictions += len(micro.targets)
    return Score(loss / max(1, predictions), correct / max(1, predictions), predictions)
