"""Division of a build into tasks."""

import dataclasses
import itertools
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools import build_tasks
from data_tools.build_tasks import plan_tasks, tasks_of_rank
from data_tools.encode_worker import Encoding
from data_tools.input_files import Skipped, find_input_files


@pytest.fixture(scope="module")
def encoding(tiny_tokenizer):
    return Encoding(str(tiny_tokenizer), "<u2", "split", "en", "text", skip=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for number in range(40):
        (folder / f"{number:02}.txt").write_text("Text. " * (number + 1), encoding="utf-8")
    return find_input_files([folder]).files


@settings(deadline=None)
@given(smallest=st.integers(1, 3000), most=st.integers(1, 50), ranks=st.integers(1, 60))
def test_tasks_cover_the_input_in_order_and_are_divided_among_ranks(
    files, encoding, tmp_path_factory, smallest, most, ranks
):
    folder = tmp_path_factory.mktemp("parts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_tasks, "MIN_PIECE", smallest)
        patch.setattr(build_tasks, "MAX_FILES", most)
        tasks = plan_tasks(files, encoding, folder, Skipped())
    pieces = [piece for task in tasks for piece in task.pieces]
    assert [piece.path for piece in pieces if piece.begin == 0] == [str(file.path) for file in files]
    assert [piece.end for piece in pieces if piece.is_last] == [file.size for file in files]
    for one, other in itertools.pairwise(pieces):
        assert other.begin == (0 if one.is_last else one.end)
    size = max(smallest, 1 << (sum(task.size for task in tasks) // build_tasks.PIECES).bit_length())
    assert all(len(task.pieces) == 1 or (task.size <= size and len(task.pieces) <= most) for task in tasks)
    assert [task for rank in range(ranks) for task in tasks_of_rank(tasks, rank, ranks)] == tasks


def test_the_key_of_a_part_depends_on_everything_that_decides_its_contents(files, encoding, tmp_path):
    def keys(**changes):
        changed = dataclasses.replace(encoding, **changes)
        return [task.part.key for task in plan_tasks(files, changed, tmp_path, Skipped())]

    assert keys() == keys(skip=True)
    for changes in ({"sentences": "lines"}, {"language": "de"}, {"json_key": "body"}, {"dtype": "<i4"}):
        assert not set(keys()) & set(keys(**changes))
    before = keys()
    os.utime(files[3].path, ns=(0, 0))
    assert keys() != before
