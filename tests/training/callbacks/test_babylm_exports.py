"""Exports and minimal pairs during training, and export on a machine without the training cluster."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from elc_bert.checkpoint.load_model import newest_checkpoint
from elc_bert.hub.card import facts_of_checkpoint
from elc_bert.hub.loading import load_model
from elc_bert.training.callbacks.babylm_exports import MILESTONES, epochs_warning, milestone_name
from tests.evaluation.test_minimal_pairs import write_pairs
from tests.support.launching import REPOSITORY, Result, run, scalars, write_config

RANKS = 3
STEPS = 16


def test_milestones_are_those_of_the_fast_evaluation():
    names = [milestone_name(milestone) for milestone in MILESTONES]
    assert len(names) == 9 + 9 + 10
    assert names[:2] + names[8:11] + names[17:20] == [
        *("chck_1M", "chck_2M", "chck_9M", "chck_10M", "chck_20M", "chck_90M", "chck_100M", "chck_200M")
    ]
    assert names[-1] == "chck_1000M"


def test_more_than_ten_epochs_give_a_warning():
    assert epochs_warning({"a": 10.0, "b": 0.1}) == ""
    assert epochs_warning({"a": 12.3, "b": 0.1}) == "reads a 12.3 times; BabyLM allows 10 epochs"


@pytest.fixture(scope="module")
def trained(tiny_dataset, tiny_tokenizer, tiny_text, tmp_path_factory) -> tuple[Result, dict]:
    """A run of 3 ranks under ZeRO 3 that passes a million words."""
    folder = tmp_path_factory.mktemp("babylm")
    sentences = [line for line in tiny_text.read_text().splitlines() if line.count(" ") > 3][:4]
    config = write_config(
        folder,
        tiny_dataset,
        tiny_tokenizer,
        train_batch_size=3 * 2048,
        zero_optimization={"stage": 3, "stage3_param_persistence_threshold": 0},
        model={"num_hidden_layers": 1, "hidden_size": 12, "num_attention_heads": 1, "intermediate_size": 16},
        training={"max_steps": STEPS, "max_micro_batch_size": 2048, "sequence_length": 32},
        evaluation={
            "babylm_checkpoints": True,
            "minimal_pairs": str(write_pairs(folder / "pairs", sentences)),
            "minimal_pairs_every": 5,
            "minimal_pairs_limit": 3,
        },
        checkpoint={"every": 4},
    )
    result = run("forked", RANKS, ["--deepspeed_config", config], timeout=240)
    assert result.status == 0, result.output
    return result, json.loads(config.read_text())


@pytest.mark.launcher
def test_words_are_counted_and_each_million_is_exported(trained):
    result, config = trained
    output = Path(config["elc_bert"]["training"]["output_dir"])
    words = scalars(output, "data/words")
    assert list(words) == list(range(1, STEPS + 1))
    assert words[STEPS] > 1e6
    assert words[2] == pytest.approx(2 * words[1], rel=0.05)
    record = json.loads((newest_checkpoint(output) / "run.json").read_text())
    assert record["progress"]["words_seen"] == pytest.approx(words[STEPS], rel=1e-6)

    exports = sorted(path.name for path in (output / "babylm_checkpoints").iterdir())
    assert exports == [f"chck_{n}M" for n in range(1, int(words[STEPS] // 1e6) + 1)]
    for millions, name in enumerate(exports, start=1):
        step = min(step for step, count in words.items() if count >= millions * 1e6)
        assert f"step {step}: exported babylm_checkpoints/{name}" in result.output
        assert (
            f"| steps | {step} of {STEPS} |"
            in (output / "babylm_checkpoints" / name / "README.md").read_text()
        )
    assert "BabyLM allows 10 epochs" in result.stdout


@pytest.mark.launcher
def test_minimal_pairs_are_scored_during_training(trained):
    result, config = trained
    output = Path(config["elc_bert"]["training"]["output_dir"])
    overall = scalars(output, "minimal_pairs/within-word-first-3/overall")
    assert list(overall) == [5, 10, 15, STEPS]
    assert all(0 <= accuracy <= 1 for accuracy in overall.values())
    assert list(scalars(output, "minimal_pairs/within-word-first-3/syntax")) == list(overall)
    pairs = scalars(output, "minimal_pairs/within-word-first-3/number_of_pairs")
    assert pairs == dict.fromkeys(overall, 9)
    how = "9 pairs, method within-word, limit 3 per paradigm"
    assert f"pairs, 3 paradigms, {how}, every 5 steps" in result.output
    assert f"step 5: minimal pairs {overall[5]:.1%} ({how})" in result.output
    card = (output / "babylm_checkpoints/chck_1M/README.md").read_text()
    assert "minimal pairs" not in card, "an export during training has no results yet"
    facts = facts_of_checkpoint(newest_checkpoint(output))
    assert facts["minimal pairs, within-word-first-3"] == (
        f"{overall[STEPS]:.1%} accuracy, scored during training ({how})"
    )


@pytest.mark.launcher
def test_three_ranks_of_zero_3_are_exported_by_one_process(trained, tmp_path):
    _, config = trained
    output = Path(config["elc_bert"]["training"]["output_dir"])
    checkpoint = tmp_path / "elsewhere" / "step"
    shutil.copytree(newest_checkpoint(output), checkpoint)

    command = [sys.executable, "launch/export.py", str(checkpoint), str(tmp_path / "model")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    # DeepSpeed's own conversion reads the optimizer states of the three ranks.
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    theirs = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    exported = load_model(tmp_path / "model").model
    ours = dict(exported.named_parameters())
    assert len(list(checkpoint.glob("*zero_pp_rank_*_optim_states.pt"))) == RANKS
    assert ours.keys() <= theirs.keys()
    for name, parameter in ours.items():
        assert torch.equal(parameter, theirs[name].reshape(parameter.shape)), name
    assert ours.keys() == load_file(checkpoint / "model.safetensors").keys()
