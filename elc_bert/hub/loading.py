"""Any model that this project can read: of its runs, of its exports, of the reference."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from elc_bert.checkpoint.load_model import load_checkpoint_model, newest_checkpoint
from elc_bert.config.reader import describe
from elc_bert.config.schema import ModelConfig
from elc_bert.hub.reference import config_of_tensors, our_parameters, read_tensors, variant_of
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.model.from_tensors import model_from_tensors
from elc_bert.utils.errors import UserError

WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.bin")
#: Names that exports give to parameters, and the model's own.
EXPORTED = {"head.bias": "head.decoder.bias"}


@dataclass(frozen=True)
class Loaded:
    """A model and what is known of it."""

    model: ElcBertForMaskedLM
    """float32 on the CPU, in evaluation mode."""
    tokenizer: Path | None
    """Its tokenizer file, if one is known."""
    checkpoint: Path | None = None
    """Of a run of this project: the directory of the checkpoint."""


def load_model(path: Path, variant: str | None = None, config: Path | None = None) -> Loaded:
    """Read a model without running code that comes with it.

    Args:
        path: a run (its newest checkpoint), a checkpoint's directory, a folder in Hugging Face format that
            this project exported or that holds a published ELC-BERT, or a checkpoint of the reference.
        variant: which it must be; of a model of the reference's the tensors do not always tell.
        config: JSON file with the sizes of a model of the reference's, if it does not lie beside it.

    Raises:
        UserError: none of these, incomplete or damaged.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or directory; give a run, a checkpoint or an exported model")
    run = (path / "checkpoints").is_dir()
    if path.is_dir() and (run or (path / "model.json").is_file()):
        checkpoint = newest_checkpoint(path) if run else path
        model = load_checkpoint_model(checkpoint)
        if variant not in (None, model.config.variant):
            raise UserError(f"{checkpoint}: the variant is {model.config.variant}, not {variant}")
        return Loaded(model, _tokenizer_of_run(checkpoint), checkpoint)
    weights = path if path.is_file() else _weights_file(path)
    config = config or (weights.parent / "config.json" if path.is_dir() else None)
    content = _read_json(config) if config is not None and config.is_file() else {}
    tokenizer = weights.parent / "tokenizer.json"
    tensors = read_tensors(weights)
    if content.get("model_type") == "elc-bert":
        if variant not in (None, content.get("variant")):
            raise UserError(f"{config}: the variant is {content.get('variant')}, not {variant}")
        parameters = {EXPORTED.get(name, name): tensor for name, tensor in tensors.items()}
        model_config = _model_config(content, config)
    else:
        parameters = our_parameters(tensors, weights)
        said = variant_of(parameters, variant, weights)
        if content:
            model_config = _model_config({**content, "variant": said}, config)
        else:
            model_config = config_of_tensors(tensors, parameters, said)
        tied = parameters.pop("head.decoder.weight", None)
        if tied is not None and not tied.equal(parameters["encoder.embedding.word.weight"]):
            raise UserError(f"{weights}: the head's last matrix is not the word embedding; it must be")
    model = model_from_tensors(model_config, parameters, weights, "its configuration")
    return Loaded(model, tokenizer if tokenizer.is_file() else None)


def _weights_file(folder: Path) -> Path:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{folder}: holds no model: neither {', '.join(WEIGHTS)} nor checkpoints; give a run, a checkpoint "
        "or an exported model"
    )


def _tokenizer_of_run(checkpoint: Path) -> Path | None:
    """The tokenizer that the run's configuration names, if it is still there."""
    try:
        record = json.loads((checkpoint / "run.json").read_text(encoding="utf-8"))
        path = Path(record["config"]["elc_bert"]["data"]["tokenizer"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return path if path.is_file() else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not the configuration of a model: no JSON object")
    return content


def _model_config(content: dict[str, Any], path: Path | None) -> ModelConfig:
    """What of a configuration in Hugging Face format is a model's; the rest is for its library."""
    sizes = {name: content[name] for name in ModelConfig.model_fields if name in content}
    missing = [
        name
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        if name not in sizes
    ]
    if missing:
        raise UserError(f"{path}: lacks {missing[0]}; give the config.json of the model")
    try:
        return ModelConfig.model_validate(sizes)
    except ValidationError as error:
        raise UserError(f"{path}: {describe(error, ModelConfig)}") from None
