"""The benchmark of the data path, on little text; its times are not checked."""

import json
import subprocess
import sys

import pytest

from tests.support.launching import REPOSITORY

pytestmark = pytest.mark.timeout(300)


def test_building_batches_and_opening_are_measured(tiny_text, tiny_tokenizer, tmp_path):
    saved = tmp_path / "data.json"
    command = [
        *(sys.executable, "benchmarks/data.py", "--text", tiny_text, "--tokenizer", tiny_tokenizer),
        *("--rounds", "1", "--folder", tmp_path, "--json", saved),
    ]
    result = subprocess.run(list(map(str, command)), cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert list(tmp_path.iterdir()) == [saved]

    report = json.loads(saved.read_text())
    assert report["build"].keys() == {"build", "encode_batch"}
    assert report["batches"].keys() == {"128", "512"}
    assert report["opening"].keys() == {"1e+06", "1e+10"}
    for figures in (report["build"], *report["batches"].values()):
        assert all(rate > 0 for rate in figures.values())
    # The larger dataset has 10,000 times as many tokens, but opening it takes as little memory.
    assert all(figures["growth_bytes"] < 1 << 26 for figures in report["opening"].values())
