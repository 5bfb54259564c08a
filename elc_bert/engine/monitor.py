"""Metrics of a run, written to TensorBoard, wandb, csv files and comet through DeepSpeed's monitors."""

import functools
import importlib.util
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from elc_bert.config.schema import RunConfig
from elc_bert.utils.errors import UserError
from elc_bert.utils.figures import draw_layer_weights

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "comet": "comet_ml"}
"""Package that each monitor imports."""


def check_monitors(config: RunConfig) -> None:
    """Check that every enabled monitor can be opened.

    Raises:
        UserError: The package of an enabled monitor is not installed.
    """
    for name, package in PACKAGES.items():
        if config.deepspeed.monitors[name].enabled and importlib.util.find_spec(package) is None:
            raise UserError(
                f"{config.origin}{name}.enabled: the package {package} is not installed; "
                f"pip install {package}, or set it to false"
            )


class RunMonitor:
    """Write metrics to every monitor that the configuration enables, and pictures to TensorBoard.

    Ranks other than 0 write nothing.

    Args:
        config: Configuration of the run.
        start_step: Steps already taken. Entries that a killed run logged after them are superseded.
    """

    def __init__(self, config: RunConfig, start_step: int) -> None:
        from deepspeed.monitor.config import get_monitor_config
        from deepspeed.monitor.monitor import MonitorMaster

        output_dir = config.elc_bert.training.output_dir
        sections = {name: section.as_given() for name, section in config.deepspeed.monitors.items()}
        for name in ("tensorboard", "csv_monitor"):
            sections[name].setdefault("output_path", str(output_dir))
            sections[name].setdefault("job_name", name)
        self._monitor = MonitorMaster(get_monitor_config(sections))
        tensorboard = self._monitor.tb_monitor
        self._writer: Any = tensorboard.summary_writer if tensorboard is not None else None
        self.log_dir = Path(self._writer.log_dir) if self._writer is not None else None
        self._error: OSError | None = None
        threading.excepthook = functools.partial(_ignore_writer_thread, threading.excepthook)
        if self._writer is not None and start_step:
            self._try(lambda: _supersede(self._writer, start_step))

    @property
    def has_failed(self) -> bool:
        """True if something could not be written. Nothing is written after that."""
        return self._error is not None

    def check(self) -> None:
        """Raise the error of a write that failed.

        Raises:
            UserError: Something could not be written.
        """
        if self._error is not None:
            raise UserError(
                f"{self._error.filename or self.log_dir}: the log cannot be written: "
                f"{self._error.strerror}; fix that and continue with --resume auto"
            )

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Log scalars by name, after ``step`` optimizer steps."""
        events = [(name, value, step) for name, value in values.items()]
        self._try(lambda: self._monitor.write_events(events))

    def layer_weights(self, step: int, weights: dict[str, Tensor]) -> None:
        """Log the share that each layer takes of each earlier output, as scalars and as a heat map."""
        self.scalars(
            step,
            {
                f"layer_weights/{name}_from_{source:02d}": share
                for name, shares in weights.items()
                for source, share in enumerate(shares.tolist())
            },
        )
        if self._writer is not None:
            self._try(lambda: self._draw(step, weights))

    def close(self) -> None:
        """Flush and close the TensorBoard event file."""
        if self._writer is not None:
            self._try(self._writer.close)

    def _draw(self, step: int, weights: dict[str, Tensor]) -> None:
        self._writer.add_figure("layer_weights", draw_layer_weights(weights), step)
        self._writer.flush()

    def _try(self, write: Callable[[], None]) -> None:
        """Write unless an earlier write has failed. The error is kept, because a rank cannot stop alone."""
        if self._error is None:
            try:
                write()
            except OSError as error:
                self._error = error


def _ignore_writer_thread(
    previous_hook: Callable[[threading.ExceptHookArgs], Any], failed: threading.ExceptHookArgs
) -> None:
    """Suppress the traceback of TensorBoard's writer thread, whose error the next call raises again."""
    if not (isinstance(failed.exc_value, OSError) and type(failed.thread).__name__ == "_AsyncWriterThread"):
        previous_hook(failed)


def _supersede(writer: Any, start_step: int) -> None:
    """Let TensorBoard drop entries that an earlier, killed process logged after ``start_step``."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    restart = SessionLog(status=SessionLog.START)
    writer.file_writer.add_event(Event(session_log=restart), step=start_step + 1)
