"""Messages reach the terminal of rank 0, and with time and rank the log file."""

import contextlib
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from elc_bert.utils import logs

logger = logging.getLogger("elc_bert.test")


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    logs.close()
    logging.getLogger("elc_bert").propagate = True


def test_rank_0_writes_to_the_terminal_and_to_the_file(tmp_path, capsys):
    path = tmp_path / logs.LOG_FILE
    logs.configure(rank=0)
    logger.info("before the file is open")
    logs.open_file(path, rank=0)
    logger.warning("attention")
    logger.debug("detail")
    logger.error("shown by other means", extra=logs.FILE_ONLY)
    logs.close()
    out, err = capsys.readouterr()
    assert out.splitlines() == ["before the file is open", "warning: attention"]
    assert err == ""
    lines = path.read_text().splitlines()
    assert [line.split(" rank 0 ")[1] for line in lines] == [
        "INFO before the file is open",
        "WARNING attention",
        "ERROR shown by other means",
    ]
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} rank 0 ", line) for line in lines)


def test_other_ranks_write_only_warnings_and_only_to_the_file(tmp_path, capsys):
    logs.configure(rank=3)
    logs.open_file(tmp_path / logs.LOG_FILE, rank=3)
    logger.info("on every rank")
    assert not (tmp_path / logs.LOG_FILE).exists(), "a rank without messages creates no file"
    logger.warning("on this rank")
    logs.close()
    assert capsys.readouterr() == ("", "")
    (line,) = (tmp_path / logs.LOG_FILE).read_text().splitlines()
    assert line.endswith(" rank 3 WARNING on this rank")


@pytest.mark.parametrize(
    ("level", "shown"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)], ids=logs.LEVELS
)
def test_the_level_holds_for_the_terminal(level, shown, tmp_path, capsys):
    logs.configure(rank=0, level=level)
    logs.open_file(tmp_path / logs.LOG_FILE, rank=0)
    for each in logs.LEVELS:
        logger.log(logging.getLevelNamesMapping()[each.upper()], each)
    logs.close()
    out, err = capsys.readouterr()
    assert len((out + err).splitlines()) == shown
    in_file = (tmp_path / logs.LOG_FILE).read_text().splitlines()
    assert len(in_file) == (4 if level == "debug" else 3), "the file has at least info"


def test_messages_of_deepspeed_go_to_the_file_only(tmp_path, capsys):
    logs.configure(rank=0)
    logs.open_file(tmp_path / logs.LOG_FILE, rank=0)
    external = logging.getLogger("DeepSpeed")
    propagate, external.propagate = external.propagate, False
    try:
        external.error("from DeepSpeed")
    finally:
        external.propagate = propagate
    logs.close()
    assert "from DeepSpeed" in (tmp_path / logs.LOG_FILE).read_text()
    assert "from DeepSpeed" not in capsys.readouterr().out


def test_a_file_that_cannot_be_written_is_reported_once(tmp_path, capsys):
    (tmp_path / "full").symlink_to("/dev/full")
    logs.configure(rank=0)
    logs.open_file(tmp_path / "full", rank=0)
    logger.info("one")
    logger.info("two")
    logs.close()
    out, err = capsys.readouterr()
    assert out.splitlines() == ["one", "two"]
    (line,) = err.splitlines()
    assert "full: cannot be written" in line
    assert "No space left" in line


def test_the_file_has_all_messages_if_the_terminal_is_gone(tmp_path, monkeypatch):
    """The reader of standard output, such as ``head``, may exit before the run."""
    reader, writer = os.pipe()
    os.close(reader)
    logs.configure(rank=0)
    logs.open_file(tmp_path / logs.LOG_FILE, rank=0)
    stream = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stdout", stream)
    logger.info("one")
    logger.info("two")
    logs.close()
    monkeypatch.undo()
    with contextlib.suppress(BrokenPipeError):
        stream.close()
    texts = [line.split(" rank 0 ")[1] for line in (tmp_path / logs.LOG_FILE).read_text().splitlines()]
    assert texts[0].startswith("WARNING terminal: cannot be written: Broken pipe")
    assert texts[1:] == ["INFO one", "INFO two"]


def test_a_file_system_that_does_not_respond_delays_nothing(tmp_path, capsys, monkeypatch):
    """The log file is a named pipe. Opening it for writing blocks until another process reads from it."""
    monkeypatch.setattr(logs, "FLUSH_SECONDS", 0.1)
    os.mkfifo(tmp_path / "pipe")
    logs.configure(rank=0)
    logs.open_file(tmp_path / "pipe", rank=0)
    start = time.monotonic()
    for number in range(100):
        logger.info("step %d", number)
    assert len(capsys.readouterr().out.splitlines()) == 100
    logs.close()
    assert time.monotonic() - start < 5
    let_writers_end(tmp_path / "pipe")


def test_only_the_first_flush_waits_for_a_file_system_that_does_not_respond(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "FLUSH_SECONDS", 1.0)
    os.mkfifo(tmp_path / "pipe")
    logs.configure(rank=0)
    logs.open_file(tmp_path / "pipe", rank=0)
    logger.info("one message")
    start = time.monotonic()
    for _ in range(20):
        logs.flush()
    logs.close()
    assert 1.0 <= time.monotonic() - start < 10, "20 timeouts would take 20 s"
    let_writers_end(tmp_path / "pipe")


def test_a_process_that_is_not_a_rank_does_not_wait_for_a_file_system_either(tmp_path, monkeypatch):
    """On a network file system whose server is gone, even the question whether a directory exists blocks."""
    responds = threading.Event()
    monkeypatch.setattr(logs, "FLUSH_SECONDS", 0.1)
    monkeypatch.setattr(Path, "is_dir", lambda path: responds.wait(60))
    start = time.monotonic()
    logs.append(tmp_path / logs.LOG_FILE, "supervisor", "restart 1 of 3")
    took = time.monotonic() - start
    responds.set()
    assert took < 30
    until(lambda: (tmp_path / logs.LOG_FILE).exists() and (tmp_path / logs.LOG_FILE).read_text())
    assert "restart 1 of 3" in (tmp_path / logs.LOG_FILE).read_text(), "written once the file system responds"


def test_a_process_that_is_not_a_rank_reports_a_file_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "full").symlink_to("/dev/full")
    logs.append(tmp_path / "full", "supervisor", "restart 1 of 3")
    (line,) = capsys.readouterr().err.splitlines()
    assert "full: cannot be written" in line
    assert "No space left" in line


def until(condition: Callable[[], object]) -> None:
    """Wait, at most 10 s, until a condition holds."""
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def let_writers_end(pipe: Path) -> None:
    """Read from a pipe for a moment, so that the threads that wait to open it end."""
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    time.sleep(0.2)
    os.close(reader)


def test_a_process_that_is_not_a_rank_appends_a_line_if_the_folder_exists(tmp_path: Path):
    logs.append(tmp_path / "missing" / logs.LOG_FILE, "supervisor", "nowhere")
    logs.append(tmp_path / logs.LOG_FILE, "supervisor on node-a", "restart 1 of 3")
    assert not (tmp_path / "missing").exists()
    assert (tmp_path / logs.LOG_FILE).read_text().endswith(" supervisor on node-a INFO restart 1 of 3\n")
