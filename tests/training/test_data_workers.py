"""Data workers that fail, are killed or are stuck, and the limits that they do not depend on."""

import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from elc_bert.distributed.exit_status import LOST_A_RANK
from elc_bert.distributed.signals import SIGNALS
from elc_bert.training.data_workers import describe_failed_start, describe_worker_failure, prepare_data_worker
from tests.support.launching import PRETRAIN, kill, last_step, poll, run, spawn, start


def send(queue: Any, item: Any) -> None:
    """Send an item as a data worker does, and wait to be ended."""
    prepare_data_worker()
    for number in SIGNALS:
        os.kill(os.getpid(), number)
    queue.put(item)
    time.sleep(60)


def worker_that_sends(item: Any, close_pipe: bool = False) -> Any:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    worker = context.Process(target=send, args=(queue, item))
    worker.start()
    if close_pipe:
        queue._reader.close()
    return worker, queue


def test_a_worker_ignores_signals():
    worker, queue = worker_that_sends("batch")
    assert queue.get(timeout=30) == "batch"
    assert worker.is_alive()
    worker.kill()
    worker.join()


def test_a_worker_that_cannot_send_a_batch_exits(capfd):
    worker, _ = worker_that_sends(threading.Lock())  # cannot be pickled
    worker.join(30)
    assert worker.exitcode == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: a data worker could not send a batch: TypeError: cannot pickle")


def test_messages_about_workers_name_pid_and_key():
    ended = describe_worker_failure("DataLoader worker (pid(s) 12, 14) exited unexpectedly")
    killed = describe_worker_failure("DataLoader worker (pid 12) is killed by signal: Killed. ")
    assert ended is not None
    assert killed is not None
    assert "pid 12, 14 ended unexpectedly" in ended
    assert "pid 12 was killed by a signal (Killed)" in killed
    assert "elc_bert.data.workers=0" in ended
    assert describe_worker_failure("mat1 and mat2 shapes cannot be multiplied") is None
    assert "/dev/shm" in describe_failed_start(OSError(28, "No space left on device"))


def data_worker(process: subprocess.Popen) -> psutil.Process:
    """Return the data worker of a run of one process."""
    for _ in poll(timeout=60):
        if children := psutil.Process(process.pid).children():
            return children[0]
    raise AssertionError


def started_run(configure: Any, folder: Path, **training: Any) -> subprocess.Popen:
    """Start a run of one process with a data worker, and wait for its third step."""
    config = configure(folder, training={"max_steps": 100_000, **training}, data={"workers": 1})
    process = start("python", 1, ["--deepspeed_config", config])
    for _ in poll(timeout=120):
        if last_step(folder / "run") > 3:
            return process
        assert process.poll() is None, process.communicate()
    raise AssertionError


@pytest.mark.launcher
def test_a_worker_that_is_killed_ends_the_run_with_one_line(configure, tmp_path):
    process = started_run(configure, tmp_path)
    try:
        worker = data_worker(process)
        worker.kill()
        _, errors = process.communicate(timeout=60)
    finally:
        kill(process)
    assert process.returncode == 1
    (line,) = re.findall("^error: .*", errors, flags=re.MULTILINE)
    assert f"pid {worker.pid} " in line
    assert "Traceback" not in errors


@pytest.mark.launcher
def test_a_run_of_one_process_whose_worker_is_stuck_is_ended_by_the_watchdog(configure, tmp_path):
    process = started_run(configure, tmp_path, silence_limit=4, hang_limit=4)
    try:
        worker = data_worker(process)
        worker.suspend()
        _, errors = process.communicate(timeout=60)
    finally:
        kill(process)
    assert process.returncode == LOST_A_RANK
    (line,) = re.findall("^error: .*", errors, flags=re.MULTILINE)
    assert re.search(r"no progress for \d+ s during step \d+: .*; the run stops; .*--resume auto", line)
    assert re.search(
        r"^  rank 0 on \S+ \(pid \d+\): during step \d+, in .*batches", errors, flags=re.MULTILINE
    )
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


@pytest.mark.launcher
def test_a_second_sigterm_ends_a_run_without_progress(configure, tmp_path):
    process = started_run(configure, tmp_path)
    try:
        data_worker(process).suspend()
        time.sleep(2)  # the batches that are ready are used up
        process.send_signal(signal.SIGTERM)
        time.sleep(3)
        process.send_signal(signal.SIGTERM)  # too early
        time.sleep(9)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    finally:
        kill(process)
    assert process.returncode == 1
    (line,) = re.findall("^error: .*", errors, flags=re.MULTILINE)
    assert re.search(r"rank 0 on \S+ got a second SIGTERM .* 1\d s ago; .*--resume auto", line)


@pytest.mark.launcher
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root to mount a small /dev/shm"
)
def test_workers_need_neither_shared_memory_nor_a_short_temporary_directory(configure, tmp_path, monkeypatch):
    """A step has more bytes than ``/dev/shm`` has, and no socket fits into the temporary directory."""
    temporary = tmp_path / ("t" * 100)
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    batch = {"train_batch_size": 1024}
    config = configure(tmp_path, training={"max_steps": 2}, data={"workers": 1}, **batch)
    script = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"'
    launch = ["sh", "-c", script, "sh", sys.executable, PRETRAIN, "--deepspeed_config", config]
    probe = subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", "true"], capture_output=True)
    if probe.returncode:
        pytest.skip("cannot mount a small /dev/shm here")
    process = spawn(["unshare", "-m", *launch])
    try:
        _, errors = process.communicate(timeout=200)
    finally:
        kill(process)
    assert process.returncode == 0, errors
    assert last_step(tmp_path / "run") == 2


@pytest.mark.launcher
def test_a_worker_prints_nothing_when_its_run_is_killed(configure, tmp_path):
    config = configure(tmp_path, training={"max_steps": 3}, data={"workers": 2})
    result = run("forked", 1, ["--deepspeed_config", config])
    assert result.status == 0
    assert "Traceback" not in result.output
    assert "data worker" not in result.output
