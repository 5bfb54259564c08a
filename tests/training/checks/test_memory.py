"""Memory check before the first step. That a run is refused is tested in test_faults.py."""

import pytest
import torch

from elc_bert.config.reader import load_config
from elc_bert.distributed.world import World
from elc_bert.kernels import kernels_for
from elc_bert.training.checks import memory as preflight
from elc_bert.training.checks.memory import check_memory, explaining_out_of_memory
from elc_bert.utils.errors import UserError

ALONE = World(0, 1, torch.device("cpu"))


def set_free_memory(monkeypatch, gib: float) -> None:
    monkeypatch.setattr(preflight, "free_memory", lambda device: gib * 2**30)


@pytest.fixture
def config(configure, tmp_path):
    """Configuration whose longer sequences need the most memory, for their attention probabilities."""
    path = configure(
        tmp_path,
        train_batch_size=1024,
        training={"max_steps": 10, "sequence_length": 512, "long_after": 0.9, "max_micro_batch_size": 1024},
    )
    return load_config(path)


def test_memory_of_the_longer_sequences_is_checked(config, monkeypatch):
    set_free_memory(monkeypatch, 40)
    kernels = kernels_for("cpu", "plain")
    with pytest.raises(UserError, match=r"sequences of 2048 need [\d.]+ GiB of 40.00 GiB; .*size=\d+"):
        check_memory(config, kernels, ALONE)


def test_memory_close_to_the_limit_gives_advice(config, monkeypatch):
    kernels = kernels_for("cpu", "plain")
    set_free_memory(monkeypatch, 1000)
    line_far_from_limit = check_memory(config, kernels, ALONE)
    assert "of 1000.00 GiB free per device" in line_far_from_limit
    assert "close" not in line_far_from_limit
    set_free_memory(monkeypatch, float(line_far_from_limit.split()[1]) * 0.95)
    line = check_memory(config, kernels, ALONE)
    assert "close to the limit" in line
    assert "lower elc_bert.training.max_micro_batch_size" in line


def test_running_out_of_memory_is_one_line():
    with pytest.raises(UserError, match=r"out of memory \(.*\); lower .*max_micro_batch_size") as caught:  # noqa: SIM117
        with explaining_out_of_memory():
            torch.empty(1 << 50)
    assert "\n" not in str(caught.value)


def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="shapes"), explaining_out_of_memory():
        torch.ones(2, 3) @ torch.ones(2, 3)
