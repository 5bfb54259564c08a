"""Loading the model from the files of a checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from elc_bert.checkpoint.load_model import load_checkpoint_model, newest_checkpoint
from elc_bert.config.schema import ModelConfig
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.utils.errors import UserError

CONFIG = ModelConfig(
    variant="weighted_output",
    vocab_size=60,
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=24,
)


def save(model: ElcBertForMaskedLM, directory: Path) -> Path:
    """Write the two files of a checkpoint that are needed for evaluation."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file({name: p.detach() for name, p in model.named_parameters()}, directory / "model.safetensors")
    (directory / "model.json").write_text(model.config.model_dump_json(), encoding="utf-8")
    return directory


@pytest.fixture
def model() -> ElcBertForMaskedLM:
    torch.manual_seed(5)
    model = ElcBertForMaskedLM(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def test_the_loaded_model_equals_the_saved_one(model: ElcBertForMaskedLM, tmp_path: Path):
    loaded = load_checkpoint_model(save(model, tmp_path))
    assert loaded.config == model.config
    assert not loaded.training
    for (name, ours), (_, theirs) in zip(loaded.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert loaded.head.decoder.weight is loaded.encoder.embedding.word.weight
    ids = torch.randint(7, 60, (2, 9))
    batch = (ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(18))
    assert torch.equal(loaded(*batch), model(*batch))


def test_a_checkpoint_of_a_real_run_loads(tiny_run):
    directory = newest_checkpoint(tiny_run.directory)
    loaded = load_checkpoint_model(directory)
    for name, saved in load_file(directory / "model.safetensors").items():
        assert torch.equal(loaded.get_parameter(name), saved), name


def remove_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def truncate_weights(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def replace_weights(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"not weights at all")


def remove_config(directory: Path) -> None:
    (directory / "model.json").unlink()


def break_config(directory: Path) -> None:
    (directory / "model.json").write_text("{", encoding="utf-8")


def change_config(change: dict):
    def apply(directory: Path) -> None:
        (directory / "model.json").write_text(json.dumps(CONFIG.model_dump() | change), encoding="utf-8")

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_weights, r"model\.safetensors: cannot be read"),
        (truncate_weights, r"model\.safetensors: damaged"),
        (replace_weights, r"model\.safetensors: damaged"),
        (remove_config, r"model\.json: cannot be read: No such file"),
        (break_config, r"model\.json: not valid JSON"),
        (
            change_config({"hidden_sise": 3}),
            r"model\.json: unknown key hidden_sise; did you mean hidden_size",
        ),
        (change_config({"num_hidden_layers": 4}), r"model\.safetensors: lacks encoder\.layers\.3"),
        (
            change_config({"variant": "zero"}),
            r"safetensors: holds encoder\.output_mixture\.weights, which model\.json",
        ),
        (change_config({"vocab_size": 61}), r"has shape \[60, 16\], but model.json asks for \[61, 16\]"),
    ],
)
def test_a_damaged_checkpoint_is_reported_in_one_line(
    damage, message: str, model: ElcBertForMaskedLM, tmp_path: Path
):
    damage(save(model, tmp_path))
    with pytest.raises(UserError, match=message) as caught:
        load_checkpoint_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_newest_checkpoint_is_named_by_latest(tmp_path: Path):
    checkpoints = tmp_path / "checkpoints"
    for step in (200, 400):
        (checkpoints / f"step-{step:06d}").mkdir(parents=True)
    with pytest.raises(UserError, match="checkpoints: no checkpoint"):
        newest_checkpoint(tmp_path)
    (checkpoints / "latest").write_text("step-000200\n", encoding="utf-8")
    assert newest_checkpoint(tmp_path) == checkpoints / "step-000200"
    (checkpoints / "latest").write_text("step-000600", encoding="utf-8")
    with pytest.raises(UserError, match=r"step-000600: missing, .*latest"):
        newest_checkpoint(tmp_path)
