"""CSV files of a run that is resumed: one header, and every step once."""

import csv
from pathlib import Path

import pytest

from elc_bert.config.reader import load_config
from elc_bert.engine.csv_log import CsvLog
from elc_bert.engine.monitor import RunMonitor
from elc_bert.utils.errors import UserError
from tests.support.launching import run, scalars


def rows(file: Path) -> list[list[str]]:
    with open(file, encoding="utf-8", newline="") as text:
        return list(csv.reader(text))


def test_a_file_has_one_header_and_the_last_value_of_each_step(tmp_path):
    log = CsvLog(tmp_path / "csv", 0)
    for step in range(1, 6):
        log.scalars(step, {"train/loss": step / 2, "data/epochs/my books": 0.5})
    assert {path.name for path in (tmp_path / "csv").iterdir()} == {
        "train_loss.csv",
        "data_epochs_my_books.csv",
    }
    with open(tmp_path / "csv/train_loss.csv", "a") as file:
        file.write("6,3.")  # the process was killed while it wrote a line
    resumed = CsvLog(tmp_path / "csv", 3)
    assert rows(tmp_path / "csv/train_loss.csv") == [
        ["step", "loss"],
        ["1", "0.5"],
        ["2", "1.0"],
        ["3", "1.5"],
    ]
    resumed.scalars(4, {"train/loss": 9.0})
    with open(tmp_path / "csv/train_loss.csv", "a") as file:
        file.write("5,3")
    CsvLog(tmp_path / "csv", 5)
    assert rows(tmp_path / "csv/train_loss.csv")[-2:] == [["3", "1.5"], ["4", "9.0"]]
    assert rows(tmp_path / "csv/data_epochs_my_books.csv") == [
        ["step", "my books"],
        *([str(s), "0.5"] for s in (1, 2, 3)),
    ]


def test_files_of_deepspeed_with_repeated_steps_are_cleaned(tmp_path):
    """Its monitor wrote a second header at a resume, and repeated the steps after the checkpoint."""
    old = (
        "step,loss\r\n1,7.0\r\n2,6.0\r\n3,5.0\r\nstep,loss\r\n2,6.5\r\n3,5.5\r\n4,nan\r\nbroken\r\n5,4.0\r\n"
    )
    (tmp_path / "train_loss.csv").write_bytes(old.encode())
    (tmp_path / "empty.csv").touch()
    CsvLog(tmp_path, 4)
    expected = [["step", "loss"], ["1", "7.0"], ["2", "6.5"], ["3", "5.5"], ["4", "nan"]]
    assert rows(tmp_path / "train_loss.csv") == expected
    assert not (tmp_path / "empty.csv").exists()


def test_a_new_run_does_not_continue_the_files_of_another(tmp_path):
    for number in range(3):
        CsvLog(tmp_path, 0).scalars(1, {"a": float(number)})
    assert rows(tmp_path / "a.csv") == [["step", "a"], ["1", "2.0"]]
    for number in (1, 2):
        assert rows(tmp_path / f"earlier-{number}" / "a.csv") == [["step", "a"], ["1", f"{number - 1}.0"]]


def test_a_folder_that_cannot_be_written_is_an_error_of_the_log(configure, tmp_path):
    (tmp_path / "file").touch()
    for name in ("csv_monitor", "tensorboard"):
        section = {"enabled": True, "output_path": str(tmp_path / "file")}
        config = load_config(configure(tmp_path, **{name: section}))
        with pytest.raises(UserError, match=rf"file/{name}: the log cannot be written: Not a directory"):
            RunMonitor(config, 0)


@pytest.mark.launcher
def test_a_resumed_run_repeats_no_step(configure, tmp_path):
    settings = {
        "csv_monitor": {"enabled": True},
        "training": {"max_steps": 5},
        "evaluation": {"every": 2, "sequences": 4},
        "checkpoint": {"every": 2, "keep": 5},
    }
    config = configure(tmp_path, **settings)
    checkpoint = tmp_path / "run/checkpoints/step-000002"
    for resume in ("never", checkpoint):
        result = run("forked", 2, ["--deepspeed_config", config, "--resume", resume])
        assert result.status == 0, result.output
    files = {path.stem: rows(path) for path in (tmp_path / "run/csv_monitor").glob("*.csv")}
    for name, (header, *values) in files.items():
        steps = [int(step) for step, _ in values]
        assert header[0] == "step"
        assert steps == sorted(set(steps)), name
    assert [int(step) for step, _ in files["train_loss"][1:]] == [1, 2, 3, 4, 5]
    assert [int(step) for step, _ in files["held_out_loss"][1:]] == [2, 4, 5]
    logged = scalars(tmp_path / "run", "train/loss")
    assert {int(step): float(value) for step, value in files["train_loss"][1:]} == pytest.approx(logged)
