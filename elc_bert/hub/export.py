"""Export of a model as a folder that Hugging Face transformers loads."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.processors import ByteLevel, Sequence, TemplateProcessing

from elc_bert.data.format.text_with_masks import accept_special_tokens
from elc_bert.data.format.tokenizer_identity import origin_of
from elc_bert.data.format.vocabulary import SpecialNames, load_tokenizer, special_tokens
from elc_bert.hub.card import CardMetadata, facts_of_checkpoint, model_card
from elc_bert.hub.loading import EXPORTED, SPECIAL_NAMES
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.model.loaded import LoadedModel
from elc_bert.utils.errors import UserError
from elc_bert.utils.files import sync_directory
from elc_bert.utils.tensor_files import write_tensors

FILES = Path(__file__).with_name("files")
"""Folder of the model's code for transformers. It is self-contained: exports do not need this project."""
CODE = ("configuration_elc_bert.py", "modeling_elc_bert.py")
"""Files of ``FILES`` that are copied into each export."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Dtypes of the exported weights, by the name of the option."""
CLASSES = {
    "AutoModel": "ElcBertModel",
    **{
        f"AutoModelFor{task}": f"ElcBertFor{task}"
        for task in (
            "MaskedLM",
            "SequenceClassification",
            "TokenClassification",
            "QuestionAnswering",
            "MultipleChoice",
        )
    },
}
"""Classes in ``modeling_elc_bert.py``, by the auto class of transformers that loads them."""


def export(
    loaded: LoadedModel,
    tokenizer: Path,
    folder: Path,
    dtype: str = "fp32",
    force: bool = False,
    facts: Mapping[str, str] | None = None,
    metadata: CardMetadata | None = None,
) -> None:
    """Write a model, its tokenizer, its code and its card.

    A new folder appears complete or not at all. In an existing one, the files of the earlier export are
    replaced one by one, and all others stay.

    Args:
        loaded: The model.
        tokenizer: Tokenizer file of the model.
        folder: Folder to write.
        dtype: Dtype of the weights, ``fp32`` or ``bf16``.
        force: Whether to replace the files of an earlier export.
        facts: Facts about the run for the card; None to read them from the files of the checkpoint's run.
        metadata: What only the user knows about the model, for the card.

    Raises:
        UserError: The folder exists or cannot be written, the tokenizer does not fit the model, or a weight
            is not finite.
    """
    loaded_tokenizer = load_tokenizer(tokenizer, loaded.special_names)
    config = loaded.model.config
    if loaded_tokenizer.get_vocab_size() > config.vocab_size:
        raise UserError(
            f"{tokenizer}: has {loaded_tokenizer.get_vocab_size()} subwords, but the model has "
            f"{config.vocab_size}; give the tokenizer that the model was trained with"
        )
    for name, parameter in loaded.model.named_parameters():
        if not parameter.isfinite().all():
            raise UserError(
                f"{folder}: not written, because {name} of the model holds NaN or infinite weights; export "
                "an earlier checkpoint"
            )
    check_target(folder, force)
    if facts is None:
        facts = {} if loaded.checkpoint is None else facts_of_checkpoint(loaded.checkpoint)
    target = folder.resolve()
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        _write_files(loaded, loaded_tokenizer, partial, dtype)
        _record_origin(tokenizer, partial)
        name = folder.resolve().name
        mask = loaded.special_names.mask
        model_card(loaded.model, partial, name, dtype, facts, metadata or CardMetadata(), mask)
        for path in partial.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        sync_directory(partial)
        if folder.is_dir():
            # Without config.json, a folder that an interruption leaves half replaced cannot be loaded.
            (folder / "config.json").unlink(missing_ok=True)
            for path in sorted(partial.iterdir(), key=lambda path: path.name == "config.json"):
                os.replace(path, folder / path.name)
            sync_directory(folder)
        else:
            os.replace(partial, folder)
            sync_directory(folder.parent)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error}; choose another folder") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_target(folder: Path, force: bool) -> None:
    """Check that writing to a folder does not overwrite anything by mistake.

    Args:
        folder: Folder to be written.
        force: Whether an earlier export may be replaced.

    Raises:
        UserError: The folder is not empty and must not be replaced.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    is_export = folder.is_dir() and all((folder / name).is_file() for name in ("config.json", *CODE))
    if not is_export:
        raise UserError(f"{folder}: exists and is not an earlier export; choose another folder")
    if not force:
        raise UserError(f"{folder}: exists; choose another folder, or replace the export in it with --force")


def _write_files(loaded: LoadedModel, tokenizer: Tokenizer, folder: Path, dtype: str) -> None:
    special = special_tokens(tokenizer, loaded.special_names)
    config = {
        "architectures": ["ElcBertForMaskedLM"],
        "model_type": "elc-bert",
        # transformers before 4.54 finds the tokenizer of an unknown type of model only by this entry.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "auto_map": {
            "AutoConfig": "configuration_elc_bert.ElcBertConfig",
            **{auto: f"modeling_elc_bert.{name}" for auto, name in CLASSES.items()},
        },
        **loaded.model.config.model_dump(mode="json"),
        "pad_token_id": special.pad,
        "cls_token_id": special.cls,
        "sep_token_id": special.sep,
        "mask_token_id": special.mask,
        "torch_dtype": str(DTYPES[dtype]).removeprefix("torch."),
    }
    _write_json(folder / "config.json", config)
    write_tensors(_weights(loaded.model, DTYPES[dtype]), folder / "model.safetensors", {"format": "pt"})
    for name in CODE:
        shutil.copyfile(FILES / name, folder / name)
    max_length = loaded.model.config.max_position_embeddings
    _write_tokenizer(tokenizer, loaded.special_names, folder, max_length)


def _weights(model: ElcBertForMaskedLM, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the parameters under the names that exports use."""
    names = {name: exported for exported, name in EXPORTED.items()}
    return {
        names.get(name, name): tensor.detach().to(dtype).contiguous()
        for name, tensor in model.named_parameters()
    }


def _write_tokenizer(tokenizer: Tokenizer, names: SpecialNames, folder: Path, max_length: int) -> None:
    """Write a tokenizer that adds ``[CLS]`` and ``[SEP]`` to each text, in which special tokens may occur."""
    special = special_tokens(tokenizer, names)
    tokenizer = accept_special_tokens(tokenizer)
    template = TemplateProcessing(
        single=f"{names.cls} $A {names.sep}",
        pair=f"{names.cls} $A {names.sep} $B:1 {names.sep}:1",
        special_tokens=[(names.cls, special.cls), (names.sep, special.sep)],
    )
    # The first step leaves the space in front of a word out of the word's offsets.
    tokenizer.post_processor = Sequence([ByteLevel(trim_offsets=True), template])
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    tokens = {f"{role}_token": getattr(names, role) for role in ("unk", "cls", "sep", "pad", "mask")}
    _write_json(folder / "special_tokens_map.json", tokens)
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": max_length,
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
            # transformers has no names for all roles.
            SPECIAL_NAMES: asdict(names),
            **tokens,
        },
    )


def _record_origin(tokenizer: Path, folder: Path) -> None:
    """Record the tokenizer file that an export was made from, so that its datasets are recognised."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    _write_json(path, settings | origin_of(tokenizer))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
