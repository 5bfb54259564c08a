"""Comparison of ranks and files. Real ranks are compared in test_faults.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elc_bert.training.checks.agreement import _fingerprint, ranks_with_hosts
from elc_bert.utils.text import numbers_in_short


@given(numbers=st.lists(st.integers(0, 60), unique=True).map(sorted))
def test_numbers_in_short_names_every_number(numbers):
    parts = [list(map(int, part.split("-"))) for part in numbers_in_short(numbers).split(", ") if part]
    assert [n for ends in parts for n in range(ends[0], ends[-1] + 1)] == numbers


def test_ranks_are_named_with_their_hosts():
    hosts = ["node-a"] * 3 + ["node-b"] * 2
    assert ranks_with_hosts([0, 1, 2, 4], hosts) == "ranks 0-2 (node-a), rank 4 (node-b)"


@pytest.mark.timeout(60)  # reading the whole tebibyte would take longer
def test_a_large_file_is_not_read_whole(tmp_path):
    path = tmp_path / "large"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    before = _fingerprint(path)
    with open(path, "r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    assert _fingerprint(path) != before
    assert before.startswith(f"{1 << 40} bytes, ")
