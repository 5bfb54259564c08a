"""Metrics of a run in TensorBoard, Weights & Biases, CSV files and Comet, as DeepSpeed's sections say."""

import functools
import importlib.util
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from elc_bert.config.schema import RunConfig
from elc_bert.config.secrets import without_secrets
from elc_bert.distributed.launchers import current_rank
from elc_bert.engine.csv_log import CsvLog
from elc_bert.engine.trackers import CometExperiment, Tracker, WandbRun
from elc_bert.utils.errors import UserError
from elc_bert.utils.figures import draw_layer_weights

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "comet": "comet_ml"}
"""Package that each monitor imports."""
TRACKERS: dict[str, Callable[..., Tracker]] = {"wandb": WandbRun, "comet": CometExperiment}
"""Monitors that are services."""
logger = logging.getLogger(__name__)


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

    Raises:
        UserError: A service refuses the run, or a folder cannot be written.
    """

    def __init__(self, config: RunConfig, start_step: int) -> None:
        self._writer: Any = None
        self.log_dir: Path | None = None
        self._csv: CsvLog | None = None
        self._trackers: list[Tracker] = []
        self._error: OSError | None = None
        if current_rank() == 0:
            self._open(config, start_step)
        self.check()

    def _open(self, config: RunConfig, start_step: int) -> None:
        output_dir = config.elc_bert.training.output_dir
        enabled = {name: section.enabled for name, section in config.deepspeed.monitors.items()}
        sections = {
            name: {"output_path": str(output_dir), "job_name": name}
            | {key: value for key, value in section.as_given().items() if value != "auto"}
            for name, section in config.deepspeed.monitors.items()
        }
        folders = {
            name: Path(sections[name]["output_path"]) / sections[name]["job_name"]
            for name in ("tensorboard", "csv_monitor")
        }
        if enabled["tensorboard"]:
            self._try(lambda: self._open_tensorboard(folders["tensorboard"], start_step))
        if enabled["csv_monitor"]:
            self._try(lambda: self._open_csv(folders["csv_monitor"], start_step))
        saved = without_secrets(config.model_dump(mode="json"))
        for name, tracker in TRACKERS.items():
            if enabled[name] and self._error is None:
                self._trackers.append(tracker(sections[name], output_dir, saved, start_step))

    def _open_tensorboard(self, folder: Path, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self.log_dir = folder
        threading.excepthook = functools.partial(_ignore_writer_thread, threading.excepthook)
        self._writer = SummaryWriter(str(folder))
        if start_step:
            _supersede(self._writer, start_step)

    def _open_csv(self, folder: Path, start_step: int) -> None:
        self._csv = CsvLog(folder, start_step)

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
        if self._writer is not None:
            self._try(lambda: self._write(step, values))
        if self._csv is not None:
            csv_log = self._csv
            self._try(lambda: csv_log.scalars(step, values))
        for tracker in self._trackers[:]:
            try:
                tracker.scalars(step, values)
            except Exception as error:  # a service that fails is no reason to stop the run
                self._trackers.remove(tracker)
                logger.warning(
                    "step %d: %s failed, and gets no more values: %s", step, type(tracker).__name__, error
                )

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
        """Flush and close the TensorBoard event file, and wait for the services."""
        if self._writer is not None:
            self._try(self._writer.close)
        for tracker in self._trackers:
            tracker.close()

    def _write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

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
