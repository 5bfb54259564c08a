"""The objective."""

from torch import Tensor

from elc_bert.kernels import Choice, Kernels, kernels_for


def masked_lm_loss(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, kernels: Choice | Kernels = "auto"
) -> tuple[Tensor, Tensor]:
    """Summed cross entropy (float32, nats) and number of right predictions (int64), both scalars.

    Sums rather than means, so that every masked token of a global batch weighs the same however the
    batch is cut into micro-batches.

    Args:
        logits: ``[N, V]``, any floating type; computed on in float32.
        targets: int64 ``[N]``; N may be 0.
        label_smoothing: probability spread evenly over the vocabulary.
        kernels: see ``kernels_for``.
    """
    return kernels_for(logits.device.type, kernels).cross_entropy(logits, targets, label_smoothing)
