"""Everything that the folder of a run tells, read once."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from elc_bert.checkpoint.load_model import newest_checkpoint
from elc_bert.config.reader import load_config
from elc_bert.config.schema import RunConfig
from elc_bert.report.learned import Learned, look
from elc_bert.utils.errors import UserError
from elc_bert.utils.event_files import Series, all_scalars

RESULTS = re.compile(r"(?P<name>.+)-step-(?P<step>\d{6,})")
"""Names of the folders that launch/evaluate.py leaves in a run."""


@dataclass(frozen=True)
class Paradigm:
    """One file of minimal pairs."""

    name: str
    phenomenon: str
    accuracy: float


@dataclass(frozen=True)
class PairScores:
    """What a model reached on a set of minimal pairs."""

    name: str
    """Of the set, such as ``blimp``."""
    step: int | None
    """Of the checkpoint, where known."""
    overall: float
    """Mean accuracy over the paradigms."""
    phenomena: dict[str, float]
    """Mean accuracy over the paradigms of each."""
    paradigms: tuple[Paradigm, ...]
    how: str
    """What the figures depend on besides the model, for a person."""


@dataclass(frozen=True)
class Run:
    """A run as it is now: it may still be training, and parts of it may be gone."""

    folder: Path
    """As it was given."""
    name: str
    """Short, and no other run's of the same report."""
    config: dict[str, Any]
    """The resolved configuration, as it was saved; another version of this project may have written it."""
    scalars: dict[str, Series]
    """By name; empty without logs."""
    checkpoint: Path | None
    """The newest."""
    progress: dict[str, Any]
    """``training.metrics.Progress`` at that checkpoint; empty without one."""
    parameters: int | None
    """Trainable numbers."""
    minimal_pairs: tuple[PairScores, ...]
    """The newest result of each set."""
    learned: Learned
    notes: tuple[str, ...]
    """What is missing, and why."""

    def setting(self, key: str) -> Any:
        """A value of the configuration by its key, as in ``elc_bert.model.variant``; None where absent."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    @property
    def step(self) -> int:
        """Steps taken, as far as logs and checkpoint tell."""
        logged = [int(series.steps[-1]) for series in self.scalars.values()]
        return max([int(self.progress.get("step", 0)), *logged])


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read runs, each under a name of its own.

    Args:
        folders: each the ``elc_bert.training.output_dir`` of a run.

    Raises:
        UserError: one is no run, has neither logs nor a checkpoint, or is given twice.
    """
    resolved = [folder.resolve() for folder in folders]
    for number, folder in enumerate(folders):
        if resolved[number] in resolved[:number]:
            raise UserError(f"{folder}: given twice; name each run once")
    short = [folder.name for folder in resolved]
    names = short if len(set(short)) == len(short) else [str(folder) for folder in folders]
    return [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def read_run(folder: Path, name: str) -> Run:
    """Read a run, score its newest checkpoint and let it fill in blanks, as far as that is possible.

    Raises:
        UserError: no run, or one with neither logs nor a checkpoint.
    """
    notes: list[str] = []
    content, config = _read_config(folder, notes)
    scalars = all_scalars(folder)
    try:
        checkpoint = newest_checkpoint(folder)
    except UserError as error:
        if not scalars:
            raise UserError(
                f"{folder}: has neither logs nor a checkpoint; train with launch/pretrain.py until the first"
            ) from None
        checkpoint = None
        notes.append(str(error))
    if not scalars:
        notes.append(
            f"{folder}: no TensorBoard logs, so no curves; train with tensorboard.enabled for the next time"
        )
    learned = look(config, checkpoint)
    return Run(
        folder,
        name,
        content,
        scalars,
        checkpoint,
        {} if checkpoint is None else _read_progress(checkpoint, notes),
        None if checkpoint is None else _count_parameters(checkpoint),
        tuple(_read_minimal_pairs(folder, notes)),
        learned,
        (*notes, *learned.notes),
    )


def _read_config(folder: Path, notes: list[str]) -> tuple[dict[str, Any], RunConfig | None]:
    """The file as it is, and checked; only the former if it is of another version of this project."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"{folder}: no run there (config.json is missing); give the elc_bert.training.output_dir of one"
        )
    problem, config = "", None
    try:
        config = load_config(path)
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
    return content, config


def _read_progress(checkpoint: Path, notes: list[str]) -> dict[str, Any]:
    path = checkpoint / "run.json"
    try:
        progress = json.loads(path.read_text(encoding="utf-8"))["progress"]
        return {**progress, "step": int(progress["step"])}
    except (OSError, ValueError, LookupError, TypeError):
        notes.append(f"{path}: cannot be read, so it is not known how much was read up to the checkpoint")
        return {}


def _count_parameters(checkpoint: Path) -> int | None:
    """From the head of the file: that can be read whatever version of the model it is of."""
    total = 0
    try:
        with safe_open(checkpoint / "model.safetensors", framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                size = 1
                for length in file.get_slice(name).get_shape():
                    size *= length
                total += size
    except (OSError, SafetensorError):
        return None  # noted where the weights are read
    return total


def _read_minimal_pairs(folder: Path, notes: list[str]) -> list[PairScores]:
    newest: dict[str, PairScores] = {}
    for path in sorted(folder.glob("minimal_pairs/*/results.json")):
        try:
            scores = _scores_of(path)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            notes.append(f"{path}: cannot be read; score the minimal pairs anew with launch/evaluate.py")
            continue
        before = newest.get(scores.name)
        if before is None or (before.step or 0) <= (scores.step or 0):
            newest[scores.name] = scores
    return list(newest.values())


def _scores_of(path: Path) -> PairScores:
    content = json.loads(path.read_text(encoding="utf-8"))
    match = RESULTS.fullmatch(path.parent.name)
    return PairScores(
        match["name"] if match else path.parent.name,
        int(match["step"]) if match else None,
        float(content["overall"]),
        {name: float(accuracy) for name, accuracy in content["phenomena"].items()},
        tuple(
            Paradigm(each["name"], each["phenomenon"], float(each["accuracy"]))
            for each in content["paradigms"]
        ),
        _how_scored(path.with_name("settings.json")),
    )


def _how_scored(settings: Path) -> str:
    try:
        content = json.loads(settings.read_text(encoding="utf-8"))
        limit = content["limit"]
        pairs = "all pairs" if limit is None else f"the first {limit} pairs of each paradigm"
        return f"{pairs}, masked {content['method']}"
    except (OSError, ValueError, LookupError, TypeError):
        return ""
