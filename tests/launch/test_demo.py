"""The demo, without its training, which takes minutes."""

import re
import sys
from pathlib import Path

import pytest

from elc_bert import demo
from elc_bert.config.reader import load_config
from elc_bert_launch.demo import main

REPOSITORY = Path(__file__).resolve().parents[2]


def options(command: list[str]) -> dict[str, list[str]]:
    """Return the values of each option of a command."""
    found: dict[str, list[str]] = {}
    for word in command:
        if word.startswith("--"):
            last = found.setdefault(word, [])
        elif found:
            last.append(word)
    return found


def test_the_steps_create_the_files_that_the_configuration_names():
    config = load_config(REPOSITORY / "ds_configs" / "demo.json")
    steps = demo.plan(config, ["--deepspeed_config", "ds_configs/demo.json"], [])
    prose, tokenizer, train, dev, pretrain, report = (step.command for step in steps)
    assert options(prose)["--output"] == ["data/demo"]
    assert options(tokenizer)["--input"] == ["data/demo/train.txt"]
    assert options(tokenizer)["--vocab-size"] == [str(config.elc_bert.model.vocab_size)]
    length = config.elc_bert.training.sequence_length
    for command, name in ((train, "train"), (dev, "dev")):
        assert options(command)["--input"] == [f"data/demo/{name}.txt"]
        assert options(command)["--tokenizer"] == ["data/demo/tokenizer.json"]
        assert options(command)["--output"] == [f"data/demo/{name}"]
        assert options(command)["--lengths"] == [str(length), str(4 * length)]
    assert Path(pretrain[0]).name == "deepspeed"
    assert options(pretrain)["--resume"] == ["auto"]
    assert report[1:] == ["launch/report.py", "runs/demo"]


def test_the_batches_of_the_demo_can_be_divided_between_two_ranks():
    config = load_config(REPOSITORY / "ds_configs" / "demo.json")
    assert config.train_batch_size % (2 * 4) == 0, "batches of long sequences are 4 times smaller"


def test_the_demo_logs_pictures_evaluations_and_checkpoints():
    config = load_config(REPOSITORY / "ds_configs" / "demo.json")
    ours = config.elc_bert
    assert config.deepspeed_extras["tensorboard"]["enabled"]
    for every in (ours.training.picture_every, ours.evaluation.every, ours.checkpoint.every):
        assert 2 <= ours.training.max_steps // every <= 60


@pytest.fixture
def tiny(tmp_path: Path) -> list[str]:
    """Arguments for a demo that takes seconds, in a temporary directory, with two training steps."""
    values = {
        "data.train": tmp_path / "data" / "train",
        "data.dev": tmp_path / "data" / "dev",
        "data.tokenizer": tmp_path / "data" / "tokenizer.json",
        "training.output_dir": tmp_path / "run",
        "training.max_steps": 2,
        "model.vocab_size": 300,
    }
    return ["--max-words", "30000", *(f"--set=elc_bert.{key}={value}" for key, value in values.items())]


def test_the_demo_resumes_at_the_step_that_failed(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    failing = [sys.executable, "-c", "raise SystemExit(7)"]
    monkeypatch.setattr(demo, "_launcher", lambda: failing)

    def steps_skipped() -> list[int]:
        lines = capfd.readouterr().out.splitlines()
        return [int(line[1]) for line in lines if re.match(r"\[\d/6\].*already done$", line)]

    assert main(tiny) == 7, "the exit status is that of the command that failed"
    output = capfd.readouterr()
    assert re.search(r"^\[5/6\].* 2 steps", output.out, re.MULTILINE)
    assert "[6/6]" not in output.out
    assert "SystemExit(7)" in output.err, "the error names the command that failed"
    assert "Traceback" not in output.err

    # Complete results are kept. Results that are incomplete or belong to other settings are made again.
    (tmp_path / "data" / "dev.json").unlink()
    assert main(tiny) == 7
    assert steps_skipped() == [1, 2, 3]
    assert main(tiny) == 7
    assert steps_skipped() == [1, 2, 3, 4]
    assert main([*tiny, "--set=elc_bert.model.vocab_size=320"]) == 7
    assert steps_skipped() == [1]

    # A finished run is not started again, but its report is still printed.
    checkpoint = tmp_path / "run" / "checkpoints"
    checkpoint.mkdir(parents=True)
    (checkpoint / "latest").write_text("step-000002", encoding="utf-8")
    assert main([*tiny, "--set=elc_bert.model.vocab_size=320"]) == 1
    output = capfd.readouterr()
    assert output.out.count("already done") == 5
    assert "report.py: error:" in output.err


def test_a_mistake_in_the_options_is_reported_in_one_line(capfd: pytest.CaptureFixture[str]):
    assert main(["--set=elc_bert.model.vocab=3"]) == 1
    error = capfd.readouterr().err
    for fact in ("error: ", "ds_configs/demo.json", "elc_bert.model.vocab"):
        assert fact in error
    assert error.count("\n") == 1
    blend = '[{"path": "a", "weight": 1}, {"path": "b", "weight": 1}]'
    assert main([f"--set=elc_bert.data.train={blend}"]) == 1
    error = capfd.readouterr().err
    assert "error: elc_bert.data" in error
    assert error.count("\n") == 1
