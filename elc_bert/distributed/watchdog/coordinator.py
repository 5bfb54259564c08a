"""Rank 0's side of the heartbeats: it receives those of all ranks, diagnoses the run, and ends it."""

import asyncio
import hmac
import json
import os
import socket
from asyncio import StreamReader, StreamWriter
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
    CoordinatorAddress,
    HeartbeatThread,
    has_ended,
    parse_status,
    print_final_message,
    read_messages,
)


class Coordinator(HeartbeatThread):
    """Heartbeat thread of rank 0, which receives the heartbeats of all ranks and diagnoses the run."""

    def __init__(self, status: RankStatus, world_size: int, timeouts: Timeouts) -> None:
        super().__init__(status, world_size, timeouts)
        self._statuses = {0: status}
        dual_stack = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual_stack else socket.AF_INET
        self._listener = socket.create_server(
            ("", 0), family=family, dualstack_ipv6=dual_stack, backlog=world_size
        )
        hosts = [os.environ["MASTER_ADDR"], socket.gethostname()]
        self.address = CoordinatorAddress(hosts, self._listener.getsockname()[1], os.urandom(32).hex())

    async def _run(self) -> None:
        await asyncio.start_server(self._serve, sock=self._listener, limit=MAX_LINE_BYTES)
        while not has_ended(self.status):
            await self._wait_for_interval()
            self._send()
            if not has_ended(self.status) and (
                diagnosis := diagnose(self._statuses.values(), self._now, self.timeouts)
            ):
                await self._end_run(diagnosis)
        await self._wait_until(lambda: not self._writers)

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Receive the heartbeats of one rank until its connection ends."""
        try:
            first = json.loads(await asyncio.wait_for(reader.readline(), self.timeouts.silence))
            accepted = hmac.compare_digest(first["secret"], self.address.secret)
        except (OSError, TimeoutError, ValueError, LookupError, TypeError):
            accepted = False
        if not accepted:
            writer.close()
            return
        status = parse_status(first, self._now)
        rank = status.rank
        self._statuses[rank], self._writers[rank] = status, writer
        self._send()
        if len(self._statuses) == self.world_size:
            self.connected.set()
        async for message in read_messages(reader):
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
        self._listener.close()
