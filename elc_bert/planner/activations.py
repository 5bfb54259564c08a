"""Memory of a micro-batch's activations between forward and backward pass.

The tables below list every tensor that is kept for the backward pass, in the order of the forward pass; a
test compares them with what autograd really keeps. Change them together with the model and its kernels.

Shapes: ``B`` sequences, ``T`` tokens, ``D`` hidden, ``H`` heads, ``K`` head size, ``M`` feed-forward,
``N`` predicted tokens, ``R`` rows that the head computes for them, ``V`` vocabulary, ``P`` relative
positions.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from elc_bert.config.schema import ModelConfig
from elc_bert.model.masked_lm import head_rows

Kernels = Literal["plain", "fused"]
Size = Literal["compute", "noise", 1, 4, 8]
"""Bytes of an element. ``compute``: an element of the activations' type. ``noise``: an element of a dropout
mask, which is of that type on a CPU, one byte on a GPU, and not stored by fused kernels."""


@dataclass(frozen=True)
class Tensor:
    """One row of a table: a tensor kept for the backward pass."""

    name: str
    shape: str
    """Dimensions separated by spaces, each with an optional factor, as in ``B T 2M``."""
    size: Size = "compute"
    needs: str = ""
    """Condition under which the tensor is kept: ``dropout``, ``attention dropout``, ``no attention dropout``
    or ``normalized``; always if empty."""


@dataclass(frozen=True)
class Table:
    """Tensors that one set of kernels keeps, and its temporaries."""

    layer: tuple[Tensor, ...]
    """Tensors that each layer keeps, without its input, which counts as a hidden state."""
    layer_work: tuple[Tensor, ...]
    """Temporaries at the peak of a layer's backward pass."""
    loss: tuple[Tensor, ...]
    """Tensors that the loss keeps."""
    loss_work: tuple[Tensor, ...]
    """Temporaries between forward and backward pass of the loss."""
    frees_hidden: bool
    """True if the backward pass frees a hidden state after the mixture that read it first, and keeps its
    gradient from the time the last mixture that read it is differentiated. Otherwise all gradients are kept
    until the end."""


ENCODER = (
    Tensor("rows of the embedding", "B T D"),
    Tensor("statistics of their norm", "2B T", 4),
    Tensor("dropout", "B T D", "noise", "dropout"),
    Tensor("statistics of the relative embedding's norm", "2P", 4),
    Tensor("relative embedding", "P D", needs="no attention dropout"),
)
HIDDEN = Tensor("output of the embedding or of a layer", "B T D")
HEAD = (
    Tensor("positions of its rows", "R", 8),
    Tensor("encoder's output at the predicted tokens", "R D"),
    Tensor("statistics of its norm", "2R", 4),
    Tensor("normalized", "R D"),
    Tensor("before GELU", "R D"),
    Tensor("after GELU", "R D"),
    Tensor("statistics of its norm", "2R", 4),
    Tensor("dropout", "R D", "noise", "dropout"),
    Tensor("input of the output matrix", "R D"),
)
_ATTENTION_IN = (
    Tensor("mixture x", "B T D"),
    Tensor("statistics of LN(x)", "2B T", 4),
    Tensor("z = LN(x)", "B T D"),
    Tensor("dropout of the relative embedding", "P D", needs="attention dropout"),
    Tensor("relative embedding after dropout", "P D", needs="attention dropout"),
)
_FEED_FORWARD_IN = (
    Tensor("context, input of the output projection", "B T D"),
    Tensor("output projection", "B T D"),
    Tensor("statistics of LN*", "2B T", 4),
)
_NORMALIZED = (
    Tensor("layer's output before its norm", "B T D", needs="normalized"),
    Tensor("statistics of its norm", "2B T", 4, "normalized"),
)

PLAIN = Table(
    layer=(
        *_ATTENTION_IN,
        Tensor("q and k, once for each product of each", "4B T D"),
        Tensor("relative q and k, for every sequence", "2B P D"),
        Tensor("products with the relative ones", "2B H T P"),
        Tensor("bucket of every pair", "T T", 8),
        Tensor("attention mask of every pair", "B T T", 1),
        Tensor("probabilities", "B H T T"),
        Tensor("dropout of the probabilities", "B H T T", "noise", "attention dropout"),
        Tensor("probabilities after masking and dropout", "B H T T"),
        Tensor("v", "B T D"),
        *_FEED_FORWARD_IN,
        Tensor("dropout", "B T D", "noise", "attention dropout"),
        Tensor("input of the feed-forward", "B T D"),
        Tensor("statistics of its norm", "2B T", 4),
        Tensor("normalized, input of W_1", "B T D"),
        Tensor("output of W_1", "B T 2M"),
        Tensor("GELU of the gate", "B T M"),
        Tensor("value * GELU(gate)", "B T M"),
        Tensor("statistics of its norm", "2B T", 4),
        Tensor("input of W_2", "B T M"),
        Tensor("dropout", "B T D", "noise", "dropout"),
        *_NORMALIZED,
    ),
    layer_work=(
        Tensor("gradients of both halves of W_1's output, each as wide as both", "2B T 2M"),
        Tensor("gradient of the inner norm's input", "B T M"),
    ),
    loss=(Tensor("logarithms of the probabilities", "N V", 4),),
    loss_work=(Tensor("gradient of the logits", "N V", 4),),
    frees_hidden=True,
)
_FUSED = Table(
    layer=(
        *_ATTENTION_IN,
        Tensor("q and k", "2B T D"),
        Tensor("v", "B T D"),
        Tensor("relative q and k", "2P D"),
        *_FEED_FORWARD_IN,
        Tensor("input of the feed-forward", "B T D"),
        Tensor("statistics of its norm", "2B T", 4),
        Tensor("normalized, input of W_1", "B T D"),
        Tensor("output of W_1", "B T 2M"),
        Tensor("statistics of the inner norm", "2B T", 4),
        Tensor("input of W_2", "B T M"),
        *_NORMALIZED,
    ),
    layer_work=(
        Tensor("gradient of W_1's output", "B T 2M"),
        Tensor("gradient of W_2's input", "B T M"),
    ),
    loss=(Tensor("logits", "R V"), Tensor("logarithms of the sums", "2N", 4)),
    loss_work=(Tensor("gradient of the logits", "N V"),),
    frees_hidden=False,
)
FUSED_CPU = replace(_FUSED, layer=(*_FUSED.layer, Tensor("probabilities", "B H T T")))
FUSED_GPU = replace(_FUSED, layer=(*_FUSED.layer, Tensor("logarithms of the sums of scores", "B H T", 4)))


def table_for(kernels: Kernels, on_cpu: bool) -> Table:
    """Return the table of the kernels on a CPU or GPU."""
    return PLAIN if kernels == "plain" else FUSED_CPU if on_cpu else FUSED_GPU


@dataclass(frozen=True)
class Workload:
    """One micro-batch on one device."""

    model: ModelConfig
    sequences: int
    """Number of sequences, B."""
    tokens: int
    """Number of tokens of a sequence, T."""
    predicted: int
    """Number of predicted tokens, N."""
    compute_bytes: int
    """Bytes of an element of the activations."""
    on_cpu: bool
    kernels: Kernels
    checkpointing: bool = False
    """True if layers are recomputed in the backward pass."""

    @property
    def table(self) -> Table:
        """Tensors that the kernels keep."""
        return table_for(self.kernels, self.on_cpu)

    def bytes_of(self, tensors: Iterable[Tensor]) -> int:
        """Return the bytes of those tensors that this model has."""
        return sum(self._bytes(tensor) for tensor in tensors if self._has(tensor.needs))

    def _bytes(self, tensor: Tensor) -> int:
        noise = 0 if self.kernels == "fused" else self.compute_bytes if self.on_cpu else 1
        sizes = {"compute": self.compute_bytes, "noise": noise}
        return self._numel(tensor.shape) * (
            sizes[tensor.size] if isinstance(tensor.size, str) else tensor.size
        )

    def _numel(self, shape: str) -> int:
        model = self.model
        letters = {
            "B": self.sequences,
            "T": self.tokens,
            "D": model.hidden_size,
            "H": model.num_attention_heads,
            "K": model.hidden_size // model.num_attention_heads,
            "M": model.intermediate_size,
            "N": self.predicted,
            "R": head_rows(self.predicted, "cpu" if self.on_cpu else "cuda"),
            "V": model.vocab_size,
            "P": 2 * model.position_bucket_size - 1,
        }
        product = 1
        for word in shape.split():
            product *= int(word[:-1] or 1) * letters[word[-1]]
        return product

    def _has(self, needs: str) -> bool:
        return {
            "": True,
            "dropout": self.model.hidden_dropout_prob > 0,
            "attention dropout": self.model.attention_probs_dropout_prob > 0,
            "no attention dropout": self.model.attention_probs_dropout_prob == 0,
            "normalized": self.model.variant == "normalized",
        }[needs]


@dataclass(frozen=True)
class Activations:
    """Bytes of one micro-batch at the worst moment of its backward pass."""

    layers: int
    """Tensors that layers keep, without their inputs."""
    hidden: int
    """Outputs of the embedding and of all layers, and the gradients of them that exist at that moment."""
    ends: int
    """Tensors that embedding and head keep."""
    logits: int
    """Tensors that the loss keeps, and the gradient of the logits."""
    work: int
    """Temporaries of a layer's backward pass."""
    gradients: int
    """Gradients of the parameters of all layers that the backward pass has already finished."""

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return self.layers + self.hidden + self.ends + self.logits + self.work + self.gradients


def saved_bytes(load: Workload) -> int:
    """Return the bytes that are kept when the forward pass ends."""
    model, table = load.model, load.table
    layers = 0 if load.checkpointing else model.num_hidden_layers * load.bytes_of(table.layer)
    # Only ``weighted_output`` reads the last layer's output again, in its final mixture.
    hidden = model.num_hidden_layers + (model.variant == "weighted_output")
    others = load.bytes_of([*ENCODER, *HEAD, *table.loss])
    return layers + hidden * load.bytes_of([HIDDEN]) + others


def peak_of_backward(load: Workload, layer_gradients: int, head_gradients: int) -> Activations:
    """Return the peak of a backward pass, which goes from the last layer to the first.

    Args:
        load: One micro-batch.
        layer_gradients: Bytes of gradients that one layer's parameters add in the backward pass.
        head_gradients: Bytes of gradients that the head adds, including the output matrix.
    """
    model, table = load.model, load.table
    count = model.num_hidden_layers
    layer, hidden = load.bytes_of(table.layer), load.bytes_of([HIDDEN])
    ends = load.bytes_of([*ENCODER, *HEAD])
    moments = [
        Activations(
            layers=0 if load.checkpointing else count * layer,
            hidden=count * hidden,
            ends=ends,
            logits=load.bytes_of(table.loss) + load.bytes_of(table.loss_work),
            work=0,
            gradients=0,
        )
    ]
    for number in reversed(range(count)):
        last = number == count - 1
        # A recomputed layer has no later hidden states.
        kept = number + 1 if table.frees_hidden or load.checkpointing else count
        gradients = 1 if last else number + 1 if table.frees_hidden else count - 1 - number
        moments.append(
            Activations(
                layers=layer if load.checkpointing else (number + 1) * layer,
                hidden=(kept + gradients) * hidden,
                ends=ends - load.bytes_of(HEAD),
                logits=0,
                work=load.bytes_of(table.layer_work),
                gradients=head_gradients + (count - 1 - number) * layer_gradients,
            )
        )
    return max(moments, key=lambda moment: moment.total)
