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


class FailToClose(Callback):
    """Raise an error at the end of the run."""

    def after_step(self, run: Run) -> None:
        pass

    def close(self) -> None:
        raise RuntimeError("a bug in this callback")


def with_one_more(run: Run) -> list[Callback]:
    callbacks, mine = build_callbacks(run), CountSteps()
    if mine.name in run.progress.callbacks:
        mine.load_state_dict(run.progress.callbacks[mine.name])
    # Before the checkpoint, which holds the state of all callbacks in the same list.
    callbacks.insert(0, mine)
    return callbacks


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--fail-to-close", action="store_true")
    arguments = parser.parse_args(argv)
    if arguments.fail_to_close:
        module.build_callbacks = lambda run: [FailToClose(), *build_callbacks(run)]
    else:
        module.build_callbacks = with_one_more
    run_command(lambda watchdog: module.pretrain(load_config(arguments.config), watchdog, "auto"))


if __name__ == "__main__":
    main(sys.argv[1:])
