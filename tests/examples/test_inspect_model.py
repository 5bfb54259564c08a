"""examples/inspect_model.py on a tiny run."""

import math
import re
import subprocess
import sys

import pytest

from tests.docs.pages import REPOSITORY

pytestmark = pytest.mark.timeout(120)
SCRIPT = "examples/inspect_model.py"


def run(*arguments: str, cwd=REPOSITORY) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / SCRIPT), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=100)


def test_the_example_prints_layer_weights_and_takes_a_step_that_lowers_the_loss(tiny_run):
    done = run(str(tiny_run.directory))
    assert done.returncode == 0, done.stderr
    weights = dict(re.findall(r"^  (layer_\d\d) +([\d. ]+)$", done.stdout, re.MULTILINE))
    assert weights.keys() == {"layer_01", "layer_02"}
    for name, shares in weights.items():
        values = [float(share) for share in shares.split()]
        assert len(values) == int(name[-2:])
        assert sum(values) == pytest.approx(1.0, abs=0.002)
    before, after = map(float, re.findall(r"([\d.]+) (?:before|after)", done.stdout))
    assert math.isfinite(before)
    assert 0 < after < before


def test_the_example_uses_the_run_of_the_demo_by_default(tiny_run, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(tiny_run.directory)
    done = run(cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "runs/demo" in done.stdout


def test_a_missing_run_is_an_error_of_one_line(tmp_path):
    done = run(cwd=tmp_path)
    assert done.returncode == 1
    assert "runs/demo" in done.stderr
    assert len(done.stderr.splitlines()) == 1
