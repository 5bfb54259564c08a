"""The definitions: every operation in PyTorch's own terms, differentiated by autograd.

Fast paths inherit from ``Kernels`` and replace what they do better. Outputs and gradients agree with those
here up to rounding; where there is dropout, in distribution.

Shapes: ``B`` batch, ``T`` tokens, ``D`` hidden, ``H`` heads, ``K`` head size, ``M`` feed-forward,
``N`` predicted tokens, ``V`` vocabulary, ``P`` relative positions (``2 * position_bucket_size - 1``).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class Mixing:
    """The outputs ``h_0, h_1, ...`` of one forward pass, and their weighted sums."""

    def __init__(self) -> None:
        self._hidden: list[Tensor] = []

    def mix(self, last: Tensor, shares: Tensor) -> Tensor:
        """``sum_j shares_j h_j``, ``[B, T, D]``.

        Args:
            last: ``h_n [B, T, D]``, the newest output; the earlier ones came in earlier calls. A layer that
                is computed a second time, in the backward pass, may give it again.
            shares: float32 ``[n + 1]``.
        """
        self._hidden[len(shares) - 1 :] = [last]
        shares = shares.to(last.dtype)
        mixed = shares[0] * self._hidden[0]
        for share, hidden in zip(shares[1:], self._hidden[1:], strict=True):
            mixed = mixed + share * hidden
        return mixed


class Kernels:
    """One way to compute what the model is made of."""

    def mixing(self) -> Mixing:
        """The mixtures of one forward pass."""
        return Mixing()

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x weight^T + bias``, ``[..., n]``, of ``x [..., m]`` and ``weight [n, m]``."""
        return F.linear(x, weight, bias)

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        position_q: Tensor,
        position_k: Tensor,
        distance_buckets: Tensor,
        attention_mask: Tensor,
        dropout: float,
    ) -> Tensor:
        """Disentangled attention (He et al. 2021, section 3.1), ``[B, T, H, K]``, contiguous.

        Score (i, j) is ``(q_i . k_j + q_i . position_k[b(i - j)] + k_j . position_q[b(i - j)]) / sqrt(3 K)``.
        A token that may attend to none gives zeros, and zero gradients.

        Args:
            q, k, v: ``[B, T, H, K]``; the last dimension is contiguous.
            position_q, position_k: ``[P, H, K]``.
            distance_buckets: int64 ``[2 T - 1]``, see ``model.positions``.
            attention_mask: bool or integer ``[B, T]``, see ``visible``.
            dropout: of the probabilities; 0 for none.
        """
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        position_q, position_k = (tensor.transpose(0, 1) for tensor in (position_q, position_k))
        # Three products add up to a score: the scale keeps its variance that of one.
        scale = 1.0 / math.sqrt(3 * q.shape[-1])
        index = by_pair(distance_buckets).expand(*q.shape[:3], -1)
        content_to_position = (q @ position_k.transpose(-1, -2)).gather(-1, index)
        # Row j of this product belongs to key j, so it is gathered by b(i - j) with i last, then turned.
        position_to_content = (k @ position_q.transpose(-1, -2)).gather(-1, index.transpose(-1, -2))
        scores = q @ k.transpose(-1, -2) + content_to_position + position_to_content.transpose(-1, -2)
        hidden = ~visible(attention_mask)
        scores = (scores * scale).masked_fill(hidden, torch.finfo(scores.dtype).min)
        probabilities = torch.softmax(scores, dim=-1).masked_fill(hidden, 0.0)
        context = self.dropout(probabilities, dropout) @ v
        return context.transpose(1, 2).contiguous()

    def geglu_norm(self, x: Tensor, eps: float) -> Tensor:
        """``LN(value * gelu(gate))`` of the halves of ``x [B, T, 2 M]``, ``[B, T, M]`` (Shazeer 2020)."""
        value, gate = x.chunk(2, dim=-1)
        return F.layer_norm(value * F.gelu(gate, approximate="tanh"), (value.shape[-1],), eps=eps)

    def dropout(self, x: Tensor, probability: float) -> Tensor:
        """``x`` with some of its entries 0, each with ``probability``, and the others scaled up."""
        return F.dropout(x, probability) if probability else x

    def cross_entropy(
        self, logits: Tensor, targets: Tensor, label_smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Summed cross entropy (float32, nats) and number of right predictions (int64).

        Args:
            logits: ``[N, V]``, any floating type; computed on in float32.
            targets: int64 ``[N]``; N may be 0.
            label_smoothing: probability spread evenly over the vocabulary.
        """
        loss = F.cross_entropy(logits.float(), targets, reduction="sum", label_smoothing=label_smoothing)
        return loss, (logits.detach().argmax(dim=-1) == targets).sum()


def by_pair(distances: Tensor) -> Tensor:
    """From an entry for every distance ``i - j``, ``[2 T - 1]``, to one for every pair, ``[T, T]``."""
    length = (len(distances) + 1) // 2
    return distances.flip(0).unfold(0, length, 1).flip(0)


def visible(attention_mask: Tensor) -> Tensor:
    """Which token (third dimension) may attend to which (last), bool ``[B, 1, T, T]``.

    Args:
        attention_mask: bool or integer ``[B, T]``. 0 is padding, to which nothing attends. Tokens of the same
            number attend to each other: one number where a row is one sequence, 1, 2, ... where it is
            several. What padding attends to matters to nobody; it is all real tokens, as in the reference.
    """
    key, query = attention_mask[:, None, None, :], attention_mask[:, None, :, None]
    return (key != 0) & ((query == key) | (query == 0))
