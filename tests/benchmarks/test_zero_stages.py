"""The benchmark that compares an ordinary LAMB with this project's LAMB under ZeRO, on tiny runs."""

import json
import subprocess
import sys

import matplotlib.image
import pytest

from tests.support.launching import REPOSITORY, write_config

pytestmark = [pytest.mark.launcher, pytest.mark.timeout(300)]


def test_only_the_ordinary_lamb_differs_from_the_unsharded_run(tiny_dataset, tiny_tokenizer, tmp_path):
    config = write_config(tmp_path, tiny_dataset, tiny_tokenizer)
    output = tmp_path / "runs"
    command = [
        *(sys.executable, "benchmarks/zero_stages.py", "--deepspeed_config", config),
        *("--steps", "12", "--stages", "2", "--output", output),
    ]
    result = subprocess.run(list(map(str, command)), cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr

    table = json.loads((output / "zero_stages.json").read_text())
    assert list(table) == ["unsharded", "ours-stage-2", "plain-stage-2"]
    assert set(table["unsharded"]["loss"]) == {"1", "3", "6", "12"}
    assert table["ours-stage-2"]["largest_difference"] < 1e-5
    assert table["plain-stage-2"]["largest_difference"] > 1e-4
    assert f"picture: {output / 'zero_stages.png'}" in result.stdout
    assert matplotlib.image.imread(output / "zero_stages.png").std() > 0
