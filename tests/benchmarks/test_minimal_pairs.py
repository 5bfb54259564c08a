"""The benchmark of scoring minimal pairs; its times are not checked."""

import json
import subprocess
import sys

from tests.evaluation.test_minimal_pairs import write_pairs
from tests.support.launching import REPOSITORY


def test_all_methods_give_the_same_scores(tiny_run, tiny_text, tmp_path):
    texts = [line for line in tiny_text.read_text().splitlines() if line.count(" ") > 3][:4]
    pairs, saved = write_pairs(tmp_path / "pairs", texts), tmp_path / "pairs.json"
    command = [
        *(sys.executable, "benchmarks/minimal_pairs.py", "--pairs", str(pairs)),
        *("--model", str(tiny_run.directory), "--few", "2", "--rounds", "1"),
        *("--json", str(saved)),
    ]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr

    report = json.loads(saved.read_text())
    assert report["pairs"] == 12
    assert list(report["pairs_per_second"]) == ["batched", "sentence", "masked sentence"]
    assert all(rate > 0 for rate in report["pairs_per_second"].values())
    assert max(report["largest_difference"].values()) < 1e-4
