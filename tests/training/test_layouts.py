"""The same losses for any number of ranks, micro-batch, ZeRO stage, precision and launcher."""

from pathlib import Path

import pytest

from elc_bert.config.length_schedule import LengthSchedule
from elc_bert.config.reader import load_config
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.segments import open_segments
from elc_bert.data.format.vocabulary import USUAL_TOKENS
from elc_bert.data.sampling.from_config import masking_from_config, portions_from_config
from elc_bert.data.sampling.steps import MicroBatch, TrainingSteps
from elc_bert.optim import schedule_factor
from tests.support.golden_model import VARIANTS
from tests.support.launching import (
    NO_DROPOUT,
    PRETRAIN_EACH,
    events,
    largest_difference,
    losses,
    run,
    scalars,
)
from tests.support.plain_step import assert_first_step, plain_step

pytestmark = [pytest.mark.launcher, pytest.mark.timeout(300)]

BF16 = {"bf16": {"enabled": True}}
FP32_SUMS = {"data_types": {"grad_accum_dtype": "fp32"}}
SWITCHING = {"long_after": 0.9}
"""Setting that makes steps 19 and 20 read 2 sequences of 128 tokens."""
ADAMW = {"type": "AdamW", "params": {"lr": 0.003, "weight_decay": 0.1}}
ONE_STEP = {
    "gradient_clipping": 0.5,
    "scheduler": {"params": {"warmup_proportion": 0.0}},
    "data": {"short_probability": 0.7},
    "training": {"max_steps": 1, "long_after": 1.0},
}

CASES = {
    **{f"{variant} fp32 stage 0": {"model": {"variant": variant}} for variant in VARIANTS},
    "zero fp32 stage 1": {"zero_optimization": {"stage": 1}},
    "zero fp32 stage 2": {"zero_optimization": {"stage": 2}},
    "weighted_output fp32 stage 2": {
        "model": {"variant": "weighted_output"},
        "zero_optimization": {"stage": 2},
    },
    "zero fp32 micro-batches of 1": {"training": {"max_micro_batch_size": 1}},
    "zero fp32 unpacked": {"data": {"pack": False}},
    "zero fp32 worker": {"data": {"workers": 1}},
    # With micro-batches of one row, one rank has a row of padding in some of these steps.
    "short unpacked": {
        "data": {"short_probability": 1.0, "pack": False},
        "training": {"max_steps": 8},
    },
    **{
        f"short stage {stage}": {
            "data": {"short_probability": 1.0},
            "training": {"max_steps": 8, "max_micro_batch_size": 1},
            "zero_optimization": {"stage": stage},
        }
        for stage in (0, 2, 3)
    },
    "zero bf16 stage 0": BF16,
    "zero bf16 stage 1": {**BF16, **FP32_SUMS, "zero_optimization": {"stage": 1}},
    "zero bf16 stage 1 summed in bf16": {**BF16, "zero_optimization": {"stage": 1}},
    "zero bf16 stage 2": {**BF16, "zero_optimization": {"stage": 2}},
    "AdamW stage 0": {"optimizer": ADAMW},
    "AdamW stage 2": {"optimizer": ADAMW, "zero_optimization": {"stage": 2}},
    "AdamW stage 3": {"optimizer": ADAMW, "zero_optimization": {"stage": 3}},
    **{f"one step stage {stage}": {**ONE_STEP, "zero_optimization": {"stage": stage}} for stage in (0, 1, 2)},
    "one step micro-batches of 1": {**ONE_STEP, "train_micro_batch_size_per_gpu": 1},
    "one step label smoothing": {**ONE_STEP, "training": {**ONE_STEP["training"], "label_smoothing": 0.3}},
}
"""Changes of the tiny configuration for the runs on two ranks, by name of the run."""


def _configure(configure, folder: Path, name: str, **changes) -> Path:
    changes = {
        section: dict(value) if isinstance(value, dict) else value for section, value in changes.items()
    }
    changes["model"] = NO_DROPOUT | changes.get("model", {})
    changes["training"] = SWITCHING | changes.get("training", {})
    return configure(folder / name.replace(" ", "-"), **changes)


@pytest.fixture(scope="module")
def two_ranks(configure, blended, tmp_path_factory) -> dict[str, Path]:
    """Output directories of all cases, run in one launch of two ranks."""
    folder = tmp_path_factory.mktemp("two-ranks")
    cases = CASES | {"blend fp32 stage 0": blended}
    configs = {name: _configure(configure, folder, name, **case) for name, case in cases.items()}
    result = run("deepspeed", 2, list(configs.values()), timeout=280, script=PRETRAIN_EACH)
    assert result.status == 0, result.output
    return {name: path.parent / "run" for name, path in configs.items()}


@pytest.fixture(scope="module")
def one_rank(configure, blended, tmp_path_factory) -> dict[str, Path]:
    """Output directories of runs with the same batch on one rank, which accumulates two micro-batches."""
    folder = tmp_path_factory.mktemp("one-rank")
    cases = {variant: {"model": {"variant": variant}} for variant in VARIANTS} | {"blend": blended}
    configs = {name: _configure(configure, folder, name, **case) for name, case in cases.items()}
    result = run("forked", 1, list(configs.values()), script=PRETRAIN_EACH)
    assert result.status == 0, result.output
    assert "4 micro-batch x 2 accumulation x 1 devices" in result.stdout
    assert "29.73% of the sequences" in result.stdout
    return {name: path.parent / "run" for name, path in configs.items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_of_two_ranks_equal_those_of_one_that_accumulates(one_rank, two_ranks, variant):
    two = two_ranks[f"{variant} fp32 stage 0"]
    lengths = scalars(two, "train/sequence_length")
    assert list(lengths.values()) == [32] * 18 + [128] * 2
    assert largest_difference(losses(two), losses(one_rank[variant])) < 1e-5


def test_two_ranks_read_the_same_blend_as_one(one_rank, two_ranks):
    assert largest_difference(losses(two_ranks["blend fp32 stage 0"]), losses(one_rank["blend"])) < 1e-5


def test_epochs_of_a_blend_are_those_of_each_dataset(one_rank, tiny_dataset, second_dataset):
    """The second dataset provides 3 in 10 of the 18 x 8 short and 2 x 2 long sequences."""
    tags = events(one_rank["blend"]).Tags()["scalars"]
    assert "data/epochs" not in tags
    for prefix, short, long in ((tiny_dataset, 101, 3), (second_dataset, 43, 1)):
        segments = [len(open_segments(IndexedDataset(prefix), length)) for length in (32, 128)]
        epochs = scalars(one_rank["blend"], f"data/epochs/{prefix.name}")
        assert epochs[20] == pytest.approx(short / segments[0] + long / segments[1])
    words = scalars(one_rank["blend"], "data/words")
    assert 0 < words[1] < words[20]


def test_the_variants_have_different_losses(one_rank):
    assert len({losses(one_rank[variant])[20] for variant in VARIANTS}) == len(VARIANTS)


@pytest.mark.parametrize("case", ["micro-batches of 1", "unpacked", "worker", "stage 1", "stage 2"])
def test_losses_are_equal_for_any_micro_batch_workers_and_zero_stage(two_ranks, case):
    expected = losses(two_ranks["zero fp32 stage 0"])
    assert largest_difference(losses(two_ranks[f"zero fp32 {case}"]), expected) < 1e-5


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_packing_keeps_the_losses_and_leaves_little_padding(two_ranks, stage):
    packed, unpacked = two_ranks[f"short stage {stage}"], two_ranks["short unpacked"]
    assert largest_difference(losses(packed), losses(unpacked)) < 1e-5
    shares = [sum(scalars(each, "throughput/real_share").values()) / 8 for each in (packed, unpacked)]
    assert shares[0] > 1.3 * shares[1] > 0.5


def test_losses_of_another_variant_are_equal_under_zero(two_ranks):
    expected = losses(two_ranks["weighted_output fp32 stage 0"])
    assert largest_difference(losses(two_ranks["weighted_output fp32 stage 2"]), expected) < 1e-5


def test_clipping_and_weight_decay_were_active(two_ranks):
    """Equal losses prove that clipping and weight decay are right only if both are active."""
    config = load_config(two_ranks["zero fp32 stage 2"] / "config.json")
    norms = scalars(two_ranks["zero fp32 stage 2"], "train/gradient_norm")
    assert config.optimizer.params["weight_decay"] > 0
    assert max(norms.values()) > config.gradient_clipping


@pytest.mark.parametrize("case", ["stage 0", "stage 1", "stage 1 summed in bf16", "stage 2"])
def test_bf16_stays_near_fp32(two_ranks, case):
    expected = losses(two_ranks["zero fp32 stage 0"])
    assert 0 < largest_difference(losses(two_ranks[f"zero bf16 {case}"]), expected) < 2e-2


@pytest.mark.parametrize("launcher", ["torchrun", "mpirun"])
def test_losses_are_equal_for_all_launchers(configure, two_ranks, tmp_path, launcher):
    config = _configure(configure, tmp_path, launcher)
    result = run(launcher, 2, ["--deepspeed_config", config])
    assert result.status == 0, result.output
    assert "x 2 devices" in result.stdout
    assert losses(config.parent / "run") == losses(two_ranks["zero fp32 stage 0"])


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("one step")])
def test_a_step_equals_plain_pytorch_on_the_whole_batch(two_ranks, case):
    """Loss, gradient norm and updated weights are equal, so all masked tokens weigh the same."""
    directory = two_ranks[case]
    batch, parts = _first_batch(directory)
    assert len({len(part.targets) for part in parts}) > 1, "micro-batches predict unequally many tokens"
    config = load_config(directory / "config.json")
    expected = plain_step(config, batch, config.elc_bert.training.label_smoothing)
    assert expected.gradient_norm > config.gradient_clipping
    assert_first_step(directory, expected)


def _first_batch(directory: Path) -> tuple[MicroBatch, list[MicroBatch]]:
    """Return the first global batch of a run, whole and in micro-batches of half its size."""
    config = load_config(directory / "config.json")
    data, training = config.elc_bert.data, config.elc_bert.training
    schedule = LengthSchedule(1, training.sequence_length, config.train_batch_size, training.long_after)

    def steps(micro_batch: int) -> TrainingSteps:
        return TrainingSteps(
            portions_from_config(data),
            schedule,
            training.seed,
            masking_from_config(data, USUAL_TOKENS),
            vocab_size=config.elc_bert.model.vocab_size,
            rank=0,
            world_size=1,
            micro_batch_of=lambda _: micro_batch,
        )

    (whole,) = steps(config.train_batch_size)[0]
    return whole, steps(config.train_batch_size // 2)[0]


def test_the_gradient_norm_is_logged_for_all_layouts(two_ranks):
    for directory in two_ranks.values():
        norms = scalars(directory, "train/gradient_norm").values()
        assert all(0 < norm < 1e3 for norm in norms)


@pytest.mark.parametrize("case", ["AdamW stage 0", "AdamW stage 2", "AdamW stage 3"])
def test_adamw_trains_and_follows_our_schedule(two_ranks, case):
    directory = two_ranks[case]
    config = load_config(directory / "config.json")
    factor = schedule_factor("Cosine", 20, **config.scheduler.params)
    for step, rate in scalars(directory, "train/learning_rate").items():
        assert rate == pytest.approx(0.003 * factor(step - 1), rel=1e-6)
    curve = list(losses(directory).values())
    assert curve[-1] < curve[0] - 0.3
    assert largest_difference(losses(directory), losses(two_ranks["AdamW stage 0"])) < 1e-5
    assert scalars(directory, "train/skipped_steps")[20] == 0
