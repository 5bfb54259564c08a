"""Every number of a log entry has the value that its name promises."""

import math
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from elc_bert.checkpoint.progress import Progress
from elc_bert.config.length_schedule import LengthSchedule
from elc_bert.config.reader import load_config
from elc_bert.data.sampling.steps import MicroBatch
from elc_bert.distributed.world import World
from elc_bert.model import flops_per_token
from elc_bert.training.callbacks import log_entry
from elc_bert.training.callbacks.log_entry import LogEntry
from elc_bert.training.metrics import Stopwatch, Totals
from elc_bert.training.step import StepResult

CPU = torch.device("cpu")
PEAK = 3e9
"""Operations per second of all devices."""


class Clock:
    """Time that passes only when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


class Monitor:
    def __init__(self) -> None:
        self.entries: dict[int, dict[str, float]] = {}

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self.entries[step] = values


def result_of(loss: float, correct: int, predictions: int, tokens: int, words: int) -> StepResult:
    """Return the result of a step of one micro-batch of 8 rows of 32 tokens."""
    totals = Totals(CPU)
    nothing = torch.zeros(0)
    batch = MicroBatch(torch.zeros(8, 32), nothing, nothing, torch.zeros(predictions), tokens, words)
    totals.add(torch.tensor(loss), torch.tensor(correct), batch)
    return StepResult(totals, [], torch.tensor(1.5))


@pytest.fixture
def run(configure, clock, tmp_path, single_process_group) -> Any:
    """A run of 4 steps of 32 tokens, then 4 of 128, with an entry every 2 steps."""
    config = load_config(
        configure(tmp_path, data={"mask_probability": 0.25}, training={"max_steps": 8, "log_every": 2})
    )
    steps = SimpleNamespace(progress=Progress(), last_step=8)

    def is_due(every: int) -> bool:
        return steps.progress.step % every == 0 or steps.progress.step == steps.last_step

    return SimpleNamespace(
        config=config,
        world=World(0, 1, CPU),
        schedule=LengthSchedule(8, 32, 8, 0.5),
        progress=steps.progress,
        last_step=8,
        is_due=is_due,
        stopwatch=Stopwatch(),
        monitor=Monitor(),
        peak_flops=PEAK,
        learning_rate=0.0,
        epochs=lambda: {"tiny": 0.75},
        engine=SimpleNamespace(skipped_steps=3, basic_optimizer=None, fp16_enabled=lambda: False),
        result=None,
        summary={},
    )


def take(run: Any, entry: LogEntry, result: StepResult, rate: float) -> None:
    run.progress.step += 1
    run.learning_rate, run.result = rate, result
    entry.after_step(run)


def test_an_entry_averages_over_the_steps_since_the_last_one(run, clock, monkeypatch):
    monkeypatch.setattr(log_entry, "peak_memory", lambda device: 3 * 2**29)
    entry = LogEntry(run)
    run.stopwatch.read()
    take(run, entry, result_of(60.0, 3, 10, 150, 90), rate=0.001)
    assert run.monitor.entries == {}
    clock.now += 4.0
    with run.stopwatch.paused():
        clock.now += 1000.0
    for _ in run.stopwatch.waiting_for(iter([None])):
        pass
    take(run, entry, result_of(20.0, 9, 30, 250, 110), rate=0.002)
    flops = flops_per_token(run.config.elc_bert.model, 32, 0.25)
    assert run.monitor.entries == {
        2: pytest.approx(
            {
                "train/loss": 80 / 40,
                "train/accuracy": 12 / 40,
                "train/learning_rate": 0.002,
                "train/gradient_norm": 1.5,
                "train/sequence_length": 32,
                "train/skipped_steps": 3,
                "throughput/tokens_per_second": 400 / 4.0,
                "throughput/real_share": 400 / 512,
                "throughput/mfu": flops * 100.0 / PEAK,
                "throughput/data_wait": 0.0,
                "memory/peak_gib": 1.5,
                "data/words": 200,
                "data/epochs": 0.75,
            }
        )
    }
    assert (run.progress.tokens_seen, run.progress.words_seen) == (400, 200)
    assert run.summary == {"loss": "2.0000", "acc": "0.300", "lr": "2.00e-03", "tok/s": "100"}


def test_the_next_entry_starts_from_zero_but_for_the_words(run, clock):
    entry = LogEntry(run)
    run.stopwatch.read()
    for step in range(6):
        clock.now += 2.0
        take(run, entry, result_of(10.0 * (step + 1), 1, 10, 100, 50), rate=0.001)
    losses = {step: values["train/loss"] for step, values in run.monitor.entries.items()}
    assert losses == {2: 1.5, 4: 3.5, 6: 5.5}
    assert [each["data/words"] for each in run.monitor.entries.values()] == [100, 200, 300]
    assert [each["throughput/tokens_per_second"] for each in run.monitor.entries.values()] == [50.0] * 3
    # The entry is that of the last step, which is numbered from 1: step 4 is still short, step 5 is long.
    assert [each["train/sequence_length"] for each in run.monitor.entries.values()] == [32, 32, 128]
    expected = flops_per_token(run.config.elc_bert.model, 128, 0.25) * 50.0 / PEAK
    assert run.monitor.entries[6]["throughput/mfu"] == pytest.approx(expected)


def test_the_share_of_waiting_is_relative_to_the_time_of_the_entry(run, clock):
    def slow():
        clock.now += 3.0
        yield 1

    entry = LogEntry(run)
    run.stopwatch.read()
    for _ in run.stopwatch.waiting_for(slow()):
        clock.now += 9.0
    for _ in range(2):
        take(run, entry, result_of(1.0, 1, 1, 30, 1), rate=0.001)
    assert run.monitor.entries[2]["throughput/data_wait"] == pytest.approx(0.25)
    assert run.monitor.entries[2]["throughput/tokens_per_second"] == pytest.approx(5.0)


def test_text_read_since_the_last_entry_counts_as_seen_and_is_kept_in_checkpoints(run, clock):
    entry = LogEntry(run)
    for _ in range(3):
        clock.now += 1.0
        take(run, entry, result_of(7.0, 1, 2, 100, 60), rate=0.001)
    assert (run.progress.tokens_seen, run.progress.words_seen) == (200, 120)
    assert entry.seen(run) == (300, 180)
    resumed = LogEntry(run)
    resumed.load_state_dict(entry.state_dict())
    assert resumed.state_dict() == {"sums": [7.0, 1.0, 2.0, 100.0, 256.0, 60.0]}
    assert resumed.seen(run) == (300, 180)
    other = LogEntry(SimpleNamespace(world=World(1, 2, CPU)))
    other.load_state_dict(entry.state_dict())
    assert other.state_dict() == {"sums": [0.0] * 6}, "the sums of all ranks are restored on rank 0 alone"


def test_several_datasets_have_an_entry_each(run, clock):
    run.epochs = lambda: {"a": 1.0, "b": 0.5}
    entry = LogEntry(run)
    for _ in range(2):
        clock.now += 1.0
        take(run, entry, result_of(7.0, 1, 2, 100, 60), rate=0.001)
    values = run.monitor.entries[2]
    assert (values["data/epochs/a"], values["data/epochs/b"]) == (1.0, 0.5)
    assert "data/epochs" not in values
    assert not any(math.isnan(value) for value in values.values())
