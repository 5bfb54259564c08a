"""The commands of launch/evaluate.py, on models of runs and exports."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

from elc_bert.checkpoint.load_model import newest_checkpoint
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.manifest import Manifest
from elc_bert.data.format.segments import open_segments
from elc_bert.data.format.vocabulary import check_tokenizer
from elc_bert.hub.card import facts_of_checkpoint
from elc_bert.hub.export import export
from elc_bert.hub.loading import load_model
from elc_bert.model.loaded import LoadedModel
from elc_bert.utils.files import sha256_of
from tests.evaluation.test_minimal_pairs import EVALUATE, write_pairs
from tests.hub.test_export import random_model
from tests.support.launching import run, scalars


@pytest.fixture
def texts(tiny_text) -> list[str]:
    return [line for line in tiny_text.read_text().splitlines() if line.count(" ") > 3][:6]


@pytest.mark.launcher
def test_user_errors_are_one_line(tiny_run, tmp_path):
    result = run("forked", 1, ["fill", tiny_run.directory, "No blank here."], script=EVALUATE)
    assert result.status == 1
    assert len(result.errors) == 1
    assert "[MASK] 0 times" in result.errors[0]
    nowhere = ["loss", tiny_run.directory, "--output", tmp_path / "nowhere" / "loss.json"]
    result = run("forked", 1, nowhere, script=EVALUATE)
    assert (result.status, len(result.errors)) == (1, 1)
    assert "nowhere/loss.json: must be a file" in result.errors[0]
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs/x.jsonl").write_text("{}")
    output = ["--output", tmp_path / "results"]
    result = run("forked", 2, ["pairs", tiny_run.directory, tmp_path / "pairs", *output], script=EVALUATE)
    assert result.status != 0
    assert len(result.errors) == 1
    assert "x.jsonl:1: sentence_good is missing" in result.errors[0]
    # As text, these are several tokens each; as special tokens, they would fit.
    long = {"sentence_good": "[MASK] " * 100, "sentence_bad": "Fi baden.", "Domain": "a/b"}
    (tmp_path / "pairs/x.jsonl").write_text(json.dumps(long) + "\n" + json.dumps({**long, "Domain": "c"}))
    result = run("forked", 1, ["pairs", tiny_run.directory, tmp_path / "pairs", *output], script=EVALUATE)
    assert (result.status, len(result.errors)) == (1, 1)
    assert f"{tmp_path}/pairs: every pair is longer than the 128 tokens" in result.errors[0]
    assert not (tmp_path / "results/within-word/results.json").exists()
    short = {"sentence_good": "Baden fi.", "sentence_bad": "Fi baden.", "Domain": "c"}
    (tmp_path / "pairs/x.jsonl").write_text(json.dumps(long) + "\n" + json.dumps(short))
    result = run("forked", 1, ["pairs", tiny_run.directory, tmp_path / "pairs", *output], script=EVALUATE)
    assert result.status == 0, result.output
    assert "not scored, because every pair is too long: x: a/b" in result.stdout
    names = [path.name for path in (tmp_path / "results/within-word/paradigms").iterdir()]
    assert len(names) == 2
    assert all(re.fullmatch(r"x_(a_b|c)-[0-9a-f]{12}\.json", name) for name in names), names


@pytest.mark.launcher
def test_a_model_whose_outputs_are_not_finite_gets_no_score(tiny_tokenizer, tiny_dataset, texts, tmp_path):
    """All weights are finite, but the logits overflow."""
    model = random_model("zero")
    with torch.no_grad():
        model.head.dense.weight.fill_(3e38)
        model.encoder.embedding.word.weight.fill_(3e38)
    export(LoadedModel(model, None), tiny_tokenizer, tmp_path / "model")
    pairs = write_pairs(tmp_path / "pairs", texts)
    for command, message in (
        (["loss", tmp_path / "model", "--data", tiny_dataset, "--sequences", 2], "the held-out loss is nan"),
        (["fill", tmp_path / "model", "Baden [MASK] fi."], "the predictions of the model are not finite"),
        (["pairs", tmp_path / "model", pairs, "--output", tmp_path / "out"], "the score nan"),
    ):
        result = run("forked", 1, command, script=EVALUATE)
        assert (result.status, len(result.errors)) == (1, 1), result.output
        assert message in result.errors[0]
        assert result.errors[0].endswith("use an earlier checkpoint")


@pytest.mark.launcher
def test_a_masked_word_is_predicted(tiny_run):
    result = run("forked", 1, ["fill", tiny_run.directory, "Baden [MASK] fi."], script=EVALUATE)
    assert result.status == 0, result.output
    shares = [float(line.split("%")[0]) for line in result.stdout.splitlines() if "%" in line]
    assert len(shares) == 5
    assert shares == sorted(shares, reverse=True)
    assert torch.tensor(shares).sum() <= 100.01


@pytest.mark.launcher
def test_held_out_loss_equals_that_of_the_run_with_any_number_of_ranks(tiny_run, tiny_dataset, tmp_path):
    arguments = ["loss", tiny_run.directory, "--output", tmp_path / "loss.json"]
    two = run("forked", 2, arguments, script=EVALUATE)
    assert two.status == 0, two.output
    figures = json.loads((tmp_path / "loss.json").read_text())
    logged = scalars(tiny_run.directory, "held_out/loss")
    assert figures["loss"] == pytest.approx(logged[max(logged)], rel=1e-5)
    assert figures["perplexity"] == pytest.approx(np.exp(figures["loss"]))
    assert f"loss        {figures['loss']:.4f} nats" in two.stdout
    assert "45 sequences" in two.stdout
    masks = "masks of 15 % of the tokens, seed 42, on at most 45 sequences of 32 tokens (reference segments)"
    assert masks in two.stdout
    assert figures["settings"] == {
        **{"seed": 42, "mask_probability": 0.15, "random_probability": 0.1, "keep_probability": 0.1},
        **{"sequence_length": 32, "sequences": 45, "segments": "reference"},
    }
    assert facts_of_checkpoint(newest_checkpoint(tiny_run.directory))["held-out loss"] == (
        f"{logged[max(logged)]:.4f} nats per masked token ({masks})"
    )

    checkpoint = newest_checkpoint(tiny_run.directory)
    alone = tmp_path / "alone"
    shutil.copytree(checkpoint, alone / "run" / "checkpoints" / checkpoint.name)
    (alone / "run" / "checkpoints" / "latest").write_text(checkpoint.name)
    shutil.copy(tiny_run.directory / "config.json", alone / "run")
    longer = [*("loss", alone / "run", "--data", tiny_dataset), *("--sequence-length", "128")]
    one = run("forked", 1, [*longer, "--sequences", "8"], script=EVALUATE)
    assert one.status == 0, one.output
    assert "8 sequences" in one.stdout
    everything = run("forked", 1, longer, script=EVALUATE)
    assert everything.status == 0, everything.output
    count = len(open_segments(IndexedDataset(tiny_dataset), 128))
    assert f"of {count} sequences" in everything.stdout, "--data names other text, so all of it is read"


@pytest.mark.launcher
def test_an_export_accepts_the_dataset_of_its_run(tiny_run, tiny_dataset, tiny_tokenizer, tmp_path):
    export(load_model(tiny_run.directory), tiny_tokenizer, tmp_path / "export")
    assert sha256_of(tmp_path / "export/tokenizer.json") != sha256_of(tiny_tokenizer)
    options = ["--data", tiny_dataset, "--sequence-length", 32, "--sequences", 45]
    losses = []
    for model in (tiny_run.directory, tmp_path / "export"):
        output = ["--output", tmp_path / "loss.json"]
        done = run("forked", 1, ["loss", model, *options, *output], script=EVALUATE)
        assert done.status == 0, done.output
        losses.append(json.loads((tmp_path / "loss.json").read_text()))
    assert losses[0] == losses[1]
    for path in tiny_dataset.parent.glob("tiny.*"):
        shutil.copy(path, tmp_path)
    old = Manifest.load(tmp_path / "tiny").model_copy(update={"tokenizer_fingerprint": None})
    old.save(tmp_path / "tiny")  # as an early version built it
    check_tokenizer(IndexedDataset(tmp_path / "tiny"), tmp_path / "export/tokenizer.json")
