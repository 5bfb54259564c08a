"""Checkpoints as they lie on disk: their files, which are whole, which are kept. Nothing here is collective.

``<output_dir>/checkpoints/step-000500/`` holds

- DeepSpeed's own files (weights, optimizer, schedule), and ``rank-NNNNN.json`` of every rank: which pieces of
  which tensors its file holds (see ``saved_state``);
- the weights alone as ``model.safetensors`` with ``model.json``, which is what evaluation and export read;
- ``run.json``: who the run is, how far it got, and the SHA-256 of every other file and of itself.

It is written under a hidden name and renamed when it is complete; then the file ``latest`` beside it is
replaced by one that names it, and ``best`` likewise where the best is kept.
"""

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from elc_bert.checkpoint.progress import Progress
from elc_bert.config.schema import CheckpointConfig
from elc_bert.utils.errors import UserError
from elc_bert.utils.files import atomic_write, sha256_of, sync_directory

RUN_FILE = "run.json"
STEP_DIRECTORY = re.compile(r"step-\d{6,}")
_REPLACED = ".replaced"
"""Ending of a checkpoint's name while another one takes its place."""


def name_of(step: int) -> str:
    """Of the checkpoint after a step."""
    return f"step-{step:06d}"


def partial_of(final: Path) -> Path:
    """Where a checkpoint is until it is complete."""
    return final.with_name(f".{final.name}.partial")


def all_checkpoints(directory: Path) -> list[Path]:
    """The complete ones, the earliest first."""
    if not directory.is_dir():
        return []
    paths = [path for path in directory.iterdir() if STEP_DIRECTORY.fullmatch(path.name)]
    return sorted(paths, key=_order)


def newest_first(directory: Path) -> list[Path]:
    """The checkpoints to go on from, in the order to try them: what ``latest`` names, then those before.

    Later ones belong to what was done before somebody went back to an earlier one.
    """
    steps = all_checkpoints(directory)
    try:
        latest = directory / (directory / "latest").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return steps[::-1]
    if not STEP_DIRECTORY.fullmatch(latest.name):
        return steps[::-1]
    return [latest, *(step for step in reversed(steps) if _order(step) < _order(latest))]


def read_record(path: Path) -> dict[str, Any]:
    """What ``run.json`` of a checkpoint says.

    Raises:
        UserError: it is missing, damaged or of another version.
    """
    file = path / RUN_FILE
    try:
        text = file.read_text(encoding="utf-8")
        record = json.loads(text)
        intact = sealed(record) == text
        Progress(**record["progress"]), record["config"], record["layout"], record["files"].items()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: is damaged or of another version ({error})") from None
    if not intact:
        raise UserError(f"{file}: is damaged (its checksum is another)")
    return record


def sealed(record: Mapping[str, Any]) -> str:
    """A record as JSON with its own checksum, which changes with any byte of it."""
    blank = json.dumps({**record, "sha256": None}, indent=1)
    return json.dumps({**record, "sha256": hashlib.sha256(blank.encode()).hexdigest()}, indent=1)


def check_files(path: Path, files: Mapping[str, str]) -> None:
    """Compare files of a checkpoint with their checksums.

    Raises:
        UserError: one is missing or damaged.
    """
    for name, expected in sorted(files.items()):
        file = path / name
        try:
            found = sha256_of(file)
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror})") from None
        if found != expected:
            raise UserError(f"{file}: is damaged (its checksum is another)")


def write_rank(
    directory: Path, rank: int, ranks: int, write: Callable[[], dict[str, str]], pieces: Sequence[Any] | None
) -> None:
    """Write a rank's files by ``write``, which gives their checksums, and then the record of them.

    Args:
        pieces: of the model's tensors in the optimizer's state, see ``saved_state``.

    Raises:
        OSError: the disk is full, or the like.
    """
    files = write()
    optimizer = max(files, key=lambda name: "optim_states" in name, default=None)
    with atomic_write(_rank_file(directory, rank), "w") as file:
        json.dump({"ranks": ranks, "files": files, "optimizer": optimizer, "pieces": pieces}, file)


def rank_records(directory: Path) -> list[dict[str, Any]]:
    """What every rank has written, in their order.

    By name: on a network file system, lists of what other hosts have put into a directory come late.

    Raises:
        OSError: one is missing.
    """
    first = json.loads(_rank_file(directory, 0).read_text(encoding="utf-8"))
    others = (_rank_file(directory, rank) for rank in range(1, first["ranks"]))
    return [first, *(json.loads(path.read_text(encoding="utf-8")) for path in others)]


def _rank_file(directory: Path, rank: int) -> Path:
    return directory / f"rank-{rank:05d}.json"


def publish(
    final: Path,
    record: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    weights: Mapping[str, Tensor] | None,
    settings: CheckpointConfig,
) -> None:
    """Complete a checkpoint of which all ranks have written their files, and drop those no longer kept.

    Args:
        final: its directory-to-be; so far it is ``partial_of(final)``.
        record: what goes into ``run.json``, but for the files.
        shapes: of the model's parameters, by name.
        weights: float32, by name; None if they are to be read from DeepSpeed's files.

    Raises:
        OSError: the disk is full, or the like.
    """
    partial, directory = partial_of(final), final.parent
    files: dict[str, str] = {}
    for rank, written in enumerate(rank_records(partial)):
        path = _rank_file(partial, rank)
        files |= {path.name: sha256_of(path), **written["files"]}
    files |= _write_model(partial, record["config"]["elc_bert"]["model"], shapes, weights)
    with atomic_write(partial / RUN_FILE, "w") as file:
        file.write(sealed({**record, "files": files}))
    aside = final.with_name(f".{final.name}{_REPLACED}")
    if final.exists():
        os.replace(final, aside)
    os.replace(partial, final)
    sync_directory(directory)
    with atomic_write(directory / "latest", "w") as file:
        file.write(final.name)
    shutil.rmtree(aside, ignore_errors=True)
    drop_old(final, settings)


def drop_old(newest: Path, settings: CheckpointConfig) -> None:
    """Leave ``newest`` and those before it that are to be kept.

    Later ones, of a run that went on from here before, stay: they are overwritten when it is their turn.
    """
    before = [path for path in all_checkpoints(newest.parent) if _order(path) <= _order(newest)]
    kept = before[-settings.keep :]
    if settings.keep_every is not None:
        kept += [path for path in before if int(path.name[5:]) % settings.keep_every == 0]
    if settings.keep_best:
        best = min(before, key=_held_out_loss)
        kept.append(best)
        with atomic_write(newest.with_name("best"), "w") as file:
            file.write(best.name)
    for path in before:
        if path not in kept:
            # Renamed first: what is half removed must not look like a checkpoint.
            shutil.rmtree(path.rename(path.with_name(f".{path.name}.old")))


def put_back(directory: Path) -> None:
    """Undo the replacement of a checkpoint if a process was killed in the middle of it."""
    for aside in directory.glob(f".*{_REPLACED}"):
        final = aside.with_name(aside.name[1:].removesuffix(_REPLACED))
        if not final.exists():
            os.replace(aside, final)


def clean_up(directory: Path) -> None:
    """Remove what a killed process left unfinished in the directory of the checkpoints and the one above."""
    for path in [*directory.glob(".*"), *directory.parent.glob(".*.tmp")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _held_out_loss(path: Path) -> float:
    """Of the model in a checkpoint; infinite if it was not measured at that step, or is no number."""
    try:
        loss = read_record(path)["progress"].get("held_out_loss")
    except UserError:
        loss = None
    return loss if loss is not None and math.isfinite(loss) else math.inf


def _order(path: Path) -> tuple[int, str]:
    return len(path.name), path.name


def _write_model(
    directory: Path,
    config: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    weights: Mapping[str, Tensor] | None,
) -> dict[str, str]:
    """Write model.safetensors and model.json; their checksums."""
    from elc_bert.checkpoint.reshard import SavedState

    if weights is None:
        saved = SavedState(directory)
        weights = {name: saved.whole(name).reshape(shape) for name, shape in shapes.items()}
    model, description = directory / "model.safetensors", directory / "model.json"
    _save_tensors(weights, model)
    with atomic_write(description, "w") as file:
        json.dump(config, file, indent=2)
    return {path.name: sha256_of(path) for path in (model, description)}


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a file of safetensors and put it on disk.

    Raises:
        OSError: with the file's name.
    """
    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:
        # Its errors of the system are text.
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from None
    with open(path, "rb") as file:
        os.fsync(file.fileno())
