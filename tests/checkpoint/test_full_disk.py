"""A disk that is full or read-only ends a run with one line and leaves the last good checkpoint."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from elc_bert.checkpoint.files import read_record
from tests.support.launching import losses, run

pytestmark = [pytest.mark.launcher, pytest.mark.timeout(300)]

STEPS = 30


@pytest.fixture
def disk(tmp_path) -> Iterator[tuple[Path, Callable[[str], None]]]:
    """A small file system in memory, and a function that remounts it with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no small disk can be mounted on this machine: {error}")
    if done.returncode != 0:
        pytest.skip(f"no small disk can be mounted on this machine: {done.stderr.strip()}")
    try:
        yield (
            folder,
            lambda options: (
                subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True) and None
            ),
        )
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_run_ends_in_one_line_on_a_full_or_read_only_disk_and_can_be_resumed(disk, configure):
    folder, remount = disk
    config = configure(
        folder / "of-a-user",
        zero_optimization={"stage": 1},
        training={"max_steps": STEPS},
        checkpoint={"every": 2, "keep": 100},
    )
    arguments = ["--deepspeed_config", config, "--resume", "auto"]
    checkpoints = config.parent / "run" / "checkpoints"
    result = run("forked", 2, arguments)
    assert result.status == 1, result.output
    assert len(result.errors) == 1, result.output
    (error,) = result.errors
    latest = (checkpoints / "latest").read_text()
    assert error.startswith(str(config.parent / "run"))
    assert "No space left on device" in error
    assert "--resume auto" in error
    assert "Traceback" not in result.output
    assert 2 <= read_record(checkpoints / latest)["progress"]["step"] < STEPS
    assert not list(checkpoints.glob(".step*"))

    remount("size=50m,ro")
    result = run("forked", 2, arguments)
    assert result.status == 1, result.output
    assert len(result.errors) == 1, result.output
    (error,) = result.errors
    assert "Read-only file system" in error
    assert "Traceback" not in result.output

    remount("rw")
    result = run("forked", 2, arguments)
    assert result.status == 0, result.output
    assert f"from {checkpoints / latest}" in result.output
    assert max(losses(config.parent / "run")) == STEPS
