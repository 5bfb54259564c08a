"""New runs that start from the weights of an existing model."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from elc_bert.checkpoint.load_model import newest_checkpoint
from elc_bert.config.reader import load_config
from elc_bert.hub.export import export
from elc_bert.hub.loading import load_model
from elc_bert.training.setup import initial_model
from elc_bert.utils.errors import UserError
from tests.support.launching import run, write_config

pytestmark = pytest.mark.launcher


def test_a_run_starts_from_the_weights_of_another(tiny_run, tiny_dataset, tiny_tokenizer, tmp_path):
    origin = newest_checkpoint(tiny_run.directory)
    model = json.loads((origin / "model.json").read_text())
    standing_still = {"type": "Lamb", "params": {"lr": 0.0}}
    changes = {"model": model, "training": {"max_steps": 1}, "optimizer": standing_still}
    config = write_config(tmp_path, tiny_dataset, tiny_tokenizer, **changes)

    result = run("forked", 1, ["--deepspeed_config", config, "--init-from", tiny_run.directory])

    assert result.status == 0, result.output
    assert str(tiny_run.directory) in result.stdout
    weights = load_file(newest_checkpoint(tmp_path / "run") / "model.safetensors")
    for name, tensor in load_file(origin / "model.safetensors").items():
        assert torch.equal(weights[name], tensor), name


def test_a_model_with_another_vocabulary_is_refused(tiny_run, tiny_dataset, tiny_tokenizer, tmp_path):
    weights = newest_checkpoint(tiny_run.directory)
    model = json.loads((weights / "model.json").read_text())
    content = json.loads(tiny_tokenizer.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    one, other, _ = (name for name, number in vocabulary.items() if number > 508)
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    source = tmp_path / "source"
    export(load_model(tiny_run.directory), tiny_tokenizer, source)
    exported = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    exported["model"]["vocab"] = vocabulary
    (source / "tokenizer.json").write_text(json.dumps(exported), encoding="utf-8")
    config = load_config(write_config(tmp_path, tiny_dataset, tiny_tokenizer, model=model))
    with pytest.raises(UserError, match=rf"^--init-from: 2 of the 512 subwords of .* in {source}/tokenizer"):
        initial_model(config, source)
    export(load_model(tiny_run.directory), tiny_tokenizer, source, force=True)
    assert initial_model(config, source).config.vocab_size == 512, "the export has another file"
    (source / "tokenizer.json").unlink()
    assert initial_model(config, source).config.vocab_size == 512, "its vocabulary is unknown"


def test_a_model_of_another_shape_is_refused(tiny_run, tiny_dataset, tiny_tokenizer, tmp_path):
    config = write_config(tmp_path, tiny_dataset, tiny_tokenizer)
    result = run("forked", 1, ["--deepspeed_config", config, "--init-from", tiny_run.directory])
    assert result.status == 1
    assert len(result.errors) == 1
    assert "elc_bert.model.hidden_size: 32 -> 24" in result.errors[0]
    assert not (tmp_path / "run").exists()


def test_a_model_with_nan_is_refused(tiny_run, tiny_dataset, tiny_tokenizer, tmp_path):
    source = tmp_path / "source"
    export(load_model(tiny_run.directory), tiny_tokenizer, source)
    weights = load_file(source / "model.safetensors")
    weights["head.dense.bias"][3] = float("nan")
    save_file(weights, source / "model.safetensors")
    model = json.loads((newest_checkpoint(tiny_run.directory) / "model.json").read_text())
    config = load_config(write_config(tmp_path, tiny_dataset, tiny_tokenizer, model=model))
    with pytest.raises(UserError, match=rf"^{source}/model.safetensors: head.dense.bias holds NaN"):
        initial_model(config, source)
