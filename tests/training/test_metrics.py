"""Sums and means. That every masked token of a step weighs the same is tested in test_layouts.py."""

import math
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from elc_bert.data.sampling.steps import MicroBatch
from elc_bert.model.loss import masked_lm_loss
from elc_bert.optim.lamb import TensorNorms
from elc_bert.training.callbacks.callback import Callback
from elc_bert.training.loop import call
from elc_bert.training.metrics import Stopwatch, Totals, lamb_scalars, peak_memory

CPU = torch.device("cpu")


def micro_batch(predictions: int, tokens: int) -> MicroBatch:
    nothing = torch.zeros(0)
    return MicroBatch(nothing, nothing, nothing, torch.zeros(predictions, dtype=torch.int64), tokens)


def test_every_prediction_weighs_the_same_for_any_micro_batch():
    logits, targets = torch.randn(12, 50), torch.randint(50, (12,))
    uneven, whole = Totals(CPU), Totals(CPU)
    for part in (slice(0, 1), slice(1, 4), slice(4, 12)):
        size = part.stop - part.start
        uneven.add(*masked_lm_loss(logits[part], targets[part]), micro_batch(size, 3 * size))
    whole.add(*masked_lm_loss(logits, targets), micro_batch(12, 36))
    assert uneven.values() == pytest.approx(whole.values(), rel=1e-6)
    assert uneven.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, targets).item(), rel=1e-6)
    assert uneven.accuracy == (logits.argmax(-1) == targets).double().mean().item()
    assert uneven.tokens == 36


def test_a_micro_batch_without_predictions_is_allowed():
    logits = torch.randn(0, 50, requires_grad=True)
    loss, correct = masked_lm_loss(logits, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert (loss.item(), correct.item()) == (0.0, 0)
    totals = Totals(CPU)
    totals.add(loss, correct, micro_batch(0, 5))
    assert math.isnan(totals.loss)
    assert math.isnan(totals.accuracy)
    assert totals.tokens == 5


def test_a_nonfinite_loss_is_discarded_but_the_text_read_counts():
    totals, bad = Totals(CPU), Totals(CPU)
    totals.add(torch.tensor(6.0), torch.tensor(1), micro_batch(3, 7))
    bad.add(torch.tensor(math.nan), torch.tensor(0), micro_batch(4, 9))
    bad.discard_loss()
    totals.merge(bad)
    assert (totals.loss, totals.accuracy, totals.tokens) == (2.0, 1 / 3, 16)


def test_label_smoothing_spreads_probability_over_the_vocabulary():
    logits, targets = torch.randn(7, 50), torch.randint(50, (7,))
    smooth = torch.full((7, 50), 0.1 / 50).scatter_add(1, targets[:, None], torch.full((7, 1), 0.9))
    expected = -(smooth * logits.log_softmax(-1)).sum()
    torch.testing.assert_close(masked_lm_loss(logits, targets, label_smoothing=0.1)[0], expected)


def test_sums_survive_a_checkpoint_exactly():
    sums = [1.1, 2.0, 3.0, 1e15 + 1, 2e15, 7e14]
    totals = Totals(CPU, sums)
    assert Totals(CPU, totals.values()).values() == sums
    assert totals.words == 7e14


def test_sums_of_checkpoints_of_early_versions_are_accepted():
    totals = Totals(CPU, [1.1, 2.0, 3.0, 7.0])
    assert (totals.tokens, totals.words) == (7, 0)


def test_real_share_is_relative_to_all_computed_tokens():
    totals = Totals(CPU)
    assert totals.real_share == 0.0
    for real in (24, 32):
        nothing, rows = torch.zeros(0, dtype=torch.int64), torch.zeros(2, 16)
        totals.add(torch.tensor(0.0), torch.tensor(0), MicroBatch(rows, nothing, nothing, nothing, real))
    assert totals.real_share == 56 / 64


def test_the_stopwatch_excludes_paused_time():
    watch = Stopwatch()
    start = time.perf_counter()
    with watch.paused():
        time.sleep(0.05)
    time.sleep(0.02)
    first, _ = watch.read()
    assert 0.02 <= first <= time.perf_counter() - start - 0.05
    assert watch.read()[0] < first


def test_only_callbacks_that_are_part_of_a_step_count_as_training(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    class Take(Callback):
        def __init__(self, seconds: float, part_of_step: bool) -> None:
            self.seconds, self.part_of_step = seconds, part_of_step

        def after_step(self, run) -> None:
            now[0] += self.seconds

    run = SimpleNamespace(stopwatch=Stopwatch())
    call([Take(1.0, True), Take(10.0, False), Take(100.0, True)], run)
    assert run.stopwatch.read() == (101.0, 0.0)


def test_the_stopwatch_measures_waiting_separately():
    def slow() -> Iterator[int]:
        for item in range(2):
            time.sleep(0.03)
            yield item

    watch = Stopwatch()
    for _ in watch.waiting_for(slow()):
        time.sleep(0.01)
    seconds, waited = watch.read()
    assert 0.06 <= waited <= seconds - 0.02
    assert watch.read()[1] == 0.0


def test_peak_memory_is_in_bytes_and_does_not_fall():
    before = peak_memory(CPU)
    assert 1 << 26 < before < 1 << 40
    array = torch.ones(1 << 26)
    del array
    # The peak of what this process did earlier may have been higher than what it has now.
    assert peak_memory(CPU) >= before


class TestLambScalars:
    NORMS: ClassVar = {
        "a.weight": TensorNorms(weight=2.0, update=4.0, trust_ratio=0.5, learning_rate=0.01),
        "b.weight": TensorNorms(weight=3.0, update=1.0, trust_ratio=3.0, learning_rate=0.01),
        "c.weight": TensorNorms(weight=1.0, update=1.0, trust_ratio=1.0, learning_rate=0.01),
        "norm.weight": TensorNorms(weight=1.0, update=20.0, trust_ratio=None, learning_rate=0.01),
        "bias": TensorNorms(weight=0.0, update=1.0, trust_ratio=None, learning_rate=0.01),
    }

    def test_summary(self):
        assert lamb_scalars(self.NORMS, every_tensor=False) == pytest.approx(
            {
                "lamb/trust_ratio_min": 0.5,
                "lamb/trust_ratio_median": 1.0,
                "lamb/trust_ratio_max": 3.0,
                # LAMB moves a decaying tensor by lr of its own length; the bias is still zero.
                "lamb/update_to_weight_min": 0.01,
                "lamb/update_to_weight_median": 0.01,
                "lamb/update_to_weight_max": 0.2,
            }
        )

    def test_every_tensor(self):
        entry = lamb_scalars(self.NORMS, every_tensor=True)
        assert entry["trust_ratio/b.weight"] == 3.0
        assert entry["update_to_weight/norm.weight"] == pytest.approx(0.2)
        assert "trust_ratio/norm.weight" not in entry
        assert "update_to_weight/bias" not in entry

    def test_there_is_nothing_to_log_before_the_first_step(self):
        assert lamb_scalars({}, every_tensor=True) == {}
