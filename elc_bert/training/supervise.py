"""Supervisor of the ranks on this host, which restarts all of them if one is lost: torchrun's elastic agent.

In contrast to ``torchrun --max-restarts`` it knows the exit statuses of a run: it does not restart after an
error that a restart would repeat, and it forwards signals to the ranks and then waits until they have ended.
"""

import atexit
import functools
import logging
import os
import signal
import socket
import sys
import traceback
from collections import Counter
from collections.abc import Callable
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
from elc_bert.utils import logs
from elc_bert.utils.errors import UserError


@dataclass(frozen=True)
class Hosts:
    """Hosts of a supervised run."""

    minimum: int
    """Number of hosts without which the run does not start or continue."""
    maximum: int
    """Largest number of hosts that take part."""
    endpoint: str | None
    """Rendezvous endpoint, ``HOST:PORT``; None for a single host."""
    processes_per_host: int | None
    """Number of ranks per host; None for one per GPU, or one if there is no GPU."""


def supervise(
    config: RunConfig,
    hosts: Hosts,
    max_restarts: int,
    init_from: Path | None = None,
    log_level: str = "info",
) -> int:
    """Pretrain on ranks that this process starts, and restart them if one is lost.

    Every start resumes from the run's newest checkpoint, if there is one. The hosts wait for each other at
    the endpoint for at most 10 minutes; once the minimum has arrived, for half a minute more. The loss of a
    host is noticed when its ranks stop sending heartbeats, and the rendezvous drops it after 15 seconds.

    Args:
        config: Configuration of the run.
        hosts: Hosts that take part.
        max_restarts: Number of restarts after which this host gives up.
        init_from: Model whose weights a new run starts from, or None.
        log_level: Least severe messages on the terminal.

    Returns:
        Exit status of the run.

    Raises:
        UserError: The endpoint cannot be reached.
    """
    for name in ("torch.distributed.elastic", "torch.multiprocessing"):
        logger = logging.getLogger(name)  # the supervisor reports the same events, in one line each
        logger.addHandler(logging.NullHandler())
        logger.propagate = False
    # The agent kills the ranks on these signals. SIGTERM and SIGUSR1 are left to the Supervisor.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGINT,SIGHUP,SIGQUIT"
    # By default all starts share one TCPStore, so that restarted ranks read the addresses of the ranks before
    # them (torch 2.13, torch/distributed/elastic/rendezvous/dynamic_rendezvous.py). Check again when torch is
    # updated.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    report = functools.partial(_report, config.elc_bert.training.output_dir / logs.LOG_FILE)
    supervisor = Supervisor(_worker_spec(hosts, max_restarts, (config, init_from, log_level)), report)
    try:
        return supervisor.supervise()
    except SignalException as stop:
        if stop.sigval in Supervisor.FORWARDED_SIGNALS:
            return PREEMPTED
        report("stopped")
        return 128 + stop.sigval
    except KeyboardInterrupt:
        report("stopped")
        return 128 + signal.SIGINT
    except (RendezvousError, dist.DistError) as error:
        report(f"gave up: the hosts did not connect at {hosts.endpoint}: {error}")
        return LOST_A_RANK


class Supervisor(LocalElasticAgent):
    """Elastic agent that forwards signals to the ranks of this host, and does not restart them after one."""

    FORWARDED_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self, spec: WorkerSpec, report: Callable[[str], None]) -> None:
        super().__init__(spec, DefaultLogsSpecs(log_dir=os.devnull))
        self._spec = spec
        self._report = report
        self._losses = 0
        self._signal: signal.Signals | None = None
        self._received = 0
        """Number of signals received."""
        self._forwarded: Counter[int] = Counter()
        """Number of signals forwarded, by process id."""

    def supervise(self) -> int:
        """Run the ranks to the end and return the exit status of the run."""
        for number in self.FORWARDED_SIGNALS:
            signal.signal(number, self._receive_signal)
        result: RunResult | None = None
        try:
            result = self.run()
        finally:
            # Shut down only if the run is over, because this closes the rendezvous for the other hosts too.
            if result is not None:
                self._spec.rdzv_handler.shutdown()
        if result is None:
            self._report("gave up: the other hosts have left")
            return LOST_A_RANK
        return LOST_A_RANK if result.is_failed() else max(result.return_values.values())

    def _receive_signal(self, number: int, frame: FrameType | None) -> None:
        self._signal = signal.Signals(number)
        self._received += 1
        if self.get_worker_group().state not in (WorkerState.HEALTHY, WorkerState.SUCCEEDED):
            raise SignalException("there are no ranks to forward the signal to", self._signal)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        pids = {worker.global_rank: worker.id for worker in worker_group.workers}
        if self._signal is not None:
            for pid in pids.values():
                if self._forwarded[pid] < self._received:
                    with suppress(ProcessLookupError):
                        os.kill(pid, self._signal)
                    self._forwarded[pid] = self._received
        result: RunResult = super()._monitor_workers(worker_group)
        if result.is_failed():
            if self._signal is not None:  # it came before a rank had installed its signal handlers
                return RunResult(WorkerState.SUCCEEDED, dict.fromkeys(pids, PREEMPTED))
            self._losses += 1
            if self._losses <= self._spec.max_restarts:
                consequence = f"restart {self._losses} of {self._spec.max_restarts}"
            else:
                consequence = "no restarts left"
            ends = "; ".join(_describe_end(rank, failure) for rank, failure in result.failures.items())
            self._report(f"{ends}; {consequence}")
        preempted = PREEMPTED in result.return_values.values()
        if preempted and self._signal is None and self._spec.rdzv_handler.num_nodes_waiting():
            # Another host's agent has stopped the ranks to admit a new host. HEALTHY makes the agent of this
            # host look for waiting hosts too, and restart its ranks.
            return RunResult(WorkerState.HEALTHY)
        return result


def _worker_spec(
    hosts: Hosts, max_restarts: int, arguments: tuple[RunConfig, Path | None, str]
) -> WorkerSpec:
    """Describe the ranks of this host, which call ``_run_rank`` with the arguments."""
    single_host = hosts.endpoint is None
    parameters = RendezvousParameters(
        backend="c10d",
        endpoint=hosts.endpoint or "localhost:0",
        run_id="pretrain",
        min_nodes=hosts.minimum,
        max_nodes=hosts.maximum,
        local_addr="127.0.0.1" if single_host else None,
    )
    try:
        handler = get_rendezvous_handler(parameters)
    except RendezvousConnectionError:
        raise UserError(
            f"--rdzv-endpoint: no answer from {hosts.endpoint}; start the same command on that host, too"
        ) from None
    return WorkerSpec(
        role="rank",
        local_world_size=hosts.processes_per_host or torch.cuda.device_count() or 1,
        entrypoint=_run_rank,
        args=arguments,
        rdzv_handler=handler,
        max_restarts=max_restarts,
        local_addr=parameters.local_addr,
    )


def _run_rank(config: RunConfig, init_from: Path | None, log_level: str) -> int:
    """Pretrain as one rank.

    The agent restarts all ranks unless this function returns, so a status that a restart would not change is
    returned, and the process exits where a restart may help.

    Returns:
        Exit status of the run.
    """
    from elc_bert.training.pretrain import pretrain  # imported late: the supervisor does not need it

    try:
        status = run_to_status(
            lambda watchdog: pretrain(config, watchdog, "auto", init_from, log_level), Watchdog()
        )
    except Exception:
        traceback.print_exc()
        status = LOST_A_RANK
    finish_interpreter()
    if status == LOST_A_RANK:
        os._exit(status)
    # The interpreter ends once the agent has read the status. It must not be finalized, see ``run_command``.
    atexit.register(os._exit, DONE)
    return status


def _describe_end(rank: int, failure: ProcessFailure) -> str:
    if failure.exitcode < 0:
        return f"rank {rank} was killed by {signal.Signals(-failure.exitcode).name}"
    return f"rank {rank} exited with status {failure.exitcode}"


def _report(log_file: Path, event: str) -> None:
    """Report an event on the terminal and in the log file of the run."""
    source = f"supervisor on {socket.gethostname()}"
    print(f"{source}: {event}", file=sys.stderr, flush=True)
    logs.append(log_file, source, event)
