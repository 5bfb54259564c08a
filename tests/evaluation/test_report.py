"""launch/report.py on a run."""

import importlib.util
import re
import shutil
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("launch_report", REPOSITORY / "launch" / "report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_it_says_what_the_run_has_learned(main, tiny_run, capsys: pytest.CaptureFixture[str]):
    assert main([str(tiny_run.directory)]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{tiny_run.directory}, step-000004\n")
    assert "Held-out text: 45 sequences" in text
    loss, entropy = map(float, re.search(r"loss, nats per masked token +(\S+) +(\S+)", text).groups())
    assert 0 < entropy < loss < 10, "four steps teach nothing, so guessing without context is better"
    assert re.search(r"accuracy +\d+\.\d% +\d+\.\d%", text)
    assert len(re.findall(r"^ +\d+\. ", text, re.MULTILINE)) == 10
    guesses = re.findall(r'guesses: "\S+" \d+%, "\S+" \d+%, "\S+" \d+%; the word: "\w+"', text)
    assert len(guesses) == 10
    assert f"Checkpoint: {tiny_run.directory}/checkpoints/step-000004" in text
    assert f"tensorboard --logdir {tiny_run.directory}" in text
    assert "http://localhost:6006" in text


def test_its_figures_are_those_of_the_run(main, tiny_run, capsys: pytest.CaptureFixture[str]):
    main([str(tiny_run.directory)])
    said = re.search(r"loss, nats per masked token +(\S+)", capsys.readouterr().out).group(1)
    logged = re.search(r"step 4: held-out loss (\S+),", tiny_run.output).group(1)
    assert float(said) == pytest.approx(float(logged), abs=6e-4)


def no_run(run: Path) -> None:
    shutil.rmtree(run)


def no_checkpoint(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def damaged_weights(run: Path) -> None:
    path = run / "checkpoints" / "step-000004" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def damaged_config(run: Path) -> None:
    (run / "config.json").write_text("{", encoding="utf-8")


def other_model(run: Path) -> None:
    path = run / "config.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'), encoding="utf-8")


def no_data(run: Path) -> None:
    path = run / "config.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r'"dev": ".*"', '"dev": "gone/dev"', text), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_run, "no run there (config.json is missing)"),
        (no_checkpoint, "holds no checkpoint yet"),
        (damaged_weights, "model.safetensors: damaged"),
        (damaged_config, "config.json:1:2: not valid JSON"),
        (other_model, "another model than in"),
        (no_data, "gone/dev.idx: cannot open the dataset"),
    ],
)
def test_mistakes_get_one_line_and_status_1(
    damage, message: str, main, tiny_run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / "run"
    shutil.copytree(tiny_run.directory, run)
    damage(run)
    assert main([str(run)]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(r"report\.py: error: .+\n", output.err)
    assert message in output.err


def test_help_teaches(main, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "unigram entropy" in text
    assert "python launch/report.py runs/demo" in text
