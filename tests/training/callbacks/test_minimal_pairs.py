"""Minimal pairs during training."""

import re

import pytest

from tests.evaluation.test_minimal_pairs import write_pairs
from tests.support.launching import run, scalars
from tests.training.callbacks.test_callback import WITH_CALLBACK

pytestmark = pytest.mark.launcher


def test_a_model_that_has_diverged_gets_no_score(configure, tiny_text, tmp_path):
    """Its weights are NaN after step 2. Not a number is neither right, wrong nor a tie."""
    sentences = [line for line in tiny_text.read_text().splitlines() if line.count(" ") > 3][:4]
    evaluation = {"minimal_pairs": str(write_pairs(tmp_path / "pairs", sentences)), "minimal_pairs_every": 1}
    config = configure(tmp_path, training={"max_steps": 3}, evaluation=evaluation)
    result = run("forked", 2, [config, "--fault", "diverge"], script=WITH_CALLBACK)
    assert list(scalars(tmp_path / "run", "minimal_pairs/within-word-first-20/overall")) == [1]
    for step in (2, 3):
        assert re.search(rf"step {step}: minimal pairs not scored: .* holds NaN or infinite", result.output)
        assert f"step {step}: minimal pairs 0" not in result.output
    assert "Traceback" not in result.output
