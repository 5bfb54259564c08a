"""TensorBoard, wandb and csv, through DeepSpeed's monitor."""

import functools
import importlib.util
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from elc_bert.config.deepspeed import MONITORS
from elc_bert.config.schema import RunConfig
from elc_bert.utils.errors import UserError
from elc_bert.utils.figures import draw_layer_weights

#: The package that each monitor needs beyond this project's own.
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "comet": "comet_ml"}


def check_monitors(config: RunConfig) -> None:
    """Make sure that every monitor can be opened.

    Raises:
        UserError: an enabled monitor is not installed.
    """
    for name, package in PACKAGES.items():
        enabled = config.deepspeed_extras.get(name, {}).get("enabled")
        if enabled and importlib.util.find_spec(package) is None:
            raise UserError(
                f"{config.origin}{name}.enabled: the package {package} is not installed; "
                f"pip install {package}, or set it to false"
            )


class RunMonitor:
    """Writes scalars to every monitor that the configuration enables, and pictures to TensorBoard."""

    def __init__(self, config: RunConfig, start_step: int):
        """Open the logs.

        Args:
            start_step: steps already taken; what a killed run has logged beyond them is superseded.
        """
        from deepspeed.monitor.config import get_monitor_config
        from deepspeed.monitor.monitor import MonitorMaster

        output_dir = config.elc_bert.training.output_dir
        sections = {name: dict(config.deepspeed_extras.get(name, {})) for name in MONITORS}
        for name in ("tensorboard", "csv_monitor"):
            sections[name].setdefault("output_path", str(output_dir))
            sections[name].setdefault("job_name", name)
        self._monitor = MonitorMaster(get_monitor_config(sections))
        tensorboard = self._monitor.tb_monitor
        self._writer: Any = tensorboard.summary_writer if tensorboard is not None else None
        self.log_dir = Path(self._writer.log_dir) if self._writer is not None else None
        self._trouble: OSError | None = None
        threading.excepthook = functools.partial(_leave_to_the_caller, threading.excepthook)
        if self._writer is not None and start_step:
            self._noting_trouble(lambda: _supersede(self._writer, start_step))

    @property
    def has_failed(self) -> bool:
        """Whether something could not be written; nothing more is then."""
        return self._trouble is not None

    def check(self) -> None:
        """Tell what could not be written.

        Raises:
            UserError: something could not.
        """
        if self._trouble is not None:
            raise UserError(
                f"{self._trouble.filename or self.log_dir}: the log cannot be written: "
                f"{self._trouble.strerror}; mend that and go on with --resume auto"
            )

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Log numbers by name after ``step`` steps. Does nothing on ranks other than 0."""
        events = [(name, value, step) for name, value in values.items()]
        self._noting_trouble(lambda: self._monitor.write_events(events))

    def layer_weights(self, step: int, weights: dict[str, Tensor]) -> None:
        """Log how much each layer takes from each earlier one, as scalars and as a heat map."""
        self.scalars(
            step,
            {
                f"layer_weights/{name}_from_{source:02d}": share
                for name, shares in weights.items()
                for source, share in enumerate(shares.tolist())
            },
        )
        if self._writer is not None:
            self._noting_trouble(lambda: self._draw(step, weights))

    def close(self) -> None:
        if self._writer is not None:
            self._noting_trouble(self._writer.close)

    def _draw(self, step: int, weights: dict[str, Tensor]) -> None:
        self._writer.add_figure("layer_weights", draw_layer_weights(weights), step)
        self._writer.flush()

    def _noting_trouble(self, write: Callable[[], None]) -> None:
        """Write, unless that has failed before. One rank cannot stop alone, so it only takes a note."""
        if self._trouble is None:
            try:
                write()
            except OSError as error:
                self._trouble = error


def _leave_to_the_caller(others: Callable[[Any], Any], failed: Any) -> None:
    """For TensorBoard's thread, which prints what the next call raises as well."""
    if not (isinstance(failed.exc_value, OSError) and type(failed.thread).__name__ == "_AsyncWriterThread"):
        others(failed)


def _supersede(writer: Any, start_step: int) -> None:
    """Tell TensorBoard to drop what an earlier, killed process logged after ``start_step``."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    restart = SessionLog(status=SessionLog.START)
    writer.file_writer.add_event(Event(session_log=restart), step=start_step + 1)
