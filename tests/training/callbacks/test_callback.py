"""Callbacks are called after every step, and checkpoints hold their state."""

import json
from pathlib import Path

import pytest

from elc_bert.checkpoint.files import read_record, with_checksum
from elc_bert.training.callbacks.callback import Callback, restore_states
from elc_bert.utils.logs import LOG_FILE
from tests.support.launching import run, scalars

pytestmark = pytest.mark.launcher

WITH_CALLBACK = Path(__file__).parents[2] / "support" / "pretrain_with_callback.py"
SETTINGS = {
    "training": {"max_steps": 8, "log_every": 3},
    "evaluation": {"every": 4},
    "checkpoint": {"every": 4, "keep": 5},
}
"""A checkpoint after step 4 falls between two entries of the log."""


@pytest.fixture(scope="module")
def finished(configure, tmp_path_factory) -> Path:
    """Directory of a finished run with one more callback, of two ranks."""
    folder = tmp_path_factory.mktemp("callback")
    result = run("forked", 2, [configure(folder, **SETTINGS)], script=WITH_CALLBACK)
    assert result.status == 0, result.output
    return folder / "run"


def test_a_callback_sees_every_step_once(finished):
    assert scalars(finished, "test/count") == {step: step for step in range(1, 9)}


def test_checkpoints_hold_the_state_of_callbacks(finished):
    record = read_record(finished / "checkpoints" / "step-000004")
    callbacks = record["progress"]["callbacks"]
    assert callbacks["count_steps"] == {"count": 4}
    assert callbacks["nonfinite"] == {"steps": []}
    assert len(callbacks["log"]["sums"]) == 6
    assert callbacks["log"]["sums"][2] > 0, "predictions of step 4, which no entry of the log has yet"


@pytest.mark.parametrize("old_record", [False, True], ids=["as written", "as written before callbacks"])
def test_a_resumed_run_restores_the_state(finished, configure, tmp_path, old_record):
    """Checkpoints of earlier versions hold the sums of the log in a field of their own."""
    config = configure(tmp_path, **SETTINGS)
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000004"
    checkpoint.parent.mkdir(parents=True)
    (finished / "checkpoints" / "step-000004").rename(checkpoint)
    try:
        if old_record:
            record = json.loads((checkpoint / "run.json").read_text())
            progress = record["progress"]
            progress["since_log"] = progress["callbacks"]["log"]["sums"]
            progress["nonfinite_steps"] = []
            del progress["callbacks"]
            saved = (checkpoint / "run.json").read_text()
            (checkpoint / "run.json").write_text(with_checksum(record))
        result = run("forked", 2, [config], script=WITH_CALLBACK)
        assert result.status == 0, result.output
        if old_record:
            (checkpoint / "run.json").write_text(saved)
    finally:
        checkpoint.rename(finished / "checkpoints" / "step-000004")
    whole = scalars(finished, "train/loss")
    assert scalars(tmp_path / "run", "train/loss") == {step: whole[step] for step in (6, 8)}
    first = 1 if old_record else 5
    assert scalars(tmp_path / "run", "test/count") == {
        step: number for number, step in enumerate(range(5, 9), start=first)
    }


def test_the_log_file_has_what_the_terminal_shows(finished):
    text = (finished / LOG_FILE).read_text()
    lines = [line for line in text.splitlines() if " rank 0 INFO " in line]
    assert sum("held-out loss" in line for line in lines) == 2
    assert [line for line in lines if " step 6 of 8: loss" in line]
    assert "ELC-BERT zero, 2 layers x 24" in text
    assert "rank 1" not in text


@pytest.mark.parametrize(
    ("fault", "status", "facts"),
    [
        ("user error", 1, ["disk: is full; free some space"]),
        ("bug", 1, ["Traceback", "RuntimeError: a bug in after_step"]),
        ("close", 0, ["Fail.close", "Traceback", "RuntimeError: a bug in close"]),
    ],
)
def test_an_error_is_on_the_terminal_and_in_the_log_file(fault, status, facts, configure, tmp_path):
    """An error while a callback is closed does not change the exit status."""
    config = configure(tmp_path, training={"max_steps": 2})
    result = run("forked", 1, [config, "--fault", fault], script=WITH_CALLBACK)
    assert result.status == status, result.output
    text = (tmp_path / "run" / LOG_FILE).read_text()
    assert " rank 0 ERROR " in text
    for fact in facts:
        assert fact in text
        assert fact in result.output
    assert ("Traceback" in result.output) == ("Traceback" in facts)


def test_two_callbacks_cannot_share_the_name_of_their_state():
    with pytest.raises(AssertionError, match="log"):
        restore_states([Named(), Named()], {})


class Named(Callback):
    name = "log"

    def after_step(self, run) -> None:
        pass


def test_a_callback_needs_its_one_method():
    with pytest.raises(TypeError, match="after_step"):
        Callback()
