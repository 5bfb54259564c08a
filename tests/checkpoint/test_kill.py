"""A run killed at twenty random moments, also during checkpoint writes, equals an uninterrupted run."""

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
RUN = {
    "training": {"max_steps": STEPS, "long_after": 0.9},
    "checkpoint": {"every": 2, "keep": 2},
    "evaluation": {"every": 60, "sequences": 8},
    "zero_optimization": {"stage": 1},
}
"""Run with dropout, a data worker, longer sequences from step 180 and a checkpoint every 2 steps."""


@dataclass
class KilledRun:
    """An uninterrupted run, and a run that was killed and resumed many times."""

    seed: int
    """Seed of the random times of the kills."""
    uninterrupted: Path
    killed: Path
    stopped_at: list[int]
    """Step of the newest_step checkpoint after each kill."""
    during_writes: int
    """Number of kills that left an unfinished checkpoint."""


@pytest.fixture(scope="module")
def outcome(configure, tmp_path_factory) -> KilledRun:
    folder = tmp_path_factory.mktemp("kill")
    uninterrupted, killed = (configure(folder / name, **RUN) for name in ("uninterrupted", "killed"))
    whole = FORK_SERVER.start(RANKS, ["--deepspeed_config", uninterrupted]).result(timeout=200)
    assert whole.status == 0, whole.output

    seed = random.SystemRandom().randrange(2**32)
    print(f"seed of the kills: {seed}")  # pytest shows this line if the fixture or its first test fails
    draw = random.Random(seed)
    arguments = ["--deepspeed_config", killed, "--resume", "auto"]
    checkpoints = killed.parent / "run" / "checkpoints"
    stopped_at, during_writes = [], 0
    for target in sorted(draw.sample(range(STEPS - 10), KILLS)):
        job = FORK_SERVER.start(RANKS, arguments)
        while newest_step(checkpoints) < target:
            assert not job.has_ended, f"seed {seed}: {job.result(1).output}"
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.08))
        job.kill()
        stopped_at.append(newest_step(checkpoints))
        during_writes += any(checkpoints.glob(".step-*.partial"))
    last = FORK_SERVER.start(RANKS, arguments).result(timeout=200)
    assert last.status == 0, f"seed {seed}: {last.output}"
    return KilledRun(seed, uninterrupted.parent / "run", killed.parent / "run", stopped_at, during_writes)


def newest_step(checkpoints: Path) -> int:
    """Return the step of the checkpoint that ``latest`` names, or 0 without a checkpoint."""
    latest = checkpoints / "latest"
    return int(latest.read_text().removeprefix("step-")) if latest.is_file() else 0


def test_some_kills_interrupt_the_write_of_a_checkpoint(outcome):
    moments = (
        f"{outcome.during_writes} of {KILLS} kills during the write of a checkpoint; at {outcome.stopped_at}"
    )
    print(f"seed {outcome.seed}: {moments}")
    assert len(outcome.stopped_at) == KILLS, f"seed {outcome.seed}"
    assert outcome.during_writes > 0, f"seed {outcome.seed}"
    assert outcome.stopped_at == sorted(outcome.stopped_at), f"seed {outcome.seed}"


@pytest.mark.parametrize("tag", ["train/loss", "train/gradient_norm", "held_out/loss", "data/words"])
def test_metrics_equal_those_of_the_uninterrupted_run(outcome, tag):
    assert scalars(outcome.killed, tag) == scalars(outcome.uninterrupted, tag), f"seed {outcome.seed}"
    assert max(losses(outcome.killed)) == STEPS, f"seed {outcome.seed}"


def test_weights_equal_those_of_the_uninterrupted_run(outcome):
    name = Path("checkpoints", f"step-{STEPS:06d}", "model.safetensors")
    ours, expected = load_file(outcome.killed / name), load_file(outcome.uninterrupted / name)
    assert all((ours[key] == expected[key]).all() for key in expected), f"seed {outcome.seed}"


def test_no_temporary_files_remain_in_the_killed_run(outcome):
    assert not list(outcome.killed.rglob(".*")), f"seed {outcome.seed}"
    names = {path.name for path in (outcome.killed / "checkpoints").iterdir()}
    assert names == {"latest", f"step-{STEPS - 2:06d}", f"step-{STEPS:06d}"}, f"seed {outcome.seed}"
