"""Files of checkpoints on disk: names, records and checksums. Nothing here is collective.

``OUTPUT_DIR/checkpoints/step-000500/`` holds

- DeepSpeed's own files (weights, optimizer, schedule), and for every rank ``rank-NNNNN.json``, the pieces of
  tensors that the rank's file holds (see ``checkpoint.reshard``);
- the weights alone as ``model.safetensors`` with ``model.json``, which evaluation and export read;
- ``run.json``: identity and progress of the run, and the SHA-256 of every other file and of itself.

A checkpoint is written under a hidden name and renamed when it is complete. Then the file ``latest`` in the
parent directory is replaced by one that names it, and ``best`` likewise if the best checkpoint is kept.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from elc_bert.checkpoint.progress import Progress
from elc_bert.utils.errors import UserError
from elc_bert.utils.files import atomic_write, sha256_of

RUN_FILE = "run.json"
STEP_DIRECTORY = re.compile(r"step-\d{6,18}")
LATEST, BEST = "latest", "best"
"""Files next to the checkpoints that each contain the name of one."""
PARTIAL, REPLACED, OLD = ".partial", ".replaced", ".old"
"""Suffixes of the hidden name of a checkpoint: while it is being written, while another one of the same step
takes its place, and while it is being deleted."""
_UNFINISHED = re.compile(
    rf"\.(?:{STEP_DIRECTORY.pattern}(?:{'|'.join(map(re.escape, (PARTIAL, REPLACED, OLD)))})"
    rf"|(?:{LATEST}|{BEST})\.\d+\.tmp)"
)
_UNFINISHED_IN_RUN = re.compile(r"\.config\.json\.\d+\.tmp")
logger = logging.getLogger(__name__)


def checkpoint_name(step: int) -> str:
    """Return the directory name of the checkpoint taken after ``step`` steps."""
    return f"step-{step:06d}"


def partial_path(final: Path) -> Path:
    """Return the directory in which a checkpoint is written until it is complete."""
    return final.with_name(f".{final.name}{PARTIAL}")


def step_order(path: Path) -> tuple[int, str]:
    """Return a key that sorts the directories of checkpoints by step."""
    return len(path.name), path.name


def all_checkpoints(directory: Path) -> list[Path]:
    """Return the complete checkpoints in a directory, earliest first."""
    if not directory.is_dir():
        return []
    paths = [path for path in directory.iterdir() if STEP_DIRECTORY.fullmatch(path.name)]
    return sorted(paths, key=step_order)


def named_checkpoint(directory: Path) -> Path | None:
    """Return the checkpoint that ``latest`` names; None if it is missing, or damaged so that it names none.

    Raises:
        UserError: It names something outside of the directory.
    """
    file = directory / LATEST
    try:
        name = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    if STEP_DIRECTORY.fullmatch(name):
        return directory / name
    if name in (".", "..") or any(separator in name for separator in "/\\"):
        raise UserError(
            f"{file}: names {name[:80]!r}, which is no checkpoint in {directory}; write the name of "
            f"one there, such as {checkpoint_name(500)}, or delete the file"
        )
    return None


def newest_first(directory: Path) -> list[Path]:
    """Return the checkpoints to resume from, in the order in which to try them.

    The first is the one that ``latest`` names, then those before it. Later ones remain from before the run
    was resumed from an earlier checkpoint.

    Raises:
        UserError: ``latest`` names something outside of the directory.
    """
    steps = all_checkpoints(directory)
    latest = named_checkpoint(directory)
    if latest is None:
        return steps[::-1]
    return [latest, *(step for step in reversed(steps) if step_order(step) < step_order(latest))]


def read_record(path: Path) -> dict[str, Any]:
    """Return the content of ``run.json`` of a checkpoint.

    Raises:
        UserError: The file is missing, damaged or of another version.
    """
    file = path / RUN_FILE
    try:
        text = file.read_text(encoding="utf-8")
        record: dict[str, Any] = json.loads(text)
        intact = with_checksum(record) == text
        Progress.from_record(record["progress"]), record["config"], record["layout"], record["files"].items()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: is damaged or of another version ({error})") from None
    if not intact:
        raise UserError(f"{file}: is damaged (its checksum differs)")
    return record


def with_checksum(record: Mapping[str, Any]) -> str:
    """Return a record as JSON that contains its own checksum, which changes with any byte."""
    blank = json.dumps({**record, "sha256": None}, indent=1)
    return json.dumps({**record, "sha256": hashlib.sha256(blank.encode()).hexdigest()}, indent=1)


def check_files(path: Path, files: Mapping[str, str]) -> None:
    """Compare files of a checkpoint with their checksums.

    Args:
        path: Directory of the checkpoint.
        files: SHA-256 by file name.

    Raises:
        UserError: A file is missing or damaged.
    """
    for name, expected in sorted(files.items()):
        file = path / name
        try:
            found = sha256_of(file)
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror})") from None
        if found != expected:
            raise UserError(f"{file}: is damaged (its checksum differs)")


def write_rank(
    directory: Path, rank: int, ranks: int, write: Callable[[], dict[str, str]], pieces: Sequence[Any] | None
) -> None:
    """Write the files of a rank, and then its record, which lists them.

    Args:
        directory: Directory of the checkpoint.
        rank: This rank.
        ranks: Number of ranks.
        write: Function that writes the files and returns their checksums by name.
        pieces: Pieces of the model's tensors in the rank's optimizer state, see ``checkpoint.reshard``; None
            if they are unknown.

    Raises:
        OSError: The disk is full, for example.
    """
    files = write()
    optimizer = max(files, key=lambda name: "optim_states" in name, default=None)
    with atomic_write(rank_file(directory, rank), "w") as file:
        json.dump({"ranks": ranks, "files": files, "optimizer": optimizer, "pieces": pieces}, file)


def rank_records(directory: Path) -> list[dict[str, Any]]:
    """Return the record of every rank, in the order of ranks.

    The files are opened by name, because a network file system may list late what other hosts have written.

    Raises:
        OSError: A record is missing.
    """
    first = json.loads(rank_file(directory, 0).read_text(encoding="utf-8"))
    others = (rank_file(directory, rank) for rank in range(1, first["ranks"]))
    return [first, *(json.loads(path.read_text(encoding="utf-8")) for path in others)]


def rank_file(directory: Path, rank: int) -> Path:
    """Return the path of the record of a rank."""
    return directory / f"rank-{rank:05d}.json"


def restore_replaced(directory: Path) -> None:
    """Undo the replacement of a checkpoint if a process was killed in the middle of it."""
    for aside in directory.glob(f".*{REPLACED}"):
        final = aside.with_name(aside.name[1:].removesuffix(REPLACED))
        if STEP_DIRECTORY.fullmatch(final.name) and not final.exists():
            os.replace(aside, final)


def remove_unfinished(directory: Path) -> None:
    """Remove unfinished files of a killed process from the checkpoints and from the run's directory.

    Other hidden files, such as those of version control or of a program that is writing to the run's
    directory now, stay.
    """
    for folder, ours in ((directory, _UNFINISHED), (directory.parent, _UNFINISHED_IN_RUN)):
        for path in folder.glob(".*"):
            if ours.fullmatch(path.name):
                remove(path)


def remove(path: Path) -> None:
    """Remove a file, a directory or a symbolic link, but not what a link leads to. A failure is a warning."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        warn_not_deleted(path, error)


def warn_not_deleted(path: Path, error: OSError) -> None:
    """Log that something no longer needed is still there."""
    reason = error.strerror or error
    logger.warning("%s: cannot be deleted: %s; training continues, delete it by hand", path, reason)


def path_in_run(run: Path, output_dir: str | Path, path: str | Path) -> Path:
    """Return a file that a run's configuration names, wherever this process was started.

    Relative paths of a configuration start in the directory in which the run was started. If the run's own
    ``output_dir`` is relative, that directory is a parent of the run's; otherwise, or if the run was moved,
    the path is taken from the current directory.

    Args:
        run: Directory of the run.
        output_dir: ``elc_bert.training.output_dir`` of the run's configuration.
        path: Path in the run's configuration.
    """
    path, parts = Path(path), Path(os.path.normpath(output_dir)).parts
    found = run.resolve()
    if path.is_absolute() or Path(output_dir).is_absolute() or found.parts[-len(parts) :] != parts:
        return path
    return found.parents[len(parts) - 1] / path
