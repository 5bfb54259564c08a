"""Training on several hosts gives the losses of one host, whichever launcher starts the ranks."""

from pathlib import Path

import pytest

from elc_bert.distributed.exit_status import LOST_A_RANK
from tests.support.hosts import Hosts, several_hosts, unavailable
from tests.support.launching import (
    NO_DROPOUT,
    PRETRAIN_EACH,
    Result,
    finish,
    kill,
    largest_difference,
    last_step,
    losses,
    poll,
    run,
)

pytestmark = [pytest.mark.launcher, pytest.mark.timeout(300)]

SHORT_RUN = {"model": NO_DROPOUT, "training": {"max_steps": 10}}
SILENCE_LIMIT = 8.0
"""Seconds without a heartbeat after which a rank is lost."""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    if reason := unavailable():
        pytest.skip(reason)
    with several_hosts(2, tmp_path_factory.mktemp("hosts")) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def on_one_host(configure, tmp_path_factory, hosts) -> dict[int, float]:
    """Return the losses of four ranks on one host."""
    config = configure(tmp_path_factory.mktemp("one-host"), **SHORT_RUN)
    result = run("forked", 4, ["--deepspeed_config", config])
    assert result.status == 0, result.output
    return losses(config.parent / "run")


def run_on(hosts: Hosts, launcher: str, ranks: int, config: Path, *arguments: str) -> list[Result]:
    """Train to the end, with the folder of the configuration as working directory."""
    processes = hosts.launch(launcher, ranks, ["--deepspeed_config", config.name, *arguments], config.parent)
    try:
        return [finish(process) for process in processes]
    finally:
        for process in processes:
            kill(process)


@pytest.mark.parametrize(("launcher", "ranks"), [("pdsh", 2), ("openmpi", 2), ("torchrun", 1)])
def test_losses_are_equal_to_those_of_one_host(hosts, on_one_host, configure, tmp_path, launcher, ranks):
    config = configure(tmp_path, **SHORT_RUN)
    results = run_on(hosts, launcher, ranks, config)
    assert [result.status for result in results] == [0] * len(results), [result.output for result in results]
    assert f"{2 * ranks} x CPU process" in results[0].stdout
    assert largest_difference(losses(tmp_path / "run"), on_one_host) < 1e-5


def test_a_file_missing_on_one_host_is_reported_in_one_line(hosts, configure, tmp_path):
    config = configure(tmp_path)
    # Every host has its own /run.
    finish(hosts.start("node1", ["cp", config, "/run/config.json"]))
    (result,) = run_on(hosts, "pdsh", 1, Path("/run/config.json"))
    assert result.status == 1
    (line,) = [line for line in result.output.splitlines() if "error: " in line]
    assert line.startswith("node1: error: config.json: ")
    assert line.endswith("(on host node2)")


def test_the_loss_of_a_host_ends_the_run_which_can_be_resumed(hosts, configure, tmp_path):
    settings = {"training": {"max_steps": 60, "silence_limit": SILENCE_LIMIT}, "checkpoint": {"every": 10}}
    uninterrupted, interrupted = (
        configure(tmp_path / name, **settings) for name in ("uninterrupted", "interrupted")
    )
    processes = hosts.launch("no_ssh", 1, [uninterrupted, interrupted], script=PRETRAIN_EACH)
    try:
        for _ in poll(timeout=120):
            if last_step(interrupted.parent / "run") > 12:
                break
            assert all(process.poll() is None for process in processes)
        with hosts.disconnected("node2"):
            # The launchers notice the end of their ranks only after some seconds.
            results = [finish(process, SILENCE_LIMIT + 15) for process in processes]
    finally:
        for process in processes:
            kill(process)
    assert [result.status for result in results] == [LOST_A_RANK, LOST_A_RANK]
    for result, lost in zip(results, ("rank 1 on node2", "rank 0 on node1"), strict=True):
        (message,) = result.errors
        assert message.startswith(lost)
        assert "--resume auto" in message
    assert max(losses(interrupted.parent / "run")) < 60

    resumed = run_on(hosts, "no_ssh", 1, interrupted, "--resume", "auto")
    assert [result.status for result in resumed] == [0, 0], [result.output for result in resumed]
    assert losses(interrupted.parent / "run") == losses(uninterrupted.parent / "run")
