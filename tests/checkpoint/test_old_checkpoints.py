"""Which checkpoints are deleted, and which files a run deletes when it starts."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from elc_bert.checkpoint.files import (
    newest_first,
    partial_path,
    read_record,
    remove_unfinished,
    restore_replaced,
    write_rank,
)
from elc_bert.checkpoint.publish import delete_old, publish
from elc_bert.config.schema import CheckpointConfig
from tests.checkpoint.records import PROGRESS, rewrite_record


def test_delete_old_keeps_the_checkpoint_just_written_and_all_later_ones(tmp_path):
    """Later checkpoints exist if a run was resumed from an early one by ``--resume DIR``."""
    names = ["step-000020", "step-000040", "step-000060", "step-1000000", "step-000020-mine"]
    for name in names:
        (tmp_path / name).mkdir()
    delete_old(tmp_path / "step-000040", CheckpointConfig(keep=1))
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"step-000020-mine", "step-000040", "step-000060", "step-1000000"}
    delete_old(tmp_path / "step-1000000", CheckpointConfig(keep=1))
    assert {path.name for path in tmp_path.iterdir()} == {"step-000020-mine", "step-1000000"}


def test_keep_every_and_keep_best_retain_checkpoints(checkpoint):
    directory = checkpoint.parent
    for step, loss in [(5, 3.0), (6, 2.5), (7, None), (8, 2.75), (9, 2.9)]:
        copy = directory / f"step-{step:06d}"
        shutil.copytree(checkpoint, copy)
        rewrite_record(copy, progress={**PROGRESS, "step": step, "held_out_loss": loss})
    delete_old(directory / "step-000009", CheckpointConfig(keep=1, keep_every=4, keep_best=True))
    assert [path.name for path in newest_first(directory)] == ["step-000004"]  # the one that ``latest`` names
    left = {path.name for path in directory.iterdir()}
    assert left == {"latest", "best", *(f"step-00000{step}" for step in (4, 6, 8, 9))}
    assert (directory / "best").read_text() == "step-000006"


def test_the_best_checkpoint_is_one_of_those_measured_on_the_same_masks(checkpoint):
    directory = checkpoint.parent
    config = read_record(checkpoint)["config"]
    other = json.loads(json.dumps(config))
    other["elc_bert"]["evaluation"]["seed"] = 7
    for step, loss, by in [(5, 2.0, other), (6, 2.5, config), (7, 1.5, other), (8, 2.75, config)]:
        copy = directory / f"step-{step:06d}"
        shutil.copytree(checkpoint, copy)
        rewrite_record(copy, progress={**PROGRESS, "step": step, "held_out_loss": loss}, config=by)
    delete_old(directory / "step-000008", CheckpointConfig(keep=4, keep_best=True))
    assert (directory / "best").read_text() == "step-000006"
    delete_old(directory / "step-000007", CheckpointConfig(keep=3, keep_best=True))
    assert (directory / "best").read_text() == "step-000007"


def test_without_a_measured_loss_there_is_no_best_checkpoint(checkpoint):
    directory = checkpoint.parent
    for step, loss in [(5, float("nan")), (6, float("inf"))]:
        copy = directory / f"step-{step:06d}"
        shutil.copytree(checkpoint, copy)
        rewrite_record(copy, progress={**PROGRESS, "step": step, "held_out_loss": loss})
    delete_old(directory / "step-000006", CheckpointConfig(keep=1, keep_best=True))
    assert {path.name for path in directory.iterdir()} == {"latest", "step-000006"}


@pytest.mark.parametrize("dead", [False, True])
def test_an_old_checkpoint_that_is_a_symbolic_link_is_unlinked(tmp_path, caplog, dead):
    elsewhere, directory = tmp_path / "elsewhere" / "step-000002", tmp_path / "checkpoints"
    (directory / "step-000004").mkdir(parents=True)
    (directory / "step-000002").symlink_to(elsewhere)
    if not dead:
        elsewhere.mkdir(parents=True)
        (elsewhere / "run.json").write_text("{}")
    delete_old(directory / "step-000004", CheckpointConfig(keep=1))
    assert [path.name for path in directory.iterdir()] == ["step-000004"]
    assert (elsewhere / "run.json").exists() == (not dead)
    assert caplog.messages == []


@pytest.mark.parametrize("dead", [False, True])
def test_a_symbolic_link_of_the_same_step_is_replaced(checkpoint, dead):
    directory, elsewhere = checkpoint.parent, checkpoint.parents[2] / "elsewhere"
    record = read_record(checkpoint)
    checkpoint.rename(elsewhere)
    checkpoint.symlink_to(elsewhere)
    if dead:
        shutil.rmtree(elsewhere)
    partial = partial_path(checkpoint)
    partial.mkdir()
    write_rank(partial, 0, 1, dict, pieces=None)
    publish(checkpoint, record, {}, {}, CheckpointConfig(keep=1))
    assert {path.name for path in directory.iterdir()} == {"step-000004", "latest"}
    assert not checkpoint.is_symlink()
    assert read_record(checkpoint)["progress"] == PROGRESS
    assert (elsewhere / "weights.pt").exists() == (not dead)


@pytest.mark.parametrize("fails", ["rename", "rmtree"])
def test_a_checkpoint_that_cannot_be_deleted_is_a_warning(tmp_path, caplog, monkeypatch, fails):
    """The faults are a read-only file system and, at the second call, a file that a program holds open."""

    def fail(path, *arguments):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))

    for step in (2, 4, 6, 8):
        (tmp_path / f"step-{step:06d}").mkdir()
        (tmp_path / f"step-{step:06d}" / "weights.pt").touch()
    with monkeypatch.context() as patch:
        patch.setattr(*((Path, "rename") if fails == "rename" else (shutil, "rmtree")), fail)
        delete_old(tmp_path / "step-000006", CheckpointConfig(keep=1))
    names = [f"step-00000{step}" if fails == "rename" else f".step-00000{step}.old" for step in (2, 4)]
    assert [text.split("; ")[0] for text in caplog.messages] == [
        f"{tmp_path / name}: cannot be deleted: {os.strerror(errno.EBUSY)}" for name in names
    ]
    assert {path.name for path in tmp_path.iterdir()} == {*names, "step-000006", "step-000008"}
    assert all((path / "weights.pt").exists() for path in tmp_path.iterdir())
    caplog.clear()
    if fails == "rename":
        delete_old(tmp_path / "step-000006", CheckpointConfig(keep=1))
    else:
        remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"step-000006", "step-000008"}
    assert caplog.messages == []


def test_unfinished_files_of_a_killed_process_are_removed_and_nothing_else(tmp_path):
    directory, elsewhere = tmp_path / "run" / "checkpoints", tmp_path / "elsewhere"
    ours = [".step-000012.partial", ".step-000002.old", ".step-1000002.replaced"]
    others = [
        ".git",
        ".dvc",
        ".snapshot",
        ".step-000012.part",
        ".step-12.old",
        ".step-000012.old.mine",
        ".my.step-000012.old",
    ]
    for name in [*ours, *others, "step-000010"]:
        (directory / name).mkdir(parents=True)
        (directory / name / "half").touch()
    elsewhere.mkdir()
    (elsewhere / "weights.pt").touch()
    (directory / ".step-000014.old").symlink_to(elsewhere)
    (directory / ".step-000016.old").symlink_to(tmp_path / "gone")
    files = [".latest.12.tmp", ".best.13.tmp"]
    other_files = ["latest", "best", ".latest.tmp", ".latest.mine.tmp", ".nfs0000012", ".results.json.7.tmp"]
    for name in [*files, *other_files]:
        (directory / name).touch()
    in_run = [
        ".report.html.77.tmp",
        ".config.json.tmp",
        ".config.json.9.tmp.mine",
        ".other.9.tmp",
        "config.json",
    ]
    for name in [".config.json.9.tmp", *in_run]:
        (tmp_path / "run" / name).touch()
    remove_unfinished(directory)
    assert {path.name for path in directory.iterdir()} == {*others, *other_files, "step-000010"}
    assert all((directory / name / "half").exists() for name in others)
    assert {path.name for path in directory.parent.iterdir()} == {*in_run, "checkpoints"}
    assert (elsewhere / "weights.pt").exists()


def test_only_a_replaced_checkpoint_is_restored(tmp_path):
    for name in (".step-000004.replaced", ".notes.replaced", ".step-000006.replaced", "step-000006"):
        (tmp_path / name).mkdir()
    restore_replaced(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "step-000004",
        ".notes.replaced",
        ".step-000006.replaced",
        "step-000006",
    }
