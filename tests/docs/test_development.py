"""The worked examples of docs/add-*.md are applied to a copy of the code, tested, and used for training."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.commands import command_lines
from tests.docs.pages import PAGES, REPOSITORY, Block, blocks
from tests.support.launching import scalars

BLOCKS = [block for page in PAGES for block in blocks(page)]
EDITS = [block for block in BLOCKS if "edit" in block.marks]
FILES = [block for block in BLOCKS if "file" in block.marks]

pytestmark = pytest.mark.timeout(300)


def apply(block: Block, root: Path) -> None:
    """Apply a block in diff's format: the lines without ``+`` must be in the file once, one after another."""
    path = root / block.marks["edit"]
    lines = block.text.splitlines()
    assert all(line[:1] in ("+", "-", " ", "") for line in lines), f"{block}: not a diff"
    before = "\n".join(line[1:] for line in lines if not line.startswith("+"))
    after = "\n".join(line[1:] for line in lines if not line.startswith("-"))
    code = path.read_text(encoding="utf-8")
    assert code.count(f"\n{before}\n") == 1, (
        f"{block}: {block.marks['edit']} does not have these lines once:\n{before}"
    )
    path.write_text(code.replace(f"\n{before}\n", f"\n{after}\n"), encoding="utf-8")


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code with all edits and files of the pages."""
    root = tmp_path_factory.mktemp("edited")
    for folder in ("elc_bert", "data_tools", "launch", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "golden")
        shutil.copytree(REPOSITORY / folder, root / folder, ignore=ignored)
    for name in ("docs", "ds_configs"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("images"))
    (root / "elc_bert_launch").symlink_to("launch")  # the name of that package where it is installed
    shutil.copy(REPOSITORY / "pyproject.toml", root)
    shutil.copy(REPOSITORY / "README.md", root)
    for block in EDITS:
        apply(block, root)
    for block in FILES:
        path = root / block.marks["file"]
        assert not path.exists(), f"{block}: {path.name} is there already"
        path.write_text(block.text, encoding="utf-8")
    return root


def run(root: Path, *arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("page", ["add-variant", "add-optimizer", "add-callback", "add-data-policy"])
def test_every_page_adds_code_and_edits_the_code_that_is_there(page: str):
    assert [block for block in EDITS if block.page.stem == page]
    assert [block for block in FILES if block.page.stem == page]


def test_the_tests_of_the_examples_pass(edited: Path):
    tests = [block.marks["file"] for block in FILES if block.marks["file"].startswith("tests/")]
    assert f"{len(tests)} passed" in run(edited, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)


def test_code_of_the_examples_passes_ruff(edited: Path):
    new = [block.marks["file"] for block in FILES]
    changed = sorted({block.marks["edit"] for block in EDITS})
    run(edited, "-m", "ruff", "check", "--no-cache", *new)
    run(edited, "-m", "ruff", "check", "--no-cache", "--select", "E,F,I", *changed)
    run(edited, "-m", "ruff", "format", "--no-cache", "--check", *new, *changed)


def test_commands_of_the_examples_would_start(edited: Path):
    examples = [block for block in BLOCKS if block.marks.get("needs") == "the edits of this page"]
    commands = [line for block in examples for line in command_lines(block.text)]
    assert len(commands) >= 5
    run(
        edited,
        "-c",
        "import sys, tests.docs.commands as c; [c.check(line) for line in sys.argv[1:]]",
        *commands,
    )


def test_a_run_with_the_examples_trains_and_exports(
    edited: Path, configure, tiny_dataset, tiny_tokenizer, tmp_path
):
    dataset = tmp_path / "data" / tiny_dataset.name
    shutil.copytree(tiny_dataset.parent, dataset.parent)  # other tests use the original
    run(edited, "-m", "data_tools", "segments", dataset, "--lengths", "32", "--policy", "documents")
    run(edited, "-m", "data_tools", "verify", dataset)
    config = configure(
        tmp_path,
        model={"variant": "residual"},
        zero_optimization={"stage": 1},
        data={"train": str(dataset), "dev": str(dataset), "segments": "documents"},
        training={"max_steps": 60},
    )
    content = json.loads(config.read_text(encoding="utf-8"))
    content["optimizer"] = {"type": "Signum", "params": {"lr": 0.001, "momentum": 0.9}}
    config.write_text(json.dumps(content), encoding="utf-8")
    printed = run(edited, "launch/pretrain.py", "--deepspeed_config", config)
    assert "residual" in printed
    output = tmp_path / "run"
    entropy = scalars(output, "layer_entropy/layer_02")
    assert entropy.keys() == {50, 60}
    assert all(0 < value <= math.log(2) for value in entropy.values())
    run(edited, "launch/export.py", output, tmp_path / "export")
    run(edited, "-c", COMPARE, output, tmp_path / "export")


COMPARE = """
import sys
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM

from elc_bert.hub.loading import load_model

ours = load_model(Path(sys.argv[1])).model
theirs = AutoModelForMaskedLM.from_pretrained(sys.argv[2], trust_remote_code=True)
ids = torch.arange(7, 37).reshape(2, 15)
mask = torch.ones_like(ids, dtype=torch.bool)
with torch.no_grad():
    expected = ours(ids, mask, torch.arange(30)).reshape(2, 15, -1)
    difference = (theirs(ids, mask).logits - expected).abs().max()
assert ours.config.variant == theirs.config.variant == "residual"
assert difference <= 1e-5, difference
"""
