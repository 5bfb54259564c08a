import os
import threading

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from elc_bert.data.format.mapped_file import MappedFile
from elc_bert.utils.errors import UserError

NUMBERS = np.arange(5000, dtype="<u2") * 7


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "numbers"
    path.write_bytes(b"abc" + NUMBERS.tobytes())
    return path


@given(places=arrays(np.int64, array_shapes(max_dims=3, min_side=0), elements=st.integers(0, 4999)))
def test_gather_is_indexing(path, places):
    gathered = MappedFile(path).gather("<u2", 3, places)
    assert gathered.shape == places.shape
    assert np.array_equal(gathered, NUMBERS[places])


@given(begins=st.lists(st.integers(0, 4900), min_size=1, max_size=5))
def test_gather_reads_runs_of_neighbors(path, begins):
    places = np.array(begins)[:, None] + np.arange(100)
    assert np.array_equal(MappedFile(path).gather("<u2", 3, places), NUMBERS[places])


def test_views_lie_in_the_file_and_outlive_release(path):
    file = MappedFile(path)
    view = file.array("<u2", 3, 5000)
    file.release()
    del file
    assert np.array_equal(view, NUMBERS)
    assert not view.flags.writeable
    with pytest.raises(TypeError, match="too small"):
        MappedFile(path).array("<u2", 3, 5001)


def test_an_empty_file_has_an_empty_view(tmp_path):
    (tmp_path / "empty").touch()
    assert MappedFile(tmp_path / "empty").array("<i8", 0, 0).tolist() == []


def test_anything_but_a_regular_file_is_an_error(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(OSError, match="not a regular file"):
            MappedFile(path)
    with pytest.raises(OSError, match="not a valid file name"):
        MappedFile(tmp_path / "\ud800")


def test_reading_a_truncated_file_is_an_error(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    file = MappedFile(path)
    os.truncate(path, 50)
    assert file.gather("u1", 0, np.array([49])) == [0]
    with pytest.raises(UserError, match="file: truncated while it was open"):
        file.gather("u1", 0, np.array([49, 50]))
    with pytest.raises(UserError, match="cannot map"):
        file.array("u1", 0, 100)


def test_replacing_a_file_does_not_change_an_open_one(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    file = MappedFile(path)
    (tmp_path / "new").write_bytes(b"n")
    os.replace(tmp_path / "new", path)
    assert file.gather("u1", 0, np.arange(3)).tobytes() == b"old"


def test_files_are_closed_with_the_object(path):
    before = psutil.Process().num_fds()
    for _ in range(50):
        MappedFile(path).array("u1", 0, 1)
    assert psutil.Process().num_fds() == before


def test_threads_share_a_file(path):
    file, wrong = MappedFile(path), []

    def read(seed):
        draw = np.random.default_rng(seed)
        for _ in range(200):
            places = draw.integers(0, 4990, (8, 1)) + np.arange(10)
            if not np.array_equal(file.gather("<u2", 3, places), NUMBERS[places]):
                wrong.append(places)
            if not np.array_equal(file.array("<u2", 3, 5000), NUMBERS):
                wrong.append(seed)
            file.release()

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
