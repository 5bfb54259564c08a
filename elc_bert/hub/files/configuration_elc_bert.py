"""Configuration of ELC-BERT for Hugging Face transformers (4.40 and later)."""

from typing import Any

from transformers import PretrainedConfig


class ElcBertConfig(PretrainedConfig):
    """Configuration of an ELC-BERT model.

    Args:
        variant: Variant of the architecture, one of the four in section 3 of the ELC-BERT paper: ``base``,
            ``zero``, ``normalized`` or ``weighted_output``.
        vocab_size: Number of subwords in the vocabulary.
        hidden_size: Width of the embedding and of every layer.
        num_hidden_layers: Number of layers.
        num_attention_heads: Number of attention heads; must divide ``hidden_size``.
        intermediate_size: Width of the gated feed-forward network.
        max_position_embeddings: Distance in tokens up to which relative positions are distinguished. Longer
            input is allowed.
        position_bucket_size: Number of buckets of relative positions in each direction.
        hidden_dropout_prob: Dropout probability for the outputs of embedding and feed-forward, and in the
            prediction head.
        attention_probs_dropout_prob: Dropout probability inside attention: for the embeddings of the
            relative positions, the attention probabilities and the output.
        classifier_dropout: Dropout probability before the last linear layer of a fine-tuning head;
            ``hidden_dropout_prob`` if None.
        layer_norm_eps: Constant that is added to the variance in layer normalization.
        pad_token_id: Id of ``[PAD]``.
        cls_token_id: Id of ``[CLS]``.
        sep_token_id: Id of ``[SEP]``.
        mask_token_id: Id of ``[MASK]``.
        **kwargs: Further settings of ``PretrainedConfig``.
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
        **kwargs: Any,
    ) -> None:
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
        # The head uses the weight of the embedding directly, so transformers must not tie any weights.
        kwargs["tie_word_embeddings"] = False
        super().__init__(pad_token_id=pad_token_id, sep_token_id=sep_token_id, **kwargs)
