"""Supervised runs: restarts after a loss, and none after a user error or a signal."""

import re
import signal
import time

import psutil
import pytest

from elc_bert.distributed.exit_status import FAILED, PREEMPTED
from elc_bert.utils.logs import LOG_FILE
from tests.support.launching import kill, last_step, losses, poll, run, start

pytestmark = [pytest.mark.launcher, pytest.mark.timeout(240)]

SUPERVISED = ["--supervise", "1", "--nproc-per-node", "2"]
STEPS = 150


def ranks_of(supervisor) -> list[psutil.Process]:
    """Return the ranks' processes, by local rank."""
    children = psutil.Process(supervisor.pid).children()
    return [child for child in children if "--multiprocessing-fork" in child.cmdline()]


def wait_for_step(supervisor, directory, step: int) -> None:
    for _ in poll(timeout=120):
        if last_step(directory) >= step:
            return
        assert supervisor.poll() is None, supervisor.communicate()


def test_the_run_restarts_after_a_loss_and_ends_after_a_signal(configure, tmp_path):
    config = configure(tmp_path, training={"max_steps": STEPS}, checkpoint={"every": 20})
    directory = tmp_path / "run"
    supervisor = start("python", 1, ["--deepspeed_config", config, *SUPERVISED, "--log-level", "error"])
    try:
        wait_for_step(supervisor, directory, 25)
        ranks_of(supervisor)[1].kill()
        time.sleep(1)
        before = losses(directory)
        wait_for_step(supervisor, directory, max(before) + 1)
        supervisor.send_signal(signal.SIGTERM)
        output, errors = supervisor.communicate(timeout=100)
    finally:
        kill(supervisor)
    assert supervisor.returncode == PREEMPTED
    assert re.search(r"error: rank 1 on \S+ \(pid \d+\) died during step \d+; ", errors)
    # Rank 0 ends within milliseconds after rank 1, and the supervisor reports the end that it sees first.
    assert re.search(r"rank (1 was killed by SIGKILL|0 exited with status 76); restart 1 of 3", errors)
    assert errors.count("supervisor on") == 1
    log = (directory / LOG_FILE).read_text()
    assert re.search(r" supervisor on \S+ INFO .*restart 1 of 3", log)
    assert re.search(r" rank 0 ERROR error: rank 1 on \S+ \(pid \d+\) died", log)
    assert "ELC-BERT zero" in log
    assert "ELC-BERT zero" not in output, "the supervisor must pass --log-level on to the ranks"
    assert {step: loss for step, loss in losses(directory).items() if step in before} == before

    finished = run("python", 1, ["--deepspeed_config", config, *SUPERVISED])
    assert finished.status == 0, finished.output
    assert list(losses(directory)) == list(range(1, STEPS + 1))


def test_a_user_error_is_reported_once(configure, tmp_path):
    config = configure(tmp_path, train_batch_size=3)
    result = run("python", 1, ["--deepspeed_config", config, *SUPERVISED])
    assert result.status == FAILED
    assert len(result.output.splitlines()) == 1
    assert len(result.errors) == 1


def test_several_hosts_need_an_endpoint():
    result = run("python", 1, ["--deepspeed_config", "config.json", "--supervise", "1:2"])
    assert result.status == 2
    assert "--rdzv-endpoint HOST:PORT" in result.stderr.splitlines()[-1]


def test_a_second_signal_is_forwarded_to_a_run_without_progress(configure, tmp_path):
    config = configure(tmp_path, training={"max_steps": 100_000}, data={"workers": 1})
    options = ["--supervise", "1", "--nproc-per-node", "1"]
    supervisor = start("python", 1, ["--deepspeed_config", config, *options])
    try:
        wait_for_step(supervisor, tmp_path / "run", 3)
        (rank,) = ranks_of(supervisor)
        rank.children()[0].suspend()  # its data worker
        time.sleep(2)
        for _ in range(2):
            supervisor.send_signal(signal.SIGTERM)
            time.sleep(12)
        _, errors = supervisor.communicate(timeout=30)
    finally:
        kill(supervisor)
    assert "rank 0" in re.search(r"error: (.*) got a second SIGTERM", errors)[1]
