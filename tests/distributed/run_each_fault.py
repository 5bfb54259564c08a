"""Run training loops in which a rank dies, stops, hangs or raises an exception, one run for each fault.

    python run_each_fault.py FOLDER

All runs take place at the same time, in processes forked after a single import. The folder receives the
output of every run and ``exit_statuses.json``, the exit statuses of its ranks.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import deepspeed  # noqa: F401 (imported once for all runs)
import torch
import torch.distributed as dist

from elc_bert.distributed.watchdog.diagnosis import Timeouts
from elc_bert.distributed.watchdog.watchdog import Watchdog
from elc_bert.engine.processes import connect, run_command
from elc_bert.utils.errors import UserError
from elc_bert.utils.machine import free_port

RANKS = 3
TIMEOUTS = Timeouts(silence=6.0, hang=6.0)


def die() -> None:
    """Kill this rank. A child process lives longer, as the data workers of a killed rank do."""
    multiprocessing.get_context("fork").Process(target=time.sleep, args=[20.0]).start()
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def sleep_forever() -> None:
    while True:
        time.sleep(1.0)


def raise_exception() -> None:
    raise ZeroDivisionError("raised by the test")


def raise_user_error() -> None:
    raise UserError("only on this rank")


FAULTS: dict[str, tuple[int, Callable[[], None]]] = {
    "no fault": (1, lambda: None),
    "death": (1, die),
    "death of rank 0": (0, die),
    "stop": (2, stop),
    "stop of rank 0": (0, stop),
    "hang": (1, sleep_forever),
    "exception": (1, raise_exception),
    "user error": (1, raise_user_error),
}
"""The faulty rank of each run, and the function that causes its fault in step 3, by name of the run."""


def train(watchdog: Watchdog, faulty_rank: int, fault: Callable[[], None]) -> None:
    world = connect(watchdog, TIMEOUTS)
    for step in range(1, 6):
        world.watchdog.begin_step(step)
        if step == 3:
            dist.barrier()  # a rank may begin the next step while others are still in this one
            if world.rank == faulty_rank:
                fault()
        dist.all_reduce(torch.ones(1))


def fork_rank(name: str, rank: int, port: int, output: Path) -> int:
    """Start a rank with the environment that a launcher gives it, and return its process id."""
    if pid := os.fork():
        return pid
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in variables.items()}, MASTER_ADDR="127.0.0.1")
    run_command(lambda watchdog: train(watchdog, *FAULTS[name]))


def main(folder: Path) -> None:
    pids = {}
    for name in FAULTS:
        port = free_port()
        pids |= {fork_rank(name, rank, port, folder / f"{name}.txt"): (name, rank) for rank in range(RANKS)}
    statuses: dict[str, dict[int, int]] = {name: {} for name in FAULTS}
    for _ in range(len(pids)):
        pid, status = os.wait()
        name, rank = pids[pid]
        statuses[name][rank] = os.waitstatus_to_exitcode(status)
    (folder / "exit_statuses.json").write_text(json.dumps(statuses))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
