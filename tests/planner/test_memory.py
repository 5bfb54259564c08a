"""Workload and peak memory that a plan assumes."""

from pathlib import Path

import pytest

from elc_bert.config.reader import load_config
from elc_bert.planner.memory import BASELINES, Memory, peak_memory, workload
from elc_bert.planner.parameters import count_parameters
from elc_bert.planner.states import layout_of, pieces

STRICT = Path(__file__).parents[2] / "ds_configs" / "strict.json"


def load(*overrides: str):
    return load_config(STRICT, list(overrides))


def test_the_expected_number_of_tokens_is_predicted():
    """``[CLS]`` and ``[SEP]`` are never masked."""
    config = load("elc_bert.data.mask_probability=0.25")
    load_of_128 = workload(config, 64, 128, "fused", on_cpu=False)
    assert (load_of_128.sequences, load_of_128.tokens) == (64, 128)
    assert load_of_128.predicted == 0.25 * 64 * 126
    assert load_of_128.compute_bytes == 2


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_peak_is_the_largest_of_backward_reduction_and_step(accumulation):
    config = load()
    parameters = count_parameters(config.elc_bert.model)
    small, large = (workload(config, count, 128, "fused", on_cpu=False) for count in (1, 4096))
    at_large = peak_memory(config, parameters, large, accumulation, 8, on_cpu=False)
    assert at_large.moment == "backward"
    assert at_large.activations is not None
    at_small = peak_memory(config, parameters, small, accumulation, 8, on_cpu=False)
    assert at_small.moment != "backward"
    assert at_small.activations is None
    assert at_large.total > at_small.total
    state = pieces(layout_of(config, 8), parameters, False, False)
    always = sum(piece.bytes for piece in state if piece.when == "always" and not piece.on_host)
    assert at_small.total > BASELINES["gpu"] + always


def test_the_total_includes_baseline_pieces_and_activations():
    memory = Memory("step", 100, {"weights": 20.0, "moments": 3.0}, None, host=1000.0)
    assert memory.total == 123.0
