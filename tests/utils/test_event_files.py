"""Scalars read from event files."""

import json

import pytest
from torch.utils.tensorboard import SummaryWriter

from elc_bert.engine.monitor import _supersede
from elc_bert.utils.event_files import all_scalars, last_scalars
from tests.report.making import log, write_run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", {"loss": {step: 10.0 - step for step in (1, 2, 3, 4)}})


def test_scalars_over_the_steps(run):
    series = all_scalars(run)["loss"]
    assert series.steps.tolist() == [1, 2, 3, 4]
    assert series.values.tolist() == [9.0, 8.0, 7.0, 6.0]
    assert series.last == 6.0
    assert all_scalars(run, up_to=2)["loss"].steps.tolist() == [1, 2]
    assert last_scalars(run, up_to=2) == {"loss": 8.0}
    assert all_scalars(run, up_to=0) == {}


def test_repeated_steps_supersede_earlier_entries_without_a_session_log(run):
    log(run / "tensorboard", {"loss": {1: 5.0, 2: 4.0}})
    series = all_scalars(run)["loss"]
    assert (series.steps.tolist(), series.values.tolist()) == ([1, 2], [5.0, 4.0])


def test_a_resumed_run_continues_from_its_checkpoint(run):
    log(run / "tensorboard", {"loss": {3: 1.0}, "other": {3: 0.5}})
    series = all_scalars(run)["loss"]
    assert (series.steps.tolist(), series.values.tolist()) == ([1, 2, 3], [9.0, 8.0, 1.0])
    assert last_scalars(run) == {"loss": 1.0, "other": 0.5}


def test_a_run_that_was_resumed_but_has_not_logged_again(run):
    with SummaryWriter(str(run / "tensorboard")) as writer:
        _supersede(writer, start_step=2)
    assert all_scalars(run)["loss"].steps.tolist() == [1, 2]


def test_the_files_of_a_real_run(tiny_run):
    series = all_scalars(tiny_run.directory)
    assert series["train/loss"].steps.tolist() == [1, 2, 3, 4]
    assert series["held_out/loss"].steps.tolist() == [4]


def test_logs_in_another_folder(run, tmp_path):
    config = json.loads((run / "config.json").read_text())
    config["tensorboard"] = {"enabled": True, "output_path": str(tmp_path / "logs"), "job_name": "mine"}
    (run / "config.json").write_text(json.dumps(config))
    assert last_scalars(run) == {"loss": 6.0}, "that folder is empty, so the run's own logs count"
    log(tmp_path / "logs" / "mine", {"loss": {7: 3.0}})
    assert last_scalars(run) == {"loss": 3.0}


def test_a_run_without_logs(tmp_path):
    assert all_scalars(tmp_path) == {}
