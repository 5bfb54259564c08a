"""ELC-BERT for Hugging Face transformers (4.x and 5.x), in PyTorch and nothing else.

Every layer reads a learned, softmax-weighted sum of the outputs of all earlier layers (Georges Gabriel
Charpentier and Samuel 2023, "Not all layers are equally as important: Every Layer Counts BERT"); the layer
itself is LTG-BERT's (Samuel et al. 2023), with relative positions as in DeBERTa (He et al. 2021).

Shapes: ``B`` batch, ``T`` tokens, ``D`` hidden, ``H`` heads, ``K`` head size, ``M`` feed-forward,
``L`` layers, ``P`` relative positions, ``V`` vocabulary, ``C`` classes, ``N`` choices.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from .configuration_elc_bert import ElcBertConfig


def plain_norm(size: int, config: ElcBertConfig) -> nn.LayerNorm:
    """A layer norm without learned scale and shift."""
    return nn.LayerNorm(size, eps=config.layer_norm_eps, elementwise_affine=False)


def position_buckets(length: int, bucket_size: int, max_position: int, device: torch.device) -> Tensor:
    """Relative position of every token (first) to every other (second), int64 ``[T, T]`` in ``[0, P - 1]``.

    Exact up to ``bucket_size / 2`` to either side, logarithmic up to ``max_position``, and the outermost
    bucket beyond. In float32, as the models were trained.
    """
    offset = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    exact = bucket_size // 2
    distance = offset.abs().clamp(min=exact - 1, max=max_position - 1)
    octaves = torch.log(distance.float() / exact) / math.log((max_position - 1) / exact)
    logarithmic = exact + torch.ceil(octaves * (exact - 1)).long()
    return torch.where(distance <= exact, offset, offset.sign() * logarithmic) + bucket_size - 1


class LayerMixture(nn.Module):
    """The weighted sum of everything earlier."""

    def __init__(self, inputs: int):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(inputs))

    def forward(self, earlier: list[Tensor]) -> Tensor:
        """``len(weights)`` tensors ``[B, T, D]`` -> ``[B, T, D]``"""
        shares = torch.softmax(self.weights.float(), dim=0).to(earlier[0].dtype)
        mixed = shares[0] * earlier[0]
        for share, output in zip(shares[1:], earlier[1:], strict=True):
            mixed = mixed + share * output
        return mixed


class Attention(nn.Module):
    """Self-attention with content-to-content, content-to-position and position-to-content scores."""

    def __init__(self, config: ElcBertConfig):
        super().__init__()
        d = config.hidden_size
        self.heads = config.num_attention_heads
        self.pre_norm = plain_norm(d, config)
        self.query_key = nn.Linear(d, 2 * d)
        self.value = nn.Linear(d, d)
        self.output = nn.Linear(d, d)
        self.post_norm = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.probability_dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(self, x: Tensor, relative: Tensor, hidden: Tensor, buckets: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, T, D]`` and attention probabilities ``[B, H, T, T]``.

        Args:
            x: ``[B, T, D]``.
            relative: embeddings of relative positions ``[P, D]``.
            hidden: bool, broadcastable to ``[B, H, T, T]``, True where nothing attends.
            buckets: int64 ``[T, T]``.
        """
        z = self.pre_norm(x)
        q, k = (self.split(tensor) for tensor in self.query_key(z).chunk(2, dim=-1))
        v = self.split(self.value(z))
        positions = self.query_key(self.dropout(relative)).chunk(2, dim=-1)
        position_q, position_k = (self.split(tensor) for tensor in positions)

        index = buckets.expand(*q.shape[:2], -1, -1)
        content_to_position = (q @ position_k.mT).gather(-1, index)
        position_to_content = (k @ position_q.mT).gather(-1, index.mT).mT
        scores = q @ k.mT + content_to_position + position_to_content
        scores = scores / math.sqrt(3 * q.shape[-1])
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
        probabilities = torch.softmax(scores, dim=-1).masked_fill(hidden, 0.0)

        context = (self.probability_dropout(probabilities) @ v).transpose(-3, -2).flatten(-2)
        return self.dropout(self.post_norm(self.output(context))), probabilities

    def split(self, x: Tensor) -> Tensor:
        """``[..., T, D] -> [..., H, T, K]``"""
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)


class FeedForward(nn.Module):
    """A gated feed-forward (Shazeer 2020)."""

    def __init__(self, config: ElcBertConfig):
        super().__init__()
        d, m = config.hidden_size, config.intermediate_size
        self.pre_norm = plain_norm(d, config)
        self.expand = nn.Linear(d, 2 * m, bias=False)
        self.inner_norm = plain_norm(m, config)
        self.contract = nn.Linear(m, d, bias=False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, D] -> [B, T, D]``"""
        value, gate = self.expand(self.pre_norm(x)).chunk(2, dim=-1)
        return self.dropout(self.contract(self.inner_norm(value * F.gelu(gate, approximate="tanh"))))


class Layer(nn.Module):
    """Mixture of the earlier outputs, attention, feed-forward."""

    def __init__(self, config: ElcBertConfig, index: int):
        super().__init__()
        self.mixture = LayerMixture(index + 1)
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_sees_input = config.variant != "base"
        normalized = config.variant == "normalized"
        self.norm = plain_norm(config.hidden_size, config) if normalized else nn.Identity()

    def forward(
        self, relative: Tensor, hidden: Tensor, buckets: Tensor, *earlier: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Output ``[B, T, D]`` and attention probabilities ``[B, H, T, T]``."""
        x = self.mixture(list(earlier))
        y, probabilities = self.attention(x, relative, hidden, buckets)
        return self.norm(y + self.feed_forward(x + y if self.feed_forward_sees_input else y)), probabilities


class Embedding(nn.Module):
    """Word embeddings, and the embeddings of relative positions."""

    def __init__(self, config: ElcBertConfig):
        super().__init__()
        d = config.hidden_size
        self.word = nn.Embedding(config.vocab_size, d)
        self.word_norm = plain_norm(d, config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.relative = nn.Parameter(torch.zeros(2 * config.position_bucket_size - 1, d))
        self.relative_norm = nn.LayerNorm(d, eps=config.layer_norm_eps)

    def forward(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> tuple[Tensor, Tensor]:
        """``[B, T, D]`` and ``[P, D]``"""
        words = self.word(input_ids) if inputs_embeds is None else inputs_embeds
        return self.dropout(self.word_norm(words)), self.relative_norm(self.relative)


class Head(nn.Module):
    """``LN -> linear -> GELU -> LN -> dropout``, and then to the outputs: subwords or classes."""

    def __init__(self, config: ElcBertConfig, outputs: int | None, dropout: float):
        super().__init__()
        d = config.hidden_size
        self.pre_norm = plain_norm(d, config)
        self.dense = nn.Linear(d, d)
        self.post_norm = plain_norm(d, config)
        self.dropout = nn.Dropout(dropout)
        if outputs is None:
            # Of the masked language model: its weight is that of the word embedding.
            self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        else:
            self.decoder = nn.Linear(d, outputs)

    def forward(self, x: Tensor, word_embeddings: Tensor | None = None) -> Tensor:
        """``[..., D] -> [..., V or C]``; ``word_embeddings``: ``[V, D]``."""
        inner = self.dropout(self.post_norm(F.gelu(self.dense(self.pre_norm(x)))))
        return self.decoder(inner) if word_embeddings is None else F.linear(inner, word_embeddings, self.bias)


class ElcBertPreTrainedModel(PreTrainedModel):
    """What all ELC-BERT models share."""

    config_class = ElcBertConfig
    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # By torch.nn.init only: transformers recognises these and spares what was loaded.
        std = math.sqrt(2.0 / (5.0 * self.config.hidden_size))
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        elif isinstance(module, Embedding):
            nn.init.trunc_normal_(module.relative, std=std, a=-2 * std, b=2 * std)
        elif isinstance(module, LayerMixture):
            nn.init.zeros_(module.weights)
        elif isinstance(module, nn.LayerNorm) and module.weight is not None:
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        bias = module.bias if isinstance(module, nn.Linear | Head) and hasattr(module, "bias") else None
        if bias is not None:
            nn.init.zeros_(bias)

    def fine_tuning_head(self, outputs: int) -> Head:
        """A head for ``outputs`` classes."""
        dropout = self.config.classifier_dropout
        return Head(self.config, outputs, self.config.hidden_dropout_prob if dropout is None else dropout)


class ElcBertModel(ElcBertPreTrainedModel):
    """The encoder."""

    def __init__(self, config: ElcBertConfig):
        super().__init__(config)
        self.embedding = Embedding(config)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        weighted = config.variant == "weighted_output"
        self.output_mixture = LayerMixture(config.num_hidden_layers + 1) if weighted else None
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding.word

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embedding.word = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **ignored: Any,
    ) -> BaseModelOutput | tuple[Tensor, ...]:
        """Contextual vectors.

        Args:
            input_ids: int64 ``[B, T]``.
            attention_mask: ``[B, T]``, 1 for tokens, 0 for padding; all tokens where None.
            inputs_embeds: ``[B, T, D]``, instead of ``input_ids``.
            output_attentions: also return each layer's probabilities, ``[B, H, T, T]``, without dropout.
            output_hidden_states: also return the embedding's and each layer's output, ``[B, T, D]``.
            return_dict: False for a tuple.
            ignored: of ``token_type_ids`` and the like, which this model has no use for.
        """
        given = inputs_embeds if input_ids is None else input_ids
        if given is None or (input_ids is not None and inputs_embeds is not None):
            raise ValueError("give either input_ids or inputs_embeds")
        config = self.config
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        if attention_mask is None:
            attention_mask = given.new_ones(given.shape[:2], dtype=torch.bool)
        hidden = ~attention_mask[:, None, None, :].bool()
        buckets = position_buckets(
            given.shape[1], config.position_bucket_size, config.max_position_embeddings, given.device
        )
        embedded, relative = self.embedding(input_ids, inputs_embeds)
        outputs, attentions = [embedded], []
        for layer in self.layers:
            inputs = (relative, hidden, buckets, *outputs)
            if self.gradient_checkpointing and self.training:
                output, probabilities = self._gradient_checkpointing_func(layer.__call__, *inputs)
            else:
                output, probabilities = layer(*inputs)
            outputs.append(output)
            if output_attentions:
                attentions.append(probabilities)
        result = BaseModelOutput(
            last_hidden_state=outputs[-1] if self.output_mixture is None else self.output_mixture(outputs),
            hidden_states=tuple(outputs) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )
        return result.to_tuple() if _wants_tuple(config, return_dict) else result


class ElcBertForMaskedLM(ElcBertPreTrainedModel):
    """The encoder with the head it was pretrained with."""

    def __init__(self, config: ElcBertConfig):
        super().__init__(config)
        self.encoder = ElcBertModel(config)
        self.head = Head(config, None, config.hidden_dropout_prob)
        self.post_init()

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> Any:
        """As everywhere; the head's bias follows, 0 for new subwords."""
        embeddings = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        old = self.head.bias
        bias = old.new_zeros(embeddings.num_embeddings)
        kept = min(len(old), len(bias))
        bias[:kept] = old.detach()[:kept]
        self.head.bias = nn.Parameter(bias, requires_grad=old.requires_grad)
        return embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> MaskedLMOutput | tuple[Tensor, ...]:
        """Logits ``[B, T, V]``, and with ``labels`` (int64 ``[B, T]``, -100 = not predicted) the mean loss.

        The other arguments are those of ``ElcBertModel.forward``.
        """
        encoded = self.encoder(input_ids, attention_mask, return_dict=True, **others)
        logits = self.head(encoded.last_hidden_state, self.encoder.embedding.word.weight)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        result = MaskedLMOutput(loss, logits, encoded.hidden_states, encoded.attentions)
        return result.to_tuple() if _wants_tuple(self.config, return_dict) else result


class ElcBertForSequenceClassification(ElcBertPreTrainedModel):
    """A class, or a number, for a text or a pair of texts; read off the vector of ``[CLS]``."""

    def __init__(self, config: ElcBertConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.encoder = ElcBertModel(config)
        self.classifier = self.fine_tuning_head(config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> SequenceClassifierOutput | tuple[Tensor, ...]:
        """Logits ``[B, C]``, and with ``labels`` (``[B]``; ``[B, C]`` of several classes or numbers) a loss.

        ``config.problem_type`` decides the loss; where it is None: squared error of one output, cross entropy
        of labels that are whole numbers, binary cross entropy of others.
        """
        encoded = self.encoder(input_ids, attention_mask, return_dict=True, **others)
        logits = self.classifier(encoded.last_hidden_state[:, 0])
        loss = None if labels is None else self.loss(logits, labels)
        result = SequenceClassifierOutput(loss, logits, encoded.hidden_states, encoded.attentions)
        return result.to_tuple() if _wants_tuple(self.config, return_dict) else result

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of logits ``[B, C]``."""
        problem = self.config.problem_type
        if problem is None:
            whole = not labels.is_floating_point()
            problem = "single_label_classification" if whole else "multi_label_classification"
            problem = "regression" if self.num_labels == 1 else problem
        logits = logits.float()
        if problem == "regression":
            return F.mse_loss(logits.flatten(), labels.flatten().float())
        if problem == "single_label_classification":
            return F.cross_entropy(logits, labels.flatten())
        return F.binary_cross_entropy_with_logits(logits, labels.float())


class ElcBertForTokenClassification(ElcBertPreTrainedModel):
    """A class for every token."""

    def __init__(self, config: ElcBertConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.encoder = ElcBertModel(config)
        self.classifier = self.fine_tuning_head(config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> TokenClassifierOutput | tuple[Tensor, ...]:
        """Logits ``[B, T, C]``, and with ``labels`` (int64 ``[B, T]``, -100 = ignored) the mean loss."""
        encoded = self.encoder(input_ids, attention_mask, return_dict=True, **others)
        logits = self.classifier(encoded.last_hidden_state)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        result = TokenClassifierOutput(loss, logits, encoded.hidden_states, encoded.attentions)
        return result.to_tuple() if _wants_tuple(self.config, return_dict) else result


class ElcBertForQuestionAnswering(ElcBertPreTrainedModel):
    """The first and the last token of an answer within the text."""

    def __init__(self, config: ElcBertConfig):
        super().__init__(config)
        self.encoder = ElcBertModel(config)
        self.qa_outputs = self.fine_tuning_head(2)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> QuestionAnsweringModelOutput | tuple[Tensor, ...]:
        """Logits ``[B, T]`` of first and last, and with positions (int64 ``[B]``) the mean loss of the two.

        Positions outside of the text count for nothing.
        """
        encoded = self.encoder(input_ids, attention_mask, return_dict=True, **others)
        start_logits, end_logits = self.qa_outputs(encoded.last_hidden_state).unbind(dim=-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            outside = start_logits.shape[1]
            losses = [
                F.cross_entropy(logits.float(), positions.flatten().clamp(0, outside), ignore_index=outside)
                for logits, positions in ((start_logits, start_positions), (end_logits, end_positions))
            ]
            loss = (losses[0] + losses[1]) / 2
        result = QuestionAnsweringModelOutput(
            loss, start_logits, end_logits, encoded.hidden_states, encoded.attentions
        )
        return result.to_tuple() if _wants_tuple(self.config, return_dict) else result


class ElcBertForMultipleChoice(ElcBertPreTrainedModel):
    """The best of several texts."""

    def __init__(self, config: ElcBertConfig):
        super().__init__(config)
        self.encoder = ElcBertModel(config)
        self.classifier = self.fine_tuning_head(1)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> MultipleChoiceModelOutput | tuple[Tensor, ...]:
        """Logits ``[B, N]`` of inputs ``[B, N, T]``, and with ``labels`` (int64 ``[B]``) the mean loss."""
        given = inputs_embeds if input_ids is None else input_ids
        if given is None:
            raise ValueError("give either input_ids or inputs_embeds")
        flat = (
            None if each is None else each.flatten(0, 1)
            for each in (input_ids, attention_mask, inputs_embeds)
        )
        encoded = self.encoder(*flat, return_dict=True, **others)
        logits = self.classifier(encoded.last_hidden_state[:, 0]).view(given.shape[:2])
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        result = MultipleChoiceModelOutput(loss, logits, encoded.hidden_states, encoded.attentions)
        return result.to_tuple() if _wants_tuple(self.config, return_dict) else result


def _wants_tuple(config: ElcBertConfig, return_dict: bool | None) -> bool:
    chosen = getattr(config, "return_dict", True) if return_dict is None else return_dict
    return not chosen
