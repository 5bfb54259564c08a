"""A run's progress in the records of checkpoints, including records that earlier versions wrote."""

from dataclasses import asdict

import pytest

from elc_bert.checkpoint.progress import Progress


def test_progress_does_not_change_when_it_is_saved_and_loaded():
    progress = Progress(step=3, words_seen=7, epochs={"a": 0.5}, callbacks={"log": {"sums": [1.0]}})
    assert Progress.from_record(asdict(progress)) == progress


def test_fields_of_records_that_predate_callbacks_become_callback_state():
    record = {
        "step": 20,
        "samples_seen": 160,
        "epochs": {"tiny": 0.4},
        "tokens_seen": 3904,
        "words_seen": 1500,
        "since_log": [10.0, 1.0, 36.0, 410.0, 512.0, 160.0],
        "held_out_loss": 5.3,
        "evaluation_due": False,
        "nonfinite_steps": [19, 20],
    }
    progress = Progress.from_record(record)
    assert progress.callbacks == {
        "log": {"sums": [10.0, 1.0, 36.0, 410.0, 512.0, 160.0]},
        "nonfinite": {"steps": [19, 20]},
    }
    assert (progress.step, progress.tokens_seen, progress.held_out_loss) == (20, 3904, 5.3)
    assert Progress.from_record({**record, "since_log": None, "nonfinite_steps": []}).callbacks == {}


def test_a_record_with_an_unknown_field_is_refused():
    with pytest.raises(TypeError):
        Progress.from_record({"step": 1, "stride": 2})
