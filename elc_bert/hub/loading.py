"""Loading of models from runs, from exports and from the reference implementation."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from elc_bert.checkpoint.files import path_in_run
from elc_bert.checkpoint.load_model import load_checkpoint_model, newest_checkpoint
from elc_bert.config.reader import describe
from elc_bert.config.schema import ModelConfig
from elc_bert.data.format.vocabulary import ROLES, SpecialNames
from elc_bert.hub.reference import convert_parameters, infer_config, infer_variant, read_tensors
from elc_bert.model.from_tensors import model_from_tensors
from elc_bert.model.loaded import LoadedModel
from elc_bert.utils.errors import UserError

WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.bin")
"""Names of weight files that are looked for in a folder, in this order."""
EXPORTED = {"head.bias": "head.decoder.bias"}
"""Parameter names that differ between exports (keys) and the training model (values)."""
SPECIAL_NAMES = "elc_bert_special_tokens"
"""Key of an export's ``tokenizer_config.json`` with the names of all special tokens by role."""


def load_model(path: Path, variant: str | None = None, config: Path | None = None) -> LoadedModel:
    """Load a model without running any code that comes with it.

    Args:
        path: A run (its newest checkpoint is loaded), the directory of a checkpoint, a Hugging Face folder
            that this project exported or that contains a published ELC-BERT, or a checkpoint file of the
            reference implementation.
        variant: Variant of the model. It is needed for models of the reference implementation, whose tensors
            do not always determine it; for other models it is only checked.
        config: JSON file with the sizes of a model of the reference implementation; None to use a
            ``config.json`` in the model's folder, if there is one.

    Raises:
        UserError: ``path`` is none of these, or the files are incomplete or damaged.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or directory; give a run, a checkpoint or an exported model")
    run = (path / "checkpoints").is_dir()
    if path.is_dir() and (run or (path / "model.json").is_file()):
        checkpoint = newest_checkpoint(path) if run else path
        model = load_checkpoint_model(checkpoint)
        if variant not in (None, model.config.variant):
            raise UserError(
                f"{checkpoint}: the variant is {model.config.variant}, not {variant}; "
                f"request {model.config.variant}"
            )
        return LoadedModel(
            model, _tokenizer_of_run(checkpoint), checkpoint, _special_names_of_run(checkpoint)
        )
    weights = path if path.is_file() else _weights_file(path)
    config = config or (weights.parent / "config.json" if path.is_dir() else None)
    content = _read_json(config) if config is not None and config.is_file() else {}
    tokenizer = weights.parent / "tokenizer.json"
    tensors = read_tensors(weights)
    if content.get("model_type") == "elc-bert":
        if variant not in (None, content.get("variant")):
            raise UserError(
                f"{config}: the variant is {content.get('variant')}, not {variant}; "
                f"request {content.get('variant')}"
            )
        parameters = {EXPORTED.get(name, name): tensor for name, tensor in tensors.items()}
        model_config = _model_config(content, config)
    else:
        parameters = convert_parameters(tensors, weights)
        variant = infer_variant(parameters, variant, weights)
        if content:
            model_config = _model_config({**content, "variant": variant}, config)
        else:
            model_config = infer_config(tensors, parameters, variant)
        tied = parameters.pop("head.decoder.weight", None)
        if tied is not None and not tied.equal(parameters["encoder.embedding.word.weight"]):
            raise UserError(
                f"{weights}: the last matrix of the head differs from the word embedding; give a model whose "
                "head shares the embedding"
            )
    model = model_from_tensors(model_config, parameters, weights, "its configuration")
    names = _special_names_of_folder(weights.parent)
    return LoadedModel(model, tokenizer if tokenizer.is_file() else None, special_names=names)


def _weights_file(folder: Path) -> Path:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{folder}: contains no model (none of {', '.join(WEIGHTS)}, and no checkpoints); give a run, a "
        "checkpoint or an exported model"
    )


def _tokenizer_of_run(checkpoint: Path) -> Path | None:
    """Return the tokenizer in the run's configuration, if the file still exists."""
    try:
        record = json.loads((checkpoint / "run.json").read_text(encoding="utf-8"))
        settings = record["config"]["elc_bert"]
        path = path_in_run(
            checkpoint.parent.parent, settings["training"]["output_dir"], settings["data"]["tokenizer"]
        )
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return path if path.is_file() else None


def _special_names_of_run(checkpoint: Path) -> SpecialNames:
    """Return the names of the special tokens in the run's configuration."""
    try:
        record = json.loads((checkpoint / "run.json").read_text(encoding="utf-8"))
        names = record["config"]["elc_bert"]["data"]["special_tokens"]
        return SpecialNames(**names)
    except (OSError, ValueError, LookupError, TypeError):
        return SpecialNames()  # runs of early versions do not record them


def _special_names_of_folder(folder: Path) -> SpecialNames:
    """Return the names of the special tokens in the tokenizer's settings of a Hugging Face folder."""
    paths = (folder / "special_tokens_map.json", folder / "tokenizer_config.json")
    content = {key: value for path in paths if path.is_file() for key, value in _read_json(path).items()}
    if isinstance(recorded := content.get(SPECIAL_NAMES), dict) and set(recorded) == set(ROLES):
        return SpecialNames(**recorded)
    found = {role: content.get(f"{role}_token") for role in ("unk", "cls", "sep", "pad", "mask")}
    names = {role: name["content"] if isinstance(name, dict) else name for role, name in found.items()}
    return SpecialNames(**{role: name for role, name in names.items() if isinstance(name, str)})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror}; give the config.json of the model"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}; give the config.json of the model") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object; give the config.json of the model")
    return content


def _model_config(content: dict[str, Any], path: Path | None) -> ModelConfig:
    """Return the model's part of a configuration in Hugging Face format; the rest is for transformers."""
    sizes = {name: content[name] for name in ModelConfig.model_fields if name in content}
    missing = [
        name
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        if name not in sizes
    ]
    if missing:
        raise UserError(f"{path}: {missing[0]} is missing; give the config.json of the model")
    try:
        return ModelConfig.model_validate(sizes)
    except ValidationError as error:
        raise UserError(f"{path}: {describe(error, ModelConfig)}") from None
