"""Measured speed of matrix products."""

import torch

from elc_bert.utils.peak_flops import measure_peak_flops


def test_the_peak_is_the_speed_of_a_matrix_product():
    assert 1e8 < measure_peak_flops(torch.device("cpu"), torch.float32) < 1e15
