"""Runs in which one rank computes, reads or stores wrong values: the step is skipped, or the run ends."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.launching import Result, run, scalars

pytestmark = [pytest.mark.launcher, pytest.mark.timeout(400)]

PRETRAIN_FAULTY = Path(__file__).parents[2] / "support" / "pretrain_faulty.py"
BF16 = {"bf16": {"enabled": True}}
FP32_SUMS = {"data_types": {"grad_accum_dtype": "fp32"}}
FP16 = {"fp16": {"enabled": True, "initial_scale_power": 0}}
"""fp16 with the lowest loss scale, at which no step overflows unless a test causes it."""
ADAMW = {"optimizer": {"type": "AdamW", "params": {"lr": 0.003, "weight_decay": 0.1, "torch_adam": True}}}


def stage(number: int, offload: bool = False) -> dict[str, Any]:
    section = {"offload_optimizer": {"device": "cpu"}} if offload else {}
    return {"zero_optimization": {"stage": number, **section}}


SKIPPING = {
    **{f"fp32 stage {number}": stage(number) for number in range(4)},
    "bf16 stage 0": BF16 | stage(0),
    "bf16 stage 1 summed in fp32": BF16 | FP32_SUMS | stage(1),
    "bf16 stage 2 offload": BF16 | stage(2, offload=True),
    "bf16 stage 3 offload": BF16 | stage(3, offload=True),
    "fp16 stage 0": FP16 | stage(0),
    "fp16 stage 3": FP16 | stage(3),
    "AdamW stage 0": ADAMW | stage(0),
}
"""Cases for every optimizer wrapper of DeepSpeed, and for every way in which it stores gradients. On rank 1,
the gradient is NaN in step 3 and the loss is infinite in step 5.
"""


SPOILED = {
    "weights stage 0": stage(0),
    "weights stage 2 bf16": BF16 | stage(2),
    "weights stage 3": stage(3),
    "moments stage 0 bf16": BF16 | stage(0),
    "moments stage 1": stage(1),
    "moments stage 3 offload": BF16 | stage(3, offload=True),
    "moments AdamW": ADAMW | stage(0),
}
"""Cases in which a master weight or a moment becomes NaN on rank 1 in step 4, before its checkpoint."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def launch(configure, folder, tiny_dataset, second_dataset) -> Result:
    """Result of one launch of two ranks, which runs all cases one after the other."""
    cases: dict[str, dict[str, Any]] = {}

    def add(name: str, changes: dict[str, Any], training: dict[str, Any], **fault: Any) -> None:
        training = {"max_steps": 7, "max_micro_batch_size": 2, **training}
        changes = {"checkpoint": {"every": 4}} | changes
        config = configure(folder / name.replace(" ", "-"), training=training, **changes)
        cases[name] = {"config": str(config), **fault}

    for name, changes in SKIPPING.items():
        add(name, changes, {}, nan_gradients=[3], bad_losses={"5": float("inf")})
    for name, changes in SPOILED.items():
        checkpoints = {"checkpoint": {"every": 2, "keep": 1}}
        add(name, changes | checkpoints, {}, bad_state=[4], bad_moment=name.startswith("moments"))
    in_a_row = {"max_nonfinite_steps": 3}
    add("too many", stage(1), in_a_row, bad_losses={"2": float("nan")}, nan_gradients=[4, 5, 6])
    cases["too many, resumed"] = cases["too many"] | {"resume": "auto"}
    for number in (0, 3):
        add(f"flip stage {number}", stage(number), {"check_replicas_every": 2}, flips=[4])
    add("no flip", BF16 | stage(1), {"check_replicas_every": 1})
    add("other config", {}, {}, overrides=["elc_bert.training.seed=7", "gradient_clipping=1.5"])
    for here, prefix in {"here": tiny_dataset, "there": second_dataset}.items():
        (folder / here).mkdir()
        for file in prefix.parent.glob(f"{prefix.name}.*"):
            target = folder / here / f"text{file.name.removeprefix(prefix.name)}"
            shutil.copy(file, target)
            if target.suffix == ".json":
                target.write_text(target.read_text().replace(f'"{prefix.name}.', '"text.'))
    directories = [str(folder / "here"), str(folder / "there")]
    add("other data", {"data": {"train": "text"}}, {}, directories=directories)
    add("no room", {"train_batch_size": 1 << 24}, {"max_micro_batch_size": 1 << 24})
    (folder / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    return run("deepspeed", 2, [folder / "cases.json"], timeout=300, script=PRETRAIN_FAULTY)


def message(launch: Result, name: str) -> str:
    """Return the message with which the run of a case ended on both ranks."""
    messages = re.findall(rf"^{name}, rank \d: (.*)$", launch.output, flags=re.MULTILINE)
    assert len(messages) == 2, launch.output
    assert messages[0] == messages[1]
    return messages[0]


def ranks(folder: Path, name: str) -> list[dict[str, dict[str, Any]]]:
    directory = folder / name.replace(" ", "-") / "run"
    return [json.loads((directory / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", SKIPPING)
def test_a_nonfinite_step_changes_no_state_on_any_rank(launch, folder, name):
    assert launch.status == 0, launch.output
    for steps in ranks(folder, name):
        states = [steps[str(number)]["state"] for number in range(1, 8)]
        rates = [steps[str(number)]["learning_rate"] for number in range(1, 8)]
        for skipped in (2, 4):
            assert (states[skipped], rates[skipped]) == (states[skipped - 1], rates[skipped - 1])
        taken = [number for number in range(7) if number not in (2, 4)]
        assert len({states[number] for number in taken}) == 5
        assert len({rates[number] for number in taken}) == 5
        assert [steps[str(number)]["skipped"] for number in range(1, 8)] == [0, 0, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("name", SKIPPING)
def test_training_continues_after_a_nonfinite_step(launch, folder, name):
    directory = folder / name.replace(" ", "-") / "run"
    curve = scalars(directory, "train/loss")
    assert [number for number, loss in curve.items() if loss != loss] == [5]
    assert curve[7] < 6.5
    assert list(scalars(directory, "train/skipped_steps").values()) == [0, 0, 1, 1, 2, 2, 2]
    assert scalars(directory, "data/words")[5] > scalars(directory, "data/words")[4]


def test_too_many_nonfinite_steps_end_the_run_and_are_counted_across_a_resume(launch, folder):
    for name in ("too many", "too many, resumed"):
        assert "not finite in steps 4-6, 3 in a row (elc_bert.training.max_nonfinite_steps)" in message(
            launch, name
        )
    assert list(ranks(folder, "too many")[0]) == ["5", "6"], "the resumed run must begin after step 4"


def test_samples_of_a_nonfinite_step_are_recorded(launch, folder, tiny_dataset):
    directory = folder / "too-many" / "run" / "nonfinite"
    assert {path.name for path in directory.iterdir()} == {f"step-00000{n}.json" for n in (2, 4, 5, 6)}
    loss, gradient = (json.loads((directory / f"step-00000{n}.json").read_text()) for n in (2, 4))
    (rank,) = loss["ranks"]
    assert (rank["rank"], {each["loss"] for each in rank["micro_batches"]}) == (1, {"nan"})
    assert [each["rank"] for each in gradient["ranks"]] == [0, 1]
    samples = [
        (sample["dataset"], sample["epoch"], sample["segment"])
        for rank in gradient["ranks"]
        for micro_batch in rank["micro_batches"]
        for sample in micro_batch["samples"]
    ]
    assert len(set(samples)) == 8
    assert {dataset for dataset, _, _ in samples} == {str(tiny_dataset)}


@pytest.mark.parametrize("name", SPOILED)
def test_a_checkpoint_with_nan_never_replaces_a_good_one(launch, folder, name):
    text = message(launch, name)
    assert re.search(r"step-000004: not written, because \S+ .*holds NaN or infinite numbers on rank 1", text)
    kind = "exp_avg_sq" if name.startswith("moments") else "master weights"
    assert f"({kind})" in text or (kind == "master weights" and "stage 0" in name)
    assert "the last good checkpoint is step-000002" in text
    directory = folder / name.replace(" ", "-") / "run" / "checkpoints"
    assert {path.name for path in directory.iterdir()} == {"step-000002", "latest"}
    assert (directory / "latest").read_text() == "step-000002"


@pytest.mark.parametrize("number", [0, 3])
def test_a_flipped_bit_is_found_at_the_next_check(launch, folder, number):
    text = message(launch, f"flip stage {number}")
    assert re.search(r"^step 4: ranks 0-1 \(.*\) hold different weights in .*(bias|weight|embedding)", text)
    assert list(ranks(folder, f"flip stage {number}")[0]) == ["1", "2", "3", "4"]


def test_a_run_with_equal_replicas_passes_the_check(launch, folder):
    assert list(ranks(folder, "no flip")[0]) == [str(number) for number in range(1, 8)]


def test_another_configuration_on_one_rank_is_named(launch):
    text = message(launch, "other config")
    assert re.search(r"elc_bert\.training\.seed: 42 on rank 0 \(.*\), 7 on rank 1 \(.*\)", text)
    assert re.search(r"gradient_clipping: 2\.0 on rank 0 \(.*\), 1\.5 on rank 1 \(.*\)", text)
    assert text.count(" on rank 1 ") == 2, "only two keys differ"


def test_another_dataset_on_one_rank_is_named(launch):
    text = message(launch, "other data")
    assert re.search(r"manifests\.train: [0-9a-f]{64} on rank 0", text)
    assert re.search(r"text\.bin: \d+ bytes, [0-9a-f]{12} on rank 0 \(.*\), \d+ bytes.* on rank 1", text)
    assert "tokenizer" not in text


def test_a_run_that_does_not_fit_is_refused_with_the_micro_batch_that_fits(launch):
    assert re.search(
        r"does not fit: sequences of 32 need [\d.]+ GiB of [\d.]+ GiB; the largest micro-batch that fits is",
        message(launch, "no room"),
    )
