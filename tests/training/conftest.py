from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.launching import write_config


@pytest.fixture(scope="session")
def configure(tiny_dataset: Path, tiny_tokenizer: Path) -> Callable[..., Path]:
    """``write_config`` over the tiny dataset."""

    def configure(directory: Path, **changes) -> Path:
        return write_config(directory, tiny_dataset, tiny_tokenizer, **changes)

    return configure
