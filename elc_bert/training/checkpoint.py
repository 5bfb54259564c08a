"""Saving a run and going on with it.

``<output_dir>/checkpoints/step-000500/`` holds DeepSpeed's own files (weights, optimizer, schedule), the
weights alone as ``model.safetensors`` with ``model.json`` (what evaluation reads) and ``run.json``: who the
run is, how far it got, and which files belong to it. A checkpoint is written under a hidden name and
renamed when it is complete; the file ``latest`` beside it names the newest.
"""

import contextlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from elc_bert.config import RunConfig
from elc_bert.errors import UserError
from elc_bert.files import atomic_write, sha256_of, sync_directory
from elc_bert.optim.zero_layout import full_precision_weights
from elc_bert.training.distributed import World
from elc_bert.training.metrics import Progress

RUN_FILE = "run.json"
STEP_DIRECTORY = re.compile(r"step-\d{6,}")
#: Keys of ``zero_optimization`` that move tensors within DeepSpeed's buffers, which it does not notice.
CUTTING_KEYS = ("sub_group_size", "round_robin_gradients", "parameter_alignment")


def run_identity(config: RunConfig, data: dict[str, Any]) -> dict[str, Any]:
    """What makes two runs the same run; a resumed run must agree in all of it.

    Args:
        config: the run.
        data: what identifies the data, wherever they lie.
    """
    ours = config.elc_bert
    training = ours.training
    return {
        "model": ours.model.model_dump(mode="json"),
        "data": {
            **data,
            # Not how the samples are laid out: any layout gives the same loss.
            **ours.data.model_dump(mode="json", exclude={"train", "dev", "tokenizer", "pack", "workers"}),
        },
        "seed": training.seed,
        "schedule": {
            "train_batch_size": config.train_batch_size,
            "max_steps": training.max_steps,
            "sequence_length": training.sequence_length,
            "long_after": training.long_after,
            # Not by which kernels the step is taken.
            "optimizer": config.optimizer.model_dump(mode="json", exclude={"params": {"fused"}}),
            "scheduler": config.scheduler.model_dump(mode="json"),
        },
    }


class Checkpoints:
    """The checkpoints of one run. Methods that touch the engine are collective."""

    def __init__(self, config: RunConfig, world: World, identity: dict[str, Any]):
        self.directory = config.elc_bert.training.output_dir / "checkpoints"
        self._config = config
        self._world = world
        self._identity = identity

    def find(self, resume: str) -> Path | None:
        """The checkpoint to go on from, or None for a new run.

        Args:
            resume: ``auto`` (the newest of this run, if any), ``never``, or a checkpoint's directory.

        Raises:
            UserError: no such checkpoint, or a new run would overwrite one.
        """
        latest = self.directory / "latest"
        if resume not in ("auto", "never"):
            return self._existing(Path(resume))
        if not latest.is_file():
            return None
        if resume == "never":
            raise UserError(
                f"{self.directory}: holds a run already; go on with it by --resume auto, or choose another "
                "--set elc_bert.training.output_dir=DIR"
            )
        return self._existing(self.directory / latest.read_text(encoding="utf-8").strip())

    def check(self, path: Path) -> Progress:
        """Make sure, before anything is built, that ``path`` is this run's and whole; print what changed.

        Raises:
            UserError: another run's checkpoint, another layout, or a missing or damaged file.
        """
        record = self._read_record(path)
        if self._world.is_main:
            _check_files(path, record["files"])
            for change in differences(record["config"], self._config.model_dump(mode="json")):
                print(f"changed since the checkpoint: {change}", flush=True)
        return Progress(**record["progress"])

    def load(self, engine: Any, path: Path) -> None:
        """Put the state saved in ``path``, which has been checked, into the engine.

        Raises:
            UserError: a file would run code when loaded. All ranks read the same files and so all raise.
        """
        try:
            with _no_unpickling_of_code():
                engine.load_checkpoint(str(path.parent), tag=path.name)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{path}: holds more than tensors and plain values, and is not loaded because that could run "
                f"code ({str(error).splitlines()[0]}); resume from a checkpoint that this project wrote"
            ) from None

    def save(self, engine: Any, progress: Progress) -> Path:
        """Write a checkpoint, drop old ones, and return its directory."""
        final = self.directory / f"step-{progress.step:06d}"
        partial = self.directory / f".{final.name}.partial"
        if self._world.is_main:
            self.directory.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
        dist.barrier()
        engine.save_checkpoint(str(self.directory), tag=partial.name, save_latest=False)
        weights = full_precision_weights(engine)
        _sync_files(partial)
        dist.barrier()
        if self._world.is_main:
            save_file(weights, partial / "model.safetensors")
            model = self._config.elc_bert.model.model_dump(mode="json")
            (partial / "model.json").write_text(json.dumps(model, indent=2), encoding="utf-8")
            self._write_record(partial, progress)
            _sync_files(partial)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
            sync_directory(self.directory)
            with atomic_write(self.directory / "latest", "w") as file:
                file.write(final.name)
            self._drop_old(final)
        dist.barrier()
        return final

    def _existing(self, path: Path) -> Path:
        if not (path / RUN_FILE).is_file():
            raise UserError(
                f"{path}: no checkpoint there ({RUN_FILE} is missing); give a step-NNNNNN directory"
            )
        return path

    def _layout(self) -> dict[str, Any]:
        """What DeepSpeed's own files depend on: partitions are per device."""
        stage = self._config.zero_stage
        extras = self._config.deepspeed_extras
        zero, types = extras.get("zero_optimization") or {}, extras.get("data_types") or {}
        return {
            "zero_stage": stage,
            "precision": self._config.precision,
            "devices": self._world.size if stage > 0 else "any",
            **{key: zero.get(key) for key in CUTTING_KEYS},
            "grad_accum_dtype": types.get("grad_accum_dtype"),
        }

    def _write_record(self, directory: Path, progress: Progress) -> None:
        files = {file.name: sha256_of(file) for file in sorted(directory.iterdir())}
        record = {
            "identity": self._identity,
            "layout": self._layout(),
            "progress": asdict(progress),
            "config": self._config.model_dump(mode="json"),
            "files": files,
        }
        (directory / RUN_FILE).write_text(json.dumps(record, indent=2), encoding="utf-8")

    def _read_record(self, path: Path) -> dict[str, Any]:
        try:
            record = json.loads((path / RUN_FILE).read_text(encoding="utf-8"))
            saved_identity, saved_layout = record["identity"], record["layout"]
            Progress(**record["progress"]), record["config"], record["files"].items()
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path / RUN_FILE}: cannot be read ({error}); choose another checkpoint"
            ) from None
        changes = differences(saved_identity, self._identity)
        if changes:
            raise UserError(
                f"{path}: is a checkpoint of another run: {'; '.join(changes)}; use that run's settings, or "
                "start a new run in another elc_bert.training.output_dir"
            )
        changes = differences(saved_layout, self._layout())
        if changes:
            raise UserError(
                f"{path}: its optimizer state cannot be read with {'; '.join(changes)}; keep these"
            )
        return record

    def _drop_old(self, newest: Path) -> None:
        """Leave ``newest`` and those before it that are to be kept.

        Later ones, of a run that went on from here before, stay: they are overwritten when it is their turn.
        """
        names = [path.name for path in self.directory.iterdir() if STEP_DIRECTORY.fullmatch(path.name)]
        names.sort(key=lambda name: (len(name), name))
        before = names[: names.index(newest.name) + 1]
        for old in before[: -self._config.elc_bert.checkpoint.keep]:
            shutil.rmtree(self.directory / old)
        for unfinished in self.directory.glob(".step-*.partial"):
            shutil.rmtree(unfinished)


def differences(before: Any, after: Any, key: str = "") -> list[str]:
    """Leaves in which two JSON values differ, as ``key.path: before -> after``."""
    if isinstance(before, dict) and isinstance(after, dict):
        found = []
        for name in [*before, *(name for name in after if name not in before)]:
            found += differences(before.get(name), after.get(name), f"{key}.{name}" if key else name)
        return found
    return [] if before == after else [f"{key}: {json.dumps(before)} -> {json.dumps(after)}"]


def _check_files(directory: Path, sha256: dict[str, str]) -> None:
    for name, expected in sha256.items():
        path = directory / name
        if not path.is_file() or sha256_of(path) != expected:
            what = "is damaged" if path.is_file() else "is missing"
            raise UserError(f"{path}: {what}; resume from an older checkpoint in {directory.parent}")


def _sync_files(directory: Path) -> None:
    for path in directory.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    sync_directory(directory)


@contextlib.contextmanager
def _no_unpickling_of_code() -> Iterator[None]:
    """Make DeepSpeed's ``torch.load`` refuse files that would run code.

    DeepSpeed asks for full unpickling; torch lets the environment overrule that. The classes that
    DeepSpeed itself puts into its checkpoints are allowed by name.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        allowed = [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]
        with torch.serialization.safe_globals(allowed):
            yield
    finally:
        if before is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before
