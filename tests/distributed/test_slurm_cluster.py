"""The batch scripts under a real Slurm: which jobs are requeued and which end."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.launching import REPOSITORY, last_step, losses, poll
from tests.support.slurm_cluster import Cluster, NoSlurmError, cluster

pytestmark = [pytest.mark.launcher, pytest.mark.timeout(240)]

SCRIPTS = REPOSITORY / "launch" / "slurm"
SMALL = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1", "--time=10"]
"""Options of ``sbatch`` that replace those in the scripts: two nodes with one rank each."""
STEPS = 200


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Iterator[Cluster]:
    try:
        with cluster(tmp_path_factory.mktemp("slurm")) as slurm:
            yield slurm
    except NoSlurmError as reason:
        pytest.skip(str(reason))


class Job:
    """Job that runs a batch script, submitted from a directory with the files of the project that it needs.

    Args:
        slurm: Cluster that runs the job.
        directory: Directory to submit from.
        script: Name of the batch script.
        arguments: Arguments of the batch script.
        python: Program that the script runs in place of Python.
    """

    def __init__(
        self, slurm: Cluster, directory: Path, script: str, *arguments: str | Path, python: str = "python"
    ):
        environment = directory / ".venv" / "bin"
        environment.mkdir(parents=True)
        (environment / "activate").write_text(f'PATH="{Path(sys.executable).parent}:$PATH"\n')
        (directory / "launch").symlink_to(REPOSITORY / "launch")
        variables = dict(os.environ) | {"PYTHONPATH": str(REPOSITORY), "PYTHON": python}
        self.slurm, self.directory = slurm, directory
        command = ["sbatch", "--parsable", *SMALL, str(SCRIPTS / script), *map(str, arguments)]
        self.number = slurm(*command, env=variables, cwd=directory)

    @property
    def log(self) -> str:
        path = self.directory / f"elc-bert-{self.number}.log"
        return path.read_text() if path.is_file() else ""

    @property
    def state(self) -> str:
        return self.slurm.state(self.number)

    def ranks(self) -> list[psutil.Process]:
        """Return the processes that train, by rank."""
        found = {}
        for process in psutil.process_iter(["pid", "ppid", "cmdline"]):
            try:
                variables = process.environ() if "launch/pretrain.py" in process.cmdline() else {}
            except psutil.Error:
                continue
            if variables.get("SLURM_JOB_ID") == self.number and "SLURM_STEP_ID" in variables:
                found[int(variables["SLURM_PROCID"])] = process
        return [found[rank] for rank in sorted(found)]

    def wait_for(self, *states: str, timeout: float = 100) -> None:
        for _ in poll(timeout):
            if (state := self.state) in states:
                return
            assert state in ("PENDING", "RUNNING", "COMPLETING"), self.log

    def wait_for_step(self, directory: Path, step: int) -> None:
        self.wait_for("RUNNING")
        for _ in poll(timeout=120):
            if last_step(directory) >= step:
                return
            assert self.state == "RUNNING", self.log

    def wait_for_restart(self, number: int) -> None:
        for _ in poll(timeout=60):
            if f"Restarts={number} " in self.slurm("scontrol", "show", "job", self.number):
                return self.wait_for("RUNNING")


def replacement_for_python(directory: Path, *lines: str) -> str:
    """Write a shell script that ends as training does, and return its path."""
    path = directory / "python-replacement"
    path.write_text("\n".join(["#!/bin/bash", *lines]))
    path.chmod(0o755)
    return str(path)


def test_a_job_resumes_after_a_lost_rank_and_after_a_signal(slurm, configure, tmp_path):
    run = tmp_path / "run"
    config = configure(tmp_path, training={"max_steps": STEPS}, checkpoint={"every": 20})
    job = Job(slurm, tmp_path, "nvidia.sbatch", "--deepspeed_config", config)

    job.wait_for_step(run, 25)
    job.ranks()[1].kill()
    job.wait_for_restart(1)
    assert list(tmp_path.glob("*.losses"))
    job.wait_for_step(run, last_step(run) + 1)
    slurm("scancel", "--signal=USR1", job.number)  # as --signal does before the time limit
    job.wait_for_restart(2)
    job.wait_for("COMPLETED")

    assert list(losses(run)) == list(range(1, STEPS + 1))
    assert re.findall(r"slurm: status (\d+);", job.log)[1:] == ["75"]
    assert job.log.count("resumed ") == 2
    assert not list(tmp_path.glob("*.losses")), "a stop by a signal must reset the count of lost ranks"


def test_a_user_error_ends_the_job(slurm, configure, tmp_path):
    config = configure(tmp_path, train_batch_size=3)
    job = Job(slurm, tmp_path, "amd.sbatch", "--deepspeed_config", config)
    job.wait_for("FAILED")
    assert "ExitCode=1:0" in slurm("scontrol", "show", "job", job.number)
    assert len(re.findall("^error: ", job.log, re.MULTILINE)) == 1


def test_a_cancelled_job_stays_cancelled(slurm, tmp_path):
    loop = replacement_for_python(
        tmp_path, "trap 'exit 75' TERM", "echo ready", "while true; do sleep 0.1; done"
    )
    job = Job(slurm, tmp_path, "nvidia.sbatch", python=loop)
    for _ in poll(timeout=30):
        if "ready" in job.log:
            break
    slurm("scancel", job.number)
    job.wait_for("CANCELLED")
    assert "slurm: status 75" in job.log, "the script must ask for a restart, which Slurm then refuses"


def test_repeated_losses_end_the_job(slurm, tmp_path):
    job = Job(slurm, tmp_path, "amd.sbatch", python=replacement_for_python(tmp_path, "exit 76"))
    job.wait_for("FAILED")
    assert job.log.count("slurm: status 76") == 3
    assert "slurm: lost ranks 4 times" in job.log
