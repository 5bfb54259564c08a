"""Configuration of a run, and a checkpoint of it without DeepSpeed's files."""

from pathlib import Path

import pytest

from elc_bert.checkpoint.identity import layout_of, run_identity
from elc_bert.config.reader import load_config
from elc_bert.utils.files import sha256_of
from tests.checkpoint.records import DATA, PROGRESS, rewrite_record


@pytest.fixture
def config(configure, tmp_path) -> Path:
    return configure(tmp_path)


@pytest.fixture
def checkpoint(config: Path) -> Path:
    """A complete checkpoint after step 4 on two devices, with a stand-in for DeepSpeed's files."""
    directory = config.parent / "run" / "checkpoints" / "step-000004"
    directory.mkdir(parents=True)
    (directory / "weights.pt").write_bytes(b"weights")
    rewrite_record(
        directory,
        identity=run_identity(load_config(config), DATA),
        layout=layout_of(load_config(config), devices=2),
        progress=PROGRESS,
        config=load_config(config).model_dump(mode="json"),
        files={"weights.pt": sha256_of(directory / "weights.pt")},
    )
    (directory.parent / "latest").write_text(directory.name)
    return directory
