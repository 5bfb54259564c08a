"""A job that is killed at twenty random moments, checkpoint writes included, is the job that never was."""

import contextlib
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from safetensors.torch import load_file

from elc_bert.machine import free_port
from tests.training.launching import REPOSITORY, environment, losses, scalars

pytestmark = [pytest.mark.launcher, pytest.mark.timeout(600)]

KILLS = 20
STEPS = 200
RANKS = 2
#: With dropout, a worker, longer sequences from step 180, and a checkpoint being written most of the time.
RUN = {
    "training": {"max_steps": STEPS, "long_after": 0.9},
    "checkpoint": {"every": 2, "keep": 2},
    "evaluation": {"every": 60, "sequences": 8},
    "zero_optimization": {"stage": 1},
}


@dataclass
class Jobs:
    """Starts a run's ranks and kills them."""

    process: subprocess.Popen
    pids: list[int] = field(default_factory=list)

    def start(self, config: Path) -> None:
        command = [str(free_port()), str(RANKS), "--deepspeed_config", str(config), "--resume", "auto"]
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(shlex.join(command) + "\n")
        self.process.stdin.flush()
        self.pids = [int(pid) for pid in self.process.stdout.readline().split()]

    def kill(self) -> None:
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> None:
        while self.alive:
            time.sleep(0.01)

    @property
    def alive(self) -> bool:
        return any(os.path.exists(f"/proc/{pid}") for pid in self.pids)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory) -> Iterator[Jobs]:
    log = tmp_path_factory.mktemp("log") / "stderr"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forked_ranks.py"))],
            cwd=REPOSITORY,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", log.read_text()
        jobs = Jobs(process)
        try:
            yield jobs
        finally:
            jobs.kill()
            process.kill()
            process.wait()


@dataclass
class Story:
    """What became of the run that was killed."""

    uninterrupted: Path
    killed: Path
    stopped_at: list[int]
    """Newest checkpoint after each kill."""
    during_writes: int
    """Kills that left an unfinished checkpoint."""


@pytest.fixture(scope="module")
def story(jobs, configure, tmp_path_factory) -> Story:
    folder = tmp_path_factory.mktemp("kill")
    uninterrupted, killed = (configure(folder / name, **RUN) for name in ("uninterrupted", "killed"))
    jobs.start(uninterrupted)
    jobs.wait()

    draw = random.Random()
    checkpoints = killed.parent / "run" / "checkpoints"
    stopped_at, during_writes = [], 0
    for target in sorted(draw.sample(range(STEPS - 10), KILLS)):
        jobs.start(killed)
        while newest(checkpoints) < target:
            assert jobs.alive, "the run has ended by itself"
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.08))
        jobs.kill()
        stopped_at.append(newest(checkpoints))
        during_writes += any(checkpoints.glob(".step-*.partial"))
    jobs.start(killed)
    jobs.wait()
    return Story(uninterrupted.parent / "run", killed.parent / "run", stopped_at, during_writes)


def newest(checkpoints: Path) -> int:
    """Step of the checkpoint that ``latest`` names; 0 if there is none."""
    latest = checkpoints / "latest"
    return int(latest.read_text().removeprefix("step-")) if latest.is_file() else 0


def test_it_was_killed_all_along_the_way(story):
    print(f"{story.during_writes} of {KILLS} kills during the write of a checkpoint; at {story.stopped_at}")
    assert len(story.stopped_at) == KILLS
    assert story.during_writes > 0
    assert story.stopped_at == sorted(story.stopped_at)


@pytest.mark.parametrize("tag", ["train/loss", "train/gradient_norm", "held_out/loss", "data/words"])
def test_every_figure_is_that_of_the_uninterrupted_run(story, tag):
    assert scalars(story.killed, tag) == scalars(story.uninterrupted, tag)
    assert max(losses(story.killed)) == STEPS


def test_the_weights_are_those_of_the_uninterrupted_run(story):
    name = Path("checkpoints", f"step-{STEPS:06d}", "model.safetensors")
    ours, expected = load_file(story.killed / name), load_file(story.uninterrupted / name)
    assert all((ours[key] == expected[key]).all() for key in expected)


def test_nothing_is_left_over(story):
    assert not list(story.killed.rglob(".*"))
    names = {path.name for path in (story.killed / "checkpoints").iterdir()}
    assert names == {"latest", f"step-{STEPS - 2:06d}", f"step-{STEPS:06d}"}
