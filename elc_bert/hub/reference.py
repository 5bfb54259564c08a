"""The reference implementation's checkpoints, and the models that were published from it.

Its training checkpoints are pickles of ``{"model": tensors, "args": argparse.Namespace, ...}``. Published
models are Hugging Face folders of ``model_type: ltgbert``. Both have the same names of tensors, sometimes
behind a prefix.
"""

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from elc_bert.config.schema import ModelConfig
from elc_bert.utils.errors import UserError

#: Parts of the reference's names and ours, applied in this order.
RENAMED = {
    "transformer.prev_layer_weights": "encoder.output_mixture.weights",
    "transformer.layers": "encoder.layers",
    "prev_layer_weights": "mixture.weights",
    "attention.in_proj_qk": "attention.query_key",
    "attention.in_proj_v": "attention.value",
    "attention.out_proj": "attention.output",
    "attention.post_layer_norm": "attention.post_norm",
    "mlp.mlp.1": "feed_forward.expand",
    "mlp.mlp.4": "feed_forward.contract",
    "classifier.nonlinearity.1": "head.dense",
    "classifier.nonlinearity.5": "head.decoder",
    "embedding.relative_embedding": "encoder.embedding.relative",
    "embedding.relative_layer_norm": "encoder.embedding.relative_norm",
    "embedding.word_embedding": "encoder.embedding.word",
}
WORDS = "embedding.word_embedding.weight"
POSITIONS = "position_indices"
HEAD_SIZE = 64
"""Of both published sizes; the tensors do not tell the number of heads."""


def our_name(name: str) -> str:
    """The name of a parameter of the reference, without prefix, in this project."""
    for theirs, ours in RENAMED.items():
        name = name.replace(theirs, ours)
    return name


def our_parameters(tensors: Mapping[str, Tensor], origin: Path) -> dict[str, Tensor]:
    """The reference's parameters under our names; what is computed from the config is left out.

    Raises:
        UserError: no model of the reference's, or one without layer mixing.
    """
    prefix = next((name.removesuffix(WORDS) for name in tensors if name.endswith(WORDS)), None)
    if prefix is None:
        raise UserError(f"{origin}: no model of the reference implementation: it has no {WORDS}")
    plain = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    plain = {name: tensor for name, tensor in plain.items() if not name.endswith(POSITIONS)}
    if not any(name.endswith("prev_layer_weights") for name in plain):
        raise UserError(
            f"{origin}: an LTG-BERT without layer weights (prev_layer_weights), whose residuals no variant "
            "of ELC-BERT has; give an ELC-BERT"
        )
    return {our_name(name): tensor for name, tensor in plain.items()}


def variant_of(parameters: Mapping[str, Tensor], said: str | None, origin: Path) -> str:
    """The variant, as far as tensors tell it, else as the user says.

    Args:
        parameters: under our names.
        said: by the user, if at all.

    Raises:
        UserError: the user must say it, or said what cannot be.
    """
    weighted = "encoder.output_mixture.weights" in parameters
    if said is None and not weighted:
        raise UserError(
            f"{origin}: base, zero and normalized have the same tensors; say which it is by --variant"
        )
    if said is not None and (said == "weighted_output") != weighted:
        has = "has" if weighted else "has no"
        raise UserError(f"{origin}: {has} weights for the output, so it is not of variant {said}")
    return said or "weighted_output"


def config_of_tensors(
    tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor], variant: str
) -> ModelConfig:
    """The model that tensors belong to: sizes by their shapes, heads of 64, the rest as published.

    Args:
        tensors: of the checkpoint; a table of positions among them tells how far these reach.
        parameters: the same under our names.
    """
    vocabulary, d = parameters["encoder.embedding.word.weight"].shape
    layers = sum(name.endswith(".mixture.weights") for name in parameters)
    table = next((tensor for name, tensor in tensors.items() if name.endswith(POSITIONS)), None)
    return ModelConfig(
        variant=variant,
        vocab_size=vocabulary,
        hidden_size=d,
        num_hidden_layers=layers,
        num_attention_heads=max(1, d // HEAD_SIZE),
        intermediate_size=parameters["encoder.layers.0.feed_forward.contract.weight"].shape[1],
        position_bucket_size=(len(parameters["encoder.embedding.relative"]) + 1) // 2,
        **({} if table is None else {"max_position_embeddings": len(table)}),
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The model's tensors in a safetensors file or a pickle, which runs no code.

    Raises:
        UserError: unreadable, damaged, or a pickle of more than tensors, plain values and a Namespace.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # The reference saves its command line beside the tensors; the class holds plain values only.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Torch's advice is to unpickle in full, which is no good one for a file from the internet.
        wanted = str(error).partition("GLOBAL ")[2].split(" ")[0]
        what = f"it wants {wanted}" if wanted else "it is damaged, or no checkpoint of PyTorch's"
        raise UserError(
            f"{path}: not loaded: {what}, and only tensors, plain values and argparse.Namespace are; save "
            "its tensors alone"
        ) from None
    except (SafetensorError, RuntimeError, EOFError, ValueError, LookupError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: damaged: {reason}; fetch it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or 'no such file'}") from None
    tensors = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(each, Tensor) for each in tensors.values()):
        raise UserError(f'{path}: neither tensors by name nor a dict with these under "model"')
    return tensors
