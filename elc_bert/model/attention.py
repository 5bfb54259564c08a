"""Disentangled self-attention: content to content, content to position, position to content."""

import torch.nn.functional as F
from torch import Tensor, nn

from elc_bert.config.schema import ModelConfig
from elc_bert.kernels import Kernels
from elc_bert.model.linear import Linear


class DisentangledAttention(nn.Module):
    """``LN -> attention with relative positions -> projection -> LN* -> dropout`` (no residual)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        d = config.hidden_size
        self.heads = (config.num_attention_heads, d // config.num_attention_heads)
        self.pre_norm = nn.LayerNorm(d, eps=config.layer_norm_eps, elementwise_affine=False)
        self.query_key = Linear(d, 2 * d)
        self.value = Linear(d, d)
        self.output = Linear(d, d)
        self.post_norm = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.hidden_dropout = config.hidden_dropout_prob
        self.probability_dropout = config.attention_probs_dropout_prob

    def forward(
        self, x: Tensor, relative: Tensor, attention_mask: Tensor, buckets: Tensor, kernels: Kernels
    ) -> Tensor:
        """``[B, T, D] -> [B, T, D]``; the other arguments as in ``Layer.forward``."""
        z = self.pre_norm(x)
        q, k = (tensor.unflatten(-1, self.heads) for tensor in self.query_key(z, kernels).chunk(2, dim=-1))
        v = self.value(z, kernels).unflatten(-1, self.heads)
        positions = self.query_key(F.dropout(relative, self.hidden_dropout, self.training), kernels)
        position_q, position_k = (tensor.unflatten(-1, self.heads) for tensor in positions.chunk(2, dim=-1))
        context = kernels.attention(
            q,
            k,
            v,
            position_q,
            position_k,
            buckets,
            attention_mask,
            self.probability_dropout if self.training else 0.0,
        )
        output = self.post_norm(self.output(context.flatten(-2), kernels))
        return kernels.dropout(output, self.hidden_dropout if self.training else 0.0)
