"""Rank 0's side of the heartbeats: it receives those of all ranks, diagnoses the run, and ends it."""

import asyncio
import contextlib
import hmac
import os
import socket
from dataclasses import asdict
from typing import NoReturn

from elc_bert.distributed.watchdog.diagnosis import (
    Diagnosis,
    RankStatus,
    Timeouts,
    diagnose,
    hang_message,
    lost_ranks_message,
)
from elc_bert.distributed.watchdog.heartbeats import (
    MAX_LINE_BYTES,
    SECRET_BYTES,
    CoordinatorAddress,
    HeartbeatThread,
    has_ended,
    parse_status,
    print_final_message,
    read_messages,
)

AUTHENTICATION_TIMEOUT = 10.0
"""Seconds within which a connection must send the secret."""
SPARE_CONNECTIONS = 128
"""Number of connections that may be waiting for their secret in addition to those of the ranks."""


class Coordinator(HeartbeatThread):
    """Heartbeat thread of rank 0, which receives the heartbeats of all ranks and diagnoses the run.

    In a run on one host only processes of this host can connect. Anyone who can connect can keep a
    connection open for some seconds, but cannot keep a rank out: if there are too many connections without
    the secret, the oldest is closed.

    Args:
        status: Status of this rank, which the main thread keeps up to date.
        world_size: Number of ranks.
        timeouts: Timeouts of the watchdog; they may be replaced at any time.
        several_hosts: True if ranks on other hosts connect.
    """

    def __init__(self, status: RankStatus, world_size: int, timeouts: Timeouts, several_hosts: bool) -> None:
        super().__init__(status, world_size, timeouts)
        self._statuses = {0: status}
        self._pending: dict[socket.socket, asyncio.Task[None]] = {}
        self.address: CoordinatorAddress | None = None
        self._listener: socket.socket | None = None
        if world_size == 1:
            self.connected.set()
            return
        backlog = world_size + SPARE_CONNECTIONS
        if several_hosts:
            dual_stack = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if dual_stack else socket.AF_INET
            self._listener = socket.create_server(
                ("", 0), family=family, dualstack_ipv6=dual_stack, backlog=backlog
            )
            hosts = [os.environ["MASTER_ADDR"], socket.gethostname()]
        else:
            hosts = ["127.0.0.1"]
            self._listener = socket.create_server((hosts[0], 0), backlog=backlog)
        self._listener.setblocking(False)
        secret = os.urandom(SECRET_BYTES // 2).hex()
        self.address = CoordinatorAddress(hosts, self._listener.getsockname()[1], secret)

    async def _run(self) -> None:
        accepting = None if self._listener is None else asyncio.create_task(self._accept(self._listener))
        while not has_ended(self.status):
            await self._wait_for_interval()
            self._send()
            if not has_ended(self.status) and (
                diagnosis := diagnose(self._statuses.values(), self._now, self.timeouts)
            ):
                await self._end_run(diagnosis)
        if accepting is not None:
            accepting.cancel()
        self._send()  # this rank may have ended after the last heartbeat
        await self._wait_until(lambda: not self._writers)

    async def _accept(self, listener: socket.socket) -> None:
        """Accept connections, and serve those that send the secret."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError:  # no file descriptor is left, or the other end has given up
                await asyncio.sleep(0.1)
                continue
            connection.setblocking(False)
            if len(self._pending) >= self.world_size + SPARE_CONNECTIONS:
                self._pending.pop(next(iter(self._pending))).cancel()
            self._pending[connection] = asyncio.create_task(self._serve(connection))
            await asyncio.sleep(0)  # accepting does not wait, so that other tasks would not run

    async def _serve(self, connection: socket.socket) -> None:
        """Serve a connection until it ends; close it if it does not send the secret in time."""
        authenticated = False
        try:
            authenticated = await self._is_authenticated(connection)
        finally:
            self._pending.pop(connection, None)
            if not authenticated:
                connection.close()
        if authenticated:
            await self._receive(connection)

    async def _is_authenticated(self, connection: socket.socket) -> bool:
        """Return whether a connection begins with the secret. Nothing more is read from it before."""
        loop, received = asyncio.get_running_loop(), b""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(AUTHENTICATION_TIMEOUT):
                while len(received) < SECRET_BYTES:
                    part = await loop.sock_recv(connection, SECRET_BYTES - len(received))
                    if not part:
                        return False
                    received += part
        assert self.address is not None
        return hmac.compare_digest(received, self.address.secret.encode())

    async def _receive(self, connection: socket.socket) -> None:
        """Receive the heartbeats of one rank until its connection ends."""
        reader, writer = await asyncio.open_connection(sock=connection, limit=MAX_LINE_BYTES)
        messages = read_messages(reader)
        try:
            status = parse_status(await anext(messages), self._now)
        except StopAsyncIteration:
            writer.close()
            return
        rank = status.rank
        self._statuses[rank], self._writers[rank] = status, writer
        self._send()
        if len(self._statuses) == self.world_size:
            self.connected.set()
        async for message in messages:
            self._statuses[rank] = parse_status(message, self._now)
            if self._statuses[rank].state != "running":
                self._wake_up.set()
        del self._writers[rank]
        writer.close()
        if self._statuses[rank].state == "running":
            self._statuses[rank].state = "died"
            self._wake_up.set()

    async def _end_run(self, diagnosis: Diagnosis) -> NoReturn:
        """Print the message about a failure, and end all ranks."""
        statuses = self._statuses.values()
        if diagnosis.kind == "hung":
            self._send({"locate": True})
            await self._update_location()
            await self._wait_until(lambda: all(status.location for status in self._statuses.values()))
            print_final_message(hang_message(statuses))
        elif diagnosis.kind == "lost":
            print_final_message(lost_ranks_message(diagnosis, statuses, self.status.step, self.world_size))
        lost = [self._statuses[rank] for rank in diagnosis.faulty_ranks if diagnosis.kind == "lost"]
        self._send({"exit": diagnosis.exit_status, "lost": [asdict(status) for status in lost]})
        # A process that exits with unread data resets its connections, and its peers may lose the request.
        await self._wait_until(lambda: not set(self._writers) - set(diagnosis.faulty_ranks))
        self._exit(diagnosis.exit_status, lost)

    def _close_in_child(self) -> None:
        super()._close_in_child()
        for connection in (self._listener, *self._pending):
            if connection is not None:
                connection.close()
