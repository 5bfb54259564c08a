"""The ELC-BERT encoder: every layer reads a learned mixture of all earlier layers' outputs.

Georges Gabriel Charpentier and Samuel 2023, "Not all layers are equally as important: Every Layer
Counts BERT"; the layer itself is LTG-BERT's (Samuel et al. 2023).

Shapes: ``B`` batch, ``T`` tokens, ``D`` hidden, ``L`` layers, ``M`` feed-forward, ``P`` relative positions.
"""

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from elc_bert.config.schema import ModelConfig
from elc_bert.kernels import Choice, Kernels, Mixing, kernels_for
from elc_bert.model.attention import DisentangledAttention
from elc_bert.model.initialisation import initialise, truncated_normal_
from elc_bert.model.linear import Linear
from elc_bert.model.positions import distance_buckets


class LayerMixture(nn.Module):
    """``sum_j softmax(a)_j h_j`` over the outputs ``h_0 .. h_{n-1}`` of everything earlier."""

    def __init__(self, inputs: int, favour_last: bool):
        super().__init__()
        weights = torch.zeros(inputs)
        if favour_last:
            weights[-1] = 1.0
        self.inputs = inputs
        self.weights = nn.Parameter(weights)

    def shares(self) -> Tensor:
        """What each input counts for, float32, summing to 1."""
        return torch.softmax(self.weights.float(), dim=0)

    def forward(self, last: Tensor, mixing: Mixing) -> Tensor:
        """``[B, T, D]``, from the newest output ``last [B, T, D]`` and the earlier ones in ``mixing``."""
        return mixing.mix(last, self.shares())


class FeedForward(nn.Module):
    """``LN -> D to 2M -> GeGLU -> LN -> M to D -> dropout`` (no residual; Shazeer 2020 for GeGLU)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        d, m = config.hidden_size, config.intermediate_size
        self.pre_norm = nn.LayerNorm(d, eps=config.layer_norm_eps, elementwise_affine=False)
        self.expand = Linear(d, 2 * m, bias=False)
        self.contract = Linear(m, d, bias=False)
        self.eps = config.layer_norm_eps
        self.dropout = config.hidden_dropout_prob

    def forward(self, x: Tensor, kernels: Kernels) -> Tensor:
        """``[B, T, D] -> [B, T, D]``"""
        inner = kernels.geglu_norm(self.expand(self.pre_norm(x), kernels), self.eps)
        return kernels.dropout(self.contract(inner, kernels), self.dropout if self.training else 0.0)

    @torch.no_grad()
    def shrink(self, factor: float) -> None:
        """Scale both matrices down, so that deep layers start with a smaller say."""
        self.expand.weight.mul_(factor)
        self.contract.weight.mul_(factor)


class Layer(nn.Module):
    """One layer: mixture of the earlier outputs, attention, feed-forward."""

    def __init__(self, config: ModelConfig, index: int):
        super().__init__()
        self.mixture = LayerMixture(index + 1, favour_last=config.variant == "base")
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
        kernels: Kernels,
    ) -> Tensor:
        """This layer's output, ``[B, T, D]``.

        Args:
            last: output of the layer before, or of the embedding, ``[B, T, D]``.
            mixing: has the earlier ones.
            relative: relative embeddings ``[P, D]``.
            attention_mask: bool or integer ``[B, T]``, see ``kernels.plain.visible``.
            buckets: of distances, int64 ``[2 T - 1]``.
            kernels: what to compute with.
        """
        x = self.mixture(last, mixing)
        y = self.attention(x, relative, attention_mask, buckets, kernels)
        return self.norm(y + self.feed_forward(x + y if self.feed_forward_sees_input else y, kernels))


class Embedding(nn.Module):
    """Word embeddings ``dropout(LN(E[ids]))`` and the relative-position table ``LN*(R)``."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        d = config.hidden_size
        self.word = nn.Embedding(config.vocab_size, d)
        self.word_norm = nn.LayerNorm(d, eps=config.layer_norm_eps, elementwise_affine=False)
        self.dropout = config.hidden_dropout_prob
        self.relative = nn.Parameter(torch.empty(2 * config.position_bucket_size - 1, d))
        self.relative_norm = nn.LayerNorm(d, eps=config.layer_norm_eps)

    def forward(self, input_ids: Tensor, kernels: Kernels) -> tuple[Tensor, Tensor]:
        """int64 ``[B, T]`` -> word embeddings ``[B, T, D]`` and relative embeddings ``[P, D]``."""
        words = kernels.dropout(self.word_norm(self.word(input_ids)), self.dropout if self.training else 0.0)
        return words, self.relative_norm(self.relative)


class ElcBertEncoder(nn.Module):
    """Token ids in, contextual vectors out."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embedding = Embedding(config)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.output_mixture = (
            LayerMixture(config.num_hidden_layers + 1, favour_last=False)
            if config.variant == "weighted_output"
            else None
        )
        #: Recompute each layer in the backward pass instead of keeping its activations.
        self.activation_checkpointing = False
        #: Fast paths for the device or the plain definitions, see ``kernels_for``.
        self.kernels: Choice | Kernels = "auto"
        self.apply(lambda module: initialise(module, config.hidden_size))
        truncated_normal_(self.embedding.relative, config.hidden_size)
        for layer in self._typed_layers():
            layer.feed_forward.shrink(math.sqrt(1.0 / (2.0 * layer.mixture.inputs)))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Contextual vectors ``[B, T, D]``.

        Args:
            input_ids: int64 ``[B, T]``.
            attention_mask: bool ``[B, T]``, True for real tokens; or integer ``[B, T]``, 0 for padding, else
                the number of the token's sequence among several in a row, which do not see each other.
        """
        kernels = kernels_for(input_ids.device.type, self.kernels)
        last, relative = self.embedding(input_ids, kernels)
        buckets = distance_buckets(
            input_ids.shape[1],
            self.config.position_bucket_size,
            self.config.max_position_embeddings,
            input_ids.device,
        )
        mixing = kernels.mixing()
        for layer in self.layers:
            inputs = (last, mixing, relative, attention_mask, buckets, kernels)
            if self.activation_checkpointing and self.training:
                last = checkpoint(layer, *inputs, use_reentrant=False)
            else:
                last = layer(*inputs)
        return last if self.output_mixture is None else self.output_mixture(last, mixing)

    def layer_weights(self) -> dict[str, Tensor]:
        """Share that each layer takes of every earlier output, float32, summing to 1.

        Keys are ``layer_01`` (shape ``[1]``, of the embedding alone) to ``layer_LL`` (``[L]``), then
        ``output`` (``[L + 1]``) in the variant that has it.
        """
        mixtures = {f"layer_{layer.mixture.inputs:02d}": layer.mixture for layer in self._typed_layers()}
        if self.output_mixture is not None:
            mixtures["output"] = self.output_mixture
        return {name: mixture.shares().detach() for name, mixture in mixtures.items()}

    def _typed_layers(self) -> list[Layer]:
        return [layer for layer in self.layers if isinstance(layer, Layer)]
