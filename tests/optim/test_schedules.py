"""Learning-rate schedules."""

import json
from pathlib import Path

import pytest

from elc_bert.optim import schedule_factor

CASES = json.loads((Path(__file__).parents[1] / "golden" / "lr_schedule.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['total_steps']} steps")
def test_cosine_matches_the_reference(case):
    factor = schedule_factor(
        "Cosine", case["total_steps"], case["warmup_steps"] / case["total_steps"], case["min_factor"]
    )
    for step, expected in case["lr_at_step"].items():
        assert case["peak"] * factor(int(step)) == pytest.approx(expected, rel=1e-12)


def test_linear_and_constant():
    linear = schedule_factor("Linear", 110, 10 / 110, 0.1)
    assert [linear(s) for s in (0, 5, 10)] == pytest.approx([0.0, 0.5, 1.0])
    assert linear(60) == pytest.approx(0.55)
    assert linear(110) == pytest.approx(0.1)
    constant = schedule_factor("Constant", 110, 10 / 110, 0.1)
    assert [constant(s) for s in (5, 10, 109)] == [0.5, 1.0, 1.0]


def test_without_warmup_the_schedule_starts_at_the_peak():
    assert schedule_factor("Cosine", 100, 0.0, 0.1)(0) == 1.0


@pytest.mark.parametrize(("proportion", "warmup_steps"), [(0.29, 28), (0.999, 99), (0.009, 0)])
def test_the_warmup_is_cut_to_whole_steps_as_in_the_reference(proportion, warmup_steps):
    factor = schedule_factor("Cosine", 100, proportion, 0.1)
    assert [step for step in range(101) if factor(step) == 1.0] == [warmup_steps]
