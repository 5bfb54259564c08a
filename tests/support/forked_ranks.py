"""Runs jobs of several ranks without the seconds that every process takes to import: it forks.

Each line of its input is a job in JSON; ``launching.ForkServer`` writes them. A job's ranks are real
processes in a session of their own, with the environment that a launcher would give them. As DeepSpeed's
launcher does, a rank that fails has the others end by SIGTERM, and after a while by SIGKILL.
"""

import contextlib
import json
import os
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what these print at import is no answer

import deepspeed.ops  # noqa: E402
import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: E402 (asked for at ZeRO, brings a compiler)
import torch._dynamo  # noqa: E402
from torch.utils.tensorboard._utils import figure_to_image  # noqa: E402

import elc_bert.checkpoint.reshard  # noqa: E402
import elc_bert.engine.checkpoint_writer  # noqa: E402
import elc_bert.training.pretrain  # noqa: E402, F401
from elc_bert.utils.figures import draw_layer_weights  # noqa: E402

deepspeed.ops.__compatible_ops__  # noqa: B018 (probed when first read)
figure_to_image(draw_layer_weights({"layer_01": torch.ones(1)}))  # imports what draws

SECONDS_TO_END = 30.0


def run_job(job: dict[str, Any]) -> int:
    """Run the ranks of a job to their end; the status of the first that failed, or 0."""
    os.setsid()
    pids = [_forked(rank, job) for rank in range(job["ranks"])]
    Path(job["pids"]).write_text(" ".join(map(str, pids)))
    status, deadline = 0, float("inf")
    while pids:
        for pid in list(pids):
            ended, how = os.waitpid(pid, os.WNOHANG)
            if ended:
                pids.remove(pid)
                status = status or os.waitstatus_to_exitcode(how)
        if status and deadline == float("inf"):
            deadline = time.monotonic() + SECONDS_TO_END
            _signal(pids, signal.SIGTERM)
        elif time.monotonic() > deadline:
            _signal(pids, signal.SIGKILL)
        time.sleep(0.01)
    return status


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _forked(rank: int, job: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["ranks"], "LOCAL_WORLD_SIZE": job["ranks"]}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": job["port"]}
    os.environ.update({name: str(value) for name, value in (places | meeting).items()})
    for number, path in ((0, os.devnull), (1, job["stdout"]), (2, job["stderr"])):
        os.dup2(os.open(path, os.O_RDWR | os.O_APPEND), number)
    _become(job["script"], job["arguments"])


def _become(script: str, arguments: list[str]) -> NoReturn:
    """Run a script as if Python had been started with it."""
    status = 0
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended jobs leave no zombies
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            answers.close()
            job = json.loads(line)
            status = run_job(job)
            temporary = Path(job["status"]).with_suffix(".tmp")
            temporary.write_text(str(status))
            temporary.rename(job["status"])
            os._exit(0)


if __name__ == "__main__":
    main()
