"""Heartbeats between rank 0 and every other rank: the thread that sends them, and their format.

A separate thread sends them, because the main thread may be stuck anywhere. Rank 0 is the coordinator: it
listens, and every other rank opens one connection to it. Rank 0 draws a secret and distributes it through the
process group; a connection begins with it. Then both ends send lines of JSON.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from abc import ABC, abstractmethod
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import psutil

from elc_bert.distributed.watchdog.diagnosis import RankStatus, State, Timeouts
from elc_bert.distributed.watchdog.stack_traces import Location, current_location
from elc_bert.utils import logs

logger = logging.getLogger(__name__)
SHORT_TIMEOUT = 2.0
"""Seconds to wait for what usually takes milliseconds, such as an answer or the end of a connection."""
SECRET_BYTES = 64
"""Length of the secret, in ASCII."""
SECOND_SIGNAL_DELAY = 10.0
"""Seconds after the first SIGTERM from which a second one ends a run that has made no progress since."""
MAX_LINE_BYTES = 2**22
"""Length limit of a line. The longest line lists the status of all lost ranks."""


@dataclass(frozen=True)
class CoordinatorAddress:
    """Address of rank 0, and the secret that it expects."""

    hosts: Sequence[str]
    """Names or addresses of rank 0's host, to be tried in this order."""
    port: int
    """Port that rank 0 listens on."""
    secret: str
    """Secret of the run, with which a connection begins."""


class HeartbeatThread(ABC):
    """Thread that exchanges heartbeats; the base of both ends of a connection.

    Args:
        status: Status of this rank, which the main thread keeps up to date.
        world_size: Number of ranks.
        timeouts: Timeouts of the watchdog; they may be replaced at any time.
    """

    def __init__(self, status: RankStatus, world_size: int, timeouts: Timeouts) -> None:
        self.status, self.world_size, self.timeouts = status, world_size, timeouts
        self.progress_count = 0
        """Counter of reports of progress within steps, which the main thread increments."""
        self.connected = threading.Event()
        """Set when heartbeats of all other ranks (on rank 0) or of rank 0 have arrived."""
        self._now = 0.0
        self._writers: dict[int, StreamWriter] = {}
        self._wake_up = asyncio.Event()
        self._last_progress: tuple[Any, ...] = ()
        self._last_progress_time = 0.0
        self._signals: socket.socket | None = None
        self._first_sigterm: tuple[float, tuple[Any, ...]] | None = None
        # Data workers are forked from this process. They would keep its connections open after its death.
        os.register_at_fork(after_in_child=self._close_in_child)

    def start(self) -> None:
        """Start the thread."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._run()], daemon=True)
        self._thread.start()

    def watch_signals(self) -> None:
        """End the run at the second SIGTERM if it has made no progress since the first.

        A handler in Python runs in the main thread, which may wait in C for another rank or a device. This
        thread learns of signals from C. Call this from the main thread.
        """
        if self._signals is not None:  # by an earlier run of this process
            return
        self._signals, self._signal_writer = socket.socketpair()
        for end in (self._signals, self._signal_writer):
            end.setblocking(False)
        signal.set_wakeup_fd(self._signal_writer.fileno(), warn_on_full_buffer=False)
        with contextlib.suppress(RuntimeError):  # the event loop has already ended
            self._loop.call_soon_threadsafe(self._loop.add_reader, self._signals, self._on_signals)

    def _on_signals(self) -> None:
        assert self._signals is not None
        with contextlib.suppress(OSError):
            for number in self._signals.recv(64):
                if number == signal.SIGTERM:
                    self._on_sigterm()

    def _on_sigterm(self) -> None:
        now, progress = time.monotonic(), self._progress()
        if self._first_sigterm is None or self._first_sigterm[1] != progress:
            self._first_sigterm = (now, progress)
            return
        waited = now - self._first_sigterm[0]
        if waited < SECOND_SIGNAL_DELAY:
            return
        print_final_message(
            f"error: rank {self.status.rank} on {self.status.host} got a second SIGTERM and has made no "
            f"progress since the first, {waited:.0f} s ago; the run stops without a checkpoint of step "
            f"{self.status.step}; --resume auto continues from the last one"
        )
        self.status.state = "failed"
        self._wake_up.set()

    def _progress(self) -> tuple[Any, ...]:
        return (self.status.step, self.status.activity, self.progress_count)

    def report(self, state: State) -> None:
        """Report at once to the other end that this rank has failed or ended."""
        self.status.state = state
        with contextlib.suppress(RuntimeError):  # the event loop has already ended
            self._loop.call_soon_threadsafe(self._wake_up.set)

    def join(self) -> None:
        """Wait until the connections are closed, but only for a short time."""
        self._thread.join(2 * SHORT_TIMEOUT)

    @abstractmethod
    async def _run(self) -> None:
        """Exchange heartbeats until this rank ends."""

    async def _wait_for_interval(self) -> None:
        """Wait for one heartbeat interval or until woken up, then update the idle time of this rank."""
        start = time.monotonic()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake_up.wait(), self.timeouts.heartbeat_interval)
        self._wake_up.clear()
        # This clock stops while this process is suspended: the other ranks have not been silent then.
        self._now += min(time.monotonic() - start, 2 * self.timeouts.heartbeat_interval)
        progress = self._progress()
        if progress != self._last_progress:
            self._last_progress, self._last_progress_time = progress, self._now
        self.status.idle = self._now - self._last_progress_time
        self.status.last_heartbeat = self._now

    def _send(self, request: dict[str, Any] | None = None) -> None:
        """Send a heartbeat on all connections, together with a request if there is one."""
        line = self._heartbeat(request)
        for writer in self._writers.values():
            writer.write(line)

    def _heartbeat(self, request: dict[str, Any] | None = None) -> bytes:
        return json.dumps({"status": asdict(self.status), **(request or {})}).encode() + b"\n"

    async def _update_location(self) -> None:
        # A stack trace reads source files, which may be on a file system that does not answer.
        with contextlib.suppress(TimeoutError):
            self.status.location = await asyncio.wait_for(asyncio.to_thread(current_location), SHORT_TIMEOUT)

    async def _wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition, but only for a short time."""
        deadline = time.monotonic() + SHORT_TIMEOUT
        while not condition() and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    def _exit(self, exit_status: int, lost: Sequence[RankStatus] = ()) -> NoReturn:
        for status in lost:
            _kill_if_on_this_host(status, self.status.host)
        with contextlib.suppress(psutil.Error):
            for worker in psutil.Process().children():  # one that is stuck would outlive this process
                worker.kill()
        print_final_message("")
        os._exit(exit_status)

    def _close_in_child(self) -> None:
        with contextlib.suppress(ValueError):  # not in a thread
            signal.set_wakeup_fd(-1)
        for writer in self._writers.values():
            with contextlib.suppress(OSError):
                os.close(writer.get_extra_info("socket").fileno())


def print_final_message(text: str) -> None:
    """Flush the output of this process, and print its last message unless it is empty.

    A separate thread does this, because the main thread may hold the lock of a stream that nobody reads.
    """

    def flush_and_print() -> None:
        sys.stdout.flush()
        if text:
            print(f"\n{text}", file=sys.stderr)  # a progress bar may have left its line unfinished
        sys.stderr.flush()

    if text:
        logger.error("%s", text, extra=logs.FILE_ONLY)  # even if the terminal does not respond
    printer = threading.Thread(target=flush_and_print, daemon=True)
    printer.start()
    printer.join(SHORT_TIMEOUT)
    logs.flush()


async def read_messages(reader: StreamReader) -> AsyncIterator[dict[str, Any]]:
    """Yield all messages until the connection is closed or lost."""
    with contextlib.suppress(OSError, ValueError):
        while line := await reader.readline():
            yield json.loads(line)


def parse_status(message: dict[str, Any], now: float) -> RankStatus:
    """Return the status of the rank that has sent a message, which is its heartbeat at the time ``now``."""
    status = RankStatus(**message["status"])
    status.last_heartbeat = now
    if status.location is not None:
        status.location = Location(**message["status"]["location"])
    return status


def has_ended(status: RankStatus) -> bool:
    """Return whether a rank has exited cleanly. The main thread can change the state at any time."""
    return status.state == "ended"


def _kill_if_on_this_host(status: RankStatus, host: str) -> None:
    """Kill a lost rank of this host: it cannot end by itself, and the launcher would wait half a minute."""
    with contextlib.suppress(psutil.Error, OSError):
        # Host names need not be unique. A process with the same parent is a rank of this run.
        if status.host == host and psutil.Process(status.pid).ppid() == os.getppid():
            os.kill(status.pid, signal.SIGKILL)
