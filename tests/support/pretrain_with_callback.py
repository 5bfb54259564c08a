"""Pretrain with one more callback, which has state and is added without changing the loop."""

import argparse
import sys
from pathlib import Path

from elc_bert.config.reader import load_config
from elc_bert.engine.processes import run_command
from elc_bert.training import pretrain as module
from elc_bert.training.callbacks.build import build_callbacks
from elc_bert.training.callbacks.callback import Callback
from elc_bert.training.run import Run
from elc_bert.utils.errors import UserError

FAULTS = ("user error", "bug", "close", "diverge")


class CountSteps(Callback):
    """Count the steps of the whole run, and write the count after each."""

    name = "count_steps"

    def __init__(self) -> None:
        self.count = 0

    def after_step(self, run: Run) -> None:
        self.count += 1
        run.monitor.scalars(run.progress.step, {"test/count": self.count})

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


class Fail(Callback):
    """Fail in one of the ways of ``FAULTS``."""

    def __init__(self, fault: str) -> None:
        self._fault = fault

    def after_step(self, run: Run) -> None:
        if self._fault == "user error":
            raise UserError("disk: is full; free some space")
        if self._fault == "bug":
            raise RuntimeError("a bug in after_step")
        if self._fault == "diverge" and run.progress.step == 2:
            for parameter in run.engine.module.parameters():
                parameter.data.fill_(float("nan"))

    def close(self) -> None:
        if self._fault == "close":
            raise RuntimeError("a bug in close")


def with_one_more(run: Run) -> list[Callback]:
    callbacks = build_callbacks(run)
    callbacks.insert(0, CountSteps())  # into the same list, whose states the checkpoint contains
    return callbacks


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--fault", choices=FAULTS)
    arguments = parser.parse_args(argv)
    if arguments.fault:
        module.build_callbacks = lambda run: [Fail(arguments.fault), *build_callbacks(run)]
    else:
        module.build_callbacks = with_one_more
    run_command(lambda watchdog: module.pretrain(load_config(arguments.config), watchdog, "auto"))


if __name__ == "__main__":
    main(sys.argv[1:])
