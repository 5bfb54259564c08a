"""Sums and means; that a whole step weighs every masked token alike is tested in test_layouts.py."""

import time

import pytest
import torch

from elc_bert.data.steps import MicroBatch
from elc_bert.training.loss import masked_lm_loss
from elc_bert.training.metrics import Stopwatch, Totals, measure_peak_flops

CPU = torch.device("cpu")


def micro_batch(predictions: int, tokens: int) -> MicroBatch:
    nothing = torch.zeros(0)
    return MicroBatch(nothing, nothing, nothing, torch.zeros(predictions, dtype=torch.int64), tokens)


def test_every_prediction_counts_the_same_however_they_are_cut():
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


def test_a_micro_batch_may_have_nothing_to_predict():
    logits = torch.randn(0, 50, requires_grad=True)
    loss, correct = masked_lm_loss(logits, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert (loss.item(), correct.item()) == (0.0, 0)
    totals = Totals(CPU)
    totals.add(loss, correct, micro_batch(0, 5))
    assert (totals.loss, totals.accuracy, totals.tokens) == (0.0, 0.0, 5)


def test_label_smoothing_spreads_probability_over_the_vocabulary():
    logits, targets = torch.randn(7, 50), torch.randint(50, (7,))
    smooth = torch.full((7, 50), 0.1 / 50).scatter_add(1, targets[:, None], torch.full((7, 1), 0.9))
    expected = -(smooth * logits.log_softmax(-1)).sum()
    torch.testing.assert_close(masked_lm_loss(logits, targets, label_smoothing=0.1)[0], expected)


def test_sums_survive_a_checkpoint_exactly():
    totals = Totals(CPU, [1.1, 2.0, 3.0, 1e15 + 1])
    assert Totals(CPU, totals.values()).values() == [1.1, 2.0, 3.0, 1e15 + 1]


def test_the_stopwatch_leaves_out_what_is_excluded():
    watch = Stopwatch()
    time.sleep(0.05)
    watch.exclude(0.03)
    first = watch.read()
    assert first >= 0.02
    assert watch.read() < first


def test_the_peak_is_that_of_a_matrix_product():
    assert 1e8 < measure_peak_flops(CPU, torch.float32, size=256) < 1e15
