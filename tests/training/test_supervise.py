"""A supervised run: what restarts it, and what does not."""

import re
import signal
import time

import psutil
import pytest

from elc_bert.distributed.exit_status import FAILED, PREEMPTED
from tests.support.launching import kill, last_step, losses, run, seconds_until, start

pytestmark = [pytest.mark.launcher, pytest.mark.timeout(240)]

SUPERVISED = ["--supervise", "1", "--nproc-per-node", "2"]
STEPS = 150


def processes_that_train(supervisor) -> list[psutil.Process]:
    """By local rank."""
    children = psutil.Process(supervisor.pid).children()
    return [child for child in children if "--multiprocessing-fork" in child.cmdline()]


def wait_for_step(supervisor, directory, step: int) -> None:
    for _ in seconds_until(120):
        if last_step(directory) >= step:
            return
        assert supervisor.poll() is None, supervisor.communicate()


def test_it_restarts_after_a_loss_and_ends_when_told_to(configure, tmp_path):
    config = configure(tmp_path, training={"max_steps": STEPS}, checkpoint={"every": 20})
    directory = tmp_path / "run"
    supervisor = start("python", 1, ["--deepspeed_config", config, *SUPERVISED])
    try:
        wait_for_step(supervisor, directory, 25)
        processes_that_train(supervisor)[1].kill()
        time.sleep(1)
        before = losses(directory)
        wait_for_step(supervisor, directory, max(before) + 1)
        supervisor.send_signal(signal.SIGTERM)
        _, errors = supervisor.communicate(timeout=100)
    finally:
        kill(supervisor)
    assert supervisor.returncode == PREEMPTED
    assert re.search(r"error: rank 1 on \S+ \(pid \d+\) died during step \d+; ", errors)
    # What the supervisor sees first: the other rank ends within milliseconds.
    assert re.search(r"rank (1 was killed by SIGKILL|0 ended with status 76); restart 1 of 3", errors)
    assert errors.count("supervisor on") == 1
    assert {step: loss for step, loss in losses(directory).items() if step in before} == before

    finished = run("python", 1, ["--deepspeed_config", config, *SUPERVISED])
    assert finished.status == 0, finished.output
    assert list(losses(directory)) == list(range(1, STEPS + 1))


def test_a_mistake_is_told_once(configure, tmp_path):
    config = configure(tmp_path, train_batch_size=3)
    result = run("python", 1, ["--deepspeed_config", config, *SUPERVISED])
    assert result.status == FAILED
    assert len(result.output.splitlines()) == 1
    assert len(result.errors) == 1


def test_several_hosts_need_a_place_to_meet():
    result = run("python", 1, ["--deepspeed_config", "config.json", "--supervise", "1:2"])
    assert result.status == 2
    assert "several hosts need --rdzv-endpoint HOST:PORT" in result.stderr
