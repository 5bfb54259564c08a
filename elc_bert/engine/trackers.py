"""Runs at Weights & Biases and Comet that continue when a run is resumed.

DeepSpeed's own monitors (0.19.8) start another one at every resume, without the configuration, and drop
values of earlier steps, such as the time that it took to write the previous checkpoint.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from elc_bert.utils.errors import UserError
from elc_bert.utils.files import atomic_write

WANDB_FILE, COMET_FILE = "wandb_run.json", "comet_run.json"
"""Files in the output directory of a run that identify its run at the service."""


class Tracker(Protocol):
    """Run at a service."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log scalars by name, after ``step`` optimizer steps. A step may be earlier than the last one."""

    def close(self) -> None:
        """Wait until everything is sent, or written if the service is offline."""


class WandbRun:
    """Run at Weights & Biases; its charts have the optimizer step as horizontal axis.

    Args:
        section: The section ``wandb`` of the configuration.
        output_dir: Output directory of the run.
        config: The resolved configuration, without secrets.
        start_step: Steps already taken; a resumed run continues the run that it logged to before.

    Raises:
        UserError: The run cannot be started, for example because nobody is logged in.
    """

    def __init__(
        self, section: Mapping[str, Any], output_dir: Path, config: Mapping[str, Any], start_step: int
    ) -> None:
        import wandb

        known = _read(output_dir / WANDB_FILE) if start_step else None
        try:
            self._run: Any = wandb.init(
                project=section.get("project", "deepspeed"),
                group=section.get("group"),
                entity=section.get("team"),
                name=output_dir.resolve().name,
                dir=str(output_dir),
                id=known,
                resume="allow",
            )
            self._run.config.update(config, allow_val_change=True)
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
        except (wandb.errors.Error, OSError) as error:
            raise UserError(
                f"wandb.enabled: the run at Weights & Biases cannot be started ({_first_line(error)}); log "
                "in with wandb login, set the environment variable WANDB_MODE=offline, or set wandb.enabled "
                "to false"
            ) from None
        _write(output_dir / WANDB_FILE, self._run.id)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log scalars; see ``Tracker``."""
        # The service drops values whose own step is earlier than the last one, so the step is a value itself.
        self._run.log({**values, "step": step})

    def close(self) -> None:
        """Wait until everything is sent."""
        self._run.finish()


class CometExperiment:
    """Experiment at Comet.

    Args:
        section: The section ``comet`` of the configuration.
        output_dir: Output directory of the run.
        config: The resolved configuration, without secrets.
        start_step: Steps already taken; a resumed run continues the experiment that it logged to before.

    Raises:
        UserError: The experiment cannot be started, for example because there is no API key.
    """

    def __init__(
        self, section: Mapping[str, Any], output_dir: Path, config: Mapping[str, Any], start_step: int
    ) -> None:
        import comet_ml

        known = _read(output_dir / COMET_FILE) if start_step else None
        try:
            self._experiment: Any = comet_ml.start(
                project=section.get("project"),
                workspace=section.get("workspace"),
                experiment_key=section.get("experiment_key") or known,
                mode=section.get("mode"),
                online=section.get("online"),
            )
        except (ValueError, OSError, comet_ml.exceptions.CometException) as error:
            raise UserError(
                f"comet.enabled: the experiment at Comet cannot be started ({_first_line(error)}); set the "
                "environment variable COMET_API_KEY, or set comet.enabled to false"
            ) from None
        self._experiment.set_name(section.get("experiment_name") or output_dir.resolve().name)
        self._experiment.log_parameters(config)
        self._interval = section.get("samples_log_interval", 1)
        self._last: dict[str, int] = {}
        _write(output_dir / COMET_FILE, self._experiment.get_key())

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log scalars; see ``Tracker``."""
        for name, value in values.items():
            last = self._last.get(name)
            if last is None or step < last or step - last >= self._interval:
                self._last[name] = step
                self._experiment.log_metric(name, value, step=step)

    def close(self) -> None:
        """Wait until everything is sent."""
        self._experiment.end()


def _read(path: Path) -> str | None:
    """Return the identifier in a file, or None if there is none, as in runs of early versions."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["id"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _write(path: Path, identifier: str) -> None:
    with atomic_write(path, "w") as file:
        json.dump({"id": identifier}, file)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
