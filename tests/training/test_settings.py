"""Settings of the data, the loss and the step have their effect on real runs."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from data_tools.build import build_dataset
from elc_bert.config.length_schedule import LengthSchedule
from elc_bert.config.reader import load_config
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.segments import build_segments
from elc_bert.data.sampling.blend import Portion
from elc_bert.data.sampling.masking import Masking
from elc_bert.data.sampling.random import derive_seed
from elc_bert.data.sampling.steps import TrainingSteps
from tests.support.launching import NO_DROPOUT, PRETRAIN_EACH, losses, run
from tests.support.plain_step import assert_first_step, plain_step

pytestmark = [pytest.mark.launcher, pytest.mark.timeout(300)]

OBSERVED = Path(__file__).parents[1] / "support" / "pretrain_observed.py"
ONE_STEP = {
    "gradient_clipping": 0.5,
    "scheduler": {"params": {"warmup_proportion": 0.0}},
    "model": NO_DROPOUT,
}


DEFAULT_MASKING = Masking(mask_p=0.15, random_p=0.1, keep_p=0.1, short_p=0.1)


@dataclass(frozen=True)
class Case:
    """Changes of the configuration, and what they mean for the first step."""

    changes: dict[str, Any] = field(default_factory=dict)
    masking: Masking = DEFAULT_MASKING
    length: int = 32
    policy: str = "reference"
    label_smoothing: float = 0.0
    seed: int = 42


CASES = {
    "defaults": Case(),
    "mask_probability": Case({"data": {"mask_probability": 0.4}}, Masking(mask_p=0.4)),
    "random_probability": Case({"data": {"random_probability": 0.8}}, Masking(random_p=0.8)),
    "keep_probability": Case({"data": {"keep_probability": 0.8}}, Masking(keep_p=0.8)),
    "short_probability": Case({"data": {"short_probability": 0.9}}, Masking(short_p=0.9)),
    "segments": Case({"data": {"segments": "packed"}}, policy="packed"),
    "sequence_length": Case({"training": {"sequence_length": 16}}, length=16),
    "seed": Case({"training": {"seed": 7}}, seed=7),
    "label_smoothing": Case({"training": {"label_smoothing": 0.3}}, label_smoothing=0.3),
}
"""Cases by the setting that they change."""


@pytest.fixture(scope="module")
def dataset(tiny_text, tiny_tokenizer, tmp_path_factory) -> Path:
    """Prefix of a dataset with segments of both policies."""
    prefix = tmp_path_factory.mktemp("data") / "both"
    build_dataset([tiny_text], tiny_tokenizer, prefix, lengths=[16, 32])
    build_segments(IndexedDataset(prefix), 32, "packed")
    return prefix


@pytest.fixture(scope="module")
def runs(configure, dataset, tmp_path_factory) -> dict[str, Path]:
    """Output directories of runs of one step on one rank, by name of the case."""
    folder = tmp_path_factory.mktemp("settings")
    configs = {}
    for name, case in CASES.items():
        sections = {
            "data": {"train": str(dataset), "dev": str(dataset), **case.changes.get("data", {})},
            "training": {"max_steps": 1, **case.changes.get("training", {})},
        }
        configs[name] = configure(folder / name, **ONE_STEP, **sections)
    result = run("forked", 1, list(configs.values()), script=PRETRAIN_EACH)
    assert result.status == 0, result.output
    return {name: path.parent / "run" for name, path in configs.items()}


@pytest.mark.parametrize("name", CASES)
def test_the_first_step_is_that_of_plain_pytorch_with_this_setting(runs, dataset, name):
    case, config = CASES[name], load_config(runs[name] / "config.json")
    (batch,) = TrainingSteps(
        [Portion(dataset)],
        LengthSchedule(1, case.length, 8, 1.0),
        case.seed,
        case.masking,
        vocab_size=512,
        rank=0,
        world_size=1,
        micro_batch_of=lambda phase: 8,
        policy=case.policy,
    )[0]
    assert_first_step(runs[name], plain_step(config, batch, case.label_smoothing, case.seed))


def test_every_setting_changes_the_loss(runs):
    assert len({losses(directory)[1] for directory in runs.values()}) == len(CASES)


OBSERVED_CASES = {
    "kept": {},
    "recomputed": {"training": {"activation_checkpointing": True}},
    "plain kernels": {"training": {"kernels": "plain"}},
    "other seed": {"training": {"seed": 3}},
}
"""Changes of the settings of runs with dropout on two ranks, by name of the run."""


@pytest.fixture(scope="module")
def observed(configure, tmp_path_factory) -> dict[str, Path]:
    """Output directories of runs of three steps on two ranks, by name of the case."""
    folder = tmp_path_factory.mktemp("observed")
    common = {"max_steps": 3, "max_micro_batch_size": 2}
    configs = [
        configure(folder / name.replace(" ", "-"), training=common | case.get("training", {}))
        for name, case in OBSERVED_CASES.items()
    ]
    result = run("forked", 2, configs, script=OBSERVED)
    assert result.status == 0, result.output
    return dict(zip(OBSERVED_CASES, (config.parent / "run" for config in configs), strict=True))


def steps_of(directory: Path, rank: int) -> list[dict[str, Any]]:
    return json.loads((directory / f"observed-{rank}.json").read_text())


def test_dropout_differs_between_ranks_and_steps_and_follows_the_seed_of_the_run(observed):
    for name, seed in (("kept", 42), ("other seed", 3)):
        seeds = [[step["seed"] for step in steps_of(observed[name], rank)] for rank in (0, 1)]
        assert seeds == [[derive_seed(seed, step, rank) for step in range(3)] for rank in (0, 1)]
        assert len({*seeds[0], *seeds[1]}) == 6


def test_activation_checkpointing_computes_every_layer_twice_and_changes_nothing_else(observed):
    for rank in (0, 1):
        for kept, recomputed in zip(
            steps_of(observed["kept"], rank), steps_of(observed["recomputed"], rank), strict=True
        ):
            assert kept["layer_calls"] == kept["micro_batches"] > 0
            assert recomputed["layer_calls"] == 2 * recomputed["micro_batches"]
    assert losses(observed["recomputed"]) == losses(observed["kept"])


def test_the_kernels_are_those_of_the_setting(observed):
    assert steps_of(observed["kept"], 0)[0]["kernels"] == "CpuKernels"
    assert steps_of(observed["plain kernels"], 0)[0]["kernels"] == "Kernels"


def test_the_seed_decides_the_run(observed):
    assert losses(observed["other seed"])[1] != losses(observed["kept"])[1]
