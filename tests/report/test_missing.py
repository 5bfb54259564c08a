"""launch/report.py with missing or damaged files."""

import re
import shutil
from pathlib import Path

import pytest

from tests.report.making import Page, write_run


def damaged_weights(run: Path) -> None:
    path = run / "checkpoints" / "step-000004" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def change_config(run: Path, pattern: str, replacement: str) -> None:
    path = run / "config.json"
    path.write_text(re.sub(pattern, replacement, path.read_text(encoding="utf-8")), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "note"),
    [
        (lambda run: shutil.rmtree(run / "checkpoints"), "checkpoints: no checkpoint"),
        (damaged_weights, "model.safetensors: damaged"),
        (lambda run: (run / "checkpoints/step-000004/run.json").unlink(), "run.json: cannot be read"),
        (
            lambda run: change_config(run, '"num_hidden_layers": 2', '"num_hidden_layers": 3'),
            "step-000004/model.json: not the model",
        ),
        (lambda run: change_config(run, '"dev": ".*"', '"dev": "gone/dev"'), "gone/dev.idx: cannot open"),
        (lambda run: change_config(run, '"segments"', '"segmets"'), "unknown key elc_bert.data.segmets"),
        (lambda run: shutil.rmtree(run / "tensorboard"), "no TensorBoard logs"),
        (
            lambda run: (run / "minimal_pairs/blimp-step-000004/results.json").write_text("{"),
            "blimp-step-000004/results.json: cannot be read",
        ),
    ],
)
def test_missing_parts_are_named(damage, note, main, reported, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(reported, run)
    damage(run)
    assert main([str(run)]) == 0
    assert re.search(f"Missing: .*{note}", capsys.readouterr().out)
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert re.search(f"Missing .*{note}", page.text)
    assert ("Training loss" in page.titles) == (run / "tensorboard").is_dir()


def no_config(run: Path) -> None:
    (run / "config.json").unlink()


def damaged_config(run: Path) -> None:
    (run / "config.json").write_text("{", encoding="utf-8")


def nothing_to_show(run: Path) -> None:
    shutil.rmtree(run / "tensorboard")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "config.json is missing"),
        (no_config, "config.json is missing"),
        (damaged_config, "config.json:1:2: not valid JSON"),
        (nothing_to_show, "neither logs nor a checkpoint; train with launch/pretrain.py"),
    ],
)
def test_errors_are_one_line_with_exit_status_1(damage, message: str, main, tmp_path, capsys):
    run = write_run(tmp_path / "run", {"train/loss": {1: 6.0}})
    damage(run)
    assert main([str(run)]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(r".*: error: .+\n", output.err)
    assert message in output.err
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "other"], "--output"),
        (["run", "run/../run", "--output", "page.html"], "given twice; name each run once"),
        (["run", "--output", "run"], "is a folder; name a file"),
        (["run", "--output", "nowhere/page.html"], "folder nowhere does not exist"),
    ],
)
def test_errors_on_the_command_line(arguments, message, main, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("run", "other"):
        write_run(Path(name), {"train/loss": {1: 6.0}})
    assert main(arguments) == 1
    assert message in capsys.readouterr().err
