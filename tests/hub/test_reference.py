"""Checkpoints of the reference implementation, and invalid files."""

import argparse
import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from elc_bert.hub.loading import load_model
from elc_bert.utils.errors import UserError
from tests.hub.test_export import reference_parameters
from tests.support.golden_model import VARIANTS, GoldenModel


def training_checkpoint(variant: str, path: Path, prefix: str = "", **changes) -> Path:
    """Write a checkpoint as the reference does, and a file of its sizes (the head size is 8, not 64)."""
    parameters, config = reference_parameters(variant)
    parameters["classifier.nonlinearity.5.weight"] = parameters["embedding.word_embedding.weight"]
    for layer in range(4):
        parameters[f"transformer.layers.{layer}.attention.position_indices"] = torch.zeros(
            64, 64, dtype=torch.int64
        )
    parameters |= changes
    content = {
        "model": {prefix + name: tensor for name, tensor in parameters.items() if tensor is not None},
        "optimizer": {"state": {0: {"step": 3}}},
        "global_step": 31250,
        "args": argparse.Namespace(seed=42, input_path="/data/babylm"),
    }
    torch.save(content, path)
    path.with_name("sizes.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_training_checkpoint_gives_the_logits_of_the_reference(variant, prefix, tmp_path):
    path = training_checkpoint(variant, tmp_path / "model.bin", prefix)
    given = None if variant == "weighted_output" else variant
    loaded = load_model(path, given, tmp_path / "sizes.json")
    golden = GoldenModel(variant)
    assert loaded.model.config == golden.config
    with torch.no_grad():
        logits = loaded.model(golden.input_ids, golden.attention_mask, golden.positions)
    assert (logits - golden.logits).abs().max() <= 2e-5


def test_sizes_are_inferred_from_the_tensors(tmp_path):
    path = training_checkpoint("weighted_output", tmp_path / "model.bin")
    config = load_model(path).model.config
    expected = GoldenModel("weighted_output").config
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size"):
        assert getattr(config, name) == getattr(expected, name)
    assert config.position_bucket_size == expected.position_bucket_size
    assert config.max_position_embeddings == expected.max_position_embeddings


def test_a_variant_that_the_file_does_not_determine_must_be_given(tmp_path):
    path = training_checkpoint("zero", tmp_path / "model.bin")
    with pytest.raises(UserError, match=r"model\.bin: .*base, zero and normalized .*--variant"):
        load_model(path)
    with pytest.raises(UserError, match=r"model\.bin: has no output layer weights.*weighted_output"):
        load_model(path, "weighted_output")
    path = training_checkpoint("weighted_output", tmp_path / "model.bin")
    with pytest.raises(UserError, match=r"model\.bin: has output layer weights.*zero"):
        load_model(path, "zero")


class Command:
    """An object that runs a shell command when it is unpickled."""

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_code_in_a_pickle_is_not_run(tmp_path):
    command = Command()
    command.path = tmp_path / "ran"
    for save in (torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))):
        save({"model": {"embedding.word_embedding.weight": command}}, tmp_path / "model.bin")
        with pytest.raises(UserError, match=r"model\.bin: not loaded: .* only tensors") as error:
            load_model(tmp_path / "model.bin", "zero")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("missing", ["embedding.relative_embedding", "classifier.nonlinearity.1.bias"])
def test_a_missing_tensor_is_reported(missing, tmp_path):
    path = training_checkpoint("zero", tmp_path / "model.bin", **{missing: None})
    with pytest.raises(UserError, match=r"model\.bin: lacks .*; use files of the same model"):
        load_model(path, "zero", tmp_path / "sizes.json")


def test_invalid_files_are_reported(tmp_path):
    path = training_checkpoint("zero", tmp_path / "model.bin", extra=torch.zeros(2))
    with pytest.raises(UserError, match="holds extra, "):
        load_model(path, "zero", tmp_path / "sizes.json")
    path = training_checkpoint(
        "zero", tmp_path / "model.bin", **{"classifier.nonlinearity.5.weight": torch.zeros(96, 24)}
    )
    with pytest.raises(UserError, match="last matrix of the head differs from the word embedding"):
        load_model(path, "zero", tmp_path / "sizes.json")
    layers = {f"transformer.layers.{layer}.prev_layer_weights": None for layer in range(4)}
    path = training_checkpoint("zero", tmp_path / "model.bin", **layers)
    with pytest.raises(UserError, match="it has no layer weights"):
        load_model(path, "zero")
    torch.save({"model": {"bert.embeddings.weight": torch.zeros(3, 2)}}, tmp_path / "model.bin")
    with pytest.raises(UserError, match="not a model of the reference implementation"):
        load_model(tmp_path / "model.bin")
    torch.save([1, 2], tmp_path / "model.bin")
    with pytest.raises(UserError, match="neither a dict of tensors"):
        load_model(tmp_path / "model.bin")
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"model\.bin: "):
        load_model(tmp_path / "model.bin")
    with pytest.raises(UserError, match="no such file"):
        load_model(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="contains no model"):
        load_model(tmp_path / "empty")
    whole = training_checkpoint("zero", tmp_path / "model.bin").read_bytes()
    (tmp_path / "model.bin").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"model\.bin: .*"):
        load_model(tmp_path / "model.bin", "zero")
