"""Values and errors that two ranks get from the collectives."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from elc_bert.distributed.collectives import SharedUserError, agree
from elc_bert.distributed.world import World
from tests.support.launching import run

SCRIPT = Path(__file__).parents[1] / "support" / "agree_on_values.py"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Results of the collectives, by rank."""
    directory = tmp_path_factory.mktemp("collectives")
    result = run("forked", 2, [directory], script=SCRIPT)
    assert result.status == 0, result.output
    return [json.loads((directory / f"rank_{rank}.json").read_text()) for rank in range(2)]


def test_agree_returns_the_result_of_each_rank(ranks):
    assert [got["agree"] for got in ranks] == ["result of rank 0", "result of rank 1"]


def test_agree_raises_the_error_of_one_rank_on_both(ranks):
    assert all("file_1.bin" in got["agree_error"] for got in ranks)


def test_from_main_returns_the_value_of_rank_0_on_both(ranks):
    assert [got["from_main"] for got in ranks] == [{"rank": 0}, {"rank": 0}]
    assert [got["from_main_none"] for got in ranks] == [None, None]


def test_from_main_raises_the_error_of_rank_0_on_both(ranks):
    assert all("file_0.bin" in got["from_main_error"] for got in ranks)


def test_raise_on_all_ranks_raises_nothing_without_a_problem(ranks):
    assert [got["raise_nothing"] for got in ranks] == [None, None]


def test_raise_on_all_ranks_raises_the_problem_of_the_lowest_failing_rank(ranks):
    # Both ranks are on one host, so the message does not name it.
    assert [got["raise_on_one"] for got in ranks] == ["key_1", "key_1"]
    assert [got["raise_on_both"] for got in ranks] == ["key_0", "key_0"]


def test_same_on_all_ranks_compares_the_full_range_of_int64(ranks):
    assert [got["same"] for got in ranks] == [True, True]
    assert [got["different"] for got in ranks] == [False, False]


def test_max_over_ranks_is_element_wise_and_in_float64(ranks):
    assert [got["maximum"] for got in ranks] == [[1.0, 0.0, 0.1], [1.0, 0.0, 0.1]]


def test_an_error_of_a_file_is_a_user_error_and_any_other_system_error_a_bug(single_process_group):
    world = World(0, 1, torch.device("cpu"))
    with pytest.raises(SharedUserError, match=r"^missing\.json: No such file or directory$"):
        agree(world, open, "missing.json")
    with pytest.raises(ConnectionResetError):
        agree(world, _reset)


def _reset() -> None:
    raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
