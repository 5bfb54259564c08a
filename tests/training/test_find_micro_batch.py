"""Search for the largest micro-batch that fits."""

import re
from collections.abc import Callable

import pytest

from elc_bert.training.find_micro_batch import Trial, conclusion, search
from tests.support.launching import run

POWERS = [1, 2, 4, 8, 16, 32, 64]
DIVISORS_OF_360 = [n for n in range(1, 361) if 360 % n == 0]


def trials_of(sizes: list[int], limit: float, cost: Callable[[int], float]) -> tuple[list[int], list[int]]:
    """Return the sizes that the search tried, and those that fit. Every sequence needs at least 1 byte."""
    tried = []

    def attempt(size: int) -> Trial:
        tried.append(size)
        return Trial(size, cost(size), 1.0)

    return tried, [trial.micro_batch for trial in search(sizes, limit, attempt, saved=float)]


def test_sizes_double_until_the_next_would_not_fit():
    tried, good = trials_of(POWERS, limit=100, cost=lambda n: 20 + 4 * n)
    assert tried == good == [1, 2, 4, 8, 16]


def test_search_ends_at_the_largest_divisor_that_fits():
    tried, good = trials_of(DIVISORS_OF_360, limit=100, cost=lambda n: 20 + n)
    assert good[-1] == 72  # the next divisor, 90, would exceed the limit
    assert max(tried) == 72
    tried, good = trials_of(DIVISORS_OF_360, limit=111, cost=lambda n: 20 + n)
    assert good[-1] == 90


def test_search_ends_at_the_largest_size_if_all_fit():
    assert trials_of(POWERS, limit=1000, cost=lambda n: 20 + n)[1] == POWERS


def test_search_returns_nothing_if_no_size_fits():
    assert trials_of(POWERS, limit=10, cost=lambda n: 20 + n) == ([1], [])


def test_search_handles_a_jump_of_the_memory():
    tried, good = trials_of(DIVISORS_OF_360, limit=100, cost=lambda n: 20 + n if n < 30 else 200 + n)
    assert good[-1] == 24
    assert [size for size in tried if size >= 30], "the jump can be found only by a trial that does not fit"


def test_search_tries_no_size_beyond_the_limit_if_memory_grows_linearly():
    tried, good = trials_of(POWERS, limit=500, cost=lambda n: 20 + 10 * n)
    # One trial gives only a lower bound of the memory of larger sizes, two trials give the slope.
    assert tried == good == [1, 2, 4, 8, 16, 32]


def test_the_fastest_size_is_named_if_it_is_not_the_largest():
    slow, fast, largest = Trial(1, 1, 50.0), Trial(2, 2, 2000.0), Trial(4, 3, 1500.0)
    assert conclusion([slow, fast]) == ['"train_micro_batch_size_per_gpu": 2']
    assert conclusion([slow, fast, largest]) == [
        'largest: "train_micro_batch_size_per_gpu": 4',
        'fastest: "train_micro_batch_size_per_gpu": 2  (2k against 1.5k tokens/s)',
    ]


@pytest.mark.launcher
def test_through_the_launcher_two_ranks_agree_and_nothing_is_written(configure, tmp_path):
    given = {"train_batch_size": 24, "gradient_accumulation_steps": 2}
    config = configure(tmp_path, **given, training={"long_after": 0.5})
    result = run("torchrun", 2, ["--deepspeed_config", config, "--find-micro-batch", "--memory-limit", "4"])
    assert result.status == 0, result.output
    lines = result.stdout.splitlines()
    assert "at most 4.00 GiB per device; possible: 1, 2, 3, 4, 6, 12" in lines
    trials = re.findall(
        r"^micro-batch (\d+) \(as (\d+) x (\d+)\): ([\d.]+) GiB, \S+ tokens/s$", result.stdout, re.M
    )
    # The second phase has sequences of 4 times the length, and a quarter as many (at least one).
    assert [trial[:3] for trial in trials] == [
        ("1", "1", "128"),
        ("2", "1", "128"),
        ("4", "1", "128"),
        ("6", "1", "128"),
        ("12", "3", "128"),
    ]
    assert any('"train_micro_batch_size_per_gpu": 12' in line for line in lines)
    # With the line that is advised and this key the run would not start.
    assert lines[-1] == "remove gradient_accumulation_steps, which follows from the micro-batch"
    assert not (tmp_path / "run").exists()


@pytest.mark.launcher
def test_through_the_launcher_no_micro_batch_fits(configure, tmp_path):
    config = configure(tmp_path)
    result = run("forked", 1, ["--deepspeed_config", config, "--find-micro-batch", "--memory-limit", "0.1"])
    assert result.status == 1
    (error,) = result.errors
    assert error.startswith(f"{config}: no micro-batch fits into 0.10 GiB; use more devices")
