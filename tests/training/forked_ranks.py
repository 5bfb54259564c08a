"""Starts jobs of several ranks again and again without the seconds that imports take: it forks.

For each line of its input, a port, a number of ranks and what follows the name of launch/pretrain.py, it
prints the process numbers of the ranks. Each is a real process, which whoever reads them may kill.
"""

import os
import shlex
import signal
import sys

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what these print at import is no answer

import deepspeed  # noqa: E402, F401
import torch.utils.tensorboard  # noqa: E402, F401

import elc_bert.training.background  # noqa: E402
import elc_bert.training.loop  # noqa: E402
import elc_bert.training.saved_state  # noqa: E402, F401
from launch import pretrain  # noqa: E402


def start(port: str, ranks: int, arguments: list[str]) -> list[int]:
    """Fork the ranks of a job; their process numbers."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks)}
    pids = []
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            os.environ.update(place, RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(ranks))
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            answers.close()
            pretrain.main(arguments)
        pids.append(pid)
    return pids


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended ranks leave no zombies
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        port, ranks, *arguments = shlex.split(line)
        print(*start(port, int(ranks), arguments), file=answers, flush=True)
