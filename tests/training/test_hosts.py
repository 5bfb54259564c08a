"""Several hosts train as one does, whichever launcher starts their ranks."""

from pathlib import Path

import pytest

from tests.training.hosts import Hosts, several_hosts, unavailable
from tests.training.launching import NO_DROPOUT, Result, finish, kill, largest_difference, losses, run

pytestmark = [pytest.mark.launcher, pytest.mark.timeout(300)]

SHORT_RUN = {"model": NO_DROPOUT, "training": {"max_steps": 10}}


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
    result = run("deepspeed", 4, ["--deepspeed_config", config])
    assert result.status == 0, result.output
    return losses(config.parent / "run")


def run_on(hosts: Hosts, launcher: str, ranks: int, config: Path) -> list[Result]:
    """Train to the end, started from the configuration's folder."""
    processes = hosts.launch(launcher, ranks, ["--deepspeed_config", config.name], config.parent)
    try:
        return [finish(process) for process in processes]
    finally:
        for process in processes:
            kill(process)


@pytest.mark.parametrize(("launcher", "ranks"), [("pdsh", 2), ("openmpi", 2), ("no_ssh", 1), ("torchrun", 1)])
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


def test_a_host_that_is_cut_off_cannot_be_reached(hosts):
    there = ["ssh", "-o", "ConnectTimeout=2", "node2", "hostname"]
    hosts.cut("node2")
    assert finish(hosts.start("node1", there)).status == 255
    hosts.mend("node2")
    assert finish(hosts.start("node1", there)).stdout == "node2\n"
