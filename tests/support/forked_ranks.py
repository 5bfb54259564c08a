"""Run jobs of several ranks that are forked, which saves the seconds that a process takes to import.

Each line of the standard input is a job in JSON, written by ``launching.ForkServer``. A job's ranks are
processes in a session of their own, with the environment that a launcher gives them. If a rank fails, the
others are ended by SIGTERM and, after a while, by SIGKILL, as DeepSpeed's launcher does.
"""

import contextlib
import json
import logging
import os
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

replies = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # the imports below print to stdout, which is for replies

import deepspeed.ops  # noqa: E402
import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: E402 (imported by ZeRO, starts a compiler)
import torch._dynamo  # noqa: E402
from torch.utils.tensorboard._utils import figure_to_image  # noqa: E402

import elc_bert.checkpoint.reshard  # noqa: E402
import elc_bert.engine.checkpoint_writer  # noqa: E402
import elc_bert.training.pretrain  # noqa: E402, F401
from elc_bert.utils.figures import draw_layer_weights  # noqa: E402

deepspeed.ops.__compatible_ops__  # noqa: B018 (computed on first access)
figure_to_image(draw_layer_weights({"layer_01": torch.ones(1)}))  # imports matplotlib

TERMINATION_TIMEOUT = 30.0
"""Seconds between SIGTERM and SIGKILL."""


def run_job(job: dict[str, Any]) -> int:
    """Run the ranks of a job to their end and return the exit status of the first that failed, or 0."""
    os.setsid()
    pids = [_fork_rank(rank, job) for rank in range(job["ranks"])]
    Path(job["pids"]).write_text(" ".join(map(str, pids)))
    status, deadline = 0, float("inf")
    while pids:
        for pid in list(pids):
            ended, wait_status = os.waitpid(pid, os.WNOHANG)
            if ended:
                pids.remove(pid)
                status = status or os.waitstatus_to_exitcode(wait_status)
        if status and deadline == float("inf"):
            deadline = time.monotonic() + TERMINATION_TIMEOUT
            _signal(pids, signal.SIGTERM)
        elif time.monotonic() > deadline:
            _signal(pids, signal.SIGKILL)
        time.sleep(0.01)
    return status


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _fork_rank(rank: int, job: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["ranks"], "LOCAL_WORLD_SIZE": job["ranks"]}
    master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": job["port"]}
    os.environ.update({name: str(value) for name, value in (ranks | master).items()})
    for number, path in ((0, os.devnull), (1, job["stdout"]), (2, job["stderr"])):
        os.dup2(os.open(path, os.O_RDWR | os.O_APPEND), number)
    _run_script(job["script"], job["arguments"])


def _run_script(script: str, arguments: list[str]) -> NoReturn:
    """Run a script as ``python SCRIPT ARGUMENTS`` does, and exit."""
    status = 0
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as exit:
        status = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
        logging.shutdown()  # as Python does when it exits
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # leaves no zombies
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            replies.close()
            job = json.loads(line)
            status = run_job(job)
            temporary = Path(job["status"]).with_suffix(".tmp")
            temporary.write_text(str(status))
            temporary.rename(job["status"])
            os._exit(0)


if __name__ == "__main__":
    main()
