"""The benchmark of optimizer steps, at the small model's size; its times are not checked."""

import json
import subprocess
import sys

import pytest

from tests.support.launching import REPOSITORY

pytestmark = pytest.mark.timeout(300)


def test_every_optimizer_is_measured_and_communication_is_counted(tmp_path):
    saved = tmp_path / "optimizer.json"
    command = [
        *(sys.executable, "benchmarks/optimizer.py", "--size", "small", "--device", "cpu"),
        *("--rounds", "1", "--steps", "1", "--json", str(saved)),
    ]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr

    report = json.loads(saved.read_text())
    assert report["elements"] == pytest.approx(24e6, rel=0.05)
    assert report["bytes_all_reduced_per_step"] == 8 * report["tensors_with_trust_ratio"] > 0
    assert len(report["seconds_per_step"]) == 4
    for name, seconds in report["seconds_per_step"].items():
        assert seconds > 0
        assert name in result.stdout
