"""TensorBoard, wandb and csv, through DeepSpeed's monitor."""

import importlib.util
from pathlib import Path
from typing import Any

from torch import Tensor

from elc_bert.config import RunConfig
from elc_bert.errors import UserError
from elc_bert.pictures import draw_layer_weights
from elc_bert.training.deepspeed_config import MONITORS

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
        self._writer = tensorboard.summary_writer if tensorboard is not None else None
        self.log_dir = Path(self._writer.log_dir) if self._writer is not None else None
        if self._writer is not None and start_step:
            _supersede(self._writer, start_step)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Log numbers by name after ``step`` steps. Does nothing on ranks other than 0."""
        self._monitor.write_events([(name, value, step) for name, value in values.items()])

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
            self._writer.add_figure("layer_weights", draw_layer_weights(weights), step)
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _supersede(writer: Any, start_step: int) -> None:
    """Tell TensorBoard to drop what an earlier, killed process logged after ``start_step``."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    restart = SessionLog(status=SessionLog.START)
    writer.file_writer.add_event(Event(session_log=restart), step=start_step + 1)
