"""Checkpoints of the reference implementation of ELC-BERT, and the models published with it.

Training checkpoints of the reference are pickles of ``{"model": tensors, "args": argparse.Namespace, ...}``.
Published models are Hugging Face folders with ``model_type: ltgbert``. Both use the same tensor names,
sometimes with a prefix.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from elc_bert.config.schema import ModelConfig
from elc_bert.utils.errors import UserError

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
"""Parts of the reference's parameter names (keys) and this project's (values), replaced in this order."""
WORDS = "embedding.word_embedding.weight"
"""Name of the reference's word embedding, without prefix."""
POSITIONS = "position_indices"
"""End of the names of the reference's tables of position buckets, which are not parameters."""
HEAD_SIZE = 64
"""Attention head size of both published models; the number of heads cannot be inferred from the tensors."""


def convert_name(name: str) -> str:
    """Return this project's name of a reference parameter, whose own name is given without prefix."""
    for reference_part, own_part in RENAMED.items():
        name = name.replace(reference_part, own_part)
    return name


def convert_parameters(tensors: Mapping[str, Tensor], origin: Path) -> dict[str, Tensor]:
    """Return the reference's parameters under this project's names, without the tables of position buckets.

    Args:
        tensors: Tensors of the reference's model, by name.
        origin: File of the tensors, for error messages.

    Raises:
        UserError: The tensors are not those of a reference model, or of one without layer weights.
    """
    prefix = next((name.removesuffix(WORDS) for name in tensors if name.endswith(WORDS)), None)
    if prefix is None:
        raise UserError(
            f"{origin}: not a model of the reference implementation ({WORDS} is missing); give one of its "
            "checkpoints"
        )
    plain = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    plain = {name: tensor for name, tensor in plain.items() if not name.endswith(POSITIONS)}
    if not any(name.endswith("prev_layer_weights") for name in plain):
        raise UserError(
            f"{origin}: this is an LTG-BERT: it has no layer weights (prev_layer_weights); give an ELC-BERT "
            "model"
        )
    return {convert_name(name): tensor for name, tensor in plain.items()}


def infer_variant(parameters: Mapping[str, Tensor], given: str | None, origin: Path) -> str:
    """Return the variant of a model, from its parameters if they determine it, else as given by the user.

    Args:
        parameters: Parameters under this project's names.
        given: Variant given by the user, or None.
        origin: File of the parameters, for error messages.

    Raises:
        UserError: The parameters do not determine the variant and none is given, or they contradict it.
    """
    weighted = "encoder.output_mixture.weights" in parameters
    if given is None and not weighted:
        raise UserError(
            f"{origin}: the variants base, zero and normalized have the same tensors; choose with --variant"
        )
    if given is not None and (given == "weighted_output") != weighted:
        has = "has" if weighted else "has no"
        advice = "request weighted_output" if weighted else "request another variant"
        raise UserError(f"{origin}: {has} output layer weights, so its variant is not {given}; {advice}")
    return given or "weighted_output"


def infer_config(
    tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor], variant: str
) -> ModelConfig:
    """Infer the configuration of a model from the shapes of its tensors.

    Attention heads are assumed to have size 64; values without influence on any shape are as published.

    Args:
        tensors: All tensors of the checkpoint. The length of a table of position buckets, if there is one,
            is ``max_position_embeddings``.
        parameters: Parameters under this project's names.
        variant: Variant of the model.
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
    """Return the model's tensors from a safetensors file or a pickle, without running code in the pickle.

    Args:
        path: The file.

    Raises:
        UserError: The file cannot be read, is damaged, or is a pickle of anything but tensors, plain values
            and ``argparse.Namespace``.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # The reference saves its command-line arguments with the tensors. They are read as a plain namespace.
        with torch.serialization.safe_globals([(SimpleNamespace, "argparse.Namespace")]):
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # PyTorch's message advises weights_only=False, which is unsafe for a file from the internet.
        wanted = str(error).partition("GLOBAL ")[2].split(" ")[0]
        problem = f"it contains {wanted}" if wanted else "it is damaged or not a PyTorch checkpoint"
        raise UserError(
            f"{path}: not loaded: {problem}; only tensors, plain values and argparse.Namespace are allowed; "
            "save only the tensors"
        ) from None
    except (SafetensorError, RuntimeError, EOFError, ValueError, LookupError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: damaged: {reason}; download or copy it again") from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror or 'no such file'}; give a readable file"
        ) from None
    tensors = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(each, Tensor) for each in tensors.values()):
        raise UserError(
            f'{path}: neither a dict of tensors nor a dict with one under "model"; save the state_dict'
        )
    return tensors
