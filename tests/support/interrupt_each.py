"""Pretrain from several configurations in one launch, and send a signal to this process during each run."""

import argparse
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from elc_bert.checkpoint import files as checkpoint_files
from elc_bert.checkpoint import publish as publishing
from elc_bert.config.reader import load_config
from elc_bert.engine.processes import run_command
from elc_bert.training import loop
from elc_bert.training.callbacks import held_out
from elc_bert.training.pretrain import pretrain

MOMENTS = {
    "step": (loop, "train_step"),
    "checkpoint": (checkpoint_files, "write_rank"),
    "publishing": (publishing, "publish"),
    "evaluation": (held_out, "evaluate"),
}
"""Function that runs when the signal arrives, as module and attribute, by name of the moment."""
ORIGINALS = {moment: getattr(*place) for moment, place in MOMENTS.items()}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "cases",
        nargs="+",
        metavar="CONFIG:MOMENT:RANK:CALL",
        help="RANK gets a signal during call number CALL of the function of MOMENT",
    )
    parser.add_argument("--local_rank", help="set by the deepspeed launcher")
    arguments = parser.parse_args(argv)

    def command(watchdog) -> int:
        statuses = []
        for case in arguments.cases:
            path, moment, rank, call = case.split(":")
            for name, (module, attribute) in MOMENTS.items():
                original = ORIGINALS[name]
                if name == moment and os.environ["RANK"] == rank:
                    original = with_signals_in_call(original, int(call))
                setattr(module, attribute, original)
            statuses.append(pretrain(load_config(Path(path)), watchdog, "auto"))
        if os.environ["RANK"] == "0":
            print(f"statuses: {' '.join(map(str, statuses))}", flush=True)
        return max(statuses)

    run_command(command)


def with_signals_in_call(function: Callable, number_of_call: int) -> Callable:
    """Return a function that sends a signal to this process in the call with this number and in the next."""
    calls = 0

    @functools.wraps(function)
    def wrapped(*arguments, **named):
        nonlocal calls
        calls += 1
        if calls == number_of_call and function is ORIGINALS["evaluation"]:
            arguments = (arguments[0], with_signal_before_third(arguments[1]), *arguments[2:])
        elif calls == number_of_call:
            os.kill(os.getpid(), signal.SIGUSR1 if number_of_call % 2 else signal.SIGTERM)
        if calls == number_of_call + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*arguments, **named)

    return wrapped


def with_signal_before_third(micro_batches: Iterable) -> Iterator:
    """Yield the micro-batches, and send a signal to this process before the third one."""
    for number, batch in enumerate(micro_batches):
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        yield batch


if __name__ == "__main__":
    main(sys.argv[1:])
