"""Fine-tuning of an exported model with transformers' Trainer."""

import json
import os
import subprocess
import sys

import pytest

from elc_bert.hub.export import export
from elc_bert.model.loaded import LoadedModel
from tests.hub.test_export import random_model

pytest.importorskip("accelerate", reason="needs transformers and accelerate (extra hf)")

FINE_TUNE = """
import json, sys
import torch
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

export, result, *splits = sys.argv[1:]
draw = torch.Generator().manual_seed(2)
examples = [
    {"input_ids": torch.randint(7, 512, (16,), generator=draw), "labels": torch.tensor(n % 3)}
    for n in range(32)
]
found = {}
for split in splits:
    accumulation, batch = map(int, split.split("x"))
    torch.manual_seed(1)  # the same new head each time
    model = AutoModelForSequenceClassification.from_pretrained(
        export, num_labels=3, trust_remote_code=True,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )
    settings = TrainingArguments(
        result + "-trainer", per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
        max_steps=1, logging_steps=1, learning_rate=1e-3, max_grad_norm=1.0, use_cpu=True, report_to=[],
        save_strategy="no", disable_tqdm=True, seed=3, data_seed=3,
    )
    trainer = Trainer(model, settings, train_dataset=examples)
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "grad_norm" in entry)
    weight = next(value for name, value in model.named_parameters() if "word" in name)
    found[split] = [float(logged["loss"]), float(logged["grad_norm"]), weight.double().sum().item()]
    if trainer.is_world_process_zero():
        open(result, "w").write(json.dumps(found))
"""
"""Program that takes one step on 32 examples for each split, given as ``accumulation steps x batch size``."""


def fine_tune(export_folder, processes: int, *splits: str) -> dict[str, list[float]]:
    """Return the loss, gradient norm and a sum of updated weights for each split of the 32 examples."""
    result = export_folder.parent / f"{processes}.json"
    program = export_folder.parent / "fine_tune.py"
    program.write_text(FINE_TUNE, encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), program, export_folder, result, *splits]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    environment["HF_MODULES_CACHE"] = str(export_folder.parent / f"modules-{processes}")
    done = subprocess.run(
        [str(each) for each in command],
        cwd=export_folder.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[float]] = json.loads(result.read_text(encoding="utf-8"))
    return found


@pytest.mark.launcher
def test_the_update_does_not_depend_on_how_the_batch_is_split(tiny_tokenizer, tmp_path):
    folder = tmp_path / "export"
    export(LoadedModel(random_model("zero"), None), tiny_tokenizer, folder)
    alone = fine_tune(folder, 1, "1x32", "4x8", "8x4")
    together = fine_tune(folder, 2, "1x16", "4x4")
    loss, norm, weights = alone["1x32"]
    assert 0.5 < loss < 5
    assert norm > 0
    for split, values in [*alone.items(), *together.items()]:
        assert values == pytest.approx([loss, norm, weights], rel=2e-4), split
