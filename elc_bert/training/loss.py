"""The objective."""

import torch.nn.functional as F
from torch import Tensor


def masked_lm_loss(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Summed cross entropy and number of right predictions.

    Sums rather than means, so that every masked token of a global batch weighs the same however the
    batch is cut into micro-batches.

    Args:
        logits: ``[N, V]``, any floating type; computed on in float32.
        targets: int64 ``[N]``; N may be 0.
        label_smoothing: probability spread evenly over the vocabulary.

    Returns:
        float32 scalar in nats, int64 scalar.
    """
    loss = F.cross_entropy(logits.float(), targets, reduction="sum", label_smoothing=label_smoothing)
    return loss, (logits.detach().argmax(dim=-1) == targets).sum()
