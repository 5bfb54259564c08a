"""Disentangled self-attention: content to content, content to position, position to content."""

import torch.nn.functional as F
from torch import Tensor, nn

from elc_bert.config.schema import ModelConfig
from elc_bert.kernels import AttentionInputs
from elc_bert.model.layers import KernelUser, Linear


class DisentangledAttention(KernelUser, nn.Module):
    """``LN -> attention with relative positions -> projection -> LN* -> dropout`` (no residual)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.heads = (config.num_attention_heads, d // config.num_attention_heads)
        self.pre_norm = nn.LayerNorm(d, eps=config.layer_norm_eps, elementwise_affine=False)
        self.query_key = Linear(d, 2 * d)
        self.value = Linear(d, d)
        self.output = Linear(d, d)
        self.post_norm = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.dropout = config.attention_probs_dropout_prob

    def forward(self, x: Tensor, relative: Tensor, attention_mask: Tensor, buckets: Tensor) -> Tensor:
        """Map ``[B, T, D]`` to ``[B, T, D]``; the other arguments are those of ``Layer.forward``."""
        kernels = self.kernels_for_input(x)
        dropout = self.dropout if self.training else 0.0
        z = self.pre_norm(x)
        query, key = (tensor.unflatten(-1, self.heads) for tensor in self.query_key(z).chunk(2, dim=-1))
        value = self.value(z).unflatten(-1, self.heads)
        positions = self.query_key(F.dropout(relative, dropout))
        position_query, position_key = (
            tensor.unflatten(-1, self.heads) for tensor in positions.chunk(2, dim=-1)
        )
        context = kernels.attention(
            AttentionInputs(
                query,
                key,
                value,
                position_query,
                position_key,
                distance_buckets=buckets,
                attention_mask=attention_mask,
                dropout=dropout,
            )
        )
        output = self.post_norm(self.output(context.flatten(-2)))
        return kernels.dropout(output, dropout)
