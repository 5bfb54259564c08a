"""Pretrain from several configurations in one launch, and write what each step did to ``OUTPUT_DIR``.

``observed-RANK.json`` holds a list with an entry for each step: the seed of dropout, how often the first
layer was computed, the number of micro-batches, and the kernels that were used.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from elc_bert.config.reader import load_config
from elc_bert.engine.processes import run_command
from elc_bert.training import pretrain as module
from elc_bert.training.callbacks.build import build_callbacks
from elc_bert.training.callbacks.callback import Callback
from elc_bert.training.run import Run


class Observe(Callback):
    """Record what each step did."""

    def __init__(self, run: Run) -> None:
        self._path = run.config.elc_bert.training.output_dir / f"observed-{run.world.rank}.json"
        self._steps: list[dict[str, Any]] = []
        self._layer_calls = self._head_calls = 0
        run.engine.module.encoder.layers[0].register_forward_pre_hook(self._count_layer)
        run.engine.module.head.register_forward_hook(self._count_head)

    def _count_layer(self, *_: Any) -> None:
        self._layer_calls += 1

    def _count_head(self, *_: Any) -> None:
        self._head_calls += 1

    def after_step(self, run: Run) -> None:
        entry = {
            "seed": torch.initial_seed(),
            "layer_calls": self._layer_calls,
            "micro_batches": self._head_calls,
            "kernels": type(run.engine.module.kernels).__name__,
        }
        self._steps.append(entry)
        self._layer_calls = self._head_calls = 0

    def close(self) -> None:
        self._path.write_text(json.dumps(self._steps), encoding="utf-8")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("configs", nargs="+", type=Path)
    parser.add_argument("--resume", default="never")
    arguments = parser.parse_args(argv)
    module.build_callbacks = lambda run: [Observe(run), *build_callbacks(run)]

    def command(watchdog) -> None:
        for path in arguments.configs:
            module.pretrain(load_config(path), watchdog, arguments.resume)

    run_command(command)


if __name__ == "__main__":
    main(sys.argv[1:])
