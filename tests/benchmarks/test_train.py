"""The benchmark of training steps, on a model of one layer; its times are not checked."""

import json
import subprocess
import sys

import matplotlib.image
import pytest

from tests.support.launching import REPOSITORY

pytestmark = pytest.mark.timeout(300)
TINY = (
    "--layers",
    "1",
    "--length",
    "32",
    "--batch",
    "2",
    "--rounds",
    "1",
    "--threads",
    "1",
    "--device",
    "cpu",
)


def benchmark(*arguments) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/train.py", *TINY, *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


def test_real_samples_are_measured_packed_and_padded(tiny_dataset, tmp_path):
    saved, picture = tmp_path / "train.json", tmp_path / "train.png"
    result = benchmark(
        *(
            "--data",
            tiny_dataset,
            "--micro-batches",
            5,
            "--kernels",
            "plain",
            "--json",
            saved,
            "--picture",
            picture,
        )
    )
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(saved.read_text())
    assert report["burst_flops"] > 0
    assert report["peak_flops"] == max(report["product_flops"].values()) > 0
    packed, padded = (report["speed"][f"plain, {layout}"] for layout in ("packed", "padded"))
    assert packed["real_tokens"] == padded["real_tokens"] < padded["all_tokens"]
    assert padded["all_tokens"] == 5 * 2 * 32
    for speed in (packed, padded):
        assert 0 < speed["mfu"] < 1
        assert sum(speed["part_seconds"].values()) == pytest.approx(speed["seconds"])
        assert all(speed["part_seconds"][part] > 0 for part in ("attention", "feed-forward", "optimizer"))
    for memory in report["memory"].values():
        assert 0 < memory["activations"] < memory["peak"]
    assert "plain, packed against plain, padded: real tokens/s" in result.stdout
    assert matplotlib.image.imread(picture).std() > 0


def test_memory_only_measures_no_times_also_with_compare(tmp_path):
    saved = tmp_path / "train.json"
    result = benchmark("--compare", "--memory-only", "--precision", "bf16", "--json", saved)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(saved.read_text())
    assert report["memory"].keys() == {"auto", "plain"}
    assert report["speed"] == {}


def test_every_module_of_a_candidate_uses_the_kernels_of_the_candidate():
    """If a module used other kernels, ``--compare`` would time the same kernels twice."""
    code = """
import torch
from optimizer import SIZES
from training_step import Training
from elc_bert.kernels import Kernels
from elc_bert.model.layers import KernelUser

config = SIZES["small"].model_copy(update={"num_hidden_layers": 1})
plain = Kernels()
training = Training(config, plain, "fp32", torch.device("cpu"), lambda: [])
users = [module for module in training.model.modules() if isinstance(module, KernelUser)]
assert len(users) > 8
assert all(module.kernels is plain for module in users)
assert training.model.kernels is plain
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPOSITORY / "benchmarks", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
