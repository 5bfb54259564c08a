"""A run that is killed and resumed is bit-identical to an uninterrupted run."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file

from elc_bert.utils.files import sha256_of
from tests.support.launching import (
    FORK_SERVER,
    PRETRAIN_EACH,
    Result,
    last_step,
    losses,
    poll,
    run,
    scalars,
)

pytestmark = [pytest.mark.launcher, pytest.mark.timeout(300)]

BF16 = {"bf16": {"enabled": True}}
STEPS = 100
LONG_RUN = {
    "training": {"max_steps": STEPS, "long_after": 0.9},
    "checkpoint": {"every": 20, "keep": 2},
    "evaluation": {"every": 50},
}
"""Settings of a run with dropout. Sequences become longer at step 90, in the part that is repeated."""
CASES = {
    "bf16 stage 1": LONG_RUN
    | {
        **BF16,
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {"stage": 1},
        "model": {"variant": "weighted_output"},
        # The log entry of step 63 averages over steps before and after the checkpoint of step 60.
        "training": LONG_RUN["training"] | {"log_every": 7},
        "data": {"workers": 1},
    },
}
"""Changes of the settings, by name of the run. Runs in fp32 are tested in ``test_kill.py``."""


@dataclass
class ResumedRun:
    """An uninterrupted run, and a run that was killed and resumed."""

    uninterrupted: Path
    killed: Path
    losses_before: dict[int, float]
    """Losses that the killed run had logged before it was resumed, by step."""
    checkpoint: str
    """Name of the newest checkpoint when the run was killed."""
    resumed: Result
    config: Path


@pytest.fixture(scope="module", params=CASES)
def outcome(request, configure, tmp_path_factory) -> ResumedRun:
    folder = tmp_path_factory.mktemp("resume")
    configs = [configure(folder / name, **CASES[request.param]) for name in ("uninterrupted", "killed")]
    uninterrupted, killed = (config.parent / "run" for config in configs)

    # Neither run exists yet, so "auto" starts both from the beginning, one after the other.
    job = FORK_SERVER.start(2, [*configs, "--resume", "auto"], script=PRETRAIN_EACH)
    for _ in poll(240):
        if last_step(killed) > 62:
            break
        assert not job.has_ended, job.result(1).output
    job.kill()
    losses_before = losses(killed)
    time.sleep(1)
    assert losses(killed) == losses_before, "no rank may survive the kill"
    checkpoints = killed / "checkpoints"
    newest = (checkpoints / "latest").read_text()
    # A kill during the write of a checkpoint leaves such files behind.
    (checkpoints / ".step-000055.partial").mkdir()
    (checkpoints / ".step-000055.partial" / "half").touch()

    resumed = run("forked", 2, ["--deepspeed_config", configs[1], "--resume", "auto"])
    return ResumedRun(uninterrupted, killed, losses_before, newest, resumed, configs[1])


def hashes(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): sha256_of(path) for path in directory.rglob("*") if path.is_file()
    }


def test_the_run_was_killed_between_two_checkpoints(outcome):
    step = int(outcome.checkpoint.removeprefix("step-"))
    assert step % 20 == 0
    assert step < max(outcome.losses_before) < STEPS


def test_the_resumed_run_continues_after_the_step_of_its_checkpoint(outcome):
    assert outcome.resumed.status == 0, outcome.resumed.output
    step = int(outcome.checkpoint.removeprefix("step-"))
    assert (
        f"after step {step}, from {outcome.killed / 'checkpoints' / outcome.checkpoint}"
        in outcome.resumed.stdout
    )


@pytest.mark.parametrize(
    "tag",
    [
        "train/loss",
        "train/accuracy",
        "train/learning_rate",
        "train/gradient_norm",
        "train/sequence_length",
        "throughput/real_share",
        "data/words",
        "data/epochs",
        "held_out/loss",
        "layer_weights/layer_02_from_00",
    ],
)
def test_metrics_are_bit_identical_to_the_uninterrupted_run(outcome, tag):
    assert scalars(outcome.killed, tag) == scalars(outcome.uninterrupted, tag)
    if tag == "train/loss":
        assert max(scalars(outcome.killed, tag)) == STEPS


def test_weights_are_bit_identical_to_the_uninterrupted_run(outcome):
    name = Path("checkpoints", f"step-{STEPS:06d}", "model.safetensors")
    resumed, uninterrupted = (load_file(run / name) for run in (outcome.killed, outcome.uninterrupted))
    assert list(resumed) == list(uninterrupted)
    assert all((resumed[name] == uninterrupted[name]).all() for name in resumed)


def test_progress_equals_that_of_the_uninterrupted_run(outcome):
    name = Path("checkpoints", f"step-{STEPS:06d}", "run.json")
    resumed, uninterrupted = (
        json.loads((run / name).read_text())["progress"] for run in (outcome.killed, outcome.uninterrupted)
    )
    assert resumed == uninterrupted
    assert resumed["tokens_seen"] > 0


def test_only_the_newest_checkpoints_are_kept(outcome):
    for directory in (outcome.killed, outcome.uninterrupted):
        names = {path.name for path in (directory / "checkpoints").iterdir()}
        # Under ZeRO, DeepSpeed adds its conversion scripts.
        assert names - {"zero_to_fp32.py", "zero_to_torch.py"} == {"latest", "step-000080", "step-000100"}
        assert (directory / "checkpoints" / "latest").read_text() == "step-000100"


def test_the_record_of_a_checkpoint_lists_the_hashes_of_all_its_files(outcome):
    directory = outcome.killed / "checkpoints" / "step-000100"
    record = json.loads((directory / "run.json").read_text())
    assert set(record["files"]) == {path.name for path in directory.iterdir()} - {"run.json"}
    assert all(sha256_of(directory / name) == sha256 for name, sha256 in record["files"].items())
    assert {"model.safetensors", "model.json"} <= set(record["files"])


def test_resuming_a_finished_run_changes_no_file(outcome):
    before = hashes(outcome.killed / "checkpoints"), losses(outcome.killed)
    again = run("forked", 2, ["--deepspeed_config", outcome.config, "--resume", "auto"])
    assert again.status == 0, again.output
    assert f"after step {STEPS}" in again.stdout
    assert (hashes(outcome.killed / "checkpoints"), losses(outcome.killed)) == before


SHORT_RUN = {
    "model": {"hidden_size": 25, "num_attention_heads": 5, "intermediate_size": 37},
    "checkpoint": {"every": 10},
}
"""Settings of runs of 20 steps with dropout, resumed from step 10. No size is divisible by the ranks."""
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
SHARDED = {
    "fp32 stage 3": {
        "zero_optimization": {"stage": 3, "sub_group_size": 500, "stage3_param_persistence_threshold": 0}
    },
    "bf16 stage 3 offload": BF16 | {"zero_optimization": {"stage": 3, **OFFLOAD}},
    "fp32 stage 2 offload": {"zero_optimization": {"stage": 2, **OFFLOAD}},
    # The first steps overflow and are skipped, so the loss scale and the step count are part of the state.
    "fp16 stage 0": {"fp16": {"enabled": True, "initial_scale_power": 20}},
}


BLEND = "bf16 blend"


@pytest.fixture(scope="module")
def repeated_runs(configure, blended, tmp_path_factory) -> dict[str, tuple[dict[str, dict], dict[str, dict]]]:
    """Results of each run, before and after its second half was repeated, by name of the run."""
    folder = tmp_path_factory.mktemp("repeated")
    cases = SHARDED | {BLEND: BF16 | blended}
    configs = [
        configure(folder / name.replace(" ", "-"), **SHORT_RUN, **case) for name, case in cases.items()
    ]
    arguments = [*configs, "--fp16-on-cpu", "--resume", "auto"]
    results = []
    for _ in range(2):
        result = run("forked", 2, arguments, timeout=200, script=PRETRAIN_EACH)
        assert result.status == 0, result.output
        results.append([results_of(config.parent / "run") for config in configs])
        for config in configs:
            (config.parent / "run" / "checkpoints" / "latest").write_text("step-000010")
    assert "after step 10" in result.stdout
    return dict(zip(cases, zip(*results, strict=True), strict=True))


def results_of(directory: Path) -> dict[str, dict]:
    """Return the logged curves and the final weights of a run."""
    curves = ("train/loss", "train/gradient_norm", "train/learning_rate", "train/skipped_steps")
    weights = load_file(directory / "checkpoints" / "step-000020" / "model.safetensors")
    return {tag: scalars(directory, tag) for tag in curves} | {
        "weights": {name: tensor.tolist() for name, tensor in weights.items()}
    }


@pytest.mark.parametrize("case", [*SHARDED, BLEND])
def test_resuming_from_an_earlier_checkpoint_gives_the_same_run(repeated_runs, case):
    once, twice = repeated_runs[case]
    assert len(once["train/loss"]) == 20
    assert once == twice
    assert (once["train/skipped_steps"][20] > 0) == case.startswith("fp16")
