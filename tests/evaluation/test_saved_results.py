"""Results on minimal pairs: one folder for each method and limit, and figures that name both."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from elc_bert.checkpoint.load_model import newest_checkpoint
from elc_bert.evaluation.accuracy import Results, compare_scores
from elc_bert.evaluation.pair_settings import PairSettings, describe, logged_pairs
from elc_bert.evaluation.run_pairs import evaluation_key
from elc_bert.evaluation.saved_results import default_results_folder, read_results, results_of_checkpoint
from elc_bert.hub.card import facts_of_checkpoint
from elc_bert.hub.export import export
from elc_bert.model.loaded import LoadedModel
from elc_bert.utils.files import sha256_of
from tests.evaluation.test_minimal_pairs import EVALUATE, write_pairs
from tests.hub.test_export import random_model
from tests.support.launching import run

ALL = PairSettings("within-word")


@pytest.fixture
def texts(tiny_text) -> list[str]:
    return [line for line in tiny_text.read_text().splitlines() if line.count(" ") > 3][:6]


@pytest.mark.launcher
def test_results_of_different_settings_live_side_by_side(tiny_run, texts, tmp_path):
    """They are in the run of a copied checkpoint, where the card and the report find them."""
    checkpoint = newest_checkpoint(tiny_run.directory)
    copied = tmp_path / "run"
    shutil.copytree(tiny_run.directory, copied, ignore=shutil.ignore_patterns("minimal_pairs"))
    pairs = write_pairs(tmp_path / "blimp", texts)
    outputs = {}
    for name, options in (
        ("within-word", []),
        ("plain-first-2", ["--limit", 2, "--method", "plain"]),
        ("plain", ["--method", "plain"]),
        ("within-word-first-2", ["--limit", 2]),
    ):
        done = run("forked", 1, ["pairs", copied, pairs, *options], script=EVALUATE)
        assert done.status == 0, done.output
        outputs[name] = done.stdout
    folder = copied / "minimal_pairs" / f"blimp-{checkpoint.name}"
    assert {path.name for path in folder.iterdir()} == outputs.keys()
    saved = {
        each.settings.name: each for each in results_of_checkpoint(copied / "checkpoints" / checkpoint.name)
    }
    assert saved.keys() == outputs.keys()
    facts = facts_of_checkpoint(copied / "checkpoints" / checkpoint.name)
    for name, scores in saved.items():
        settings, count = PairSettings.from_name(name), 6 if name.endswith("2") else 18
        assert (scores.settings, scores.pairs, scores.step) == (settings, count, 4)
        assert f"\n{describe(settings, count)}; " in outputs[name]
        content = json.loads((folder / name / "results.json").read_text())
        assert content["overall"] == pytest.approx(scores.overall)
        assert facts[f"blimp, {name}"] == (
            f"{scores.overall:.1%} accuracy on minimal pairs ({describe(settings, count)})"
        )
    assert facts["blimp, plain-first-2"].endswith("(6 pairs, method plain, limit 2 per paradigm)")


@pytest.mark.launcher
def test_an_output_folder_belongs_to_one_model_and_its_pairs(tiny_run, tiny_tokenizer, texts, tmp_path):
    pairs = write_pairs(tmp_path / "pairs", texts)
    export(LoadedModel(random_model("zero"), None), tiny_tokenizer, tmp_path / "model")
    output = ["--output", tmp_path / "results", "--limit", 1]
    first = run("forked", 1, ["pairs", tmp_path / "model", pairs, *output], script=EVALUATE)
    assert first.status == 0, first.output
    before = (tmp_path / "results/within-word-first-1/results.json").read_bytes()
    (tmp_path / "fewer").mkdir()
    shutil.copy(pairs / "island.jsonl", tmp_path / "fewer")
    for arguments in ([tiny_run.directory, pairs], [tmp_path / "model", tmp_path / "fewer"]):
        done = run("forked", 2, ["pairs", *arguments, *output], script=EVALUATE)
        assert (done.status, len(done.errors)) == (1, 1)
        assert "within-word-first-1: holds the results of another model or of other pairs" in done.errors[0]
    assert (tmp_path / "results/within-word-first-1/results.json").read_bytes() == before
    again = run("forked", 1, ["pairs", tmp_path / "model", pairs, *output], script=EVALUATE)
    assert again.status == 0, again.output


def test_saved_results_of_a_run_are_found(tiny_run):
    checkpoint = newest_checkpoint(tiny_run.directory)
    folder = default_results_folder(checkpoint, Path("somewhere/blimp/data"))
    assert folder == tiny_run.directory / "minimal_pairs" / f"blimp-{checkpoint.name}"
    folder.mkdir(parents=True)
    Results([compare_scores("x", "syntax", np.array([1.0]), np.array([0.0]), 0)]).save(folder, ALL)
    try:
        facts = facts_of_checkpoint(checkpoint)
        assert facts["blimp, unknown settings"] == (
            "100.0% accuracy on minimal pairs (1 pair, method and limit unknown)"
        )
    finally:
        shutil.rmtree(folder.parent)


def test_the_key_names_everything_that_scores_depend_on(tiny_tokenizer, tmp_path):
    model, settings = random_model("zero"), PairSettings("plain", 2)
    key = evaluation_key(model, tiny_tokenizer, settings)
    early = hashlib.sha256(json.dumps([sha256_of(tiny_tokenizer), "plain", 2]).encode())
    early.update(model.config.model_dump_json().encode())
    for name, parameter in model.named_parameters():
        early.update(name.encode() + parameter.detach().numpy().tobytes())
    assert key.early == early.hexdigest(), "the key of early versions"
    copy = tmp_path / "tokenizer.json"
    copy.write_text(tiny_tokenizer.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert evaluation_key(model, copy, settings).current == key.current, "the same tokenizer"
    others = {
        evaluation_key(model, tiny_tokenizer, PairSettings("plain", 3)).current,
        evaluation_key(model, tiny_tokenizer, PairSettings("plain")).current,
        evaluation_key(model, tiny_tokenizer, PairSettings("within-word", 2)).current,
        evaluation_key(random_model("base"), tiny_tokenizer, settings).current,
    }
    with torch.no_grad():
        model.encoder.embedding.word.weight[7, 3] += 1
    others.add(evaluation_key(model, tiny_tokenizer, settings).current)
    assert len(others - {key.current}) == 5


def write_results(folder: Path, accuracy: float, pairs: int, settings: dict | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    paradigms = [
        {"name": "x", "phenomenon": "syntax", "accuracy": accuracy, "pairs": pairs},
        {"name": "long", "phenomenon": "syntax", "accuracy": 0.0, "pairs": 0},
    ]
    content = {"overall": accuracy / 2, "phenomena": {"syntax": accuracy / 2}, "paradigms": paradigms}
    (folder / "results.json").write_text(json.dumps(content))
    if settings is not None:
        (folder / "settings.json").write_text(json.dumps({"pairs": "blimp/data", **settings}))


def test_results_of_early_versions_are_read(tmp_path):
    """They are in the folder above, and count a paradigm without a scored pair as 0 %."""
    folder = tmp_path / "minimal_pairs" / "blimp-step-000004"
    write_results(folder, 0.5, 7, {"method": "plain", "limit": 2})
    write_results(folder / "within-word", 0.75, 1067)
    write_results(tmp_path / "minimal_pairs" / "blimp-step-000009" / "x", 0.25, 1)
    (tmp_path / "minimal_pairs" / "bad").mkdir()
    (tmp_path / "minimal_pairs" / "bad" / "results.json").write_text('{"paradigms": []}')
    results, unreadable = read_results(tmp_path)
    assert unreadable == [tmp_path / "minimal_pairs/bad/results.json"]
    assert [(each.label, each.step, each.overall, each.phenomena, each.how) for each in results] == [
        *[("blimp, plain-first-2", 4, 0.5, {"syntax": 0.5}, "7 pairs, method plain, limit 2 per paradigm")],
        *[("blimp, within-word", 4, 0.75, {"syntax": 0.75}, "1,067 pairs, method within-word, no limit")],
        *[("blimp, unknown settings", 9, 0.25, {"syntax": 0.25}, "1 pair, method and limit unknown")],
    ]
    write_results(folder / "plain-first-2", 1.0, 6)
    (again,) = (each for each in read_results(tmp_path)[0] if each.label == "blimp, plain-first-2")
    assert (again.overall, again.pairs) == (1.0, 6), "the newer file counts"


def test_logged_results_name_their_settings():
    five = PairSettings("within-word", 5)
    assert five.tag("syntax") == "minimal_pairs/within-word-first-5/syntax"
    scalars = {
        **{five.tag(name): value for name, value in (("overall", 1), ("syntax", 2), ("number_of_pairs", 3))},
        **{"minimal_pairs/overall": 4, "minimal_pairs/zeta": 5, "minimal_pairs/a/b": 6, "train/loss": 7},
        "minimal_pairs/plain/syntax": 8,
    }
    logged = {"overall": [1], "syntax": [2], "number_of_pairs": [3]}
    early = {"overall": [4], "zeta": [5], "a/b": [6]}
    twenty = PairSettings("within-word", 20)
    assert logged_pairs(scalars) == {five: logged, twenty: early}
    assert logged_pairs(scalars, {"minimal_pairs_limit": None}) == {five: logged, ALL: early}
    same = logged_pairs(scalars, {"minimal_pairs_limit": 5})
    assert same == {five: {**logged, **early, "overall": [4, 1]}}


@pytest.mark.parametrize("method", ["within-word", "plain"])
@pytest.mark.parametrize("limit", [None, 1, 20])
def test_settings_have_a_name(method, limit):
    settings = PairSettings(method, limit)
    assert PairSettings.from_name(settings.name) == settings
    for name in ("paradigms", f"{settings.name}-first-0", f"x{settings.name}", f"{method}-first-"):
        assert PairSettings.from_name(name) is None
