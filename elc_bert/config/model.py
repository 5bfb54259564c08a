"""The section ``elc_bert.model``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from elc_bert.config.section import Positive, Probability, Section


class ModelConfig(Section):
    """Architecture of the model (section ``elc_bert.model``)."""

    variant: Literal["base", "zero", "normalized", "weighted_output"] = "zero"
    """Variant of the architecture: how each layer combines the outputs of earlier layers (ELC-BERT paper,
    section 3)."""
    vocab_size: int = Field(6144, gt=0, le=2**24)
    """Number of tokens in the vocabulary; must match the tokenizer."""
    hidden_size: int = Field(384, gt=0, le=2**16)
    """Width D of the hidden states."""
    num_hidden_layers: int = Field(12, gt=0, le=1024)
    """Number of layers L."""
    num_attention_heads: Positive = 6
    """Number of attention heads H per layer; must divide ``hidden_size``."""
    intermediate_size: int = Field(1024, gt=0, le=2**20)
    """Width M of the gated feed-forward network."""
    max_position_embeddings: int = Field(512, gt=2, le=2**20)
    """Distance in tokens beyond which all relative positions share the outermost bucket. Longer sequences
    are allowed."""
    position_bucket_size: int = Field(32, ge=4, le=2**16)
    """Number of relative-position buckets B in each direction."""
    hidden_dropout_prob: Probability = 0.1
    """Dropout probability of the outputs of the embedding and of the feed-forward, and in the head."""
    attention_probs_dropout_prob: Probability = 0.1
    """Dropout probability inside attention: of the relative embeddings, the attention probabilities and the
    output."""
    layer_norm_eps: float = Field(1e-7, gt=0)
    """Small constant added to the variance in every layer norm."""

    @model_validator(mode="after")
    def _check_shapes(self) -> ModelConfig:
        if self.hidden_size % self.num_attention_heads:
            divisors = [h for h in range(1, self.hidden_size + 1) if self.hidden_size % h == 0]
            nearest = sorted(divisors, key=lambda h: abs(h - self.num_attention_heads))[:4]
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by num_attention_heads "
                f"{self.num_attention_heads}; nearest valid values: {', '.join(map(str, sorted(nearest)))}"
            )
        if self.max_position_embeddings <= self.position_bucket_size // 2 + 1:
            raise ValueError(
                f"max_position_embeddings {self.max_position_embeddings} must exceed half of "
                f"position_bucket_size {self.position_bucket_size} by more than 1"
            )
        return self
