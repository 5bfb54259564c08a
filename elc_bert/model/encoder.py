"""The ELC-BERT encoder, in which every layer reads a learned mixture of all earlier layers' outputs.

The mixture is that of "Not all layers are equally as important: Every Layer Counts BERT" (Georges Gabriel
Charpentier and Samuel 2023); the layer itself is that of LTG-BERT (Samuel et al. 2023).

Shapes: ``B`` batch, ``T`` tokens, ``D`` hidden, ``L`` layers, ``P`` relative positions.
"""

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from elc_bert.config.schema import ModelConfig
from elc_bert.kernels import Mixing
from elc_bert.model.attention import DisentangledAttention
from elc_bert.model.initialization import initialize, truncated_normal_
from elc_bert.model.layers import FeedForward, KernelUser, LayerMixture
from elc_bert.model.positions import distance_buckets


class Layer(nn.Module):
    """One layer: a mixture of all earlier outputs, then attention, then the feed-forward block."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.mixture = LayerMixture(index + 1, favor_last=config.variant == "base")
        self.attention = DisentangledAttention(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_sees_input = config.variant != "base"
        self.norm = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, elementwise_affine=False)
            if config.variant == "normalized"
            else nn.Identity()
        )

    def forward(
        self,
        last: Tensor,
        mixing: Mixing,
        relative: Tensor,
        attention_mask: Tensor,
        buckets: Tensor,
    ) -> Tensor:
        """Return this layer's output, ``[B, T, D]``.

        Args:
            last: Output of the preceding layer or of the embedding, ``[B, T, D]``.
            mixing: Holds the outputs of all layers before ``last``; a new object is made for each forward
                pass.
            relative: Relative-position embeddings ``[P, D]``.
            attention_mask: Bool or integer ``[B, T]``, see ``kernels.reference.visibility_mask``.
            buckets: Bucket of each distance, int64 ``[2 T - 1]``, see ``distance_buckets``.
        """
        x = self.mixture(last, mixing)
        y = self.attention(x, relative, attention_mask, buckets)
        output: Tensor = self.norm(y + self.feed_forward(x + y if self.feed_forward_sees_input else y))
        return output


class Embedding(KernelUser, nn.Module):
    """Word embeddings ``dropout(LN(E[ids]))`` and the relative-position table ``LN*(R)``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.word = nn.Embedding(config.vocab_size, d)
        self.word_norm = nn.LayerNorm(d, eps=config.layer_norm_eps, elementwise_affine=False)
        self.dropout = config.hidden_dropout_prob
        self.relative = nn.Parameter(torch.empty(2 * config.position_bucket_size - 1, d))
        self.relative_norm = nn.LayerNorm(d, eps=config.layer_norm_eps)

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Map int64 ``[B, T]`` to word embeddings ``[B, T, D]`` and relative positions ``[P, D]``."""
        kernels = self.kernels_for_input(input_ids)
        words = kernels.dropout(self.word_norm(self.word(input_ids)), self.dropout if self.training else 0.0)
        return words, self.relative_norm(self.relative)


class ElcBertEncoder(KernelUser, nn.Module):
    """Encoder that maps token ids to contextual vectors."""

    activation_checkpointing: bool
    """Recompute each layer in the backward pass instead of keeping its activations."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.output_mixture = (
            LayerMixture(config.num_hidden_layers + 1, favor_last=False)
            if config.variant == "weighted_output"
            else None
        )
        self.activation_checkpointing = False
        self.apply(lambda module: initialize(module, config.hidden_size))
        truncated_normal_(self.embedding.relative, config.hidden_size)
        for layer in self._typed_layers():
            layer.feed_forward.scale_weights(math.sqrt(1.0 / (2.0 * layer.mixture.inputs)))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the contextual vectors, ``[B, T, D]``.

        Args:
            input_ids: int64 ``[B, T]``.
            attention_mask: Bool ``[B, T]``, True for real tokens; or, for packed rows, integer ``[B, T]``,
                0 for padding, else the number of the token's segment. Segments do not attend to each other.
        """
        last, relative = self.embedding(input_ids)
        buckets = distance_buckets(
            input_ids.shape[1],
            self.config.position_bucket_size,
            self.config.max_position_embeddings,
            input_ids.device,
        )
        mixing = self.kernels_for_input(input_ids).mixing()
        for layer in self.layers:
            inputs = (last, mixing, relative, attention_mask, buckets)
            if self.activation_checkpointing and self.training:
                last = checkpoint(layer, *inputs, use_reentrant=False)
            else:
                last = layer(*inputs)
        output: Tensor = last if self.output_mixture is None else self.output_mixture(last, mixing)
        return output

    def layer_weights(self) -> dict[str, Tensor]:
        """Return the normalized weights with which each layer mixes the earlier outputs, float32.

        Keys are ``layer_01`` (``[1]``: it reads the embedding only) to ``layer_LL`` (``[L]``), then
        ``output`` (``[L + 1]``) in the variant that mixes once more after the last layer.
        """
        mixtures = {f"layer_{layer.mixture.inputs:02d}": layer.mixture for layer in self._typed_layers()}
        if self.output_mixture is not None:
            mixtures["output"] = self.output_mixture
        return {name: mixture.shares().detach() for name, mixture in mixtures.items()}

    def _typed_layers(self) -> list[Layer]:
        return [layer for layer in self.layers if isinstance(layer, Layer)]
