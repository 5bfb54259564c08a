"""Runs at Weights & Biases and Comet, offline: one for all resumes of a run, with its configuration."""

import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from elc_bert.config.reader import load_config
from elc_bert.engine.monitor import RunMonitor
from elc_bert.engine.trackers import COMET_FILE, WANDB_FILE
from elc_bert.utils.errors import UserError
from tests.support.launching import run

SETTINGS = {
    "training": {"max_steps": 4},
    "evaluation": {"every": 2, "sequences": 4},
    "checkpoint": {"every": 2, "keep": 5},
}


@pytest.fixture
def offline(monkeypatch, tmp_path) -> None:
    """No service can be reached, and nobody is logged in."""
    for name in ("WANDB_API_KEY", "COMET_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("COMET_OFFLINE_DIRECTORY", str(tmp_path / "comet"))


@pytest.fixture
def wandb() -> None:
    pytest.importorskip("wandb", reason="wandb is not installed; pip install wandb to test it")


@pytest.fixture
def comet() -> None:
    pytest.importorskip("comet_ml", reason="comet_ml is not installed; pip install comet_ml to test it")


def wandb_records(path: Path) -> Iterator[Any]:
    """Yield the records of an offline run, a log in the format of LevelDB after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, parts = path.read_bytes(), 7, b""
    while position < len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        size, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        parts += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def wandb_runs(directory: Path) -> list[tuple[str, dict[str, Any], list[dict[str, Any]]]]:
    """Return identifier, configuration and logged values of the offline runs in a directory, oldest first."""
    runs = []
    for path in sorted(
        (directory / "wandb").glob("offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime_ns
    ):
        name, config, history = path.stem.removeprefix("run-"), {}, []
        for record in wandb_records(path):
            for update in (*record.run.config.update, *record.config.update):
                config[update.key] = json.loads(update.value_json)
            if record.HasField("history"):
                items = {(item.key or item.nested_key[0]): item.value_json for item in record.history.item}
                history.append({key: json.loads(value) for key, value in items.items()})
        runs.append((name, config, history))
    return runs


def test_a_tracker_gets_the_section_the_configuration_and_all_values(
    monkeypatch, configure, tmp_path, caplog
):
    """A service that refuses a value gets no more; the others get everything."""
    opened, received = [], []

    class Service:
        def __init__(self, section, output_dir, config, start_step):
            opened.append((section["project"], output_dir, config, start_step))

        def scalars(self, step, values):
            received.append((step, values))
            if len(received) == 2:
                raise RuntimeError("the quota is used up")

        def close(self):
            received.append("closed")

    monkeypatch.setattr("elc_bert.engine.monitor.TRACKERS", {"wandb": Service})
    sections = {"wandb": {"enabled": True, "project": "p"}, "csv_monitor": {"enabled": True}}
    config = load_config(configure(tmp_path, **sections), ["comet.api_key=s3cr3t"])
    monitor = RunMonitor(config, 7)
    (about,) = opened
    assert (about[0], about[1], about[3]) == ("p", tmp_path / "run", 7)
    assert about[2]["elc_bert"]["model"]["hidden_size"] == 24
    assert "s3cr3t" not in json.dumps(about[2])
    values = {"train/loss": 2.0, "train/accuracy": 0.5}
    for step in (8, 3, 9):
        monitor.scalars(step, values)
    monitor.close()
    assert received == [(8, values), (3, values)]
    assert caplog.messages == ["step 3: Service failed, and gets no more values: the quota is used up"]
    assert not monitor.has_failed
    rows = (tmp_path / "run/csv_monitor/train_loss.csv").read_text().split()
    assert rows == ["step,loss", "8,2.0", "3,2.0", "9,2.0"]
    received.clear()
    config = load_config(configure(tmp_path, wandb={"enabled": True, "project": "q"}))
    RunMonitor(config, 0).close()
    assert received == ["closed"]
    assert (opened[1][0], opened[1][3]) == ("q", 0)


@pytest.mark.launcher
def test_wandb_continues_one_run_and_keeps_values_of_earlier_steps(
    wandb, offline, monkeypatch, configure, tmp_path
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = load_config(
        configure(tmp_path, wandb={"enabled": True, "project": "p"}, tensorboard={"enabled": False})
    )
    (tmp_path / "run").mkdir()
    first = RunMonitor(config, 0)
    first.scalars(5, {"train/loss": 2.0, "train/accuracy": 0.5})
    first.scalars(3, {"checkpoint/write_seconds": 0.25})
    first.close()
    resumed = RunMonitor(config, 3)
    resumed.scalars(4, {"train/loss": 1.5})
    resumed.close()
    fresh = RunMonitor(config, 0)
    fresh.close()
    one, again, other = wandb_runs(tmp_path / "run")
    assert one[0] == again[0]
    assert other[0] != one[0], "a run that starts from the beginning is another one"
    assert json.loads((tmp_path / "run" / WANDB_FILE).read_text()) == {"id": other[0]}
    for _, saved, _ in (one, again):
        assert saved["elc_bert"]["model"]["hidden_size"] == 24
        assert saved["train_batch_size"] == 8
    values = [{key: value for key, value in row.items() if key[0] != "_"} for row in one[2]]
    assert values == [
        {"step": 5, "train/loss": 2.0, "train/accuracy": 0.5},
        {"step": 3, "checkpoint/write_seconds": 0.25},
    ]
    assert [(row["step"], row["train/loss"]) for row in again[2]] == [(4, 1.5)]


@pytest.mark.launcher
def test_a_run_logs_to_one_run_at_wandb(wandb, offline, monkeypatch, configure, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = configure(tmp_path, wandb={"enabled": True}, **SETTINGS)
    for resume in ("never", tmp_path / "run/checkpoints/step-000002"):
        result = run("python", 1, ["--deepspeed_config", config, "--resume", resume])
        assert result.status == 0, result.output
    before, after = wandb_runs(tmp_path / "run")
    assert before[0] == after[0]
    steps = [[row["step"] for row in history if "train/loss" in row] for _, _, history in (before, after)]
    assert steps == [[1, 2, 3, 4], [3, 4]]
    assert {row["step"] for row in before[2] if "checkpoint/write_seconds" in row} == {2, 4}


@pytest.mark.launcher
@pytest.mark.parametrize("options", [[], ["--supervise", "1", "--nproc-per-node", "2"]])
def test_not_being_logged_in_is_one_line_and_no_reason_to_restart(
    wandb, offline, options, configure, tmp_path
):
    config = configure(tmp_path, wandb={"enabled": True}, **SETTINGS)
    result = run("python", 1, ["--deepspeed_config", config, *options])
    assert result.status == 1
    assert len(result.errors) == 1
    assert "wandb.enabled: the run at Weights & Biases cannot be started (No API key" in result.errors[0]
    assert "Traceback" not in result.output
    assert "restart" not in result.output


@pytest.mark.launcher
def test_a_service_that_fails_later_does_not_stop_the_run(
    wandb, offline, monkeypatch, configure, tmp_path, caplog
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = load_config(configure(tmp_path, wandb={"enabled": True}, csv_monitor={"enabled": True}))
    (tmp_path / "run").mkdir()
    monitor = RunMonitor(config, 0)
    sys.modules["wandb"].finish()  # the next value is refused
    for step in (1, 2):
        monitor.scalars(step, {"train/loss": 2.0})
    monitor.close()
    assert not monitor.has_failed
    (message,) = [each for each in caplog.messages if "gets no more values" in each]
    assert message.startswith("step 1: WandbRun failed")
    text = (tmp_path / "run/csv_monitor/train_loss.csv").read_text()
    assert text.split() == ["step,loss", "1,2.0", "2,2.0"]


@pytest.mark.launcher
def test_comet_continues_one_experiment(comet, offline, configure, tmp_path):
    section = {"enabled": True, "project": "p", "online": False}
    config = load_config(configure(tmp_path, comet=section, tensorboard={"enabled": False}))
    (tmp_path / "run").mkdir()
    keys = []
    for start_step, steps in ((0, (5, 3)), (3, (4,))):
        monitor = RunMonitor(config, start_step)
        keys.append(json.loads((tmp_path / "run" / COMET_FILE).read_text())["id"])
        for step in steps:
            monitor.scalars(step, {"train/loss": step / 2})
        monitor.close()
    assert keys[0] == keys[1]
    logged = []
    archives = (tmp_path / "comet").glob(f"{keys[0]}*.zip")
    for archive in sorted(archives, key=lambda path: path.stat().st_mtime_ns):
        with zipfile.ZipFile(archive) as file:
            messages = [json.loads(line)["payload"] for line in file.read("messages.json").splitlines()]
        assert "hidden_size" in json.dumps(messages)
        metrics = [message["metric"] for message in messages if "metric" in message]
        logged += [(m["metricName"], m["step"], float(m["metricValue"])) for m in metrics]
    expected = [("train/loss", step, step / 2) for step in (5, 3, 4)]
    assert [each for each in logged if each[0] == "train/loss"] == expected


@pytest.mark.launcher
def test_comet_without_a_key_is_one_line(comet, offline, configure, tmp_path):
    config = load_config(configure(tmp_path, comet={"enabled": True}))
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match=r"^comet\.enabled: .* requires an API key.*COMET_API_KEY") as caught:
        RunMonitor(config, 0)
    assert "\n" not in str(caught.value)
