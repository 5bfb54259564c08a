from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tests.support.launching import write_config


@pytest.fixture(scope="session")
def configure(tiny_dataset: Path, tiny_tokenizer: Path) -> Callable[..., Path]:
    """``write_config`` over the tiny dataset."""

    def configure(directory: Path, **changes) -> Path:
        return write_config(directory, tiny_dataset, tiny_tokenizer, **changes)

    return configure


@pytest.fixture(scope="session")
def blended(tiny_dataset: Path, second_dataset: Path) -> dict[str, Any]:
    """Changes for ``configure``: two training datasets."""
    parts = [{"path": str(tiny_dataset), "weight": 0.7}, {"path": str(second_dataset), "weight": 0.3}]
    return {"data": {"train": parts}}


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
