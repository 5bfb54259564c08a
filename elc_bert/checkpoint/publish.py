"""Completion of a checkpoint whose ranks have written their files, and deletion of old ones."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from elc_bert.checkpoint.files import (
    BEST,
    LATEST,
    OLD,
    REPLACED,
    RUN_FILE,
    all_checkpoints,
    partial_path,
    rank_file,
    rank_records,
    read_record,
    remove,
    step_order,
    warn_not_deleted,
    with_checksum,
)
from elc_bert.checkpoint.reshard import SavedState
from elc_bert.config.held_out import HeldOutSettings
from elc_bert.config.schema import CheckpointConfig
from elc_bert.utils.errors import UserError
from elc_bert.utils.files import atomic_write, sha256_of, sync_directory
from elc_bert.utils.tensor_files import write_tensors


def publish(
    final: Path,
    record: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    weights: Mapping[str, Tensor] | None,
    settings: CheckpointConfig,
) -> None:
    """Complete a checkpoint of which all ranks have written their files, and delete old ones.

    Args:
        final: Final directory; until now the files are in ``partial_path(final)``.
        record: Content of ``run.json`` without the files.
        shapes: Shapes of the model's parameters, by name.
        weights: Weights of the model, float32, by name; None to read them from DeepSpeed's files.
        settings: Which checkpoints to keep.

    Raises:
        OSError: The disk is full, for example.
    """
    partial, directory = partial_path(final), final.parent
    files: dict[str, str] = {}
    for rank, written in enumerate(rank_records(partial)):
        path = rank_file(partial, rank)
        files |= {path.name: sha256_of(path), **written["files"]}
    files |= _write_model(partial, record["config"]["elc_bert"]["model"], shapes, weights)
    with atomic_write(partial / RUN_FILE, "w") as file:
        file.write(with_checksum({**record, "files": files}))
    aside = final.with_name(f".{final.name}{REPLACED}")
    if os.path.lexists(final):
        remove(aside)  # what an earlier attempt has left
        os.replace(final, aside)
    os.replace(partial, final)
    sync_directory(directory)
    with atomic_write(directory / LATEST, "w") as file:
        file.write(final.name)
    remove(aside)
    delete_old(final, settings)


def delete_old(newest: Path, settings: CheckpointConfig) -> None:
    """Delete the checkpoints before ``newest`` that are not to be kept. One that cannot be deleted stays.

    Later ones, which remain from before the run was resumed from an earlier checkpoint, stay until the run
    overwrites them.
    """
    before = [path for path in all_checkpoints(newest.parent) if step_order(path) <= step_order(newest)]
    kept = before[-settings.keep :]
    if settings.keep_every is not None:
        kept += [path for path in before if int(path.name[5:]) % settings.keep_every == 0]
    if settings.keep_best:
        measured = _held_out_settings(newest)  # only losses on the same text and masks are comparable
        losses = {path: _held_out_loss(path) for path in before if _held_out_settings(path) == measured}
        best = min(losses, key=losses.__getitem__)
        if math.isfinite(losses[best]):
            kept.append(best)
            with atomic_write(newest.with_name(BEST), "w") as file:
                file.write(best.name)
    for path in before:
        if path not in kept:
            _drop(path)


def _drop(path: Path) -> None:
    """Delete an old checkpoint. It is renamed first: a half-deleted directory must not look like one."""
    hidden = path.with_name(f".{path.name}{OLD}")
    remove(hidden)  # what an earlier attempt has left
    try:
        path.rename(hidden)
    except OSError as error:
        warn_not_deleted(path, error)
    else:
        remove(hidden)


def _held_out_settings(path: Path) -> HeldOutSettings | None:
    """Return by which settings the held-out loss of a checkpoint was measured; None if it cannot be read."""
    try:
        return HeldOutSettings.of_record(read_record(path)["config"])
    except (UserError, LookupError, TypeError):
        return None


def _held_out_loss(path: Path) -> float:
    """Return the held-out loss of a checkpoint; infinity if it was not measured or is not finite."""
    try:
        loss = read_record(path)["progress"].get("held_out_loss")
    except UserError:
        loss = None
    return loss if loss is not None and math.isfinite(loss) else math.inf


def _write_model(
    directory: Path,
    config: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    weights: Mapping[str, Tensor] | None,
) -> dict[str, str]:
    """Write model.safetensors and model.json, and return their checksums."""
    if weights is None:
        saved = SavedState(directory)
        weights = {name: saved.whole(name).reshape(tuple(shape)) for name, shape in shapes.items()}
    model, description = directory / "model.safetensors", directory / "model.json"
    write_tensors(weights, model)
    with atomic_write(description, "w") as file:
        json.dump(config, file, indent=2)
    return {path.name: sha256_of(path) for path in (model, description)}
