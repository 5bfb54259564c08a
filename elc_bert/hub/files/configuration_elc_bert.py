"""Configuration of ELC-BERT for Hugging Face transformers (4.x and 5.x)."""

from typing import Any

from transformers import PretrainedConfig


class ElcBertConfig(PretrainedConfig):
    """What an ELC-BERT is made of.

    Args:
        variant: how layers mix earlier outputs, one of the four of the ELC-BERT paper (section 3): ``base``,
            ``zero``, ``normalized`` or ``weighted_output``.
        vocab_size: subwords.
        hidden_size: width of every layer.
        num_hidden_layers: layers.
        num_attention_heads: heads, dividing ``hidden_size``.
        intermediate_size: width of the gated feed-forward.
        max_position_embeddings: distance in tokens up to which relative positions are told apart; longer
            input is allowed.
        position_bucket_size: buckets to one side for relative positions.
        hidden_dropout_prob: dropout on the outputs of the embedding, attention and feed-forward.
        attention_probs_dropout_prob: dropout on attention probabilities.
        classifier_dropout: dropout before the last product of a fine-tuned head; ``hidden_dropout_prob``
            where None.
        layer_norm_eps: added to the variance in every layer norm.
    """

    model_type = "elc-bert"

    def __init__(
        self,
        variant: str = "zero",
        vocab_size: int = 6144,
        hidden_size: int = 384,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 6,
        intermediate_size: int = 1024,
        max_position_embeddings: int = 512,
        position_bucket_size: int = 32,
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        classifier_dropout: float | None = None,
        layer_norm_eps: float = 1e-7,
        pad_token_id: int = 3,
        cls_token_id: int = 1,
        sep_token_id: int = 2,
        mask_token_id: int = 4,
        **others: Any,
    ):
        self.variant = variant
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.position_bucket_size = position_bucket_size
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.classifier_dropout = classifier_dropout
        self.layer_norm_eps = layer_norm_eps
        self.cls_token_id = cls_token_id
        self.mask_token_id = mask_token_id
        # The head reads the embedding's own weight, so there is nothing for transformers to tie.
        others["tie_word_embeddings"] = False
        super().__init__(pad_token_id=pad_token_id, sep_token_id=sep_token_id, **others)
