"""Starts the processes of this host and, if one is lost, all of them again: torchrun's elastic agent.

What it knows and plain ``torchrun --max-restarts`` does not are the exit statuses of a run: after a mistake
there is no restart, and a signal is passed on to processes, which then have all the time they need to end.
"""

import atexit
import logging
import os
import signal
import socket
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousError,
    RendezvousParameters,
)
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from elc_bert.config.schema import RunConfig
from elc_bert.distributed.exit_status import DONE, LOST_A_RANK, PREEMPTED
from elc_bert.distributed.watchdog.watchdog import Watchdog
from elc_bert.engine.processes import finish_interpreter, run_to_status
from elc_bert.utils.errors import UserError


@dataclass(frozen=True)
class Hosts:
    """Who takes part, and where they meet."""

    least: int
    most: int
    endpoint: str | None
    """``HOST:PORT``; None for one host."""
    processes: int | None
    """Per host; None for one per GPU, or one where there is none."""


def supervise(config: RunConfig, hosts: Hosts, max_restarts: int, init_from: Path | None = None) -> int:
    """Pretrain on the processes that this starts; returns the exit status.

    Every start is from the run's newest checkpoint, if there is one. The hosts wait for each other at the
    endpoint, at most 10 minutes; when there are enough, half a minute more for others. A host that is gone
    is noticed when its processes no longer answer, and forgotten after 15 seconds.

    Raises:
        UserError: there is no endpoint to meet at.
    """
    for name in ("torch.distributed.elastic", "torch.multiprocessing"):
        logger = logging.getLogger(name)  # what they have to say the supervisor says, in one line
        logger.addHandler(logging.NullHandler())
        logger.propagate = False
    # The agent takes these for the end of everything; SIGTERM and SIGUSR1 are the Supervisor's.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGINT,SIGHUP,SIGQUIT"
    # Otherwise all starts share one store (torch 2.13), and a restarted process finds in it where another was
    # to be met before.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    supervisor = Supervisor(_spec(config, hosts, max_restarts, init_from))
    try:
        return supervisor.supervise()
    except SignalException as stop:
        return PREEMPTED if stop.sigval in Supervisor.PASSED_ON else _say("stopped", 128 + stop.sigval)
    except KeyboardInterrupt:
        return _say("stopped", 128 + signal.SIGINT)
    except (RendezvousError, dist.DistError) as error:
        return _say(f"gave up: the hosts do not meet at {hosts.endpoint}: {error}", LOST_A_RANK)


class Supervisor(LocalElasticAgent):
    """An elastic agent that passes signals on to its processes, and starts none again after that."""

    PASSED_ON = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self, spec: WorkerSpec):
        super().__init__(spec, DefaultLogsSpecs(log_dir=os.devnull))
        self._spec = spec
        self._lost = 0
        self._signal: signal.Signals | None = None
        self._told: set[int] = set()
        """Processes that have got the signal."""

    def supervise(self) -> int:
        """Run to the end; returns the exit status."""
        for number in self.PASSED_ON:
            signal.signal(number, self._receive)
        result = None
        try:
            result = self.run()
        finally:
            # Not if this host leaves before its time: that would close the meeting to the others.
            if result is not None:
                self._spec.rdzv_handler.shutdown()
        if result is None:
            return _say("gave up: the other hosts have left", LOST_A_RANK)
        return LOST_A_RANK if result.is_failed() else max(result.return_values.values())

    def _receive(self, number: int, _: FrameType | None) -> None:
        self._signal = signal.Signals(number)
        if self.get_worker_group().state not in (WorkerState.HEALTHY, WorkerState.SUCCEEDED):
            raise SignalException("no processes to pass it on to", self._signal)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        ranks = {worker.global_rank: worker.id for worker in worker_group.workers}
        if self._signal is not None:
            for process in {*ranks.values()} - self._told:
                with suppress(ProcessLookupError):
                    os.kill(process, self._signal)
                self._told.add(process)
        result = super()._monitor_workers(worker_group)
        if result.is_failed():
            if self._signal is not None:  # it came before the process knew what to do with it
                return RunResult(WorkerState.SUCCEEDED, dict.fromkeys(ranks, PREEMPTED))
            self._lost += 1
            restarts = f"restart {self._lost} of {self._spec.max_restarts}"
            again = restarts if self._lost <= self._spec.max_restarts else "no restart left"
            _say(f"{'; '.join(_what_happened(*each) for each in result.failures.items())}; {again}")
        stopped = PREEMPTED in result.return_values.values()
        if stopped and self._signal is None and self._spec.rdzv_handler.num_nodes_waiting():
            # Another host's supervisor stopped them to let a new host in; this one is about to notice.
            return RunResult(WorkerState.HEALTHY)
        return result


def _spec(config: RunConfig, hosts: Hosts, max_restarts: int, init_from: Path | None) -> WorkerSpec:
    alone = hosts.endpoint is None
    parameters = RendezvousParameters(
        backend="c10d",
        endpoint=hosts.endpoint or "localhost:0",
        run_id="pretrain",
        min_nodes=hosts.least,
        max_nodes=hosts.most,
        local_addr="127.0.0.1" if alone else None,
    )
    try:
        handler = get_rendezvous_handler(parameters)
    except RendezvousConnectionError:
        raise UserError(
            f"--rdzv-endpoint: nobody answers at {hosts.endpoint}; start the same command on that host, too"
        ) from None
    return WorkerSpec(
        role="rank",
        local_world_size=hosts.processes or torch.cuda.device_count() or 1,
        entrypoint=_work,
        args=(config, init_from),
        rdzv_handler=handler,
        max_restarts=max_restarts,
        local_addr=parameters.local_addr,
    )


def _work(config: RunConfig, init_from: Path | None) -> int:
    """One process: what it returns is final, however else it ends the agent starts all again."""
    from elc_bert.training.pretrain import pretrain

    try:
        status = run_to_status(lambda watchdog: pretrain(config, watchdog, "auto", init_from), Watchdog())
    except Exception:
        traceback.print_exc()
        status = LOST_A_RANK
    finish_interpreter()
    if status == LOST_A_RANK:
        os._exit(status)
    # Once the agent has read the status the interpreter ends; see run_command for why it must not get far.
    atexit.register(os._exit, DONE)
    return status


def _what_happened(rank: int, failure: ProcessFailure) -> str:
    if failure.exitcode < 0:
        return f"rank {rank} was killed by {signal.Signals(-failure.exitcode).name}"
    return f"rank {rank} ended with status {failure.exitcode}"


def _say(what: str, status: int = DONE) -> int:
    print(f"supervisor on {socket.gethostname()}: {what}", file=sys.stderr, flush=True)
    return status
