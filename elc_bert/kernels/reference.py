"""The definitions: every operation in plain PyTorch, differentiated by autograd.

Fast paths are subclasses of ``Kernels`` that override the methods they speed up. Their outputs and gradients
agree with the definitions up to rounding; with dropout, they agree in distribution.

Shapes: ``B`` batch, ``T`` tokens, ``D`` hidden, ``H`` heads, ``K`` head size, ``M`` feed-forward,
``N`` predicted tokens, ``V`` vocabulary, ``P`` relative positions (``2 * position_bucket_size - 1``).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


class Mixing:
    """The outputs ``h_0, h_1, ...`` of one forward pass, and weighted sums of them."""

    def __init__(self) -> None:
        self._hidden: list[Tensor] = []

    def mix(self, last: Tensor, shares: Tensor) -> Tensor:
        """Return ``sum_j shares_j h_j``, ``[B, T, D]``.

        Args:
            last: ``h_n [B, T, D]``, the newest output; earlier calls have passed the earlier ones. A layer
                that is recomputed in the backward pass passes its input a second time.
            shares: Normalized weights of the outputs, float32 ``[n + 1]``.
        """
        self._hidden[len(shares) - 1 :] = [last]
        shares = shares.to(last.dtype)
        mixed = shares[0] * self._hidden[0]
        for share, hidden in zip(shares[1:], self._hidden[1:], strict=True):
            mixed = mixed + share * hidden
        return mixed


@dataclass(frozen=True)
class AttentionInputs:
    """Inputs of disentangled attention, shared by its definition and all fast paths."""

    query: Tensor
    """Queries, ``[B, T, H, K]``; the last dimension is contiguous, as for keys and values."""
    key: Tensor
    """Keys, ``[B, T, H, K]``."""
    value: Tensor
    """Values, ``[B, T, H, K]``."""
    position_query: Tensor
    """Queries of the relative positions, ``[P, H, K]``."""
    position_key: Tensor
    """Keys of the relative positions, ``[P, H, K]``."""
    distance_buckets: Tensor
    """Bucket of each distance, int64 ``[2 T - 1]``, see ``model.positions.distance_buckets``."""
    attention_mask: Tensor
    """Attention mask, bool or integer ``[B, T]``; see ``visibility_mask``."""
    dropout: float = 0.0
    """Dropout probability of the attention probabilities."""

    @property
    def vectors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The differentiable inputs: query, key, value, position_query and position_key."""
        return self.query, self.key, self.value, self.position_query, self.position_key


class Kernels:
    """The plain definitions, and the interface of all kernels."""

    def mixing(self) -> Mixing:
        """Return the state that layers share for mixing during one forward pass."""
        return Mixing()

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return ``x weight^T + bias``, ``[..., n]``, for ``x [..., m]`` and ``weight [n, m]``."""
        return F.linear(x, weight, bias)

    def attention(self, inputs: AttentionInputs) -> Tensor:
        """Compute disentangled attention (He et al. 2021, section 3.1), ``[B, T, H, K]``, contiguous.

        Score (i, j) is ``(q_i . k_j + q_i . position_key[b(i - j)] + k_j . position_query[b(i - j)])
        / sqrt(3 K)``, where b is the bucket of a distance. If a token may attend to no token at all,
        its output is 0, and so are the gradients that it passes back.
        """
        q, k, v = (tensor.transpose(1, 2) for tensor in (inputs.query, inputs.key, inputs.value))
        position_q, position_k = (
            tensor.transpose(0, 1) for tensor in (inputs.position_query, inputs.position_key)
        )
        # A score is the sum of three products; this scale keeps its variance that of a single one.
        scale = 1.0 / math.sqrt(3 * q.shape[-1])
        index = expand_to_pairs(inputs.distance_buckets).expand(*q.shape[:3], -1)
        content_to_position = (q @ position_k.transpose(-1, -2)).gather(-1, index)
        # Rows of this product belong to keys, so b(i - j) is gathered with i in the last dimension, and the
        # result transposed.
        position_to_content = (k @ position_q.transpose(-1, -2)).gather(-1, index.transpose(-1, -2))
        scores = q @ k.transpose(-1, -2) + content_to_position + position_to_content.transpose(-1, -2)
        hidden = ~visibility_mask(inputs.attention_mask)
        scores = (scores * scale).masked_fill(hidden, torch.finfo(scores.dtype).min)
        probabilities = torch.softmax(scores, dim=-1).masked_fill(hidden, 0.0)
        context = self.dropout(probabilities, inputs.dropout) @ v
        return context.transpose(1, 2).contiguous()

    def geglu_norm(self, x: Tensor, eps: float) -> Tensor:
        """Return ``LN(value * gelu(gate))``, ``[B, T, M]``, for the halves of ``x [B, T, 2 M]``."""
        value, gate = x.chunk(2, dim=-1)
        return F.layer_norm(value * F.gelu(gate, approximate="tanh"), (value.shape[-1],), eps=eps)

    def dropout(self, x: Tensor, probability: float) -> Tensor:
        """Set each element to 0 with ``probability`` and scale the others up to keep the mean."""
        return F.dropout(x, probability) if probability else x

    def cross_entropy(
        self, logits: Tensor, targets: Tensor, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Return the summed cross entropy (float32, nats) and the number of correct predictions (int64).

        Args:
            logits: ``[N, V]``, any floating-point type; the loss is computed in float32.
            targets: int64 ``[N]``; N may be 0.
            label_smoothing: Probability that is spread evenly over the vocabulary.
        """
        loss = F.cross_entropy(logits.float(), targets, reduction="sum", label_smoothing=label_smoothing)
        return loss, (logits.detach().argmax(dim=-1) == targets).sum()


def expand_to_pairs(by_distance: Tensor) -> Tensor:
    """Expand one entry per distance ``i - j``, ``[2 T - 1]``, to one per pair (i, j), ``[T, T]``."""
    length = (len(by_distance) + 1) // 2
    return by_distance.flip(0).unfold(0, length, 1).flip(0)


def visibility_mask(attention_mask: Tensor) -> Tensor:
    """Return which query (third dimension) may attend to which key (last), bool ``[B, 1, T, T]``.

    Args:
        attention_mask: Bool or integer ``[B, T]``. 0 is padding, to which nothing attends. Tokens with the
            same number attend to each other: a row of one sequence has one number, a packed row has a number
            per segment. The outputs of padding are never used; as in the reference implementation, padding
            attends to all real tokens.
    """
    key, query = attention_mask[:, None, None, :], attention_mask[:, None, :, None]
    return (key != 0) & ((query == key) | (query == 0))
