"""Several hosts train as one does, whichever launcher starts their ranks."""

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
    run,
    seconds_until,
)

pytestmark = [pytest.mark.launcher, pytest.mark.timeout(300)]

SHORT_RUN = {"model": NO_DROPOUT, "training": {"max_steps": 10}}
#: Seconds after which a rank is taken for lost.
SILENCE = 8.0


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    if reason := unavailable():
        pytest.skip(reason)
    with several_hosts(2, tmp_path_factory.mktemp("hosts")) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def on_one_host(configure, tmp_path_factory, hosts) -> dict[int, float]:
    """Losses of four ranks on this machine."""
    config = configure(tmp_path_factory.mktemp("one-host"), **SHORT_RUN)
    result = run("forked", 4, ["--deepspeed_config", config])
    assert result.status == 0, result.output
    return losses(config.parent / "run")


def run_on(hosts: Hosts, launcher: str, ranks: int, config: Path, *arguments: str) -> list[Result]:
    """Train to the end, started from the configuration's folder."""
    processes = hosts.launch(launcher, ranks, ["--deepspeed_config", config.name, *arguments], config.parent)
    try:
        return [finish(process) for process in processes]
    finally:
        for process in processes:
            kill(process)


@pytest.mark.parametrize(("launcher", "ranks"), [("pdsh", 2), ("openmpi", 2), ("torchrun", 1)])
def test_losses_are_those_of_one_host(hosts, on_one_host, configure, tmp_path, launcher, ranks):
    config = configure(tmp_path, **SHORT_RUN)
    results = run_on(hosts, launcher, ranks, config)
    assert [result.status for result in results] == [0] * len(results), [each.output for each in results]
    assert f"{2 * ranks} x CPU process" in results[0].stdout
    assert largest_difference(losses(tmp_path / "run"), on_one_host) < 1e-5


def test_what_one_host_lacks_is_told_in_one_line(hosts, configure, tmp_path):
    config = configure(tmp_path)
    # Each host has a /run of its own.
    finish(hosts.start("node1", ["cp", config, "/run/config.json"]))
    (result,) = run_on(hosts, "pdsh", 1, Path("/run/config.json"))
    assert result.status == 1
    lines = [line for line in result.output.splitlines() if "error: " in line]
    assert lines == [
        "node1: error: config.json: no such configuration file; see ds_configs/ for examples (on host node2)"
    ]


def test_a_host_that_is_cut_off(hosts, configure, tmp_path):
    settings = {"training": {"max_steps": 60, "silence_limit": SILENCE}, "checkpoint": {"every": 10}}
    uninterrupted, cut = (configure(tmp_path / name, **settings) for name in ("uninterrupted", "cut"))
    processes = hosts.launch("no_ssh", 1, [uninterrupted, cut], script=PRETRAIN_EACH)
    try:
        for _ in seconds_until(120):
            if last_step(cut.parent / "run") > 12:
                break
            assert all(process.poll() is None for process in processes)
        with hosts.cut("node2"):
            # The launchers need some seconds to see that their ranks have ended.
            ends = [finish(process, SILENCE + 15) for process in processes]
    finally:
        for process in processes:
            kill(process)
    assert [end.status for end in ends] == [LOST_A_RANK, LOST_A_RANK]
    for end, lost in zip(ends, ("rank 1 on node2", "rank 0 on node1"), strict=True):
        (message,) = end.errors
        assert message.startswith(lost)
        assert "start it again with --resume auto" in message
    assert max(losses(cut.parent / "run")) < 60

    resumed = run_on(hosts, "no_ssh", 1, cut, "--resume", "auto")
    assert [result.status for result in resumed] == [0, 0], [each.output for each in resumed]
    assert losses(cut.parent / "run") == losses(uninterrupted.parent / "run")
