"""ELC-BERT with its masked-language-modelling head."""

from torch import Tensor, nn

from elc_bert.config import ModelConfig
from elc_bert.model.encoder import ElcBertEncoder
from elc_bert.model.initialisation import initialise


class MaskedLMHead(nn.Module):
    """``LN -> linear -> GELU -> LN -> dropout -> vocabulary``; the last weight is the embedding's."""

    def __init__(self, config: ModelConfig, embedding: nn.Embedding):
        super().__init__()
        d = config.hidden_size
        self.transform = nn.Sequential(
            nn.LayerNorm(d, eps=config.layer_norm_eps, elementwise_affine=False),
            nn.Linear(d, d),
            nn.GELU(),
            nn.LayerNorm(d, eps=config.layer_norm_eps, elementwise_affine=False),
            nn.Dropout(config.hidden_dropout_prob),
        )
        self.decoder = nn.Linear(d, config.vocab_size)
        self.apply(lambda module: initialise(module, d))
        self.decoder.weight = embedding.weight

    def forward(self, hidden: Tensor) -> Tensor:
        """``[N, D]`` -> logits ``[N, V]``"""
        return self.decoder(self.transform(hidden))


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
        return self.head(hidden.flatten(0, 1).index_select(0, positions))

    def num_parameters(self) -> int:
        """Trainable numbers; the tied output embedding counts once."""
        return sum(p.numel() for p in self.parameters())
