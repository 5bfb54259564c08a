"""ELC-BERT with its masked-language-modelling head."""

import torch.nn.functional as F
from torch import Tensor, nn

from elc_bert.config.schema import ModelConfig
from elc_bert.kernels import Kernels, kernels_for
from elc_bert.model.encoder import ElcBertEncoder
from elc_bert.model.initialisation import initialise
from elc_bert.model.linear import Linear


class MaskedLMHead(nn.Module):
    """``LN -> linear -> GELU -> LN -> dropout -> vocabulary``; the last weight is the embedding's."""

    def __init__(self, config: ModelConfig, embedding: nn.Embedding):
        super().__init__()
        d = config.hidden_size
        self.pre_norm = nn.LayerNorm(d, eps=config.layer_norm_eps, elementwise_affine=False)
        self.dense = Linear(d, d)
        self.post_norm = nn.LayerNorm(d, eps=config.layer_norm_eps, elementwise_affine=False)
        self.dropout = config.hidden_dropout_prob
        self.decoder = Linear(d, config.vocab_size)
        self.apply(lambda module: initialise(module, d))
        self.decoder.weight = embedding.weight

    def forward(self, hidden: Tensor, kernels: Kernels) -> Tensor:
        """``[N, D]`` -> logits ``[N, V]``"""
        inner = self.post_norm(F.gelu(self.dense(self.pre_norm(hidden), kernels)))
        return self.decoder(kernels.dropout(inner, self.dropout if self.training else 0.0), kernels)


class ElcBertForMaskedLM(nn.Module):
    """The model that is pretrained."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.encoder = ElcBertEncoder(config)
        self.head = MaskedLMHead(config, self.encoder.embedding.word)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        """Logits ``[N, V]`` at ``positions``, the only places where the costly head is applied.

        Args:
            input_ids: int64 ``[B, T]``.
            attention_mask: bool or integer ``[B, T]``, see ``ElcBertEncoder.forward``.
            positions: int64 ``[N]``, indices into the flattened ``[B * T]`` tokens.
        """
        hidden = self.encoder(input_ids, attention_mask)
        kernels = kernels_for(hidden.device.type, self.encoder.kernels)
        return self.head(hidden.flatten(0, 1).index_select(0, positions), kernels)

    def num_parameters(self) -> int:
        """Trainable numbers; the tied output embedding counts once."""
        return sum(p.numel() for p in self.parameters())
