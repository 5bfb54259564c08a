"""Loss and accuracy on the masked held-out set of a run, in one process and without DeepSpeed."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from elc_bert.data.steps import MicroBatch
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.training.loss import masked_lm_loss


@dataclass(frozen=True)
class Score:
    """Means over all masked tokens."""

    loss: float
    """Cross entropy in nats per masked token."""
    accuracy: float
    """Share of the masked tokens whose most probable guess is right."""
    predictions: int
    """Masked tokens."""


@torch.no_grad()
def score(model: ElcBertForMaskedLM, micro_batches: Iterable[MicroBatch]) -> Score:
    """Loss and accuracy of a model in evaluation mode."""
    loss, correct, predictions = 0.0, 0, 0
    for micro in micro_batches:
        logits = model(micro.input_ids, micro.attention_mask, micro.positions)
        loss_sum, right = masked_lm_loss(logits, micro.targets)
        loss += loss_sum.item()
        correct += int(right)
        predictions += len(micro.targets)
    return Score(loss / max(1, predictions), correct / max(1, predictions), predictions)
