"""A job that is killed at twenty random moments, checkpoint writes included, is the job that never was."""

import random
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.support.launching import FORK_SERVER, losses, scalars

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
class Story:
    """What became of the run that was killed."""

    uninterrupted: Path
    killed: Path
    stopped_at: list[int]
    """Newest checkpoint after each kill."""
    during_writes: int
    """Kills that left an unfinished checkpoint."""


@pytest.fixture(scope="module")
def story(configure, tmp_path_factory) -> Story:
    folder = tmp_path_factory.mktemp("kill")
    uninterrupted, killed = (configure(folder / name, **RUN) for name in ("uninterrupted", "killed"))
    whole = FORK_SERVER.start(RANKS, ["--deepspeed_config", uninterrupted]).result(timeout=200)
    assert whole.status == 0, whole.output

    draw = random.Random()
    arguments = ["--deepspeed_config", killed, "--resume", "auto"]
    checkpoints = killed.parent / "run" / "checkpoints"
    stopped_at, during_writes = [], 0
    for target in sorted(draw.sample(range(STEPS - 10), KILLS)):
        job = FORK_SERVER.start(RANKS, arguments)
        while newest(checkpoints) < target:
            assert not job.has_ended, job.result(1).output
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.08))
        job.kill()
        stopped_at.append(newest(checkpoints))
        during_writes += any(checkpoints.glob(".step-*.partial"))
    last = FORK_SERVER.start(RANKS, arguments).result(timeout=200)
    assert last.status == 0, last.output
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
