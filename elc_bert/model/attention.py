"""Disentangled self-attention: content to content, content to position, position to content.

Shapes: ``B`` batch, ``T`` tokens, ``D`` hidden, ``H`` heads, ``K`` head size, ``P`` relative positions
(``2 * position_bucket_size - 1``).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elc_bert.config import ModelConfig


def masked_softmax(scores: Tensor, attention_mask: Tensor) -> Tensor:
    """Softmax over the last dimension of ``scores [B, H, T, T]`` among unmasked keys.

    ``attention_mask``: bool, broadcastable to ``scores``, True where a key may be attended to. A row
    whose keys are all masked gives zeros, and zero gradients.
    """
    hidden = ~attention_mask
    scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    return torch.softmax(scores, dim=-1).masked_fill(hidden, 0.0)


def disentangled_scores(
    q: Tensor, k: Tensor, position_q: Tensor, position_k: Tensor, buckets: Tensor
) -> Tensor:
    """Attention scores ``[B, H, T, T]``, unscaled.

    ``q``, ``k``: ``[B, H, T, K]``; ``position_q``, ``position_k``: ``[H, P, K]``; ``buckets``: int64
    ``[T, T]``. Score (i, j) is ``q_i . k_j + q_i . position_k[b(i, j)] + k_j . position_q[b(i, j)]``.
    """
    batch, heads, length, _ = q.shape
    index = buckets.expand(batch, heads, length, length)
    content_to_position = (q @ position_k.transpose(-1, -2)).gather(-1, index)
    # Row j of this product belongs to key j, so it is gathered by b(i, j) with i last, then turned.
    position_to_content = (k @ position_q.transpose(-1, -2)).gather(-1, index.transpose(-1, -2))
    return q @ k.transpose(-1, -2) + content_to_position + position_to_content.transpose(-1, -2)


class DisentangledAttention(nn.Module):
    """``LN -> attention with relative positions -> projection -> LN* -> dropout`` (no residual)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        d = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.head_size = d // config.num_attention_heads
        self.pre_norm = nn.LayerNorm(d, eps=config.layer_norm_eps, elementwise_affine=False)
        self.query_key = nn.Linear(d, 2 * d)
        self.value = nn.Linear(d, d)
        self.output = nn.Linear(d, d)
        self.post_norm = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.probability_dropout = config.attention_probs_dropout_prob

    def forward(self, x: Tensor, relative: Tensor, attention_mask: Tensor, buckets: Tensor) -> Tensor:
        """``x [B, T, D]``, ``relative [P, D]``, ``attention_mask`` bool ``[B, 1, 1, T]`` -> ``[B, T, D]``."""
        z = self.pre_norm(x)
        q, k = (self._split_heads(t) for t in self.query_key(z).chunk(2, dim=-1))
        v = self._split_heads(self.value(z))
        position_q, position_k = (
            self._split_heads(t) for t in self.query_key(self.dropout(relative)).chunk(2, dim=-1)
        )
        # Three products add up to a score: the scale keeps its variance that of one.
        scale = 1.0 / math.sqrt(3 * self.head_size)
        scores = disentangled_scores(q * scale, k, position_q * scale, position_k, buckets)
        probabilities = F.dropout(
            masked_softmax(scores, attention_mask), self.probability_dropout, self.training
        )
        context = (probabilities @ v).transpose(1, 2).flatten(2)
        return self.dropout(self.post_norm(self.output(context)))

    def _split_heads(self, x: Tensor) -> Tensor:
        """``[..., N, D] -> [..., H, N, K]``"""
        return x.unflatten(-1, (self.num_heads, self.head_size)).transpose(-2, -3)
