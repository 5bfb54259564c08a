"""The pretraining objective."""

from torch import Tensor

from elc_bert.kernels import Choice, Kernels, kernels_for


def masked_lm_loss(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, kernels: Choice | Kernels = "auto"
) -> tuple[Tensor, Tensor]:
    """Return the summed cross entropy (float32, nats) and the number of correct predictions (int64).

    Both are scalars, and sums rather than means, so that every masked token of a global batch has the same
    weight however the batch is split into micro-batches.

    Args:
        logits: ``[N, V]``, any floating-point type; the loss is computed in float32.
        targets: int64 ``[N]``; N may be 0.
        label_smoothing: Probability that is spread evenly over the vocabulary.
        kernels: Kernels, or a choice for ``kernels_for``; usually the model's own, ``model.kernels``.
    """
    return kernels_for(logits.device.type, kernels).cross_entropy(logits, targets, label_smoothing)
