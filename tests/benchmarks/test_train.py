"""The benchmark of training steps, on a model of one layer; its times are not looked at."""

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


def test_real_samples_packed_and_padded(tiny_dataset, tmp_path):
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


def test_memory_alone_beside_the_plain_definitions(tmp_path):
    saved = tmp_path / "train.json"
    result = benchmark("--compare", "--memory-only", "--precision", "bf16", "--json", saved)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(saved.read_text())
    assert report["memory"].keys() == {"auto", "plain"}
    assert report["speed"] == {}
