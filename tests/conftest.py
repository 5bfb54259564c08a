"""Fixtures that tests of several packages share: small datasets, a tokenizer and a run."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.support.launching import write_config
from tests.support.uncovered import describe_skips

# Time limits of single examples would fail on a busy machine.
hypothesis.settings.register_profile("no time limit", deadline=None)
hypothesis.settings.load_profile("no time limit")

REPOSITORY = Path(__file__).resolve().parents[1]
RUN_FIXTURES = {"tiny_run", "reported"}
"""Fixtures that start the processes of a run; the tests that use them are marked as ``launcher``."""


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real corpora and published tokenizers next to the repository."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the folder 'shared' with real inputs is not next to the repository")
    return folder


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of 40 documents of invented words, each of several paragraphs and sentences."""
    draw = random.Random(1)
    syllables = [a + b for a in "bdfgklmnprst" for b in ("a", "en", "i", "or", "u")]
    lexicon = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(300)]

    def sentence() -> str:
        words = draw.choices(lexicon, k=draw.randint(2, 14))
        return f"{words[0].title()} {' '.join(words[1:])}."

    def document() -> str:
        return "\n".join(" ".join(sentence() for _ in range(draw.randint(1, 5))) for _ in range(4))

    path = tmp_path_factory.mktemp("text") / "tiny.txt"
    path.write_text("\n\n".join(document() for _ in range(40)) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_text: Path) -> Path:
    """A tokenizer of 512 subwords, trained on ``tiny_text``."""
    from data_tools.tokenizer import train

    path = tiny_text.with_name("tokenizer.json")
    lines = tiny_text.read_text(encoding="utf-8").splitlines()
    path.write_text(train(lines, vocab_size=512, min_frequency=2).to_str(), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_dataset(tiny_text: Path, tiny_tokenizer: Path) -> Path:
    """Prefix of a dataset of some thousand tokens, with segments for sequence lengths 32 and 128."""
    from data_tools.build import build_dataset

    prefix = tiny_text.with_name("tiny")
    build_dataset([tiny_text], tiny_tokenizer, prefix, lengths=[32, 128])
    return prefix


@pytest.fixture(scope="session")
def second_dataset(tiny_text: Path, tiny_tokenizer: Path) -> Path:
    """Prefix of a dataset with the tokenizer of ``tiny_dataset``, but other and less text."""
    from data_tools.build import build_dataset

    words = tiny_text.read_text(encoding="utf-8").split(" ")
    text = tiny_text.with_name("second.txt")
    text.write_text(" ".join(reversed(words[: len(words) // 3])), encoding="utf-8")
    prefix = tiny_text.with_name("second")
    build_dataset([text], tiny_tokenizer, prefix, lengths=[32, 128])
    return prefix


@dataclass(frozen=True)
class TinyRun:
    """A finished training run."""

    directory: Path
    output: str
    """Standard output and standard error."""


@pytest.fixture(scope="session")
def tiny_run(tiny_dataset: Path, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A run of four steps of a model of two layers. Its held-out data equals its training data."""
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
            # No batch size divides this number, so the last batch has padding rows, which must not count.
            "evaluation": {"sequences": 45},
        },
    }
    (folder / "tiny.json").write_text(json.dumps(config), encoding="utf-8")
    command = [sys.executable, "launch/pretrain.py", "--deepspeed_config", str(folder / "tiny.json")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return TinyRun(folder / "tiny", done.stdout + done.stderr)


@pytest.fixture(scope="session")
def configure(tiny_dataset: Path, tiny_tokenizer: Path) -> Callable[..., Path]:
    """Function that calls ``write_config`` with the tiny dataset and its tokenizer."""

    def configure(directory: Path, **changes) -> Path:
        return write_config(directory, tiny_dataset, tiny_tokenizer, **changes)

    return configure


@pytest.fixture(scope="session")
def blended(tiny_dataset: Path, second_dataset: Path) -> dict[str, Any]:
    """Changes for ``configure`` that make a run train on a blend of two datasets."""
    parts = [{"path": str(tiny_dataset), "weight": 0.7}, {"path": str(second_dataset), "weight": 0.3}]
    return {"data": {"train": parts}}


@pytest.fixture
def single_process_group() -> Iterator[None]:
    """A process group that consists of this process only."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def pytest_configure() -> None:
    """Make Triton interpret the GPU kernels if there is no GPU. Triton reads this setting at import."""
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.hookimpl(tryfirst=True)  # runs before fixtures draw random numbers
def pytest_runtest_setup() -> None:
    """Start every test from the same random numbers, so that a failure can be repeated."""
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)


@pytest.hookimpl(tryfirst=True)  # runs before pytest selects tests by their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip GPU tests where there is no GPU, and mark those that ``make test-fast`` leaves out."""
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no GPU on this machine"))
        if item.path.is_relative_to(REPOSITORY / "tests" / "benchmarks"):
            item.add_marker(pytest.mark.slow)
        if RUN_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.launcher)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print which parts were not covered on this machine, and why."""
    skipped = terminalreporter.stats.get("skipped", [])
    lines = describe_skips(report.longrepr[2] for report in skipped if isinstance(report.longrepr, tuple))
    if selection := config.getoption("markexpr"):
        lines.append(f"tests left out by -m '{selection}': `make test` runs all")
    terminalreporter.section("not covered on this machine")
    terminalreporter.write_line("\n".join(lines) or "nothing: no test was skipped")
