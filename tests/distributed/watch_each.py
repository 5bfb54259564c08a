"""Ranks that die or hang in several ways: a run for each, all at the same time, in processes of one import.

    python watch_each.py FOLDER

leaves in the folder what each run printed and, in ``ends.json``, how its ranks ended.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import deepspeed  # noqa: F401 (for all runs at once)
import torch
import torch.distributed as dist

from elc_bert.distributed.watchdog.diagnosis import Limits
from elc_bert.distributed.watchdog.watchdog import Watchdog
from elc_bert.engine.processes import connect, run_command
from elc_bert.utils.errors import UserError
from elc_bert.utils.machine import free_port

RANKS = 3
LIMITS = Limits(silence=6.0, hang=6.0)


def die() -> None:
    """As a rank does that has data workers, which outlive it for some seconds."""
    multiprocessing.get_context("fork").Process(target=time.sleep, args=[20.0]).start()
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def sleep_for_ever() -> None:
    while True:
        time.sleep(1.0)


def have_a_bug() -> None:
    raise ZeroDivisionError("of the test")


def make_a_mistake() -> None:
    raise UserError("only here")


#: What happens in step 3, and to whom.
FAULTS: dict[str, tuple[int, Callable[[], None]]] = {
    "nothing": (1, lambda: None),
    "death": (1, die),
    "death of rank 0": (0, die),
    "stop": (2, stop),
    "stop of rank 0": (0, stop),
    "hang": (1, sleep_for_ever),
    "bug": (1, have_a_bug),
    "mistake": (1, make_a_mistake),
}


def train(watchdog: Watchdog, unlucky: int, fault: Callable[[], None]) -> None:
    world = connect(watchdog, LIMITS)
    for step in range(1, 6):
        world.watchdog.begin_step(step)
        if step == 3:
            dist.barrier()  # a rank may be in the next step while others still take part in this one
            if world.rank == unlucky:
                fault()
        dist.all_reduce(torch.ones(1))


def fork(name: str, rank: int, port: int, output: Path) -> int:
    """Start a rank as a launcher does; its process id."""
    if pid := os.fork():
        return pid
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in places.items()}, MASTER_ADDR="127.0.0.1")
    run_command(lambda watchdog: train(watchdog, *FAULTS[name]))


def main(folder: Path) -> None:
    pids = {}
    for name in FAULTS:
        port = free_port()
        pids |= {fork(name, rank, port, folder / f"{name}.txt"): (name, rank) for rank in range(RANKS)}
    ends: dict[str, dict[int, int]] = {name: {} for name in FAULTS}
    for _ in range(len(pids)):
        pid, status = os.wait()
        name, rank = pids[pid]
        ends[name][rank] = os.waitstatus_to_exitcode(status)
    (folder / "ends.json").write_text(json.dumps(ends))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
