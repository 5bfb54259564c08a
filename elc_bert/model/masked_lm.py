"""ELC-BERT with its masked-language-modeling head.

Shapes: ``B`` batch, ``T`` tokens, ``D`` hidden, ``N`` predicted tokens, ``V`` vocabulary.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from elc_bert.config.schema import ModelConfig
from elc_bert.kernels import Choice, Kernels
from elc_bert.model.encoder import ElcBertEncoder
from elc_bert.model.initialization import initialize
from elc_bert.model.layers import KernelUser, Linear

HEAD_ROW_STEP = 64
"""On a CPU, the head computes a multiple of this number of rows."""


def head_rows(predicted: int, device_type: str) -> int:
    """Return the number of rows that the head computes to predict ``predicted`` tokens.

    The number of predicted tokens differs from step to step. On a CPU, PyTorch keeps a compiled matrix
    product (oneDNN's cache of 1,024 primitives) and the C library a piece of memory for each number of rows,
    so that the memory of a process would grow by hundreds of megabytes in its first thousands of steps.
    """
    return -(-predicted // HEAD_ROW_STEP) * HEAD_ROW_STEP if device_type == "cpu" else predicted


class MaskedLMHead(KernelUser, nn.Module):
    """``LN -> linear -> GELU -> LN -> dropout -> vocabulary``; the last weight is tied to the embedding's."""

    def __init__(self, config: ModelConfig, embedding: nn.Embedding) -> None:
        super().__init__()
        d = config.hidden_size
        self.pre_norm = nn.LayerNorm(d, eps=config.layer_norm_eps, elementwise_affine=False)
        self.dense = Linear(d, d)
        self.post_norm = nn.LayerNorm(d, eps=config.layer_norm_eps, elementwise_affine=False)
        self.dropout = config.hidden_dropout_prob
        self.decoder = Linear(d, config.vocab_size)
        self.apply(lambda module: initialize(module, d))
        self.decoder.weight = embedding.weight

    def forward(self, hidden: Tensor) -> Tensor:
        """Map ``[N, D]`` to logits ``[N, V]``."""
        inner = self.post_norm(F.gelu(self.dense(self.pre_norm(hidden))))
        inner = self.kernels_for_input(hidden).dropout(inner, self.dropout if self.training else 0.0)
        logits: Tensor = self.decoder(inner)
        return logits


class ElcBertForMaskedLM(nn.Module):
    """The model for pretraining: encoder and masked-language-modeling head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ElcBertEncoder(config)
        self.head = MaskedLMHead(config, self.encoder.embedding.word)

    @property
    def kernels(self) -> Choice | Kernels:
        """Kernels that the model computes with; ``use_kernels`` changes them."""
        return self.encoder.kernels

    def forward(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        """Return logits ``[N, V]`` at ``positions``, the only places where the costly head is applied.

        Args:
            input_ids: int64 ``[B, T]``.
            attention_mask: Bool or integer ``[B, T]``, see ``ElcBertEncoder.forward``.
            positions: int64 ``[N]``, indices into the flattened ``[B * T]`` tokens.
        """
        hidden = self.encoder(input_ids, attention_mask)
        count = len(positions)
        rows = F.pad(positions, (0, head_rows(count, hidden.device.type) - count))
        logits: Tensor = self.head(hidden.flatten(0, 1).index_select(0, rows))
        return logits[:count]

    def num_parameters(self) -> int:
        """Return the number of trainable weights; the tied output embedding counts once."""
        return sum(p.numel() for p in self.parameters())
