"""ELC-BERT for Hugging Face transformers (4.40 and later), in plain PyTorch.

The input of each layer is a learned, softmax-weighted sum of the outputs of all earlier layers (Georges
Gabriel Charpentier and Samuel 2023, "Not all layers are equally as important: Every Layer Counts BERT"). The
layers are those of LTG-BERT (Samuel et al. 2023), with relative positions as in DeBERTa (He et al. 2021).

Shapes: ``B`` batch size, ``T`` tokens, ``D`` hidden size, ``H`` attention heads, ``K`` head size, ``M``
feed-forward size, ``L`` layers, ``P`` relative positions, ``V`` vocabulary size, ``C`` classes, ``N``
choices.
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
    """Return a layer normalization without learned scale and shift."""
    return nn.LayerNorm(size, eps=config.layer_norm_eps, elementwise_affine=False)


def distance_buckets(bucket_size: int, max_position: int) -> Tensor:
    """Return the bucket of each distance between two tokens, int64 ``[2 S - 1]`` in ``[0, P - 1]``.

    ``S`` is ``max(max_position, bucket_size)``. Entry ``i - j + S - 1`` is the bucket of the distance
    ``i - j``; larger distances have the bucket of the largest. Each distance up to ``bucket_size / 2`` in
    either direction has its own bucket, and larger ones share logarithmically spaced buckets.

    Computed in float32 and on the CPU, as in pretraining: GPUs round the logarithm differently.
    """
    size = max(max_position, bucket_size)
    offset = torch.arange(1 - size, size, device="cpu")
    exact = bucket_size // 2
    distance = offset.abs().clamp(min=exact - 1, max=max_position - 1)
    octaves = torch.log(distance.float() / exact) / math.log((max_position - 1) / exact)
    # For some values of max_position, such as 192, the largest distance is rounded up.
    logarithmic = (exact + torch.ceil(octaves * (exact - 1)).long()).clamp(max=bucket_size - 1)
    return torch.where(distance <= exact, offset, offset.sign() * logarithmic) + bucket_size - 1


class LayerMixture(nn.Module):
    """Softmax-weighted sum of the outputs of all earlier layers."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(inputs))

    def forward(self, earlier: list[Tensor]) -> Tensor:
        """Return the weighted sum ``[B, T, D]`` of ``len(weights)`` tensors of the same shape."""
        shares = torch.softmax(self.weights.float(), dim=0).to(earlier[0].dtype)
        mixed = shares[0] * earlier[0]
        for share, output in zip(shares[1:], earlier[1:], strict=True):
            mixed = mixed + share * output
        return mixed


class Attention(nn.Module):
    """Self-attention with content-to-content, content-to-position and position-to-content scores."""

    def __init__(self, config: ElcBertConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.heads = config.num_attention_heads
        self.pre_norm = plain_norm(d, config)
        self.query_key = nn.Linear(d, 2 * d)
        self.value = nn.Linear(d, d)
        self.output = nn.Linear(d, d)
        self.post_norm = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(
        self, x: Tensor, relative: Tensor, padding_mask: Tensor, buckets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the output ``[B, T, D]`` and the attention probabilities ``[B, H, T, T]``.

        Args:
            x: Input ``[B, T, D]``.
            relative: Embeddings of the relative positions ``[P, D]``.
            padding_mask: Bool, broadcastable to ``[B, H, T, T]``; True at keys that are padding.
            buckets: Buckets of the relative positions, int64 ``[T, T]``.
        """
        z = self.pre_norm(x)
        q, k = (self.split(tensor) for tensor in self.query_key(z).chunk(2, dim=-1))
        v = self.split(self.value(z))
        positions = self.query_key(self.dropout(relative)).chunk(2, dim=-1)
        position_q, position_k = (self.split(tensor) for tensor in positions)

        index = buckets.expand(*q.shape[:2], -1, -1)
        # Not .mT, which the older exporter to ONNX does not know.
        content_to_position = (q @ position_k.transpose(-2, -1)).gather(-1, index)
        position_to_content = (k @ position_q.transpose(-2, -1)).gather(-1, index.transpose(-2, -1))
        scores = q @ k.transpose(-2, -1) + content_to_position + position_to_content.transpose(-2, -1)
        scores = scores / math.sqrt(3 * q.shape[-1])
        scores = scores.masked_fill(padding_mask, torch.finfo(scores.dtype).min)
        probabilities = torch.softmax(scores, dim=-1).masked_fill(padding_mask, 0.0)

        context = (self.dropout(probabilities) @ v).transpose(-3, -2).flatten(-2)
        return self.dropout(self.post_norm(self.output(context))), probabilities

    def split(self, x: Tensor) -> Tensor:
        """Split ``[..., T, D]`` into heads ``[..., H, T, K]``."""
        # Not unflatten, which the older exporter to ONNX freezes at the batch size of the example.
        return x.reshape(*x.shape[:-1], self.heads, -1).transpose(-3, -2)


class FeedForward(nn.Module):
    """Feed-forward network with gated GELU (GeGLU, Shazeer 2020)."""

    def __init__(self, config: ElcBertConfig) -> None:
        super().__init__()
        d, m = config.hidden_size, config.intermediate_size
        self.pre_norm = plain_norm(d, config)
        self.expand = nn.Linear(d, 2 * m, bias=False)
        self.inner_norm = plain_norm(m, config)
        self.contract = nn.Linear(m, d, bias=False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output ``[B, T, D]`` for the input ``x``, ``[B, T, D]``."""
        value, gate = self.expand(self.pre_norm(x)).chunk(2, dim=-1)
        return self.dropout(self.contract(self.inner_norm(value * F.gelu(gate, approximate="tanh"))))


class Layer(nn.Module):
    """Weighted sum of the earlier outputs, followed by attention and feed-forward."""

    def __init__(self, config: ElcBertConfig, index: int) -> None:
        super().__init__()
        self.mixture = LayerMixture(index + 1)
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.feed_forward_sees_input = config.variant != "base"
        normalized = config.variant == "normalized"
        self.norm = plain_norm(config.hidden_size, config) if normalized else nn.Identity()

    def forward(
        self, relative: Tensor, padding_mask: Tensor, buckets: Tensor, *earlier: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the output ``[B, T, D]`` and the attention probabilities ``[B, H, T, T]``."""
        x = self.mixture(list(earlier))
        y, probabilities = self.attention(x, relative, padding_mask, buckets)
        return self.norm(y + self.feed_forward(x + y if self.feed_forward_sees_input else y)), probabilities


class Embedding(nn.Module):
    """Word embeddings and the embeddings of the relative positions."""

    def __init__(self, config: ElcBertConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.word = nn.Embedding(config.vocab_size, d)
        self.word_norm = plain_norm(d, config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.relative = nn.Parameter(torch.zeros(2 * config.position_bucket_size - 1, d))
        self.relative_norm = nn.LayerNorm(d, eps=config.layer_norm_eps)

    def forward(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the word embeddings ``[B, T, D]`` and the relative position embeddings ``[P, D]``."""
        words = self.word(input_ids) if inputs_embeds is None else inputs_embeds
        return self.dropout(self.word_norm(words)), self.relative_norm(self.relative)


class Head(nn.Module):
    """``LN -> Linear -> GELU -> LN -> dropout -> Linear``, with one output per subword or class."""

    def __init__(self, config: ElcBertConfig, outputs: int | None, dropout: float) -> None:
        super().__init__()
        d = config.hidden_size
        self.pre_norm = plain_norm(d, config)
        self.dense = nn.Linear(d, d)
        self.post_norm = plain_norm(d, config)
        self.dropout = nn.Dropout(dropout)
        if outputs is None:
            # In masked language modeling, the weight of the last layer is that of the word embedding.
            self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        else:
            self.decoder = nn.Linear(d, outputs)

    def forward(self, x: Tensor, word_embeddings: Tensor | None = None) -> Tensor:
        """Return the logits ``[..., V or C]`` for ``x``, ``[..., D]``.

        Args:
            x: Output of the encoder ``[..., D]``.
            word_embeddings: Weight of the last layer ``[V, D]`` in masked language modeling.
        """
        inner = self.dropout(self.post_norm(F.gelu(self.dense(self.pre_norm(x)))))
        return self.decoder(inner) if word_embeddings is None else F.linear(inner, word_embeddings, self.bias)


class ElcBertPreTrainedModel(PreTrainedModel):
    """Base class of all ELC-BERT models: configuration and initialization of weights."""

    config_class = ElcBertConfig
    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True
    # The loss is the mean over a batch. Otherwise the Trainer of transformers 4.46 and later expects a sum
    # over the batch divided by the number of labels in all accumulated batches of all processes.
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Only functions of torch.nn.init may be used: transformers replaces them, so that they do not change
        # weights that were loaded from a file.
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
        """Return a new classification head with ``outputs`` outputs."""
        dropout = self.config.classifier_dropout
        return Head(self.config, outputs, self.config.hidden_dropout_prob if dropout is None else dropout)


class ElcBertModel(ElcBertPreTrainedModel):
    """The ELC-BERT encoder without a head."""

    def __init__(self, config: ElcBertConfig) -> None:
        super().__init__(config)
        self.embedding = Embedding(config)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        weighted = config.variant == "weighted_output"
        self.output_mixture = LayerMixture(config.num_hidden_layers + 1) if weighted else None
        # Not a buffer: transformers builds models without memory for weights and then loses such buffers.
        self.buckets = distance_buckets(config.position_bucket_size, config.max_position_embeddings)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the word embedding."""
        return self.embedding.word

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embedding."""
        self.embedding.word = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        token_type_ids: Tensor | None = None,
    ) -> BaseModelOutput | tuple[Tensor, ...]:
        """Return the contextual embeddings of the tokens.

        Args:
            input_ids: Token ids, int64 ``[B, T]``.
            attention_mask: Attention mask, 1 where attention is allowed and 0 elsewhere: ``[B, T]`` for the
                tokens that are attended to, or ``[B, T, T]`` with a row for each token that attends; None if
                there is no padding.
            inputs_embeds: Word embeddings ``[B, T, D]``, in place of ``input_ids``.
            output_attentions: Whether to also return the attention probabilities ``[B, H, T, T]`` of each
                layer, before dropout.
            output_hidden_states: Whether to also return the outputs ``[B, T, D]`` of the embedding and of
                each layer.
            return_dict: Whether to return a ``BaseModelOutput`` (default) or a tuple.
            token_type_ids: Ignored, since the model does not distinguish between segments. Some tokenizers
                and data collators pass it.

        Raises:
            ValueError: Both or none of ``input_ids`` and ``inputs_embeds`` are given, or the attention mask
                has a shape or values that are not supported.
        """
        inputs = inputs_embeds if input_ids is None else input_ids
        if inputs is None or (input_ids is not None and inputs_embeds is not None):
            raise ValueError("give either input_ids or inputs_embeds")
        config = self.config
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        if attention_mask is None:
            attention_mask = inputs.new_ones(inputs.shape[:2], dtype=torch.bool)
        padding_mask = _padding_mask(attention_mask, inputs)
        position = torch.arange(inputs.shape[1], device=inputs.device)
        farthest = len(self.buckets) // 2
        distance = (position[:, None] - position).clamp(-farthest, farthest)
        buckets = self.buckets.to(inputs.device)[distance + farthest]
        embedded, relative = self.embedding(input_ids, inputs_embeds)
        outputs, attentions = [embedded], []
        for layer in self.layers:
            layer_inputs = (relative, padding_mask, buckets, *outputs)
            if self.gradient_checkpointing and self.training:
                output, probabilities = self._gradient_checkpointing_func(layer.__call__, *layer_inputs)
            else:
                output, probabilities = layer(*layer_inputs)
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
    """The encoder with the head for masked language modeling."""

    def __init__(self, config: ElcBertConfig) -> None:
        super().__init__(config)
        self.encoder = ElcBertModel(config)
        self.head = Head(config, None, config.hidden_dropout_prob)
        self.post_init()

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> Any:
        """Resize the word embedding and the bias of the head; the bias of new subwords is 0."""
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
        **kwargs: Any,
    ) -> MaskedLMOutput | tuple[Tensor, ...]:
        """Return the logits ``[B, T, V]`` and, if labels are given, the mean loss.

        Args:
            input_ids: Token ids, int64 ``[B, T]``.
            attention_mask: Attention mask ``[B, T]``; see ``ElcBertModel.forward``.
            labels: Correct tokens, int64 ``[B, T]``; -100 at positions that are not predicted.
            return_dict: Whether to return a ``MaskedLMOutput`` (default) or a tuple.
            **kwargs: Further arguments of ``ElcBertModel.forward``.
        """
        encoded = self.encoder(input_ids, attention_mask, return_dict=True, **kwargs)
        logits = self.head(encoded.last_hidden_state, self.encoder.embedding.word.weight)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        result = MaskedLMOutput(loss, logits, encoded.hidden_states, encoded.attentions)
        return result.to_tuple() if _wants_tuple(self.config, return_dict) else result


class ElcBertForSequenceClassification(ElcBertPreTrainedModel):
    """The encoder with a head on ``[CLS]`` for classification or regression of a text or a pair of texts."""

    def __init__(self, config: ElcBertConfig) -> None:
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
        **kwargs: Any,
    ) -> SequenceClassifierOutput | tuple[Tensor, ...]:
        """Return the logits ``[B, C]`` and, if labels are given, the mean loss.

        Args:
            input_ids: Token ids, int64 ``[B, T]``.
            attention_mask: Attention mask ``[B, T]``; see ``ElcBertModel.forward``.
            labels: Classes or numbers ``[B]``, or ``[B, C]`` if there are several for each text.
            return_dict: Whether to return a ``SequenceClassifierOutput`` (default) or a tuple.
            **kwargs: Further arguments of ``ElcBertModel.forward``.
        """
        encoded = self.encoder(input_ids, attention_mask, return_dict=True, **kwargs)
        logits = self.classifier(encoded.last_hidden_state[:, 0])
        loss = None if labels is None else self.loss(logits, labels)
        result = SequenceClassifierOutput(loss, logits, encoded.hidden_states, encoded.attentions)
        return result.to_tuple() if _wants_tuple(self.config, return_dict) else result

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of logits ``[B, C]``.

        The loss is chosen by ``config.problem_type``. If that is None, it is the squared error for a single
        output, cross entropy for integer labels, and binary cross entropy for floating-point labels.
        """
        problem = self.config.problem_type
        if problem is None:
            is_integer = not labels.is_floating_point()
            problem = "single_label_classification" if is_integer else "multi_label_classification"
            problem = "regression" if self.num_labels == 1 else problem
        logits = logits.float()
        if problem == "regression":
            return F.mse_loss(logits.flatten(), labels.flatten().float())
        if problem == "single_label_classification":
            return F.cross_entropy(logits, labels.flatten())
        return F.binary_cross_entropy_with_logits(logits, labels.float())


class ElcBertForTokenClassification(ElcBertPreTrainedModel):
    """The encoder with a head for classification of each token."""

    def __init__(self, config: ElcBertConfig) -> None:
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
        **kwargs: Any,
    ) -> TokenClassifierOutput | tuple[Tensor, ...]:
        """Return the logits ``[B, T, C]`` and, if labels are given, the mean loss.

        Args:
            input_ids: Token ids, int64 ``[B, T]``.
            attention_mask: Attention mask ``[B, T]``; see ``ElcBertModel.forward``.
            labels: Classes of the tokens, int64 ``[B, T]``; -100 at positions that are ignored.
            return_dict: Whether to return a ``TokenClassifierOutput`` (default) or a tuple.
            **kwargs: Further arguments of ``ElcBertModel.forward``.
        """
        encoded = self.encoder(input_ids, attention_mask, return_dict=True, **kwargs)
        logits = self.classifier(encoded.last_hidden_state)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        result = TokenClassifierOutput(loss, logits, encoded.hidden_states, encoded.attentions)
        return result.to_tuple() if _wants_tuple(self.config, return_dict) else result


class ElcBertForQuestionAnswering(ElcBertPreTrainedModel):
    """The encoder with a head that predicts the first and the last token of an answer in the text."""

    def __init__(self, config: ElcBertConfig) -> None:
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
        **kwargs: Any,
    ) -> QuestionAnsweringModelOutput | tuple[Tensor, ...]:
        """Return the logits ``[B, T]`` of first and last token and, if positions are given, the mean loss.

        Args:
            input_ids: Token ids, int64 ``[B, T]``.
            attention_mask: Attention mask ``[B, T]``; see ``ElcBertModel.forward``.
            start_positions: Positions of the first tokens, int64 ``[B]``; positions outside the input are
                ignored.
            end_positions: Positions of the last tokens, int64 ``[B]``, likewise.
            return_dict: Whether to return a ``QuestionAnsweringModelOutput`` (default) or a tuple.
            **kwargs: Further arguments of ``ElcBertModel.forward``.
        """
        encoded = self.encoder(input_ids, attention_mask, return_dict=True, **kwargs)
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
    """The encoder with a head on ``[CLS]`` that scores several texts, of which one is correct."""

    def __init__(self, config: ElcBertConfig) -> None:
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
        **kwargs: Any,
    ) -> MultipleChoiceModelOutput | tuple[Tensor, ...]:
        """Return the logits ``[B, N]`` and, if labels are given, the mean loss.

        Args:
            input_ids: Token ids, int64 ``[B, N, T]``.
            attention_mask: Attention mask ``[B, N, T]``; see ``ElcBertModel.forward``.
            labels: Indices of the correct texts, int64 ``[B]``.
            inputs_embeds: Word embeddings ``[B, N, T, D]``, in place of ``input_ids``.
            return_dict: Whether to return a ``MultipleChoiceModelOutput`` (default) or a tuple.
            **kwargs: Further arguments of ``ElcBertModel.forward``.
        """
        inputs = inputs_embeds if input_ids is None else input_ids
        if inputs is None:
            raise ValueError("give either input_ids or inputs_embeds")
        flat = (
            None if each is None else each.flatten(0, 1)
            for each in (input_ids, attention_mask, inputs_embeds)
        )
        encoded = self.encoder(*flat, return_dict=True, **kwargs)
        logits = self.classifier(encoded.last_hidden_state[:, 0]).view(inputs.shape[:2])
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        result = MultipleChoiceModelOutput(loss, logits, encoded.hidden_states, encoded.attentions)
        return result.to_tuple() if _wants_tuple(self.config, return_dict) else result


def _padding_mask(attention_mask: Tensor, inputs: Tensor) -> Tensor:
    """Return the bool mask, broadcastable to ``[B, H, T, T]``, that is True where attention is forbidden."""
    batch, length = inputs.shape[:2]
    shape = tuple(attention_mask.shape)
    if shape not in ((batch, length), (batch, length, length)):
        raise ValueError(
            f"attention_mask: shape {list(shape)} is not supported; give [{batch}, {length}] or "
            f"[{batch}, {length}, {length}]"
        )
    if attention_mask.is_floating_point() and (attention_mask < 0).any():
        raise ValueError(
            "attention_mask: holds negative numbers, as if to be added to the scores; give 1 where attention "
            "is allowed and 0 elsewhere"
        )
    forbidden = ~attention_mask.bool()
    return forbidden[:, None, None, :] if forbidden.ndim == 2 else forbidden[:, None]


def _wants_tuple(config: ElcBertConfig, return_dict: bool | None) -> bool:
    """Return whether the caller, or else the configuration, asks for a tuple."""
    chosen = getattr(config, "return_dict", True) if return_dict is None else return_dict
    return not chosen


# A model that is saved again must take this code along. transformers before 4.52 does so on request only.
ElcBertConfig.register_for_auto_class()
ElcBertModel.register_for_auto_class("AutoModel")
ElcBertForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
ElcBertForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
ElcBertForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")
ElcBertForQuestionAnswering.register_for_auto_class("AutoModelForQuestionAnswering")
ElcBertForMultipleChoice.register_for_auto_class("AutoModelForMultipleChoice")
