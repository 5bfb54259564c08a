"""A run of a few steps, made by the real entry point."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class TinyRun:
    """A finished run."""

    directory: Path
    output: str
    """What it printed, standard output and standard error."""


@pytest.fixture(scope="session")
def tiny_run(tiny_dataset: Path, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Four steps of a model of two layers; its training data is its held-out data too."""
    folder = tmp_path_factory.mktemp("run")
    config = {
        "train_batch_size": 8,
        "optimizer": {"type": "Lamb", "params": {"lr": 0.01}},
        "tensorboard": {"enabled": True},
        "elc_bert": {
            "model": {
                "vocab_size": 512,
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 48,
                "max_position_embeddings": 128,
            },
            "data": {
                "train": str(tiny_dataset),
                "dev": str(tiny_dataset),
                "tokenizer": str(tiny_tokenizer),
                "workers": 0,
            },
            "training": {
                "output_dir": str(folder / "tiny"),
                "max_steps": 4,
                "sequence_length": 32,
                "long_after": 1.0,
            },
            # Not a multiple of any batch, so that the last one has rows that do not count.
            "evaluation": {"sequences": 45},
        },
    }
    (folder / "tiny.json").write_text(json.dumps(config), encoding="utf-8")
    command = [sys.executable, "launch/pretrain.py", "--deepspeed_config", str(folder / "tiny.json")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return TinyRun(folder / "tiny", done.stdout + done.stderr)
