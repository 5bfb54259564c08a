"""Pretrains from several configurations in one launch, and sends itself a signal in the middle of each."""

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
"""Where the signal arrives: the function that is just being run."""
ORIGINALS = {moment: getattr(*place) for moment, place in MOMENTS.items()}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "cases", nargs="+", metavar="CONFIG:MOMENT:RANK:CALL", help="the signal comes within that call of it"
    )
    parser.add_argument("--local_rank", help="given by the deepspeed launcher")
    arguments = parser.parse_args(argv)

    def command(watchdog) -> int:
        statuses = []
        for case in arguments.cases:
            path, moment, rank, call = case.split(":")
            for name, (module, attribute) in MOMENTS.items():
                original = ORIGINALS[name]
                if name == moment and os.environ["RANK"] == rank:
                    original = signalling(original, int(call))
                setattr(module, attribute, original)
            statuses.append(pretrain(load_config(Path(path)), watchdog, "auto"))
        if os.environ["RANK"] == "0":
            print(f"statuses: {' '.join(map(str, statuses))}", flush=True)
        return max(statuses)

    run_command(command)


def signalling(function: Callable, at: int) -> Callable:
    """The function, with signals to this process within the call number ``at``, and again in the next one."""
    calls = 0

    @functools.wraps(function)
    def wrapped(*arguments, **named):
        nonlocal calls
        calls += 1
        if calls == at and function is ORIGINALS["evaluation"]:
            arguments = (arguments[0], signalled(arguments[1]), *arguments[2:])
        elif calls == at:
            os.kill(os.getpid(), signal.SIGUSR1 if at % 2 else signal.SIGTERM)
        if calls == at + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*arguments, **named)

    return wrapped


def signalled(micro_batches: Iterable) -> Iterator:
    """Micro-batches, with a signal before the third."""
    for number, batch in enumerate(micro_batches):
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        yield batch


if __name__ == "__main__":
    main(sys.argv[1:])
