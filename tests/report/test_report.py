"""launch/report.py: its terminal output and its page."""

import base64
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.report.making import Page, write_pairs, write_run

MASKS = "masks of 15 % of the tokens, seed 42, on at most 45 sequences of 32 tokens (reference segments)"
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def page(reported) -> Page:
    return Page((reported / "report.html").read_text(encoding="utf-8"))


def test_the_terminal_output_of_a_report(main, tiny_run, tmp_path, capsys):
    assert main([str(tiny_run.directory), "--output", str(tmp_path / "page.html")]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{tiny_run.directory}, step-000004\n")
    assert "Held-out text: 45 sequences" in text
    assert f"\n  {MASKS}\n" in text
    loss, entropy = map(float, re.search(r"loss, nats per masked token +(\S+) +(\S+)", text).groups())
    assert 0 < entropy < loss < 10, "after four steps the model is worse than the unigram baseline"
    logged = re.search(r"step 4: held-out loss (\S+),", tiny_run.output).group(1)
    assert loss == pytest.approx(float(logged), abs=6e-4), "the loss equals that logged by the run"
    assert re.search(r"accuracy +\d+\.\d% +\d+\.\d%", text)
    assert len(re.findall(r"^ +\d+\. ", text, re.MULTILINE)) == 10
    predictions = re.findall(r'predictions: "\S+" \d+%, "\S+" \d+%, "\S+" \d+%; masked word: "\w+"', text)
    assert len(predictions) == 10
    assert f"Checkpoint: {tiny_run.directory}/checkpoints/step-000004" in text
    assert f"tensorboard --logdir {tiny_run.directory}" in text
    assert f"Report: {tmp_path / 'page.html'}" in text
    assert "Missing" not in text
    assert not list(tmp_path.glob(".*")), "a temporary file is left"


def test_the_page_is_self_contained(page):
    for tag, attributes in page.elements:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base", "form", "video", "audio", "a"}
        assert not {"src", "href", "srcset", "action", "data", "poster"} & attributes.keys(), (
            tag,
            attributes,
        )
    policy = next(
        attributes["content"]
        for tag, attributes in page.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'"), "the browser must refuse everything else"
    assert "http" not in policy


def test_the_page_contains_the_curves_of_the_run(page):
    assert page.titles[:5] == ["Training loss", "Held-out loss", "Accuracy", "Learning rate", "Gradient norm"]
    assert {"Trust ratios of LAMB", "Throughput", "Device utilization", "Peak memory"} <= set(page.titles)
    assert len(page.titles) == len(page.drawings())
    assert sum(script.count("plotly.js v") for script in page.scripts) == 1, "inlined once"
    assert f"M{MASKS[1:]}. Dashed: unigram entropy" in page.text
    assert "cannot be compared" not in page.text
    baseline = page.drawings()[1]["layout"]
    assert "unigram entropy" in baseline["annotations"][0]["text"]
    assert baseline["shapes"][0]["line"]["dash"] == "dash"


def test_the_page_contains_the_layer_weights(page):
    current, over_time = (
        page.titles.index("Current layer weights"),
        page.titles.index("Layer weights over time"),
    )
    (heat,) = page.drawings()[current]["data"]
    assert heat["y"] == ["layer 1", "layer 2"]
    assert heat["x"] == ["emb", "1"]
    (strip,) = page.drawings()[over_time]["data"]
    assert strip["y"] == ["emb", "1"], (
        "only the weights of the second layer are shown, since the first has one source"
    )


def test_the_page_contains_the_key_figures(page):
    figures = page.text[: page.text.index("Training loss")]
    for what in (
        rf"held-out loss \d\.\d{{3}} nats per masked token, step 4; {re.escape(MASKS)}",
        r"perplexity \d+ ",
        r"held-out accuracy \d+\.\d%",
        r"blimp, within-word-first-20 60\.0% accuracy on 2,040 pairs, method within-word, limit 20 per "
        r"paradigm, step 4",
        r"blimp, plain 90\.0% accuracy on 1,020 pairs, method plain, no limit, step 4",
        r"steps 4 of 4, 100%",
        r"tokens seen \S+ ",
        r"words seen \S+ ",
        r"parameters 37\.8k 2 layers x 32",
        r"tokens per second \S+ median",
    ):
        assert re.search(what, figures), what


def test_the_page_contains_the_newest_minimal_pairs(page):
    title = "Minimal pairs: blimp, within-word-first-20"
    bars, dots = page.drawings()[page.titles.index(title)]["data"]
    assert bars["y"] == ["binding", "island effects", "overall"], (
        "bars are drawn from the bottom up, so the best one comes last"
    )
    assert bars["x"] == [0.5, 0.7, 0.6]
    assert dots["customdata"] == ["binding 1", "island effects 1"]
    assert "2,040 pairs, method within-word, limit 20 per paradigm. After step 4." in page.text
    plain, _ = page.drawings()[page.titles.index("Minimal pairs: blimp, plain")]["data"]
    assert plain["x"] == [0.9, 0.9], "another method has a chart of its own"
    assert "1,020 pairs, method plain, no limit. After step 4." in page.text


def test_the_page_contains_the_sentences_and_the_configuration(page):
    sentences = page.text[page.text.index("Masked words in held-out sentences") :]
    assert sentences.count("____") == 10
    assert len(re.findall(r"“[^”]+” \d+%", sentences)) == 30
    assert '"num_hidden_layers": 2' in sentences
    assert ("details", {"class": "card"}) in page.elements


def test_both_themes_are_in_the_style_sheet(reported):
    html = (reported / "report.html").read_text(encoding="utf-8")
    assert "@media (prefers-color-scheme: dark)" in html
    assert html.count("--text:") == 2


def test_several_runs_are_compared(main, reported, tmp_path, capsys):
    other = write_run(tmp_path / "other", {"train/loss": {1: 6.0, 2: 5.0}}, seed=7)
    path = tmp_path / "both.html"
    assert main([str(reported), str(other), "--output", str(path)]) == 0
    page = Page(path.read_text(encoding="utf-8"))
    assert page.text.startswith("tiny, other: report Comparison of 2 runs tiny other")
    traces = page.drawings()[0]["data"]
    assert [trace["name"] for trace in traces] == ["tiny", "other"]
    assert len({trace["line"]["color"] for trace in traces}) == 2
    assert "Current layer weights, tiny" in page.titles
    differing = page.text[page.text.index("differing setting") : page.text.index("complete configuration")]
    assert "elc_bert.training.seed 42 7" in differing
    assert "elc_bert.model.hidden_size 32 –" in differing
    assert "train_batch_size" not in differing, "settings with equal values are not listed"
    assert page.text.count("complete configuration") == 2
    assert "other, step 2" in capsys.readouterr().out


def test_secrets_that_an_early_version_saved_are_not_shown(main, tmp_path, capsys):
    runs = [write_run(tmp_path / name, {"train/loss": {1: 6.0}}) for name in "ab"]
    config = json.loads((runs[0] / "config.json").read_text())
    config["comet"] = {"enabled": False, "api_key": "s3cr3t", "project": "shown"}
    (runs[0] / "config.json").write_text(json.dumps(config))
    assert main([*map(str, runs), "--output", str(tmp_path / "page.html")]) == 0
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "s3cr3t" not in html + capsys.readouterr().out
    assert 'comet.api_key "(removed)"' in Page(html).text
    assert 'comet.project "shown"' in Page(html).text


def test_names_are_escaped(main, tmp_path):
    hostile = '<img src=x onerror="alert(1)"><a href="http:evil">{{ 7 * 7 }}'
    (tmp_path / "a").mkdir()
    runs = [
        write_run(tmp_path / name, {"train/loss": {1: 6.0}, "minimal_pairs/overall": {1: 0.5}})
        for name in (hostile.replace("/", ""), "b")
    ]
    path = tmp_path / "page.html"
    assert main([*map(str, runs), "--output", str(path)]) == 0
    page = Page(path.read_text(encoding="utf-8"))
    assert hostile in page.text
    assert not {"img", "a"} & {tag for tag, _ in page.elements}
    assert not any("onerror" in attributes for _, attributes in page.elements)
    for drawing in page.drawings():
        for trace in drawing["data"]:
            assert "<" not in trace["name"], "plotly would interpret it as markup"
    assert "<img" not in page.scripts[-1]


def test_curves_of_long_runs_are_reduced(main, tmp_path):
    losses = {step: 5.0 + (step % 7) / 10 + (step == 2100) for step in range(1, 2501)}
    run = write_run(tmp_path / "long", {"train/loss": losses}, max_steps=2500)
    assert main([str(run)]) == 0
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    faint, strong = page.drawings()[0]["data"]
    faint, strong = numbers(faint["y"]), numbers(strong["y"])
    assert 500 < len(faint) <= 1000
    assert len(strong) <= 1000
    assert faint.max() == pytest.approx(6.0)
    assert strong.max() < 5.6
    assert "about 1000 points" in page.text


def numbers(values):
    """Return an array that plotly has encoded in base64."""
    return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"])


def test_minimal_pairs_scored_during_training_are_in_the_report(main, tmp_path):
    early = {f"minimal_pairs/{name}": {1: 0.5, 2: 0.6, 3: 0.2, 4: 0.1} for name in ("overall", "binding")}
    tag = "minimal_pairs/within-word-first-20/"
    later = {f"{tag}{name}": {3: 0.7, 4: 0.8} for name in ("overall", "binding")}
    settings = {"minimal_pairs/plain/overall": {1: 0.25}, "minimal_pairs/plain/number_of_pairs": {1: 1234}}
    run = write_run(tmp_path / "run", early | later | {f"{tag}number_of_pairs": {3: 40, 4: 40}} | settings)
    assert main([str(run)]) == 0
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    over_time, plain, bars, plain_bars = page.drawings()
    title, scored = "Minimal pairs during training", "Minimal pairs: scored during training"
    assert page.titles == [title, title, f"{scored}, within-word-first-20", f"{scored}, plain"]
    *_, overall = over_time["data"]
    assert overall["name"] == "overall"
    assert numbers(overall["x"]).tolist() == [1, 2, 3, 4], "the curve continues under the tag of this version"
    assert numbers(overall["y"]) == pytest.approx([0.5, 0.6, 0.7, 0.8])
    assert bars["data"][0]["y"] == ["binding", "overall"]
    assert bars["data"][0]["x"] == pytest.approx([0.8, 0.8])
    assert plain_bars["data"][0]["x"] == [0.25]
    assert numbers(plain["data"][0]["y"]).tolist() == [0.25]
    how = "40 pairs, method within-word, limit 20 per paradigm"
    plain_how = "1,234 pairs, method plain, no limit"
    for text in (how, plain_how):
        assert page.text.count(f"mean accuracy over the paradigms: {text}") == 1
    assert f"within-word-first-20 80.0% accuracy on {how}, step 4" in page.text
    assert f"plain 25.0% accuracy on {plain_how}, step 1" in page.text
    assert "Not logged yet: training loss, held-out loss" in page.text


def test_a_run_without_logs_is_evaluated_on_the_masks_of_its_configuration(main, reported, tmp_path):
    shutil.copytree(reported, tmp_path / "run", ignore=shutil.ignore_patterns("tensorboard"))
    assert main([str(tmp_path / "run")]) == 0
    text = Page((tmp_path / "run/report.html").read_text(encoding="utf-8")).text
    assert f"nats per masked token, step-000004; {MASKS} perplexity" in text


def test_losses_on_other_masks_are_called_incomparable(main, tmp_path):
    scalars = {"held_out/loss": {1: 6.0}, "held_out/accuracy": {1: 0.1}}
    runs = [write_run(tmp_path / name, scalars) for name in "ab"]
    for run, masks in zip(runs, ({"seed": 42, "mask_probability": 0.15}, {}), strict=True):
        config = json.loads((run / "config.json").read_text())
        ours = config["elc_bert"]
        ours["evaluation"] = {"sequences": 2048, **masks}
        ours["data"] |= {"segments": "reference", "mask_probability": 0.4}
        ours["data"] |= {"random_probability": 0.1, "keep_probability": 0.1}
        ours["training"] |= {"sequence_length": 64, "seed": 7}
        (run / "config.json").write_text(json.dumps(config))
    assert main([*map(str, runs), "--output", str(tmp_path / "page.html")]) == 0
    text = Page((tmp_path / "page.html").read_text(encoding="utf-8")).text
    where = "on at most 2,048 sequences of 64 tokens (reference segments)"
    one, other = (
        f"asks of {share} % of the tokens, seed {seed}, {where}" for share, seed in ((15, 42), (40, 7))
    )
    assert f"M{one}. M{other}. These differ, so the losses of these runs cannot be compared." in text
    assert f"step 1; m{one}" in text
    assert f"step 1; m{other}" in text


def test_the_newest_result_is_shown_whatever_the_order_of_the_names(main, tmp_path):
    run = write_run(tmp_path / "run", {"train/loss": {1: 6.0}})
    for step, accuracy in ((1_000_000, 0.75), (999_999, 0.25)):
        write_pairs(run, f"blimp-step-{step:06d}/plain", {"binding": accuracy}, "plain", None)
    assert main([str(run)]) == 0
    text = Page((run / "report.html").read_text(encoding="utf-8")).text
    assert "blimp, plain 75.0% accuracy on 1,020 pairs, method plain, no limit, step 1,000,000" in text
    assert "25.0%" not in text


def test_runs_that_scored_other_pairs_are_not_compared(main, tmp_path):
    runs = [write_run(tmp_path / name, {"train/loss": {1: 6.0}}) for name in "abc"]
    write_pairs(runs[0], "blimp-step-000001/within-word", {"binding": 0.5}, limit=None)
    write_pairs(runs[1], "blimp-step-000001/within-word", {"binding": 0.75}, limit=None)
    write_pairs(runs[2], "blimp-step-000001", {"binding": 1.0}, "plain", 3)
    assert main([*map(str, runs), "--output", str(tmp_path / "page.html")]) == 0
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    scores = {
        title.removeprefix("Minimal pairs: "): {trace["name"]: trace["x"] for trace in drawing["data"]}
        for title, drawing in zip(page.titles, page.drawings(), strict=True)
        if title.startswith("Minimal pairs: ")
    }
    assert scores == {
        "blimp, within-word": {"b": [0.75, 0.75], "a": [0.5, 0.5]},
        "blimp, plain-first-3": {"c": [1.0, 1.0]},
    }


def test_runs_with_equal_names_are_distinguished(tmp_path):
    from elc_bert.report.runs import read_runs

    folders = [write_run(tmp_path / parent / "run", {"train/loss": {1: 6.0}}) for parent in "ab"]
    assert [run.name for run in read_runs(folders)] == [str(folder) for folder in folders]


def test_help(main, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "unigram entropy" in text
    assert "python launch/report.py runs/demo" in text


def test_help_does_not_import_heavy_packages():
    code = (
        "import runpy, sys; sys.argv = ['report.py', '--help']\n"
        "try: runpy.run_path('launch/report.py', run_name='__main__')\n"
        "except SystemExit: print(sorted({'torch', 'plotly', 'jinja2'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.endswith("[]\n"), done.stdout + done.stderr


def test_differing_settings_are_listed_by_key():
    from elc_bert.report.facts import differing_settings

    first = {"a": {"b": 1, "c": [1, 2]}, "d": {}}
    second = json.loads(json.dumps(first)) | {"a": {"b": 2, "c": [1, 2], "e": None}}
    assert differing_settings([first, first]) == []
    assert differing_settings([first, second]) == [("a.b", ["1", "2"]), ("a.e", ["", "null"])]
