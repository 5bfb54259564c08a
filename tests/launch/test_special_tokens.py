"""A run with a tokenizer whose special tokens have other names and ids, from its dataset to its export."""

import json

import numpy as np
import pytest
from safetensors.torch import load_file
from transformers import AutoTokenizer

from data_tools.build import build_dataset
from elc_bert.config.reader import load_config
from elc_bert.data.format.text_tokenizer import TextTokenizer
from elc_bert.data.sampling.from_config import held_out_from_config
from elc_bert.hub.loading import load_model
from tests.support.angle_tokenizer import ANGLE_NAMES, with_angle_names
from tests.support.launching import REPOSITORY, run

NAMES = {**ANGLE_NAMES.changes(), "par": "<par>"}


@pytest.fixture(scope="module")
def angle(tiny_text, tiny_tokenizer, tmp_path_factory):
    """Folder with a tokenizer, a dataset and a run of two steps."""
    folder = tmp_path_factory.mktemp("angle")
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(with_angle_names(tiny_tokenizer), encoding="utf-8")
    names = type(ANGLE_NAMES).from_mapping(NAMES)
    build_dataset([tiny_text], tokenizer, folder / "d", lengths=[32], names=names, workers=1)
    return folder


@pytest.fixture(scope="module")
def config(angle, configure):
    return configure(
        angle,
        data={
            "train": str(angle / "d"),
            "dev": str(angle / "d"),
            "tokenizer": str(angle / "tokenizer.json"),
            "special_tokens": NAMES,
        },
        training={"max_steps": 2},
        evaluation={"every": 2},
    )


@pytest.fixture(scope="module")
def trained(angle, config):
    result = run("forked", 1, ["--deepspeed_config", config])
    assert result.status == 0, result.output
    return angle / "run"


def test_held_out_sequences_have_the_mapped_special_tokens(config):
    batch = held_out_from_config(load_config(config), micro_batch=16)[0]
    ids = batch.input_ids.numpy()
    assert (ids[:, 0] == 510).all()
    lengths = batch.attention_mask.sum(dim=1).numpy()
    assert (ids[np.arange(16), lengths - 1] == 509).all()
    assert (ids[~batch.attention_mask.numpy()] == 508).all()
    assert (ids.ravel()[batch.positions.numpy()] == 507).any()
    assert not np.isin(batch.targets.numpy(), [506, 507, 508, 509, 510, 511]).any()


@pytest.mark.launcher
def test_the_run_is_evaluated_and_exported_with_its_own_special_tokens(trained, tmp_path):
    evaluate, export = (REPOSITORY / "launch" / f"{name}.py" for name in ("evaluate", "export"))
    loss = run("forked", 1, ["loss", trained, "--output", tmp_path / "loss.json"], script=evaluate)
    assert loss.status == 0, loss.output
    filled = run("forked", 1, ["fill", trained, "Baden <mask> fi."], script=evaluate)
    assert filled.status == 0, filled.output
    wrong = run("forked", 1, ["fill", trained, "Baden [MASK] fi."], script=evaluate)
    assert "TEXT: contains <mask> 0 times" in wrong.errors[0]
    folder = tmp_path / "model"
    exported = run("forked", 1, [trained, folder], script=export)
    assert exported.status == 0, exported.output
    content = json.loads((folder / "config.json").read_text())
    ids = {name: content[f"{name}_token_id"] for name in ("cls", "sep", "pad", "mask")}
    assert ids == {"cls": 510, "sep": 509, "pad": 508, "mask": 507}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.mask_token, tokenizer.pad_token, tokenizer.unk_token) == ("<mask>", "<pad>", "<unk>")
    found = tokenizer("Baden <mask> fi.")["input_ids"]
    assert (found[0], found[-1], found.count(507)) == (510, 509, 1)
    assert "on the <mask>." in (folder / "README.md").read_text()
    again = load_model(folder)
    assert again.special_names.changes() == NAMES
    assert TextTokenizer.load(again.tokenizer, again.special_names).special.mask == 507
    same = ["loss", folder, "--data", trained.parent / "d", "--sequence-length", 32, "--sequences", 16]
    result = run("forked", 1, same, script=evaluate)
    assert result.status == 0, result.output
    (line,) = (each for each in result.stdout.splitlines() if each.startswith("loss"))
    assert line in loss.stdout
    assert load_file(folder / "model.safetensors")


@pytest.mark.launcher
def test_names_that_do_not_belong_to_the_dataset_are_an_error(config, angle):
    for change, facts in (
        ("special_tokens.par=null", ("special_tokens: ", f"{angle / 'd'}", '"par": "<par>"')),
        ("special_tokens.masc=<mask>", ("special_tokens.masc", "mask")),
    ):
        result = run("forked", 1, ["--deepspeed_config", config, "--set", f"elc_bert.data.{change}"])
        assert (result.status, len(result.errors)) == (1, 1), result.output
        for fact in facts:
            assert fact in result.errors[0]
