"""Atomic writing of files."""

import errno
import os

import pytest

from elc_bert.utils.errors import describe_os_error
from elc_bert.utils.files import atomic_write, read_regular


def test_the_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "a.txt"
    with atomic_write(path, "w") as file:
        file.write("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path, "w") as file:
        file.write("half" * (1 // 0))
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]


def test_an_error_while_writing_names_the_file(tmp_path):
    path = tmp_path / "a.txt"
    with (
        pytest.raises(OSError, match="No space left") as caught,
        atomic_write(path, "w"),
        open("/dev/full", "w") as full,
    ):
        full.write("x" * 100_000)
    assert caught.value.filename == str(path)
    assert describe_os_error(caught.value).startswith(f"{path}: No space left on device; ")


def test_only_regular_files_are_read(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"whole\n")
    assert read_regular(path) == b"whole\n"
    os.mkfifo(tmp_path / "pipe")
    for each in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(OSError, match="not a regular file") as caught:
            read_regular(each)
        assert caught.value.filename == str(each)
    with pytest.raises(IsADirectoryError):
        read_regular(tmp_path)


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ENFILE, "ulimit -n"),
        (errno.ENOENT, None),
    ],
)
def test_an_error_at_a_limit_says_what_to_do(number, advice):
    line = describe_os_error(OSError(number, "Something", "a.txt"))
    assert line.startswith("a.txt: Something")
    assert (advice in line) if advice else line == "a.txt: Something"
