"""Reading of everything that the folder of a run contains."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from elc_bert.checkpoint.files import path_in_run
from elc_bert.checkpoint.load_model import newest_checkpoint
from elc_bert.config.held_out import describe_masks
from elc_bert.config.reader import load_config
from elc_bert.config.schema import RunConfig
from elc_bert.config.secrets import without_secrets
from elc_bert.evaluation.saved_results import PairScores, read_results
from elc_bert.report.held_out import HeldOutResults, evaluate_checkpoint
from elc_bert.utils.errors import UserError
from elc_bert.utils.event_files import Series, all_scalars


@dataclass(frozen=True)
class Run:
    """The current state of a run, which may still be training and of which files may be missing."""

    folder: Path
    """Folder of the run, as given by the user."""
    name: str
    """Short name that is unique within the report."""
    config: dict[str, Any]
    """The resolved configuration as it was saved, possibly by another version of this project."""
    scalars: dict[str, Series]
    """Logged scalars by name; empty without logs."""
    checkpoint: Path | None
    """Directory of the newest checkpoint, or None."""
    progress: dict[str, Any]
    """Steps, tokens and words at that checkpoint, as in its ``run.json``; empty if unknown."""
    parameters: int | None
    """Number of parameters in the checkpoint, or None if unknown."""
    minimal_pairs: tuple[PairScores, ...]
    """Newest result on each set of minimal pairs, by method and limit."""
    held_out: HeldOutResults
    """Results of the newest checkpoint on held-out text."""
    notes: tuple[str, ...]
    """Missing parts of the run, with the reasons."""

    def setting(self, key: str) -> Any:
        """Return the value of a key such as ``elc_bert.model.variant``, or None if it is absent."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    @property
    def logged_masks(self) -> str:
        """Description of the masks by which the logged held-out loss was measured."""
        return describe_masks(self.config)

    @property
    def step(self) -> int:
        """Number of steps taken, according to the logs and the checkpoint."""
        logged = [int(series.steps[-1]) for series in self.scalars.values()]
        return max([int(self.progress.get("step", 0)), *logged])


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read runs and give each a unique name.

    Args:
        folders: The ``elc_bert.training.output_dir`` of each run.

    Raises:
        UserError: A folder is not a run, has neither logs nor a checkpoint, or is given twice.
    """
    resolved = [folder.resolve() for folder in folders]
    for number, folder in enumerate(folders):
        if resolved[number] in resolved[:number]:
            raise UserError(f"{folder}: given twice; name each run once")
    short = [folder.name for folder in resolved]
    names = short if len(set(short)) == len(short) else [str(folder) for folder in folders]
    return [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def read_run(folder: Path, name: str) -> Run:
    """Read a run and evaluate its newest checkpoint, as far as its files are complete.

    Args:
        folder: The ``elc_bert.training.output_dir`` of the run.
        name: Name of the run in the report.

    Raises:
        UserError: The folder is not a run, or has neither logs nor a checkpoint.
    """
    notes: list[str] = []
    content, config = _read_config(folder, notes)
    scalars = all_scalars(folder)
    try:
        checkpoint = newest_checkpoint(folder)
    except UserError as error:
        if not scalars:
            raise UserError(
                f"{folder}: has neither logs nor a checkpoint; train with launch/pretrain.py first"
            ) from None
        checkpoint = None
        notes.append(str(error))
    if not scalars:
        notes.append(
            f"{folder}: no TensorBoard logs, so there are no curves; set tensorboard.enabled before training"
        )
    held_out = evaluate_checkpoint(None if config is None else _with_paths(config, folder), checkpoint)
    return Run(
        folder,
        name,
        content,
        scalars,
        checkpoint,
        {} if checkpoint is None else _read_progress(checkpoint, notes),
        None if checkpoint is None else _count_parameters(checkpoint),
        tuple(_read_minimal_pairs(folder, notes)),
        held_out,
        (*notes, *held_out.notes),
    )


def _with_paths(config: RunConfig, folder: Path) -> RunConfig:
    """Return a run's configuration with the paths of its text and tokenizer as seen from this process."""
    settings = config.elc_bert
    paths = {
        key: path_in_run(folder, settings.training.output_dir, getattr(settings.data, key))
        for key in ("dev", "tokenizer")
    }
    data = settings.data.model_copy(update=paths)
    return config.model_copy(update={"elc_bert": settings.model_copy(update={"data": data})})


def _read_config(folder: Path, notes: list[str]) -> tuple[dict[str, Any], RunConfig | None]:
    """Return the content of ``config.json``, and the parsed configuration or None if it is not valid.

    A file that another version of this project has written may not be valid.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"{folder}: not a run (config.json is missing); give the elc_bert.training.output_dir of a run"
        )
    problem, config = "", None
    try:
        config = load_config(path, of_finished_run=True)
    except UserError as error:
        problem = str(error)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(problem)
    if problem:
        notes.append(problem)
    return without_secrets(content), config


def _read_progress(checkpoint: Path, notes: list[str]) -> dict[str, Any]:
    path = checkpoint / "run.json"
    try:
        progress = json.loads(path.read_text(encoding="utf-8"))["progress"]
        return {**progress, "step": int(progress["step"])}
    except (OSError, ValueError, LookupError, TypeError):
        notes.append(f"{path}: cannot be read, so the number of tokens up to the checkpoint is unknown")
        return {}


def _count_parameters(checkpoint: Path) -> int | None:
    """Count the parameters in the header of the weight file, which is independent of the model's version."""
    total = 0
    try:
        with safe_open(checkpoint / "model.safetensors", framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                size = 1
                for length in file.get_slice(name).get_shape():
                    size *= length
                total += size
    except (OSError, SafetensorError):
        return None  # evaluate_checkpoint adds a note about the weights
    return total


def _read_minimal_pairs(folder: Path, notes: list[str]) -> list[PairScores]:
    """Return the newest results for each set of pairs and each setting."""
    newest: dict[str, PairScores] = {}
    results, unreadable = read_results(folder)
    for path in unreadable:
        notes.append(f"{path}: cannot be read; score the minimal pairs again with launch/evaluate.py pairs")
    for scores in results:
        before = newest.get(scores.label)
        if before is None or (before.step or 0) <= (scores.step or 0):
            newest[scores.label] = scores
    return list(newest.values())
