"""SIGTERM and SIGUSR1 end a run after the step, with a checkpoint, from which it resumes exactly."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file

from elc_bert.checkpoint.files import read_record
from elc_bert.distributed.exit_status import PREEMPTED
from tests.support.launching import PRETRAIN_EACH, Result, run, scalars

pytestmark = [pytest.mark.launcher, pytest.mark.timeout(400)]

INTERRUPT_EACH = Path(__file__).parents[1] / "support" / "interrupt_each.py"
STEPS = 16
RUN = {
    "training": {"max_steps": STEPS, "long_after": 0.75, "log_every": 2},
    "evaluation": {"every": 4, "sequences": 32},
    "checkpoint": {"every": 4, "keep": 5},
    "data": {"workers": 1},
    "zero_optimization": {"stage": 1},
}
"""Settings with dropout, and with a data worker, to which launchers also send their signals."""
CASES = {
    "step 1": ("step", 1, 1, 1),
    "step 3": ("step", 0, 3, 3),
    "step 4": ("step", 1, 4, 4),
    "step 6": ("step", 0, 6, 6),
    "step 11": ("step", 1, 11, 11),
    # Checkpoints of steps 4, 8 and so on are written while training continues. If one is not complete when
    # the next is due, training waits for it.
    "rank 0 writes the first": ("checkpoint", 0, 1, None),
    "rank 1 writes the first": ("checkpoint", 1, 1, None),
    "rank 1 writes the second": ("checkpoint", 1, 2, None),
    "the first is published": ("publishing", 0, 1, None),
    "the second is published": ("publishing", 0, 2, None),
    # Evaluations follow steps 4, 8 and so on. The signal ends an evaluation, and the resumed run repeats it.
    "first evaluation": ("evaluation", 0, 1, 4),
    "first evaluation, rank 1": ("evaluation", 1, 1, 4),
    "second evaluation": ("evaluation", 0, 2, 8),
    "second evaluation, rank 1": ("evaluation", 1, 2, 8),
    "last evaluation": ("evaluation", 1, 4, 16),
}
"""Moment of the signal, rank that gets it, number of the call, and step of the last checkpoint if fixed."""


@dataclass
class StoppedRuns:
    """Runs that received signals, and an uninterrupted run."""

    uninterrupted: Path
    runs: dict[str, Path]
    launch: Result
    stopped_at: dict[str, int]
    """Step of the newest checkpoint after the signal, by case."""
    hidden_files: dict[str, list[str]]
    """Hidden files that remain after the signal, by case."""


@pytest.fixture(scope="module")
def outcome(configure, tmp_path_factory) -> StoppedRuns:
    folder = tmp_path_factory.mktemp("preemption")
    configs = {name: configure(folder / name.replace(" ", "-"), **RUN) for name in ["uninterrupted", *CASES]}
    cases = [f"{configs[name]}:{moment}:{rank}:{call}" for name, (moment, rank, call, _) in CASES.items()]
    launch = run("deepspeed", 2, cases, timeout=200, script=INTERRUPT_EACH)
    runs = {name: config.parent / "run" for name, config in configs.items()}
    checkpoints = {name: runs[name] / "checkpoints" for name in CASES}
    stopped_at = {
        name: read_record(path / (path / "latest").read_text())["progress"]["step"]
        for name, path in checkpoints.items()
    }
    hidden_files = {name: [hidden.name for hidden in path.glob(".*")] for name, path in checkpoints.items()}
    resumed = run("forked", 2, [*configs.values(), "--resume", "auto"], timeout=200, script=PRETRAIN_EACH)
    assert resumed.status == 0, resumed.output
    return StoppedRuns(runs.pop("uninterrupted"), runs, launch, stopped_at, hidden_files)


def test_a_signal_ends_a_run_with_exit_status_75(outcome):
    (statuses,) = re.findall(r"statuses: (.*)", outcome.launch.stdout)
    assert [int(status) for status in statuses.split()] == [PREEMPTED] * len(CASES)
    assert outcome.launch.status == PREEMPTED, "the launcher must pass on the exit status"
    assert outcome.launch.output.count("stopped by a signal") == len(CASES)
    assert "Traceback" not in outcome.launch.output


@pytest.mark.parametrize("case", CASES)
def test_a_signal_leaves_a_checkpoint_of_the_last_step(outcome, case):
    _, _, call, expected = CASES[case]
    if expected is None:
        due, next_due = 4 * call, 4 * (call + 1)
        assert due < outcome.stopped_at[case] <= next_due + 1, (
            "the run must stop at the latest one step after the next checkpoint is due"
        )
    else:
        assert outcome.stopped_at[case] == expected
    assert outcome.hidden_files[case] == []


@pytest.mark.parametrize("case", CASES)
def test_the_resumed_run_equals_the_uninterrupted_run(outcome, case):
    directory = outcome.runs[case]
    for tag in ("train/loss", "train/learning_rate", "held_out/loss", "data/words"):
        assert scalars(directory, tag) == scalars(outcome.uninterrupted, tag)
    name = Path("checkpoints", f"step-{STEPS:06d}", "model.safetensors")
    ours, expected = load_file(directory / name), load_file(outcome.uninterrupted / name)
    assert all((ours[key] == expected[key]).all() for key in expected)
