"""Minimal pairs: files, scores and the command."""

import csv
import json
import math
import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from elc_bert.data.format.text_tokenizer import TextTokenizer
from elc_bert.evaluation.accuracy import Results, compare_scores
from elc_bert.evaluation.minimal_pairs import read_paradigms
from elc_bert.evaluation.pair_settings import PairSettings
from elc_bert.evaluation.run_pairs import evaluation_key, score_paradigm
from elc_bert.hub.export import export
from elc_bert.hub.loading import load_model
from elc_bert.model.loaded import LoadedModel
from elc_bert.utils.errors import UserError
from tests.hub.test_export import random_model
from tests.support.launching import REPOSITORY, run

EVALUATE = REPOSITORY / "launch" / "evaluate.py"
ALL = PairSettings("within-word")


def write_pairs(folder: Path, texts: list[str]) -> Path:
    """Write three paradigms of two phenomena; the bad sentences have two words exchanged."""
    folder.mkdir()
    for name, phenomenon in (("island", "syntax"), ("binding", "syntax"), ("agreement", "morphology")):
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for text in texts:
                first, second, *rest = text.split(" ")
                bad = " ".join([second, first, *rest])
                pair = {"sentence_good": text, "sentence_bad": bad, "linguistics_term": phenomenon}
                file.write(json.dumps(pair) + "\n")
    return folder


@pytest.fixture
def texts(tiny_text) -> list[str]:
    return [line for line in tiny_text.read_text().splitlines() if line.count(" ") > 3][:6]


def test_pairs_and_contexts(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"sentence_good": "A b.", "sentence_bad": "B a.", "field": "syntax"}\n\n'
    )
    contexts = {"Context1": "It is hot.", "Context2": "It is cold.", "Target1": "Sun.", "Target2": "Snow."}
    (tmp_path / "b.jsonl").write_text(json.dumps({**contexts, "Domain": "weather"}))
    pairs, ewok = read_paradigms(tmp_path)
    assert (pairs.name, pairs.phenomenon) == ("a", "syntax")
    assert (pairs.pairs[0].good.text, pairs.pairs[0].bad.text) == ("A b.", "B a.")
    assert ewok.phenomenon == "weather"
    assert [(pair.good.text, pair.bad.text) for pair in ewok.pairs] == [
        ("It is hot. Sun.", "It is cold. Sun."),
        ("It is cold. Snow.", "It is hot. Snow."),
    ]
    assert ewok.pairs[0].good.text[ewok.pairs[0].good.scored_from :] == " Sun."


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"sentence_good": "A."}', r"x\.jsonl:2: sentence_bad is missing"),
        ('{"sentence_good": "A.", "sentence_bad": " "}', r"x\.jsonl:2: sentence_bad is empty"),
        ("{", r"x\.jsonl:2: not valid JSON"),
        ("[1]", r"x\.jsonl:2: not a JSON object"),
    ],
)
def test_invalid_lines_are_named(line, message, tmp_path):
    (tmp_path / "x.jsonl").write_text('{"sentence_good": "A.", "sentence_bad": "B."}\n' + line)
    with pytest.raises(UserError, match=message):
        read_paradigms(tmp_path)


def test_a_folder_without_pairs_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"contains no \.jsonl files"):
        read_paradigms(tmp_path)


def test_a_file_with_several_phenomena_is_split(tmp_path):
    lines = [
        {"linguistics_term": "binding", "UID": "one"},
        {"linguistics_term": "islands", "UID": "two"},
        {"linguistics_term": "binding", "UID": "one"},
        {"linguistics_term": "binding", "UID": "three"},
        {},
    ]
    pairs = [
        {"sentence_good": f"Good {number}.", "sentence_bad": "Bad.", **line}
        for number, line in enumerate(lines)
    ]
    (tmp_path / "mixed.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    context = {"Context1": "A.", "Context2": "B.", "Target1": "C.", "Target2": "D."}
    domains = [{**context, "Domain": domain} for domain in ("space", "social/relations", "space")]
    (tmp_path / "same.jsonl").write_text("\n".join(map(json.dumps, domains[::2])))
    (tmp_path / "worlds.jsonl").write_text("\n".join(map(json.dumps, domains)))
    found = {
        each.name: (each.phenomenon, [pair.good.text for pair in each.pairs])
        for each in read_paradigms(tmp_path)
    }
    assert found == {
        "mixed: binding, one": ("binding", ["Good 0.", "Good 2."]),
        "mixed: islands, two": ("islands", ["Good 1."]),
        "mixed: binding, three": ("binding", ["Good 3."]),
        "mixed: mixed": ("mixed", ["Good 4."]),
        "same": ("space", ["A. C.", "B. D."] * 2),
        "worlds: space": ("space", ["A. C.", "B. D."] * 2),
        "worlds: social/relations": ("social/relations", ["A. C.", "B. D."]),
    }


def test_lines_end_with_a_line_feed_only_and_may_follow_a_byte_order_mark(tmp_path):
    separators = "\u2028\u2029\u0085"
    first = {"sentence_good": f"One{separators}line.", "sentence_bad": "B."}
    text = json.dumps(first, ensure_ascii=False)
    assert len(text.splitlines()) > 1
    second = json.dumps({"sentence_good": "C.", "sentence_bad": "D."})
    (tmp_path / "x.jsonl").write_bytes(f"\ufeff{text}\r\n\r\n{second}\n".encode())
    (paradigm,) = read_paradigms(tmp_path)
    assert [pair.good.text for pair in paradigm.pairs] == [first["sentence_good"], "C."]
    (tmp_path / "x.jsonl").write_bytes(f"\ufeff{text}\r\n\r\n[]\n".encode())
    with pytest.raises(UserError, match=r"x\.jsonl:3: not a JSON object"):
        read_paradigms(tmp_path)


def test_pairs_that_are_all_too_long_do_not_count(tmp_path):
    one, nothing = np.array([1.0]), np.zeros(0)
    right = compare_scores("right", "syntax", one, one - 1, skipped=2)
    wrong = compare_scores("wrong", "syntax", one - 1, one, skipped=0)
    long = compare_scores("long", "syntax", nothing, nothing, skipped=3)
    alone = compare_scores("alone", "morphology", nothing, nothing, skipped=4)
    assert (right.accuracy, wrong.accuracy, long.accuracy) == (1.0, 0.0, None)
    results = Results([right, wrong, long, alone])
    assert results.overall == 0.5
    assert results.by_phenomenon() == {"morphology": None, "syntax": 0.5}
    table = results.table(PairSettings("plain", 3))
    assert re.search(r"morphology +– +1\n", table)
    assert re.search(r"syntax +50\.0% +3\n", table)
    what = "2 pairs, method plain, limit 3 per paradigm"
    assert f"\n{what}; 0 ties (half a point each), 9 skipped as too long\n" in table
    assert table.endswith("not scored, because every pair is too long: long, alone")
    assert Results([long, alone]).overall is None
    results.save(tmp_path, PairSettings("plain", 3))
    content = json.loads((tmp_path / "results.json").read_text())
    assert [each["accuracy"] for each in content["paradigms"]] == [1.0, 0.0, None, None]
    assert content["phenomena"] == {"morphology": None, "syntax": 0.5}
    expected = {"method": "plain", "limit": 3, "pairs": 2, "ties": 0, "skipped": 9, "overall": 0.5}
    assert {name: content[name] for name in expected} == expected
    with open(tmp_path / "results.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["accuracy"] for row in rows] == ["1.0", "0.0", "", ""]
    assert rows[0] == {
        **{"phenomenon": "syntax", "paradigm": "right", "accuracy": "1.0", "pairs": "1", "right": "1"},
        **{"ties": "0", "skipped": "2", "method": "plain", "limit": "3"},
    }


def test_scores_that_are_not_finite_are_an_error(tiny_tokenizer, texts, tmp_path):
    model, tokenizer = random_model("zero"), TextTokenizer.load(tiny_tokenizer)
    paradigm = read_paradigms(write_pairs(tmp_path / "pairs", texts))[0]
    assert score_paradigm(model, tokenizer, paradigm, ALL).pairs == 4
    with torch.no_grad():
        model.encoder.embedding.word.weight.fill_(math.nan)
    with pytest.raises(UserError, match=r"agreement\.jsonl: .* the score nan, so .*; use an earlier check"):
        score_paradigm(model, tokenizer, paradigm, ALL)
    with pytest.raises(UserError, match=r"export: not written, because encoder\.embedding\.word\.weight "):
        export(LoadedModel(model, None), tiny_tokenizer, tmp_path / "export")
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_model_with_weights_that_are_not_finite_is_not_loaded(value, tiny_tokenizer, tmp_path):
    export(LoadedModel(random_model("zero"), None), tiny_tokenizer, tmp_path / "export")
    weights = load_file(tmp_path / "export/model.safetensors")
    weights["head.dense.weight"][3, 1] = value
    save_file(weights, tmp_path / "export/model.safetensors")
    config = tmp_path / "export/config.json"
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes())  # a byte-order mark is not the problem
    with pytest.raises(UserError, match=r"model\.safetensors: head\.dense\.weight holds NaN or infinite"):
        load_model(tmp_path / "export")


def test_ties_count_half_in_either_order():
    good, bad = np.array([-5.0, -5.0, -7.0, -5.0]), np.array([-6.0, -5.0, -5.0, -5.0 - 1e-9])
    result = compare_scores("x", "syntax", good, bad, skipped=1)
    assert (result.right, result.ties, result.pairs) == (1, 2, 4)
    assert result.accuracy == 0.5
    swapped = compare_scores("x", "syntax", bad, good, skipped=1)
    assert swapped.accuracy == 0.5
    results = Results([result, compare_scores("y", "morphology", good[:1], bad[:1], 0)])
    assert results.overall == 0.75
    assert results.by_phenomenon() == {"morphology": 1.0, "syntax": 0.5}


@pytest.mark.launcher
def test_two_ranks_agree_with_one_and_resume(tiny_run, texts, tmp_path):
    pairs = write_pairs(tmp_path / "pairs", texts)
    arguments = ["pairs", tiny_run.directory, pairs, "--output"]
    alone = run("forked", 1, [*arguments, tmp_path / "alone"], script=EVALUATE)
    assert alone.status == 0, alone.output
    both = run("deepspeed", 2, [*arguments, tmp_path / "both"], script=EVALUATE)
    assert both.status == 0, both.output
    one, two = (tmp_path / name / "within-word" for name in ("alone", "both"))
    content = json.loads((two / "results.json").read_text())
    assert content == json.loads((one / "results.json").read_text())
    assert [each["pairs"] for each in content["paradigms"]] == [6, 6, 6]
    assert content["phenomena"].keys() == {"syntax", "morphology"}
    with open(two / "results.csv", encoding="utf-8") as file:
        assert len(list(csv.reader(file))) == 4
    assert matplotlib.image.imread(two / "results.png").std() > 0
    assert "overall" in both.stdout
    assert "18 pairs, method within-word, no limit; " in both.stdout

    kept = one / "paradigms/island.json"
    before = kept.stat().st_mtime_ns
    # Early versions wrote to the folder above, with the checksum of the tokenizer file in the key.
    early = one.parent / "paradigms"
    early.mkdir()
    loaded = load_model(tiny_run.directory)
    key = evaluation_key(loaded.model, loaded.tokenizer, ALL)
    text = (one / "paradigms/agreement.json").read_text()
    assert key.current in text
    (early / "agreement.json").write_text(text.replace(key.current, key.early))
    (one / "paradigms/agreement.json").unlink()
    (one / "paradigms/binding.json").unlink()
    again = run("forked", 1, [*arguments, tmp_path / "alone"], script=EVALUATE)
    assert again.status == 0, again.output
    assert kept.stat().st_mtime_ns == before
    assert {path.name for path in (one / "paradigms").iterdir()} == {"island.json", "binding.json"}
    assert json.loads((one / "results.json").read_text()) == content
