"""When something is due in a run, and how much text it has read, in numbers."""

from types import SimpleNamespace
from typing import Any

import pytest

from elc_bert.checkpoint.progress import Progress
from elc_bert.config.length_schedule import LengthSchedule
from elc_bert.config.reader import load_config
from elc_bert.data.sampling.blend import Portion
from elc_bert.data.sampling.masking import Masking
from elc_bert.data.sampling.steps import TrainingSteps
from elc_bert.training.data import RunData
from elc_bert.training.run import Run

SCHEDULE = LengthSchedule(10, 32, 8, 0.6, 2)
"""6 steps of 8 samples of 32 tokens, then 4 steps of 4 samples of 64."""


@pytest.fixture
def run(configure, tiny_text, tiny_tokenizer, tmp_path) -> Run:
    """A run of 10 steps; nothing but its data and its numbers exists."""
    from data_tools.build import build_dataset

    build_dataset([tiny_text], tiny_tokenizer, tmp_path / "data", lengths=[32, 64])
    config = load_config(configure(tmp_path, training={"max_steps": 10}))
    steps = TrainingSteps(
        [Portion(tmp_path / "data")],
        SCHEDULE,
        1,
        Masking(),
        vocab_size=512,
        rank=0,
        world_size=1,
        micro_batch_of=lambda phase: 4,
    )
    nothing: Any = SimpleNamespace()
    data = RunData(steps, nothing, ["data"], [], {}, {})
    return Run(
        config=config,
        world=nothing,
        signals=nothing,
        schedule=SCHEDULE,
        plans={},
        data=data,
        engine=nothing,
        checkpoints=nothing,
        progress=Progress(),
        monitor=nothing,
        paradigms=[],
        peak_flops=1.0,
    )


@pytest.mark.parametrize(
    ("every", "due"),
    [(1, list(range(1, 11))), (3, [3, 6, 9, 10]), (5, [5, 10]), (11, [10]), (None, [])],
)
def test_what_happens_every_few_steps_also_happens_after_the_last_one(run, every, due):
    found = []
    for run.progress.step in range(1, 11):
        if run.is_due(every):
            found.append(run.progress.step)
    assert found == due


def test_samples_and_epochs_are_summed_over_the_phases(run):
    samples, epochs = [], []
    for run.progress.step in range(11):
        samples.append(run.samples_seen())
        epochs.append(run.epochs())
    assert samples == [0, 8, 16, 24, 32, 40, 48, 52, 56, 60, 64]
    (short,), (long,) = (run.data.train.streams[phase].segments for phase in (0, 1))
    assert short > long > 0
    assert epochs[0] == {"data": 0.0}
    assert epochs[6]["data"] == pytest.approx(48 / short)
    assert epochs[10]["data"] == pytest.approx(48 / short + 16 / long)


def test_shares_of_the_datasets_sum_to_one(run):
    assert run.data.shares({0: 48, 1: 16}) == [1.0]
